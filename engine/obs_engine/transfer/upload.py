"""One upload, from the file's identity to the assembled object. Runs in the coordinator.

    identify → plan → open journal → resume or begin → send parts → complete → remove journal

Invariant: *written before believed*. The state changes only when its record is in the journal; the upload id and the
completion are synced before anything follows.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace

from obs_engine.checkpoint.fingerprint import fingerprint
from obs_engine.checkpoint.fold import UploadState
from obs_engine.checkpoint.journal import JournalLike, NoJournal
from obs_engine.checkpoint.records import Binding, Completed, Initiated, PartStored, core_of, path_end
from obs_engine.checkpoint.resume_table import Action, Source
from obs_engine.errors import (
    DeadlineExceededError,
    IntegrityError,
    JournalError,
    ObsEngineError,
    ServiceError,
    SourceChangedError,
    TransportError,
)
from obs_engine.source.filesystem import choose_reader
from obs_engine.source.identity import FileIdentity, identify, recheck
from obs_engine.source.page_cache import PageCache
from obs_engine.source.plan import PartPlan, plan_parts
from obs_engine.transfer.access import Access
from obs_engine.transfer.checkpoint_file import OpenRecord, open_record
from obs_engine.transfer.content_tree import ContentTree, words
from obs_engine.transfer.messages import (
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
from obs_engine.transfer.proof import RESENDS_MAX, Mismatch, PartProof
from obs_engine.transfer.readback import first_difference
from obs_engine.transfer.resume import Decision, Inquiry, Testimony, testify
from obs_engine.transfer.service import Service, multipart_etag, together
from obs_engine.transfer.tail import Tail
from obs_engine.wire.replies import Reply, error_of, read_completed, read_fault

_log = logging.getLogger("obs_engine")

ABORT_TIMEOUT_S = 1.0
JUDGE_TIMEOUT_S = 0.5
"""For parts that were stored as the upload failed, to be proven and recorded."""
ETAG_LENGTH_MAX = 1024
CONTENT_LOOKS_MAX = 5
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
        self._service = Service(request, session, self.access, self._check_source)
        self._progress = ProgressFeed(session, tell, is_wanted=request.shows_progress)
        self._journal: JournalLike = NoJournal()
        self._record = OpenRecord(self._journal)
        self._binding: Binding
        self._identity = FileIdentity(0, 0, 0, 0, 0)
        self._plan = PartPlan(0, 1)
        self._proof: PartProof | None = None
        self._tail: Tail | None = None
        self._judging: set[asyncio.Future[Mismatch | None]] = set()  # parts that are stored, and not yet recorded
        self._tree: ContentTree | None = None
        self._cache = PageCache(request.path, 0, None)
        self._crc64: int | None = None
        self._xxh3: str | None = None
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
        engine = request.engine
        if engine.reader == "auto":
            engine = replace(engine, reader=choose_reader(self._identity.device))
            request = self._request = replace(request, engine=engine)
        if request.is_checksum:
            self._tree = ContentTree(self._service, self._identity.size_bytes)
        self._cache = PageCache(request.path, self._identity.size_bytes, engine.page_cache_share)
        self.access.open(request, self._identity)
        self._sync_failure = asyncio.get_running_loop().create_future()
        try:
            try:
                return await asyncio.wait_for(self._run(), engine.deadline_s)
            except asyncio.TimeoutError:
                raise DeadlineExceededError(
                    f"{self._what}: expected to be uploaded within {engine.deadline_s} s, found "
                    f"{self._state.stored_bytes()} of {self._plan.size_bytes} bytes stored; with a checkpoint call "
                    "again to continue"
                ) from None
        except (ObsEngineError, asyncio.CancelledError) as error:
            if isinstance(error, ObsEngineError) and self._state.upload_id is not None:
                error.checkpoint_file = self._journal.path
            self._session.close()
            await self._abort_unless_kept()
            raise
        finally:
            for judging in self._judging:
                judging.cancel()
            if self._proof is not None:
                self._proof.stop()
            if self._tree is not None:
                self._tree.stop()
            self._session.close()
            self._cache.close()
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
        self._binding = self._new_binding()
        said = await self._with_content_compared(testify(self._record, self._binding, request))
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
            if self._tree is not None and said.source is Source.SAME:
                self._xxh3 = await self._tree.root()
            await self._read_back(decision.reply)
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
            SourceTruncatedError, SourceChangedError: it is not.
        """
        recheck(self._request.path, self._identity)

    # --- what was before ----------------------------------------------------------------------------------------

    def _new_binding(self) -> Binding:
        """The binding of an upload that begins now."""
        request, identity = self._request, self._identity
        endpoint, bucket, key = request.target_name
        return Binding(
            bucket, key, endpoint, path_end(request.path), identity.size_bytes, identity.mtime_ns, identity.ctime_ns,
            identity.inode, identity.device, self._plan.part_size_bytes, fingerprint(request.object_options),
        )  # fmt: skip

    async def _with_content_compared(self, said: Testimony) -> Testimony:
        """With `checkSum`, the file must still have what was sent of it, before anything else is asked."""
        if self._tree is None or said.plan is None or said.source not in (Source.SAME, Source.UNPROVEN):
            return said
        differing = await self._tree.differing({said.plan.part(n): digest for n, digest in said.contents.items()})
        if not differing:
            return said
        reason = f"the file {os.path.basename(self._request.path)!r} changed its content ({words(differing)})"
        return said._replace(source=Source.CHANGED, reason=reason)

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
            # A part that is adopted with another ETag was not sent by who recorded it.
            known = {n: said.contents.get(n, b"") for n, etag in parts.items() if said.parts.get(n) == etag}
            stored = (PartStored(number, etag, known.get(number, b"")) for number, etag in parts.items())
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
        request, missing = self._request, self._state.missing_parts()
        proof = self._proof = PartProof(
            self._service, self._plan, missing, compares_etags=request.compares_etags, is_crc64=request.is_crc64,
            has_foreign_etags=request.is_encrypted,
        )  # fmt: skip
        waiting = iter(missing)
        tail = self._tail = Tail(self._session, sum(self._plan.part(n)[1] for n in missing), self._what)

        async def send_parts() -> None:
            for part_number in waiting:
                await self._send_part(part_number, proof)
            if proof.may_double:
                tail.on_idle()

        assert self._sync_failure is not None
        try:
            await together((send_parts() for _ in range(min(self._session.limit, len(missing)))), self._sync_failure)
        finally:
            tail.stop()
            if self._judging:  # Why also when one has failed: what the service has stored shall be in the record
                await asyncio.wait(self._judging, timeout=JUDGE_TIMEOUT_S)
        return await self._complete()

    async def _send_part(self, part_number: int, proof: PartProof) -> None:
        """Sends a part until it is proven that it arrived as it is in the file, and records it."""
        proof.begin(part_number)
        corruptions = 0
        while True:
            content_md5 = await proof.content_md5(part_number)
            reply = await self._sent(part_number, content_md5, is_followed=proof.follows)
            judging = asyncio.ensure_future(self._judged(part_number, reply, content_md5, proof))
            judging.add_done_callback(lambda done: done.cancelled() or done.exception())  # who awaits it hears of it
            judging.add_done_callback(self._judging.discard)
            self._judging.add(judging)
            mismatch = await asyncio.shield(judging)
            if mismatch is None:
                return
            corruptions += mismatch.is_corrupt
            what = f"part {part_number} of {self._what} (offset {self._plan.part(part_number)[0]}): expected " \
                f"{mismatch.expected}, found {mismatch.found}"
            if corruptions > RESENDS_MAX:
                raise IntegrityError(
                    f"{SOME_PARTS_FAILED}: {what}, {corruptions} times in a row; what arrives is not what was sent: "
                    "check the machine's memory and network, or choose another EngineOptions.verify",
                    part_number=part_number,
                )
            if mismatch.is_corrupt:
                _log.warning("%s; it is sent again", what)

    async def _judged(
        self, part_number: int, reply: PartStoredReply, content_md5: str, proof: PartProof
    ) -> Mismatch | None:
        """What speaks against a part that the service says it stored; where nothing does, it is recorded."""
        is_doubled = self._tail is not None and part_number in self._tail.doubled
        mismatch = await proof.mismatch(part_number, reply, content_md5, is_doubled=is_doubled)
        # Why for each part, and before more is said of it: other bytes of a changed file are no corruption.
        self._check_source()
        if mismatch is None:
            self._record_part(part_number, reply)
        return mismatch

    def _record_part(self, part_number: int, reply: PartStoredReply) -> None:
        offset, length = self._plan.part(part_number)
        content = b"" if self._tree is None else self._tree.take(offset, length, reply.pieces)
        self._journal.append(PartStored(part_number, reply.etag, content))
        self._cache.drop(offset, length)
        if reply.crc64:
            self._crc64s[part_number] = int(reply.crc64, 16)
        self._parts_sent += 1
        self._parts_unsynced += 1
        engine = self._request.engine
        if self._parts_unsynced >= engine.sync_parts:
            self._sync_group()
        elif self._sync_timer is None:
            self._sync_timer = asyncio.get_running_loop().call_later(engine.sync_interval_s, self._sync_group)

    async def _sent(self, part_number: int, content_md5: str, *, is_followed: bool) -> PartStoredReply:
        """Sends a part once, as far as the service is concerned."""
        offset, length = self._plan.part(part_number)
        upload_id = self._state.upload_id
        assert upload_id is not None

        def task(number: int) -> PartTask:
            self._part_attempts += 1
            return PartTask(
                number, self._session.upload, upload_id, part_number, offset, length, self.access.now_s(), content_md5,
                is_md5=is_followed, is_hashed=self._tree is not None,
            )  # fmt: skip

        try:
            outcome = await self._service.settled(task, part_bytes=length)
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
        return outcome

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
        state, request = self._state, self._request
        upload_id = state.upload_id
        assert upload_id is not None
        assert len(state.parts) == self._plan.part_count, "completing with parts missing"
        await self._check_content()
        etags = [state.parts[number] for number in sorted(state.parts)]
        size = self._plan.size_bytes
        crc64 = self._crc64 = await self._object_crc64() if request.is_crc64 else None
        lost: TransportError | None = None
        try:
            reply = await self._service.complete(upload_id, etags, crc64)
        except TransportError as error:
            lost, reply = error, Reply(0)
        is_gone = read_fault(reply).code == "NoSuchUpload"
        if 200 <= reply.status < 300:
            await self._service.prove(reply, etags, size, crc64, request.engine.verify)
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
        await self._read_back(reply)
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

    async def _check_content(self) -> None:
        """Is the file still what was sent? With `checkSum` its inode's word is not taken for it.

        Source: a write changes ctime, which no program can set back as it can mtime.

        Raises:
            SourceTruncatedError, SourceChangedError: it is not.
        """
        seen, found = self._identity, "its inode changing again and again"
        for _ in range(CONTENT_LOOKS_MAX):
            if self._tree is not None:
                self._xxh3 = await self._tree.root()
            now = recheck(self._request.path, self._identity)
            if self._tree is None or (now.ctime_ns, now.inode) == (seen.ctime_ns, seen.inode):
                return
            _log.info("%s: the file's inode changed, and neither size nor time: comparing its content", self._what)
            seen, contents = now, self._state.contents
            self._tree = ContentTree(self._service, now.size_bytes)
            differing = await self._tree.differing({self._plan.part(n): digest for n, digest in contents.items()})
            if differing:
                found = f"{words(differing)} changed meanwhile"
                break
        raise SourceChangedError(
            f"uploadFile {self._request.path!r}: expected the content that was sent, found {found}; nothing was "
            "completed: call again to upload what it is now"
        )

    async def _read_back(self, reply: Reply) -> None:
        """Compares the object with the file, where that rung was asked for.

        Args:
            reply: of Complete, or the object's HEAD.

        Raises:
            IntegrityError: they differ.
            ServiceError, TransportError, SourceError: they could not be compared.
        """
        if self._request.engine.verify != "readback":
            return
        completed = read_completed(reply)
        etag = (completed.etag if completed else reply.header("etag")) or ""
        differs_at = await first_difference(
            self._service, self._session, etag=etag, size_bytes=self._plan.size_bytes,
            version_id=reply.own_header("version-id"),
        )  # fmt: skip
        self._check_source()
        if differs_at is not None:
            number = differs_at // self._plan.part_size_bytes + 1
            raise IntegrityError(
                f"object {self._what}: expected the file's bytes, found others from offset {differs_at} on (part "
                f"{number}) when it was read back; delete the object, then call again",
                part_number=number,
            )

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
        parts = self._state.parts
        doubled = 0 if self._tail is None else len(self._tail.doubled)
        etags = [parts[number] for number in sorted(parts)] if len(parts) == self._plan.part_count else []
        return UploadReport(
            self._state.upload_id or "", self._plan.size_bytes, self._plan.part_size_bytes, self._plan.part_count,
            self._parts_resumed, self._parts_adopted, self._parts_sent, self._part_attempts + doubled, doubled,
            time.monotonic() - self._started_s, self._request.engine.verify,
            multipart_etag(etags), self._crc64, self._xxh3,
        )  # fmt: skip

    @property
    def _what(self) -> str:
        return self._service.what
