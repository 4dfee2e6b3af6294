"""HTTP/1.1 heads between bytes and values: h11 reads them, bodies never pass through here.

A fresh h11 connection per head keeps its state machine out of the way: it only ever sees one head, and judges it by
the RFC (names, values, Content-Length, Transfer-Encoding). Knows no socket and no OBS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote_plus

import h11

HEAD_MAX_BYTES = 64 * 1024
"""A request's head; 8 KB of metadata, percent-encoded to three times that, must fit."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_REASONS = {status.value: status.phrase for status in HTTPStatus}


class BadHeadError(Exception):
    """The bytes are no HTTP/1.1 request head; the connection cannot be used further."""


@dataclass(slots=True)
class Head:
    """A request's head.

    Attributes:
        target: as sent, percent-encoded, path and query.
        path: the target's path, percent-encoded.
        query: decoded names and values in the order sent; None for a name without `=`.
        headers: lower-case names and values in the order sent.
        fields: the same by name; values of one name are joined by a comma.
        content_length: bytes of the body; None where it is chunked, 0 where there is none.
        has_length: False where neither Content-Length nor chunks were announced.
        is_kept_alive: the client lets the connection live on.
        expects_continue: the client waits for `100 Continue`.
    """

    method: str
    target: str
    path: str
    query: list[tuple[str, str | None]]
    headers: list[tuple[str, str]]
    fields: dict[str, str]
    content_length: int | None
    has_length: bool
    is_kept_alive: bool
    expects_continue: bool


def parse_head(data: bytes) -> Head:
    """Reads one whole head, its empty line included.

    Raises:
        BadHeadError: it breaks the RFC, or names a transfer coding other than chunked.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX_BYTES)
    try:
        connection.receive_data(data)
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise BadHeadError(str(error)) from None
    if not isinstance(event, h11.Request):
        raise BadHeadError("this is no request head")
    headers = [(name.decode("ascii"), _text(value)) for name, value in event.headers]
    fields: dict[str, str] = {}
    for name, value in headers:
        fields[name] = f"{fields[name]},{value}" if name in fields else value
    target = event.target.decode("ascii")
    if "://" in target.split("?", 1)[0]:
        target = "/" + target.split("://", 1)[1].partition("/")[2]
    path, _, tail = target.partition("?")
    is_chunked = "transfer-encoding" in fields
    connection_words = {word.strip() for word in fields.get("connection", "").lower().split(",")}
    is_new = event.http_version >= b"1.1"
    return Head(
        event.method.decode("ascii"),
        target,
        path,
        _query(tail),
        headers,
        fields,
        None if is_chunked else int(fields.get("content-length", "0")),
        is_chunked or "content-length" in fields,
        "close" not in connection_words and (is_new or "keep-alive" in connection_words),
        is_new and fields.get("expect", "").lower() == "100-continue",
    )


def reply_head(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """The bytes of a reply's head. A value that could break out of its line is cleaned of control characters."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}"]
    for name, value in headers:
        lines.append(f"{name}: {value if value.isprintable() else _clean(value)}")
    lines.append("\r\n")
    return "\r\n".join(lines).encode("utf-8")


class Chunks:
    """The body of one chunked request: h11 undoes the framing, because such bodies are rare and small here."""

    def __init__(self, head: bytes) -> None:
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX_BYTES)
        self._connection.receive_data(head)
        self._connection.next_event()

    def feed(self, data: bytes) -> tuple[list[bytes], bool, bytes]:
        """Returns the decoded pieces, whether the body has ended, and the bytes after its end.

        Raises:
            BadHeadError: the framing is broken.
        """
        pieces: list[bytes] = []
        try:
            self._connection.receive_data(data)
            while True:
                event = self._connection.next_event()
                if isinstance(event, h11.Data):
                    pieces.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    return pieces, True, self._connection.trailing_data[0]
                else:
                    return pieces, False, b""
        except h11.RemoteProtocolError as error:
            raise BadHeadError(str(error)) from None


def first(query: Sequence[tuple[str, str | None]], name: str) -> str | None:
    """The first value of a query name; an empty text where it stands without one, None where it is absent."""
    for found, value in query:
        if found == name:
            return value or ""
    return None


def _query(tail: str) -> list[tuple[str, str | None]]:
    pairs: list[tuple[str, str | None]] = []
    for item in tail.split("&") if tail else ():
        if item:
            name, equals, value = item.partition("=")
            pairs.append((unquote_plus(name), unquote_plus(value) if equals else None))
    return pairs


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _clean(value: str) -> str:
    return "".join(c if c.isprintable() else " " for c in value)
