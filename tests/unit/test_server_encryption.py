"""Encryption as clients see it: whose key, which words, which ETags."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from obs_engine.errors import InvalidArgumentError
from obs_engine.testing import encryption
from obs_engine.testing.calls import Call, understand
from obs_engine.testing.http import Head
from obs_engine.testing.replies import Refusal
from obs_engine.wire.object_headers import sse_c_headers, sse_kms_headers
from obs_engine.wire.signing import Headers, SignatureKind

KINDS: list[SignatureKind] = ["obs", "v2", "v4"]
KEY, OTHER = b"k" * 32, b"o" * 32


def call(headers: Headers = (), kind: SignatureKind = "obs") -> Call:
    fields = {"host": "127.0.0.1", **{name.lower(): value for name, value in headers}}
    made = understand(Head("GET", "/b/k", "/b/k", [], list(fields.items()), fields, 0, True, True, False), {})
    made.kind = kind
    return made


def under(key: bytes, kind: SignatureKind = "obs") -> Call:
    """A request that brings a customer's key."""
    return call(sse_c_headers(kind, "AES256", key), kind)


def code_of(check: Callable[..., object], *arguments: object) -> tuple[int, str] | None:
    """How it is refused; None where it is not."""
    try:
        check(*arguments)
    except Refusal as refusal:
        return refusal.status, refusal.code
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_request_asks_for_wins_over_the_bucket(kind: SignatureKind) -> None:
    """A customer's key, `kms` with or without its id, or AES256; each mode spells it its own way, asking and told."""
    default = encryption.read_default("kms:theirs")
    prefix = "x-obs-" if kind == "obs" else "x-amz-"
    ways = [
        sse_c_headers(kind, "AES256", KEY), sse_kms_headers(kind, None), sse_kms_headers(kind, "id"),
        ((f"{prefix}server-side-encryption", "AES256"),),
    ]  # fmt: skip
    for headers in ways:
        found = encryption.asked(call(headers, kind), default)
        told = {f"{prefix}{name}": value for name, value in encryption.headers_of(found, kind)}
        assert told == {name: value for name, value in headers if not name.endswith("customer-key")}
    assert encryption.asked(call(kind=kind), default) == default
    assert encryption.asked(call(kind=kind), {}) == {}


def test_both_modes_mean_the_same() -> None:
    """What was asked for in one mode is told in the words of the other, and gives the same ETag."""
    found = [encryption.asked(call(sse_kms_headers(kind, "id"), kind), {}) for kind in KINDS]
    assert found[0] == found[1] == found[2]
    assert dict(encryption.headers_of(found[1], "obs")) == {
        "server-side-encryption": "kms", "server-side-encryption-kms-key-id": "id",
    }  # fmt: skip


def test_an_etag_under_encryption_is_no_md5() -> None:
    """32 hex digits, the same for the same bytes and key, others for others; without encryption it is the MD5."""
    md5, another = (hashlib.md5(data).hexdigest() for data in (b"a", b"b"))
    ways = [
        {}, *(encryption.read_default(text) for text in ("AES256", "kms", "kms:1", "kms:2")),
        *(encryption.asked(under(key), {}) for key in (KEY, OTHER)),
    ]  # fmt: skip
    etags = [encryption.etag_of(text, way) for way in ways for text in (md5, another)]
    assert etags[:2] == [md5, another]
    assert len(set(etags)) == len(etags)
    assert etags == [encryption.etag_of(text, dict(way)) for way in ways for text in (md5, another)]
    assert all(len(bytes.fromhex(etag)) == 16 and etag == etag.lower() for etag in etags)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"algorithm": "AES128"}, (400, "InvalidEncryptionAlgorithmError")),
        ({"algorithm": None}, (400, "InvalidEncryptionAlgorithmError")),
        ({"key": None}, (400, "InvalidArgument")),
        ({"key": "short"}, (400, "InvalidArgument")),
        ({"key": "c2hvcnQ="}, (400, "InvalidArgument")),
        ({"key-MD5": None}, (400, "InvalidArgument")),
        ({"key-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}, (400, "InvalidArgument")),
    ],
)
def test_a_customers_key_is_checked(change: dict[str, str | None], expected: tuple[int, str]) -> None:
    """All three headers, AES256, 256 bits, and the MD5 of that key."""
    prefix = "x-obs-server-side-encryption-customer-"
    headers = dict(sse_c_headers("obs", "AES256", KEY))
    assert encryption.customer_key_md5(call(tuple(headers.items()))) == headers[f"{prefix}key-MD5"]
    headers.update({f"{prefix}{name}": value for name, value in change.items() if value is not None})
    for name in [name for name, value in change.items() if value is None]:
        del headers[f"{prefix}{name}"]
    asking = call(tuple(headers.items()))
    assert code_of(encryption.customer_key_md5, asking) == expected


@pytest.mark.parametrize(
    ("kind", "without", "wrong"),
    [
        ("obs", (400, "InvalidEncryptionAlgorithmError"), (400, "InvalidEncryptionAlgorithmError")),
        ("v2", (400, "InvalidRequest"), (403, "AccessDenied")),
        ("v4", (400, "InvalidRequest"), (403, "AccessDenied")),
    ],
)
def test_who_reads_needs_the_customers_key(
    kind: SignatureKind, without: tuple[int, str], wrong: tuple[int, str]
) -> None:
    """In each mode's own code; an object that is under no customer's key is read by anybody."""
    customers = encryption.asked(under(KEY), {})
    readers = [under(KEY, kind), call(kind=kind), under(OTHER, kind)]
    assert [code_of(encryption.check_reader, reader, customers) for reader in readers] == [None, without, wrong]
    for way in ({}, encryption.read_default("kms")):
        assert [code_of(encryption.check_reader, reader, way) for reader in readers] == [None] * 3


def test_a_part_brings_the_key_of_its_upload() -> None:
    """None where that has none."""
    customers = encryption.asked(under(KEY), {})
    refused = (400, "InvalidRequest")
    parts = [under(KEY), call(), under(OTHER)]
    assert [code_of(encryption.check_part, part, customers) for part in parts] == [None, refused, refused]
    assert [code_of(encryption.check_part, part, {}) for part in parts] == [refused, None, refused]


@pytest.mark.parametrize("text", ["", "aes256", "kms:", "aws:kms", "AES256:key", "sse-c"])
def test_a_default_is_one_of_three_words(text: str) -> None:
    """`AES256`, `kms`, or `kms:KEY-ID`; a customer's key can be no bucket's default."""
    with pytest.raises(InvalidArgumentError, match="AES256, kms, or kms:KEY-ID"):
        encryption.read_default(text)
