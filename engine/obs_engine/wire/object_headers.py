"""The headers that give an object its properties, in the dialect of each signature.

Source: OBS API Reference, "Initiating a Multipart Upload"; the official SDK for the V2 names of storage classes.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from obs_engine.wire.signing import Headers, SignatureKind, header_prefix

_VALUE_SAFE = " ~;/?:@&=+$,'*"
_KEY_SAFE = "~;/?:@&=+$,"
_STORAGE_TO_V2 = {"WARM": "STANDARD_IA", "COLD": "GLACIER"}
_STORAGE_TO_OBS = {"STANDARD_IA": "WARM", "GLACIER": "COLD"}
GRANTS = {"READ": "read", "READ_ACP": "read-acp", "WRITE_ACP": "write-acp", "FULL_CONTROL": "full-control"}
"""Permissions that an object knows, and their names in headers."""

STORAGE_CLASSES = frozenset(
    {"STANDARD", "WARM", "COLD", "DEEP_ARCHIVE", "INTELLIGENT_TIERING", *_STORAGE_TO_OBS}
)  # fmt: skip
ACLS = frozenset(
    {"private", "public-read", "public-read-write", "public-read-delivered", "public-read-write-delivered",
     "bucket-owner-full-control", "authenticated-read", "bucket-owner-read", "log-delivery-write"}
)  # fmt: skip
"""Words that one of the dialects has."""

_EXTENSIONS = {"requesterPayer": "request-payer", "locationClusterGroupId": "location-clustergroup-id"}

# Source: OBS API Reference, "Initiating a Multipart Upload", request headers; the plain ones are stored as they are.
_OBJECT_HEADERS = frozenset(
    {"content-type", "content-encoding", "content-disposition", "content-language", "cache-control", "expires"}
)
_OBJECT_PREFIXES = (
    "meta-", "acl", "grant-", "storage-class", "website-redirect-location", "server-side-encryption", "expires",
    "tagging", "object-lock-",
)  # fmt: skip


def encode_value(value: object) -> str:
    """Percent-encodes a header value as the official SDK does; the encoded form is what is signed and stored."""
    return quote(str(value), safe=_VALUE_SAFE)


def metadata_headers(kind: SignatureKind, metadata: Mapping[str, object]) -> Headers:
    """`x-obs-meta-*` headers; a key that carries a prefix of the mode already is sent as it is; blank values are not
    sent."""
    prefix = header_prefix(kind)
    found = []
    for key, value in metadata.items():
        if _is_blank(value):
            continue
        name = quote(key, safe=_KEY_SAFE)
        found.append((name if name.lower().startswith(prefix) else f"{prefix}meta-{name}", encode_value(value)))
    return tuple(found)


def extension_headers(kind: SignatureKind, extensions: Mapping[str, object]) -> Headers:
    """The caller's own headers, but for blank ones; two of them go by another name in the API than on the wire."""
    prefix = header_prefix(kind)
    return tuple(
        (f"{prefix}{_EXTENSIONS[name]}" if name in _EXTENSIONS else name, encode_value(value))
        for name, value in extensions.items()
        if not _is_blank(value)
    )


def property_headers(
    kind: SignatureKind,
    *,
    acl: str | None = None,
    storage_class: str | None = None,
    metadata: Mapping[str, object] | None = None,
    website_redirect: str | None = None,
    content_type: str | None = None,
    expires_days: int | None = None,
    grants: Iterable[tuple[str, str]] = (),
    success_action_redirect: str | None = None,
) -> Headers:
    """Headers of Initiate for an object's properties; None leaves one away.

    Metadata may spell headers out. As in the official SDK, they win over `acl` and `storage_class`, and lose to others.

    Args:
        grants: (permission, account id).
    """
    prefix = header_prefix(kind)
    found: dict[str, str] = {}
    if acl:
        found[f"{prefix}acl"] = encode_value(acl)
    if storage_class:
        table = _STORAGE_TO_OBS if kind == "obs" else _STORAGE_TO_V2
        found[f"{prefix}storage-class"] = encode_value(table.get(storage_class, storage_class))
    found.update(metadata_headers(kind, metadata or {}))
    if website_redirect:
        found[f"{prefix}website-redirect-location"] = encode_value(website_redirect)
    if content_type:
        found["Content-Type"] = encode_value(content_type)
    if expires_days is not None:
        found["x-obs-expires"] = str(expires_days)
    if success_action_redirect:
        found["success-action-redirect"] = encode_value(success_action_redirect)
    by_permission: dict[str, set[str]] = {}
    for permission, account in grants:
        if permission in GRANTS:
            by_permission.setdefault(GRANTS[permission], set()).add(f"id={account}")
    for name, ids in sorted(by_permission.items()):
        found[f"{prefix}grant-{name}"] = encode_value(",".join(sorted(ids)))
    return tuple(found.items())


def without(headers: Headers, others: Headers) -> Headers:
    """The headers whose names the others, which win over them, do not have."""
    names = {name.lower() for name, _ in others}
    return tuple((name, value) for name, value in headers if name.lower() not in names)


def sse_c_headers(kind: SignatureKind, algorithm: str, key: bytes) -> Headers:
    """Encryption with the customer's key: sent with Initiate and every part."""
    name = f"{header_prefix(kind)}server-side-encryption-customer-"
    digest = hashlib.md5(key, usedforsecurity=False).digest()
    return (
        (f"{name}algorithm", algorithm),
        (f"{name}key", b64encode(key).decode()),
        (f"{name}key-MD5", b64encode(digest).decode()),
    )


def sse_kms_headers(kind: SignatureKind, key_id: str | None) -> Headers:
    """Encryption with a key of the service: sent with Initiate alone."""
    prefix = header_prefix(kind)
    word, key_name = ("kms", "kms-key-id") if kind == "obs" else ("aws:kms", "aws-kms-key-id")
    headers = [(f"{prefix}server-side-encryption", word)]
    if key_id:
        headers.append((f"{prefix}server-side-encryption-{key_name}", encode_value(key_id)))
    return tuple(headers)


def by_effect(headers: Headers, extension: Headers = ()) -> dict[str, Headers]:
    """The headers that make an object what it is, as "metadata", "properties" and "encryption".

    Args:
        headers: of Initiate and of parts, all of which do.
        extension: the caller's own, of which many do not (a traffic limit, a tracing id): those known to do count.
    """
    found: dict[str, list[tuple[str, str]]] = {"metadata": [], "properties": [], "encryption": []}
    for name, value in (*headers, *((n, v) for n, v in extension if _makes_object(n))):
        bare = name.lower().removeprefix("x-obs-").removeprefix("x-amz-")
        is_encryption = bare.startswith("server-side-encryption")
        group = "metadata" if bare.startswith("meta-") else "encryption" if is_encryption else "properties"
        found[group].append((name, value))
    return {group: tuple(members) for group, members in found.items()}


def _makes_object(name: str) -> bool:
    lower = name.lower()
    bare = lower.removeprefix("x-obs-").removeprefix("x-amz-")
    return lower in _OBJECT_HEADERS or (bare != lower and bare.startswith(_OBJECT_PREFIXES))


def _is_blank(value: object) -> bool:
    """A header without a value is not sent: signed all the same, it would spoil the signature."""
    return value is None or not str(value).strip()
