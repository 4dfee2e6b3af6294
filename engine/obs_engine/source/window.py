"""A window onto a file: the pages of one part, mapped, and given up when the part is sent.

Why a window and not the whole file: every page of a mapping that was touched counts as this process's memory, so a
2 GB file mapped whole looks like 2 GB. Runs in a worker.
"""

from __future__ import annotations

import mmap
import os

from obs_engine.errors import SourceChangedError

_DROP_BYTES = 2 << 20


class Window:
    """`length` bytes of a file from `offset`, to be read in slices from front to back.

    Pages behind a slice are given up as it goes (they stay in the system's cache), so that a part of 5 GB costs this
    process no more than one of 9 MB. Going back is allowed: they are mapped again.

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
        self._length = length
        self._slack = offset % mmap.ALLOCATIONGRANULARITY
        self._dropped = 0
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
        """The bytes from `piece.start` to `piece.stop`; pages well before it are given up."""
        if self._map is not None:
            passed = (self._slack + piece.start) & -mmap.PAGESIZE
            if passed < self._dropped:
                self._dropped = passed
            elif passed - self._dropped >= _DROP_BYTES:
                self._map.madvise(mmap.MADV_DONTNEED, self._dropped, passed - self._dropped)
                self._dropped = passed
        return self._view[piece]

    def close(self) -> None:
        """Gives the mapping up; slices must not be used any more."""
        self._view.release()
        if self._map is not None:
            self._map.close()
            self._map = None
