"""Records of a job log, their bytes, and what they say together. The format is JOURNAL.md, "The job log". Pure.

Runs where a job runs, and where one is looked at. This module is the format's only reader and writer. A log may hold
millions of files: it is read in pieces, and no object is made for a file.
"""

from __future__ import annotations

import re
import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from obs_engine.bulk.file_table import DONE, FAILED, SKIPPED, Count, FileTable
from obs_engine.checkpoint.recovery import Damage
from obs_engine.errors import JournalDamagedError, JournalVersionError

MAGIC = b"\x89OBSJOB\n"  # Why 0x89 and a newline: a text-mode copy or a 7-bit channel damages them visibly
VERSION = 1
BYTE_ORDER_MARK = 0x0102
ID_BYTES = 6

_HEADER = struct.Struct("<8sHHI")
_FRAME = struct.Struct("<IHBBI")
_FILE = struct.Struct("<QQQ")
_BEGAN = struct.Struct(f"<{ID_BYTES}sqI")
_OFFSET = struct.Struct("<I")
_OPENED = struct.Struct("<Iq16s")
_ENDED = struct.Struct("<qBQQQQQQ")

HEADER_BYTES = _HEADER.size
FRAME_BYTES = _FRAME.size
FILE_BYTES = _FILE.size
DATA_MAX_BYTES = 16 * 1024
FILES_MAX = DATA_MAX_BYTES // FILE_BYTES
TEXT_MAX_BYTES = 8 * 1024
PATH_MAX_BYTES = 4096
CAUSE_MAX_BYTES = 1000
NAME_MAX_BYTES = 64
FAILURES_KEPT = 100
"""As many of the newest failures are kept with their texts in memory."""

_CHUNK_BYTES = 1 << 20
_BIRTH_MAX_BYTES = 4 << 20
"""More than the first write of any log: the longest command line, and what is written beside it."""
_SECTOR_BYTES = 512

_BEGAN_AS, _ARGUMENTS, _OPENED_BY, _DONE, _SKIPPED, _FAILED, _WITHDRAWN, _LISTED, _ENDED_AS, _CLEARED = range(1, 11)
_KIND_AND_ZERO = re.compile(rb"[\x01-\x0a]\x00")
_OUTCOMES = {_DONE: DONE, _SKIPPED: SKIPPED}
_KINDS = {DONE: _DONE, SKIPPED: _SKIPPED}

ENDINGS = ("done", "failed", "paused", "cancelled", "aborted")
"""How a run may end: all is done; all was tried, and some failed; as somebody asked: to go on later, or not at all,
with the begun uploads kept, or aborted."""


@dataclass(frozen=True)
class Began:
    """Which job this is.

    Attributes:
        job_id: 12 hex digits.
        since_s: when it began, seconds since 1970.
        arguments_bytes: length of its arguments, which follow.
        program: name and version of who began it.
    """

    job_id: str
    since_s: int
    arguments_bytes: int
    program: str


@dataclass(frozen=True)
class Arguments:
    """A piece of a job's arguments, which may be longer than a record: canonical JSON, in ASCII, without a secret."""

    offset: int
    piece: bytes


@dataclass(frozen=True)
class Opened:
    """Who writes the log: one for each run.

    Attributes:
        boot: 16 bytes that the machine had anew when it was started; zeros where unknown.
    """

    pid: int
    since_s: int
    boot: bytes
    host: str


class Entry(NamedTuple):
    """A file: see `file_name` and `file_identity`."""

    name: int
    identity: int
    size_bytes: int


@dataclass(frozen=True)
class Files:
    """Files that are done, or were skipped: `DONE` or `SKIPPED`, and their entries, packed."""

    outcome: int
    packed: bytes

    @classmethod
    def of(cls, outcome: int, entries: Iterable[tuple[int, int, int]]) -> Files:
        """Packs entries."""
        return cls(outcome, b"".join(_FILE.pack(*entry) for entry in entries))

    def entries(self) -> list[Entry]:
        """Unpacks them."""
        return [Entry(*entry) for entry in _FILE.iter_unpack(self.packed)]


@dataclass(frozen=True)
class Failed:
    """A file that could not be sent; its path and the cause, for people, may be cut or empty."""

    entry: Entry
    path: str
    cause: str


@dataclass(frozen=True)
class Withdrawn:
    """What was said of these files counts no more: they have changed, and are about to be sent again."""

    names: tuple[int, ...]


@dataclass(frozen=True)
class Listed:
    """All files before this are in the manifest, and the manifest is on the disk."""


@dataclass(frozen=True)
class Ended:
    """How a run ended (one of `ENDINGS`), and what became of the files up to then."""

    since_s: int
    ending: str
    done: Count
    skipped: Count
    failed: Count


@dataclass(frozen=True)
class Cleared:
    """What was said of files before this counts no more: records between may have been lost."""


Record = Began | Arguments | Opened | Files | Failed | Withdrawn | Listed | Ended | Cleared


@dataclass
class JobState:
    """All that a log says. Changed by `fold` alone.

    Attributes:
        files: what became of each.
        arguments: as much of them as was read; see `whole_arguments`.
        withdrawals: records of that kind, modulo 2**32. Each record repeats it: so it is seen where one was lost.
        unlisted: names of the files since the last `Listed`.
        failures: the newest that still stand, with texts, by name.
        texts: how many failures were written with their texts.
    """

    files: FileTable = field(default_factory=FileTable)
    began: Began | None = None
    arguments: bytes = b""
    opened: Opened | None = None
    ended: Ended | None = None
    withdrawals: int = 0
    unlisted: array[int] = field(default_factory=lambda: array("Q"))
    failures: dict[int, Failed] = field(default_factory=dict)
    texts: int = 0

    def whole_arguments(self) -> str | None:
        """What the job was asked for; None where a part of it is lost."""
        if self.began is None or len(self.arguments) != self.began.arguments_bytes:
            return None
        return self.arguments.decode("ascii", "replace")

    def how_it_ended(self, since_s: int, ending: str) -> Ended:
        """The record of an end now."""
        return Ended(since_s, ending, *(self.files.count(outcome) for outcome in (DONE, SKIPPED, FAILED)))


class UnreadableRecord(Exception):
    """No whole, sound record begins here. Says nothing of why: torn or damaged is the reader's to judge."""


class ContradictoryRecord(Exception):
    """A sound record of another job."""


def header(version: int = VERSION) -> bytes:
    """The 16 bytes that open a log."""
    head = _HEADER.pack(MAGIC, version, BYTE_ORDER_MARK, 0)[:12]
    return head + struct.pack("<I", zlib.crc32(head))


def beginning(job_id: str, since_s: int, program: str, arguments: str) -> list[Record]:
    """The records that say which job this is.

    Args:
        arguments: canonical JSON, in ASCII.
    """
    text = arguments.encode("ascii")
    pieces = range(0, len(text), TEXT_MAX_BYTES)
    return [
        Began(job_id, since_s, len(text), program), *(Arguments(at, text[at : at + TEXT_MAX_BYTES]) for at in pieces)
    ]  # fmt: skip


def encode(record: Record, withdrawals: int) -> bytes:
    """A record as framed bytes: checksum (over all that follows), length, kind, zero, withdrawals, data.

    Args:
        withdrawals: as the state has it once this record is folded.
    """
    kind, data = _pack(record)
    assert len(data) <= DATA_MAX_BYTES, f"a record of {len(data)} bytes"
    tail = _FRAME.pack(0, len(data), kind, 0, withdrawals)[4:] + data
    return struct.pack("<I", zlib.crc32(tail)) + tail


def decode(data: bytes, offset: int = 0) -> tuple[Record, int, int]:
    """The record at `offset`, its count of withdrawals, and the offset behind it.

    Raises:
        UnreadableRecord: it is cut, or its checksum or content is wrong.
    """
    if offset + FRAME_BYTES > len(data):
        raise UnreadableRecord("cut in its frame")
    checksum, length, kind, zero, withdrawals = _FRAME.unpack_from(data, offset)
    end = offset + FRAME_BYTES + length
    if length > DATA_MAX_BYTES or zero:
        raise UnreadableRecord("no frame")
    if end > len(data):
        raise UnreadableRecord("cut in its data")
    found = zlib.crc32(data[offset + 4 : end])
    if found != checksum:
        raise UnreadableRecord(f"checksum {checksum:08x} written, {found:08x} found")
    return _unpack(kind, data[offset + FRAME_BYTES : end]), withdrawals, end


def fold(state: JobState, record: Record) -> None:
    """Takes one record in.

    Raises:
        ContradictoryRecord: it is of another job; the state is unchanged.
    """
    match record:
        case Began():
            if state.began is not None and state.began.job_id != record.job_id:
                raise ContradictoryRecord(f"job {record.job_id} after job {state.began.job_id}")
            state.began, state.arguments = record, b""
        case Arguments():
            if record.offset == len(state.arguments):
                state.arguments += record.piece
        case Opened():
            # Why: a machine that stopped may have kept these records and lost the manifest's lines. So they are not
            # believed: the files are sent again, and listed again.
            is_same_boot = state.opened is None or (record.boot == state.opened.boot and any(record.boot))
            if not is_same_boot:
                _forget(state, state.unlisted)
                del state.unlisted[:]
            state.opened, state.ended = record, None
        case Ended():
            state.ended = record
        case _:
            _fold_files(state, record)


def _fold_files(state: JobState, record: Files | Failed | Withdrawn | Listed | Cleared) -> None:
    match record:
        case Files():
            state.files.put_all(_FILE.iter_unpack(record.packed), len(record.packed) // FILE_BYTES, record.outcome)
            _take_names(state, record.packed)
        case Failed():
            state.files.put(*record.entry, FAILED)
            _take_names(state, _FILE.pack(*record.entry))
            if record.path or record.cause:
                state.texts += 1
                state.failures[record.entry.name] = record
                if len(state.failures) > FAILURES_KEPT:
                    del state.failures[next(iter(state.failures))]
        case Withdrawn():
            state.withdrawals = (state.withdrawals + 1) & 0xFFFF_FFFF
            _forget(state, record.names)
        case Listed():
            del state.unlisted[:]
        case Cleared():
            state.files, state.failures, state.unlisted = FileTable(), {}, array("Q")


class Scanned(NamedTuple):
    """What a log's bytes hold.

    Attributes:
        state: what they say together.
        sound_bytes: where the next record goes; 0 for a log that is yet to be begun.
        ranges: the sound bytes, by offset and end; a number, of withdrawals, where what was said of files before
            counts no more.
        damage: None where all is whole, or only the tail is torn.
    """

    state: JobState
    sound_bytes: int
    ranges: tuple[tuple[int, int] | int, ...] = ()
    damage: Damage | None = None


def scan(read: Callable[[int, int], bytes], size_bytes: int, path: str) -> Scanned:
    """Reads a log, a damaged one too.

    Args:
        read: gives up to so many bytes from an offset; fewer at the end only.
        size_bytes: length of the log.
        path: of the log, for messages.

    Raises:
        JournalVersionError: not a job log, or of a later version.
        JournalDamagedError: its records speak of two jobs.
    """
    version, damage = _read_header(read(HEADER_BYTES, 0)), None
    if version is None:
        if _next_sound(read, HEADER_BYTES, size_bytes) is None:
            if _is_torn_at_birth(read, size_bytes):
                return Scanned(JobState(), 0)
            raise JournalVersionError(
                f"job log {path!r}: expected a job log of obs-engine, found another file beginning with "
                f"{read(12, 0)!r}; it was left as it is: move it away, or name another state directory"
            )
        damage = Damage(0, "a sound header", read(HEADER_BYTES, 0).hex(" "))
    elif version != VERSION:
        raise JournalVersionError(
            f"job log {path!r}: expected version {VERSION}, found {version}; continue this job with the release that "
            "began it, or forget it with that release"
        )
    state = JobState(FileTable(size_bytes // FILE_BYTES))
    ranges: list[tuple[int, int] | int] = []
    place = 0
    try:
        for found in _sound_records(read, size_bytes):
            place = found.offset
            if isinstance(found, _Gap):
                damage = damage or Damage(found.offset, "a sound record", found.why)
                continue
            record = found.record
            before = (found.withdrawals - isinstance(record, Withdrawn)) & 0xFFFF_FFFF
            if before != state.withdrawals and not isinstance(record, Cleared):
                damage = damage or Damage(place, f"{state.withdrawals} withdrawals before it", str(before))
                ranges.append(before)
                fold(state, Cleared())
            fold(state, record)
            state.withdrawals = found.withdrawals
            last = ranges[-1] if ranges else 0
            if isinstance(last, tuple) and last[1] == place:
                ranges[-1] = last[0], found.end
            else:
                ranges.append((place, found.end))
    except ContradictoryRecord as error:
        raise JournalDamagedError(
            f"job log {path!r}, offset {place}: expected the records of one job, found {error}; it was left as it is: "
            "forget the job, and begin it anew"
        ) from None
    sound_bytes = ranges[-1][1] if ranges and isinstance(ranges[-1], tuple) else HEADER_BYTES
    return Scanned(state, sound_bytes, tuple(ranges), damage)


def last_word(read: Callable[[int, int], bytes], size_bytes: int) -> Ended | None:
    """The end of a run, where a log ends with one: it has all counts, so the log need not be read."""
    length = FRAME_BYTES + _ENDED.size
    try:
        record, _, end = decode(read(length, max(0, size_bytes - length)))
    except UnreadableRecord:
        return None
    return record if isinstance(record, Ended) and end == length else None


class _Sound(NamedTuple):
    """A record; or many of one kind, one behind the other, as one."""

    offset: int
    end: int
    record: Record
    withdrawals: int


class _Gap(NamedTuple):
    """A place where no record is, and sound ones follow."""

    offset: int
    why: str


def _sound_records(read: Callable[[int, int], bytes], size: int) -> Iterator[_Sound | _Gap]:
    """All sound records in order, and the gaps between them; what comes after the last of them is torn."""
    at = HEADER_BYTES
    while at < size:
        chunk = _Chunk(read(_CHUNK_BYTES, at), at)
        yield from chunk.records()
        is_last = at + len(chunk.data) >= size
        at += chunk.sound_bytes
        if at >= size:
            return
        if is_last or not chunk.sound_bytes or not chunk.is_cut:  # else the next chunk begins with what is cut in this
            following = _next_sound(read, at + 1, size)
            if following is None:
                return
            yield _Gap(at, chunk.why)
            at = following


class _Chunk:
    """A piece of a log, up to its first bad place.

    Attributes:
        sound_bytes: how far it is sound; known, as `why` and `is_cut`, when `records` has come to its end.
        why: what is wrong there.
        is_cut: it may be only that the piece ends.
    """

    def __init__(self, data: bytes, at: int) -> None:
        """
        Args:
            at: offset of the piece in the log.
        """
        self.data, self._at = data, at
        self.sound_bytes, self.why, self.is_cut = 0, "", False

    def records(self) -> Iterator[_Sound]:
        """The records; those of one kind that say only which files are done, as one."""
        run: list[bytes] = []
        start = last_end = 0
        last = (0, 0)
        for offset, end, kind, withdrawals in self._frames():
            if run and last != (kind, withdrawals):
                yield self._run(start, last_end, run, *last)
                run = []
            packed = self.data[offset + FRAME_BYTES : end]
            if kind in _OUTCOMES and packed and not len(packed) % FILE_BYTES:
                if not run:
                    start = offset
                run.append(packed)
                last, last_end = (kind, withdrawals), end
                continue
            try:
                record = _unpack(kind, packed)
            except UnreadableRecord as error:
                self.sound_bytes, self.why, self.is_cut = offset, str(error), False
                return
            yield _Sound(self._at + offset, self._at + end, record, withdrawals)
        if run:
            yield self._run(start, last_end, run, *last)

    def _run(self, start: int, end: int, packed: list[bytes], kind: int, withdrawals: int) -> _Sound:
        return _Sound(self._at + start, self._at + end, Files(_OUTCOMES[kind], b"".join(packed)), withdrawals)

    def _frames(self) -> Iterator[tuple[int, int, int, int]]:
        """Offset, end, kind and withdrawals of each record with a sound checksum."""
        data, limit, offset = self.data, len(self.data), 0
        unpack, crc32 = _FRAME.unpack_from, zlib.crc32
        while offset + FRAME_BYTES <= limit:
            checksum, length, kind, zero, withdrawals = unpack(data, offset)
            end = offset + FRAME_BYTES + length
            if length > DATA_MAX_BYTES or zero:
                self.why = "no frame"
                break
            if end > limit:
                self.why, self.is_cut = "cut in its data", True
                break
            if (found := crc32(data[offset + 4 : end])) != checksum:
                self.why = f"checksum {checksum:08x} written, {found:08x} found"
                break
            yield offset, end, kind, withdrawals
            offset = end
        else:
            self.why, self.is_cut = "cut in its frame", True
        self.sound_bytes = offset


def _next_sound(read: Callable[[int, int], bytes], start: int, size: int) -> int | None:
    """Where the first sound record from `start` on begins."""
    for at in range(start, size, _CHUNK_BYTES):
        data = read(_CHUNK_BYTES + FRAME_BYTES + DATA_MAX_BYTES, at)
        for found in _KIND_AND_ZERO.finditer(data, 6):
            offset = found.start() - 6
            if offset < _CHUNK_BYTES and _is_sound(data, offset):
                return at + offset
    return None


def _is_sound(data: bytes, offset: int) -> bool:
    try:
        decode(data, offset)
    except UnreadableRecord:
        return False
    return True


def _read_header(data: bytes) -> int | None:
    """The version; None where this is no sound header."""
    if len(data) < HEADER_BYTES:
        return None
    magic, version, mark, checksum = _HEADER.unpack(data)
    is_sound = magic == MAGIC and mark == BYTE_ORDER_MARK and checksum == zlib.crc32(data[:12])
    return int(version) if is_sound else None


def _is_torn_at_birth(read: Callable[[int, int], bytes], size: int) -> bool:
    """Is this what a crash leaves of a log that was never synced? Then there is nothing to lose."""
    first = read(_SECTOR_BYTES, 0)
    if size < HEADER_BYTES:
        return header().startswith(first) or not first.strip(b"\0")
    if size > _BIRTH_MAX_BYTES:
        return False
    return not first.strip(b"\0") or (first.startswith(MAGIC) and not read(size, len(MAGIC)).strip(b"\0"))


def _take_names(state: JobState, packed: bytes) -> None:
    numbers = array("Q", packed)
    if sys.byteorder == "big":
        numbers.byteswap()
    names = numbers[:: FILE_BYTES // 8]
    state.unlisted += names
    for name in names if state.failures else ():
        state.failures.pop(name, None)


def _forget(state: JobState, names: Iterable[int]) -> None:
    state.files.withdraw(names)
    for name in names:
        state.failures.pop(name, None)


def _pack(record: Record) -> tuple[int, bytes]:
    match record:
        case Files():
            return _KINDS[record.outcome], record.packed
        case Failed():
            texts = _text(_end(record.path)), _text(record.cause.encode("utf-8", "replace").decode(), CAUSE_MAX_BYTES)
            return _FAILED, _FILE.pack(*record.entry) + b"".join(texts)
        case Withdrawn():
            return _WITHDRAWN, struct.pack(f"<{len(record.names)}Q", *record.names)
        case Listed():
            return _LISTED, b""
        case Opened():
            host = _text(record.host, NAME_MAX_BYTES)
            return _OPENED_BY, _OPENED.pack(record.pid, record.since_s, record.boot) + host
        case Ended():
            counts = (*record.done, *record.skipped, *record.failed)
            return _ENDED_AS, _ENDED.pack(record.since_s, ENDINGS.index(record.ending), *counts)
        case Cleared():
            return _CLEARED, b""
        case Began():
            numbers = _BEGAN.pack(bytes.fromhex(record.job_id), record.since_s, record.arguments_bytes)
            return _BEGAN_AS, numbers + _text(record.program, NAME_MAX_BYTES)
        case Arguments():
            return _ARGUMENTS, _OFFSET.pack(record.offset) + record.piece


def _unpack(kind: int, data: bytes) -> Record:
    """Raises UnreadableRecord where the data are not those of that kind."""
    try:
        return _unpacked(kind, data)
    except (struct.error, ValueError, IndexError) as error:
        raise UnreadableRecord(f"kind {kind}: {error}") from None


def _unpacked(kind: int, data: bytes) -> Record:
    if kind in _OUTCOMES and data and not len(data) % FILE_BYTES:
        return Files(_OUTCOMES[kind], data)
    if kind == _FAILED:
        path, cause = _texts(data, FILE_BYTES, 2)
        return Failed(Entry(*_FILE.unpack_from(data)), path, cause)
    if kind == _WITHDRAWN:
        return Withdrawn(struct.unpack(f"<{len(data) // 8}Q", data))
    if kind == _LISTED and not data:
        return Listed()
    if kind == _OPENED_BY:
        pid, since_s, boot = _OPENED.unpack_from(data)
        (host,) = _texts(data, _OPENED.size, 1)
        return Opened(pid, since_s, boot, host)
    if kind == _ENDED_AS:
        since_s, ending, *counts = _ENDED.unpack(data)
        done, skipped, failed = (Count(*counts[at : at + 2]) for at in (0, 2, 4))
        return Ended(since_s, ENDINGS[ending], done, skipped, failed)
    if kind == _CLEARED and not data:
        return Cleared()
    if kind == _BEGAN_AS:
        job_id, since_s, arguments_bytes = _BEGAN.unpack_from(data)
        (program,) = _texts(data, _BEGAN.size, 1)
        return Began(job_id.hex(), since_s, arguments_bytes, program)
    if kind == _ARGUMENTS:
        return Arguments(_OFFSET.unpack_from(data)[0], data[_OFFSET.size :])
    raise ValueError("unknown")


def _end(path: str) -> str:
    """As much of a path's end as a record keeps."""
    return path.encode("utf-8", "surrogateescape")[-PATH_MAX_BYTES:].decode("utf-8", "surrogateescape")


def _text(text: str, max_bytes: int = PATH_MAX_BYTES) -> bytes:
    # Why surrogateescape: a file's name need not be UTF-8, and its bytes must come back as they were.
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > max_bytes:
        data = data[:max_bytes].decode("utf-8", "ignore").encode()
    return struct.pack("<H", len(data)) + data


def _texts(data: bytes, offset: int, count: int) -> Iterator[str]:
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, offset)
        offset += 2
        if offset + length > len(data):
            raise ValueError("a text is cut")
        yield data[offset : offset + length].decode("utf-8", "surrogateescape")
        offset += length
    if offset != len(data):
        raise ValueError(f"{len(data) - offset} bytes too many")
