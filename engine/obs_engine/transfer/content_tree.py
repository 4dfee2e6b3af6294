"""The file's content as a tree of digests: what `checkSum` knows a file by. Runs in the coordinator.

Leaves are the xxh3-128 of each block of `CONTENT_BLOCK_BYTES`, hashed by the workers as the parts in them are sent, so
that nothing waits for a whole file; the root is the xxh3-128 of all leaves. Knows no parts and no journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from obs_engine.limits import CONTENT_BLOCK_BYTES
from obs_engine.transfer.service import Service


def blocks_of(offset: int, length: int) -> range:
    """The blocks in which these bytes lie."""
    return range(offset // CONTENT_BLOCK_BYTES, -(-(offset + length) // CONTENT_BLOCK_BYTES)) if length else range(0)


def words(blocks: list[int], size_bytes: int) -> str:
    """Blocks as ranges of bytes, neighbours joined: "bytes 0 to 67108863, ..."."""
    ranges: list[list[int]] = []
    for block in blocks:
        start, stop = _extent(block, size_bytes)
        if ranges and ranges[-1][1] == start:
            ranges[-1][1] = stop
        else:
            ranges.append([start, stop])
    return ", ".join(f"bytes {start} to {stop - 1}" for start, stop in ranges)


class ContentTree:
    """The leaves that are known, and those that are being hashed.

    Invariant: a block is hashed once; whoever asks for it meanwhile waits for the same task.
    """

    def __init__(self, service: Service, size_bytes: int) -> None:
        self._service = service
        self._size_bytes = size_bytes
        self._leaves: dict[int, asyncio.Future[bytes]] = {}

    def know(self, leaves: Mapping[int, bytes]) -> None:
        """Takes digests that are certain: need not be hashed."""
        for block, digest in leaves.items():
            known = self._leaves[block] = asyncio.get_running_loop().create_future()
            known.set_result(digest)

    def begin(self, offset: int, length: int, *, is_followed: bool) -> None:
        """Hashes the blocks of a part, if that was not begun yet; waits for nothing.

        Args:
            is_followed: a worker hashes those that lie in the part entirely, and tells of them.
        """
        for block in blocks_of(offset, length):
            start, stop = _extent(block, self._size_bytes)
            if not (is_followed and offset <= start and stop <= offset + length):
                self._leaf(block)

    async def leaves(self, offset: int, length: int) -> dict[int, bytes]:
        """The digests of the blocks of these bytes.

        Raises:
            SourceError: the file cannot be read.
        """
        return {block: await self._leaf(block) for block in blocks_of(offset, length)}

    async def differing(self, recorded: Mapping[int, bytes]) -> list[int]:
        """The recorded blocks that the file does not have (any more), ascending; those that it has are known then."""
        found = await self._hashed(recorded)
        equal = {block: digest for block, digest in found.items() if recorded[block] == digest}
        self.know(equal)
        return sorted(recorded.keys() - equal.keys())

    async def changed(self) -> list[int]:
        """Hashes all known blocks again: those that are not what they were."""
        known = {block: leaf.result() for block, leaf in self._leaves.items() if leaf.done()}
        return sorted(block for block, digest in (await self._hashed(known)).items() if known[block] != digest)

    async def root(self) -> str:
        """32 hex digits that stand for the whole content; waits for all leaves."""
        from xxhash import xxh3_128

        found = await self.leaves(0, self._size_bytes)
        return xxh3_128(b"".join(found[block] for block in sorted(found))).hexdigest()

    def stop(self) -> None:
        """Nobody wants the digests any more."""
        for leaf in self._leaves.values():
            leaf.cancel()

    def _leaf(self, block: int) -> asyncio.Future[bytes]:
        leaf = self._leaves.get(block)
        if leaf is None:
            leaf = self._leaves[block] = asyncio.ensure_future(self._hash(block))
            leaf.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever awaits it hears of it
        return leaf

    async def _hash(self, block: int) -> bytes:
        start, stop = _extent(block, self._size_bytes)
        return (await self._service.xxh3s([(start, stop - start)]))[0]

    async def _hashed(self, blocks: Mapping[int, bytes]) -> dict[int, bytes]:
        extents = [_extent(block, self._size_bytes) for block in blocks]
        return dict(zip(blocks, await self._service.xxh3s([(a, b - a) for a, b in extents]), strict=True))


def _extent(block: int, size_bytes: int) -> tuple[int, int]:
    start = block * CONTENT_BLOCK_BYTES
    return start, min(start + CONTENT_BLOCK_BYTES, size_bytes)
