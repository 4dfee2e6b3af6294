"""Where access keys come from: every decision, without a network."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from obs import loadtoken

from obs_engine import credentials
from obs_engine.credentials import (
    ECS,
    ENV,
    OIDC,
    CredentialSource,
    IdTokenCredentialsProvider,
    Proxy,
    checked_credentials,
    provider_of,
)
from obs_engine.errors import CredentialsError, InvalidArgumentError
from obs_engine.wire.signing import Credentials

SECRET = "a-secret-that-nobody-may-see"
ANONYMOUS = Credentials()
KEYS = {"accessKey": "ak", "secretKey": SECRET, "securityToken": "token"}
FOUND = Credentials("ak", SECRET, "token")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("OBS_", "OIDC_", "HUAWEI_CLOUD_")):
            monkeypatch.delenv(name)


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0
        self.slept: list[float] = []

    def time(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds

    def stamp(self, seconds: float) -> str:
        """The moment in so many seconds, as the services write it."""
        return time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(self.now_s + seconds))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = SimpleNamespace(time=clock.time, monotonic=clock.monotonic, sleep=clock.sleep, strptime=time.strptime)
    for module in (credentials.source, credentials.keeper, credentials.asking):
        monkeypatch.setattr(module, "time", fake)
    return clock


class Service:
    """Answers in the place of the network, and notes what was asked."""

    def __init__(self) -> None:
        self.script: list[Callable[[], Any]] = []
        self.always: Callable[[str, str], Any] | None = None
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.bodies: list[Any] = []
        self.ways: list[Any] = []

    def answer(self, status: int, body: object = b"", headers: Mapping[str, str] | None = None) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.script.append(lambda: credentials.asking.Answer(status, headers or {}, raw))

    def fail(self, why: str = "no route", *, is_final: bool = False) -> None:
        def raise_it() -> Any:
            raise credentials.asking._NoAnswerError(why, is_final=is_final)

        self.script.append(raise_it)

    def __call__(self, origin: str, method: str, path: str, headers: Mapping[str, str], body: bytes | None,
                 timeout_s: float, proxy: Any) -> Any:  # fmt: skip
        self.asked.append((method, f"{origin}{path}", dict(headers)))
        self.bodies.append(json.loads(body) if body else None)
        self.ways.append(proxy)
        return self.script.pop(0)()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service()
    monkeypatch.setattr(credentials.asking, "_ask_once", service)
    return service


@pytest.fixture
def ecs() -> type[ECS]:
    """The class with a memory of its own."""
    return type("ECS", (ECS,), {})


def credential(clock: Clock, expires_in_s: float, number: int = 1) -> dict[str, Any]:
    """What both services answer."""
    return {"credential": {"access": f"ak{number}", "secret": f"{SECRET}{number}", "securitytoken": f"token{number}",
                           "expires_at": clock.stamp(expires_in_s)}}  # fmt: skip


def keys(number: int) -> dict[str, str]:
    return {"accessKey": f"ak{number}", "secretKey": f"{SECRET}{number}", "securityToken": f"token{number}"}


# --- keys as given ----------------------------------------------------------------------------------------------


def test_keys_are_stripped_and_none_is_empty() -> None:
    """Blanks around a key never count; None and blank are no key."""
    assert checked_credentials(" ak\n", "\tsk ", " t ") == Credentials("ak", "sk", "t")
    assert checked_credentials(None, None, "  ") == ANONYMOUS
    assert checked_credentials("", "") == ANONYMOUS


@pytest.mark.parametrize("value", [SECRET.encode(), 17, [SECRET], f"{SECRET}\0", f"{SECRET}\nmore", True])
@pytest.mark.parametrize("place", ["access_key_id", "secret_access_key", "security_token"])
def test_a_key_that_is_no_printable_text_is_refused_unseen(place: str, value: object) -> None:
    """The message names the argument and never shows what was in it."""
    arguments: dict[str, Any] = {"access_key_id": "ak", "secret_access_key": "sk", "security_token": None}
    with pytest.raises(InvalidArgumentError, match=place) as caught:
        CredentialSource(**arguments | {place: value})
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


# --- the source -------------------------------------------------------------------------------------------------


class Own:
    """A provider as a user writes it."""

    @staticmethod
    def search() -> dict[str, str]:
        return KEYS


class Vault:
    """Another, as an instance."""

    def __init__(self) -> None:
        self.answers: list[Any] = [KEYS]
        self.calls = 0
        self.renewals = 0

    def get_credentials(self) -> Any:
        self.calls += 1
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def search(self) -> Any:
        raise AssertionError("get_credentials() is preferred")

    def refresh(self) -> None:
        self.renewals += 1


class Broken:
    """Has nothing, and says so with a secret in it."""

    @staticmethod
    def search() -> dict[str, str]:
        raise RuntimeError(SECRET)


def test_without_a_policy_the_keys_are_those_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment counts only where a policy says so."""
    monkeypatch.setenv("OBS_ACCESS_KEY_ID", "env-ak")
    monkeypatch.setenv("OBS_SECRET_ACCESS_KEY", "env-sk")
    assert CredentialSource("ak", "sk").current() == Credentials("ak", "sk")
    assert CredentialSource().current() == ANONYMOUS
    assert CredentialSource(providers=[Broken]).current() == ANONYMOUS
    assert CredentialSource("ak", "").current().is_anonymous
    assert CredentialSource().is_static
    assert CredentialSource("ak", "sk", policy="ENV").is_static
    assert not CredentialSource(policy="ENV").is_static


def test_the_environment_is_read_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policy 'ENV': a rotation of the variables is seen at once; blanks do not count; the token may be absent."""
    source = CredentialSource(policy="ENV")
    monkeypatch.setenv("OBS_ACCESS_KEY_ID", " one\n")
    monkeypatch.setenv("OBS_SECRET_ACCESS_KEY", "sk-one")
    assert source.current() == Credentials("one", "sk-one")
    monkeypatch.setenv("OBS_ACCESS_KEY_ID", "two")
    monkeypatch.setenv("OBS_SECRET_ACCESS_KEY", "sk-two")
    monkeypatch.setenv("OBS_SECURITY_TOKEN", "t")
    assert source.current() == Credentials("two", "sk-two", "t")
    assert ENV.search() == {"accessKey": "two", "secretKey": "sk-two", "securityToken": "t"}
    monkeypatch.setenv("OBS_SECRET_ACCESS_KEY", "  ")
    with pytest.raises(CredentialsError, match="found no OBS_SECRET_ACCESS_KEY"):
        source.current()


def test_explicit_keys_beat_the_policy_and_the_id_token() -> None:
    """Both keys must be there to beat it; one alone counts for nothing."""
    assert CredentialSource("ak", "sk", policy="Broken", providers=[Broken]).current() == Credentials("ak", "sk")
    assert CredentialSource("ak", "sk", id_token_provider=Vault()).current() == Credentials("ak", "sk")
    assert CredentialSource("other", "", policy="Own", providers=[Own]).current() == FOUND


def test_replace_swaps_all_three_and_empty_ones_bring_the_policy_back() -> None:
    """`refresh()` of the client: explicit keys from then on; bad ones change nothing."""
    source = CredentialSource(policy="Own", providers=[Own])
    assert not source.is_static
    source.replace(" new ", "sk", "t")
    assert source.current() == Credentials("new", "sk", "t")
    assert source.is_static
    with pytest.raises(InvalidArgumentError, match="secret_access_key") as caught:
        source.replace("newer", f"{SECRET}\0")
    assert SECRET not in str(caught.value)
    assert source.current() == Credentials("new", "sk", "t")
    source.replace("newest", "sk2")
    assert source.current() == Credentials("newest", "sk2")
    source.replace("", "")
    assert source.current() == FOUND


def test_replace_is_seen_whole_by_other_threads() -> None:
    """A reader finds the keys of one `replace`, never a mixture of two."""
    source = CredentialSource("0", "0", "0")
    is_over = threading.Event()

    def read() -> set[tuple[str, str, str | None]]:
        seen = set()
        while not is_over.is_set():
            found = source.current()
            seen.add((found.access_key_id, found.secret_access_key, found.security_token))
        return seen

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        for number in map(str, range(2000)):
            source.replace(number, number, number)
        is_over.set()
        assert all(ak == sk == token for reader in readers for ak, sk, token in reader.result())


@pytest.mark.parametrize("policy", ["env", "Vault", "", " ENV", 5, ["ENV"]])
def test_an_unknown_policy_is_refused(policy: Any) -> None:
    """The message lists those that there are. (The SDK goes on anonymously.)"""
    with pytest.raises(InvalidArgumentError, match=r"security_provider_policy.*'ENV', 'ECS', 'OIDC', 'OBS_DEFAULT'"):
        CredentialSource(policy=policy)


class NeedsInstance:
    """Has the right method, for instances."""

    def search(self) -> dict[str, str]:
        return KEYS


class NoMethod:
    """Has none."""


@pytest.mark.parametrize(
    ("providers", "words"),
    [
        ([], "an empty one"),
        ("ENV", "security_providers"),
        (ENV, "security_providers"),
        ({"ENV": ENV}, "security_providers"),
        (5, "security_providers"),
        ([ENV, NoMethod], r"number 2 \(NoMethod\)"),
        ([NoMethod()], r"number 1 \(NoMethod\)"),
        ([NeedsInstance], "make it static, or give an instance"),
        ([IdTokenCredentialsProvider], "give an instance"),
        (["ENV"], "number 1"),
        ([None], "number 1"),
    ],
)
def test_providers_that_cannot_be_asked_are_refused(providers: Any, words: str) -> None:
    """Whether the policy names them or not; the SDK prints a traceback and goes on anonymously."""
    with pytest.raises(InvalidArgumentError, match=words):
        CredentialSource(providers=providers)
    with pytest.raises(InvalidArgumentError):
        CredentialSource("ak", "sk", providers=providers, policy="OBS_DEFAULT")


def test_own_providers_are_named_as_their_class() -> None:
    """Classes and instances alike; the first of a name is asked."""
    vault, other = Vault(), Vault()
    source = CredentialSource(providers=(Broken, vault, other, NeedsInstance()), policy="Vault")
    assert source.current() == FOUND
    assert (vault.calls, other.calls) == (1, 0)
    assert CredentialSource(providers=[NeedsInstance()], policy="NeedsInstance").current() == FOUND
    vault.__name__ = "safe"  # type: ignore[attr-defined]
    assert CredentialSource(providers=[vault], policy="safe").current() == FOUND


def test_providers_of_the_sdk_are_asked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ENV as a class; its errors become a CredentialsError with the cause chained."""
    source = CredentialSource(providers=[loadtoken.ENV], policy="ENV")
    with pytest.raises(CredentialsError, match=r"^ENV: .*NoneTokenException") as caught:
        source.current()
    assert isinstance(caught.value.__cause__, loadtoken.NoneTokenException)
    monkeypatch.setenv("OBS_ACCESS_KEY_ID", "ak")
    monkeypatch.setenv("OBS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("OBS_SECURITY_TOKEN", "token")
    assert source.current() == FOUND


def test_the_id_token_provider_of_the_sdk_is_asked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance of it, as `id_token_credentials_provider` or in the list."""
    provider = loadtoken.IdTokenCredentialsProvider(id_token="jwt", idp_id="idp")
    monkeypatch.setattr(provider, "_get_federation_token", lambda: "federation")
    monkeypatch.setattr(
        provider, "_get_temporary_aksk",
        lambda _: {"access": "ak", "secret": SECRET, "securitytoken": "token",
                   "expires_at": "2999-01-01T00:00:00.000000Z"},
    )  # fmt: skip
    assert CredentialSource(id_token_provider=provider).current() == FOUND
    assert CredentialSource(providers=[provider], policy="IdTokenCredentialsProvider").current() == FOUND


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "expected a dict"),
        ((SECRET, SECRET), "expected a dict"),
        ({}, "found no accessKey"),
        ({"accessKey": " ", "secretKey": SECRET}, "found no accessKey"),
        ({"accessKey": "ak"}, "found no secretKey"),
        ({"accessKey": "ak", "secretKey": SECRET.encode()}, "secret_access_key: expected a string, found a bytes"),
        ({"accessKey": "ak", "secretKey": f"{SECRET}\r\nx"}, "printable"),
        ({"accessKey": "ak", "secretKey": SECRET, "securityToken": 5}, "security_token"),
        (ValueError(SECRET), "found a ValueError"),
        (KeyError(SECRET), "found a KeyError"),
    ],
)
def test_what_a_named_provider_answers_is_checked(answer: Any, words: str) -> None:
    """A named policy that fails is an error, not an anonymous client; no secret is in its words."""
    vault = Vault()
    vault.answers = [answer]
    with pytest.raises(CredentialsError, match=f"^Vault: .*{words}") as caught:
        CredentialSource(providers=[vault], policy="Vault").current()
    assert SECRET not in str(caught.value)
    assert caught.value.is_retryable


def test_the_chain_takes_the_first_that_has_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """'OBS_DEFAULT' asks in order, each time anew: an earlier one that comes back wins."""
    source = CredentialSource(providers=[ENV, Broken, Own], policy="OBS_DEFAULT")
    assert source.current() == FOUND
    monkeypatch.setenv("OBS_ACCESS_KEY_ID", "env-ak")
    monkeypatch.setenv("OBS_SECRET_ACCESS_KEY", "env-sk")
    assert source.current() == Credentials("env-ak", "env-sk")


def test_a_chain_without_keys_warns_once_and_is_anonymous(caplog: pytest.LogCaptureFixture) -> None:
    """One warning until it has had keys again; it says what each provider lacked, and no secret."""
    vault = Vault()
    source = CredentialSource(providers=[Broken, vault], policy="OBS_DEFAULT")
    vault.answers = [RuntimeError(SECRET)]
    with caplog.at_level(logging.WARNING, "obs_engine"):
        assert source.current() == ANONYMOUS
        assert source.current() == ANONYMOUS
        assert len(caplog.records) == 1
        vault.answers = [KEYS]
        assert source.current() == FOUND
        vault.answers = [RuntimeError(SECRET)]
        assert source.current() == ANONYMOUS
    assert [(r.name, r.levelname) for r in caplog.records] == [("obs_engine", "WARNING")] * 2
    assert "Broken: " in caplog.text
    assert "Vault: " in caplog.text
    assert SECRET not in caplog.text


def test_a_provider_that_is_slow_to_fail_rests(clock: Clock) -> None:
    """A machine outside of the cloud does not wait for the metadata service at every request."""
    vault = Vault()

    class Slow:
        calls = 0

        @classmethod
        def search(cls) -> Any:
            cls.calls += 1
            clock.now_s += 5
            raise CredentialsError("nobody is there")

    vault.answers = [RuntimeError()]
    source = CredentialSource(providers=[vault, Slow], policy="OBS_DEFAULT")
    for _ in range(10):
        assert source.current() == ANONYMOUS
    assert (vault.calls, Slow.calls) == (10, 1)
    clock.now_s += credentials.source.SLOW_REST_S
    source.current()
    assert Slow.calls == 2
    named = CredentialSource(providers=[Slow], policy="Slow")
    for _ in range(2):
        with pytest.raises(CredentialsError, match="nobody is there"):
            named.current()
    assert Slow.calls == 4


def test_refused_keys_are_asked_for_anew_once() -> None:
    """A provider that has kept the keys that the service refuses is told to forget them; once for the same keys."""
    vault = Vault()
    newer = {**KEYS, "accessKey": "newer"}
    source = CredentialSource(providers=[vault], policy="Vault")
    vault.answers = [KEYS, newer]
    assert source.current(refused=Credentials("older", "x")) == FOUND
    assert vault.renewals == 0
    vault.answers = [KEYS, newer]
    assert source.current(refused=FOUND).access_key_id == "newer"
    assert vault.renewals == 1
    vault.answers = [KEYS]
    assert source.current(refused=FOUND) == FOUND
    assert vault.renewals == 1
    assert CredentialSource(providers=[Own], policy="Own").current(refused=FOUND) == FOUND
    assert CredentialSource("ak", SECRET, "token").current(refused=FOUND) == FOUND


def test_no_secret_is_in_any_repr(tmp_path: Path) -> None:
    """Sources, keys and providers may be printed."""
    provider = IdTokenCredentialsProvider(
        SECRET, idp_id="idp", proxy_host="p", proxy_port=1, proxy_username="u", proxy_password=SECRET
    )
    shown = [
        CredentialSource("ak", SECRET, SECRET), CredentialSource(policy="ENV"), provider,
        CredentialSource(id_token_provider=provider), checked_credentials("ak", SECRET, SECRET),
        Proxy("p", 1, "u", SECRET), credentials.keeper.Found({"secretKey": SECRET}, 0.0, 0.0),
    ]  # fmt: skip
    assert SECRET not in repr(shown)
    assert "policy='ENV'" in repr(shown[1])


# --- ECS --------------------------------------------------------------------------------------------------------


def test_ecs_asks_for_a_token_then_for_the_keys(ecs: type[ECS], service: Service, clock: Clock) -> None:
    """Version 2: PUT for a token of six hours, GET with it; then from memory until 10 minutes before the end."""
    service.answer(200, b" imds-token\n")
    service.answer(200, credential(clock, 3600))
    assert ecs.search() == keys(1)
    host = "http://169.254.169.254"
    assert service.asked == [
        ("PUT", f"{host}/meta-data/latest/api/token", {"X-securitykey-Token-Ttl-Seconds": "21600"}),
        ("GET", f"{host}/openstack/latest/securitykey", {"X-securitykey-Token": "imds-token"}),
    ]
    assert service.ways == [None, None]
    clock.now_s += 3000 - 1
    assert ecs.search() == keys(1)
    assert len(service.asked) == 2
    clock.now_s += 1
    service.answer(200, b"imds-token")
    service.answer(200, credential(clock, 3600, 2))
    assert ecs.search() == keys(2)
    assert CredentialSource(providers=[ecs], policy="ECS").current().access_key_id == "ak2"
    assert ECS._keeper._found is None


@pytest.mark.parametrize(("status", "body"), [(404, b"no"), (405, b"no"), (200, b""), (200, b" \n")])
def test_ecs_falls_back_to_version_1(
    ecs: type[ECS], service: Service, clock: Clock, status: int, body: bytes
) -> None:
    """Where there is no second version, or its token is empty, the keys are asked for without a token."""
    service.answer(status, body)
    service.answer(200, credential(clock, 3600))
    assert ecs.search() == keys(1)
    assert service.asked[1][2] == {}


def test_ecs_tries_three_times(ecs: type[ECS], service: Service, clock: Clock) -> None:
    """Each of the two answers: after no answer, the service's own fault, or empty keys; with short pauses."""
    service.fail()
    service.answer(500)
    service.answer(200, b"t")
    service.answer(200, b"")
    service.fail()
    service.answer(200, credential(clock, 3600))
    assert ecs.search() == keys(1)
    assert clock.slept == [0.1, 0.2, 0.1, 0.2]


@pytest.mark.parametrize(
    ("answers", "words", "requests"),
    [
        ([None] * 3, r"no route \(3 tries\)", 3),
        ([(503, b"")] * 3, "status 503", 3),
        ([(403, b"")], "status 403", 1),
        ([(302, b"")], "status 302", 1),
        ([(200, b"t"), (404, b"")], "status 404; bind an agency", 2),
        ([(200, b"t"), (200, b""), (200, b""), (200, b"")], "found no readable", 4),
        ([(200, b"t"), (200, b"no json")], "found no readable", 2),
        ([(200, b"t"), (200, b"[]")], "found no readable", 2),
        ([(200, b"t"), (200, b'{"credential": {"access": "a", "secret": 5}}')], "found no readable", 2),
    ],
)
def test_ecs_without_keys_says_why(
    ecs: type[ECS], service: Service, clock: Clock, answers: list[Any], words: str, requests: int
) -> None:
    """The last reason is in the message; what will not change is not tried again."""
    for answer in answers:
        service.fail() if answer is None else service.answer(*answer)
    with pytest.raises(CredentialsError, match=f"^ECS: metadata service 169.254.169.254: .*{words}"):
        ecs.search()
    assert len(service.asked) == requests


def test_ecs_does_not_repeat_a_connection_that_nobody_took(ecs: type[ECS], service: Service, clock: Clock) -> None:
    """Outside of the cloud one time-out is enough: TCP has tried several times within it."""
    service.fail("no connection within 5 s", is_final=True)
    with pytest.raises(CredentialsError, match="no connection within 5 s; "):
        ecs.search()
    assert clock.slept == []


@pytest.mark.parametrize("missing", ["access", "secret", "securitytoken", "expires_at"])
@pytest.mark.parametrize("value", [None, "", 5])
def test_incomplete_keys_are_refused_by_name(
    ecs: type[ECS], service: Service, clock: Clock, missing: str, value: object
) -> None:
    """The message names the missing field, and shows none of the others."""
    answer = credential(clock, 3600)
    answer["credential"][missing] = value
    service.answer(200, b"t")
    service.answer(200, answer)
    with pytest.raises(CredentialsError, match=f"found no readable {missing};") as caught:
        ecs.search()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "moment_s"),
    [
        ("2026-09-01T12:00:00.000000Z", 1_788_264_000.0),
        ("2026-09-01T12:00:00Z", 1_788_264_000.0),
        ("2026-09-01T12:00:00.123Z", 1_788_264_000.0),
        ("tomorrow", None),
        ("2026-13-01T12:00:00Z", None),
    ],
)
def test_moments_are_read_with_and_without_a_fraction(text: str, moment_s: float | None) -> None:
    """`expires_at` is universal time, whatever the zone of this machine."""
    assert credentials.keeper._read_moment(text) == moment_s


def test_keys_in_hand_are_used_until_they_expire(
    ecs: type[ECS], service: Service, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A refresh that fails is a warning and is tried again half a minute later; after the end it is an error."""
    service.answer(200, b"t")
    service.answer(200, credential(clock, 3600))
    ecs.search()
    clock.now_s += 3100
    service.answer(403)
    with caplog.at_level(logging.WARNING, "obs_engine"):
        assert ecs.search() == keys(1)
        assert ecs.search() == keys(1)
    assert "status 403" in caplog.text
    assert "used on" in caplog.text
    assert SECRET not in caplog.text
    assert len(service.asked) == 3
    clock.now_s += credentials.keeper.ASK_AGAIN_AFTER_S
    service.answer(403)
    assert ecs.search() == keys(1)
    assert len(service.asked) == 4
    clock.now_s += 3600
    service.answer(403)
    with pytest.raises(CredentialsError, match="status 403"):
        ecs.search()
    service.answer(200, b"t")
    service.answer(200, credential(clock, 3600, 2))
    assert ecs.search() == keys(2)


def test_keys_that_expire_soon_are_not_asked_for_at_every_request(
    ecs: type[ECS], service: Service, clock: Clock
) -> None:
    """The service hands out what has less than 10 minutes left: it is asked again each half minute, no more."""
    service.answer(200, b"t")
    service.answer(200, credential(clock, 300))
    for _ in range(5):
        assert ecs.search() == keys(1)
    clock.now_s += credentials.keeper.ASK_AGAIN_AFTER_S
    service.answer(200, b"t")
    service.answer(200, credential(clock, 3600, 2))
    assert ecs.search() == keys(2)


def test_a_refresh_forgets_the_keys(ecs: type[ECS], service: Service, clock: Clock) -> None:
    """After the service has refused them, the source has them asked for anew."""
    for number in (1, 2):
        service.answer(200, b"t")
        service.answer(200, credential(clock, 3600, number))
    source = CredentialSource(providers=[ecs], policy="ECS")
    first = source.current()
    assert source.current() == first
    assert source.current(refused=first).access_key_id == "ak2"


class SeenLock:
    """A lock that tells how many threads have come to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.arrivals = threading.Semaphore(0)

    def acquire(self, blocking: bool = True) -> bool:
        self.arrivals.release()
        return self._lock.acquire(blocking, 10 if blocking else -1)

    def release(self) -> None:
        self._lock.release()


@pytest.mark.parametrize("is_good", [True, False])
def test_threads_wait_for_one_answer(is_good: bool) -> None:
    """Many threads at once make one exchange; where it fails, all hear of it, and none of them asks once more."""
    keeper, lock = credentials.keeper.Keeper(), SeenLock()
    keeper._lock = lock  # type: ignore[assignment]
    asked = []

    def ask() -> credentials.keeper.Found:
        asked.append(1)
        for _ in range(8):  # this thread, and those that wait for it
            assert lock.arrivals.acquire(timeout=10)
        if not is_good:
            raise CredentialsError("none")
        return credentials.keeper.Found({"accessKey": "ak"}, time.time() + 3600, time.monotonic())

    def get() -> Any:
        try:
            return keeper.get(600, ask)
        except CredentialsError as error:
            return error.message

    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(get) for _ in range(8)]
        assert [r.result() for r in results] == [{"accessKey": "ak"} if is_good else "none"] * 8
    assert len(asked) == 1


def test_nobody_waits_while_the_keys_in_hand_still_work(clock: Clock) -> None:
    """One thread asks for new ones; the others go on with the old ones at once."""
    keeper = credentials.keeper.Keeper()
    old = credentials.keeper.Found({"accessKey": "old"}, clock.now_s + 500, clock.now_s - 3600)
    keeper._found = old
    is_asking, go = threading.Event(), threading.Event()

    def ask() -> credentials.keeper.Found:
        is_asking.set()
        assert go.wait(10)
        return credentials.keeper.Found({"accessKey": "new"}, clock.now_s + 3600, clock.now_s)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(keeper.get, 600, ask)
        assert is_asking.wait(10)
        assert keeper.get(600, ask) == {"accessKey": "old"}
        go.set()
        assert asking.result() == {"accessKey": "new"}
    assert keeper.get(600, ask) == {"accessKey": "new"}


def test_a_forked_child_does_not_wait_for_the_parents_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork while another thread asks leaves a lock behind that nobody opens."""
    keeper = credentials.keeper.Keeper()
    keeper._lock.acquire()
    monkeypatch.setattr(credentials.keeper.os, "getpid", lambda: -1)
    found = credentials.keeper.Found({"accessKey": "ak"}, time.time() + 3600, time.monotonic())
    assert keeper.get(600, lambda: found) == {"accessKey": "ak"}


# --- ID tokens --------------------------------------------------------------------------------------------------


def exchange(service: Service, clock: Clock, number: int = 1, expires_in_s: float = 86_400) -> None:
    """IAM answers both questions."""
    service.answer(201, {}, {"x-subject-token": "iam-token"})
    service.answer(201, credential(clock, expires_in_s, number))


def test_an_id_token_becomes_temporary_keys(service: Service, clock: Clock) -> None:
    """Two requests to IAM; then from memory until 5 minutes before the end."""
    provider = IdTokenCredentialsProvider("jwt", idp_id="idp")
    exchange(service, clock)
    assert provider.get_credentials() == keys(1)
    (method, url, headers), (method_2, url_2, headers_2) = service.asked
    origin = "https://iam.myhuaweicloud.com"
    assert (method, url) == ("POST", f"{origin}/v3.0/OS-AUTH/id-token/tokens")
    assert headers["X-Idp-Id"] == "idp"
    assert headers["Content-Type"].startswith("application/json")
    assert service.bodies[0] == {"auth": {"id_token": {"id": "jwt"}}}
    assert (method_2, url_2) == ("POST", f"{origin}/v3.0/OS-CREDENTIAL/securitytokens")
    assert headers_2["X-Auth-Token"] == "iam-token"
    assert service.bodies[1] == {
        "auth": {"identity": {"methods": ["token"], "token": {"duration_seconds": 86_400}}}
    }
    clock.now_s += 86_400 - 301
    assert provider.search() == keys(1)
    assert len(service.asked) == 2
    clock.now_s += 1
    exchange(service, clock, 2)
    assert provider.get_credentials() == keys(2)
    provider.refresh()
    exchange(service, clock, 3)
    assert provider.get_credentials() == keys(3)


@pytest.mark.parametrize(
    ("scope", "sent"),
    [
        ({"project_id": "p"}, {"project": {"id": "p"}}),
        ({"project_name": "n"}, {"project": {"name": "n"}}),
        ({"project_id": "p", "project_name": "n"}, {"project": {"id": "p", "name": "n"}}),
        ({"domain_id": "d"}, {"domain": {"id": "d"}}),
        ({"domain_id": "d", "domain_name": "n"}, {"domain": {"id": "d", "name": "n"}}),
        ({"domain_name": "n"}, {"domain": {"name": "n"}}),
    ],
)
def test_the_scope_is_a_project_or_a_domain(
    service: Service, clock: Clock, scope: dict[str, str], sent: dict[str, Any]
) -> None:
    """By id, by name, or both; never one of each kind."""
    exchange(service, clock)
    IdTokenCredentialsProvider("jwt", idp_id="idp", **scope).get_credentials()  # type: ignore[arg-type]
    assert service.bodies[0]["auth"]["scope"] == sent


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"idp_id": "idp"}, "id_token: expected it, oidc_token_file"),
        ({"id_token": "jwt"}, "idp_id"),
        ({"id_token": "jwt", "idp_id": " "}, "idp_id"),
        ({"id_token": "jwt", "idp_id": "é"}, "idp_id"),
        ({"id_token": f"{SECRET}\n{SECRET}", "idp_id": "idp"}, "id_token"),
        ({"id_token": SECRET.encode(), "idp_id": "idp"}, "id_token"),
        ({"id_token": "jwt", "oidc_token_file": "/f", "idp_id": "idp"}, "expected one of them, found both"),
        ({"oidc_token_file": "/no/such/file", "idp_id": "idp"}, "No such file"),
        ({"oidc_token_file": 5, "idp_id": "idp"}, "oidc_token_file"),
        ({"id_token": "jwt", "idp_id": "idp", "project_id": "p", "domain_id": "d"}, "expected one scope"),
        ({"id_token": "jwt", "idp_id": "idp", "iam_endpoint": "iam.example.com"}, "iam_endpoint"),
        ({"id_token": "jwt", "idp_id": "idp", "iam_endpoint": "https://u:p@iam.example.com"}, "iam_endpoint"),
        ({"id_token": "jwt", "idp_id": "idp", "iam_endpoint": "https://[x"}, "iam_endpoint"),
        ({"id_token": "jwt", "idp_id": "idp", "refresh_before_seconds": 0}, "refresh_before_seconds"),
        ({"id_token": "jwt", "idp_id": "idp", "refresh_before_seconds": float("nan")}, "refresh_before_seconds"),
        ({"id_token": "jwt", "idp_id": "idp", "max_retry_times": 0}, "max_retry_times"),
        ({"id_token": "jwt", "idp_id": "idp", "max_retry_times": 1.5}, "max_retry_times"),
        ({"id_token": "jwt", "idp_id": "idp", "credential_expires_seconds": "long"}, "credential_expires_seconds"),
        ({"id_token": "jwt", "idp_id": "idp", "proxy_host": "p", "proxy_port": 0}, "proxy_port"),
        ({"id_token": "jwt", "idp_id": "idp", "proxy_password": f"{SECRET}\n{SECRET}"}, "proxy_password"),
        ({"id_token": "jwt", "idp_id": "idp", "token": SECRET}, "id_token_credentials_provider"),
        ({"config_file": "/no/such/file"}, "config_file"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], words: str) -> None:
    """At construction, each by name, without a secret."""
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        provider_of(arguments)
    assert SECRET not in str(caught.value)
    with pytest.raises(InvalidArgumentError):
        CredentialSource(id_token_provider=arguments)


def test_a_token_that_is_given_as_a_path_is_not_shown() -> None:
    """An easy mistake; the message says what it looks like."""
    jwt = f"eyJhbGciOiJSUzI1NiJ9.{SECRET}.x"
    for build in (
        lambda: provider_of(jwt),
        lambda: IdTokenCredentialsProvider(oidc_token_file=jwt, idp_id="idp"),
        lambda: IdTokenCredentialsProvider(config_file=jwt),
    ):
        with pytest.raises(InvalidArgumentError, match="what looks like a token") as caught:
            build()
        assert SECRET not in str(caught.value)


def test_a_configuration_file_fills_what_is_not_given(tmp_path: Path, service: Service, clock: Clock) -> None:
    """Arguments beat the file, also where they are the default; unknown names in the file do not count."""
    path = tmp_path / "id.json"
    path.write_text(json.dumps({
        "id_token": "jwt-of-file", "idp_id": "idp-of-file", "project_id": "p", "iam_endpoint": "https://iam.x.com/v3/",
        "credential_expires_seconds": 1000, "refresh_before_seconds": 900, "max_retry_times": 1, "other": 5,
        "proxy_host": "proxy", "proxy_port": "8080", "proxy_username": "u", "proxy_password": SECRET,
    }))  # fmt: skip
    provider = provider_of(str(path))
    exchange(service, clock)
    provider.get_credentials()
    assert service.bodies[0] == {"auth": {"id_token": {"id": "jwt-of-file"}, "scope": {"project": {"id": "p"}}}}
    assert service.asked[0][1] == "https://iam.x.com/v3.0/OS-AUTH/id-token/tokens"
    assert service.asked[0][2]["X-Idp-Id"] == "idp-of-file"
    assert service.bodies[1]["auth"]["identity"]["token"]["duration_seconds"] == 1000
    assert service.ways[0] == Proxy("proxy", 8080, "u", SECRET)
    provider.refresh()
    service.fail()
    with pytest.raises(CredentialsError, match="no route; "):
        provider.get_credentials()
    other = IdTokenCredentialsProvider(
        "jwt", config_file=path, idp_id="idp", max_retry_times=3, refresh_before_seconds=300
    )
    for _ in range(3):
        service.fail()
    with pytest.raises(CredentialsError, match=r"no route \(3 tries\)"):
        other.get_credentials()
    assert service.bodies[-1]["auth"]["id_token"] == {"id": "jwt"}
    assert other._refresh_before_s == 300
    assert SECRET not in repr(other)


@pytest.mark.parametrize("text", ["[]", "no json", f'{{"id_token": "{SECRET}"', '"text"', "\udcff"])
def test_a_configuration_file_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    """None of its words is shown."""
    path = tmp_path / "id.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidArgumentError, match="config_file") as caught:
        provider_of(path)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("asked_s", "sent_s"), [(900, 900), (899, 86_400), (86_401, 86_400), (-5, 86_400), (4e3, 4000)]
)
def test_a_lifetime_out_of_range_is_the_longest(
    service: Service, clock: Clock, asked_s: float, sent_s: int
) -> None:
    """As in the SDK."""
    exchange(service, clock)
    provider_of({"id_token": "jwt", "idp_id": "idp", "credential_expires_seconds": asked_s}).get_credentials()
    assert service.bodies[1]["auth"]["identity"]["token"]["duration_seconds"] == sent_s


def test_the_token_file_is_read_anew_at_each_refresh(tmp_path: Path, service: Service, clock: Clock) -> None:
    """Kubernetes rotates it; where it has gone, the keys in hand are used until they expire."""
    path = tmp_path / "token"
    path.write_text("one\n")
    provider = IdTokenCredentialsProvider(oidc_token_file=path, idp_id="idp")
    exchange(service, clock)
    provider.get_credentials()
    path.write_text("two\n")
    clock.now_s += 86_400 - 300
    exchange(service, clock, 2)
    assert provider.get_credentials() == keys(2)
    assert [service.bodies[n]["auth"]["id_token"]["id"] for n in (0, 2)] == ["one", "two"]
    path.unlink()
    clock.now_s += 86_400 - 300
    assert provider.get_credentials() == keys(2)
    clock.now_s += 300
    with pytest.raises(CredentialsError, match="No such file"):
        provider.get_credentials()


@pytest.mark.parametrize(
    ("status", "body", "words", "requests"),
    [
        (401, {"error_code": "IAM.0001", "error_msg": "the token expired"}, r"401 \(IAM.0001: the token expired\)", 1),
        (404, {"error": {"code": 404, "message": "no idp"}}, r"404 \(404: no idp\); check idp_id and scope", 1),
        (400, b"<html>", "status 400; ", 1),
        (302, b"", "status 302", 1),
        (401, {"error_msg": f"bad token {SECRET} refused"}, r"bad token \*\*\* refused", 1),
        (401, {"error_msg": "x" * 5000 + "\n"}, "x" * 150 + r"x*\.\.\.\); ", 1),
        (400, b'{"error": "text"}', "status 400; ", 1),
        (500, b"", "status 500", 3),
        (429, b"", "status 429", 3),
        (200, b"", "expected a token in X-Subject-Token", 1),
    ],
)
def test_a_refusal_of_iam_is_told_in_its_words(
    service: Service, clock: Clock, status: int, body: Any, words: str, requests: int
) -> None:
    """On one line, short, and without the token if IAM repeats it; what may pass is tried again."""
    provider = IdTokenCredentialsProvider(SECRET, idp_id="idp")
    for _ in range(requests):
        service.answer(status, body)
    with pytest.raises(CredentialsError, match=f"^IAM https://iam.myhuaweicloud.com: .*{words}") as caught:
        provider.get_credentials()
    assert len(service.asked) == requests
    assert SECRET not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_refusal_of_the_second_request_hides_both_tokens(service: Service, clock: Clock) -> None:
    """IAM's own token is a secret, too."""
    provider = IdTokenCredentialsProvider("jwt-secret", idp_id="idp")
    service.answer(201, {}, {"x-subject-token": SECRET})
    service.answer(403, {"error_msg": f"{SECRET} jwt-secret"})
    with pytest.raises(CredentialsError, match=r"status 403 \(\*\*\* \*\*\*\)"):
        provider.get_credentials()


def test_the_proxy_of_the_client_is_taken_where_there_is_none() -> None:
    """For IAM only; the metadata service is never asked through one. The classes themselves are not changed."""
    proxy = Proxy("client", 3128)
    plain = IdTokenCredentialsProvider("jwt", idp_id="idp")
    CredentialSource(id_token_provider=plain, proxy=proxy)
    assert plain._proxy == proxy
    own = IdTokenCredentialsProvider("jwt", idp_id="idp", proxy_host="own", proxy_port=1)
    CredentialSource(id_token_provider=own, proxy=proxy)
    assert own._proxy == Proxy("own", 1)
    source = CredentialSource(policy="OIDC", proxy=proxy)
    env, ecs, oidc = source._providers
    assert (env, ecs) == (ENV, ECS)
    assert (oidc.__name__, oidc.proxy) == ("OIDC", proxy)
    assert OIDC.proxy is None


@pytest.mark.parametrize("value", [5, "", "  ", IdTokenCredentialsProvider, object(), b"path", ["x"]])
def test_what_is_no_id_token_provider_is_refused(value: Any) -> None:
    """A path, a dict or something that can be asked. (The SDK takes no notice of others.)"""
    with pytest.raises(InvalidArgumentError, match="id_token_credentials_provider"):
        CredentialSource(id_token_provider=value)


def test_the_id_token_provider_is_the_only_one() -> None:
    """It takes the place of the policy and of all providers; where it fails, that is an error."""
    vault = Vault()
    source = CredentialSource(id_token_provider=vault, policy="OBS_DEFAULT", providers=[Own])
    assert source.current() == FOUND
    assert not source.is_static
    vault.answers = [RuntimeError()]
    with pytest.raises(CredentialsError):
        source.current()


# --- OIDC -------------------------------------------------------------------------------------------------------


@pytest.fixture
def oidc(tmp_path: Path) -> type[OIDC]:
    """The class with a memory and a default file of its own."""
    return type("OIDC", (OIDC,), {"default_token_file": str(tmp_path / "default-token")})


def test_oidc_finds_its_token_by_the_environment(
    oidc: type[OIDC], service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """HUAWEI_CLOUD_IDP_ID must be set; the file is OIDC_TOKEN_FILE's or the standard one; each has its own keys."""
    source = CredentialSource(providers=[oidc], policy="OIDC")
    with pytest.raises(CredentialsError, match="HUAWEI_CLOUD_IDP_ID"):
        source.current()
    monkeypatch.setenv("HUAWEI_CLOUD_IDP_ID", "idp")
    with pytest.raises(CredentialsError, match=r"OIDC: .*default-token.*No such file"):
        source.current()
    (tmp_path / "default-token").write_text("standard")
    exchange(service, clock)
    assert source.current().access_key_id == "ak1"
    assert source.current().access_key_id == "ak1"
    monkeypatch.setenv("OIDC_TOKEN_FILE", str(tmp_path / "other"))
    with pytest.raises(CredentialsError, match="No such file"):
        source.current()
    (tmp_path / "other").write_text("\n")
    with pytest.raises(CredentialsError, match="expected the ID token"):
        source.current()
    (tmp_path / "other").write_text("other")
    exchange(service, clock, 2)
    assert source.current().access_key_id == "ak2"
    assert [b["auth"]["id_token"]["id"] for b in service.bodies[::2]] == ["standard", "other"]
    assert "scope" not in service.bodies[0]["auth"]
    assert {headers.get("X-Idp-Id") for _, _, headers in service.asked[::2]} == {"idp"}


def test_oidc_keeps_keys_until_five_minutes_before_the_end(
    oidc: type[OIDC], service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Then the file is read anew; a refusal by the service has them asked for at once."""
    monkeypatch.setenv("HUAWEI_CLOUD_IDP_ID", "idp")
    path = tmp_path / "default-token"
    path.write_text("one")
    exchange(service, clock)
    assert oidc.search() == keys(1)
    path.write_text("two")
    clock.now_s += 86_400 - 301
    assert oidc.search() == keys(1)
    clock.now_s += 1
    exchange(service, clock, 2)
    assert oidc.search() == keys(2)
    assert service.bodies[2]["auth"]["id_token"]["id"] == "two"
    exchange(service, clock, 3)
    source = CredentialSource(providers=[oidc], policy="OIDC")
    assert source.current(refused=source.current()).access_key_id == "ak3"


# --- imports ----------------------------------------------------------------------------------------------------


def test_heavy_modules_are_imported_when_they_are_needed() -> None:
    """TLS and HTTP cost nothing to those who give their keys."""
    import subprocess
    import sys

    script = "import sys; before = set(sys.modules); import obs_engine.credentials; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"http.client", "ssl"} & set(loaded)
