"""Records that the official SDK left when it was killed in mid-upload, and damaged ones: continued by this engine."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness import DEADLINE_S, acknowledged, client_of, fetch, is_equal, open_uploads, wait_until
from obs_engine import EngineOptions, JournalError, UploadReport
from obs_engine.testing import LocalObs
from obs_engine.wire import requests

pytest.importorskip("obs", reason="the official SDK (esdk-obs-python) makes the records here")

PARTS, PART = 20, 102_400
_SDK = """
import json, sys
from obs import ObsClient
config = json.loads(sys.stdin.readline())
client = ObsClient(**config["client"])
client.uploadFile(**config["upload"])
"""


class Left(NamedTuple):
    """What the SDK left: its record, and the parts in it."""

    path: Path
    said: dict[str, Any]

    @property
    def parts(self) -> set[int]:
        return {part["partNum"] for part in self.said["partEtags"]}

    def rewrite(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Another record in its place."""
        change(self.said)
        self.path.write_text(json.dumps(self.said))


@pytest.fixture
def left(server: LocalObs, key: str, source: Path) -> Left:
    return killed(server, key, source, 7)


def killed(
    server: LocalObs, key: str, source: Path, point: int, *, named: str | None = None, cwd: Path | None = None,
    path: str | None = None, **more: Any,
) -> Left:  # fmt: skip
    """An upload by the SDK, killed when its record and the service hold `point` parts; with all 20, before Complete."""
    record = Path(named) if named else Path(f"{source}.upload_record")
    server.set_faults([{"operation": "UploadPart", "nth": list(range(point + 1, 99)), "stall": True},
                       {"operation": "Complete", "stall": True}])  # fmt: skip
    process = start_sdk(server, key, source, named, cwd, path, more)
    try:
        wait_until(lambda: len(parts_in(record)) == point, f"{point} parts in the SDK's record")
    finally:
        process.kill()
        process.wait(DEADLINE_S)
    server.set_faults([])
    server.clear_requests()
    return Left(record, json.loads(record.read_text()))


def start_sdk(
    server: LocalObs, key: str, source: Path, named: str | None, cwd: Path | None, path: str | None,
    more: dict[str, Any],
) -> subprocess.Popen[bytes]:  # fmt: skip
    """The SDK's `uploadFile` in a process of its own."""
    config = {
        "client": {"access_key_id": server.access_key, "secret_access_key": server.secret_key, "server": server.url,
                   "path_style": True, "signature": "v2", "is_signature_negotiation": False},
        "upload": {"bucketName": "bench", "objectKey": key, "uploadFile": path or str(source), "partSize": PART,
                   "taskNum": 2, "enableCheckpoint": True, "checkpointFile": named} | more,
    }  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", _SDK], stdin=subprocess.PIPE, cwd=cwd)
    assert process.stdin is not None
    process.stdin.write(json.dumps(config).encode() + b"\n")
    process.stdin.close()
    return process


def parts_in(record: Path) -> list[Any]:
    """ETags in a record that may just be being written."""
    try:
        found: list[Any] = json.loads(record.read_text())["partEtags"]
    except (OSError, ValueError):
        return []
    return found


def resumed(server: LocalObs, key: str, source: Path, **named: Any) -> UploadReport:
    """The same call by this engine: the object is the file, and nothing is left of the upload."""
    engine = named.pop("engine", {})
    with client_of(server, engine=EngineOptions(**engine)) as client:
        result = client.uploadFile("bench", key, source, PART, 4, True, **named)
    assert result.status == 200
    assert is_equal(server, "bench", key, source)
    assert open_uploads(server, "bench", key) == 0
    report: UploadReport = result.report
    return report


@pytest.mark.parametrize("point", [1, 2, 5, 11, 19, PARTS])
def test_a_record_is_continued(server: LocalObs, key: str, source: Path, point: int) -> None:
    """What the SDK had sent is not sent again, and its record is kept aside as it was."""
    left = killed(server, key, source, point)
    report = resumed(server, key, source)
    assert not left.parts & set(acknowledged(server, key))
    assert report.parts_resumed == point
    assert not server.requests("Initiate")
    assert not left.path.exists()
    assert json.loads(Path(f"{left.path}.sdk").read_text()) == left.said


@pytest.mark.parametrize("seed", range(6))
def test_a_record_of_any_moment_is_continued(server: LocalObs, key: str, source: Path, seed: int) -> None:
    """Killed with parts on their way, the record whole, torn or just emptied: with `adopt` nothing is sent again."""
    point = random.Random(seed).randrange(1, PARTS - 5)
    server.set_faults([{"operation": "UploadPart", "delay_s": 0.01}, {"operation": "Complete", "stall": True}])
    process = start_sdk(server, key, source, None, None, None, {})
    try:
        wait_until(lambda: len(acknowledged(server, key)) >= point, f"{point} parts (seed {seed})")
    finally:
        process.kill()
        process.wait(DEADLINE_S)
    server.set_faults([])
    stored = set(acknowledged(server, key))
    server.clear_requests()
    report = resumed(server, key, source, engine={"adopt": True})
    assert not stored & set(acknowledged(server, key)), f"seed {seed}"
    assert report.parts_resumed + report.parts_sent == PARTS


def test_a_relative_path_and_a_named_record_are_known_again(
    server: LocalObs, key: str, source: Path, tmp_path: Path
) -> None:
    """As they were passed to the SDK, from another directory of work."""
    record = str(tmp_path / "elsewhere")
    left = killed(server, key, source, 6, named=record, cwd=source.parent, path=source.name)
    assert left.said["uploadFile"] == source.name
    report = resumed(server, key, source, checkpointFile=record)
    assert report.parts_resumed >= 6
    assert not left.parts & set(acknowledged(server, key))


def test_checksum_proves_the_parts(server: LocalObs, key: str, source: Path) -> None:
    """Its SHA-256 is not computed again: each part is compared with the service's."""
    killed(server, key, source, 6, checkSum=True)
    assert resumed(server, key, source, checkSum=True).parts_resumed >= 6


def test_checksum_notices_other_bytes_of_the_same_size_and_time(server: LocalObs, key: str, source: Path) -> None:
    """Only the part that differs is sent again."""
    left = killed(server, key, source, 6, checkSum=True)
    before = source.stat()
    with source.open("r+b") as file:
        file.seek((min(left.parts) - 1) * PART)
        file.write(b"other bytes")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    resumed(server, key, source, checkSum=True)
    assert left.parts & set(acknowledged(server, key)) == {min(left.parts)}


def test_a_part_that_is_done_without_its_etag_is_sent(server: LocalObs, key: str, source: Path, left: Left) -> None:
    """The SDK would complete without it."""
    victim = max(left.parts)
    left.rewrite(lambda said: said["partEtags"].remove(next(p for p in said["partEtags"] if p["partNum"] == victim)))
    resumed(server, key, source)
    assert left.parts & set(acknowledged(server, key)) == set()
    assert acknowledged(server, key)[victim] == 1


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 0.99])
def test_a_torn_record_is_adopted_from_the_service(
    server: LocalObs, key: str, source: Path, left: Left, keep: float
) -> None:
    """The one open upload of the key is found, and its parts are proven."""
    text = left.path.read_bytes()
    left.path.write_bytes(text[: int(len(text) * keep)])
    report = resumed(server, key, source)
    assert report.parts_adopted >= len(left.parts)
    assert not server.requests("Initiate")


def forget(said: dict[str, Any], number: int) -> None:
    """A part was stored, and the record not yet written."""
    said["uploadParts"][number - 1]["isCompleted"] = False


def test_an_empty_record_says_nothing(server: LocalObs, key: str, source: Path, left: Left) -> None:
    """Not even that there was an upload: it begins anew, and the old one is for the user's word."""
    left.path.write_bytes(b"")
    with client_of(server) as client:
        report = client.uploadFile("bench", key, source, PART, 4, True).report
    assert (report.parts_resumed, report.parts_sent) == (0, PARTS)
    assert is_equal(server, "bench", key, source)
    assert resumed(server, key, source, engine={"adopt": True}).parts_adopted == len(left.parts)


MALFORMED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no upload id": lambda said: said.pop("uploadId"),
    "fileStatus []": lambda said: said.update(fileStatus=[]),
    "no fileStatus": lambda said: said.pop("fileStatus"),
    "no uploadParts": lambda said: said.pop("uploadParts"),
    "uploadParts []": lambda said: said.update(uploadParts=[]),
    "no partEtags": lambda said: said.pop("partEtags"),
    "a part that it does not yet tell of": lambda said: forget(said, said["partEtags"].pop()["partNum"]),
    "another path": lambda said: said.update(uploadFile="/elsewhere"),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_what_a_record_does_not_say_is_asked_of_the_service(
    server: LocalObs, key: str, source: Path, left: Left, change: Callable[[dict[str, Any]], object]
) -> None:
    """Nothing that the service has is sent again."""
    parts = left.parts
    left.rewrite(change)
    assert resumed(server, key, source).parts_resumed >= len(parts)
    assert not parts & set(acknowledged(server, key))
    assert not server.requests("Initiate")


@pytest.mark.parametrize("content", [b"{}", b"[]", b"[1]", b'{"bucketName": "ben', b"null", b'{"uploadId": 3}'])
def test_what_is_no_record_is_refused_and_left_alone(
    server: LocalObs, key: str, source: Path, left: Left, content: bytes
) -> None:
    """With the reason and a way on; by the user's word the upload is found."""
    left.path.write_bytes(content)
    with pytest.raises(JournalError, match="checkpoint"), client_of(server) as client:
        client.uploadFile("bench", key, source, PART, 4, True)
    assert left.path.read_bytes() == content
    assert not server.requests()
    if content[:1] in (b"{", b"["):
        assert resumed(server, key, source, engine={"adopt": True}).parts_adopted >= len(left.parts)


def test_a_record_of_another_target_is_left_alone(server: LocalObs, key: str, source: Path, left: Left) -> None:
    """By default another name is taken; a named one is refused."""
    before = left.path.read_bytes()
    with pytest.raises(JournalError, match="another checkpointFile"), client_of(server) as client:
        client.uploadFile("bench", f"{key}-2", source, PART, 4, True, str(left.path))
    resumed(server, f"{key}-2", source)
    assert left.path.read_bytes() == before
    assert open_uploads(server, "bench", key) == 1
    resumed(server, key, source)


CHANGES: dict[str, Callable[[Path], object]] = {
    "touched": os.utime,
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"more"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_record_of_a_changed_file_is_begun_anew(
    server: LocalObs, key: str, source: Path, left: Left, change: Callable[[Path], object]
) -> None:
    """The old upload is aborted, as the SDK does."""
    change(source)
    assert resumed(server, key, source).parts_resumed == 0
    assert [entry["upload_id"] for entry in server.requests("Abort")] == [left.said["uploadId"]]


def test_a_record_of_an_upload_that_is_gone_begins_anew(server: LocalObs, key: str, source: Path, left: Left) -> None:
    """The service's word."""
    fetch(server, requests.abort("bench", key, left.said["uploadId"]))
    assert resumed(server, key, source).parts_resumed == 0
    assert len(server.requests("Initiate")) == 1
