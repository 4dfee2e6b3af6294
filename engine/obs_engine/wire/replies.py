"""Replies of the service as values: what came, and what it means.

A reader here never trusts a status alone: a Complete that answers 200 with an `<Error>` body is an error.
XML is read by name, whatever its namespace. No I/O.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from obs_engine.errors import ServiceError
from obs_engine.wire.policy import REPEATING, reply_row
from obs_engine.wire.signing import Headers
from obs_engine.wire.xml import Element, parse


@dataclass(frozen=True)
class Reply:
    """A whole reply: status 100-599, reason phrase, headers in lower case, body (bounded by the transport)."""

    status: int
    reason: str = ""
    headers: Headers = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first header of that (lower-case) name."""
        return next((v for n, v in self.headers if n == name), None)

    def own_header(self, name: str) -> str | None:
        """A header of the service's own, `x-obs-NAME` or `x-amz-NAME`, whichever the service chose."""
        return self.header(f"x-obs-{name}") or self.header(f"x-amz-{name}")


@dataclass(frozen=True)
class Fault:
    """What an error reply says of itself; fields are None where the service kept silent (a HEAD has no body)."""

    code: str | None = None
    message: str | None = None
    request_id: str | None = None
    host_id: str | None = None
    resource: str | None = None


@dataclass(frozen=True)
class CompletedObject:
    """The body of a successful Complete. `etag` keeps its quotes, as the SDK gives it."""

    location: str | None
    bucket: str | None
    key: str | None
    etag: str | None
    encoding_type: str | None


@dataclass(frozen=True)
class ListedPart:
    """A part that the service holds; `etag` as the service spells it."""

    part_number: int
    size_bytes: int
    etag: str


@dataclass(frozen=True)
class PartsPage:
    """A page of ListParts; `next_marker` is None on the last."""

    parts: tuple[ListedPart, ...]
    next_marker: int | None


@dataclass(frozen=True)
class ListedUpload:
    """An upload that is open; `initiated` is the service's own time, for people."""

    key: str
    upload_id: str
    initiated: str


@dataclass(frozen=True)
class UploadsPage:
    """A page of ListMultipartUploads; `next_markers`, of key and upload id, are None on the last."""

    uploads: tuple[ListedUpload, ...]
    next_markers: tuple[str, str] | None


def read_fault(reply: Reply) -> Fault:
    """Reads an error reply; never raises, whatever the body holds."""
    if (reply.header("content-type") or "").startswith("application/json"):
        return _json_fault(reply)
    root = parse(reply.body)
    if root is None or root.name != "Error":
        root = Element("Error")
    return Fault(
        root.value("Code"),
        root.value("Message"),
        root.value("RequestId") or reply.own_header("request-id"),
        root.value("HostId") or reply.own_header("id-2"),
        root.value("Resource"),
    )


def _json_fault(reply: Reply) -> Fault:
    try:
        said = json.loads(reply.body)
    except ValueError:  # UnicodeDecodeError is one
        said = None
    words = {name: value for name, value in said.items() if isinstance(value, str)} if isinstance(said, dict) else {}
    return Fault(
        words.get("code"),
        words.get("message"),
        words.get("request_id") or reply.own_header("request-id"),
        reply.own_header("id-2"),
    )


def error_of(reply: Reply, what: str, next_step: str) -> ServiceError:
    """The error that an unwanted reply stands for: `what` names the request."""
    fault = read_fault(reply)
    code, message = fault.code, fault.message
    said = f"errorCode:{code}, errorMessage:{message}" if code else f"status {reply.status} {reply.reason}".rstrip()
    return ServiceError(
        f"{what}: expected success, found {said} (status {reply.status}, request {fault.request_id}); {next_step}",
        status=reply.status,
        errorCode=code,
        errorMessage=message,
        requestId=fault.request_id,
        hostId=fault.host_id,
        resource=fault.resource,
        is_retryable=reply_row(reply.status, code).action in REPEATING,
    )


def read_upload_id(reply: Reply) -> str | None:
    """The upload id of an Initiate's reply; None if there is none."""
    root = parse(reply.body)
    return None if root is None else root.value("UploadId")


def read_completed(reply: Reply) -> CompletedObject | None:
    """The object of a Complete's reply; None where the body says anything else (an `<Error>`, or nothing)."""
    root = parse(reply.body)
    if root is None or root.name != "CompleteMultipartUploadResult":
        return None
    encoding = root.value("EncodingType")
    key = _plain_key(root.value("Key"), encoding)
    return CompletedObject(root.value("Location"), root.value("Bucket"), key, root.value("ETag"), encoding)


def read_parts_page(reply: Reply) -> PartsPage | None:
    """A page of ListParts; None where the body is not one."""
    root = parse(reply.body)
    if root is None or root.name != "ListPartsResult":
        return None
    parts = []
    for item in root.all("Part"):
        number, size, etag = item.value("PartNumber"), item.value("Size"), item.value("ETag")
        if not (number and number.isdecimal() and size and size.isdecimal() and etag):
            return None
        parts.append(ListedPart(int(number), int(size), etag))
    marker = root.value("NextPartNumberMarker")
    truncated = (root.value("IsTruncated") or "").lower() == "true"
    return PartsPage(tuple(parts), int(marker) if truncated and marker and marker.isdecimal() else None)


def read_uploads_page(reply: Reply) -> UploadsPage | None:
    """A page of ListMultipartUploads; None where the body is not one."""
    root = parse(reply.body)
    if root is None or root.name != "ListMultipartUploadsResult":
        return None
    encoding = root.value("EncodingType")
    uploads = []
    for item in root.all("Upload"):
        key, upload_id = _plain_key(item.value("Key"), encoding), item.value("UploadId")
        if not (key and upload_id):
            return None
        uploads.append(ListedUpload(key, upload_id, item.value("Initiated") or ""))
    next_key = _plain_key(root.value("NextKeyMarker"), encoding)
    is_truncated = (root.value("IsTruncated") or "").lower() == "true"
    return UploadsPage(
        tuple(uploads), (next_key, root.value("NextUploadIdMarker") or "") if is_truncated and next_key else None
    )


def _plain_key(key: str | None, encoding: str | None) -> str | None:
    if not key or encoding != "url":
        return key
    from urllib.parse import unquote_plus

    return unquote_plus(key)
