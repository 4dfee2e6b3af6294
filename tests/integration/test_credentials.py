"""Access keys over real sockets: a metadata service, IAM, and uploads whose keys change while they run."""

from __future__ import annotations

import json
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import trustme
from obs import loadtoken

from harness import client_arguments, is_equal, make_file, wait_until
from obs_engine import EngineOptions, GetResult, InvalidArgumentError, ObsClient, ServiceError, credentials
from obs_engine.credentials import ECS, ENV, OIDC, CredentialSource, IdTokenCredentialsProvider, Proxy
from obs_engine.errors import CredentialsError
from obs_engine.testing import LocalObs
from obs_engine.wire.signing import Credentials
from proxy import ConnectProxy, Passed, Relay

SECRET = "a-secret-that-nobody-may-see"
ID_TOKEN = "an-id-token-that-nobody-may-see"
PART = 102_400


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No keys of this machine, and no pauses between tries."""
    for name in list(os.environ):
        if name.startswith(("OBS_", "OIDC_", "HUAWEI_CLOUD_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(credentials.asking, "_pause", lambda _: None)


@pytest.fixture(autouse=True)
def no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does, at the most talkative level."""
    with caplog.at_level(logging.DEBUG):
        yield
    for secret in (SECRET, ID_TOKEN, "iam-token", "imds-token"):
        assert secret not in caplog.text


class Cloud:
    """A metadata service and IAM on one port, in threads of this process.

    Attributes:
        keys: what both hand out.
        expires_in_s: of them.
        has_version_2: of the metadata service.
        fault: answers in the place of all others: a status and a body.
        asked: method, path, headers in lower case and body of each request.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.keys = Credentials("ak1", f"{SECRET}-1", "token1")
        self.expires_in_s = 3600.0
        self.has_version_2 = True
        self.fault: tuple[int, bytes] | None = None
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                cloud.asked.append((self.command, self.path, headers, body))
                status, more, said = cloud.answer(self.command, self.path, headers, body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(said)), **more}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(said)

            do_GET = do_PUT = do_POST = answer

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = False

            def get_request(self) -> tuple[socket.socket, Any]:
                connection, peer = super().get_request()
                # Why not on the listener: a handshake that fails must not end the server.
                return (tls.wrap_socket(connection, server_side=True) if tls else connection), peer

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        self.address = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Cloud:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.fault is not None:
            return (self.fault[0], {}, self.fault[1])
        if (method, path) == ("PUT", "/meta-data/latest/api/token"):
            if not self.has_version_2:
                return 404, {}, b"no such page"
            assert headers["x-securitykey-token-ttl-seconds"] == "21600"
            return 200, {}, b"imds-token"
        if (method, path) == ("GET", "/openstack/latest/securitykey"):
            if self.has_version_2 and headers.get("x-securitykey-token") != "imds-token":
                return 401, {}, b""
            return 200, {}, self._credential()
        auth = json.loads(body)["auth"]
        if (method, path) == ("POST", "/v3.0/OS-AUTH/id-token/tokens"):
            if auth["id_token"]["id"] != ID_TOKEN or headers["x-idp-id"] != "idp":
                words = {"error_code": "IAM.0011", "error_msg": f"token {auth['id_token']['id']} is wrong"}
                return 401, {}, json.dumps(words).encode()
            return 201, {"X-Subject-Token": "iam-token"}, b"{}"
        assert (method, path) == ("POST", "/v3.0/OS-CREDENTIAL/securitytokens")
        assert headers["x-auth-token"] == "iam-token"
        return 201, {}, self._credential()

    def _credential(self) -> bytes:
        moment = time.gmtime(time.time() + self.expires_in_s)
        return json.dumps({"credential": {
            "access": self.keys.access_key_id, "secret": self.keys.secret_access_key,
            "securitytoken": self.keys.security_token, "expires_at": time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", moment),
        }}).encode()  # fmt: skip


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud() as cloud:
        yield cloud


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the environment, where nobody listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.fixture
def ecs(cloud: Cloud, proxies: None) -> type[ECS]:
    """The class that asks the test's own metadata service."""
    return type("ECS", (ECS,), {"host": cloud.address, "timeout_s": 5.0})


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Moves the clocks of the room."""
    moved = SimpleNamespace(
        time=lambda: time.time() + seconds, monotonic=lambda: time.monotonic() + seconds, strptime=time.strptime,
    )  # fmt: skip
    for module in (credentials.source, credentials.keeper):
        monkeypatch.setattr(module, "time", moved)


# --- the metadata service ---------------------------------------------------------------------------------------


def test_keys_of_a_server_rotate(ecs: type[ECS], cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """From memory until 10 minutes before the end, then new ones; no proxy of the environment in between."""
    source = CredentialSource(providers=[ENV, ecs], policy="ECS")
    first = cloud.keys
    assert source.current() == first
    cloud.keys = Credentials("ak2", f"{SECRET}-2", "token2")
    later(monkeypatch, 2900)
    assert source.current() == first
    assert len(cloud.asked) == 2
    later(monkeypatch, 3001)
    assert source.current() == cloud.keys
    assert [path for _, path, _, _ in cloud.asked] == [
        "/meta-data/latest/api/token", "/openstack/latest/securitykey"
    ] * 2  # fmt: skip


def test_a_metadata_service_of_version_1_will_do(ecs: type[ECS], cloud: Cloud) -> None:
    """The keys are asked for without a token."""
    cloud.has_version_2 = False
    assert CredentialSource(providers=[ecs], policy="OBS_DEFAULT").current() == cloud.keys
    assert "x-securitykey-token" not in cloud.asked[-1][2]


def test_keys_live_on_while_the_metadata_service_is_ill(
    ecs: type[ECS], cloud: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Until they expire; then it is an error that names the service, and no key."""
    source = CredentialSource(providers=[ecs], policy="ECS")
    assert source.current() == cloud.keys
    cloud.fault = (500, SECRET.encode())
    later(monkeypatch, 3300)
    assert source.current() == cloud.keys
    assert "status 500" in caplog.text
    assert len(cloud.asked) == 2 + 3
    later(monkeypatch, 3700)
    with pytest.raises(CredentialsError, match=f"ECS: metadata service {cloud.address}: .*status 500") as caught:
        source.current()
    assert SECRET not in str(caught.value)
    cloud.fault = None
    assert source.current() == cloud.keys


def test_a_metadata_service_that_hangs_is_given_up(ecs: type[ECS]) -> None:
    """After the time-out, three times; and a port that nobody has is no different."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ecs.host, ecs.timeout_s = f"127.0.0.1:{listener.getsockname()[1]}", 0.02
        with pytest.raises(CredentialsError, match=r"no answer within 0.02 s \(3 tries\)"):
            ecs.search()
    with pytest.raises(CredentialsError, match=r"refused \(3 tries\)"):
        ecs.search()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"", "closed connection|reset"),
        (f"{SECRET}\r\n\r\n".encode(), "BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", "ended early"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (2 << 20), "too long"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n" + "ä\nä\nä".encode(), "UnicodeEncodeError"),
    ],
)
def test_an_answer_that_is_none_is_told_without_its_words(ecs: type[ECS], said: bytes, words: str) -> None:
    """Whatever sits on that address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ecs.host = f"127.0.0.1:{listener.getsockname()[1]}"
        is_over = threading.Event()

        def serve() -> None:
            listener.settimeout(0.05)
            while not is_over.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.recv(65536)
                    try:
                        connection.sendall(said)
                    except OSError:
                        continue

        with ThreadPoolExecutor(1) as pool:
            serving = pool.submit(serve)
            try:
                with pytest.raises(CredentialsError, match=words) as caught:
                    ecs.search()
            finally:
                is_over.set()
            serving.result()
    assert SECRET not in str(caught.value)


def test_many_threads_ask_once(ecs: type[ECS], cloud: Cloud) -> None:
    """The first asks; the others wait for what it hears."""
    source = CredentialSource(providers=[ecs], policy="ECS")
    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(lambda _: source.current(), range(64)))
    assert found == {cloud.keys}
    assert len(cloud.asked) == 2


def test_nothing_but_ones_own_keys_outside_of_the_cloud(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    """'OBS_DEFAULT' without any keys: anonymous, and one warning that says what each provider lacked."""
    elsewhere = type("ECS", (ECS,), {"host": "127.0.0.1:9", "timeout_s": 0.5})
    source = CredentialSource(providers=[ENV, elsewhere, OIDC], policy="OBS_DEFAULT")
    assert source.current().is_anonymous
    assert source.current().is_anonymous
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.name == "obs_engine"
    for words in ("OBS_ACCESS_KEY_ID", "metadata service 127.0.0.1:9", "HUAWEI_CLOUD_IDP_ID"):
        assert words in record.getMessage()


# --- IAM --------------------------------------------------------------------------------------------------------


def test_iam_is_asked_as_the_sdk_asks_it(cloud: Cloud, tmp_path: Path) -> None:
    """The SDK's provider and ours: the same requests, the same keys; each may be given to our client."""
    path = tmp_path / "id.json"
    path.write_text(json.dumps({
        "idp_id": "idp", "project_id": "p", "project_name": "n", "iam_endpoint": f"http://{cloud.address}",
        "credential_expires_seconds": 1800, "id_token": ID_TOKEN,
    }))  # fmt: skip
    theirs = CredentialSource(id_token_provider=loadtoken.IdTokenCredentialsProvider(config_file=str(path)))
    ours = CredentialSource(id_token_provider=str(path))
    assert theirs.current() == ours.current() == cloud.keys
    assert [(m, p, h["content-type"], h.get("x-idp-id"), json.loads(b)) for m, p, h, b in cloud.asked[:2]] == [
        (m, p, h["content-type"], h.get("x-idp-id"), json.loads(b)) for m, p, h, b in cloud.asked[2:]
    ]


def test_a_refused_id_token_is_not_shown(cloud: Cloud) -> None:
    """IAM repeats it in its own words; ours leave it out."""
    wrong = f"not-{ID_TOKEN}"
    provider = IdTokenCredentialsProvider(wrong, idp_id="idp", iam_endpoint=f"http://{cloud.address}")
    with pytest.raises(CredentialsError, match=r"status 401 \(IAM.0011: token \*\*\* is wrong\); renew") as caught:
        CredentialSource(id_token_provider=provider).current()
    assert ID_TOKEN not in str(caught.value)
    assert len(cloud.asked) == 1


def test_a_pod_finds_its_keys(
    cloud: Cloud, proxies: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """'OIDC' by the environment; a rotated file is read when the keys are about to expire."""
    oidc = type("OIDC", (OIDC,), {"iam_endpoint": f"http://{cloud.address}"})
    path = tmp_path / "token"
    path.write_text(f"{ID_TOKEN}\n")
    monkeypatch.setenv("HUAWEI_CLOUD_IDP_ID", "idp")
    monkeypatch.setenv("OIDC_TOKEN_FILE", str(path))
    source = CredentialSource(providers=[oidc], policy="OIDC")
    first = source.current()
    assert first == cloud.keys
    path.write_text("stale")
    cloud.keys = Credentials("ak2", f"{SECRET}-2", "token2")
    later(monkeypatch, 3280)
    assert source.current() == first
    later(monkeypatch, 3301)
    assert source.current() == first, "IAM refuses the stale token, and the keys in hand still work"
    path.write_text(ID_TOKEN)
    later(monkeypatch, 3340)
    assert source.current() == cloud.keys


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure_cloud(authority: trustme.CA) -> Iterator[Cloud]:
    """With a certificate for the name `iam.test` and this address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("iam.test", "127.0.0.1").configure_cert(context)
    with Cloud(context) as cloud:
        yield cloud


def trust(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


def test_the_certificate_of_iam_is_checked(
    secure_cloud: Cloud, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authority and the name; a stranger is told nothing."""

    def source(name: str = "127.0.0.1") -> CredentialSource:
        endpoint = f"https://{name}:{secure_cloud.port}"
        return CredentialSource(id_token_provider={"id_token": ID_TOKEN, "idp_id": "idp", "iam_endpoint": endpoint})

    with pytest.raises(CredentialsError, match="its certificate is not trusted"):
        source().current()
    trust(authority, tmp_path, monkeypatch)
    with pytest.raises(CredentialsError, match="its certificate is not trusted"):
        source("localhost").current()
    assert secure_cloud.asked == []
    assert source().current() == secure_cloud.keys


def test_iam_is_reached_through_the_proxy_of_the_client(
    secure_cloud: Cloud, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CONNECT tunnel by name, with a password; a wrong one is refused without being shown."""
    trust(authority, tmp_path, monkeypatch)
    provider = {"id_token": ID_TOKEN, "idp_id": "idp", "iam_endpoint": f"https://iam.test:{secure_cloud.port}"}
    with ConnectProxy("user", SECRET) as proxy:
        right = CredentialSource(id_token_provider=provider, proxy=Proxy("127.0.0.1", proxy.port, "user", SECRET))
        assert right.current() == secure_cloud.keys
        assert proxy.targets == [f"iam.test:{secure_cloud.port}"] * 2
        assert ID_TOKEN.encode() not in proxy.tunnelled
        wrong = CredentialSource(id_token_provider=provider, proxy=Proxy("127.0.0.1", proxy.port, "user", f"{SECRET}?"))
        with pytest.raises(CredentialsError, match="407") as caught:
            wrong.current()
    assert SECRET not in str(caught.value)


# --- through the engine -----------------------------------------------------------------------------------------


NEW_KEY = "AKLOCALNEWNEWNEWNEW1"
NEW_SECRET = f"{SECRET}-new"


@pytest.fixture
def obs() -> Iterator[LocalObs]:
    """A server of the test's own, whose keys may change."""
    with LocalObs(buckets=["bench"], secret_key=f"{SECRET}-old") as obs:
        yield obs


def settings(obs: LocalObs, **more: Any) -> dict[str, Any]:
    """A client without explicit keys."""
    return client_arguments(obs) | {"access_key_id": "", "secret_access_key": "", "max_retry_count": 20} | more


def upload(client: ObsClient, key: str, source: Path, **more: Any) -> GetResult:
    return client.uploadFile("bench", key, source, **{"partSize": PART, "taskNum": 4} | more)


def set_environment(monkeypatch: pytest.MonkeyPatch, obs: LocalObs) -> None:
    monkeypatch.setenv("OBS_ACCESS_KEY_ID", obs.access_key)
    monkeypatch.setenv("OBS_SECRET_ACCESS_KEY", obs.secret_key)
    if obs.security_token:
        monkeypatch.setenv("OBS_SECURITY_TOKEN", obs.security_token)


def stored(obs: LocalObs) -> int:
    return len([r for r in obs.requests("UploadPart") if r["status"] == 200])


def test_keys_of_the_environment_may_change_in_mid_upload(
    obs: LocalObs, key: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Policy 'ENV': the service refuses the old keys, the new ones are in the environment, the upload goes on."""
    set_environment(monkeypatch, obs)
    with ObsClient(**settings(obs, security_provider_policy="ENV")) as client:
        obs.set_faults([{"operation": "UploadPart", "delay_s": 0.05}])
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(upload, client, key, source)
            wait_until(lambda: running.done() or stored(obs) >= 4, "some parts are stored")
            assert not running.done(), running.result()
            obs.stop()
            obs.access_key, obs.secret_key = NEW_KEY, NEW_SECRET
            set_environment(monkeypatch, obs)
            obs.restart()
            result = running.result(timeout=60)
    assert result.status == 200
    assert is_equal(obs, "bench", key, source)
    assert len(obs.requests("Initiate")) == 1
    assert result.report.parts_sent == 20


def test_a_refresh_reaches_an_upload_that_runs(obs: LocalObs, key: str, source: Path) -> None:
    """`refresh()` from another thread, before the service refuses the old keys."""
    with ObsClient(**settings(obs, access_key_id=obs.access_key, secret_access_key=obs.secret_key)) as client:
        obs.set_faults([{"operation": "UploadPart", "delay_s": 0.05}])
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(upload, client, key, source)
            wait_until(lambda: running.done() or stored(obs) >= 4, "some parts are stored")
            assert not running.done(), running.result()
            obs.stop()
            obs.access_key, obs.secret_key = NEW_KEY, NEW_SECRET
            client.refresh(NEW_KEY, NEW_SECRET)
            obs.restart()
            result = running.result(timeout=60)
        assert result.status == 200
        assert is_equal(obs, "bench", key, source)
        assert len(obs.requests("Initiate")) == 1
        # And the next upload begins with them.
        obs.clear_requests()
        upload(client, key, source)
        assert {r["status"] for r in obs.requests()} == {200}


def test_a_refresh_without_a_refusal_changes_the_keys_too(obs: LocalObs, key: str, source: Path) -> None:
    """At least once a second they are read anew: what follows is signed with the new ones."""
    with Relay(obs.port) as relay:
        arguments = settings(obs, access_key_id=obs.access_key, secret_access_key=obs.secret_key,
                             server=f"http://127.0.0.1:{relay.port}")  # fmt: skip
        obs.set_faults([{"operation": "UploadPart", "delay_s": 0.15}])
        with ObsClient(**arguments) as client, ThreadPoolExecutor(1) as pool:
            running = pool.submit(upload, client, key, source, taskNum=1, partSize=2 * PART)
            wait_until(lambda: running.done() or stored(obs) >= 1, "a part is stored")
            assert not running.done(), running.result()
            client.refresh(f" {obs.access_key}\n", obs.secret_key, "a-token")
            assert running.result(timeout=60).status == 200
        tokens = [r.headers.get("x-amz-security-token") for r in relay.passed()]
    assert tokens[0] is None
    assert tokens[-1] == "a-token"
    assert tokens == sorted(tokens, key=bool), "once changed, they are changed for good"


class Changing:
    """A provider that answers its keys in turn, the last one for ever."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls = 0

    def get_credentials(self) -> Any:
        self.calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


def keys_of(obs: LocalObs, **other: Any) -> dict[str, Any]:
    return {"accessKey": obs.access_key, "secretKey": obs.secret_key, "securityToken": obs.security_token} | other


@pytest.mark.parametrize(
    ("wrong", "code"),
    [({"accessKey": "AKWRONG"}, "InvalidAccessKeyId"), ({"secretKey": f"{SECRET}-wrong"}, "SignatureDoesNotMatch")],
)
def test_refused_keys_are_asked_for_anew(
    obs: LocalObs, key: str, source: Path, wrong: dict[str, str], code: str
) -> None:
    """The service refuses the first; the provider has others by now; the request is sent again, signed with them."""
    provider = Changing(keys_of(obs, **wrong), keys_of(obs))
    arguments = settings(obs, security_providers=[provider], security_provider_policy="Changing", max_retry_count=0)
    with ObsClient(**arguments) as client:
        assert upload(client, key, source).status == 200
    assert is_equal(obs, "bench", key, source)
    first, second = obs.requests()[:2]
    assert (first["status"], first["code"]) == (403, code)
    assert second["status"] == 200
    assert {r["status"] for r in obs.requests()[2:]} == {200}


def test_keys_that_are_refused_for_good_end_the_upload(obs: LocalObs, key: str, source: Path) -> None:
    """A provider that has no others is asked once more, not for ever; the service's words are the error."""
    provider = Changing(keys_of(obs, accessKey="AKWRONG"))
    arguments = settings(obs, security_providers=[provider], security_provider_policy="Changing")
    with ObsClient(**arguments) as client, pytest.raises(ServiceError) as caught:
        upload(client, key, source)
    assert caught.value.errorCode == "InvalidAccessKeyId"
    assert SECRET not in str(caught.value)
    assert len(obs.requests()) <= 3


def test_an_upload_that_its_keys_ended_goes_on_with_others(obs: LocalObs, key: str, source: Path) -> None:
    """With a checkpoint nothing is lost: the next call, with keys that the service takes, sends the rest."""
    provider = Changing(keys_of(obs))
    arguments = settings(obs, security_providers=[provider], security_provider_policy="Changing")
    obs.set_faults([{"operation": "UploadPart", "delay_s": 0.05}])
    with ObsClient(**arguments, engine=EngineOptions(keys_wait_s=0.5)) as client:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(upload, client, key, source, enableCheckpoint=True)
            wait_until(lambda: running.done() or stored(obs) >= 4, "some parts are stored")
            assert not running.done(), running.result()
            obs.stop()
            obs.access_key, obs.secret_key = NEW_KEY, NEW_SECRET
            obs.restart()
            with pytest.raises(ServiceError) as caught:
                running.result(timeout=60)
        assert caught.value.errorCode == "InvalidAccessKeyId"
        assert caught.value.checkpoint_file
        assert SECRET not in str(caught.value)
        provider.answers = [keys_of(obs)]
        result = upload(client, key, source, enableCheckpoint=True)
    assert result.status == 200
    assert result.report is not None
    assert result.report.parts_resumed >= 4
    assert len(obs.requests("Initiate")) == 1
    assert is_equal(obs, "bench", key, source)


def test_an_upload_waits_for_a_provider_that_is_late(obs: LocalObs, key: str, source: Path) -> None:
    """Its keys are refused, and the provider has others a little later: one call, one upload, nothing sent twice."""
    provider = Changing(keys_of(obs))
    arguments = settings(obs, security_providers=[provider], security_provider_policy="Changing")
    obs.set_faults([{"operation": "UploadPart", "delay_s": 0.05}])
    with ObsClient(**arguments) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(upload, client, key, source)
        wait_until(lambda: running.done() or stored(obs) >= 4, "some parts are stored")
        obs.stop()
        obs.access_key, obs.secret_key = NEW_KEY, NEW_SECRET
        obs.restart()
        wait_until(lambda: any(r["status"] == 403 for r in obs.requests()), "the old keys are refused")
        provider.answers = [keys_of(obs)]
        assert running.result(timeout=60).status == 200
    assert is_equal(obs, "bench", key, source)


@pytest.mark.parametrize("policy", ["Changing", "OBS_DEFAULT"])
def test_a_provider_that_fails_later_does_not_end_the_upload(
    obs: LocalObs, key: str, source: Path, policy: str
) -> None:
    """The keys in hand are used on as long as the service takes them; a running upload never turns anonymous."""
    provider = Changing(keys_of(obs), RuntimeError(SECRET))
    arguments = settings(obs, security_providers=[provider], security_provider_policy=policy)
    obs.set_faults([{"operation": "UploadPart", "delay_s": 0.15}])
    with ObsClient(**arguments) as client:
        assert upload(client, key, source, taskNum=2).status == 200
    assert provider.calls >= 2
    assert is_equal(obs, "bench", key, source)


def test_the_token_of_temporary_keys_is_sent_and_signed(
    key: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every request, wherever it comes from; without it the service refuses all of them."""
    with LocalObs(buckets=["bench"], secret_key=f"{SECRET}-t", security_token="sts-token") as obs:
        set_environment(monkeypatch, obs)
        with Relay(obs.port) as relay:
            for signature in ("v2", "v4"):
                server = f"http://127.0.0.1:{relay.port}"
                arguments = settings(obs, security_provider_policy="ENV", server=server, signature=signature)
                with ObsClient(**arguments) as client:
                    assert upload(client, f"{key}-{signature}", source).status == 200
            passed: list[Passed] = relay.passed()
        assert {r.headers["x-amz-security-token"] for r in passed} == {"sts-token"}
        assert {r["status"] for r in obs.requests()} == {200}
        signed = [r.headers["authorization"] for r in passed if r.headers["authorization"].startswith("AWS4")]
        assert signed
        assert all("x-amz-security-token" in text for text in signed)
        monkeypatch.delenv("OBS_SECURITY_TOKEN")
        with ObsClient(**settings(obs, security_provider_policy="ENV")) as client, pytest.raises(ServiceError):
            upload(client, key, source)


def test_explicit_keys_beat_the_policy_of_the_client(
    obs: LocalObs, key: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked."""
    monkeypatch.setenv("OBS_ACCESS_KEY_ID", "AKWRONG")
    monkeypatch.setenv("OBS_SECRET_ACCESS_KEY", SECRET)
    provider = Changing(RuntimeError("nobody asks"))
    for policy in ({"security_provider_policy": "ENV"}, {"security_provider_policy": "OBS_DEFAULT"},
                   {"security_providers": [provider], "security_provider_policy": "Changing"}):  # fmt: skip
        explicit = {"access_key_id": f" {obs.access_key} ", "secret_access_key": obs.secret_key}
        with ObsClient(**settings(obs, **explicit, **policy)) as client:
            assert upload(client, key, source).status == 200
    assert {r["status"] for r in obs.requests()} == {200}
    assert provider.calls == 0


@pytest.mark.parametrize("policy", [None, "OBS_DEFAULT"])
def test_without_keys_requests_are_anonymous(
    obs: LocalObs, key: str, source: Path, policy: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """No Authorization header; the default chain warns once for the client, however many requests it sends."""
    broken = Changing(RuntimeError(SECRET))
    with Relay(obs.port) as relay:
        arguments = settings(obs, server=f"http://127.0.0.1:{relay.port}", security_providers=[ENV, broken],
                             security_provider_policy=policy)  # fmt: skip
        with ObsClient(**arguments) as client:
            for _ in range(2):
                with pytest.raises(ServiceError) as caught:
                    upload(client, key, source)
                assert caught.value.status == 403
        passed = relay.passed()
    assert passed
    assert not any("authorization" in request.headers for request in passed)
    warnings = [r for r in caplog.records if "anonymous" in r.getMessage()]
    assert len(warnings) == (1 if policy else 0)


def test_a_named_policy_without_keys_is_an_error_before_anything_is_sent(
    obs: LocalObs, key: str, source: Path
) -> None:
    """The SDK would go on anonymously. The client lives on: keys may come."""
    with ObsClient(**settings(obs, security_provider_policy="ENV")) as client:
        with pytest.raises(CredentialsError, match="OBS_ACCESS_KEY_ID"):
            upload(client, key, source)
        assert obs.requests() == []
        client.refresh(obs.access_key, obs.secret_key)
        assert upload(client, key, source).status == 200


def test_wrong_policies_are_refused_by_the_client(obs: LocalObs) -> None:
    """At construction, as all arguments are; also where explicit keys would beat them."""
    for more in ({"security_provider_policy": "env"}, {"security_providers": []}, {"security_providers": [object()]},
                 {"id_token_credentials_provider": 5}):  # fmt: skip
        with pytest.raises(InvalidArgumentError):
            ObsClient(**settings(obs, **more))
        with pytest.raises(InvalidArgumentError):
            ObsClient(**client_arguments(obs, **more))


@pytest.mark.parametrize("kind", ["dict", "file", "ours", "theirs"])
def test_an_id_token_uploads_a_file(cloud: Cloud, key: str, source: Path, tmp_path: Path, kind: str) -> None:
    """`id_token_credentials_provider` in all its forms, the SDK's own class among them."""
    config = {"id_token": ID_TOKEN, "idp_id": "idp", "iam_endpoint": f"http://{cloud.address}"}
    (tmp_path / "id.json").write_text(json.dumps(config))
    forms: dict[str, Callable[[], Any]] = {
        "dict": lambda: config,
        "file": lambda: str(tmp_path / "id.json"),
        "ours": lambda: IdTokenCredentialsProvider(**cast(Any, config)),
        "theirs": lambda: loadtoken.IdTokenCredentialsProvider(**config),
    }
    with LocalObs(buckets=["bench"], secret_key=cloud.keys.secret_access_key,
                  access_key="ak1", security_token=cloud.keys.security_token) as obs:  # fmt: skip
        with ObsClient(**settings(obs, id_token_credentials_provider=forms[kind]())) as client:
            assert upload(client, key, source).status == 200
            assert upload(client, key, source).status == 200
        assert {r["status"] for r in obs.requests()} == {200}
    assert len(cloud.asked) == 2


def test_keys_of_a_server_upload_a_file(ecs: type[ECS], cloud: Cloud, key: str, source: Path) -> None:
    """When the service refuses what was kept, the metadata service is asked at once."""
    with LocalObs(buckets=["bench"], access_key="ak2", secret_key=f"{SECRET}-2", security_token="token2") as obs:
        ecs.search()
        cloud.keys = Credentials("ak2", f"{SECRET}-2", "token2")
        with ObsClient(**settings(obs, security_providers=[ecs], security_provider_policy="ECS")) as client:
            assert upload(client, key, source).status == 200
        assert [r["status"] for r in obs.requests()[:2]] == [403, 200]
    assert len(cloud.asked) == 4


# --- tokens that live shorter than the upload ----------------------------------------------------------------------


class Rotating:
    """A security token service: each token lives so long at the server, and its provider knows the newest.

    Args:
        lag_s: so long after a token's end the provider still hands it out.
    """

    def __init__(self, obs: LocalObs, life_s: float, lag_s: float) -> None:
        self._obs, self._life_s, self._lag_s = obs, life_s, lag_s
        self._known: dict[str, Any] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._rotate)
        self.issued = 0

    def get_credentials(self) -> dict[str, Any]:
        return self._known

    def __enter__(self) -> Rotating:
        self._next()
        self._known = keys_of(self._obs)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._obs.set_keys(NEW_KEY, NEW_SECRET)  # for those who look at the object

    def _rotate(self) -> None:
        while not self._stop.wait(self._life_s - self._lag_s):
            self._next()
            self._stop.wait(self._lag_s)
            self._known = keys_of(self._obs)

    def _next(self) -> None:
        self.issued += 1
        self._obs.set_keys(f"AKTEMPORARY{self.issued:09d}", f"{SECRET}-{self.issued}", f"token-{self.issued}")


class Tokens(NamedTuple):
    """How long a token lives, how late its provider is, and how long an upload takes at least."""

    life_s: float
    lag_s: float
    upload_s: float


def tokens_of(*runs: Tokens) -> pytest.MarkDecorator:
    marked = [pytest.param(run, marks=[pytest.mark.soak] if run.upload_s > 3 else []) for run in runs]
    return pytest.mark.parametrize("tokens", marked, ids=lambda run: f"{run.life_s}-{run.lag_s}-{run.upload_s}")


LATE = Tokens(1.0, 0.2, 3), Tokens(2.0, 0.2, 30)
PARTS = 60


@pytest.mark.timeout(300)
@tokens_of(Tokens(0.5, 0, 3), Tokens(2.0, 0, 30), *LATE)
def test_tokens_may_live_shorter_than_the_upload(obs: LocalObs, key: str, tmp_path: Path, tokens: Tokens) -> None:
    """Every worker has the new one in time, or asks again; nothing fails, and nothing is begun anew."""
    source = make_file(tmp_path / "source", PARTS * PART, 3)
    with Rotating(obs, tokens.life_s, tokens.lag_s) as rotating:
        arguments = settings(obs, security_providers=[rotating], security_provider_policy="Rotating", max_retry_count=3)
        engine = EngineOptions(max_bandwidth_bytes_per_s=PARTS * PART / tokens.upload_s)
        with ObsClient(**arguments, engine=engine) as client:
            result = upload(client, key, source)
        assert result.status == 200
        assert rotating.issued >= 0.8 * tokens.upload_s / tokens.life_s
    refused = [r["code"] for r in obs.requests() if r["status"] != 200]
    print(f"{rotating.issued} tokens, {len(refused)} requests refused, {result.report.seconds:.1f} s")
    assert set(refused) <= {"ExpiredToken", "InvalidAccessKeyId"}
    assert len([r for r in obs.requests("Initiate") if r["status"] == 200]) == 1
    assert stored(obs) == PARTS
    assert is_equal(obs, "bench", key, source)


@pytest.mark.timeout(120)
@tokens_of(*LATE)
def test_the_sdks_upload_ends_with_its_token(obs: LocalObs, key: str, tmp_path: Path, tokens: Tokens) -> None:
    """The same run with the official SDK, where the provider is late, fails at a part that is refused.

    Where it is never late, the SDK comes through, too: it asks before each request.
    """
    sdk = pytest.importorskip("obs")
    source = make_file(tmp_path / "source", PARTS * PART, 3)
    # Why so: each of its threads then asks while the provider is late.
    obs.set_faults([{"operation": "UploadPart", "delay_s": 0.9 * tokens.lag_s}])
    with Rotating(obs, tokens.life_s, tokens.lag_s) as rotating:

        def search() -> dict[str, Any]:
            return rotating.get_credentials()

        # Why a class with a function: the SDK takes nothing else, and would go on anonymously.
        provider = type("Rotating", (), {"search": search})
        client = sdk.ObsClient(server=obs.url, security_providers=[provider], security_provider_policy="Rotating")
        try:
            status = client.uploadFile("bench", key, str(source), partSize=PART, taskNum=4).status
        except Exception as error:
            status = str(error)
        client.close()
    refused = {r["code"] for r in obs.requests("UploadPart") if r["status"] != 200}
    print(f"{status}, {stored(obs)} parts stored, {refused or 'nothing'} refused")
    assert status != 200
    assert refused & {"ExpiredToken", "InvalidAccessKeyId"}
    assert 0 < stored(obs) < PARTS
    assert not [r for r in obs.requests("Complete") if r["status"] == 200]
