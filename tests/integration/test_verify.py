"""`verifyFile` and `obs-engine verify`: is an object that is there what a file is? Nothing is uploaded."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness import client_of, fetch, make_file
from obs_engine import (
    EngineOptions,
    InvalidArgumentError,
    ObsClient,
    ServiceError,
    SourceChangedError,
    SourceNotFoundError,
    SseCHeader,
    TransportError,
    UploadFileHeader,
    VerifyResult,
)
from obs_engine.digests import crc64
from obs_engine.testing import LocalObs
from obs_engine.wire import requests
from recorder import Answer, Recorded, Recorder

PART, MIB = 102_400, 1 << 20
WAYS = ["crc64", "etag", "content"]
SIZE = 20 * PART - 777
KEY_OF_MINE = UploadFileHeader(sseHeader=SseCHeader(key="k" * 32))

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def client(server: LocalObs) -> Iterator[ObsClient]:
    with client_of(server, timeout=10) as made:
        yield made


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file of 5 bytes."""
    path = tmp_path / "small"
    path.write_bytes(b"hello")
    return path


def store(client: ObsClient, key: str, source: Path, part_size: int = PART, **more: Any) -> None:
    """An object of a multipart upload."""
    result = client.uploadFile("bench", key, source, part_size, 4, **more)
    assert result.status == 200, result


def put(server: LocalObs, key: str, source: Path) -> None:
    """An object of one request."""
    data = source.read_bytes()
    headers = (("Content-Type", "binary/octet-stream"),)
    fetch(server, requests.Request("PutObject", "PUT", "bench", key, (), headers, data, len(data)))


def flip(source: Path, at: int) -> None:
    """Another byte at this offset."""
    data = bytearray(source.read_bytes())
    data[at] ^= 0x10
    source.write_bytes(data)


def etag_of(data: bytes, part_size: int) -> str:
    """The ETag that so many bytes have in parts of that size."""
    md5s = [hashlib.md5(data[at : at + part_size]).digest() for at in range(0, max(1, len(data)), part_size)]
    return f"{hashlib.md5(b''.join(md5s)).hexdigest()}-{len(md5s)}"


def only_reads(server: LocalObs) -> bool:
    return {r["operation"] for r in server.requests()} <= {"HeadObject", "GetObject", "ApiVersion"}


# --- equal or not -----------------------------------------------------------------------------------------------


def test_an_equal_file_is_equal_in_every_way(server: LocalObs, client: ObsClient, key: str, source: Path) -> None:
    """And the result says by what; `auto` takes the CRC-64 where there is one. Nothing but reads is asked for."""
    store(client, key, source, isAttachCrc64=True)
    data = source.read_bytes()
    server.clear_requests()
    expected = {
        "crc64": (str(crc64(data)), None), "etag": (etag_of(data, PART), PART),
        "content": (f"{SIZE} equal bytes", None),
    }  # fmt: skip
    for way in (*WAYS, "auto"):
        found = client.verifyFile("bench", key, source, way)  # type: ignore[arg-type]
        by = "crc64" if way == "auto" else way
        digest, part_size = expected[by]
        tried = (PART,) if by == "etag" else ()
        assert found == VerifyResult(
            True, by, digest, digest, SIZE, part_size, tried, None, SIZE, found.seconds
        )  # fmt: skip
    assert only_reads(server)


@pytest.mark.parametrize("at", [0, SIZE // 2, SIZE - 1])
def test_another_byte_anywhere_is_a_difference(client: ObsClient, key: str, source: Path, at: int) -> None:
    """In every way; the comparison of contents says where."""
    store(client, key, source, isAttachCrc64=True)
    flip(source, at)
    for way in (*WAYS, "auto"):
        found = client.verifyFile("bench", key, source, way)  # type: ignore[arg-type]
        assert not found.is_equal
        assert found.expected != found.found
        assert found.first_difference == (at if way == "content" else None)
    assert str(at) in client.verifyFile("bench", key, source, "content").found


@pytest.mark.parametrize("size", [0, 1, 3 * MIB, 5 * MIB + 3])
def test_every_size(server: LocalObs, client: ObsClient, key: str, tmp_path: Path, size: int) -> None:
    """Empty, one byte, whole ranges and not: equal, and not with another last byte, whether put or uploaded."""
    source = make_file(tmp_path / "f", size, seed=7)
    put(server, key, source)
    store(client, f"{key}-parts", source, MIB, isAttachCrc64=True)
    for name, ways in ((key, ("etag", "content", "auto")), (f"{key}-parts", WAYS)):
        for way in ways:
            found = client.verifyFile("bench", name, source, way, taskNum=3)  # type: ignore[arg-type]
            assert (found.is_equal, found.size_bytes, found.compared_bytes) == (True, size, size)
    if not size:
        return
    flip(source, size - 1)
    for name, ways in ((key, ("etag", "content", "auto")), (f"{key}-parts", WAYS)):
        for way in ways:
            assert not client.verifyFile("bench", name, source, way, taskNum=3).is_equal  # type: ignore[arg-type]


def test_the_smallest_of_all_differences_is_told(client: ObsClient, key: str, tmp_path: Path) -> None:
    """Though ranges arrive in any order, and many of them differ."""
    source = make_file(tmp_path / "f", 8 * MIB, seed=8)
    store(client, key, source, MIB)
    for at in (8 * MIB - 1, 6 * MIB, 3 * MIB + 4711, 2 * MIB - 1):
        flip(source, at)
        found = client.verifyFile("bench", key, source, "content", taskNum=8)
        assert (found.first_difference, found.found) == (at, f"another byte at offset {at}")


def test_another_size_differs_without_a_byte_read(
    server: LocalObs, client: ObsClient, key: str, source: Path
) -> None:
    """One HEAD says it all, also where the way that was asked for could not be gone."""
    store(client, key, source)
    with source.open("ab") as file:
        file.write(b"x")
    server.clear_requests()
    for way in (*WAYS, "auto"):
        found = client.verifyFile("bench", key, source, way)  # type: ignore[arg-type]
        assert (found.is_equal, found.expected, found.found) == (False, f"{SIZE + 1} bytes", f"{SIZE} bytes")
        assert found.compared_bytes == 0
    assert [r["operation"] for r in server.requests()] == ["HeadObject"] * 4


# --- ETags ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part_size", [PART, 123_457, MIB, 5 * MIB])
def test_a_service_that_tells_its_parts_is_asked(
    server: LocalObs, client: ObsClient, key: str, tmp_path: Path, part_size: int
) -> None:
    """With the signatures of S3: an odd size costs one HEAD more, a single part none."""
    source = make_file(tmp_path / "f", 3 * MIB + 1, seed=9)
    store(client, key, source, part_size)
    server.clear_requests()
    found = client.verifyFile("bench", key, source)
    cut = min(part_size, 3 * MIB + 1)
    assert (found.is_equal, found.against, found.part_size_bytes, found.tried_part_sizes) == (True, "etag", cut, (cut,))
    assert len(server.requests("HeadObject")) == (1 if part_size > 3 * MIB else 2)
    flip(source, 5)
    assert not client.verifyFile("bench", key, source).is_equal


def test_a_service_that_tells_nothing_leaves_guesses(
    server: LocalObs, key: str, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the signature of OBS: usual sizes are found, odd ones must be named; else `auto` looks at the content."""
    with client_of(server, server=server.virtual_url) as client:
        store(client, key, source, PART)
        found = client.verifyFile("bench", key, source)
        assert (found.is_equal, found.against, found.part_size_bytes) == (True, "etag", PART)
        store(client, key, source, 103_000)
        with caplog.at_level(logging.INFO, logger="obs_engine"):
            found = client.verifyFile("bench", key, source, "etag")
        assert (found.is_equal, found.part_size_bytes, found.tried_part_sizes) == (False, None, (PART, 102_362))
        assert f"parts of {PART} bytes do not make its ETag" in caplog.text
        data = source.read_bytes()
        assert found.expected == f"{etag_of(data, PART)} or {etag_of(data, 102_362)}"
        assert found.found == etag_of(data, 103_000)
        assert found.compared_bytes == 2 * SIZE
        found = client.verifyFile("bench", key, source, "etag", partSize=103_000)
        assert (found.is_equal, found.part_size_bytes) == (True, 103_000)
        assert client.verifyFile("bench", key, source).against == "content"
        assert client.verifyFile("bench", key, source).is_equal
        flip(source, 77)
        assert client.verifyFile("bench", key, source).first_difference == 77
        assert not client.verifyFile("bench", key, source, partSize=103_000).is_equal


def test_a_part_size_that_cannot_be_is_refused(client: ObsClient, key: str, source: Path) -> None:
    """It would make another number of parts: a difference of sizes, and not of contents."""
    store(client, key, source)
    with pytest.raises(InvalidArgumentError, match=r"partSize.*makes 20 parts of 2047223 bytes.*204800.*makes 10"):
        client.verifyFile("bench", key, source, partSize=2 * PART)


def test_no_usual_part_size_is_an_error_and_no_difference(key: str, small: Path) -> None:
    """Nothing was compared: `etag` says what to name, and `auto` looks at the content."""
    with odd_service(small, etag=f'"{"0" * 32}-4"') as (client, _):
        with pytest.raises(InvalidArgumentError, match="none of the usual ones to make 4 parts of 5 bytes"):
            client.verifyFile("bucket", key, small, "etag")
        assert client.verifyFile("bucket", key, small).against == "content"


@pytest.mark.parametrize("etag", ['"abc"', "", f'"{"0" * 32}-0"'])
def test_an_etag_of_another_kind_is_not_compared(key: str, small: Path, etag: str) -> None:
    """It is no MD5: `etag` says what else can be done, and `auto` does it."""
    with odd_service(small, etag=etag) as (client, _):
        with pytest.raises(InvalidArgumentError, match=r"expected an ETag that is made of MD5s.*'crc64' or 'content'"):
            client.verifyFile("bucket", key, small, "etag")
        found = client.verifyFile("bucket", key, small)
        assert (found.is_equal, found.against) == (True, "content")


def test_an_object_without_a_crc64_says_what_to_do(client: ObsClient, key: str, source: Path) -> None:
    """The service keeps one only where it was sent."""
    store(client, key, source)
    with pytest.raises(InvalidArgumentError, match="found none; compare against 'etag' or 'content'"):
        client.verifyFile("bench", key, source, "crc64")


def test_an_object_under_a_key_of_mine(client: ObsClient, key: str, source: Path) -> None:
    """Its ETag is no MD5; with the key, CRC-64 and content can be compared, and without it nothing."""
    store(client, key, source, headers=KEY_OF_MINE)
    store(client, f"{key}-crc", source, headers=KEY_OF_MINE, isAttachCrc64=True)
    with pytest.raises(InvalidArgumentError, match="one of an encrypted object, which is no MD5"):
        client.verifyFile("bench", key, source, "etag", headers=KEY_OF_MINE)
    with pytest.raises(ServiceError, match=r"HeadObject.*give headers\.sseHeader") as refused:
        client.verifyFile("bench", key, source)
    assert refused.value.status == 400
    found = client.verifyFile("bench", key, source, headers=KEY_OF_MINE)
    assert (found.is_equal, found.against) == (True, "content")
    found = client.verifyFile("bench", f"{key}-crc", source, headers=KEY_OF_MINE)
    assert (found.is_equal, found.against) == (True, "crc64")
    flip(source, 12)
    assert client.verifyFile("bench", key, source, headers=KEY_OF_MINE).first_difference == 12
    assert not client.verifyFile("bench", f"{key}-crc", source, headers=KEY_OF_MINE).is_equal


# --- what goes wrong --------------------------------------------------------------------------------------------


def test_what_is_missing_is_an_error(server: LocalObs, client: ObsClient, key: str, source: Path) -> None:
    """An object, a bucket, a file: each by its own class, as with uploads."""
    with pytest.raises(ServiceError, match="there is no such object") as missing:
        client.verifyFile("bench", key, source)
    assert missing.value.status == 404
    with pytest.raises(ServiceError):
        client.verifyFile("no-such-bucket", key, source)
    with client_of(server, server=server.virtual_url) as asking, pytest.raises(ServiceError, match="no-such-bucket"):
        asking.verifyFile("no-such-bucket", key, source)
    server.clear_requests()
    with pytest.raises(SourceNotFoundError):
        client.verifyFile("bench", key, f"{source}.not")
    assert not server.requests()


def test_a_missing_permission_is_an_error(server: LocalObs, client: ObsClient, key: str, source: Path) -> None:
    """Of HEAD as of GET."""
    store(client, key, source)
    for operation in ("HeadObject", "GetObject"):
        server.set_faults([{"operation": operation, "status": 403, "code": "AccessDenied"}])
        with pytest.raises(ServiceError, match=f"{operation}.*permission GetObject") as refused:
            client.verifyFile("bench", key, source, "content")
        assert refused.value.status == 403


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"against": "md5"}, "against: expected one of 'auto', 'crc64', 'etag', 'content', found 'md5'"),
        ({"partSize": 0}, "partSize"), ({"partSize": "9M"}, "partSize"), ({"partSize": True}, "partSize"),
        ({"partSize": 9.5}, "partSize"), ({"versionId": ""}, "versionId"), ({"versionId": 3}, "versionId"),
        ({"taskNum": 0}, "taskNum"), ({"bucketName": "B"}, "bucketName"), ({"objectKey": ""}, "objectKey"),
        ({"progressCallback": 3}, "progressCallback"), ({"uploadFile": "/"}, "a directory"),
        ({"headers": UploadFileHeader(sseHeader=SseCHeader(key="short"))}, "32 bytes"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_anything_is_asked(
    server: LocalObs, client: ObsClient, source: Path, arguments: dict[str, Any], words: str
) -> None:
    """Each by its name."""
    call: dict[str, Any] = {"bucketName": "bench", "objectKey": "k", "uploadFile": source} | arguments
    with pytest.raises(InvalidArgumentError, match=words):
        client.verifyFile(**call)
    assert not server.requests()


@pytest.mark.parametrize(
    "rule",
    [
        {"nth": [1, 3], "truncate": 300_000}, {"nth": [1, 3], "truncate": 0}, {"nth": [2], "reset": "before_reply"},
        {"nth": [2], "status": 503, "code": "SlowDown"}, {"nth": [1], "reset": "at_once"},
    ],
)  # fmt: skip
def test_a_get_that_breaks_off_is_repeated(
    server: LocalObs, client: ObsClient, key: str, tmp_path: Path, rule: dict[str, Any]
) -> None:
    """In its middle or before: only its range is fetched again, and nothing is taken for equal that was not seen."""
    source = make_file(tmp_path / "f", 4 * MIB + 5, seed=10)
    store(client, key, source, MIB)
    for way in (None, 4 * MIB):  # equal, and another byte in the last range
        if way is not None:
            flip(source, way)
        server.set_faults([{"operation": "GetObject", **rule}])
        server.clear_requests()
        found = client.verifyFile("bench", key, source, "content", taskNum=2)
        assert (found.is_equal, found.first_difference) == (way is None, way)
        # 4 MiB and 5 bytes for two connections are two ranges of 3 MiB at most; one that differs is looked at twice.
        assert len(server.requests("GetObject")) == 2 + len(rule["nth"]) + (way is not None)


def test_a_bit_that_flips_on_its_way_back_is_no_difference(
    server: LocalObs, client: ObsClient, key: str, source: Path
) -> None:
    """A range that differs is looked at again: what counts is what the service has."""
    store(client, key, source)
    server.set_faults([{"operation": "GetObject", "nth": 1, "corrupt": "reply"}])
    assert client.verifyFile("bench", key, source, "content").is_equal
    server.set_faults([{"operation": "GetObject", "corrupt": "reply", "seed": 5}])
    assert not client.verifyFile("bench", key, source, "content").is_equal


def test_a_service_that_is_not_there_is_a_transport_error(key: str, source: Path) -> None:
    """As with uploads."""
    with LocalObs(buckets=["bench"]) as gone:
        arguments = {"server": gone.url}
        gone.stop()
        with client_of(gone, max_retry_count=0, **arguments) as client, pytest.raises(TransportError):
            client.verifyFile("bench", key, source)


def test_an_object_that_is_replaced_meanwhile_is_an_error(
    server: LocalObs, client: ObsClient, key: str, source: Path
) -> None:
    """HEAD told of another one: the service holds If-Match against what it has by then."""
    store(client, key, source)
    server.set_faults([{"operation": "HeadObject", "corrupt": "etag"}])
    with pytest.raises(ServiceError, match="was replaced or deleted while it was compared: call again") as replaced:
        client.verifyFile("bench", key, source, "content")
    assert (replaced.value.status, replaced.value.errorCode) == (412, "PreconditionFailed")


# --- services of another mind -----------------------------------------------------------------------------------


class OddService(Recorder):
    """Shows one object; `on_head` is called before HEAD is answered."""

    on_head: Callable[[], None] | None = None

    def answer(self, request: Recorded) -> Answer:
        if request.method == "HEAD" and self.on_head is not None:
            self.on_head()
        return super().answer(request)


class Odd(NamedTuple):
    client: ObsClient
    service: OddService

    def __enter__(self) -> Odd:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.service.close()


def odd_service(source: Path, etag: str = '"e"', **headers: str) -> Odd:
    """A service that answers HEAD and GET with the file's bytes, and knows no ranges."""
    service = OddService(prefix="x-amz-")
    body = source.read_bytes()
    shown = Answer(headers=(*((("ETag", etag),) if etag else ()), *headers.items()), body=body)
    service.answers.update({"Head": shown, "GET": shown})
    client = ObsClient("AK", "SK", server=f"http://127.0.0.1:{service.port}", max_retry_count=0, timeout=10)
    return Odd(client, service)


def test_a_version_is_asked_for_in_every_request(key: str, small: Path) -> None:
    """HEAD, HEAD of a part, and GET."""
    with odd_service(small, etag=f'"{"0" * 32}-4"') as (client, service):
        assert client.verifyFile("bucket", key, small, versionId="V1/2=").is_equal
        asked = [(r.method, r.query) for r in service.take()]
    named = {"versionId": "V1/2="}
    assert asked == [("HEAD", named), ("HEAD", {"partNumber": "1"} | named), ("GET", named)]


def test_an_object_that_another_answer_tells_of_is_an_error(key: str, small: Path) -> None:
    """Where the service ignores If-Match, the reply's own ETag tells."""
    with odd_service(small) as (client, service):
        service.answers["GET"] = Answer(headers=(("ETag", '"f"'),), body=small.read_bytes())
        with pytest.raises(ServiceError, match=r'expected ETag "e".*found ETag "f"'):
            client.verifyFile("bucket", key, small, "content")


@pytest.mark.parametrize("way", ["crc64", "etag", "content"])
def test_a_file_that_changes_meanwhile_is_an_error(key: str, small: Path, way: Any) -> None:
    """Whether it then is equal or not: what was read was not one file."""
    data = small.read_bytes()
    etag = hashlib.md5(data).hexdigest()
    with odd_service(small, etag=f'"{etag}"', **{"x-amz-checksum-crc64ecma": str(crc64(data))}) as (client, service):
        assert client.verifyFile("bucket", key, small, way).is_equal
        service.on_head = lambda: os.utime(small, ns=(1, 1))
        with pytest.raises(SourceChangedError):
            client.verifyFile("bucket", key, small, way)
        service.on_head = None
        assert client.verifyFile("bucket", key, small, way).is_equal
        service.on_head = lambda: os.truncate(small, 3)
        with pytest.raises(SourceChangedError):
            client.verifyFile("bucket", key, small, way)


# --- means ------------------------------------------------------------------------------------------------------


def test_progress_goes_up_and_ends_with_equality(client: ObsClient, key: str, tmp_path: Path) -> None:
    """All bytes are told of equal ones only; a callback that raises changes nothing."""
    source = make_file(tmp_path / "f", 20 * MIB, seed=11)
    store(client, key, source, MIB, isAttachCrc64=True)

    def told(way: Any) -> list[int]:
        found: list[int] = []
        client.verifyFile("bench", key, source, way, progressCallback=lambda done, *_: found.append(done))
        return found

    for way in WAYS:
        found = told(way)
        assert found == sorted(found)
        assert found[-1] == 20 * MIB
    flip(source, 20 * MIB - 1)
    for way in WAYS:
        assert max(told(way)) < 20 * MIB
    assert not client.verifyFile("bench", key, source, progressCallback=lambda *_: 1 / 0).is_equal


@pytest.mark.parametrize("task_num", [1, 3])
def test_connections_never_exceed_task_num(
    server: LocalObs, client: ObsClient, key: str, tmp_path: Path, task_num: int
) -> None:
    """However many ranges there are."""
    source = make_file(tmp_path / "f", 40 * MIB, seed=12)
    store(client, key, source, 5 * MIB)
    server.clear_requests()
    assert client.verifyFile("bench", key, source, "content", taskNum=task_num).is_equal
    gets = server.requests("GetObject")
    assert len(gets) == 3
    assert len({r["connection"] for r in server.requests()}) <= task_num


def test_a_comparison_that_is_left_ends(server: LocalObs, client: ObsClient, key: str, source: Path) -> None:
    """After Ctrl-C nothing is in flight any more, and the client compares on."""
    store(client, key, source)
    server.set_faults([{"operation": "GetObject", "stall": True}])

    def leave(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.verifyFile("bench", key, source, "content", progressCallback=leave)
    server.set_faults([])
    assert client.verifyFile("bench", key, source, "content").is_equal


@pytest.mark.parametrize("reader", ["mmap", "pread"])
def test_every_reader(server: LocalObs, key: str, source: Path, reader: Any) -> None:
    """The file is read as the engine's options say; a large one leaves the page cache on its way."""
    with client_of(server, engine=EngineOptions(reader=reader, page_cache_share=0)) as client:
        store(client, key, source, isAttachCrc64=True)
        for way in WAYS:
            assert client.verifyFile("bench", key, source, way).is_equal  # type: ignore[arg-type]
        flip(source, SIZE - 2)
        assert client.verifyFile("bench", key, source, "content").first_difference == SIZE - 2


def test_options_of_uploads_do_not_matter(server: LocalObs, key: str, source: Path) -> None:
    """A client that adopts uploads compares as well, and leaves no record."""
    with client_of(server, engine=EngineOptions(adopt=True, processes=1)) as client:
        client.uploadFile("bench", key, source, PART, enableCheckpoint=True)
        assert client.verifyFile("bench", key, source).is_equal
    assert [path.name for path in source.parent.iterdir()] == [source.name]


# --- the command ------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    status: int
    out: str
    err: str


def run(server: LocalObs, *words: object) -> Said:
    """`obs-engine verify WORDS`, its keys in the environment."""
    environment = {
        **os.environ, "OBS_ENDPOINT": server.url, "OBS_ACCESS_KEY_ID": server.access_key,
        "OBS_SECRET_ACCESS_KEY": server.secret_key,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "obs_engine", "verify", *map(str, words)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return Said(done.returncode, done.stdout, done.stderr)


def test_the_command_says_what_it_compared(server: LocalObs, client: ObsClient, key: str, source: Path) -> None:
    """0 and the digest where they are equal, 1 and both where not."""
    store(client, key, source, isAttachCrc64=True)
    data, target = source.read_bytes(), f"obs://bench/{key}"
    said = run(server, source, target)
    assert said.status == 0, said.err
    assert said.out.startswith(f"{target}  equal by CRC-64 {crc64(data)}  {SIZE} bytes  {SIZE} bytes compared  ")
    assert said.out.endswith(" MB/s\n")
    said = run(server, source, target, "--against", "etag", "--part-size", "100K", "--quiet")
    assert (said.status, said.err) == (0, "")
    assert f"equal by ETag {etag_of(data, PART)} (parts of {PART} bytes)" in said.out
    assert run(server, source, target, "--against", "content", "-j", 2).out.startswith(f"{target}  equal by content  ")
    flip(source, 1000)
    said = run(server, source, target, "--against", "content", "--quiet")
    assert (said.status, said.err) == (1, "")
    expected = f"differs by content: expected {SIZE} equal bytes, found another byte at offset 1000  "
    assert said.out.startswith(f"{target}  {expected}")
    said = run(server, source, target, "--against", "etag")
    assert said.status == 1
    assert f"found {etag_of(data, PART)} (tried parts of {PART} bytes; another size can be named with" in said.out


def test_the_command_speaks_json(server: LocalObs, client: ObsClient, key: str, source: Path) -> None:
    """One line, whatever came of it."""
    store(client, key, source)
    for way, equal in (("etag", True), ("content", False)):
        if not equal:
            flip(source, 3)
        said = run(server, source, f"obs://bench/{key}", "--against", way, "--json", "--quiet")
        assert (said.status, said.err, said.out.count("\n")) == (0 if equal else 1, "", 1)
        document = json.loads(said.out)
        assert document.keys() == {"object", "file", *VerifyResult.__dataclass_fields__}
        assert (document["is_equal"], document["against"]) == (equal, way)
        assert document["first_difference"] == (None if equal else 3)
        assert document["object"] == f"obs://bench/{key}"


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_the_command_tells_a_failure_from_a_difference(
    server: LocalObs, key: str, source: Path, more: list[str]
) -> None:
    """2 where nobody knows: no such object or file, a way that cannot be gone, words that mean nothing."""
    target = f"obs://bench/{key}"
    for words, error in (
        ([source, target], "there is no such object"),
        ([f"{source}.not", target], "expected a file, found nothing"),
        ([source, "s3://bench/key"], "expected obs://BUCKET/KEY"),
        ([source, target, "--part-size", "nine"], "expected MiB, or a number with B, K, M or G"),
        ([source, target, "--against", "sha256"], "--against"),
        ([source, target, "--version-id", "V"], "found status 501"),  # the local server keeps no versions
    ):
        said = run(server, *words, *more, "--quiet")
        assert (said.status, said.out) == (2, ""), said
        assert error in said.err
