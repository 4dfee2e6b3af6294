"""What became of the earlier upload: asks the three witnesses, and follows the resume table.

    record (the journal, the official SDK's record, or the user's word) × file × service  →  one row  →  parts to keep

Knows the journal's state, the file's identity and the service. Decides nothing that `checkpoint/resume_table.py` does
not say; asks only what can change the decision. Runs in the coordinator.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from obs_engine.checkpoint.fingerprint import Options
from obs_engine.checkpoint.fold import UploadState
from obs_engine.checkpoint.records import Binding, path_end, restored
from obs_engine.checkpoint.resume_table import (
    Action,
    Bytes,
    Listed,
    Policy,
    Record,
    Recorded,
    Row,
    Source,
    Verdict,
    decide,
    judge,
    needs_bytes,
)
from obs_engine.checkpoint.resume_table import Service as Answer
from obs_engine.checkpoint.sdk_record import SdkRecord
from obs_engine.errors import ResumeRefusedError, SourceChangedError
from obs_engine.limits import PART_COUNT_MAX
from obs_engine.source.plan import PartPlan
from obs_engine.transfer.checkpoint_file import OpenRecord
from obs_engine.transfer.messages import UploadRequest
from obs_engine.transfer.service import Service, bare_etag, is_another_object, is_md5
from obs_engine.wire.replies import ListedPart, ListedUpload, Reply, error_of, read_fault

_log = logging.getLogger("obs_engine")

_NO_PARTS: Mapping[int, str] = MappingProxyType({})
_NO_CONTENTS: Mapping[int, bytes] = MappingProxyType({})


class Testimony(NamedTuple):
    """What is recorded of an earlier upload, whoever recorded it; empty where the record does not say.

    Attributes:
        binding: None where another than this engine made the record, or damage took it.
        plan: None where it must be guessed from the parts that the service has.
        parts: ETags by number.
        contents: digests of what was sent of the parts, by number, where the file was identified by its content, too.
        claimed: parts that are said to be done, with no ETag.
        is_told: the user says that there is an upload.
    """

    record: Record
    source: Source
    reason: str = ""
    binding: Binding | None = None
    upload_id: str | None = None
    plan: PartPlan | None = None
    parts: Mapping[int, str] = _NO_PARTS
    contents: Mapping[int, bytes] = _NO_CONTENTS
    claimed: frozenset[int] = frozenset()
    is_told: bool = False


class Decision(NamedTuple):
    """What is to be done, and with what.

    Attributes:
        upload_id: of the old upload, where one is continued or aborted.
        plan, parts, adopted: of an upload that is continued: its cut, the parts that need not be sent, with their
            ETags, and how many of those no record knew of.
        reply: the object's HEAD, where it stands.
    """

    row: Row
    upload_id: str | None = None
    plan: PartPlan | None = None
    parts: Mapping[int, str] = _NO_PARTS
    adopted: int = 0
    reply: Reply | None = None


# --- the record and the file ------------------------------------------------------------------------------------


def testify(record: OpenRecord, now: Binding, request: UploadRequest) -> Testimony:
    """What the record says of an earlier upload; where it says nothing, what the user says.

    Raises:
        ResumeRefusedError: record and user speak of different uploads.
    """
    adopt = request.engine.adopt if request.checkpoint_file is not None else False
    if record.sdk is not None:
        said = _of_sdk(record.sdk, now, is_checksum=request.is_checksum)
    else:
        state, options = record.journal.state, request.object_options
        said = _of_journal(state, now, options, is_damaged=record.is_damaged, is_checksum=request.is_checksum)
    if not adopt or said.upload_id == adopt or (said.upload_id is not None and adopt is True):
        return said
    if said.upload_id is not None:
        raise ResumeRefusedError(
            f"checkpoint file {record.journal.path!r}: expected the upload {adopt} that adopt names, found "
            f"{said.upload_id}; call without adopt to continue that one, or name another checkpointFile",
            checkpoint_file=record.journal.path,
        )
    return _of_user(adopt, said)


def _of_journal(
    state: UploadState, now: Binding, options: Options, *, is_damaged: bool, is_checksum: bool
) -> Testimony:
    # Why no path: it is lost with the texts, so that the inode alone vouches for the file.
    binding = state.binding or restored(state.core, *now.target, "")
    if state.upload_id is None and not is_damaged:
        return Testimony(Record.NOTHING, Source.SAME)
    record = Record.ID_LOST
    if state.upload_id is not None:
        record = Record.COMPLETED if state.is_completed else Record.OPEN
    if binding is None:
        return Testimony(record, Source.UNPROVEN, "its binding is lost", None, state.upload_id, None, state.parts)
    source, reason = _compared(binding, now, options)
    plan = PartPlan(binding.size_bytes, binding.part_size_bytes)
    parts = {number: etag for number, etag in state.parts.items() if 1 <= number <= plan.part_count}
    contents = {number: digest for number, digest in state.contents.items() if number in parts}
    if is_checksum and source is Source.SAME and contents.keys() != parts.keys():
        source, reason = Source.UNPROVEN, "checkSum is asked for, and the record has no digests of its parts' content"
    return Testimony(record, source, reason, binding, state.upload_id, plan, parts, contents)


def _of_sdk(sdk: SdkRecord, now: Binding, *, is_checksum: bool) -> Testimony:
    """What a record of the official SDK says. It keeps no options: they cannot be compared."""
    record = Record.OPEN if sdk.upload_id is not None else Record.ID_LOST
    is_same = sdk.is_of(now.size_bytes, now.mtime_ns)
    is_path = sdk.path is not None and _is_path_of(sdk.path, now.path)
    source, reason = Source.UNPROVEN, "the SDK's record does not prove that the file is the same"
    if is_same is False:
        source, reason = Source.CHANGED, _changed(now, "its size or modification time")
    elif is_same and is_path and not is_checksum:
        source = Source.SAME
    plan = None if sdk.part_size_bytes is None else PartPlan(now.size_bytes, sdk.part_size_bytes)
    return Testimony(record, source, reason, None, sdk.upload_id, plan, sdk.parts, claimed=sdk.claimed)


def _of_user(adopt: bool | str, said: Testimony) -> Testimony:
    """The user's word that there is an upload, beside what is left of a record."""
    if said.record is Record.NOTHING:
        said = Testimony(Record.ID_LOST, Source.UNPROVEN, "no record tells which file the upload was begun with")
    if not isinstance(adopt, str):
        return said._replace(is_told=True)
    if said.source not in (Source.SAME, Source.UNPROVEN):  # what is left of the record need not be of the named upload
        said = Testimony(Record.ID_LOST, Source.UNPROVEN, said.reason)
    return said._replace(record=Record.NAMED if not said.parts else Record.OPEN, upload_id=adopt)


def _compared(held: Binding, now: Binding, options: Options) -> tuple[Source, str]:
    if (held.size_bytes, held.mtime_ns) != (now.size_bytes, now.mtime_ns):
        return Source.CHANGED, _changed(now, "its size or modification time")
    if groups := held.options.changed(options):
        return Source.OTHER_OPTIONS, f"options that make the object ({', '.join(groups)}) changed"
    if held.inode != now.inode and held.path != now.path:
        return Source.UNPROVEN, "another file of the same size and time stands in for the one that was begun with"
    return Source.SAME, ""


def _is_path_of(recorded: str, path: str) -> bool:
    """May a path that was passed to the SDK, perhaps relative to a directory of then, be this one?"""
    normal = os.path.normpath(recorded)
    if os.path.isabs(normal):
        return path_end(normal) == path
    while normal.startswith("../"):
        normal = normal[3:]
    return path.endswith(f"/{normal}")


def _changed(now: Binding, what: str) -> str:
    return f"the file {os.path.basename(now.path)!r} changed {what}"


# --- the service ------------------------------------------------------------------------------------------------


class Inquiry:
    """Asks the service, decides, and judges the parts."""

    def __init__(self, service: Service, now: Binding, policy: str) -> None:
        """
        Args:
            now: the binding that a new upload of this call would have.
            policy: `EngineOptions.on_source_change`.
        """
        self._service = service
        self._now = now
        self._policy = Policy(policy)
        self._listed: dict[int, ListedPart] | None = None
        self._reply: Reply | None = None
        self._candidates: list[ListedUpload] = []

    async def decide(self, said: Testimony) -> Decision:
        """What is to be done about the upload of a testimony.

        Raises:
            SourceChangedError, ResumeRefusedError: the table says REFUSE.
            TransportError, ServiceError: the service cannot be asked.
        """
        rows = {decide(said.record, said.source, self._policy, answer) for answer in Answer}
        if len({row.action for row in rows}) == 1:
            row = next(iter(rows))  # whatever the service would say: it is not asked
        else:
            said, answer = await self._ask(said)
            row = decide(said.record, said.source, self._policy, answer)
        return await self._follow(row, said)

    async def decide_gone(self, said: Testimony) -> Decision:
        """The same for an upload that was continued, and is gone as a part or Complete meets the service.

        Why: where parts may not be listed, this is how it shows that an earlier Complete was done.
        """
        answer = await self._look_at_object(said)
        return await self._follow(decide(said.record, said.source, self._policy, answer), said)

    async def _follow(self, row: Row, said: Testimony) -> Decision:
        is_expected = said.record is Record.NOTHING or row.action is Action.CONTINUE
        name = f"upload {said.upload_id}" if said.upload_id is not None else ""
        _log.log(
            logging.INFO if is_expected else logging.WARNING,
            "%s: %s: %s", self._service.what, row.label, "; ".join(filter(None, (name, said.reason, row.action.value))),
        )  # fmt: skip
        if row.action is Action.REFUSE:
            raise self._refusal(row, said)
        if row.action is Action.SUCCEED:
            return Decision(row, said.upload_id, said.plan, said.parts, 0, self._reply)
        if row.action is not Action.CONTINUE:
            return Decision(row, said.upload_id)
        plan = said.plan or self._guessed_plan()
        parts, adopted = await self._judge_parts(said, plan)
        return Decision(row, said.upload_id, plan, parts, adopted)

    async def _ask(self, said: Testimony) -> tuple[Testimony, Answer]:
        if said.upload_id is not None:
            return said, await self._ask_for(said.upload_id, said)
        found = await self._service.uploads()
        if isinstance(found, Reply):
            return said, self._silence("ListMultipartUploads", found)
        self._candidates = found
        known = {number: bare_etag(etag) for number, etag in said.parts.items()}
        # A journal of which no part is left knows no upload from another, and that of another host is not to be taken:
        # one without parts is worth nothing to us, one with parts is for the user to name.
        is_stranger = said.binding is not None and not known and not said.is_told
        fitting = []
        for candidate in found:
            is_asked = known or is_stranger or len(found) == 1
            parts = await self._service.parts(candidate.upload_id) if is_asked else {}
            if isinstance(parts, Reply):
                if parts.status != 404:
                    return said, self._silence("ListParts", parts)
                continue  # it ended meanwhile
            fits = any(bare_etag(p.etag) == known.get(p.part_number) for p in parts.values())
            if fits or (parts if is_stranger else not known):
                fitting.append((candidate.upload_id, parts))
        if len(fitting) > 1 or (is_stranger and fitting):
            return said, Answer.SEVERAL
        if not fitting:
            return said, await self._look_at_object(said)
        upload_id, self._listed = fitting[0]
        return said._replace(upload_id=upload_id), Answer.OPEN

    async def _ask_for(self, upload_id: str, said: Testimony) -> Answer:
        found = await self._service.parts(upload_id)
        if not isinstance(found, Reply):
            self._listed = found
            return Answer.OPEN
        code = read_fault(found).code
        if found.status == 404 and code in (None, "NoSuchUpload", "NoSuchKey"):
            return await self._look_at_object(said)
        if found.status == 404:
            raise error_of(found, f"ListParts of {self._service.what}", "check the bucket and the endpoint")
        return self._silence("ListParts", found)

    async def _look_at_object(self, said: Testimony) -> Answer:
        plan, size = said.plan, self._now.size_bytes
        known = dict(said.parts)
        is_all = plan is not None and len(known) == plan.part_count
        etags = [known[number] for number in sorted(known)] if is_all else []
        found = await self._service.find_object(said.upload_id, etags, size)
        if found.reply is not None and plan is not None and not is_all and said.source is Source.SAME:
            # The object says whose it is; that all of it is the file's, only all of its parts can tell.
            missing = [number for number in range(1, plan.part_count + 1) if number not in known]
            md5s = await self._service.md5s([plan.part(number) for number in missing])
            known.update(zip(missing, md5s, strict=True))
            if is_another_object(found.reply, [known[number] for number in sorted(known)]):
                return Answer.GONE
        self._reply = found.reply
        return Answer.COMPLETED if found.reply else Answer.GONE if found.is_seen else Answer.UNSEEN

    def _silence(self, operation: str, reply: Reply) -> Answer:
        fault = read_fault(reply)
        _log.warning(
            "%s of %s is refused (status %d, %s): the other witnesses decide",
            operation, self._service.what, reply.status, fault.code,
        )  # fmt: skip
        return Answer.SILENT

    def _refusal(self, row: Row, said: Testimony) -> Exception:
        what = f"upload of {self._service.what}: {row.label}"
        if said.source is Source.CHANGED:
            return SourceChangedError(
                f"{what}: expected the file that the upload began with, found that {said.reason}; nothing was aborted: "
                "restore the file, or call with on_source_change='restart' to begin anew"
            )
        if said.record is Record.NAMED:
            return ResumeRefusedError(
                f"{what}: expected an open upload {said.upload_id} on the service, found none that may be listed; "
                "check the id, the key and the permission ListMultipartUploadParts, or call without adopt to begin anew"
            )
        ids = ", ".join(f"{u.upload_id} (since {u.initiated or 'unknown'})" for u in self._candidates)
        return ResumeRefusedError(
            f"{what}: expected to find the one upload that is meant, found {ids or 'that they may not be listed'}; "
            "name it with EngineOptions(adopt=ID), or move the checkpoint file away to begin anew"
        )

    # --- the parts ----------------------------------------------------------------------------------------------

    def _guessed_plan(self) -> PartPlan:
        """The cut that most of the listed parts fit; the asked one where there is none.

        All parts but the last have one size. So a listed part has that size, or it is the last one, and its number
        tells the size of the others.
        """
        size, listed = self._now.size_bytes, self._listed or {}
        guesses = {self._now.part_size_bytes}
        for part in listed.values():
            guesses.add(part.size_bytes)
            before = part.part_number - 1
            if before and (size - part.size_bytes) % before == 0:
                guesses.add((size - part.size_bytes) // before)
        plans = [PartPlan(size, guess) for guess in guesses if guess > 0 and size <= guess * PART_COUNT_MAX]

        def fitting(plan: PartPlan) -> tuple[int, bool]:
            count = sum(_fits(plan, part) for part in listed.values())
            return count, plan.part_size_bytes == self._now.part_size_bytes

        return max(plans, key=fitting)

    async def _judge_parts(self, said: Testimony, plan: PartPlan) -> tuple[dict[int, str], int]:
        """The parts that need not be sent, with their ETags, and how many of them no record knew of."""
        is_proven = said.source is Source.SAME
        cases = {}
        for number in range(1, plan.part_count + 1):
            recorded = _recorded(said, number)
            listed = self._listed_as(said, number, plan)
            cases[number] = recorded, listed, self._etag_in_question(said, number)
        unread = [number for number, (r, at, _) in cases.items() if needs_bytes(r, at, is_proven)]
        comparable = [number for number in unread if is_md5(bare_etag(cases[number][2]))]
        if comparable:
            _log.info("%s: comparing %d parts with the file's bytes", self._service.what, len(comparable))
        md5s = dict(zip(comparable, await self._service.md5s([plan.part(n) for n in comparable]), strict=True))
        kept: dict[int, str] = {}
        adopted = 0
        for number, (recorded, listed, etag) in cases.items():
            content = Bytes.INCOMPARABLE
            if number in md5s:
                content = Bytes.EQUAL if md5s[number] == bare_etag(etag) else Bytes.UNEQUAL
            row = judge(recorded, listed, content, is_proven)
            if row.verdict is Verdict.SEND:
                is_other_file = recorded is Recorded.STORED and content is Bytes.UNEQUAL
                if is_other_file and listed is not Listed.OTHER and self._policy is Policy.REFUSE:
                    raise SourceChangedError(
                        f"upload of {self._service.what}: expected the file that the upload began with, found other "
                        f"bytes in part {number}; nothing was changed: restore the file, or call with "
                        "on_source_change='restart'"
                    )
                if recorded is not Recorded.ABSENT:
                    _log.warning("%s: part %d: %s; it is sent again", self._service.what, number, row.label)
                continue
            kept[number] = etag
            adopted += row.verdict is Verdict.ADOPT
        return kept, adopted

    def _listed_as(self, said: Testimony, number: int, plan: PartPlan) -> Listed:
        if self._listed is None:
            return Listed.SILENT
        part = self._listed.get(number)
        if part is None:
            return Listed.LACKS
        if not _fits(plan, part):
            return Listed.MISSIZED
        is_recorded = number in said.parts and bare_etag(said.parts[number]) == bare_etag(part.etag)
        return Listed.AGREES if is_recorded else Listed.OTHER

    def _etag_in_question(self, said: Testimony, number: int) -> str:
        part = (self._listed or {}).get(number)
        recorded = said.parts.get(number, "")
        if part is None or bare_etag(recorded) == bare_etag(part.etag):
            return recorded
        return part.etag


def _recorded(said: Testimony, number: int) -> Recorded:
    if number in said.claimed:
        return Recorded.CLAIMED
    return Recorded.STORED if number in said.parts else Recorded.ABSENT


def _fits(plan: PartPlan, part: ListedPart) -> bool:
    return part.part_number <= plan.part_count and part.size_bytes == plan.part(part.part_number)[1]
