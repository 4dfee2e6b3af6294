"""The API document's twelve tables of names, one by one, against what this package offers; and the SDK beside it."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from typing import Any

import pytest

import obs_engine

TABLE_1 = {
    "bucketName": inspect.Parameter.empty, "objectKey": inspect.Parameter.empty, "uploadFile": inspect.Parameter.empty,
    "partSize": 9 * 1024 * 1024, "taskNum": 1, "enableCheckpoint": False, "checkpointFile": None, "checkSum": False,
    "metadata": None, "progressCallback": None, "headers": None, "extensionHeaders": None,
}  # fmt: skip
"""The parameters in their order, each with its default."""

NOT_IN_THE_DOCUMENT = {"encoding_type": None, "isAttachCrc64": False}
"""Parameters of the official SDK; the document's example uses the first."""

FIELDS = {
    (2, "UploadFileHeader"): ["acl", "location", "contentType", "sseHeader", "storageClass", "successActionRedirect",
                              "extensionGrants", "expires"],
    (5, "SseCHeader"): ["encryption", "key"],
    (6, "SseKmsHeader"): ["encryption", "key"],
    (7, "ExtensionGrant"): ["granteeId", "permission"],
    (10, "GetResult"): ["status", "reason", "errorCode", "errorMessage", "requestId", "indicator", "hostId", "resource",
                        "header", "body"],
    (12, "CompleteMultipartUploadResponse"): ["etag", "bucket", "key", "location", "versionId", "sseKms", "sseKmsKey",
                                              "sseC", "sseCKeyMd5", "objectUrl"],
}  # fmt: skip

CONSTANTS = {
    (3, "HeadPermission"): {
        "PRIVATE": "private",
        "PUBLIC_READ": "public-read",
        "PUBLIC_READ_WRITE": "public-read-write",
        "PUBLIC_READ_DELIVERED": "public-read-delivered",
        "PUBLIC_READ_WRITE_DELIVERED": "public-read-write-delivered",
        "BUCKET_OWNER_FULL_CONTROL": "bucket-owner-full-control",  # the document misprints it; the SDK has this
    },
    (4, "StorageClass"): {"STANDARD": "STANDARD", "WARM": "WARM", "COLD": "COLD"},
    (8, "Permission"): {name: name for name in ("READ", "WRITE", "READ_ACP", "WRITE_ACP", "FULL_CONTROL")},
}

RETURNED = {(9, "uploadFile"): "GetResult", (11, "GetResult.body"): "CompleteMultipartUploadResponse"}

PUBLIC = [
    "ObsClient", "UploadFileHeader", "HeadPermission", "StorageClass", "SseCHeader", "SseKmsHeader", "ExtensionGrant",
    "Permission", "GetResult", "CompleteMultipartUploadResponse", "LogConf", "ClientVerify", "ExtensionHeader",
    "accelerate",
]  # fmt: skip

_EACH_FIELD = [(table, owner, name) for (table, owner), names in FIELDS.items() for name in names]
_EACH_CONSTANT = [(table, owner, *item) for (table, owner), known in CONSTANTS.items() for item in known.items()]


def test_all_twelve_tables_are_here() -> None:
    """None of the document's tables is forgotten."""
    assert sorted({1} | {number for number, _ in (*FIELDS, *CONSTANTS, *RETURNED)}) == list(range(1, 13))


def test_table_1_is_the_calls_signature() -> None:
    """Names, order and defaults; what the document leaves out comes after."""
    found = {name: p.default for name, p in inspect.signature(obs_engine.ObsClient.uploadFile).parameters.items()}
    found.pop("self")
    wanted = TABLE_1 | NOT_IN_THE_DOCUMENT
    assert list(found.items()) == list(wanted.items())


@pytest.mark.parametrize(("table", "owner", "name"), _EACH_FIELD)
def test_every_field_can_be_given_set_and_read(table: int, owner: str, name: str) -> None:
    """By its name, in the constructor and afterwards; not given, it is the document's default."""
    cls = getattr(obs_engine, owner)
    words = {"SseCHeader": "AES256", "SseKmsHeader": "kms"}
    assert getattr(cls(), name) == (words[owner] if name == "encryption" else None), f"Table {table}"
    value = object()
    made = cls(**{name: value})
    assert getattr(made, name) is value
    other = object()
    setattr(made, name, other)
    assert getattr(made, name) is other


@pytest.mark.parametrize(("table", "owner", "name", "value"), _EACH_CONSTANT)
def test_every_constant_has_its_value(table: int, owner: str, name: str, value: str) -> None:
    """Under the class that the document names, and as the SDK has it."""
    assert getattr(getattr(obs_engine, owner), name) == value, f"Table {table}"
    obs = pytest.importorskip("obs", reason="the official SDK is the judge here")
    assert getattr(getattr(obs, owner), name) == value


@pytest.mark.parametrize(("table", "returned"), [(place[0], name) for place, name in RETURNED.items()])
def test_what_is_returned_has_the_documents_name(table: int, returned: str) -> None:
    """Tables 9 and 11 name a type alone."""
    assert getattr(obs_engine, returned).__name__ == returned, f"Table {table}"
    if table == 9:
        assert inspect.signature(obs_engine.ObsClient.uploadFile).return_annotation == returned


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_importable(name: str) -> None:
    """`from obs_engine import X` works, and `X` is announced."""
    space: dict[str, Any] = {}
    exec(f"from obs_engine import {name}", space)
    assert space[name] is getattr(obs_engine, name)
    assert name in obs_engine.__all__


@pytest.mark.parametrize("owner", ["UploadFileHeader", "ExtensionGrant", "ClientVerify"])
def test_positional_order_is_the_sdks(owner: str) -> None:
    """Values given without names arrive in the same fields; ours alone come last. The SDK's SSE headers take none."""
    obs = pytest.importorskip("obs", reason="the official SDK says which order there is")
    theirs = [name for name in inspect.signature(getattr(obs, owner).__init__).parameters if name != "self"]
    ours = list(inspect.signature(getattr(obs_engine, owner)).parameters)
    assert ours[: len(theirs)] == theirs
    assert ours[len(theirs) :] == (["location"] if owner == "UploadFileHeader" else [])


@pytest.mark.parametrize("owner", ["SseCHeader", "SseKmsHeader"])
def test_get_instance_is_the_sdks(owner: str) -> None:
    """The same arguments make the same header."""
    obs = pytest.importorskip("obs", reason="the official SDK is the judge here")
    for arguments in (("k" * 32,), ("k" * 32, "other")):
        ours, theirs = (getattr(module, owner).getInstance(*arguments) for module in (obs_engine, obs))
        assert (ours.key, ours.encryption) == (theirs.key, theirs.encryption)
    assert obs_engine.SseKmsHeader.getInstance().key is None


@pytest.mark.parametrize("owner", ["GetResult", "CompleteMultipartUploadResponse"])
def test_results_read_as_attributes_items_and_capitals(owner: str) -> None:
    """As in the SDK: an unknown field is None, a first letter may be a capital."""
    made = getattr(obs_engine, owner)(status=200, key="k")
    assert (made.status, made["status"], made.Status, made.get("status")) == (200, 200, 200, 200)
    assert (made.unknown, made.Unknown, made.get("unknown")) == (None, None, None)
    with pytest.raises(KeyError):
        made["unknown"]
    made.Key = "other"
    assert made["key"] == "other"
    del made.key
    assert made.key is None
    assert not hasattr(made, "__no_such_protocol__")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_results_can_be_pickled(protocol: int) -> None:
    """With their class and what they hold, nested."""
    body = obs_engine.CompleteMultipartUploadResponse(etag='"e"')
    result = obs_engine.GetResult(status=200, header=[("a", "b")], body=body)
    found = pickle.loads(pickle.dumps(result, protocol))
    assert (type(found), type(found.body), found) == (obs_engine.GetResult, type(body), result)


def test_results_can_be_copied() -> None:
    """A deep copy shares nothing, a shallow one its values."""
    body = obs_engine.CompleteMultipartUploadResponse(etag='"e"')
    result = obs_engine.GetResult(status=200, body=body)
    deep, shallow = copy.deepcopy(result), copy.copy(result)
    assert deep == shallow == result
    assert (type(deep), type(shallow), type(deep.body)) == (obs_engine.GetResult, obs_engine.GetResult, type(body))
    assert deep.body is not body
    assert shallow.body is body


def test_no_repr_shows_a_key() -> None:
    """Neither of SSE-C nor of a client's certificate, alone or inside."""
    key = "0123456789-this-is-a-customer-ke"
    shown = [
        obs_engine.SseCHeader.getInstance(key), obs_engine.SseCHeader("AES256", key.encode()),
        obs_engine.UploadFileHeader(sseHeader=obs_engine.SseCHeader.getInstance(key)),
        obs_engine.ClientVerify("cert.pem", "key.pem", key), obs_engine.ClientVerify(clientEncKeyPassword=key),
    ]  # fmt: skip
    for value in shown:
        assert key not in f"{value!r} {value!s} {[value]}"


def test_an_import_does_nothing_else() -> None:
    """No process, no thread, no network library, no handler of the host's, nothing written."""
    code = """
import logging, sys, threading
before = set(sys.modules)
import obs_engine
import psutil
assert not psutil.Process().children(), "a process"
assert threading.active_count() == 1, "a thread"
assert not {"pycurl", "obs", "ssl", "multiprocessing", "asyncio"} & set(sys.modules), "a heavy module"
assert not logging.getLogger().handlers and logging.getLogger().level == logging.WARNING
assert [type(h) for h in logging.getLogger("obs_engine").handlers] == [logging.NullHandler]
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
