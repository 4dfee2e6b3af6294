"""The few calls by which a journal touches a disk: all of them, so that a test can take the power away between any two.

Knows descriptors and paths; does not know records, or what is written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat


class Disk:
    """The operating system's files. Every method raises OSError as the call behind it does."""

    def open(self, path: str, *, is_new: bool = False) -> int:
        """Opens `path` for reading and writing, created with mode 0600 where it is missing; `is_new`: it must be.

        Raises:
            OSError: also with EINVAL where it is no regular file.
        """
        # Why O_NONBLOCK: opening a FIFO without a reader would wait for one.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_EXCL if is_new else 0)
        fd = os.open(path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "something that is no regular file")
        return fd

    def open_to_append(self, path: str) -> int:
        """Opens `path` for lines at its end, created with mode 0600 where it is missing."""
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o600)

    def append(self, fd: int, data: bytes) -> None:
        """Writes all of `data` at the end, at once; where the disk takes a part of it only, that is ENOSPC."""
        written = os.write(fd, data)
        if written != len(data):
            os.ftruncate(fd, os.fstat(fd).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def lock(self, fd: int) -> bool:
        """Takes the lock of an open file; False where somebody else has it. It ends with the descriptor."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            return False
        return True

    def share(self, fd: int) -> bool:
        """Takes the lock of an open file together with others who only look; False where a writer has it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            return False
        return True

    def is_at(self, fd: int, path: str) -> bool:
        """Does `path` still lead to this open file?"""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(fd), os.stat(path))
        return False

    def size(self, fd: int) -> int:
        """Bytes of an open file."""
        return os.fstat(fd).st_size

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """Up to `length` bytes from `offset`; none at the end."""
        return os.pread(fd, length, offset)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """Writes all of `data` at `offset`; where the disk takes a part of it only, that is ENOSPC."""
        if os.pwrite(fd, data, offset) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def truncate(self, fd: int, length: int) -> None:
        """Cuts an open file."""
        os.ftruncate(fd, length)

    def sync(self, fd: int) -> None:
        """Returns when the file's bytes and its length are on the disk."""
        getattr(os, "fdatasync", os.fsync)(fd)

    def sync_directory(self, path: str) -> None:
        """Returns when the entry of `path` in its directory is on the disk, as far as the filesystem can say so."""
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a network filesystem, which keeps its directories by itself
                raise
        finally:
            os.close(fd)

    def link(self, path: str, other: str) -> None:
        """Gives a file a second name, which must be new."""
        os.link(path, other)

    def rename(self, path: str, other: str) -> None:
        """Gives a file another name, in place of what had it, at once."""
        os.rename(path, other)

    def unlink(self, path: str) -> None:
        """Takes a name away; none is no error."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def close(self, fd: int) -> None:
        """Closes a file, and gives its lock up."""
        os.close(fd)
