"""A gate: so many may be inside at a time, the others wait in one line. Runs in the coordinator."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque


class Gate:
    """Lets in as many as `limit` says, which may change; in the order in which they came.

    Attributes:
        limit: of those inside; 1 at least.
        inside: how many there are now; above the limit for a while where that was lowered.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside = 0
        self._line: deque[asyncio.Future[None]] = deque()

    @property
    def is_waited_for(self) -> bool:
        """Does anybody stand before it?"""
        return bool(self._line)

    def try_enter(self) -> bool:
        """Enters if that needs no waiting."""
        is_free = not self._line and self.inside < self.limit
        self.inside += is_free
        return is_free

    async def enter(self) -> None:
        """Waits until there is room, and takes it."""
        if self.try_enter():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # its turn had come
            else:
                with contextlib.suppress(ValueError):
                    self._line.remove(turn)
            raise

    def leave(self) -> None:
        """Makes room."""
        self.inside -= 1
        self._let_in()

    def set_limit(self, limit: int) -> None:
        """From now on; who is inside may stay."""
        self.limit = limit
        self._let_in()

    def _let_in(self) -> None:
        while self._line and self.inside < self.limit:
            turn = self._line.popleft()
            if not turn.cancelled():  # else its owner is about to say so
                self.inside += 1
                turn.set_result(None)
