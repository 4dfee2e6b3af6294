"""How one upload reaches the service: where it is, and with which keys. Both may change while the upload runs.

A redirect moves all that follows to the host that it names. Keys are asked of the caller anew, as only its process
knows where they come from: now and then in passing, and at once when the service refuses those at hand. Workers learn
of a change with their next task. Runs in the coordinator; does not know requests, parts or retries.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from obs_engine.source.identity import FileIdentity
from obs_engine.transfer.messages import CredentialsWanted, NewCredentials, OpenUpload, UploadRequest
from obs_engine.transfer.pool import Session
from obs_engine.wire.replies import Reply

_log = logging.getLogger("obs_engine")

KEYS_FRESH_S = 1.0
"""Keys that were asked for so long ago are asked for again, while requests go on with them."""
KEYS_OLD_S, KEYS_OLD_ANSWER_S = 5.0, 1.0
"""A provider's keys that are so old are waited for so long: a part that is refused for them is sent twice."""
KEYS_ANSWER_S = 60.0
"""So long a caller may take to come by other keys, once those at hand were refused."""
KEYS_AGAIN_S = 2.0
"""So long a provider that had no other keys is left alone."""
KEY_CHANGES_MAX = 10
"""Changes of keys that one request lives through."""

CLOCK_STEP_MIN_S = 5.0
"""A clock that is so near the service's is not what a request was refused for."""


class Access:
    """Target and keys of one upload, as its workers know them.

    Attributes:
        version: of all that they know.
        keys_have_worked: something that was signed was taken.
    """

    def __init__(self, request: UploadRequest, session: Session, tell: Callable[[object], None]) -> None:
        """
        Args:
            tell: sends a message to the caller.
        """
        self._request = request
        self._session = session
        self._tell = tell
        self._identity = FileIdentity(0, 0, 0, 0, 0)
        self._target = request.target
        self._credentials = request.credentials
        self._clock_offset_s = 0.0
        self._asked_s = time.monotonic()
        self._answer: asyncio.Future[None] | None = None
        self._may_change = False
        self._paused_version = -1
        self.version = 0
        self.keys_have_worked = False

    def open(self, request: UploadRequest, identity: FileIdentity) -> None:
        """Says what workers must know of the upload; again when the dialect was agreed on."""
        self._request, self._identity = request, identity
        self._target = replace(self._target, signature=request.target.signature)
        self._changed()

    async def keep_fresh(self) -> None:
        """Asks for the keys where they are not fresh; waits for them only where they are old, and not for long."""
        age_s = time.monotonic() - self._asked_s
        if self._answer is None and age_s >= KEYS_FRESH_S:
            self._ask(is_refused=False)
        if self._answer is not None and self._may_change and age_s >= KEYS_OLD_S:
            await asyncio.wait({self._answer}, timeout=KEYS_OLD_ANSWER_S)

    def renew(self, answer: NewCredentials) -> None:
        """The caller's answer."""
        self._may_change = answer.may_change
        if answer.credentials != self._credentials:
            self._credentials = answer.credentials
            _log.info("the access keys changed; what follows is signed with %s",
                      answer.credentials.access_key_id or "none")  # fmt: skip
            self._changed()
        if self._answer is not None:
            self._answer.set_result(None)
            self._answer = None

    def follow(self, reply: Reply) -> bool:
        """Moves to where a redirect points, for all requests to come; False where that may not be."""
        location = reply.header("location")
        if location is None:
            return False
        target = self._target.redirected(self._request.bucket, location)
        if target is None:
            # Why no more of it than the host: there may be credentials before it, and a signature in its query.
            place = urlsplit(location).netloc.rpartition("@")[2]
            _log.warning("the redirect to %s is not followed: it is no such bucket's address, or leaves TLS", place)
            return False
        if target != self._target:
            _log.info("the service sent us to %s, for the rest of this upload", target.endpoint)
            self._target = target
            self._changed()
        return True

    def now_s(self) -> float:
        """Seconds since 1970 by the service's clock, as far as it is known."""
        return time.time() + self._clock_offset_s

    def set_clock(self, reply: Reply) -> bool:
        """Takes the service's clock from a reply, for all requests to come; False where that changes nothing."""
        service_s = _moment(reply.header("date"))
        if service_s is None or abs(service_s - self.now_s()) < CLOCK_STEP_MIN_S:
            return False
        self._clock_offset_s = service_s - time.time()
        _log.warning("the service's clock is %+.0f s from this machine's: requests are signed by it; set this clock",
                     self._clock_offset_s)  # fmt: skip
        return True

    def wait_asked_s(self, reply: Reply) -> float:
        """Seconds that a reply asks to wait before the next try; 0 where it does not.

        Source: RFC 9110, Retry-After: seconds, or a date.
        """
        asked = reply.header("retry-after") or ""
        if asked.isdecimal():
            return float(asked)
        moment = _moment(asked)
        return 0.0 if moment is None else max(0.0, moment - self.now_s())

    async def has_other_keys(self, version: int, *, is_patient: bool = False) -> bool:
        """Keys that were used with `version` were refused: are there others now?

        Args:
            is_patient: ask again and again, as long as `EngineOptions.keys_wait_s`, where they have worked before and
                the caller has a provider that may come by others.
        """
        patience_s = self._request.engine.keys_wait_s if is_patient and self.keys_have_worked else 0.0
        until_s = time.monotonic() + patience_s
        # Why also where they have changed since: a request may take longer than its keys live, and those after it, too.
        while self.version == version or time.monotonic() - self._asked_s >= KEYS_FRESH_S:
            answer = self._answer or self._ask(is_refused=True)
            try:
                # Why shielded: others wait for the same answer.
                await asyncio.wait_for(asyncio.shield(answer), KEYS_ANSWER_S)
            except asyncio.TimeoutError:
                return False
            if self.version != version:
                return True
            if not self._may_change or time.monotonic() >= until_s:
                return False
            self._tell_of_pause(version, patience_s)
            await asyncio.sleep(KEYS_AGAIN_S)
        return True

    def _tell_of_pause(self, version: int, patience_s: float) -> None:
        if self._paused_version != version:
            self._paused_version = version
            _log.warning(
                "%s/%s: the service refuses the access keys, and their provider has no others: the upload pauses, and "
                "asks again for up to %.0f s", self._request.bucket, self._request.key, patience_s,
            )  # fmt: skip

    def _ask(self, *, is_refused: bool) -> asyncio.Future[None]:
        self._asked_s = time.monotonic()
        answer = self._answer = asyncio.get_running_loop().create_future()
        self._tell(CredentialsWanted(is_refused))
        return answer

    def _changed(self) -> None:
        request = self._request
        dialect = request.dialect
        self.version += 1
        self._session.open(
            OpenUpload(
                self._session.upload, request.path, self._identity, request.bucket, request.key, self._target,
                self._credentials, (*dialect.part, *dialect.common), request.transport, request.is_crc64,
                request.compares_etags, request.engine.reader, request.log_level, request.shows_progress,
            )
        )  # fmt: skip


def _moment(date: str | None) -> float | None:
    """Seconds since 1970 of an HTTP date; None where it is none."""
    try:
        return parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
