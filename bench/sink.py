"""Where does a client's time go, if not to the service? A sink answers every upload and keeps nothing.

It speaks just enough of the protocol for any S3 or OBS client to finish a multipart upload. Bodies are discarded
inside the kernel: `recv(MSG_TRUNC)` counts bytes without copying them, so that one process on one core keeps up with
any client here (the raw row of `first_light` shows it). Signatures are not looked at.

    python bench/sink.py [--port N]      prints its port; ends when standard input closes

    GET  /-/stats    JSON: what came since the last reset, and when, by CLOCK_MONOTONIC
    POST /-/reset    forgets it

Every part gets one and the same ETag; the object's ETag is computed as the service does, from the parts that Complete
names. A client that checks a part's ETag against its bytes will object, and has to be told not to look.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import select
import socket
import sys
import time
from urllib.parse import unquote
from xml.sax.saxutils import escape

PART_ETAG = "0123456789abcdef0123456789abcdef"
UPLOAD_ID = "0000018D000000000000000000000000"

_HEAD_BYTES = 2048  # Why so small: what of a body arrives with its head is copied, and should be next to nothing.
_HEAD_MAX_BYTES = 64 << 10
_DRAIN_BYTES = 4 << 20
_TURN_DRAINS = 4  # receives on one connection before the others have their turn
_KEPT_BODY_MAX_BYTES = 4 << 20
_PART_IN_XML = re.compile(rb"<ETag>\s*(?:&quot;|&#34;|\")?([0-9a-fA-F]{32})")
_NAMESPACE = "http://obs.myhwclouds.com/doc/2015-06-30/"


class Stats:
    """What came since the last reset."""

    def __init__(self) -> None:
        self.first_request_ns: int | None = None
        self.first_part_body_ns: int | None = None
        self.last_reply_ns: int | None = None
        self.connections = 0
        self.requests: dict[str, int] = {}
        self.body_bytes = 0
        self._cpu_s = time.process_time()
        self._began_ns = time.monotonic_ns()

    def as_json(self) -> bytes:
        names = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        names["sink_cpu_s"] = time.process_time() - self._cpu_s
        names["began_ns"] = self._began_ns
        return json.dumps(names).encode()


class Connection:
    """One client connection: reading a head, or a body that is kept (small XML) or discarded."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.head = bytearray()
        self.operation: str | None = None
        self.method = ""
        self.path = ""
        self.left = 0
        self.kept: bytearray | None = None
        self.is_counted = False
        self.is_closing = False


class Sink:
    """The event loop: one epoll, one thread, no state between requests."""

    def __init__(self, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self._listener.setblocking(False)
        self._poller = select.epoll()
        self._poller.register(self._listener.fileno(), select.EPOLLIN)
        self._connections: dict[int, Connection] = {}
        self._waste = memoryview(bytearray(_DRAIN_BYTES))  # never written to: its pages stay the one page of zeros
        self._request_number = 0
        self.stats = Stats()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def run(self, until: int) -> None:
        """Serves until the descriptor `until` becomes readable."""
        self._poller.register(until, select.EPOLLIN | select.EPOLLHUP)
        listener = self._listener.fileno()
        while True:
            events = self._poller.poll()
            now_ns = time.monotonic_ns()
            for descriptor, _ in events:
                if descriptor == until:
                    return
                if descriptor == listener:
                    self._accept()
                    continue
                connection = self._connections[descriptor]
                try:
                    self._on_readable(connection, now_ns)
                except BlockingIOError:
                    continue
                except (ConnectionError, ValueError):
                    connection.is_closing = True
                if connection.is_closing:
                    del self._connections[descriptor]
                    connection.channel.close()

    def _accept(self) -> None:
        try:
            channel, _ = self._listener.accept()
        except BlockingIOError:
            return
        channel.setblocking(False)
        channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[channel.fileno()] = Connection(channel)
        self._poller.register(channel.fileno(), select.EPOLLIN)

    def _on_readable(self, connection: Connection, now_ns: int) -> None:
        if connection.left:
            self._read_body(connection, now_ns)
        else:
            self._read_head(connection, now_ns)

    def _read_head(self, connection: Connection, now_ns: int) -> None:
        data = connection.channel.recv(_HEAD_BYTES)
        if not data:
            connection.is_closing = True
            return
        connection.head += data
        end = connection.head.find(b"\r\n\r\n")
        if end < 0:
            if len(connection.head) > _HEAD_MAX_BYTES:
                raise ValueError("a head without an end")
            return
        head, rest = bytes(connection.head[:end]), bytes(connection.head[end + 4 :])
        connection.head.clear()
        self._begin(connection, head, now_ns)
        if len(rest) > connection.left:
            raise ValueError("no client here pipelines")
        if rest:
            self._take(connection, len(rest), rest, now_ns)
        if not connection.left:
            self._answer(connection)

    def _begin(self, connection: Connection, head: bytes, now_ns: int) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        connection.method, connection.path, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "chunked" in headers.get("transfer-encoding", "").lower():
            raise ValueError("no client here sends chunks")
        connection.left = int(headers.get("content-length", "0") or "0")
        connection.operation = operation_of(connection.method, connection.path)
        is_kept = connection.operation == "Complete"
        if is_kept and connection.left > _KEPT_BODY_MAX_BYTES:
            raise ValueError("a Complete larger than 10,000 parts need")
        connection.kept = bytearray() if is_kept else None
        if connection.operation != "Control":
            stats = self.stats
            if stats.first_request_ns is None:
                stats.first_request_ns = now_ns
            stats.requests[connection.operation] = stats.requests.get(connection.operation, 0) + 1
            if not connection.is_counted:
                connection.is_counted = True
                stats.connections += 1
        if "100-continue" in headers.get("expect", "").lower():
            connection.channel.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _read_body(self, connection: Connection, now_ns: int) -> None:
        for _ in range(_TURN_DRAINS):
            if connection.kept is not None:
                data = connection.channel.recv(min(connection.left, 1 << 16))
                size = len(data)
            else:
                data = b""
                wanted = min(connection.left, _DRAIN_BYTES)
                size = connection.channel.recv_into(self._waste, wanted, socket.MSG_TRUNC)
            if not size:
                connection.is_closing = True
                return
            self._take(connection, size, data, now_ns)
            if not connection.left:
                self._answer(connection)
                return

    def _take(self, connection: Connection, size: int, data: bytes, now_ns: int) -> None:
        connection.left -= size
        if connection.kept is not None:
            connection.kept += data
        elif connection.operation == "UploadPart":
            if self.stats.first_part_body_ns is None:
                self.stats.first_part_body_ns = now_ns
            self.stats.body_bytes += size

    def _answer(self, connection: Connection) -> None:
        status, headers, body = self._reply(connection)
        self._request_number += 1
        lines = [
            f"HTTP/1.1 {status}", f"x-obs-request-id: {self._request_number:032X}",
            f"Content-Length: {len(body)}", *headers, "", "",
        ]  # fmt: skip
        data = "\r\n".join(lines).encode() + (b"" if connection.method == "HEAD" else body)
        connection.channel.setblocking(True)  # replies are small: only a client that reads none could make it wait
        connection.channel.sendall(data)
        connection.channel.setblocking(False)
        if connection.operation != "Control":
            self.stats.last_reply_ns = time.monotonic_ns()

    def _reply(self, connection: Connection) -> tuple[str, list[str], bytes]:
        operation = connection.operation
        xml = ["Content-Type: application/xml"]
        bucket, _, key = unquote(connection.path.partition("?")[0]).removeprefix("/").partition("/")
        if operation == "Control":
            if connection.path == "/-/reset" and connection.method == "POST":
                self.stats = Stats()
                for other in self._connections.values():
                    other.is_counted = False
                return "204 No Content", [], b""
            if connection.path == "/-/stats":
                return "200 OK", ["Content-Type: application/json"], self.stats.as_json()
            return "404 Not Found", [], b""
        if operation == "Initiate":
            names = f"<Bucket>{escape(bucket)}</Bucket><Key>{escape(key)}</Key>"
            return "200 OK", xml, _xml("InitiateMultipartUploadResult", f"{names}<UploadId>{UPLOAD_ID}</UploadId>")
        if operation in ("UploadPart", "PutObject"):
            return "200 OK", [f'ETag: "{PART_ETAG}"'], b""
        if operation == "Complete":
            digests = [bytes.fromhex(found.decode()) for found in _PART_IN_XML.findall(connection.kept or b"")]
            if not digests:
                return "400 Bad Request", xml, b"<Error><Code>MalformedXML</Code></Error>"
            etag = f"{hashlib.md5(b''.join(digests)).hexdigest()}-{len(digests)}"
            names = f"<Location>/{escape(bucket)}/{escape(key)}</Location><Bucket>{escape(bucket)}</Bucket>"
            names += f"<Key>{escape(key)}</Key><ETag>&quot;{etag}&quot;</ETag>"
            return "200 OK", xml, _xml("CompleteMultipartUploadResult", names)
        if operation == "Abort":
            return "204 No Content", [], b""
        if operation == "Head":
            return "200 OK", ["x-obs-bucket-location: sink", "x-obs-api: 3.0"], b""
        return "404 Not Found", xml, b"<Error><Code>NoSuchUpload</Code><Message>a sink keeps none</Message></Error>"


def operation_of(method: str, path: str) -> str:
    """The operation's name, from method and query alone."""
    target, _, query = path.partition("?")
    if target.startswith("/-/"):
        return "Control"
    names = {pair.partition("=")[0].lower() for pair in query.split("&")}
    if method == "HEAD":
        return "Head"
    if method == "PUT":
        return "UploadPart" if "partnumber" in names else "PutObject"
    if method == "POST" and names & {"uploads", "uploadid"}:
        return "Initiate" if "uploads" in names else "Complete"
    return "Abort" if method == "DELETE" else "Other"


def _xml(name: str, content: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} xmlns="{_NAMESPACE}">{content}</{name}>'.encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    sink = Sink(parser.parse_args().port)
    print(sink.port, flush=True)
    sink.run(sys.stdin.fileno())
    os._exit(0)


if __name__ == "__main__":
    main()
