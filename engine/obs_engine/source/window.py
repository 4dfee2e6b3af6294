"""A window onto a file: the pages of one part, mapped, and given up when the part is sent.

Why a window and not the whole file: every page of a mapping that was touched counts as this process's memory, so a
2 GB file mapped whole looks like 2 GB. Runs in a worker.
"""

from __future__ import annotations

import errno
import mmap
import os

from obs_engine.errors import SourceChangedError

_STEP_BYTES = 2 << 20
_MADV_POPULATE_READ = 22  # of Linux 5.14; Python does not name it


class Window:
    """`length` bytes of a file from `offset`, to be read in slices from front to back.

    Pages are mapped some ahead of a slice, in one call instead of a fault for each, and given up well behind it (they
    stay in the system's cache), so that a part of 5 GB costs this process no more than one of 9 MB. Going back is
    allowed: they are mapped again.

    Invariant: slices show exactly the file's bytes; the mapping lives until `close`.
    """

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        """Maps the bytes; offset needs no alignment.

        Raises:
            SourceChangedError: the file ends before `offset + length`.
        """
        size = os.fstat(descriptor).st_size
        if offset + length > size:
            raise SourceChangedError(
                f"uploadFile: expected at least {offset + length} bytes, found {size}; the file was cut while it "
                "was uploaded: restore it, or call again to upload what it is now"
            )
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
        """The bytes from `piece.start` to `piece.stop`.

        Raises:
            SourceChangedError: the file has become shorter than that, or its disk fails.
        """
        if self._map is not None:
            self._move(self._map, self._slack + piece.start, self._slack + piece.stop)
        return self._view[piece]

    def _move(self, mapping: mmap.mmap, start: int, stop: int) -> None:
        start &= -mmap.PAGESIZE
        if not self._first <= start <= self._last:
            self._first = self._last = start
        elif start - self._first >= _STEP_BYTES:
            mapping.madvise(mmap.MADV_DONTNEED, self._first, start - self._first)
            self._first = start
        while self._last < min(stop, len(mapping)):
            length = min(_STEP_BYTES, len(mapping) - self._last)
            try:
                mapping.madvise(_MADV_POPULATE_READ, self._last, length)
            except OSError as error:
                if error.errno == errno.EFAULT:  # touching these pages would be SIGBUS
                    raise SourceChangedError(
                        f"uploadFile: expected readable bytes from offset {self._offset + self._last}, found the "
                        "file cut or its disk failing; check the file, then call again"
                    ) from None
                # An older kernel: the pages come one fault at a time.
            self._last += length

    def close(self) -> None:
        """Gives the mapping up; slices must not be used any more."""
        self._view.release()
        if self._map is not None:
            self._map.close()
            self._map = None
