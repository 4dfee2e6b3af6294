"""How fast are the digests? Each kernel beside `hashlib.md5`, `zlib.crc32` and `xxhash.xxh3_128`, in one run.

Definition: GB/s is 10**9 bytes digested in a second of wall time by one thread. Streams are of equal length and lie
apart in plain memory that was touched before; a row walks through 64 MiB, more than the second-level cache, as pieces
from a network or a file are not in it either. A row is the median of several rounds; in every round each row runs once,
so what disturbs the machine disturbs all rows. `xxh3_128` is the ceiling: it does little more than read the memory.

Usage: python bench/digests.py [--piece-kib 1024] [--rounds 9] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import xxhash

from obs_engine import digests

try:
    from obs_engine import _native
except ImportError:
    _native = None  # type: ignore[assignment]

STREAMS = (1, 2, 4, 8, 16, 32, 64)
ROUND_BYTES = 64 << 20  # each row digests about as much in a round


@dataclass(frozen=True)
class Row:
    """One thing to time: `work` digests `piece_count` pieces once."""

    name: str
    streams: int
    piece_count: int
    work: Callable[[], object]


def one_by_one(function: Callable[[memoryview], object], pieces: Sequence[memoryview]) -> Callable[[], object]:
    def work() -> None:
        for piece in pieces:
            function(piece)

    return work


def side_by_side(kernel: str, pieces: Sequence[memoryview], streams: int) -> Callable[[], object]:
    def work() -> None:
        for first in range(0, len(pieces), streams):
            _native.md5_update_many([_native.Md5() for _ in range(streams)], pieces[first : first + streams], kernel)

    return work


def rows(pieces: Sequence[memoryview]) -> list[Row]:
    def single(name: str, function: Callable[[memoryview], object], share: int = 1) -> Row:
        some = pieces[: max(1, len(pieces) // share)]
        return Row(name, 1, len(some), one_by_one(function, some))

    found = [
        single("xxhash.xxh3_128 (ceiling)", lambda piece: xxhash.xxh3_128(piece).digest()),
        single("zlib.crc32", zlib.crc32),
        single("hashlib.md5", lambda piece: hashlib.md5(piece, usedforsecurity=False).digest()),
    ]
    if _native is None:
        return [*found, single("crc64 python", digests.crc64, share=64)]
    for kernel in _native.kernels():
        for streams in STREAMS:
            if streams <= len(pieces) and (streams == 1 or kernel != "portable"):
                whole = pieces[: len(pieces) // streams * streams]
                found.append(Row(f"md5 {kernel}", streams, len(whole), side_by_side(kernel, whole, streams)))
    for kernel in _native.crc64_kernels():
        found.append(single(f"crc64 {kernel}", lambda piece, kernel=kernel: _native.crc64(piece, 0, kernel)))
    return found


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, cwd=os.path.dirname(__file__), capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--piece-kib", type=int, default=1024, help="length of each stream's piece (1024)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that the median is of (9)")
    parser.add_argument("--json", action="store_true", help="a JSON line for each row instead of the table")
    options = parser.parse_args()
    if options.piece_kib < 1 or options.rounds < 1:
        parser.error("expected a piece of 1 KiB or more and 1 round or more")

    length = options.piece_kib << 10
    count = max(*STREAMS, ROUND_BYTES // length)
    memory = memoryview(bytearray(os.urandom(1 << 20)) * -(-count * length >> 20))
    timed = rows([memory[i * length : (i + 1) * length] for i in range(count)])
    rates: list[list[float]] = [[] for _ in timed]
    for round_number in range(options.rounds + 1):
        for row, of_row in zip(timed, rates, strict=True):
            began = time.perf_counter()
            row.work()
            seconds = time.perf_counter() - began
            if round_number:  # the first round warms up
                of_row.append(row.piece_count * length / seconds / 1e9)

    place = {"commit": commit(), "cpu": cpu_name(), "python": platform.python_version(), "kernel": digests.kernel()}
    if not options.json:
        sys.stdout.write(f"{place['cpu']}, {place['commit']}, pieces of {options.piece_kib} KiB\n\n")
        sys.stdout.write("| digest | streams | GB/s, median | least to most |\n|---|---|---|---|\n")
    for row, of_row in zip(timed, rates, strict=True):
        median, least, most = statistics.median(of_row), min(of_row), max(of_row)
        if options.json:
            figures = {"bench": "digests", "name": row.name, "streams": row.streams, "piece_kib": options.piece_kib,
                       "gb_s": round(median, 3), "gb_s_min": round(least, 3), "gb_s_max": round(most, 3),
                       "rounds": options.rounds}  # fmt: skip
            sys.stdout.write(json.dumps(figures | place) + "\n")
        else:
            sys.stdout.write(f"| {row.name} | {row.streams} | {median:.2f} | {least:.2f} to {most:.2f} |\n")


if __name__ == "__main__":
    main()
