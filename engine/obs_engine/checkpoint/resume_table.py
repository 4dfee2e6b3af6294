"""The resume table: what three witnesses say of an earlier upload, and what is done.

The record (our journal, or what stands in for one), the file as it is now, and the service are asked; none of them is
believed alone where another can be heard. Two literal tables: one decides on the upload, one on each part. Every
combination meets exactly one row (a test walks all of them), and every row says how the world came to it.

Pure: no I/O, no clock. Who asks the witnesses is `transfer/resume.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from functools import cache
from typing import NamedTuple, TypeVar

_R = TypeVar("_R")


class Record(Enum):
    """What is written of an earlier upload."""

    NOTHING = "no upload"
    OPEN = "an upload id, not completed"
    COMPLETED = "completed, the record not yet removed"
    ID_LOST = "that there is an upload, but not its id"
    NAMED = "nothing, but the user names an upload id"


class Source(Enum):
    """The file and the options of this call, held against the record."""

    SAME = "the same"
    UNPROVEN = "nothing against it, nothing for it"
    CHANGED = "another size, time or content"
    OTHER_OPTIONS = "options that make another object"


class Policy(Enum):
    """`EngineOptions.on_source_change`."""

    RESTART = "restart"
    REFUSE = "refuse"


class Service(Enum):
    """What the service knows of the upload."""

    OPEN = "the upload is open"
    COMPLETED = "no upload, but the object that it makes"
    GONE = "no upload, and no object of it"
    UNSEEN = "no upload, and the object may not be seen"
    SILENT = "no answer: not permitted, not offered"
    SEVERAL = "several uploads, one of which may be meant"


class Action(Enum):
    """What is done with the upload."""

    BEGIN = "begin a new upload"
    ABORT_AND_BEGIN = "abort the old upload, begin a new one"
    CONTINUE = "continue: decide on each part"
    SUCCEED = "nothing to do: the object stands"
    REFUSE = "stop with an error, change nothing"


class Row(NamedTuple):
    """One line of the resume table; it applies where each witness says one of the words listed."""

    label: str
    record: frozenset[Record]
    source: frozenset[Source]
    policy: frozenset[Policy]
    service: frozenset[Service]
    action: Action
    story: str


def _row(label: str, record: object, source: object, policy: object, service: object, action: Action, *, story: str
         ) -> Row:  # fmt: skip
    return Row(
        label, _among(Record, record), _among(Source, source), _among(Policy, policy), _among(Service, service), action,
        " ".join(story.split()),
    )  # fmt: skip


def _among(kind: type[Enum], words: object) -> frozenset:  # type: ignore[type-arg]
    if words is ...:
        return frozenset(kind)
    return frozenset(words) if isinstance(words, tuple) else frozenset((words,))


_FITS = (Source.SAME, Source.UNPROVEN)

RESUME_TABLE: tuple[Row, ...] = (
    _row(
        "fresh", Record.NOTHING, ..., ..., ..., Action.BEGIN,
        story="""The first call for this file; or an earlier one ended before the service gave an upload id, or before
        that id was on the disk.""",
    ),
    # --- the file or the options are not those of the record ---
    _row(
        "source changed, refused", (Record.OPEN, Record.COMPLETED, Record.ID_LOST), Source.CHANGED, Policy.REFUSE, ...,
        Action.REFUSE,
        story="""The file was written to since the upload began, and its owner asked to be told rather than have the
        parts of the old one thrown away.""",
    ),
    _row(
        "source changed", Record.OPEN, Source.CHANGED, Policy.RESTART, ..., Action.ABORT_AND_BEGIN,
        story="""The file was written to since the upload began. Its old parts belong to a file that is no more, and
        would be billed; the official SDK aborts here, too. An upload that is gone already answers 404, which is as
        good.""",
    ),
    _row(
        "source changed after completion", (Record.COMPLETED, Record.ID_LOST), Source.CHANGED, Policy.RESTART, ...,
        Action.BEGIN,
        story="""The old file was uploaded to its end, or its upload id is lost: there is nothing that may be aborted
        for certain. The new file is a new upload.""",
    ),
    _row(
        "options changed", Record.OPEN, Source.OTHER_OPTIONS, ..., ..., Action.ABORT_AND_BEGIN,
        story="""The call asks for other metadata, another ACL, type or encryption than the upload was begun with. The
        service took those with Initiate, and parts under another key cannot be joined: never mix.""",
    ),
    _row(
        "options changed after completion", (Record.COMPLETED, Record.ID_LOST), Source.OTHER_OPTIONS, ..., ...,
        Action.BEGIN,
        story="""As above, with nothing left to abort for certain.""",
    ),
    # --- the upload is open ---
    _row(
        "interrupted", Record.OPEN, _FITS, ..., Service.OPEN, Action.CONTINUE,
        story="""The common case: killed, cut off, out of power, refused for a while. The service still has the upload,
        and says which parts of it.""",
    ),
    _row(
        "interrupted, service silent", Record.OPEN, _FITS, ..., Service.SILENT, Action.CONTINUE,
        story="""As above, but these credentials may not list parts (a permission of its own), or the service has no
        such call. The journal was synced before it was believed, and is enough; what it does not know is sent again.
        """,
    ),
    _row(
        "completed in part", Record.COMPLETED, _FITS, ..., (Service.OPEN, Service.SILENT), Action.CONTINUE,
        story="""The journal saw the object completed, yet the service lists the upload as open (a Complete that it
        took back, a replica behind), or does not say. Completing once more settles it: a second Complete of a finished
        upload is answered by NoSuchUpload, and then the object itself tells.""",
    ),
    _row(
        "id lost, upload found", Record.ID_LOST, _FITS, ..., Service.OPEN, Action.CONTINUE,
        story="""Damage took the record of the upload id, or a torn record of the official SDK never had it, or the
        journal is gone altogether and the user says so. The service lists exactly one open upload that can be meant.
        """,
    ),
    _row(
        "named", Record.NAMED, ..., ..., Service.OPEN, Action.CONTINUE,
        story="""The journal is on a lost disk or another machine; the user has the upload id, and the service has the
        upload.""",
    ),
    # --- the upload is gone ---
    _row(
        "answer lost", (Record.OPEN, Record.COMPLETED, Record.ID_LOST), Source.SAME, ..., Service.COMPLETED,
        Action.SUCCEED,
        story="""Complete was sent and done, and its answer, or its record, was lost with the connection or the
        process. The object says that it comes from this upload, or has the very ETag that the recorded parts make.""",
    ),
    _row(
        "answer lost, file unproven", (Record.OPEN, Record.COMPLETED, Record.ID_LOST), Source.UNPROVEN, ...,
        Service.COMPLETED, Action.BEGIN,
        story="""As above, but another file of equal size and time may have taken the place of the one that was
        uploaded. Success must be proven; sending it again proves it.""",
    ),
    _row(
        "gone", (Record.OPEN, Record.COMPLETED, Record.ID_LOST), _FITS, ..., Service.GONE, Action.BEGIN,
        story="""A lifecycle rule or somebody's Abort removed the upload, or the finished object was deleted since. The
        service's own word: the parts are no more.""",
    ),
    _row(
        "gone, object unseen", (Record.OPEN, Record.COMPLETED, Record.ID_LOST), _FITS, ..., Service.UNSEEN,
        Action.BEGIN,
        story="""The upload is gone, and these credentials may not look at the object (GetObject is a permission of its
        own). It may well stand; but success is reported only for what is proven.""",
    ),
    # --- nobody can tell which upload is meant ---
    _row(
        "id lost, several uploads", Record.ID_LOST, _FITS, ..., Service.SEVERAL, Action.REFUSE,
        story="""Several uploads of this key are open, and nothing says which one is ours: another host may be at work
        on one of them. The user can name it.""",
    ),
    _row(
        "id lost, service silent", Record.ID_LOST, _FITS, ..., Service.SILENT, Action.REFUSE,
        story="""The upload id is lost and the uploads may not be listed. Beginning anew would leave terabytes of
        billed parts behind without a word; the user can name the id, or give it up.""",
    ),
    _row(
        "named, not there", Record.NAMED, ..., ...,
        (Service.COMPLETED, Service.GONE, Service.UNSEEN, Service.SILENT, Service.SEVERAL), Action.REFUSE,
        story="""The user named an upload id that the service does not have any more, or of which it may not be asked.
        He meant that one, and no new upload.""",
    ),
    _row(
        "cannot be", (Record.OPEN, Record.COMPLETED), _FITS, ..., Service.SEVERAL, Action.REFUSE,
        story="""Uploads are searched only where no id is known. The row is here so that every combination has one.""",
    ),
)  # fmt: skip


@cache
def decide(record: Record, source: Source, policy: Policy, service: Service) -> Row:
    """The one row of the resume table that applies."""
    return _only(
        row
        for row in RESUME_TABLE
        if record in row.record and source in row.source and policy in row.policy and service in row.service
    )


# --- parts ------------------------------------------------------------------------------------------------------


class Recorded(Enum):
    """What the record says of a part."""

    ABSENT = "nothing"
    STORED = "acknowledged, with its ETag"
    CLAIMED = "done, but with no ETag to show for it"


class Listed(Enum):
    """What the service says of a part."""

    LACKS = "does not have it"
    AGREES = "has it, with the recorded ETag and the planned size"
    OTHER = "has it with the planned size; its ETag is not the recorded one, or none is recorded"
    MISSIZED = "has it with another size"
    SILENT = "does not say"


class Bytes(Enum):
    """The file's bytes of that part, held against the ETag in question: the service's, else the record's."""

    EQUAL = "their MD5 is the ETag"
    UNEQUAL = "their MD5 is another"
    INCOMPARABLE = "the ETag is no MD5 (server-side encryption)"


class Verdict(Enum):
    """What is done with a part."""

    KEEP = "as recorded"
    ADOPT = "as the service has it"
    SEND = "send it"


class PartRow(NamedTuple):
    """One line of the table of parts."""

    label: str
    recorded: frozenset[Recorded]
    listed: frozenset[Listed]
    bytes: frozenset[Bytes]
    is_file_proven: frozenset[bool]
    verdict: Verdict
    story: str


def _part(label: str, recorded: object, listed: object, content: object, is_file_proven: object, verdict: Verdict, *,
          story: str) -> PartRow:  # fmt: skip
    proven = frozenset((True, False)) if is_file_proven is ... else frozenset((bool(is_file_proven),))
    return PartRow(
        label, _among(Recorded, recorded), _among(Listed, listed), _among(Bytes, content), proven, verdict,
        " ".join(story.split()),
    )  # fmt: skip


_NOT_EQUAL = (Bytes.UNEQUAL, Bytes.INCOMPARABLE)
_AT_THE_SERVICE = (Listed.AGREES, Listed.OTHER)

PART_TABLE: tuple[PartRow, ...] = (
    _part(
        "stored", Recorded.STORED, Listed.AGREES, ..., True, Verdict.KEEP,
        story="""Acknowledged, recorded, still there.""",
    ),
    _part(
        "stored, service silent", Recorded.STORED, Listed.SILENT, ..., True, Verdict.KEEP,
        story="""Acknowledged and recorded; the service may not be asked. Complete will tell.""",
    ),
    _part(
        "stored, bytes equal", Recorded.STORED, (Listed.AGREES, Listed.SILENT), Bytes.EQUAL, False, Verdict.KEEP,
        story="""The file was moved or restored, or checkSum is asked of a record that has none: so its bytes were
        read, and they are those of the part.""",
    ),
    _part(
        "stored, bytes unequal", Recorded.STORED, (Listed.AGREES, Listed.SILENT), _NOT_EQUAL, False, Verdict.SEND,
        story="""As above, but the bytes are others, or cannot be compared under server-side encryption: what cannot be
        proven is sent.""",
    ),
    _part(
        "lost by the service", Recorded.STORED, Listed.LACKS, ..., ..., Verdict.SEND,
        story="""The service acknowledged the part and does not have it: a failover, a replica, a repair. Noticed here,
        and not after days, at Complete.""",
    ),
    _part(
        "overwritten with the same", Recorded.STORED, Listed.OTHER, Bytes.EQUAL, ..., Verdict.ADOPT,
        story="""Two attempts of one part were both stored, as when a worker died after its part had arrived; or the
        service now gives another ETag. The bytes are the file's: the service's word is taken over.""",
    ),
    _part(
        "overwritten with another", Recorded.STORED, Listed.OTHER, _NOT_EQUAL, ..., Verdict.SEND,
        story="""Somebody else wrote to this upload, or it cannot be shown that nobody did.""",
    ),
    _part(
        "not yet recorded", Recorded.ABSENT, _AT_THE_SERVICE, Bytes.EQUAL, ..., Verdict.ADOPT,
        story="""The part arrived and its record did not: killed in between, power lost before the sync, damage; or
        there is no journal at all. Size and MD5 are those of the file's bytes, so it need not be sent again.""",
    ),
    _part(
        "not recorded and not ours", Recorded.ABSENT, _AT_THE_SERVICE, _NOT_EQUAL, ..., Verdict.SEND,
        story="""A part that was being sent as the file still had other bytes, or one that cannot be compared under
        server-side encryption.""",
    ),
    _part(
        "another size", (Recorded.STORED, Recorded.ABSENT), Listed.MISSIZED, ..., ..., Verdict.SEND,
        story="""Somebody uploaded with other part sizes under this upload id. The plan's part takes its place.""",
    ),
    _part(
        "missing", Recorded.ABSENT, (Listed.LACKS, Listed.SILENT), ..., ..., Verdict.SEND,
        story="""Nobody has seen it: what is left to do.""",
    ),
    _part(
        "claimed", Recorded.CLAIMED, ..., ..., ..., Verdict.SEND,
        story="""The official SDK sets a part's flag and its ETag at different moments, and without a lock: a record
        that was written in between says that a part is done and cannot say how. The SDK completes without that part,
        and truncates the object.""",
    ),
)  # fmt: skip


@cache
def judge(recorded: Recorded, listed: Listed, content: Bytes, is_file_proven: bool) -> PartRow:
    """The one row of the table of parts that applies."""
    return _only(
        row
        for row in PART_TABLE
        if recorded in row.recorded and listed in row.listed and content in row.bytes
        and is_file_proven in row.is_file_proven
    )  # fmt: skip


@cache
def needs_bytes(recorded: Recorded, listed: Listed, is_file_proven: bool) -> bool:
    """Must the file's bytes be read to judge this part?"""
    return len({judge(recorded, listed, content, is_file_proven).verdict for content in Bytes}) > 1


def _only(rows: Iterable[_R]) -> _R:
    (row,) = rows
    return row
