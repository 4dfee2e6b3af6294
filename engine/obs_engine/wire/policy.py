"""What is to be done about an outcome: two literal tables, of which the first row that fits counts.

Pure: says nothing of how often, how long, or by whom. Source: OBS API, "Error Codes"; RFC 9110 for statuses; libcurl's
error codes for transfers without a reply.
"""

from __future__ import annotations

from collections.abc import Container
from enum import Enum
from typing import NamedTuple


class Action(Enum):
    """What follows an outcome. Whatever it is, what is stored is kept."""

    TAKE = "take it as the answer"
    RETRY = "send it again after a pause"
    SLOW_DOWN = "send it again after a pause, and fewer at a time"
    READ_AGAIN = "read the bytes again, and send them after a pause"
    RENEW_KEYS = "ask once for other keys, and sign it again with them"
    AWAIT_KEYS = "pause, and ask again and again for other keys, where those at hand have worked before"
    SET_CLOCK = "take the service's clock, and sign it again"
    FOLLOW = "send it to where the service points"
    GIVE_UP = "fail"


REPEATING = frozenset({Action.RETRY, Action.SLOW_DOWN, Action.READ_AGAIN})
"""The same request again may succeed, after a pause."""

_ANY: Container[int] = range(1000)


class ReplyRow(NamedTuple):
    """A kind of reply.

    Attributes:
        codes: error codes of the service; None fits any, and none at all.
    """

    label: str
    action: Action
    statuses: Container[int] = _ANY
    codes: frozenset[str] | None = None


def _codes(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Codes come before statuses: a 200 may carry an error in its body, and a 403 be many things.
REPLIES = (
    ReplyRow("the clock is wrong", Action.SET_CLOCK, codes=_codes("RequestTimeTooSkewed")),
    ReplyRow("keys that are no more", Action.AWAIT_KEYS,
             codes=_codes("ExpiredToken InvalidToken InvalidAccessKeyId TokenRefreshRequired SignatureDoesNotMatch")),
    ReplyRow("too much at a time", Action.SLOW_DOWN, codes=_codes("SlowDown TooManyRequests ServiceUnavailable")),
    ReplyRow("what arrived is not what was sent", Action.READ_AGAIN, codes=_codes("BadDigest IncompleteBody")),
    ReplyRow("a moment's trouble", Action.RETRY, codes=_codes("RequestTimeout OperationAborted InternalError")),
    ReplyRow("success", Action.TAKE, range(200, 300)),
    ReplyRow("moved", Action.FOLLOW, (301, 302, 307, 308)),
    ReplyRow("who are you", Action.AWAIT_KEYS, (401,)),
    ReplyRow("not for you, and no word why", Action.RENEW_KEYS, (403,), codes=frozenset()),
    ReplyRow("too much at a time", Action.SLOW_DOWN, (429, 503)),
    ReplyRow("a moment's trouble", Action.RETRY, (408, 500, 502, 504)),
    ReplyRow("refused", Action.GIVE_UP),
)  # fmt: skip
"""By the service's word, then by status. An empty set of codes fits a reply that has no code."""


class FailureRow(NamedTuple):
    """A transfer that ended without a reply.

    Attributes:
        libcurl: its error codes for it.
    """

    kind: str
    action: Action
    libcurl: frozenset[int] = frozenset()


FAILURES = (
    FailureRow("dns", Action.RETRY, frozenset({5, 6})),
    FailureRow("connect", Action.RETRY, frozenset({7, 45, 97})),
    FailureRow("stalled", Action.RETRY, frozenset({28})),
    FailureRow("cut off", Action.RETRY, frozenset({16, 18, 52, 55, 56, 65, 80, 81, 92, 95})),
    # A handshake that was cut off comes back as this one, too; what is hopeless about it, its words tell (transport).
    FailureRow("TLS", Action.RETRY, frozenset({35})),
    FailureRow("trust", Action.GIVE_UP, frozenset({53, 54, 58, 59, 60, 64, 66, 77, 82, 83, 90, 91, 98})),
    FailureRow("request", Action.GIVE_UP, frozenset({1, 3, 4, 43})),
    FailureRow("other", Action.RETRY),
)
"""By libcurl's code; the last fits all others."""


def reply_row(status: int, code: str | None) -> ReplyRow:
    """The row of a reply with this status and error code."""
    for row in REPLIES:
        if status in row.statuses and _fits(row.codes, code):
            return row
    raise AssertionError("the last row fits everything")


def failure_row(libcurl: int) -> FailureRow:
    """The row of a transfer that failed with this code of libcurl's."""
    return next((row for row in FAILURES if libcurl in row.libcurl), FAILURES[-1])


def _fits(codes: frozenset[str] | None, code: str | None) -> bool:
    return codes is None or code in codes or (not codes and code is None)
