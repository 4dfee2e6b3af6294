"""An hour of uploads at a service and a network that fail one time in a hundred: nothing grows, nothing is lost.

The uploads run in a process of their own, so that what is measured is the engine alone: that process, its coordinator,
its workers. The service, the network and those who compare the objects are elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import psutil
import pytest
import trustme

from harness import client_arguments, fetch, make_file, object_of
from obs_engine.testing import LocalObs
from obs_engine.wire.requests import Request
from proxy import RoughRelay

SECONDS = float(os.environ.get("OBS_ENGINE_SOAK_S", "3600"))
WARM_UP_S = max(SECONDS / 10, min(60.0, SECONDS / 3))
"""Without faults, and so with many uploads: until then memory grows to what it will be."""
SEED = 20261124
BUCKET = "soak"
PART = 102_400
FILES, THREADS, PROCESSES = 24, 12, 2
KINDS = "reset", "stall", "truncate", "delay"
SHARE = 0.01
"""Of the requests for each kind of fault, of the connections for each kind of trouble."""

_ALL = ["Initiate", "UploadPart", "ListParts", "Complete", "HeadObject"]
FAULTS: list[dict[str, Any]] = [
    {"operation": _ALL, "status": 503, "code": "SlowDown", "early": True},
    {"operation": _ALL, "status": 500, "bare": True},
    {"operation": _ALL, "status": 429, "code": "TooManyRequests"},
    {"operation": _ALL, "status": 400, "code": "RequestTimeout"},
    {"operation": _ALL, "status": 400, "code": "ExpiredToken"},
    {"operation": _ALL, "reset": "at_once"},
    {"operation": _ALL, "reset": "before_reply"},
    {"operation": _ALL, "reset": "after_work"},
    {"operation": _ALL, "hang_up_after": 3},
    {"operation": _ALL, "stall": True},
    {"operation": _ALL, "delay_s": 0.5},
    {"operation": ["UploadPart", "Complete"], "truncate": 0},
    {"operation": ["UploadPart", "Complete"], "error_in_200": True, "code": "InternalError"},
    {"operation": "UploadPart", "status": 400, "code": "BadDigest"},
    {"operation": "UploadPart", "reset": {"after_body_bytes": 40_000}},
    {"operation": "UploadPart", "corrupt": "wire"},
]

_CALLER = """
import itertools, json, sys, threading
from obs_engine import EngineOptions, ObsClient, ObsEngineError
config = json.loads(sys.stdin.readline())
tokens, numbers, is_over, line = itertools.count(), itertools.count(), threading.Event(), threading.Lock()

class Tokens:
    def get_credentials(self):
        return {**config["keys"], "securityToken": f"token-{next(tokens)}"}

client = ObsClient(**config["client"], engine=EngineOptions(**config["engine"]),
                   security_providers=[Tokens()], security_provider_policy="Tokens")

def upload(number):
    said = {"number": number, "calls": 0, "sent": 0, "again": 0}
    path = config["files"][number % len(config["files"])]
    while said["calls"] < 10:
        said["calls"] += 1
        try:
            done = client.uploadFile(
                config["bucket"], f"key-{number}", path, config["part"], 6, True, f"{path}.{number}.record",
                checkSum=number % 3 == 0, progressCallback=(lambda *_: None) if number % 2 else None,
            )
            report = done.report
            return {**said, "status": done.status, "sent": report.parts_sent,
                    "again": report.part_attempts - report.parts_sent}
        except ObsEngineError as error:
            said["error"] = f"{type(error).__name__}: {error}"
            if not error.is_retryable:
                break
    return said

def work():
    while not is_over.is_set():
        said = upload(next(numbers))
        with line:
            print(json.dumps(said), flush=True)

threads = [threading.Thread(target=work) for _ in range(config["threads"])]
for thread in threads:
    thread.start()
sys.stdin.readline()
is_over.set()
for thread in threads:
    thread.join()
client.close()
"""


class Look(NamedTuple):
    """What the engine's processes hold.

    Attributes:
        uss_bytes, pss_bytes: their own memory, and with their share of what they share.
        descriptors: of all of them; `descriptors_most`: of one.
    """

    uss_bytes: int
    pss_bytes: int
    descriptors: int
    descriptors_most: int
    processes: int


MAY_GROW = Look(uss_bytes=3_000_000, pss_bytes=3_000_000, descriptors=4, descriptors_most=2, processes=0)
"""Between the medians of the first third after the warm-up, and of the last: what is noise."""


def look_at(caller: psutil.Process) -> Look | None:
    """None where one of the processes is just beginning or ending."""
    try:
        processes = [caller, *caller.children(recursive=True)]
        memory = [process.memory_full_info() for process in processes]
        descriptors = [process.num_fds() for process in processes]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return Look(
        sum(each.uss for each in memory), sum(each.pss for each in memory), sum(descriptors), max(descriptors),
        len(processes),
    )  # fmt: skip


class Comparison(threading.Thread):
    """Reads what the caller says of each upload, compares the object with the file, and deletes it.

    Attributes:
        uploads, calls, parts, again, size_bytes: how many; calls beyond the uploads were repeated, parts sent again.
        faults: what is wrong.
    """

    def __init__(self, server: LocalObs, lines: IO[bytes], files: list[Path]) -> None:
        super().__init__()
        self._server, self._lines = server, lines
        self._expected = [(path.stat().st_size, hashlib.sha256(path.read_bytes()).digest()) for path in files]
        self.uploads = self.calls = self.parts = self.again = self.size_bytes = 0
        self.faults: list[str] = []

    def run(self) -> None:
        for line in self._lines:
            try:
                self._compare(json.loads(line))
            except Exception as error:  # Why any: the caller would wait for ever for who reads it
                self.faults.append(f"{line!r}: {error!r}")

    def _compare(self, said: dict[str, Any]) -> None:
        key, (size, digest) = f"key-{said['number']}", self._expected[said["number"] % len(self._expected)]
        self.uploads += 1
        self.calls += said["calls"]
        self.parts += said["sent"]
        self.again += said["again"]
        self.size_bytes += size
        if said.get("status") != 200:
            self.faults.append(f"lost: {said}")
        elif hashlib.sha256(object_of(self._server, BUCKET, key)).digest() != digest:
            self.faults.append(f"another object: {said}")
        # Why deleted, and each key used once: an earlier upload's object must not stand in for this one's.
        fetch(self._server, Request("DeleteObject", "DELETE", BUCKET, key))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """An empty one, one of a single part, and others of all sizes."""
    rng = random.Random(SEED)
    sizes = [0, PART, *(rng.randrange(1, 40 * PART) for _ in range(FILES - 2))]
    return [make_file(tmp_path / f"{number}", size, SEED + number) for number, size in enumerate(sizes)]


@pytest.fixture
def server() -> Iterator[LocalObs]:
    with LocalObs(buckets=[BUCKET]) as running:
        yield running


@pytest.fixture
def relay(server: LocalObs, tmp_path: Path) -> Iterator[RoughRelay]:
    """TLS ends there."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with RoughRelay(server.port, SEED, KINDS, SHARE * len(KINDS), context) as running:
        yield running


def rules() -> list[dict[str, Any]]:
    return [{**fault, "probability": SHARE, "seed": SEED + number} for number, fault in enumerate(FAULTS)]


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 300)
def test_an_hour_of_faults(server: LocalObs, relay: RoughRelay, files: list[Path], tmp_path: Path) -> None:
    """Objects are right, no upload is lost; memory, descriptors and processes are at the end what they were early."""
    print(f"seed {SEED}, {SECONDS:.0f} s")
    keys = client_arguments(server)
    config = {
        "client": {"server": f"https://127.0.0.1:{relay.port}", "ssl_verify": str(tmp_path / "ca.pem"),
                   "timeout": 2, "max_retry_count": 10},
        "engine": {"processes": PROCESSES},
        "keys": {"accessKey": keys["access_key_id"], "secretKey": keys["secret_access_key"]},
        "bucket": BUCKET, "part": PART, "threads": THREADS, "files": [str(path) for path in files],
    }  # fmt: skip
    caller = subprocess.Popen([sys.executable, "-c", _CALLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert caller.stdin is not None
    assert caller.stdout is not None
    comparison = Comparison(server, caller.stdout, files)
    comparison.start()
    looks: list[tuple[float, Look]] = []
    try:
        caller.stdin.write(json.dumps(config).encode() + b"\n")
        caller.stdin.flush()
        watched, clock, began_s = psutil.Process(caller.pid), threading.Event(), time.monotonic()
        clock.wait(WARM_UP_S)
        server.set_faults(rules())
        while (elapsed_s := time.monotonic() - began_s) < SECONDS and caller.poll() is None:
            found = look_at(watched)
            if found is not None:
                looks.append((elapsed_s, found))
            clock.wait(SECONDS / 200)
        caller.stdin.close()  # the uploads that run are the last ones
        status = caller.wait(240)
    finally:
        caller.kill()
        caller.wait()
        comparison.join()
        caller.stdout.close()
    print(f"{comparison.uploads} uploads, {comparison.calls - comparison.uploads} calls repeated, {comparison.parts} "
          f"parts, {comparison.again} sent again, {relay.sent_bytes - comparison.size_bytes} bytes beyond the files' "
          f"{comparison.size_bytes}; {len(relay.troubles)} troubles of {relay.connections} connections")  # fmt: skip
    grown = [name for name in Look._fields if has_grown(name, [(s, getattr(look, name)) for s, look in looks])]
    assert status == 0
    assert not comparison.faults, comparison.faults[:5]
    assert not list(tmp_path.glob("*.record*")), "records of finished uploads"
    assert not grown


def has_grown(name: str, series: list[tuple[float, int]]) -> bool:
    """Prints the series, and compares its early median with its late one."""
    values = [value for _, value in series]
    early = statistics.median(values[: len(values) // 3])
    late = statistics.median(values[-len(values) // 3 :])
    slope, _ = statistics.linear_regression(*zip(*series, strict=True))
    print(f"{name}: median {early:.0f} early, {late:.0f} late, {max(values)} at most, {slope * 3600:+.0f} an hour")
    return bool(late > early + getattr(MAY_GROW, name))
