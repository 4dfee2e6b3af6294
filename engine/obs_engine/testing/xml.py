"""OBS's XML between text and values: what the server says, and the two documents that it reads."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from obs_engine.testing.replies import Refusal
from obs_engine.wire.signing import SignatureKind

CONTENT_TYPE = "application/xml"

_DECLARATION = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_OBS = "http://obs.myhwclouds.com/doc/2015-06-30/"
_S3 = "http://s3.amazonaws.com/doc/2006-03-01/"


def element(name: str, value: object) -> str:
    """`<name>value</name>`, the value escaped; a truth value in lower case."""
    text = ("true" if value else "false") if isinstance(value, bool) else str(value)
    return f"<{name}>{escape(text)}</{name}>"


def wrap(name: str, *inner: str) -> str:
    """`<name>…</name>` around elements."""
    return f"<{name}>{''.join(inner)}</{name}>"


def document(root: str, inner: Iterable[str], kind: SignatureKind) -> bytes:
    """A whole document in the namespace of the request's mode."""
    namespace = _OBS if kind == "obs" else _S3
    return f'{_DECLARATION}<{root} xmlns="{namespace}">{"".join(inner)}</{root}>'.encode()


def error(code: str, message: str, request_id: str, host_id: str, resource: str,
          extra: Iterable[tuple[str, str]] = ()) -> bytes:  # fmt: skip
    """The service's error document.

    Source: OBS API Reference, "Error Codes": Code, Message, RequestId, HostId, Resource.
    """
    pairs = [("Code", code), ("Message", message), ("RequestId", request_id), ("HostId", host_id),
             ("Resource", resource), *extra]  # fmt: skip
    inner = "".join(element(name, _printable(value)) for name, value in pairs)
    return f"{_DECLARATION}<Error>{inner}</Error>".encode()


def iso_time(seconds: float) -> str:
    """`2026-09-01T12:00:00.000Z` from seconds since 1970."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def read_parts(body: bytes) -> list[tuple[int, str]]:
    """Reads a Complete's document: (part number, ETag without quotes) in the order given.

    Raises:
        Refusal: 400 MalformedXML.
    """
    parts: list[tuple[int, str]] = []
    for item in _root(body, "CompleteMultipartUpload"):
        if _name(item) != "Part":
            raise _malformed()
        fields = {_name(child): (child.text or "").strip() for child in item}
        number = fields.get("PartNumber", "")
        if not (number.isascii() and number.isdigit() and len(number) < 10) or not fields.get("ETag"):
            raise _malformed()
        parts.append((int(number), fields["ETag"].strip('"')))
    if not parts:
        raise _malformed()
    return parts


def read_keys(body: bytes) -> tuple[list[str], bool]:
    """Reads a DeleteObjects document: the keys, and whether successes are to be kept out of the answer.

    Raises:
        Refusal: 400 MalformedXML.
    """
    keys: list[str] = []
    is_quiet = False
    for item in _root(body, "Delete"):
        if _name(item) == "Quiet":
            is_quiet = (item.text or "").strip().lower() == "true"
        elif _name(item) == "Object":
            keys += [child.text or "" for child in item if _name(child) == "Key"]
    if not keys or len(keys) > 1000:
        raise _malformed()
    return keys, is_quiet


def _root(body: bytes, name: str) -> ElementTree.Element:
    # Why: without a document type there are no entities, so nothing can expand or be fetched.
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise _malformed()
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 (entities are refused above)
    except (ElementTree.ParseError, ValueError, LookupError):
        raise _malformed() from None
    if _name(root) != name:
        raise _malformed()
    return root


def _name(item: ElementTree.Element) -> str:
    return str(item.tag).rpartition("}")[2]


def _malformed() -> Refusal:
    return Refusal(400, "MalformedXML", "The XML you provided was not well-formed or did not validate.")


def _printable(text: str) -> str:
    return "".join(c if c >= " " or c in "\n\t" else "?" for c in text)
