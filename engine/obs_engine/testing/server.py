"""The server's loop: one thread, one process, non-blocking sockets; all bodies of a turn are hashed side by side.

Knows sockets, timers and turns. Does not know what a request means (`operations`) nor how one is read (`connection`).
"""

from __future__ import annotations

import heapq
import itertools
import resource
import secrets
import selectors
import signal
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

from obs_engine.errors import InvalidArgumentError
from obs_engine.testing.auth import Verifier
from obs_engine.testing.bodies import feed
from obs_engine.testing.connection import BUFFER_BYTES, Connection
from obs_engine.testing.encryption import Encryption
from obs_engine.testing.faults import Faults
from obs_engine.testing.log import RequestLog
from obs_engine.testing.operations import Operations
from obs_engine.testing.store import Store
from obs_engine.wire.requests import http_date
from obs_engine.wire.signing import Credentials

_BUFFERS_KEPT = 64
_BACKLOG = 1024


@dataclass(frozen=True)
class Settings:
    """How to serve.

    Attributes:
        port: 0 to 65535; 0 takes a free one.
        region: what a v4 scope must name; None for any.
        cnames: custom domains, each with its bucket.
        log: path of the request log; None for none.
        is_crc64_checked: False passes over every CRC-64 and shows none, like most S3-compatible services.
        encryption: buckets that encrypt what does not say how itself, there or yet to be made.
        clock_offset_s: the server's clock is so far ahead of the machine's; it dates replies and judges signatures.
    """

    data: str
    credentials: Credentials
    host: str = "127.0.0.1"
    port: int = 0
    buckets: tuple[str, ...] = ()
    tls_cert: str | None = None
    tls_key: str | None = None
    region: str | None = None
    cnames: Mapping[str, str] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    log: str | None = None
    is_crc64_checked: bool = True
    encryption: Mapping[str, Encryption] = field(default_factory=dict)
    clock_offset_s: float = 0.0


class Server:
    """A bound server; `run` serves until it is told to stop.

    Raises:
        InvalidArgumentError: the data directory, the certificate, the log or the address cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._clock_offset_s = settings.clock_offset_s
        self._tls = _tls_context(settings.tls_cert, settings.tls_key)
        self._store = Store(settings.data, self.now)
        self.operations = Operations(
            self._store, "https" if self._tls else "http", is_crc64_checked=settings.is_crc64_checked,
            defaults=settings.encryption,
        )  # fmt: skip
        for name in settings.buckets:
            if name not in self._store.buckets:
                self._store.create_bucket(name)
        self.verifier = Verifier(settings.credentials, settings.region)
        self.faults = settings.faults
        self.cnames = {name.lower(): bucket for name, bucket in settings.cnames.items()}
        self.log = RequestLog(settings.log)
        self.filling: dict[Connection, None] = {}
        self.finishing = False
        self.received = 0
        self.eager: set[Connection] = set()
        self._connections: set[Connection] = set()
        self._numbers = itertools.count(1)
        self._request_ids = itertools.count(1)
        self._request_id_stem = secrets.token_hex(8).upper()
        self._buffers: list[bytearray] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self._date = (0, "")
        self._is_stopping = False
        self._selector = selectors.DefaultSelector()
        self._listener = _listen(settings.host, settings.port)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self.host = settings.host
        self.port = int(self._listener.getsockname()[1])
        _raise_file_limit()

    @property
    def url(self) -> str:
        """Where clients find it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    def stop(self) -> None:
        """Ends `run` after the present turn."""
        self._is_stopping = True

    def stop_on_signals(self) -> None:
        """SIGTERM and SIGINT stop the server; to be called in the main thread."""
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        self.on_readable(reader, lambda: reader.recv(64) and None)
        self._wakeup = (reader, writer)

    def on_readable(self, source: socket.socket | int, action: Callable[[], object]) -> None:
        """Calls `action` whenever a further socket or descriptor can be read."""
        self._selector.register(source, selectors.EVENT_READ, action)

    def off(self, source: socket.socket | int) -> None:
        """Ends `on_readable`."""
        self._selector.unregister(source)

    def run(self) -> None:
        """Serves until stopped; then ends all connections and lets go of the data directory."""
        try:
            while not self._is_stopping:
                self._turn()
        finally:
            for connection in list(self._connections):
                connection.close()
            self._listener.close()
            self._selector.close()
            self.log.close()
            self._store.close()

    # --- for connections ----------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds since 1970, by the server's clock."""
        return time.time() + self._clock_offset_s

    def http_date(self) -> str:
        """The Date header of this second."""
        second = int(self.now())
        if self._date[0] != second:
            self._date = (second, http_date(datetime.fromtimestamp(second, timezone.utc)))
        return self._date[1]

    def next_request_id(self) -> str:
        """32 hex digits, as the service's."""
        return f"{self._request_id_stem}{next(self._request_ids):016X}"

    def watch(self, connection: Connection, mask: int) -> None:
        """Sets what a connection waits for; 0 for nothing."""
        if mask == connection.mask:
            return
        if not connection.mask:
            self._selector.register(connection.sock, mask, connection.on_ready)
        elif mask:
            self._selector.modify(connection.sock, mask, connection.on_ready)
        else:
            self._selector.unregister(connection.sock)
        connection.mask = mask

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Calls `action` once, `delay_s` from now."""
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._timer_numbers), action))

    def take_buffer(self) -> bytearray:
        """A buffer of BUFFER_BYTES, its content undefined."""
        return self._buffers.pop() if self._buffers else bytearray(BUFFER_BYTES)

    def give_buffer(self, buffer: bytearray) -> None:
        """Takes one back."""
        if len(self._buffers) < _BUFFERS_KEPT:
            self._buffers.append(buffer)

    def forget(self, connection: Connection) -> None:
        """The connection is closed."""
        self._connections.discard(connection)
        self.filling.pop(connection, None)
        self.eager.discard(connection)

    def unpin(self, pinned: tuple[str, str]) -> None:
        """An object's bytes are no longer streamed by one reply."""
        self._store.unpin(pinned)

    # --- inside -------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self.received = 0
        eager = list(self.eager)
        self.eager.clear()
        for key, _ in self._selector.select(self._timeout(has_eager=bool(eager))):
            key.data()
        for connection in eager:
            connection.on_ready()
        if self.filling:
            self._fill()
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()
        self.log.flush()

    def _timeout(self, *, has_eager: bool) -> float | None:
        if has_eager or self.finishing or any(c.is_full for c in self.filling):
            return 0
        if self._timers:
            return max(0.0, self._timers[0][0] - time.monotonic())
        return None

    def _fill(self) -> None:
        """Hashes and writes the bodies' received bytes, when it is time.

        Why wait at all: MD5 of eight streams side by side costs little more than of one. So a full buffer waits a
        turn or two while others still fill; a body's last bytes never wait.
        """
        full = [c for c in self.filling if c.is_full]
        if not self.finishing:
            if not full:
                return
            is_waiting_useful = self.received and len(full) < len(self.filling)
            if is_waiting_useful and not [c for c in full if c.is_overdue()]:
                return
        self.finishing = False
        connections, bodies, pieces = [], [], []
        for connection in self.filling:
            filled = connection.fill()
            if filled is not None:
                connections.append(connection)
                bodies.append(filled[0])
                pieces.append(filled[1])
        self.filling = {}
        if bodies:
            feed(bodies, pieces)
        counts = [len(piece) for piece in pieces]
        for piece in pieces:
            piece.release()
        for connection, count in zip(connections, counts, strict=True):
            connection.filled(count)

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, _address = self._listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            connection = Connection(self, sock, next(self._numbers))
            self._connections.add(connection)
            self.watch(connection, selectors.EVENT_READ)


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise InvalidArgumentError(
            "listening address", "one that is free and this machine's", f"{host}:{port}",
            f"{error.strerror or error}; choose another with --host and --port (0 takes a free port)",
        ) from None  # fmt: skip
    listener.setblocking(False)
    return listener


def _tls_context(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise InvalidArgumentError(
            "TLS", "both a certificate and a key", "only one of them", "give --tls-cert and --tls-key"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgumentError(
            "TLS", "a PEM certificate chain and its private key", f"{cert} and {key}",
            f"{getattr(error, 'reason', None) or error.strerror or error}; correct --tls-cert and --tls-key",
        ) from None  # fmt: skip
    return context


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
