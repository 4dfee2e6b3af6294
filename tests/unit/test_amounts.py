"""Amounts and timetables as people write them."""

from __future__ import annotations

from datetime import datetime

import pytest

from obs_engine.cli.amounts import Timetable, bytes_of
from obs_engine.errors import InvalidArgumentError
from obs_engine.limits import GIB, KIB, MIB


@pytest.mark.parametrize(
    ("text", "expected"),
    [("9M", 9 * MIB), ("100k", 100 * KIB), ("1.5G", 3 * GIB // 2), ("5000B", 5000), ("7", None), ("", None),
     ("M", None), ("-1M", None), ("1e3K", None), ("9 M", None), ("9MB", None)],
)  # fmt: skip
def test_amounts(text: str, expected: int | None) -> None:
    """A number and a unit; nothing else is one."""
    assert bytes_of(text) == expected


def test_a_bare_number_has_the_unit_that_is_usual_there() -> None:
    """As for part sizes."""
    assert bytes_of("9", unit="M") == 9 * MIB


@pytest.mark.parametrize(
    ("text", "time", "cap"),
    [
        ("20M", "03:00", 20 * MIB),
        ("off", "03:00", None),
        ("0", "03:00", None),
        ("08:00,20M 19:00,off", "07:59", None),
        ("08:00,20M 19:00,off", "08:00", 20 * MIB),
        ("08:00,20M 19:00,off", "18:59", 20 * MIB),
        ("08:00,20M 19:00,off", "19:00", None),
        ("08:00,20M 19:00,off", "00:00", None),
        ("19:00,off 08:00,20M 12:00,512K", "12:00", 512 * KIB),
        ("23:30,1M", "23:29", MIB),
        ("0:00,1M 0:01,2M", "00:00", MIB),
        ("0:00,1M 0:01,2M", "00:01", 2 * MIB),
    ],
)
def test_the_cap_of_an_hour(text: str, time: str, cap: int | None) -> None:
    """The latest entry before the time, that of yesterday included."""
    assert Timetable.of(text).at(datetime.strptime(time, "%H:%M")) == cap


@pytest.mark.parametrize(
    "text", ["", "fast", "20", "1B", "25:00,1M", "08:00", "08:00,", "08:00,1M,2M", "8,1M", "08:60,1M"]
)
def test_what_is_no_timetable(text: str) -> None:
    """Is refused before anything is sent, with how to write one."""
    with pytest.raises(InvalidArgumentError, match="08:00,20M 19:00,off"):
        Timetable.of(text)
