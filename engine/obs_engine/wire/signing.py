"""The three signatures of the service: `obs`, `v2` (both HMAC-SHA1) and `v4` (AWS4-HMAC-SHA256).

Keeper of `hmac`. Pure functions of a request's visible parts, so that a client can sign and a server can check
with the same words. Knows no clock: the date arrives as an argument. A secret key never leaves these functions.

Source: OBS API Reference, "User Signature Authentication"; AWS "Signature Version 4"; proven by tests/vectors.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal
from urllib.parse import quote

from obs_engine.wire.endpoint import Addressing, Query, encode_key

SignatureKind = Literal["obs", "v2", "v4"]
Headers = Sequence[tuple[str, str]]

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
V4_ALGORITHM = "AWS4-HMAC-SHA256"

# Source: OBS API Reference, "Authentication of Signature in a Header", CanonicalizedResource, and the official SDK.
SUB_RESOURCES = frozenset(
    """acl append attname backtosource bucketstatus cdnnotifyconfiguration cors customdomain delete deletebucket
    directcoldaccess dispolicy encryption fileinterface inventory length lifecycle location logging metadata
    mirrorbacktosource modify name notification object-lock obsalias obsbucketalias obscompresspolicy
    obsworkflowtriggerpolicy partnumber policy policystatus position publicaccessblock quota rename replication
    requestpayment response-cache-control response-content-disposition response-content-encoding
    response-content-language response-content-type response-expires restore retention storageclass storageinfo
    storagepolicy tagging torrent truncate uploadid uploads versionid versioning versions website
    x-image-process x-image-save-bucket x-image-save-object x-oss-process x-obs-accesslabel x-obs-security-token
    x-workflow-execution-state x-workflow-execution-type x-workflow-graph-name x-workflow-limit
    x-workflow-next-marker x-workflow-prefix x-workflow-start x-workflow-template-name""".split()
)


@dataclass(frozen=True)
class Credentials:
    """An access key pair, with a session token where it is temporary. Empty keys mean anonymous."""

    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    security_token: str | None = field(default=None, repr=False)

    @property
    def is_anonymous(self) -> bool:
        return not (self.access_key_id and self.secret_access_key)


def header_prefix(kind: SignatureKind) -> str:
    """The prefix of the service's own headers in this mode."""
    return "x-obs-" if kind == "obs" else "x-amz-"


def canonical_resource(
    bucket: str | None, encoded_key: str | None, query: Query, addressing: Addressing, prefix: str, domain: str = ""
) -> str:
    """The resource line of an `obs` or `v2` string to sign.

    Args:
        bucket: None for the service itself.
        encoded_key: percent-encoded as it stands in the path; None for a bucket.
        query: raw (decoded) names and values; only sub-resources are signed.
        addressing: virtual ends a bucket with a slash, path does not, cname puts `domain` in the bucket's place.
        prefix: `x-obs-` or `x-amz-`; query names that begin with it are sub-resources too.
        domain: the host of a cname endpoint.
    """
    owner = domain if addressing == "cname" else bucket
    resource = f"/{owner}" if owner else "/"
    if owner and (encoded_key is not None or addressing != "path"):
        resource += "/"
    resource += encoded_key or ""
    signed = sorted((n, v) for n, v in query if n.lower() in SUB_RESOURCES or n.lower().startswith(prefix))
    if signed:
        resource += "?" + "&".join(n if v is None else f"{n}={v}" for n, v in signed)
    return resource


def string_to_sign(method: str, headers: Iterable[tuple[str, str]], resource: str, prefix: str) -> str:
    """The string to sign of `obs` (prefix `x-obs-`) and `v2` (prefix `x-amz-`)."""
    plain = {"content-md5": "", "content-type": "", "date": ""}
    own: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        if lower in plain:
            plain[lower] = value
        elif lower.startswith(prefix):
            own[lower] = value.strip() if lower.startswith(f"{prefix}meta-") else value
    if f"{prefix}date" in own:
        plain["date"] = ""
    lines = [method, *plain.values(), *(f"{name}:{own[name]}" for name in sorted(own)), resource]
    return "\n".join(lines)


def sign_sha1(secret_access_key: str, text: str) -> str:
    """base64(HMAC-SHA1(secret, text)), the signature of `obs` and `v2`."""
    return b64encode(hmac.digest(secret_access_key.encode(), text.encode(), "sha1")).decode()


def canonical_request(
    method: str, path: str, query: Query, headers: Headers, signed_names: Sequence[str], payload_hash: str
) -> str:
    """The canonical request of `v4`.

    Args:
        path: percent-encoded, as sent.
        query: raw names and values.
        headers: all headers; those in `signed_names` (lower case, sorted) are taken.
        payload_hash: hex SHA-256 or `UNSIGNED-PAYLOAD`.
    """
    values: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        text = " ".join(value.split())
        values[lower] = f"{values[lower]},{text}" if lower in values else text
    pairs = sorted((quote(n, safe="-_.~"), quote(v or "", safe="-_.~")) for n, v in query)
    return "\n".join([
        method, path, "&".join(f"{n}={v}" for n, v in pairs),
        *(f"{name}:{values.get(name, '')}" for name in signed_names), "",
        ";".join(signed_names), payload_hash,
    ])  # fmt: skip


def sign_v4(secret_access_key: str, canonical: str, long_date: str, region: str) -> str:
    """The hex signature of `v4`; `long_date` as `20260901T120000Z`."""
    scope = f"{long_date[:8]}/{region}/s3/aws4_request"
    text = f"{V4_ALGORITHM}\n{long_date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    return hmac.digest(_v4_key(secret_access_key, long_date[:8], region), text.encode(), "sha256").hex()


@lru_cache(maxsize=16)
def _v4_key(secret_access_key: str, short_date: str, region: str) -> bytes:
    key = f"AWS4{secret_access_key}".encode()
    for step in (short_date, region, "s3", "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    return key


def authorization_sha1(
    kind: SignatureKind, credentials: Credentials, method: str, headers: Headers, resource: str
) -> str:
    """The Authorization header of `obs` (`OBS ak:signature`) or `v2` (`AWS ak:signature`)."""
    text = string_to_sign(method, headers, resource, header_prefix(kind))
    word = "OBS" if kind == "obs" else "AWS"
    return f"{word} {credentials.access_key_id}:{sign_sha1(credentials.secret_access_key, text)}"


def authorization_v4(
    credentials: Credentials, method: str, path: str, query: Query, headers: Headers, long_date: str, region: str
) -> str:
    """The Authorization header of `v4`; every header given is signed."""
    names = sorted({name.lower() for name, _ in headers})
    payload = next((v for n, v in headers if n.lower() == "x-amz-content-sha256"), UNSIGNED_PAYLOAD)
    canonical = canonical_request(method, path, query, headers, names, payload)
    scope = f"{credentials.access_key_id}/{long_date[:8]}/{region}/s3/aws4_request"
    signature = sign_v4(credentials.secret_access_key, canonical, long_date, region)
    return f"{V4_ALGORITHM} Credential={scope},SignedHeaders={';'.join(names)},Signature={signature}"


def resource_of(
    bucket: str | None, key: str | None, query: Query, addressing: Addressing, kind: SignatureKind, domain: str
) -> str:
    """`canonical_resource` from a raw key."""
    encoded = None if key is None else encode_key(key)
    return canonical_resource(bucket, encoded, query, addressing, header_prefix(kind), domain)
