"""Is the local OBS ever the bottleneck of a test or a benchmark?

How fast it takes parts in, verified signatures, MD5 ETags and files on disk included, from a sender that does nothing
but send: presigned heads, one buffer, blocking sockets. Defined in BENCHMARKS.md.

    python bench/local_server.py [--dir FOLDER] [--runs N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from obs_engine.digests import kernel
from obs_engine.testing import LocalObs
from obs_engine.wire.endpoint import parse_endpoint
from obs_engine.wire.replies import Reply, read_upload_id
from obs_engine.wire.requests import Request, Target, finish, initiate, upload_part
from obs_engine.wire.signing import Credentials

GB = 10**9
CASES = [(9 << 20, 8, 200), (102_400, 8, 6000), (102_400, 1, 2000)]  # part bytes, connections, parts
_BUCKET, _KEY = "bench", "k"


class Sender:
    """Sends finished requests over one kept connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, head: bytes, body: memoryview) -> Reply:
        self._socket.sendall(head)
        self._socket.sendall(body)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        text, _, content = data.partition(b"\r\n\r\n")
        length = int(text.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(content) < length:
            content += self._more()
        return Reply(int(text.split(b" ")[1]), body=content)

    def close(self) -> None:
        self._socket.close()

    def _more(self) -> bytes:
        data = self._socket.recv(65536)
        assert data, "the server hung up"
        return data


def measure(folder: str, part_bytes: int, connections: int, parts: int) -> dict[str, float]:
    """One run against a fresh server."""
    with tempfile.TemporaryDirectory(dir=folder) as data, LocalObs(buckets=[_BUCKET], data_dir=data) as server:
        target = Target(parse_endpoint(server.url), "path", "v2")
        keys = Credentials(server.access_key, server.secret_key)

        def head(request: Request) -> bytes:
            done = finish(request, target, keys, time.time())
            url = urlsplit(done.url)
            lines = [f"{done.method} {url.path}?{url.query} HTTP/1.1", *(f"{n}: {v}" for n, v in done.headers), "", ""]
            return "\r\n".join(lines).encode()

        first = Sender(server.port)
        upload_id = read_upload_id(first.ask(head(initiate(_BUCKET, _KEY)), memoryview(b""))) or ""
        first.close()
        heads = [head(upload_part(_BUCKET, _KEY, upload_id, number + 1, part_bytes)) for number in range(parts)]
        waiting, lock, body = iter(heads), threading.Lock(), memoryview(os.urandom(part_bytes))

        def send() -> None:
            sender = Sender(server.port)
            while True:
                with lock:
                    item = next(waiting, None)
                if item is None:
                    return sender.close()
                assert sender.ask(item, body).status == 200

        process = psutil.Process(server.pid)
        before, began_s = process.cpu_times(), time.perf_counter()
        threads = [threading.Thread(target=send) for _ in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds, after = time.perf_counter() - began_s, process.cpu_times()
        size = parts * part_bytes / GB
        cpu_s = after.user + after.system - before.user - before.system
        return {"gb_per_s": size / seconds, "requests_per_s": parts / seconds, "server_cpu_s_per_gb": cpu_s / size}


def main() -> None:
    """Runs every case and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="where the server keeps its data")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="append the results as JSON lines")
    options = parser.parse_args()
    print(f"MD5 kernel {kernel()}, data in {options.dir}, medians of {options.runs} after one warm-up")
    print("   part bytes  connections    GB/s (min-max)      requests/s   server CPU s/GB")
    for part_bytes, connections, parts in CASES:
        runs = [measure(options.dir, part_bytes, connections, parts) for _ in range(options.runs + 1)][1:]
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        speeds = sorted(run["gb_per_s"] for run in runs)
        print(
            f"{part_bytes:13,} {connections:12}   {middle['gb_per_s']:5.2f} ({speeds[0]:.2f}-{speeds[-1]:.2f})"
            f" {middle['requests_per_s']:15,.0f} {middle['server_cpu_s_per_gb']:17.2f}"
        )
        if options.json:
            row = {"bench": "local_server", "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                   "kernel": kernel(), "part_bytes": part_bytes, "connections": connections, "runs": runs}  # fmt: skip
            with options.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
