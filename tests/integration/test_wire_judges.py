"""The wire's values before judges: every request and signature, sent with plain libcurl and without the engine.

One suite, two services: OpenStack Swift, which we did not write, and our own local server. What passes here is right
in itself: a fault of an upload is then not one of signing, encoding or XML.
"""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import psutil
import pycurl
import pytest

from harness import wait_until
from judges.swift import SwiftS3, skip_reason
from obs_engine.limits import PART_SIZE_MIN_BYTES
from obs_engine.testing import LocalObs
from obs_engine.wire import requests
from obs_engine.wire.endpoint import Addressing, parse_endpoint
from obs_engine.wire.object_headers import metadata_headers
from obs_engine.wire.replies import (
    ListedPart,
    Reply,
    read_completed,
    read_fault,
    read_parts_page,
    read_upload_id,
)
from obs_engine.wire.requests import Request, Target, finish
from obs_engine.wire.signing import Credentials, SignatureKind

pytestmark = pytest.mark.timeout(60)

BUCKET = "wire-bucket"
PART = bytes(range(256)) * (PART_SIZE_MIN_BYTES // 256)
LAST = b"the last part may be short"

MODES: list[tuple[str, SignatureKind, Addressing]] = [
    ("swift", "v2", "path"),
    ("swift", "v2", "virtual"),
    ("swift", "v4", "path"),
    ("swift", "v4", "virtual"),
    ("local", "v2", "path"),
    ("local", "v2", "virtual"),
    ("local", "v4", "path"),
    ("local", "v4", "virtual"),
    ("local", "obs", "virtual"),
]
KEYS = {
    "plain": "folder/name.bin",
    "space": "a b/c  d ",
    "plus": "a+b++",
    "percent": "100%25 %zz%",
    "latin": "grün/ÄÖÜß-é",
    "chinese": "中文/文件 名",
    "emoji": "😀",
    "tilde": "~tilde~/a~b",
    "leading slash": "/leading/slash",
    "slashes": "a//b///c/",
    "dots": "../a/./b/..",
    "reserved": "!$&'()*,;=:@[]{}|\\^`\"<>#?",
    "query-like": "k?uploadId=x&partNumber=1#f",
    "long": "é" * 500,
}

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Service:
    """A service under one signature and one way to address it; `ask` sends a wire request to it."""

    target: Target
    credentials: Credentials
    is_native: bool

    def ask(self, request: Request, body: bytes = b"", now_s: float | None = None) -> Reply:
        done = finish(request, self.target, self.credentials, time.time() if now_s is None else now_s)
        return send(done, done.body or body)

    def begin(self, key: str) -> str:
        upload_id = read_upload_id(ok(self.ask(requests.initiate(BUCKET, key))))
        assert upload_id
        return upload_id

    def part(self, key: str, upload_id: str, number: int, body: bytes) -> str:
        etag = ok(self.ask(requests.upload_part(BUCKET, key, upload_id, number, len(body)), body)).header("etag")
        assert etag
        assert etag.strip('"') == hashlib.md5(body).hexdigest()
        return etag


def send(done: requests.FinishedRequest, body: bytes) -> Reply:
    """One finished request over a fresh connection of libcurl."""
    curl, found = pycurl.Curl(), BytesIO()
    lines: list[bytes] = []
    curl.setopt(pycurl.URL, done.url)
    curl.setopt(pycurl.PATH_AS_IS, 1)
    curl.setopt(pycurl.PROXY, "")
    curl.setopt(pycurl.TIMEOUT, 30)
    headers = [f"{name}: {value}".encode() for name, value in done.headers if name != "Content-Length"]
    curl.setopt(pycurl.HTTPHEADER, [*headers, b"Expect:", b"Accept:"])
    curl.setopt(pycurl.WRITEFUNCTION, found.write)
    curl.setopt(pycurl.HEADERFUNCTION, lines.append)
    if done.method == "HEAD":
        curl.setopt(pycurl.NOBODY, 1)
    elif done.method in ("PUT", "POST"):
        assert len(body) == done.body_length
        curl.setopt(pycurl.UPLOAD, 1)
        curl.setopt(pycurl.INFILESIZE_LARGE, len(body))
        curl.setopt(pycurl.READDATA, BytesIO(body))
    if done.method != "PUT":
        curl.setopt(pycurl.CUSTOMREQUEST, done.method)
    curl.perform()
    status = int(curl.getinfo(pycurl.RESPONSE_CODE))
    curl.close()
    pairs = (line.decode("latin-1").partition(":") for line in lines if b":" in line)
    reply_headers = tuple((name.strip().lower(), value.strip()) for name, _, value in pairs)
    return Reply(status, "", reply_headers, found.getvalue())


def ok(reply: Reply, status: int = 200) -> Reply:
    assert reply.status == status, (reply.status, reply.headers, reply.body.decode(errors="replace"))
    return reply


def multipart_etag(*bodies: bytes) -> str:
    whole = hashlib.md5(b"".join(hashlib.md5(body).digest() for body in bodies)).hexdigest()
    return f"{whole}-{len(bodies)}"


@pytest.fixture(scope="session")
def swift() -> Iterator[SwiftS3]:
    reason = skip_reason()
    if reason:
        pytest.skip(reason)
    with SwiftS3(buckets=[BUCKET]) as judge:
        yield judge


@pytest.fixture(scope="session")
def local() -> Iterator[LocalObs]:
    with LocalObs(buckets=[BUCKET]) as server:
        yield server


@pytest.fixture(params=MODES, ids=" ".join)
def service(request: pytest.FixtureRequest) -> Service:
    name, kind, addressing = request.param
    found: SwiftS3 | LocalObs = request.getfixturevalue(name)
    endpoint = parse_endpoint(found.virtual_url if addressing == "virtual" else found.url)
    region = getattr(found, "region", "region")
    return Service(
        Target(endpoint, addressing, kind, region), Credentials(found.access_key, found.secret_key), name == "local"
    )


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return f"wire-{next(_numbers)}"


@pytest.mark.parametrize("name", KEYS)
def test_any_key_can_be_uploaded_in_parts(service: Service, name: str) -> None:
    """Initiate, two parts, Complete and HEAD agree on the key, whatever is in it, and the object is the parts."""
    key = KEYS[name]
    upload_id = service.begin(key)
    parts = [(str(number), service.part(key, upload_id, number, body)) for number, body in ((1, PART), (2, LAST))]
    completed = read_completed(ok(service.ask(requests.complete(BUCKET, key, upload_id, parts))))
    assert completed is not None
    assert completed.key == key
    assert (completed.etag or "").strip('"') == multipart_etag(PART, LAST)
    head = ok(service.ask(requests.head_object(BUCKET, key)))
    assert head.header("content-length") == str(len(PART) + len(LAST))
    assert (head.header("etag") or "").strip('"') == multipart_etag(PART, LAST)
    assert ok(service.ask(requests.get_object(BUCKET, key))).body == PART + LAST


def test_parts_are_listed_page_by_page(service: Service, key: str) -> None:
    """ListParts gives every part once, in order of its number, however small the page."""
    upload_id = service.begin(key)
    bodies = {number: b"%d" % number * 50 for number in (1, 2, 3, 5, 700)}
    etags = {number: service.part(key, upload_id, number, body) for number, body in bodies.items()}
    marker, pages = 0, 0
    found: list[ListedPart] = []
    while True:
        page = read_parts_page(ok(service.ask(requests.list_parts(BUCKET, key, upload_id, marker, max_parts=2))))
        assert page is not None
        assert len(page.parts) <= 2
        found += page.parts
        pages += 1
        if page.next_marker is None:
            break
        assert page.next_marker > marker
        marker = page.next_marker
    assert pages == 3
    expected = [(number, len(body), etags[number].strip('"')) for number, body in bodies.items()]
    assert [(part.part_number, part.size_bytes, part.etag.strip('"')) for part in found] == expected
    ok(service.ask(requests.abort(BUCKET, key, upload_id)), 204)


def test_a_part_sent_again_takes_the_place_of_the_first(service: Service, key: str) -> None:
    """The last bytes sent under a part number count."""
    upload_id = service.begin(key)
    service.part(key, upload_id, 1, b"first")
    etag = service.part(key, upload_id, 1, b"second")
    page = read_parts_page(ok(service.ask(requests.list_parts(BUCKET, key, upload_id))))
    assert page is not None
    assert [(part.part_number, part.size_bytes) for part in page.parts] == [(1, 6)]
    assert page.next_marker is None
    ok(service.ask(requests.complete(BUCKET, key, upload_id, [("1", etag)])))
    assert ok(service.ask(requests.get_object(BUCKET, key))).body == b"second"


def test_an_aborted_upload_is_unknown(service: Service, key: str) -> None:
    """After Abort, a part, ListParts and Complete are 404 NoSuchUpload."""
    upload_id = service.begin(key)
    etag = service.part(key, upload_id, 1, PART)
    ok(service.ask(requests.abort(BUCKET, key, upload_id)), 204)
    for request, body in (
        (requests.upload_part(BUCKET, key, upload_id, 2, len(LAST)), LAST),
        (requests.list_parts(BUCKET, key, upload_id), b""),
        (requests.complete(BUCKET, key, upload_id, [("1", etag)]), b""),
        (requests.abort(BUCKET, key, upload_id), b""),
    ):
        reply = service.ask(request, body)
        assert (request.operation, reply.status, read_fault(reply).code) == (request.operation, 404, "NoSuchUpload")


def test_complete_refuses_a_wrong_etag(service: Service, key: str) -> None:
    """A Complete that names another ETag than the service's is InvalidPart, and the upload lives on."""
    upload_id = service.begin(key)
    etag = service.part(key, upload_id, 1, LAST)
    reply = service.ask(requests.complete(BUCKET, key, upload_id, [("1", f'"{"0" * 32}"')]))
    assert (reply.status, read_fault(reply).code) == (400, "InvalidPart")
    assert read_completed(reply) is None
    ok(service.ask(requests.complete(BUCKET, key, upload_id, [("1", etag)])))


def test_a_wrong_secret_is_refused(service: Service, key: str) -> None:
    """With a wrong secret every request is 403, and SignatureDoesNotMatch where a body can say so."""
    upload_id = service.begin(key)
    stranger = replace(service, credentials=Credentials(service.credentials.access_key_id, "wrong"))
    for request, body in (
        (requests.initiate(BUCKET, key), b""),
        (requests.upload_part(BUCKET, key, upload_id, 1, len(LAST)), LAST),
        (requests.list_parts(BUCKET, key, upload_id), b""),
        (requests.complete(BUCKET, key, upload_id, [("1", "x")]), b""),
        (requests.abort(BUCKET, key, upload_id), b""),
    ):
        reply = stranger.ask(request, body)
        found = (request.operation, reply.status, read_fault(reply).code)
        assert found == (request.operation, 403, "SignatureDoesNotMatch")
    for request in (requests.head_bucket(BUCKET), requests.head_object(BUCKET, key)):
        assert stranger.ask(request).status == 403
    ok(service.ask(requests.abort(BUCKET, key, upload_id)), 204)


def test_an_unknown_access_key_is_refused(service: Service, key: str) -> None:
    """An access key that nobody has is 403, InvalidAccessKeyId as OBS says; Swift does not tell it from a secret."""
    stranger = replace(service, credentials=Credentials("nobody", service.credentials.secret_access_key))
    reply = stranger.ask(requests.initiate(BUCKET, key))
    code = "InvalidAccessKeyId" if service.is_native else "SignatureDoesNotMatch"
    assert (reply.status, read_fault(reply).code) == (403, code)


def test_a_clock_far_off_is_refused(service: Service, key: str) -> None:
    """A request signed an hour ago is 403 RequestTimeTooSkewed."""
    reply = service.ask(requests.initiate(BUCKET, key), now_s=time.time() - 3600)
    assert (reply.status, read_fault(reply).code) == (403, "RequestTimeTooSkewed")


def test_head_bucket_tells_whether_it_is_there(service: Service) -> None:
    """HEAD bucket is 200 for ours and 404 for none."""
    ok(service.ask(requests.head_bucket(BUCKET)))
    ok(service.ask(requests.head_bucket("there-is-no-such-bucket")), 404)


def test_head_object_tells_whether_it_is_there(service: Service, key: str) -> None:
    """HEAD object is 404 while an upload is under way."""
    upload_id = service.begin(key)
    service.part(key, upload_id, 1, LAST)
    ok(service.ask(requests.head_object(BUCKET, key)), 404)
    ok(service.ask(requests.abort(BUCKET, key, upload_id)), 204)


def test_headers_of_initiate_stay_with_the_object(service: Service, key: str) -> None:
    """Content-Type and metadata, signed with Initiate, come back with HEAD in the words that were sent."""
    kind = service.target.signature
    headers = (("Content-Type", "text/x-wire; charset=utf-8"), *metadata_headers(kind, {"colour": "blau grün"}))
    upload_id = read_upload_id(ok(service.ask(requests.initiate(BUCKET, key, headers))))
    assert upload_id
    etag = service.part(key, upload_id, 1, LAST)
    ok(service.ask(requests.complete(BUCKET, key, upload_id, [("1", etag)])))
    head = ok(service.ask(requests.head_object(BUCKET, key)))
    assert head.header("content-type") == "text/x-wire; charset=utf-8"
    assert head.own_header("meta-colour") == "blau gr%C3%BCn"  # as the official SDK quotes it: the blank stays


def test_encoding_type_url_encodes_the_key_of_a_reply(service: Service) -> None:
    """With `encoding-type=url`, the key of Complete's reply is read back as it was given."""
    key = f"encoded {next(_numbers)}/ü+%25"
    upload_id = read_upload_id(ok(service.ask(requests.initiate(BUCKET, key, encoding_type="url"))))
    assert upload_id
    etag = service.part(key, upload_id, 1, LAST)
    reply = ok(service.ask(requests.complete(BUCKET, key, upload_id, [("1", etag)], encoding_type="url")))
    completed = read_completed(reply)
    assert completed is not None
    assert completed.key == key


@pytest.mark.parametrize("corrupt", [False, True], ids=["right", "wrong"])
def test_content_md5_is_verified(service: Service, key: str, corrupt: bool) -> None:
    """A signed Content-MD5 that is not the body's is 400 BadDigest; the right one is accepted."""
    upload_id = service.begin(key)
    digest = requests.content_md5(b"something else" if corrupt else LAST)
    part = requests.upload_part(BUCKET, key, upload_id, 1, len(LAST), (("Content-MD5", digest),))
    reply = service.ask(part, LAST)
    assert (reply.status, read_fault(reply).code) == ((400, "BadDigest") if corrupt else (200, None))
    ok(service.ask(requests.abort(BUCKET, key, upload_id)), 204)


def test_a_request_changed_on_its_way_is_refused(service: Service, key: str) -> None:
    """Method, key, part number and upload id are all under the signature: a change of any is 403."""
    upload_id = service.begin(key)
    other = service.begin(f"{key}-other")
    part = requests.upload_part(BUCKET, key, upload_id, 1, len(LAST))
    done = finish(part, service.target, service.credentials, time.time())
    changes: dict[str, Callable[[str], str]] = {
        "part number": lambda url: url.replace("partNumber=1", "partNumber=2"),
        "upload id": lambda url: url.replace(upload_id, other),
        "key": lambda url: url.replace(key, f"{key}-other"),
    }
    for name, change in changes.items():
        changed = replace(done, url=change(done.url))
        assert changed.url != done.url
        reply = send(changed, LAST)
        assert (name, reply.status, read_fault(reply).code) == (name, 403, "SignatureDoesNotMatch")
    ok(send(done, LAST))
    for name, upload in ((key, upload_id), (f"{key}-other", other)):
        ok(service.ask(requests.abort(BUCKET, name, upload)), 204)


_HOST_OF_A_JUDGE = """
import sys
sys.path.insert(0, sys.argv[1])
from harness import wait_until
from judges.swift import SwiftS3
with SwiftS3(buckets=["a-bucket"]) as judge:
    print(judge.pid, judge.room, flush=True)
    sys.stdin.read()
"""


def test_swift_ends_with_its_parent() -> None:
    """kill -9 of the process that started Swift leaves neither a process nor a folder."""
    reason = skip_reason()
    if reason:
        pytest.skip(reason)
    host = subprocess.Popen(
        [sys.executable, "-c", _HOST_OF_A_JUDGE, str(Path(__file__).parent.parent)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert host.stdout is not None
    number, room = host.stdout.readline().decode().split(maxsplit=1)
    judge = psutil.Process(int(number))
    host.kill()
    host.communicate()
    judge.wait(10)
    wait_until(lambda: not Path(room.strip()).exists(), "Swift's folder removed")
