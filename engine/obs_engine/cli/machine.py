"""What this machine brings to an upload: its software, its limits, and how fast it reads, digests and moves bytes.

For `doctor`. Measures for some seconds; writes one temporary file and takes it away again. Asks nobody but itself.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any, Literal, NamedTuple, TypeVar

from obs_engine.checkpoint.disk import Disk
from obs_engine.digests import Md5, crc64, is_native, kernel, md5_update_many
from obs_engine.limits import GIB, MIB
from obs_engine.source.filesystem import filesystem_of
from obs_engine.source.page_cache import memory_bytes
from obs_engine.transfer.coordinator import default_processes
from obs_engine.transfer.pieces import Pieces
from obs_engine.transfer.pool import DESCRIPTORS_RESERVED

Verdict = Literal["good", "notice", "bad"]
Measure = dict[str, "str | int | float | bool | list[str] | None"]

PROBE_FILE_BYTES = 256 * MIB
DESCRIPTORS_ENOUGH = 1024
MEMORY_ENOUGH_BYTES = GIB
_TURN_S = 0.3
"""So long each digest and the loopback are measured."""
_STEP_BYTES, _MEASURED_BYTES = MIB, 64 * MIB
_LANES = 16
_Data = TypeVar("_Data")


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        name: what was looked at.
        text: what was found.
        advice: what to do about it; "" where nothing is to be done.
        values: the same for programs.
    """

    verdict: Verdict
    name: str
    text: str
    advice: str = ""
    values: Measure = {}  # noqa: RUF012 - nobody changes it


def software() -> Iterator[Finding]:
    """Python, libcurl, the native module."""
    yield Finding("good", "Python", f"{sys.version.split()[0]} at {sys.executable}")
    yield _libcurl()
    if is_native:
        yield Finding("good", "native module", f"MD5 and CRC-64 by kernel {kernel()}", values={"kernel": kernel()})
    else:
        yield Finding(
            "notice", "native module", kernel(), "digests cost a multiple: install with a C compiler at hand",
            {"kernel": None},
        )  # fmt: skip


def _libcurl() -> Finding:
    import pycurl  # to say what it is; requests are the workers' business

    info: tuple[Any, ...] = pycurl.version_info()
    release, features, tls, protocols = str(info[1]), int(info[4]), str(info[5] or ""), info[8]
    is_http2 = bool(features & pycurl.VERSION_HTTP2)
    values: Measure = {"libcurl": release, "tls": tls, "http2": is_http2}
    text = f"{release} with {tls or 'no TLS'}, HTTP/2 {'yes' if is_http2 else 'no'}"
    if not tls or "https" not in protocols:
        return Finding("bad", "libcurl", text, "install a pycurl that is built with TLS", values)
    return Finding("good", "libcurl", text, "", values)


def limits() -> Iterator[Finding]:
    """Open files, cores, memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = "no limit" if soft == resource.RLIM_INFINITY else f"{soft} of {_limit(hard)}"
    is_enough = soft == resource.RLIM_INFINITY or soft >= DESCRIPTORS_ENOUGH
    yield Finding(
        "good" if is_enough else "notice", "open files", words,
        "" if is_enough else f"a worker has {max(1, soft - DESCRIPTORS_RESERVED)} connections at most: ulimit -n "
        f"{DESCRIPTORS_ENOUGH}", {"soft": soft, "hard": hard},
    )  # fmt: skip
    workers, cores = default_processes(), os.cpu_count()
    yield Finding("good", "cores", f"{cores}, {workers} workers by default", "", {"cores": cores, "workers": workers})
    memory = memory_bytes()
    is_enough = memory >= MEMORY_ENOUGH_BYTES
    yield Finding(
        "good" if is_enough else "notice", "memory", f"{memory / GIB:.1f} GiB",
        "" if is_enough else "use fewer parts in flight: -j 4", {"memory_bytes": memory},
    )  # fmt: skip


def _limit(number: int) -> str:
    return "no limit" if number == resource.RLIM_INFINITY else str(number)


def rates(directory: str) -> Iterator[Finding]:
    """Disk, digests, loopback.

    Args:
        directory: whose disk is measured, by a temporary file.
    """
    yield _disk(directory)
    # Why so much of it: from memory, as a file comes, and not from the processor's cache.
    data = memoryview(os.urandom(_STEP_BYTES) * (_MEASURED_BYTES // _STEP_BYTES))
    steps = [data[at : at + _STEP_BYTES] for at in range(0, _MEASURED_BYTES, _STEP_BYTES)]
    groups = [steps[at : at + _LANES] for at in range(0, len(steps), _LANES)]
    hashers, pieces = [Md5() for _ in range(_LANES)], Pieces(0)
    yield _rate("MD5", _per_second(lambda group: md5_update_many(hashers, group), groups, _LANES * _STEP_BYTES),
                f", {_LANES} parts side by side on one core")  # fmt: skip
    yield _rate("CRC-64", _per_second(crc64, steps, _STEP_BYTES), " on one core")
    yield _rate("xxh3-128", _per_second(pieces.take, steps, _STEP_BYTES), " on one core")
    yield _rate("loopback", _loopback(steps[0]), ", one TCP connection")


def _per_second(digest: Callable[[_Data], object], inputs: Sequence[_Data], size_bytes: int) -> float:
    """Bytes a second, where each input is of so many."""
    started_s, done = time.perf_counter(), 0
    for data in cycle(inputs):
        digest(data)
        done += size_bytes
        if (spent_s := time.perf_counter() - started_s) >= _TURN_S:
            break
    return done / spent_s


def _rate(name: str, bytes_per_s: float, how: str) -> Finding:
    return Finding("good", name, f"{_words(bytes_per_s)}{how}", "", {"bytes_per_s": round(bytes_per_s)})


def _words(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.1f} GB/s" if bytes_per_s >= 1e9 else f"{bytes_per_s / 1e6:.0f} MB/s"


def _disk(directory: str) -> Finding:
    """Reads a file of its own that has just left the page cache."""
    disk, name = Disk(), f"disk of {directory}"
    try:
        kind = _filesystem(directory)
        with tempfile.TemporaryFile(dir=directory, prefix=".obs-engine-doctor-") as file:
            descriptor = file.fileno()
            block = os.urandom(_STEP_BYTES)
            for offset in range(0, PROBE_FILE_BYTES, _STEP_BYTES):
                disk.write(descriptor, block, offset)
            started_s = time.perf_counter()
            disk.sync(descriptor)
            sync_s = time.perf_counter() - started_s
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            target = memoryview(bytearray(_STEP_BYTES))
            started_s = time.perf_counter()
            for offset in range(0, PROBE_FILE_BYTES, _STEP_BYTES):
                os.preadv(descriptor, [target], offset)
            bytes_per_s = PROBE_FILE_BYTES / (time.perf_counter() - started_s)
    except OSError as error:
        return Finding("bad", name, f"expected room for {PROBE_FILE_BYTES // MIB} MiB, found {error.strerror}",
                       "name another directory with --dir")  # fmt: skip
    values: Measure = {"bytes_per_s": round(bytes_per_s), "filesystem": kind, "sync_s": round(sync_s, 3)}
    text = f"reads {_words(bytes_per_s)}, {kind or 'unknown filesystem'}"
    if kind in ("tmpfs", "ramfs"):
        return Finding("notice", name, text, "that is memory: name the source's directory with --dir", values)
    return Finding("good", name, text, "", values)


def _filesystem(directory: str) -> str | None:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            return filesystem_of(os.stat(directory).st_dev, lines)
    except FileNotFoundError:
        if not os.path.isdir(directory):
            raise
        return None


def _loopback(data: memoryview) -> float:
    """Bytes a second from one thread to another through the kernel's TCP."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        sender = socket.create_connection(door.getsockname(), timeout=_TURN_S * 10)
        receiver, _ = door.accept()
    received = 0
    target = bytearray(_STEP_BYTES)

    def receive() -> None:
        nonlocal received
        while size := receiver.recv_into(target):
            received += size

    with sender, receiver:
        receiver.settimeout(_TURN_S * 10)
        thread = threading.Thread(target=receive, daemon=True)
        started_s = time.perf_counter()
        thread.start()
        while time.perf_counter() - started_s < _TURN_S:
            sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)
        thread.join()
        return received / (time.perf_counter() - started_s)
