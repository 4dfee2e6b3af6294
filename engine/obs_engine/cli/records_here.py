"""Which uploads the checkpoint files of a directory speak of. Reads only, takes no lock, goes into no subdirectory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from obs_engine.arguments import RECORD_SUFFIX
from obs_engine.checkpoint.journal import read_file
from obs_engine.checkpoint.recovery import looks_like_journal, looks_like_json, recover
from obs_engine.checkpoint.sdk_record import read_sdk_record
from obs_engine.errors import JournalError

_BEGINNING_BYTES = 4096


class Record(NamedTuple):
    """A checkpoint file, and the upload that it speaks of.

    Attributes:
        endpoint: None where the record does not say (the official SDK's).
        source: the end of the file's path, as far as the record says.
        is_held: a process of this machine has it locked: the upload runs.
    """

    path: str
    endpoint: str | None
    bucket: str
    key: str
    upload_id: str
    source: str
    is_held: bool = False


def records_in(directories: Iterable[str]) -> list[Record]:
    """All that can be read there, by name; other files are passed over.

    Raises:
        JournalError: a directory cannot be read.
    """
    found = []
    for directory in directories:
        try:
            names = sorted(entry.name for entry in os.scandir(directory) if entry.is_file())
        except OSError as error:
            raise JournalError(
                f"records in {directory!r}: expected a directory, found {error.strerror}; correct --records"
            ) from None
        records = (_record(os.path.join(directory, name)) for name in names)
        found += [record for record in records if record is not None]
    held = _locked_files()
    return [record._replace(is_held=_number(record.path) in held) for record in found]


def record_of(records: Iterable[Record], endpoint: str, bucket: str, key: str, upload_id: str) -> Record | None:
    """The record of an upload."""
    return next(
        (
            record for record in records
            if (record.bucket, record.key, record.upload_id) == (bucket, key, upload_id)
            and record.endpoint in (None, endpoint)
        ),
        None,
    )  # fmt: skip


def _record(path: str) -> Record | None:
    try:
        if not _may_be_one(path):
            return None
        data = read_file(path)
        if looks_like_json(data):
            said = read_sdk_record(data, path)
            if not said.upload_id:
                return None
            return Record(path, None, said.bucket, said.key, said.upload_id, said.path or "")
        state = recover(data, path).state
    except (JournalError, OSError):
        return None
    binding = state.binding
    if binding is None or state.upload_id is None or state.is_completed:
        return None
    return Record(path, binding.endpoint, binding.bucket, binding.key, state.upload_id, binding.path)


def _locked_files() -> set[str]:
    """Files that somebody has locked, as the kernel lists them; none where it does not.

    Why not by trying: whoever holds the lock for that moment turns an upload away that begins just then.
    Source: proc_locks(5): "number: FLOCK ADVISORY WRITE pid major:minor:inode start end", major and minor in hex.
    """
    try:
        with open("/proc/locks", encoding="ascii") as lines:
            rows = [line.split() for line in lines]
    except OSError:
        return set()
    return {row[5] for row in rows if len(row) > 5 and row[1] == "FLOCK"}


def _number(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"


def _may_be_one(path: str) -> bool:
    """Is it worth reading as a whole? By its name, or by its first bytes."""
    if RECORD_SUFFIX in os.path.basename(path):
        return True
    with open(path, "rb") as file:
        return looks_like_journal(file.read(_BEGINNING_BYTES))
