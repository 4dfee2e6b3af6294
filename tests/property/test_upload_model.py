"""One upload against a modelled service: whatever fails, and wherever it is killed, the object ends as the file."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import FAULTS, PART, World
from obs_engine.errors import ObsEngineError
from power import Killed, MortalDisk

SCRIPTS = st.lists(st.sampled_from(["none"] * 12 + list(FAULTS)), max_size=14)
WORLDS = {
    "parts": st.integers(1, 6),
    "task_num": st.integers(1, 4),
    "runs": st.lists(st.tuples(SCRIPTS, st.integers(0, 20), st.booleans()), max_size=5),
}


@settings(max_examples=300, deadline=None)
@given(**WORLDS)
def test_the_object_ends_as_the_file(parts: int, task_num: int, runs: list[tuple[list[str], int, bool]]) -> None:
    """After any faults and kills, also amid a write of the record, a last quiet call succeeds; see `play`."""
    play(parts, task_num, runs)


@pytest.mark.soak
@pytest.mark.timeout(900)
@settings(max_examples=10_000, deadline=None, derandomize=False)
@given(**WORLDS)
def test_the_object_ends_as_the_file_in_ten_thousand_worlds(
    parts: int, task_num: int, runs: list[tuple[list[str], int, bool]]
) -> None:
    """The same, in many more worlds."""
    play(parts, task_num, runs)


def play(parts: int, task_num: int, runs: list[tuple[list[str], int, bool]]) -> None:
    """Calls until one succeeds: what the record has is never sent again, and a quiet call is enough."""
    content = random.Random(parts).randbytes((parts - 1) * PART + 7)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), content)
        for script, fuse, is_torn in [*runs, ([], 0, False)]:
            known = world.state()
            try:
                done = world.call(script, MortalDisk(fuse, is_torn=is_torn), task_num=task_num, durability="crash")
            except Killed:
                continue
            except ObsEngineError:
                assert script, "a quiet call must succeed"
                continue
            finally:
                sent = {a.part_number for a in world.service.was_asked("UploadPart") if a.upload_id == known.upload_id}
                assert not sent & known.parts.keys()
            if done.reply.status < 300:
                break
        assert world.service.object is not None
        assert world.service.object.content == content
        assert not world.record.exists()
