"""Keys that expire: reads them, and keeps them while they work."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from obs_engine.errors import CredentialsError

_log = logging.getLogger("obs_engine")

ASK_AGAIN_AFTER_S = 30.0
"""Keys that still work are asked for at most so often, whether the last time went well or not."""

Keys = dict[str, str | None]
"""What a provider answers: `accessKey`, `secretKey`, `securityToken`."""


class Found(NamedTuple):
    """Temporary keys; the wall clock says until when, the monotonic one when they were asked for."""

    keys: Keys
    expires_s: float
    asked_s: float

    def __repr__(self) -> str:
        return f"Found(..., {self.expires_s})"


class Keeper:
    """Keeps temporary keys until shortly before they expire; one thread at a time asks for new ones.

    Others wait for it only if what is kept has expired. Where asking fails, the keys are used until they expire.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._found: Found | None = None
        self._failures = 0
        self._failed_s = float("-inf")
        self._fault = ""

    def forget(self) -> None:
        """The next `get` asks."""
        self._found = None
        self._failed_s = float("-inf")

    def get(self, refresh_before_s: float, ask: Callable[[], Found]) -> Keys:
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

    def _is_fresh(self, found: Found, refresh_before_s: float) -> bool:
        """Is there no need to ask?"""
        now_s, clock_s = time.time(), time.monotonic()
        if now_s < found.expires_s - refresh_before_s or clock_s < found.asked_s + ASK_AGAIN_AFTER_S:
            return True
        return now_s < found.expires_s and clock_s < self._failed_s + ASK_AGAIN_AFTER_S


def read_temporary(where: str, answer: bytes) -> Found:
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
    return Found(keys, expires_s, time.monotonic())


def _read_moment(text: str) -> float | None:
    """Seconds since 1970 of `2026-09-01T12:00:00.000000Z`, with or without a fraction."""
    import calendar

    whole = text.strip().removesuffix("Z").partition(".")[0]
    try:
        return float(calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return None
