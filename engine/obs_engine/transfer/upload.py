"""One upload, from the file's identity to the assembled object. Runs in the coordinator.

    identify → plan → open journal → adopt or initiate → send parts → complete → remove journal

Invariant: *written before believed*. The state changes only when its record is in the journal; the upload id and the
completion are synced before anything follows.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from obs_engine.checkpoint.fold import UploadState
from obs_engine.checkpoint.journal import Journal, JournalLike, NoJournal, peek
from obs_engine.checkpoint.records import Binding, Completed, Initiated, PartStored
from obs_engine.errors import (
    EngineDiedError,
    IntegrityError,
    JournalError,
    ObsEngineError,
    ServiceError,
    SourceChangedError,
    is_retryable_reply,
)
from obs_engine.limits import MIB
from obs_engine.source.identity import FileIdentity, identify
from obs_engine.source.plan import PartPlan, plan_parts
from obs_engine.transfer.messages import (
    HashDone,
    HashTask,
    OpenUpload,
    Outcome,
    PartStoredReply,
    PartTask,
    Progress,
    RequestTask,
    Task,
    TaskFailed,
    TaskReplied,
    Uploaded,
    UploadReport,
    UploadRequest,
)
from obs_engine.transfer.pool import Session, WorkerDied
from obs_engine.wire import requests
from obs_engine.wire.replies import Reply, error_of, read_completed, read_fault, read_upload_id
from obs_engine.wire.requests import Request, with_headers

_log = logging.getLogger("obs_engine")

PROGRESS_INTERVAL_S = 0.05
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.2, 10.0
WORKER_DEATHS_MAX = 5
ABORT_TIMEOUT_S = 1.0
HASH_BLOCK_BYTES = 64 * MIB

_MULTIPART_ETAG = re.compile(r"[0-9a-f]{32}-[0-9]+")
_MD5_ETAG = re.compile(r"[0-9a-f]{32}")


class UploadGone(Exception):
    """The service does not know the upload id any more."""


class Upload:
    """One call of `uploadFile` in the coordinator."""

    def __init__(self, request: UploadRequest, session: Session, tell: Callable[[object], None]) -> None:
        """
        Args:
            session: this upload's share of the workers.
            tell: sends a message to the caller.
        """
        self._request = request
        self._session = session
        self._tell = tell
        self._journal: JournalLike = NoJournal()
        self._identity = FileIdentity(0, 0, 0, 0, 0)
        self._plan = PartPlan(0, 1)
        self._started_s = time.monotonic()
        self._progress_timer: asyncio.TimerHandle | None = None
        self._parts_resumed = 0
        self._parts_sent = 0
        self._part_attempts = 0
        self._sync_timer: asyncio.TimerHandle | None = None
        self._sync_failure: asyncio.Future[None] | None = None

    @property
    def _state(self) -> UploadState:
        return self._journal.state

    async def run(self) -> Uploaded:
        """Uploads the file.

        Raises:
            ObsEngineError: the upload failed; with a checkpoint its progress is in the journal.
        """
        request = self._request
        self._identity = identify(request.path)
        self._plan = plan_parts(self._identity.size_bytes, request.part_size_bytes)
        self._session.open(self._open_message())
        self._journal = self._open_journal()
        self._sync_failure = asyncio.get_running_loop().create_future()
        try:
            return await self._run()
        except (ObsEngineError, asyncio.CancelledError) as error:
            if isinstance(error, ObsEngineError) and self._state.upload_id is not None:
                error.checkpoint_file = self._journal.path
            self._session.close()
            await self._abort_unless_kept()
            raise
        finally:
            self._session.close()
            for timer in (self._sync_timer, self._progress_timer):
                if timer is not None:
                    timer.cancel()
            self._sync_failure.cancel()
            self._leave_journal()

    def _leave_journal(self) -> None:
        """Syncs and closes it; one that knows of no upload holds no progress, and is not left lying about."""
        if self._state.upload_id is None:
            self._journal.remove()
            return
        try:
            self._journal.sync()
        except JournalError as error:
            _log.warning("%s", error)  # an error that is on its way already says more
        self._journal.close()

    async def _run(self) -> Uploaded:
        if self._request.engine.check_bucket:
            await self._check_bucket()
        if is_resumed := await self._adopt():
            try:
                return await self._finish()
            except UploadGone:
                # Only the service's word drops progress, and it has just given it.
                _log.warning("upload %s of %s is gone; starting again", self._state.upload_id, self._what)
        if is_resumed or self._state.binding is None:
            self._start_over(await self._new_binding())
        await self._initiate()
        try:
            return await self._finish()
        except UploadGone as gone:
            raise ServiceError(
                f"{self._what}: expected upload {self._state.upload_id} on the service, found it gone (NoSuchUpload); "
                "it was aborted by somebody else: call again to begin anew",
                status=404,
                errorCode="NoSuchUpload",
                is_retryable=True,
            ) from gone

    # --- before the first part ----------------------------------------------------------------------------------

    def _open_journal(self) -> JournalLike:
        request = self._request
        if request.checkpoint_file is None:
            return NoJournal()
        path = request.checkpoint_file
        target = (str(request.target.endpoint), request.bucket, request.key)
        if request.is_default_record:
            path = _default_record(path, target)
        journal = Journal(path, is_power_safe=request.engine.durability == "power")
        held_by = journal.state.binding
        if held_by is not None and held_by.target != target:
            journal.close()
            raise JournalError(
                f"checkpoint file {path!r}: expected the upload of {request.bucket}/{request.key} at {target[0]}, "
                f"found that of {held_by.bucket}/{held_by.key} at {held_by.endpoint}; name another checkpointFile, or "
                "delete this one to give that upload up",
                checkpoint_file=path,
            )
        return journal

    async def _adopt(self) -> bool:
        """True where the journal holds an upload that can go on; otherwise it is left ready for a new one."""
        held = self._state.binding
        if held is None:
            return False
        binding = await self._new_binding()
        changed = _difference(held, binding)
        if self._state.upload_id is not None and changed is None:
            self._plan = PartPlan(held.size_bytes, held.part_size_bytes)  # the recorded cut wins over a new partSize
            self._parts_resumed = len(self._state.parts)
            self._show_progress(is_forced=True)
            return True
        if changed is not None:
            _log.warning("%s: %s since the upload began; starting again", self._what, changed)
            if self._state.upload_id is not None and not self._state.is_completed:
                await self._abort(self._state.upload_id)
        self._start_over(binding)
        return False

    def _start_over(self, binding: Binding) -> None:
        if self._state.binding is not None:
            self._journal.restart()
        self._plan = PartPlan(binding.size_bytes, binding.part_size_bytes)
        self._parts_resumed = 0
        self._journal.append(binding)

    async def _new_binding(self) -> Binding:
        request, identity = self._request, self._identity
        plan = plan_parts(identity.size_bytes, request.part_size_bytes)
        options = hashlib.blake2b(digest_size=16)
        for name, value in sorted((n.lower(), v) for n, v in (*request.initiate_headers, *request.part_headers)):
            options.update(f"{name}:{value}\n".encode())
        return Binding(
            request.bucket, request.key, str(request.target.endpoint), request.path, identity.size_bytes,
            identity.mtime_ns, identity.ctime_ns, identity.inode, identity.device, plan.part_size_bytes,
            options.digest(), await self._content_digest() if request.is_checksum else b"",
        )  # fmt: skip

    async def _content_digest(self) -> bytes:
        """xxh3-128 over the xxh3-128 of each 64 MiB block: blocks are hashed side by side by the workers."""
        from xxhash import xxh3_128

        size = self._identity.size_bytes
        blocks = list(range(0, size, HASH_BLOCK_BYTES))
        digests = [b""] * len(blocks)
        waiting = iter(enumerate(blocks))

        async def hash_blocks() -> None:
            for index, offset in waiting:
                length = min(HASH_BLOCK_BYTES, size - offset)
                outcome = await self._settled(
                    lambda task, o=offset, n=length: HashTask(task, self._session.upload, o, n)  # type: ignore[misc]
                )
                assert isinstance(outcome, HashDone)
                digests[index] = bytes.fromhex(outcome.digest)

        await _all(hash_blocks() for _ in range(self._session.slots))
        return xxh3_128(b"".join(digests)).digest()

    async def _check_bucket(self) -> None:
        reply = await self._ask(requests.head_bucket(self._request.bucket))
        if reply.status > 300:
            raise error_of(
                reply,
                f"head bucket {self._request.bucket} failed. Please check. Status:{reply.status}. HEAD bucket",
                "check the bucket's name, its region's endpoint and the permission HeadBucket",
            )

    async def _initiate(self) -> None:
        request = self._request
        reply = await self._ask(
            requests.initiate(request.bucket, request.key, request.initiate_headers, request.encoding_type)
        )
        upload_id = read_upload_id(reply) if reply.status < 300 else None
        if upload_id is None:
            fault = read_fault(reply)
            raise error_of(
                reply,
                f"initiateMultipartUpload failed. ErrorCode:{fault.code}. ErrorMessage:{fault.message}. {self._what}",
                "check the bucket, the endpoint, the credentials and the permission PutObject",
            )
        self._journal.append(Initiated(upload_id))
        self._journal.sync()  # Durable from here: no part is sent for an upload that a crash could forget.
        self._show_progress(is_forced=True)

    # --- the parts ----------------------------------------------------------------------------------------------

    async def _finish(self) -> Uploaded:
        """Sends what is missing, and completes.

        Raises:
            UploadGone: the service has forgotten the upload, and there is no object of it.
        """
        missing = iter(self._state.missing_parts())

        async def send_parts() -> None:
            for part_number in missing:
                await self._send_part(part_number)

        count = min(self._session.limit, self._plan.part_count - len(self._state.parts))
        assert self._sync_failure is not None
        await _all((send_parts() for _ in range(count)), self._sync_failure)
        return await self._complete()

    async def _send_part(self, part_number: int) -> None:
        offset, length = self._plan.part(part_number)
        upload_id = self._state.upload_id
        assert upload_id is not None

        def task(number: int) -> PartTask:
            self._part_attempts += 1
            return PartTask(number, self._session.upload, upload_id, part_number, offset, length, time.time())

        try:
            outcome = await self._settled(task)
        except ObsEngineError as error:
            error.part_number = part_number
            raise
        if isinstance(outcome, TaskReplied):
            if read_fault(outcome.reply).code == "NoSuchUpload":
                raise UploadGone
            refused = error_of(outcome.reply, f"part {part_number} of {self._what}", "see errorCode, then call again")
            refused.part_number = part_number
            raise refused
        assert isinstance(outcome, PartStoredReply)
        self._journal.append(PartStored(part_number, outcome.etag))
        self._parts_sent += 1
        if self._sync_timer is None:
            interval_s = self._request.engine.sync_interval_s
            self._sync_timer = asyncio.get_running_loop().call_later(interval_s, self._sync_group)
        self._show_progress()

    def _sync_group(self) -> None:
        self._sync_timer = None
        try:
            self._journal.sync()
        except JournalError as error:
            assert self._sync_failure is not None
            if not self._sync_failure.done():
                self._sync_failure.set_exception(error)

    def _show_progress(self, *, is_forced: bool = False) -> None:
        """Tells the caller what is stored: at once if forced, else at most every `PROGRESS_INTERVAL_S`."""
        if not is_forced:
            if self._progress_timer is None:
                loop = asyncio.get_running_loop()
                self._progress_timer = loop.call_later(PROGRESS_INTERVAL_S, self._show_progress_later)
            return
        stored = self._state
        self._tell(Progress(stored.stored_bytes(), self._plan.size_bytes, len(stored.parts), self._plan.part_count))

    def _show_progress_later(self) -> None:
        self._progress_timer = None
        self._show_progress(is_forced=True)

    # --- the object ---------------------------------------------------------------------------------------------

    async def _complete(self) -> Uploaded:
        request, state = self._request, self._state
        assert state.upload_id is not None
        assert len(state.parts) == self._plan.part_count, "completing with parts missing"
        if not identify(request.path).is_same_content(self._identity):
            raise SourceChangedError(
                f"uploadFile {request.path!r}: expected the file that the upload began with (size and modification "
                "time), found it changed meanwhile; nothing was completed: call again to upload what it is now"
            )
        parts = [(str(number), state.parts[number]) for number in sorted(state.parts)]
        reply = await self._ask(
            requests.complete(request.bucket, request.key, state.upload_id, parts, (), request.encoding_type)
        )
        if reply.status < 300:
            await self._prove(reply)
        elif read_fault(reply).code == "NoSuchUpload":
            # An earlier Complete of ours may have succeeded and its answer been lost. The object itself tells.
            settled = await self._find_object(state.upload_id)
            if settled is None:
                raise UploadGone
            reply = settled
        else:
            # With a checkpoint, nothing is lost: the journal stays, and the next call completes.
            await self._abort_unless_kept()
            return Uploaded(reply, self._report())
        self._journal.append(Completed())
        self._journal.sync()  # Durable from here: the object stands, whatever happens to us.
        report = self._report()
        self._show_progress(is_forced=True)
        self._journal.remove()
        return Uploaded(reply, report)

    async def _prove(self, reply: Reply) -> None:
        """A Complete that answered 2xx: is the object there, and is it ours?

        Source: S3-like services answer 200 before they know, and put the error into the body.
        """
        completed = read_completed(reply)
        if completed is None:
            raise error_of(reply, f"Complete of {self._what}", "the parts are kept: call again")
        etag = (completed.etag or "").strip('"')
        expected = self._expected_etag()
        if expected is None or etag == expected:
            return
        if not _MULTIPART_ETAG.fullmatch(etag):
            # Some servers give no ETag here (Ceph), or one of another kind: then the object's size must do.
            head = await self._ask(requests.head_object(self._request.bucket, self._request.key))
            size = head.header("content-length")
            if head.status in (401, 403, 405) or (head.status == 200 and size == str(self._plan.size_bytes)):
                return
            etag = f"{head.status}, {size} bytes"
        if self._has_foreign_etags(reply):
            return
        raise IntegrityError(
            f"object {self._what}: expected ETag {expected}, found {etag}; what the service assembled is not what was "
            "sent: delete the object and upload again"
        )

    def _expected_etag(self) -> str | None:
        """MD5 over the parts' MD5s; None where the parts' ETags are no MD5s (server-side encryption)."""
        etags = [self._state.parts[number].strip('"').lower() for number in sorted(self._state.parts)]
        if not all(map(_MD5_ETAG.fullmatch, etags)):
            return None
        digest = hashlib.md5(b"".join(map(bytes.fromhex, etags)), usedforsecurity=False)
        return f"{digest.hexdigest()}-{len(etags)}"

    @staticmethod
    def _has_foreign_etags(reply: Reply) -> bool:
        """True under server-side encryption, where an ETag is not the MD5 of the data. Source: OBS API, ETag."""
        return any("server-side-encryption" in name for name, _ in reply.headers)

    async def _find_object(self, upload_id: str) -> Reply | None:
        """The object's HEAD, if this upload made it.

        Source: OBS documents `x-obs-uploadId` of the object as the way to settle an unanswered Complete; for other
        services the multipart ETag over all parts proves as much.
        """
        head = await self._ask(requests.head_object(self._request.bucket, self._request.key))
        if head.status != 200 or head.header("content-length") != str(self._plan.size_bytes):
            return None
        expected = self._expected_etag()
        is_ours = head.own_header("uploadid") == upload_id
        is_equal = expected is not None and (head.header("etag") or "").strip('"') == expected
        return head if is_ours or is_equal else None

    async def _abort_unless_kept(self) -> None:
        """Without a checkpoint nobody could continue the upload, and its parts would be billed: abort it."""
        if self._journal.path is None and self._state.upload_id is not None:
            try:
                await asyncio.wait_for(self._abort(self._state.upload_id), ABORT_TIMEOUT_S)
            except asyncio.TimeoutError:
                _log.warning("upload %s of %s could not be aborted in time", self._state.upload_id, self._what)

    async def _abort(self, upload_id: str) -> None:
        try:
            reply = await self._ask(requests.abort(self._request.bucket, self._request.key, upload_id))
            if reply.status >= 300 and reply.status != 404:
                raise error_of(reply, f"Abort of {self._what}", "")
        except ObsEngineError as error:
            _log.warning("upload %s was left on the service: %s", upload_id, error)

    # --- asking workers -----------------------------------------------------------------------------------------

    async def _ask(self, request: Request) -> Reply:
        """Sends a small request, again where that helps; the last reply counts, whatever its status."""
        signed = with_headers(request, self._request.common_headers)
        outcome = await self._settled(lambda number: RequestTask(number, self._session.upload, signed, time.time()))
        assert isinstance(outcome, TaskReplied)
        return outcome.reply

    async def _settled(self, make_task: Callable[[int], Task]) -> Outcome:
        """Runs a task until its outcome is final: good, hopeless, or tried often enough.

        Raises:
            ObsEngineError: no reply came, or the source failed.
        """
        deaths = attempt = 0
        while True:
            try:
                outcome = await self._session.run(make_task)
            except WorkerDied as died:
                # Why a count of its own: a worker's death says nothing against the service or the network.
                deaths += 1
                if deaths > WORKER_DEATHS_MAX:
                    raise EngineDiedError(f"{self._what}: {died}, {deaths} times in a row; call again") from died
                continue
            error = outcome.error.error() if isinstance(outcome, TaskFailed) else None
            may_help = error.is_retryable if error is not None else _is_retryable_outcome(outcome)
            if not may_help or attempt == self._request.max_retry_count:
                if error is not None:
                    raise error
                return outcome
            attempt += 1
            await asyncio.sleep(random.uniform(0, min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**attempt)))  # noqa: S311

    def _open_message(self) -> OpenUpload:
        request = self._request
        return OpenUpload(
            self._session.upload, request.path, self._identity, request.bucket, request.key, request.target,
            request.credentials, (*request.part_headers, *request.common_headers), request.transport,
        )  # fmt: skip

    def _report(self) -> UploadReport:
        return UploadReport(
            self._state.upload_id or "", self._plan.size_bytes, self._plan.part_size_bytes, self._plan.part_count,
            self._parts_resumed, self._parts_sent, self._part_attempts, time.monotonic() - self._started_s,
        )  # fmt: skip

    @property
    def _what(self) -> str:
        return f"{self._request.bucket}/{self._request.key}"


def _is_retryable_outcome(outcome: Outcome) -> bool:
    """True for a reply that asks to come again; even a 2xx may carry such an error in its body."""
    if not isinstance(outcome, TaskReplied):
        return False
    reply = outcome.reply
    return is_retryable_reply(reply.status, read_fault(reply).code if reply.body else None)


def _default_record(path: str, target: tuple[str, str, str]) -> str:
    """Where the record of this target is kept: `path`, or beside it where another target of the same file has it.

    Why: the SDK lets two uploads of one file share a record, and each destroys the other's progress.
    """
    own = f"{path}.{hashlib.blake2b(chr(0).join(target).encode(), digest_size=4).hexdigest()}"
    if os.path.exists(own):
        return own
    held = peek(path)
    return path if held is None or held.binding is None or held.binding.target == target else own


def _difference(held: Binding, now: Binding) -> str | None:
    """Why a recorded upload may not be continued; None where it may."""
    if (held.size_bytes, held.mtime_ns) != (now.size_bytes, now.mtime_ns):
        return f"the file {os.path.basename(now.path)!r} changed its size or modification time"
    if held.content_digest and now.content_digest and held.content_digest != now.content_digest:
        return f"the content of {os.path.basename(now.path)!r} changed"
    if held.options_digest != now.options_digest:
        return "options that change the object (metadata, ACL, type or encryption) changed"
    return None


async def _all(work: Iterable[Coroutine[Any, Any, None]], *stops: Awaitable[None]) -> None:
    """Waits for all; the first failure, of work or stop, cancels the rest and is raised."""
    tasks = [asyncio.ensure_future(item) for item in work]
    pending: set[asyncio.Future[None]] = set(tasks)
    extra = {asyncio.ensure_future(stop) for stop in stops}
    try:
        while pending:
            done, _ = await asyncio.wait(pending | extra, return_when=asyncio.FIRST_COMPLETED)
            for item in done:
                item.result()
            pending -= done
    finally:
        for item in pending:
            item.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
