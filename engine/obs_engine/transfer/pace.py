"""How many requests a second a service bears: found out from its own word, for all uploads to one endpoint together.

Free until the service first asks to slow down. From then on requests are let go at a rate: cut when the service asks
for it, and grown again as CUBIC grows a window (RFC 9438): quickly back to where it was refused, long near there, then
on. Why a rate and not a number in flight: services limit requests a second, and of small parts even one in flight at a
time may be more than that. Runs in the coordinator.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

_log = logging.getLogger("obs_engine")

CUT = 0.8
"""Of what was accepted of late, so much is tried after a refusal."""
PLATEAU_S = 3.0
"""So long after a cut the rate is again what it was, and hardly grows: the same for fast services and slow ones."""
RATE_MIN = 10.0
"""What is slower than that is left to the pauses of each request: one refusal is no measure of a service."""
MEASURED_S, MEASURED_MIN_S = 1.0, 0.1
"""What counts as of late: since the last cut, but no longer and no shorter than this."""
CUT_REST_S = 0.25
"""After a cut so long none: what comes then was on its way before."""
TOLERATED = 0.05
"""Of the replies of late, so many may ask to slow down before the rate is cut. A service that is busy for everybody,
now and then, gets no better by less of us; and one that limits us turns away whatever is beyond."""
NAP_MIN_S = 0.001
"""The event loop sleeps no shorter."""


class Pace:
    """The pace of one endpoint.

    Attributes:
        accepted: replies that did not ask to slow down, so far.
        rate: requests a second at the moment; None while there is no limit.
    """

    def __init__(self, endpoint: str = "") -> None:
        self.accepted = 0
        self.rate: float | None = None
        self._endpoint = endpoint
        self._recent: deque[float] = deque()  # when the latest replies were accepted
        self._refused: deque[float] = deque()  # and those that were not
        self._began_s = float("inf")  # since then they are counted
        self._cut_s = 0.0
        self._top = 0.0  # the rate at which it was refused
        self._sent_s = 0.0  # when the latest request went
        self._line = asyncio.Lock()

    async def turn(self) -> None:
        """Waits until a request may be sent."""
        if self.rate is None:
            return
        async with self._line:  # whose first alone looks at the rate: it may be another when the next one is first
            now_s = time.monotonic()
            self.rate = self._grown(now_s)
            wait_s = self._sent_s + 1 / self.rate - now_s
            if wait_s > NAP_MIN_S:
                await asyncio.sleep(wait_s)
            # What a nap took too long, the next may take less.
            self._sent_s = max(self._sent_s + 1 / self.rate, time.monotonic() - 10 * NAP_MIN_S)

    def try_turn(self) -> bool:
        """The same for a request that need not go: it goes only where nobody waits, and it has not to wait itself."""
        if self.rate is None:
            return True
        now_s = time.monotonic()
        if self._line.locked() or self._sent_s + 1 / self._grown(now_s) > now_s:
            return False
        self._sent_s = now_s
        return True

    def on_accepted(self) -> None:
        """A reply came that did not ask to slow down, whatever else it says."""
        self.accepted += 1
        self._recent.append(self._now_s())

    def on_slow_down(self) -> bool:
        """The service asks for fewer requests; is it right?"""
        now_s = self._now_s()
        self._refused.append(now_s)
        refused, accepted = len(self._refused), len(self._recent)
        expected = TOLERATED * (refused + accepted)
        is_tolerated = refused <= expected + 2 * expected**0.5 + 2  # a few of few are chance
        if is_tolerated or (self.rate is not None and now_s - self._cut_s < CUT_REST_S):
            return False
        self._top = max(accepted / min(MEASURED_S, max(MEASURED_MIN_S, now_s - self._began_s)), RATE_MIN)
        self._cut_s = self._began_s = now_s
        self._recent.clear()
        self._refused.clear()
        self.rate = max(RATE_MIN, self._top * CUT)
        _log.info("%s asks to slow down: %.1f requests a second from here on", self._endpoint, self.rate)
        return True

    def _grown(self, now_s: float) -> float:
        beyond = (now_s - self._cut_s - PLATEAU_S) / PLATEAU_S
        return max(RATE_MIN, self._top * (1 + (1 - CUT) * beyond**3))

    def _now_s(self) -> float:
        """The time; what was before is forgotten."""
        now_s = time.monotonic()
        self._began_s = min(self._began_s, now_s)
        for moments in (self._recent, self._refused):
            while moments and now_s - moments[0] > MEASURED_S:
                moments.popleft()
        return now_s
