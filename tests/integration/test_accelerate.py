"""`accelerate`: the engine behind the `uploadFile` of a stock client, and the rest of the client as it was."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme

from harness import is_equal, make_file, object_of
from obs_engine import InvalidArgumentError, ServiceError, TransportError, accelerate
from obs_engine.testing import LocalObs

obs = pytest.importorskip("obs", reason="the official SDK (esdk-obs-python) is what is accelerated")

pytestmark = pytest.mark.timeout(60)

PART = 102_400
MODES: dict[str, tuple[bool, dict[str, Any], str]] = {
    "path": (False, {}, "v2"),
    "path v4": (False, {"signature": "v4", "region": "cn-north-4"}, "v4"),
    "virtual, negotiated": (True, {}, "obs"),
    "virtual, stated": (True, {"is_signature_negotiation": False}, "obs"),
    "virtual v2": (True, {"signature": "v2", "is_signature_negotiation": False}, "v2"),
    "virtual v4": (True, {"signature": "v4", "is_signature_negotiation": False}, "v4"),
}


@pytest.fixture(autouse=True)
def _names_under_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any `*.localhost` is this machine, whatever the resolver thinks of it."""
    resolve = socket.getaddrinfo

    def resolve_here(host: Any, *args: Any, **kwargs: Any) -> Any:
        return resolve("127.0.0.1" if str(host).endswith("localhost") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_here)


@pytest.fixture
def clients() -> Iterator[list[Any]]:
    """Stock clients, closed at the end."""
    made: list[Any] = []
    yield made
    for client in made:
        client.close()


def stock(service: LocalObs, clients: list[Any], **more: Any) -> Any:
    """A stock client of the service."""
    arguments = {"access_key_id": service.access_key, "secret_access_key": service.secret_key, "server": service.url,
                 "timeout": 10, "max_retry_count": 0} | more  # fmt: skip
    clients.append(obs.ObsClient(**arguments))
    return clients[-1]


def engines() -> list[psutil.Process]:
    """The coordinators of this process."""
    found = []
    for process in psutil.Process().children():
        try:
            if "coordinator" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize("mode", list(MODES))
def test_every_mode_works(server: LocalObs, key: str, source: Path, clients: list[Any], mode: str) -> None:
    """The engine speaks as the stock client would; only the stock client's HEAD bucket is gone."""
    is_virtual, options, signature = MODES[mode]
    client = stock(server, clients, server=server.virtual_url if is_virtual else server.url, **options)
    assert accelerate(client) is client
    result = client.uploadFile("bench", key, str(source), PART, 4)
    assert result.status == 200
    assert result.report.parts_sent == 20
    log = server.requests()
    assert {entry["operation"] for entry in log} <= {"ApiVersion", "Initiate", "UploadPart", "Complete"}
    assert {entry["signature"] for entry in log if entry["operation"] != "ApiVersion"} == {signature}
    assert is_equal(server, "bench", key, source)


def test_an_anonymous_client_stays_anonymous(server: LocalObs, key: str, source: Path, clients: list[Any]) -> None:
    """Nothing is signed, and the service refuses it."""
    client = accelerate(stock(server, clients, access_key_id="", secret_access_key=""))
    with pytest.raises(ServiceError) as caught:
        client.uploadFile("bench", key, str(source), PART)
    assert caught.value.status == 403
    assert {entry["signature"] for entry in server.requests("Initiate")} == {None}


def test_a_security_token_is_sent(key: str, source: Path, clients: list[Any]) -> None:
    """To a service that wants one with every request."""
    with LocalObs(buckets=["bench"], security_token="TOKEN/1+2=") as server:
        client = accelerate(stock(server, clients, security_token="TOKEN/1+2="))
        assert client.uploadFile("bench", key, str(source), PART, 4).status == 200


def test_tls_is_verified_unless_told_otherwise(key: str, source: Path, clients: list[Any], tmp_path: Path) -> None:
    """The stock client's default is no choice; False passed here is, and so is a file of authorities."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, private, trusted = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    chain.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(private))
    authority.cert_pem.write_to_path(str(trusted))
    with LocalObs(buckets=["bench"], tls=(str(chain), str(private))) as server:
        with pytest.raises(TransportError):
            accelerate(stock(server, clients)).uploadFile("bench", key, str(source), PART)
        assert not server.requests()
        for trust in (False, str(trusted)):
            client = accelerate(stock(server, clients), ssl_verify=trust)
            assert client.uploadFile("bench", key, str(source), PART).status == 200
        client = accelerate(stock(server, clients, ssl_verify=str(trusted)))
        assert client.uploadFile("bench", key, str(source), PART).status == 200


def test_keys_follow_refresh(server: LocalObs, key: str, source: Path, clients: list[Any]) -> None:
    """What the stock client is told, the engine knows, on the next call."""
    client = accelerate(stock(server, clients, secret_access_key="wrong"))
    with pytest.raises(ServiceError) as caught:
        client.uploadFile("bench", key, str(source), PART)
    assert caught.value.errorCode == "SignatureDoesNotMatch"
    client.refresh(server.access_key, server.secret_key)
    assert client.uploadFile("bench", key, str(source), PART).status == 200


def test_keys_follow_the_environment(
    server: LocalObs, key: str, source: Path, clients: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the stock client's policy, at each call."""
    monkeypatch.setenv("OBS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("OBS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.delenv("OBS_SECURITY_TOKEN", raising=False)
    client = accelerate(
        stock(server, clients, access_key_id="", secret_access_key="", security_provider_policy="ENV")
    )
    with pytest.raises(ServiceError):
        client.uploadFile("bench", key, str(source), PART)
    monkeypatch.setenv("OBS_SECRET_ACCESS_KEY", server.secret_key)
    assert client.uploadFile("bench", key, str(source), PART).status == 200


def test_other_methods_are_untouched(server: LocalObs, key: str, source: Path, clients: list[Any]) -> None:
    """They are the stock client's own, before and after an upload by the engine."""
    client = stock(server, clients)
    others = [name for name in dir(client) if not name.startswith("_") and name not in ("uploadFile", "close")]
    before = {name: getattr(client, name) for name in others}
    accelerate(client)
    assert {name: getattr(client, name) for name in others} == before
    assert client.putContent("bench", f"{key}-text", "text").status == 200
    assert client.uploadFile("bench", key, str(source), PART).status == 200
    assert client.headBucket("bench").status == 200
    assert client.getObject("bench", f"{key}-text", loadStreamInMemory=True).body.buffer == b"text"
    assert client.getObjectMetadata("bench", key).body.contentLength == source.stat().st_size
    assert client.deleteObject("bench", key).status == 204


def test_close_ends_the_engine(server: LocalObs, key: str, source: Path) -> None:
    """And may be called twice."""
    client = accelerate(stock(server, []))
    before = len(engines())
    client.uploadFile("bench", key, str(source), PART)
    assert len(engines()) == before + 1
    client.close()
    assert len(engines()) == before
    client.close()


def test_applied_twice_is_harmless(server: LocalObs, key: str, source: Path, clients: list[Any]) -> None:
    """One engine is left, and `close` ends it."""
    before = len(engines())
    client = accelerate(stock(server, clients))
    client.uploadFile("bench", key, str(source), PART)
    assert accelerate(client) is client
    client.uploadFile("bench", key, str(source), PART)
    assert len(engines()) == before + 1
    client.close()
    assert len(engines()) == before


@pytest.mark.parametrize("stranger", [None, "client", object(), {"server": "http://127.0.0.1"}])
def test_what_is_no_stock_client_is_refused(stranger: Any) -> None:
    """With what was expected."""
    with pytest.raises(InvalidArgumentError, match=r"expected an obs\.ObsClient"):
        accelerate(stranger)


def test_a_refused_client_is_unchanged(server: LocalObs, clients: list[Any]) -> None:
    """A wrong argument of ours leaves the stock client its own `uploadFile`."""
    client = stock(server, clients)
    with pytest.raises(InvalidArgumentError):
        accelerate(client, ssl_verify="/no/such/file.pem")
    assert "uploadFile" not in vars(client)
    assert "close" not in vars(client)


def test_a_refused_second_time_leaves_the_first(
    server: LocalObs, key: str, source: Path, clients: list[Any]
) -> None:
    """An engine that is there goes on working when another one is refused."""
    client = accelerate(stock(server, clients))
    with pytest.raises(InvalidArgumentError):
        accelerate(client, ssl_verify="/no/such/file.pem")
    assert client.uploadFile("bench", key, str(source), PART).status == 200


def test_two_clients_at_once(server: LocalObs, key: str, source: Path, clients: list[Any]) -> None:
    """Each has its own engine; closing one leaves the other."""
    first, second = accelerate(stock(server, clients)), accelerate(stock(server, clients))
    assert first.uploadFile("bench", f"{key}-1", str(source), PART).status == 200
    assert second.uploadFile("bench", f"{key}-2", str(source), PART).status == 200
    first.close()
    assert second.uploadFile("bench", f"{key}-3", str(source), PART).status == 200


def test_a_record_of_the_stock_client_is_continued(
    server: LocalObs, key: str, tmp_path: Path, clients: list[Any]
) -> None:
    """The same client, accelerated, sends only what is missing."""
    source = make_file(tmp_path / "half", 10 * PART, seed=3)
    client = stock(server, clients)
    server.set_faults([{"operation": "UploadPart", "nth": list(range(5, 99)), "status": 503}])
    with pytest.raises(Exception, match="some parts are failed"):
        client.uploadFile("bench", key, str(source), PART, 1, True)
    server.set_faults([])
    server.clear_requests()
    result = accelerate(client).uploadFile("bench", key, str(source), PART, 1, True)
    assert result.status == 200
    assert (result.report.parts_resumed, result.report.parts_sent) == (4, 6)
    assert not server.requests("Initiate")
    assert object_of(server, "bench", key) == source.read_bytes()
