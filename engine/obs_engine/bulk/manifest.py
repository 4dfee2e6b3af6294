"""The manifest of a job: one line of JSON for each file, in files for what succeeded, failed and was skipped.

Runs where the job runs. Knows lines and files; does not know the log. Each run has three files of its own, named for
its time. A file that was tried in several runs has several lines, of which the last one counts: `read_manifest`.

Why the line is written before the log's record: a kill between the two leaves a file that is sent again and listed
again, and never one that is done and not listed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, NamedTuple

from obs_engine.bulk.file_table import DONE, FileTable, file_name
from obs_engine.checkpoint.disk import Disk
from obs_engine.errors import InvalidArgumentError, JournalError

OUTCOMES = ("succeeded", "failed", "skipped")
_NAME = re.compile(r"\d{8}T\d{6}Z\.(succeeded|failed|skipped)\.jsonl")
_ORDINAL_SHIFT = 2  # a table keeps 62 bits of an identity
_DISK = Disk()


class Line(NamedTuple):
    """What became of one file.

    Attributes:
        key, path: where it goes, and where it is.
        size_bytes: of the file, as it was sent.
        etag, crc64, version_id, request_id: as the service gave them; "" where it gave none.
        seconds: from its first request to its last answer.
        cause: why it failed, or was skipped; "" of one that succeeded.
    """

    key: str
    path: str
    size_bytes: int
    etag: str = ""
    crc64: str = ""
    version_id: str = ""
    request_id: str = ""
    seconds: float = 0.0
    cause: str = ""


def run_name(since_s: int) -> str:
    """A run's name, from the second in which it began: names sort as the runs do."""
    return datetime.fromtimestamp(since_s, timezone.utc).strftime("%Y%m%dT%H%M%SZ")


def is_manifest(name: str) -> bool:
    """Is this the name of a file that `Manifest` writes?"""
    return _NAME.fullmatch(name) is not None


class Manifest:
    """The manifest of one run. Its files (mode 0600) are made when there is something to say."""

    def __init__(self, directory: str, run: str, *, is_power_safe: bool = True, disk: Disk = _DISK) -> None:
        """
        Args:
            directory: where its files are; created with mode 0700.
            run: from `run_name`.
            is_power_safe: `sync` means fsync; otherwise it does nothing.

        Raises:
            InvalidArgumentError: there is no such directory, and none can be made.
        """
        try:
            os.makedirs(directory, 0o700, exist_ok=True)
        except OSError as error:
            raise InvalidArgumentError(
                "manifest directory", "one that can be made", f"{directory} ({error.strerror})", "name another one"
            ) from None
        self._names = {outcome: os.path.join(directory, f"{run}.{outcome}.jsonl") for outcome in OUTCOMES}
        self._is_power_safe = is_power_safe
        self._disk = disk
        self._files: dict[str, int] = {}
        self._dirty: set[str] = set()
        self._is_entry_dirty = False

    def write(self, outcome: str, line: Line) -> None:
        """Lists a file, by one write. Not yet synced.

        Args:
            outcome: one of `OUTCOMES`.

        Raises:
            JournalError: the disk is full or failed; what was written of the line is no line for any reader.
        """
        path = self._names[outcome]
        data = _encoded({"outcome": outcome, **line._asdict()})
        try:
            if outcome not in self._files:
                self._files[outcome] = _open(path, self._disk)
                self._is_entry_dirty = True
            self._dirty.add(outcome)
            self._disk.append(self._files[outcome], data)
        except OSError as error:
            raise _failed(path, error) from error

    def sync(self) -> None:
        """Makes all lines durable, as far as the durability policy asks.

        Raises:
            JournalError: the disk failed.
        """
        dirty, self._dirty = sorted(self._dirty), set()
        for outcome in dirty if self._is_power_safe else ():
            try:
                self._disk.sync(self._files[outcome])
                if self._is_entry_dirty:
                    self._disk.sync_directory(self._names[outcome])
            except OSError as error:
                raise _failed(self._names[outcome], error) from error
        self._is_entry_dirty = False

    def close(self) -> None:
        """Closes its files."""
        for fd in self._files.values():
            self._disk.close(fd)
        self._files.clear()


class Listed(NamedTuple):
    """A line of a manifest, and which of the three files it is from."""

    outcome: str
    line: Line


def manifest_files(directory: str, since: str = "") -> list[str]:
    """The manifest's files in a directory, oldest run first.

    Args:
        since: name of the first run that counts.

    Raises:
        InvalidArgumentError: there is no such directory.
    """
    try:
        names = sorted(name for name in os.listdir(directory) if is_manifest(name) and name[: len(since)] >= since)
    except OSError as error:
        raise InvalidArgumentError(
            "manifest directory", "a directory", f"{directory} ({error.strerror})", "correct it"
        ) from None
    return [os.path.join(directory, name) for name in names]


def read_manifest(directory: str, since: str = "") -> Iterator[Listed]:
    """Each file of a job exactly once, with the last that became of it. A line that a crash cut is none.

    Reads the files twice; a million lines take 50 MB.

    Args:
        since: name of the first run that counts, such as the one in which the job began.

    Raises:
        InvalidArgumentError: there is no such directory, or a file cannot be read.
    """
    files = manifest_files(directory, since)
    last = FileTable()
    for number, listed in enumerate(_lines(files)):
        last.put(file_name(listed.line.key, listed.line.path), number << _ORDINAL_SHIFT, 0, DONE)
    for number, listed in enumerate(_lines(files)):
        if last.get(file_name(listed.line.key, listed.line.path))[0] == number << _ORDINAL_SHIFT:
            yield listed


def sync_files(paths: list[str], disk: Disk = _DISK) -> None:
    """Makes durable what an earlier run wrote, and could not sync any more.

    Raises:
        JournalError: the disk failed.
    """
    for path in paths:
        try:
            fd = disk.open(path)
            try:
                disk.sync(fd)
            finally:
                disk.close(fd)
            disk.sync_directory(path)
        except OSError as error:
            raise _failed(path, error) from error


def _lines(paths: list[str]) -> Iterator[Listed]:
    """All whole lines, run by run. Of one run, successes come last: what failed at first may be tried again."""
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                for text in file:
                    listed = _decoded(text)
                    if listed is not None:
                        yield listed
        except OSError as error:
            raise InvalidArgumentError("manifest", "a readable file", f"{path} ({error.strerror})") from None


def _decoded(text: str) -> Listed | None:
    try:
        value = json.loads(text)
        outcome = value.pop("outcome")
        size, key, path = value.pop("bytes"), value.pop("key"), value.pop("path")
        return Listed(outcome, Line(key, path, size, **value)) if outcome in OUTCOMES else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _encoded(value: dict[str, Any]) -> bytes:
    value["bytes"] = value.pop("size_bytes")
    # Why ASCII: a name that is not UTF-8 comes back byte for byte, and no terminal or grep stumbles over it.
    return json.dumps({name: told for name, told in value.items() if told != ""}).encode() + b"\n"


def _open(path: str, disk: Disk) -> int:
    fd = disk.open_to_append(path)
    size = disk.size(fd)
    if size and disk.read(fd, 1, size - 1) != b"\n":  # a crash cut the last line
        disk.append(fd, b"\n")
    return fd


def _failed(path: str, error: OSError) -> JournalError:
    return JournalError(
        f"manifest {path!r}: expected to be written, found {error.strerror}; free the disk or name another directory, "
        "then run the job again"
    )
