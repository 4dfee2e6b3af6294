"""How is it shown? Medians with their spread, ratios of medians, and tables for people; results read back."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def spread(values: Sequence[float], digits: int = 3) -> str:
    """`median (min-max)`."""
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def ratio(values: Sequence[float], others: Sequence[float]) -> str:
    """Of the medians; "-" where there is nothing to compare."""
    if not values or not others or statistics.median(others) <= 0:
        return "-"
    return f"{statistics.median(values) / statistics.median(others):.2f}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown that is aligned for people too."""
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]
    shown = [header, ["-" * width for width in widths], *lines]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in shown)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def last_run(path: Path) -> list[dict[str, Any]]:
    """The lines of the last run in a file of results; the program ends where there is none."""
    if not path.exists():
        sys.exit(f"expected a file of results, found none at {path}; --json {path} of a run makes it")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["date"] == lines[-1]["date"]]
