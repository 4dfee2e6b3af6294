"""How fast are the digests? Each kernel beside those that others offer, in one run.

Beside MD5: `hashlib.md5`, and `hashlib.sha256`, which is what the official SDK's checkSum computes. Beside CRC-64:
`zlib.crc32`, and `crcmod`, which is what the SDK's isAttachCrc64 computes with; it has a C and a Python half, and its
name in the table says which one was installed. Before anything is timed, every kernel must be listed that this CPU can
run by what the kernel of the system says of it, and each must give the digest that others give.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import xxhash

from circumstances import cpu_name
from obs_engine import digests

try:
    from obs_engine import _native
except ImportError:
    _native = None  # type: ignore[assignment]

STREAMS = (1, 2, 4, 8, 16, 32, 64)
ROUND_BYTES = 64 << 20  # each row digests about as much in a round
SLOW_SHARE = 64  # pure Python digests so much less
KERNELS: dict[str, dict[str, dict[str, str]]] = {
    "md5": {
        "x86_64": {"avx512": "avx512f", "avx2": "avx2", "simd128": "", "portable": ""},
        "aarch64": {"simd128": "", "portable": ""},
    },
    "crc64": {"x86_64": {"avx512": "vpclmulqdq", "pclmul": "pclmulqdq", "portable": ""}, "aarch64": {"portable": ""}},
}
"""By digest and machine: the kernels, best first, and the flag in /proc/cpuinfo that each needs ("": none)."""
CRC64_CHECK = 0x995DC9BBDF1939FA
"""Of b"123456789". Source: the catalogue of CRC algorithms, CRC-64/XZ."""
_POLYNOMIAL, _ALL_ONES = 0x142F0E1EBA9EA3693, 2**64 - 1  # as the SDK hands them to crcmod (obs/util.py, Crc64)


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
        single("hashlib.sha256 (the SDK's checkSum)", lambda piece: hashlib.sha256(piece).digest()),
    ]
    if (crcmod_crc64 := of_crcmod()) is not None:
        half, function = crcmod_crc64
        found.append(single(f"crcmod, {half} (the SDK's isAttachCrc64)", function, SLOW_SHARE if half != "C" else 1))
    if _native is None:
        return [*found, single("crc64 python", digests.crc64, SLOW_SHARE)]
    for kernel in _native.kernels():
        for streams in STREAMS:
            if streams <= len(pieces) and (streams == 1 or kernel != "portable"):
                whole = pieces[: len(pieces) // streams * streams]
                found.append(Row(f"md5 {kernel}", streams, len(whole), side_by_side(kernel, whole, streams)))
    for kernel in _native.crc64_kernels():
        found.append(single(f"crc64 {kernel}", partial(crc64_by, kernel)))
    return found


def crc64_by(kernel: str, piece: memoryview) -> int:
    return _native.crc64(piece, 0, kernel)


def of_crcmod() -> tuple[str, Callable[[memoryview], int]] | None:
    """Which half of crcmod is installed, and its CRC-64 as the SDK asks for it; None where it is not installed."""
    try:
        import crcmod  # type: ignore[import-untyped]
    except ImportError:
        return None
    try:
        import crcmod._crcfunext  # type: ignore[import-untyped]
    except ImportError:
        half = "Python"
    else:
        half = "C"

    def crc64(piece: memoryview) -> int:
        found = crcmod.Crc(_POLYNOMIAL, initCrc=0, rev=True, xorOut=_ALL_ONES)
        found.update(piece if half == "C" else bytes(piece))
        return int(found.crcValue)

    return half, crc64


def faults() -> Iterator[str]:
    """What is wrong with the kernels: one that should be listed and is not, or gives another digest."""
    if _native is None:
        return
    flags = set(cpu_flags())
    for digest, listed in (("md5", _native.kernels()), ("crc64", _native.crc64_kernels())):
        known = KERNELS[digest].get(platform.machine())
        expected = tuple(name for name, flag in (known or {}).items() if not flag or flag in flags)
        if known is not None and flags and tuple(listed) != expected:
            yield f"{digest}: expected the kernels {expected} of this CPU's flags, found {tuple(listed)}"
    pieces = [os.urandom((1 << 16) + number) for number in range(max(STREAMS))]
    for kernel in _native.kernels():
        hashers = [_native.Md5() for _ in pieces]
        _native.md5_update_many(hashers, pieces, kernel)
        others = [hashlib.md5(piece, usedforsecurity=False).digest() for piece in pieces]
        if [hasher.digest() for hasher in hashers] != others:
            yield f"md5 {kernel}: expected the digests of hashlib, found others"
    crcmod_crc64 = of_crcmod()
    for kernel in _native.crc64_kernels():
        if _native.crc64(b"123456789", 0, kernel) != CRC64_CHECK:
            yield f"crc64 {kernel}: expected the catalogue's check value, found another"
        if crcmod_crc64 and any(crcmod_crc64[1](memoryview(p)) != _native.crc64(p, 0, kernel) for p in pieces[:4]):
            yield f"crc64 {kernel}: expected the CRCs of crcmod, found others"


def cpu_flags() -> list[str]:
    """What the system says that the CPU can do; nothing where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])


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
    if found := list(faults()):
        sys.exit("digests.py: " + "; ".join(found))

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
