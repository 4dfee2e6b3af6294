"""One suite, two services: ours, and OpenStack Swift, which nobody here wrote. The engine must satisfy both."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from harness import Caller, is_alive, make_file, wait_until
from judges.swift import SwiftS3, skip_reason
from obs_engine import EngineOptions, ObsClient, ServiceError
from obs_engine.checkpoint.journal import peek
from obs_engine.testing import LocalObs
from obs_engine.wire import requests
from obs_engine.wire.endpoint import parse_endpoint
from obs_engine.wire.requests import Target, finish
from obs_engine.wire.signing import Credentials

BUCKET, PART = "judged", 102_400
SEED = 7
ODD_KEYS = ["plain", "a space", "ü/中文", "a+b%25c", "~tilde/(brackets)'*", "//double//slashes/", "dots/../and/./x"]


@dataclass
class Service:
    """A service under judgement."""

    name: str
    url: str
    virtual_url: str
    access_key: str
    secret_key: str
    region: str

    def arguments(self, signature: str = "v2", *, is_virtual: bool = False) -> dict[str, Any]:
        return {
            "access_key_id": self.access_key, "secret_access_key": self.secret_key, "signature": signature,
            "server": self.virtual_url if is_virtual else self.url, "region": self.region,
        }  # fmt: skip

    def ask(self, request: requests.Request) -> bytes:
        target = Target(parse_endpoint(self.url), "path", "v2")
        done = finish(request, target, Credentials(self.access_key, self.secret_key), time.time())
        with urlopen(Request(done.url, headers=dict(done.headers), method=done.method), timeout=30) as reply:
            return bytes(reply.read())

    def holds(self, key: str, source: Path) -> bool:
        content = self.ask(requests.get_object(BUCKET, key))
        return hashlib.sha256(content).digest() == hashlib.sha256(source.read_bytes()).digest()

    def open_uploads(self) -> int:
        listing = requests.Request("ListUploads", "GET", BUCKET, query=(("uploads", None),))
        return self.ask(listing).count(b"<UploadId>")


@pytest.fixture(scope="module", params=["ours", "swift"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with ExitStack() as stack:
        if request.param == "ours":
            ours = stack.enter_context(LocalObs(buckets=[BUCKET], region="us-east-1"))
            yield Service("ours", ours.url, ours.virtual_url, ours.access_key, ours.secret_key, "us-east-1")
            return
        if reason := skip_reason():
            pytest.skip(reason)
        swift = stack.enter_context(SwiftS3(buckets=[BUCKET]))
        yield Service("swift", swift.url, swift.virtual_url, swift.access_key, swift.secret_key, swift.region)


@pytest.mark.parametrize("is_virtual", [False, True], ids=["path", "virtual"])
@pytest.mark.parametrize("signature", ["v2", "v4"])
def test_an_upload_is_what_the_service_then_holds(
    service: Service, source: Path, key: str, signature: str, is_virtual: bool
) -> None:
    """Signed either way, addressed either way: the object is the file, and its ETag is our parts'."""
    with ObsClient(**service.arguments(signature, is_virtual=is_virtual)) as client:
        result = client.uploadFile(BUCKET, key, source, PART, 4, True, metadata={"origin": "judge 1%"})
    assert result.status == 200
    assert service.holds(key, source)
    digests = b"".join(
        hashlib.md5(source.read_bytes()[offset : offset + PART]).digest()
        for offset in range(0, source.stat().st_size, PART)
    )
    assert result.body.etag.strip('"') == f"{hashlib.md5(digests).hexdigest()}-20"


@pytest.mark.parametrize("name", ODD_KEYS)
def test_odd_keys_arrive_under_their_name(service: Service, tmp_path: Path, key: str, name: str) -> None:
    """A key is spelled alike in the URL, in the signature and in the service."""
    source = make_file(tmp_path / "f", 1000, seed=3)
    with ObsClient(**service.arguments("v4")) as client:
        client.uploadFile(BUCKET, f"{key}/{name}", source)
    assert service.holds(f"{key}/{name}", source)


@pytest.mark.parametrize("size", [0, 1, PART + 1])
def test_small_files_are_held(service: Service, tmp_path: Path, key: str, size: int) -> None:
    """Empty and tiny files go the same way."""
    source = make_file(tmp_path / "f", size, seed=size)
    with ObsClient(**service.arguments()) as client:
        client.uploadFile(BUCKET, key, source, PART)
    assert service.holds(key, source)


def test_a_wrong_secret_is_refused(service: Service, source: Path, key: str) -> None:
    """Both services verify what we sign."""
    arguments = service.arguments("v4") | {"secret_access_key": "wrong"}
    with ObsClient(**arguments) as client, pytest.raises(ServiceError) as caught:
        client.uploadFile(BUCKET, key, source)
    assert caught.value.errorCode == "SignatureDoesNotMatch"


@pytest.mark.parametrize("is_record_lost", [False, True])
def test_a_killed_upload_is_continued(service: Service, tmp_path: Path, key: str, is_record_lost: bool) -> None:
    """kill -9 of the caller at a seeded part; the next call sends only what is neither recorded nor there."""
    source = make_file(tmp_path / "big", 150 * PART - 5, SEED)
    record = tmp_path / "record"
    point = random.Random(SEED).randrange(10, 60)
    call = {
        "bucketName": BUCKET, "objectKey": key, "uploadFile": str(source), "partSize": PART, "taskNum": 2,
        "enableCheckpoint": True, "checkpointFile": str(record),
    }  # fmt: skip
    caller = Caller(service.arguments(), call)

    def recorded() -> int:
        state = peek(str(record))
        return len(state.parts) if state is not None else 0

    wait_until(lambda: recorded() >= point, f"{point} recorded parts")
    children = caller.process.children(recursive=True)
    caller.end()
    wait_until(lambda: not any(map(is_alive, children)), "the end of all", deadline_s=2)
    kept = recorded()
    if is_record_lost:
        record.unlink()
    with ObsClient(**service.arguments(), engine=EngineOptions(adopt=is_record_lost)) as client:
        report = client.uploadFile(**call).report
    if is_record_lost:
        assert report.parts_resumed == report.parts_adopted >= kept
    else:
        assert report.parts_resumed - report.parts_adopted == kept
    assert report.parts_resumed + report.parts_sent == 150
    assert service.holds(key, source)
    assert service.open_uploads() == 0


def test_a_failed_upload_is_aborted(service: Service, tmp_path: Path, key: str) -> None:
    """Without a checkpoint nothing stays behind that would be billed."""
    source = make_file(tmp_path / "f", 12 * PART, SEED)

    def cut(*_: Any) -> None:
        source.write_bytes(b"short")

    with ObsClient(**service.arguments()) as client, pytest.raises(Exception, match="uploadFile"):
        client.uploadFile(BUCKET, key, source, PART, 1, progressCallback=cut)
    assert service.open_uploads() == 0
    with pytest.raises(HTTPError):
        service.ask(requests.get_object(BUCKET, key))
