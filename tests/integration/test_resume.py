"""A resume that survives anything: record, file or service is wrong, silent or gone, and the object is right.

Every test interrupts an upload at an exact place (parts 1 to 8 of 20 acknowledged and recorded, unless it says
otherwise), does harm, and calls again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness import (
    Caller,
    acknowledged,
    client_arguments,
    client_of,
    fetch,
    is_alive,
    is_equal,
    make_file,
    open_uploads,
    wait_until,
)
from obs_engine import (
    EngineOptions,
    InvalidArgumentError,
    JournalError,
    ObsClient,
    ResumeRefusedError,
    ServiceError,
    SourceChangedError,
    SseCHeader,
    TransportError,
    UploadFileHeader,
    UploadReport,
)
from obs_engine.checkpoint.journal import peek
from obs_engine.testing import LocalObs
from obs_engine.wire import requests
from obs_engine.wire.object_headers import sse_c_headers
from obs_engine.wire.replies import Reply, read_upload_id
from obs_engine.wire.signing import Headers

PART, PARTS, STORED = 102_400, 20, 8
ALL = set(range(1, PARTS + 1))
REST = set(range(STORED + 1, PARTS + 1))
NO_RETRY = {"max_retry_count": 0}


class Left(NamedTuple):
    """What an interrupted upload left behind."""

    record: Path
    upload_id: str


class Done(NamedTuple):
    """What a call that succeeded did: its report, the parts that it sent, its other requests in their order."""

    report: UploadReport
    sent: set[int]
    asked: list[str]


def upload(server: LocalObs, key: str, source: Path, **named: Any) -> Any:
    """One call in this process, with a checkpoint."""
    arguments: dict[str, Any] = {"partSize": PART, "taskNum": 4, "enableCheckpoint": True} | named
    client, engine = arguments.pop("client", {}), arguments.pop("engine", {})
    with client_of(server, engine=EngineOptions(**engine), **client) as caller:
        return caller.uploadFile("bench", key, source, **arguments)


def call_of(key: str, source: Path, **more: Any) -> dict[str, Any]:
    """The same call for another process."""
    return {
        "bucketName": "bench", "objectKey": key, "uploadFile": str(source), "partSize": PART, "taskNum": 1,
        "enableCheckpoint": True,
    } | more  # fmt: skip


def denied(*operations: str, status: int = 403, code: str = "AccessDenied", **more: Any) -> list[dict[str, Any]]:
    return [{"operation": list(operations), "status": status, "code": code} | more]


def interrupted(server: LocalObs, key: str, source: Path, stored: int = STORED, **named: Any) -> Left:
    """An upload that was refused when exactly the parts 1 to `stored` were acknowledged and recorded."""
    is_all = stored == PARTS
    parts = {} if is_all else {"part_number": list(range(stored + 1, PARTS + 1))}
    server.set_faults(denied("Complete" if is_all else "UploadPart", **parts))
    try:
        result = upload(server, key, source, taskNum=1, **named)
        assert result.errorCode == "AccessDenied"
    except ServiceError as error:
        assert error.errorCode == "AccessDenied", error  # noqa: PT017 - Complete's refusal is returned, a part's raised
    server.set_faults([])
    server.clear_requests()
    record = Path(named.get("checkpointFile") or f"{source}.upload_record")
    state = peek(str(record))
    assert state is not None
    assert sorted(state.parts) == list(range(1, stored + 1))
    return Left(record, state.upload_id or "")


def finished(server: LocalObs, key: str, source: Path, **named: Any) -> Done:
    """A call that succeeds: the object is the file, no upload is left open, no record is left behind."""
    result = upload(server, key, source, **named)
    assert result.status == 200, result
    sent = set(acknowledged(server, key))
    asked = [operation for operation in operations(server, key) if operation != "UploadPart"]
    assert is_equal(server, "bench", key, source, reader_headers(named))
    assert open_uploads(server, "bench", key) == 0
    assert not Path(named.get("checkpointFile") or f"{source}.upload_record").exists()
    assert result.report.parts_sent == len(sent)
    assert result.report.parts_resumed == PARTS - len(sent)
    return Done(result.report, sent, asked)


def reader_headers(named: dict[str, Any]) -> Headers:
    """What shows an object that was uploaded so: the customer's key, where there is one."""
    encryption = getattr(named.get("headers"), "sseHeader", None)
    return () if encryption is None else sse_c_headers("v2", "AES256", encryption.key.encode())


def operations(server: LocalObs, key: str) -> list[str]:
    """What was asked for this key; a reply that another test left hanging is logged when it ends."""
    ours = (key, None)  # None: of the bucket
    return [entry["operation"] for entry in server.requests() if entry["key"] in ours]


def piece(source: Path, number: int) -> bytes:
    """The bytes of a part."""
    return source.read_bytes()[(number - 1) * PART : number * PART]


def put_part(server: LocalObs, key: str, upload_id: str, number: int, content: bytes) -> None:
    """A part that no engine of ours sent."""
    request = requests.upload_part("bench", key, upload_id, number, len(content), (("Content-Type", "some/bytes"),))
    fetch(server, replace(request, body=content))


def lose_part(server: LocalObs, upload_id: str, number: int) -> None:
    """The service's disk loses an acknowledged part."""
    (file,) = server.data_dir.glob(f"buckets/bench/data/{upload_id}/{number:05d}.*")
    server.stop()
    file.unlink()
    server.restart()


def initiate(server: LocalObs, key: str) -> str:
    """An upload that no engine of ours began."""
    return read_upload_id(Reply(200, body=fetch(server, requests.initiate("bench", key)))) or ""


def abort(server: LocalObs, key: str, upload_id: str) -> None:
    """Somebody removes an upload: a lifecycle rule, say."""
    fetch(server, requests.abort("bench", key, upload_id))


def warned(caplog: pytest.LogCaptureFixture) -> str:
    """All warnings until now."""
    return "\n".join(r.getMessage() for r in caplog.records if r.name == "obs_engine" and r.levelno >= logging.WARNING)


def other(content: bytes) -> bytes:
    """As many other bytes."""
    return content[::-1]


# --- the service's parts, held against the record ---------------------------------------------------------------

MEDDLING: dict[str, tuple[int, Callable[[bytes], bytes] | None, bool, str]] = {
    # the part, what the service is made to have of it (None: nothing), is it sent again, and the warning's words
    "recorded and lost": (3, None, True, "part 3: lost by the service"),
    "recorded and overwritten with the same": (3, bytes, False, ""),
    "recorded and overwritten with other bytes": (3, other, True, "part 3: overwritten with another"),
    "recorded and overwritten with fewer": (3, lambda content: content[:-1], True, "part 3: another size"),
    "unrecorded, the file's": (12, bytes, False, ""),
    "unrecorded, the file's last": (PARTS, bytes, False, ""),
    "unrecorded, other bytes": (12, other, True, ""),
    "unrecorded, more bytes": (12, lambda content: content + b"x", True, ""),
    "beyond the plan": (PARTS + 1, bytes, False, ""),
}


@pytest.mark.parametrize("meddling", MEDDLING.values(), ids=MEDDLING)
def test_parts_are_held_against_those_of_the_service(
    server: LocalObs, key: str, source: Path, caplog: pytest.LogCaptureFixture, meddling: Any
) -> None:
    """What is lost or not the file's is sent again; what the service has and the record lacks is adopted."""
    number, content, is_sent, words = meddling
    left = interrupted(server, key, source)
    if content is None:
        lose_part(server, left.upload_id, number)
    else:
        put_part(server, key, left.upload_id, number, content(piece(source, number)))
    server.clear_requests()
    done = finished(server, key, source)
    assert done.sent == (REST | {number} if is_sent else REST - {number})
    assert done.report.parts_adopted == len(REST - done.sent)
    assert done.asked == ["ListParts", "Complete"]
    assert words in warned(caplog)
    assert bool(words) == bool(warned(caplog))


def test_more_parts_than_one_page_are_adopted(server: LocalObs, key: str, tmp_path: Path) -> None:
    """ListParts tells of 1,000 at a time; every part holds its own number, so that none passes for another."""
    source, count = tmp_path / "sparse", 1005
    with open(source, "wb") as file:
        for number in range(count):
            file.seek(number * PART)
            file.write(b"%06d" % number)
    server.set_faults(denied("UploadPart", part_number=count))
    with pytest.raises(ServiceError):
        upload(server, key, source, taskNum=1)
    server.set_faults([])
    server.clear_requests()
    Path(f"{source}.upload_record").unlink()
    report = upload(server, key, source, engine={"adopt": True}).report
    assert report.parts_adopted == count - 1
    assert set(acknowledged(server, key)) == {count}
    assert len(server.requests("ListParts")) == 2
    assert is_equal(server, "bench", key, source)


# --- permissions that are missing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AccessDenied"), (405, "MethodNotAllowed"), (501, "NotImplemented")]
)
def test_where_parts_may_not_be_listed_the_record_is_believed(
    server: LocalObs, key: str, source: Path, caplog: pytest.LogCaptureFixture, status: int, code: str
) -> None:
    """ListParts is a permission of its own, and some services lack the call: a warning, and the upload goes on."""
    interrupted(server, key, source)
    server.set_faults(denied("ListParts", status=status, code=code))
    done = finished(server, key, source)
    assert done.sent == REST
    assert f"ListParts of bench/{key} is refused (status {status}, {code})" in warned(caplog)


def test_an_ordinary_resume_needs_no_permission_but_to_put(server: LocalObs, key: str, source: Path) -> None:
    """ListParts, HEAD, Abort and ListMultipartUploads are all denied."""
    interrupted(server, key, source)
    server.set_faults(denied("ListParts", "HeadObject", "Abort", "ListUploads"))
    assert upload(server, key, source).report.parts_sent == len(REST)
    server.set_faults([])
    assert is_equal(server, "bench", key, source)


def test_a_listing_that_fails_for_now_is_asked_again(server: LocalObs, key: str, source: Path) -> None:
    """A 503 is no answer yet."""
    interrupted(server, key, source)
    server.set_faults(denied("ListParts", status=503, code="SlowDown", times=1))
    done = finished(server, key, source)
    assert (done.sent, done.asked) == (REST, ["ListParts", "ListParts", "Complete"])


def test_where_the_object_may_not_be_seen_nothing_is_taken_for_done(
    server: LocalObs, key: str, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The upload is gone, perhaps completed: without HEAD nobody can say, so it is sent again."""
    left = interrupted(server, key, source)
    abort(server, key, left.upload_id)
    server.set_faults(denied("HeadObject"))
    done = finished(server, key, source)
    assert done.sent == ALL
    assert f"object bench/{key} may not be looked at (HEAD: status 403)" in warned(caplog)
    assert "gone, object unseen" in warned(caplog)


def test_an_old_upload_that_may_not_be_aborted_is_left_with_a_warning(
    server: LocalObs, key: str, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The new one does not suffer from it."""
    left = interrupted(server, key, source)
    os.utime(source)
    server.set_faults(denied("Abort"))
    assert upload(server, key, source).report.parts_sent == PARTS
    assert f"upload {left.upload_id} was left on the service" in warned(caplog)
    assert is_equal(server, "bench", key, source)


def test_a_missing_bucket_keeps_the_record(server: LocalObs, key: str, source: Path) -> None:
    """404 NoSuchBucket says that the address is wrong, and nothing of the upload."""
    interrupted(server, key, source)
    server.set_faults(denied("ListParts", status=404, code="NoSuchBucket"))
    with pytest.raises(ServiceError, match="check the bucket and the endpoint"):
        upload(server, key, source)
    server.set_faults([])
    server.clear_requests()
    assert finished(server, key, source).sent == REST


# --- Complete, and answers that were lost -----------------------------------------------------------------------

COMPLETED: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "its answer is reset": (NO_RETRY, [{"operation": "Complete", "reset": "after_work"}]),
    "its answer is cut": (NO_RETRY, [{"operation": "Complete", "truncate": 40}]),
    "its answer is late": (NO_RETRY | {"timeout": 1}, [{"operation": "Complete", "delay_s": 20}]),
    "its answer is lost, then 503": ({"max_retry_count": 1}, [
        {"operation": "Complete", "nth": 1, "reset": "after_work"}, *denied("Complete", status=503, nth=2),
    ]),
    "its answer is lost, then NoSuchUpload": ({"max_retry_count": 1}, [
        {"operation": "Complete", "nth": 1, "reset": "after_work"},
    ]),
}  # fmt: skip


@pytest.mark.parametrize("faults", COMPLETED.values(), ids=COMPLETED)
def test_a_complete_that_was_done_is_found_in_the_same_call(
    server: LocalObs, key: str, source: Path, faults: Any
) -> None:
    """Whatever came in the place of its answer, the object says whose it is."""
    client, rules = faults
    server.set_faults(rules)
    done = finished(server, key, source, client=client)
    assert done.sent == ALL
    assert done.asked[-1] == "HeadObject"


UNDONE: dict[str, dict[str, Any]] = {
    "reset": {"reset": "before_reply"},
    "503": {"status": 503, "code": "ServiceUnavailable"},
    "200 with an error": {"error_in_200": True, "code": "InternalError"},
}


@pytest.mark.parametrize("fault", UNDONE.values(), ids=UNDONE)
def test_a_complete_that_was_not_done_is_no_success_and_loses_nothing(
    server: LocalObs, key: str, source: Path, fault: dict[str, Any]
) -> None:
    """It is raised or returned with its status; the next call completes, and sends no part."""
    server.set_faults([{"operation": "Complete", **fault}])
    try:
        assert upload(server, key, source, client=NO_RETRY).status == 503
    except (ServiceError, TransportError) as error:
        assert error.checkpoint_file == f"{source}.upload_record"  # noqa: PT017 - a 503 is returned, the rest raised
        assert error.is_retryable  # noqa: PT017
    server.set_faults([])
    server.clear_requests()
    done = finished(server, key, source)
    assert (done.sent, done.asked) == (set(), ["ListParts", "Complete"])


def test_a_complete_that_was_done_before_the_process_was_killed_is_found(
    server: LocalObs, key: str, source: Path
) -> None:
    """kill -9 between the object and its answer: the next call sends nothing and completes nothing."""
    server.set_faults([{"operation": "Complete", "delay_s": 20}])
    caller = Caller(client_arguments(server), call_of(key, source))
    record = f"{source}.upload_record"
    wait_until(lambda: (state := peek(record)) is not None and len(state.parts) == PARTS, "all parts")
    wait_until(lambda: not open_uploads(server, "bench", key), "the object")
    children = caller.process.children(recursive=True)
    caller.end()
    wait_until(lambda: not any(map(is_alive, children)), "the end of all")
    server.set_faults([])
    server.clear_requests()
    done = finished(server, key, source)
    assert (done.sent, done.asked) == (set(), ["ListParts", "HeadObject"])


def test_a_complete_that_was_done_is_found_though_parts_may_not_be_listed(
    server: LocalObs, key: str, source: Path
) -> None:
    """The record is believed, a second Complete meets NoSuchUpload, and the object tells why."""
    server.set_faults([{"operation": "Complete", "reset": "after_work"}, *denied("HeadObject")])
    with pytest.raises(TransportError):
        upload(server, key, source, client=NO_RETRY)
    server.set_faults(denied("ListParts"))
    server.clear_requests()
    done = finished(server, key, source)
    assert done.sent == set()
    assert done.asked[:2] == ["ListParts", "Complete"]
    assert set(done.asked[2:]) == {"HeadObject"}


@pytest.mark.parametrize("stored", [STORED, PARTS])
def test_an_object_of_another_upload_is_never_taken_for_ours(
    server: LocalObs, key: str, source: Path, tmp_path: Path, stored: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The upload is gone, and under the key stands an object of the same size: it is sent again, with a warning."""
    left = interrupted(server, key, source, stored)
    abort(server, key, left.upload_id)
    rival = make_file(tmp_path / "rival", source.stat().st_size, seed=9)
    upload(server, key, rival, enableCheckpoint=False)
    server.clear_requests()
    done = finished(server, key, source)
    assert done.sent == ALL
    assert done.asked == ["ListParts", "HeadObject", "Initiate", "Complete"]
    assert f"gone: upload {left.upload_id}; begin a new upload" in warned(caplog)


def test_a_complete_in_doubt_is_not_settled_by_another_object(
    server: LocalObs, key: str, source: Path, tmp_path: Path
) -> None:
    """A 503 before the work, and an older object under the key: no success."""
    rival = make_file(tmp_path / "rival", source.stat().st_size, seed=9)
    upload(server, key, rival, enableCheckpoint=False)
    server.set_faults(denied("Complete", status=503))
    assert upload(server, key, source, client=NO_RETRY).status == 503
    server.set_faults([])
    server.clear_requests()
    assert finished(server, key, source).sent == set()


def test_an_upload_that_is_aborted_meanwhile_begins_anew(
    server: LocalObs, key: str, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A part meets NoSuchUpload: the service's own word, so that all is sent again in the same call."""
    left = interrupted(server, key, source)
    server.set_faults([{"operation": "UploadPart", "times": 1, "delay_s": 0.7, "delay_at": "before_reading"}])
    aborts: list[str] = []

    def meddle(*_: Any) -> None:
        if not aborts:
            aborts.append(left.upload_id)
            abort(server, key, left.upload_id)

    report = upload(server, key, source, taskNum=1, progressCallback=meddle).report
    assert (report.parts_sent, report.parts_resumed) == (PARTS, 0)
    assert f"gone: upload {left.upload_id}; begin a new upload" in warned(caplog)
    assert is_equal(server, "bench", key, source)
    assert open_uploads(server, "bench", key) == 0


# --- the file and the options -----------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Path], object]] = {
    "touched": os.utime,
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "rewritten": lambda path: make_file(path, path.stat().st_size, seed=2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_file_begins_anew(
    server: LocalObs, key: str, source: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], object]
) -> None:
    """The old upload is aborted on the service, and the warning says why."""
    left = interrupted(server, key, source)
    change(source)
    done = finished(server, key, source)
    assert done.sent == ALL
    assert done.asked == ["Abort", "Initiate", "Complete"]
    assert server.requests("Abort")[0]["upload_id"] == left.upload_id
    assert "changed its size or modification time; abort the old upload" in warned(caplog)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_file_is_refused_where_its_owner_asks_for_that(
    server: LocalObs, key: str, source: Path, change: Callable[[Path], object]
) -> None:
    """Nothing is asked of the service, no byte of the record changes, and the restored file continues."""
    left = interrupted(server, key, source)
    before, content, record = source.stat(), source.read_bytes(), left.record.read_bytes()
    change(source)
    for _ in range(2):
        with pytest.raises(SourceChangedError, match="restore the file, or call with on_source_change='restart'"):
            upload(server, key, source, engine={"on_source_change": "refuse"})
    assert operations(server, key) == []
    assert left.record.read_bytes() == record
    source.write_bytes(content)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert finished(server, key, source, engine={"on_source_change": "refuse"}).sent == REST


def with_key(letter: str) -> dict[str, Any]:
    return {"headers": UploadFileHeader(sseHeader=SseCHeader(key=letter * 32))}


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "metadata": ({"metadata": {"a": "1"}}, {"metadata": {"a": "2"}}, "metadata"),
    "storage class": ({}, {"headers": UploadFileHeader(storageClass="WARM")}, "properties"),
    "ACL": ({"headers": UploadFileHeader(acl="private")}, {"headers": UploadFileHeader(acl="public-read")},
            "properties"),
    "the customer's key": (with_key("a"), with_key("b"), "encryption"),
    "no key any more": (with_key("a"), {}, "encryption"),
    "a header that changes the object": ({"extensionHeaders": {"x-obs-tagging": "a=1"}},
                                         {"extensionHeaders": {"x-obs-tagging": "a=2"}}, "properties"),
    "metadata as a header": ({}, {"extensionHeaders": {"x-obs-meta-a": "1"}}, "metadata"),
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_that_change_the_object_are_never_mixed(
    server: LocalObs, key: str, source: Path, caplog: pytest.LogCaptureFixture, options: Any
) -> None:
    """The service took them with Initiate: the old upload is aborted, and the warning names the group."""
    first, second, group = options
    left = interrupted(server, key, source, **first)
    done = finished(server, key, source, **second)
    assert (done.sent, done.asked) == (ALL, ["Abort", "Initiate", "Complete"])
    assert server.requests("Abort")[0]["upload_id"] == left.upload_id
    assert f"options that make the object ({group}) changed" in warned(caplog)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"extensionHeaders": {"x-obs-traffic-limit": "819200"}}),
        ({"extensionHeaders": {"x-obs-traffic-limit": "819200"}}, {}),
        ({"metadata": {"a": "1", "b": "2"}}, {"metadata": {"b": "2", "a": "1"}}),
        (with_key("a"), with_key("a")),
    ],
    ids=["a traffic limit", "none any more", "metadata in another order", "the same key"],
)
def test_options_that_make_the_same_object_continue(
    server: LocalObs, key: str, source: Path, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """What does not change the object does not cost the progress."""
    interrupted(server, key, source, **first)
    assert finished(server, key, source, **second).sent == REST


@pytest.mark.parametrize("task_num", [1, 3])
def test_the_recorded_cut_wins_and_the_new_task_num_is_honoured(
    server: LocalObs, key: str, source: Path, task_num: int
) -> None:
    """Parts that are stored have their size; how many fly at a time is this call's to say."""
    interrupted(server, key, source)
    server.set_faults([{"operation": "UploadPart", "delay_s": 0.03}])
    done = finished(server, key, source, partSize=7 * PART, taskNum=task_num)
    assert done.sent == REST
    assert done.report.part_size_bytes == PART
    assert len({entry["connection"] for entry in server.requests("UploadPart")}) == task_num


# --- the file in another place ----------------------------------------------------------------------------------


@pytest.fixture
def moved(source: Path, tmp_path: Path) -> Path:
    """A place for a copy of the source."""
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere" / "copy.bin"


def copy_as(source: Path, other_place: Path, content: bytes) -> None:
    """Another inode of the same time."""
    other_place.write_bytes(content)
    shutil.copystat(source, other_place)
    source.unlink()


def test_a_file_that_was_moved_is_proven_and_continues(
    server: LocalObs, key: str, source: Path, tmp_path: Path, moved: Path
) -> None:
    """Another path and another inode: nobody but the bytes can say that it is the same file."""
    record = tmp_path / "record"
    interrupted(server, key, source, checkpointFile=record)
    copy_as(source, moved, source.read_bytes())
    assert finished(server, key, moved, checkpointFile=record).sent == REST


def test_a_file_that_was_moved_is_proven_without_the_services_word(
    server: LocalObs, key: str, source: Path, tmp_path: Path, moved: Path
) -> None:
    """The recorded ETags are MD5s, too."""
    record = tmp_path / "record"
    interrupted(server, key, source, checkpointFile=record)
    copy_as(source, moved, source.read_bytes())
    server.set_faults(denied("ListParts"))
    assert finished(server, key, moved, checkpointFile=record).sent == REST


def test_another_file_of_the_same_size_and_time_is_no_impostor(
    server: LocalObs, key: str, source: Path, tmp_path: Path, moved: Path
) -> None:
    """Of two files that differ in part 3, the object is the new one; under "refuse" nothing is sent at all."""
    record = tmp_path / "record"
    interrupted(server, key, source, checkpointFile=record)
    content = bytearray(source.read_bytes())
    content[2 * PART] ^= 1
    copy_as(source, moved, bytes(content))
    with pytest.raises(SourceChangedError, match="other bytes in part 3"):
        upload(server, key, moved, checkpointFile=record, engine={"on_source_change": "refuse"})
    assert not acknowledged(server, key)
    assert finished(server, key, moved, checkpointFile=record).sent == REST | {3}


# --- adopt ------------------------------------------------------------------------------------------------------


def orphaned(server: LocalObs, key: str, source: Path, stored: int = STORED) -> str:
    """An interrupted upload whose record is lost."""
    left = interrupted(server, key, source, stored)
    left.record.unlink()
    return left.upload_id


@pytest.mark.parametrize("is_named", [False, True], ids=["found", "named"])
def test_an_upload_without_a_record_is_adopted(server: LocalObs, key: str, source: Path, is_named: bool) -> None:
    """The one open upload of the key, or the one named: its parts are compared with the file, the rest is sent."""
    initiate(server, f"{key}-longer")  # begins with our key, and is another
    upload_id = orphaned(server, key, source)
    done = finished(server, key, source, engine={"adopt": upload_id if is_named else True})
    assert done.sent == REST
    assert done.report.parts_adopted == STORED
    assert done.report.upload_id == upload_id
    assert done.asked == [*([] if is_named else ["ListUploads"]), "ListParts", "Complete"]


def test_an_upload_is_adopted_by_a_copy_of_the_file(server: LocalObs, key: str, source: Path, moved: Path) -> None:
    """On another machine, in another directory, at another time: the bytes are the same."""
    orphaned(server, key, source)
    moved.write_bytes(source.read_bytes())
    os.utime(moved, (1, 1))
    assert finished(server, key, moved, engine={"adopt": True}).sent == REST


@pytest.mark.parametrize("stored", [1, STORED, PARTS])
@pytest.mark.parametrize("asked", [3 * PART + 1, 100 * PART])
def test_the_cut_of_an_adopted_upload_is_inferred(
    server: LocalObs, key: str, source: Path, asked: int, stored: int
) -> None:
    """Of whatever parts the service has, not of what this call asks for."""
    orphaned(server, key, source, stored)
    done = finished(server, key, source, partSize=asked, engine={"adopt": True})
    assert done.sent == ALL - set(range(1, stored + 1))
    assert done.report.part_size_bytes == PART


def test_the_cut_is_inferred_from_the_last_part_alone(server: LocalObs, key: str, source: Path) -> None:
    """Its number and size tell the size of the others."""
    upload_id = initiate(server, key)
    put_part(server, key, upload_id, PARTS, piece(source, PARTS))
    server.clear_requests()
    done = finished(server, key, source, partSize=5 * PART, engine={"adopt": True})
    assert done.sent == ALL - {PARTS}


def test_of_an_adopted_upload_only_parts_that_differ_are_sent_again(server: LocalObs, key: str, source: Path) -> None:
    """Part 3 is somebody else's; the others are the file's."""
    upload_id = orphaned(server, key, source)
    put_part(server, key, upload_id, 3, other(piece(source, 3)))
    server.clear_requests()
    assert finished(server, key, source, engine={"adopt": True}).sent == REST | {3}


def test_an_adopted_upload_has_a_record_from_then_on(server: LocalObs, key: str, source: Path) -> None:
    """Interrupted again, it goes on without being adopted again."""
    upload_id = orphaned(server, key, source)
    assert interrupted(server, key, source, 12, engine={"adopt": True}).upload_id == upload_id
    done = finished(server, key, source)
    assert done.sent == set(range(13, PARTS + 1))
    assert done.report.parts_adopted == 0


def test_where_nothing_is_open_adopt_begins(server: LocalObs, key: str, source: Path) -> None:
    """The same call may be made from the first day on."""
    assert finished(server, key, source, engine={"adopt": True}).sent == ALL


def test_a_record_comes_before_adopt(server: LocalObs, key: str, source: Path) -> None:
    """The recorded upload is continued, though another is open; and another id than the recorded one is refused."""
    left = interrupted(server, key, source)
    rival = initiate(server, key)
    with pytest.raises(ResumeRefusedError, match=f"{rival}.*{left.upload_id}"):
        upload(server, key, source, engine={"adopt": rival})
    server.clear_requests()
    assert upload(server, key, source, engine={"adopt": True}).report.upload_id == left.upload_id
    assert set(acknowledged(server, key)) == REST
    assert is_equal(server, "bench", key, source)


def refused(server: LocalObs, key: str, source: Path, adopt: bool | str) -> str:
    """What an adoption is refused with; nothing is initiated or aborted, and no record is left."""
    server.clear_requests()
    with pytest.raises(ResumeRefusedError) as caught:
        upload(server, key, source, engine={"adopt": adopt})
    assert not {"Initiate", "Abort", "UploadPart"} & set(operations(server, key))
    assert os.listdir(source.parent) == [source.name]
    return str(caught.value)


def test_of_several_uploads_none_is_adopted_unnamed(server: LocalObs, key: str, source: Path) -> None:
    """Another host may be at work on one of them: the error lists them, and one that is named is taken."""
    ids = [initiate(server, key), initiate(server, key)]
    message = refused(server, key, source, adopt=True)
    assert all(upload_id in message for upload_id in ids)
    assert "EngineOptions(adopt=ID)" in message
    assert upload(server, key, source, engine={"adopt": ids[1]}).report.upload_id == ids[1]


def test_an_id_that_the_service_does_not_have_is_not_adopted(server: LocalObs, key: str, source: Path) -> None:
    """Nor one of another key: no new upload takes the place of the one that was meant."""
    for upload_id in ("0" * 32, initiate(server, f"{key}-b")):
        assert upload_id in refused(server, key, source, adopt=upload_id)


def test_where_uploads_may_not_be_listed_only_a_named_one_is_adopted(
    server: LocalObs, key: str, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The refusal says what was denied, and what to do."""
    upload_id = orphaned(server, key, source)
    server.set_faults(denied("ListUploads"))
    message = refused(server, key, source, adopt=True)
    assert "may not be listed" in message
    assert "EngineOptions(adopt=ID)" in message
    assert "ListMultipartUploads" in warned(caplog)
    server.clear_requests()
    assert upload(server, key, source, engine={"adopt": upload_id}).report.parts_adopted == STORED


def test_adopt_needs_a_checkpoint(server: LocalObs, key: str, source: Path) -> None:
    """Without one the upload would be aborted at the next failure; so nothing is sent."""
    with pytest.raises(InvalidArgumentError, match="adopt"):
        upload(server, key, source, engine={"adopt": True}, enableCheckpoint=False)
    assert operations(server, key) == []


# --- a damaged record -------------------------------------------------------------------------------------------


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


def zeroed(data: bytes, start: int, end: int) -> bytes:
    return data[:start] + bytes(min(end, len(data)) - start) + data[end:]


DAMAGE: dict[str, Callable[[bytes, Left], bytes]] = {
    "a bit in the header": lambda data, _: flipped(data, 9),
    "a bit in the binding": lambda data, _: flipped(data, data.index(b"bench")),
    "a bit in the upload id": lambda data, left: flipped(data, data.index(left.upload_id.encode())),
    "a bit in the middle": lambda data, _: flipped(data, len(data) // 2),
    "a bit in the first part": lambda data, left: flipped(data, data.index(left.upload_id.encode()) + 60),
    "a sector of zeros": lambda data, _: zeroed(data, 512, 640),
    "all but parts": lambda data, left: zeroed(data, 0, data.index(left.upload_id.encode()) + 40),
    "all but the last part": lambda data, left: zeroed(data, 0, len(data) - 50),
}


@pytest.mark.parametrize("harm", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_loses_nothing_that_the_service_has(
    server: LocalObs, key: str, source: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[bytes, Left], bytes]
) -> None:
    """A warning tells path, offset, expected and found; the damaged file is kept aside; the rest is sent."""
    left = interrupted(server, key, source)
    damaged = harm(left.record.read_bytes(), left)
    left.record.write_bytes(damaged)
    done = finished(server, key, source)
    assert done.sent == REST
    assert done.report.upload_id == left.upload_id
    said = warned(caplog)
    assert re.search(rf"{re.escape(str(left.record))} is damaged at offset \d+: expected .+, found .+", said), said
    assert f"what was there is kept as {left.record}.damaged" in said
    assert Path(f"{left.record}.damaged").read_bytes() == damaged


def without_id(left: Left) -> bytes:
    """The record with its upload id damaged."""
    return DAMAGE["a bit in the upload id"](left.record.read_bytes(), left)


def test_of_several_uploads_the_one_with_the_recorded_parts_is_continued(
    server: LocalObs, key: str, source: Path
) -> None:
    """The upload id is lost, but not the ETags: they fit one of the open uploads."""
    left = interrupted(server, key, source)
    left.record.write_bytes(without_id(left))
    rival = initiate(server, key)
    put_part(server, key, rival, 1, b"others")
    server.clear_requests()
    result = upload(server, key, source)
    assert result.report.upload_id == left.upload_id
    assert set(acknowledged(server, key)) == REST
    assert is_equal(server, "bench", key, source)


@pytest.mark.parametrize("is_named", [False, True], ids=["may be listed again", "named"])
def test_a_lost_id_is_not_given_up_where_uploads_may_not_be_listed(
    server: LocalObs, key: str, source: Path, is_named: bool
) -> None:
    """Refused, with the record as it was; the permission, or the id, brings the parts back."""
    left = interrupted(server, key, source)
    damaged = without_id(left)
    left.record.write_bytes(damaged)
    server.set_faults(denied("ListUploads"))
    with pytest.raises(ResumeRefusedError, match="may not be listed"):
        upload(server, key, source)
    assert left.record.read_bytes() == damaged
    server.clear_requests()
    if not is_named:
        server.set_faults([])
    report = upload(server, key, source, engine={"adopt": left.upload_id if is_named else False}).report
    assert report.upload_id == left.upload_id
    assert set(acknowledged(server, key)) == REST
    assert is_equal(server, "bench", key, source)


# --- one writer, and the disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["caller", "coordinator"])
def test_a_lock_names_its_holder_and_ends_with_it(server: LocalObs, key: str, source: Path, victim: str) -> None:
    """A second process is told pid, host and time of the first; kill -9 of the first frees the record."""
    server.set_faults([{"operation": "UploadPart", "part_number": sorted(REST), "stall": True}])
    holder, record = Caller(client_arguments(server), call_of(key, source)), f"{source}.upload_record"
    try:
        wait_until(lambda: (state := peek(record)) is not None and len(state.parts) == STORED, "the parts")
        second = Caller(client_arguments(server), call_of(key, source)).result()
        assert second["error"] == "JournalLockedError"
        who = rf"process {holder.process.pid} on host {re.escape(os.uname().nodename)} at work on it since (.+ UTC);"
        since = re.search(who, second["message"])
        assert since, second["message"]
        began_s = time.mktime(time.strptime(since[1], "%Y-%m-%d %H:%M:%S UTC")) - time.timezone
        assert abs(time.time() - began_s) < 60
        coordinator = holder.coordinator()
        (coordinator if victim == "coordinator" else holder.process).kill()
        wait_until(lambda: not is_alive(coordinator), "the end of the lock's owner", deadline_s=2)
    finally:
        holder.end()
    server.set_faults([])
    server.clear_requests()
    assert finished(server, key, source).sent == REST


def prepare(arguments: dict[str, Any], start: Any) -> None:
    """Gives a pool's worker a client, and a barrier that all of them meet at."""
    global _client, _start
    _client, _start = ObsClient(**arguments), start


def call_together(call: dict[str, Any]) -> tuple[int, int]:
    """Parts resumed and sent by a call that begins at the same moment as another; (0, 0) where it was refused."""
    _start.wait(20)
    try:
        report = _client.uploadFile(**call).report
    except ServiceError as error:
        assert error.errorCode == "AccessDenied", error  # noqa: PT017 - one of several ends
        return 0, 0
    return report.parts_resumed, report.parts_sent


def test_two_uploads_of_one_file_do_not_destroy_each_others_record(server: LocalObs, key: str, source: Path) -> None:
    """Two processes, two keys, one file, default records, the same moment, twenty times: both are continued."""
    context = multiprocessing.get_context("fork")
    with context.Pool(2, prepare, (client_arguments(server), context.Barrier(2))) as pool:
        for round_number in range(20):
            calls = [call_of(f"{key}-{round_number}-{name}", source) for name in "ab"]
            for faults, expected in (denied("UploadPart", part_number=sorted(REST)), (0, 0)), ([], (STORED, len(REST))):
                server.set_faults(faults)
                found = pool.map_async(call_together, calls, chunksize=1).get(30)
                assert found == [expected, expected], round_number
                assert len(list(source.parent.glob("*.upload_record*"))) == (2 if faults else 0)
            assert all(is_equal(server, "bench", call["objectKey"], source) for call in calls)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written_is_an_error_at_once(server: LocalObs, key: str, source: Path) -> None:
    """The default record lies beside the file; the error says that another may be named."""
    source.parent.chmod(0o500)
    try:
        with pytest.raises(JournalError, match="name another checkpointFile or change the directory's mode"):
            upload(server, key, source)
    finally:
        source.parent.chmod(0o700)
    assert operations(server, key) == []


@pytest.mark.parametrize("place", ["source.bin/record", "missing/record", "/proc/record"])
def test_a_place_without_files_is_an_error_at_once(server: LocalObs, key: str, source: Path, place: str) -> None:
    """Below a file, in no directory, where the system allows none: nothing is asked of the service."""
    with pytest.raises(JournalError, match="name another checkpointFile"):
        upload(server, key, source, checkpointFile=source.parent / place)
    assert operations(server, key) == []


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Processes that are started here may write no file beyond it: a full disk, for them alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_from_the_start_is_an_error_before_anything_begins(
    server: LocalObs, key: str, source: Path
) -> None:
    """An upload whose id could not be kept is not begun."""
    with file_size_limit(0):
        caller = Caller(client_arguments(server), call_of(key, source))
    said = caller.result()
    assert said.get("error") == "JournalError", said
    assert "free the disk or name another checkpointFile" in said["message"]
    assert operations(server, key) == []
    assert finished(server, key, source).sent == ALL


def test_a_disk_that_fills_up_keeps_what_is_stored(server: LocalObs, key: str, source: Path) -> None:
    """The part whose record found no room was stored all the same: the next call adopts it."""
    size = interrupted(server, key, source).record.stat().st_size
    with file_size_limit(size + 40 + len(os.uname().nodename)):  # room for the name of who writes, not for a part
        caller = Caller(client_arguments(server), call_of(key, source))
    said = caller.result()
    assert said.get("error") == "JournalError", said
    assert "free the disk or name another checkpointFile, then call again" in said["message"]
    assert not server.requests("Abort")
    assert set(acknowledged(server, key)) == {STORED + 1}
    server.clear_requests()
    done = finished(server, key, source)
    assert done.sent == REST - {STORED + 1}
    assert done.report.parts_adopted == 1


# --- who may drop progress --------------------------------------------------------------------------------------

REFUSALS = [
    (302, "Redirect"), (400, "InvalidRequest"), (400, "ExpiredToken"), (401, "Unauthorized"), (403, "AccessDenied"),
    (403, "InvalidAccessKeyId"), (404, "NoSuchKey"), (409, "InsufficientStorageSpace"), (411, "MissingContentLength"),
    (413, "EntityTooLarge"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "code"), REFUSALS)
def test_a_refused_part_drops_no_progress(
    server: LocalObs, key: str, source: Path, status: int, code: str
) -> None:
    """With a checkpoint the record stays and nothing is aborted; without one, exactly one Abort, and nothing stays."""
    rules = denied("UploadPart", status=status, code=code, part_number=sorted(REST))
    server.set_faults(rules)
    for is_checkpoint in (True, False):
        server.clear_requests()
        with pytest.raises(ServiceError, match=code) as caught:
            upload(server, key, source, taskNum=1, enableCheckpoint=is_checkpoint, client=NO_RETRY)
        assert (caught.value.status, caught.value.part_number) == (status, STORED + 1)
        aborts = [entry["upload_id"] for entry in server.requests("Abort")]
        initiated = len(server.requests("Initiate"))
        assert (len(aborts), initiated) == (0 if is_checkpoint else 1, 1)
    assert open_uploads(server, "bench", key) == 1
    server.set_faults([])
    server.clear_requests()
    assert finished(server, key, source).sent == REST


@pytest.mark.parametrize("is_checkpoint", [True, False])
def test_ctrl_c_aborts_only_what_nobody_can_continue(
    server: LocalObs, key: str, source: Path, is_checkpoint: bool
) -> None:
    """With a checkpoint no Abort, without one exactly one; either way all processes end within a second or so."""
    server.set_faults([{"operation": "UploadPart", "part_number": sorted(REST), "stall": True}])
    caller = Caller(client_arguments(server), call_of(key, source, taskNum=4, enableCheckpoint=is_checkpoint))
    wait_until(lambda: len(acknowledged(server, key)) == STORED, "the parts")
    processes = [caller.process, *caller.process.children(recursive=True)]
    caller.process.send_signal(signal.SIGINT)
    wait_until(lambda: not any(map(is_alive, processes)), "the end of all", deadline_s=2)
    caller.end()
    assert len(server.requests("Abort")) == (not is_checkpoint)
    assert open_uploads(server, "bench", key) == is_checkpoint
    assert Path(f"{source}.upload_record").exists() == is_checkpoint
