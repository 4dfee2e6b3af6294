"""The constructor by itself: its order, its defaults, and what it refuses before any process starts."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import psutil
import pytest

from obs_engine import ClientVerify, InvalidArgumentError, ObsClient

HERE = "https://obs.example.com"
KEYWORD_ONLY = ["id_token_credentials_provider", "engine"]


def parameters(of: Any) -> list[inspect.Parameter]:
    """The public ones, without `self`."""
    return [p for p in list(inspect.signature(of).parameters.values())[1:] if not p.name.startswith("_")]


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_order_and_defaults_are_the_sdks() -> None:
    """All 31, but for `ssl_verify`, which is on; what is ours alone goes by its name."""
    obs = pytest.importorskip("obs", reason="the official SDK says what the order is")
    theirs = parameters(obs.client._BasicClient.__init__)
    ours = parameters(ObsClient.__init__)
    assert [p.name for p in ours[:31]] == [p.name for p in theirs]
    assert [p.name for p in ours[31:]] == KEYWORD_ONLY
    assert all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in ours[:31])
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[31:])
    assert [p.name for p, q in zip(ours, theirs, strict=False) if p.default != q.default] == ["ssl_verify"]
    assert (ours[7].default, theirs[7].default) == (True, False)


def test_all_defaults_may_be_given() -> None:
    """By place and by name; nothing is sent, and nothing starts."""
    before = psutil.Process().children()
    defaults = {p.name: p.default for p in parameters(ObsClient.__init__)} | {"server": HERE}
    places = [value for name, value in defaults.items() if name not in KEYWORD_ONLY]
    for client in (ObsClient(**defaults), ObsClient(*places)):
        assert repr(client) == "<ObsClient https://obs.example.com obs>"
        client.close()
    assert psutil.Process().children() == before


def test_an_unknown_argument_is_a_type_error() -> None:
    """Also a 32nd by its place."""
    with pytest.raises(TypeError, match="no_such"):
        ObsClient(server=HERE, no_such=1)  # type: ignore[call-arg]
    places = [HERE if p.name == "server" else p.default for p in parameters(ObsClient.__init__)[:31]]
    with pytest.raises(TypeError):
        ObsClient(*places, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"access_key_id": 5}, "access_key_id"),
        ({"access_key_id": "a\nb"}, "access_key_id"),
        ({"secret_access_key": b"se-cret"}, "secret_access_key"),
        ({"secret_access_key": "se-cret\x00"}, "secret_access_key"),
        ({"security_token": "se-cret\r\nX: y"}, "security_token"),
        ({"server": None}, "server is not set correctly"),
        ({"server": ""}, "server is not set correctly"),
        ({"server": " \t"}, "server is not set correctly"),
        ({"server": 5}, "server"),
        ({"server": "https://"}, "server"),
        ({"server": "ftp://obs.example.com"}, "server"),
        ({"server": "https://obs.example.com/path"}, "server"),
        ({"server": "https://obs.example.com?x=1"}, "server"),
        ({"server": "https://ak:se-cret@obs.example.com"}, "without credentials"),
        ({"server": "ak@obs.example.com"}, "without credentials"),
        ({"server": "https://ak:se-cret@obs.example.com:70000"}, "server|port"),
        ({"server": "https://ak:se-cret@obs.example.com/path"}, "server"),
        ({"server": "ftp://ak:se-cret@obs.example.com"}, "server"),
        ({"server": "https://b\u00fccher.example.com"}, "server"),
        ({"server": "https://obs.exa mple.com"}, "server"),
        ({"server": "https://[::1"}, "server"),
        ({"server": "https://obs.example.com:x"}, "server"),
        ({"server": "https://obs.example.com:70000"}, "server|port"),
        ({"server": "https://obs.example.com\r\nX: y"}, "server"),
        ({"signature": "v3"}, "signature"),
        ({"signature": None}, "signature"),
        ({"region": 5}, "region"),
        ({"region": "a\nb"}, "region"),
        ({"ssl_verify": "/nowhere/ca.pem"}, "ssl_verify"),
        ({"is_use_gmssl": True}, "is_use_gmssl"),
        ({"port": 0}, "port"),
        ({"port": 65_536}, "port"),
        ({"port": True}, "port"),
        ({"port": 80.5}, "port"),
        ({"max_retry_count": -1}, "max_retry_count"),
        ({"max_retry_count": 1.5}, "max_retry_count"),
        ({"max_retry_count": True}, "max_retry_count"),
        ({"max_retry_count": None}, "max_retry_count"),
        ({"timeout": None}, "timeout can not be None"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"timeout": "60"}, "timeout"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"chunk_size": -1}, "chunk_size"),
        ({"chunk_size": "64K"}, "chunk_size"),
        ({"chunk_size": None}, "chunk_size"),
        ({"proxy_host": 5, "proxy_port": 1}, "proxy_host"),
        ({"proxy_host": "a b", "proxy_port": 1}, "proxy_host"),
        ({"proxy_host": "proxy\r\nX: y", "proxy_port": 1}, "proxy_host"),
        ({"proxy_host": "u:se-cret@proxy.example.com", "proxy_port": 1}, "proxy_host"),
        ({"proxy_host": "b\u00fccher.example.com", "proxy_port": 1}, "proxy_host"),
        ({"proxy_host": "proxy.example.com", "proxy_port": 0}, "proxy_port"),
        ({"proxy_host": "proxy.example.com", "proxy_port": 70_000}, "proxy_port"),
        ({"proxy_host": "proxy.example.com", "proxy_port": "x"}, "proxy_port"),
        ({"proxy_host": "p", "proxy_port": 1, "proxy_username": 5}, "proxy_username"),
        ({"proxy_host": "p", "proxy_port": 1, "proxy_username": "u", "proxy_password": b"se-cret"}, "proxy_password"),
        ({"client_verify": "client.pem"}, "client_verify"),
        ({"client_verify": ClientVerify("/nowhere/c.pem", "/nowhere/k.pem")}, "client_verify"),
        ({"client_verify": ClientVerify("/dev/null", None)}, "client_verify"),
        ({"client_verify": ("/dev/null", "/dev/null")}, "client_verify"),
        ({"custom_ciphers": 5}, "custom_ciphers"),
        ({"max_redirect_count": -1}, "max_redirect_count"),
        ({"max_redirect_count": 1.5}, "max_redirect_count"),
        ({"max_redirect_count": True}, "max_redirect_count"),
        ({"max_redirect_count": None}, "max_redirect_count"),
        ({"security_provider_policy": "NOWHERE"}, "security_provider_policy"),
        ({"security_provider_policy": "OBS_DEFAULT", "security_providers": [object()]}, "security_providers"),
        ({"security_provider_policy": "OBS_DEFAULT", "security_providers": 5}, "security_providers"),
        ({"security_providers": []}, "security_providers"),
        ({"client_mode": "no-such-mode"}, "client_mode"),
        ({"engine": {"processes": 2}}, "engine"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    """One error, of the caller's, at once; a secret is never in it."""
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        ObsClient(**({"server": HERE} | change))
    assert isinstance(caught.value, ValueError)
    assert "se-cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"server": "obs.example.com"}, "https://obs.example.com obs"),
        ({"server": "obs.example.com", "is_secure": False}, "http://obs.example.com obs"),
        ({"server": "obs.example.com/"}, "https://obs.example.com obs"),
        ({"server": "  https://obs.example.com  "}, "https://obs.example.com obs"),
        ({"server": "http://obs.example.com", "is_secure": True}, "http://obs.example.com obs"),
        ({"server": "https://obs.example.com", "is_secure": False}, "https://obs.example.com obs"),
        ({"server": "https://obs.example.com:8443", "port": 1}, "https://obs.example.com:8443 obs"),
        ({"server": "obs.example.com", "port": 8443}, "https://obs.example.com:8443 obs"),
        ({"server": "https://obs.example.com:443"}, "https://obs.example.com obs"),
        ({"server": "http://obs.example.com:80"}, "http://obs.example.com obs"),
        ({"server": "https://10.0.0.1"}, "https://10.0.0.1 v2"),
        ({"server": "https://10.0.0.1", "signature": "v4"}, "https://10.0.0.1 v4"),
        ({"server": "http://[::1]:9000/"}, "http://[::1]:9000 v2"),
        ({"server": "[2001:db8::1]"}, "https://[2001:db8::1] v2"),
        ({"path_style": True}, f"{HERE} v2"),
        ({"path_style": True, "client_mode": "workflow"}, f"{HERE} obs"),
        ({"is_cname": True}, f"{HERE} v2"),
        ({"is_cname": True, "signature": "v4"}, f"{HERE} v4"),
        ({"signature": "v2"}, f"{HERE} v2"),
        ({"signature": "v4"}, f"{HERE} v4"),
    ],
    ids=str,
)
def test_endpoint_and_signature_are_read_as_the_sdk_reads_them(change: dict[str, Any], shown: str) -> None:
    """As far as they are known before the first request."""
    assert repr(ObsClient(**({"server": HERE} | change))) == f"<ObsClient {shown}>"


@pytest.mark.parametrize(
    "change",
    [
        {"access_key_id": None, "secret_access_key": None},
        {"timeout": 0.5},
        {"max_retry_count": 0},
        {"chunk_size": 1},
        {"chunk_size": 1 << 40},
        {"long_conn_mode": True, "use_http_conns": True, "pool_size": 0},
        {"proxy_host": "proxy.example.com", "proxy_port": 3128},
        {"proxy_host": "proxy.example.com", "proxy_port": "3128"},
        {"proxy_host": "::1", "proxy_port": 3128},
        {"proxy_host": "", "proxy_port": 3128},
        {"proxy_port": 3128, "proxy_username": "u", "proxy_password": "p"},
        {"proxy_host": "p", "proxy_port": 3128, "proxy_username": "u"},
        {"custom_ciphers": ""},
        {"custom_ciphers": "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"},
        {"use_http2": True},
        {"max_redirect_count": 0},
        {"client_verify": ClientVerify(None, None)},
        {"client_mode": "workflow"},
        {"trust_env": True},
        {"security_token": ""},
    ],
    ids=str,
)
def test_what_the_sdk_accepts_is_accepted(change: dict[str, Any]) -> None:
    """A proxy without a host is none, as in the SDK."""
    ObsClient(**({"server": HERE} | change)).close()


@pytest.mark.parametrize(
    "named",
    ["socks5://u:se-cret@p.example.com:1", "http://u:se-cret@p.example.com:x", "http://u:se-cret@p.example.com:70000",
     "https://u:se-cret@p.example.com", "http://"],
)  # fmt: skip
def test_a_proxy_of_the_environment_must_be_readable(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment is trusted; its words are not repeated, as they may hold a password."""
    monkeypatch.setenv("https_proxy", named)
    ObsClient(server=HERE).close()
    with pytest.raises(InvalidArgumentError, match=r"https_proxy|proxy_port") as caught:
        ObsClient(server=HERE, trust_env=True)
    assert "se-cret" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["password", "key", "certificate"])
def test_a_certificate_is_looked_at_at_once(tmp_path: Path, wrong: str) -> None:
    """As by the SDK: a wrong password, the key of another certificate, a file of something else."""
    trustme = pytest.importorskip("trustme")
    files = [tmp_path / name for name in ("client.pem", "client.key")]
    mine, other = (trustme.CA().issue_cert("client@example.com") for _ in range(2))
    mine.cert_chain_pems[0].write_to_path(str(files[0]))
    (other if wrong == "key" else mine).private_key_pem.write_to_path(str(files[1]))
    if wrong == "certificate":
        files[0].write_text("none\n")
    elif wrong == "password":
        from cryptography.hazmat.primitives import serialization as forms

        key = forms.load_pem_private_key(files[1].read_bytes(), None)
        protection = forms.BestAvailableEncryption(b"another")
        files[1].write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, protection))
    for password in ("se-cret", None):
        with pytest.raises(InvalidArgumentError, match="client_verify") as caught:
            ObsClient(server=HERE, client_verify=ClientVerify(*map(str, files), password))
        assert "se-cret" not in str(caught.value)


def test_secrets_are_in_no_repr() -> None:
    """Of the client, and of what is given to it."""
    verify = ClientVerify("c.pem", "k.pem", "se-cret")
    client = ObsClient(
        "ak", "se-cret", server=HERE, security_token="se-cret", proxy_host="p", proxy_port=1, proxy_username="u",
        proxy_password="se-cret",
    )  # fmt: skip
    assert "se-cret" not in repr(verify) + repr(client)


def test_the_sdks_own_values_are_taken(tmp_path: Path) -> None:
    """Its `ClientVerify`, and a dict with the same names."""
    trustme = pytest.importorskip("trustme")
    obs = pytest.importorskip("obs")
    issued = trustme.CA().issue_cert("client@example.com")
    pem = str(tmp_path / "client.pem")
    issued.private_key_and_cert_chain_pem.write_to_path(pem)
    for verify in (obs.ClientVerify(pem, pem), {"clientCert": pem, "clientKey": pem}):
        ObsClient(server=HERE, client_verify=verify).close()


def test_refresh_takes_keys() -> None:
    """Two, and a token; a wrong one is refused as by the constructor."""
    client = ObsClient("ak", "sk", server=HERE)
    client.refresh("ak2", "sk2")
    client.refresh("ak3", "sk3", "token")
    client.refresh("ak3", "sk3", security_token=None)
    with pytest.raises(InvalidArgumentError, match="secret_access_key") as caught:
        client.refresh("ak", b"se-cret")
    assert "se-cret" not in str(caught.value)
