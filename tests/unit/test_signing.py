"""Signatures and endpoints: the vectors of the official signer, and how URLs are spelled."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from obs_engine.errors import InvalidArgumentError
from obs_engine.wire import requests
from obs_engine.wire.endpoint import Endpoint, encode_query, parse_endpoint
from obs_engine.wire.requests import Target, finish, http_date
from obs_engine.wire.signing import (
    Credentials,
    authorization_sha1,
    authorization_v4,
    canonical_request,
    header_prefix,
    resource_of,
    string_to_sign,
)

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "signatures.json").read_text())
KEYS = Credentials(VECTORS["access_key_id"], VECTORS["secret_access_key"])
REGION, LONG_DATE = "cn-north-4", "20260901T120000Z"
NOW_S = datetime(2026, 9, 1, 12, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize("vector", VECTORS["sha1"], ids=lambda v: v["id"])
def test_obs_and_v2_signatures_match_the_vectors(vector: dict[str, Any]) -> None:
    """`obs` and `v2` sign exactly as the official SDK."""
    query = [tuple(pair) for pair in vector["query"]]
    headers = [tuple(pair) for pair in vector["headers"]]
    if not vector.get("no_date"):
        headers.insert(0, ("Date", VECTORS["date"]))
    kind = vector["kind"]
    resource = resource_of("bkt", vector["key"], query, vector["addressing"], kind, vector.get("domain", ""))
    assert string_to_sign(vector["method"], headers, resource, header_prefix(kind)) == vector["string_to_sign"]
    assert authorization_sha1(kind, KEYS, vector["method"], headers, resource) == vector["authorization"]


@pytest.mark.parametrize("vector", VECTORS["v4"], ids=lambda v: v["id"])
def test_v4_signatures_match_the_vectors(vector: dict[str, Any]) -> None:
    """`v4` signs every header, and its canonical request is the documented one."""
    query = [tuple(pair) for pair in vector["query"]]
    headers = [tuple(pair) for pair in vector["headers"]]
    path = parse_endpoint(vector["endpoint"]).path("bkt", vector["key"], vector["addressing"])
    names = vector["signed_headers"].split(";")
    canonical = canonical_request(vector["method"], path, query, headers, names, "UNSIGNED-PAYLOAD")
    if vector["canonical_sha256"]:
        assert hashlib.sha256(canonical.encode()).hexdigest() == vector["canonical_sha256"]
    value = authorization_v4(KEYS, vector["method"], path, query, headers, LONG_DATE, REGION)
    assert value == (
        f"AWS4-HMAC-SHA256 Credential={KEYS.access_key_id}/20260901/{REGION}/s3/aws4_request,"
        f"SignedHeaders={vector['signed_headers']},Signature={vector['signature']}"
    )


def test_v4_requests_carry_x_amz_date_beside_date() -> None:
    """A V4 request has both dates: some servers refuse one that has only `Date`."""
    target = Target(Endpoint("http", "127.0.0.1", 9000), "path", "v4", REGION)
    finished = finish(requests.upload_part("bkt", "k", "U", 1, 5), target, KEYS, NOW_S)
    headers = dict(finished.headers)
    assert headers["x-amz-date"] == LONG_DATE
    assert headers["Date"] == VECTORS["date"]
    assert "x-amz-date" in headers["Authorization"]


def test_anonymous_requests_are_not_signed() -> None:
    """Without keys there is no Authorization and no token."""
    target = Target(Endpoint("https", "obs.example.com", 443), "virtual", "obs")
    finished = finish(requests.head_bucket("bkt"), target, Credentials(), NOW_S)
    assert {name for name, _ in finished.headers} == {"Host", "Date", "User-Agent"}


def test_secrets_are_not_shown() -> None:
    """Printing credentials shows the key's id and nothing else."""
    text = repr(Credentials("AK", "very-secret", "token-secret"))
    assert "AK" in text
    assert "secret" not in text.replace("secret_access_key", "")


def test_http_date_is_independent_of_the_locale() -> None:
    """Days and months are English, whatever the process's locale."""
    assert http_date(datetime.fromtimestamp(NOW_S, timezone.utc)) == VECTORS["date"]


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("obs.x.com", Endpoint("https", "obs.x.com", 443)),
        ("https://obs.x.com:8443", Endpoint("https", "obs.x.com", 8443)),
        ("http://obs.x.com/", Endpoint("http", "obs.x.com", 80)),
        ("obs.x.com/", Endpoint("https", "obs.x.com", 443)),
        ("http://[::1]:9000", Endpoint("http", "::1", 9000)),
        ("10.0.0.1", Endpoint("https", "10.0.0.1", 443)),
    ],
)
def test_endpoints_are_read(server: str, expected: Endpoint) -> None:
    """Hosts, addresses, ports, IPv6 and a trailing slash are understood."""
    assert parse_endpoint(server) == expected


@pytest.mark.parametrize("server", ["", "  ", None, 7, "ftp://x", "http://", "http://x/path", "http://x:0",
                                    "http://x:99999", "http://u:p@x", "http://[::1"])  # fmt: skip
def test_wrong_endpoints_are_refused(server: Any) -> None:
    """Whatever is no endpoint gets an error that names `server` or `port`."""
    with pytest.raises(InvalidArgumentError, match=r"server|port"):
        parse_endpoint(server)


def test_urls_in_the_three_styles() -> None:
    """Virtual host, path style and own domain; an IPv6 host is bracketed; default ports are left out."""
    endpoint = Endpoint("http", "obs.x.com", 80)
    assert endpoint.url("bkt", "a b/é", "virtual") == "http://bkt.obs.x.com/a%20b/%C3%A9"
    assert endpoint.url("bkt", "a", "path", [("uploads", None)]) == "http://obs.x.com/bkt/a?uploads"
    assert endpoint.url("bkt", "a", "cname") == "http://obs.x.com/a"
    assert endpoint.url("bkt", None, "path") == "http://obs.x.com/bkt"
    assert endpoint.url("bkt", "/lead", "virtual") == "http://bkt.obs.x.com//lead"
    assert Endpoint("http", "::1", 9000).url("b", "k", "path") == "http://[::1]:9000/b/k"


def test_query_values_are_encoded_and_bare_names_stay_bare() -> None:
    """`?uploads` has no equals sign; slashes in values stay."""
    assert encode_query([("uploads", None), ("uploadId", "a+/=")]) == "uploads&uploadId=a%2B/%3D"


def test_complete_escapes_and_keeps_the_order_given() -> None:
    """The body lists parts in the order given, ETags with their quotes."""
    body = requests.complete("b", "k", "U", [("1", '"aa"'), ("2", "<b>")]).body
    assert body == (
        b'<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"aa"</ETag></Part>'
        b"<Part><PartNumber>2</PartNumber><ETag>&lt;b&gt;</ETag></Part></CompleteMultipartUpload>"
    )


def test_uploads_are_listed_by_the_prefix_of_their_key() -> None:
    """The markers of a page go together; `uploads` alone is signed by `obs` and `v2`, all of it by `v4`."""
    first = requests.list_uploads("bkt", "a b/é")
    assert (first.method, first.bucket, first.key, first.body_length) == ("GET", "bkt", None, 0)
    assert encode_query(first.query) == "uploads&prefix=a%20b/%C3%A9&max-uploads=1000&encoding-type=url"
    following = requests.list_uploads("bkt", "k", "k/1", "U1")
    assert encode_query(following.query) == (
        "uploads&prefix=k&key-marker=k/1&upload-id-marker=U1&max-uploads=1000&encoding-type=url"
    )
    assert dict(requests.list_uploads("bkt", "k", "k/1").query)["upload-id-marker"] == ""
    assert "upload-id-marker" not in dict(requests.list_uploads("bkt", "k", "", "U1").query)
    for request in (first, following):
        assert resource_of("bkt", None, request.query, "virtual", "obs", "") == "/bkt/?uploads"
        assert resource_of("bkt", None, request.query, "path", "v2", "") == "/bkt?uploads"
    canonical = canonical_request("GET", "/bkt", first.query, [], [], "UNSIGNED-PAYLOAD")
    assert canonical.splitlines()[2] == "encoding-type=url&max-uploads=1000&prefix=a%20b%2F%C3%A9&uploads="
    url = finish(following, Target(Endpoint("http", "127.0.0.1", 9000), "path", "v4", REGION), KEYS, NOW_S).url
    assert url == f"http://127.0.0.1:9000/bkt?{encode_query(following.query)}"
