"""What does an upload do on a rough network? Against a busy service, a service far away, and a part that is late.

    python bench/rough_network.py [--runs N] [--only WORLD,...] [--peers FOLDER] [--json FILE] [--dir DIR] [--small]

See BENCHMARKS.md for what is measured. With `--peers`, boto3 is installed into that folder, for these rows alone. Takes
some ten minutes.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from circumstances import ROOT, circumstances, environment, heading, say
from far_end import Sink
from source_files import etags_of_holes, make_sparse
from tables import table

MIB = 1 << 20
BUCKET = "bench"
RUN_S = 300


class World(NamedTuple):
    """One kind of service.

    Attributes:
        rough: what `sink.Rough` takes.
        ideal_s: the shortest time in which anybody could be done; 0 where it is the machine that decides.
    """

    meaning: str
    parts: int
    part_bytes: int
    task_num: int
    clients: tuple[str, ...]
    rough: dict[str, Any]
    ideal_s: float

    @property
    def size_bytes(self) -> int:
        return self.parts * self.part_bytes


def worlds(parts: float) -> dict[str, World]:
    """All of them; with a share of their parts."""

    def count(number: int, step: int = 1) -> int:
        return max(step, round(number * parts / step) * step)

    busy, far, far_small, late = count(1000), count(96, 32), count(384, 32), count(400)
    rate, latency_s, speed = 50, 0.2, 10e6
    everybody = "ours", "sdk", "boto3", "boto3_adaptive"
    return {
        "busy": World(
            "50 parts a second, SlowDown beyond; taskNum 32", busy, 5 * MIB, 32, everybody,
            {"parts_per_s": rate}, max(0.0, busy - rate) / rate,
        ),
        "far": World(
            "200 ms, 10 MB/s a connection; taskNum 32, parts of 64 MiB", far, 64 * MIB, 32, ("ours", "sdk"),
            {"reply_after_s": latency_s, "bytes_per_s": speed},
            far / 32 * (64 * MIB / speed + latency_s) + 2 * latency_s,
        ),
        "far_small": World(
            "the same, parts of 16 MiB", far_small, 16 * MIB, 32, ("ours",),
            {"reply_after_s": latency_s, "bytes_per_s": speed},
            far_small / 32 * (16 * MIB / speed + latency_s) + 2 * latency_s,
        ),
        "even": World("20 ms; taskNum 8", late, 5 * MIB, 8, ("ours", "sdk"), {"reply_after_s": 0.02}, 0.0),
        "late": World(
            "the same, and the last part but two is answered 5 s late", late, 5 * MIB, 8, ("ours", "sdk"),
            {"reply_after_s": 0.02, "late_parts": [late - 2], "late_s": 5.0}, 0.0,
        ),
    }  # fmt: skip


# --- clients, each alone in a process of its own ----------------------------------------------------------------


def _obs(package: str) -> Callable[..., None]:
    def upload(url: str, path: str, part_bytes: int, task_num: int) -> None:
        import importlib

        client = importlib.import_module(package).ObsClient("ak", "sk", server=url, path_style=True, signature="v2")
        done = client.uploadFile(BUCKET, "key", path, part_bytes, task_num)
        if done.status >= 300:
            raise RuntimeError(f"{done.status} {done.errorCode}")
        client.close()

    return upload


def _boto3(mode: str) -> Callable[..., None]:
    def upload(url: str, path: str, part_bytes: int, task_num: int) -> None:
        import boto3  # type: ignore[import-not-found]
        from boto3.s3.transfer import TransferConfig  # type: ignore[import-not-found]
        from botocore.config import Config  # type: ignore[import-not-found]

        config = Config(
            retries={"mode": mode} if mode else None, max_pool_connections=task_num, s3={"addressing_style": "path"}
        )
        client = boto3.client(
            "s3", endpoint_url=url, aws_access_key_id="ak", aws_secret_access_key="sk", region_name="r", config=config
        )
        how = TransferConfig(multipart_threshold=1, multipart_chunksize=part_bytes, max_concurrency=task_num)
        client.upload_file(path, BUCKET, "key", Config=how)

    return upload


CLIENTS: dict[str, tuple[str, Callable[..., None]]] = {
    "ours": ("obs-engine, as it comes", _obs("obs_engine")),
    "sdk": ("official SDK, as it comes", _obs("obs")),
    "boto3": ("boto3, as it comes", _boto3("")),
    "boto3_adaptive": ("boto3, adaptive retries", _boto3("adaptive")),
}


def _be_client(name: str, url: str, path: str, part_bytes: int, task_num: int) -> None:
    began_s, error = time.monotonic(), ""
    try:
        CLIENTS[name][1](url, path, part_bytes, task_num)
    except Exception as failed:
        error = f"{type(failed).__name__}: {failed}"[:200]
    print(json.dumps({"seconds": time.monotonic() - began_s, "error": error}), flush=True)


# --- measuring ----------------------------------------------------------------------------------------------------


def run(sink: Sink, world: World, client: str, path: Path, peers: str) -> dict[str, Any]:
    sink.be_rough(**world.rough)
    sink.reset()
    command = [sys.executable, str(Path(__file__)), "--client", client, sink.url, str(path)]
    env = environment()
    if client.startswith("boto3"):
        env["PYTHONPATH"] = peers
    command += [str(world.part_bytes), str(world.task_num)]
    try:
        done = subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=RUN_S)
        said = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        said = {"seconds": float(RUN_S), "error": f"not done within {RUN_S} s"}
    stats = sink.stats()
    requests = stats["requests"].get("UploadPart", 0)
    late_refusals = sum(at_s > 5 for at_s in stats["slowed_down"])
    stored = requests - len(stats["slowed_down"])
    return {
        "client": client, "seconds": said["seconds"], "error": said["error"], "part_requests": requests,
        "slowed_down": len(stats["slowed_down"]), "slowed_down_after_5_s": late_refusals,
        "connections": stats["connections"], "extra_bytes": stats["body_bytes"] - world.size_bytes,
        "stored_parts": stored, "sink_cpu_s": stats["sink_cpu_s"],
    }  # fmt: skip


def shown(world: World, rows: list[dict[str, Any]]) -> list[str]:
    """One line of the table: medians of a client's runs."""

    def middle(name: str) -> float:
        return statistics.median(row[name] for row in rows)

    seconds, requests = middle("seconds"), middle("part_requests")
    failed = [row["error"] for row in rows if row["error"]]
    after = middle("slowed_down_after_5_s") / max(1.0, requests)
    return [
        rows[0]["client"], "FAILED" if failed else f"{seconds:.1f} s",
        "-" if failed or not world.ideal_s else f"{seconds / world.ideal_s:.2f}",
        "-" if failed else f"{world.size_bytes / seconds / 1e6:.0f}",
        f"{requests:.0f}", f"{100 * middle('slowed_down') / max(1.0, requests):.1f} %", f"{100 * after:.1f} %",
        f"{middle('connections'):.0f}", f"{100 * middle('extra_bytes') / world.size_bytes:.1f} %",
    ]  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--client"]:
        name, url, path, part_bytes, task_num = sys.argv[2:]
        _be_client(name, url, path, int(part_bytes), int(task_num))
        os._exit(0)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--peers", default="", help="folder into which boto3 is installed; without it, no such rows")
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "rough_network.jsonl")
    parser.add_argument("--dir", default=None)
    parser.add_argument("--small", action="store_true", help="a fifth of the parts: to see that it works")
    options = parser.parse_args()
    if options.peers and not (Path(options.peers) / "boto3").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", options.peers, "boto3"]
        subprocess.run(pip, check=True)
    facts = circumstances()
    print(heading(facts))
    wanted = set(filter(None, options.only.split(",")))
    with tempfile.TemporaryDirectory(dir=options.dir) as folder, Sink() as sink:
        for name, world in worlds(0.2 if options.small else 1.0).items():
            if wanted and name not in wanted:
                continue
            path = Path(folder) / name
            make_sparse(path, world.size_bytes)
            sink.give_etags({"key": etags_of_holes(world.size_bytes, world.part_bytes)})
            clients = [c for c in world.clients if options.peers or not c.startswith("boto3")]
            found: dict[str, list[dict[str, Any]]] = {client: [] for client in clients}
            for number in range(options.runs):
                for client in clients:
                    say(f"{name}: {client}, run {number + 1} of {options.runs}")
                    found[client].append(run(sink, world, client, path, options.peers))
            path.unlink()
            header = "client", "time", "/ ideal", "MB/s", "sent", "slowed down", "after 5 s", "connections", "extra"
            print(f"\n**{name}**: {world.meaning}; {world.parts} parts, ideal {world.ideal_s:.1f} s\n")
            print(table(header, [shown(world, rows) for rows in found.values()]))
            for rows in found.values():
                for error in {row["error"] for row in rows if row["error"]}:
                    print(f"\n{rows[0]['client']}: {error}; {rows[-1]['stored_parts']} parts were stored")
            if not options.small:
                with options.json.open("a") as out:
                    for rows in found.values():
                        out.write(json.dumps({**facts, "world": name, "ideal_s": world.ideal_s, "runs": rows}) + "\n")


if __name__ == "__main__":
    main()
