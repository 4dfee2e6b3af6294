"""A modelled world: a service, the session through which an upload speaks with it, and a host that may die.

No process, no socket and no wait: `Upload`, its journal and its file are real, all others are played.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from obs_engine.checkpoint.fold import UploadState
from obs_engine.checkpoint.journal import Journal, peek
from obs_engine.errors import ObsEngineError, SourceChangedError, TransportError
from obs_engine.options import EngineOptions
from obs_engine.source import plan
from obs_engine.transfer import checkpoint_file, content_tree, pieces
from obs_engine.transfer import service as service_module
from obs_engine.transfer.flow import Flow
from obs_engine.transfer.messages import (
    CredentialsWanted,
    Dialect,
    ErrorInfo,
    HashDone,
    HashTask,
    Md5Task,
    NewCredentials,
    OpenUpload,
    Outcome,
    PartStoredReply,
    PartTask,
    RequestTask,
    Task,
    TaskFailed,
    TaskReplied,
    TransportOptions,
    Uploaded,
    UploadRequest,
)
from obs_engine.transfer.negotiation import Negotiator
from obs_engine.transfer.pool import WorkerDied
from obs_engine.transfer.upload import Upload
from obs_engine.wire.endpoint import Endpoint
from obs_engine.wire.replies import Reply
from obs_engine.wire.requests import Target
from obs_engine.wire.signing import Credentials, Headers
from power import Killed, MortalDisk

BUCKET, KEY = "b", "k"
PART = 64
CHUNK = 24  # so that chunks and parts do not end together
FAULTS = ("busy", "refused", "lost request", "lost reply", "dead worker", "killed before", "killed after")
RESET = "request: expected a reply, found the connection reset; call again"
SSE = "x-amz-server-side-encryption-customer-key-md5"


# --- the service ------------------------------------------------------------------------------------------------


@dataclass
class Multipart:
    """An upload that is open: of which key, with which headers begun, and its parts."""

    key: str
    headers: Headers = ()
    parts: dict[int, bytes] = field(default_factory=dict)

    def etag(self, number: int) -> str:
        """With a customer's key it looks like an MD5 and is none."""
        return hashlib.md5(secret_of(self.headers).encode() + self.parts[number]).hexdigest()


class Object(NamedTuple):
    """An object under the key."""

    upload_id: str
    content: bytes
    etag: str
    headers: Headers


class Asked(NamedTuple):
    """A request that was sent; `is_open`: the uploads that were open then."""

    operation: str
    upload_id: str | None
    part_number: int | None
    is_open: frozenset[str]


class Service:
    """A bucket, as far as the uploads of one key can tell.

    Attributes:
        page: the most that a page of a listing holds.
        names_maker: HEAD of an object tells which upload made it.
        forbidden: operations that are answered by 403.
        unoffered: operations that are answered by 501.
    """

    def __init__(self, *, page: int = 1000, names_maker: bool = True) -> None:
        self.page = page
        self.names_maker = names_maker
        self.forbidden: set[str] = set()
        self.unoffered: set[str] = set()
        self.uploads: dict[str, Multipart] = {}
        self.object: Object | None = None
        self.asked: list[Asked] = []
        self._count = 0

    def begin(self, key: str = KEY, headers: Headers = (), parts: Mapping[int, bytes] | None = None) -> str:
        """A new upload, ours or another's."""
        self._count += 1
        upload_id = f"U{self._count:03}"
        self.uploads[upload_id] = Multipart(key, headers, dict(parts or {}))
        return upload_id

    def assemble(self, upload_id: str, numbers: Sequence[int]) -> str:
        """Makes the object of these parts, and ends the upload; the object's ETag."""
        upload = self.uploads.pop(upload_id)
        digest = hashlib.md5(b"".join(bytes.fromhex(upload.etag(number)) for number in numbers)).hexdigest()
        content = b"".join(upload.parts[number] for number in numbers)
        self.object = Object(upload_id, content, f"{digest}-{len(numbers)}", upload.headers)
        return self.object.etag

    def was_asked(self, *operations: str) -> list[Asked]:
        """The requests of these operations."""
        return [asked for asked in self.asked if asked.operation in operations]

    def note(self, task: PartTask | RequestTask) -> None:
        """A request is on its way."""
        number = task.part_number if isinstance(task, PartTask) else None
        operation, query = _parsed(task)
        self.asked.append(Asked(operation, query.get("uploadId"), number, frozenset(self.uploads)))

    def answer(self, task: PartTask | RequestTask, data: bytes, headers: Headers) -> Outcome:
        """A request arrived.

        Args:
            data, headers: of a part.
        """
        operation, query = _parsed(task)
        if operation in self.forbidden:
            return fault(task, 403, "AccessDenied")
        if operation in self.unoffered:
            return fault(task, 501, "NotImplemented")
        if "uploadId" in query and query["uploadId"] not in self.uploads:
            return fault(task, 404, "NoSuchUpload")
        if isinstance(task, PartTask):
            return self._part(task, data, headers)
        act: Callable[[RequestTask, dict[str, str]], Outcome] = getattr(self, f"_{operation.lower()}")
        return act(task, query)

    def _initiate(self, task: RequestTask, query: dict[str, str]) -> Outcome:
        return reply(task, f"<R><UploadId>{self.begin(KEY, task.request.headers)}</UploadId></R>")

    def _part(self, task: PartTask, data: bytes, headers: Headers) -> Outcome:
        upload = self.uploads[task.upload_id]
        if secret_of(headers) != secret_of(upload.headers):
            return fault(task, 400, "InvalidArgument")
        if task.content_md5 not in ("", base64.b64encode(hashlib.md5(data).digest()).decode()):
            return fault(task, 400, "BadDigest")
        assert task.content_md5 or not secret_of(headers), "neither the service nor the engine can tell what arrived"
        upload.parts[task.part_number] = data
        found = pieces_of(task.offset, data) if task.is_hashed else ()
        return PartStoredReply(task.task, f'"{upload.etag(task.part_number)}"', pieces=found)

    def _complete(self, task: RequestTask, query: dict[str, str]) -> Outcome:
        upload = self.uploads[query["uploadId"]]
        listed = re.findall(r'<PartNumber>(\d+)</PartNumber><ETag>"?(\w+)"?</ETag>', task.request.body.decode())
        if not listed or any(int(n) not in upload.parts or upload.etag(int(n)) != etag for n, etag in listed):
            return fault(task, 400, "InvalidPart")
        etag = self.assemble(query["uploadId"], [int(number) for number, _ in listed])
        body = f'<CompleteMultipartUploadResult><ETag>"{etag}"</ETag></CompleteMultipartUploadResult>'
        return reply(task, body, *((SSE, secret) for secret in [secret_of(upload.headers)] if secret))

    def _abort(self, task: RequestTask, query: dict[str, str]) -> Outcome:
        del self.uploads[query["uploadId"]]
        return TaskReplied(task.task, Reply(204))

    def _listparts(self, task: RequestTask, query: dict[str, str]) -> Outcome:
        upload = self.uploads[query["uploadId"]]
        left = sorted(number for number in upload.parts if number > int(query["part-number-marker"]))
        page = left[: min(self.page, int(query["max-parts"]))]
        items = "".join(
            f'<Part><PartNumber>{n}</PartNumber><ETag>"{upload.etag(n)}"</ETag><Size>{len(upload.parts[n])}</Size></Part>'
            for n in page
        )
        more = f"<NextPartNumberMarker>{page[-1]}</NextPartNumberMarker>" if page else ""
        return self._page(task, "ListPartsResult", items + more, is_truncated=len(page) < len(left))

    def _listuploads(self, task: RequestTask, query: dict[str, str]) -> Outcome:
        marker = query.get("key-marker", ""), query.get("upload-id-marker", "")
        found = sorted((upload.key, i) for i, upload in self.uploads.items() if upload.key.startswith(query["prefix"]))
        left = [names for names in found if names > marker]
        page = left[: min(self.page, int(query["max-uploads"]))]
        items = "".join(f"<Upload><Key>{key}</Key><UploadId>{i}</UploadId></Upload>" for key, i in page)
        if page:
            items += "<NextKeyMarker>{}</NextKeyMarker><NextUploadIdMarker>{}</NextUploadIdMarker>".format(*page[-1])
        return self._page(task, "ListMultipartUploadsResult", items, is_truncated=len(page) < len(left))

    def _page(self, task: RequestTask, name: str, items: str, *, is_truncated: bool) -> Outcome:
        return reply(task, f"<{name}>{items}<IsTruncated>{str(is_truncated).lower()}</IsTruncated></{name}>")

    def _headobject(self, task: RequestTask, query: dict[str, str]) -> Outcome:
        found = self.object
        if found is None:
            return fault(task, 404, "NoSuchKey")
        if secret_of(found.headers) != secret_of(task.request.headers):
            return fault(task, 400, "InvalidArgument")
        headers = [("content-length", str(len(found.content))), ("etag", f'"{found.etag}"'), *found.headers]
        if self.names_maker:
            headers.append(("x-obs-uploadid", found.upload_id))
        return reply(task, "", *headers)


def _parsed(task: PartTask | RequestTask) -> tuple[str, dict[str, str]]:
    if isinstance(task, PartTask):
        return "UploadPart", {"uploadId": task.upload_id}
    return task.request.operation, {name: value or "" for name, value in task.request.query}


def secret_of(headers: Headers) -> str:
    """What stands for the customer's key; empty without one."""
    return dict(headers).get(SSE, "")


def reply(task: Task, body: str, *headers: tuple[str, str]) -> TaskReplied:
    """A good answer."""
    return TaskReplied(task.task, Reply(200, "OK", headers, body.encode()))


def fault(task: Task, status: int, code: str) -> TaskReplied:
    """A bad one; that of a HEAD has no body."""
    is_head = isinstance(task, RequestTask) and task.request.method == "HEAD"
    body = "" if is_head else f"<Error><Code>{code}</Code><Message>m</Message></Error>"
    return TaskReplied(task.task, Reply(status, "", (), body.encode()))


def pieces_of(offset: int, data: bytes) -> tuple[str, ...]:
    """What a worker says of the content of a range."""
    found = pieces.Pieces(offset)
    found.take(memoryview(data))
    return found.digests()


# --- the workers ------------------------------------------------------------------------------------------------


class Session:
    """Plays `pool.Session` with a script: for each task a fault of `FAULTS`, the name of an event, or "none"."""

    upload = 1
    slots = 2
    in_flight_bytes = 0

    def __init__(
        self, service: Service, script: Iterable[str], limit: int, die: Callable[[], None],
        events: Mapping[str, Callable[[], object]],
    ) -> None:  # fmt: skip
        """
        Args:
            die: ends the host.
            events: what happens in the world while a task runs, by name.
        """
        self.limit = limit
        self.flow = Flow()  # which hears, and is not heeded: no script waits
        self.attempts: set[object] = set()
        self.part_seconds: list[float] = []
        self._service = service
        self._script = iter(script)
        self._die = die
        self._events = events
        self._is_dead = False
        self._tasks = 0
        self._known: OpenUpload | None = None
        self._fd = -1

    def open(self, message: OpenUpload) -> None:
        assert message.upload == self.upload
        self._known = message

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def compute(self, make_task: Callable[[int], Task]) -> Outcome:
        return await self.run(make_task)

    async def run(self, make_task: Callable[[int], Task], *, part_bytes: int = 0) -> Outcome:
        if self._is_dead:
            raise Killed
        self._tasks += 1
        task = make_task(self._tasks)
        fault_now = next(self._script, "none")
        self._events.get(fault_now, lambda: None)()
        await asyncio.sleep(0)
        if fault_now == "killed before":
            self._kill()
        if isinstance(task, (PartTask, RequestTask)):
            self._service.note(task)
            if fault_now == "busy":
                return fault(task, 503, "SlowDown")
            if fault_now == "refused":
                return fault(task, 403, "AccessDenied")
            if fault_now == "lost request":
                return TaskFailed(task.task, ErrorInfo.of(TransportError(RESET)))
        outcome = self._outcome(task)
        if fault_now == "killed after":
            self._kill()
        if fault_now == "dead worker":
            raise WorkerDied("worker ended")
        if fault_now == "lost reply" and isinstance(task, (PartTask, RequestTask)):
            return TaskFailed(task.task, ErrorInfo.of(TransportError(RESET)))
        return outcome

    def _kill(self) -> None:
        self._is_dead = True
        self._die()
        raise Killed

    def _outcome(self, task: Task) -> Outcome:
        assert self._known is not None
        try:
            match task:
                case PartTask():
                    return self._service.answer(task, self._read(task.offset, task.length), self._known.part_headers)
                case RequestTask():
                    return self._service.answer(task, b"", ())
                case HashTask():
                    return HashDone(task.task, pieces_of(task.offset, self._read(task.offset, task.length)))
                case Md5Task():
                    return HashDone(task.task, tuple(hashlib.md5(self._read(*at)).hexdigest() for at in task.ranges))
        except ObsEngineError as error:
            return TaskFailed(task.task, ErrorInfo.of(error))

    def _read(self, offset: int, length: int) -> bytes:
        """As a worker reads: of the file that it opened first, which must be the one that the upload means."""
        assert self._known is not None
        if self._fd < 0:
            self._fd = os.open(self._known.path, os.O_RDONLY)
            if os.fstat(self._fd).st_ino != self._known.identity.inode:
                self.close()
                raise SourceChangedError("expected the file that was identified, found another; call again")
        data = os.pread(self._fd, length, offset)
        if len(data) < length:
            raise SourceChangedError("expected all of the file, found it cut; call again")
        return data


# --- the host ---------------------------------------------------------------------------------------------------

_ENGINE = {f.name for f in fields(EngineOptions)}


class World:
    """A host with a file to upload and a record in a folder of its own; and the service."""

    def __init__(self, folder: Path, content: bytes = b"") -> None:
        self.source = folder / "source"
        self.source.write_bytes(content)
        self.records = folder / "records"
        self.records.mkdir()
        self.record = self.records / "r"
        self.service = Service()
        self.events: dict[str, Callable[[], object]] = {}

    def state(self) -> UploadState:
        """What the record says."""
        return peek(str(self.record)) or UploadState()

    def aside(self) -> list[bytes]:
        """What was kept beside the record."""
        return [path.read_bytes() for path in sorted(self.records.glob("r.*"))]

    def call(self, script: Iterable[str] = (), disk: MortalDisk | None = None, **options: Any) -> Uploaded:
        """One call of `uploadFile`, to its end or the host's; what the service was asked is in its `asked`.

        Args:
            script: see `Session`.
            options: of the request and of the engine.

        Raises:
            Killed: the host died.
            ObsEngineError: the call failed.
        """
        disk = disk or MortalDisk()
        request = self._request(**options)
        session = Session(self.service, script, request.task_num, disk.die, self.events)
        self.service.asked.clear()
        with (
            patch.object(plan, "PART_SIZE_MIN_BYTES", 1),
            patch.object(pieces, "CONTENT_CHUNK_BYTES", CHUNK),
            patch.object(content_tree, "CONTENT_CHUNK_BYTES", CHUNK),
            patch.object(content_tree, "CONTENT_BLOCK_BYTES", 2 * CHUNK),
            patch.object(content_tree, "_CHUNKS_A_BLOCK", 2),
            patch.object(service_module, "BACKOFF_FIRST_S", 0.0),
            patch.object(checkpoint_file, "Journal", partial(Journal, disk=disk)),
        ):
            uploads: list[Upload] = []

            def tell(message: object) -> None:
                if isinstance(message, CredentialsWanted):
                    uploads[0].access.renew(NewCredentials(request.credentials))

            uploads.append(Upload(request, session, Negotiator(), tell))  # type: ignore[arg-type]
            try:
                return asyncio.run(uploads[0].run())
            finally:
                left = disk.end()
                assert disk.is_dead or not left, "descriptors were left open"

    def _request(self, **options: Any) -> UploadRequest:
        engine = EngineOptions(**{name: options.pop(name) for name in list(options) if name in _ENGINE})
        known: dict[str, Any] = {
            "caller_pid": os.getpid(), "path": str(self.source), "bucket": BUCKET, "key": KEY,
            "target": Target(Endpoint("http", "x", 80), "path", "v2"), "credentials": Credentials(),
            "part_size_bytes": PART, "task_num": 2, "checkpoint_file": str(self.record), "is_default_record": False,
            "is_checksum": False, "is_crc64": False, "encoding_type": None, "max_retry_count": 2,
            "max_redirect_count": 0, "transport": TransportOptions(1, 1, True, None, 65536), "log_level": 50,
            "shows_progress": False,
        }  # fmt: skip
        known["dialects"] = (Dialect("v2", options.pop("initiate_headers", ()), options.pop("part_headers", ()), ()),)
        return UploadRequest(**{**known, **options, "engine": engine})
