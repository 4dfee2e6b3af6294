"""What does an upload cost the machine that sends it, and how soon does it begin?

CPU seconds per GB, peak memory, and the time to the first byte, of this engine, of the official SDK and of bare
`send()`, in one run, against a sink that discards bodies. Every number is defined in BENCHMARKS.md, before it is
measured here.

    python bench/first_light.py [--size BYTES] [--runs N] [--only ROW,ROW] [--json FILE]
    python bench/first_light.py --show FILE      the tables of the last run in a file of results
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil

from clients import CLIENTS, MEANINGS, NEEDS, PART_BYTES, TASK_NUM
from measured import RunFailed, Usage, check, kernel_threads_cpu_s, run

ROOT = Path(__file__).resolve().parent.parent
GB = 10**9
BASE_BYTES = PART_BYTES  # the smallest upload in parts: one part of full size
SAMPLE_EVERY_S = 0.02
MEMORY_RUNS = 3
RUN_TIMEOUT_S = 600.0
_BLOCK_BYTES = 16 << 20


class Sink:
    """The sink as a process of its own, for the life of a `with` block."""

    def __enter__(self) -> Sink:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("sink.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def reset(self) -> None:
        urlopen(Request(f"{self.url}/-/reset", method="POST"), timeout=10).close()

    def stats(self) -> dict[str, Any]:
        with urlopen(f"{self.url}/-/stats", timeout=10) as reply:
            found: dict[str, Any] = json.load(reply)
        return found


@dataclass
class Row:
    """What was measured of one client; lists hold one value for each run, in order."""

    name: str
    cpu_s: list[float] = field(default_factory=list)
    user_s: list[float] = field(default_factory=list)
    ksoftirqd_s: list[float] = field(default_factory=list)
    base_cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    sink_busy: list[float] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=dict)
    fresh_request_ms: list[float] = field(default_factory=list)
    fresh_part_ms: list[float] = field(default_factory=list)
    fresh_from_exec_ms: list[float] = field(default_factory=list)
    used_request_ms: list[float] = field(default_factory=list)
    used_part_ms: list[float] = field(default_factory=list)
    pss_mb: list[float] = field(default_factory=list)
    uss_mb: list[float] = field(default_factory=list)
    sparse_pss_mb: list[float] = field(default_factory=list)
    processes: int = 0
    proc_to_rusage: list[float] = field(default_factory=list)
    failure: str | None = None

    def whole(self, size: int) -> list[float]:
        """CPU seconds per GB, the whole process."""
        return [cpu_s / (size / GB) for cpu_s in self.cpu_s]

    def slope(self, size: int) -> list[float]:
        """CPU seconds per GB of what a run costs above an upload of one part."""
        if size <= BASE_BYTES:
            return []
        return [(c - b) / ((size - BASE_BYTES) / GB) for c, b in zip(self.cpu_s, self.base_cpu_s, strict=True)]


class Bench:
    """One run of everything."""

    def __init__(self, sink: Sink, folder: Path, size: int, sparse_size: int) -> None:
        self._sink = sink
        self._size, self._sparse_size = size, sparse_size
        self._big = folder / "big.bin"
        self._base = folder / "base.bin"
        self._sparse = folder / "sparse.bin"
        path = [str(ROOT / "engine"), *filter(None, [os.environ.get("PYTHONPATH")])]
        # Why bytecode is allowed: a user's second start finds it compiled, and so shall every client here.
        self._env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": ""}

    def make_files(self) -> None:
        """Incompressible bytes, on the disk before anything is timed, and in the page cache."""
        for path, size in ((self._big, self._size), (self._base, BASE_BYTES)):
            with open(path, "wb") as file:
                for offset in range(0, size, _BLOCK_BYTES):
                    file.write(os.urandom(min(_BLOCK_BYTES, size - offset)))
                file.flush()
                os.fsync(file.fileno())
            with open(path, "rb", buffering=0) as file:
                while file.read(_BLOCK_BYTES):
                    pass
        with open(self._sparse, "wb") as file:
            file.truncate(self._sparse_size)

    def cpu(self, row: Row, *, is_kept: bool) -> None:
        """One upload of one part and one of the big file, each in a fresh process; nothing looks on meanwhile."""
        base, _, _ = self._upload(row.name, [self._base])
        softirq_s = kernel_threads_cpu_s()
        usage, calls, stats = self._upload(row.name, [self._big])
        softirq_s = kernel_threads_cpu_s() - softirq_s
        if not is_kept:
            return
        row.base_cpu_s.append(base.cpu_s)
        row.cpu_s.append(usage.cpu_s)
        row.user_s.append(usage.user_s)
        row.ksoftirqd_s.append(softirq_s)
        (call,) = calls
        wall_s = (call["returned_ns"] - call["called_ns"]) / 1e9
        row.wall_s.append(wall_s)
        row.sink_busy.append(stats["sink_cpu_s"] / wall_s)
        row.connections.append(stats["connections"])
        row.requests = stats["requests"]
        row.fresh_request_ms.append((stats["first_request_ns"] - call["called_ns"]) / 1e6)
        row.fresh_part_ms.append((stats["first_part_body_ns"] - call["called_ns"]) / 1e6)
        row.fresh_from_exec_ms.append((stats["first_part_body_ns"] - usage.started_ns) / 1e6)

    def used(self, row: Row) -> None:
        """The same client object uploads one part, then the big file; the second call counts."""
        _, calls, stats = self._upload(row.name, [self._base, self._big])
        row.used_request_ms.append((stats["first_request_ns"] - calls[-1]["called_ns"]) / 1e6)
        row.used_part_ms.append((stats["first_part_body_ns"] - calls[-1]["called_ns"]) / 1e6)

    def memory(self, row: Row) -> None:
        """The big file again, looked at all the while."""
        usage, _, _ = self._upload(row.name, [self._big], SAMPLE_EVERY_S)
        row.pss_mb.append(usage.peak_pss_bytes / 1e6)
        row.uss_mb.append(usage.peak_uss_bytes / 1e6)
        row.processes = max(row.processes, usage.processes)
        row.proc_to_rusage.append(usage.seen_cpu_s / usage.cpu_s)

    def sparse_memory(self, row: Row) -> None:
        """A file of holes alone, ten times as large."""
        usage, _, _ = self._upload(row.name, [self._sparse], SAMPLE_EVERY_S)
        row.sparse_pss_mb.append(usage.peak_pss_bytes / 1e6)

    def _upload(
        self, name: str, paths: Sequence[Path], sample_every_s: float | None = None
    ) -> tuple[Usage, list[dict[str, int]], dict[str, Any]]:
        """Runs a client and checks that all the bytes of the last file arrived."""
        self._sink.reset()
        program = str(Path(__file__).with_name("clients.py"))
        command = [sys.executable, program, name, self._sink.url, *map(str, paths)]
        usage = run(command, self._env, timeout_s=RUN_TIMEOUT_S, sample_every_s=sample_every_s)
        stats = self._sink.stats()
        size = paths[-1].stat().st_size
        if stats["body_bytes"] != size:
            raise RunFailed(f"{name}: expected {size} bytes of parts at the sink, found {stats['body_bytes']}")
        for path in paths:
            for record in path.parent.glob(f"{path.name}.upload_record*"):
                raise RunFailed(f"{name}: expected its record removed after success, found {record.name}")
        return usage, [json.loads(line) for line in usage.output.splitlines()], stats


def available(names: Sequence[str]) -> Iterator[str]:
    """The rows that can run here; says why another cannot."""
    sys.path.append(str(ROOT / "engine"))
    for name in names:
        needed = NEEDS.get(name)
        if needed and importlib.util.find_spec(needed) is None:
            say(f"skipped {name}: expected the package {needed!r}, found none; pip install -e '.[test]' brings it")
        else:
            yield name


def say(text: str) -> None:
    """Progress, for the person who waits; the table alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def measure(bench: Bench, rows: Sequence[Row], runs: int) -> None:
    """Everything, the rows in turn (A B C A B C), so that a slow minute of the machine falls on all of them."""
    steps: list[tuple[str, Any, int]] = [
        ("warm-up", lambda row: bench.cpu(row, is_kept=False), 1),
        ("CPU", lambda row: bench.cpu(row, is_kept=True), runs),
        ("first byte, used", bench.used, runs),
        ("memory", bench.memory, MEMORY_RUNS),
        ("memory, sparse", bench.sparse_memory, 1),
    ]
    for what, step, count in steps:
        for number in range(count):
            say(f"{what}: {number + 1} of {count}")
            for row in rows:
                is_left_out = row.name == "raw" and what in ("memory", "memory, sparse")
                if row.failure or is_left_out:
                    continue
                try:
                    step(row)
                except RunFailed as failure:
                    row.failure = str(failure)
                    say(f"{row.name} failed: {failure}")


def spread(values: Sequence[float], digits: int = 3) -> str:
    """`median (min-max)`."""
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def ratio(values: Sequence[float], others: Sequence[float]) -> str:
    if not values or not others or statistics.median(others) <= 0:
        return "-"
    return f"{statistics.median(values) / statistics.median(others):.2f}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown that is aligned for people too."""
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]
    shown = [header, ["-" * width for width in widths], *lines]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in shown)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def report(rows: Sequence[Row], size: int, sparse_size: int) -> str:
    """The tables."""
    by_name = {row.name: row for row in rows}
    ceiling, sdk = by_name.get("raw", Row("raw")), by_name.get("sdk", Row("sdk"))
    lines = []
    for row in rows:
        whole = row.whole(size)
        speeds = [size / 1e6 / wall_s for wall_s in row.wall_s]
        user = sum(row.user_s) / sum(row.cpu_s) if row.cpu_s else 0
        lines.append([
            MEANINGS[row.name], spread(whole), spread(row.slope(size)), ratio(whole, ceiling.whole(size)),
            ratio(whole, sdk.whole(size)), f"{user:.0%}", spread([s / (size / GB) for s in row.ksoftirqd_s]),
            spread(speeds, 0),
            str(max(row.connections, default=0)), f"{max(row.sink_busy, default=0):.0%}",
        ])  # fmt: skip
    header = [
        "client", "CPU s/GB, whole process", "CPU s/GB, above one part", "to ceiling", "to SDK", "user",
        "ksoftirqd, s/GB", "MB/s", "connections", "sink busy",
    ]  # fmt: skip
    blocks = [f"{size / GB:g} GB, {PART_BYTES >> 20} MiB parts, taskNum {TASK_NUM}; median (min-max)"]
    blocks.append(table(header, lines))
    lines = [
        [
            MEANINGS[row.name], spread(row.fresh_request_ms, 1), spread(row.fresh_part_ms, 1),
            spread(row.fresh_from_exec_ms, 0), spread(row.used_request_ms, 1), spread(row.used_part_ms, 1),
        ]
        for row in rows
    ]  # fmt: skip
    header = [
        "first byte, ms", "fresh: request", "fresh: part", "fresh: part, from exec", "used: request", "used: part",
    ]  # fmt: skip
    blocks.append(table(header, lines))
    lines = [
        [
            MEANINGS[row.name], f"{max(row.pss_mb):.0f}" if row.pss_mb else "-",
            f"{max(row.uss_mb):.0f}" if row.uss_mb else "-",
            f"{max(row.sparse_pss_mb):.0f}" if row.sparse_pss_mb else "-", str(row.processes or "-"),
        ]
        for row in rows
        if row.name != "raw"
    ]  # fmt: skip
    header = [
        "memory, MB", f"peak PSS, {size / GB:g} GB", "of it private", f"peak PSS, {sparse_size / GB:g} GB sparse",
        "processes",
    ]  # fmt: skip
    blocks.append(table(header, lines))
    blocks += [f"FAILED {row.name}: {row.failure}" for row in rows if row.failure]
    return "\n\n".join(blocks)


def heading(facts: dict[str, Any]) -> str:
    """One line on when, what and where."""
    machine, changed = facts["machine"], " with changes" if facts["is_changed"] else ""
    return (
        f"{facts['date']}, commit {facts['commit']}{changed}, {machine['cores']} x {machine['cpu']}, kernel "
        f"{machine['kernel']}, load before {machine['load_before']}, Python {facts['python']}, "
        f"{' '.join(facts['libcurl'].split()[:3])}, SDK {facts['versions'].get('esdk-obs-python', 'none')}"
    )


def show(path: Path) -> str:
    """The tables of the last run in a file of results."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line for line in lines if line["date"] == lines[-1]["date"]]
    rows = []
    for line in lines:
        row = Row(line["row"])
        vars(row).update({name: line[name] for name in vars(row) if name in line})
        rows.append(row)
    return f"{heading(lines[0])}\n\n{report(rows, lines[0]['size'], lines[0]['sparse_size'])}"


def circumstances() -> dict[str, Any]:
    """What a number is worth nothing without."""
    versions = {}
    for name in ("obs-engine", "pycurl", "esdk-obs-python", "xxhash"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    libcurl = "none"
    with contextlib.suppress(ImportError):
        import pycurl

        libcurl = pycurl.version
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short=12", "HEAD") or "unknown",
        "is_changed": bool(_git("status", "--porcelain", "--", "engine", "native", "bench")),
        "machine": {
            "cpu": cpu, "cores": len(psutil.Process().cpu_affinity()), "kernel": platform.release(),
            "memory_gb": round(psutil.virtual_memory().total / GB), "load_before": round(os.getloadavg()[0], 2),
        },
        "python": platform.python_version(),
        "libcurl": libcurl,
        "versions": versions,
    }  # fmt: skip


def _git(*arguments: str) -> str:
    with contextlib.suppress(OSError):
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if not done.returncode else ""
    return ""


def is_in_memory(folder: Path) -> bool:
    """Is the folder on a tmpfs? A sparse file there turns into memory as it is read."""
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda m: len(m.mountpoint))
    found = [m.fstype for m in mounts if folder.resolve().is_relative_to(m.mountpoint)]
    return bool(found) and found[-1] in ("tmpfs", "ramfs")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2 * GB, help="bytes of the big file (2,000,000,000)")
    parser.add_argument("--sparse-size", type=int, help="bytes of the sparse file (ten times --size)")
    parser.add_argument("--runs", type=int, default=5, help="runs that count, of each row (5)")
    parser.add_argument("--only", default=",".join(CLIENTS), help=f"rows, of {','.join(CLIENTS)}")
    parser.add_argument("--json", type=Path, help="file to append the results to, as JSON lines")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing; print tables of FILE's last run")
    parser.add_argument("--dir", type=Path, help="folder on a disk with room for --size (a temporary one)")
    options = parser.parse_args()
    if options.show:
        print(show(options.show))
        return 0
    names = options.only.split(",")
    unknown = set(names) - set(CLIENTS)
    if unknown or options.runs < 1 or options.size < 1:
        parser.error(f"expected rows of {', '.join(CLIENTS)}, --runs and --size above 0; found {options.only}")
    sparse_size = options.sparse_size or 10 * options.size
    facts = circumstances()
    rows = [Row(name) for name in available(names)]
    with tempfile.TemporaryDirectory(prefix="obs-engine-bench-", dir=options.dir) as folder, Sink() as sink:
        if is_in_memory(Path(folder)):
            parser.error("the files would lie on a tmpfs: name a folder on a disk with --dir")
        check()
        bench = Bench(sink, Path(folder), options.size, sparse_size)
        say(f"making a file of {options.size / GB:g} GB")
        bench.make_files()
        measure(bench, rows, options.runs)
    print(f"{heading(facts)}\n\n{report(rows, options.size, sparse_size)}")
    if options.json:
        with open(options.json, "a") as file:
            for row in rows:
                line = {"bench": "first_light", **facts, "size": options.size, "sparse_size": sparse_size,
                        "part_bytes": PART_BYTES, "task_num": TASK_NUM, "row": row.name, **vars(row)}  # fmt: skip
                line["cpu_s_per_gb"] = row.whole(options.size)
                line["cpu_s_per_gb_above_one_part"] = row.slope(options.size)
                del line["name"]
                file.write(json.dumps(line) + "\n")
    return int(any(row.failure for row in rows))


if __name__ == "__main__":
    sys.exit(main())
