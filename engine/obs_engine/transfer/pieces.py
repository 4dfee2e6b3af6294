"""Digests of a range of the file, piece by piece: what `checkSum` is made of. Runs in a worker.

A piece ends where a chunk of the file does (`CONTENT_CHUNK_BYTES`), so that the digests of whole chunks are the same
however the file is cut into parts.
"""

from __future__ import annotations

from obs_engine.limits import CONTENT_CHUNK_BYTES
from obs_engine.source.window import Window


class Pieces:
    """The xxh3-128 of each piece of the bytes that were taken in so far, from `offset` on."""

    def __init__(self, offset: int) -> None:
        from xxhash import xxh3_128

        self._new = xxh3_128
        self._piece = xxh3_128()
        self._at = offset
        self._is_begun = False
        self._done: list[str] = []

    def take(self, data: memoryview) -> None:
        """The next bytes."""
        start = 0
        while start < len(data):
            stop = min(len(data), start + CONTENT_CHUNK_BYTES - self._at % CONTENT_CHUNK_BYTES)
            self._piece.update(data[start:stop])
            self._is_begun = True
            self._at += stop - start
            start = stop
            if self._at % CONTENT_CHUNK_BYTES == 0:
                self._end()

    def digests(self) -> tuple[str, ...]:
        """Of all pieces, in their order, 32 hex digits each; the range ends here."""
        if self._is_begun:
            self._end()
        return tuple(self._done)

    def _end(self) -> None:
        self._done.append(self._piece.hexdigest())
        self._piece = self._new()
        self._is_begun = False


class HashedWindow:
    """A window whose bytes are digested as they are read to be sent: those, and no others.

    They come from memory into the processor's cache once, for the digest and for libcurl's copy.
    """

    def __init__(self, window: Window, offset: int) -> None:
        """
        Args:
            offset: of the window in the file.
        """
        self._window = window
        self._offset = offset
        self._at = 0
        self._pieces = Pieces(offset)

    def __len__(self) -> int:
        return len(self._window)

    def __getitem__(self, piece: slice, /) -> memoryview:
        start = piece.start
        if start != self._at:  # libcurl sends again what a closed connection has not taken
            self._pieces, self._at = Pieces(self._offset), 0
            for again in range(0, start, CONTENT_CHUNK_BYTES):
                self._take(self._window[again : min(start, again + CONTENT_CHUNK_BYTES)])
        found = self._window[piece]
        self._take(found)
        return found

    def close(self) -> None:
        self._window.close()

    def digests(self) -> tuple[str, ...]:
        """Of all pieces that were sent."""
        return self._pieces.digests()

    def _take(self, data: memoryview) -> None:
        self._pieces.take(data)
        self._at += len(data)
