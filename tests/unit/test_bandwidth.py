"""The cap on bytes a second: what is handed out, and what a worker may take of it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from obs_engine.transfer import bandwidth as bandwidth_module
from obs_engine.transfer.bandwidth import BURST_S, PIECE_BYTES, TICK_S, Allowance, Bandwidth


class Loop:
    """Time that goes on when told to, and the timers of it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._timers: list[tuple[float, Any]] = []

    def monotonic(self) -> float:
        return self.now_s

    def call_later(self, seconds: float, action: Any) -> object:
        self._timers.append((self.now_s + seconds, action))
        return object()

    def go(self, until_s: float) -> None:
        while self._timers and (due := min(self._timers, key=lambda timer: timer[0]))[0] <= until_s:
            self._timers.remove(due)
            self.now_s = due[0]
            due[1]()
        self.now_s = until_s


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    found = Loop()
    monkeypatch.setattr(bandwidth_module, "time", found)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: found)
    return found


@pytest.mark.parametrize("workers", [1, 3, 8])
@pytest.mark.parametrize("rate", [10_000, 1_000_000, 1_000_000_000])
def test_so_much_is_handed_out_and_no_more(loop: Loop, rate: int, workers: int) -> None:
    """Whoever asks, and however many: over any 5 s within 5 % of the cap, if somebody always wants more."""
    cap, given = Bandwidth(), [0] * workers

    def grant(worker: int, size: int | None) -> None:
        assert size is not None
        given[worker] += size
        if size:
            loop.call_later(0.001, lambda: cap.ask(worker))

    cap.set(rate)
    for worker in range(workers):
        cap.join(worker, lambda size, w=worker: grant(w, size))  # type: ignore[misc]
        cap.ask(worker)
    sums = []
    for second in range(21):
        loop.go(100.0 + second)
        sums.append(sum(given))
    for start in range(1, 16):
        found = (sums[start + 5] - sums[start]) / 5
        assert abs(found - rate) <= 0.05 * rate + PIECE_BYTES / 5
    assert sums[0] <= BURST_S * rate + PIECE_BYTES * workers
    assert max(given) - min(given) <= 0.1 * max(given) + 2 * PIECE_BYTES


def test_the_cap_changes_while_bytes_flow(loop: Loop) -> None:
    """Another number counts at once; none sets everybody free, and a new worker hears of it as it comes."""
    cap = Bandwidth()
    heard: list[int | None] = []
    cap.join("a", heard.append)
    assert heard == []
    cap.set(1_000_000)
    assert heard == [0]
    cap.set(1_000_000)
    assert heard == [0]
    cap.ask("a")
    loop.go(101.0)
    assert heard[-1] is not None
    assert heard[-1] >= PIECE_BYTES
    cap.set(None)
    assert heard[-1] is None
    cap.ask("a")
    loop.go(110.0)
    assert heard[-1] is None
    cap.set(5_000)
    late: list[int | None] = []
    cap.join("b", late.append)
    assert late == [0]
    cap.leave("b")
    cap.leave("b")


def test_a_worker_takes_what_it_has_and_asks_once() -> None:
    """Free without a cap; with one, no more than was granted, shared among its transfers."""
    allowance = Allowance()
    assert allowance.take(10**9, 1) == 10**9
    assert not allowance.ask()
    allowance.grant(0)
    assert allowance.take(5, 1) == 0
    assert [allowance.ask(), allowance.ask()] == [True, False]
    allowance.grant(10 * PIECE_BYTES)
    assert not allowance.ask()
    assert allowance.take(10**6, 5) == 2 * PIECE_BYTES
    assert allowance.take(100, 5) == 100
    chance, taken = random.Random(1), 2 * PIECE_BYTES + 100
    while piece := allowance.take(chance.randrange(1, 50_000), chance.randrange(1, 9)):
        taken += piece
    assert taken == 10 * PIECE_BYTES
    assert allowance.ask()
    allowance.grant(None)
    assert allowance.take(7, 3) == 7
    assert TICK_S > 0
