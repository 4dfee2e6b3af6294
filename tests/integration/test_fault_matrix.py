"""Every row of the policy, driven by a service that fails and by a network that does.

0 wrong objects, 0 lost uploads; what was sent more than once is printed.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from harness import make_file, object_of
from obs_engine import ObsClient, ObsEngineError, ServiceError, TransportError
from obs_engine.testing import LocalObs
from obs_engine.wire.policy import FAILURES, REPEATING, REPLIES, Action, FailureRow, ReplyRow, reply_row
from proxy import Door, Relay, RoughRelay, Trouble

pytestmark = pytest.mark.timeout(110)

BUCKET = "matrix"
PART = 102_400
PARTS = 12
SEEDS = 60
"""Of the soak; the suite runs one of each kind."""
KINDS = "reset", "stall", "truncate", "delay"


def silent(*_: Any) -> None:
    """A callback."""


WAYS = [
    pytest.param(("plain", None), id="plain"),
    pytest.param(("tls", silent), id="tls-progress"),
    pytest.param(("plain", silent), id="plain-progress", marks=pytest.mark.soak),
    pytest.param(("tls", None), id="tls", marks=pytest.mark.soak),
]
"""With and without TLS, with and without a progress callback: the suite takes two of the four, the soak all."""


class World:
    """A local OBS, plain or behind TLS, how its clients are made, and whether they look at progress."""

    def __init__(self, server: LocalObs, scheme: str, authority: str, callback: Any) -> None:
        self.server, self.scheme, self.authority, self.callback = server, scheme, authority, callback

    def client(self, port: int | None = None, **more: Any) -> ObsClient:
        """A client that is told of nothing but a port, and does not wait long."""
        settings: dict[str, Any] = {
            "server": f"{self.scheme}://127.0.0.1:{port or self.server.port}", "timeout": 1, "max_retry_count": 12,
            "ssl_verify": self.authority or True,
        }  # fmt: skip
        return ObsClient(self.server.access_key, self.server.secret_key, **settings | more)


@pytest.fixture(scope="module")
def plain() -> Iterator[LocalObs]:
    with LocalObs(buckets=[BUCKET]) as running:
        yield running


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    made, folder = trustme.CA(), tmp_path_factory.mktemp("tls")
    made.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued = made.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(str(folder / "cert.pem"), append=number > 0)
    return made, folder


@pytest.fixture(scope="module")
def secured(authority: tuple[trustme.CA, Path]) -> Iterator[LocalObs]:
    _, folder = authority
    with LocalObs(buckets=[BUCKET], tls=(str(folder / "cert.pem"), str(folder / "key.pem"))) as running:
        yield running


@pytest.fixture(params=WAYS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    is_tls, callback = request.param[0] == "tls", request.param[1]
    server: LocalObs = request.getfixturevalue("secured" if is_tls else "plain")
    folder = request.getfixturevalue("authority")[1] if is_tls else None
    yield World(server, "https" if is_tls else "http", str(folder / "ca.pem") if folder else "", callback)
    server.set_faults([])
    server.clear_requests()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_file(tmp_path / "source", PARTS * PART + 5, 1)


def send(world: World, client: ObsClient, key: str, source: Path) -> Any:
    return client.uploadFile(BUCKET, key, str(source), PART, 3, True, progressCallback=world.callback)


def is_right(world: World, key: str, source: Path) -> bool:
    if world.scheme == "http":
        found = object_of(world.server, BUCKET, key)
        return hashlib.sha256(found).digest() == hashlib.sha256(source.read_bytes()).digest()
    with world.client() as client:
        return client.verifyFile(BUCKET, key, str(source), "content").is_equal


# --- replies ----------------------------------------------------------------------------------------------------


STATUSES = 200, 301, 302, 307, 308, 401, 403, 404, 405, 408, 409, 411, 416, 429, 500, 501, 502, 503, 504


def faults_of(row: ReplyRow) -> list[dict[str, Any]]:
    """Faults that each meet a row of the table, by each of its codes; or by each of its statuses, without a word."""
    if row.codes:
        return [{"status": 503 if code == "SlowDown" else 400, "code": code} for code in sorted(row.codes)]
    return [{"status": status, "bare": True} for status in STATUSES if reply_row(status, None) is row]


ROWS = [pytest.param(row, id=f"{number}-{row.label.replace(' ', '-')}") for number, row in enumerate(REPLIES)]


def test_every_row_of_replies_has_faults() -> None:
    """What is parametrized below leaves no row out."""
    assert all(faults_of(row) for row in REPLIES)
    assert {row.action for row in REPLIES} == set(Action)


@pytest.mark.parametrize("row", ROWS)
def test_replies(world: World, source: Path, row: ReplyRow) -> None:
    """Each is met once by a part: what passes passes, and what does not is told, and lost is nothing."""
    here = f"{world.scheme}://127.0.0.1:{world.server.port}"
    for number, fault in enumerate(faults_of(row)):
        key = f"{row.label} {number}"
        back = {"headers": {"Location": f"{here}/{BUCKET}/"}}  # where a redirect leads
        cause = {"delay_s": 0.001} if row.action is Action.TAKE else fault | back  # a success comes of itself
        world.server.set_faults([{"operation": "UploadPart", "part_number": 5, "times": 1, **cause}])
        with world.client() as client:
            if row.action in REPEATING or row.action in (Action.TAKE, Action.FOLLOW):
                result = send(world, client, key, source)
                assert result.report.part_attempts <= PARTS + 3, fault
            else:
                with pytest.raises(ServiceError) as raised:
                    send(world, client, key, source)
                assert raised.value.status == fault["status"]
                assert raised.value.part_number == 5
                world.server.set_faults([])
                result = send(world, client, key, source)
                assert result.report.parts_resumed >= 2, "what was stored is not sent again"
        assert result.status == 200
        assert is_right(world, key, source), fault


# --- transfers without a reply ------------------------------------------------------------------------------------


class Flood(Door):
    """Answers everything with a reply that never ends."""

    def serve(self, number: int, client: socket.socket) -> None:
        client.recv(65_536)
        client.sendall(b"HTTP/1.1 500 Oh\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            client.sendall(bytes(1 << 20))


def refused(world: World, source: Path, **client: Any) -> TransportError:
    with world.client(**{"max_retry_count": 1} | client) as made, pytest.raises(TransportError) as raised:
        send(world, made, "refused", source)
    return raised.value


def fails_by_dns(world: World, source: Path) -> TransportError:
    return refused(world, source, server=f"{world.scheme}://no-such-host.invalid")


def fails_to_connect(world: World, source: Path) -> TransportError:
    return refused(world, source, server=f"{world.scheme}://127.0.0.1:1")


def fails_by_stall(world: World, source: Path) -> TransportError:
    world.server.set_faults([{"operation": "Initiate", "stall": True}])
    return refused(world, source)


def fails_by_reset(world: World, source: Path) -> TransportError:
    world.server.set_faults([{"operation": "Initiate", "reset": "before_reply"}])
    return refused(world, source)


def fails_in_the_handshake(world: World, source: Path) -> TransportError:
    with RoughRelay(world.server.port, 1, ["truncate"], share=1) as relay:
        relay.trouble = lambda _number: Trouble("truncate", "up", 30)  # type: ignore[method-assign]
        return refused(world, source, server=f"https://127.0.0.1:{relay.port}")


def fails_by_trust(world: World, source: Path) -> TransportError:
    issued = trustme.CA().issue_cert("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    with Relay(world.server.port, context) as relay:
        error = refused(world, source, server=f"https://127.0.0.1:{relay.port}", max_retry_count=5)
        assert relay.connections == 1, "never blindly again"
    return error


def fails_by_a_flood(world: World, source: Path) -> TransportError:
    with Flood() as flood:
        return refused(world, source, server=f"http://127.0.0.1:{flood.port}")


FAILING = {
    "dns": fails_by_dns, "connect": fails_to_connect, "stalled": fails_by_stall, "cut off": fails_by_reset,
    "TLS": fails_in_the_handshake, "trust": fails_by_trust, "other": fails_by_a_flood,
}  # fmt: skip
NOT_DRIVEN = {"request": "what libcurl would not send is refused by the arguments' checks before"}


def test_every_row_of_failures_is_driven() -> None:
    """But for the one that cannot be met from outside."""
    assert {row.kind for row in FAILURES} == set(FAILING) | set(NOT_DRIVEN)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.kind) for row in FAILURES if row.kind in FAILING])
def test_failures(world: World, source: Path, row: FailureRow) -> None:
    """Each has its kind, is retryable or not as the table says, and the next call finds all as it was."""
    error = FAILING[row.kind](world, source)
    assert error.kind == row.kind
    assert error.is_retryable == (row.action in REPEATING)
    world.server.set_faults([])
    with world.client() as client:
        assert send(world, client, "refused", source).status == 200
    assert is_right(world, "refused", source)


# --- a network that fails ---------------------------------------------------------------------------------------


def through_a_rough_network(world: World, source: Path, kinds: tuple[str, ...], seed: int) -> None:
    key, calls = f"{'-'.join(kinds)}-{seed}", 0
    with RoughRelay(world.server.port, seed, kinds) as relay, world.client(relay.port) as client:
        while True:
            calls += 1
            try:
                result = send(world, client, key, source)
                break
            except ObsEngineError as error:
                if calls == 5 or not error.is_retryable:
                    raise
        size = source.stat().st_size
        extra = relay.sent_bytes - size
        print(f"seed {seed}, {world.scheme}, {kinds}: {len(relay.troubles)} troubles, {relay.connections} connections, "
              f"{calls} calls, {extra} bytes beyond the file's {size}")  # fmt: skip
        assert result.status == 200
        again = [trouble for trouble in relay.troubles if trouble.kind != "delay"]
        sent_again = len(again) + result.report.parts_doubled
        assert extra <= sent_again * PART + 2_000 * (3 * PARTS + relay.connections + len(again)) + 0.02 * size
    assert is_right(world, key, source)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rough_network(world: World, source: Path, kind: str) -> None:
    """A share of the connections get into trouble, at any byte of their handshake, requests or replies."""
    through_a_rough_network(world, source, (kind,), 14)  # whose first three connections fail, in all sorts of places


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_rough_network_of_every_kind(world: World, source: Path) -> None:
    """Many seeds, all kinds mixed."""
    for seed in range(SEEDS):
        through_a_rough_network(world, source, KINDS, seed)
