"""`uploadFiles`: many small files, some large ones, some that fail; results as they come."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from harness import client_of, is_equal, make_file, object_of, wait_until
from obs_engine import EngineOptions, FileResult, FileToUpload, InvalidArgumentError, UploadFileHeader
from obs_engine.testing import LocalObs
from obs_engine.wire import requests
from obs_engine.wire.endpoint import parse_endpoint
from obs_engine.wire.requests import Target, finish
from obs_engine.wire.signing import Credentials

pytestmark = pytest.mark.timeout(60)

BUCKET = "many"
PART = 102_400


@pytest.fixture(scope="module")
def server() -> Iterator[LocalObs]:
    with LocalObs(buckets=[BUCKET, "secret"], encryption={"secret": "kms"}) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_faults_left(server: LocalObs) -> Iterator[None]:
    yield
    server.set_faults([])
    server.clear_requests()


def tree(folder: Path, count: int, sizes: tuple[int, ...] = (0, 1, 100, 5_000, 70_000)) -> list[Path]:
    return [make_file(folder / f"file-{n}.txt", sizes[n % len(sizes)] + n, n) for n in range(count)]


def headers_of(server: LocalObs, key: str, bucket: str = BUCKET) -> dict[str, str]:
    """What a HEAD of the object shows."""
    asked = requests.head_object(bucket, key)
    keys = Credentials(server.access_key, server.secret_key)
    done = finish(asked, Target(parse_endpoint(server.url), "path", "v2"), keys, time.time())
    with urlopen(Request(done.url, headers=dict(done.headers), method="HEAD"), timeout=10) as reply:
        return {name.lower(): value for name, value in reply.headers.items()}


def sent(
    server: LocalObs, files: list[Path], bucket: str = BUCKET, engine: Any = None, **more: Any
) -> list[FileResult]:
    with client_of(server, engine=engine) as client:
        pairs = [(str(path), f"tree/{path.name}") for path in files]
        return list(client.uploadFiles(bucket, pairs, **{"partSize": PART, "taskNum": 6} | more))


@pytest.mark.parametrize("verify", ["none", "length", "etag", "crc64"])
def test_small_and_large_files_arrive(server: LocalObs, tmp_path: Path, verify: Any) -> None:
    """Small ones by one request each, large ones in parts; each is told of once, with what the service says of it."""
    files = [*tree(tmp_path, 60), *(make_file(tmp_path / f"large-{n}", 3 * PART + 1 + n, n) for n in range(4))]
    results = sent(server, files, engine=EngineOptions(verify=verify))
    assert Counter(result.path for result in results) == Counter(map(str, files))
    assert all(result.is_stored and result.etag and result.request_id for result in results)
    assert {result.parts for result in results} == {1, 4}
    asked = Counter(r["operation"] for r in server.requests())
    assert (asked["PutObject"], asked["Initiate"]) == (60, 4)
    for path in files:
        assert object_of(server, BUCKET, f"tree/{path.name}") == path.read_bytes()
    assert all((result.crc64 is not None) == (verify == "crc64") for result in results)


def test_few_connections_carry_many_files(server: LocalObs, tmp_path: Path) -> None:
    """As many as taskNum says, all of them kept."""
    results = sent(server, tree(tmp_path, 300, (10,)), taskNum=4)
    assert len(results) == 300
    assert len({r["connection"] for r in server.requests()}) <= 4


FAULTS: list[dict[str, Any]] = [
    {"status": 503, "code": "SlowDown", "early": True},
    {"status": 500, "bare": True},
    {"reset": "before_reply"},
    {"reset": "after_work"},
    {"corrupt": "wire"},
    {"corrupt": "etag"},
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_what_passes_is_lived_through(server: LocalObs, tmp_path: Path, fault: dict[str, Any]) -> None:
    """Each file is judged by itself, by the same policy as a part."""
    files = tree(tmp_path, 40)
    server.set_faults([{"operation": "PutObject", "every": 9, "times": 4, **fault}])
    results = sent(server, files)
    assert all(result.is_stored for result in results), [str(r.error) for r in results if r.error]
    for path in files:
        assert object_of(server, BUCKET, f"tree/{path.name}") == path.read_bytes()


def test_a_file_that_fails_fails_alone(server: LocalObs, tmp_path: Path) -> None:
    """A file that is gone, one that may not be put, a folder: each is a result with its reason."""
    files = tree(tmp_path, 20)
    files[3].unlink()
    (tmp_path / "folder").mkdir()
    server.set_faults([{"operation": "PutObject", "key": "tree/file-7.txt", "status": 403, "code": "AccessDenied"}])
    results = {Path(r.path).name: r for r in sent(server, [*files, tmp_path / "folder"])}
    failed = {name: str(result.error) for name, result in results.items() if result.error}
    assert set(failed) == {"file-3.txt", "file-7.txt", "folder"}
    assert "found No such file" in failed["file-3.txt"]
    assert "AccessDenied" in failed["file-7.txt"]
    assert "regular file" in failed["folder"]
    assert len(results) == 21


def test_all_objects_get_the_same_headers_and_their_own_types(server: LocalObs, tmp_path: Path) -> None:
    """Metadata for all; the content's type by each key, unless one is given for all."""
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b").write_text("?")
    files = [tmp_path / "a.json", tmp_path / "b"]
    sent(server, files, metadata={"project": "x"})
    shown = [headers_of(server, f"tree/{path.name}") for path in files]
    assert shown[0]["content-type"] == "application/json"
    assert shown[1]["content-type"] != "application/json"
    assert all(headers["x-amz-meta-project"] == "x" for headers in shown)
    sent(server, files, headers=UploadFileHeader(contentType="text/x"))
    assert {headers_of(server, f"tree/{path.name}")["content-type"] for path in files} == {"text/x"}


def test_under_encryption_the_service_checks_the_bytes(server: LocalObs, tmp_path: Path) -> None:
    """ETags are no MD5s there; a Content-MD5 goes along, by which it refuses what did not arrive as it was sent."""
    server.set_faults([{"operation": "PutObject", "nth": 3, "corrupt": "wire"}])
    assert all(result.is_stored for result in sent(server, tree(tmp_path, 12), "secret"))
    assert [r["code"] for r in server.requests("PutObject") if r["status"] >= 300] == ["BadDigest"]


def test_files_are_read_as_there_is_room(server: LocalObs, tmp_path: Path) -> None:
    """A walk over millions is never far ahead of what was sent."""
    path, read = make_file(tmp_path / "one", 10, 1), [0]

    def files() -> Iterator[tuple[str, str]]:
        for n in range(6_000):
            read[0] = n
            yield str(path), f"key-{n % 10}"

    with client_of(server) as client, closing(client.uploadFiles(BUCKET, files())) as results:  # type: ignore[type-var]
        for told, _ in enumerate(results):
            assert read[0] - told <= 4_200


def test_leaving_early_ends_what_is_under_way(server: LocalObs, tmp_path: Path) -> None:
    """Large files are cancelled, their journals kept; no thread and no process is left."""
    large = make_file(tmp_path / "large", 30 * PART, 1)
    files = [*tree(tmp_path, 10), large]
    server.set_faults([{"operation": "UploadPart", "delay_s": 0.2}])
    before = threading.active_count()
    folder = tmp_path / "journals"
    with client_of(server) as client:
        results = client.uploadFiles(BUCKET, [(str(f), f.name) for f in files], PART, 2, checkpointFolder=folder)
        next(results)
        wait_until(lambda: server.requests("UploadPart"), "the large one is under way")
        results.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before
        server.set_faults([])
        again = list(client.uploadFiles(BUCKET, [(str(large), large.name)], PART, 2, checkpointFolder=folder))
    assert [result.is_stored for result in again] == [True]
    assert len(server.requests("Initiate")) == 1, "the journal was continued"
    assert not list(folder.iterdir())
    assert is_equal(server, BUCKET, large.name, large)


def test_a_file_that_changes_while_it_is_sent_is_told(server: LocalObs, tmp_path: Path) -> None:
    """What arrived is not what is there now."""
    path = make_file(tmp_path / "moving", 50_000, 1)
    server.set_faults([{"operation": "PutObject", "delay_s": 0.5}])
    with client_of(server) as client:
        results = client.uploadFiles(BUCKET, [FileToUpload(str(path), "moving")])
        threading.Timer(0.2, lambda: os.utime(path, (1, 1))).start()
        (result,) = results
    assert "changed while it was sent" in str(result.error)


def test_arguments_are_checked_at_once(server: LocalObs) -> None:
    """Before a process is started; what is no file and key is told when it is read."""
    with client_of(server) as client:
        with pytest.raises(InvalidArgumentError, match="bucketName"):
            client.uploadFiles("X", [])
        with pytest.raises(InvalidArgumentError, match="taskNum"):
            client.uploadFiles(BUCKET, [], taskNum=0)
        assert list(client.uploadFiles(BUCKET, [])) == []
        with pytest.raises(InvalidArgumentError, match="pairs of a path and a key"):
            list(client.uploadFiles(BUCKET, ["path"]))  # type: ignore[list-item]


def test_keys_that_are_wrong_fail_every_file(
    server: LocalObs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the service's word for each, and no secret anywhere."""
    with caplog.at_level(logging.DEBUG, "obs_engine"), client_of(server, secret_access_key="a-wrong-secret") as client:
        results = list(client.uploadFiles(BUCKET, [(str(path), path.name) for path in tree(tmp_path, 5)]))
    assert {result.error.errorCode for result in results if result.error} == {"SignatureDoesNotMatch"}
    assert "a-wrong-secret" not in caplog.text + str(results)
