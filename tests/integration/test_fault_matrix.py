"""Every row of the policy, driven by a service that fails and by a network that does.

0 wrong objects, 0 lost uploads; what was sent more than once is printed. Other places have the wrong clock that is set
right (test_rough_network), and tokens that expire (test_credentials).
"""

from __future__ import annotations

import itertools
import socket
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme

from harness import acknowledged, is_equal, make_file
from obs_engine import ObsClient, ObsEngineError, ServiceError, TransportError
from obs_engine.testing import LocalObs
from obs_engine.wire.policy import FAILURES, REPEATING, REPLIES, Action, FailureRow, ReplyRow, reply_row
from proxy import Door, Relay, RoughRelay, Trouble

pytestmark = pytest.mark.timeout(110)

BUCKET = "matrix"
PART = 102_400
PARTS, TASKS = 12, 3
MET = 11
"""The part that meets a reply: a late one, so that what was stored before is something to lose."""
KINDS = "reset", "stall", "truncate", "delay"
SEEDS = {"reset": (5, 14), "stall": (8,), "truncate": (14,), "delay": (14,)}
"""Of the suite: those whose first connections fail, in all sorts of places. Why one of stalls: libcurl takes its speed
over five seconds, so that a stall costs those and the time-out."""
SOAK_SEEDS, SOAK_MIXED_SEEDS = range(10), range(60)


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
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    is_tls, callback = request.param[0] == "tls", request.param[1]
    server: LocalObs = request.getfixturevalue("secured" if is_tls else "plain")
    folder = request.getfixturevalue("authority")[1] if is_tls else None
    if folder:
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))  # for those who look at the object
    yield World(server, "https" if is_tls else "http", str(folder / "ca.pem") if folder else "", callback)
    server.set_faults([])
    server.clear_requests()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_file(tmp_path / "source", PARTS * PART + 5, 1)


def send(world: World, client: ObsClient, key: str, source: Path) -> Any:
    return client.uploadFile(BUCKET, key, str(source), PART, TASKS, True, progressCallback=world.callback)


def is_right(world: World, key: str, source: Path) -> bool:
    return is_equal(world.server, BUCKET, key, source)


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
    faults = faults_of(row)
    for number, fault in enumerate(faults if world.scheme == "http" else faults[:1]):  # TLS knows no codes
        key = f"{row.label} {number}"
        back = {"headers": {"Location": f"{here}/{BUCKET}/"}}  # where a redirect leads
        cause = {"delay_s": 0.001} if row.action is Action.TAKE else fault | back  # a success comes of itself
        world.server.set_faults([{"operation": "UploadPart", "part_number": MET, "times": 1, **cause}])
        with world.client() as client:
            if row.action in REPEATING or row.action in (Action.TAKE, Action.FOLLOW):
                result = send(world, client, key, source)
                assert result.report.part_attempts <= PARTS + 3, fault
            else:
                with pytest.raises(ServiceError) as raised:
                    send(world, client, key, source)
                assert raised.value.status == fault["status"]
                assert raised.value.part_number == MET
                world.server.set_faults([])
                result = send(world, client, key, source)
                assert result.report.parts_resumed >= MET - TASKS, "what was stored is not sent again"
        assert result.status == 200
        assert is_right(world, key, source), fault


class ManyKeys:
    """A provider that has other keys each time it is asked: a server without tokens takes any."""

    def __init__(self, server: LocalObs) -> None:
        self._server, self._numbers = server, itertools.count(1)

    def get_credentials(self) -> dict[str, str]:
        server = self._server
        return {
            "accessKey": server.access_key, "secretKey": server.secret_key,
            "securityToken": f"token-{next(self._numbers)}",
        }  # fmt: skip


@pytest.mark.parametrize("row", [row for row in ROWS if row.values[0].action in (Action.AWAIT_KEYS, Action.RENEW_KEYS)])
def test_replies_that_other_keys_help(world: World, source: Path, row: ReplyRow) -> None:
    """Where a provider has others: one call, and none of its tries was lost for it."""
    faults = [{"operation": "UploadPart", "part_number": number, "times": 1, **fault}
              for number, fault in enumerate(faults_of(row), 3)]  # fmt: skip
    world.server.set_faults(faults)
    with ObsClient(
        server=world.server.url, ssl_verify=world.authority or True, max_retry_count=0,
        security_providers=[ManyKeys(world.server)], security_provider_policy="ManyKeys",
    ) as client:  # fmt: skip
        result = send(world, client, row.label, source)
    assert result.status == 200
    assert result.report.part_attempts == PARTS + 1 + len(faults)
    assert is_right(world, row.label, source)


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
    return refused(world, source, max_retry_count=0)


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


def through_a_rough_network(
    world: World, source: Path, kinds: Sequence[str], seed: int, tls: ssl.SSLContext | None = None
) -> None:
    """As often as it takes, 5 calls at most; the object is the file, and what was sent twice has a reason."""
    key, calls = f"{'-'.join(kinds)}-{seed}", 0
    scheme = "https" if tls else world.scheme
    with (
        RoughRelay(world.server.port, seed, kinds, tls=tls) as relay,
        world.client(relay.port, server=f"{scheme}://127.0.0.1:{relay.port}") as client,
    ):
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
        print(f"seed {seed}, {scheme}, {', '.join(kinds)}: {len(relay.troubles)} troubles, {calls} calls, "
              f"{relay.connections} connections, {extra} bytes beyond the file's {size}, {relay.returned_bytes} back")
        assert result.status == 200
        again = [trouble for trouble in relay.troubles if trouble.kind != "delay"]
        sent_again = len(again) + result.report.parts_doubled
        assert extra <= sent_again * PART + 2_000 * (3 * PARTS + relay.connections + len(again)) + 0.02 * size
    assert is_right(world, key, source)


@pytest.mark.parametrize(("kind", "seed"), [(kind, seed) for kind in KINDS for seed in SEEDS[kind]])
def test_a_rough_network(world: World, source: Path, kind: str, seed: int) -> None:
    """A share of the connections get into trouble, at any byte of their handshake, requests or replies."""
    through_a_rough_network(world, source, (kind,), seed)


@pytest.mark.parametrize("kind", ["reset", "truncate"])
def test_a_rough_network_inside_of_tls(
    plain: LocalObs, authority: tuple[trustme.CA, Path], source: Path, kind: str
) -> None:
    """TLS ends at who fails: at any byte of what HTTP says."""
    made, folder = authority
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.issue_cert("127.0.0.1").configure_cert(context)
    world = World(plain, "http", str(folder / "ca.pem"), silent)
    for seed in SEEDS[kind]:
        through_a_rough_network(world, source, (kind,), seed, context)


class Breaking(RoughRelay):
    """Each connection gets into trouble, until all is well."""

    is_well = False

    def trouble(self, number: int) -> Trouble | None:
        # Why early on later ones: what fails on a kept connection, libcurl sends once more on a new one, unasked.
        return None if self.is_well else Trouble(self._kinds[0], "up", 250_000 if number <= 3 else 50_000)


@pytest.mark.parametrize("kind", ["reset", "truncate", pytest.param("stall", marks=pytest.mark.soak)])
def test_an_upload_that_a_network_ended_loses_nothing(world: World, source: Path, kind: str) -> None:
    """The call fails, and says that it may be repeated; the next one sends what the service does not have, no more."""
    key = f"ended-{kind}"
    with Breaking(world.server.port, 0, [kind]) as relay, world.client(relay.port, max_retry_count=0) as client:
        with pytest.raises(TransportError) as raised:
            send(world, client, key, source)
        assert raised.value.is_retryable
        assert raised.value.checkpoint_file
        relay.is_well = True
        stored = acknowledged(world.server, key)
        assert stored, "the trouble came too early to show anything"
        world.server.clear_requests()
        result = send(world, client, key, source)
        assert result.status == 200
        assert result.report.parts_resumed >= len(stored)  # the service may still have been busy with one
        assert not stored & acknowledged(world.server, key)
        assert world.server.requests("Initiate") == []
    assert is_right(world, key, source)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kinds", "seeds"),
    [*(((kind,), SOAK_SEEDS) for kind in KINDS), (KINDS, SOAK_MIXED_SEEDS)],
    ids=[*KINDS, "mixed"],
)
def test_a_rough_network_of_many_seeds(world: World, source: Path, kinds: tuple[str, ...], seeds: range) -> None:
    """Each kind alone, and all of them mixed."""
    for seed in seeds:
        through_a_rough_network(world, source, kinds, seed)
