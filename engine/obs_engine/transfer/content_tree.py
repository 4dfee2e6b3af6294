"""The file's content as a tree of digests: what `checkSum` knows a file by. Runs in the coordinator.

    root  ←  blocks of 64 MiB  ←  chunks of 1 MiB of the file

Each digest is the xxh3-128 of those below it, one behind the other; a chunk's is that of its bytes. Workers digest what
they send (`pieces`), so that most chunks come with the parts; those that are cut in two by the end of a part are hashed
meanwhile. Nothing waits for a whole file before the end, and the root is the same however the file was cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence

from obs_engine.limits import CONTENT_BLOCK_BYTES, CONTENT_CHUNK_BYTES
from obs_engine.transfer.service import Service

Range = tuple[int, int]
"""Offset and length in bytes."""
_CHUNKS_A_BLOCK = CONTENT_BLOCK_BYTES // CONTENT_CHUNK_BYTES


def digest_of(pieces: Sequence[str]) -> bytes:
    """The digest of a range of bytes, of those of its pieces in hex digits."""
    return _xxh3(bytes.fromhex("".join(pieces)))


def words(ranges: Iterable[Range]) -> str:
    """Ranges of bytes in words, neighbours joined: "bytes 0 to 67108863, ..."."""
    joined: list[list[int]] = []
    for start, length in sorted(ranges):
        if joined and joined[-1][1] >= start:
            joined[-1][1] = max(joined[-1][1], start + length)
        else:
            joined.append([start, start + length])
    return ", ".join(f"bytes {start} to {stop - 1}" for start, stop in joined)


class ContentTree:
    """The digests of chunks that are known, and what is being hashed.

    Invariant: a block's chunks are kept until all of them are known, and then folded into its digest: what is kept of a
    file of 10 TB are some 3 MB.
    """

    def __init__(self, service: Service, size_bytes: int) -> None:
        self._service = service
        self._size_bytes = size_bytes
        self._blocks: dict[int, bytes] = {}
        self._open: dict[int, dict[int, bytes]] = {}  # chunks by number, of blocks that lack some
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by chunk

    def take(self, offset: int, length: int, pieces: Sequence[str]) -> bytes:
        """Takes the digests of a part's pieces, and begins to hash the chunks that it shares with its neighbours.

        Returns:
            The part's digest.
        """
        place = offset
        for piece in pieces:
            chunk, start = divmod(place, CONTENT_CHUNK_BYTES)
            end = min(place + CONTENT_CHUNK_BYTES - start, offset + length)
            is_whole = start == 0 and end == self._end(chunk)
            if is_whole:
                self._know(chunk, bytes.fromhex(piece))
            elif not self._is_known(chunk) and chunk not in self._tasks:
                task = self._tasks[chunk] = asyncio.ensure_future(self._hash([(chunk, chunk + 1)]))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())  # `root` raises it
            place = end
        return digest_of(pieces)

    async def differing(self, digests: Mapping[Range, bytes]) -> list[Range]:
        """The ranges of the file that have other digests than these, ascending.

        Raises:
            SourceError: the file cannot be read.
        """
        ranges = sorted(digests)
        found = await self._service.pieces(ranges)
        differing = []
        for (offset, length), pieces in zip(ranges, found, strict=True):
            if digest_of(pieces) == digests[offset, length]:
                self.take(offset, length, pieces)
            else:
                differing.append((offset, length))
        return differing

    async def root(self) -> str:
        """32 hex digits that stand for the whole content; hashes what is not known of it.

        Raises:
            SourceError: the file cannot be read.
        """
        for task in list(self._tasks.values()):
            await task
        await self._hash(list(self._unknown()))
        return _xxh3(b"".join(self._blocks[block] for block in sorted(self._blocks))).hex()

    def stop(self) -> None:
        """Nobody wants the digests any more."""
        for task in self._tasks.values():
            task.cancel()

    async def _hash(self, runs: Sequence[tuple[int, int]]) -> None:
        """Hashes chunks, from the first of each run up to, and without, the second."""
        starts = [first * CONTENT_CHUNK_BYTES for first, _ in runs]
        ranges = [(start, self._end(stop - 1) - start) for start, (_, stop) in zip(starts, runs, strict=True)]
        for (offset, length), pieces in zip(ranges, await self._service.pieces(ranges), strict=True):
            self.take(offset, length, pieces)
            self._tasks.pop(offset // CONTENT_CHUNK_BYTES, None)

    def _unknown(self) -> Iterator[tuple[int, int]]:
        """Runs of chunks that are not known, each within a block."""
        for block in range(-(-self._size_bytes // CONTENT_BLOCK_BYTES)):
            if block not in self._blocks:
                first, known = block * _CHUNKS_A_BLOCK, self._open.get(block, {})
                stop = first + self._chunks_of(block)
                for end in [*sorted(known), stop]:
                    if first < end:
                        yield first, end
                    first = end + 1

    def _end(self, chunk: int) -> int:
        return min((chunk + 1) * CONTENT_CHUNK_BYTES, self._size_bytes)

    def _is_known(self, chunk: int) -> bool:
        block = chunk // _CHUNKS_A_BLOCK
        return block in self._blocks or chunk in self._open.get(block, ())

    def _know(self, chunk: int, digest: bytes) -> None:
        block = chunk // _CHUNKS_A_BLOCK
        if block in self._blocks:
            return
        chunks = self._open.setdefault(block, {})
        chunks[chunk] = digest
        if len(chunks) == self._chunks_of(block):
            self._blocks[block] = _xxh3(b"".join(chunks[number] for number in sorted(chunks)))
            del self._open[block]

    def _chunks_of(self, block: int) -> int:
        bytes_in_block = min(CONTENT_BLOCK_BYTES, self._size_bytes - block * CONTENT_BLOCK_BYTES)
        return -(-bytes_in_block // CONTENT_CHUNK_BYTES)


def _xxh3(data: bytes) -> bytes:
    from xxhash import xxh3_128

    return xxh3_128(data).digest()
