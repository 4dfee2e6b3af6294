"""What does a checkpoint cost, and how soon is one read again?

The same upload in many small parts with a record and without, of this engine and of the official SDK, in one run; what
of the record each of them writes; and how long a journal of 10,000 parts takes to open. Every number is defined in
BENCHMARKS.md, before it is measured here.

    python bench/checkpoint.py [--runs N] [--sdk-runs N] [--json FILE] [--dir DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sink
from circumstances import circumstances, environment, heading, is_in_memory, say
from far_end import Sink
from measured import RunFailed, check, run
from obs_engine.checkpoint.journal import Journal, peek
from tables import ratio, spread, table
from uploads import records_of

PART_BYTES, TASK_NUM = 102_400, 8
TAIL_BYTES = 1 << 20
RATIO_GOAL, OPEN_GOAL_S = 1.15, 0.1
PART_BOUND_BYTES, FIXED_BOUND_BYTES = 128, 4096
GROWTH_MAX_BYTES = 1024  # opening says who writes now
FSYNCS = 50
RUN_TIMEOUT_S, SDK_TIMEOUT_S = 600.0, 3600.0


@dataclass
class Row:
    """One client; lists hold one value for each run, in order.

    Attributes:
        durability: of `EngineOptions`; None for a client that has no such choice.
        record_bytes: what was written to the record, all in all.
    """

    name: str
    meaning: str
    package: str
    has_checkpoint: bool = False
    durability: str | None = None
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    sink_busy: list[float] = field(default_factory=list)
    record_bytes: list[int] = field(default_factory=list)
    failure: str | None = None

    @property
    def is_slow(self) -> bool:
        return self.package == "obs" and self.has_checkpoint


def rows() -> list[Row]:
    return [
        Row("ours", "obs-engine", "obs_engine"),
        Row("ours_power", 'obs-engine, checkpoint, "power"', "obs_engine", True, "power"),
        Row("ours_crash", 'obs-engine, checkpoint, "crash"', "obs_engine", True, "crash"),
        Row("sdk", "official SDK", "obs"),
        Row("sdk_checkpoint", "official SDK, checkpoint", "obs", True),
    ]


def _client() -> None:
    """One client and one call, alone in a process. It gets this function's source, and so imports nothing else."""
    import importlib
    import json
    import sys
    import time

    package, durability, url, path, part_bytes, task_num, has_checkpoint = json.loads(sys.argv[1])
    library = importlib.import_module(package)
    options = {}
    if package == "obs_engine":  # it looks at no ETag, as the SDK looks at none: the record's cost alone is asked for
        tuning = {"durability": durability} if durability else {}
        options = {"engine": library.EngineOptions(verify="none", **tuning)}
    client = library.ObsClient(access_key_id="ak", secret_access_key="sk", server=url, path_style=True, **options)

    def written_bytes() -> int:  # by all threads of this process, to files and pipes; `send` to sockets is not in it
        with open("/proc/self/io") as file:
            return int(dict(line.split(": ") for line in file)["wchar"])

    before = written_bytes()
    called_s = time.monotonic()
    result = client.uploadFile("bench", "key", path, part_bytes, task_num, enableCheckpoint=has_checkpoint)
    wall_s = time.monotonic() - called_s
    print(json.dumps({"wall_s": wall_s, "written_bytes": written_bytes() - before}), flush=True)
    client.close()
    if result.status >= 300:
        sys.exit(f"{result.status} {result.errorCode} {result.errorMessage}")


class RefusingSink(sink.Sink):
    """Takes every part and refuses Complete: what is interrupted here has all of its parts in the record."""

    def _reply(self, connection: sink.Connection) -> tuple[str, list[str], bytes]:
        if connection.operation == "Complete":
            return "403 Forbidden", ["Content-Type: application/xml"], b"<Error><Code>AccessDenied</Code></Error>"
        return super()._reply(connection)

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator[RefusingSink]:
        """In a thread of this process: nothing is timed meanwhile."""
        found = cls()
        reader, writer = os.pipe()
        thread = threading.Thread(target=found.run, args=(reader,))
        thread.start()
        try:
            yield found
        finally:
            os.close(writer)
            thread.join()
            os.close(reader)


class Bench:
    """One run of everything."""

    def __init__(self, far_end: Sink, folder: Path, parts: int) -> None:
        self._sink, self._parts = far_end, parts
        self.file = folder / "file.bin"
        self._client = folder / "client.py"
        self._client.write_text(f"{inspect.getsource(_client)}\n\n_client()\n")
        self._env = environment()

    def make_file(self) -> None:
        """Incompressible bytes, on the disk before anything is timed, and in the page cache."""
        with open(self.file, "wb") as file:
            for _ in range(self._parts):
                file.write(os.urandom(PART_BYTES))
            file.flush()
            os.fsync(file.fileno())

    def upload(self, row: Row, *, is_kept: bool) -> None:
        """One upload in a fresh process; nothing looks on meanwhile."""
        self._sink.reset()
        command = self._command(row, self._sink.url, self.file)
        usage = run(command, self._env, timeout_s=SDK_TIMEOUT_S if row.is_slow else RUN_TIMEOUT_S)
        stats = self._sink.stats()
        sent = stats["body_bytes"], stats["requests"].get("UploadPart")
        if sent != (self._parts * PART_BYTES, self._parts):
            raise RunFailed(f"{row.name}: expected {self._parts} parts of {PART_BYTES} bytes at the sink, found {sent}")
        if records := records_of(self.file):
            raise RunFailed(f"{row.name}: expected its record removed after success, found {records[0].name}")
        if not is_kept:
            return
        said = json.loads(usage.output)
        row.wall_s.append(said["wall_s"])
        row.cpu_s.append(usage.cpu_s)
        row.sink_busy.append(stats["sink_cpu_s"] / said["wall_s"])
        if row.package == "obs":
            row.record_bytes.append(said["written_bytes"])

    def interrupted(self, row: Row, path: Path, parts: int) -> Path:
        """Uploads all of a file but its end; the journal that is left."""
        with RefusingSink.running() as refusing:
            command = self._command(row, f"http://127.0.0.1:{refusing.port}", path)
            done = subprocess.run(
                command, env=self._env, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
            )
            sent, records = refusing.stats.requests.get("UploadPart"), records_of(path)
        if not done.returncode or sent != parts or len(records) != 1:
            raise RunFailed(
                f"{row.name}: expected {parts} parts, a refused Complete and a journal, found {sent} parts, status "
                f"{done.returncode} and {len(records)} journals\n{done.stderr[-4000:]}"
            )
        return records[0]

    def journal_bytes(self, row: Row) -> int:
        """Length of the journal of the timed upload, just before Complete; nothing is left of it."""
        journal = self.interrupted(row, self.file, self._parts)
        length = journal.stat().st_size
        journal.unlink()
        return length

    def _command(self, row: Row, url: str, path: Path) -> list[str]:
        what = [row.package, row.durability, url, str(path), PART_BYTES, TASK_NUM, row.has_checkpoint]
        return [sys.executable, str(self._client), json.dumps(what)]


def measure(bench: Bench, every: Sequence[Row], runs: int, sdk_runs: int) -> None:
    """The rows in turn (A B C A B C), after a round that is thrown away."""
    for number in range(max(runs, sdk_runs) + 1):
        for row in every:
            first, last = (1, sdk_runs) if row.is_slow else (0, runs)
            if row.failure or not first <= number <= last:
                continue
            say(f"{row.name}: {f'run {number} of {last}' if number else 'warm-up'}")
            try:
                bench.upload(row, is_kept=number > 0)
            except RunFailed as failure:
                row.failure = str(failure).rstrip()
                say(f"{row.name} failed: {failure}")


def opened_s(journal: Path, parts: int, tail_bytes: int, opens: int) -> list[float]:
    """Seconds until a journal with so many zeros behind it can be appended to; the first time is thrown away."""
    data, found = journal.read_bytes(), []
    state = peek(str(journal))
    assert state is not None
    assert state.opened is not None
    for _ in range(opens + 1):
        with open(journal, "wb") as file:  # Why anew each time: opening cuts the tail
            file.write(data + bytes(tail_bytes))
            file.flush()
            os.fsync(file.fileno())
        began_s = time.perf_counter()
        opened = Journal(str(journal), state.opened)
        opened.claim()
        found.append(time.perf_counter() - began_s)
        opened.leave()
        is_cut = 0 <= journal.stat().st_size - len(data) <= GROWTH_MAX_BYTES
        if len(opened.state.parts) != parts or not is_cut:
            raise RunFailed(f"journal: expected {parts} parts and no tail, found {len(opened.state.parts)} parts")
    return found[1:]


def journals(bench: Bench, row: Row, parts: int, opens: int) -> Iterator[dict[str, Any]]:
    """The journal of an upload that ended before Complete: its length, and the opening of it, whole and torn."""
    sparse = bench.file.with_name("sparse.bin")
    with open(sparse, "wb") as file:
        file.truncate(parts * PART_BYTES)
    journal = bench.interrupted(row, sparse, parts)
    length, bound = journal.stat().st_size, PART_BOUND_BYTES * parts + FIXED_BOUND_BYTES
    for name, tail_bytes in (("open", 0), ("open_torn", TAIL_BYTES)):
        say(f"opening a journal of {parts:,} parts and {tail_bytes:,} zeros")
        yield {"row": name, "parts": parts, "bytes": length, "bound_bytes": bound, "tail_bytes": tail_bytes,
               "opened_s": opened_s(journal, parts, tail_bytes, opens)}  # fmt: skip


def fsync_s(folder: Path) -> list[float]:
    """Seconds of a `write` of 50 bytes and its `fsync`: what of "power" is the disk's."""
    found = []
    with open(folder / "fsync", "wb", buffering=0) as file:
        for _ in range(FSYNCS):
            began_s = time.perf_counter()
            file.write(bytes(50))
            os.fsync(file.fileno())
            found.append(time.perf_counter() - began_s)
    return found


def report(every: Sequence[Row], parts: int, found: Sequence[dict[str, Any]]) -> str:
    """The tables."""
    plain = {row.package: row for row in every if not row.has_checkpoint}
    lines, goals = [], []
    for row in every:
        to_wall_s, to_cpu_s = (plain[row.package].wall_s, plain[row.package].cpu_s) if row.has_checkpoint else ([], [])
        more_us = "-"
        if row.wall_s and to_wall_s:
            more_us = f"{(statistics.median(row.wall_s) - statistics.median(to_wall_s)) / parts * 1e6:.1f}"
        lines.append([
            row.meaning, spread(row.wall_s), ratio(row.wall_s, to_wall_s), more_us, spread(row.cpu_s, 2),
            ratio(row.cpu_s, to_cpu_s), f"{statistics.median(row.record_bytes):,.0f}" if row.record_bytes else "-",
            f"{max(row.sink_busy, default=0):.0%}", str(len(row.wall_s)),
        ])  # fmt: skip
        if row.durability == "power":
            goals.append(['wall with a checkpoint, "power", to without', ratio(row.wall_s, to_wall_s), f"{RATIO_GOAL}"])
    for one in found:
        what = f"journal of {one['parts']:,} parts"
        if one["tail_bytes"]:
            what += f" and {one['tail_bytes'] >> 20} MiB of zeros"
        else:
            goals.append([f"{what}: bytes", f"{one['bytes']:,}", f"{one['bound_bytes']:,}"])
        goals.append([f"{what}: opened, ms", spread([s * 1e3 for s in one["opened_s"]], 1), f"{OPEN_GOAL_S * 1e3:.0f}"])
    header = [
        f"{parts:,} parts", "wall s", "to without", "µs a part", "CPU s", "to without", "bytes to the record",
        "sink busy", "runs",
    ]  # fmt: skip
    blocks = [f"{PART_BYTES:,} bytes a part, taskNum {TASK_NUM}; median (min-max)", table(header, lines)]
    blocks.append(table(["", "found", "goal: at most"], goals))
    return "\n\n".join(blocks + [f"FAILED {row.name}: {row.failure}" for row in every if row.failure])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", type=int, default=4000, help="parts of the upload (4,000)")
    parser.add_argument("--journal-parts", type=int, default=10_000, help="parts of the journal to open (10,000)")
    parser.add_argument("--runs", type=int, default=5, help="runs that count, of each row (5)")
    parser.add_argument("--sdk-runs", type=int, default=1, help="of the SDK with a checkpoint: minutes each (1)")
    parser.add_argument("--opens", type=int, default=50, help="times that a journal is opened (50)")
    parser.add_argument("--json", type=Path, help="file to append the results to, as JSON lines")
    parser.add_argument("--dir", type=Path, help="folder on a disk, for file and record (a temporary one)")
    options = parser.parse_args()
    if min(options.parts, options.journal_parts, options.runs, options.opens) < 1 or options.sdk_runs < 0:
        parser.error("expected --parts, --journal-parts, --runs and --opens above 0, and --sdk-runs 0 or above")
    facts = circumstances()
    found: list[dict[str, Any]] = []
    every = [row for row in rows() if find_spec(row.package) and (options.sdk_runs or not row.is_slow)]
    if not find_spec("obs"):
        say("skipped the SDK: expected the package 'obs', found none; pip install -e '.[test]' brings it")
    with tempfile.TemporaryDirectory(prefix="obs-engine-bench-", dir=options.dir) as folder, Sink() as far_end:
        if is_in_memory(Path(folder)):
            parser.error("file and record would lie on a tmpfs: name a folder on a disk with --dir")
        check()
        facts["fsync_ms"] = statistics.median(fsync_s(Path(folder))) * 1e3
        bench = Bench(far_end, Path(folder), options.parts)
        bench.make_file()
        measure(bench, every, options.runs, options.sdk_runs)
        for row in every:
            if not row.durability or row.failure:
                continue
            try:
                say(f"{row.name}: length of its journal")
                row.record_bytes.append(bench.journal_bytes(row))
                if row.durability == "power":
                    found += journals(bench, row, options.journal_parts, options.opens)
            except (RunFailed, subprocess.TimeoutExpired) as failure:
                row.failure = str(failure).rstrip()
    print(f"{heading(facts)}, fsync {facts['fsync_ms']:.1f} ms\n\n{report(every, options.parts, found)}")
    if options.json:
        setting = {"bench": "checkpoint", **facts, "part_bytes": PART_BYTES, "task_num": TASK_NUM}
        with open(options.json, "a") as file:
            for row in every:
                line = {**setting, "parts": options.parts, "row": row.name, **vars(row)}
                del line["name"], line["meaning"], line["package"]
                file.write(json.dumps(line) + "\n")
            for one in found:
                file.write(json.dumps({**setting, **one}) + "\n")
    return int(any(row.failure for row in every))


if __name__ == "__main__":
    sys.exit(main())
