"""Manners towards the page cache: a file far larger than memory is not to push everything else out of it.

Advice only: the system may pass over it, and no failure of it matters. Runs in the coordinator.
"""

from __future__ import annotations

import contextlib
import os

from obs_engine.limits import MIB

_PIECE_BYTES = 4 * MIB
# Source: cgroups(7); the limit of version 2, then of version 1, as a container sees its own.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class PageCache:
    """What is kept in memory of one file."""

    def __init__(self, path: str, size_bytes: int, share: float | None) -> None:
        """
        Args:
            share: of the memory; a larger file is dropped as it is done with, None drops nothing.
        """
        self._path = path
        self._size_bytes = size_bytes
        self._descriptor = -1
        # Of each run of bytes that were done with, its start by its stop, and the other way round.
        self._starts: dict[int, int] = {}
        self._stops: dict[int, int] = {}
        self._is_dropping = (
            share is not None and hasattr(os, "posix_fadvise") and size_bytes > share * memory_bytes()
        )

    def drop(self, offset: int, length: int) -> None:
        """These bytes are not needed any more.

        Why a little of the neighbours again, where they are done with: the cache holds a file in pieces of up to
        `_PIECE_BYTES`, and lets go of none that is wanted in part.
        """
        if not self._is_dropping or not length:
            return
        start, stop = self._starts.pop(offset, offset), self._stops.pop(offset + length, offset + length)
        self._starts[stop], self._stops[start] = start, stop
        start, stop = max(start, offset - _PIECE_BYTES), min(stop, offset + length + _PIECE_BYTES)
        with contextlib.suppress(OSError):
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            os.posix_fadvise(self._descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or what its container is limited to."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            return min(found, int(file.read()))  # "max" is no number
    return found
