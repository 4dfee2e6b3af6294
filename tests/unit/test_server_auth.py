"""The local server's judgement of signatures, without a socket: signed by the engine, judged by the server."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import urlsplit

import pytest

from obs_engine.testing.auth import SKEW_MAX_S, Verifier
from obs_engine.testing.calls import Call, understand
from obs_engine.testing.http import parse_head
from obs_engine.testing.replies import Refusal
from obs_engine.wire.endpoint import Addressing, parse_endpoint
from obs_engine.wire.requests import (
    FinishedRequest,
    Request,
    Target,
    finish,
    head_bucket,
    initiate,
    list_parts,
    upload_part,
)
from obs_engine.wire.signing import (
    Credentials,
    SignatureKind,
    authorization_v4,
    canonical_request,
    sign_sha1,
    sign_v4,
    string_to_sign,
)

NOW_S = 1_788_264_000.0
KEYS = Credentials("AKEXAMPLE0123456789A", "SKexample/0123456789abcdefghijklmnopqrst")
KEY = "dir/a b+c~(é)%41.txt"
CNAMES = {"files.example.com": "bkt"}

KINDS: list[SignatureKind] = ["obs", "v2", "v4"]
HOSTS: dict[Addressing, str] = {
    "path": "http://127.0.0.1:9000",
    "virtual": "http://obs.example.com:9000",
    "cname": "http://files.example.com",
}
REQUESTS = {
    "bucket": head_bucket("bkt"),
    "initiate": initiate("bkt", KEY, (("Content-Type", "text/plain"), ("x-obs-meta-Name", " v 1%25 "))),
    "part": upload_part("bkt", KEY, "U+/=", 7, 102400, (("Content-MD5", "I5pU0r4+sgO9Emgl1KMQUg=="),)),
    "parts": list_parts("bkt", KEY, "U1", 5),
}


def call_of(finished: FinishedRequest, **changed: str | None) -> Call:
    """The call that a server sees; a changed header replaces the old one, None leaves it away."""
    url = urlsplit(finished.url)
    headers = [(n, v) for n, v in finished.headers if n.lower().replace("-", "_") not in changed]
    headers += [(n.replace("_", "-"), v) for n, v in changed.items() if v is not None]
    lines = [f"{finished.method} {url.path}{'?' + url.query if url.query else ''} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers]
    return understand(parse_head(("\r\n".join(lines) + "\r\n\r\n").encode()), CNAMES)


def sign(
    request: Request, kind: SignatureKind, addressing: Addressing = "path", keys: Credentials = KEYS
) -> FinishedRequest:
    return finish(request, Target(parse_endpoint(HOSTS[addressing]), addressing, kind, "here"), keys, NOW_S)


def refusal_of(call: Call, verifier: Verifier | None = None, now_s: float = NOW_S) -> Refusal:
    with pytest.raises(Refusal) as caught:
        (verifier or Verifier(KEYS)).verify(call, now_s)
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("addressing", list(HOSTS))
@pytest.mark.parametrize("name", list(REQUESTS))
def test_a_right_signature_is_accepted(kind: SignatureKind, addressing: Addressing, name: str) -> None:
    """Every request of the engine is accepted in each signature and each way to address a bucket."""
    call = call_of(sign(REQUESTS[name], kind, addressing))
    Verifier(KEYS).verify(call, NOW_S)
    assert (call.is_signed, call.kind, call.bucket) == (True, kind, "bkt")
    assert call.key == REQUESTS[name].key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"content_md5": "AAAAAAAAAAAAAAAAAAAAAA=="}, "SignatureDoesNotMatch"),
        ({"authorization": None}, "AccessDenied"),
        ({"date": None, "x_amz_date": None}, "AccessDenied"),
        ({"authorization": "Basic QTpC"}, "InvalidArgument"),
    ],
)
def test_a_changed_request_is_refused(kind: SignatureKind, changed: dict[str, str | None], code: str) -> None:
    """One changed header spoils a signature; a request without one is anonymous."""
    assert refusal_of(call_of(sign(REQUESTS["part"], kind), **changed)).code == code


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_keys_are_told_apart(kind: SignatureKind) -> None:
    """A wrong secret is SignatureDoesNotMatch with the string to sign; an unknown key is InvalidAccessKeyId."""
    wrong = refusal_of(call_of(sign(REQUESTS["part"], kind, keys=Credentials(KEYS.access_key_id, "wrong"))))
    assert (wrong.status, wrong.code) == (403, "SignatureDoesNotMatch")
    shown = dict(wrong.extra)
    assert shown["CanonicalRequest" if kind == "v4" else "StringToSign"].startswith("PUT\n")
    assert KEYS.secret_access_key not in repr(wrong.extra)
    unknown = refusal_of(call_of(sign(REQUESTS["part"], kind, keys=Credentials("OTHER", "wrong"))))
    assert (unknown.status, unknown.code) == (403, "InvalidAccessKeyId")


@pytest.mark.parametrize("kind", KINDS)
def test_a_clock_may_differ_by_a_quarter_of_an_hour(kind: SignatureKind) -> None:
    """15 minutes of difference pass, a second more is RequestTimeTooSkewed, in both directions."""
    for sign_of in (1, -1):
        Verifier(KEYS).verify(call_of(sign(REQUESTS["part"], kind)), NOW_S + sign_of * SKEW_MAX_S)
        late = refusal_of(call_of(sign(REQUESTS["part"], kind)), now_s=NOW_S + sign_of * (SKEW_MAX_S + 1))
        assert (late.status, late.code) == (403, "RequestTimeTooSkewed")


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_token_must_be_the_one_configured(kind: SignatureKind) -> None:
    """With a token configured, a request carries exactly that token, signed; without one any signed token passes."""
    keys = Credentials(KEYS.access_key_id, KEYS.secret_access_key, "TOK/en+1==")
    with_token = sign(REQUESTS["part"], kind, keys=keys)
    Verifier(keys).verify(call_of(with_token), NOW_S)
    Verifier(KEYS).verify(call_of(with_token), NOW_S)
    assert refusal_of(call_of(sign(REQUESTS["part"], kind)), Verifier(keys)).code == "InvalidAccessKeyId"
    name: Any = "x_obs_security_token" if kind == "obs" else "x_amz_security_token"
    assert refusal_of(call_of(with_token, **{name: "other"})).code == "SignatureDoesNotMatch"


@pytest.mark.parametrize(("kind", "name"), [("obs", "x-obs-date"), ("v2", "x-amz-date")])
def test_the_service_date_stands_in_for_date(kind: SignatureKind, name: str) -> None:
    """`x-obs-date` and `x-amz-date` take the place of Date, in the string to sign and for the clock."""
    headers = [("Host", "127.0.0.1:9000"), (name, "Tue, 01 Sep 2026 12:00:00 GMT")]
    text = string_to_sign("HEAD", headers, "/bkt", f"{name[:5]}-")
    word = "OBS" if kind == "obs" else "AWS"
    value = f"{word} {KEYS.access_key_id}:{sign_sha1(KEYS.secret_access_key, text)}"
    head = "".join(f"{n}: {v}\r\n" for n, v in [*headers, ("Authorization", value)])
    call = understand(parse_head(f"HEAD /bkt HTTP/1.1\r\n{head}\r\n".encode()), {})
    Verifier(KEYS).verify(call, NOW_S)
    assert call.kind == kind


def test_v4_works_with_date_alone_and_with_a_real_payload_digest() -> None:
    """A v4 request that has only Date is accepted, as the SDK sends it; a SHA-256 of the body is kept for later."""
    digest = hashlib.sha256(b"body").hexdigest()
    headers = [("host", "127.0.0.1:9000"), ("date", "Tue, 01 Sep 2026 12:00:00 GMT"), ("x-amz-content-sha256", digest)]
    value = authorization_v4(KEYS, "PUT", "/bkt/k", (), headers, "20260901T120000Z", "here")
    head = "".join(f"{n}: {v}\r\n" for n, v in [*headers, ("Authorization", value), ("Content-Length", "4")])
    call = understand(parse_head(f"PUT /bkt/k HTTP/1.1\r\n{head}\r\n".encode()), {})
    Verifier(KEYS).verify(call, NOW_S)
    assert call.payload_sha256 == digest
    refused = refusal_of(call, Verifier(KEYS, region="elsewhere"))
    assert (refused.status, refused.code) == (400, "AuthorizationHeaderMalformed")


def test_signed_urls_are_accepted_until_they_expire() -> None:
    """A URL signed in its query works without a header, until its time is over."""
    expires = int(NOW_S) + 60
    text = string_to_sign("GET", [("date", str(expires))], "/bkt/k", "x-obs-")
    query = f"AccessKeyId={KEYS.access_key_id}&Expires={expires}&Signature="
    encoded = sign_sha1(KEYS.secret_access_key, text).replace("+", "%2B").replace("=", "%3D")
    v2 = f"GET /bkt/k?{query}{encoded} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()

    scope = f"{KEYS.access_key_id}/20260901/r/s3/aws4_request"
    pairs = [
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"), ("X-Amz-Credential", scope),
        ("X-Amz-Date", "20260901T120000Z"), ("X-Amz-Expires", "60"), ("X-Amz-SignedHeaders", "host"),
    ]  # fmt: skip
    canonical = canonical_request("GET", "/bkt/k", pairs, [("host", "127.0.0.1")], ["host"], "UNSIGNED-PAYLOAD")
    signature = sign_v4(KEYS.secret_access_key, canonical, "20260901T120000Z", "r")
    tail = "&".join(f"{n}={v.replace('/', '%2F')}" for n, v in [*pairs, ("X-Amz-Signature", signature)])
    v4 = f"GET /bkt/k?{tail} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()

    for head, kind in ((v2, "obs"), (v4, "v4")):
        call = understand(parse_head(head), {})
        assert call.operation == "GetObject"
        Verifier(KEYS).verify(call, NOW_S)
        assert call.kind == kind
        assert refusal_of(call, now_s=NOW_S + 61).code == "AccessDenied"


@pytest.mark.parametrize(
    ("target", "host", "operation", "bucket", "key"),
    [
        ("GET /", "127.0.0.1:1", "ListBuckets", None, None),
        ("GET /", "bkt.localhost:1", "ListObjects", "bkt", None),
        ("GET /bkt", "localhost:1", "ListObjects", "bkt", None),
        ("GET /bkt/", "[::1]:1", "ListObjects", "bkt", None),
        ("GET /bkt?uploads", "localhost", "ListUploads", "bkt", None),
        ("HEAD /?apiversion", "bkt.localhost", "ApiVersion", "bkt", None),
        ("PUT /a//b", "bkt.localhost", "PutObject", "bkt", "a//b"),
        ("PUT //lead", "bkt.localhost", "PutObject", "bkt", "/lead"),
        ("PUT /bkt/%2541", "localhost", "PutObject", "bkt", "%41"),
        ("PUT /bkt/k?partNumber=1&uploadId=U", "localhost", "UploadPart", "bkt", "k"),
        ("POST /bkt/k?uploadId=U", "localhost", "Complete", "bkt", "k"),
        ("POST /bkt/k?uploads&encoding-type=url", "localhost", "Initiate", "bkt", "k"),
        ("DELETE /bkt/k?uploadId=U", "localhost", "Abort", "bkt", "k"),
        ("GET /bkt/k?response-content-type=a", "localhost", "GetObject", "bkt", "k"),
        ("PUT /k", "files.example.com", "PutObject", "bkt", "k"),
        ("GET /bkt?policy", "localhost", "Unsupported", "bkt", None),
        ("PUT http://localhost/bkt/k", "localhost", "PutObject", "bkt", "k"),
    ],
)
def test_a_request_names_its_operation_bucket_and_key(
    target: str, host: str, operation: str, bucket: str | None, key: str | None
) -> None:
    """The first label of a host name is the bucket; of an address or a plain name, the first piece of the path is."""
    call = understand(parse_head(f"{target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()), CNAMES)
    assert (call.operation, call.bucket, call.key) == (operation, bucket, key)
