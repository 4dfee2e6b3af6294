"""Amounts of bytes as people write them, and caps on bandwidth by the time of day."""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

from obs_engine.errors import InvalidArgumentError
from obs_engine.limits import GIB, KIB, MIB

_UNITS = {"B": 1, "K": KIB, "M": MIB, "G": GIB}
_MINUTES_A_DAY = 24 * 60


def bytes_of(text: str, *, unit: str | None = None) -> int | None:
    """`100K`, `9M`, `1.5G`, `5000B` in bytes; None where it is no such amount.

    Args:
        unit: of a bare number, which is else no amount.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([BKMG]?)", text.upper())
    if found is None or not (found[2] or unit):
        return None
    return int(float(found[1]) * _UNITS[found[2] or unit or "B"])


class Timetable(NamedTuple):
    """Caps in bytes a second (None: none), each from a minute of the day on; the last holds until the first."""

    entries: tuple[tuple[int, int | None], ...]

    @staticmethod
    def of(text: str) -> Timetable:
        """Reads `20M`, `off`, or `08:00,20M 19:00,off`.

        Raises:
            InvalidArgumentError: it is none of these.
        """
        words = text.split()
        if len(words) == 1 and "," not in text:
            return Timetable(((0, _cap_of(words[0], text)),))
        entries = {}
        for word in words:
            time, comma, cap = word.partition(",")
            found = re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", time)
            if not comma or found is None:
                raise _wrong(text)
            entries[int(found[1]) * 60 + int(found[2])] = _cap_of(cap, text)
        if not entries:
            raise _wrong(text)
        return Timetable(tuple(sorted(entries.items())))

    def at(self, moment: datetime) -> int | None:
        """The cap at a time of the day."""
        minute = moment.hour * 60 + moment.minute
        return max(self.entries, key=lambda entry: (entry[0] - minute - 1) % _MINUTES_A_DAY)[1]


def _cap_of(word: str, text: str) -> int | None:
    if word.lower() in ("off", "0"):
        return None
    cap = bytes_of(word)
    if not cap or cap < KIB:
        raise _wrong(text)
    return cap


def _wrong(text: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "--max-bandwidth", "bytes a second such as 20M (1K at least), off, or '08:00,20M 19:00,off'", text
    )
