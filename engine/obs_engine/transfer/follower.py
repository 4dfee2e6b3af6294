"""The MD5 of a part behind its sending, for parts too large to be digested ahead of it. Runs in a worker.

Bytes are digested soon after libcurl took them, while they are in the page cache: a part of 5 GB is read from the disk
once, and costs no more memory than a small one. Parts that are in flight together share the lanes of one MD5 kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from obs_engine.digests import Md5, md5_update_many
from obs_engine.errors import ObsEngineError
from obs_engine.source.window import Window
from obs_engine.transfer.messages import PartTask

_STEP_BYTES = 512 << 10


class Follower:
    """How far a part's MD5 is.

    Attributes:
        task, length: the part's number as a task, and its bytes.
        md5: of the bytes so far.
        failure: why the file could not be read on.
    """

    def __init__(self, task: PartTask, window: Window) -> None:
        """
        Args:
            window: onto the part; closed by `close`.
        """
        self.task, self.length = task.task, task.length
        self.md5 = Md5()
        self.failure: ObsEngineError | None = None
        self._window = window
        self._at = 0

    def piece(self, sent: int) -> memoryview | None:
        """The next bytes to digest, of those that were sent; None where it is worth waiting for more."""
        is_worth_it = sent - self._at >= _STEP_BYTES or sent == self.length
        if self.failure is not None or not is_worth_it or self._at == self.length:
            return None
        stop = min(self._at + _STEP_BYTES, self.length)
        try:
            piece = self._window[self._at : stop]
        except ObsEngineError as error:
            self.failure = error
            return None
        self._at = stop
        return piece

    def close(self) -> None:
        self._window.close()


def follow(followers: Iterable[Follower], sent: Callable[[Follower], int]) -> None:
    """Digests all that was sent of these parts, side by side, but for a rest that is not worth a step yet."""
    left = list(followers)
    while left:
        pieces = [(follower, follower.piece(sent(follower))) for follower in left]
        rows = [(follower, piece) for follower, piece in pieces if piece is not None]
        md5_update_many([follower.md5 for follower, _ in rows], [piece for _, piece in rows])
        left = [follower for follower, _ in rows]
