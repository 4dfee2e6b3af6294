"""A window onto a file: the bytes of one part, to be read in slices from front to back. Runs in a worker.

Mapped, no byte is copied on its way to the connection. Why a window and not the whole file: every page of a mapping
that was touched counts as this process's memory, so a 2 GB file mapped whole looks like 2 GB. Where mapping is unwise,
slices are read into a buffer.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import Protocol

from obs_engine.errors import SourceError
from obs_engine.source.identity import truncated

STEP_BYTES = 1 << 20
_MADV_POPULATE_READ = 22  # of Linux 5.14; Python does not name it


class Window(Protocol):
    """`length` bytes of a file. A slice shows exactly the file's bytes, and holds until the next one or `close`."""

    def __len__(self) -> int: ...

    def __getitem__(self, piece: slice, /) -> memoryview:
        """The bytes from `piece.start` to `piece.stop`.

        Raises:
            SourceTruncatedError: the file has become shorter than that.
            SourceError: its disk fails.
        """

    def close(self) -> None: ...


def open_window(
    descriptor: int, offset: int, length: int, reader: str, *, keeps_pages: bool = False, step_bytes: int = STEP_BYTES
) -> Window:
    """A window onto `length` bytes from `offset`, which needs no alignment.

    Args:
        reader: "mmap" or "pread".
        step_bytes: so much is mapped ahead of what is read, and as much stays mapped behind it.
        keeps_pages: what is mapped stays mapped, to be read again.

    Raises:
        SourceTruncatedError: the file ends before.
    """
    size = os.fstat(descriptor).st_size
    if offset + length > size:
        raise truncated("uploadFile", offset + length, size)
    if reader == "pread":
        return ReadWindow(descriptor, offset, length)
    return MappedWindow(descriptor, offset, length, keeps_pages=keeps_pages, step_bytes=step_bytes)


class MappedWindow:
    """A window that is mapped.

    Pages are mapped some ahead of a slice, in one call instead of a fault for each, and given up well behind it (they
    stay in the system's cache), so that a part of 5 GB costs this process no more than one of 9 MB. Going back is
    allowed: they are mapped again.
    """

    def __init__(
        self, descriptor: int, offset: int, length: int, *, keeps_pages: bool = False, step_bytes: int = STEP_BYTES
    ) -> None:
        self._descriptor = descriptor
        self._keeps_pages = keeps_pages
        self._step_bytes = max(mmap.PAGESIZE, step_bytes & -mmap.PAGESIZE)
        self._offset = offset - offset % mmap.ALLOCATIONGRANULARITY
        self._length = length
        self._slack = offset % mmap.ALLOCATIONGRANULARITY
        self._first = self._last = 0  # of the mapping, the pages from first to last are mapped
        self._map: mmap.mmap | None = None
        self._view = memoryview(b"")
        if length:
            self._map = mmap.mmap(
                descriptor, self._slack + length, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset - self._slack
            )
            self._map.madvise(mmap.MADV_SEQUENTIAL)
            self._map.madvise(mmap.MADV_WILLNEED)
            self._view = memoryview(self._map)[self._slack :]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, piece: slice) -> memoryview:
        if self._map is not None:
            self._move(self._map, self._slack + piece.start, self._slack + piece.stop)
        return self._view[piece]

    def _move(self, mapping: mmap.mmap, start: int, stop: int) -> None:
        start &= -mmap.PAGESIZE
        if not self._first <= start <= self._last:
            self._give_up(mapping, self._last)
            self._first = self._last = start
        elif start - self._first >= self._step_bytes:
            self._give_up(mapping, start)
            self._first = start
        while self._last < min(stop, len(mapping)):
            length = min(self._step_bytes, len(mapping) - self._last)
            try:
                mapping.madvise(_MADV_POPULATE_READ, self._last, length)
            except OSError as error:
                if error.errno == errno.EFAULT:  # touching these pages would be SIGBUS
                    raise self._unreadable() from None
                # An older kernel: the pages come one fault at a time.
            self._last += length

    def _give_up(self, mapping: mmap.mmap, stop: int) -> None:
        if self._first < stop and not self._keeps_pages:
            mapping.madvise(mmap.MADV_DONTNEED, self._first, stop - self._first)

    def _unreadable(self) -> SourceError:
        size, end = os.fstat(self._descriptor).st_size, self._offset + self._slack + self._length
        if size < end:
            return truncated("uploadFile", end, size)
        return _failed(self._offset + self._last, "its disk failing")

    def close(self) -> None:
        """Gives the mapping up; slices must not be used any more."""
        self._view.release()
        if self._map is not None:
            self._map.close()
            self._map = None


class MemoryWindow:
    """A window onto bytes that were read before."""

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data)

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, piece: slice, /) -> memoryview:
        return self._view[piece]

    def close(self) -> None:
        self._view = memoryview(b"")


class ReadWindow:
    """A window that is read, into one buffer as large as the largest slice."""

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._length = length
        self._buffer = memoryview(bytearray())

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, piece: slice) -> memoryview:
        start, stop = piece.start, min(piece.stop, self._length)
        if stop - start > len(self._buffer):
            self._buffer = memoryview(bytearray(stop - start))
        found, done = self._buffer[: max(0, stop - start)], 0
        while done < len(found):
            try:
                count = os.preadv(self._descriptor, [found[done:]], self._offset + start + done)
            except OSError as error:
                raise _failed(self._offset + start + done, error.strerror or str(error)) from None
            if not count:
                raise truncated("uploadFile", self._offset + stop, self._offset + start + done)
            done += count
        return found

    def close(self) -> None:
        self._buffer = memoryview(b"")


def _failed(offset: int, found: str) -> SourceError:
    return SourceError(
        f"uploadFile: expected readable bytes from offset {offset}, found {found}; check the disk, then call again"
    )
