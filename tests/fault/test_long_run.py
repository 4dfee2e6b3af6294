"""An hour of uploads at a service and a network that fail one time in a hundred: nothing grows, nothing is lost."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from harness import client_of, make_file, object_of
from obs_engine import EngineOptions, ObsClient, ObsEngineError
from obs_engine.testing import LocalObs
from proxy import RoughRelay

SECONDS = float(os.environ.get("OBS_ENGINE_SOAK_S", "3600"))
BUCKET = "soak"
PART = 102_400
THREADS = 4
CAP_BYTES_PER_S = 20e6
"""Of all uploads together: this is about time and not about speed."""

FAULTS: list[dict[str, Any]] = [
    {"operation": "UploadPart", "status": 503, "code": "SlowDown"},
    {"operation": "UploadPart", "status": 500, "bare": True},
    {"operation": "UploadPart", "status": 429, "code": "TooManyRequests"},
    {"operation": ["UploadPart", "Complete", "Initiate"], "reset": "before_reply"},
    {"operation": ["UploadPart", "Complete"], "reset": "after_work"},
    {"operation": "UploadPart", "reset": {"after_body_bytes": 40_000}},
    {"operation": "UploadPart", "truncate": 0},
    {"operation": "UploadPart", "corrupt": "wire"},
    {"operation": "UploadPart", "corrupt": "etag"},
    {"operation": "Complete", "error_in_200": True, "code": "InternalError"},
    {"operation": "UploadPart", "hang_up_after": 3},
    {"operation": "UploadPart", "delay_s": 0.5},
]


class Look(NamedTuple):
    """What the engine's processes hold together."""

    memory_bytes: int
    descriptors: int
    processes: int


def look_at(processes: set[psutil.Process]) -> Look | None:
    """None where one of them is just ending."""
    try:
        return Look(
            sum(process.memory_full_info().uss for process in processes),
            sum(process.num_fds() for process in processes),
            len(processes),
        )
    except psutil.NoSuchProcess:
        return None


def sources(folder: Path, seed: int) -> list[Path]:
    rng = random.Random(seed)
    return [make_file(folder / f"{n}", rng.randrange(0, 40 * PART), seed + n) for n in range(8)]


def uploads(
    server: LocalObs, client: ObsClient, files: list[Path], numbers: Iterator[int], until_s: float, lost: list[str]
) -> int:
    """Uploads one file after the other; how many calls failed and had to be repeated."""
    repeated = 0
    while time.monotonic() < until_s:
        number = next(numbers)
        source = files[number % len(files)]
        key = f"key-{number % 40}"
        arguments: dict[str, Any] = {"partSize": PART, "taskNum": 6, "checkSum": number % 3 == 0}
        for _ in range(10):
            try:
                done = client.uploadFile(
                    BUCKET, key, str(source), enableCheckpoint=True, checkpointFile=f"{source}.{number}.record",
                    progressCallback=(lambda *_: None) if number % 2 else None, **arguments,
                )  # fmt: skip
                if done.status < 300:
                    break
            except ObsEngineError as error:
                if not error.is_retryable:
                    lost.append(f"{key}: {error}")
                    break
            repeated += 1
        else:
            lost.append(f"{key}: ten calls")
        # Each thread has keys of its own: numbers are dealt out once.
        found = hashlib.sha256(object_of(server, BUCKET, key)).digest()
        if found != hashlib.sha256(source.read_bytes()).digest():
            lost.append(f"{key}: another object")
    return repeated


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 300)
def test_an_hour_of_faults(tmp_path: Path) -> None:
    """Objects are right, no upload is lost; memory, descriptors and processes are at the end what they were early."""
    seed = 20261124
    rules = [{**fault, "probability": 0.01, "seed": seed + n} for n, fault in enumerate(FAULTS)]
    print(f"seed {seed}, {SECONDS:.0f} s")
    files, lost, looks = sources(tmp_path, seed), [], []  # type: list[Path], list[str], list[Look]
    me, numbers = psutil.Process(), itertools.count()
    with LocalObs(buckets=[BUCKET]) as server:
        server.set_faults(rules)
        others = set(me.children(recursive=True))
        with (
            RoughRelay(server.port, seed, ["reset", "truncate", "delay"], share=0.1) as relay,
            client_of(
                server, server=f"http://127.0.0.1:{relay.port}", timeout=5, max_retry_count=10,
                engine=EngineOptions(max_bandwidth_bytes_per_s=CAP_BYTES_PER_S, processes=2),
            ) as client,
            ThreadPoolExecutor(THREADS) as threads,
        ):  # fmt: skip
            began_s = time.monotonic()
            work = [
                threads.submit(uploads, server, client, files, numbers, began_s + SECONDS, lost) for _ in range(THREADS)
            ]
            over = threading.Event()
            while not over.wait(SECONDS / 200) and not all(item.done() for item in work):
                found = look_at(set(me.children(recursive=True)) - others)
                if found is not None:
                    looks.append(found)
            repeated = sum(item.result() for item in work)
            left = list(tmp_path.glob("*.record*"))
        print(f"{next(numbers)} uploads, {repeated} calls repeated, {len(relay.troubles)} troubles of the network, "
              f"{relay.connections} connections")  # fmt: skip
        early, late = looks[len(looks) // 10 : len(looks) // 3], looks[-len(looks) // 3 :]
        for name in Look._fields:
            before, after = (sorted(getattr(one, name) for one in part) for part in (early, late))
            low, high = before[len(before) // 2], after[len(after) // 2]
            print(f"{name}: median {low} early, {high} late; most {max(getattr(one, name) for one in looks)}")
            assert high <= low * 1.1 + (1_000_000 if name == "memory_bytes" else 2), name
        assert not lost, lost[:5]
        assert not left, "records of finished uploads"
