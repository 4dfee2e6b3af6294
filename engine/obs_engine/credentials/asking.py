"""Asking a service over HTTP, a few times where that helps, and showing a stranger's words without a secret."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from obs_engine.errors import CredentialsError

TRIES = 3
ANSWER_MAX_BYTES = 1 << 20
_FIRST_PAUSE_S, _PAUSE_MAX_S = 0.1, 1.0


class Proxy(NamedTuple):
    """The way to IAM: a CONNECT tunnel."""

    host: str
    port: int
    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:  # it may hold a password
        return f"Proxy({self.host!r}, {self.port!r}, ...)"


class Answer(NamedTuple):
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
) -> Answer:  # fmt: skip
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
        answer = response.read(ANSWER_MAX_BYTES + 1)
        if len(answer) > ANSWER_MAX_BYTES:
            raise _NoAnswerError("the answer is too long", is_final=True)
        if response.length:  # what is still to come; `read` takes an early end for the end
            raise _NoAnswerError("the answer ended early", is_final=False)
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, answer)
    except ssl.SSLCertVerificationError as error:
        raise _NoAnswerError(f"its certificate is not trusted ({error.verify_message})", is_final=True) from None
    except TimeoutError:
        what = "no answer" if is_connected else "no connection"
        # Why final without a connection: within this time TCP has itself tried several times.
        raise _NoAnswerError(f"{what} within {timeout_s:g} s", is_final=not is_connected) from None
    except OSError as error:
        raise _NoAnswerError(error.strerror or clipped(str(error)), is_final=False) from None
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


def ask(
    where: str, tries: int, origin: str, method: str, path: str, headers: Mapping[str, str], timeout_s: float,
    body: bytes | None = None, proxy: Proxy | None = None, is_retried: Callable[[Answer], bool] = lambda _: False,
) -> Answer:  # fmt: skip
    """Asks up to `tries` times: again after no answer, a server's own fault, or what `is_retried` says.

    Raises:
        CredentialsError: no answer.
    """
    for attempt in range(1, tries + 1):
        try:
            answer = _ask_once(origin, method, path, headers, body, timeout_s, proxy)
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


def clipped(text: str, *secrets: str) -> str:
    """A stranger's words on one line, short, without what must not be shown."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= 200 else f"{text[:197]}..."
