"""The keys of one client as they are now: given ones, or what its providers answer, whoever wrote them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from obs_engine.credentials.asking import Proxy
from obs_engine.credentials.id_token import IdTokenCredentialsProvider
from obs_engine.credentials.providers import ECS, ENV, OIDC
from obs_engine.errors import CredentialsError, InvalidArgumentError
from obs_engine.wire.signing import Credentials

_log = logging.getLogger("obs_engine")

OBS_DEFAULT = "OBS_DEFAULT"
SLOW_S, SLOW_REST_S = 1.0, 60.0
"""In `OBS_DEFAULT`, a provider that took longer to fail is left alone for the second time."""


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
