"""The journal file: one writer under a lock, records appended and synced, an unfinished tail cut off.

A damaged file is only read, until a sound journal is put in its place at once, and the damaged one kept beside it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Protocol

from obs_engine.checkpoint.disk import Disk
from obs_engine.checkpoint.fold import UploadState, fold, fold_all
from obs_engine.checkpoint.records import (
    DATA_MAX_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    VERSION,
    Opened,
    Record,
    encode,
    header,
)
from obs_engine.checkpoint.recovery import Damage, looks_like_journal, looks_like_json, recover
from obs_engine.errors import JournalError, JournalLockedError

_log = logging.getLogger("obs_engine")

FOREIGN_MAX_BYTES = 64 << 20
"""A record of the official SDK takes 180 bytes a part, so 2 MB at most."""
_FIRST_BYTES = HEADER_BYTES + FRAME_BYTES + DATA_MAX_BYTES
_DISK = Disk()


class JournalLike(Protocol):
    """What the coordinator needs of a journal."""

    path: str | None
    state: UploadState

    def append(self, record: Record) -> None: ...
    def sync(self) -> None: ...
    def rewrite(self, records: Iterable[Record]) -> None: ...
    def remove(self) -> None: ...
    def leave(self) -> None: ...


class NoJournal:
    """The journal of an upload without a checkpoint: the state, and nothing on disk."""

    path: str | None = None

    def __init__(self) -> None:
        self.state = UploadState()

    def append(self, record: Record) -> None:
        fold(self.state, record)

    def sync(self) -> None: ...

    def rewrite(self, records: Iterable[Record]) -> None:
        self.state = fold_all(records)

    def remove(self) -> None: ...

    def leave(self) -> None: ...


class Journal:
    """A locked journal.

    Invariant: where there is neither damage nor a foreign record, `state` is exactly what the file's sound bytes fold
    into. Where there is one, the file is only read, until `rewrite` puts a sound journal in its place.

    Attributes:
        state: what the file says; in a damaged one, what is left of it.
        damage: what is wrong with the file, None if nothing.
        foreign: the file's bytes, where it is JSON: a record of the official SDK, perhaps.
    """

    path: str | None

    def __init__(self, path: str, opened: Opened, *, is_power_safe: bool = True, disk: Disk = _DISK) -> None:
        """Opens or creates `path` (mode 0600), takes its lock and recovers what it holds; writes nothing yet.

        Args:
            opened: who writes.
            is_power_safe: `sync` means fsync; otherwise it does nothing, as a kill loses no written byte.

        Raises:
            JournalLockedError: another process writes it.
            JournalVersionError, JournalDamagedError: see `recover`; the file is unchanged.
            JournalError: it cannot be created or read.
        """
        self.path = path
        path = os.path.realpath(path)  # Why: a new journal takes the name of the file, not of a link to it
        self._path = path
        self._opened = opened
        self._is_power_safe = is_power_safe
        self._disk = disk
        self._is_dirty = self._is_entry_dirty = self._is_claimed = False
        self.damage: Damage | None = None
        self.foreign: bytes | None = None
        self._fd = _open_locked(path, disk)
        try:
            data = _read(self._fd, path, disk)
            if looks_like_json(data):
                self.foreign, self.state, self._end, self._version = data, UploadState(), 0, VERSION
                return
            found = recover(data, path)
        except BaseException:
            disk.close(self._fd)
            raise
        self.state, self._end, self._version, self.damage = (
            found.state, found.sound_bytes, found.version, found.damage
        )  # fmt: skip
        last = found.records[-1] if found.records else (0, None)
        self._opened_at = last[0] if isinstance(last[1], Opened) else None
        self._opener = data[last[0] : self._end] if self._opened_at is not None else b""
        self._size = len(data)

    def claim(self) -> None:
        """Cuts a torn tail off and says who writes. Not before the caller has seen that it is his upload.

        Raises:
            JournalError: the disk is full or failed.
        """
        assert self.damage is None
        assert self.foreign is None
        if self._version != VERSION:
            self.rewrite(self.state.records())
            return
        if 0 < self._end < self._size:
            _log.info("checkpoint file %s: cut an unfinished tail of %d bytes", self._path, self._size - self._end)
        self._cut()
        self._size = self._end
        if self._opened_at is not None:  # nothing was stored since: the file shall not grow by being opened
            self._end = self._opened_at
        head = b"" if self._end else header()
        self._is_entry_dirty |= self._end == 0
        opened_at = self._end + len(head)
        self._write(head + encode(self._opened))
        self._cut()
        self._opened_at, self._is_claimed = opened_at, True
        fold(self.state, self._opened)

    def append(self, record: Record) -> None:
        """Writes a record behind the others, then folds it into `state`. Not yet synced.

        Raises:
            JournalError: the disk is full or failed; the journal holds what it held before.
        """
        assert self.damage is None
        assert self.foreign is None
        self._write(encode(record))
        fold(self.state, record)

    def sync(self) -> None:
        """Makes all that was appended durable, as far as the durability policy asks.

        Raises:
            JournalError: the disk failed. What it holds is not known: no more may be built on this journal.
        """
        if self._is_power_safe:
            try:
                if self._is_dirty:
                    self._disk.sync(self._fd)
                if self._is_entry_dirty:
                    self._disk.sync_directory(self._path)
            except OSError as error:
                raise self._failed("synced", error) from error
        self._is_dirty = self._is_entry_dirty = False

    def rewrite(self, records: Iterable[Record]) -> None:
        """Puts a journal of these records in the file's place, at once and durably: the old one stands until then.

        A damaged file, or one that is not ours, is kept beside it under another name.

        Raises:
            JournalError: the disk is full or failed; the old file is as it was.
        """
        records = list(records)
        disk, path, new = self._disk, self._path, f"{self._path}.new"
        aside = self._set_aside()
        data = header() + encode(self._opened) + b"".join(map(encode, records))
        fd = -1
        try:
            self._remove_unfinished(new)
            fd = disk.open(new, is_new=True)
            if not disk.lock(fd):
                raise OSError(errno.EWOULDBLOCK, "another upload at work on it")
            disk.write(fd, data, 0)
            if self._is_power_safe:
                disk.sync(fd)
            disk.rename(new, path)
        except OSError as error:
            if fd >= 0:
                disk.close(fd)
                with contextlib.suppress(OSError):
                    disk.unlink(new)
            raise self._failed("written anew", error) from error
        disk.close(self._fd)
        self._fd, self._end, self._version = fd, len(data), VERSION
        self._is_dirty, self._is_entry_dirty = False, True
        self.damage = self.foreign = None
        self._opened_at = None if records else HEADER_BYTES
        self.state = fold_all([self._opened, *records])
        self.sync()
        if aside is not None:
            _log.warning("checkpoint file %s: written anew; what was there is kept as %s", path, aside)

    def remove(self) -> None:
        """Deletes the file and gives the lock up."""
        with contextlib.suppress(OSError):
            self._remove_unfinished(f"{self._path}.new")
        with contextlib.suppress(OSError):  # Why: a record of a finished upload may come back, and be found so
            self._disk.unlink(self._path)
            if self._is_power_safe:
                self._disk.sync_directory(self._path)
        self.close()

    def leave(self) -> None:
        """Syncs the file and gives the lock up; a journal that knows of no upload is not left lying about.

        Where nothing was stored since `claim`, the name that it wrote is taken back: the file is what it was.

        Raises:
            JournalError: the disk failed; the lock is given up nevertheless.
        """
        if self._fd < 0:
            return  # removed
        is_without_progress = self.state.upload_id is None and not self.state.parts
        if is_without_progress and self.damage is None and self.foreign is None:
            self.remove()
            return
        try:
            if self._is_claimed and self._opened_at is not None:  # nothing was stored: the file is left as it was found
                self._end = self._opened_at
                self._write(self._opener)
                self._cut()
            self.sync()
        finally:
            self.close()

    def close(self) -> None:
        """Gives the lock up; the file stays as it is."""
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1

    def _write(self, data: bytes) -> None:
        try:
            self._disk.write(self._fd, data, self._end)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._disk.truncate(self._fd, self._end)
            raise self._failed("written", error) from error
        self._end += len(data)
        self._opened_at = None
        self._is_dirty = True

    def _cut(self) -> None:
        try:
            if self._disk.size(self._fd) > self._end:
                self._disk.truncate(self._fd, self._end)
                self._is_dirty = True
        except OSError as error:
            raise self._failed("cut", error) from error

    def _set_aside(self) -> str | None:
        """Gives a file that is damaged, or not ours, a second name, durably; None where there is no need."""
        if self.damage is None and self.foreign is None:
            return None
        why = "damaged" if self.damage is not None else "sdk"
        for number in range(1, 10_000):
            aside = f"{self._path}.{why}" + (f".{number}" if number > 1 else "")
            if self._is_kept_as(aside):
                return aside
        raise JournalError(f"checkpoint file {self._path!r}: expected a free name beside it, found none; tidy up there")

    def _is_kept_as(self, aside: str) -> bool:
        """Keeps the file under that name, too; False where the name is taken."""
        try:
            if not self._disk.is_at(self._fd, aside):  # else by an earlier call, which failed later
                try:
                    self._disk.link(self._path, aside)
                except FileExistsError:
                    raise
                except OSError:  # a filesystem that has no second names
                    self._copy(aside)
            if self._is_power_safe:
                self._disk.sync_directory(aside)
        except FileExistsError:
            return False
        except OSError as error:
            raise self._failed("kept aside", error) from error
        return True

    def _copy(self, aside: str) -> None:
        disk = self._disk
        fd = disk.open(aside, is_new=True)
        try:
            disk.write(fd, disk.read(self._fd, disk.size(self._fd), 0), 0)
            disk.sync(fd)
        except OSError:
            with contextlib.suppress(OSError):
                disk.unlink(aside)
            raise
        finally:
            disk.close(fd)

    def _remove_unfinished(self, new: str) -> None:
        """Takes away what a crash left of an earlier rewriting, and nothing that is not ours."""
        with contextlib.suppress(FileNotFoundError):
            with open(new, "rb") as file:
                first = file.read(HEADER_BYTES)
            if not header().startswith(first.rstrip(b"\0")):  # a power loss may leave zeros
                raise OSError(errno.EEXIST, f"{new!r}, which is no journal, in the way")
            self._disk.unlink(new)

    def _failed(self, verb: str, error: OSError) -> JournalError:
        return JournalError(
            f"checkpoint file {self._path!r}: expected to be {verb}, found {error.strerror}; free the disk or name "
            "another checkpointFile, then call again",
            checkpoint_file=self._path,
        )


def _open_locked(path: str, disk: Disk) -> int:
    while True:
        try:
            fd = disk.open(path)
        except OSError as error:
            raise JournalError(
                f"checkpoint file {path!r}: expected a file that can be written, found {error.strerror}; "
                "name another checkpointFile or change the directory's mode"
            ) from None
        try:
            is_locked = disk.lock(fd)
            # It may be that of a file which its last owner has just removed: only the one under the name counts.
            is_ours = is_locked and disk.is_at(fd, path)
        except OSError as error:
            disk.close(fd)
            raise JournalError(
                f"checkpoint file {path!r}: expected a lock, found {error.strerror}; name a checkpointFile on a "
                "filesystem that has locks"
            ) from None
        if not is_locked:
            disk.close(fd)
            raise _locked(path)
        if is_ours:
            return fd
        disk.close(fd)


def _locked(path: str) -> JournalLockedError:
    state = peek(path)
    holder = state.opened if state is not None else None
    found = "another upload at work on it"
    if holder is not None:
        since = datetime.fromtimestamp(holder.since_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        found = f"process {holder.pid} on host {holder.host} at work on it since {since}"
    return JournalLockedError(
        f"checkpoint file {path!r}: expected to be its only writer, found {found}; wait for that one, or name another "
        "checkpointFile",
        checkpoint_file=path,
    )


def _read(fd: int, path: str, disk: Disk) -> bytes:
    try:
        first = disk.read(fd, _FIRST_BYTES, 0)
        size = disk.size(fd)
        if looks_like_json(first):
            size = min(size, FOREIGN_MAX_BYTES)
        elif not looks_like_journal(first):
            return first  # no journal, and perhaps a very large file
        chunks, offset = [first], len(first)
        while offset < size and (chunk := disk.read(fd, size - offset, offset)):
            chunks.append(chunk)
            offset += len(chunk)
        return b"".join(chunks)
    except OSError as error:
        raise JournalError(
            f"checkpoint file {path!r}: expected a readable file, found {error.strerror}; name another checkpointFile"
        ) from None


def read_file(path: str) -> bytes:
    """The bytes of a checkpoint file, read without its lock and without changing it.

    Raises:
        JournalError: it cannot be read, or is neither a journal nor a record of the official SDK.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise JournalError(
            f"checkpoint file {path!r}: expected a readable file, found {error.strerror}; check the path"
        ) from None
    try:
        return _read(fd, path, _DISK)
    finally:
        os.close(fd)


def peek(path: str) -> UploadState | None:
    """What a journal says, read without its lock and without changing it; None where it cannot be read as one."""
    try:
        return recover(read_file(path), path).state
    except JournalError:
        return None
