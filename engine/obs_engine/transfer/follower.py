"""Digests of a part behind its sending, for parts too large to be digested ahead of it. Runs in a worker.

Bytes are digested soon after libcurl took them, while they are in the page cache: a part of 5 GB is read from the disk
once, and costs no more memory than a small one. Parts that are in flight together share the lanes of one MD5 kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from obs_engine.digests import Md5, md5_update_many
from obs_engine.errors import ObsEngineError
from obs_engine.limits import CONTENT_BLOCK_BYTES
from obs_engine.source.window import Window
from obs_engine.transfer.messages import PartTask

_STEP_BYTES = 512 << 10


class Follower:
    """How far a part's digests are.

    Attributes:
        task, length: the part's number as a task, and its bytes.
        md5: of the bytes so far.
        blocks: (number, xxh3-128) of the blocks of content that lie in the part entirely, as they become known.
        failure: why the file could not be read on.
    """

    def __init__(self, task: PartTask, window: Window) -> None:
        """
        Args:
            window: onto the part; closed by `close`.
        """
        from xxhash import xxh3_128

        self.task, self.length = task.task, task.length
        self.md5 = Md5()
        self.blocks: list[tuple[int, str]] = []
        self.failure: ObsEngineError | None = None
        self._task = task
        self._window = window
        self._at = 0
        self._new_block = xxh3_128
        self._block = xxh3_128()

    def piece(self, sent: int) -> memoryview | None:
        """The next bytes to digest, of those that were sent; None where it is worth waiting for more."""
        is_worth_it = sent - self._at >= _STEP_BYTES or sent == self.length
        if self.failure is not None or not is_worth_it or self._at == self.length:
            return None
        start = self._task.offset + self._at
        to_block = CONTENT_BLOCK_BYTES - start % CONTENT_BLOCK_BYTES
        stop = self._at + min(_STEP_BYTES, to_block, self.length - self._at)
        try:
            piece = self._window[self._at : stop]
        except ObsEngineError as error:
            self.failure = error
            return None
        self._at = stop
        if self._task.is_hashed:
            self._hash(start // CONTENT_BLOCK_BYTES, piece)
        return piece

    def close(self) -> None:
        self._window.close()

    def _hash(self, block: int, piece: memoryview) -> None:
        first, last = block * CONTENT_BLOCK_BYTES, (block + 1) * CONTENT_BLOCK_BYTES
        if first >= self._task.offset and last <= self._task.offset + self.length:
            self._block.update(piece)
            if self._task.offset + self._at == last:
                self.blocks.append((block, self._block.hexdigest()))
                self._block = self._new_block()


def follow(followers: Iterable[Follower], sent: Callable[[Follower], int]) -> None:
    """Digests all that was sent of these parts, side by side, but for a rest that is not worth a step yet."""
    left = list(followers)
    while left:
        pieces = [(follower, follower.piece(sent(follower))) for follower in left]
        rows = [(follower, piece) for follower, piece in pieces if piece is not None]
        md5_update_many([follower.md5 for follower, _ in rows], [piece for _, piece in rows])
        left = [follower for follower, _ in rows]
