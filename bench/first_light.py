"""What does an upload cost the machine that sends it, and how soon does it begin?

CPU seconds per GB, peak memory, and the time to the first byte, of this engine, of the official SDK and of bare
`send()`, in one run, against a sink that discards bodies. Every number is defined in BENCHMARKS.md, before it is
measured here.

    python bench/first_light.py [--size BYTES] [--runs N] [--only ROW,ROW] [--json FILE]
    python bench/first_light.py --show FILE      the tables of the last run in a file of results
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from circumstances import GB, available, circumstances, heading, is_in_memory, say
from clients import CLIENTS, PART_BYTES, TASK_NUM
from far_end import Sink
from measured import check, kernel_threads_cpu_s
from source_files import etags_of, etags_of_holes, make_random, make_sparse
from tables import last_run, ratio, spread, table
from uploads import take_turns, upload

BASE_BYTES = PART_BYTES  # the smallest upload in parts: one part of full size
SAMPLE_EVERY_S = 0.02
MEMORY_RUNS = 3
ROWS = "raw", "sdk", "sdk_tuned", "sdk_checkpoint", "ours", "ours_default", "ours_checkpoint"
MEANINGS = {name: CLIENTS[name].meaning for name in ROWS}


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

    def make_files(self) -> None:
        """The files, and what the sink is to answer for their parts."""
        make_random(self._big, self._size)
        make_random(self._base, BASE_BYTES)
        make_sparse(self._sparse, self._sparse_size)
        etags = {path.name: etags_of(path, PART_BYTES) for path in (self._big, self._base)}
        self._sink.give_etags({**etags, self._sparse.name: etags_of_holes(self._sparse_size, PART_BYTES)})

    def cpu(self, row: Row, *, is_kept: bool) -> None:
        """One upload of one part and one of the big file, each in a fresh process; nothing looks on meanwhile."""
        base = upload(self._sink, row.name, [self._base])
        softirq_s = kernel_threads_cpu_s()
        big = upload(self._sink, row.name, [self._big])
        softirq_s = kernel_threads_cpu_s() - softirq_s
        if not is_kept:
            return
        row.base_cpu_s.append(base.usage.cpu_s)
        row.cpu_s.append(big.usage.cpu_s)
        row.user_s.append(big.usage.user_s)
        row.ksoftirqd_s.append(softirq_s)
        row.wall_s.append(big.wall_s)
        row.sink_busy.append(big.stats["sink_cpu_s"] / big.wall_s)
        row.connections.append(big.stats["connections"])
        row.requests = big.stats["requests"]
        row.fresh_request_ms.append(big.request_ms)
        row.fresh_part_ms.append(big.part_ms)
        row.fresh_from_exec_ms.append((big.stats["first_part_body_ns"] - big.usage.started_ns) / 1e6)

    def used(self, row: Row) -> None:
        """The same client object uploads one part, then the big file; the second call counts."""
        done = upload(self._sink, row.name, [self._base, self._big])
        row.used_request_ms.append(done.request_ms)
        row.used_part_ms.append(done.part_ms)

    def memory(self, row: Row) -> None:
        """The big file again, looked at all the while."""
        usage = upload(self._sink, row.name, [self._big], sample_every_s=SAMPLE_EVERY_S).usage
        row.pss_mb.append(usage.peak_pss_bytes / 1e6)
        row.uss_mb.append(usage.peak_uss_bytes / 1e6)
        row.processes = max(row.processes, usage.processes)
        row.proc_to_rusage.append(usage.seen_cpu_s / usage.cpu_s)

    def sparse_memory(self, row: Row) -> None:
        """A file of holes alone, ten times as large."""
        usage = upload(self._sink, row.name, [self._sparse], sample_every_s=SAMPLE_EVERY_S).usage
        row.sparse_pss_mb.append(usage.peak_pss_bytes / 1e6)


def measure(bench: Bench, rows: Sequence[Row], runs: int) -> None:
    """Everything, the rows in turn."""
    measured = [row for row in rows if row.name != "raw"]  # it maps the whole file, and the page cache would be counted
    take_turns("warm-up", rows, lambda row: bench.cpu(row, is_kept=False), 1)
    take_turns("CPU", rows, lambda row: bench.cpu(row, is_kept=True), runs)
    take_turns("first byte, used", rows, bench.used, runs)
    take_turns("memory", measured, bench.memory, MEMORY_RUNS)
    take_turns("memory, sparse", measured, bench.sparse_memory, 1)


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


def show(path: Path) -> str:
    """The tables of the last run in a file of results."""
    lines, rows = last_run(path), []
    for line in lines:
        row = Row(line["row"])
        vars(row).update({name: line[name] for name in vars(row) if name in line})
        rows.append(row)
    return f"{heading(lines[0])}\n\n{report(rows, lines[0]['size'], lines[0]['sparse_size'])}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=2 * GB, help="bytes of the big file (2,000,000,000)")
    parser.add_argument("--sparse-size", type=int, help="bytes of the sparse file (ten times --size)")
    parser.add_argument("--runs", type=int, default=5, help="runs that count, of each row (5)")
    parser.add_argument("--only", default=",".join(ROWS), help=f"rows, of {','.join(ROWS)}")
    parser.add_argument("--json", type=Path, help="file to append the results to, as JSON lines")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing; print tables of FILE's last run")
    parser.add_argument("--dir", type=Path, help="folder on a disk with room for --size (a temporary one)")
    options = parser.parse_args()
    if options.show:
        print(show(options.show))
        return 0
    names = options.only.split(",")
    unknown = set(names) - set(ROWS)
    if unknown or options.runs < 1 or options.size < 1:
        parser.error(f"expected rows of {', '.join(ROWS)}, --runs and --size above 0; found {options.only}")
    sparse_size = options.sparse_size or 10 * options.size
    facts = circumstances()
    rows = [Row(name) for name in available({name: CLIENTS[name].package for name in names})]
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
                        "part_bytes": PART_BYTES, "task_num": TASK_NUM, "row": row.name,
                        "verify": CLIENTS[row.name].verify, **vars(row)}  # fmt: skip
                line["cpu_s_per_gb"] = row.whole(options.size)
                line["cpu_s_per_gb_above_one_part"] = row.slope(options.size)
                del line["name"]
                file.write(json.dumps(line) + "\n")
    return int(any(row.failure for row in rows))


if __name__ == "__main__":
    sys.exit(main())
