"""What several tests need: a file of seeded bytes, a caller in a process of its own, the service's own view."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil

from obs_engine import ObsClient
from obs_engine.testing import LocalObs
from obs_engine.wire import requests
from obs_engine.wire.endpoint import parse_endpoint
from obs_engine.wire.requests import Target, finish
from obs_engine.wire.signing import Credentials, Headers

DEADLINE_S = 30.0

_CALLER = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
from obs_engine import ObsClient, EngineOptions, ObsEngineError
config = json.loads(sys.stdin.readline())
client = ObsClient(**config["client"], engine=EngineOptions(**config["engine"]))
try:
    result = client.uploadFile(**config["upload"])
    said = {"status": result.status, "report": vars(result.report)}
except ObsEngineError as error:
    said = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(said), flush=True)
client.close()
"""


def make_file(path: Path, size: int, seed: int) -> Path:
    """A file of `size` seeded random bytes."""
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Looks again and again until the condition holds; fails at the deadline."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, f"{what}: not within {deadline_s} s"
        time.sleep(0.001)


def is_alive(process: psutil.Process) -> bool:
    """Does it still run? One that has ended and waits for a slow init to reap it does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def client_arguments(obs: LocalObs, **more: Any) -> dict[str, Any]:
    """Constructor arguments for a client of the server."""
    return {
        "access_key_id": obs.access_key, "secret_access_key": obs.secret_key, "server": obs.url,
    } | more  # fmt: skip


def client_of(obs: LocalObs, **more: Any) -> ObsClient:
    """A client of the server."""
    return ObsClient(**client_arguments(obs, **more))


def fetch(server: LocalObs, request: requests.Request) -> bytes:
    """Sends a request to the server, by other means than the engine's."""
    credentials = Credentials(server.access_key, server.secret_key)
    done = finish(request, Target(parse_endpoint(server.url), "path", "v2"), credentials, time.time())
    asked = Request(done.url, done.body or None, dict(done.headers), method=done.method)
    with urlopen(asked, timeout=DEADLINE_S) as reply:
        return bytes(reply.read())


def object_of(server: LocalObs, bucket: str, key: str, headers: Headers = ()) -> bytes:
    """The bytes that the service holds; an object under a customer's key is shown with that key's headers alone."""
    return fetch(server, requests.get_object(bucket, key, headers))


def is_equal(server: LocalObs, bucket: str, key: str, path: Path, headers: Headers = ()) -> bool:
    """Is the object the file? Headers as for `object_of`."""
    found = object_of(server, bucket, key, headers)
    return hashlib.sha256(found).digest() == hashlib.sha256(path.read_bytes()).digest()


def open_uploads(server: LocalObs, bucket: str, key: str) -> int:
    """Multipart uploads of a key that are neither completed nor aborted."""
    listing = fetch(server, requests.Request("ListUploads", "GET", bucket, query=(("uploads", None),)))
    return listing.count(f"<Key>{key}</Key>".encode())


def acknowledged(server: LocalObs, key: str) -> Counter[int]:
    """How often each part of a key was acknowledged."""
    return Counter(r["part_number"] for r in server.requests("UploadPart") if r["status"] == 200 and r["key"] == key)


class Caller:
    """`uploadFile` in a process of its own, to be killed."""

    def __init__(self, client: dict[str, Any], upload: dict[str, Any], engine: dict[str, Any] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CALLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._process.stdin is not None
        config = {"client": client, "upload": upload, "engine": engine or {}}
        self._process.stdin.write(json.dumps(config).encode() + b"\n")
        self._process.stdin.flush()

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self._process.pid)

    def coordinator(self) -> psutil.Process:
        (child,) = self.process.children()
        return child

    def workers(self) -> list[psutil.Process]:
        return self.coordinator().children()

    def result(self) -> dict[str, Any]:
        """What it said at its end; empty if it was killed."""
        out, err = self._process.communicate(timeout=DEADLINE_S)
        assert b"Traceback" not in err, err.decode()
        said: dict[str, Any] = json.loads(out or b"{}")
        return said

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
