"""What does it cost to be sure? The rungs of verification and checkSum, beside the official SDK's, in one run.

CPU seconds per GB of this engine with `verify="none"`, "etag" and "crc64", each with and without checkSum and a
checkpoint, and of the official SDK with its own means, without TLS and with it; how soon an upload with checkSum
begins; and how soon an interrupted one goes on. Every number is defined in BENCHMARKS.md, before it is measured here.

    python bench/verification.py [--size BYTES] [--runs N] [--only ROW,ROW] [--links plain,tls] [--json FILE]
    python bench/verification.py --show [FILE]      the tables of the last run in a file of results
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from circumstances import GB, ROOT, available, circumstances, environment, heading, is_in_memory, say
from clients import CLIENTS, PART_BYTES, RUNGS, TASK_NUM
from far_end import Sink
from measured import RunFailed, check, kernel_threads_cpu_s
from source_files import etags_of, etags_of_holes, make_random, make_sparse, warm
from tables import last_run, ratio, spread, table
from uploads import LINKS, RUN_TIMEOUT_S, check_refusals, command, part_count, records_of, take_turns, upload

RESULTS = ROOT / "bench" / "results" / "verification.jsonl"
COST, RESUME, FIRST_BYTE = "cost", "resume", "first_byte"
PEERS = "raw", "sdk", "sdk_checksum", "sdk_crc64"
OURS = tuple(
    f"ours_{rung}{kept}{known}" for rung in RUNGS for kept in ("", "_checkpoint") for known in ("", "_checksum")
)
RESUMED = "ours_etag_checkpoint", "ours_etag_checkpoint_checksum"
BEGUN = "ours_etag", "ours_etag_checksum"
RUNG_GOALS = {"etag": 1.5, "crc64": 1.25}
CHECKSUM_GOAL, FIRST_BYTE_GOAL_S, RESUME_GOAL_S = 1.1, 0.5, 0.25
_WORDS = {"plain": "without TLS", "tls": "TLS"}


@dataclass
class Row:
    """What was measured of one client over one link; lists hold one value for each run, in order.

    Attributes:
        question: "cost", "resume" or "first_byte".
        row: name of the client.
        size: bytes of the file.
        parts_sent, compared: of a resumed upload: the parts that were left, and those whose content was compared.
    """

    question: str
    row: str
    link: str
    size: int
    cpu_s: list[float] = field(default_factory=list)
    user_s: list[float] = field(default_factory=list)
    ksoftirqd_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    sink_busy: list[float] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=dict)
    tls: str | None = None
    request_ms: list[float] = field(default_factory=list)
    part_ms: list[float] = field(default_factory=list)
    parts_sent: list[int] = field(default_factory=list)
    compared: list[int] = field(default_factory=list)
    failure: str | None = None

    @property
    def name(self) -> str:
        return f"{self.row}, {self.link}"

    @property
    def meaning(self) -> str:
        return CLIENTS[self.row].meaning

    @property
    def whole(self) -> list[float]:
        """CPU seconds per GB, the whole process."""
        return [cpu_s / (self.size / GB) for cpu_s in self.cpu_s]


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
        make_random(self._base, PART_BYTES)
        make_sparse(self._sparse, self._sparse_size)
        etags = {path.name: etags_of(path, PART_BYTES) for path in (self._big, self._base)}
        self._sink.give_etags({**etags, self._sparse.name: etags_of_holes(self._sparse_size, PART_BYTES)})

    def check(self, names: Sequence[str]) -> None:
        """Do the rungs do what they say?"""
        check_refusals(self._sink, names, self._base, etags_of(self._base, PART_BYTES))

    def warm(self) -> None:
        """Other files may have taken the page cache."""
        warm(self._big)

    def cost(self, row: Row, *, is_kept: bool) -> None:
        """The big file, in a fresh process; nothing looks on meanwhile."""
        softirq_s = kernel_threads_cpu_s()
        done = upload(self._sink, row.row, [self._big], row.link)
        softirq_s = kernel_threads_cpu_s() - softirq_s
        if not is_kept:
            return
        row.cpu_s.append(done.usage.cpu_s)
        row.user_s.append(done.usage.user_s)
        row.ksoftirqd_s.append(softirq_s)
        row.wall_s.append(done.wall_s)
        row.sink_busy.append(done.stats["sink_cpu_s"] / done.wall_s)
        row.connections.append(done.stats["connections"])
        row.requests, row.tls = done.stats["requests"], done.stats["tls"]
        row.request_ms.append(done.request_ms)
        row.part_ms.append(done.part_ms)

    def first_byte(self, row: Row, *, is_kept: bool) -> None:
        """The sparse file, in a fresh process."""
        done = upload(self._sink, row.row, [self._sparse])
        if is_kept:
            row.wall_s.append(done.wall_s)
            row.request_ms.append(done.request_ms)
            row.part_ms.append(done.part_ms)

    def resume(self, row: Row, *, is_kept: bool) -> None:
        """The big file, whose last part is refused; then again, in another process, and it is taken."""
        compared = self._interrupt(row.row)
        done = upload(self._sink, row.row, [self._big], is_resumed=True)
        requests = done.stats["requests"]
        sent = requests.get("UploadPart", 0)
        # At most: the refusal cancels what is in flight beside the last part.
        is_resumed = 1 <= sent <= min(TASK_NUM, part_count(self._size)) and done.calls[-1]["parts_sent"] == sent
        if done.stats["first_request"] != "ListParts" or "Initiate" in requests or not is_resumed:
            raise RunFailed(f"{row.name}: expected ListParts, 1 to {TASK_NUM} parts and Complete, found {requests}")
        if not is_kept:
            return
        row.wall_s.append(done.wall_s)
        row.request_ms.append(done.request_ms)
        row.parts_sent.append(sent)
        row.compared.append(compared)
        row.requests = requests

    def _interrupt(self, name: str) -> int:
        """Uploads all but the end: how many parts have a digest in the record that is left."""
        from obs_engine.checkpoint.journal import peek

        for record in records_of(self._big):
            record.unlink()
        self._sink.reset()
        self._sink.refuse([part_count(self._size)])
        try:
            asked = command(self._sink, name, [self._big])
            done = subprocess.run(
                asked, env=environment(), capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
            )
        finally:
            self._sink.refuse([])
        refused, records = self._sink.stats()["refused"], records_of(self._big)
        state = peek(str(records[0])) if len(records) == 1 else None
        if not done.returncode or not refused or state is None or bool(state.contents) != CLIENTS[name].is_checksum:
            raise RunFailed(
                f"{name}: expected the last part refused and a record of the others, found status {done.returncode}, "
                f"{refused} refused, {len(records)} records\n{done.stderr[-4000:]}"
            )
        return len(state.contents)


def measure(bench: Bench, rows: Sequence[Row], runs: int) -> None:
    """Everything, the rows in turn; each question after a warm-up that is thrown away."""
    steps = {COST: bench.cost, RESUME: bench.resume, FIRST_BYTE: bench.first_byte}
    for question, step in steps.items():
        if asked := [row for row in rows if row.question == question]:
            bench.warm()
            take_turns(f"{question}, warm-up", asked, partial(step, is_kept=False), 1)
            take_turns(question, asked, partial(step, is_kept=True), runs)


def report(rows: Sequence[Row]) -> str:
    """The tables."""
    found = {(row.question, row.row, row.link): row for row in rows}
    blocks = [f"9 MiB parts, taskNum {TASK_NUM}; median (min-max)"]
    blocks += [_cost(found, link) for link in LINKS if any(key[0] == COST and key[2] == link for key in found)]
    header = ["", *_WORDS.values(), "goal: at most"]
    blocks.append(table(header, [*_ratios(found), *_soon(found)]))
    blocks += [f"FAILED {row.question} {row.name}: {row.failure}" for row in rows if row.failure]
    return "\n\n".join(blocks)


Found = dict[tuple[str, str, str], Row]


def _cost(found: Found, link: str) -> str:
    rows = [row for (question, _, on), row in found.items() if (question, on) == (COST, link)]
    none, sdk = _whole(found, "ours_none", link), _whole(found, "sdk", link)
    lines = []
    for row in rows:
        more = f"{statistics.median(row.whole) - statistics.median(none):+.3f}" if row.whole and none else "-"
        user = sum(row.user_s) / sum(row.cpu_s) if row.cpu_s else 0
        lines.append([
            row.meaning, spread(row.whole), more, ratio(row.whole, none), ratio(row.whole, sdk), f"{user:.0%}",
            spread([s / (row.size / GB) for s in row.ksoftirqd_s]), spread(row.wall_s), spread(row.part_ms, 0),
            str(max(row.connections, default=0)), f"{max(row.sink_busy, default=0):.0%}", str(len(row.cpu_s)),
        ])  # fmt: skip
    header = [
        f"{rows[0].size / GB:g} GB, {_WORDS[link]}", "CPU s/GB", "above none", "to none", "to SDK", "user",
        "ksoftirqd, s/GB", "wall s", "first part, ms", "connections", "sink busy", "runs",
    ]  # fmt: skip
    ciphers = sorted({row.tls for row in rows if row.tls})
    return "\n\n".join([table(header, lines), *(f"TLS: {cipher}" for cipher in ciphers)])


def _whole(found: Found, name: str, link: str) -> list[float]:
    row = found.get((COST, name, link))
    return row.whole if row else []


def _ratios(found: Found) -> Iterator[list[str]]:
    """The goals that are ratios of CPU seconds."""
    pairs = [(f"ours_{rung}", "ours_none", goal) for rung, goal in RUNG_GOALS.items()]
    pairs += [(f"{name}_checksum", name, CHECKSUM_GOAL) for name in OURS if not name.endswith("_checksum")]
    for name, other, goal in pairs:
        ratios = [ratio(_whole(found, name, link), _whole(found, other, link)) for link in LINKS]
        yield [f"CPU, {name} to {other}", *ratios, f"{goal}"]


def _soon(found: Found) -> Iterator[list[str]]:
    """The goals that are times; and what they are to be compared with."""
    for row in found.values():
        if row.question == FIRST_BYTE:
            goal = f"{FIRST_BYTE_GOAL_S}" if CLIENTS[row.row].is_checksum else ""
            what = f"{row.size / GB:g} GB sparse, {row.row}: first byte of a part, s"
            yield [what, spread([ms / 1e3 for ms in row.part_ms]), "-", goal]
        elif row.question == RESUME:
            goal = f"{RESUME_GOAL_S}" if CLIENTS[row.row].is_checksum else ""
            compared = f"{max(row.compared, default=0)} parts compared"
            what = f"{row.size / GB:g} GB resumed, {row.row} ({compared}): first request, s"
            yield [what, spread([ms / 1e3 for ms in row.request_ms]), "-", goal]
    sdk = [found.get((COST, "sdk_checksum", link)) for link in LINKS]
    for size in sorted({row.size for row in sdk if row}):
        what = f"{size / GB:g} GB, sdk_checksum: first byte of a part, s"
        yield [what, *(spread([ms / 1e3 for ms in row.part_ms]) if row else "-" for row in sdk), ""]


def show(path: Path) -> str:
    """The tables of the last run in a file of results."""
    lines, rows = last_run(path), []
    for line in lines:
        row = Row(line["question"], line["row"], line["link"], line["size"])
        vars(row).update({name: line[name] for name in vars(row) if name in line})
        rows.append(row)
    return f"{heading(lines[0])}\n\n{report(rows)}"


def rows_of(names: Sequence[str], links: Sequence[str], size: int, sparse_size: int) -> list[Row]:
    """What is measured, of the names that were asked for."""
    clients = [name for name in (*PEERS, *OURS) if name in names]
    found = [Row(COST, name, link, size) for link in links for name in clients if (name, link) != ("raw", "tls")]
    found += [Row(RESUME, name, "plain", size) for name in RESUMED if RESUME in names]
    return found + [Row(FIRST_BYTE, name, "plain", sparse_size) for name in BEGUN if FIRST_BYTE in names]


def arguments() -> argparse.Namespace:
    every = [*PEERS, *OURS, RESUME, FIRST_BYTE]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=2 * GB, help="bytes of the big file (2,000,000,000)")
    parser.add_argument("--sparse-size", type=int, help="bytes of the sparse file (ten times --size)")
    parser.add_argument("--runs", type=int, default=5, help="runs that count, of each row (5)")
    parser.add_argument("--only", default=",".join(every), help=f"rows, of {','.join(every)}")
    parser.add_argument("--links", default=",".join(LINKS), help=f"of {','.join(LINKS)}")
    parser.add_argument("--json", type=Path, help="file to append the results to, as JSON lines")
    parser.add_argument(
        "--show", type=Path, metavar="FILE", nargs="?", const=RESULTS, help="measure nothing; print tables of a run"
    )
    parser.add_argument("--dir", type=Path, help="folder on a disk with room for --size (a temporary one)")
    options = parser.parse_args()
    options.names, options.on = options.only.split(","), options.links.split(",")
    if not set(options.names) <= set(every) or not set(options.on) <= set(LINKS):
        parser.error(f"expected rows of {', '.join(every)}, and links of {', '.join(LINKS)}")
    # Why more than one part: what is interrupted at the last part must have had one before.
    if options.runs < 1 or options.size <= PART_BYTES:
        parser.error(f"expected --runs above 0, and --size above {PART_BYTES}")
    options.sparse_size = options.sparse_size or 10 * options.size
    return options


def main() -> int:
    options = arguments()
    if options.show:
        print(show(options.show))
        return 0
    facts = circumstances()
    can_run = set(available({name: client.package for name, client in CLIENTS.items() if name in (*PEERS, *OURS)}))
    rows = rows_of(options.names, options.on, options.size, options.sparse_size)
    rows = [row for row in rows if row.row in can_run]
    with tempfile.TemporaryDirectory(prefix="obs-engine-bench-", dir=options.dir) as folder, Sink(is_tls=True) as sink:
        if is_in_memory(Path(folder)):
            sys.exit("verification.py: the files would lie on a tmpfs: name a folder on a disk with --dir")
        check()
        bench = Bench(sink, Path(folder), options.size, options.sparse_size)
        say(f"making a file of {options.size / GB:g} GB")
        bench.make_files()
        bench.check([f"ours_{rung}" for rung in RUNGS])
        measure(bench, rows, options.runs)
    print(f"{heading(facts)}\n\n{report(rows)}")
    if options.json:
        with open(options.json, "a") as file:
            for row in rows:
                line = {"bench": "verification", **facts, "part_bytes": PART_BYTES, "task_num": TASK_NUM,
                        "verify": CLIENTS[row.row].verify, **vars(row)}  # fmt: skip
                line["cpu_s_per_gb"] = row.whole
                file.write(json.dumps(line) + "\n")
    return int(any(row.failure for row in rows))


if __name__ == "__main__":
    sys.exit(main())
