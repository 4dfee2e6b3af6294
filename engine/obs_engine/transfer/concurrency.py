"""How many parts in flight an endpoint bears: found out from how long they take, for all uploads to it together.

By Little's law, parts in flight = parts a second x seconds a part. So if parts take k times as long as they do at
best, a k-th of those in flight would have moved as many bytes, and the others stood in a line: on this machine, on
the way, or at the service. The limit is kept at twice what is needed: while more in flight bring more, parts take no
longer, and it doubles with each round; when more in flight only wait longer, it stays; and when parts slow down without
us, it falls.

Why not by counting bytes alone, as a hill is climbed: a step up or down moves goodput less than the noise of a network
does, and the best place on a plateau is its near end, which goodput cannot see. Precedent: BBR paces TCP by the same
two measures. What *best* means is looked up again now and then, with half as many in flight; and it is the median of
many parts, so that a few slow ones say nothing. Runs in the coordinator; is told the time.
"""

from __future__ import annotations

import asyncio
import logging
from statistics import median
from typing import NamedTuple

from obs_engine.transfer.gate import Gate

_log = logging.getLogger("obs_engine")

START, RAMP_S = 16, 0.25
"""Until parts were measured, it begins with so many, and doubles so often: long parts are not waited for."""
LIMIT_MIN = 4
LIMIT_MAX = 10_000
GAIN = 2.0
"""Times what is needed: room to find out whether more would bring more."""
CUT = 0.8
"""Of what was in flight, so many stay when the service asks to slow down; and no round takes more away."""
ROUND_PARTS_MIN, ROUND_S_MIN = 8, 0.1
"""A round has as many parts as were in flight when it began, and so many at least."""
BEST_ROUNDS = 15
"""For so many rounds the best that was seen counts as the best there is; then it is looked up again."""
CAREFUL_S = 30.0
"""For so long after the service asked to slow down, the limit grows by one a round and not twofold."""
TOLD = 1.25
"""Changes by less than this factor are not worth a line in the log."""


class Concurrency:
    """The parts in flight to one endpoint.

    Attributes:
        gate: which they pass.
    """

    def __init__(self, endpoint: str = "") -> None:
        self.gate = Gate(START)
        self._endpoint = endpoint
        self._told = START
        self._is_ramping = True
        self._ramp: asyncio.TimerHandle | None = None
        self._in_flight = 0  # sent, and not only let in
        self._best: dict[int, _Best] = {}  # by the size of parts, to the power of two
        self._round = _Round(ROUND_PARTS_MIN, 0.0)
        self._rounds = 0
        self._probe: _Probe | None = None
        self._slowed_s = float("-inf")

    async def enter(self) -> None:
        """Waits for a place."""
        if not self.gate.try_enter():
            if self._is_ramping and self._ramp is None:
                self._ramp = asyncio.get_running_loop().call_later(RAMP_S, self._on_ramp)
            await self.gate.enter()

    def on_sent(self) -> int:
        """A part goes out; how many are in flight with it."""
        self._in_flight += 1
        return self._in_flight

    def on_over(self) -> None:
        """It is in flight no longer, whatever became of it."""
        self._in_flight -= 1

    def on_stored(self, size_bytes: int, seconds: float, in_flight: int, now_s: float) -> None:
        """It was stored, so many seconds after it was sent as one of so many in flight."""
        current = self._round
        current.parts.append(_Part(size_bytes.bit_length(), seconds, in_flight))
        current.is_full |= self.gate.is_waited_for
        if len(current.parts) >= current.wanted and now_s - current.began_s >= ROUND_S_MIN:
            self._end_round(now_s)

    def on_slow_down(self, now_s: float) -> None:
        """The service asks for less."""
        if now_s - self._slowed_s >= 1.0:  # those of one moment count once
            self._slowed_s = now_s
            self._is_ramping, self._probe = False, None
            self._set(CUT * min(self._in_flight, self.gate.limit), "it asks to slow down")

    def _on_ramp(self) -> None:
        self._ramp = None
        if self._is_ramping and self.gate.is_waited_for:
            self._set(2 * self.gate.limit, "nothing speaks against it")
            self._ramp = asyncio.get_running_loop().call_later(RAMP_S, self._on_ramp)

    def _end_round(self, now_s: float) -> None:
        ended, self._round = self._round, _Round(max(ROUND_PARTS_MIN, self._in_flight), now_s)
        self._is_ramping = False
        self._rounds += 1
        self._look_for_best(ended)
        if self._probe is not None:
            self._go_on_probing(self._probe)
            return
        if self._rounds % BEST_ROUNDS == 0:
            for best in self._best.values():
                best.age()
            if ended.is_full:
                self._probe = _Probe(self.gate.limit)
                self._set(self.gate.limit / 2)
                return
        bests = [(part, self._best[part.size].seconds) for part in ended.parts if part.size in self._best]
        if not bests:
            return
        limit, in_flight = self.gate.limit, median(part.in_flight for part, _ in bests)
        wanted = GAIN * median(part.in_flight * min(1.0, best / part.seconds) for part, best in bests)
        if now_s - self._slowed_s < CAREFUL_S:
            wanted = min(wanted, limit + 1)
        held = limit if ended.is_full else min(limit, in_flight)  # more in flight than there are limits nobody
        if wanted > limit or wanted < held:
            stretch = median(part.seconds / best for part, best in bests)
            self._set(max(wanted, CUT * held), f"parts take {stretch:.1f} times as long as at best")

    def _go_on_probing(self, probe: _Probe) -> None:
        """The first round of a probe is of parts that were sent before it; the second is what it is for."""
        if probe.is_drained:
            self._probe = None
            self._set(probe.limit)
        else:
            self._probe = probe._replace(is_drained=True)

    def _look_for_best(self, ended: _Round) -> None:
        by_size: dict[int, list[float]] = {}
        for part in ended.parts:
            by_size.setdefault(part.size, []).append(part.seconds)
        for size, seconds in by_size.items():
            if len(seconds) >= ROUND_PARTS_MIN // 2:
                self._best.setdefault(size, _Best()).look(median(seconds))

    def _set(self, limit: float, reason: str = "") -> None:
        """From now on; with a reason that is worth a line."""
        new = max(LIMIT_MIN, min(LIMIT_MAX, round(limit)))
        self.gate.set_limit(new)
        if reason and not self._told / TOLD < new < self._told * TOLD:
            self._told = new
            _log.info("%s: at most %d parts in flight from here on: %s", self._endpoint, new, reason)


class _Probe(NamedTuple):
    """A look at what parts take with half as many in flight as `limit`, which comes again after it."""

    limit: int
    is_drained: bool = False


class _Part(NamedTuple):
    """A part that was stored: its size to the power of two, what it took, and how many were in flight with it."""

    size: int
    seconds: float
    in_flight: int


class _Round:
    """What is measured at a time.

    Attributes:
        wanted: so many parts end it.
        is_full: somebody had to wait.
    """

    def __init__(self, wanted: int, began_s: float) -> None:
        self.wanted = wanted
        self.began_s = began_s
        self.parts: list[_Part] = []
        self.is_full = False


class _Best:
    """The shortest median of late: of these rounds, and of those before."""

    def __init__(self) -> None:
        self._now = self._before = float("inf")

    @property
    def seconds(self) -> float:
        return max(1e-6, min(self._now, self._before))

    def look(self, seconds: float) -> None:
        self._now = min(self._now, seconds)

    def age(self) -> None:
        self._now, self._before = float("inf"), self._now
