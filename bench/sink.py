"""Where does a client's time go, if not to the service? A sink answers every upload and keeps nothing.

It speaks just enough of the protocol for any S3 or OBS client to finish a multipart upload. Bodies are discarded
inside the kernel: `recv(MSG_TRUNC)` counts bytes without copying them, so that one process on one core keeps up with
any client here (the raw row of `first_light` shows it). Signatures are not looked at.

    python bench/sink.py [--port N] [--tls FOLDER]     prints its port (and that for TLS), ends with standard input

    GET  /-/stats    JSON: what came since the last reset, and when, by CLOCK_MONOTONIC
    POST /-/reset    forgets it
    POST /-/etags    JSON, {key: [ETag of part 1, of part 2, ...]}: what to answer for these keys, from now on
    POST /-/refuse   JSON, [part number, ...]: parts to answer with 403, from now on
    POST /-/rough    JSON, what makes it a rough service (`Rough`), for connections and requests from now on

A part of a key without such a table gets one and the same ETag: a client that checks it against its bytes will object,
and has to be told not to look, or the sink be told the right answers before. A PutObject gets what its Content-MD5
says. A CRC-64 that comes with a part or with Complete is said to be right: the reply shows it. The object's ETag is
computed as the service does, from the parts that Complete names. Of the parts, the lengths alone are kept, until the
next Initiate of their key: ListParts tells them, so that an upload can be continued.

With `--tls` there is a second port, whose certificate is made at the start and whose authority is written to
FOLDER/ca.pem. Bodies are decrypted there, into one buffer that nobody looks at: the sink then uses as much of a core as
the client does, and may be the slower one. What it uses is not the client's.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import heapq
import itertools
import json
import os
import re
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

PART_ETAG = "0123456789abcdef0123456789abcdef"
UPLOAD_ID = "0000018D000000000000000000000000"

_HEAD_BYTES = 2048  # Why so small: what of a body arrives with its head is copied, and should be next to nothing.
_HEAD_MAX_BYTES = 64 << 10
_DRAIN_BYTES = 4 << 20
_TURN_DRAINS = 4  # receives on one connection before the others have their turn
_KEPT_BODY_MAX_BYTES = 4 << 20
_SLOW_BUFFER_S = 0.0125  # what a slow connection's receive buffer holds, as seconds of its speed
_REST_MIN_S = 0.005
_TLS_RECEIVE_BYTES = 256 << 10
_TLS_PIECE_BYTES = 64 << 10
_CRC64 = "-checksum-crc64ecma"
_PART_IN_XML = re.compile(rb"<ETag>\s*(?:&quot;|&#34;|\")?([0-9a-fA-F]{32})")
_PAGE_PARTS = 1000
_XML = ["Content-Type: application/xml"]
_NAMESPACE = "http://obs.myhwclouds.com/doc/2015-06-30/"


class Rough(NamedTuple):
    """What a service far away, or a busy one, is like.

    Attributes:
        parts_per_s: more UploadPart are answered with 503 SlowDown: a bucket of as many; 0 for no limit.
        is_early: SlowDown is said before the body is read, at once; the connection ends with that body.
        connect_after_s: so long after it was opened a new connection is heard first.
        reply_after_s: so long after its body was read a request is answered.
        bytes_per_s: of each connection; 0 for no limit.
        late_parts, late_s: these parts are answered so much later, the first time that they come.
        stalled_parts, stall_s: half-way through these nothing is read for so long, the first time that they come.
    """

    parts_per_s: float = 0.0
    is_early: bool = False
    connect_after_s: float = 0.0
    reply_after_s: float = 0.0
    bytes_per_s: float = 0.0
    late_parts: tuple[int, ...] = ()
    late_s: float = 0.0
    stalled_parts: tuple[int, ...] = ()
    stall_s: float = 0.0


class Stats:
    """What came since the last reset."""

    def __init__(self) -> None:
        self.first_request: str | None = None
        self.first_request_ns: int | None = None
        self.first_part_body_ns: int | None = None
        self.last_reply_ns: int | None = None
        self.last_part_reply_ns: int | None = None
        self.connections = 0
        self.requests: dict[str, int] = {}
        self.crc64s: dict[str, int] = {}  # requests that carried one
        self.refused = 0
        self.asked: list[float] = []  # UploadPart, while there is a limit: seconds after the first request
        self.slowed_down: list[float] = []  # those of them that were too much
        self.stored_parts = 0  # each part once
        self.stored_bytes = 0
        self.tls: str | None = None
        self.body_bytes = 0
        self.bodies = 0  # begun and not at their end, when this was asked
        self._cpu_s = time.process_time()
        self._began_ns = time.monotonic_ns()

    def as_json(self) -> bytes:
        names = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        names["sink_cpu_s"] = time.process_time() - self._cpu_s
        names["began_ns"] = self._began_ns
        return json.dumps(names).encode()


class Plain:
    """A socket as the event loop uses it."""

    _waste = memoryview(bytearray(_DRAIN_BYTES))  # never written to: its pages stay the one page of zeros

    def __init__(self, channel: socket.socket) -> None:
        self._socket = channel

    def receive(self, size: int) -> bytes:
        """What is there, up to so many bytes; none at the end."""
        return self._socket.recv(size)

    def discard(self, size: int) -> int:
        """Takes up to so many bytes without looking at them: how many; 0 at the end."""
        return self._socket.recv_into(self._waste, min(size, _DRAIN_BYTES), socket.MSG_TRUNC)

    def send(self, data: bytes) -> None:
        self._socket.setblocking(True)  # replies are small: only a client that reads none could make it wait
        self._socket.sendall(data)
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()


class Tls(Plain):
    """The same through TLS.

    Invariant: between two calls nothing but a part of a record is left undecrypted, so the socket alone tells when
    there is more. Hence both ways to receive take all that one `recv` brings, and not as little as is asked for.
    """

    _received = memoryview(bytearray(_TLS_RECEIVE_BYTES))
    _decrypted = memoryview(bytearray(_TLS_PIECE_BYTES))

    def __init__(self, channel: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(channel)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)

    @property
    def cipher(self) -> str | None:
        found = self._tls.cipher()
        return f"{found[1]} {found[0]}" if found else None

    def receive(self, size: int) -> bytes:
        pieces: list[bytes] = []
        self._take(lambda length: pieces.append(bytes(self._decrypted[:length])))
        return b"".join(pieces)

    def discard(self, size: int) -> int:
        lengths: list[int] = []
        self._take(lengths.append)
        return sum(lengths)

    def send(self, data: bytes) -> None:
        self._tls.write(data)
        super().send(self._out.read())

    def _take(self, on_piece: Callable[[int], object]) -> None:
        """Decrypts what one `recv` brings, piece by piece; the handshake passes here too.

        Raises:
            BlockingIOError: it was not enough for a byte.
        """
        size = self._socket.recv_into(self._received)
        if not size:
            return
        self._in.write(self._received[:size])
        is_found = False
        try:
            while length := cast(int, self._tls.read(_TLS_PIECE_BYTES, self._decrypted)):
                is_found = True
                on_piece(length)
        except ssl.SSLWantReadError:
            if self._out.pending:
                super().send(self._out.read())
            if not is_found:
                raise BlockingIOError from None


class Connection:
    """One client connection: reading a head, or a body that is kept (small XML) or discarded."""

    def __init__(self, channel: Plain) -> None:
        self.channel = channel
        self.head = bytearray()
        self.operation: str | None = None
        self.method = ""
        self.path = ""
        self.crc64: tuple[str, str] | None = None
        self.md5 = ""
        self.size = 0
        self.left = 0
        self.kept: bytearray | None = None
        self.is_counted = False
        self.is_closing = False
        self.is_slowed_down = False
        self.is_answered = False  # before its body was read
        self.paid_until_s = 0.0  # by when what it has sent of this request may have been sent
        self.stalls_at = 0  # with so many bytes of this body left; 0 for nowhere

    @property
    def target(self) -> tuple[str, str]:
        """Bucket and key."""
        bucket, _, key = unquote(self.path.partition("?")[0]).removeprefix("/").partition("/")
        return bucket, key

    @property
    def part_number(self) -> int:
        query = parse_qs(self.path.partition("?")[2])
        return int(query.get("partNumber", ["0"])[0])


class Sink:
    """The event loop: one epoll, one thread; between requests it remembers answers and lengths, and no bytes.

    Args:
        tls: also listen for TLS with this context.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._poller = select.epoll()
        self._tls = tls
        self._listeners = [self._listen(port)]
        if tls is not None:
            self._listeners.append(self._listen(0))
        self._connections: dict[int, Connection] = {}
        self._request_number = 0
        self._etags: dict[str, list[str]] = {}
        self._refused: set[int] = set()
        self._lengths: dict[str, dict[int, int]] = {}
        self._rough = Rough()
        self._late: set[int] = set()
        self._stalled: set[int] = set()
        self._tokens, self._filled_s = 0.0, 0.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.stats = Stats()

    @property
    def port(self) -> int:
        return int(self._listeners[0].getsockname()[1])

    @property
    def tls_port(self) -> int:
        """0 without TLS."""
        return int(self._listeners[1].getsockname()[1]) if self._tls is not None else 0

    def _listen(self, port: int) -> socket.socket:
        found = socket.create_server(("127.0.0.1", port), backlog=1024)
        found.setblocking(False)
        self._poller.register(found.fileno(), select.EPOLLIN)
        return found

    def run(self, until: int) -> None:
        """Serves until the descriptor `until` becomes readable."""
        self._poller.register(until, select.EPOLLIN | select.EPOLLHUP)
        listeners = {listener.fileno(): listener for listener in self._listeners}
        while True:
            events = self._poller.poll(max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None)
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()
            now_ns = time.monotonic_ns()
            for descriptor, _ in events:
                if descriptor == until:
                    return
                if descriptor in listeners:
                    self._accept(listeners[descriptor])
                    continue
                connection = self._connections.get(descriptor)
                if connection is None:
                    continue
                try:
                    self._on_readable(connection, now_ns)
                except BlockingIOError:
                    continue
                except (ConnectionError, ssl.SSLError, ValueError):
                    connection.is_closing = True
                if connection.is_closing:
                    self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        self._connections.pop(descriptor).channel.close()

    def _rest(self, connection: Connection, until_s: float, then: Callable[[], None] | None = None) -> None:
        """Hears nothing of a connection until then, and goes on with it."""
        descriptor = next(fd for fd, known in self._connections.items() if known is connection)
        self._poller.modify(descriptor, 0)

        def go_on() -> None:
            if self._connections.get(descriptor) is connection:
                self._poller.modify(descriptor, select.EPOLLIN)
                try:
                    if then is not None:
                        then()
                except OSError:
                    self._close(descriptor)

        heapq.heappush(self._timers, (until_s, next(self._numbers), go_on))

    def _accept(self, listener: socket.socket) -> None:
        try:
            channel, _ = listener.accept()
        except BlockingIOError:
            return
        channel.setblocking(False)
        channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._rough.bytes_per_s:  # Why: the system would take a good part of each body at once
            size = round(self._rough.bytes_per_s * _SLOW_BUFFER_S)
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        wrapped = Plain(channel)
        if self._tls is not None and listener is self._listeners[1]:
            wrapped = Tls(channel, self._tls)
        connection = self._connections[channel.fileno()] = Connection(wrapped)
        self._poller.register(channel.fileno(), select.EPOLLIN)
        if self._rough.connect_after_s:
            self._rest(connection, time.monotonic() + self._rough.connect_after_s)

    def _on_readable(self, connection: Connection, now_ns: int) -> None:
        if connection.left:
            self._read_body(connection, now_ns)
        else:
            self._read_head(connection, now_ns)

    def _read_head(self, connection: Connection, now_ns: int) -> None:
        data = connection.channel.receive(_HEAD_BYTES)
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
            self._charge(connection, len(rest), time.monotonic())
        if not connection.left:
            self._answer_in_time(connection)

    def _begin(self, connection: Connection, head: bytes, now_ns: int) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        connection.method, connection.path, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "chunked" in headers.get("transfer-encoding", "").lower():
            raise ValueError("no client here sends chunks")
        connection.size = connection.left = int(headers.get("content-length", "0") or "0")
        connection.operation = operation_of(connection.method, connection.path)
        connection.md5 = base64.b64decode(headers.get("content-md5", "")).hex()
        connection.crc64 = next(((name, headers[name]) for name in headers if name.endswith(_CRC64)), None)
        is_kept = connection.operation in ("Complete", "Control")
        if is_kept and connection.left > _KEPT_BODY_MAX_BYTES:
            raise ValueError("a body larger than 10,000 parts need")
        connection.kept = bytearray() if is_kept else None
        if connection.operation != "Control":
            stats = self.stats
            if stats.first_request_ns is None:
                stats.first_request, stats.first_request_ns = connection.operation, now_ns
            stats.requests[connection.operation] = stats.requests.get(connection.operation, 0) + 1
            if connection.crc64:
                stats.crc64s[connection.operation] = stats.crc64s.get(connection.operation, 0) + 1
            if isinstance(connection.channel, Tls):
                stats.tls = connection.channel.cipher
            if not connection.is_counted:
                connection.is_counted = True
                stats.connections += 1
        # Why from here: while it waited for its last reply a connection has earned nothing, as a slow line does not
        connection.paid_until_s, connection.stalls_at = time.monotonic(), 0
        if connection.operation == "UploadPart":
            if connection.part_number in self._stalled:
                self._stalled.remove(connection.part_number)
                connection.stalls_at = connection.size // 2
            if self._rough.is_early and self._is_too_much(connection.paid_until_s):
                connection.is_slowed_down = connection.is_answered = True
                self._answer(connection)
                return
        if "100-continue" in headers.get("expect", "").lower():
            connection.channel.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _read_body(self, connection: Connection, now_ns: int) -> None:
        for _ in range(_TURN_DRAINS):
            if connection.kept is not None:
                data = connection.channel.receive(min(connection.left, 1 << 16))
                size = len(data)
            else:
                data = b""
                size = connection.channel.discard(max(1, connection.left - connection.stalls_at))
            if not size:
                connection.is_closing = True
                return
            if size > connection.left:
                raise ValueError("no client here pipelines")
            self._take(connection, size, data, now_ns)
            now_s = time.monotonic()
            self._charge(connection, size, now_s)
            if not connection.left:
                self._answer_in_time(connection)
                return
            if connection.left <= connection.stalls_at:
                connection.stalls_at, connection.paid_until_s = 0, now_s + self._rough.stall_s
            if connection.paid_until_s > now_s + _REST_MIN_S:
                self._rest(connection, connection.paid_until_s)
                return

    def _charge(self, connection: Connection, size: int, now_s: float) -> None:
        if self._rough.bytes_per_s:
            # Why so much is forgiven: while this loop is late, a slow line would go on to fill the receive buffer
            earliest_s = now_s - 2 * _SLOW_BUFFER_S
            connection.paid_until_s = max(earliest_s, connection.paid_until_s) + size / self._rough.bytes_per_s

    def _answer_in_time(self, connection: Connection) -> None:
        if connection.operation == "Control":
            self._answer(connection)
            return
        if connection.is_answered:
            connection.is_closing = True
            return
        rough, now_s = self._rough, time.monotonic()
        wait_s = rough.reply_after_s
        if rough.bytes_per_s:
            wait_s += max(0.0, connection.paid_until_s - now_s)
        if connection.operation == "UploadPart":
            connection.is_slowed_down = not rough.is_early and self._is_too_much(now_s)
            if connection.part_number in self._late:
                self._late.remove(connection.part_number)
                wait_s += rough.late_s
        if wait_s:
            self._rest(connection, now_s + wait_s, lambda: self._answer(connection))
        else:
            self._answer(connection)

    def _is_too_much(self, now_s: float) -> bool:
        rate = self._rough.parts_per_s
        if not rate:
            return False
        self._tokens = min(rate, self._tokens + (now_s - self._filled_s) * rate)
        self._filled_s = now_s
        asked_s = now_s - (self.stats.first_request_ns or 0) / 1e9
        self.stats.asked.append(asked_s)
        if self._tokens >= 1:
            self._tokens -= 1
            return False
        self.stats.slowed_down.append(asked_s)
        return True

    def _take(self, connection: Connection, size: int, data: bytes, now_ns: int) -> None:
        connection.left -= size
        if connection.kept is not None:
            connection.kept += data
        elif connection.operation in ("UploadPart", "PutObject"):
            if self.stats.first_part_body_ns is None:
                self.stats.first_part_body_ns = now_ns
            self.stats.body_bytes += size

    def _answer(self, connection: Connection) -> None:
        status, headers, body = self._reply(connection)
        self._request_number += 1
        lines = [
            f"HTTP/1.1 {status}", f"x-obs-request-id: {self._request_number:032X}",
            f"Content-Length: {len(body)}", *headers, *["Connection: close"] * connection.is_answered, "", "",
        ]  # fmt: skip
        data = "\r\n".join(lines).encode() + (b"" if connection.method == "HEAD" else body)
        connection.channel.send(data)
        if connection.operation != "Control":
            self.stats.last_reply_ns = time.monotonic_ns()
        if connection.operation == "UploadPart":
            self.stats.last_part_reply_ns = self.stats.last_reply_ns

    def _told_length(self, connection: Connection, body: bytes) -> int:
        """Of a reply; of a HEAD of an object that was sent in parts, the object's."""
        lengths = self._lengths.get(connection.target[1]) if connection.operation == "Head" else None
        return sum(lengths.values()) if lengths else len(body)

    def _reply(self, connection: Connection) -> tuple[str, list[str], bytes]:
        operation = connection.operation
        bucket, key = connection.target
        if operation == "Control":
            return self._control(connection)
        if operation == "Initiate":
            self._lengths[key] = {}
            names = f"<Bucket>{escape(bucket)}</Bucket><Key>{escape(key)}</Key>"
            return "200 OK", _XML, _xml("InitiateMultipartUploadResult", f"{names}<UploadId>{UPLOAD_ID}</UploadId>")
        if operation == "PutObject":
            return "200 OK", [f'ETag: "{connection.md5 or PART_ETAG}"', *_shown(connection.crc64)], b""
        if operation == "UploadPart":
            return self._reply_to_part(connection)
        if operation == "Complete":
            digests = [bytes.fromhex(found.decode()) for found in _PART_IN_XML.findall(connection.kept or b"")]
            if not digests:
                return "400 Bad Request", _XML, b"<Error><Code>MalformedXML</Code></Error>"
            etag = f"{hashlib.md5(b''.join(digests)).hexdigest()}-{len(digests)}"
            names = f"<Location>/{escape(bucket)}/{escape(key)}</Location><Bucket>{escape(bucket)}</Bucket>"
            names += f"<Key>{escape(key)}</Key><ETag>&quot;{etag}&quot;</ETag>"
            return "200 OK", [*_XML, *_shown(connection.crc64)], _xml("CompleteMultipartUploadResult", names)
        if operation == "Abort":
            self._lengths.pop(key, None)
            return "204 No Content", [], b""
        if operation == "Head":
            return "200 OK", ["x-obs-bucket-location: sink", "x-obs-api: 3.0"], b""
        if operation == "ListParts" and key in self._lengths:
            return "200 OK", _XML, self._parts(connection)
        if operation == "List":
            found = f"<Name>{escape(bucket)}</Name><IsTruncated>false</IsTruncated>"
            return "200 OK", _XML, _xml("ListBucketResult", found)
        return "404 Not Found", _XML, b"<Error><Code>NoSuchUpload</Code><Message>a sink keeps none</Message></Error>"

    def _control(self, connection: Connection) -> tuple[str, list[str], bytes]:
        asked = connection.method, connection.path
        if asked == ("GET", "/-/stats"):
            self.stats.bodies = sum(bool(other.left) for other in self._connections.values())
            return "200 OK", ["Content-Type: application/json"], self.stats.as_json()
        if asked == ("POST", "/-/reset"):
            self.stats = Stats()
            for descriptor, other in [*self._connections.items()]:
                other.is_counted = False
                if other.left:  # Why: what somebody has given up, and is still on its way, is not the next one's
                    self._close(descriptor)
        elif asked == ("POST", "/-/etags"):
            self._etags.update(json.loads(connection.kept or b"{}"))
        elif asked == ("POST", "/-/rough"):
            self._rough = Rough(**json.loads(connection.kept or b"{}"))
            self._late, self._stalled = set(self._rough.late_parts), set(self._rough.stalled_parts)
            self._tokens, self._filled_s = self._rough.parts_per_s, time.monotonic()
        elif asked == ("POST", "/-/refuse"):
            self._refused = set(json.loads(connection.kept or b"[]"))
        else:
            return "404 Not Found", [], b""
        return "204 No Content", [], b""

    def _reply_to_part(self, connection: Connection) -> tuple[str, list[str], bytes]:
        (_, key), number = connection.target, connection.part_number
        if connection.is_slowed_down:
            return "503 Slow Down", _XML, b"<Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>"
        if number in self._refused:
            self.stats.refused += 1
            return "403 Forbidden", _XML, b"<Error><Code>AccessDenied</Code><Message>as told</Message></Error>"
        lengths = self._lengths.setdefault(key, {})
        if number not in lengths:
            self.stats.stored_parts += 1
            self.stats.stored_bytes += connection.size
        lengths[number] = connection.size
        return "200 OK", [f'ETag: "{self._etag(key, number)}"', *_shown(connection.crc64)], b""

    def _etag(self, key: str, number: int) -> str:
        etags = self._etags.get(key, ())
        return etags[number - 1] if 1 <= number <= len(etags) else PART_ETAG

    def _parts(self, connection: Connection) -> bytes:
        """A page of ListParts."""
        bucket, key = connection.target
        marker = int(parse_qs(connection.path.partition("?")[2]).get("part-number-marker", ["0"])[0])
        left = sorted((number, size) for number, size in self._lengths[key].items() if number > marker)
        page, is_cut = left[:_PAGE_PARTS], len(left) > _PAGE_PARTS
        text = f"<Bucket>{escape(bucket)}</Bucket><Key>{escape(key)}</Key><UploadId>{UPLOAD_ID}</UploadId>"
        text += f"<PartNumberMarker>{marker}</PartNumberMarker><MaxParts>{_PAGE_PARTS}</MaxParts>"
        text += f"<NextPartNumberMarker>{page[-1][0] if page else marker}</NextPartNumberMarker>"
        text += f"<IsTruncated>{str(is_cut).lower()}</IsTruncated>"
        for number, size in page:
            text += f"<Part><PartNumber>{number}</PartNumber><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            text += f"<ETag>&quot;{self._etag(key, number)}&quot;</ETag><Size>{size}</Size></Part>"
        return _xml("ListPartsResult", text)


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
    if method == "GET" and "uploadid" in names:
        return "ListParts"
    if method == "POST" and names & {"uploads", "uploadid"}:
        return "Initiate" if "uploads" in names else "Complete"
    if method == "GET" and target.count("/") < 2 + target.endswith("/"):
        return "List"
    return "Abort" if method == "DELETE" else "Other"


def _shown(crc64: tuple[str, str] | None) -> list[str]:
    return [] if crc64 is None else [f"{crc64[0]}: {crc64[1]}"]


def _xml(name: str, content: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} xmlns="{_NAMESPACE}">{content}</{name}>'.encode()


def server_context(folder: Path) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 that lives as long as the process; who signed it is written to `ca.pem`."""
    import trustme

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return context


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tls", type=Path, metavar="FOLDER", help="listen for TLS too; FOLDER gets ca.pem")
    options = parser.parse_args()
    sink = Sink(options.port, server_context(options.tls) if options.tls else None)
    print(*filter(None, [sink.port, sink.tls_port]), flush=True)
    sink.run(sys.stdin.fileno())
    os._exit(0)


if __name__ == "__main__":
    main()
