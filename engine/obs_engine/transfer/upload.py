"""One upload, from the file's identity to the assembled object. Runs in the coordinator.

    identify → plan → open journal → resume or begin → send parts → complete → remove journal

Invariant: *written before believed*. The state changes only when its record is in the journal; the upload id and the
completion are synced before anything follows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from obs_engine.checkpoint.fingerprint import fingerprint
from obs_engine.checkpoint.fold import UploadState
from obs_engine.checkpoint.journal import JournalLike, NoJournal
from obs_engine.checkpoint.records import Binding, Completed, Initiated, PartStored, core_of, path_end
from obs_engine.checkpoint.resume_table import Action, Source
from obs_engine.errors import JournalError, ObsEngineError, ServiceError, SourceChangedError, TransportError
from obs_engine.limits import MIB
from obs_engine.source.identity import FileIdentity, identify
from obs_engine.source.plan import PartPlan, plan_parts
from obs_engine.transfer.access import Access
from obs_engine.transfer.checkpoint_file import OpenRecord, open_record
from obs_engine.transfer.messages import (
    HashDone,
    HashTask,
    PartStoredReply,
    PartTask,
    TaskReplied,
    Uploaded,
    UploadReport,
    UploadRequest,
)
from obs_engine.transfer.negotiation import Negotiator
from obs_engine.transfer.pool import Session
from obs_engine.transfer.progress import ProgressFeed
from obs_engine.transfer.resume import Decision, Inquiry, Testimony, testify
from obs_engine.transfer.service import Service, together
from obs_engine.wire.replies import Reply, error_of, read_fault

_log = logging.getLogger("obs_engine")

ABORT_TIMEOUT_S = 1.0
HASH_BLOCK_BYTES = 64 * MIB
ETAG_LENGTH_MAX = 1024
SOME_PARTS_FAILED = "some parts are failed when upload. Please try again"
"""The SDK's words, which scripts look for."""


class UploadGone(Exception):
    """The service does not know the upload id any more."""


class Upload:
    """One call of `uploadFile` in the coordinator."""

    def __init__(
        self, request: UploadRequest, session: Session, negotiator: Negotiator, tell: Callable[[object], None]
    ) -> None:
        """
        Args:
            session: this upload's share of the workers.
            negotiator: knows which dialect a bucket understands.
            tell: sends a message to the caller.
        """
        self._request = request
        self._session = session
        self._negotiator = negotiator
        self.access = Access(request, session, tell)
        self._service = Service(request, session, self.access)
        self._progress = ProgressFeed(session, tell, is_wanted=request.shows_progress)
        self._journal: JournalLike = NoJournal()
        self._record = OpenRecord(self._journal)
        self._binding: Binding
        self._identity = FileIdentity(0, 0, 0, 0, 0)
        self._plan = PartPlan(0, 1)
        self._started_s = time.monotonic()
        self._parts_resumed = self._parts_adopted = 0
        self._parts_sent = 0
        self._crc64s: dict[int, int] = {}  # of parts that this call sent
        self._parts_unsynced = 0
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
        self.access.open(request, self._identity)
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
            self._progress.stop()
            if self._sync_timer is not None:
                self._sync_timer.cancel()
            self._sync_failure.cancel()
            try:
                self._journal.leave()
            except JournalError as error:
                _log.warning("%s", error)  # an error that is on its way already says more

    async def _run(self) -> Uploaded:
        refusal = await self._agree_on_dialect()
        if refusal is not None:
            return Uploaded(refusal, self._report())
        request = self._request
        self._record = await open_record(request)
        self._journal = self._record.journal
        if request.engine.check_bucket:
            await self._service.check_bucket()
        self._binding = await self._new_binding()
        said = testify(self._record, self._binding, request)
        inquiry = Inquiry(self._service, self._binding, request.engine.on_source_change)
        decision = await inquiry.decide(said)
        self._check_source()
        if decision.row.action is Action.CONTINUE:
            self._continue(said, decision)
            try:
                return await self._finish()
            except UploadGone:
                # Only the service's word drops progress, and it has just given it; unless the object stands.
                state = self._state
                decision = await inquiry.decide_gone(said._replace(upload_id=state.upload_id, parts=state.parts))
                self._check_source()
        if decision.row.action is Action.SUCCEED:
            assert decision.reply is not None
            self._plan = decision.plan or self._plan
            self._parts_resumed = self._plan.part_count
            return self._done(decision.reply)
        if decision.row.action is Action.ABORT_AND_BEGIN and decision.upload_id is not None:
            await self._service.abort(decision.upload_id)
        await self._begin()
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

    async def _agree_on_dialect(self) -> Reply | None:
        """Asks the bucket which signature it understands, where that is open; a reply is its refusal to say."""
        if len(self._request.dialects) == 1:
            return None
        found = await self._negotiator.dialect(self._request, self._service)
        if isinstance(found, Reply):
            return found
        self._request = self._request.speaking(found)
        self._service.speak(self._request)
        self.access.open(self._request, self._identity)
        return None

    def _check_source(self) -> None:
        """Is the file still the one that this call identified? Asked before anything that was read of it counts.

        Why for each part, and not at Complete alone: a part with other bytes must not be in the record when the file
        is restored, with its old size and time, and the next call goes on.

        Raises:
            SourceChangedError: it is not.
        """
        path = self._request.path
        if not identify(path).is_same_content(self._identity):
            raise SourceChangedError(
                f"uploadFile {path!r}: expected the file that the upload began with (size and modification time), "
                "found it changed meanwhile; nothing was completed: call again to upload what it is now"
            )

    # --- what was before ----------------------------------------------------------------------------------------

    async def _new_binding(self) -> Binding:
        """The binding of an upload that begins now."""
        request, identity = self._request, self._identity
        endpoint, bucket, key = request.target_name
        return Binding(
            bucket, key, endpoint, path_end(request.path), identity.size_bytes, identity.mtime_ns, identity.ctime_ns,
            identity.inode, identity.device, self._plan.part_size_bytes, fingerprint(request.object_options),
            await self._content_digest() if request.is_checksum else b"",
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
                outcome = await self._service.settled(
                    lambda task, o=offset, n=length: HashTask(task, self._session.upload, o, n)  # type: ignore[misc]
                )
                assert isinstance(outcome, HashDone)
                digests[index] = bytes.fromhex(outcome.digests[0])

        await together(hash_blocks() for _ in range(self._session.slots))
        return xxh3_128(b"".join(digests)).digest()

    def _continue(self, said: Testimony, decision: Decision) -> None:
        """Brings the journal to what the witnesses agreed on: by a few records where they can follow, else anew."""
        upload_id, plan, parts = decision.upload_id, decision.plan, decision.parts
        assert upload_id is not None
        assert plan is not None
        journal, state = self._journal, self._state
        self._plan = plan
        self._parts_resumed, self._parts_adopted = len(parts), decision.adopted
        is_sound = self._record.is_appendable and state.upload_id == upload_id and not state.is_completed
        if is_sound and said.source is Source.SAME and state.parts.items() <= parts.items():
            for number in parts.keys() - state.parts.keys():
                journal.append(PartStored(number, parts[number]))
        else:
            binding = self._binding_of(said, plan)
            stored = (PartStored(number, etag) for number, etag in parts.items())
            journal.rewrite([binding, Initiated(upload_id, core_of(binding)), *stored])
        journal.sync()
        self._progress.begin(self._state, self._plan)

    def _binding_of(self, said: Testimony, plan: PartPlan) -> Binding:
        """The binding of an upload that is continued: the held one, unless the file had to be proven."""
        if said.binding is None:
            return replace(self._binding, part_size_bytes=plan.part_size_bytes)
        if said.source is Source.SAME:
            return replace(said.binding, path=self._binding.path)
        return replace(self._binding, part_size_bytes=plan.part_size_bytes, options=said.binding.options)

    async def _begin(self) -> None:
        """A new upload on the service, bound and recorded before a part of it is sent."""
        binding, journal, state = self._binding, self._journal, self._state
        self._plan = PartPlan(binding.size_bytes, binding.part_size_bytes)
        self._parts_resumed = self._parts_adopted = 0
        if self._record.is_appendable and state.binding is None:
            journal.append(binding)
        else:
            journal.rewrite([binding])
        upload_id = await self._service.initiate()
        journal.append(Initiated(upload_id, core_of(binding)))
        journal.sync()  # Durable from here: no part is sent for an upload that a crash could forget.
        self._progress.begin(self._state, self._plan)

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
        await together((send_parts() for _ in range(count)), self._sync_failure)
        return await self._complete()

    async def _send_part(self, part_number: int) -> None:
        offset, length = self._plan.part(part_number)
        upload_id = self._state.upload_id
        assert upload_id is not None

        def task(number: int) -> PartTask:
            self._part_attempts += 1
            return PartTask(number, self._session.upload, upload_id, part_number, offset, length, time.time())

        try:
            outcome = await self._service.settled(task)
        except ObsEngineError as error:
            error.part_number = part_number
            raise error.explained(f"{SOME_PARTS_FAILED}: part {part_number} of {self._what}") from error
        if isinstance(outcome, TaskReplied):
            if read_fault(outcome.reply).code == "NoSuchUpload":
                raise UploadGone
            # The SDK's scripts tell these two apart by their words.
            words = f"{SOME_PARTS_FAILED}: " if outcome.reply.status >= 500 else ""
            what = f"{words}part {part_number} of {self._what}"
            refused = error_of(outcome.reply, what, "see errorCode, then call again")
            refused.part_number = part_number
            raise refused
        assert isinstance(outcome, PartStoredReply)
        if len(outcome.etag) > ETAG_LENGTH_MAX:
            raise ServiceError(
                f"part {part_number} of {self._what}: expected an ETag, found one of {len(outcome.etag)} characters; "
                "report it to the service"
            )
        self._check_source()
        self._journal.append(PartStored(part_number, outcome.etag))
        if outcome.crc64:
            self._crc64s[part_number] = int(outcome.crc64, 16)
        self._parts_sent += 1
        self._parts_unsynced += 1
        engine = self._request.engine
        if self._parts_unsynced >= engine.sync_parts:
            self._sync_group()
        elif self._sync_timer is None:
            self._sync_timer = asyncio.get_running_loop().call_later(engine.sync_interval_s, self._sync_group)

    def _sync_group(self) -> None:
        if self._sync_timer is not None:
            self._sync_timer.cancel()
            self._sync_timer = None
        self._parts_unsynced = 0
        try:
            self._journal.sync()
        except JournalError as error:
            assert self._sync_failure is not None
            if not self._sync_failure.done():
                self._sync_failure.set_exception(error)

    # --- the object ---------------------------------------------------------------------------------------------

    async def _complete(self) -> Uploaded:
        state = self._state
        upload_id = state.upload_id
        assert upload_id is not None
        assert len(state.parts) == self._plan.part_count, "completing with parts missing"
        self._check_source()
        etags = [state.parts[number] for number in sorted(state.parts)]
        size = self._plan.size_bytes
        crc64 = await self._object_crc64() if self._request.is_crc64 else None
        lost: TransportError | None = None
        try:
            reply = await self._service.complete(upload_id, etags, crc64)
        except TransportError as error:
            lost, reply = error, Reply(0)
        is_gone = read_fault(reply).code == "NoSuchUpload"
        if 200 <= reply.status < 300:
            await self._service.prove(reply, etags, size, crc64)
        elif lost is not None or is_gone or reply.status >= 500 or reply.status == 303:
            # This Complete, or an earlier one, may have been done and its answer lost, or be a redirect of the browser
            # that successActionRedirect asks for. The object itself tells.
            found = await self._service.find_object(upload_id, etags, size)
            if found.reply is not None:
                reply = found.reply
            elif lost is not None:
                raise lost
            elif is_gone:
                raise UploadGone
        if reply.status >= 300:
            # With a checkpoint, nothing is lost: the journal stays, and the next call completes.
            await self._abort_unless_kept()
            return Uploaded(reply, self._report())
        self._journal.append(Completed())
        self._journal.sync()  # Durable from here: the object stands, whatever happens to us.
        return self._done(reply)

    async def _object_crc64(self) -> int:
        """Of the whole object: from what was sent now, and from the file for the parts of earlier calls."""
        from obs_engine.digests import crc64_combine

        earlier = [number for number in self._state.parts if number not in self._crc64s]
        found = await self._service.crc64s([self._plan.part(number) for number in earlier])
        self._check_source()
        crc64s = self._crc64s | dict(zip(earlier, found, strict=True))
        joined = 0
        for number in range(1, self._plan.part_count + 1):
            joined = crc64_combine(joined, crc64s[number], self._plan.part(number)[1])
        return joined

    def _done(self, reply: Reply) -> Uploaded:
        """The object stands: nothing of the upload needs to be remembered."""
        report, plan = self._report(), self._plan
        self._progress.end(plan)
        self._journal.remove()
        _log.info("%s: stored, %d bytes in %d parts, %d of them sent now, in %.3f s",
                  self._what, report.size_bytes, report.parts, report.parts_sent, report.seconds)  # fmt: skip
        return Uploaded(reply, report)

    async def _abort_unless_kept(self) -> None:
        """Without a checkpoint nobody could continue the upload, and its parts would be billed: abort it."""
        if self._journal.path is None and self._state.upload_id is not None:
            try:
                await asyncio.wait_for(self._service.abort(self._state.upload_id), ABORT_TIMEOUT_S)
            except asyncio.TimeoutError:
                _log.warning("upload %s of %s could not be aborted in time", self._state.upload_id, self._what)

    def _report(self) -> UploadReport:
        return UploadReport(
            self._state.upload_id or "", self._plan.size_bytes, self._plan.part_size_bytes, self._plan.part_count,
            self._parts_resumed, self._parts_adopted, self._parts_sent, self._part_attempts,
            time.monotonic() - self._started_s,
        )  # fmt: skip

    @property
    def _what(self) -> str:
        return self._service.what
