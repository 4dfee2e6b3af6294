"""What is told of an upload's progress: never less than before, and all of it only at the end."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obs_engine.checkpoint.fingerprint import fingerprint
from obs_engine.checkpoint.fold import UploadState
from obs_engine.checkpoint.records import Binding
from obs_engine.source.plan import PartPlan
from obs_engine.transfer import progress as progress_module
from obs_engine.transfer.flow import Flow
from obs_engine.transfer.messages import Progress
from obs_engine.transfer.progress import ProgressFeed

SIZE, PART = 1000, 100


class Session:
    in_flight_bytes = 0
    flow = Flow()


def state_of(parts: int) -> UploadState:
    """An upload of ten parts, of which the first are stored."""
    binding = Binding("b", "k", "e", "/f", SIZE, 0, 0, 0, 0, PART, fingerprint({}))
    return UploadState(binding, "u", dict.fromkeys(range(1, parts + 1), '"e"'))


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 2 * SIZE)), min_size=1, max_size=20), st.booleans())
def test_the_bytes_told_never_fall(looks: list[tuple[int, int]], is_stored: bool) -> None:
    """Whatever is stored, sent, lost and sent again; and all bytes are told when the object stands, not before."""
    told: list[Progress] = []

    async def work() -> None:
        session, plan = Session(), PartPlan(SIZE, PART)
        feed = ProgressFeed(cast(Any, session), told.append, is_wanted=True)
        for parts, session.in_flight_bytes in looks:
            feed.begin(state_of(parts), plan)
        feed.stop()
        if is_stored:
            feed.end(plan)

    asyncio.run(work())
    assert all(a.shown_bytes <= b.shown_bytes for a, b in pairwise(told))
    assert [p.shown_bytes == SIZE for p in told] == [False] * (len(told) - is_stored) + [True] * is_stored
    assert all(p.total_bytes == SIZE for p in told)


def test_nobody_is_told_the_same_twice_or_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes: what changed is told, a stall is not."""
    monkeypatch.setattr(progress_module, "INTERVAL_S", 0.0)
    told: list[Progress] = []

    async def work() -> None:
        session, state, plan = Session(), state_of(2), PartPlan(SIZE, PART)
        silent = ProgressFeed(cast(Any, session), told.append, is_wanted=False)
        silent.begin(state, plan)
        silent.end(plan)
        assert not told
        feed = ProgressFeed(cast(Any, session), told.append, is_wanted=True)
        feed.begin(state, plan)
        for _ in range(5):
            await asyncio.sleep(0)
        session.in_flight_bytes = 50
        for _ in range(5):
            await asyncio.sleep(0)
        feed.stop()

    asyncio.run(work())
    assert [p.shown_bytes for p in told] == [200, 250]
