"""A window onto a file: the pages of one part, mapped, and given up when the part is sent.

Why a window and not the whole file: every page of a mapping that was touched counts as this process's memory, so a
2 GB file mapped whole looks like 2 GB. Runs in a worker.
"""

from __future__ import annotations

import mmap
import os

from obs_engine.errors import SourceChangedError


class Window:
    """`length` bytes of a file from `offset`, as a memoryview.

    Invariant: `view` has exactly `length` bytes; the mapping lives until `close`.
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
        self._map: mmap.mmap | None = None
        self.view = memoryview(b"")
        if length:
            slack = offset % mmap.ALLOCATIONGRANULARITY
            self._map = mmap.mmap(descriptor, slack + length, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset - slack)
            self._map.madvise(mmap.MADV_SEQUENTIAL)
            self._map.madvise(mmap.MADV_WILLNEED)
            self.view = memoryview(self._map)[slack:]

    def close(self) -> None:
        """Gives the pages up."""
        self.view.release()
        if self._map is not None:
            self._map.close()
            self._map = None
