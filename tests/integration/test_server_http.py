"""The local server over real sockets: each operation, its rules and its errors, signed by the engine's own words."""

from __future__ import annotations

import hashlib
import http.client
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest

from obs_engine.digests import crc64
from obs_engine.testing import LocalObs
from obs_engine.wire.endpoint import Query, parse_endpoint
from obs_engine.wire.object_headers import sse_c_headers, sse_kms_headers
from obs_engine.wire.requests import (
    FinishedRequest,
    Request,
    Target,
    abort,
    complete,
    finish,
    get_object,
    head_bucket,
    head_object,
    initiate,
    list_parts,
    upload_part,
)
from obs_engine.wire.signing import Credentials, Headers, SignatureKind

pytestmark = pytest.mark.timeout(30)

BUCKET = "bucket"
SMALL = 100 * 1024


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def text(self, name: str) -> str | None:
        """The first element of this name in the XML body."""
        for item in ElementTree.fromstring(self.body).iter():
            if item.tag.rpartition("}")[2] == name:
                return item.text or ""
        return None

    def texts(self, name: str) -> list[str]:
        return [i.text or "" for i in ElementTree.fromstring(self.body).iter() if i.tag.rpartition("}")[2] == name]

    @property
    def refusal(self) -> tuple[int, str | None]:
        return self.status, self.text("Code")


class Client:
    """Sends one signed request at a time over one connection."""

    def __init__(self, local: LocalObs, kind: SignatureKind = "obs") -> None:
        self.target = Target(parse_endpoint(local.url), "path", kind)
        self.keys = Credentials(local.access_key, local.secret_key)
        self.connection = http.client.HTTPConnection("127.0.0.1", local.port, timeout=20)

    def sign(self, request: Request) -> FinishedRequest:
        return finish(request, self.target, self.keys, time.time())

    def raw(self, request: Request, extra: Headers = ()) -> bytes:
        """The head as bytes, for tests that speak over a bare socket."""
        finished = self.sign(request)
        url = urlsplit(finished.url)
        lines = [f"{finished.method} {url.path}{'?' + url.query if url.query else ''} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in (*finished.headers, *extra)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + finished.body

    def do(self, request: Request, body: bytes = b"", extra: Headers = ()) -> Answer:
        finished = self.sign(request)
        url = urlsplit(finished.url)
        self.connection.putrequest(
            finished.method, url.path + (f"?{url.query}" if url.query else ""), skip_host=True,
            skip_accept_encoding=True,
        )  # fmt: skip
        for name, value in (*finished.headers, *extra):
            self.connection.putheader(name, value)
        self.connection.endheaders(body or finished.body)
        reply = self.connection.getresponse()
        return Answer(reply.status, {n.lower(): v for n, v in reply.getheaders()}, reply.read())

    def put(self, key: str, data: bytes, headers: Headers = ()) -> Answer:
        return self.do(Request("PutObject", "PUT", BUCKET, key, headers=headers, body_length=len(data)), data)

    def get(self, key: str | None, query: Query = (), headers: Headers = ()) -> Answer:
        return self.do(Request("Get", "GET", BUCKET, key, query, headers))

    def part(self, key: str, upload_id: str, number: int, data: bytes, headers: Headers = ()) -> Answer:
        return self.do(upload_part(BUCKET, key, upload_id, number, len(data), headers), data)

    def begin(self, key: str, headers: Headers = ()) -> str:
        answer = self.do(initiate(BUCKET, key, headers))
        assert answer.status == 200
        return answer.text("UploadId") or ""


@pytest.fixture(scope="module")
def local() -> Iterator[LocalObs]:
    with LocalObs(buckets=[BUCKET]) as made:
        yield made


@pytest.fixture
def client(local: LocalObs) -> Iterator[Client]:
    made = Client(local)
    yield made
    made.connection.close()


def hex_md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def connect(local: LocalObs) -> socket.socket:
    return socket.create_connection(("127.0.0.1", local.port), timeout=20)


def read_all(sock: socket.socket, until: Callable[[bytes], bool]) -> bytes:
    data = b""
    while not until(data):
        piece = sock.recv(65536)
        if not piece:
            break
        data += piece
    return data


@pytest.mark.parametrize("kind", ["obs", "v2", "v4"])
def test_a_multipart_upload_from_initiate_to_get(local: LocalObs, kind: SignatureKind) -> None:
    """Parts become one object: its ETag is the MD5 of their MD5s, its metadata comes back, its upload id is told."""
    client = Client(local, kind)
    prefix = "x-obs-" if kind == "obs" else "x-amz-"
    key = f"multi {kind}/ü"
    upload_id = client.begin(key, (
        ("Content-Type", "text/x-test"), (f"{prefix}meta-Colour", "blue"), (f"{prefix}acl", "private"),
        (f"{prefix}storage-class", "WARM" if kind == "obs" else "STANDARD_IA"),
        (f"{prefix}website-redirect-location", "/other"), ("Cache-Control", "no-cache"),
    ))  # fmt: skip
    parts = [bytes([n]) * (SMALL + n) for n in (1, 2, 3)]
    etags = []
    for number in (2, 1, 3):
        answer = client.part(key, upload_id, number, parts[number - 1])
        assert answer.headers["etag"] == f'"{hex_md5(parts[number - 1])}"'
        etags.append((str(number), answer.headers["etag"]))
    done = client.do(complete(BUCKET, key, upload_id, sorted(etags)))
    joined = hex_md5(b"".join(hashlib.md5(part).digest() for part in parts))
    assert (done.status, done.text("ETag"), done.text("Key")) == (200, f'"{joined}-3"', key)
    head = client.do(head_object(BUCKET, key))
    assert head.body == b""
    wanted = {
        "etag": f'"{joined}-3"', "content-length": str(sum(map(len, parts))), "content-type": "text/x-test",
        f"{prefix}meta-colour": "blue", "x-obs-uploadid": upload_id, "cache-control": "no-cache",
        f"{prefix}storage-class": "WARM" if kind == "obs" else "STANDARD_IA",
        f"{prefix}website-redirect-location": "/other",
    }  # fmt: skip
    assert {name: head.headers.get(name) for name in wanted} == wanted
    got = client.get(key)
    assert got.body == b"".join(parts)
    assert client.do(complete(BUCKET, key, upload_id, etags)).refusal == (404, "NoSuchUpload")


def test_every_reply_carries_the_ids(client: Client, local: LocalObs) -> None:
    """x-obs-request-id and x-obs-id-2 are on successes and errors alike; v2 and v4 get x-amz-request-id too."""
    v4 = Client(local, "v4")
    answers = [client.do(head_bucket(BUCKET)), client.get("absent"), v4.do(head_bucket("none")), v4.get("absent")]
    for answer in answers:
        assert len(answer.headers["x-obs-request-id"]) == 32
        assert answer.headers["x-obs-id-2"]
        assert (answer.headers["server"], answer.headers["connection"]) == ("OBS", "keep-alive")
        assert "date" in answer.headers
    assert answers[3].headers["x-amz-request-id"] == answers[3].text("RequestId")
    assert answers[1].refusal == (404, "NoSuchKey")
    assert len({answer.headers["x-obs-request-id"] for answer in answers}) == 4


def test_a_wrong_signature_is_answered_after_the_body(client: Client, local: LocalObs) -> None:
    """A 403 does not cut off a client that is still sending: the body is read, the connection lives on."""
    client.keys = Credentials(local.access_key, "wrong")
    answer = client.put("k", b"x" * 3_000_000)
    assert answer.refusal == (403, "SignatureDoesNotMatch")
    assert (answer.text("StringToSign") or "").startswith("PUT\n")
    client.keys = Credentials(local.access_key, local.secret_key)
    assert client.get("k").refusal == (404, "NoSuchKey")


def test_the_probe_of_the_api_version_needs_no_signature(client: Client) -> None:
    """`HEAD /?apiversion` answers x-obs-api without a signature, and 404 for a bucket that is not there."""
    for path, status in (("/bucket?apiversion", 200), ("/nobucket?apiversion", 404), ("/?apiversion", 200)):
        client.connection.request("HEAD", path)
        reply = client.connection.getresponse()
        reply.read()
        assert reply.status == status
        assert reply.getheader("x-obs-api") == ("3.0" if status == 200 else None)
    client.connection.request("GET", "/bucket")
    reply = client.connection.getresponse()
    assert (reply.status, b"<Code>AccessDenied</Code>" in reply.read()) == (403, True)


def test_digests_of_a_part_are_checked(client: Client) -> None:
    """Content-MD5 and CRC-64 that do not match are 400 BadDigest, unreadable ones InvalidDigest; nothing is stored."""
    upload_id = client.begin("digests")
    data = b"123456789"
    md5 = b64encode(hashlib.md5(data).digest()).decode()
    good = client.part("digests", upload_id, 1, data, (
        ("Content-MD5", md5), ("x-obs-checksum-crc64ecma", "11051210869376104954"),
    ))  # fmt: skip
    assert good.headers["x-obs-checksum-crc64ecma"] == "11051210869376104954"
    for headers, code in (
        ((("Content-MD5", b64encode(b"0" * 16).decode()),), "BadDigest"),
        ((("Content-MD5", "short"),), "InvalidDigest"),
        ((("x-obs-checksum-crc64ecma", "1"),), "BadDigest"),
        ((("x-obs-checksum-crc64ecma", "one"),), "InvalidDigest"),
        ((("x-obs-checksum-crc64ecma", str(1 << 64)),), "InvalidDigest"),
    ):
        assert client.part("digests", upload_id, 2, data, headers).refusal == (400, code)
    assert client.do(list_parts(BUCKET, "digests", upload_id)).texts("PartNumber") == ["1"]
    client.do(abort(BUCKET, "digests", upload_id))


def test_the_crc_of_an_object_is_checked_at_complete(client: Client) -> None:
    """The parts' CRC-64 are combined; Complete's own is compared and echoed, and HEAD tells it."""
    upload_id = client.begin("crc")
    parts = [b"a" * SMALL, b"b" * 10]
    etags = []
    for number, data in enumerate(parts, 1):
        answer = client.part("crc", upload_id, number, data, (("x-obs-checksum-crc64ecma", str(crc64(data))),))
        etags.append((str(number), answer.headers["etag"]))
    wrong = client.do(complete(BUCKET, "crc", upload_id, etags, (("x-obs-checksum-crc64ecma", "5"),)))
    assert wrong.refusal == (400, "BadDigest")
    whole = str(crc64(b"".join(parts)))
    right = client.do(complete(BUCKET, "crc", upload_id, etags, (("x-obs-checksum-crc64ecma", whole),)))
    assert (right.status, right.headers["x-obs-checksum-crc64ecma"]) == (200, whole)
    assert client.do(head_object(BUCKET, "crc")).headers["x-obs-checksum-crc64ecma"] == whole


def test_v4_checks_a_promised_payload_digest(local: LocalObs) -> None:
    """A body that differs from the SHA-256 in a v4 request is refused."""
    from obs_engine.wire.signing import authorization_v4

    connection = http.client.HTTPConnection("127.0.0.1", local.port, timeout=20)
    long_date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    keys = Credentials(local.access_key, local.secret_key)
    for body, status in ((b"body", 200), (b"evil", 400)):
        headers = [
            ("host", f"127.0.0.1:{local.port}"), ("x-amz-date", long_date),
            ("x-amz-content-sha256", hashlib.sha256(b"body").hexdigest()),
        ]  # fmt: skip
        value = authorization_v4(keys, "PUT", "/bucket/sha", (), headers, long_date, "any")
        connection.request("PUT", "/bucket/sha", body, {**dict(headers[1:]), "Authorization": value})
        reply = connection.getresponse()
        assert (reply.status, b"XAmzContentSHA256Mismatch" in reply.read()) == (status, status == 400)
    connection.close()


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ([(2, None), (1, None)], (400, "InvalidPartOrder")),
        ([(1, None), (1, None)], (400, "InvalidPartOrder")),
        ([(1, None), (4, "a" * 32)], (400, "InvalidPart")),
        ([(1, "a" * 32)], (400, "InvalidPart")),
        ([(1, None), (2, None), (3, None)], (400, "EntityTooSmall")),
        ([(1, None), (3, None)], (200, None)),
        ([(2, None)], (200, None)),
    ],
)
def test_complete_keeps_the_documented_rules(
    client: Client, listed: list[tuple[int, str | None]], expected: tuple[int, str | None]
) -> None:
    """Ascending order, known parts with their ETags, and 100 KB for every part but the last."""
    upload_id = client.begin("rules")
    sizes = {1: SMALL, 2: SMALL - 1, 3: SMALL}
    etags = {n: client.part("rules", upload_id, n, b"x" * size).headers["etag"] for n, size in sizes.items()}
    answer = client.do(complete(BUCKET, "rules", upload_id, [(str(n), etag or etags[n]) for n, etag in listed]))
    if expected[0] == 200:
        assert answer.status == 200
        assert len(client.get("rules").body) == sum(sizes[n] for n, _ in listed)
    else:
        assert answer.refusal == expected
        assert client.do(abort(BUCKET, "rules", upload_id)).status == 204


def test_malformed_and_misplaced_completes(client: Client) -> None:
    """A body that is no such document is MalformedXML; an upload of another key is unknown here."""
    upload_id = client.begin("mal")
    request = Request("Complete", "POST", BUCKET, "mal", (("uploadId", upload_id),), (), b"<no", 3)
    assert client.do(request).refusal == (400, "MalformedXML")
    assert client.do(complete(BUCKET, "mal", upload_id, ())).refusal == (400, "MalformedXML")
    assert client.do(complete(BUCKET, "other", upload_id, (("1", "a"),))).refusal == (404, "NoSuchUpload")
    assert client.part("mal", "F" * 32, 1, b"x").refusal == (404, "NoSuchUpload")
    assert client.do(abort(BUCKET, "mal", upload_id)).status == 204
    assert client.do(abort(BUCKET, "mal", upload_id)).refusal == (404, "NoSuchUpload")
    assert client.do(list_parts(BUCKET, "mal", upload_id)).refusal == (404, "NoSuchUpload")


def test_part_numbers_and_sizes_have_limits(client: Client, local: LocalObs) -> None:
    """Part numbers go from 1 to 10000; a part above 5 GB is refused before its body is read."""
    upload_id = client.begin("limits")
    for number in (0, 10_001):
        assert client.part("limits", upload_id, number, b"x").refusal == (400, "InvalidArgument")
    assert client.part("limits", upload_id, 10_000, b"x").status == 200
    with connect(local) as sock:
        sock.sendall(client.raw(upload_part(BUCKET, "limits", upload_id, 1, 5 * 1024**3 + 1)))
        reply = read_all(sock, lambda data: False)
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"<Code>EntityTooLarge</Code>" in reply
    assert b"Connection: close" in reply
    client.do(abort(BUCKET, "limits", upload_id))


def test_a_part_sent_twice_is_the_later_one(client: Client) -> None:
    """The last write of a part number wins, in ListParts and in the object."""
    upload_id = client.begin("twice")
    client.part("twice", upload_id, 1, b"first")
    etag = client.part("twice", upload_id, 1, b"second").headers["etag"]
    page = client.do(list_parts(BUCKET, "twice", upload_id))
    assert (page.texts("ETag"), page.texts("Size")) == ([etag], ["6"])
    client.do(complete(BUCKET, "twice", upload_id, (("1", etag),)))
    assert client.get("twice").body == b"second"


def test_list_parts_pages(client: Client) -> None:
    """Pages hold max-parts, say whether more follow, and go on after the marker; keys are encoded when asked for."""
    key = "pages/ü x"
    upload_id = client.begin(key)
    for number in (1, 5, 9, 10_000):
        client.part(key, upload_id, number, b"x")
    first = client.do(list_parts(BUCKET, key, upload_id, 0, 3))
    assert (first.texts("PartNumber"), first.text("IsTruncated")) == (["1", "5", "9"], "true")
    assert first.text("NextPartNumberMarker") == "9"
    rest = client.do(list_parts(BUCKET, key, upload_id, 9))
    assert (rest.texts("PartNumber"), rest.text("IsTruncated")) == (["10000"], "false")
    encoded = client.get(key, (("uploadId", upload_id), ("encoding-type", "url")))
    assert (encoded.text("Key"), encoded.text("EncodingType")) == ("pages/%C3%BC%20x", "url")
    client.do(abort(BUCKET, key, upload_id))


def test_list_uploads_pages(client: Client) -> None:
    """Uploads in progress are listed by key and id, with prefix and markers."""
    begun = {key: client.begin(key) for key in ("up/a", "up/b", "up/c", "other")}
    first = client.get(None, (("uploads", None), ("prefix", "up/"), ("max-uploads", "2")))
    assert (first.texts("Key"), first.text("IsTruncated")) == (["up/a", "up/b"], "true")
    marker, id_marker = first.text("NextKeyMarker") or "", first.text("NextUploadIdMarker") or ""
    rest = client.get(
        None, (("uploads", None), ("prefix", "up/"), ("key-marker", marker), ("upload-id-marker", id_marker))
    )
    assert (rest.texts("Key"), rest.texts("UploadId")) == (["up/c"], [begun["up/c"]])
    folded = client.get(None, (("uploads", None), ("delimiter", "/")))
    assert (folded.texts("Key"), folded.texts("Prefix")[1:]) == (["other"], ["up/"])
    for key, upload_id in begun.items():
        assert client.do(abort(BUCKET, key, upload_id)).status == 204


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=0-0", 206, b"0"), ("bytes=2-4", 206, b"234"), ("bytes=7-", 206, b"789"), ("bytes=-2", 206, b"89"),
        ("bytes=8-99", 206, b"89"), ("bytes=-99", 206, b"0123456789"), ("bytes=10-", 416, b""), ("bytes=-0", 416, b""),
        ("bytes=5-2", 200, b"0123456789"), ("lines=1-2", 200, b"0123456789"),
    ],
)  # fmt: skip
def test_ranges(client: Client, asked: str, status: int, expected: bytes) -> None:
    """One range is 206 with its place; beyond the end is 416; what cannot be read is ignored."""
    client.put("digits", b"0123456789")
    answer = client.get("digits", headers=(("Range", asked),))
    assert answer.status == status
    if status == 416:
        assert answer.refusal == (416, "InvalidRange")
        assert answer.headers["content-range"] == "bytes */10"
    else:
        assert answer.body == expected
    if status == 206:
        start = b"0123456789".index(expected)
        assert answer.headers["content-range"] == f"bytes {start}-{start + len(expected) - 1}/10"


def test_ranges_cross_the_seams_of_parts(client: Client) -> None:
    """A range over several parts is read from several files."""
    upload_id = client.begin("seams")
    parts = [bytes([n]) * SMALL for n in range(4)]
    etags = [(str(n), client.part("seams", upload_id, n, part).headers["etag"]) for n, part in enumerate(parts, 1)]
    client.do(complete(BUCKET, "seams", upload_id, etags))
    answer = client.get("seams", headers=(("Range", f"bytes={SMALL - 1}-{3 * SMALL}"),))
    assert answer.body == b"".join(parts)[SMALL - 1 : 3 * SMALL + 1]


def test_a_range_may_have_a_condition(client: Client) -> None:
    """A range of the object that is meant, or 412: nobody puts pieces of two objects together."""
    etag = client.put("condition", b"0123456789").headers["etag"]
    asked = (("Range", "bytes=2-4"), ("If-Match", etag))
    answer = client.get("condition", headers=asked)
    assert (answer.status, answer.body, answer.headers["etag"]) == (206, b"234", etag)
    client.put("condition", b"abcdefghij")
    assert client.get("condition", headers=asked).refusal == (412, "PreconditionFailed")
    assert client.do(head_object(BUCKET, "condition", asked)).status == 412


def put_parts(client: Client, key: str, parts: dict[int, bytes], headers: Headers = ()) -> str:
    """A multipart object of these parts; returns its ETag."""
    upload_id = client.begin(key, headers)
    etags = [(str(n), client.part(key, upload_id, n, data).headers["etag"]) for n, data in parts.items()]
    return client.do(complete(BUCKET, key, upload_id, etags)).text("ETag") or ""


@pytest.mark.parametrize("kind", ["v2", "v4"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_parts_of_an_object_may_be_asked_for(local: LocalObs, kind: SignatureKind, method: str) -> None:
    """As of AWS S3, by the number of the upload: 206, its range, its length, how many there are, the object's ETag."""
    client = Client(local, kind)
    parts = {2: b"a" * SMALL, 3: b"b" * (SMALL + 1), 9: b"c"}
    etag, size, start = put_parts(client, "numbered", parts), sum(map(len, parts.values())), 0
    for number, data in parts.items():
        answer = client.do(Request("Read", method, BUCKET, "numbered", (("partNumber", str(number)),)))
        assert (answer.status, answer.body) == (206, data if method == "GET" else b"")
        wanted = {
            "content-range": f"bytes {start}-{start + len(data) - 1}/{size}", "content-length": str(len(data)),
            "x-amz-mp-parts-count": "3", "etag": etag,
        }  # fmt: skip
        assert {name: answer.headers.get(name) for name in wanted} == wanted
        start += len(data)


def test_a_part_that_is_not_there_is_refused(local: LocalObs) -> None:
    """No such part, no such number, a Range beside it; a single object is its own part 1; an empty part is empty."""
    client = Client(local, "v4")
    put_parts(client, "numbers", {1: b"a" * SMALL, 3: b""})
    assert client.get("numbers", (("partNumber", "2"),)).refusal == (416, "InvalidPartNumber")
    for number in ("0", "10001", "x", ""):
        assert client.get("numbers", (("partNumber", number),)).refusal == (400, "InvalidArgument")
    beside = client.get("numbers", (("partNumber", "1"),), (("Range", "bytes=0-1"),))
    assert beside.refusal == (400, "InvalidRequest")
    empty = client.get("numbers", (("partNumber", "3"),))
    assert (empty.status, empty.body, "content-range" in empty.headers) == (206, b"", False)
    client.put("single", b"0123456789")
    single = client.get("single", (("partNumber", "1"),))
    assert (single.status, single.headers["content-range"], single.body) == (206, "bytes 0-9/10", b"0123456789")
    assert "x-amz-mp-parts-count" not in single.headers
    assert client.get("single", (("partNumber", "2"),)).refusal == (416, "InvalidPartNumber")


def test_obs_itself_knows_no_parts_of_an_object(client: Client) -> None:
    """OBS documents no `partNumber` there: the query is passed over, beside a Range as well."""
    parts = {1: b"a" * SMALL, 2: b"b"}
    put_parts(client, "whole", parts)
    for number in ("2", "77", "x"):
        answer = client.get("whole", (("partNumber", number),))
        assert (answer.status, answer.body) == (200, b"".join(parts.values()))
        assert not any("parts-count" in name for name in answer.headers)
        assert client.get("whole", (("partNumber", number),), (("Range", "bytes=-1"),)).body == b"b"


CUSTOMER_KEY = b"12345678901234567890123456789012"


def encryptions(kind: SignatureKind) -> dict[str, tuple[Headers, Headers]]:
    """Ways to encrypt, each with the headers of Initiate and those of parts and readers."""
    customers = sse_c_headers(kind, "AES256", CUSTOMER_KEY)
    return {
        "sse-c": (customers, customers),
        "kms": (sse_kms_headers(kind, None), ()),
        "kms with a key": (sse_kms_headers(kind, "a-key"), ()),
        "sse-obs": (((f"{'x-obs-' if kind == 'obs' else 'x-amz-'}server-side-encryption", "AES256"),), ()),
    }


@pytest.mark.parametrize("way", ["sse-c", "kms", "kms with a key", "sse-obs"])
@pytest.mark.parametrize("kind", ["obs", "v2", "v4"])
def test_etags_under_encryption_are_no_md5s(local: LocalObs, kind: SignatureKind, way: str) -> None:
    """Of parts, ListParts, Complete, HEAD and PutObject; every reply tells the encryption in its mode's words."""
    client, (begin, rest) = Client(local, kind), encryptions(kind)[way]
    told = {name.lower(): value for name, value in begin if not name.endswith("customer-key")}
    key, parts = f"encrypted {kind} {way}", [b"a" * SMALL, b"b"]
    began = client.do(initiate(BUCKET, key, begin))
    upload_id = began.text("UploadId") or ""
    answers = [began, *(client.part(key, upload_id, n, data, rest) for n, data in enumerate(parts, 1))]
    etags = [answer.headers["etag"] for answer in answers[1:]]
    assert client.do(list_parts(BUCKET, key, upload_id)).texts("ETag") == etags
    answers.append(client.do(complete(BUCKET, key, upload_id, [(str(n), e) for n, e in enumerate(etags, 1)])))
    joined = hex_md5(b"".join(bytes.fromhex(etag.strip('"')) for etag in etags))
    assert answers[-1].text("ETag") == f'"{joined}-2"'
    for request in (head_object(BUCKET, key, rest), get_object(BUCKET, key, rest)):
        answers.append(client.do(request))
        assert answers[-1].headers["etag"] == f'"{joined}-2"'
    assert answers[-1].body == b"".join(parts)
    answers.append(client.put(key, parts[0], begin))
    assert answers[-1].headers["etag"] == etags[0]  # the same bytes, the same key
    for answer in answers:
        assert answer.status == 200
        assert {name: value for name, value in answer.headers.items() if "encryption" in name} == told
    for etag, data in zip(etags, parts, strict=True):
        assert len(bytes.fromhex(etag.strip('"'))) == 16
        assert hex_md5(data) not in etag


@pytest.mark.parametrize("way", ["sse-c", "kms"])
def test_digests_are_checked_under_encryption(client: Client, way: str) -> None:
    """Content-MD5 and CRC-64 are of the bytes that were sent, whatever the ETag is."""
    begin, rest = encryptions("obs")[way]
    upload_id = client.begin(f"promised {way}", begin)
    data = b"123456789"
    md5s = [(("Content-MD5", b64encode(hashlib.md5(text).digest()).decode()),) for text in (data, b"other")]
    crcs = [(("x-obs-checksum-crc64ecma", str(crc64(text))),) for text in (data, b"other")]
    for right, wrong in (md5s, crcs):
        good = client.part(f"promised {way}", upload_id, 1, data, (*rest, *right))
        assert good.status == 200
        bad = client.part(f"promised {way}", upload_id, 2, data, (*rest, *wrong))
        assert bad.refusal == (400, "BadDigest")
    assert good.headers["x-obs-checksum-crc64ecma"] == str(crc64(data))
    client.do(abort(BUCKET, f"promised {way}", upload_id))


@pytest.mark.parametrize(
    ("kind", "without", "wrong"),
    [
        ("obs", (400, "InvalidEncryptionAlgorithmError"), (400, "InvalidEncryptionAlgorithmError")),
        ("v4", (400, "InvalidRequest"), (403, "AccessDenied")),
    ],
)
def test_an_object_under_a_customers_key_is_shown_to_who_has_it(
    local: LocalObs, kind: SignatureKind, without: tuple[int, str], wrong: tuple[int, str]
) -> None:
    """GET and HEAD, ranges too; parts without the key of their upload are refused before they are stored."""
    client = Client(local, kind)
    right, other = (sse_c_headers(kind, "AES256", key) for key in (CUSTOMER_KEY, b"o" * 32))
    client.put("customers", b"0123456789", right)
    for headers, expected in (((), without), (other, wrong)):
        assert client.get("customers", headers=headers).refusal == expected
        assert client.get("customers", headers=(*headers, ("Range", "bytes=2-4"))).refusal == expected
        assert client.do(head_object(BUCKET, "customers", headers)).status == expected[0]
    assert client.get("customers", headers=(*right, ("Range", "bytes=2-4"))).body == b"234"
    upload_id = client.begin("customers", right)
    for headers in ((), other):
        assert client.part("customers", upload_id, 1, b"x", headers).refusal == (400, "InvalidRequest")
    assert client.part("customers", upload_id, 1, b"x", right).status == 200
    client.do(abort(BUCKET, "customers", upload_id))


def test_put_get_head_delete_of_objects(client: Client) -> None:
    """One request stores an object, empty or not; conditions on its ETag hold; deleting twice is no error."""
    for data in (b"", b"x", b"y" * 3_000_001):
        put = client.put("plain", data, (("x-obs-meta-a", "1"),))
        assert put.headers["etag"] == f'"{hex_md5(data)}"'
        got = client.get("plain")
        assert (got.body, got.headers["x-obs-meta-a"]) == (data, "1")
        assert "x-obs-uploadid" not in got.headers
    etag = put.headers["etag"]
    assert client.get("plain", headers=(("If-None-Match", etag),)).status == 304
    assert client.get("plain", headers=(("If-Match", '"other"'),)).refusal == (412, "PreconditionFailed")
    other = client.get("plain", (("response-content-type", "a/b"),))
    assert other.headers["content-type"] == "a/b"
    delete = Request("DeleteObject", "DELETE", BUCKET, "plain")
    assert [client.do(delete).status for _ in range(2)] == [204, 204]
    assert client.do(head_object(BUCKET, "plain")).status == 404
    long = client.put("k" * 1025, b"")
    assert long.refusal == (400, "KeyTooLongError")


def test_objects_are_listed_in_both_versions(client: Client) -> None:
    """Prefix, delimiter, marker and max-keys, and the continuation of list-type 2."""
    for name in ("l/a", "l/b/1", "l/b/2", "l/c"):
        client.put(name, b"x")
    page = client.get(None, (("prefix", "l/"), ("delimiter", "/"), ("max-keys", "2")))
    assert (page.texts("Key"), page.text("NextMarker"), page.text("IsTruncated")) == (["l/a"], "l/b/", "true")
    rest = client.get(None, (("prefix", "l/"), ("delimiter", "/"), ("marker", "l/b/")))
    assert rest.texts("Key") == ["l/c"]
    second = client.get(None, (("list-type", "2"), ("prefix", "l/"), ("max-keys", "3")))
    assert (second.text("KeyCount"), second.texts("Key")) == ("3", ["l/a", "l/b/1", "l/b/2"])
    token = second.text("NextContinuationToken") or ""
    assert client.get(None, (("list-type", "2"), ("prefix", "l/"), ("continuation-token", token))).texts("Key") == [
        "l/c"
    ]
    body = b"<Delete>" + b"".join(f"<Object><Key>{n}</Key></Object>".encode() for n in ("l/a", "l/c")) + b"</Delete>"
    md5 = (("Content-MD5", b64encode(hashlib.md5(body).digest()).decode()),)
    answer = client.do(Request("DeleteObjects", "POST", BUCKET, None, (("delete", None),), md5, body, len(body)))
    assert answer.texts("Key") == ["l/a", "l/c"]
    assert client.get(None, (("prefix", "l/"),)).texts("Key") == ["l/b/1", "l/b/2"]


def test_buckets_are_made_listed_and_removed(client: Client) -> None:
    """A bucket's name is checked; a bucket that holds an object or an upload is not removed."""
    made = Request("CreateBucket", "PUT", "another-bucket")
    assert [client.do(made).status for _ in range(2)] == [200, 200]
    assert client.do(Request("CreateBucket", "PUT", "Bad_Name")).refusal == (400, "InvalidBucketName")
    listed = client.do(Request("ListBuckets", "GET", ""))
    assert {"another-bucket", BUCKET} <= set(listed.texts("Name"))
    upload_id = client.do(initiate("another-bucket", "k")).text("UploadId") or ""
    delete = Request("DeleteBucket", "DELETE", "another-bucket")
    assert client.do(delete).refusal == (409, "BucketNotEmpty")
    client.do(abort("another-bucket", "k", upload_id))
    assert client.do(delete).status == 204
    assert client.do(delete).refusal == (404, "NoSuchBucket")
    assert client.do(head_bucket("another-bucket")).status == 404
    assert client.do(Request("Policy", "GET", BUCKET, None, (("policy", None),))).refusal == (501, "NotImplemented")


def test_expect_100_continue(client: Client, local: LocalObs) -> None:
    """A client that waits is told to go on, or is refused before it sends a byte."""
    expect = (("Expect", "100-continue"),)
    with connect(local) as sock:
        request = Request("PutObject", "PUT", BUCKET, "expected", body_length=5)
        sock.sendall(client.raw(request, expect))
        assert read_all(sock, lambda data: data.endswith(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"12345")
        assert read_all(sock, lambda data: b"\r\n\r\n" in data).startswith(b"HTTP/1.1 200 OK\r\n")
    with connect(local) as sock:
        sock.sendall(client.raw(Request("PutObject", "PUT", "nobucket", "k", body_length=5), expect))
        reply = read_all(sock, lambda data: False)
        assert reply.startswith(b"HTTP/1.1 404 ")
        assert b"Connection: close" in reply
    assert client.get("expected").body == b"12345"


def test_pipelined_requests_are_answered_in_order(client: Client, local: LocalObs) -> None:
    """Requests that come together, bodies included and cut anywhere, are answered one by one."""
    data = b"z" * 700_000
    first = Request("GetObject", "GET", BUCKET, "pipe", headers=(("Range", "bytes=0-3"),))
    last = Request("GetObject", "GET", BUCKET, "pipe", headers=(("Range", "bytes=-2"),))
    bytes_of = [
        client.raw(Request("PutObject", "PUT", BUCKET, "pipe", body_length=len(data))) + data,
        client.raw(first),
        client.raw(head_object(BUCKET, "absent")),
        client.raw(last, [("Connection", "close")]),
    ]
    with connect(local) as sock:
        stream = b"".join(bytes_of)
        for cut in range(0, len(stream), 99_991):
            sock.sendall(stream[cut : cut + 99_991])
        reply = read_all(sock, lambda received: False)
    found = [piece.split(b" ", 2)[0] for piece in reply.split(b"HTTP/1.1 ")[1:]]
    assert found == [b"200", b"206", b"404", b"206"]
    assert b"\r\n\r\nzzzzHTTP/1.1 404" in reply
    assert reply.endswith(b"\r\n\r\nzz")


def test_heads_byte_by_byte_and_broken_heads(client: Client, local: LocalObs) -> None:
    """A head may come in any pieces; one that breaks the RFC, or never ends, is 400 and the end."""
    with connect(local) as sock:
        for byte in client.raw(head_bucket(BUCKET)):
            sock.sendall(bytes([byte]))
        assert read_all(sock, lambda data: b"\r\n\r\n" in data).startswith(b"HTTP/1.1 200 OK")
    for broken in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", b"a" * 70_000):
        with connect(local) as sock:
            sock.sendall(broken)
            reply = read_all(sock, lambda data: False)
        assert reply.startswith(b"HTTP/1.1 400 ")
        assert b"<Error>" in reply


def test_chunked_bodies_are_accepted(client: Client, local: LocalObs) -> None:
    """An object may come in chunks of unknown total."""
    request = Request("PutObject", "PUT", BUCKET, "chunked")
    head = client.raw(request, [("Transfer-Encoding", "chunked")]).replace(b"Content-Length: 0\r\n", b"")
    with connect(local) as sock:
        sock.sendall(head + b"3\r\nabc\r\n")
        sock.sendall(b"2\r\nde\r\n0\r\n\r\n")
        assert read_all(sock, lambda data: b"\r\n\r\n" in data).startswith(b"HTTP/1.1 200 OK")
    assert client.get("chunked").body == b"abcde"
    with connect(local) as sock:
        sock.sendall(client.raw(request).replace(b"Content-Length: 0\r\n", b""))
        assert b"<Code>MissingContentLength</Code>" in read_all(sock, lambda data: b"</Error>" in data)


def test_many_connections_send_parts_at_once(client: Client, local: LocalObs) -> None:
    """Parts that arrive interleaved, of different sizes, keep their own digests."""
    upload_id = client.begin("many")
    bodies = [bytes([n]) * (SMALL + 77_777 * n) for n in range(1, 9)]
    socks = [connect(local) for _ in bodies]
    for number, (sock, data) in enumerate(zip(socks, bodies, strict=True), 1):
        sock.sendall(client.raw(upload_part(BUCKET, "many", upload_id, number, len(data))))
    for start in range(0, max(map(len, bodies)), 50_000):
        for sock, data in zip(socks, bodies, strict=True):
            sock.sendall(data[start : start + 50_000])
    for sock, data in zip(socks, bodies, strict=True):
        assert hex_md5(data).encode() in read_all(sock, lambda received: b"\r\n\r\n" in received)
        sock.close()
    etags = [(str(n), hex_md5(data)) for n, data in enumerate(bodies, 1)]
    assert client.do(complete(BUCKET, "many", upload_id, etags)).status == 200
    assert client.get("many").body == b"".join(bodies)


def test_the_log_tells_each_request_and_no_secret(client: Client, local: LocalObs) -> None:
    """One line for each request, with what was asked and answered; no key's secret and no signature."""
    local.clear_requests()
    upload_id = client.begin("logged")
    client.part("logged", upload_id, 3, b"abc")
    client.get("none")
    with connect(local) as sock:
        sock.sendall(client.raw(upload_part(BUCKET, "logged", upload_id, 4, 10)) + b"half")
    client.do(abort(BUCKET, "logged", upload_id))
    entries: dict[str, Any] = {}
    while "UploadPart4" not in entries:  # the server may learn of a lost connection after the next request's end
        entries = {entry["operation"] + str(entry["part_number"] or ""): entry for entry in local.requests()}
    part = entries["UploadPart3"]
    assert {name: part[name] for name in ("method", "path", "bucket", "key", "upload_id", "status", "code")} == {
        "method": "PUT", "path": "/bucket/logged", "bucket": BUCKET, "key": "logged", "upload_id": upload_id,
        "status": 200, "code": None,
    }  # fmt: skip
    assert (part["bytes_in"], part["signature"], part["fault"]) == (3, "obs", None)
    assert part["bytes_out"] > 100
    assert 0 <= part["seconds"] < 20
    assert entries["GetObject"]["code"] == "NoSuchKey"
    assert entries["Abort"]["connection"] == part["connection"]
    lost = entries["UploadPart4"]
    assert (lost["status"], lost["code"], lost["bytes_in"]) == (None, "ConnectionLost", 4)
    text = repr(local.requests())
    assert local.secret_key not in text
    assert "Signature=" not in text
    assert "OBS " + local.access_key not in text
