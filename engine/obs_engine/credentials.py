"""Where access keys come from: arguments, the environment, a server's metadata service, an identity provider.

Runs in the caller's process only; the workers are told what was found. Knows how to ask the metadata service and IAM;
does not know OBS. No secret is in a message, a log line or a `repr` from here: of an exception that is not this
engine's own, only the class is named.

Source: the official SDK's loadtoken and searchmethod for names, addresses, order and times; ECS User Guide, "Metadata";
IAM API Reference, "Obtaining a Token with an OpenID Connect ID Token" and "Obtaining a Temporary Access Key".
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from obs_engine.errors import CredentialsError, InvalidArgumentError
from obs_engine.wire.signing import Credentials

_log = logging.getLogger("obs_engine")

OBS_DEFAULT = "OBS_DEFAULT"
TRIES = 3
METADATA_TIMEOUT_S = 5.0
IAM_TIMEOUT_S = 10.0
ECS_REFRESH_BEFORE_S = 600
OIDC_REFRESH_BEFORE_S = 300
LIFETIME_MIN_S, LIFETIME_MAX_S = 900, 86_400
ASK_AGAIN_AFTER_S = 30.0
"""Keys that still work are asked for at most so often, whether the last time went well or not."""
SLOW_S, SLOW_REST_S = 1.0, 60.0
"""In `OBS_DEFAULT`, a provider that took longer to fail is left alone for the second time."""

_ANSWER_MAX_BYTES = 1 << 20
_FIRST_PAUSE_S, _PAUSE_MAX_S = 0.1, 1.0

Keys = dict[str, str | None]
"""What a provider answers: `accessKey`, `secretKey`, `securityToken`."""


class Proxy(NamedTuple):
    """The way to IAM: a CONNECT tunnel."""

    host: str
    port: int
    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:  # it may hold a password
        return f"Proxy({self.host!r}, {self.port!r}, ...)"


def checked_credentials(access_key_id: object, secret_access_key: object, security_token: object = None) -> Credentials:
    """Keys as given by the user, stripped; None and blank are the same: anonymous, or no token.

    Raises:
        InvalidArgumentError: not a string, or not printable; names the argument, never shows it.
    """
    access_key = _checked("access_key_id", access_key_id)
    secret_key = _checked("secret_access_key", secret_access_key)
    return Credentials(access_key, secret_key, _checked("security_token", security_token) or None)


def _checked(name: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        # Why not show it: it may be a secret of another type.
        raise InvalidArgumentError(f"{name}: expected a string, found a {type(value).__name__}; convert it")
    if not value.strip().isprintable():
        raise InvalidArgumentError(f"{name}: expected printable characters, found others; copy it again")
    return value.strip()


# --- the source that a client reads -----------------------------------------------------------------------------


class CredentialSource:
    """The access keys of one client, as they are now.

    Explicit keys (both of them) beat the policy. Without a policy they are all there is, or the client is anonymous.
    May be used from many threads; providers are then asked from many threads, too, as the SDK does.

    Args:
        access_key_id, secret_access_key, security_token: explicit ones; empty or None for none.
        providers: classes or instances with `get_credentials()` or `search()`, the first preferred, that answer
            `Keys`: ours, the SDK's or the user's. None for `[ENV, ECS, OIDC]`.
        policy: the name of one provider; 'OBS_DEFAULT' for all in order; None for explicit keys only.
        id_token_provider: an `IdTokenCredentialsProvider`, or what `provider_of` takes: it is then the only provider,
            and `policy` does not count, as in the SDK.
        proxy: the client's, for providers that ask IAM and have none of their own.

    Raises:
        InvalidArgumentError: a key that is no printable string, a policy that no provider has as its name, a provider
            that cannot be asked, no provider at all.
    """

    def __init__(
        self,
        access_key_id: object = "",
        secret_access_key: object = "",
        security_token: object = None,
        providers: Iterable[Any] | None = None,
        policy: str | None = None,
        id_token_provider: Any = None,
        *,
        proxy: Proxy | None = None,
    ) -> None:
        self._static = checked_credentials(access_key_id, secret_access_key, security_token)
        self._providers = _checked_providers(providers)
        self._policy = policy
        if id_token_provider is not None:
            self._providers = [provider_of(id_token_provider)]
            self._policy = _name(self._providers[0])
        elif policy is not None:
            names = [_name(provider) for provider in self._providers]
            if policy != OBS_DEFAULT and policy not in names:
                known = ", ".join(repr(name) for name in dict.fromkeys([*names, OBS_DEFAULT]))
                raise InvalidArgumentError("security_provider_policy", f"None or one of {known}", policy)
        if proxy is not None:
            self._providers = [_through(provider, proxy) for provider in self._providers]
        self._lock = threading.Lock()
        self._resting: dict[int, tuple[float, str]] = {}
        self._renewed_for: Credentials | None = None
        self._is_warned = False

    @property
    def is_static(self) -> bool:
        """True where `current` changes by `replace` alone."""
        return self._policy is None or not self._static.is_anonymous

    def replace(
        self, access_key_id: object = "", secret_access_key: object = "", security_token: object = None
    ) -> None:
        """Puts other explicit keys in the place of those given before, all three at once.

        Empty ones bring the policy back, if there is one.

        Raises:
            InvalidArgumentError: one is no printable string; the old ones stay.
        """
        self._static = checked_credentials(access_key_id, secret_access_key, security_token)

    def current(self, refused: Credentials | None = None) -> Credentials:
        """The keys as they are now; may ask a service.

        Args:
            refused: the keys that the service has just refused. A provider that has kept the very same is told once
                (by its `refresh()`, if it has one) to forget them.

        Returns:
            The keys. Anonymous ones without a policy and keys, and where all providers of 'OBS_DEFAULT' failed: that
            is one warning in the log, as often as it happens anew.

        Raises:
            CredentialsError: the provider that the policy names has none. (The SDK goes on anonymously.)
        """
        static = self._static
        if self._policy is None or not static.is_anonymous:
            return static
        if self._policy == OBS_DEFAULT:
            return self._first_of_all(refused) or static
        provider = next(provider for provider in self._providers if _name(provider) == self._policy)
        return self._renewed(provider, refused)

    def __repr__(self) -> str:
        return f"<CredentialSource policy={self._policy!r}{' explicit keys' if not self._static.is_anonymous else ''}>"

    def _first_of_all(self, refused: Credentials | None) -> Credentials | None:
        faults = []
        for index, provider in enumerate(self._providers):
            until_s, fault = self._resting.get(index, (0.0, ""))
            start_s = time.monotonic()
            if not start_s < until_s:
                try:
                    found = self._renewed(provider, refused)
                except CredentialsError as error:
                    fault = error.message
                    end_s = time.monotonic()
                    if end_s - start_s > SLOW_S:
                        self._resting[index] = (end_s + SLOW_REST_S, fault)
                else:
                    self._resting.pop(index, None)
                    self._is_warned = False
                    return found
            faults.append(fault)
        with self._lock:
            is_first, self._is_warned = not self._is_warned, True
        if is_first:
            _log.warning("%s: no access keys were found, requests are anonymous: %s", OBS_DEFAULT, " | ".join(faults))
        return None

    def _renewed(self, provider: Any, refused: Credentials | None) -> Credentials:
        found = _asked(provider)
        if refused is None or found != refused or self._renewed_for == refused:
            return found
        self._renewed_for = refused
        renew = _callable(provider, "refresh")
        if renew is None:
            return found
        return _asked(provider, before=renew)


def _checked_providers(providers: Iterable[Any] | None) -> list[Any]:
    if providers is None:
        return [ENV, ECS, OIDC]
    wanted = "a list of classes or instances with search() or get_credentials()"
    if isinstance(providers, (str, bytes, Mapping, type)) or not isinstance(providers, Iterable):
        raise InvalidArgumentError("security_providers", wanted, providers)
    found = list(providers)
    if not found:
        raise InvalidArgumentError(f"security_providers: expected {wanted}, found an empty one; None is the usual ones")
    for number, provider in enumerate(found, 1):
        if _method(provider) is None:
            raise InvalidArgumentError(
                f"security_providers, number {number} ({_name(provider)}): expected search() or get_credentials() "
                f"that needs no argument, found none; add one, make it static, or give an instance"
            )
    return found


def _name(provider: Any) -> str:
    """What a policy calls it: its own `__name__`, or that of its class."""
    return str(getattr(provider, "__name__", type(provider).__name__))


def _method(provider: Any) -> Callable[[], Any] | None:
    return _callable(provider, "get_credentials") or _callable(provider, "search")


def _callable(owner: Any, name: str) -> Callable[[], Any] | None:
    """The owner's method of that name, if it can be called without arguments."""
    import inspect

    method: Callable[[], Any] | None = getattr(owner, name, None)
    if not callable(method):
        return None
    try:
        inspect.signature(method).bind()
    except TypeError:
        return None
    except ValueError:
        pass  # it does not tell its arguments
    return method


def _asked(provider: Any, before: Callable[[], Any] | None = None) -> Credentials:
    """What a provider answers, checked, whoever wrote it."""
    name, method = _name(provider), _method(provider)
    assert method is not None  # checked when it was given
    try:
        if before is not None:
            before()
        keys = method()
    except CredentialsError:
        raise
    except Exception as error:
        # Why without its words: they are a stranger's, and may hold a secret. It is chained.
        raise CredentialsError(
            f"{name}: expected access keys, found a {type(error).__name__}; see its cause, or give access_key_id and "
            f"secret_access_key"
        ) from error
    if not isinstance(keys, Mapping):
        raise CredentialsError(
            f"{name}: expected a dict with accessKey and secretKey, found a {type(keys).__name__}; correct the provider"
        )
    try:
        found = checked_credentials(keys.get("accessKey"), keys.get("secretKey"), keys.get("securityToken"))
    except InvalidArgumentError as error:
        raise CredentialsError(f"{name}: {error.message}") from None
    if found.is_anonymous:
        missing = "accessKey" if not found.access_key_id else "secretKey"
        raise CredentialsError(f"{name}: expected accessKey and secretKey, found no {missing}; correct the provider")
    return found


def _through(provider: Any, proxy: Proxy) -> Any:
    """The provider, with a way to IAM unless it has one."""
    cls = provider if isinstance(provider, type) else type(provider)
    if issubclass(cls, OIDC):
        return cls if cls.proxy is not None else type(cls.__name__, (cls,), {"proxy": proxy})
    set_proxy = getattr(provider, "set_proxy", None)
    if callable(set_proxy):
        set_proxy(*proxy)
    return provider


# --- keys that expire -------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """Temporary keys; the wall clock says until when, the monotonic one when they were asked for."""

    keys: Keys
    expires_s: float
    asked_s: float

    def __repr__(self) -> str:
        return f"_Found(..., {self.expires_s})"


class _Keeper:
    """Keeps temporary keys until shortly before they expire; one thread at a time asks for new ones.

    Others wait for it only if what is kept has expired. Where asking fails, the keys are used until they expire.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._found: _Found | None = None
        self._failures = 0
        self._failed_s = float("-inf")
        self._fault = ""

    def forget(self) -> None:
        """The next `get` asks."""
        self._found = None
        self._failed_s = float("-inf")

    def get(self, refresh_before_s: float, ask: Callable[[], _Found]) -> Keys:
        """What is kept, or what `ask` finds.

        Raises:
            CredentialsError: `ask` raised it, and nothing is kept that still works.
        """
        if self._pid != os.getpid():
            # Why: another thread may have held the lock when this process was forked, and never gives it back here.
            self._lock, self._pid = threading.Lock(), os.getpid()
        lock, failures = self._lock, self._failures
        found = self._found
        if found is not None and self._is_fresh(found, refresh_before_s):
            return dict(found.keys)
        if not lock.acquire(blocking=found is None or not time.time() < found.expires_s):
            assert found is not None
            return dict(found.keys)
        try:
            found = self._found
            if found is not None and self._is_fresh(found, refresh_before_s):
                return dict(found.keys)
            if self._failures != failures and (found is None or not time.time() < found.expires_s):
                raise CredentialsError(self._fault)  # somebody else's try failed while this thread waited for it
            try:
                self._found = found = ask()
            except CredentialsError as error:
                self._failures += 1
                self._failed_s, self._fault = time.monotonic(), error.message
                if found is None or not time.time() < found.expires_s:
                    raise
                left_s = found.expires_s - time.time()
                _log.warning("%s; the keys in hand are used on, for %.0f s at most", error.message, left_s)
            return dict(found.keys)
        finally:
            lock.release()

    def _is_fresh(self, found: _Found, refresh_before_s: float) -> bool:
        """Is there no need to ask?"""
        now_s, clock_s = time.time(), time.monotonic()
        if now_s < found.expires_s - refresh_before_s or clock_s < found.asked_s + ASK_AGAIN_AFTER_S:
            return True
        return now_s < found.expires_s and clock_s < self._failed_s + ASK_AGAIN_AFTER_S


def _read_temporary(where: str, answer: bytes) -> _Found:
    """Reads `{"credential": {"access", "secret", "securitytoken", "expires_at"}}`.

    Raises:
        CredentialsError: which of them is missing or cannot be read.
    """
    try:
        credential = json.loads(answer)["credential"]
        fields = {name: credential[name] for name in ("access", "secret", "securitytoken", "expires_at")}
    except (ValueError, KeyError, TypeError, RecursionError):
        fields = {"credential": None}
    bad = [name for name, value in fields.items() if not isinstance(value, str) or not value.strip()]
    expires_s = 0.0 if bad else _read_moment(fields["expires_at"])
    if bad or expires_s is None:
        raise CredentialsError(
            f"{where}: expected access, secret, securitytoken and expires_at, found no readable "
            f"{' and '.join(bad or ['expires_at'])}; try again, or report it to the service"
        )
    keys = {"accessKey": fields["access"], "secretKey": fields["secret"], "securityToken": fields["securitytoken"]}
    return _Found(keys, expires_s, time.monotonic())


def _read_moment(text: str) -> float | None:
    """Seconds since 1970 of `2026-09-01T12:00:00.000000Z`, with or without a fraction."""
    import calendar

    whole = text.strip().removesuffix("Z").partition(".")[0]
    try:
        return float(calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return None


# --- asking over HTTP -------------------------------------------------------------------------------------------


class _Answer(NamedTuple):
    """Names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _NoAnswerError(Exception):
    """No answer, and whether asking once more makes sense."""

    def __init__(self, why: str, *, is_final: bool) -> None:
        super().__init__(why)
        self.is_final = is_final


def _ask_once(
    origin: str, method: str, path: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float,
    proxy: Proxy | None,
) -> _Answer:  # fmt: skip
    """One request on a connection of its own. No proxy of the environment, no redirect."""
    import http.client
    import ssl

    parts = urlsplit(origin)
    host, port = proxy[:2] if proxy else (parts.hostname or "", parts.port)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    is_connected = False
    try:
        if proxy:
            connection.set_tunnel(
                parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), _proxy_headers(proxy)
            )
        connection.connect()
        is_connected = True
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        answer = response.read(_ANSWER_MAX_BYTES + 1)
        if len(answer) > _ANSWER_MAX_BYTES:
            raise _NoAnswerError("the answer is too long", is_final=True)
        if response.length:  # what is still to come; `read` takes an early end for the end
            raise _NoAnswerError("the answer ended early", is_final=False)
        return _Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, answer)
    except ssl.SSLCertVerificationError as error:
        raise _NoAnswerError(f"its certificate is not trusted ({error.verify_message})", is_final=True) from None
    except TimeoutError:
        what = "no answer" if is_connected else "no connection"
        # Why final without a connection: within this time TCP has itself tried several times.
        raise _NoAnswerError(f"{what} within {timeout_s:g} s", is_final=not is_connected) from None
    except OSError as error:
        raise _NoAnswerError(error.strerror or _clipped(str(error)), is_final=False) from None
    except (http.client.HTTPException, ValueError) as error:
        # Why without its words: they repeat what was sent or received.
        raise _NoAnswerError(f"the exchange broke off ({type(error).__name__})", is_final=False) from None
    finally:
        connection.close()


def _proxy_headers(proxy: Proxy) -> dict[str, str]:
    if not (proxy.username and proxy.password):
        return {}
    from base64 import b64encode

    return {"Proxy-Authorization": f"Basic {b64encode(f'{proxy.username}:{proxy.password}'.encode()).decode()}"}


def _ask(
    where: str, tries: int, ask_once: Callable[[], _Answer], is_retried: Callable[[_Answer], bool] = lambda _: False
) -> _Answer:
    """Asks up to `tries` times: again after no answer, a server's own fault, or what `is_retried` says.

    Raises:
        CredentialsError: no answer.
    """
    for attempt in range(1, tries + 1):
        try:
            answer = ask_once()
        except _NoAnswerError as error:
            if error.is_final or attempt == tries:
                times = f" ({attempt} tries)" if attempt > 1 else ""
                raise CredentialsError(
                    f"{where}: expected an answer, found: {error}{times}; check that this machine can reach it"
                ) from None
        else:
            if attempt == tries or not (answer.status >= 500 or answer.status == 429 or is_retried(answer)):
                return answer
        _pause(min(_FIRST_PAUSE_S * 2 ** (attempt - 1), _PAUSE_MAX_S))
    raise AssertionError("no try at all")


def _pause(seconds: float) -> None:
    """Between two tries; a function, so that tests need not wait."""
    time.sleep(seconds)


def _clipped(text: str, *secrets: str) -> str:
    """A stranger's words on one line, short, without what must not be shown."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


# --- the providers ----------------------------------------------------------------------------------------------


class ENV:
    """The environment: OBS_ACCESS_KEY_ID, OBS_SECRET_ACCESS_KEY, and OBS_SECURITY_TOKEN where they are temporary."""

    @staticmethod
    def search() -> Keys:
        """Reads it anew at every call.

        Raises:
            CredentialsError: which variable is not set.
        """
        access_key, secret_key, token = (
            (os.environ.get(f"OBS_{name}") or "").strip()
            for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SECURITY_TOKEN")
        )
        missing = [
            name
            for name, value in (("OBS_ACCESS_KEY_ID", access_key), ("OBS_SECRET_ACCESS_KEY", secret_key))
            if not value
        ]
        if missing:
            raise CredentialsError(
                f"ENV: expected OBS_ACCESS_KEY_ID and OBS_SECRET_ACCESS_KEY in the environment, found no "
                f"{' and no '.join(missing)}; set it"
            )
        return {"accessKey": access_key, "secretKey": secret_key, "securityToken": token or None}


class ECS:
    """The metadata service of a cloud server: the keys of the agency that is bound to it.

    Asked by its second version (first a token, then the keys), by the first where there is no second. Never through a
    proxy. Kept until 10 minutes before they expire; until then they are used on if new ones cannot be had. Each
    subclass keeps its own.

    Attributes:
        host: address, and perhaps `:port`, of the service.
        timeout_s: for a connection, and for each piece of an answer.
    """

    host = "169.254.169.254"
    timeout_s = METADATA_TIMEOUT_S
    _keeper = _Keeper()

    def __init_subclass__(cls) -> None:
        cls._keeper = _Keeper()

    @classmethod
    def search(cls) -> Keys:
        """The keys, from memory or from the service.

        Raises:
            CredentialsError: this is no cloud server, has no agency, or the service does not answer.
        """
        return cls._keeper.get(ECS_REFRESH_BEFORE_S, cls._ask_service)

    @classmethod
    def refresh(cls) -> None:
        """Forgets the keys: the next `search` asks the service."""
        cls._keeper.forget()

    @classmethod
    def _ask_service(cls) -> _Found:
        where = f"ECS: metadata service {cls.host}"

        def request(method: str, path: str, headers: Mapping[str, str]) -> Callable[[], _Answer]:
            return lambda: _ask_once(f"http://{cls.host}", method, path, headers, None, cls.timeout_s, None)

        lifetime = {"X-securitykey-Token-Ttl-Seconds": "21600"}
        answer = _ask(where, TRIES, request("PUT", "/meta-data/latest/api/token", lifetime))
        token = answer.body.decode("ascii", "replace").strip() if answer.status < 300 else ""
        if answer.status >= 300 and answer.status not in (404, 405):
            raise CredentialsError(
                f"{where}: expected a session token, found status {answer.status}; give access_key_id and "
                f"secret_access_key if this server has no agency"
            )
        headers = {"X-securitykey-Token": token} if token else {}
        answer = _ask(
            where, TRIES, request("GET", "/openstack/latest/securitykey", headers),
            lambda a: a.status < 300 and not a.body.strip(),
        )  # fmt: skip
        if answer.status != 200:
            raise CredentialsError(
                f"{where}: expected temporary keys, found status {answer.status}; bind an agency to this server"
            )
        return _read_temporary(where, answer.body)


class IdTokenCredentialsProvider:
    """Temporary keys from IAM for the ID token of an identity provider (OpenID Connect).

    Kept until `refresh_before_seconds` before they expire; until then they are used on if new ones cannot be had. A
    token file is read anew whenever IAM is asked. May be used from many threads.

    Args:
        id_token: the token itself; or else
        oidc_token_file: a file that holds it; without either `/var/run/secrets/tokens/oidc-token`, or `config_file`'s.
        config_file: JSON with any of the other arguments; those given here beat it.
        idp_id: the identity provider's ID in IAM. Needed.
        project_id, project_name, domain_id, domain_name: the scope, a project or a domain; without one, none.
        iam_endpoint: by default https://iam.myhuaweicloud.com. Its certificate is checked.
        refresh_before_seconds: 300 where None.
        max_retry_times: requests at most for one answer; 3 where None.
        credential_expires_seconds: 900 to 86400; 86400 where None or out of range, as in the SDK.
        proxy_host, proxy_port, proxy_username, proxy_password: a CONNECT tunnel; by default the client's.

    Raises:
        InvalidArgumentError: no token, no `idp_id`, two scopes, a file or a number that cannot be used.
    """

    # Why: this is the name of an instance, where a policy looks for it; the class has its own anyway.
    __name__ = "IdTokenCredentialsProvider"

    DEFAULT_TOKEN_FILE = "/var/run/secrets/tokens/oidc-token"  # noqa: S105 - a path
    DEFAULT_IAM_ENDPOINT = "https://iam.myhuaweicloud.com"

    def __init__(
        self,
        id_token: str | None = None,
        oidc_token_file: str | os.PathLike[str] | None = None,
        config_file: str | os.PathLike[str] | None = None,
        idp_id: str | None = None,
        project_id: str | None = None,
        project_name: str | None = None,
        domain_id: str | None = None,
        domain_name: str | None = None,
        iam_endpoint: str | None = None,
        refresh_before_seconds: float | None = None,
        max_retry_times: int | None = None,
        credential_expires_seconds: int | None = None,
        proxy_host: str | None = None,
        proxy_port: int | None = None,
        proxy_username: str | None = None,
        proxy_password: str | None = None,
    ) -> None:
        config = _read_config(config_file) if config_file else {}
        given = _Given(config)
        self._idp_id = given.text("idp_id", idp_id)
        self._scope = _scope(
            given.text("project_id", project_id), given.text("project_name", project_name),
            given.text("domain_id", domain_id), given.text("domain_name", domain_name),
        )  # fmt: skip
        self._origin = _checked_origin(given.text("iam_endpoint", iam_endpoint) or self.DEFAULT_IAM_ENDPOINT)
        self._refresh_before_s = given.number("refresh_before_seconds", refresh_before_seconds, OIDC_REFRESH_BEFORE_S)
        self._tries = given.count("max_retry_times", max_retry_times, TRIES)
        lifetime_s = given.number(
            "credential_expires_seconds", credential_expires_seconds, LIFETIME_MAX_S, float("-inf")
        )
        self._lifetime_s = int(lifetime_s) if LIFETIME_MIN_S <= lifetime_s <= LIFETIME_MAX_S else LIFETIME_MAX_S
        self._proxy: Proxy | None = None
        self.set_proxy(
            given.text("proxy_host", proxy_host), given.port("proxy_port", proxy_port),
            given.text("proxy_username", proxy_username, is_shown=False),
            given.text("proxy_password", proxy_password, is_shown=False),
        )  # fmt: skip
        token = (given.text("id_token", id_token, is_shown=False) if id_token is not None else "") or None
        path = given.path("oidc_token_file", oidc_token_file)
        if token and path:
            raise InvalidArgumentError("id_token, oidc_token_file: expected one of them, found both; leave one away")
        if not token and not path:
            if os.path.isfile(self.DEFAULT_TOKEN_FILE):
                path = self.DEFAULT_TOKEN_FILE
            else:
                token = given.text("id_token", None, is_shown=False)
        if not token and not path:
            raise InvalidArgumentError(
                f"id_token: expected it, oidc_token_file, or the file {self.DEFAULT_TOKEN_FILE}, found none; give one"
            )
        self._token, self._token_file = token, path
        try:
            self._id_token()
        except CredentialsError as error:
            raise InvalidArgumentError(f"oidc_token_file: {error.message}") from None
        if not self._idp_id:
            raise InvalidArgumentError("idp_id: expected the identity provider's ID in IAM, found none; give it")
        if not self._idp_id.isascii():
            raise InvalidArgumentError("idp_id", "ASCII characters", self._idp_id)
        self._keeper = _Keeper()

    def get_credentials(self) -> Keys:
        """The keys, from memory or from IAM.

        Raises:
            CredentialsError: the token file cannot be read, or IAM refuses or does not answer.
        """
        return self._keeper.get(self._refresh_before_s, self._ask_iam)

    search = get_credentials

    def refresh(self) -> None:
        """Forgets the keys: the next `get_credentials` asks IAM."""
        self._keeper.forget()

    def set_proxy(
        self,
        proxy_host: str | None,
        proxy_port: int | None,
        proxy_username: str | None = None,
        proxy_password: str | None = None,
    ) -> None:
        """The way to IAM, unless there is one already."""
        if self._proxy is None and proxy_host and proxy_port:
            self._proxy = Proxy(proxy_host, proxy_port, proxy_username or None, proxy_password or None)

    def __repr__(self) -> str:
        return f"<IdTokenCredentialsProvider {self._idp_id} at {self._origin}>"

    def _id_token(self) -> str:
        """The token as it is now."""
        if self._token is not None:
            return self._token
        return _read_token(str(self._token_file))

    def _ask_iam(self) -> _Found:
        """Changes the ID token into a token of IAM, and that into temporary keys."""
        id_token = self._id_token()
        auth: dict[str, Any] = {"id_token": {"id": id_token}}
        if self._scope:
            auth["scope"] = self._scope
        answer = self._post("/v3.0/OS-AUTH/id-token/tokens", {"X-Idp-Id": self._idp_id}, auth, id_token)
        token = (answer.headers.get("x-subject-token") or "").strip()
        if not token or not token.isprintable():
            raise CredentialsError(
                f"IAM {self._origin}: expected a token in X-Subject-Token, found none; check iam_endpoint"
            )
        identity = {"methods": ["token"], "token": {"duration_seconds": self._lifetime_s}}
        headers = {"X-Auth-Token": token}
        answer = self._post("/v3.0/OS-CREDENTIAL/securitytokens", headers, {"identity": identity}, id_token, token)
        return _read_temporary(f"IAM {self._origin}", answer.body)

    def _post(self, path: str, headers: Mapping[str, str], auth: Mapping[str, Any], *secrets: str) -> _Answer:
        where = f"IAM {self._origin}"
        sent = {"Content-Type": "application/json;charset=utf8", **headers}
        body = json.dumps({"auth": auth}).encode()
        answer = _ask(
            where, self._tries,
            lambda: _ask_once(self._origin, "POST", path, sent, body, IAM_TIMEOUT_S, self._proxy),
        )  # fmt: skip
        if not 200 <= answer.status < 300:
            advice = "renew the ID token, or check idp_id" if answer.status in (401, 403) else "check idp_id and scope"
            raise CredentialsError(
                f"{where}: expected success of {path}, found status {answer.status}"
                f"{_iam_words(answer.body, *secrets)}; {advice}"
            )
        return answer


class OIDC:
    """The identity provider of a pod: HUAWEI_CLOUD_IDP_ID, and the token in the file that OIDC_TOKEN_FILE names or in
    `/var/run/secrets/tokens/oidc-token`; keys of no scope from IAM.

    Kept until 5 minutes before they expire; the file is read anew for the next. Each subclass keeps its own.

    Attributes:
        default_token_file, iam_endpoint: where to look.
        proxy: the way to IAM, None for the straight one.
    """

    default_token_file = IdTokenCredentialsProvider.DEFAULT_TOKEN_FILE
    iam_endpoint = IdTokenCredentialsProvider.DEFAULT_IAM_ENDPOINT
    proxy: Proxy | None = None
    _made: dict[tuple[str, str], IdTokenCredentialsProvider] = {}  # noqa: RUF012 - of the class, on purpose

    def __init_subclass__(cls) -> None:
        cls._made = {}

    @classmethod
    def search(cls) -> Keys:
        """The keys, from memory or from IAM; the environment is read anew at every call.

        Raises:
            CredentialsError: a variable or the file is missing, or IAM refuses or does not answer.
        """
        idp_id = (os.environ.get("HUAWEI_CLOUD_IDP_ID") or "").strip()
        if not idp_id:
            raise CredentialsError("OIDC: expected HUAWEI_CLOUD_IDP_ID in the environment, found none; set it")
        path = os.environ.get("OIDC_TOKEN_FILE") or cls.default_token_file
        return cls._provider_for(idp_id, path).get_credentials()

    @classmethod
    def refresh(cls) -> None:
        """Forgets the keys: the next `search` asks IAM."""
        cls._made.clear()

    @classmethod
    def _provider_for(cls, idp_id: str, path: str) -> IdTokenCredentialsProvider:
        made = cls._made.get((idp_id, path))
        if made is not None:
            return made
        try:
            provider = IdTokenCredentialsProvider(oidc_token_file=path, idp_id=idp_id, iam_endpoint=cls.iam_endpoint)
        except InvalidArgumentError as error:
            raise CredentialsError(f"OIDC: {error.message}") from None
        if cls.proxy is not None:
            provider.set_proxy(*cls.proxy)
        return cls._made.setdefault((idp_id, path), provider)  # another thread's, if it was faster


def provider_of(value: Any) -> Any:
    """A provider from what `id_token_credentials_provider` may be.

    Args:
        value: the path of a configuration file, a dict of arguments, or a provider that can be asked: ours, the SDK's
            or the user's.

    Raises:
        InvalidArgumentError: something else, or arguments that do not fit.
    """
    wanted = "a path, a dict or an IdTokenCredentialsProvider"
    if isinstance(value, (str, os.PathLike)):
        if not str(value).strip():
            raise InvalidArgumentError("id_token_credentials_provider", wanted, value)
        return IdTokenCredentialsProvider(config_file=value)
    if isinstance(value, Mapping):
        import inspect

        known = list(inspect.signature(IdTokenCredentialsProvider).parameters)
        unknown = [str(name) for name in value if name not in known]
        if unknown:
            raise InvalidArgumentError(
                "id_token_credentials_provider", f"names among {', '.join(known)}", ", ".join(unknown)
            )
        return IdTokenCredentialsProvider(**value)
    if isinstance(value, type) or _method(value) is None:
        raise InvalidArgumentError("id_token_credentials_provider", wanted, value)
    return value


# --- reading the arguments of an ID token provider --------------------------------------------------------------


class _Given:
    """Arguments, each checked; what is None is taken from the configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def _value(self, name: str, value: object) -> object:
        return self._config.get(name) if value is None else value

    def text(self, name: str, value: object, *, is_shown: bool = True) -> str:
        found = self._value(name, value)
        if found is None:
            return ""
        if not isinstance(found, str) or not found.strip().isprintable():
            if is_shown:
                raise InvalidArgumentError(name, "printable text", found)
            raise InvalidArgumentError(f"{name}: expected printable text, found something else; correct it")
        return found.strip()

    def path(self, name: str, value: object) -> str:
        found = self._value(name, value)
        if found is None or found == "":
            return ""
        if not isinstance(found, (str, os.PathLike)):
            raise InvalidArgumentError(name, "a path", found)
        return os.path.abspath(os.fsdecode(os.fspath(found)))

    def number(self, name: str, value: object, default: float, above: float = 0) -> float:
        found = self._value(name, value)
        if found is None:
            return default
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not above < found < float("inf"):
            raise InvalidArgumentError(name, f"a number above {above:g}", found)
        return found

    def count(self, name: str, value: object, default: int) -> int:
        found = self.number(name, value, default)
        if not isinstance(found, int):
            raise InvalidArgumentError(name, "a whole number from 1", found)
        return found

    def port(self, name: str, value: object) -> int | None:
        found = self._value(name, value)
        if found is None:
            return None
        with contextlib.suppress(ValueError, TypeError):
            if not isinstance(found, (bool, float)) and 1 <= int(found) <= 65535:  # type: ignore[call-overload]
                return int(found)  # type: ignore[call-overload,no-any-return]
        raise InvalidArgumentError(name, "1 to 65535", found)


def _read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Why no word of the content in a message: it may be a token."""
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except OSError as error:
        raise InvalidArgumentError(
            "config_file", f"a file that can be read ({error.strerror})", _shown(path), "correct the path or the mode"
        ) from None
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise InvalidArgumentError("config_file", "a file with a JSON object", _shown(path), "correct the file")
    return config


def _read_token(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read(_ANSWER_MAX_BYTES).strip()
    except OSError as error:
        raise CredentialsError(
            f"{_shown(path)}: expected a file with the ID token, found: {error.strerror}; correct the path or the mode"
        ) from None
    except ValueError:
        token = ""
    if not token or not token.isprintable():
        raise CredentialsError(f"{_shown(path)}: expected the ID token, found no text of one line; write it anew")
    return token


def _shown(path: str | os.PathLike[str]) -> str:
    """A path for a message, unless it is a token that was taken for one."""
    text = os.path.abspath(os.fsdecode(path))
    return "what looks like a token" if os.path.basename(text).startswith("eyJ") else text


def _scope(project_id: str, project_name: str, domain_id: str, domain_name: str) -> dict[str, dict[str, str]]:
    project = {name: value for name, value in (("id", project_id), ("name", project_name)) if value}
    domain = {name: value for name, value in (("id", domain_id), ("name", domain_name)) if value}
    if project and domain:
        raise InvalidArgumentError("project_*, domain_*: expected one scope, found both; leave one away")
    return {"project": project} if project else {"domain": domain} if domain else {}


def _checked_origin(endpoint: str) -> str:
    """Scheme, host and port of IAM; a path is left away, as in the SDK."""
    wanted = "a URL such as 'https://iam.myhuaweicloud.com'"
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        raise InvalidArgumentError("iam_endpoint", wanted, endpoint) from None
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise InvalidArgumentError("iam_endpoint", wanted, endpoint)
    if parts.username or parts.password:
        raise InvalidArgumentError("iam_endpoint: expected a URL without user and password; leave them away")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}"


def _iam_words(body: bytes, *secrets: str) -> str:
    """The reason in IAM's words, in brackets; empty where there is none."""
    try:
        found = json.loads(body)
        inner = found.get("error") or {}
        words = [found.get("error_code") or inner.get("code"), found.get("error_msg") or inner.get("message")]
    except (ValueError, AttributeError, RecursionError):
        return ""
    text = ": ".join(str(word) for word in words if word)
    return f" ({_clipped(text, *secrets)})" if text else ""
