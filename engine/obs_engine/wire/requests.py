"""The requests of a multipart upload as values, and their finished form: URL and signed headers.

A `Request` says what is wanted. A `Target` says of whom, and how it is addressed and signed. `finish` joins the two
with credentials and a time; what it returns is all that a transport needs. No I/O, no clock.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from urllib.parse import urlsplit

from obs_engine.wire.endpoint import Addressing, Endpoint, Query, parse_endpoint
from obs_engine.wire.signing import (
    UNSIGNED_PAYLOAD,
    Credentials,
    Headers,
    SignatureKind,
    authorization_sha1,
    authorization_v4,
    header_prefix,
    resource_of,
)

USER_AGENT = "obs-engine/0.1"

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class Target:
    """Whom a request is for: the service, how buckets are addressed, how requests are signed."""

    endpoint: Endpoint
    addressing: Addressing
    signature: SignatureKind
    region: str = "region"


    def redirected(self, bucket: str, location: str) -> Target | None:
        """The target that a redirect's `Location` names; None where it names none, or one less safe than this.

        Why only its host counts: the request that is repeated there is the same, with the same bucket, key and query.
        """
        try:
            parts = urlsplit(location)
            endpoint = parse_endpoint(f"{parts.scheme}://{parts.netloc}")
        except ValueError:  # InvalidArgumentError is one
            return None
        if not parts.scheme or (self.endpoint.scheme == "https" and endpoint.scheme != "https"):
            return None
        if self.addressing == "cname" or not bucket:
            return replace(self, endpoint=endpoint)
        if endpoint.host.startswith(f"{bucket}."):
            host = endpoint.host.removeprefix(f"{bucket}.")
            return replace(self, endpoint=replace(endpoint, host=host), addressing="virtual")
        if f"{parts.path}/".startswith(f"/{bucket}/"):
            return replace(self, endpoint=endpoint, addressing="path")
        return None


@dataclass(frozen=True)
class Request:
    """One request, unsigned.

    Attributes:
        operation: the name used in logs and messages, e.g. `UploadPart`.
        bucket, key: key None for a bucket operation.
        query: raw names and values in the order sent; None for a name without a value.
        headers: beyond those that `finish` adds.
        body: small bodies (XML). A part's bytes are no field: the transport streams them.
        body_length: bytes of the body, whether in `body` or streamed.
        is_signed: False for a request that needs no credentials.
    """

    operation: str
    method: str
    bucket: str
    key: str | None = None
    query: Query = ()
    headers: Headers = ()
    body: bytes = b""
    body_length: int = 0
    is_signed: bool = True


@dataclass(frozen=True)
class FinishedRequest:
    """What a transport sends: a method, a URL, and headers that are complete and signed."""

    operation: str
    method: str
    url: str
    headers: Headers
    body: bytes
    body_length: int


def initiate(bucket: str, key: str, headers: Headers = (), encoding_type: str | None = None) -> Request:
    """InitiateMultipartUpload: `POST /key?uploads`."""
    return Request("Initiate", "POST", bucket, key, (("uploads", None), *_encoding(encoding_type)), headers)


def put_object(bucket: str, key: str, length: int, headers: Headers = ()) -> Request:
    """PutObject: `PUT /key`, the body streamed."""
    return Request("PutObject", "PUT", bucket, key, (), headers, body_length=length)


def upload_part(
    bucket: str, key: str, upload_id: str, part_number: int, length: int, headers: Headers = ()
) -> Request:
    """UploadPart: `PUT /key?partNumber=n&uploadId=u`, n from 1 to 10000, the body streamed."""
    query = (("partNumber", str(part_number)), ("uploadId", upload_id))
    return Request("UploadPart", "PUT", bucket, key, query, headers, body_length=length)


def complete(
    bucket: str,
    key: str,
    upload_id: str,
    parts: Query,
    headers: Headers = (),
    encoding_type: str | None = None,
) -> Request:
    """CompleteMultipartUpload: `POST /key?uploadId=u`.

    Args:
        parts: (part number, ETag exactly as the service gave it), in ascending order of the number.
    """
    items = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{_escaped(etag or '')}</ETag></Part>"
        for number, etag in parts
    )
    body = f"<CompleteMultipartUpload>{items}</CompleteMultipartUpload>".encode()
    query = (("uploadId", upload_id), *_encoding(encoding_type))
    return Request("Complete", "POST", bucket, key, query, headers, body, len(body))


def abort(bucket: str, key: str, upload_id: str, headers: Headers = ()) -> Request:
    """AbortMultipartUpload: `DELETE /key?uploadId=u`; 204 when done."""
    return Request("Abort", "DELETE", bucket, key, (("uploadId", upload_id),), headers)


def list_parts(
    bucket: str, key: str, upload_id: str, marker: int = 0, max_parts: int = 1000, headers: Headers = ()
) -> Request:
    """ListParts: parts with numbers above `marker`, at most 1000 a page."""
    page = ("max-parts", str(max_parts)), ("part-number-marker", str(marker))
    # Why encoded: a key may hold what XML cannot.
    query = (("uploadId", upload_id), *page, ("encoding-type", "url"))
    return Request("ListParts", "GET", bucket, key, query, headers)


def list_uploads(bucket: str, prefix: str, key_marker: str = "", upload_id_marker: str = "") -> Request:
    """ListMultipartUploads: open uploads of keys that begin with `prefix`, at most 1000 a page."""
    markers = (("key-marker", key_marker), ("upload-id-marker", upload_id_marker)) if key_marker else ()
    query = (("uploads", None), ("prefix", prefix), *markers, ("max-uploads", "1000"), ("encoding-type", "url"))
    return Request("ListUploads", "GET", bucket, query=query)


def probe(bucket: str) -> Request:
    """`HEAD /?apiversion`, unsigned: the reply's `x-obs-api` says which signature the bucket understands."""
    return Request("ApiVersion", "HEAD", bucket, query=(("apiversion", None),), is_signed=False)


def head_bucket(bucket: str, headers: Headers = ()) -> Request:
    """HEAD bucket: 200, 404, or 403 without the permission HeadBucket."""
    return Request("HeadBucket", "HEAD", bucket, headers=headers)


def head_object(
    bucket: str, key: str, headers: Headers = (), *, version_id: str | None = None, part_number: int | None = None
) -> Request:
    """HEAD object; the reply's `x-obs-uploadId` settles whether a Complete of ours made it.

    Args:
        part_number: the reply (206) then tells that part's length. Source: AWS S3, HeadObject; OBS passes it over.
    """
    part = () if part_number is None else (("partNumber", str(part_number)),)
    return Request("HeadObject", "HEAD", bucket, key, (*part, *_version(version_id)), headers)


def get_object(
    bucket: str, key: str, headers: Headers = (), *, start: int | None = None, stop: int | None = None,
    version_id: str | None = None, if_match: str | None = None,
) -> Request:  # fmt: skip
    """GET object, or of it the bytes from `start` to before `stop` (at least one), which are answered with 206.

    Args:
        if_match: the ETag that the object must still have, as the service gave it; else 412.
    """
    asked: list[tuple[str, str]] = []
    if start is not None and stop is not None:
        asked.append(("Range", f"bytes={start}-{stop - 1}"))
    if if_match is not None:
        asked.append(("If-Match", if_match))
    return Request("GetObject", "GET", bucket, key, _version(version_id), (*headers, *asked))


def finish(request: Request, target: Target, credentials: Credentials, now_s: float) -> FinishedRequest:
    """Adds Host, Date, token and Authorization.

    Args:
        now_s: seconds since 1970 by the service's clock; it accepts 15 minutes of difference.
    """
    endpoint, kind = target.endpoint, target.signature
    moment = datetime.fromtimestamp(now_s, timezone.utc)
    headers = [
        ("Host", endpoint.authority(request.bucket, target.addressing)),
        ("Date", http_date(moment)),
        ("User-Agent", USER_AGENT),
        *request.headers,
    ]
    if request.method in ("PUT", "POST"):
        headers.append(("Content-Length", str(request.body_length)))
    if request.is_signed and not credentials.is_anonymous:
        prefix = header_prefix(kind)
        if credentials.security_token:
            headers.append((f"{prefix}security-token", credentials.security_token))
        if kind == "v4":
            long_date = moment.strftime("%Y%m%dT%H%M%SZ")
            # Why x-amz-date beside Date: Ceph RGW and rclone refuse a V4 request that has only Date.
            headers += [("x-amz-content-sha256", UNSIGNED_PAYLOAD), ("x-amz-date", long_date)]
            path = endpoint.path(request.bucket, request.key, target.addressing)
            signed = [(n, v) for n, v in headers if n != "User-Agent"]
            value = authorization_v4(
                credentials, request.method, path, request.query, signed, long_date, target.region
            )
        else:
            resource = resource_of(
                request.bucket, request.key, request.query, target.addressing, kind, endpoint.host
            )
            value = authorization_sha1(kind, credentials, request.method, headers, resource)
        headers.append(("Authorization", value))
    url = endpoint.url(request.bucket, request.key, target.addressing, request.query)
    return FinishedRequest(request.operation, request.method, url, headers, request.body, request.body_length)


def http_date(moment: datetime) -> str:
    """RFC 1123 date in UTC, without the process's locale."""
    return (
        f"{_DAYS[moment.weekday()]}, {moment.day:02d} {_MONTHS[moment.month - 1]} {moment.year:04d} "
        f"{moment.hour:02d}:{moment.minute:02d}:{moment.second:02d} GMT"
    )


def content_md5(body: bytes) -> str:
    """The value of a Content-MD5 header."""
    from hashlib import md5

    return b64encode(md5(body, usedforsecurity=False).digest()).decode()


def crc64_header(kind: SignatureKind, crc64: int) -> tuple[str, str]:
    """The header by which the service checks a CRC-64: of a part, or of the whole object on Complete."""
    return f"{header_prefix(kind)}checksum-crc64ecma", str(crc64)


def with_headers(request: Request, headers: Headers) -> Request:
    """The same request with more headers."""
    return replace(request, headers=(*request.headers, *headers))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _version(version_id: str | None) -> Query:
    return (("versionId", version_id),) if version_id else ()


def _encoding(encoding_type: str | None) -> Query:
    return (("encoding-type", encoding_type),) if encoding_type else ()
