"""Who a file is: enough of its inode to tell whether it is still the one that an upload began with."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from obs_engine.errors import (
    InvalidArgumentError,
    SourceChangedError,
    SourceError,
    SourceNotFoundError,
    SourceTruncatedError,
    SourceUnreadableError,
)


@dataclass(frozen=True)
class FileIdentity:
    """Size in bytes, times in nanoseconds since 1970, inode and device, as `stat` gives them."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    def is_same_content(self, other: FileIdentity) -> bool:
        """True where size and modification time agree.

        Why not inode, device and ctime: a copy restored with its times, a remount, or a chmod keeps the content.
        """
        return (self.size_bytes, self.mtime_ns) == (other.size_bytes, other.mtime_ns)


def identify(path: str) -> FileIdentity:
    """Looks at a file (symbolic links are followed).

    Raises:
        SourceNotFoundError, SourceUnreadableError: missing, or not readable by this user.
        InvalidArgumentError: a directory, FIFO, device or socket.
    """
    try:
        # Why O_NONBLOCK: opening a FIFO without a writer would wait for one.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SourceNotFoundError(
            f"uploadFile {path!r}: expected a file, found nothing; check the path and that its disk is mounted"
        ) from None
    except PermissionError:
        raise SourceUnreadableError(
            f"uploadFile {path!r}: expected a readable file, found no permission; change its mode or the user"
        ) from None
    except OSError as error:
        raise SourceError(
            f"uploadFile {path!r}: expected a readable file, found {error.strerror or error}; check the path"
        ) from None
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise InvalidArgumentError("uploadFile", "a regular file", f"{path} ({_kind(found.st_mode)})", "name a file")
    return FileIdentity(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)


def recheck(path: str, before: FileIdentity) -> FileIdentity:
    """Looks at a file again while it is uploaded: is it still the one that was identified `before`?

    Raises:
        SourceTruncatedError: it has become shorter.
        SourceChangedError: its size or modification time is another, or there is no such file any more.
    """
    try:
        now = identify(path)
    except (SourceError, InvalidArgumentError) as error:
        raise SourceChangedError(
            f"uploadFile {path!r}: expected the file that the upload began with, found it gone or replaced meanwhile; "
            "nothing was completed: restore it, then call again"
        ) from error
    if now.size_bytes < before.size_bytes:
        raise truncated(f"uploadFile {path!r}", before.size_bytes, now.size_bytes)
    if not now.is_same_content(before):
        raise SourceChangedError(
            f"uploadFile {path!r}: expected the file that the upload began with (size and modification time), "
            "found it changed meanwhile; nothing was completed: call again to upload what it is now"
        )
    return now


def truncated(what: str, expected_bytes: int, found_bytes: int) -> SourceTruncatedError:
    """The error for a file that should go on, and ends."""
    return SourceTruncatedError(
        f"{what}: expected at least {expected_bytes} bytes, found {found_bytes}: the file was cut while it was "
        "uploaded, and nothing was completed; restore it, or call again to upload what it is now",
        expected_bytes=expected_bytes,
        found_bytes=found_bytes,
    )


def _kind(mode: int) -> str:
    names = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
             stat.S_IFCHR: "a character device", stat.S_IFBLK: "a block device"}  # fmt: skip
    return names.get(stat.S_IFMT(mode), "a special file")
