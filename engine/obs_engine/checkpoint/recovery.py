"""What a journal's bytes say, whole, torn or damaged. Pure: bytes in, records and their fold out.

*Torn* and *damaged* are different words: a torn tail is what a crash leaves of the last write; a bad record with sound
ones behind it is damage.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from obs_engine.checkpoint.fold import ContradictoryRecord, UploadState, fold, salvage
from obs_engine.checkpoint.records import (
    HEADER_BYTES,
    MAGIC,
    VERSION,
    Record,
    UnreadableRecord,
    decode,
    header,
    may_begin,
    read_header,
)
from obs_engine.errors import JournalDamagedError, JournalVersionError

VERSIONS = tuple(range(VERSION, 0, -1))
_SECTOR_BYTES = 512
_UNSYNCED_MAX_BYTES = 4096
"""More than all that is written before the first sync: header, opened, binding, initiated."""


class Damage(NamedTuple):
    """The first place where a journal is not what was written."""

    offset: int
    expected: str
    found: str

    def __str__(self) -> str:
        return f"offset {self.offset}: expected {self.expected}, found {self.found}"


class Recovered(NamedTuple):
    """What a journal's bytes hold.

    Attributes:
        records: the sound ones, with their offsets.
        state: what they say together.
        sound_bytes: where the next record goes; 0 for a journal that is yet to be begun. Up to here all is whole,
            unless there is damage.
        version: of the format, 1 or 2.
        damage: None where all is whole, or only the tail is torn.
    """

    records: tuple[tuple[int, Record], ...]
    state: UploadState
    sound_bytes: int
    version: int = VERSION
    damage: Damage | None = None


def recover(data: bytes, path: str) -> Recovered:
    """Reads a journal's bytes, damaged ones too.

    Raises:
        JournalVersionError: not a journal, or of a later version.
        JournalDamagedError: its records speak of two uploads.
    """
    if _is_torn_at_birth(data):
        return Recovered((), UploadState(), 0)
    version, damage = read_header(data), None
    if version is None:
        if not (looks_like_journal(data) and _has_sound_record(data)):
            raise JournalVersionError(
                f"checkpoint file {path!r}: expected an obs-engine journal, found another file beginning with "
                f"{data[:12]!r}; it was left as it is: name another checkpointFile"
            )
        damage = Damage(0, "a sound header", data[:HEADER_BYTES].hex(" "))
        version = next((v for v in VERSIONS if _is_sound(data, HEADER_BYTES, v)), VERSION)
    if version not in VERSIONS:
        raise JournalVersionError(
            f"checkpoint file {path!r}: expected version {min(VERSIONS)} to {VERSION}, found {version}; continue this "
            "upload with the release that began it, or name another checkpointFile"
        )
    records, sound_bytes, bad = _scan(data, version)
    damage = damage or bad
    state = UploadState()
    try:
        for offset, record in records if damage is None else ():
            place = offset
            fold(state, record)
    except ContradictoryRecord as error:
        damage = Damage(place, "a record that follows from those before it", str(error))
    if damage is not None:
        try:
            state = salvage(record for _, record in records)
        except ContradictoryRecord as error:
            raise JournalDamagedError(
                f"checkpoint file {path!r}, {damage}; and its records speak of two uploads ({error}): it was left "
                "as it is, name another checkpointFile"
            ) from None
    return Recovered(tuple(records), state, sound_bytes, version, damage)


def _is_torn_at_birth(data: bytes) -> bool:
    """Is this what a crash leaves of a journal that was never synced? Then no part had been sent to the service."""
    if len(data) < HEADER_BYTES:
        return any(header(version).startswith(data) for version in VERSIONS)
    if data.startswith(MAGIC):
        return read_header(data) is None and not data[HEADER_BYTES:].strip(b"\0")
    # The length reached the disk, and the first sector did not. Larger files that begin with zeros are somebody's.
    is_lost = len(data) <= _UNSYNCED_MAX_BYTES and not data[:_SECTOR_BYTES].strip(b"\0")
    return is_lost and not _has_sound_record(data)


def _scan(data: bytes, version: int) -> tuple[list[tuple[int, Record]], int, Damage | None]:
    """The sound records with their offsets, where they end, and the first bad place that has sound ones behind it."""
    records: list[tuple[int, Record]] = []
    damage = None
    end = offset = HEADER_BYTES
    while offset < len(data):
        try:
            record, end = decode(data, offset, version)
        except UnreadableRecord as error:
            following = next((o for o in may_begin(data, offset + 1) if _is_sound(data, o, version)), None)
            if following is None:
                break  # torn
            damage = damage or Damage(offset, "a sound record", str(error))
            offset = following
            continue
        records.append((offset, record))
        offset = end
    return records, end, damage


def looks_like_journal(data: bytes) -> bool:
    """Does this beginning of a file look like one of ours, though perhaps a damaged one?

    Why not any file with a sound record somewhere: an archive that holds a journal is not one.
    """
    return data.startswith(MAGIC) or any(_is_sound(data, HEADER_BYTES, v) for v in VERSIONS) or _is_beheaded(data)


def looks_like_json(data: bytes) -> bool:
    """Does this beginning of a file look like a record of the official SDK, though perhaps a torn one?"""
    # Why the second look: one wrong byte makes a bracket of a journal's first.
    return data.lstrip()[:1] in (b"{", b"[") and not looks_like_journal(data)


def _is_beheaded(data: bytes) -> bool:
    """Are there zeros where the header was, and sound records behind them?"""
    return not data[:HEADER_BYTES].strip(b"\0") and _has_sound_record(data)


def _has_sound_record(data: bytes) -> bool:
    return any(_is_sound(data, offset, version) for version in VERSIONS for offset in may_begin(data, 0))


def _is_sound(data: bytes, offset: int, version: int) -> bool:
    with contextlib.suppress(UnreadableRecord):
        decode(data, offset, version)
        return True
    return False
