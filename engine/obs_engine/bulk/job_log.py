"""The log of a job: one writer under a lock, records appended and synced, an unfinished tail cut off.

Runs where the job runs. The log is a memory of what is done: what it loses is sent again, and what it says counts only
for a file that is still what it was. A damaged log is kept beside the sound one that takes its name.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from itertools import islice
from typing import NamedTuple

from obs_engine.bulk.file_table import DONE, NONE, SKIPPED
from obs_engine.bulk.job_records import (
    FILES_MAX,
    HEADER_BYTES,
    Cleared,
    Ended,
    Entry,
    Failed,
    Files,
    JobState,
    Listed,
    Opened,
    Record,
    Scanned,
    Withdrawn,
    encode,
    fold,
    header,
    last_word,
    scan,
)
from obs_engine.checkpoint.disk import Disk
from obs_engine.errors import JournalError, JournalLockedError

_log = logging.getLogger("obs_engine")

TEXTS_MAX = 10_000
"""So many failures are logged with their texts; the manifest has those of all."""
_BEGINNING_BYTES = 64 << 10
_COPY_BYTES = 1 << 20
_LOOKS = 10_000
_DISK = Disk()


class Known(NamedTuple):
    """What a log knows of a file.

    Attributes:
        outcome: `DONE`, `SKIPPED` or `FAILED` if the file is what it was then; else `NONE`.
        is_changed: it is said to be done as it was, and has changed. To be withdrawn before it is sent.
    """

    outcome: int
    is_changed: bool = False


class JobLog:
    """A locked log.

    Invariant: once it is claimed, `state` is exactly what the file's bytes fold into.

    Attributes:
        state: what the log says; of a damaged one, what is left.
        damage: what was wrong with the file when it was opened, None if nothing.
    """

    def __init__(self, path: str, *, is_power_safe: bool = True, disk: Disk = _DISK) -> None:
        """Opens or creates `path` (mode 0600), takes its lock and reads it; writes nothing yet.

        Args:
            is_power_safe: `sync` means fsync; otherwise it does nothing, as a kill loses no written byte.

        Raises:
            JournalLockedError: another process writes it.
            JournalVersionError, JournalDamagedError: see `scan`; the file is unchanged.
            JournalError: it cannot be created or read.
        """
        self.path = path
        self._is_power_safe = is_power_safe
        self._disk = disk
        self._is_dirty = self._is_entry_dirty = False
        self._fd = open_locked(path, disk)
        try:
            self._size, found = _scanned(self._fd, path, disk)
        except BaseException:
            self.close()
            raise
        self.state, self._end, self.damage, self._ranges = found.state, found.sound_bytes, found.damage, found.ranges

    def claim(self, opened: Opened, beginning: Sequence[Record] = ()) -> None:
        """Makes the log sound, and says durably who writes it, and which job it is where the log does not know.

        Args:
            opened: who writes from now on.
            beginning: the records of `beginning`, where the caller knows the job.

        Raises:
            JournalError: the disk is full or failed.
        """
        if self.damage is not None:
            aside = self._set_aside()
            self._rewrite(self._ranges)
            _log.warning("job log %s is damaged at %s: what was there is kept as %s", self.path, self.damage, aside)
        elif self._size > self._end:
            _log.info("job log %s: cut an unfinished tail of %d bytes", self.path, self._size - self._end)
            self._cut()
        is_unknown = self.state.whole_arguments() is None
        if self._end < HEADER_BYTES:
            self._write(header())
            self._is_entry_dirty = True
        for record in (*(beginning if is_unknown else ()), opened):
            self.append(record)
        self.sync()

    def restart(self, opened: Opened, beginning: Sequence[Record]) -> None:
        """Begins the job anew: nothing is done. The old log stands until the new one takes its name.

        Raises:
            JournalError: the disk is full or failed; the old log is as it was.
        """
        if self.damage is not None:
            self._set_aside()
        state = JobState()
        for record in (*beginning, opened):
            fold(state, record)
        self._rewrite(tuple(encode(record, 0) for record in (*beginning, opened)))
        self.state = state

    def look(self, name: int, identity: int) -> Known:
        """What is known of a file, by `file_name` and `file_identity`."""
        was, outcome = self.state.files.get(name)
        if was == identity:
            return Known(outcome)
        return Known(NONE, is_changed=outcome in (DONE, SKIPPED))

    def withdraw(self, names: Iterable[int]) -> None:
        """Takes durably back what was said of files that have changed. Before they are sent; one sync for all given.

        Why: a file that is put back as it was would be believed, when the service has what it was in between.

        Raises:
            JournalError: the disk is full or failed; then nothing may be sent.
        """
        iterator = iter(names)
        while some := tuple(islice(iterator, FILES_MAX)):
            self.append(Withdrawn(some))
        self.sync()

    def done(self, entries: Iterable[Entry], outcome: int = DONE) -> None:
        """Says that files are done, or `SKIPPED`. Not yet synced.

        Raises:
            JournalError: the disk is full or failed; the log holds what it held before this record.
        """
        assert outcome in (DONE, SKIPPED)
        iterator = iter(entries)
        while some := tuple(islice(iterator, FILES_MAX)):
            self.append(Files.of(outcome, some))

    def failed(self, entry: Entry, path: str, cause: str) -> None:
        """Says that a file could not be sent. Not yet synced; raises as `done` does."""
        has_room = self.state.texts < TEXTS_MAX
        self.append(Failed(entry, path, cause) if has_room else Failed(entry, "", ""))

    def mark_listed(self) -> None:
        """Says that the manifest has all files so far, and is on the disk. Not yet synced; raises as `done` does."""
        if self.state.unlisted:
            self.append(Listed())

    def end(self, since_s: int, ending: str) -> Ended:
        """Says durably how this run ended, one of `ENDINGS`; raises as `done` does."""
        record = self.state.how_it_ended(since_s, ending)
        self.append(record)
        self.sync()
        return record

    def append(self, record: Record) -> None:
        """Writes a record behind the others, then folds it into `state`. Not yet synced.

        Raises:
            JournalError: the disk is full or failed; the log holds what it held before.
        """
        self._write(encode(record, self._withdrawals(record)))
        fold(self.state, record)

    def sync(self) -> None:
        """Makes all that was appended durable, as far as the durability policy asks.

        Raises:
            JournalError: the disk failed. What it holds is not known: no more may be built on this log.
        """
        if self._is_power_safe:
            try:
                if self._is_dirty:
                    self._disk.sync(self._fd)
                if self._is_entry_dirty:
                    self._disk.sync_directory(self.path)
            except OSError as error:
                raise self._failed("synced", error) from error
        self._is_dirty = self._is_entry_dirty = False

    def remove(self) -> None:
        """Deletes the file and gives the lock up.

        Raises:
            JournalError: it cannot be deleted.
        """
        try:
            self._disk.unlink(self.path)
        except OSError as error:
            raise self._failed("deleted", error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Gives the lock up; the file stays as it is."""
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1

    def _withdrawals(self, record: Record) -> int:
        return (self.state.withdrawals + isinstance(record, Withdrawn)) & 0xFFFF_FFFF

    def _write(self, data: bytes) -> None:
        try:
            self._disk.write(self._fd, data, self._end)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._disk.truncate(self._fd, self._end)
            raise self._failed("written", error) from error
        self._end += len(data)
        self._is_dirty = True

    def _cut(self) -> None:
        try:
            self._disk.truncate(self._fd, self._end)
        except OSError as error:
            raise self._failed("cut", error) from error
        self._is_dirty = True

    def _rewrite(self, pieces: Iterable[bytes | tuple[int, int] | int]) -> None:
        """Puts a log of these pieces in the place of the old one, at once and durably: bytes, or ranges of `scan`."""
        disk, new = self._disk, f"{self.path}.new"
        fd, end = -1, 0
        try:
            disk.unlink(new)  # what a crash left; nobody else writes under our lock
            fd = disk.open(new, is_new=True)
            if not disk.lock(fd):
                raise OSError(errno.EWOULDBLOCK, "somebody else at work on it")
            for piece in (header(), *pieces):
                for data in self._bytes_of(piece):
                    disk.write(fd, data, end)
                    end += len(data)
            if self._is_power_safe:
                disk.sync(fd)
            disk.rename(new, self.path)
        except OSError as error:
            if fd >= 0:
                disk.close(fd)
                with contextlib.suppress(OSError):
                    disk.unlink(new)
            raise self._failed("written anew", error) from error
        disk.close(self._fd)
        self._fd, self._end, self._size, self._ranges = fd, end, end, ()
        self._is_dirty, self._is_entry_dirty = False, True
        self.sync()

    def _bytes_of(self, piece: bytes | tuple[int, int] | int) -> Iterable[bytes]:
        if isinstance(piece, bytes):
            yield piece
        elif isinstance(piece, int):
            yield encode(Cleared(), piece)
        else:
            for at in range(*piece, _COPY_BYTES):
                yield self._disk.read(self._fd, min(_COPY_BYTES, piece[1] - at), at)

    def _set_aside(self) -> str:
        """Keeps the damaged file under a second name, durably."""
        for number in range(1, 10_000):
            aside = f"{self.path}.damaged" + (f".{number}" if number > 1 else "")
            try:
                if not self._disk.is_at(self._fd, aside):  # else by an earlier call, which failed later
                    self._link(aside)
                if self._is_power_safe:
                    self._disk.sync_directory(aside)
            except FileExistsError:
                continue
            except OSError as error:
                raise self._failed("kept aside", error) from error
            return aside
        raise JournalError(f"job log {self.path!r}: expected a free name beside it, found none; tidy up there")

    def _link(self, aside: str) -> None:
        disk = self._disk
        try:
            disk.link(self.path, aside)
            return
        except FileExistsError:
            raise
        except OSError:  # a filesystem that has no second names
            fd = disk.open(aside, is_new=True)
        try:
            for at in range(0, self._size, _COPY_BYTES):
                disk.write(fd, disk.read(self._fd, _COPY_BYTES, at), at)
            disk.sync(fd)
        except OSError:
            with contextlib.suppress(OSError):
                disk.unlink(aside)
            raise
        finally:
            disk.close(fd)

    def _failed(self, verb: str, error: OSError) -> JournalError:
        return JournalError(
            f"job log {self.path!r}: expected to be {verb}, found {error.strerror}; free the disk or name another "
            "state directory, then run the job again"
        )


class Peeked(NamedTuple):
    """What a log says to somebody who only looks.

    Attributes:
        state: what it says; None where it could not be read.
        ended: how its last run ended, and the counts; None where it did not.
        is_held: a process writes the log.
        is_whole: all of it was read; else its beginning and its last record, which tell the counts.
        fault: why it could not be read; "" where it could.
    """

    state: JobState | None = None
    ended: Ended | None = None
    is_held: bool = False
    is_whole: bool = True
    fault: str = ""


def peek(path: str, *, is_whole: bool = True, disk: Disk = _DISK) -> Peeked:
    """Looks at a log without changing it, and without being in its writer's way.

    Args:
        is_whole: read it all, also where its last record tells the counts.

    Raises:
        FileNotFoundError: there is none.
    """
    fd, is_held = -1, False
    try:
        is_held = _is_held(path, disk)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        ended = last_word(lambda length, at: disk.read(fd, length, at), disk.size(fd))
        is_whole = is_whole or is_held or ended is None
        _, found = _scanned(fd, path, disk, None if is_whole else _BEGINNING_BYTES)
    except FileNotFoundError:
        raise
    except JournalError as error:
        return Peeked(is_held=is_held, fault=str(error))
    except OSError as error:
        return Peeked(is_held=is_held, fault=f"it cannot be read: {error.strerror}")
    finally:
        if fd >= 0:
            os.close(fd)
    return Peeked(found.state, found.state.ended if is_whole else ended, is_held, is_whole)


def _is_held(path: str, disk: Disk) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return not disk.share(fd)
    except OSError:  # a filesystem without locks
        return False
    finally:
        os.close(fd)  # Why at once: who comes to write the log has to wait for those who look at it


def open_locked(path: str, disk: Disk = _DISK) -> int:
    """Opens or creates a log and takes its lock.

    Raises:
        JournalLockedError: another process writes it.
        JournalError: it cannot be opened or locked.
    """
    while True:
        try:
            fd = disk.open(path)
        except OSError as error:
            raise JournalError(
                f"job log {path!r}: expected a file that can be written, found {error.strerror}; name another state "
                "directory or change its mode"
            ) from None
        try:
            is_locked = _lock(fd, disk)
            # It may be that of a file which its last owner has just removed: only the one under the name counts.
            is_ours = is_locked and disk.is_at(fd, path)
        except OSError as error:
            disk.close(fd)
            raise JournalError(
                f"job log {path!r}: expected a lock, found {error.strerror}; name a state directory on a filesystem "
                "that has locks"
            ) from None
        if is_ours:
            return fd
        disk.close(fd)
        if not is_locked:
            raise JournalLockedError(
                f"job log {path!r}: expected to be its only writer, found {holder(path)} at work on it; wait for that "
                "one, or pause or cancel the job"
            )


def holder(path: str) -> str:
    """Who writes a log, for a message."""
    opened = None
    with contextlib.suppress(FileNotFoundError):
        state = peek(path).state
        opened = state.opened if state is not None else None
    if opened is None:
        return "another process"
    since = datetime.fromtimestamp(opened.since_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"process {opened.pid} on host {opened.host} (since {since})"


def _lock(fd: int, disk: Disk) -> bool:
    for _ in range(_LOOKS):
        if disk.lock(fd):
            return True
        if not disk.share(fd):
            return False
        os.sched_yield()  # only people who look at the job have it: they are gone in a moment
    return False


def _scanned(fd: int, path: str, disk: Disk, max_bytes: int | None = None) -> tuple[int, Scanned]:
    """The length of a log, and what it says; or what its first `max_bytes` do."""
    try:
        size = disk.size(fd) if max_bytes is None else min(disk.size(fd), max_bytes)
        return size, scan(lambda length, at: disk.read(fd, min(length, size - at), at), size, path)
    except OSError as error:
        raise JournalError(
            f"job log {path!r}: expected a readable file, found {error.strerror}; name another state directory"
        ) from None
