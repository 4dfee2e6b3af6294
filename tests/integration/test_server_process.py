"""The local server as a process: its start and end, its data after a kill, TLS, and scripted faults."""

from __future__ import annotations

import contextlib
import hashlib
import html
import http.client
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme

from obs_engine.digests import crc64
from obs_engine.errors import InvalidArgumentError
from obs_engine.testing import LocalObs
from obs_engine.testing.faults import Faults
from obs_engine.wire.endpoint import parse_endpoint
from obs_engine.wire.object_headers import sse_c_headers
from obs_engine.wire.requests import (
    Request,
    Target,
    complete,
    finish,
    head_bucket,
    initiate,
    list_parts,
    upload_part,
)
from obs_engine.wire.signing import Credentials, Headers

pytestmark = pytest.mark.timeout(30)

SOURCE_ROOT = str(Path(__file__).parents[2] / "engine")
SMALL = 100 * 1024


class Client:
    """Signs and sends; a new connection for each request."""

    def __init__(self, local: LocalObs, context: ssl.SSLContext | None = None) -> None:
        self.local, self.context = local, context
        self.target = Target(parse_endpoint(local.url), "path", "obs")
        self.keys = Credentials(local.access_key, local.secret_key, local.security_token)

    def open(self) -> http.client.HTTPConnection:
        if self.context is not None:
            return http.client.HTTPSConnection("127.0.0.1", self.local.port, timeout=20, context=self.context)
        return http.client.HTTPConnection("127.0.0.1", self.local.port, timeout=20)

    def do(
        self, request: Request, body: bytes = b"", connection: http.client.HTTPConnection | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        finished = finish(request, self.target, self.keys, time.time())
        url = urlsplit(finished.url)
        used = connection or self.open()
        used.putrequest(
            finished.method, url.path + (f"?{url.query}" if url.query else ""), skip_host=True,
            skip_accept_encoding=True,
        )  # fmt: skip
        for name, value in finished.headers:
            used.putheader(name, value)
        used.endheaders(body or finished.body)
        reply = used.getresponse()
        data = reply.read()
        if connection is None:
            used.close()
        return reply.status, {n.lower(): v for n, v in reply.getheaders()}, data

    def put(
        self, key: str, data: bytes, connection: http.client.HTTPConnection | None = None, headers: Headers = ()
    ) -> Any:
        request = Request("PutObject", "PUT", "bucket", key, headers=headers, body_length=len(data))
        return self.do(request, data, connection)

    def get(self, key: str) -> bytes:
        return self.do(Request("GetObject", "GET", "bucket", key))[2]

    def begin(self, key: str) -> str:
        return between(self.do(initiate("bucket", key))[2], "UploadId")

    def part(self, key: str, upload_id: str, number: int, data: bytes, headers: Headers = ()) -> Any:
        return self.do(upload_part("bucket", key, upload_id, number, len(data), headers), data)


def between(body: bytes, name: str) -> str:
    return body.decode().partition(f"<{name}>")[2].partition(f"</{name}>")[0]


DATA = bytes(range(256)) * 400


def md5_of(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def spoiled(rule: dict[str, Any], data: bytes, nth: int = 1) -> bytes:
    """The data as the nth request that matches the rule makes it."""
    faults = Faults([{"corrupt": rule["corrupt"], "seed": rule.get("seed", 0)}])
    met = [faults.choose(rule["operation"], "bucket", "k", None) for _ in range(nth)][-1]
    assert met is not None
    byte, mask = met.bit(len(data))
    return data[:byte] + bytes([data[byte] ^ mask]) + data[byte + 1 :]


def crc_header(data: bytes) -> tuple[str, str]:
    return "x-obs-checksum-crc64ecma", str(crc64(data))


@pytest.fixture
def local() -> Iterator[LocalObs]:
    with LocalObs() as made:
        yield made


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalObs]:
    with LocalObs() as made:
        yield made


@pytest.fixture
def faulty(shared: LocalObs) -> Iterator[LocalObs]:
    """One server for all fault tests: rules are set live."""
    shared.clear_requests()
    yield shared
    shared.set_faults([])


# --- life ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_data_survives_the_end_of_the_server(local: LocalObs, end: str) -> None:
    """After SIGKILL as after SIGTERM, buckets, objects, uploads and parts are there; half a part is not."""
    client = Client(local)
    client.put("object", b"kept")
    upload_id = client.begin("upload")
    etag = client.part("upload", upload_id, 1, b"p" * SMALL)[1]["etag"]
    half = socket.create_connection(("127.0.0.1", local.port))
    finished = finish(upload_part("bucket", "upload", upload_id, 2, 10**7), client.target, client.keys, time.time())
    url = urlsplit(finished.url)
    head = "".join(f"{n}: {v}\r\n" for n, v in finished.headers)
    half.sendall(f"PUT {url.path}?{url.query} HTTP/1.1\r\n{head}\r\n".encode() + b"h" * 2_000_000)
    port = local.port
    getattr(local, end)()
    assert local.pid is None
    half.close()
    local.restart()
    assert local.port == port
    assert client.get("object") == b"kept"
    assert client.do(list_parts("bucket", "upload", upload_id))[2].count(b"<Part>") == 1
    last = client.part("upload", upload_id, 2, b"q")[1]["etag"]
    assert client.do(complete("bucket", "upload", upload_id, (("1", etag), ("2", last))))[0] == 200
    local.restart()
    assert client.get("upload") == b"p" * SMALL + b"q"
    assert client.do(complete("bucket", "upload", upload_id, (("1", etag),)))[0] == 404
    assert local.requests("Complete")[0]["status"] == 200


def test_the_server_dies_with_its_parent() -> None:
    """A parent that is killed leaves no server and no files behind, even when a child of it still holds the pipe."""
    program = (
        "import os, sys, time\n"
        "from obs_engine.testing import LocalObs\n"
        "local = LocalObs()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os.close(1)\n"
        "    time.sleep(60)\n"
        "    os._exit(0)\n"
        "print(local.pid, child, local.data_dir, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": SOURCE_ROOT}
    )
    assert parent.stdout is not None
    server, child, data_dir = parent.stdout.readline().split()
    watched = os.pidfd_open(int(server))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        assert select.select([watched], [], [], 10)[0], "the server outlived its parent"
        assert not Path(data_dir.decode()).parent.exists()
    finally:
        os.kill(int(child), signal.SIGKILL)
        os.close(watched)


def serve(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "obs_engine.cli.serve", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": SOURCE_ROOT, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_it_is_and_stops_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """`obs-engine serve` prints one READY line with its URL, and ends with exit code 0 and without a word."""
    process = serve(
        "--data", str(tmp_path / "data"), "--access-key", "AK", "--bucket", "made",
        "--log", str(tmp_path / "log"), OBS_ENGINE_SERVE_SECRET_KEY="SK",
    )  # fmt: skip
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert ready.startswith("READY http://127.0.0.1:")
    target = Target(parse_endpoint(ready.split()[1]), "path", "obs")
    finished = finish(head_bucket("made"), target, Credentials("AK", "SK"), time.time())
    connection = http.client.HTTPConnection("127.0.0.1", target.endpoint.port, timeout=20)
    connection.request("HEAD", "/made", headers=dict(finished.headers))
    assert connection.getresponse().status == 200
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")
    assert json.loads((tmp_path / "log").read_text())["operation"] == "HeadBucket"
    connection.close()


def test_the_secret_may_come_from_standard_input(tmp_path: Path) -> None:
    """`--secret-key -` reads the secret from the first line of standard input, off the process list."""
    process = serve("--data", str(tmp_path), "--access-key", "AK", "--secret-key", "-")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("from-input\n")
    process.stdin.flush()
    assert process.stdout.readline().startswith("READY ")
    assert b"from-input" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_local_obs_keeps_its_secrets_off_the_process_list(local: LocalObs) -> None:
    """Neither the command line nor the environment of the server holds the secret."""
    for name in ("cmdline", "environ"):
        assert local.secret_key.encode() not in Path(f"/proc/{local.pid}/{name}").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "{taken}"], ["127.0.0.1:{taken}", "in use", "--port"]),
        (["--data", "{file}"], ["data directory", "{file}", "--data"]),
        (["--tls-cert", "{file}"], ["both a certificate and a key"]),
        (["--tls-cert", "{file}", "--tls-key", "{file}"], ["PEM", "{file}"]),
        (["--faults", "{file}"], ["faults file", "no JSON"]),
        (["--faults", "/nonexistent"], ["faults file", "No such file"]),
        (["--faults", "{rules}"], ["fault rule 1", "status"]),
        (["--log", "/nonexistent/log"], ["log file", "--log"]),
        (["--bucket", "Bad"], ["--bucket", "'Bad'"]),
        (["--cname", "x"], ["--cname", "DOMAIN=BUCKET"]),
        (["--crc64", "maybe"], ["--crc64", "checked or ignored", "'maybe'"]),
        (["--encryption", "bucket"], ["--encryption", "BUCKET=HOW"]),
        (["--encryption", "Bad=kms"], ["--encryption", "'Bad'"]),
        (["--encryption", "bucket=rot13"], ["bucket encryption", "AES256, kms", "'rot13'"]),
        (["--secret-key", ""], ["secret key", "OBS_ENGINE_SERVE_SECRET_KEY"]),
        (["--host", "192.0.2.1"], ["listening address", "192.0.2.1"]),
    ],
)
def test_what_cannot_be_served_is_one_sentence(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    """What, where, what was expected, what was found and what to do: one line, exit code 1, no traceback."""
    (tmp_path / "file").write_text("neither")
    (tmp_path / "rules").write_text('[{"status": 1}]')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"file": str(tmp_path / "file"), "rules": str(tmp_path / "rules"), "taken": taken.getsockname()[1]}
        given = ["--data", str(tmp_path / "data"), "--access-key", "AK", "--secret-key", "SK", *arguments]
        process = serve(*[text.format(**names) for text in given])
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (1, "")
    assert err.count("\n") == 1
    for word in words:
        assert word.format(**names) in err


def test_local_obs_passes_on_why_it_did_not_start(tmp_path: Path) -> None:
    """LocalObs raises the server's own sentence, for a directory in use and for a wrong rule."""
    with LocalObs(data_dir=tmp_path) as first:
        with pytest.raises(InvalidArgumentError, match="no other server"):
            LocalObs(data_dir=tmp_path)
        with pytest.raises(InvalidArgumentError, match="fault rule 1"):
            first.set_faults([{"status": 1}])
        assert Client(first).do(head_bucket("bucket"))[0] == 200
    assert (tmp_path / "buckets").is_dir()


# --- settings --------------------------------------------------------------------------------------------------------


def test_a_server_may_know_no_crc64() -> None:
    """`crc64="ignored"`: a wrong one, and one that is no number, are passed over, and no reply ever shows one."""
    with LocalObs(crc64="ignored") as local:
        client = Client(local)
        for _ in range(2):
            upload_id = client.begin("k")
            replies = []
            for text in (crc_header(DATA), ("x-obs-checksum-crc64ecma", "5"), ("x-obs-checksum-crc64ecma", "none")):
                replies.append(client.part("k", upload_id, 1, DATA, (text,)))
                replies.append(client.put("single", DATA, headers=(text,)))
            for status, headers, _ in replies:
                assert (status, headers["etag"]) == (200, md5_of(DATA))
            wrong = ("x-obs-checksum-crc64ecma", "7")
            replies.append(client.do(complete("bucket", "k", upload_id, (("1", md5_of(DATA)),), (wrong,))))
            replies += [client.do(Request("Read", method, "bucket", "k")) for method in ("HEAD", "GET")]
            assert all(status == 200 for status, _, _ in replies)
            assert not any("crc64" in name for _, headers, _ in replies for name in headers)
            local.restart()


def test_what_knew_a_crc64_hides_it_where_it_is_ignored(tmp_path: Path) -> None:
    """An object of a server that checked: the setting is of the server, not of what it holds."""
    for setting in ("checked", "ignored", "checked"):
        with LocalObs(data_dir=tmp_path / "data", crc64=setting) as local:
            client = Client(local)
            if not client.do(Request("HeadObject", "HEAD", "bucket", "k"))[1].get("etag"):
                client.put("k", DATA, headers=(crc_header(DATA),))
            found = client.do(Request("HeadObject", "HEAD", "bucket", "k"))[1].get("x-obs-checksum-crc64ecma")
            assert found == (str(crc64(DATA)) if setting == "checked" else None)


@pytest.mark.parametrize("setting", ["kms", "kms:a-key", "AES256"])
def test_a_bucket_may_encrypt_by_default(setting: str) -> None:
    """What names no encryption of its own is under the bucket's, after a restart too; other buckets are as ever."""
    word, _, key_id = setting.partition(":")
    told = {"x-obs-server-side-encryption": word}
    if key_id:
        told["x-obs-server-side-encryption-kms-key-id"] = key_id
    with LocalObs(buckets=["bucket", "plain"], encryption={"bucket": setting}) as local:
        client = Client(local)
        upload_id = client.begin("k")
        part = client.part("k", upload_id, 1, DATA)[1]
        local.restart()
        done = client.do(complete("bucket", "k", upload_id, (("1", part["etag"]),)))[1]
        head = client.do(Request("HeadObject", "HEAD", "bucket", "k"))[1]
        put = client.put("single", DATA)[1]
        for headers in (part, done, head, put):
            assert {name: value for name, value in headers.items() if "encryption" in name} == told
        assert part["etag"] == put["etag"] != md5_of(DATA)
        assert client.get("k") == DATA
        own = sse_c_headers("obs", "AES256", b"k" * 32)
        headers = client.put("customers", DATA, headers=own)[1]
        assert headers["x-obs-server-side-encryption-customer-algorithm"] == "AES256"
        assert "x-obs-server-side-encryption" not in headers
        plain = client.do(Request("PutObject", "PUT", "plain", "k", body_length=len(DATA)), DATA)[1]
        assert plain["etag"] == md5_of(DATA)


def test_parts_may_be_asked_for_after_a_restart(local: LocalObs) -> None:
    """What an object was made of stays with it."""
    client = Client(local)
    upload_id = client.begin("k")
    parts = {1: DATA, 3: b"last"}
    etags = [(str(n), client.part("k", upload_id, n, data)[1]["etag"]) for n, data in parts.items()]
    client.do(complete("bucket", "k", upload_id, etags))
    local.restart()
    client.target = Target(parse_endpoint(local.url), "path", "v4")
    request = Request("GetObject", "GET", "bucket", "k", (("partNumber", "3"),))
    status, headers, body = client.do(request)
    assert (status, headers["x-amz-mp-parts-count"], body) == (206, "2", b"last")


# --- TLS -------------------------------------------------------------------------------------------------------------


def test_tls(tmp_path: Path) -> None:
    """With a certificate the same server speaks https: large bodies in and out, many requests on a connection."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost", "*.localhost")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with LocalObs(tls=(str(cert), str(key))) as local:
        assert local.url.startswith("https://")
        client = Client(local, context)
        data = os.urandom(5_000_011)
        connection = client.open()
        for _ in range(2):
            assert client.put("big", data, connection)[1]["etag"] == f'"{hashlib.md5(data).hexdigest()}"'
        assert client.do(Request("GetObject", "GET", "bucket", "big"), b"", connection)[2] == data
        assert len({entry["connection"] for entry in local.requests()}) == 1
        connection.close()
        with socket.create_connection(("127.0.0.1", local.port), timeout=20) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert not plain.recv(100).startswith(b"HTTP")
        assert client.get("big") == data
        for rule in ({"operation": "GetObject", "corrupt": "reply"}, {"operation": "PutObject", "corrupt": "wire"}):
            local.set_faults([rule])
            client.put("big", data)
            assert client.get("big") == spoiled(rule, data)


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_fault_may_be_a_status(faulty: LocalObs) -> None:
    """The nth request gets a status with code, message and headers; its work is not done; the next succeeds."""
    client = Client(faulty)
    faulty.set_faults([
        {"operation": "PutObject", "key": "s", "nth": 2, "status": 503, "code": "SlowDown", "message": "slower",
         "headers": {"Retry-After": "7"}}
    ])  # fmt: skip
    assert client.put("s", b"one")[0] == 200
    status, headers, body = client.put("s", b"two")
    assert (status, headers["retry-after"], between(body, "Code"), between(body, "Message")) == (
        503, "7", "SlowDown", "slower"
    )  # fmt: skip
    assert client.get("s") == b"one"
    assert client.put("s", b"three")[0] == 200
    assert [e["fault"] for e in faulty.requests("PutObject")] == [None, "status", None]


def test_an_early_status_does_not_wait_for_the_body(faulty: LocalObs) -> None:
    """With `early` the answer comes while the client still sends, and the connection ends."""
    faulty.set_faults([{"operation": "PutObject", "status": 403, "code": "AccessDenied", "early": True}])
    with socket.create_connection(("127.0.0.1", faulty.port), timeout=20) as sock:
        sock.sendall(b"PUT /bucket/k HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\nsome")
        data = b""
        while piece := sock.recv(65536):
            data += piece
    assert data.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    ("reset", "is_done"),
    [("at_once", False), ("before_reply", False), ({"after_body_bytes": 500_000}, False), ("after_work", True)],
)
def test_a_fault_may_be_a_reset(faulty: LocalObs, reset: Any, is_done: bool) -> None:
    """A TCP reset before, within or after the work; after the work it is done and only the reply is lost."""
    client = Client(faulty)
    faulty.set_faults([{"operation": "PutObject", "times": 1, "reset": reset}])
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        client.put("r", b"x" * 1_000_000)
    assert (client.do(Request("HeadObject", "HEAD", "bucket", "r"))[0] == 200) is is_done
    entry = faulty.requests("PutObject")[0]
    assert (entry["status"], entry["code"], entry["fault"]) == (None, "ConnectionLost", "reset")
    client.do(Request("DeleteObject", "DELETE", "bucket", "r"))


def test_a_fault_may_be_a_lost_complete(faulty: LocalObs) -> None:
    """When the reply to Complete is lost, the upload is over, and HEAD tells by whose upload id."""
    client = Client(faulty)
    upload_id = client.begin("lost")
    etag = client.part("lost", upload_id, 1, b"x")[1]["etag"]
    faulty.set_faults([{"operation": "Complete", "times": 1, "reset": "after_work"}])
    with pytest.raises(ConnectionError):
        client.do(complete("bucket", "lost", upload_id, (("1", etag),)))
    assert client.do(complete("bucket", "lost", upload_id, (("1", etag),)))[0] == 404
    assert client.do(Request("HeadObject", "HEAD", "bucket", "lost"))[1]["x-obs-uploadid"] == upload_id


def test_a_fault_may_be_an_error_in_a_200(faulty: LocalObs) -> None:
    """Complete answers 200 with an <Error> body and does nothing; the next one succeeds."""
    client = Client(faulty)
    upload_id = client.begin("e200")
    etag = client.part("e200", upload_id, 1, b"x")[1]["etag"]
    faulty.set_faults([{"operation": "Complete", "times": 1, "error_in_200": True, "code": "InternalError"}])
    request = complete("bucket", "e200", upload_id, (("1", etag),))
    status, _, body = client.do(request)
    assert (status, between(body, "Code")) == (200, "InternalError")
    assert client.do(request)[0] == 200


@pytest.mark.parametrize("when", ["before_reply", "before_reading"])
def test_a_fault_may_be_a_delay(faulty: LocalObs, when: str) -> None:
    """A delayed request waits; others are served meanwhile."""
    client = Client(faulty)
    faulty.set_faults([{"operation": "PutObject", "key": "slow", "delay_s": 0.2, "delay_at": when}])
    slow = client.open()
    finished = finish(
        Request("PutObject", "PUT", "bucket", "slow", body_length=4), client.target, client.keys, time.time()
    )
    slow.request("PUT", "/bucket/slow", b"data", dict(finished.headers))
    assert client.put("quick", b"x")[0] == 200
    assert slow.getresponse().status == 200
    slow.close()
    first, second = faulty.requests("PutObject")
    assert (first["key"], second["key"]) == ("quick", "slow")
    assert first["time"] <= second["time"] + second["seconds"]
    assert second["seconds"] >= 0.2
    assert second["fault"] == "delay"


def test_a_fault_may_be_a_stall(faulty: LocalObs) -> None:
    """A stalled request is read and never answered; it ends when the client gives up."""
    client = Client(faulty)
    faulty.set_faults([{"operation": "HeadBucket", "times": 1, "stall": True}])
    connection = client.open()
    connection.timeout = 0.1
    with pytest.raises(TimeoutError):
        client.do(head_bucket("bucket"), b"", connection)
    connection.close()
    assert client.do(head_bucket("bucket"))[0] == 200


def test_a_fault_may_be_a_truncated_reply(faulty: LocalObs) -> None:
    """The reply's body ends early, though its length was announced; for XML and for objects."""
    client = Client(faulty)
    client.put("t", b"0123456789")
    faulty.set_faults([{"operation": ["GetObject", "ListObjects"], "truncate": 4}])
    for key in ("t", None):
        with pytest.raises(http.client.IncompleteRead) as caught:
            client.do(Request("Get", "GET", "bucket", key))
        assert len(caught.value.partial) == 4


def test_bytes_may_be_damaged_on_their_way(faulty: LocalObs) -> None:
    """`wire`: a promised digest refuses them and nothing is stored; without one, ETag and object are of wrong bytes."""
    client = Client(faulty)
    rule = {"operation": "PutObject", "key": "wire", "corrupt": "wire", "seed": 5}
    faulty.set_faults([rule])
    md5 = ("Content-MD5", b64encode(hashlib.md5(DATA).digest()).decode())
    for promise in (md5, crc_header(DATA)):
        status, _, body = client.put("wire", DATA, headers=(promise,))
        assert (status, between(body, "Code")) == (400, "BadDigest")
        assert client.do(Request("HeadObject", "HEAD", "bucket", "wire"))[0] == 404
    wrong = spoiled(rule, DATA, nth=3)
    assert client.put("wire", DATA)[1]["etag"] == md5_of(wrong)
    assert client.get("wire") == wrong != DATA
    faulty.set_faults([])
    assert client.put("wire", DATA, headers=(md5, crc_header(DATA)))[0] == 200


@pytest.mark.parametrize("seed", range(4))
def test_a_large_body_is_damaged_once_however_it_comes(faulty: LocalObs, seed: int) -> None:
    """Pieces of any size, the first with the head; and in chunks, whose first byte is hit."""
    client = Client(faulty)
    data = DATA * 30
    rule = {"operation": "PutObject", "corrupt": "wire", "seed": seed}
    faulty.set_faults([rule])
    finished = finish(
        Request("PutObject", "PUT", "bucket", "large", body_length=len(data)), client.target, client.keys, time.time()
    )
    head = "".join(f"{n}: {v}\r\n" for n, v in finished.headers)
    stream = f"PUT /bucket/large HTTP/1.1\r\n{head}\r\n".encode() + data
    with socket.create_connection(("127.0.0.1", faulty.port), timeout=20) as sock:
        sock.sendall(stream[:300_000])
        for at in range(300_000, len(stream), 77_777):
            sock.sendall(stream[at : at + 77_777])
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")
    assert client.get("large") == spoiled(rule, data)
    faulty.set_faults([rule])
    chunked = head.replace(f"Content-Length: {len(data)}", "Transfer-Encoding: chunked").encode()
    with socket.create_connection(("127.0.0.1", faulty.port), timeout=20) as sock:
        sock.sendall(b"PUT /bucket/large HTTP/1.1\r\n" + chunked + b"\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")
    assert client.get("large") == spoiled(rule, b"a") + b"bcde"


def test_bytes_may_be_damaged_on_disk(faulty: LocalObs) -> None:
    """`stored`: every digest and every reply is right, of a part up to Complete and HEAD; the bytes are not."""
    client = Client(faulty)
    upload_id = client.begin("stored")
    rule = {"operation": "UploadPart", "key": "stored", "part_number": 2, "corrupt": "stored", "times": 1, "seed": 1}
    faulty.set_faults([rule])
    parts = [DATA, DATA[::-1]]
    replies = [client.part("stored", upload_id, n, part, (crc_header(part),))[1] for n, part in enumerate(parts, 1)]
    assert [reply["etag"] for reply in replies] == [md5_of(part) for part in parts]
    assert [reply["x-obs-checksum-crc64ecma"] for reply in replies] == [str(crc64(part)) for part in parts]
    listing = client.do(list_parts("bucket", "stored", upload_id))[2].decode()
    assert all(md5_of(part).strip('"') in listing for part in parts)
    etags = [(str(n), md5_of(part)) for n, part in enumerate(parts, 1)]
    request = complete("bucket", "stored", upload_id, etags, (crc_header(b"".join(parts)),))
    assert client.do(request)[0] == 200
    head = client.do(Request("HeadObject", "HEAD", "bucket", "stored"))[1]
    assert head["x-obs-checksum-crc64ecma"] == str(crc64(b"".join(parts)))
    assert client.get("stored") == parts[0] + spoiled(rule, parts[1])
    assert client.get("stored") != b"".join(parts)


@pytest.mark.parametrize("kms", [(), (("x-obs-server-side-encryption", "kms"),)], ids=["plain", "encrypted"])
@pytest.mark.parametrize("seed", range(3))
def test_another_object_may_be_put_together(faulty: LocalObs, seed: int, kms: Any) -> None:
    """`object`: Complete's checks hold, and then the service tells of an object that is not what the parts make."""
    client = Client(faulty)
    parts = [DATA, DATA[::-1], b"last"]
    made = {}
    rule = {"operation": "Complete", "corrupt": "object", "seed": seed}
    for rules in ([], [rule]):
        faulty.set_faults(rules)
        upload_id = between(client.do(initiate("bucket", "object", kms))[2], "UploadId")
        etags = [
            (str(n), client.part("object", upload_id, n, part, (crc_header(part),))[1]["etag"])
            for n, part in enumerate(parts, 1)
        ]
        request = complete("bucket", "object", upload_id, etags, (crc_header(b"".join(parts)),))
        status, headers, body = client.do(request)
        head = client.do(Request("HeadObject", "HEAD", "bucket", "object"))[1]
        etag, crc = html.unescape(between(body, "ETag")), headers["x-obs-checksum-crc64ecma"]
        assert (status, head["etag"], head["x-obs-checksum-crc64ecma"]) == (200, etag, crc)
        made[bool(rules)] = etag, crc, client.get("object")
    right, wrong = made[False], made[True]
    assert wrong[2] == spoiled(rule, right[2])
    assert wrong[1] == str(crc64(wrong[2]))
    assert right[0] != wrong[0]
    assert wrong[0].endswith('-3"')
    if not kms:
        pieces = [wrong[2][: len(DATA)], wrong[2][len(DATA) : 2 * len(DATA)], wrong[2][2 * len(DATA) :]]
        joined = hashlib.md5(b"".join(hashlib.md5(piece).digest() for piece in pieces)).hexdigest()
        assert wrong[0] == f'"{joined}-3"'


@pytest.mark.parametrize("seed", range(4))
def test_bytes_may_be_damaged_on_their_way_back(faulty: LocalObs, seed: int) -> None:
    """`reply`: one bit of what is sent, of a range as of all, over the seams of parts; the object stays right."""
    client = Client(faulty)
    upload_id = client.begin("reply")
    parts = [DATA, DATA[::-1], b"last"]
    etags = [(str(n), client.part("reply", upload_id, n, part)[1]["etag"]) for n, part in enumerate(parts, 1)]
    client.do(complete("bucket", "reply", upload_id, etags))
    whole = b"".join(parts)
    rule = {"operation": "GetObject", "corrupt": "reply", "seed": seed}
    ranges = [(0, len(whole)), (5, 6), (len(DATA) - 1, len(DATA) + 1), (70_000, len(whole) - 1), (0, 3)]
    for first, end in ranges:
        faulty.set_faults([{**rule, "times": 1}])
        request = Request("GetObject", "GET", "bucket", "reply", headers=(("Range", f"bytes={first}-{end - 1}"),))
        for expected in (spoiled(rule, whole[first:end]), whole[first:end]):
            status, headers, body = client.do(request)
            assert (status, body) == (206, expected)
            assert headers["content-range"] == f"bytes {first}-{end - 1}/{len(whole)}"
    faulty.set_faults([rule])
    assert client.do(Request("GetObject", "GET", "bucket", "absent"))[0] == 404
    assert client.get("reply") == spoiled(rule, whole, nth=2)


def test_a_wrong_etag_may_be_told(faulty: LocalObs) -> None:
    """`etag`: of the right bytes, once."""
    client = Client(faulty)
    faulty.set_faults([{"key": "etag", "corrupt": "etag", "times": 1}])
    wrong = client.put("etag", DATA)[1]["etag"]
    assert wrong != md5_of(DATA)
    assert len(wrong) == len(md5_of(DATA))
    assert client.get("etag") == DATA
    assert client.do(Request("HeadObject", "HEAD", "bucket", "etag"))[1]["etag"] == md5_of(DATA)


def test_a_wrong_crc64_may_be_told(faulty: LocalObs) -> None:
    """`crc64`: of a part, of Complete and of HEAD where they tell one; a reply that has none is left alone."""
    client = Client(faulty)
    upload_id = client.begin("crc")
    faulty.set_faults([{"corrupt": "crc64", "seed": 2}])
    told = [client.part("crc", upload_id, 1, DATA, (crc_header(DATA),))[1]]
    told.append(client.do(complete("bucket", "crc", upload_id, (("1", told[0]["etag"]),), (crc_header(DATA),)))[1])
    told.append(client.do(Request("HeadObject", "HEAD", "bucket", "crc"))[1])
    for headers in told:
        wrong = int(headers["x-obs-checksum-crc64ecma"]) ^ crc64(DATA)
        assert wrong.bit_count() == 1
    assert told[0]["etag"] == md5_of(DATA)
    assert "x-obs-checksum-crc64ecma" not in client.put("crc", DATA)[1]
    faulty.set_faults([])
    assert client.get("crc") == DATA


def test_a_fault_may_be_a_hang_up(faulty: LocalObs) -> None:
    """A kept-alive connection ends unannounced after its k-th reply, as idle ones do in the world."""
    client = Client(faulty)
    faulty.set_faults([{"hang_up_after": 2}])
    connection = client.open()
    for _ in range(2):
        assert client.do(head_bucket("bucket"), b"", connection)[1]["connection"] == "keep-alive"
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        client.do(head_bucket("bucket"), b"", connection)
    connection.close()


def test_faults_may_come_from_a_file(tmp_path: Path) -> None:
    """`--faults FILE` holds the same rules from the start."""
    rules = tmp_path / "rules.json"
    rules.write_text('[{"status": 500, "times": 1}]')
    process = serve("--data", str(tmp_path / "d"), "--access-key", "A", "--secret-key", "S", "--faults", str(rules))
    assert process.stdout is not None
    port = int(process.stdout.readline().rpartition(":")[2])
    statuses = []
    for _ in range(2):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("HEAD", "/?apiversion")
        statuses.append(connection.getresponse().status)
        connection.close()
    process.terminate()
    process.communicate(timeout=20)
    assert statuses == [500, 200]
