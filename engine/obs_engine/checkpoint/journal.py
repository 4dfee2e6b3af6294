"""The journal file: one writer under a lock, records appended and synced, an unfinished tail cut off.

*Torn* and *damaged* are different words: a torn tail is what a crash leaves of the last write, and is cut; a bad
record with sound ones behind it is damage, and is reported, never repaired in silence.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
from dataclasses import dataclass
from typing import Protocol

from obs_engine.checkpoint.fold import ContradictoryRecord, UploadState, fold
from obs_engine.checkpoint.records import (
    HEADER_BYTES,
    MAGIC,
    VERSION,
    Record,
    UnreadableRecord,
    decode,
    encode,
    header,
    read_header,
)
from obs_engine.errors import JournalDamagedError, JournalError, JournalLockedError, JournalVersionError

_log = logging.getLogger("obs_engine")


@dataclass(frozen=True)
class Recovered:
    """What a journal's bytes hold: the folded state, and the length of its sound part (0 for a new file)."""

    state: UploadState
    sound_bytes: int


def recover(data: bytes, path: str) -> Recovered:
    """Reads a journal's bytes.

    Raises:
        JournalVersionError: not a journal, or of another version.
        JournalDamagedError: a bad record with sound ones behind it, or one that contradicts those before it.
    """
    state = UploadState()
    if len(data) < HEADER_BYTES and header().startswith(data):
        return Recovered(state, 0)  # torn at its birth: nothing had been started on the service yet
    version = read_header(data)
    if version is None and not data.startswith(MAGIC):
        raise JournalVersionError(
            f"checkpoint file {path!r}: expected an obs-engine journal, found another file beginning with "
            f"{data[:12]!r}; it was left as it is: name another checkpointFile"
        )
    if version is None:
        if not data[HEADER_BYTES:].strip(b"\0"):
            return Recovered(state, 0)
        raise _damaged(path, 0, "a sound header", "one that does not match its checksum")
    if version != VERSION:
        raise JournalVersionError(
            f"checkpoint file {path!r}: expected version {VERSION}, found {version}; continue this upload with the "
            "release that began it, or name another checkpointFile"
        )
    offset = HEADER_BYTES
    while offset < len(data):
        try:
            record, end = decode(data, offset)
        except UnreadableRecord as error:
            if _has_sound_record(data, offset + 1):
                raise _damaged(path, offset, "a sound record", str(error)) from None
            break
        try:
            fold(state, record)
        except ContradictoryRecord as error:
            raise _damaged(path, offset, "a record that follows from those before it", str(error)) from None
        offset = end
    return Recovered(state, offset)


def _has_sound_record(data: bytes, start: int) -> bool:
    for offset in range(start, len(data)):
        with contextlib.suppress(UnreadableRecord):
            decode(data, offset)
            return True
    return False


def _damaged(path: str, offset: int, expected: str, found: str) -> JournalDamagedError:
    return JournalDamagedError(
        f"checkpoint file {path!r}, offset {offset}: expected {expected}, found {found}; the file was left as it is: "
        "move it away to begin anew"
    )


class JournalLike(Protocol):
    """What the coordinator needs of a journal."""

    path: str | None
    state: UploadState

    def append(self, record: Record) -> None: ...
    def sync(self) -> None: ...
    def restart(self) -> None: ...
    def remove(self) -> None: ...
    def close(self) -> None: ...


class NoJournal:
    """The journal of an upload without a checkpoint: the state, and nothing on disk."""

    path: str | None = None

    def __init__(self) -> None:
        self.state = UploadState()

    def append(self, record: Record) -> None:
        fold(self.state, record)

    def sync(self) -> None: ...

    def restart(self) -> None:
        self.state = UploadState()

    def remove(self) -> None: ...

    def close(self) -> None: ...


class Journal:
    """An open, locked journal.

    Invariant: `state` is exactly what the file's sound bytes fold into.
    """

    path: str | None

    def __init__(self, path: str, *, is_power_safe: bool = True) -> None:
        """Opens or creates `path` (mode 0600), takes its lock and recovers what it holds.

        Args:
            is_power_safe: `sync` means fsync; otherwise it does nothing, as a kill loses no written byte.

        Raises:
            JournalLockedError: another process writes it.
            JournalVersionError, JournalDamagedError: see `recover`; the file is unchanged.
            JournalError: it cannot be created, read or written.
        """
        self.path = path
        self._path = path
        self._is_power_safe = is_power_safe
        self._is_dirty = False
        self._fd = _open_locked(path)
        try:
            recovered = recover(_read(self._fd, path), path)
            self.state = recovered.state
            self._end = recovered.sound_bytes
            self._cut()
            if self._end == 0:
                self._write(header())
                self.sync()
                self._sync_directory()
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, record: Record) -> None:
        """Writes a record behind the others, then folds it into `state`. Not yet synced.

        Raises:
            JournalError: the disk is full or failed; the journal holds what it held before.
        """
        self._write(encode(record))
        fold(self.state, record)

    def sync(self) -> None:
        """Makes all that was appended durable, as far as the durability policy asks."""
        if not (self._is_power_safe and self._is_dirty):
            self._is_dirty = False
            return
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._failed("synced", error) from error
        self._is_dirty = False

    def restart(self) -> None:
        """Forgets all records: the caller has the user's or the service's word for it."""
        self._end = 0
        self._cut()
        self.state = UploadState()
        self._write(header())

    def remove(self) -> None:
        """Deletes the file and gives the lock up."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        with contextlib.suppress(JournalError):  # Why: a record of a finished upload may come back, and be found so
            self._sync_directory()
        self.close()

    def close(self) -> None:
        """Gives the lock up; the file stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, data: bytes) -> None:
        try:
            written = os.pwrite(self._fd, data, self._end)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)
            raise self._failed("written", error) from error
        self._end += len(data)
        self._is_dirty = True

    def _cut(self) -> None:
        size = os.fstat(self._fd).st_size
        if size > self._end:
            if self._end:
                _log.info("checkpoint file %s: cut an unfinished tail of %d bytes", self._path, size - self._end)
            try:
                os.ftruncate(self._fd, self._end)
            except OSError as error:
                raise self._failed("cut", error) from error
            self._is_dirty = True

    def _sync_directory(self) -> None:
        if not self._is_power_safe:
            return
        try:
            fd = os.open(os.path.dirname(self._path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._failed("synced with its directory", error) from error

    def _failed(self, verb: str, error: OSError) -> JournalError:
        return JournalError(
            f"checkpoint file {self._path!r}: expected to be {verb}, found {error.strerror}; free the disk or name "
            "another checkpointFile, then call again",
            checkpoint_file=self._path,
        )


def _open_locked(path: str) -> int:
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise JournalError(
                f"checkpoint file {path!r}: expected a file that can be written, found {error.strerror}; "
                "name another checkpointFile or change the directory's mode"
            ) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise JournalError(f"checkpoint file {path!r}: expected a regular file; name another checkpointFile")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise JournalError(
                    f"checkpoint file {path!r}: expected a lock, found {error.strerror}; name a checkpointFile on a "
                    "filesystem that has locks"
                ) from None
            raise JournalLockedError(
                f"checkpoint file {path!r}: expected to be its only writer, found another upload at work on it; "
                "wait for that one, or name another checkpointFile",
                checkpoint_file=path,
            ) from None
        # The lock may be that of a file which its last owner has just removed: only the one under the name counts.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        os.close(fd)


def _read(fd: int, path: str) -> bytes:
    try:
        first = os.pread(fd, HEADER_BYTES, 0)
        if not header().startswith(first) and not first.startswith(MAGIC):
            return first  # no journal, and perhaps a very large file
        size = os.fstat(fd).st_size
        chunks, offset = [], 0
        while chunk := os.pread(fd, max(1, size - offset), offset):
            chunks.append(chunk)
            offset += len(chunk)
        return b"".join(chunks)
    except OSError as error:
        raise JournalError(
            f"checkpoint file {path!r}: expected a readable file, found {error.strerror}; name another checkpointFile"
        ) from None


def peek(path: str) -> UploadState | None:
    """What a journal says, read without its lock and without changing it; None where it cannot be read as one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return recover(_read(fd, path), path).state
    except JournalError:
        return None
    finally:
        os.close(fd)
