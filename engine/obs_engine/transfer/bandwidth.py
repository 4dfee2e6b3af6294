"""A cap on the bytes a second that all uploads of a client send together.

The coordinator hands out credits, a few times a second, to the workers that ask for some; a worker takes what libcurl
may read from its credit, and pauses a transfer that finds none. So the cap holds however many uploads and workers there
are, and may change at any time. Knows bytes and seconds; does not know parts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

TICK_S = 0.02
BURST_S = 0.1
"""What nobody asked for may be sent later, as far as so much time gives."""
PIECE_BYTES = 16 << 10
"""A transfer takes at least so much at a time."""


class Bandwidth:
    """The cap of a client. Runs in the coordinator.

    Invariant: no more credit is handed out than the cap gives for the time that went by, and `BURST_S` of it.
    """

    def __init__(self) -> None:
        self.bytes_per_s: float | None = None
        self._grants: dict[object, Callable[[int | None], None]] = {}
        self._waiting: dict[object, None] = {}  # in the order in which they asked
        self._credit = 0.0
        self._seen_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def set(self, bytes_per_s: float | None) -> None:
        """From now on; None for no cap."""
        if bytes_per_s == self.bytes_per_s:
            return
        was_capped, self.bytes_per_s = self.bytes_per_s is not None, bytes_per_s
        self._credit, self._seen_s = 0.0, time.monotonic()
        if bytes_per_s is None:
            self._waiting.clear()
        if was_capped != (bytes_per_s is not None):
            for grant in self._grants.values():
                grant(None if bytes_per_s is None else 0)

    def join(self, worker: object, grant: Callable[[int | None], None]) -> None:
        """A worker comes.

        Args:
            grant: gives it bytes to send; None for as many as it likes.
        """
        self._grants[worker] = grant
        if self.bytes_per_s is not None:
            grant(0)

    def leave(self, worker: object) -> None:
        """It is gone."""
        self._grants.pop(worker, None)
        self._waiting.pop(worker, None)

    def ask(self, worker: object) -> None:
        """A worker has bytes to send and no credit for them."""
        if self.bytes_per_s is not None:
            self._waiting[worker] = None
            if self._timer is None:
                self._tick()

    def _tick(self) -> None:
        self._timer = None
        if self.bytes_per_s is None or not self._waiting:
            return
        now_s = time.monotonic()
        earned = self._credit + (now_s - self._seen_s) * self.bytes_per_s
        self._credit, self._seen_s = min(earned, BURST_S * self.bytes_per_s + PIECE_BYTES), now_s
        # Where it is too little for all, those who have waited longest.
        served = min(len(self._waiting), int(self._credit // PIECE_BYTES))
        share = int(self._credit / served) if served else 0
        for worker in list(self._waiting)[:served]:
            self._credit -= share
            del self._waiting[worker]
            self._grants[worker](share)
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)


class Allowance:
    """What a worker may still send. Runs in the worker.

    Attributes:
        is_wanted: somebody found none.
    """

    def __init__(self) -> None:
        self.is_wanted = False
        self._left: int | None = None
        self._is_asked = False

    def grant(self, size: int | None) -> None:
        """So many bytes more; None for as many as it likes; the first number ends that."""
        self._left = None if size is None else (self._left or 0) + size
        self.is_wanted = self._is_asked = False

    def take(self, size: int, sharers: int) -> int:
        """How many of so many bytes may be sent now; 0 for none.

        Args:
            sharers: transfers that live on the same credit.
        """
        if self._left is None:
            return size
        taken = min(size, self._left, max(PIECE_BYTES, self._left // max(1, sharers)))
        self._left -= taken
        self.is_wanted |= taken == 0
        return taken

    def ask(self) -> bool:
        """Is it time to ask for more? True once until something is granted."""
        is_time, self._is_asked = self.is_wanted and not self._is_asked, self._is_asked or self.is_wanted
        return is_time
