"""The constructor's arguments, each shown at work by what arrives at a real server, a proxy or a TLS endpoint."""

from __future__ import annotations

import inspect
import logging
import os
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from harness import client_of, is_equal, make_file, open_uploads
from obs_engine import ClientVerify, EngineOptions, InvalidArgumentError, ObsClient, ServiceError, TransportError
from obs_engine.testing import LocalObs
from proxy import ConnectProxy, Http2Front, Passed, Relay

pytestmark = pytest.mark.timeout(60)

PART = 102_400
PARTS = 3
REQUESTS = PARTS + 2
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
MODERN = "ECDHE-ECDSA-AES256-GCM-SHA384"
OTHER = "ECDHE-ECDSA-CHACHA20-POLY1305"

SHOWN_BY = {
    "access_key_id": "test_keys_are_stripped_and_without_them_nothing_is_signed",
    "secret_access_key": "test_keys_are_stripped_and_without_them_nothing_is_signed",
    "is_secure": "test_a_server_is_found_however_it_is_written",
    "server": "test_a_server_is_found_however_it_is_written",
    "signature": "test_every_row_of_the_mode_table",
    "region": "test_region_and_token_are_signed",
    "path_style": "test_every_row_of_the_mode_table",
    "ssl_verify": "test_trust_in_certificates_is_the_callers_choice",
    "is_use_gmssl": "test_what_this_engine_has_not_is_refused",
    "port": "test_a_server_is_found_however_it_is_written",
    "max_retry_count": "test_retries_are_counted",
    "timeout": "test_a_stalled_service_is_given_up",
    "chunk_size": "test_tuning_of_the_sdk_is_accepted",
    "long_conn_mode": "test_tuning_of_the_sdk_is_accepted",
    "proxy_host": "test_everything_goes_through_the_proxy",
    "proxy_port": "test_everything_goes_through_the_proxy",
    "client_verify": "test_a_client_shows_its_certificate",
    "proxy_username": "test_everything_goes_through_the_proxy",
    "proxy_password": "test_a_wrong_proxy_password_is_a_clear_error",
    "security_token": "test_region_and_token_are_signed",
    "custom_ciphers": "test_ciphers_are_the_callers_choice",
    "use_http2": "test_http2_is_spoken_where_the_service_does",
    "is_signature_negotiation": "test_every_row_of_the_mode_table",
    "is_cname": "test_every_row_of_the_mode_table",
    "max_redirect_count": "test_an_endless_redirect_ends",
    "security_providers": "test_keys_come_from_where_the_policy_says",
    "security_provider_policy": "test_keys_come_from_where_the_policy_says",
    "client_mode": "test_every_row_of_the_mode_table",
    "use_http_conns": "test_tuning_of_the_sdk_is_accepted",
    "pool_size": "test_tuning_of_the_sdk_is_accepted",
    "trust_env": "test_proxies_of_the_environment_count_where_trusted",
}
"""Each argument, and the test here that shows what it does."""


@pytest.fixture(scope="module")
def server_for_all() -> Iterator[LocalObs]:
    with LocalObs(buckets=["bench", "other-bench"], cnames={"files.localhost": "bench"}) as server:
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_file(tmp_path / "source.bin", PARTS * PART - 777, seed=4)


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, str]:
    """An authority that nobody knows, and the file with its certificate."""
    made = trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    made.cert_pem.write_to_path(str(path))
    return made, str(path)


@pytest.fixture(scope="module")
def tls(authority: tuple[trustme.CA, str]) -> ssl.SSLContext:
    """The server's side, for 127.0.0.1 and names under localhost."""
    return tls_context(authority[0])


def tls_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("127.0.0.1", "*.localhost"))).configure_cert(context)
    return context


def upload(client: ObsClient, key: str, source: Path, **more: Any) -> Any:
    """The file in three parts, one after the other."""
    return client.uploadFile("bench", key, source, **({"partSize": PART} | more))


def upload_by(server: LocalObs, key: str, source: Path, /, **arguments: Any) -> Any:
    """The same by a client of its own."""
    with client_of(server, **arguments) as client:
        return upload(client, key, source)


def scheme_of(request: Passed) -> str:
    """`OBS`, `AWS`, `AWS4-HMAC-SHA256`, or nothing."""
    return request.headers.get("authorization", "").partition(" ")[0]


# --- the list ---------------------------------------------------------------------------------------------------


def test_every_argument_of_the_sdk_is_shown_here() -> None:
    """The official SDK's arguments, in its order; and each has its test."""
    obs = pytest.importorskip("obs", reason="the official SDK says which arguments there are")
    names = list(inspect.signature(obs.client._BasicClient.__init__).parameters)[1:]
    assert list(SHOWN_BY) == names
    assert len(names) == 31
    for test in set(SHOWN_BY.values()):
        assert callable(getattr(sys.modules[__name__], test))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"is_use_gmssl": True}, "is_use_gmssl"),
        ({"client_verify": ClientVerify("c.pem", "k.pem", clientEncCert="e.pem")}, "client_verify"),
        ({"client_verify": ClientVerify("c.pem", "k.pem", clientEncKey="e.pem")}, "client_verify"),
    ],
)
def test_what_this_engine_has_not_is_refused(arguments: dict[str, Any], words: str) -> None:
    """GM/TLS needs a changed OpenSSL; the words name the argument."""
    with pytest.raises(InvalidArgumentError, match=words):
        ObsClient("ak", "sk", server="https://obs.example.com", **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"chunk_size": 1}, {"chunk_size": 65_536}, {"chunk_size": 1 << 30}, {"long_conn_mode": True},
        {"use_http_conns": True, "pool_size": 1}, {"pool_size": 100}, {"use_http2": True}, {"trust_env": True},
        {"chunk_size": 1 << 20, "engine": EngineOptions(upload_buffer_bytes=16 << 10)},
    ],
    ids=str,
)  # fmt: skip
def test_tuning_of_the_sdk_is_accepted(server: LocalObs, key: str, source: Path, arguments: dict[str, Any]) -> None:
    """It changes no result; connections are kept in any case, one for each part in flight."""
    assert upload_by(server, key, source, **arguments).status == 200
    assert is_equal(server, "bench", key, source)
    assert len({r["connection"] for r in server.requests() if r["key"] == key and r["operation"] != "GetObject"}) == 1


# --- keys -------------------------------------------------------------------------------------------------------


def test_keys_are_stripped_and_without_them_nothing_is_signed(server: LocalObs, key: str, source: Path) -> None:
    """Spaces around a key are a slip of the hand; half a pair of keys is none."""
    spaced = {"access_key_id": f" {server.access_key}\n", "secret_access_key": f"\t{server.secret_key} "}
    assert upload_by(server, key, source, **spaced).status == 200
    for missing in ({"access_key_id": ""}, {"secret_access_key": "  "}):
        with Relay(server.port) as relay:
            with pytest.raises(ServiceError, match="AccessDenied"):
                upload_by(server, key, source, server=f"http://127.0.0.1:{relay.port}", **missing)
            assert [scheme_of(r) for r in relay.passed()] == [""]


def test_region_and_token_are_signed(key: str, source: Path) -> None:
    """A service that insists on both takes no less."""
    token = {"security_token": "the/token+1=="}
    with LocalObs(buckets=["bench"], region="cn-north-4", **token) as strict:
        for signature in ("v2", "v4"):
            arguments = {"signature": signature, "region": "cn-north-4"} | token
            assert upload_by(strict, key, source, **arguments).status == 200
        with pytest.raises(ServiceError, match="initiateMultipartUpload failed"):
            upload_by(strict, key, source, signature="v4", region="eu-west-0", **token)
        with pytest.raises(ServiceError, match="initiateMultipartUpload failed"):
            upload_by(strict, key, source, signature="v2")


def test_refreshed_keys_are_used_from_then_on(server: LocalObs, key: str, source: Path) -> None:
    """`refresh` swaps the keys of the client, and of nothing else."""
    with client_of(server, secret_access_key="wrong") as client:
        with pytest.raises(ServiceError, match="SignatureDoesNotMatch"):
            upload(client, key, source)
        client.refresh(server.access_key, server.secret_key)
        assert upload(client, key, source).status == 200


class Keys:
    """A provider of one's own."""

    def __init__(self, server: LocalObs, method: str = "search") -> None:
        self._found = {"accessKey": server.access_key, "secretKey": server.secret_key, "securityToken": None}
        setattr(self, method, lambda: self._found)


@pytest.mark.parametrize("way", ["ENV", "search", "get_credentials"])
def test_keys_come_from_where_the_policy_says(
    server: LocalObs, key: str, source: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment, or what has `search` or `get_credentials`; without a policy neither is asked."""
    none = {"access_key_id": "", "secret_access_key": ""}
    arguments: dict[str, Any] = {"security_provider_policy": "ENV"}
    if way == "ENV":
        monkeypatch.setenv("OBS_ACCESS_KEY_ID", server.access_key)
        monkeypatch.setenv("OBS_SECRET_ACCESS_KEY", server.secret_key)
    else:
        arguments = {"security_provider_policy": "OBS_DEFAULT", "security_providers": [Keys(server, way)]}
    assert upload_by(server, key, source, **none, **arguments).status == 200
    del arguments["security_provider_policy"]
    with pytest.raises(ServiceError, match="AccessDenied"):
        upload_by(server, key, source, **none, **arguments)


# --- where the service is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "host"),
    [
        ({"server": "127.0.0.1", "is_secure": False, "port": "PORT"}, "127.0.0.1:PORT"),
        ({"server": "127.0.0.1:PORT", "is_secure": False}, "127.0.0.1:PORT"),
        ({"server": "127.0.0.1:PORT/", "is_secure": False, "port": 1}, "127.0.0.1:PORT"),
        ({"server": "http://127.0.0.1:PORT/"}, "127.0.0.1:PORT"),
        ({"server": " HTTP://127.0.0.1:PORT ", "is_secure": True}, "127.0.0.1:PORT"),
        ({"server": "http://localhost", "port": "PORT"}, "bench.localhost:PORT"),
        ({"server": "localhost:PORT//", "is_secure": False}, "bench.localhost:PORT"),
        ({"server": "http://[::1]:PORT"}, "[::1]:PORT"),
        ({"server": "[::1]:PORT/", "is_secure": False}, "[::1]:PORT"),
        ({"server": "[::1]", "is_secure": False, "port": "PORT"}, "[::1]:PORT"),
    ],
    ids=str,
)
def test_a_server_is_found_however_it_is_written(
    server: LocalObs, key: str, source: Path, arguments: dict[str, Any], host: str
) -> None:
    """A scheme beats `is_secure`, a port in `server` beats `port`, a slash at the end says nothing."""
    address = "::1" if "::1" in host else "127.0.0.1"
    if address == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with Relay(server.port, host=address) as relay:
        port = str(relay.port)
        given = {name: relay.port if value == "PORT" else value for name, value in arguments.items()}
        given["server"] = given["server"].replace("PORT", port)
        result = upload_by(server, key, source, **given)
        assert result.status == 200
        assert {r.headers["host"] for r in relay.passed()} == {host.replace("PORT", port)}
    path = key if host.startswith("bench.") else f"bench/{key}"
    assert result.body.objectUrl == f"http://{host.replace('PORT', port)}/{path}"


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


# --- modes ------------------------------------------------------------------------------------------------------

OBS, V2, V4 = ("OBS", "x-obs-"), ("AWS", "x-amz-"), ("AWS4-HMAC-SHA256", "x-amz-")
NAME, ADDRESS, DOMAIN = "localhost", "127.0.0.1", "files.localhost"
ANSWERS_OLD = {"operation": "ApiVersion", "status": 200}
OFF = {"is_signature_negotiation": False}
WORKFLOW = {"client_mode": "workflow"}

MODES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None, int, tuple[str, str], str]] = {
    # what it is: host, arguments, how the probe is answered, probes, signature, Host
    "a domain": (NAME, {}, None, 1, OBS, "bench.localhost"),
    "a domain of an old service": (NAME, {}, ANSWERS_OLD, 1, V2, "bench.localhost"),
    "a domain of API 2.0": (NAME, {}, ANSWERS_OLD | {"headers": {"x-obs-api": "2.0"}}, 1, V2, "bench.localhost"),
    "a domain that refuses the probe": (NAME, {}, ANSWERS_OLD | {"status": 403}, 1, V2, "bench.localhost"),
    "a domain, v2": (NAME, {"signature": "v2"}, None, 0, V2, "bench.localhost"),
    "a domain, v4": (NAME, {"signature": "v4"}, None, 0, V4, "bench.localhost"),
    "a domain, told obs": (NAME, {"signature": "obs"} | OFF, None, 0, OBS, "bench.localhost"),
    "a domain, told v2": (NAME, {"signature": "v2"} | OFF, None, 0, V2, "bench.localhost"),
    "a domain, told v4": (NAME, {"signature": "v4"} | OFF, None, 0, V4, "bench.localhost"),
    "a domain, by the engine's option": (
        NAME, {"engine": EngineOptions(negotiate=False)}, None, 0, OBS, "bench.localhost",
    ),
    "path style": (NAME, {"path_style": True}, None, 0, V2, "localhost"),
    "path style, v2": (NAME, {"path_style": True, "signature": "v2"}, None, 0, V2, "localhost"),
    "path style, v4": (NAME, {"path_style": True, "signature": "v4"}, None, 0, V4, "localhost"),
    "path style, told obs": (NAME, {"path_style": True} | OFF, None, 0, V2, "localhost"),
    "an address": (ADDRESS, {}, None, 0, V2, "127.0.0.1"),
    "an address, v4": (ADDRESS, {"signature": "v4"}, None, 0, V4, "127.0.0.1"),
    "an own domain": (DOMAIN, {"is_cname": True}, None, 0, V2, "files.localhost"),
    "an own domain, v4": (DOMAIN, {"is_cname": True, "signature": "v4"}, None, 0, V4, "files.localhost"),
    "workflow": (NAME, WORKFLOW, None, 0, OBS, "bench.localhost"),
    "workflow, v2": (NAME, {"signature": "v2"} | WORKFLOW, None, 0, V2, "bench.localhost"),
    "workflow, v4": (NAME, {"signature": "v4"} | WORKFLOW, None, 0, V4, "bench.localhost"),
    "workflow, path style": (NAME, {"path_style": True} | WORKFLOW, None, 0, OBS, "localhost"),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_every_row_of_the_mode_table(
    server: LocalObs, key: str, source: Path, mode: tuple[str, dict[str, Any], Any, int, tuple[str, str], str]
) -> None:
    """Probe, Host, path, kind of signature and prefix are the table's; the server verifies each signature."""
    name, arguments, answer, probes, (scheme, prefix), host = mode
    server.set_faults([answer] if answer else [])
    with Relay(server.port) as relay:
        with client_of(server, server=f"http://{name}:{relay.port}", **arguments) as client:
            result = upload(client, key, source, metadata={"colour": "blue"})
        passed = relay.passed()
        found = [r for r in passed if "apiversion" in r.target]
        others = [r for r in passed if "apiversion" not in r.target]
        assert result.status == 200
        assert [(r.method, r.target, scheme_of(r)) for r in found] == [("HEAD", "/?apiversion", "")] * probes
        assert passed[: len(found)] == found
        assert len(others) == REQUESTS
        assert {scheme_of(r) for r in others} == {scheme}
        assert {r.headers["host"] for r in passed} == {f"{host}:{relay.port}"}
        path = f"/bench/{key}" if host in (ADDRESS, NAME) else f"/{key}"
        assert {r.target.partition("?")[0] for r in others} == {path}
        assert others[0].headers[f"{prefix}meta-colour"] == "blue"
    server.set_faults([])
    assert is_equal(server, "bench", key, source)


# --- the probe --------------------------------------------------------------------------------------------------


def test_a_bucket_is_asked_once_by_a_client(server: LocalObs, key: str, source: Path) -> None:
    """A second upload asks nothing, another bucket and another client do; keys and own headers stay at home."""
    with Relay(server.port) as relay:
        for _ in range(2):
            with client_of(server, server=f"http://localhost:{relay.port}", security_token="tok-en") as client:
                for bucket in ("bench", "other-bench", "bench"):
                    client.uploadFile(bucket, key, source, PART, extensionHeaders={"x-own": "1"})
        probes = [r for r in relay.passed() if "apiversion" in r.target]
    asked = Counter(r.headers["host"].partition(".")[0] for r in probes)
    assert asked == {"bench": 2, "other-bench": 2}
    for probe in probes:
        assert not {"authorization", "x-obs-security-token", "x-amz-security-token", "x-own"} & set(probe.headers)


@pytest.mark.parametrize(("status", "probes"), [(404, 1), (500, 3), (503, 3)])
def test_a_refused_probe_is_returned(server: LocalObs, key: str, source: Path, status: int, probes: int) -> None:
    """As the SDK does: a missing bucket, or a service that is down after all retries, is a result and no exception."""
    server.set_faults([{"operation": "ApiVersion", "status": status}])
    with client_of(server, server=server.virtual_url, max_retry_count=2) as client:
        result = upload(client, key, source, enableCheckpoint=True)
        assert (result.status, result.body, result.errorCode) == (status, None, None)
        assert [r["operation"] for r in server.requests()] == ["ApiVersion"] * probes
        assert os.listdir(source.parent) == [source.name]  # no record of what never began
        server.set_faults([])
        assert upload(client, key, source, enableCheckpoint=True).status == 200  # a refusal is not remembered


def test_a_missing_bucket_is_returned(server: LocalObs, key: str, source: Path) -> None:
    """By the service's own answer to the probe."""
    with client_of(server, server=server.virtual_url) as client:
        result = client.uploadFile("no-such-bucket", key, source)
    assert (result.status, result.body) == (404, None)
    assert result.requestId


# --- redirects --------------------------------------------------------------------------------------------------

DIRECT = {"signature": "v4"}
"""Why v4: its signature covers the host, so that one which was made for another host is refused."""


def sends_to(url: str, status: int = 307, **which: Any) -> dict[str, Any]:
    """A fault rule: the service is elsewhere."""
    return {"status": status, "code": "TemporaryRedirect", "message": "Go there.", "headers": {"Location": url}} | which


@pytest.mark.parametrize("signature", ["obs", "v2", "v4"])
@pytest.mark.parametrize("name", [NAME, ADDRESS])
def test_a_redirect_is_followed_and_remembered(
    server: LocalObs, key: str, source: Path, name: str, signature: str
) -> None:
    """The first request meets it, signed anew for the other host; all that follow go there at once."""
    with Relay(server.port) as here, Relay(server.port) as there:
        place = f"bench.localhost:{there.port}/{key}" if name == NAME else f"127.0.0.1:{there.port}/bench/{key}"
        server.set_faults([sends_to(f"http://{place}?uploads", operation="Initiate", times=1)])
        arguments = {"signature": signature} | OFF
        assert upload_by(server, key, source, server=f"http://{name}:{here.port}", **arguments).status == 200
        assert [r.method for r in here.passed()] == ["POST"]
        assert [r.method for r in there.passed()] == ["POST", "PUT", "PUT", "PUT", "POST"]
        assert {r.headers["host"] for r in there.passed()} == {place.partition("/")[0]}
    assert is_equal(server, "bench", key, source)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("operation", ["UploadPart", "Complete"])
def test_any_request_may_be_redirected(
    server: LocalObs, key: str, source: Path, operation: str, status: int
) -> None:
    """With the same method, body and query, and the part's bytes from their start."""
    with Relay(server.port) as there:
        server.set_faults(
            [sends_to(f"http://127.0.0.1:{there.port}/bench/{key}", status, operation=operation, nth=[1])]
        )
        assert upload_by(server, key, source, **DIRECT).status == 200
        assert len(there.passed()) == (PARTS + 1 if operation == "UploadPart" else 1)
    assert is_equal(server, "bench", key, source)


def test_a_probe_may_be_redirected(server: LocalObs, key: str, source: Path) -> None:
    """It is answered there, and the upload goes on there."""
    with Relay(server.port) as there:
        server.set_faults([sends_to(f"http://bench.localhost:{there.port}/?apiversion", times=1)])
        assert upload_by(server, key, source, server=server.virtual_url).status == 200
        assert [r.method for r in there.passed()] == ["HEAD", "POST", "PUT", "PUT", "PUT", "POST"]


@pytest.mark.parametrize("most", [0, 1, 4])
def test_an_endless_redirect_ends(server: LocalObs, key: str, source: Path, most: int) -> None:
    """After `max_redirect_count` the redirect is the answer; it is not retried either."""
    with Relay(server.port) as there:
        server.set_faults([sends_to(f"http://127.0.0.1:{there.port}/bench/{key}")])
        with pytest.raises(ServiceError, match=r"initiateMultipartUpload failed\. ErrorCode:Temporary") as caught:
            upload_by(server, key, source, max_redirect_count=most)
        assert len(there.passed()) == most
        assert len(server.requests()) == most + 1
    assert caught.value.status == 307
    assert "307" in str(caught.value)


@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_to_nowhere_is_an_error(server: LocalObs, key: str, source: Path, status: int) -> None:
    """Without a Location there is nothing to follow, whoever was asked; the words are the SDK's."""
    rule = {"status": status, "code": "Moved", "message": "Somewhere."}
    server.set_faults([rule | {"operation": "Initiate"}])
    with pytest.raises(ServiceError, match=r"Upload failed\. ErrorCode:Moved\. ErrorMessage:Somewhere"):
        upload_by(server, key, source)
    server.set_faults([rule | {"operation": "UploadPart"}])
    with pytest.raises(ServiceError, match="errorCode:Moved, errorMessage:Somewhere") as caught:
        upload_by(server, key, source)
    assert caught.value.status == status
    assert Counter(r["operation"] for r in server.requests())["UploadPart"] == 1
    assert open_uploads(server, "bench", key) == 0


def test_304_is_no_redirect(server: LocalObs, key: str, source: Path) -> None:
    """Whatever its headers say."""
    with Relay(server.port) as there:
        server.set_faults([sends_to(f"http://127.0.0.1:{there.port}/bench/{key}", 304)])
        with pytest.raises(ServiceError, match="initiateMultipartUpload failed"):
            upload_by(server, key, source)
        assert there.connections == 0


@pytest.mark.parametrize(
    "place",
    ["http://127.0.0.1:PORT/bench/KEY", "http://user:pass-word@127.0.0.1:PORT/bench/KEY",
     "https://127.0.0.1:PORT/another-bucket/KEY", "ftp://127.0.0.1:PORT/bench/KEY", "//127.0.0.1:PORT/bench/KEY"],
)  # fmt: skip
def test_a_redirect_out_of_tls_is_not_followed(
    server: LocalObs, key: str, source: Path, tls: ssl.SSLContext, authority: tuple[trustme.CA, str], place: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Nor one to another bucket, with another scheme or with credentials: nothing is sent there."""
    with Relay(server.port, tls) as here, Relay(server.port) as there:
        server.set_faults([sends_to(place.replace("PORT", str(there.port)).replace("KEY", key))])
        with pytest.raises(ServiceError, match="initiateMultipartUpload failed") as caught:
            upload_by(server, key, source, server=f"https://127.0.0.1:{here.port}", ssl_verify=authority[1])
        assert there.connections == 0
        assert len(here.passed()) == 1
    assert caught.value.status == 307
    assert "pass-word" not in str(caught.value) + caplog.text


@pytest.mark.parametrize("is_named", [True, False])
def test_a_redirect_into_tls_is_followed(
    server: LocalObs, key: str, source: Path, tls: ssl.SSLContext, authority: tuple[trustme.CA, str], is_named: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With the same trust as if the upload had begun there: in the file that is named, or in the system's."""
    monkeypatch.setenv("SSL_CERT_FILE", authority[1])
    with Relay(server.port, tls) as there:
        server.set_faults([sends_to(f"https://127.0.0.1:{there.port}/bench/{key}", times=1)])
        assert upload_by(server, key, source, ssl_verify=authority[1] if is_named else True).status == 200
        assert len(there.passed()) == REQUESTS


def test_a_redirect_is_no_way_around_trust(
    server: LocalObs, key: str, source: Path, tls: ssl.SSLContext, authority: tuple[trustme.CA, str]
) -> None:
    """The other host's certificate is checked as the first one's was."""
    with Relay(server.port, tls) as here, Relay(server.port, tls_context(trustme.CA())) as there:
        server.set_faults([sends_to(f"https://127.0.0.1:{there.port}/bench/{key}")])
        with pytest.raises(TransportError, match="certificate"):
            upload_by(server, key, source, server=f"https://127.0.0.1:{here.port}", ssl_verify=authority[1])
        assert there.heard() == b""


# --- retries and time-outs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2])
def test_retries_are_counted(server: LocalObs, key: str, source: Path, count: int) -> None:
    """`max_retry_count` repetitions after the first attempt, of each request."""
    server.set_faults([{"operation": "Initiate", "status": 503, "code": "SlowDown"}])
    with pytest.raises(ServiceError, match="SlowDown"):
        upload_by(server, key, source, max_retry_count=count)
    assert len(server.requests()) == count + 1


def test_a_stalled_service_is_given_up(server: LocalObs, key: str, source: Path) -> None:
    """After `timeout` seconds without a byte."""
    server.set_faults([{"operation": "Initiate", "stall": True}])
    begin_s = time.monotonic()
    with pytest.raises(TransportError) as caught:
        upload_by(server, key, source, timeout=1, max_retry_count=0)
    assert caught.value.is_retryable
    assert 0.9 < time.monotonic() - begin_s < 6


# --- proxies ----------------------------------------------------------------------------------------------------


def proxied(proxy: ConnectProxy, **more: Any) -> dict[str, Any]:
    """Arguments that name the proxy."""
    return {"proxy_host": "127.0.0.1", "proxy_port": proxy.port} | more


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize("user", ["", "us-er"])
def test_everything_goes_through_the_proxy(
    server: LocalObs, key: str, source: Path, tls: ssl.SSLContext, authority: tuple[trustme.CA, str], user: str,
    is_tls: bool,
) -> None:  # fmt: skip
    """By CONNECT, to plain and to TLS services; what opens the proxy is for it alone, what opens the service too."""
    password = "pass:wörd/€" if user else ""
    keys: dict[str, Any] = {"proxy_username": user, "proxy_password": password} if user else {}
    with ConnectProxy(user, password) as proxy, Relay(server.port, tls if is_tls else None) as relay:
        url = f"{'https' if is_tls else 'http'}://127.0.0.1:{relay.port}"
        keys |= {"security_token": "tok-en", "ssl_verify": authority[1], "server": url}
        with client_of(server, **proxied(proxy, **keys)) as client:
            assert upload(client, key, source).status == 200
        assert set(proxy.targets) == {f"127.0.0.1:{relay.port}"}
        assert relay.connections == len(proxy.targets)
        assert len(relay.passed()) == REQUESTS
        assert all("proxy-authorization" not in r.headers for r in relay.passed())
        heads = "".join(proxy.heads)
        assert heads.startswith("CONNECT ")
        assert ("Proxy-Authorization: Basic " in heads) == bool(user)
        for secret in ("\r\nAuthorization", server.access_key, "tok-en", key):
            assert secret not in heads
        assert (b"proxy-authorization" in bytes(proxy.tunnelled).lower()) is False
        assert (server.access_key.encode() in proxy.tunnelled) != is_tls
    assert is_equal(server, "bench", key, source)


def test_a_proxy_serves_virtual_hosts(server: LocalObs, key: str, source: Path) -> None:
    """The proxy resolves the bucket's name, not this machine."""
    with ConnectProxy() as proxy:
        arguments = proxied(proxy, server=f"http://obs.example.invalid:{server.port}")
        assert upload_by(server, key, source, **arguments).status == 200
        assert set(proxy.targets) == {f"bench.obs.example.invalid:{server.port}"}


def test_a_wrong_proxy_password_is_a_clear_error(
    server: LocalObs, key: str, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says 407, once, and names no password, in no log line either; the service hears nothing."""
    caplog.set_level(logging.DEBUG, "obs_engine")
    with ConnectProxy("us-er", "right-one") as proxy:
        arguments = proxied(proxy, proxy_username="us-er", proxy_password="wrong-one", max_retry_count=1)
        with pytest.raises(TransportError, match="407") as caught:
            upload_by(server, key, source, **arguments)
        assert (len(proxy.heads), proxy.targets) == (1, [])
        assert not caught.value.is_retryable
    assert server.requests() == []
    for text in (str(caught.value), repr(caught.value), caplog.text):
        assert "wrong-one" not in text
        assert "dXMtZXI6d3Jvbmct" not in text  # the same in base64


def test_an_absent_proxy_is_an_error(server: LocalObs, key: str, source: Path) -> None:
    """And no reason to go without it."""
    with ConnectProxy() as gone:
        port = gone.port
    with pytest.raises(TransportError, match="over proxy 127"):
        upload_by(server, key, source, proxy_host="127.0.0.1", proxy_port=port, max_retry_count=0)
    assert server.requests() == []


@pytest.mark.parametrize("is_tls", [False, True])
def test_proxies_of_the_environment_count_where_trusted(
    server: LocalObs, key: str, source: Path, tls: ssl.SSLContext, authority: tuple[trustme.CA, str],
    monkeypatch: pytest.MonkeyPatch, is_tls: bool,
) -> None:  # fmt: skip
    """`trust_env`: as they are when the client is made; `no_proxy` is honoured; arguments beat them."""
    scheme = "https" if is_tls else "http"
    with ExitStack() as stack:
        proxy = stack.enter_context(ConnectProxy("us er", "p@ss:w"))
        other = stack.enter_context(ConnectProxy())
        relay = stack.enter_context(Relay(server.port, tls if is_tls else None))
        client_given = {"server": f"{scheme}://127.0.0.1:{relay.port}", "ssl_verify": authority[1]}

        def ways(**arguments: Any) -> tuple[int, int]:
            """How many tunnels an upload opens, in either proxy."""
            before = len(proxy.targets), len(other.targets)
            assert upload_by(server, key, source, **client_given, **arguments).status == 200
            return len(proxy.targets) - before[0], len(other.targets) - before[1]

        assert ways(trust_env=True) == (0, 0)
        monkeypatch.setenv(f"{scheme}_proxy", f"http://us%20er:p%40ss%3Aw@127.0.0.1:{proxy.port}/")
        assert ways() == (0, 0)
        assert ways(trust_env=False) == (0, 0)
        assert ways(trust_env=True) == (1, 0)
        assert ways(trust_env=True, **proxied(other)) == (0, 1)
        with client_of(server, trust_env=True, **client_given) as client:
            monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{other.port}")
            assert upload(client, key, source).status == 200
            assert (len(proxy.targets), len(other.targets)) == (2, 1)
        monkeypatch.setenv("no_proxy", "example.com, 127.0.0.1")
        assert ways(trust_env=True) == (0, 0)
        monkeypatch.setenv("no_proxy", "*")
        assert ways(trust_env=True) == (0, 0)
        monkeypatch.setenv("no_proxy", "example.com")
        assert ways(trust_env=True) == (0, 1)


def test_no_proxy_knows_domains(
    server: LocalObs, key: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket's host belongs to the domain that is named."""
    with ConnectProxy() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        for excluded, tunnels in (("localhost", 0), (".localhost", 0), ("host", 1), ("ench.localhost", 2)):
            monkeypatch.setenv("no_proxy", excluded)
            assert upload_by(server, key, source, server=server.virtual_url, trust_env=True).status == 200
            assert len(proxy.targets) == tunnels, excluded


def test_secrets_of_the_proxy_stay_in_memory(
    server: LocalObs, key: str, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not on a command line or in the environment of a child, in no record, log line or error, in no `repr`."""
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    with ConnectProxy("us-er", "s3cr3t-word") as proxy:
        monkeypatch.setenv("http_proxy", f"http://us-er:s3cr3t-word@127.0.0.1:{proxy.port}")
        for way in ({"trust_env": True}, proxied(proxy, proxy_username="us-er", proxy_password="s3cr3t-word")):
            with client_of(server, max_retry_count=0, **way) as client:
                server.set_faults([{"operation": "UploadPart", "nth": [3], "status": 403, "code": "AccessDenied"}])
                with pytest.raises(ServiceError) as caught:
                    upload(client, key, source, enableCheckpoint=True)
                children = psutil.Process().children(recursive=True)
                assert any("coordinator" in " ".join(child.cmdline()) for child in children)
                for child in children:
                    seen += [" ".join(child.cmdline()), str(child.environ())]
                seen += [str(caught.value), repr(caught.value), str(vars(caught.value)), repr(client)]
                seen.append(Path(f"{source}.upload_record").read_bytes().decode("latin-1"))
                server.set_faults([])
                assert upload(client, key, source, enableCheckpoint=True).status == 200
        assert len(proxy.targets) >= 2
    seen.append(caplog.text)
    for text in seen:
        assert "s3cr3t-word" not in text
        assert "czNjcjN0LXdvcm" not in text  # the same in base64


# --- TLS --------------------------------------------------------------------------------------------------------


def test_trust_in_certificates_is_the_callers_choice(
    server: LocalObs, key: str, source: Path, tls: ssl.SSLContext, authority: tuple[trustme.CA, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By default an unknown authority is refused, at once and once; a file names one, False trusts all."""
    with Relay(server.port, tls) as relay:
        url = f"https://127.0.0.1:{relay.port}"
        for refusing in ({}, {"ssl_verify": True}):
            before = relay.connections
            with pytest.raises(TransportError, match="certificate") as caught:
                upload_by(server, key, source, server=url, **refusing)
            assert not caught.value.is_retryable
            assert relay.connections == before + 1
        assert relay.heard() == b""
        for trusting in (authority[1], Path(authority[1]), False):
            assert upload_by(server, key, source, server=url, ssl_verify=trusting).status == 200
        monkeypatch.setenv("SSL_CERT_FILE", authority[1])
        assert upload_by(server, key, source, server=url).status == 200
    assert is_equal(server, "bench", key, source)


@pytest.mark.parametrize("names", [("127.0.0.2",), ("obs.example.com", "localhost")])
def test_a_certificate_is_for_its_names(
    server: LocalObs, key: str, source: Path, authority: tuple[trustme.CA, str], names: tuple[str, ...]
) -> None:
    """One of the right authority for another host is refused, at once and once."""
    with Relay(server.port, tls_context(authority[0], *names)) as relay:
        url = f"https://127.0.0.1:{relay.port}"
        with pytest.raises(TransportError, match="certificate") as caught:
            upload_by(server, key, source, server=url, ssl_verify=authority[1])
        assert not caught.value.is_retryable
        assert (relay.connections, relay.heard()) == (1, b"")
        assert upload_by(server, key, source, server=url, ssl_verify=False).status == 200


def test_files_may_have_any_name(
    server: LocalObs, key: str, source: Path, tmp_path: Path, demanding: ssl.SSLContext,
    authority: tuple[trustme.CA, str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With letters beyond ASCII, and relative to where the client was made."""
    folder = tmp_path / "schlüssel é 钥"
    folder.mkdir()
    authority[0].cert_pem.write_to_path(str(folder / "ca.pem"))
    identity(authority[0], folder)
    monkeypatch.chdir(folder)
    with Relay(server.port, demanding) as relay:
        client = client_of(
            server, server=f"https://127.0.0.1:{relay.port}", ssl_verify="ca.pem",
            client_verify=ClientVerify("client.pem", "client.key"),
        )  # fmt: skip
        monkeypatch.chdir("/")
        with client:
            assert upload(client, key, source).status == 200


def identity(authority: trustme.CA, folder: Path, password: str | None = None) -> tuple[str, str]:
    """A client's certificate, and its key under a password."""
    certificate, key = folder / "client.pem", folder / "client.key"
    issued = authority.issue_cert("client@example.com")
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    pem = issued.private_key_pem.bytes()
    if password is not None:
        pem = load_pem_private_key(pem, None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode())
        )
    key.write_bytes(pem)
    return str(certificate), str(key)


@pytest.fixture(scope="module")
def demanding(authority: tuple[trustme.CA, str]) -> ssl.SSLContext:
    """Asks clients who they are."""
    context = tls_context(authority[0])
    context.load_verify_locations(authority[1])
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.mark.parametrize("password", [None, "pass phräse"])
@pytest.mark.parametrize("is_sdk", [False, True])
def test_a_client_shows_its_certificate(
    server: LocalObs, key: str, source: Path, tmp_path: Path, demanding: ssl.SSLContext,
    authority: tuple[trustme.CA, str], password: str | None, is_sdk: bool,
) -> None:  # fmt: skip
    """Ours or the SDK's `ClientVerify`, with a plain key or one under a password."""
    kind: Any = pytest.importorskip("obs").ClientVerify if is_sdk else ClientVerify
    verify = kind(*identity(authority[0], tmp_path, password), password)
    with Relay(server.port, demanding) as relay:
        arguments = {"server": f"https://127.0.0.1:{relay.port}", "ssl_verify": authority[1]}
        assert upload_by(server, key, source, client_verify=verify, **arguments).status == 200
        assert len(relay.passed()) == REQUESTS
    assert is_equal(server, "bench", key, source)


def test_without_a_certificate_a_demanding_service_is_out_of_reach(
    server: LocalObs, key: str, source: Path, tmp_path: Path, demanding: ssl.SSLContext,
    authority: tuple[trustme.CA, str],
) -> None:  # fmt: skip
    """Nor does one of another authority help."""
    foreign = ClientVerify(*identity(trustme.CA(), tmp_path), None)
    with Relay(server.port, demanding) as relay:
        arguments = {"server": f"https://127.0.0.1:{relay.port}", "ssl_verify": authority[1], "max_retry_count": 0}
        for verify in (None, foreign):
            with pytest.raises(TransportError, match="Initiate at 127"):
                upload_by(server, key, source, client_verify=verify, **arguments)
        assert relay.heard() == b""


@pytest.mark.parametrize("wrong", ["password", "key", "absent key", "absent certificate", "no certificate"])
def test_a_certificate_that_cannot_be_used_is_refused(
    server: LocalObs, key: str, source: Path, tmp_path: Path, demanding: ssl.SSLContext,
    authority: tuple[trustme.CA, str], wrong: str,
) -> None:  # fmt: skip
    """Before anything is sent, and without the password in the words."""
    certificate, private = identity(authority[0], tmp_path, "pass-word")
    if wrong == "key":
        (tmp_path / "other").mkdir()
        private = identity(authority[0], tmp_path / "other", "pass-word")[1]
    elif wrong == "absent key":
        private += ".gone"
    elif wrong == "absent certificate":
        certificate += ".gone"
    elif wrong == "no certificate":
        Path(certificate).write_text("no certificate\n")
    verify = ClientVerify(certificate, private, "wrong-word" if wrong == "password" else "pass-word")
    with Relay(server.port, demanding) as relay:
        arguments = {"server": f"https://127.0.0.1:{relay.port}", "ssl_verify": authority[1]}
        with pytest.raises((InvalidArgumentError, TransportError)) as caught:
            upload_by(server, key, source, client_verify=verify, **arguments)
        assert not caught.value.is_retryable
        assert "-word" not in str(caught.value)
        assert relay.heard() == b""
        assert relay.connections <= 1
    if wrong.startswith("absent"):
        assert isinstance(caught.value, InvalidArgumentError)
        assert "client_verify" in str(caught.value)


def test_ciphers_are_the_callers_choice(
    server: LocalObs, key: str, source: Path, authority: tuple[trustme.CA, str]
) -> None:
    """OpenSSL's list, for TLS 1.2: one in common is used; none in common, or a list of nothing, is an error, once."""
    context = tls_context(authority[0])
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{MODERN}:{OTHER}")
    with Relay(server.port, context) as relay:
        arguments = {"server": f"https://127.0.0.1:{relay.port}", "ssl_verify": authority[1]}
        for cipher in (MODERN, OTHER):
            assert upload_by(server, key, source, custom_ciphers=cipher, **arguments).status == 200
            assert relay.ciphers[-1] == cipher
        for cipher in ("ECDHE-ECDSA-AES128-GCM-SHA256", "NO-SUCH-CIPHER"):
            before = relay.connections
            with pytest.raises((InvalidArgumentError, TransportError)) as caught:
                upload_by(server, key, source, custom_ciphers=cipher, **arguments)
            assert not caught.value.is_retryable, cipher
            assert relay.connections <= before + 1


# --- HTTP/2 -----------------------------------------------------------------------------------------------------


def test_http2_is_spoken_where_the_service_does(
    server: LocalObs, key: str, source: Path, authority: tuple[trustme.CA, str]
) -> None:
    """On TLS, agreed on by ALPN; not unless asked for."""
    pytest.importorskip("h2", reason="the HTTP/2 side of the test")
    with Http2Front(server.port, tls_context(authority[0])) as front:
        arguments = {"server": f"https://127.0.0.1:{front.port}", "ssl_verify": authority[1]}
        with client_of(server, use_http2=True, **arguments) as client:
            assert upload(client, key, source, taskNum=2, metadata={"colour": "blue"}).status == 200
        assert len(front.by_http2) == REQUESTS
        assert set(front.protocols) == {"h2"}
        assert front.connections <= 2
        assert is_equal(server, "bench", key, source)
        assert upload_by(server, key, source, **arguments).status == 200
        assert front.protocols[-1] != "h2"
        assert len(front.by_http2) == REQUESTS


def test_http2_falls_back(
    server: LocalObs, key: str, source: Path, tls: ssl.SSLContext, authority: tuple[trustme.CA, str]
) -> None:
    """To HTTP/1.1 where the service knows no other, on TLS and without."""
    with Relay(server.port, tls) as relay:
        arguments = {"use_http2": True, "server": f"https://127.0.0.1:{relay.port}", "ssl_verify": authority[1]}
        assert upload_by(server, key, source, **arguments).status == 200
        assert len(relay.passed()) == REQUESTS
    assert upload_by(server, key, source, use_http2=True).status == 200


# --- permissions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_checkpoint", [False, True])
def test_put_object_is_permission_enough(server: LocalObs, key: str, source: Path, is_checkpoint: bool) -> None:
    """All that the service grants beside is neither needed nor, in a plain upload, asked for."""
    others = ["HeadBucket", "GetObject", "HeadObject", "ListParts", "ListUploads", "ListObjects", "Abort"]
    server.set_faults([{"operation": others, "status": 403, "code": "AccessDenied"}])
    with client_of(server) as client:
        result = upload(client, key, source, enableCheckpoint=is_checkpoint, checkSum=is_checkpoint, taskNum=2)
    assert result.status == 200
    operations = Counter(r["operation"] for r in server.requests())
    server.set_faults([])
    assert operations == {"Initiate": 1, "UploadPart": PARTS, "Complete": 1}
    assert is_equal(server, "bench", key, source)


def test_put_object_is_permission_enough_to_resume(server: LocalObs, key: str, source: Path) -> None:
    """Where ListParts is refused, the record counts."""
    others = ["HeadBucket", "GetObject", "HeadObject", "ListParts", "ListUploads", "ListObjects", "Abort"]
    denied = {"operation": others, "status": 403, "code": "AccessDenied"}
    with client_of(server) as client:
        server.set_faults([denied, {"operation": "UploadPart", "nth": [3], "status": 403, "code": "AccessDenied"}])
        with pytest.raises(ServiceError, match="errorCode:AccessDenied, errorMessage:"):
            upload(client, key, source, enableCheckpoint=True)
        server.set_faults([denied])
        result = upload(client, key, source, enableCheckpoint=True)
    server.set_faults([])
    assert (result.status, result.report.parts_resumed) == (200, 2)
    assert is_equal(server, "bench", key, source)


# --- after all --------------------------------------------------------------------------------------------------


def test_no_door_is_left_open() -> None:
    """The servers of these tests end with their tests."""
    assert [t.name for t in threading.enumerate() if "_accept" in t.name or "_serve" in t.name] == []
