"""What became of each of very many files: 24 bytes a slot, and no object for any of them. Pure.

Runs where a job runs. Knows digests and sizes; does not know names, logs or the service. Open addressing over three
arrays of 64-bit numbers: a million files are 50 MB.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable
from typing import NamedTuple

NONE, DONE, SKIPPED, FAILED = range(4)
"""What became of a file. None: nothing is known, or it is known no more."""

_OUTCOME = 3
_IDENTITY = 0xFFFF_FFFF_FFFF_FFFC
_SLOTS_MIN = 1 << 10
_EXPECTED_MAX = 1 << 20
_NEVER = -1


class Count(NamedTuple):
    """Files, and their bytes."""

    files: int
    size_bytes: int


def file_name(key: str, path: str) -> int:
    """64 bits that stand for a file and the key that it goes to; never 0.

    Why so few: two files that share them overwrite each other here, and are sent again. A file is believed to be done
    only where the 62 bits of its identity agree as well.
    """
    named = os.fsencode(path) + b"\0" + key.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "little") or 1


def file_identity(name: int, size_bytes: int, mtime_ns: int, inode: int) -> int:
    """62 bits, in a number of 64, that stand for what the file of that name was when it was sent."""
    told = f"{name} {size_bytes} {mtime_ns} {inode}".encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little") & _IDENTITY


class FileTable:
    """Of each file its identity, size and outcome, by name; the last word counts."""

    def __init__(self, expected: int = 0) -> None:
        """
        Args:
            expected: how many files there will be, as far as anybody knows.
        """
        self._used = 0
        self._files, self._bytes = [0] * 4, [0] * 4
        slots = _SLOTS_MIN
        while min(expected, _EXPECTED_MAX) * 3 > slots * 2:
            slots *= 2
        self._make(slots)

    def put(self, name: int, identity: int, size_bytes: int, outcome: int) -> None:
        """Says what became of one file."""
        self.put_all(((name, identity, size_bytes),), 1, outcome)

    def put_all(self, files: Iterable[tuple[int, int, int]], count: int, outcome: int) -> None:
        """Says the same of many.

        Args:
            files: name (not 0), identity, size in bytes.
            count: how many they are.
        """
        while (self._used + count) * 3 > len(self._names) * 2:
            self._grow()
        names, values, sizes = self._names, self._values, self._sizes
        mask, total, used, replaced = len(names) - 1, 0, self._used, 0
        for name, identity, size in files:
            at = name & mask
            while (found := names[at]) and found != name:
                at = (at + 1) & mask
            if found:
                was = values[at] & _OUTCOME
                self._files[was] -= 1
                self._bytes[was] -= sizes[at]
                replaced += 1
            else:
                names[at] = name
                used += 1
            values[at] = identity & _IDENTITY | outcome
            sizes[at] = size
            total += size
        self._files[outcome] += used - self._used + replaced
        self._bytes[outcome] += total
        self._used = used

    def withdraw(self, names: Iterable[int]) -> None:
        """Nothing is known of these any more."""
        names = [name for name in names if self._slot(name) != _NEVER]
        self.put_all(((name, 0, 0) for name in names), len(names), NONE)

    def get(self, name: int) -> tuple[int, int]:
        """Identity and outcome; twice 0 for a file that nothing is known of."""
        at = self._slot(name)
        return (0, NONE) if at == _NEVER else (self._values[at] & _IDENTITY, self._values[at] & _OUTCOME)

    def count(self, outcome: int) -> Count:
        """How many files there are of an outcome."""
        return Count(self._files[outcome], self._bytes[outcome])

    def _slot(self, name: int) -> int:
        mask = len(self._names) - 1
        at = name & mask
        while (found := self._names[at]) and found != name:
            at = (at + 1) & mask
        return at if found else _NEVER

    def _make(self, slots: int) -> None:
        zero = array("Q", [0])
        self._names, self._values, self._sizes = zero * slots, zero * slots, zero * slots

    def _grow(self) -> None:
        names, values, sizes = self._names, self._values, self._sizes
        self._make(2 * len(names))
        mask, new_names, new_values, new_sizes = len(self._names) - 1, self._names, self._values, self._sizes
        for name, value, size in zip(names, values, sizes, strict=True):
            if name:
                at = name & mask
                while new_names[at]:
                    at = (at + 1) & mask
                new_names[at], new_values[at], new_sizes[at] = name, value, size
