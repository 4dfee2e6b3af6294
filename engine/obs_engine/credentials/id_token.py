"""Keys from IAM for the ID token of an identity provider, and the arguments that say how."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from obs_engine.credentials.asking import ANSWER_MAX_BYTES, TRIES, Answer, Proxy, ask, clipped
from obs_engine.credentials.keeper import Found, Keeper, Keys, read_temporary
from obs_engine.errors import CredentialsError, InvalidArgumentError

IAM_TIMEOUT_S = 10.0
OIDC_REFRESH_BEFORE_S = 300
LIFETIME_MIN_S, LIFETIME_MAX_S = 900, 86_400


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
        self._where = f"IAM {self._origin}"
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
        self._keeper = Keeper()

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

    def _ask_iam(self) -> Found:
        """Changes the ID token into a token of IAM, and that into temporary keys."""
        id_token = self._id_token()
        auth: dict[str, Any] = {"id_token": {"id": id_token}}
        if self._scope:
            auth["scope"] = self._scope
        answer = self._post("/v3.0/OS-AUTH/id-token/tokens", {"X-Idp-Id": self._idp_id}, auth, id_token)
        token = (answer.headers.get("x-subject-token") or "").strip()
        if not token or not token.isprintable():
            raise CredentialsError(
                f"{self._where}: expected a token in X-Subject-Token, found none; check iam_endpoint"
            )
        identity = {"methods": ["token"], "token": {"duration_seconds": self._lifetime_s}}
        headers = {"X-Auth-Token": token}
        answer = self._post("/v3.0/OS-CREDENTIAL/securitytokens", headers, {"identity": identity}, id_token, token)
        return read_temporary(self._where, answer.body)

    def _post(self, path: str, headers: Mapping[str, str], auth: Mapping[str, Any], *secrets: str) -> Answer:
        sent = {"Content-Type": "application/json;charset=utf8", **headers}
        body = json.dumps({"auth": auth}).encode()
        answer = ask(self._where, self._tries, self._origin, "POST", path, sent, IAM_TIMEOUT_S, body, self._proxy)
        if not 200 <= answer.status < 300:
            advice = "renew the ID token, or check idp_id" if answer.status in (401, 403) else "check idp_id and scope"
            raise CredentialsError(
                f"{self._where}: expected success of {path}, found status {answer.status}"
                f"{_iam_words(answer.body, *secrets)}; {advice}"
            )
        return answer


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
            token = file.read(ANSWER_MAX_BYTES).strip()
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
    return f" ({clipped(text, *secrets)})" if text else ""
