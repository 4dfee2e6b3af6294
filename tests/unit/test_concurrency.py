"""How many parts in flight are let in, against services of several kinds, on a clock of its own."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from obs_engine.transfer.concurrency import CUT, LIMIT_MIN, START, Concurrency
from obs_engine.transfer.gate import Gate

PART = 9 << 20


class World:
    """Senders that each send one part after the other; a service that says how long a part takes. Time is simulated.

    Attributes:
        log: moment and parts in flight whenever one is stored.
        limits: moment and limit whenever a part is stored.
    """

    def __init__(self, senders: int, takes_s: Callable[[float, int], float]) -> None:
        self.now_s = 0.0
        self.parts = Concurrency()
        self.log: list[tuple[float, int]] = []
        self.limits: list[tuple[float, int]] = []
        self._takes_s = takes_s
        self._senders = senders
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._in_flight = 0

    def run(self, seconds: float) -> World:
        asyncio.run(self._run(seconds))
        return self

    async def _run(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later = lambda delay, call, *_: self._later(delay, call)  # type: ignore[assignment, method-assign, misc]
        tasks = [asyncio.ensure_future(self._send()) for _ in range(self._senders)]
        while self.now_s < seconds:
            for _ in range(6):
                await asyncio.sleep(0)
            self.now_s, _, wake = heapq.heappop(self._sleepers)
            if not wake.done():
                wake.set_result(None)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _sleep(self, seconds: float) -> None:
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_s + seconds, next(self._numbers), wake))
        await wake

    def _later(self, delay_s: float, call: Callable[[], Any]) -> Any:
        async def wait() -> None:
            await self._sleep(delay_s)
            call()

        return asyncio.ensure_future(wait())

    async def _send(self) -> None:
        while True:
            await self.parts.enter()
            in_flight = self.parts.on_sent()
            self._in_flight += 1
            began_s = self.now_s
            await self._sleep(self._takes_s(self.now_s, self._in_flight))
            self.log.append((self.now_s, self._in_flight))
            self._in_flight -= 1
            self.parts.on_over()
            self.parts.on_stored(PART, self.now_s - began_s, in_flight, self.now_s)
            self.limits.append((self.now_s, self.parts.gate.limit))
            self.parts.gate.leave()

    def stored(self, from_s: float, to_s: float) -> int:
        return sum(from_s <= at_s < to_s for at_s, _ in self.log)

    def in_flight(self, from_s: float) -> float:
        """On average, from then on."""
        found = [in_flight for at_s, in_flight in self.log if at_s >= from_s]
        return sum(found) / len(found)


def wide(seconds: float, seed: int = 1) -> Callable[[float, int], float]:
    """Each connection is as fast as it would be alone."""
    rng = random.Random(seed)
    return lambda _now_s, _in_flight: seconds * rng.uniform(0.8, 1.3)


def narrow(capacity: int, seconds: float, seed: int = 1) -> Callable[[float, int], float]:
    """Beyond so many in flight, they share what there is."""
    rng = random.Random(seed)
    return lambda _now_s, in_flight: seconds * max(1.0, in_flight / capacity) * rng.uniform(0.8, 1.3)


@pytest.mark.parametrize("seconds", [0.05, 1.8, 30.0])
def test_it_grows_as_long_as_more_bring_more(seconds: float) -> None:
    """All senders are let in soon: after a second where parts are long, after some rounds where they are short."""
    world = World(256, wide(seconds)).run(max(60.0, 20 * seconds))
    assert world.limits[0][1] >= START
    assert world.in_flight(max(2.0, 4 * seconds)) >= 250
    ideal = 256 * max(60.0, 20 * seconds) / (seconds * 1.05)
    assert len(world.log) >= 0.93 * ideal


def test_few_senders_are_never_held_back() -> None:
    """Eight of eight are in flight from the first moment on, whatever the parts take."""
    world = World(8, narrow(2, 0.2)).run(60)
    assert world.parts.gate.inside == 8
    assert not world.parts.gate.is_waited_for


@pytest.mark.parametrize("capacity", [8, 20, 60])
def test_it_stays_where_more_only_wait(capacity: int) -> None:
    """Some times what a service bears are in flight, of 400 that would like to; and no throughput is lost by that."""
    world = World(400, narrow(capacity, 0.2)).run(120)
    assert world.in_flight(30) <= max(4 * capacity, 2 * START)
    assert world.stored(30, 120) >= 0.93 * capacity * 90 / (0.2 * 1.05)


def test_it_falls_when_the_service_becomes_narrow() -> None:
    """From 100 at a time to 10 at a time, half-way: what is in flight follows, and again when it recovers."""
    before, after = narrow(100, 0.2), narrow(10, 0.2)
    world = World(400, lambda now_s, n: (after if 60 <= now_s < 150 else before)(now_s, n)).run(240)

    def limits(moment: float) -> list[int]:
        return [limit for at_s, limit in world.limits if moment <= at_s < moment + 10]

    assert min(limits(50)) >= 80
    assert max(limits(140)) <= 60
    assert min(limits(230)) >= 80
    assert world.stored(200, 240) >= 0.9 * 100 * 40 / (0.2 * 1.05)


def test_parts_that_crawl_say_nothing_of_the_others() -> None:
    """One of twenty takes thirty times as long: the median does not see it."""
    rng = random.Random(4)
    world = World(64, lambda _now_s, _n: 6.0 if rng.random() < 0.05 else 0.2 * rng.uniform(0.8, 1.3)).run(120)
    assert world.in_flight(20) >= 60


def test_slow_down_cuts_it_at_once_and_it_comes_back_step_by_step() -> None:
    """One cut for the refusals of one moment; then one part more a round."""
    world = World(256, wide(0.1)).run(10)
    inside = world.parts.gate.inside
    assert inside == 256
    for _ in range(20):
        world.parts.on_slow_down(world.now_s)
    cut = world.parts.gate.limit
    assert cut == pytest.approx(CUT * inside, abs=1)
    for _ in range(60):
        world.parts.on_slow_down(world.now_s)
        world.now_s += 1.1
    assert world.parts.gate.limit >= LIMIT_MIN


def test_those_who_wait_are_let_in_in_their_order() -> None:
    """And one that gives up is passed over, whether its turn had come or not."""

    async def work() -> None:
        gate, entered = Gate(1), []

        async def enter(name: str) -> None:
            await gate.enter()
            entered.append(name)

        tasks = [asyncio.ensure_future(enter(name)) for name in "abcde"]
        await asyncio.sleep(0)
        assert entered == ["a"]
        assert gate.is_waited_for
        tasks[1].cancel()
        await asyncio.sleep(0)
        gate.leave()
        tasks[2].cancel()  # its turn has come, and it does not know yet
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert entered == ["a", "d"]
        assert not gate.try_enter()
        gate.set_limit(3)
        await asyncio.sleep(0)
        assert entered == ["a", "d", "e"]
        assert gate.try_enter()
        assert (gate.inside, gate.is_waited_for) == (3, False)

    asyncio.run(work())
