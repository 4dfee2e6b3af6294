"""A server that writes down what it is asked, to the byte, and judges nothing: for comparing two clients.

Answers what an upload asks (probe, HEAD bucket, Initiate, UploadPart, Complete, Abort) as OBS does, in either dialect.
"""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import cast
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape

NAMESPACE = "http://obs.myhwclouds.com/doc/2015-06-30/"


@dataclass(frozen=True)
class Recorded:
    """One request: `target` as it stood on the wire, `headers` in their order, in Latin-1, without outer spaces."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    @property
    def operation(self) -> str:
        names = self.query
        if self.method == "HEAD":
            return "Probe" if "apiversion" in names else "Head"
        if self.method == "POST":
            return "Initiate" if "uploads" in names else "Complete"
        return {"PUT": "UploadPart", "DELETE": "Abort"}.get(self.method, self.method)

    def values(self, name: str) -> tuple[str, ...]:
        """All values of a header, in their order."""
        return tuple(value for found, value in self.headers if found.lower() == name.lower())

    @property
    def header_names(self) -> set[str]:
        return {name.lower() for name, _ in self.headers}


@dataclass(frozen=True)
class Answer:
    """A reply: the recorder adds its length."""

    status: int = 200
    reason: str = "OK"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


class Recorder:
    """The server, on a free port of this machine, in threads of this process.

    Attributes:
        prefix: `x-obs-` or `x-amz-`, of its replies' headers.
        api: what the probe is answered; None for a service that knows no probe.
        upload_id: what Initiate answers.
        answers: to an operation (`Recorded.operation`), in place of success.
    """

    def __init__(self, prefix: str = "x-obs-", api: str | None = "3.0") -> None:
        self.prefix = prefix
        self.api = api
        self.upload_id = "000001648453845DBB78F2340DD460D8"
        self.answers: dict[str, Answer] = {}
        self._recorded: list[Recorded] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Connection)
        self._server.recorder = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def take(self) -> list[Recorded]:
        """What was asked since the last time."""
        with self._lock:
            taken, self._recorded = self._recorded, []
        return taken

    def close(self) -> None:
        """Ends the server, its connections and its threads."""
        self._server.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()  # waits for the threads of the connections

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)

    def answer(self, request: Recorded) -> Answer:
        """Writes the request down; says what it is answered."""
        with self._lock:
            self._recorded.append(request)
        if request.operation in self.answers:
            return self.answers[request.operation]
        plain = ((f"{self.prefix}request-id", "0000018A1B2C3D4E"), (f"{self.prefix}id-2", "32AAAQAAEAABAAAQ"))
        xml = (*plain, ("Content-Type", "application/xml"))
        if request.operation == "Probe":
            return Answer(headers=(*plain, *(() if self.api is None else (("x-obs-api", self.api),))))
        if request.operation == "Initiate":
            return Answer(headers=xml, body=self._document(request, "Initiate", UploadId=self.upload_id))
        if request.operation == "UploadPart":
            crc64 = request.values(f"{self.prefix}checksum-crc64ecma")
            said = ((f"{self.prefix}checksum-crc64ecma", crc64[0]),) if crc64 else ()
            return Answer(headers=(*plain, *said, ("ETag", f'"{hashlib.md5(request.body).hexdigest()}"')))
        if request.operation == "Complete":
            parts = [bytes.fromhex(digest) for digest in re.findall("[0-9a-f]{32}", request.body.decode())]
            etag = f'"{hashlib.md5(b"".join(parts)).hexdigest()}-{len(parts)}"'
            return Answer(headers=xml, body=self._document(request, "Complete", Location="http://here/it", ETag=etag))
        return Answer(204, "No Content", plain) if request.operation == "Abort" else Answer(headers=plain)

    def _document(self, request: Recorded, what: str, **fields: str) -> bytes:
        bucket, key = self._place(request)
        if request.query.get("encoding-type") == "url":
            key = quote(key)
            fields = {"EncodingType": "url"} | fields
        members = {"Bucket": bucket, "Key": key} | fields
        inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in members.items())
        root = f"{what}MultipartUploadResult"
        text = f'<?xml version="1.0" encoding="UTF-8" standalone="yes"?><{root} xmlns="{NAMESPACE}">{inner}</{root}>'
        return text.encode()

    def _place(self, request: Recorded) -> tuple[str, str]:
        """Bucket and key: the host says where the bucket stands."""
        path = unquote(request.target.partition("?")[0])[1:]
        (host,) = request.values("host")
        first, _, rest = path.partition("/")
        if host.startswith("bucket."):
            return "bucket", path
        return ("bucket", rest) if first == "bucket" else ("", path)


class _Server(ThreadingTCPServer):
    recorder: Recorder
    daemon_threads = False
    allow_reuse_address = True


class _Connection(StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        recorder = cast("_Server", self.server).recorder
        recorder.opened(self.connection)
        try:
            while self._serve(recorder):
                pass
        except ConnectionError:
            return  # the client's right
        finally:
            recorder.closed(self.connection)

    def _serve(self, recorder: Recorder) -> bool:
        """Serves one request; says whether there may be another."""
        first = self.rfile.readline().decode("latin-1").rstrip("\r\n")
        if not first:
            return False
        method, target, _version = first.split(" ")
        headers = []
        while line := self.rfile.readline().decode("latin-1").rstrip("\r\n"):
            name, _, value = line.partition(":")
            headers.append((name, value.strip(" \t")))
        known = {name.lower(): value for name, value in headers}
        assert "transfer-encoding" not in known, "no client of ours sends chunks"
        if "expect" in known:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self.rfile.read(int(known.get("content-length", "0")))
        reply = recorder.answer(Recorded(method, target, tuple(headers), body))
        length = () if reply.status == 204 else (("Content-Length", str(len(reply.body))),)
        lines = [f"HTTP/1.1 {reply.status} {reply.reason}", *(f"{n}: {v}" for n, v in (*reply.headers, *length))]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        self.wfile.write(head if method == "HEAD" else head + reply.body)
        return known.get("connection", "").lower() != "close"
