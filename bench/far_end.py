"""Where does an upload go? The sink as a process of its own, and what is asked of it."""

from __future__ import annotations

import json
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

_SEND_BYTES = 1 << 20


class Sink:
    """The sink, for the life of a `with` block.

    Args:
        is_tls: listen for TLS too.

    Attributes:
        url: without TLS; it is asked here whatever the clients use.
        tls_url: the same sink, through TLS; "" where that is off.
        authority: path of the certificate to trust; "" without TLS.
    """

    def __init__(self, *, is_tls: bool = False) -> None:
        self._is_tls = is_tls

    def __enter__(self) -> Sink:
        self._folder = tempfile.mkdtemp(prefix="obs-engine-sink-")
        command = [sys.executable, str(Path(__file__).with_name("sink.py"))]
        self._process = subprocess.Popen(
            [*command, "--tls", self._folder] if self._is_tls else command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        port, *tls_port = self._process.stdout.readline().split()
        self.url = f"http://127.0.0.1:{port}"
        self.tls_url = f"https://127.0.0.1:{tls_port[0]}" if tls_port else ""
        self.authority = str(Path(self._folder, "ca.pem")) if tls_port else ""
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def reset(self) -> None:
        """Forgets what it counted."""
        self._tell("reset")

    def give_etags(self, etags: Mapping[str, Sequence[str]]) -> None:
        """What to answer for the parts of these keys, from now on."""
        self._tell("etags", etags)

    def refuse(self, part_numbers: Sequence[int]) -> None:
        """Refuses these parts with 403, from now on."""
        self._tell("refuse", part_numbers)

    def be_rough(self, **how: object) -> None:
        """What makes it a rough service from now on (`sink.Rough`); nothing for a smooth one."""
        self._tell("rough", how)

    def stats(self) -> dict[str, Any]:
        """What it counted since the last reset."""
        with urlopen(f"{self.url}/-/stats", timeout=10) as reply:
            found: dict[str, Any] = json.load(reply)
        return found

    def settled_stats(self, within_s: float) -> dict[str, Any]:
        """The same, once nothing is on its way any more: what a client gave up may lie in the system's buffers."""
        until_s = time.monotonic() + within_s
        while (found := self.stats())["bodies"] and time.monotonic() < until_s:
            time.sleep(0.1)
        return found

    def _tell(self, what: str, content: object = None) -> None:
        data = None if content is None else json.dumps(content).encode()
        urlopen(Request(f"{self.url}/-/{what}", method="POST", data=data), timeout=10).close()


# --- does it do what it is told? ----------------------------------------------------------------------------------


class FarEndFailed(Exception):
    """The far end is not what a row says that it is: the row would measure something else."""


class _Sender:
    """One connection that puts parts of zeros, as fast as it may."""

    def __init__(self, sink: Sink, key: str, part_bytes: int) -> None:
        self._key = key
        host, _, port = sink.url.removeprefix("http://").partition(":")
        self._address = host, int(port)
        self._body = memoryview(bytes(part_bytes))
        self._channel: socket.socket | None = None
        self.early_replies = 0

    def put(self, number: int, patience_s: float = 0.0) -> int:
        """The reply's status; `patience_s` is how long it waits for one with the body unsent."""
        if self._channel is None:
            self._channel = socket.create_connection(self._address, timeout=20)
            self._channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = f"PUT /check/{self._key}?partNumber={number}&uploadId=1 HTTP/1.1\r\nHost: sink"
        self._channel.sendall(f"{head}\r\nContent-Length: {len(self._body)}\r\n\r\n".encode())
        if patience_s and select.select([self._channel], [], [], patience_s)[0]:
            self.early_replies += 1
        else:
            for start in range(0, len(self._body), _SEND_BYTES):
                self._channel.sendall(self._body[start : start + _SEND_BYTES])
        reply = self._channel.recv(4096)
        if b"Connection: close" in reply:
            self.close()
        return int(reply.split(b" ", 2)[1])

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None


def check_rough(sink: Sink) -> dict[str, float]:
    """Holds the far end to what it is told, with bare sockets; some five seconds.

    Returns:
        What was found: times and counts as shares of what they must be, and the speed without a limit.

    Raises:
        FarEndFailed: something was not as told; or the far end is too slow to play 32 connections of 10 MB/s.
    """
    found = {**_check_pace(sink), **_check_stall(sink), **_check_rate(sink), **_check_ceiling(sink)}
    sink.be_rough()
    sink.reset()
    return found


def _check_pace(sink: Sink) -> dict[str, float]:
    """32 connections at once, two parts each: nobody is quicker than told, and nobody much slower."""
    size, speed, latency_s, count = 4_000_000, 10e6, 0.2, 32
    sink.be_rough(bytes_per_s=speed, reply_after_s=latency_s, connect_after_s=latency_s)
    sink.reset()
    seconds = [0.0] * count

    def be_client(place: int) -> None:
        sender, began_s = _Sender(sink, "pace", size), time.monotonic()
        for turn in (1, 2):
            sender.put(place * 2 + turn)
        seconds[place] = time.monotonic() - began_s
        sender.close()

    threads = [threading.Thread(target=be_client, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = sink.stats()
    told_s = latency_s + 2 * (size / speed + latency_s)
    found = {"pace_quickest": min(seconds) / told_s, "pace_slowest": max(seconds) / told_s}
    _expect("32 paced connections: time to what was told", found["pace_quickest"], 0.999, 1.05)
    _expect("32 paced connections: time to what was told", found["pace_slowest"], 0.999, 1.05)
    _expect("connections", stats["connections"], count, count)
    _expect("bytes of parts", stats["body_bytes"], 2 * count * size, 2 * count * size)
    _expect("bytes stored", stats["stored_bytes"], 2 * count * size, 2 * count * size)
    return found


def _check_stall(sink: Sink) -> dict[str, float]:
    """A part that stalls does so once."""
    stall_s = 0.5
    sink.be_rough(stalled_parts=[1], stall_s=stall_s)
    sender, seconds = _Sender(sink, "stall", 1_000_000), []
    for _ in range(2):
        began_s = time.monotonic()
        sender.put(1)
        seconds.append(time.monotonic() - began_s)
    sender.close()
    _expect("a stalled part: seconds", seconds[0], stall_s, stall_s + 0.1)
    _expect("the same part again: seconds", seconds[1], 0.0, 0.1)
    return {"stall": seconds[0] / stall_s}


def _check_rate(sink: Sink) -> dict[str, float]:
    """Of more than are allowed, as many as are allowed; SlowDown is said before the body is read, or after."""
    rate, asked_for_s, found = 50, 0.5, {}
    for is_early in (True, False):
        sink.be_rough(parts_per_s=rate, is_early=is_early)
        sink.reset()
        sender, began_s, stored = _Sender(sink, f"rate/{is_early}", 1000), time.monotonic(), 0
        while time.monotonic() < began_s + asked_for_s:
            stored += sender.put(1 + stored) == 200
        allowed = rate + rate * (time.monotonic() - began_s)
        stats = sink.stats()
        when = "early" if is_early else "late"
        found[f"rate_{when}"] = stored / allowed
        _expect(f"parts allowed, SlowDown {when}", stored, allowed - 2, allowed + 1)
        _expect("parts stored", stats["stored_parts"], stored, stored)
        # Why six: while they are asked there is room again for some
        slowed_down = [sender.put(1 + stored, 0.01) for _ in range(6)].count(503)
        sender.close()
        _expect("parts slowed down when there is no room", slowed_down, 1, 6)
        _expect("replies before the body", sender.early_replies, *[slowed_down * is_early] * 2)
        _expect("parts asked for", len(stats["asked"]), stored + len(stats["slowed_down"]), 10**9)
    return found


def _check_ceiling(sink: Sink) -> dict[str, float]:
    """Without a limit, one connection: the far end takes in more than twice what any row may send."""
    sink.be_rough()
    size = 500_000_000
    sender, began_s = _Sender(sink, "ceiling", size), time.monotonic()
    sender.put(1)
    mb_per_s = size / (time.monotonic() - began_s) / 1e6
    sender.close()
    _expect("MB/s without a limit", mb_per_s, 640, 1e9)
    return {"ceiling_mb_per_s": mb_per_s}


def _expect(what: str, found: float, least: float, most: float) -> None:
    if not least <= found <= most:
        raise FarEndFailed(
            f"{what}, at the far end: expected {least:.6g} to {most:.6g}, found {found:.6g}; "
            f"try again on a machine that does nothing else"
        )
