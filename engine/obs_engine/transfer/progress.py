"""What the caller hears of an upload's progress, where somebody listens. Runs in the coordinator.

Invariant: the bytes told never fall, and are all bytes only when the object stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized
from typing import Protocol

from obs_engine.source.plan import PartPlan
from obs_engine.transfer.messages import Progress
from obs_engine.transfer.pool import Session

INTERVAL_S = 0.05


class Tally(Protocol):
    """What is done: the state of an upload, or that of a comparison."""

    @property
    def parts(self) -> Sized: ...
    def stored_bytes(self) -> int: ...


class ProgressFeed:
    """Tells the caller, at most every `INTERVAL_S`, how many bytes are stored and on their way."""

    def __init__(self, session: Session, tell: Callable[[Progress], None], *, is_wanted: bool) -> None:
        """
        Args:
            session: knows the bytes in flight.
            is_wanted: False for a feed that stays silent.
        """
        self._session = session
        self._tell = tell
        self._is_wanted = is_wanted
        self._timer: asyncio.TimerHandle | None = None
        self._told: Progress | None = None

    def begin(self, state: Tally, plan: PartPlan) -> None:
        """Tells what is stored already, and from here on what changes: `state` and `plan` are looked at again."""
        self.stop()
        if self._is_wanted:
            self._look(state, plan)

    def end(self, plan: PartPlan) -> None:
        """The object stands: all bytes of it."""
        self.stop()
        if self._is_wanted:
            size, parts = plan.size_bytes, plan.part_count
            self._tell(Progress(size, size, size, parts, parts, self._session.flow.state))

    def stop(self) -> None:
        """Tells no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, state: Tally, plan: PartPlan) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._look, state, plan)
        stored, total = state.stored_bytes(), plan.size_bytes
        known = 0 if self._told is None else self._told.shown_bytes
        # Bytes that must be sent again leave the sum, but not what was told.
        shown = max(known, min(stored + self._session.in_flight_bytes, max(0, total - 1)))
        progress = Progress(shown, stored, total, len(state.parts), plan.part_count, self._session.flow.state)
        if progress != self._told:
            self._told = progress
            self._tell(progress)
