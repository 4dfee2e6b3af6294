"""The ladder of verification, from file to object: corruption anywhere is found, and nothing sound is refused."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_128

from harness import acknowledged, client_of, make_file, object_of
from obs_engine import (
    EngineOptions,
    GetResult,
    IntegrityError,
    ObsClient,
    ServiceError,
    SourceChangedError,
    SourceTruncatedError,
    SseCHeader,
    UploadFileHeader,
)
from obs_engine.checkpoint.journal import peek
from obs_engine.limits import MIB
from obs_engine.testing import LocalObs
from recorder import Answer, Recorder

pytestmark = pytest.mark.timeout(120)

BUCKET = "bench"
PART = 102_400
RUNGS = ("none", "length", "etag", "crc64", "readback")


@pytest.fixture(scope="module")
def server() -> Iterator[LocalObs]:
    with LocalObs(buckets=[BUCKET]) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_faults_left(server: LocalObs) -> Iterator[None]:
    yield
    server.set_faults([])


@pytest.fixture(scope="module")
def clients(server: LocalObs) -> Iterator[dict[str, ObsClient]]:
    """A client for each rung."""
    found = {rung: client_of(server, engine=EngineOptions(verify=rung, processes=2)) for rung in RUNGS}
    yield found
    for client in found.values():
        client.close()


def send(client: ObsClient, key: str, source: Path, **more: Any) -> GetResult:
    return client.uploadFile(BUCKET, key, str(source), **({"partSize": PART, "taskNum": 4} | more))


def multipart_etag(data: bytes, part: int = PART) -> str:
    md5s = [hashlib.md5(data[at : at + part]).digest() for at in range(0, len(data) or 1, part)]
    return f"{hashlib.md5(b''.join(md5s)).hexdigest()}-{len(md5s)}"


# --- corruption -------------------------------------------------------------------------------------------------

# By rung: what goes wrong once, and whether the upload lives through it (else it is refused, and says so).
CORRUPTIONS: dict[str, list[tuple[dict[str, Any], bool]]] = {
    "length": [({"operation": "HeadObject", "status": 404}, False)],
    "etag": [
        ({"operation": "UploadPart", "corrupt": "wire"}, True),
        ({"operation": "UploadPart", "corrupt": "etag"}, True),
        ({"operation": "Complete", "corrupt": "object"}, False),
        ({"operation": "Complete", "corrupt": "etag"}, False),
    ],
    "crc64": [
        ({"operation": "UploadPart", "corrupt": "wire"}, True),
        ({"operation": "UploadPart", "corrupt": "crc64"}, True),
        ({"operation": "Complete", "corrupt": "object"}, False),
        ({"operation": "Complete", "corrupt": "crc64"}, False),
    ],
    "readback": [
        ({"operation": "UploadPart", "corrupt": "wire"}, True),
        ({"operation": "UploadPart", "corrupt": "stored"}, False),
        ({"operation": "Complete", "corrupt": "object"}, False),
        ({"operation": "GetObject", "corrupt": "reply"}, True),
    ],
}


@pytest.mark.parametrize("rung", CORRUPTIONS)
def test_a_flipped_bit(server: LocalObs, clients: dict[str, ObsClient], rung: str, tmp_path: Path) -> None:
    """100 seeded corruptions, anywhere: each is mended by sending again, or refused; no wrong object is a success."""
    for seed in range(100):
        chance = random.Random(f"{rung} {seed}")
        source = make_file(tmp_path / "source", chance.randrange(1, 8 * PART), seed)
        parts = -(-source.stat().st_size // PART)
        fault, is_mended = CORRUPTIONS[rung][seed % len(CORRUPTIONS[rung])]
        rule = {**fault, "times": 1, "seed": seed}
        if fault["operation"] == "UploadPart":
            rule["part_number"] = chance.randint(1, parts)
        server.set_faults([rule])
        what, key = f"{rung}, seed {seed}: {rule}", f"flip-{rung}-{seed}"
        if not is_mended:
            with pytest.raises(IntegrityError, match=r"expected .*, found .*; "):
                send(clients[rung], key, source, taskNum=chance.choice([1, 4]))
        else:
            result = send(clients[rung], key, source, taskNum=chance.choice([1, 4]))
            assert result.status == 200, what
            assert object_of(server, BUCKET, key) == source.read_bytes(), what
            if fault["operation"] == "UploadPart":
                assert result.report.part_attempts == parts + 1, what


@pytest.mark.parametrize(("rung", "corrupt"), [("etag", "wire"), ("etag", "etag"), ("readback", "wire")])
def test_what_is_always_wrong_fails_and_says_where(
    server: LocalObs, clients: dict[str, ObsClient], rung: str, corrupt: str, tmp_path: Path
) -> None:
    """A part that never arrives as it is in the file is sent a few times; then part, offset and both MD5s are named."""
    source = make_file(tmp_path / "source", 5 * PART + 7, 1)
    server.set_faults([{"operation": "UploadPart", "part_number": 3, "corrupt": corrupt}])
    server.clear_requests()
    with pytest.raises(IntegrityError) as raised:
        send(clients[rung], "always", source, enableCheckpoint=True)
    md5 = hashlib.md5(source.read_bytes()[2 * PART : 3 * PART]).hexdigest()
    words = rf"part 3 of bench/always \(offset {2 * PART}\): expected ETag {md5}, found [0-9a-f]{{32}}, 4 times"
    assert re.search(words, str(raised.value))
    assert raised.value.part_number == 3
    assert raised.value.checkpoint_file == f"{source}.upload_record"
    sent = [r for r in server.requests("UploadPart") if r["part_number"] == 3 and r["key"] == "always"]
    assert len(sent) == 4
    recorded = peek(f"{source}.upload_record")
    assert recorded is not None
    assert 3 not in recorded.parts
    server.set_faults([])
    result = send(clients[rung], "always", source, enableCheckpoint=True)
    assert result.status == 200
    assert object_of(server, BUCKET, "always") == source.read_bytes()


@pytest.mark.parametrize("seed", range(5))
def test_an_object_of_another_length_is_no_success(seed: int, tmp_path: Path) -> None:
    """With `verify="length"`: whatever else the service says of it."""
    size = random.Random(seed).randrange(1, 3 * PART)
    source = make_file(tmp_path / "source", size, seed)
    with Recorder("x-amz-") as short:
        short.answers["Head"] = Answer(headers=(("ETag", '"0"'),))  # its length is 0
        caller = ObsClient("ak", "sk", server=f"http://127.0.0.1:{short.port}", engine=EngineOptions(verify="length"))
        with caller as client, pytest.raises(IntegrityError, match=f"expected {size} bytes, found 0; "):
            send(client, "short", source)


def check_clean_runs(server: LocalObs, clients: dict[str, ObsClient], tmp_path: Path, runs: int) -> None:
    for seed in range(runs):
        chance = random.Random(seed)
        rung = RUNGS[seed % len(RUNGS)]
        size = chance.choice([0, 1, PART, chance.randrange(1, 12 * PART)])
        source = make_file(tmp_path / "source", size, seed)
        more = {"checkSum": chance.random() < 0.5, "isAttachCrc64": chance.random() < 0.2,
                "enableCheckpoint": chance.random() < 0.5, "taskNum": chance.choice([1, 3, 20])}  # fmt: skip
        server.clear_requests()
        result = send(clients[rung], f"clean-{seed}", source, **more)
        what = f"seed {seed}, {rung}, {size} bytes, {more}"
        assert result.status == 200, what
        assert result.report.part_attempts == result.report.parts, f"{what}: a part was sent again"
        assert result.report.etag == multipart_etag(source.read_bytes()), what
        assert result.report.xxh3 == (root_of(source.read_bytes()) if more["checkSum"] else None), what
        assert object_of(server, BUCKET, f"clean-{seed}") == source.read_bytes(), what


def test_no_false_alarm(server: LocalObs, clients: dict[str, ObsClient], tmp_path: Path) -> None:
    """Sound uploads on every rung, with every option: nothing is sent twice, nothing refused."""
    check_clean_runs(server, clients, tmp_path, 100)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_no_false_alarm_in_a_thousand(server: LocalObs, clients: dict[str, ObsClient], tmp_path: Path) -> None:
    """The same, a thousand times."""
    check_clean_runs(server, clients, tmp_path, 1000)


# --- where ETags prove nothing ----------------------------------------------------------------------------------


def test_an_encrypted_object_is_proven_by_content_md5(server: LocalObs, tmp_path: Path) -> None:
    """Its ETags are no MD5s: the service checks each part, and a bit that flips on the way is found."""
    source = make_file(tmp_path / "source", 5 * PART + 1, 3)
    server.set_faults([{"operation": "UploadPart", "part_number": 2, "times": 1, "corrupt": "wire"}])
    header = UploadFileHeader(sseHeader=SseCHeader(encryption="AES256", key="k" * 32))
    with client_of(server) as client:
        result = send(client, "customer", source, headers=header)
    assert result.status == 200
    assert [r["status"] for r in server.requests("UploadPart") if r["key"] == "customer"].count(400) == 1
    assert result.report.part_attempts == 7


def test_a_bucket_that_encrypts_is_met_once(tmp_path: Path) -> None:
    """Nothing tells beforehand: the first parts' ETags cannot be compared, they are sent again with Content-MD5."""
    source = make_file(tmp_path / "source", 20 * PART, 4)
    with LocalObs(buckets=[BUCKET], encryption={BUCKET: "kms"}) as encrypting, client_of(encrypting) as client:
        result = send(client, "key", source, taskNum=2)
        assert result.status == 200
        assert object_of(encrypting, BUCKET, "key") == source.read_bytes()
        assert 21 <= result.report.part_attempts <= 22
        encrypting.set_faults([{"operation": "UploadPart", "part_number": 9, "times": 1, "corrupt": "wire"}])
        assert send(client, "other", source, taskNum=2).status == 200
        assert object_of(encrypting, BUCKET, "other") == source.read_bytes()


def test_a_service_without_crc64_is_proven_by_etags(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It passes over the header: `verify="crc64"` still means that wrong bytes are found."""
    source = make_file(tmp_path / "source", 6 * PART, 5)
    with (
        LocalObs(buckets=[BUCKET], crc64="ignored") as silent,
        client_of(silent, engine=EngineOptions(verify="crc64")) as client,
        caplog.at_level(logging.WARNING, "obs_engine"),
    ):
        silent.set_faults([{"operation": "UploadPart", "part_number": 4, "times": 1, "corrupt": "wire"}])
        result = send(client, "key", source)
        assert result.status == 200
        assert object_of(silent, BUCKET, "key") == source.read_bytes()
        assert result.report.part_attempts == 7
    assert caplog.text.count("shows no CRC-64") == 1


# --- content ----------------------------------------------------------------------------------------------------


def root_of(data: bytes) -> str:
    """Over blocks of 64 MiB, each over chunks of 1 MiB."""
    chunks = [xxh3_128(data[at : at + MIB]).digest() for at in range(0, len(data), MIB)]
    blocks = [xxh3_128(b"".join(chunks[at : at + 64])).digest() for at in range(0, len(chunks), 64)]
    return xxh3_128(b"".join(blocks)).hexdigest()


def edit(path: Path, offset: int) -> None:
    """Another byte, and the file's times as they were."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_content_is_recorded_and_compared_at_a_resume(
    server: LocalObs, clients: dict[str, ObsClient], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file edited between two calls, size and time restored, is uploaded anew, and the log says where it changed."""
    source = tmp_path / "source"
    source.write_bytes(random.Random(6).randbytes(64 * MIB) * 2 + b"the end")
    upload = {"partSize": 9 * MIB, "enableCheckpoint": True, "checkSum": True}
    server.set_faults([{"operation": "UploadPart", "part_number": 15, "status": 403, "code": "AccessDenied"}])
    with pytest.raises(ServiceError):
        send(clients["etag"], "content", source, **upload, taskNum=1)
    recorded = peek(f"{source}.upload_record")
    assert recorded is not None
    assert sorted(recorded.parts) == list(range(1, 15))
    assert sorted(recorded.contents) == sorted(recorded.parts)
    server.set_faults([])
    edit(source, 70 * MIB)
    with caplog.at_level(logging.INFO, "obs_engine"):
        result = send(clients["etag"], "content", source, **upload)
    assert f"changed its content (bytes {63 * MIB} to {72 * MIB - 1})" in caplog.text
    assert result.report.parts_resumed == 0
    assert object_of(server, BUCKET, "content") == source.read_bytes()
    assert result.report.xxh3 == root_of(source.read_bytes())


def test_content_that_is_the_same_is_continued(server: LocalObs, clients: dict[str, ObsClient], tmp_path: Path) -> None:
    """With `checkSum`, all recorded parts count, and the digest of the whole is the same as in one go."""
    source = make_file(tmp_path / "source", 30 * PART + 5, 7)
    upload = {"enableCheckpoint": True, "checkSum": True}
    server.set_faults([{"operation": "UploadPart", "part_number": 20, "status": 403, "code": "AccessDenied"}])
    with pytest.raises(ServiceError):
        send(clients["etag"], "same", source, **upload, taskNum=1)
    server.set_faults([])
    result = send(clients["etag"], "same", source, **upload)
    assert result.report.parts_resumed == 19
    assert result.report.xxh3 == root_of(source.read_bytes())
    assert max(acknowledged(server, "same").values()) == 1


@pytest.mark.parametrize("seed", range(20))
def test_content_changed_during_the_upload_is_never_a_mixture(
    server: LocalObs, clients: dict[str, ObsClient], seed: int, tmp_path: Path
) -> None:
    """Bytes edited at a seeded moment, size and time restored: refused, or the object is the file of one moment."""
    chance = random.Random(seed)
    source = make_file(tmp_path / "source", 24 * PART, seed)
    before = source.read_bytes()
    server.set_faults([{"operation": "UploadPart", "delay_s": 0.02}])
    moment = chance.randrange(1, 20 * PART)
    edits = []

    def look(sent: int, total: int, seconds: float) -> None:
        if moment <= sent < total and not edits:
            edits.extend(chance.sample(range(24 * PART), 3))
            for offset in edits:
                edit(source, offset)

    try:
        result = send(clients["etag"], f"edited-{seed}", source, checkSum=True, progressCallback=look)
    except SourceChangedError:
        assert edits
    else:
        assert result.status == 200
        stored = object_of(server, BUCKET, f"edited-{seed}")
        assert stored in (before, source.read_bytes())  # edited when all was sent and compared, or before
        assert result.report.xxh3 == root_of(stored)


@pytest.mark.parametrize("rung", ["etag", "none"])
@pytest.mark.parametrize("checksum", [False, True])
def test_content_of_large_parts_is_digested_behind_them(
    server: LocalObs, rung: str, checksum: bool, tmp_path: Path
) -> None:
    """Parts that are too large to be digested ahead, of sizes that no block ends with: the same digests."""
    source = tmp_path / "source"
    source.write_bytes(random.Random(8).randbytes(MIB) * 149 + b"x" * 4711)
    part = 70 * MIB + 13
    with client_of(server, engine=EngineOptions(verify=rung, processes=1)) as client:  # type: ignore[arg-type]
        if rung == "etag":
            server.set_faults([{"operation": "UploadPart", "part_number": 2, "times": 1, "corrupt": "wire"}])
        result = send(client, "large", source, partSize=part, checkSum=checksum)
    data = source.read_bytes()
    assert result.report.part_attempts == 3 + (rung == "etag")
    assert result.report.etag == multipart_etag(data, part)
    assert result.report.xxh3 == (root_of(data) if checksum else None)
    assert object_of(server, BUCKET, "large") == data


# --- a file that ends early -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["mmap", "pread"])
def test_a_truncated_file_is_told_as_such(server: LocalObs, reader: str, tmp_path: Path) -> None:
    """Cut at 50 seeded moments, anywhere: always that error with both lengths, and the caller lives."""
    with client_of(server, engine=EngineOptions(reader=reader, processes=2)) as client:  # type: ignore[arg-type]
        for seed in range(50):
            chance = random.Random(seed)
            size = chance.randrange(10 * PART, 20 * PART)
            source = make_file(tmp_path / "source", size, seed)
            slow = {"operation": "UploadPart", "delay_s": 0.01}
            server.set_faults([{**slow, "part_number": -(-size // PART), "delay_s": 0.2}, slow])
            moment, length = chance.randrange(size - 6 * PART), chance.randrange(size)
            cuts = []

            def look(sent: int, *_: Any) -> None:
                if moment <= sent < size and not cuts:  # noqa: B023 - called in this round alone
                    cuts.append(sent)  # noqa: B023
                    os.truncate(source, length)  # noqa: B023

            what = f"{reader}, seed {seed}: cut to {length} of {size} at {moment}"
            with pytest.raises(SourceTruncatedError) as raised:
                send(client, "cut", source, taskNum=chance.choice([1, 2, 4]), progressCallback=look)
            assert (raised.value.expected_bytes, raised.value.found_bytes) == (size, length), what
            assert f"{length}" in str(raised.value), what
            source.unlink()
        source = make_file(tmp_path / "source", 3 * PART, 9)
        server.set_faults([])
        assert send(client, "cut", source).status == 200


def test_a_file_that_vanishes_is_told_as_such(server: LocalObs, clients: dict[str, ObsClient], tmp_path: Path) -> None:
    """Removed meanwhile: no object, and with a checkpoint nothing is lost."""
    source = make_file(tmp_path / "source", 10 * PART, 10)
    kept = tmp_path / "kept"
    server.set_faults([{"operation": "UploadPart", "delay_s": 0.03}])

    def look(sent: int, *_: Any) -> None:
        if sent and source.exists():
            source.rename(kept)

    with pytest.raises(SourceChangedError, match="found"):
        send(clients["etag"], "gone", source, taskNum=1, enableCheckpoint=True, progressCallback=look)
    kept.rename(source)
    server.set_faults([])
    assert send(clients["etag"], "gone", source, enableCheckpoint=True).status == 200
    assert max(acknowledged(server, "gone").values()) <= 2
