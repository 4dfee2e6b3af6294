"""What is uploaded? Files of random bytes in the page cache, files of holes, and the ETags of their parts."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_BLOCK_BYTES = 16 << 20


def make_random(path: Path, size: int) -> None:
    """Incompressible bytes, on the disk when it returns, and in the page cache."""
    with open(path, "wb") as file:
        for offset in range(0, size, _BLOCK_BYTES):
            file.write(os.urandom(min(_BLOCK_BYTES, size - offset)))
        file.flush()
        os.fsync(file.fileno())
    warm(path)


def make_sparse(path: Path, size: int) -> None:
    """A file of holes alone."""
    with open(path, "wb") as file:
        file.truncate(size)


def warm(path: Path) -> None:
    """Reads it once: it is in the page cache then, as far as there is room."""
    with open(path, "rb", buffering=0) as file:
        while file.read(_BLOCK_BYTES):
            pass


def etags_of(path: Path, part_bytes: int) -> list[str]:
    """The MD5 of each part, by `hashlib`: what none of the measured clients had a hand in."""
    found = []
    with open(path, "rb", buffering=0) as file:
        while part := file.read(part_bytes):
            found.append(hashlib.md5(part, usedforsecurity=False).hexdigest())
    return found


def etags_of_holes(size: int, part_bytes: int) -> list[str]:
    """The same of a file of holes, without reading it."""
    whole, rest = divmod(size, part_bytes)
    found = [hashlib.md5(bytes(part_bytes), usedforsecurity=False).hexdigest()] * whole
    return found + ([hashlib.md5(bytes(rest), usedforsecurity=False).hexdigest()] if rest else [])
