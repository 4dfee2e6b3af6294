"""The call: every wrong argument is one clear error before any process starts."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import pytest

import obs_engine
from obs_engine import (
    EngineOptions,
    ExtensionGrant,
    GetResult,
    InvalidArgumentError,
    ObsClient,
    SourceNotFoundError,
    SseCHeader,
    SseKmsHeader,
    UploadFileHeader,
)
from obs_engine.transfer.launch import Launcher
from obs_engine.transfer.messages import UploadRequest

KEY_C = "12345678901234567890123456789012"


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "f.txt"
    path.write_bytes(b"x" * 200_000)
    return str(path)


@pytest.fixture
def client() -> ObsClient:
    return ObsClient("ak", "sk", server="https://obs.x.com")


class _Started(Exception):
    """The engine would have been started with this request."""


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Launcher, request: UploadRequest) -> Any:
        raise _Started(request)

    monkeypatch.setattr(Launcher, "call", refuse)


def built(client: ObsClient, *arguments: Any, **named: Any) -> UploadRequest:
    """The request that a call turns into."""
    with pytest.raises(_Started) as started:
        client.uploadFile(*arguments, **named)
    request = started.value.args[0]
    assert isinstance(request, UploadRequest)
    return request


def test_positional_order_and_defaults_are_the_documents() -> None:
    """`uploadFile` takes the document's twelve parameters in order, then the SDK's two."""
    parameters = list(inspect.signature(ObsClient.uploadFile).parameters.values())[1:]
    assert [p.name for p in parameters] == (
        "bucketName objectKey uploadFile partSize taskNum enableCheckpoint checkpointFile checkSum metadata "
        "progressCallback headers extensionHeaders encoding_type isAttachCrc64"
    ).split()
    defaults = [p.default for p in parameters[3:]]
    assert defaults == [9 * 1024 * 1024, 1, False, None, False, None, None, None, None, None, False]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bucketName": ""}, "bucketName is empty"),
        ({"bucketName": "  "}, "bucketName is empty"),
        ({"bucketName": None}, "bucketName"),
        ({"bucketName": "ab"}, "bucketName"),
        ({"bucketName": "a" * 64}, "bucketName"),
        ({"bucketName": "Upper"}, "bucketName"),
        ({"bucketName": "under_score"}, "bucketName"),
        ({"bucketName": "-bkt"}, "bucketName"),
        ({"bucketName": "bkt."}, "bucketName"),
        ({"bucketName": "my..bucket"}, "bucketName"),
        ({"bucketName": "my-.bucket"}, "bucketName"),
        ({"bucketName": "my.-bucket"}, "bucketName"),
        ({"bucketName": "192.168.0.1"}, "bucketName"),
        ({"objectKey": ""}, "objectKey is empty"),
        ({"objectKey": " "}, "objectKey is empty"),
        ({"objectKey": None}, "objectKey"),
        ({"objectKey": "k" * 1025}, r"objectKey.*\(1025\)"),
        ({"objectKey": "\udcff"}, "objectKey"),
        ({"uploadFile": ""}, "uploadFile is empty"),
        ({"uploadFile": None}, "uploadFile"),
        ({"uploadFile": 7.5}, "uploadFile"),
        ({"uploadFile": "a\0b"}, "NUL"),
        ({"uploadFile": "/"}, "a directory"),
        ({"taskNum": 0}, "taskNum.*1 to 10000"),
        ({"taskNum": -1}, "taskNum"),
        ({"taskNum": 10001}, "taskNum"),
        ({"taskNum": "4"}, "taskNum"),
        ({"taskNum": True}, "taskNum"),
        ({"taskNum": float("inf")}, "taskNum"),
        ({"partSize": "9M"}, "partSize"),
        ({"partSize": None}, "partSize"),
        ({"partSize": float("nan")}, "partSize"),
        ({"progressCallback": 5}, "progressCallback.*Invalid callback"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"k": "v" * 8192}}, "metadata.*8192"),
        ({"extensionHeaders": ["x"]}, "extensionHeaders"),
        ({"extensionHeaders": {"bad name": "x"}}, "extensionHeaders"),
        ({"encoding_type": "xml"}, "encoding_type"),
        ({"headers": UploadFileHeader(expires=-1)}, "expires"),
        ({"headers": UploadFileHeader(sseHeader=SseCHeader(key="short"))}, "32 bytes"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(
    client: ObsClient, source: str, change: dict[str, Any], words: str
) -> None:
    """The error names the argument, what was expected, and what was found."""
    arguments: dict[str, Any] = {"bucketName": "bkt", "objectKey": "k", "uploadFile": source} | change
    with pytest.raises(InvalidArgumentError, match=words):
        client.uploadFile(**arguments)


def test_a_missing_file_is_a_file_not_found_error(client: ObsClient, tmp_path: Path) -> None:
    """As with the SDK, `except FileNotFoundError` catches it; a checkpoint beside it is kept."""
    record = tmp_path / "gone.upload_record"
    record.write_bytes(b"progress")
    with pytest.raises(SourceNotFoundError):
        client.uploadFile("bkt", "k", str(tmp_path / "gone"), enableCheckpoint=True)
    assert record.read_bytes() == b"progress"


def test_the_source_is_never_its_own_checkpoint(client: ObsClient, source: str) -> None:
    """Not even through a link."""
    os.symlink(source, f"{source}.link")
    with pytest.raises(InvalidArgumentError, match="another file than uploadFile"):
        client.uploadFile("bkt", "k", source, enableCheckpoint=True, checkpointFile=f"{source}.link")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"server": None}, "server is not set correctly"),
        ({"server": "ftp://x"}, "server"),
        ({"signature": "v3"}, "signature"),
        ({"max_retry_count": -1}, "max_retry_count"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": None}, "timeout"),
        ({"is_use_gmssl": True}, "GM/TLS"),
        ({"ssl_verify": "/nowhere.pem"}, "ssl_verify"),
        ({"engine": {"processes": 2}}, "engine"),
        ({"secret_access_key": b"bytes"}, "secret_access_key"),
    ],
)
def test_wrong_client_arguments_are_refused(change: dict[str, Any], words: str) -> None:
    """So are those of the client; a secret of a wrong type is not shown."""
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        ObsClient(**({"server": "https://obs.x.com"} | change))
    assert "b'bytes'" not in str(caught.value)


@pytest.mark.parametrize("name", ["processes", "upload_buffer_bytes", "durability", "sync_interval_s", "check_bucket",
                                  "connect_timeout_s"])  # fmt: skip
def test_wrong_options_are_refused(name: str) -> None:
    """Every option has a range and says so."""
    with pytest.raises(InvalidArgumentError, match=name):
        EngineOptions(**{name: -1})


@pytest.mark.parametrize(
    ("arguments", "signature", "addressing"),
    [
        ({"server": "https://obs.x.com"}, "obs", "virtual"),
        ({"server": "https://obs.x.com", "path_style": True}, "v2", "path"),
        ({"server": "http://10.0.0.1"}, "v2", "path"),
        ({"server": "http://10.0.0.1", "signature": "v4"}, "v4", "path"),
        ({"server": "https://files.x.com", "is_cname": True}, "v2", "cname"),
        ({"server": "https://obs.x.com", "signature": "v2"}, "v2", "virtual"),
    ],
)
def test_modes_follow_the_sdks_table(arguments: dict[str, Any], signature: str, addressing: str) -> None:
    """`obs` needs a virtual host; elsewhere it becomes `v2`."""
    target = ObsClient(**arguments)._settings.target
    assert (target.signature, target.addressing) == (signature, addressing)


def test_tls_is_verified_by_default() -> None:
    """Unlike the SDK, whose default checks nothing."""
    options = ObsClient(server="https://obs.x.com")._settings.transport
    assert options.is_verified
    assert options.ca_file is None or os.path.isfile(options.ca_file)
    assert not ObsClient(server="https://obs.x.com", ssl_verify=False)._settings.transport.is_verified


def test_relative_paths_are_made_absolute_at_once(
    client: ObsClient, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host may change its directory while uploads run."""
    monkeypatch.chdir(os.path.dirname(source))
    request = built(client, "bkt", "k", "f.txt", enableCheckpoint=True)
    assert (request.path, request.checkpoint_file) == (source, f"{source}.upload_record")
    assert built(client, "bkt", "k", Path("f.txt"), checkpointFile="x").checkpoint_file is None


def test_headers_of_an_object_in_both_dialects(source: str) -> None:
    """Metadata, ACL, class, redirect, grants, expiry and type become the mode's headers."""
    headers = UploadFileHeader(
        acl="public-read", location="/other", storageClass="WARM", expires=3, contentType="text/x",
        extensionGrants=[ExtensionGrant("A", "READ"), ExtensionGrant("B", "READ"), ExtensionGrant("C", "WRITE")],
    )  # fmt: skip
    call = ("bkt", "k", source, 9 << 20, 1, False, None, False, {"Name": "v 1%", "empty": ""}, None, headers)
    native = dict(built(ObsClient(server="https://obs.x.com"), *call).dialect.initiate)
    assert native == {
        "x-obs-meta-Name": "v 1%25", "x-obs-acl": "public-read", "x-obs-storage-class": "WARM",
        "x-obs-website-redirect-location": "/other", "Content-Type": "text/x", "x-obs-expires": "3",
        "x-obs-grant-read": "id=A,id=B",
    }  # fmt: skip
    v2 = dict(built(ObsClient(server="http://10.0.0.1"), *call).dialect.initiate)
    assert v2["x-amz-storage-class"] == "STANDARD_IA"
    assert v2["x-obs-expires"] == "3"


def test_encryption_headers(client: ObsClient, source: str) -> None:
    """A customer's key goes with every part, a key of the service with Initiate alone; neither is shown."""
    customer = SseCHeader(key=KEY_C)
    request = built(client, "bkt", "k", source, headers=UploadFileHeader(sseHeader=customer))
    prefix = "x-obs-server-side-encryption-customer-"
    assert dict(request.dialect.part) == {
        f"{prefix}algorithm": "AES256",
        f"{prefix}key": "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI=",
        f"{prefix}key-MD5": "dnF5x6K/8ZZRzpfSlMMM+w==",
    }
    assert KEY_C not in repr(customer)
    kms = built(client, "bkt", "k", source, headers=UploadFileHeader(sseHeader=SseKmsHeader(key="id")))
    assert not kms.dialect.part
    assert ("x-obs-server-side-encryption", "kms") in kms.dialect.initiate


def test_what_makes_an_object_is_told_apart(client: ObsClient, source: str) -> None:
    """Metadata, properties and encryption; of the caller's own headers, those that are known to make the object."""
    headers = UploadFileHeader(acl="private", contentType="text/x", sseHeader=SseCHeader(key=KEY_C))
    own = {
        "X-OBS-Meta-B": "2", "Cache-Control": "no-store", "x-amz-tagging": "a=b", "x-obs-object-lock-mode": "ON",
        "x-obs-traffic-limit": "819200", "x-trace": "1", "x-obs-callback": "c", "Origin": "o", "acl": "unprefixed",
    }  # fmt: skip
    request = built(client, "bkt", "k", source, metadata={"a": "1"}, headers=headers, extensionHeaders=own)
    groups = {name: {header for header, _ in members} for name, members in request.object_options.items()}
    prefix = "x-obs-server-side-encryption-customer-"
    assert groups == {
        "metadata": {"x-obs-meta-a", "X-OBS-Meta-B"},
        "properties": {"x-obs-acl", "Content-Type", "Cache-Control", "x-amz-tagging", "x-obs-object-lock-mode"},
        "encryption": {f"{prefix}algorithm", f"{prefix}key", f"{prefix}key-MD5"},
    }
    kms = built(client, "bkt", "k", source, headers=UploadFileHeader(sseHeader=SseKmsHeader(key="id")))
    assert [name for name, _ in kms.object_options["encryption"]] == [
        "x-obs-server-side-encryption", "x-obs-server-side-encryption-kms-key-id",
    ]  # fmt: skip
    assert built(client, "bkt", "k", source).object_options == {"metadata": (), "properties": (), "encryption": ()}


def test_content_type_is_guessed_from_the_key(client: ObsClient, source: str) -> None:
    """The key's suffix decides, not the file's."""
    assert ("Content-Type", "image/png") in built(client, "bkt", "a.png", source).dialect.initiate
    assert not built(client, "bkt", "a", source).dialect.initiate


def test_results_read_as_attributes_and_items() -> None:
    """An unknown field is None, as in the SDK."""
    result = GetResult(status=200)
    assert result.status == result["status"] == 200
    assert result.errorCode is None


def test_everything_public_is_importable() -> None:
    """`__all__` holds what it says."""
    for name in obs_engine.__all__:
        assert getattr(obs_engine, name) is not None
