"""One client's connection: heads, bodies and replies over a non-blocking socket, one request after the other.

A connection receives into one reused buffer: a head and the bytes after it lie in the same memory, and a body is
hashed and written from where it was received. Pipelined requests wait in the buffer until the reply before is out.
Runs in the server's only thread; it knows the loop through `Loop` and decides nothing about OBS.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import time
import traceback
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, Protocol

from obs_engine.testing import xml
from obs_engine.testing.auth import Verifier
from obs_engine.testing.bodies import Body, disk_refusal, feed
from obs_engine.testing.calls import Call, understand
from obs_engine.testing.faults import Fault, Faults
from obs_engine.testing.http import CONTINUE, HEAD_MAX_BYTES, BadHeadError, Chunks, Head, parse_head, reply_head
from obs_engine.testing.log import RequestLog
from obs_engine.testing.operations import Operations
from obs_engine.testing.replies import FileSpan, Refusal, Reply

BUFFER_BYTES = 1024 * 1024
"""Per connection that is receiving; idle ones hold none.

Why this size: with eight connections 128 KiB cost a third of the speed to system calls, 2 MiB gained a tenth for twice
the memory (measured, 9 MB parts, MD5 in lanes)."""

LINGER_S = 5.0
"""How long a connection that was answered early goes on reading, so that the client sees the answer and no reset."""

READ, WRITE = 1, 2
_HOST_ID = "obs-engine-local-server"
_CRC64 = "checksum-crc64ecma"
_SPAN_CHUNK_BYTES = 4 << 20
_SENDS_PER_TURN = 8
"""Why bounded: a client that reads as fast as it is sent to must not keep the others waiting."""


class State(Enum):
    """Where a connection stands."""

    HANDSHAKE = auto()
    HEAD = auto()
    BODY = auto()
    PAUSED = auto()
    REPLY = auto()
    DRAIN = auto()
    CLOSED = auto()


class Loop(Protocol):
    """What a connection needs of the loop."""

    operations: Operations
    verifier: Verifier
    faults: Faults
    log: RequestLog
    cnames: dict[str, str]
    filling: dict[Connection, None]
    finishing: bool
    received: int
    eager: set[Connection]

    def now(self) -> float: ...
    def http_date(self) -> str: ...
    def next_request_id(self) -> str: ...
    def watch(self, connection: Connection, mask: int) -> None: ...
    def after(self, delay_s: float, action: Callable[[], None]) -> None: ...
    def take_buffer(self) -> bytearray: ...
    def give_buffer(self, buffer: bytearray) -> None: ...
    def forget(self, connection: Connection) -> None: ...
    def unpin(self, pinned: tuple[str, str]) -> None: ...


class _Exchange:
    """One request and what is known of it so far."""

    __slots__ = ("body", "bytes_in", "bytes_out", "call", "chunks", "fault", "flip", "head", "moment_s", "refusal",
                 "remaining", "reply", "request_id", "started_s")  # fmt: skip

    def __init__(self, head: Head | None, moment_s: float, request_id: str) -> None:
        self.head = head
        self.moment_s = moment_s
        self.request_id = request_id
        self.started_s = time.perf_counter()
        self.call: Call | None = None
        self.fault: Fault | None = None
        self.flip: tuple[int, int] | None = None  # which byte of the body a fault damages on its way in, and its mask
        self.body: Body | None = None
        self.chunks: Chunks | None = None
        self.refusal: Refusal | None = None
        self.reply: Reply | None = None
        self.remaining = 0
        self.bytes_in = self.bytes_out = 0


class Connection:
    """One accepted socket, non-blocking; over TLS its handshake is still to come."""

    def __init__(self, loop: Loop, sock: socket.socket, number: int) -> None:
        self._loop = loop
        self.sock = sock
        self.number = number
        self.mask = 0
        self.is_tls = isinstance(sock, ssl.SSLSocket)
        self._state = State.HANDSHAKE if self.is_tls else State.HEAD
        self._buffer: bytearray | None = None
        self._view = memoryview(b"")
        self._start = self._end = 0
        self._full_turns = 0
        self._served = 0
        self._exchange: _Exchange | None = None
        self._out = memoryview(b"")
        self._spans: list[FileSpan] = []
        self._span_fd = -1
        self._closes = self._lingers = False

    # --- events -------------------------------------------------------------------------------------------------

    def on_ready(self) -> None:
        """The socket can be read or written."""
        try:
            if self._state is State.HANDSHAKE:
                self._shake_hands()
            elif self._state is State.REPLY:
                self._send()
                self._advance()
            elif self._state is State.DRAIN:
                self._drain()
            elif self._state in (State.HEAD, State.BODY) and self._receive():
                self._advance()
        except (ssl.SSLError, OSError):
            # Foreign failures of a socket end here: the peer is gone, or speaks no TLS.
            self.close()

    def fill(self) -> tuple[Body, memoryview] | None:
        """The received bytes that belong to the body; None where the connection has ended meanwhile."""
        exchange = self._exchange
        if self._state is not State.BODY or exchange is None or exchange.body is None:
            return None
        taken = min(exchange.remaining, self._end - self._start)
        return exchange.body, self._view[self._start : self._start + taken]

    def filled(self, count: int) -> None:
        """`count` bytes of the body are hashed and written."""
        assert self._exchange is not None
        self._full_turns = 0
        self._consume(count)
        try:
            if not self._exchange.remaining:
                self._end_of_body()
            self._advance()
        except (ssl.SSLError, OSError):
            self.close()

    @property
    def is_full(self) -> bool:
        """True where nothing more can be received before the body's bytes are used."""
        return self._end == BUFFER_BYTES

    def is_overdue(self) -> bool:
        """Counts turns with a full buffer; true when others have been waited for long enough."""
        self._full_turns += 1
        return self._full_turns > 3

    def close(self, *, is_reset: bool = False) -> None:
        """Ends the connection; a request that was not answered is logged as such."""
        if self._state is State.CLOSED:
            return
        if is_reset:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self._exchange is not None and self._state is State.BODY:
            self._exchange.bytes_in += min(self._exchange.remaining, self._end - self._start)
        self._end_exchange(is_answered=False)
        self._state = State.CLOSED
        self._loop.watch(self, 0)
        self._loop.forget(self)
        self._view = memoryview(b"")
        if self._buffer is not None:
            self._loop.give_buffer(self._buffer)
            self._buffer = None
        self.sock.close()

    # --- receiving ----------------------------------------------------------------------------------------------

    def _shake_hands(self) -> None:
        assert isinstance(self.sock, ssl.SSLSocket)
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            self._loop.watch(self, READ)
        except ssl.SSLWantWriteError:
            self._loop.watch(self, WRITE)
        else:
            self._read_on(State.HEAD)

    def _read_on(self, state: State) -> None:
        self._state = state
        self._loop.watch(self, READ)
        if self.is_tls:
            self._loop.eager.add(self)  # Why: bytes that TLS has already decrypted raise no event.

    def _receive(self) -> bool:
        """Receives what is there and fits; False where nothing came. The peer's end closes the connection."""
        if self._buffer is None:
            self._buffer = self._loop.take_buffer()
            self._view = memoryview(self._buffer)
        if self._end == BUFFER_BYTES:
            if self._state is State.BODY or not self._start:
                if self.is_tls:
                    self._loop.eager.add(self)
                return False
            self._compact()
        before = self._end
        while self._end < BUFFER_BYTES:
            try:
                count = self.sock.recv_into(self._view[self._end :])
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            except ssl.SSLWantWriteError:
                break
            if not count:
                self.close()
                return False
            self._end += count
            if not self.is_tls:
                break
        else:
            if self.is_tls:
                self._loop.eager.add(self)
        self._loop.received += self._end - before
        return self._end > before

    def _compact(self) -> None:
        left = self._end - self._start
        self._view[:left] = bytes(self._view[self._start : self._end])
        self._start, self._end = 0, left

    def _drain(self) -> None:
        """Reads and forgets."""
        try:
            while self.sock.recv(65536):
                if not self.is_tls:
                    return
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        self.close()

    def _consume(self, count: int) -> None:
        exchange = self._exchange
        assert exchange is not None
        exchange.remaining -= count
        exchange.bytes_in += count
        self._start += count
        if self._start == self._end:
            self._start = self._end = 0

    def _advance(self) -> None:
        """Goes as far as the received bytes allow."""
        while (self._state is State.HEAD and self._take_head()) or (self._state is State.BODY and self._take_body()):
            pass
        if self._state is State.HEAD and self._start == self._end and self._buffer is not None:
            self._view = memoryview(b"")
            self._loop.give_buffer(self._buffer)
            self._buffer = None
            self._start = self._end = 0

    def _take_head(self) -> bool:
        if self._start == self._end or self._buffer is None:
            return False
        end = self._buffer.find(b"\r\n\r\n", self._start, self._end)
        if end < 0:
            if self._end - self._start > HEAD_MAX_BYTES:
                self._refuse_head(Refusal(400, "RequestHeaderSectionTooLarge", "The request's head is too large."))
            return False
        data = bytes(self._view[self._start : end + 4])
        self._start = end + 4
        if self._start == self._end:
            self._start = self._end = 0
        try:
            head = parse_head(data)
        except BadHeadError as error:
            self._refuse_head(Refusal(400, "BadRequest", f"This is no HTTP/1.1 request: {error}."))
            return False
        self._exchange = exchange = _Exchange(head, self._loop.now(), self._loop.next_request_id())
        if head.content_length is None:
            exchange.chunks = Chunks(data)
        else:
            exchange.remaining = head.content_length
        self._closes = not head.is_kept_alive
        self._begin(exchange)
        return True

    def _refuse_head(self, refusal: Refusal) -> None:
        self._exchange = exchange = _Exchange(None, self._loop.now(), self._loop.next_request_id())
        self._closes = self._lingers = True
        self._reply(exchange, self._error_reply(exchange, refusal))

    def _begin(self, exchange: _Exchange) -> None:
        loop, head = self._loop, exchange.head
        assert head is not None
        try:
            call = exchange.call = understand(head, loop.cnames)
            exchange.fault = loop.faults.choose(call.operation, call.bucket, call.key, call.part_number)
            if call.operation != "ApiVersion":
                loop.verifier.verify(call, exchange.moment_s)
            exchange.body = loop.operations.begin(call)
        except Refusal as refusal:
            exchange.refusal = refusal
        except OSError as error:
            exchange.refusal = disk_refusal(error)
        fault = exchange.fault
        if fault is not None and fault.corrupt == "wire":
            exchange.flip = fault.bit(max(1, exchange.remaining))
        if fault is not None and fault.reset == "at_once":
            self.close(is_reset=True)
        elif fault is not None and fault.delay_s and fault.delay_at == "before_reading":
            self._pause(fault.delay_s, lambda: self._begin_body(exchange))
        else:
            self._begin_body(exchange)

    def _begin_body(self, exchange: _Exchange) -> None:
        head, fault, refusal = exchange.head, exchange.fault, exchange.refusal
        assert head is not None
        has_body = exchange.remaining > 0 or exchange.chunks is not None
        says_no = refusal is not None or (fault is not None and fault.status is not None)
        is_early = (refusal is not None and refusal.is_early) or (fault is not None and fault.is_early)
        self._read_on(State.BODY)
        if has_body and (is_early or (says_no and head.expects_continue)):
            # Why close: the client may or may not send the body now, and both look alike on the wire.
            self._closes = self._lingers = True
            self._end_of_body()
        elif has_body and head.expects_continue and self._start == self._end:
            self.sock.send(CONTINUE)
        elif not has_body:
            self._end_of_body()

    def _take_body(self) -> bool:
        exchange = self._exchange
        assert exchange is not None
        if exchange.chunks is not None:
            return self._take_chunks(exchange)
        count = min(exchange.remaining, self._end - self._start)
        if exchange.fault is not None:
            limit = exchange.fault.reset_after_bytes
            if limit is not None and exchange.bytes_in + count >= limit:
                self._consume(count)
                self.close(is_reset=True)
                return False
            if exchange.flip is not None and exchange.flip[0] < exchange.bytes_in + count:
                offset, mask = exchange.flip
                exchange.flip = None  # Why: these bytes may pass here again, before they are hashed.
                self._view[self._start + offset - exchange.bytes_in] ^= mask
        if exchange.refusal is not None or exchange.body is None:
            self._consume(count)
            if not exchange.remaining:
                self._end_of_body()
                return True
            return False
        if count:
            self._loop.filling[self] = None
            if count == exchange.remaining:
                self._loop.finishing = True
        return False

    def _take_chunks(self, exchange: _Exchange) -> bool:
        assert exchange.chunks is not None
        data = bytes(self._view[self._start : self._end])
        self._start = self._end = 0
        if not data:
            return False
        try:
            pieces, has_ended, rest = exchange.chunks.feed(data)
        except BadHeadError as error:
            exchange.refusal = Refusal(400, "IncompleteBody", f"The chunked body is broken: {error}.")
            self._closes = self._lingers = True
            self._end_of_body()
            return False
        for piece in pieces:
            exchange.bytes_in += len(piece)
            if exchange.flip is not None and piece:
                piece = bytes([piece[0] ^ exchange.flip[1]]) + piece[1:]  # noqa: PLW2901
                exchange.flip = None
            if exchange.body is not None and exchange.refusal is None:
                feed([exchange.body], [memoryview(piece)])
        if has_ended:
            self._view[: len(rest)] = rest
            self._end = len(rest)
            self._end_of_body()
        return has_ended

    # --- answering ----------------------------------------------------------------------------------------------

    def _pause(self, delay_s: float, then: Callable[[], None]) -> None:
        self._state = State.PAUSED
        self._loop.watch(self, 0)

        def resume() -> None:
            if self._state is State.PAUSED:
                try:
                    then()
                    self._advance()
                except (ssl.SSLError, OSError):
                    self.close()

        self._loop.after(delay_s, resume)

    def _end_of_body(self) -> None:
        exchange = self._exchange
        assert exchange is not None
        fault = exchange.fault
        if fault is not None and fault.reset == "before_reply":
            self.close(is_reset=True)
            return
        if fault is not None and fault.is_stalled:
            self._state = State.DRAIN
            self._loop.watch(self, READ)
            return
        reply = self._answer(exchange, fault)
        if fault is not None and fault.delay_s and fault.delay_at == "before_reply":
            self._pause(fault.delay_s, lambda: self._reply_unless_lost(exchange, reply))
        else:
            self._reply_unless_lost(exchange, reply)

    def _reply_unless_lost(self, exchange: _Exchange, reply: Reply) -> None:
        if exchange.fault is not None and exchange.fault.reset == "after_work":
            exchange.reply = reply
            self.close(is_reset=True)
        else:
            self._reply(exchange, reply)

    def _answer(self, exchange: _Exchange, fault: Fault | None) -> Reply:
        """Does the work, or what the fault puts in its place."""
        if fault is not None and (fault.status is not None or fault.is_error_in_200):
            refusal = Refusal(fault.status or 200, fault.code, fault.message, headers=fault.headers)
            reply = self._error_reply(exchange, refusal)
            if fault.is_bare:
                reply.body = b""
            return reply
        if exchange.refusal is not None:
            return self._error_reply(exchange, exchange.refusal)
        call, body = exchange.call, exchange.body
        assert call is not None
        assert body is not None
        incoming = body.incoming
        try:
            if fault is not None and fault.corrupt == "stored" and incoming is not None and incoming.size_bytes:
                incoming.flip(*fault.bit(incoming.size_bytes))
            reply = self._loop.operations.finish(call, body, fault)
        except Refusal as refusal:
            return self._error_reply(exchange, refusal)
        except OSError as error:
            return self._error_reply(exchange, disk_refusal(error))
        except Exception:
            # A mistake of ours must fail one request, visibly, and not every test's connection.
            traceback.print_exc()
            return self._error_reply(exchange, Refusal(500, "InternalError", "The local server has a bug; see stderr."))
        if fault is not None:
            _spoil_reply(reply, fault)
        return reply

    def _error_reply(self, exchange: _Exchange, refusal: Refusal) -> Reply:
        path = exchange.head.path if exchange.head is not None else "/"
        body = xml.error(refusal.code, refusal.message, exchange.request_id, _HOST_ID, path, refusal.extra)
        return Reply(
            refusal.status, [("Content-Type", xml.CONTENT_TYPE), *refusal.headers], body, code=refusal.code
        )

    def _reply(self, exchange: _Exchange, reply: Reply) -> None:
        exchange.reply = reply
        call, fault = exchange.call, exchange.fault
        self._served += 1
        is_head = exchange.head is not None and exchange.head.method == "HEAD"
        body = b"" if is_head else reply.body
        self._spans = [] if is_head else list(reply.spans)
        length = reply.length if reply.length is not None else len(body)
        headers = [
            ("Server", "OBS"), ("Date", self._loop.http_date()), ("x-obs-request-id", exchange.request_id),
            ("x-obs-id-2", _HOST_ID), *reply.headers,
        ]  # fmt: skip
        if call is not None and call.kind != "obs":
            headers += [("x-amz-request-id", exchange.request_id), ("x-amz-id-2", _HOST_ID)]
        if reply.status not in (204, 304):
            headers.append(("Content-Length", str(length)))
        headers.append(("Connection", "close" if self._closes else "keep-alive"))
        if fault is not None:
            if fault.hang_up_after is not None and self._served >= fault.hang_up_after:
                self._closes = True
            if fault.truncate is not None and length > fault.truncate:
                body, self._spans = _truncated(body, self._spans, fault.truncate)
                self._closes = True
        self._out = memoryview(reply_head(reply.status, headers) + body)
        self._state = State.REPLY
        self._send()

    def _send(self) -> None:
        """Sends until done or the socket is full."""
        exchange = self._exchange
        assert exchange is not None
        try:
            for _ in range(_SENDS_PER_TURN):
                if self._out:
                    sent = self.sock.send(self._out)
                    exchange.bytes_out += sent
                    self._out = self._out[sent:]
                elif self._spans:
                    self._send_span(exchange)
                else:
                    break
        except (BlockingIOError, ssl.SSLWantWriteError):
            pass
        except ssl.SSLWantReadError:
            self._loop.watch(self, READ)
            return
        if self._out or self._spans:
            self._loop.watch(self, WRITE)
            return
        self._end_exchange(is_answered=True)
        if not self._closes:
            self._read_on(State.HEAD)
        elif self._lingers:
            self._state = State.DRAIN
            self._loop.watch(self, READ)
            if not self.is_tls:
                self.sock.shutdown(socket.SHUT_WR)
            self._loop.after(LINGER_S, self.close)
        else:
            self.close()

    def _send_span(self, exchange: _Exchange) -> None:
        span = self._spans[0]
        if self._span_fd < 0:
            self._span_fd = os.open(span.path, os.O_RDONLY | os.O_CLOEXEC)
        if self.is_tls or span.mask:
            data = os.pread(self._span_fd, min(span.length, 65536), span.offset)
            sent = len(data)
            self._out = memoryview(bytes([data[0] ^ span.mask]) if span.mask and data else data)
        else:
            sent = os.sendfile(self.sock.fileno(), self._span_fd, span.offset, min(span.length, _SPAN_CHUNK_BYTES))
            exchange.bytes_out += sent
        if not sent:
            raise OSError(f"{span.path} is shorter than its manifest says")
        if sent == span.length:
            os.close(self._span_fd)
            self._span_fd = -1
            del self._spans[0]
        else:
            self._spans[0] = FileSpan(span.path, span.offset + sent, span.length - sent)

    def _end_exchange(self, *, is_answered: bool) -> None:
        """Lets go of what the request held, and logs it."""
        exchange = self._exchange
        if exchange is None:
            return
        self._exchange = None
        self._out, self._spans = memoryview(b""), []
        if self._span_fd >= 0:
            os.close(self._span_fd)
            self._span_fd = -1
        if exchange.body is not None:
            exchange.body.discard()
        reply = exchange.reply
        if reply is not None and reply.pinned is not None:
            self._loop.unpin(reply.pinned)
        self._loop.log.add(_entry(self.number, exchange, is_answered))


def _entry(number: int, exchange: _Exchange, is_answered: bool) -> dict[str, Any]:
    call, head, reply = exchange.call, exchange.head, exchange.reply
    return {
        "time": round(exchange.moment_s, 6),
        "connection": number,
        "operation": call.operation if call is not None else "Unreadable",
        "method": head.method if head is not None else None,
        "path": head.path if head is not None else None,
        "bucket": call.bucket if call is not None else None,
        "key": call.key if call is not None else None,
        "part_number": call.part_number if call is not None else None,
        "upload_id": call.argument("uploadId") if call is not None else None,
        "status": reply.status if is_answered and reply is not None else None,
        "code": reply.code if is_answered and reply is not None else "ConnectionLost",
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "seconds": round(time.perf_counter() - exchange.started_s, 6),
        "signature": call.kind if call is not None and call.is_signed else None,
        "fault": exchange.fault.name if exchange.fault is not None else None,
        "request_id": exchange.request_id,
    }


def _spoil_reply(reply: Reply, fault: Fault) -> None:
    """Makes wrong what the fault wants to have wrong in a success."""
    if fault.corrupt == "etag":
        _spoil_etag(reply)
    elif fault.corrupt == "crc64":
        for index, (name, value) in enumerate(reply.headers):
            if name.endswith(_CRC64):
                reply.headers[index] = (name, str(int(value) ^ 1 << int(fault.place * 64)))
    elif fault.corrupt == "reply" and reply.spans:
        reply.spans = _spoiled(reply.spans, *fault.bit(sum(span.length for span in reply.spans)))


def _spoiled(spans: Sequence[FileSpan], offset: int, mask: int) -> list[FileSpan]:
    """The same bytes, cut so that the one to be sent wrong is a span of its own."""
    found = []
    for span in spans:
        if 0 <= offset < span.length:
            after = offset + 1
            cut = [
                span._replace(length=offset), span._replace(offset=span.offset + offset, length=1, mask=mask),
                span._replace(offset=span.offset + after, length=span.length - after),
            ]  # fmt: skip
            found += [piece for piece in cut if piece.length]
        else:
            found.append(span)
        offset -= span.length
    return found


def _spoil_etag(reply: Reply) -> None:
    for index, (name, value) in enumerate(reply.headers):
        if name == "ETag":
            reply.headers[index] = (name, _other_etag(value))
    start = reply.body.find(b"<ETag>")
    if start >= 0:
        end = reply.body.find(b"</ETag>", start)
        wrong = _other_etag(reply.body[start + 6 : end].decode()).encode()
        reply.body = reply.body[: start + 6] + wrong + reply.body[end:]


def _other_etag(etag: str) -> str:
    return etag.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))


def _truncated(body: bytes, spans: list[FileSpan], limit: int) -> tuple[bytes, list[FileSpan]]:
    kept: list[FileSpan] = []
    left = limit - len(body)
    for span in spans:
        if left > 0:
            kept.append(FileSpan(span.path, span.offset, min(span.length, left)))
            left -= span.length
    return body[:limit], kept
