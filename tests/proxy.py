"""Doors before a local server, for tests: a relay that writes down, one that fails, a CONNECT proxy, TLS, HTTP/2.

Each listens on a free port of this machine, serves in threads of this process, and leaves none behind.
"""

from __future__ import annotations

import base64
import http.client
import random
import select
import socket
import ssl
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

RECEIVE_BYTES = 65_536


@dataclass(frozen=True)
class Passed:
    """One request as it stood on the wire; header names in lower case."""

    connection: int
    method: str
    target: str
    headers: dict[str, str]


class Door:
    """Listens, and serves each connection in a thread of its own until the `with` block ends.

    Attributes:
        connections: how many were accepted.
        failures: why connections ended early.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.connections = 0
        self.failures: list[str] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._is_closed = False
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def serve(self, number: int, client: socket.socket) -> None:
        """Serves one connection, from 1; to be overridden."""
        raise NotImplementedError

    def connect(self, port: int) -> socket.socket:
        """A connection to a server of this machine, that ends with this door."""
        server = socket.create_connection(("127.0.0.1", port))
        self._keep(server)
        return server

    def wrap(self, client: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
        """The server's side of TLS, its handshake still to come."""
        wrapped = context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        self._keep(wrapped)
        return wrapped

    def close(self) -> None:
        """Ends the connections and the threads."""
        with self._lock:
            self._is_closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the acceptor
        self._acceptor.join()
        self._listener.close()
        for connection in list(self._open):
            with suppress(OSError):  # closed by now, or taken over by TLS
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep(self, connection: socket.socket) -> None:
        with self._lock:
            # Why those that are closed go: a door may stand for hours.
            self._open = {kept for kept in self._open if kept.fileno() >= 0} | {connection}
            if self._is_closed:
                connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections += 1
                self._keep(client)
                thread = threading.Thread(target=self._serve, args=(self.connections, client))
                self._threads = [*filter(threading.Thread.is_alive, self._threads), thread]
                thread.start()

    def _serve(self, number: int, client: socket.socket) -> None:
        try:
            with client:
                self.serve(number, client)
        except OSError as error:  # TLS's among them
            self.failures.append(str(error))


class Relay(Door):
    """Passes bytes on to a server of this machine, behind TLS or not, and writes down what was asked.

    Args:
        port: of the server.
        tls: ends TLS here; None passes on what comes.

    Attributes:
        ciphers: agreed on, by connection.
        protocols: of ALPN, by connection.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self._to = port
        self._tls = tls
        self._heard: dict[int, bytearray] = {}
        self.ciphers: list[str] = []
        self.protocols: list[str | None] = []
        super().__init__(host)

    def serve(self, number: int, client: socket.socket) -> None:
        if self._tls is not None:
            with self.wrap(client, self._tls) as secured:
                secured.do_handshake()
                cipher = secured.cipher()
                self.ciphers.append(cipher[0] if cipher else "")
                self.protocols.append(secured.selected_alpn_protocol())
                self.serve_plainly(number, secured)
        else:
            self.serve_plainly(number, client)

    def serve_plainly(self, number: int, client: socket.socket) -> None:
        """Serves a connection after its TLS, if any."""
        with self.connect(self._to) as server:
            pump(client, server, self._heard.setdefault(number, bytearray()))

    def passed(self) -> list[Passed]:
        """The requests of all connections, in the order of each. Not for connections that carry TLS onwards."""
        return [request for number, heard in self._heard.items() for request in _requests(number, bytes(heard))]

    def heard(self) -> bytes:
        """All that clients have sent."""
        return b"".join(map(bytes, self._heard.values()))


class ConnectProxy(Door):
    """An HTTP proxy that knows CONNECT alone.

    Args:
        user, password: what clients must show; anybody may pass where empty.

    Attributes:
        heads: what clients asked, as it stood on the wire.
        targets: host and port of the tunnels that were opened.
        tunnelled: all that clients sent through them.
    """

    def __init__(self, user: str = "", password: str = "") -> None:
        self._wanted = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}" if user else None
        self.heads: list[str] = []
        self.targets: list[str] = []
        self.tunnelled = bytearray()
        super().__init__()

    def serve(self, number: int, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = client.recv(RECEIVE_BYTES)
            if not data:
                return
            head += data
        text = head.decode("latin-1")
        self.heads.append(text)
        first, *lines = text.split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if method != "CONNECT":
            client.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
        elif self._wanted is not None and headers.get("proxy-authorization") != self._wanted:
            client.sendall(
                b'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="tests"\r\n'
                b"Content-Length: 0\r\nConnection: close\r\n\r\n"
            )
        else:
            self.targets.append(target)
            # Whatever the name, it is this machine.
            with self.connect(int(target.rpartition(":")[2])) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                pump(client, server, self.tunnelled)


class Http2Front(Relay):
    """Offers HTTP/2 and HTTP/1.1 on TLS; what comes by HTTP/2 is asked of the server by HTTP/1.1.

    Attributes:
        by_http2: method and path of what came by HTTP/2.
    """

    def __init__(self, port: int, tls: ssl.SSLContext) -> None:
        tls.set_alpn_protocols(["h2", "http/1.1"])
        self.by_http2: list[tuple[str, str]] = []
        super().__init__(port, tls)

    def serve_plainly(self, number: int, client: socket.socket) -> None:
        if self.protocols[-1] == "h2":
            self._serve_http2(client)
        else:
            super().serve_plainly(number, client)

    def _serve_http2(self, client: socket.socket) -> None:
        from h2.config import H2Configuration
        from h2.connection import H2Connection
        from h2.events import DataReceived, RequestReceived, StreamEnded

        wire = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        wire.initiate_connection()
        client.sendall(wire.data_to_send())
        asked: dict[int, tuple[dict[str, str], bytearray]] = {}
        while data := client.recv(RECEIVE_BYTES):
            for event in wire.receive_data(data):
                if isinstance(event, RequestReceived):
                    asked[event.stream_id] = {str(name): str(value) for name, value in event.headers}, bytearray()
                elif isinstance(event, DataReceived):
                    asked[event.stream_id][1].extend(event.data)
                    wire.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, StreamEnded):
                    status, headers, body = self._ask(*asked.pop(event.stream_id))
                    wire.send_headers(event.stream_id, [(":status", str(status)), *headers], end_stream=not body)
                    if body:
                        wire.send_data(event.stream_id, body, end_stream=True)
            client.sendall(wire.data_to_send())

    def _ask(self, headers: dict[str, str], body: bytearray) -> tuple[int, list[tuple[str, str]], bytes]:
        method, path = headers[":method"], headers[":path"]
        self.by_http2.append((method, path))
        plain = {name: value for name, value in headers.items() if not name.startswith(":")}
        server = http.client.HTTPConnection("127.0.0.1", self._to)
        try:
            server.request(method, path, bytes(body), plain | {"Host": headers[":authority"]})
            reply = server.getresponse()
            said = [(name.lower(), value) for name, value in reply.getheaders() if name.lower() != "connection"]
            return reply.status, said, reply.read()
        finally:
            server.close()


class Trouble(NamedTuple):
    """What goes wrong with a connection.

    Attributes:
        kind: "reset" (RST), "truncate" (FIN), "stall" (nothing passes any more, until the client leaves), or "delay" (a
            pause).
        way: "up" (to the server) or "down", of which so many bytes are passed on before.
    """

    kind: str
    way: str
    after_bytes: int


DELAY_S = 0.05
_FAR_BYTES = {"up": 400_000, "down": 4_000}
"""Trouble comes before so many bytes, and rather early: in a handshake, a head, a reply."""


class RoughRelay(Relay):
    """Passes bytes on to a server of this machine, as `Relay` does; a share of its connections gets into trouble.

    Which, of what kind and when comes from the seed and the number of the connection: the same in every run, as far as
    connections are opened in the same order. Bytes are counted as they are after TLS where it ends here.

    Args:
        port: of the server.
        kinds: of trouble.
        share: of the connections, 0-1.
        tls: as of `Relay`.

    Attributes:
        sent_bytes: by clients, and passed on.
        returned_bytes: to clients.
        troubles: what has happened.
    """

    def __init__(
        self, port: int, seed: int, kinds: Sequence[str], share: float = 0.3, tls: ssl.SSLContext | None = None
    ) -> None:
        self._seed, self._kinds, self._share = seed, tuple(kinds), share
        self._is_over = threading.Event()
        self.sent_bytes = self.returned_bytes = 0
        self.troubles: list[Trouble] = []
        super().__init__(port, tls)

    def trouble(self, number: int) -> Trouble | None:
        """Of the connection with this number."""
        rng = random.Random(f"{self._seed} {number}")
        if rng.random() >= self._share:
            return None
        way = rng.choice(["up", "down"])
        return Trouble(rng.choice(self._kinds), way, int(rng.paretovariate(0.3)) % _FAR_BYTES[way])

    def serve_plainly(self, number: int, client: socket.socket) -> None:
        with self.connect(self._to) as server:
            pending, passed = self.trouble(number), {"up": 0, "down": 0}
            while True:
                for ready in _readable(client, server):
                    way, to = ("up", server) if ready is client else ("down", client)
                    is_due = pending is not None and pending.way == way
                    limit = pending.after_bytes - passed[way] if pending is not None and is_due else RECEIVE_BYTES
                    data = ready.recv(min(RECEIVE_BYTES, limit)) if limit > 0 else b""
                    if not data and limit > 0:
                        return
                    to.sendall(data)
                    passed[way] += len(data)
                    self._count(way, len(data))
                    if pending is not None and is_due and passed[way] >= pending.after_bytes:
                        self.troubles.append(pending)
                        if not self._goes_on(pending, client):
                            return
                        pending = None

    def _count(self, way: str, size: int) -> None:
        with self._lock:
            self.sent_bytes += size if way == "up" else 0
            self.returned_bytes += size if way == "down" else 0

    def _goes_on(self, trouble: Trouble, client: socket.socket) -> bool:
        """Makes it happen; does the connection live on?"""
        if trouble.kind == "delay":
            return not self._is_over.wait(DELAY_S)
        if trouble.kind == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if trouble.kind == "truncate":
            client.shutdown(socket.SHUT_WR)  # Why not closed at once: what was not read would make a reset of it.
        watch = select.poll()
        watch.register(client, select.POLLRDHUP)
        watch.poll()  # until the client leaves, or this door closes
        return False

    def close(self) -> None:
        self._is_over.set()
        super().close()


def _readable(client: socket.socket, server: socket.socket) -> list[socket.socket]:
    """Those of both that have something to read, or have ended."""
    held = isinstance(client, ssl.SSLSocket) and client.pending()
    return [client] if held else select.select([client, server], [], [])[0]


def pump(client: socket.socket, server: socket.socket, heard: bytearray) -> None:
    """Passes bytes both ways until one side ends."""
    while True:
        for ready in _readable(client, server):
            data = ready.recv(RECEIVE_BYTES)
            if not data:
                return
            if ready is client:
                heard += data
            (server if ready is client else client).sendall(data)


def _requests(connection: int, heard: bytes) -> list[Passed]:
    found = []
    while heard:
        head, _, heard = heard.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        found.append(Passed(connection, method, target, headers))
        heard = heard[int(headers.get("content-length", "0")) :]
    return found
