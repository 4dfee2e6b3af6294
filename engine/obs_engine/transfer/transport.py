"""HTTP over libcurl: many transfers at once in one process, on connections that are kept.

Keeper of `pycurl`. Runs in a worker, driven by the worker's event loop. Knows finished requests, buffers and replies;
does not know uploads, parts, signatures or retries.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from typing import Any, Protocol

import pycurl

from obs_engine.errors import ObsEngineError, TransportError
from obs_engine.limits import REPLY_BODY_MAX_BYTES
from obs_engine.transfer.bandwidth import Allowance
from obs_engine.transfer.messages import TransportOptions
from obs_engine.transfer.spread import Spread
from obs_engine.wire.policy import REPEATING, failure_row
from obs_engine.wire.replies import Reply
from obs_engine.wire.requests import FinishedRequest

OnDone = Callable[[Reply | ObsEngineError], None]
Sink = Callable[[bytes], None]
"""Takes a reply's body, piece by piece; what it raises (an `ObsEngineError`) ends the transfer."""


class Body(Protocol):
    """Bytes to send: a memoryview, or a window onto a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, piece: slice, /) -> memoryview: ...


_RECEIVE_BUFFER_BYTES = 256 << 10
"""libcurl's buffer between the socket and a sink; its own default of 16 KiB costs a wake-up for each."""
_UPLOAD_BUFFERS_BYTES = 16 << 20
"""Of libcurl between the read callback and the sockets, all transfers together; no less than this for one:"""
_UPLOAD_BUFFER_MIN_BYTES = 64 << 10
_EVENTS = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}
_KINDS_OF_AN_ADDRESS = "connect", "stalled", "cut off"
"""Failures that another address of the same host need not have."""
_CUT = "the connection ended in the middle of a reply"
# These have no code of their own: the peer's TLS has nothing in common with ours, or the proxy wants another password.
_HOPELESS_WORDS = ("alert handshake failure", "alert protocol version", "response 407")


class Transport:
    """A curl multi handle on somebody else's epoll.

    Invariant: a handle is either in `_running` or in `_idle`; `on_done` is called once for each `start`, unless the
    transfer is cancelled.
    """

    def __init__(self, poller: select.epoll, allowance: Allowance, connections_max: int) -> None:
        """
        Args:
            allowance: what may be sent of bodies that are windows.
            connections_max: that stand at a time, idle ones among them.
        """
        self._poller = poller
        self._allowance = allowance
        self._watched: set[int] = set()
        self._running: dict[pycurl.Curl, _Transfer] = {}
        self._idle: list[pycurl.Curl] = []
        self._timeout_ms = -1
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        # Why both: the first keeps every connection that a full window has opened, the second closes idle ones for new.
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections_max)
        self._multi.setopt(pycurl.M_MAX_TOTAL_CONNECTIONS, connections_max)
        self._multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_NOTHING)  # a connection each, with HTTP/2 as well

    def start(
        self, request: FinishedRequest, body: Body, options: TransportOptions, on_done: OnDone,
        sink: Sink | None = None, *, is_fresh: bool = False, spread: Spread | None = None,
    ) -> object:  # fmt: skip
        """Begins a transfer and returns a token for `cancel`.

        Args:
            body: the bytes to send; read in place, without a copy in Python. The owner keeps it alive until `on_done`.
            sink: takes the body of a reply that is a success (200, 206), in place of the `Reply`, which has none then.
            is_fresh: on a connection that no other transfer has used.
            spread: the host's addresses, where it has several.
        """
        curl = self._idle.pop() if self._idle else pycurl.Curl()
        transfer = _Transfer(curl, request, body, on_done, sink)
        if not isinstance(body, memoryview):
            transfer.may_take = self._may_take
        transfer.configure(options, self.buffer_bytes(options))
        curl.setopt(pycurl.FRESH_CONNECT, int(is_fresh))
        if spread is not None:
            transfer.spread, transfer.order = spread, spread.order(time.monotonic())
            curl.setopt(pycurl.RESOLVE, [spread.entry(transfer.order)])
        self._running[curl] = transfer
        self._multi.add_handle(curl)
        return transfer

    def cancel(self, token: object) -> None:
        """Ends a transfer without a word; its connection is closed."""
        assert isinstance(token, _Transfer)
        if self._running.get(token.curl) is token:
            self._release(token)

    def buffer_bytes(self, options: TransportOptions) -> int:
        """Of the next transfer, between its body and its connection: less than asked for where there are many."""
        share = _UPLOAD_BUFFERS_BYTES // (len(self._running) + 1)
        return min(options.upload_buffer_bytes, max(_UPLOAD_BUFFER_MIN_BYTES, share))

    def sent_bytes(self, token: object) -> int:
        """Bytes of a transfer's body that libcurl has taken, or that it has given to a sink."""
        assert isinstance(token, _Transfer)
        return token.sent_bytes

    def go_on(self) -> None:
        """There may be something to take again for transfers that found nothing."""
        for transfer in list(self._running.values()):
            transfer.go_on()

    def timeout_s(self) -> float | None:
        """How long the event loop may wait at most."""
        return None if self._timeout_ms < 0 else self._timeout_ms / 1000

    def on_event(self, descriptor: int, events: int) -> None:
        """Moves a connection on that is ready."""
        mask = 0
        if events & (select.EPOLLIN | select.EPOLLHUP):
            mask |= pycurl.CSELECT_IN
        if events & select.EPOLLOUT:
            mask |= pycurl.CSELECT_OUT
        if events & select.EPOLLERR:
            mask |= pycurl.CSELECT_ERR
        self._multi.socket_action(descriptor, mask)

    def on_timeout(self) -> None:
        """Lets libcurl look at its clocks; to be called when `timeout_s` has passed."""
        self._timeout_ms = -1
        self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)

    def finish_transfers(self) -> None:
        """Reports all transfers that have ended since."""
        more = 1
        while more:
            more, succeeded, failed = self._multi.info_read()
            for curl in succeeded:
                transfer = self._running[curl]
                # Why looked at: libcurl takes a connection that ends among the headers for the end of a reply.
                cut = None if transfer.is_head_whole else _error(transfer.request, pycurl.E_GOT_NOTHING, _CUT)
                self._end(transfer, cut)
            for curl, code, text in failed:
                self._end(self._running[curl], _error(self._running[curl].request, code, text))

    def close(self) -> None:
        """Ends all transfers and connections."""
        for transfer in list(self._running.values()):
            self._release(transfer)
        self._multi.close()

    def _end(self, transfer: _Transfer, error: TransportError | None) -> None:
        if transfer.spread is not None:
            address, now_s = transfer.curl.getinfo(pycurl.PRIMARY_IP), time.monotonic()
            if error is None and transfer.curl.getinfo(pycurl.NUM_CONNECTS):
                transfer.spread.on_connected(transfer.order, address, now_s)
            elif error is not None and error.kind in _KINDS_OF_AN_ADDRESS:
                transfer.spread.on_failed(transfer.order, address, now_s)
        self._release(transfer)
        transfer.on_done(transfer.failure or error or transfer.reply())

    def _release(self, transfer: _Transfer) -> None:
        self._multi.remove_handle(transfer.curl)
        del self._running[transfer.curl]
        transfer.curl.reset()
        self._idle.append(transfer.curl)

    def _on_socket(self, what: int, descriptor: int, _multi: Any, _data: Any) -> None:
        if what == pycurl.POLL_REMOVE:
            self._watched.discard(descriptor)
            # The descriptor may be closed by now; epoll has then forgotten it by itself.
            try:
                self._poller.unregister(descriptor)
            except OSError:
                return
        elif descriptor in self._watched:
            self._poller.modify(descriptor, _EVENTS[what])
        else:
            self._watched.add(descriptor)
            self._poller.register(descriptor, _EVENTS[what])

    def _may_take(self, size: int) -> int:
        return self._allowance.take(size, len(self._running))

    def _on_timer(self, timeout_ms: int) -> None:
        self._timeout_ms = timeout_ms


def has_http2() -> bool:
    """Was libcurl built with HTTP/2?"""
    return bool(pycurl.version_info()[4] & pycurl.VERSION_HTTP2)


class _Transfer:
    """One request on its way, and the reply as it arrives."""

    def __init__(
        self, curl: pycurl.Curl, request: FinishedRequest, body: Body, on_done: OnDone, sink: Sink | None
    ) -> None:
        self.curl = curl
        self.request = request
        self.on_done = on_done
        self.failure: ObsEngineError | None = None  # of the body's source, or of the sink
        self.sent_bytes = 0
        self.spread: Spread | None = None
        self.order: list[str] = []  # in which its connection was to try the addresses
        self.may_take: Callable[[int], int] | None = None
        self.is_head_whole = False
        self._is_paused = False
        self._sink = sink
        self._body = body
        self._status = 0
        self._reason = ""
        self._headers: list[tuple[str, str]] = []
        self._reply = bytearray()

    def configure(self, options: TransportOptions, buffer_bytes: int) -> None:
        curl, request = self.curl, self.request
        curl.setopt(pycurl.URL, request.url)
        curl.setopt(pycurl.PATH_AS_IS, 1)  # `..` and `//` are parts of keys
        version = pycurl.CURL_HTTP_VERSION_2TLS if options.is_http2 else pycurl.CURL_HTTP_VERSION_1_1
        curl.setopt(pycurl.HTTP_VERSION, version)
        curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        curl.setopt(pycurl.PROXY, options.proxy)  # Why also if "": libcurl would take the environment's
        if options.proxy:
            curl.setopt(pycurl.HTTPPROXYTUNNEL, 1)
            if options.proxy_user:
                curl.setopt(pycurl.PROXYAUTH, pycurl.HTTPAUTH_BASIC)
                curl.setopt(pycurl.PROXYUSERNAME, options.proxy_user.encode())
                curl.setopt(pycurl.PROXYPASSWORD, options.proxy_password.encode())
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.TCP_KEEPALIVE, 1)
        curl.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, int(options.connect_timeout_s * 1000)))
        curl.setopt(pycurl.LOW_SPEED_LIMIT, 1)
        curl.setopt(pycurl.LOW_SPEED_TIME, max(1, round(options.timeout_s)))
        curl.setopt(pycurl.SSL_VERIFYPEER, int(options.is_verified))
        curl.setopt(pycurl.SSL_VERIFYHOST, 2 if options.is_verified else 0)
        if options.ca_file:
            curl.setopt(pycurl.CAINFO, os.fsencode(options.ca_file))
        if options.ciphers:
            curl.setopt(pycurl.SSL_CIPHER_LIST, options.ciphers)
        if options.certificate:
            curl.setopt(pycurl.SSLCERT, os.fsencode(options.certificate))
            curl.setopt(pycurl.SSLKEY, os.fsencode(options.certificate_key))
            if options.certificate_password:
                curl.setopt(pycurl.KEYPASSWD, options.certificate_password.encode())
        # libcurl adds Content-Length itself; an empty "Expect:" spares the wait for 100-continue. The encoding is asked
        # for as the SDK asks for it, outside of the signature: a proxy may change it.
        lines = [f"{name}: {value}" if value else f"{name};" for name, value in request.headers
                 if name.lower() != "content-length"]  # fmt: skip
        lines += ["Expect:", "Accept:", "Accept-Encoding: identity"]
        curl.setopt(pycurl.HTTPHEADER, [line.encode() for line in lines])
        if request.method == "HEAD":
            curl.setopt(pycurl.NOBODY, 1)
        elif request.method in ("PUT", "POST"):
            curl.setopt(pycurl.UPLOAD, 1)
            curl.setopt(pycurl.UPLOAD_BUFFERSIZE, buffer_bytes)
            curl.setopt(pycurl.INFILESIZE_LARGE, len(self._body))
            curl.setopt(pycurl.READFUNCTION, self._on_read)
            curl.setopt(pycurl.SEEKFUNCTION, self._on_seek)
            if request.method != "PUT":
                curl.setopt(pycurl.CUSTOMREQUEST, request.method)
        elif request.method != "GET":
            curl.setopt(pycurl.CUSTOMREQUEST, request.method)
        curl.setopt(pycurl.HEADERFUNCTION, self._on_header)
        curl.setopt(pycurl.WRITEFUNCTION, self._on_body)
        if self._sink is not None:
            curl.setopt(pycurl.BUFFERSIZE, _RECEIVE_BUFFER_BYTES)


    def reply(self) -> Reply:
        return Reply(self._status, self._reason, tuple(self._headers), bytes(self._reply))

    def go_on(self) -> None:
        if self._is_paused:
            self._is_paused = False
            # Why it may: the transfer has failed meanwhile, which is told when its end is.
            with contextlib.suppress(pycurl.error):
                self.curl.pause(pycurl.PAUSE_CONT)

    def _on_read(self, size: int) -> memoryview | int:
        if self.may_take is not None and self.sent_bytes < len(self._body):
            size = self.may_take(min(size, len(self._body) - self.sent_bytes))
            if not size:
                self._is_paused = True
                return pycurl.READFUNC_PAUSE
        try:
            piece = self._body[self.sent_bytes : self.sent_bytes + size]
        except ObsEngineError as error:
            self.failure = error
            return pycurl.READFUNC_ABORT
        self.sent_bytes += len(piece)
        return piece

    def _on_seek(self, offset: int, origin: int) -> int:
        # libcurl rewinds when a kept connection turns out to be closed, before any reply.
        if origin != 0 or not 0 <= offset <= len(self._body):
            return pycurl.SEEKFUNC_CANTSEEK
        self.sent_bytes = offset
        return pycurl.SEEKFUNC_OK

    def _on_header(self, line: bytes) -> None:
        text = line.decode("latin-1").rstrip("\r\n")
        if text.startswith("HTTP/"):  # also where an interim 100 came before
            _, _, rest = text.partition(" ")
            status, _, self._reason = rest.partition(" ")
            self._status = int(status)
            self._headers.clear()
            self.is_head_whole = False
        elif not text:
            self.is_head_whole = True
        else:
            name, _, value = text.partition(":")
            self._headers.append((name.strip().lower(), value.strip()))

    def _on_body(self, data: bytes) -> int | None:
        if self._sink is not None and self._status in (200, 206):
            try:
                self._sink(data)
            except ObsEngineError as error:
                self.failure = error
                return 0  # as below
            self.sent_bytes += len(data)
            return None
        if len(self._reply) + len(data) > REPLY_BODY_MAX_BYTES:
            return 0  # libcurl then fails the transfer with E_WRITE_ERROR
        self._reply += data
        return None


def _error(request: FinishedRequest, code: int, text: str) -> TransportError:
    host = request.url.split("/", 3)[2]
    row = failure_row(code)
    hopeless = row.action not in REPEATING or any(words in text for words in _HOPELESS_WORDS)
    advice = "check certificates and the endpoint" if hopeless else "check the network, then call again"
    return TransportError(
        f"{request.operation} at {host}: expected a reply, found none: {text or 'transfer failed'} (libcurl {code}); "
        f"{advice}",
        is_retryable=not hopeless,
        kind=row.kind,
    )
