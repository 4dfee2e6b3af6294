"""What does one client do with one file? A client, alone in a process of its own, as its user would call it.

    python bench/clients.py NAME URL AUTHORITY FILE [FILE ...]
    python bench/clients.py --once NAME URL FILE PART_BYTES TASK_NUM

Uploads each file in turn with one client object, under the file's name, and says of each call, as a line of JSON, when
it was made, when it came back, and what the client's own report says was proven. AUTHORITY is the path of the
certificate to trust, or "" without TLS. Before each call but the first the sink is reset, which needs a URL without
TLS. Only the named client is imported. Started by `uploads`, which does the measuring; nothing is measured in here.

With `--once`, started by `rough_network`: one client as it comes (`AS_THEY_COME`), one file, under the key "key"; a
line of JSON says how long that took, its import included, and what went wrong. It needs nothing but the client
installed: a peer has an environment of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

PART_BYTES = 9 << 20
TASK_NUM = 8
RAW_SEND_BYTES = 1 << 20
BUCKET = "bench"
RUNGS = "none", "etag", "crc64"
"""Of `EngineOptions.verify`: those that are measured."""

Upload = Callable[[str], dict[str, Any]]
Close = Callable[[], None]


class UploadFailed(Exception):
    """The client said so itself."""


class Client(NamedTuple):
    """One way to upload.

    Attributes:
        package: what it needs installed, "obs" (the official SDK) or "obs_engine"; None for neither.
        constructor: arguments of `ObsClient`.
        call: arguments of `uploadFile`.
        engine: arguments of `EngineOptions`; None for none.
    """

    meaning: str
    package: str | None
    constructor: dict[str, Any]
    call: dict[str, Any]
    engine: dict[str, Any] | None = None

    @property
    def verify(self) -> str | None:
        """The rung that it stands on: `EngineOptions.verify`, its default where none is named."""
        return (self.engine or {}).get("verify", "etag") if self.package == "obs_engine" else None

    @property
    def is_crc64(self) -> bool:
        """Does it send the CRC-64 of each part?"""
        return self.verify == "crc64" or bool(self.call.get("isAttachCrc64"))

    @property
    def is_checksum(self) -> bool:
        return bool(self.call.get("checkSum"))


def raw(url: str) -> tuple[Upload, Close]:
    """The ceiling: one connection, one PUT, `send` of 1 MiB slices of a mapping. With `send`, nobody can do less."""
    import mmap
    import socket

    host, _, port = url.removeprefix("http://").partition(":")
    channel = socket.create_connection((host, int(port)))

    def upload(path: str) -> dict[str, Any]:
        descriptor = os.open(path, os.O_RDONLY)
        size = os.fstat(descriptor).st_size
        target = f"/{BUCKET}/{_key(path)}?partNumber=1&uploadId=raw"
        channel.sendall(f"PUT {target} HTTP/1.1\r\nHost: sink\r\nContent-Length: {size}\r\n\r\n".encode())
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapping, memoryview(mapping) as view:
            for offset in range(0, size, RAW_SEND_BYTES):
                with view[offset : offset + RAW_SEND_BYTES] as piece:
                    channel.sendall(piece)
        os.close(descriptor)
        reply = channel.recv(4096)
        if not reply.startswith(b"HTTP/1.1 200"):
            raise UploadFailed(reply.decode(errors="replace"))
        return {}

    return upload, channel.close


def uploader(client: Client, url: str, authority: str) -> tuple[Upload, Close]:
    """A client object of the official SDK or of this engine: they are called alike."""
    if client.package is None:
        return raw(url)
    import importlib

    library = importlib.import_module(client.package)
    options = dict(client.constructor)
    if client.package == "obs_engine" and authority:
        options["ssl_verify"] = authority  # Why not for the SDK: as it comes, it checks no certificate
    if client.engine is not None:
        options["engine"] = library.EngineOptions(**client.engine)
    made = library.ObsClient(access_key_id="ak", secret_access_key="sk", server=url, path_style=True, **options)

    def upload(path: str) -> dict[str, Any]:
        result = made.uploadFile(BUCKET, _key(path), path, PART_BYTES, TASK_NUM, **client.call)
        if result.status >= 300:
            raise UploadFailed(f"{result.status} {result.errorCode} {result.errorMessage}")
        report = getattr(result, "report", None)
        return {name: getattr(report, name, None) for name in ("verify", "crc64", "xxh3", "parts_sent")}

    return upload, made.close


def _key(path: str) -> str:
    return path.rpartition("/")[2]


def _ours() -> dict[str, Client]:
    """Each rung of verification, with and without checkSum, with and without a checkpoint."""
    found = {}
    for rung in RUNGS:
        for is_checkpoint in (False, True):
            for is_checksum in (False, True):
                names = ["ours", rung] + ["checkpoint"] * is_checkpoint + ["checksum"] * is_checksum
                call = {"enableCheckpoint": True} if is_checkpoint else {}
                call |= {"checkSum": True} if is_checksum else {}
                meaning = ", ".join([f'obs-engine, verify="{rung}"', *call])
                found["_".join(names)] = Client(meaning, "obs_engine", {}, call, {"verify": rung})
    return found


CLIENTS: dict[str, Client] = {
    "raw": Client("raw send(), 1 connection (the ceiling)", None, {}, {}),
    "sdk": Client("official SDK", "obs", {}, {}),
    "sdk_tuned": Client(
        "official SDK, long_conn_mode, chunk_size 1 MiB", "obs", {"long_conn_mode": True, "chunk_size": 1 << 20}, {}
    ),
    "sdk_checkpoint": Client("official SDK, enableCheckpoint", "obs", {}, {"enableCheckpoint": True}),
    "sdk_checksum": Client("official SDK, checkSum", "obs", {}, {"checkSum": True}),
    "sdk_crc64": Client("official SDK, isAttachCrc64", "obs", {}, {"isAttachCrc64": True}),
    "ours": Client('obs-engine, verify="none"', "obs_engine", {}, {}, {"verify": "none"}),
    "ours_default": Client('obs-engine, as it comes (verify="etag")', "obs_engine", {}, {}),
    "ours_checkpoint": Client(
        'obs-engine, verify="none", enableCheckpoint', "obs_engine", {}, {"enableCheckpoint": True}, {"verify": "none"}
    ),
    **_ours(),
}


# --- as they come ---------------------------------------------------------------------------------------------


class Once(NamedTuple):
    """One way to upload with nothing but part size and taskNum said.

    Attributes:
        package: what it needs installed where the bench runs; None: it has an environment of its own.
        upload: takes URL, path, part size in bytes, number of parts at a time; raises what the client says.
    """

    meaning: str
    package: str | None
    upload: Callable[[str, str, int, int], None]


def _obs(package: str) -> Callable[[str, str, int, int], None]:
    def upload(url: str, path: str, part_bytes: int, task_num: int) -> None:
        import importlib

        client = importlib.import_module(package).ObsClient("ak", "sk", server=url, path_style=True, signature="v2")
        try:
            done = client.uploadFile(BUCKET, "key", path, part_bytes, task_num)
            if done.status >= 300:
                raise UploadFailed(f"{done.status} {done.errorCode} {done.errorMessage}")
        finally:
            client.close()

    return upload


def _boto3(mode: str | None) -> Callable[[str, str, int, int], None]:
    def upload(url: str, path: str, part_bytes: int, task_num: int) -> None:
        import boto3  # type: ignore[import-not-found]
        from boto3.s3.transfer import TransferConfig  # type: ignore[import-not-found]
        from botocore.config import Config  # type: ignore[import-not-found]

        retries = {"mode": mode} if mode else None
        config = Config(retries=retries, max_pool_connections=task_num, s3={"addressing_style": "path"})
        client = boto3.client(
            "s3", endpoint_url=url, aws_access_key_id="ak", aws_secret_access_key="sk", region_name="r", config=config
        )
        how = TransferConfig(multipart_threshold=1, multipart_chunksize=part_bytes, max_concurrency=task_num)
        client.upload_file(path, BUCKET, "key", Config=how)

    return upload


AS_THEY_COME = {
    "ours": Once("obs-engine, as it comes", "obs_engine", _obs("obs_engine")),
    "sdk": Once("official SDK, as it comes", "obs", _obs("obs")),
    "boto3": Once("boto3, as it comes", None, _boto3(None)),
    "boto3_adaptive": Once("boto3, adaptive retries", None, _boto3("adaptive")),
}


def once(name: str, url: str, path: str, part_bytes: str, task_num: str) -> None:
    """Uploads one file and says how that went."""
    began_s, error = time.monotonic(), ""
    try:
        AS_THEY_COME[name].upload(url, path, int(part_bytes), int(task_num))
    except Exception as failed:
        error = f"{type(failed).__name__}: {failed}"[:200]
    print(json.dumps({"seconds": time.monotonic() - began_s, "error": error}), flush=True)
    os._exit(0)  # Why: threads of a client that has failed may wait on


def main() -> None:
    if sys.argv[1:2] == ["--once"]:
        once(*sys.argv[2:])
    name, url, authority, *paths = sys.argv[1:]
    upload, close = uploader(CLIENTS[name], url, authority)
    for number, path in enumerate(paths):
        if number:
            from urllib.request import Request, urlopen

            urlopen(Request(f"{url}/-/reset", method="POST")).close()
        called_ns = time.monotonic_ns()
        report = upload(path)
        returned_ns = time.monotonic_ns()
        print(json.dumps({"called_ns": called_ns, "returned_ns": returned_ns, **report}), flush=True)
    close()


if __name__ == "__main__":
    main()
