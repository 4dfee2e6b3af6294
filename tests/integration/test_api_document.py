"""The API document at work: what its parameters and fields do on the wire, its limits, its results, its example."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import obs_engine
from harness import client_of, is_equal
from obs_engine import InvalidArgumentError, ObsClient, SseCHeader, SseKmsHeader, UploadFileHeader
from obs_engine.testing import LocalObs
from recorder import Answer, Recorded, Recorder

pytestmark = pytest.mark.timeout(60)

PART = 102_400
KEY_32 = "12345678901234567890123456789012"
KEY_MD5 = base64.b64encode(hashlib.md5(KEY_32.encode()).digest()).decode()

EXAMPLE = """
from {package} import ObsClient
import os
import traceback

ak = os.getenv("AccessKeyID")
sk = os.getenv("SecretAccessKey")
server = "{server}"
obsClient = ObsClient(access_key_id=ak, secret_access_key=sk, server=server)

try:
    bucketName = "{bucket}"
    objectKey = "{key}"
    uploadFile = 'localfile'
    taskNum = 5
    partSize = 10 * 1024 * 1024
    enableCheckpoint = True
    resp = obsClient.uploadFile(bucketName, objectKey, uploadFile, partSize, taskNum, enableCheckpoint, encoding_type='url')
    if resp.status < 300:
        print('Upload File Succeeded')
        print('requestId:', resp.requestId)
    else:
        print('Upload File Failed')
        print('requestId:', resp.requestId)
        print('errorCode:', resp.errorCode)
        print('errorMessage:', resp.errorMessage)
except:
    print('Upload File Failed')
    print(traceback.format_exc())
"""  # noqa: E501
"""The document's, with its indentation restored and its comments left out."""


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder(prefix="x-amz-") as made:
        yield made


def recorded(recorder: Recorder, source: Path, key: str = "key", **more: Any) -> tuple[Any, list[Recorded]]:
    """One upload in path style, and what was asked."""
    with ObsClient("AK", "SK", server=f"http://127.0.0.1:{recorder.port}") as client:
        result = client.uploadFile("bucket", key, source, **({"partSize": PART} | more))
    return result, recorder.take()


FIELDS: list[tuple[str, Any, str, str]] = [
    ("acl", "public-read", "x-amz-acl", "public-read"),
    ("location", "/page.html", "x-amz-website-redirect-location", "/page.html"),
    ("location", "http://a.b/", "x-amz-website-redirect-location", "http://a.b/"),
    ("contentType", "text/x-mine", "content-type", "text/x-mine"),
    ("storageClass", "WARM", "x-amz-storage-class", "STANDARD_IA"),
    ("storageClass", "COLD", "x-amz-storage-class", "GLACIER"),
    ("successActionRedirect", "http://a.b/done", "success-action-redirect", "http://a.b/done"),
    ("expires", 3, "x-obs-expires", "3"),
    ("extensionGrants", [{"granteeId": "G", "permission": "READ"}], "x-amz-grant-read", "id=G"),
    ("sseHeader", SseCHeader.getInstance(KEY_32), "x-amz-server-side-encryption-customer-key-md5", KEY_MD5),
    ("sseHeader", SseKmsHeader.getInstance("kid"), "x-amz-server-side-encryption-aws-kms-key-id", "kid"),
]


@pytest.mark.parametrize("is_dict", [False, True])
@pytest.mark.parametrize(("name", "value", "header", "sent"), FIELDS)
def test_every_field_of_table_2_is_sent(
    recorder: Recorder, source: Path, name: str, value: Any, header: str, sent: str, is_dict: bool
) -> None:
    """With Initiate, whether it came in our class or a dict; without it the header is not there."""
    fields = {name: value}
    _, log = recorded(recorder, source, headers=fields if is_dict else UploadFileHeader(**fields))
    assert log[0].operation == "Initiate"
    assert log[0].values(header) == (sent,)
    _, log = recorded(recorder, source)
    assert not log[0].values(header)


def test_fields_of_the_sdks_classes_are_taken(recorder: Recorder, source: Path) -> None:
    """The official SDK's instances say the same as ours."""
    obs = pytest.importorskip("obs", reason="the official SDK's instances are needed")
    sent = []
    for module in (obs, obs_engine):
        headers = module.UploadFileHeader(
            acl=module.HeadPermission.PUBLIC_READ, sseHeader=module.SseCHeader.getInstance(KEY_32),
            extensionGrants=[module.ExtensionGrant("G", module.Permission.READ_ACP)],
        )  # fmt: skip
        _, log = recorded(recorder, source, headers=headers)
        sent.append([(n, v) for n, v in log[0].headers if n.lower() not in ("date", "authorization", "host")])
    assert sent[0] == sent[1]


def test_the_parameters_of_table_1(recorder: Recorder, source: Path, tmp_path: Path) -> None:
    """Metadata and extension headers are sent, the part size is clamped, the checkpoint file is gone at the end."""
    result, log = recorded(
        recorder, source, partSize=1, taskNum=3, enableCheckpoint=True, checkpointFile=tmp_path / "record",
        checkSum=True, metadata={"colour": "blue"}, extensionHeaders={"x-amz-extra": "1"}, encoding_type="url",
    )  # fmt: skip
    assert result.report.parts == 20
    assert log[0].values("x-amz-meta-colour") == ("blue",)
    assert all(request.values("x-amz-extra") == ("1",) for request in log)
    assert [r.query.get("encoding-type") for r in log if r.method == "POST"] == ["url", "url"]
    assert not (tmp_path / "record").exists()


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(({"bucketName": name}, "bucketName") for name in (
        "", None, "ab", "a" * 64, "Upper", "-a-b", "a-b-", ".abc", "abc.", "a..b", "a-.b", "a.-b", "10.0.0.1", "a_bc")),
    *(({"objectKey": name}, "objectKey") for name in ("", None, "k" * 1025)),
    *(({"uploadFile": name}, "uploadFile") for name in ("", None)),
    *(({"taskNum": number}, "taskNum") for number in (0, -1, 10_001, "2", None)),
    *(({"partSize": size}, "partSize") for size in ("9", None)),
    ({"metadata": {"k": "v" * 8192}}, "metadata"),
    ({"progressCallback": 1}, "Invalid callback"),
    *(({"headers": UploadFileHeader(location=to)}, "location") for to in ("page", "ftp://a", "/" + "x" * 2048)),
    *(({"headers": UploadFileHeader(expires=days)}, "expires") for days in (-1, 1.5)),
    *(({"headers": UploadFileHeader(sseHeader=SseCHeader.getInstance(key))}, "32") for key in ("short", "k" * 33)),
    ({"headers": UploadFileHeader(acl="nobody")}, "acl"),
    ({"headers": UploadFileHeader(storageClass="HOT")}, "storageClass"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_limits_are_kept_before_anything_is_sent(
    recorder: Recorder, source: Path, change: dict[str, Any], words: str
) -> None:
    """Each with an error that names the argument."""
    arguments: dict[str, Any] = {"bucketName": "bucket", "objectKey": "key", "uploadFile": source} | change
    with (
        ObsClient("AK", "SK", server=f"http://127.0.0.1:{recorder.port}") as client,
        pytest.raises(InvalidArgumentError, match=words),
    ):
        client.uploadFile(**arguments)
    assert not recorder.take()


@pytest.mark.parametrize(
    "change",
    [{"objectKey": "k" * 1024}, {"bucketName": "abc"}, {"bucketName": "a" * 63}, {"metadata": {"k": "v" * 8191}},
     {"headers": UploadFileHeader(expires=0)}, {"headers": UploadFileHeader(location="/" + "x" * 2047)},
     {"taskNum": 10_000}],
    ids=str,
)  # fmt: skip
def test_what_is_just_within_the_limits_is_sent(recorder: Recorder, source: Path, change: dict[str, Any]) -> None:
    """The longest and the shortest that the document allows."""
    arguments: dict[str, Any] = {"bucketName": "bucket", "objectKey": "key", "uploadFile": source} | change
    with ObsClient("AK", "SK", server=f"http://127.0.0.1:{recorder.port}") as client:
        assert client.uploadFile(**arguments).status == 200


def test_all_fields_of_tables_10_and_12(recorder: Recorder, source: Path) -> None:
    """After a success, from the reply's document and headers."""
    said = {"version-id": "V" * 32, "server-side-encryption": "aws:kms", "server-side-encryption-aws-kms-key-id": "K",
            "server-side-encryption-customer-algorithm": "AES256",
            "server-side-encryption-customer-key-md5": KEY_MD5, "request-id": "R"}  # fmt: skip
    body = (
        "<CompleteMultipartUploadResult><Location>L</Location><Bucket>bucket</Bucket><Key>key</Key>"
        "<ETag>&quot;0123456789abcdef0123456789abcdef-20&quot;</ETag></CompleteMultipartUploadResult>"
    )
    headers = tuple((f"x-amz-{name}", value) for name, value in said.items())
    recorder.answers["Complete"] = Answer(headers=(*headers, ("x-reserved-indicator", "I")), body=body.encode())
    result, _ = recorded(recorder, source)
    assert (result.status, result.reason, result.requestId, result.indicator) == (200, "OK", "R", "I")
    assert (result.errorCode, result.errorMessage, result.hostId, result.resource) == (None,) * 4
    assert ("version-id", "V" * 32) in result.header
    found = result.body
    assert (found.etag, found.bucket, found.key, found.location) == (
        '"0123456789abcdef0123456789abcdef-20"', "bucket", "key", "L",
    )  # fmt: skip
    assert (found.versionId, found.sseKms, found.sseKmsKey) == ("V" * 32, "aws:kms", "K")
    assert (found.sseC, found.sseCKeyMd5) == ("AES256", KEY_MD5)
    assert found.objectUrl == f"http://127.0.0.1:{recorder.port}/bucket/key"


def test_a_refused_complete_fills_table_10(recorder: Recorder, source: Path) -> None:
    """It is returned, with the service's words and without a body."""
    words = {"Code": "C", "Message": "M", "RequestId": "R", "HostId": "H", "Resource": "S"}
    body = f"<Error>{''.join(f'<{name}>{word}</{name}>' for name, word in words.items())}</Error>"
    recorder.answers["Complete"] = Answer(403, "Forbidden", (("Content-Type", "application/xml"),), body.encode())
    result, _ = recorded(recorder, source)
    assert (result.status, result.reason, result.body) == (403, "Forbidden", None)
    assert (result.errorCode, result.errorMessage, result.requestId) == ("C", "M", "R")
    assert (result.hostId, result.resource) == ("H", "S")


@pytest.mark.parametrize("name", ["a b+c%2B&<>\"'", "ключ/\U0001f600", "a//b/../c"])
def test_odd_keys_come_back_as_they_were(server: LocalObs, source: Path, name: str) -> None:
    """With encoding_type='url'."""
    with client_of(server) as client:
        result = client.uploadFile("bench", name, source, PART, 4, encoding_type="url")
    assert (result.body.key, result.body.encoding_type) == (name, "url")
    assert is_equal(server, "bench", name, source)


def run_example(server: LocalObs, package: str, where: Path, key: str, secret: str, bucket: str) -> list[str]:
    """The example's lines."""
    script = where / f"example_{package}.py"
    script.write_text(EXAMPLE.format(package=package, server=server.url, bucket=bucket, key=key))
    environment = {**os.environ, "AccessKeyID": server.access_key, "SecretAccessKey": secret}
    done = subprocess.run([sys.executable, str(script)], cwd=where, env=environment, capture_output=True, text=True,
                          timeout=60, check=True)  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_the_documents_example_prints_what_the_sdk_prints(server: LocalObs, key: str, tmp_path: Path) -> None:
    """Success, a wrong secret, a missing bucket and a refused Complete; request ids apart."""
    pytest.importorskip("obs", reason="the official SDK is the judge here")
    (tmp_path / "localfile").write_bytes(os.urandom(300_000))
    said = {}
    for package in ("obs", "obs_engine"):
        good = run_example(server, package, tmp_path, key, server.secret_key, "bench")
        bad = run_example(server, package, tmp_path, key, "wrong", "bench")
        missing = run_example(server, package, tmp_path, key, server.secret_key, "no-such-bucket")
        server.set_faults([{"operation": "Complete", "status": 403, "code": "AccessDenied", "message": "No."}])
        refused = run_example(server, package, tmp_path, key, server.secret_key, "bench")
        server.set_faults([])
        assert good[1].startswith("requestId: ")
        assert refused[1].startswith("requestId: ")
        said[package] = (good[:1], good[2:], bad[:1], missing[:1], refused[:1], refused[2:])
    assert said["obs"] == said["obs_engine"]
    assert said["obs"][0] == ["Upload File Succeeded"]
    assert said["obs"][2] == ["Upload File Failed"]
    assert said["obs"][5] == ["errorCode: AccessDenied", "errorMessage: No."]
