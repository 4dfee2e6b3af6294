"""How much at a time an endpoint gets: requests a second (`pace`) and parts in flight (`concurrency`), of all uploads.

Two measures, as services have two limits: they refuse what is too often, and slow down under what is too much.
Runs in the coordinator.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from obs_engine.transfer.concurrency import Concurrency
from obs_engine.transfer.messages import FlowState
from obs_engine.transfer.pace import Pace


class Sent(NamedTuple):
    """When a request went, and how many parts were in flight with it."""

    at_s: float
    parts: int


class Flow:
    """The way to one endpoint."""

    def __init__(self, endpoint: str = "") -> None:
        self._pace = Pace(endpoint)
        self._parts = Concurrency(endpoint)

    @property
    def accepted(self) -> int:
        """Replies that did not ask to slow down, so far."""
        return self._pace.accepted

    @property
    def is_paced(self) -> bool:
        """Did the service ask to slow down?"""
        return self._pace.rate is not None

    @property
    def state(self) -> FlowState:
        """What is let through at the moment."""
        rate = self._pace.rate
        return FlowState(self._parts.gate.inside, self._parts.gate.limit, None if rate is None else round(rate, 1))

    async def enter(self, *, is_part: bool) -> Sent:
        """Waits until a request may go; `leave` follows."""
        if is_part:
            await self._parts.enter()
        try:
            await self._pace.turn()
        except BaseException:
            if is_part:
                self._parts.gate.leave()
            raise
        return self._sent(is_part=is_part)

    def try_enter(self) -> Sent | None:
        """The same for a part that need not go; None where it would have to wait."""
        if not self._parts.gate.try_enter():
            return None
        if not self._pace.try_turn():
            self._parts.gate.leave()
            return None
        return self._sent(is_part=True)

    def leave(self, sent: Sent, part_bytes: int, *, is_stored: bool) -> float:
        """It is over; returns the seconds that it took.

        Args:
            sent: what `enter` said.
            part_bytes: of the part that it carried; 0 for other requests.
        """
        now_s = time.monotonic()
        seconds = now_s - sent.at_s
        if part_bytes:
            self._parts.on_over()
            if is_stored:
                self._parts.on_stored(part_bytes, seconds, sent.parts, now_s)
            self._parts.gate.leave()
        return seconds

    def on_accepted(self) -> None:
        """A reply came that did not ask to slow down, whatever else it says."""
        self._pace.on_accepted()

    def on_slow_down(self) -> None:
        """The service asks for less."""
        if self._pace.on_slow_down():
            self._parts.on_slow_down(time.monotonic())

    def _sent(self, *, is_part: bool) -> Sent:
        return Sent(time.monotonic(), self._parts.on_sent() if is_part else 0)
