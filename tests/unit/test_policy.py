"""The tables of outcomes, row by row."""

from __future__ import annotations

import pycurl
import pytest

from obs_engine.wire.policy import FAILURES, REPLIES, Action, failure_row, reply_row


@pytest.mark.parametrize(
    ("status", "code", "action"),
    [
        (200, None, Action.TAKE),
        (204, None, Action.TAKE),
        (206, None, Action.TAKE),
        (200, "InternalError", Action.RETRY),
        (200, "SlowDown", Action.SLOW_DOWN),
        (200, "AccessDenied", Action.TAKE),  # who asked reads the body, and sees that it is no success
        (301, None, Action.FOLLOW),
        (302, None, Action.FOLLOW),
        (303, None, Action.GIVE_UP),  # where to look after a success
        (304, None, Action.GIVE_UP),
        (307, "TemporaryRedirect", Action.FOLLOW),
        (308, None, Action.FOLLOW),
        (400, None, Action.GIVE_UP),
        (400, "BadDigest", Action.READ_AGAIN),
        (400, "IncompleteBody", Action.READ_AGAIN),
        (400, "ExpiredToken", Action.AWAIT_KEYS),
        (400, "InvalidToken", Action.AWAIT_KEYS),
        (400, "EntityTooSmall", Action.GIVE_UP),
        (400, "InvalidPart", Action.GIVE_UP),
        (400, "RequestTimeout", Action.RETRY),
        (401, None, Action.AWAIT_KEYS),
        (403, None, Action.RENEW_KEYS),
        (403, "AccessDenied", Action.GIVE_UP),
        (403, "InvalidAccessKeyId", Action.AWAIT_KEYS),
        (403, "SignatureDoesNotMatch", Action.AWAIT_KEYS),
        (403, "RequestTimeTooSkewed", Action.SET_CLOCK),
        (403, "InArrearOrInsufficientBalance", Action.GIVE_UP),
        (403, "InsufficientStorageSpace", Action.GIVE_UP),
        (403, "VirtualHostDomainRequired", Action.GIVE_UP),
        (404, "NoSuchUpload", Action.GIVE_UP),
        (404, "NoSuchBucket", Action.GIVE_UP),
        (405, "MethodNotAllowed", Action.GIVE_UP),
        (408, None, Action.RETRY),
        (408, "RequestTimeout", Action.RETRY),
        (409, "OperationAborted", Action.RETRY),
        (409, "BucketNotEmpty", Action.GIVE_UP),
        (411, None, Action.GIVE_UP),
        (412, "PreconditionFailed", Action.GIVE_UP),
        (416, "InvalidRange", Action.GIVE_UP),
        (429, None, Action.SLOW_DOWN),
        (429, "TooManyRequests", Action.SLOW_DOWN),
        (500, None, Action.RETRY),
        (500, "InternalError", Action.RETRY),
        (501, "NotImplemented", Action.GIVE_UP),
        (502, None, Action.RETRY),
        (503, None, Action.SLOW_DOWN),
        (503, "SlowDown", Action.SLOW_DOWN),
        (503, "ServiceUnavailable", Action.SLOW_DOWN),
        (504, None, Action.RETRY),
        (505, None, Action.GIVE_UP),
        (0, None, Action.GIVE_UP),
        (999, "SomethingNew", Action.GIVE_UP),
    ],
)
def test_every_reply_has_its_action(status: int, code: str | None, action: Action) -> None:
    """What the service documents, and what it does not."""
    assert reply_row(status, code).action is action


def test_no_row_is_forgotten() -> None:
    """Each is met by some reply, and the last by all that is left."""
    codes = {code for row in REPLIES for code in row.codes or ()} | {None, "SomethingNew"}
    met = {reply_row(status, code) for status in range(1000) for code in codes}
    assert met == set(REPLIES)
    listed = [code for row in FAILURES for code in row.libcurl]
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize(
    ("code", "kind", "action"),
    [
        (pycurl.E_COULDNT_RESOLVE_HOST, "dns", Action.RETRY),
        (pycurl.E_COULDNT_RESOLVE_PROXY, "dns", Action.RETRY),
        (pycurl.E_COULDNT_CONNECT, "connect", Action.RETRY),
        (pycurl.E_OPERATION_TIMEDOUT, "stalled", Action.RETRY),
        (pycurl.E_SEND_ERROR, "cut off", Action.RETRY),
        (pycurl.E_RECV_ERROR, "cut off", Action.RETRY),
        (pycurl.E_GOT_NOTHING, "cut off", Action.RETRY),
        (pycurl.E_PARTIAL_FILE, "cut off", Action.RETRY),
        (pycurl.E_SEND_FAIL_REWIND, "cut off", Action.RETRY),
        (pycurl.E_SSL_CONNECT_ERROR, "TLS", Action.RETRY),
        (pycurl.E_PEER_FAILED_VERIFICATION, "trust", Action.GIVE_UP),
        (pycurl.E_SSL_CACERT_BADFILE, "trust", Action.GIVE_UP),
        (pycurl.E_SSL_CERTPROBLEM, "trust", Action.GIVE_UP),
        (pycurl.E_SSL_CIPHER, "trust", Action.GIVE_UP),
        (pycurl.E_SSL_ISSUER_ERROR, "trust", Action.GIVE_UP),
        (pycurl.E_URL_MALFORMAT, "request", Action.GIVE_UP),
        (pycurl.E_UNSUPPORTED_PROTOCOL, "request", Action.GIVE_UP),
        (pycurl.E_BAD_FUNCTION_ARGUMENT, "request", Action.GIVE_UP),
        (pycurl.E_WRITE_ERROR, "other", Action.RETRY),
    ],
)
def test_every_failure_has_its_action(code: int, kind: str, action: Action) -> None:
    """Trust and mistakes are not met a second time; all else may pass."""
    row = failure_row(code)
    assert (row.kind, row.action) == (kind, action)
