"""What does an upload do on a rough network? Against a busy service, a service far away, and a part that stalls.

    python bench/rough_network.py [--runs N] [--only WORLD,...] [--peers [FOLDER]] [--json FILE] [--dir DIR] [--small]
    python bench/rough_network.py --self-check     holds the far end to what it is told, and measures nothing else
    python bench/rough_network.py --show [FILE]    the tables of the last run in a file of results

See BENCHMARKS.md for what is measured. With `--peers`, boto3 is installed into an environment of its own in that
folder, and has rows beside the others. Takes some five and a half minutes, with boto3 seven. Ends with status 1 where a
row of ours FAILED.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from circumstances import ROOT, available, circumstances, environment, heading, is_in_memory, say
from clients import AS_THEY_COME as CLIENTS
from far_end import FarEndFailed, Sink, check_rough
from measured import RunFailed
from measured import run as run_measured
from source_files import etags_of_holes, make_sparse
from tables import last_run, spread, table

MIB = 1 << 20
RUN_S = 300.0
START_S = 5.0  # after which a client should have found its pace
SETTLED_S = 10.0  # longer than a part stalls
RESULTS = ROOT / "bench" / "results" / "rough_network.jsonl"
PEERS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "obs-engine-bench" / "boto3"


class World(NamedTuple):
    """One kind of service, and what is sent to it.

    Attributes:
        rough: what `sink.Rough` takes.
        ideal_s: nobody can be done sooner; 0 where it is the machine that decides.
        line_bytes_per_s: what all connections may carry together; 0 for no limit.
        possible: the share of it that they can carry, as each waits for a reply to each part.
        goals: of our own row: figure, and what it must not exceed; or what it must reach, where negative.
        is_default: it runs where no world is named.
    """

    meaning: str
    parts: int
    part_bytes: int
    task_num: int
    clients: tuple[str, ...]
    rough: dict[str, Any]
    ideal_s: float = 0.0
    line_bytes_per_s: float = 0.0
    possible: float = 1.0
    goals: dict[str, float] = {}  # noqa: RUF012 (never written to)
    is_default: bool = True

    @property
    def size_bytes(self) -> int:
        return self.parts * self.part_bytes


def worlds(share: float) -> dict[str, World]:
    """All of them; with a share of their parts."""

    def count(number: int, step: int = 1) -> int:
        return max(step, round(number * share / step) * step)

    return {
        **_busy(count(1000)),
        "far": _far(count(64, 32), 64 * MIB, {"of_line": -0.9, "connections": 33}),
        "far_small": _far(count(128, 32), 16 * MIB, {"of_possible": -0.9, "connections": 33}),
        **_one_late(count(400)),
    }


def _busy(parts: int) -> dict[str, World]:
    rate = 50
    everybody, ideal_s = ("ours", "sdk", "boto3", "boto3_adaptive"), max(0.0, parts - rate) / rate
    goals = {"to_ideal": 1.3, "slowed_down_after_start": 0.1}
    asked = "50 parts a second, SlowDown beyond, said"
    return {
        "busy_early": World(
            f"{asked} before the body is read", parts, 5 * MIB, 32, everybody,
            {"parts_per_s": rate, "is_early": True}, ideal_s, goals=goals,
        ),
        "busy": World(
            f"{asked} after it was", parts, 5 * MIB, 32, everybody, {"parts_per_s": rate}, ideal_s, goals=goals,
            is_default=False,
        ),
    }  # fmt: skip


def _far(parts: int, part_bytes: int, goals: dict[str, float]) -> World:
    latency_s, speed, task_num = 0.2, 10e6, 32
    # A connection and Initiate, the rounds of parts, Complete: what anybody must wait for.
    part_s = part_bytes / speed + latency_s
    ideal_s = 2 * latency_s + parts / task_num * part_s + latency_s
    return World(
        "every reply and every new connection 200 ms late, 10 MB/s a connection", parts, part_bytes, task_num,
        ("ours", "sdk"), {"bytes_per_s": speed, "reply_after_s": latency_s, "connect_after_s": latency_s}, ideal_s,
        task_num * speed, part_bytes / speed / part_s, goals,
    )  # fmt: skip


def _one_late(parts: int) -> dict[str, World]:
    latency_s, speed, task_num, both = 0.02, 40e6, 8, ("ours", "sdk")
    stall = {"stalled_parts": [parts // 2, parts], "stall_s": 5.0}
    late = {"late_parts": [parts - 2], "late_s": 5.0}
    part_s = 5 * MIB / speed + latency_s
    ideal_s = 2 * latency_s + parts / task_num * part_s
    return {
        "tail": World(
            "40 MB/s a connection; half-way through two parts, one of them the last, nothing is read for 5 s", parts,
            5 * MIB, task_num, both, {"bytes_per_s": speed, "reply_after_s": latency_s, **stall}, ideal_s,
            task_num * speed, 5 * MIB / speed / part_s,
        ),
        "even": World(
            "every reply 20 ms late", parts, 5 * MIB, task_num, both, {"reply_after_s": latency_s}, is_default=False
        ),
        "late": World(
            "the same, and the last part but two is answered 5 s late", parts, 5 * MIB, task_num, both,
            {"reply_after_s": latency_s, **late}, is_default=False,
        ),
    }  # fmt: skip


# --- peers of its own environment --------------------------------------------------------------------------------


class Peers(NamedTuple):
    """boto3, in an environment of its own: neither ours nor anybody's dependency."""

    python: str
    versions: dict[str, str]


def peers(folder: Path) -> Peers:
    """Installs boto3, unless it is there."""
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"installing boto3 into {folder}")
        venv.create(folder, with_pip=True)
    asked = "import boto3, botocore; print(boto3.__version__, botocore.__version__)"
    command = [str(python), "-c", asked]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "boto3"], check=True)
    found = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    return Peers(str(python), dict(zip(("boto3", "botocore"), found, strict=True)))


# --- measuring ----------------------------------------------------------------------------------------------------


def run(sink: Sink, world: World, client: str, path: Path, python: str) -> dict[str, Any]:
    """One client, once: what it said and what the sink counted."""
    sink.be_rough(**world.rough)
    sink.reset()
    command = [python, str(Path(__file__).with_name("clients.py")), "--once", client, sink.url, str(path)]
    command += [str(world.part_bytes), str(world.task_num)]
    cpu_s, began_s = 0.0, time.monotonic()
    try:
        usage = run_measured(command, environment(), timeout_s=RUN_S)
        said, cpu_s = json.loads(usage.output.splitlines()[-1]), usage.cpu_s
    except RunFailed as failed:
        said = {"seconds": time.monotonic() - began_s, "error": str(failed).strip().splitlines()[-1][:200]}
    stats = sink.stats()
    stats["body_bytes"] = sink.settled_stats(SETTLED_S)["body_bytes"]
    if not said["error"] and (stats["stored_bytes"] != world.size_bytes or stats["requests"].get("Complete", 0) < 1):
        found = f"{stats['stored_bytes']} bytes, requests {stats['requests']}"
        said["error"] = f"expected {world.size_bytes} bytes stored and Complete, found {found}"
    return {"client": client, **said, "cpu_s": cpu_s, **_figures(world, said["seconds"], stats)}


def _figures(world: World, seconds: float, stats: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the sink's counts."""
    asked_later = sum(at_s > START_S for at_s in stats["asked"])
    slowed_down_later = sum(at_s > START_S for at_s in stats["slowed_down"])
    steady_bytes_per_s = of_line = 0.0
    if stats["first_part_body_ns"] and stats["last_part_reply_ns"]:
        steady_bytes_per_s = stats["stored_bytes"] / ((stats["last_part_reply_ns"] - stats["first_part_body_ns"]) / 1e9)
    if world.line_bytes_per_s:
        of_line = steady_bytes_per_s / world.line_bytes_per_s
    return {
        "requests": stats["requests"], "part_requests": stats["requests"].get("UploadPart", 0),
        "slowed_down": len(stats["slowed_down"]), "asked_after_start": asked_later,
        "slowed_down_after_start": slowed_down_later / asked_later if asked_later else 0.0,
        "connections": stats["connections"], "stored_parts": stats["stored_parts"],
        "stored_bytes": stats["stored_bytes"], "extra_bytes": stats["body_bytes"] - stats["stored_bytes"],
        "sink_busy": stats["sink_cpu_s"] / seconds, "steady_bytes_per_s": steady_bytes_per_s,
        "of_line": of_line, "of_possible": of_line / world.possible,
        "to_ideal": seconds / world.ideal_s if world.ideal_s else 0.0,
    }  # fmt: skip


def measure(sink: Sink, name: str, world: World, path: Path, pythons: Mapping[str, str], runs: int) -> list[Any]:
    """All clients of one world, in turn; of each a line of results."""
    make_sparse(path, world.size_bytes)
    sink.give_etags({"key": etags_of_holes(world.size_bytes, world.part_bytes)})
    clients = [client for client in world.clients if client in pythons]
    found: dict[str, list[dict[str, Any]]] = {client: [] for client in clients}
    for number in range(runs):
        for client in clients:
            say(f"{name}: {client}, run {number + 1} of {runs}")
            found[client].append(run(sink, world, client, path, pythons[client]))
    path.unlink()
    facts = world._asdict() | {"world": name}
    return [{"bench": "rough_network", **facts, "row": client, "measured": rows} for client, rows in found.items()]


# --- showing ------------------------------------------------------------------------------------------------------

HEADER = (
    "client", "time, s", "/ ideal", "MB/s, whole call", "MB/s, parts", "of the line", "of possible", "parts asked",
    "slowed down", "after 5 s", "connections", "extra MB", "extra", "CPU s", "sink busy",
)  # fmt: skip


def report(lines: Sequence[dict[str, Any]]) -> str:
    """The tables, from lines of results alone."""
    blocks = []
    for name in dict.fromkeys(line["world"] for line in lines):
        found = [line for line in lines if line["world"] == name]
        first = found[0]
        size = f"{first['parts']} parts of {first['part_bytes'] / MIB:g} MiB, taskNum {first['task_num']}"
        ideal = f", ideal {first['ideal_s']:.2f} s" if first["ideal_s"] else ""
        blocks.append(f"**{name}**: {first['meaning']}; {size}{ideal}; median (min-max)")
        blocks.append(table(HEADER, [_shown(line) for line in found]))
        blocks += [note for line in found for note in _notes(line)]
    return "\n\n".join(blocks)


def _middle(line: Mapping[str, Any], name: str) -> float:
    return float(statistics.median(row[name] for row in line["measured"]))


def _errors(line: Mapping[str, Any]) -> list[str]:
    return [row["error"] for row in line["measured"] if row["error"]]


def _shown(line: dict[str, Any]) -> list[str]:
    rows, errors = line["measured"], _errors(line)
    seconds, size = _middle(line, "seconds"), line["parts"] * line["part_bytes"]
    asked, stored = _middle(line, "part_requests"), _middle(line, "stored_bytes")

    def unless_failed(text: str) -> str:
        return "-" if errors else text

    return [
        CLIENTS[line["row"]].meaning,
        f"FAILED {len(errors)} of {len(rows)}" if errors else spread([row["seconds"] for row in rows], 1),
        unless_failed(f"{seconds / line['ideal_s']:.2f}" if line["ideal_s"] else "-"),
        unless_failed(f"{size / seconds / 1e6:.0f}"),
        unless_failed(f"{_middle(line, 'steady_bytes_per_s') / 1e6:.0f}"),
        *(
            unless_failed(f"{_middle(line, name):.1%}" if line["line_bytes_per_s"] else "-")
            for name in ("of_line", "of_possible")
        ),
        f"{asked:.0f}", f"{_middle(line, 'slowed_down') / max(1.0, asked):.1%}",
        f"{_middle(line, 'slowed_down_after_start'):.1%}" if any(row["asked_after_start"] for row in rows) else "-",
        f"{_middle(line, 'connections'):.0f}", f"{_middle(line, 'extra_bytes') / 1e6:.1f}",
        f"{_middle(line, 'extra_bytes') / max(1.0, stored):.1%}", f"{_middle(line, 'cpu_s'):.1f}",
        f"{max(row['sink_busy'] for row in rows):.0%}",
    ]  # fmt: skip


def _notes(line: dict[str, Any]) -> list[str]:
    """Below the table: how far came those who failed, and what became of the goals."""
    errors, name = _errors(line), CLIENTS[line["row"]].meaning
    if errors:
        line = {**line, "measured": [row for row in line["measured"] if row["error"]]}
        came = f"{_middle(line, 'stored_parts'):.0f} of {line['parts']} parts in {_middle(line, 'seconds'):.1f} s"
        return [f"FAILED {name}, after {came}: {error}" for error in dict.fromkeys(errors)]
    if line["row"] != "ours":
        return []
    found = []
    for goal, bound in line["goals"].items():
        value = _middle(line, goal)
        is_met, sign = (value >= -bound, ">=") if bound < 0 else (value <= bound, "<=")
        found.append(f"{goal} {value:.3g} {sign} {abs(bound):.3g} {'met' if is_met else 'MISSED'}")
    return [f"Goals of obs-engine: {'; '.join(found)}"] if found else []


def main() -> int:
    known = worlds(1.0)
    default = ",".join(name for name, world in known.items() if world.is_default)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="runs of each row (3)")
    parser.add_argument("--only", default=default, help=f"worlds, of {','.join(known)} ({default})")
    parser.add_argument("--clients", default=",".join(CLIENTS), help="rows, of those that a world has (all)")
    parser.add_argument("--peers", type=Path, nargs="?", const=PEERS, help="install boto3 there and measure it too")
    parser.add_argument("--json", type=Path, default=RESULTS, help="file to append the results to, as JSON lines")
    parser.add_argument("--dir", type=Path, help="folder on a disk, for files of holes (a temporary one)")
    parser.add_argument("--small", action="store_true", help="a fifth of the parts, nothing written: does it work?")
    parser.add_argument("--self-check", action="store_true", help="hold the far end to what it is told, and end")
    parser.add_argument("--show", type=Path, nargs="?", const=RESULTS, metavar="FILE", help="tables of its last run")
    options = parser.parse_args()
    if options.show:
        lines = [line for line in last_run(options.show) if "measured" in line]
        print(f"{heading(lines[0])}\n\n{report(lines)}" if lines else "the last run there was made by an older bench")
        return 0
    names = options.only.split(",")
    if not known.keys() >= set(names) or not CLIENTS.keys() >= set(options.clients.split(",")) or options.runs < 1:
        wanted = f"worlds of {', '.join(known)}, rows of {', '.join(CLIENTS)}, --runs above 0"
        parser.error(f"expected {wanted}; found {options.only}, {options.clients}, {options.runs}")
    with Sink() as sink:
        try:
            checked = check_rough(sink)
        except FarEndFailed as failed:
            sys.exit(str(failed))
        print("The far end does as it is told: " + ", ".join(f"{name} {value:.4g}" for name, value in checked.items()))
        return 0 if options.self_check else _measure_all(sink, names, checked, options)


def _measure_all(sink: Sink, names: Sequence[str], checked: Mapping[str, float], options: argparse.Namespace) -> int:
    facts: dict[str, Any] = {**circumstances(), "far_end": checked}
    wanted = {name: CLIENTS[name].package for name in options.clients.split(",")}
    pythons = dict.fromkeys(available({name: needed for name, needed in wanted.items() if needed}), sys.executable)
    if options.peers:
        beside = peers(options.peers)
        pythons |= {name: beside.python for name, package in wanted.items() if package is None}
        facts["versions"] = {**facts["versions"], **beside.versions}
    print(heading(facts), flush=True)
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="obs-engine-bench-", dir=options.dir) as folder:
        if is_in_memory(Path(folder)):
            sys.exit("expected a folder on a disk, found a tmpfs, where holes turn into memory: name one with --dir")
        for name, world in worlds(0.2 if options.small else 1.0).items():
            if name in names:
                if options.small:
                    world = world._replace(goals={})  # noqa: PLW2901 (they are for the whole file)
                found = measure(sink, name, world, Path(folder, name), pythons, options.runs)
                print(f"\n{report(found)}", flush=True)
                lines += found
    if not options.small:
        with options.json.open("a") as out:
            out.writelines(json.dumps({**facts, **line}) + "\n" for line in lines)
    return int(any(_errors(line) for line in lines if line["row"] == "ours"))


if __name__ == "__main__":
    sys.exit(main())
