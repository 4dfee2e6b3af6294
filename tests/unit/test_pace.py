"""The pace of an endpoint, against services that bear so many requests a second, on a clock of its own."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import pytest

from obs_engine.transfer import pace as pace_module
from obs_engine.transfer.pace import RATE_MIN, Pace


class Clock:
    """Seconds that pass when everybody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_s + seconds, next(self._numbers), wake))
        await wake

    async def run(self, work: list[Awaitable[None]]) -> None:
        """Runs all to their end; time goes on when nobody can go on without."""
        tasks = [asyncio.ensure_future(item) for item in work]
        while not all(task.done() for task in tasks):
            for _ in range(20):
                await asyncio.sleep(0)
            if self._sleepers:
                self.now_s, _, wake = heapq.heappop(self._sleepers)
                wake.set_result(None)
        await asyncio.gather(*tasks)


class Busy:
    """A service that takes `rate` requests a second, in a bucket of as many, and turns the others away."""

    def __init__(self, clock: Clock, rate: float) -> None:
        self._clock, self._rate = clock, rate
        self._tokens, self._seen_s = rate, 0.0
        self.log: list[tuple[float, bool]] = []

    def takes(self) -> bool:
        now_s = self._clock.now_s
        self._tokens = min(self._rate, self._tokens + (now_s - self._seen_s) * self._rate)
        self._seen_s = now_s
        is_taken = self._tokens >= 1
        self._tokens -= is_taken
        self.log.append((now_s, is_taken))
        return is_taken


def played(rate: float, requests: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> Busy:
    clock = Clock()
    fake: Any = type("time", (), {"monotonic": staticmethod(clock.monotonic)})
    monkeypatch.setattr(pace_module, "time", fake)
    real_sleep: Callable[..., Awaitable[None]] = asyncio.sleep
    monkeypatch.setattr(pace_module.asyncio, "sleep", lambda s: clock.sleep(s) if s > 0 else real_sleep(s))
    service, pace, left = Busy(clock, rate), Pace(), iter(range(requests))

    async def work() -> None:
        for _ in left:
            while True:
                await pace.turn()
                is_taken = service.takes()
                await clock.sleep(0.02)  # a round trip
                if is_taken:
                    pace.on_accepted()
                    break
                pace.on_slow_down()

    asyncio.run(clock.run([work() for _ in range(workers)]))
    return service


@pytest.mark.parametrize("workers", [4, 32])
@pytest.mark.parametrize("rate", [20.0, 50.0, 500.0])
def test_the_rate_is_found_and_kept(rate: float, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 1.3 of the ideal time, and few are turned away once the first seconds are over."""
    requests = int(rate * 40)
    service = played(rate, requests, workers, monkeypatch)
    seconds = service.log[-1][0]
    ideal_s = max((requests - rate) / rate, requests / workers * 0.02)
    later = [is_taken for at_s, is_taken in service.log if at_s > 5]
    assert seconds <= 1.3 * ideal_s
    assert later.count(False) <= 0.1 * len(later)


def test_a_service_that_never_complains_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request waits a moment."""
    service = played(1e9, 1000, 10, monkeypatch)
    assert all(is_taken for _, is_taken in service.log)
    assert service.log[-1][0] <= 1000 / 10 * 0.02


def test_a_service_that_recovers_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit grows beyond where it was refused, faster and faster."""
    now_s = [0.0]
    monkeypatch.setattr(pace_module, "time", type("time", (), {"monotonic": staticmethod(lambda: now_s[0])}))
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now_s[0] += seconds

    monkeypatch.setattr(pace_module.asyncio, "sleep", sleep)
    pace = Pace()
    for _ in range(50):
        now_s[0] += 0.02
        pace.on_accepted()
    for _ in range(10):
        pace.on_slow_down()
    assert pace.rate == pytest.approx(40, rel=0.05), "0.8 of what was accepted"

    async def work() -> None:
        while now_s[0] < 30:
            await pace.turn()

    asyncio.run(work())
    assert pace.rate is not None
    assert pace.rate > 1000


def test_refusals_of_one_moment_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were on their way when it was cut say nothing new."""
    now_s = [10.0]
    monkeypatch.setattr(pace_module, "time", type("time", (), {"monotonic": staticmethod(lambda: now_s[0])}))
    pace = Pace()
    for _ in range(200):
        now_s[0] += 0.01
        pace.on_accepted()
    cuts = [pace.on_slow_down() for _ in range(30)]
    assert cuts.count(True) == 1
    assert pace.rate == pytest.approx(80, rel=0.05)
    now_s[0] += 1.5
    assert [pace.on_slow_down() for _ in range(5)].count(True) == 1
    assert pace.rate == RATE_MIN  # nothing was accepted of late


@pytest.mark.parametrize("share", [0.003, 0.01, 0.03])
def test_a_refusal_now_and_then_is_no_limit(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is busy for a moment, at any rate, is not made better by waiting: only those parts wait."""
    now_s, rng = [0.0], random.Random(5)
    monkeypatch.setattr(pace_module, "time", type("time", (), {"monotonic": staticmethod(lambda: now_s[0])}))
    pace = Pace()
    for _ in range(20_000):
        now_s[0] += 0.001
        if rng.random() < share:
            pace.on_slow_down()
        else:
            pace.on_accepted()
    assert pace.rate is None or pace.rate >= 500
