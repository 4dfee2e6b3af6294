"""What does one client do with one file? A client, alone in a process of its own, as its user would call it.

    python bench/clients.py NAME URL FILE [FILE ...]

Uploads each file in turn with one client object, and says of each call, as a line of JSON, when it was made and when
it came back. Before each call but the first the sink is reset. Only the named client is imported. Started by
`first_light`, which does the measuring; nothing is measured in here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

PART_BYTES = 9 << 20
TASK_NUM = 8
RAW_SEND_BYTES = 1 << 20
BUCKET, KEY = "bench", "key"

Upload = Callable[[str], None]
Close = Callable[[], None]


class UploadFailed(Exception):
    """The client said so itself."""


def raw(url: str) -> tuple[Upload, Close]:
    """The ceiling: one connection, one PUT, `send` of 1 MiB slices of a mapping. With `send`, nobody can do less."""
    import mmap
    import os
    import socket

    host, _, port = url.removeprefix("http://").partition(":")
    channel = socket.create_connection((host, int(port)))

    def upload(path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        size = os.fstat(descriptor).st_size
        target = f"/{BUCKET}/{KEY}?partNumber=1&uploadId=raw"
        channel.sendall(f"PUT {target} HTTP/1.1\r\nHost: sink\r\nContent-Length: {size}\r\n\r\n".encode())
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapping, memoryview(mapping) as view:
            for offset in range(0, size, RAW_SEND_BYTES):
                with view[offset : offset + RAW_SEND_BYTES] as piece:
                    channel.sendall(piece)
        os.close(descriptor)
        reply = channel.recv(4096)
        if not reply.startswith(b"HTTP/1.1 200"):
            raise UploadFailed(reply.decode(errors="replace"))

    return upload, channel.close


def _sdk(url: str, client_options: dict[str, Any], upload_options: dict[str, Any]) -> tuple[Upload, Close]:
    from obs import ObsClient  # type: ignore[import-untyped]

    client = ObsClient(access_key_id="ak", secret_access_key="sk", server=url, path_style=True, **client_options)

    def upload(path: str) -> None:
        result = client.uploadFile(BUCKET, KEY, path, PART_BYTES, TASK_NUM, **upload_options)
        if result.status >= 300:
            raise UploadFailed(f"{result.status} {result.errorCode} {result.errorMessage}")

    return upload, client.close


def _ours(url: str, upload_options: dict[str, Any]) -> tuple[Upload, Close]:
    from obs_engine import ObsClient

    client = ObsClient(access_key_id="ak", secret_access_key="sk", server=url, path_style=True)

    def upload(path: str) -> None:
        result = client.uploadFile(BUCKET, KEY, path, PART_BYTES, TASK_NUM, **upload_options)
        if result.status >= 300:
            raise UploadFailed(f"{result.status} {result.errorCode} {result.errorMessage}")

    return upload, client.close


CLIENTS: dict[str, Callable[[str], tuple[Upload, Close]]] = {
    "raw": raw,
    "sdk": lambda url: _sdk(url, {}, {}),
    "sdk_tuned": lambda url: _sdk(url, {"long_conn_mode": True, "chunk_size": 1 << 20}, {}),
    "sdk_checkpoint": lambda url: _sdk(url, {}, {"enableCheckpoint": True}),
    "ours": lambda url: _ours(url, {}),
    "ours_checkpoint": lambda url: _ours(url, {"enableCheckpoint": True}),
}
NEEDS = {name: "obs" if name.startswith("sdk") else "obs_engine" for name in CLIENTS if name != "raw"}
MEANINGS = {
    "raw": "raw send(), 1 connection (the ceiling)",
    "sdk": "official SDK",
    "sdk_tuned": "official SDK, long_conn_mode, chunk_size 1 MiB",
    "sdk_checkpoint": "official SDK, enableCheckpoint",
    "ours": "obs-engine",
    "ours_checkpoint": "obs-engine, enableCheckpoint",
}


def main() -> None:
    name, url, *paths = sys.argv[1:]
    upload, close = CLIENTS[name](url)
    for number, path in enumerate(paths):
        if number:
            from urllib.request import Request, urlopen

            urlopen(Request(f"{url}/-/reset", method="POST")).close()
        called_ns = time.monotonic_ns()
        upload(path)
        print(json.dumps({"called_ns": called_ns, "returned_ns": time.monotonic_ns()}), flush=True)
    close()


if __name__ == "__main__":
    main()
