"""`obs-engine demo`: the engine's story in one minute, on a server of its own.

Starts a local OBS, uploads a file, kills the upload half-way with SIGKILL, runs it again, and compares what arrived.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from obs_engine.digests import kernel
from obs_engine.limits import GIB, MIB, PART_SIZE_DEFAULT_BYTES
from obs_engine.source.identity import identify
from obs_engine.source.plan import PartPlan, plan_parts
from obs_engine.wire.endpoint import parse_endpoint
from obs_engine.wire.requests import Target, finish, get_object
from obs_engine.wire.signing import Credentials

if TYPE_CHECKING:
    from obs_engine.testing import LocalObs

BUCKET, KEY = "demo", "first-light.bin"
_PARTS_WANTED = 100
_STEP_BYTES = 8 * MIB
_DEADLINE_S = 600


@click.command()
@click.option("--file", type=click.Path(exists=True, dir_okay=False), help="Upload this file instead of a made one.")
@click.option("--size-mib", type=click.IntRange(1), default=GIB // MIB, show_default=True, help="Of the made file.")
def demo(file: str | None, size_mib: int) -> None:
    """Upload, kill half-way, resume, verify: against a local server."""
    from obs_engine.testing import LocalObs

    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="obs-engine-demo-") as folder:
        home = Path(folder)
        source = Path(file).absolute() if file else _make_file(console, home / "first-light.bin", size_mib * MIB)
        record = home / "first-light.upload_record"
        size_bytes = identify(str(source)).size_bytes
        plan = plan_parts(size_bytes, min(PART_SIZE_DEFAULT_BYTES, size_bytes // _PARTS_WANTED))
        parts = plan.part_count
        with LocalObs(data_dir=home / "server", buckets=[BUCKET]) as server:
            console.print(f"1. A local OBS at [bold]{server.url}[/] (MD5 kernel: {kernel()})")
            console.print(f"2. Upload {source} as {parts} parts, 8 in flight, and kill it half-way with SIGKILL")
            command = _command(server, source, record, plan)
            killed = _upload_until(server, command, parts // 2)
            stored = _stored_parts(server)
            if killed:
                if console.is_terminal:
                    console.show_cursor()  # the killed command's bar cannot tidy up after itself
                    console.print()
                console.print(f"   [red]killed[/]: the service has acknowledged {len(stored)} of {parts} parts")
            else:
                console.print("   it was too quick to be caught half-way, and is uploaded")
            console.print("3. Run the same command again")
            again_run = subprocess.run(command, env=_environment(server), check=True, stdout=subprocess.PIPE, text=True)
            console.print("   " + again_run.stdout.strip())
            if killed:
                resumed, sent = map(int, re.findall(r"(?:resumed|sent) (\d+)", again_run.stdout))
                twice = sum(count > 1 for count in _stored_parts(server).values())
                console.print(
                    f"   [bold]{resumed} parts resumed, {sent} sent by this run[/]; the service has stored {twice} "
                    "parts more than once"
                )
            console.print("4. Read the object back and compare SHA-256")
            here, there = _sha256_of_file(source), _sha256_of_object(server)
            console.print(f"   file   {here}\n   object {there}")
            if here != there:
                raise click.ClickException("the object differs from the file")
            console.print("   [green]identical[/]")
    console.print("5. Server stopped, temporary files removed")


def _make_file(console: Console, path: Path, size_bytes: int) -> Path:
    console.print(f"0. Making {size_bytes // MIB} MiB of random bytes")
    block = secrets.token_bytes(min(_STEP_BYTES, size_bytes))
    with path.open("wb") as file:
        for index in range(0, size_bytes, len(block)):
            stamp = index.to_bytes(8, "little")  # no two parts are equal
            file.write((stamp + block[8:])[: size_bytes - index])
    return path


def _command(server: LocalObs, source: Path, record: Path, plan: PartPlan) -> list[str]:
    return [
        sys.executable, "-m", "obs_engine", "cp", str(source), f"obs://{BUCKET}/{KEY}", "--endpoint", server.url,
        "--part-size", str(plan.part_size_bytes / MIB), "--parts-in-flight", "8", "--checkpoint-file", str(record),
    ]  # fmt: skip


def _environment(server: LocalObs) -> dict[str, str]:
    return {**os.environ, "OBS_ACCESS_KEY_ID": server.access_key, "OBS_SECRET_ACCESS_KEY": server.secret_key}


def _upload_until(server: LocalObs, command: list[str], enough: int) -> bool:
    """Runs the upload and kills it once the service holds `enough` parts; False if it ended first."""
    upload = subprocess.Popen(command, env=_environment(server), stdout=subprocess.DEVNULL)
    deadline_s = time.monotonic() + _DEADLINE_S
    try:
        while upload.poll() is None:
            if enough and len(_stored_parts(server)) >= enough:
                upload.send_signal(signal.SIGKILL)
                return upload.wait() == -signal.SIGKILL
            if time.monotonic() > deadline_s:
                raise click.ClickException(f"the upload did not get half-way in {_DEADLINE_S} s")
            time.sleep(0.002)
    finally:
        if upload.poll() is None:
            upload.kill()
            upload.wait()
    if upload.returncode:
        raise click.ClickException("the first upload failed")
    return False


def _stored_parts(server: LocalObs) -> dict[int, int]:
    """How often the service has acknowledged each part."""
    counts: dict[int, int] = {}
    for request in server.requests():
        if request["operation"] == "UploadPart" and request["status"] == 200:
            counts[request["part_number"]] = counts.get(request["part_number"], 0) + 1
    return counts


def _sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_STEP_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _sha256_of_object(server: LocalObs) -> str:
    from urllib.request import Request, urlopen

    target = Target(parse_endpoint(server.url), "path", "v2")
    signed = finish(get_object(BUCKET, KEY), target, Credentials(server.access_key, server.secret_key), time.time())
    digest = hashlib.sha256()
    with urlopen(Request(signed.url, headers=dict(signed.headers)), timeout=60) as reply:  # noqa: S310
        while data := reply.read(_STEP_BYTES):
            digest.update(data)
    return digest.hexdigest()
