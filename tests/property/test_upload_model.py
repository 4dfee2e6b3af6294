"""One upload against a modelled service: whatever fails, and wherever it is killed, the object ends as the file.

No process and no socket: `Upload` with a session that plays the service. The journal is a real file.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from obs_engine.checkpoint.journal import peek
from obs_engine.errors import ObsEngineError, TransportError
from obs_engine.options import EngineOptions
from obs_engine.transfer import upload as upload_module
from obs_engine.transfer.messages import (
    ErrorInfo,
    OpenUpload,
    Outcome,
    PartStoredReply,
    PartTask,
    RequestTask,
    Task,
    TaskFailed,
    TaskReplied,
    TransportOptions,
    UploadRequest,
)
from obs_engine.transfer.pool import WorkerDied
from obs_engine.transfer.upload import Upload
from obs_engine.wire.endpoint import Endpoint
from obs_engine.wire.replies import Reply
from obs_engine.wire.requests import Target
from obs_engine.wire.signing import Credentials

PART = 102_400
FAULTS = [
    *["none"] * 12, "busy", "refused", "lost request", "lost reply", "dead worker", "killed before", "killed after",
]  # fmt: skip


class Killed(BaseException):
    """kill -9, as far as one process can play it: nothing after it runs."""


class Service:
    """A bucket with one key."""

    def __init__(self) -> None:
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.object: tuple[str, bytes, str] | None = None  # upload id, content, ETag
        self.part_requests: list[int] = []
        self._count = 0

    def answer(self, task: Task, content: bytes) -> Outcome:
        if isinstance(task, PartTask):
            self.part_requests.append(task.part_number)
            parts = self.uploads.get(task.upload_id)
            if parts is None:
                return error(task, 404, "NoSuchUpload")
            parts[task.part_number] = content[task.offset : task.offset + task.length]
            return PartStoredReply(task.task, f'"{hashlib.md5(parts[task.part_number]).hexdigest()}"')
        assert isinstance(task, RequestTask)
        query = dict(task.request.query)
        match task.request.operation:
            case "Initiate":
                self._count += 1
                self.uploads[f"U{self._count}"] = {}
                return reply(task, 200, f"<R><UploadId>U{self._count}</UploadId></R>")
            case "Complete":
                parts = self.uploads.pop(query["uploadId"] or "", None)
                if parts is None:
                    return error(task, 404, "NoSuchUpload")
                digests = b"".join(hashlib.md5(parts[n]).digest() for n in sorted(parts))
                etag = f'"{hashlib.md5(digests).hexdigest()}-{len(parts)}"'
                self.object = (query["uploadId"] or "", b"".join(parts[n] for n in sorted(parts)), etag)
                return reply(
                    task, 200, f"<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>"
                )
            case "HeadObject":
                if self.object is None:
                    return reply(task, 404, "")
                upload_id, content, etag = self.object
                headers = (("content-length", str(len(content))), ("x-obs-uploadid", upload_id), ("etag", etag))
                return TaskReplied(task.task, Reply(200, "OK", headers))
            case "Abort":
                found = self.uploads.pop(query["uploadId"] or "", None)
                return reply(task, 404 if found is None else 204, "")
        raise AssertionError(task.request.operation)


def reply(task: Task, status: int, body: str) -> TaskReplied:
    return TaskReplied(task.task, Reply(status, "", (), body.encode()))


def error(task: Task, status: int, code: str) -> TaskReplied:
    return reply(task, status, f"<Error><Code>{code}</Code><Message>m</Message></Error>")


class Session:
    """Plays `pool.Session` with a script of faults, one for each task."""

    upload = 1
    slots = 2

    def __init__(self, service: Service, content: bytes, faults: list[str], limit: int) -> None:
        self.limit = limit
        self._service, self._content, self._faults = service, content, faults
        self._tasks = 0
        self.is_killed = False

    def open(self, message: OpenUpload) -> None:
        assert message.upload == self.upload

    def close(self) -> None: ...

    async def run(self, make_task: Callable[[int], Task]) -> Outcome:
        if self.is_killed:
            raise Killed
        self._tasks += 1
        task = make_task(self._tasks)
        fault = self._faults.pop(0) if self._faults else "none"
        await asyncio.sleep(0)
        if fault == "killed before":
            self.is_killed = True
            raise Killed
        if fault == "busy":
            return error(task, 503, "SlowDown")
        if fault == "refused":
            return error(task, 403, "AccessDenied")
        if fault == "lost request":
            return TaskFailed(task.task, ErrorInfo.of(TransportError("reset")))
        outcome = self._service.answer(task, self._content)
        if fault == "killed after":
            self.is_killed = True
            raise Killed
        if fault == "dead worker":
            raise WorkerDied("worker ended")
        if fault == "lost reply":
            return TaskFailed(task.task, ErrorInfo.of(TransportError("reset")))
        return outcome


def request_for(source: Path, record: Path, task_num: int) -> UploadRequest:
    return UploadRequest(
        path=str(source), bucket="b", key="k", target=Target(Endpoint("http", "x", 80), "path", "v2"),
        credentials=Credentials(), part_size_bytes=PART, task_num=task_num, checkpoint_file=str(record),
        is_default_record=False, is_checksum=False, initiate_headers=(), part_headers=(), common_headers=(),
        encoding_type=None, max_retry_count=2, transport=TransportOptions(1, 1, True, None, 65536),
        engine=EngineOptions(durability="crash"),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_module, "BACKOFF_FIRST_S", 0.0)


QUIET = [HealthCheck.function_scoped_fixture]
WORLDS = {
    "parts": st.integers(1, 6),
    "task_num": st.integers(1, 4),
    "runs": st.lists(st.lists(st.sampled_from(FAULTS), max_size=14), max_size=5),
}


@settings(max_examples=150, deadline=None, suppress_health_check=QUIET)
@given(**WORLDS)
def test_the_object_ends_as_the_file(parts: int, task_num: int, runs: list[list[str]]) -> None:
    """After any faults and kills, a last quiet call succeeds; what the journal had is never sent again."""
    play(parts, task_num, runs)


@pytest.mark.soak
@pytest.mark.timeout(900)
@settings(max_examples=10_000, deadline=None, suppress_health_check=QUIET)
@given(**WORLDS)
def test_the_object_ends_as_the_file_in_ten_thousand_worlds(parts: int, task_num: int, runs: list[list[str]]) -> None:
    """The same, in many more worlds."""
    play(parts, task_num, runs)


def play(parts: int, task_num: int, runs: list[list[str]]) -> None:
    """One run for each list of faults, then a quiet one."""
    content = hashlib.shake_128(bytes([parts])).digest((parts - 1) * PART + 77)
    with tempfile.TemporaryDirectory() as folder:
        source, record = Path(folder, "f"), Path(folder, "r")
        source.write_bytes(content)
        service = Service()
        for faults in [*runs, []]:
            state = peek(str(record))
            recorded = set(state.parts) if state is not None else set()
            known = state.upload_id if state is not None else None
            service.part_requests.clear()
            session = Session(service, content, list(faults), task_num)
            upload = Upload(request_for(source, record, task_num), session, lambda _: None)  # type: ignore[arg-type]
            try:
                done = asyncio.run(upload.run())
            except Killed:
                continue
            except ObsEngineError:
                assert faults, "a quiet run must succeed"
                continue
            finally:
                if known in service.uploads or (service.object and service.object[0] == known):
                    assert not recorded & set(service.part_requests)
            if done.reply.status < 300:
                assert service.object is not None
                assert service.object[1] == content
                assert not record.exists()
        assert service.object is not None
        assert service.object[1] == content
        assert not record.exists()
