"""Verifies signatures with the same words that the engine signs with; holds the one account's keys.

Knows no socket and no clock: the time is an argument. A comparison takes as long for a near miss as for a far one.
Source: OBS API Reference, "User Signature Authentication"; AWS "Signature Version 4".
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import lru_cache
from secrets import compare_digest
from urllib.parse import quote, unquote

from obs_engine.testing.calls import Call
from obs_engine.testing.replies import Refusal
from obs_engine.wire.signing import (
    UNSIGNED_PAYLOAD,
    V4_ALGORITHM,
    Credentials,
    SignatureKind,
    canonical_request,
    canonical_resource,
    header_prefix,
    sign_sha1,
    sign_v4,
    string_to_sign,
)

SKEW_MAX_S = 15 * 60
"""Source: OBS API, error code RequestTimeTooSkewed: more than 15 minutes."""

PRESIGNED_MAX_S = 7 * 24 * 3600
"""Source: AWS Signature Version 4, X-Amz-Expires: at most seven days."""

_EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_WORDS: dict[str, SignatureKind] = {"OBS": "obs", "AWS": "v2"}


class Verifier:
    """Judges requests for one account.

    Args:
        credentials: its keys. With a security token, every request must carry exactly that token, signed.
        region: the region that a v4 scope must name; None for any.
    """

    def __init__(self, credentials: Credentials, region: str | None = None) -> None:
        self._credentials = credentials
        self._expired: set[str] = set()  # tokens
        self._region = region

    def set_keys(self, credentials: Credentials) -> None:
        """The account has these from now on; the token that it had before has expired."""
        if self._credentials.security_token:
            self._expired.add(self._credentials.security_token)
        self._credentials = credentials

    def verify(self, call: Call, now_s: float) -> None:
        """Marks the call as signed, with the kind of its signature and the promised digest of its body.

        Args:
            now_s: seconds since 1970 by this server's clock.

        Raises:
            Refusal: 403 AccessDenied, InvalidAccessKeyId, SignatureDoesNotMatch or RequestTimeTooSkewed; 400 for
                a header that cannot be read; 501 for a streamed (aws-chunked) payload signature.
        """
        value = call.head.fields.get("authorization")
        if value is not None:
            word, _, rest = value.partition(" ")
            if word in _WORDS:
                self._verify_sha1(call, _WORDS[word], rest, now_s)
            elif word == V4_ALGORITHM:
                self._verify_v4(call, rest, now_s)
            else:
                raise Refusal(400, "InvalidArgument", "Authorization header is neither OBS, AWS nor AWS4-HMAC-SHA256.")
        elif call.argument("X-Amz-Signature") is not None:
            self._verify_v4_query(call, now_s)
        elif call.argument("Signature") is not None:
            self._verify_sha1_query(call, now_s)
        else:
            raise Refusal(403, "AccessDenied", "Anonymous access is forbidden for this operation.")
        call.is_signed = True

    def _verify_sha1(self, call: Call, kind: SignatureKind, rest: str, now_s: float) -> None:
        call.kind = kind
        access_key_id, _, signature = rest.strip().partition(":")
        self._check_token(call.head.fields.get(f"{call.prefix}security-token"))
        self._check_access_key(access_key_id)
        fields = call.head.fields
        self._check_skew(_http_time(fields.get(f"{call.prefix}date") or fields.get("date")), now_s)
        self._check_sha1(call, call.head.headers, signature)

    def _verify_sha1_query(self, call: Call, now_s: float) -> None:
        """A URL signed in its query: `AccessKeyId` (obs) or `AWSAccessKeyId` (v2), `Expires`, `Signature`."""
        call.kind = "v2" if call.argument("AWSAccessKeyId") is not None else "obs"
        self._check_token(call.argument(f"{call.prefix}security-token"))
        self._check_access_key(call.argument("AWSAccessKeyId") or call.argument("AccessKeyId") or "")
        expires = call.argument("Expires") or ""
        if not (expires.isascii() and expires.isdigit()) or int(expires) < now_s:
            raise Refusal(403, "AccessDenied", "Request has expired.", extra=[("Expires", expires)])
        headers = [(n, v) for n, v in call.head.headers if n != "date"]
        self._check_sha1(call, [*headers, ("date", expires)], call.argument("Signature") or "")

    def _check_sha1(self, call: Call, headers: Sequence[tuple[str, str]], signature: str) -> None:
        prefix = header_prefix(call.kind)
        resources = [
            canonical_resource(
                call.bucket, call.encoded_key, call.head.query, call.addressing, prefix, call.domain
            )
        ]
        if call.addressing == "path" and call.bucket and call.encoded_key is None and call.head.path.endswith("/"):
            # Why: `/bucket/` and `/bucket` name the same bucket, and clients sign the path that they send.
            resources.insert(0, canonical_resource(call.bucket, "", call.head.query, "path", prefix))
        text = ""
        for resource in resources:
            text = string_to_sign(call.head.method, headers, resource, prefix)
            if compare_digest(sign_sha1(self._credentials.secret_access_key, text).encode(), signature.encode()):
                return
        raise self._mismatch(call, text)

    def _verify_v4(self, call: Call, rest: str, now_s: float) -> None:
        call.kind = "v4"
        items = (item.partition("=") for item in rest.split(","))
        pieces = {name.strip(): value.strip() for name, _, value in items}
        fields = call.head.fields
        moment = _v4_time(fields.get("x-amz-date")) or _http_time(fields.get("x-amz-date") or fields.get("date"))
        payload = fields.get("x-amz-content-sha256", _EMPTY_SHA256)
        if payload.startswith("STREAMING-"):
            raise Refusal(
                501, "NotImplemented", "This server reads no aws-chunked bodies; sign UNSIGNED-PAYLOAD or a SHA-256."
            )
        scope = self._check_scope(pieces.get("Credential", ""))
        self._check_token(fields.get("x-amz-security-token"))
        self._check_skew(moment, now_s)
        assert moment is not None  # _check_skew refuses None
        if payload != UNSIGNED_PAYLOAD:
            call.payload_sha256 = payload.lower()
        self._check_v4(call, call.head.query, pieces, scope, moment, payload)

    def _verify_v4_query(self, call: Call, now_s: float) -> None:
        """A URL signed in its query: `X-Amz-Credential`, `-Date`, `-Expires`, `-SignedHeaders`, `-Signature`."""
        call.kind = "v4"
        moment = _v4_time(call.argument("X-Amz-Date"))
        lifetime = call.argument("X-Amz-Expires") or ""
        scope = self._check_scope(call.argument("X-Amz-Credential") or "")
        self._check_token(call.argument("X-Amz-Security-Token"))
        if moment is None or not (lifetime.isascii() and lifetime.isdigit() and int(lifetime) <= PRESIGNED_MAX_S):
            raise Refusal(400, "AuthorizationQueryParametersError", "X-Amz-Date or X-Amz-Expires cannot be read.")
        if not moment.timestamp() - SKEW_MAX_S <= now_s <= moment.timestamp() + int(lifetime):
            raise Refusal(403, "AccessDenied", "Request has expired.")
        pieces = {
            "SignedHeaders": call.argument("X-Amz-SignedHeaders") or "",
            "Signature": call.argument("X-Amz-Signature") or "",
        }
        query = [(n, v) for n, v in call.head.query if n != "X-Amz-Signature"]
        payload = call.head.fields.get("x-amz-content-sha256", UNSIGNED_PAYLOAD)
        self._check_v4(call, query, pieces, scope, moment, payload)

    def _check_v4(
        self,
        call: Call,
        query: Sequence[tuple[str, str | None]],
        pieces: dict[str, str],
        scope: tuple[str, str],
        moment: datetime,
        payload: str,
    ) -> None:
        names = sorted(pieces.get("SignedHeaders", "").lower().split(";"))
        if "host" not in names:
            raise Refusal(403, "AccessDenied", "The Host header must be signed.")
        unsigned = [n for n in call.head.fields if n == "x-amz-security-token" and n not in names]
        if unsigned:
            raise Refusal(403, "AccessDenied", "There were headers present in the request which were not signed.")
        long_date = moment.strftime("%Y%m%dT%H%M%SZ")
        day, region = scope
        if day != long_date[:8]:
            raise Refusal(403, "SignatureDoesNotMatch", f"The scope names the day {day}, the date says {long_date}.")
        signature = pieces.get("Signature", "").encode()
        canonical = ""
        sent = call.head.path
        # Why two: the SDK signs the path as sent; others encode it once more by the strict table before they sign.
        for path in dict.fromkeys((quote(unquote(sent), safe="/~"), sent)):
            canonical = canonical_request(call.head.method, path, query, call.head.headers, names, payload)
            expected = sign_v4(self._credentials.secret_access_key, canonical, long_date, region)
            if compare_digest(expected.encode(), signature):
                return
        raise self._mismatch(call, canonical)

    def _check_scope(self, text: str) -> tuple[str, str]:
        pieces = text.rsplit("/", 4)
        if len(pieces) != 5 or pieces[3:] != ["s3", "aws4_request"]:
            raise Refusal(400, "AuthorizationHeaderMalformed", "Credential must be AK/DATE/REGION/s3/aws4_request.")
        self._check_access_key(pieces[0])
        if self._region is not None and pieces[2] != self._region:
            raise Refusal(
                400,
                "AuthorizationHeaderMalformed",
                f"The region '{pieces[2]}' is wrong; expecting '{self._region}'.",
                extra=[("Region", self._region)],
            )
        return pieces[1], pieces[2]

    def _check_access_key(self, access_key_id: str) -> None:
        if not compare_digest(access_key_id.encode(), self._credentials.access_key_id.encode()):
            raise Refusal(
                403,
                "InvalidAccessKeyId",
                "The access key ID you provided does not exist in our records.",
                extra=[("OBSAccessKeyId", access_key_id)],
            )

    def _check_token(self, token: str | None) -> None:
        expected = self._credentials.security_token
        if expected is None:
            return
        if token in self._expired:
            raise Refusal(400, "ExpiredToken", "The provided token has expired.")
        if token is None or not compare_digest(token.encode(), expected.encode()):
            raise Refusal(403, "InvalidAccessKeyId", "The security token is missing, wrong or expired.")

    @staticmethod
    def _check_skew(moment: datetime | None, now_s: float) -> None:
        if moment is None:
            raise Refusal(403, "AccessDenied", "The request needs a valid Date, x-obs-date or x-amz-date header.")
        if abs(moment.timestamp() - now_s) > SKEW_MAX_S:
            raise Refusal(
                403,
                "RequestTimeTooSkewed",
                "The difference between the request time and the current time is too large.",
                extra=[
                    ("RequestTime", moment.strftime("%Y-%m-%dT%H:%M:%SZ")),
                    ("ServerTime", datetime.fromtimestamp(now_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")),
                    ("MaxAllowedSkewMilliseconds", str(SKEW_MAX_S * 1000)),
                ],
            )

    def _mismatch(self, call: Call, text: str) -> Refusal:
        name = "CanonicalRequest" if call.kind == "v4" else "StringToSign"
        return Refusal(
            403,
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. Check your key and "
            "signing method.",
            extra=[("OBSAccessKeyId", self._credentials.access_key_id), (name, text)],
        )


@lru_cache(maxsize=64)
def _v4_time(text: str | None) -> datetime | None:
    try:
        return datetime.strptime(text or "", "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    except ValueError:
        return None


@lru_cache(maxsize=64)
def _http_time(text: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text or "")
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
