"""What one request asks: which bucket, which key, which operation. Pure functions of the head.

Source: OBS API Reference, "Constructing a Request" (virtual host, path style, custom domain).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from obs_engine.testing.http import Head, first
from obs_engine.testing.replies import Refusal
from obs_engine.wire.endpoint import Addressing
from obs_engine.wire.signing import SUB_RESOURCES, SignatureKind, header_prefix


@dataclass(slots=True)
class Call:
    """A request with its meaning.

    Attributes:
        head: as it came.
        operation: the engine's name for it, as in `wire.requests`; `Unsupported` where this server has none.
        bucket, key: None where the request names none.
        encoded_key: the key as it stands in the path.
        addressing: how the bucket was named.
        domain: the Host header without its port.
        part_number: None where the query names none, or no number.
        kind: the signature's kind, `obs` until one is verified.
        is_signed: True once a signature was verified.
        payload_sha256: the hex digest that the body must have; None where the client promised none.
    """

    head: Head
    operation: str
    bucket: str | None
    key: str | None
    encoded_key: str | None
    addressing: Addressing
    domain: str
    part_number: int | None = None
    kind: SignatureKind = "obs"
    is_signed: bool = False
    payload_sha256: str | None = None

    @property
    def prefix(self) -> str:
        """`x-obs-` or `x-amz-`, as the request's signature is."""
        return header_prefix(self.kind)

    def argument(self, name: str) -> str | None:
        """A query argument; an empty text where it stands without a value."""
        return first(self.head.query, name)

    def own(self, name: str) -> str | None:
        """A header of the service, by its name without the prefix.

        Why both prefixes: the SDK sends `x-obs-expires` in every mode.
        """
        fields = self.head.fields
        value = fields.get(self.prefix + name)
        return value if value is not None else fields.get(("x-amz-" if self.kind == "obs" else "x-obs-") + name)


def understand(head: Head, cnames: Mapping[str, str]) -> Call:
    """Reads a head.

    Args:
        cnames: custom domains (lower case) and the bucket that each stands for.

    Raises:
        Refusal: no Host header, or a key that is not UTF-8.
    """
    domain = host_name(head.fields.get("host", ""))
    if not domain:
        raise Refusal(400, "InvalidRequest", "The request has no Host header.")
    path = head.path[1:]
    addressing: Addressing = "path"
    if domain in cnames:
        addressing, bucket, encoded_key = "cname", cnames[domain], path
    elif not is_plain_host(domain):
        addressing, bucket, encoded_key = "virtual", domain.partition(".")[0], path
    else:
        bucket, _, encoded_key = path.partition("/")
    try:
        key = unquote(encoded_key, errors="strict") or None
        bucket = unquote(bucket, errors="strict")
    except UnicodeDecodeError:
        raise Refusal(400, "InvalidURI", "The key in the path is not UTF-8.") from None
    call = Call(head, "Unsupported", bucket or None, key, encoded_key or None, addressing, domain)
    call.operation = _operation(call)
    number = call.argument("partNumber")
    if number and number.isascii() and number.isdigit() and len(number) < 10:
        call.part_number = int(number)
    return call


def host_name(host: str) -> str:
    """The Host header without port and brackets, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_plain_host(name: str) -> bool:
    """True for an address or a name of one label: no bucket can stand before it."""
    if "." not in name:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


_SERVICE = {"GET": "ListBuckets"}
_BUCKET = {"PUT": "CreateBucket", "HEAD": "HeadBucket", "GET": "ListObjects", "DELETE": "DeleteBucket"}
_OBJECT = {"PUT": "PutObject", "HEAD": "HeadObject", "GET": "GetObject", "DELETE": "DeleteObject"}
_UPLOAD = {"PUT": "UploadPart", "POST": "Complete", "DELETE": "Abort", "GET": "ListParts"}
_UNDERSTOOD = frozenset({"partnumber", "uploadid", "uploads", "location", "delete"})


def _operation(call: Call) -> str:
    method = call.head.method
    names = {name.lower() for name, _ in call.head.query}
    if method == "HEAD" and "apiversion" in names:
        return "ApiVersion"
    if any(n in SUB_RESOURCES and n not in _UNDERSTOOD and not n.startswith("response-") for n in names):
        return "Unsupported"
    if call.bucket is None:
        return _SERVICE.get(method, "Unsupported")
    if call.key is None:
        if "uploads" in names:
            return "ListUploads" if method == "GET" else "Unsupported"
        if "location" in names:
            return "GetBucketLocation" if method == "GET" else "Unsupported"
        if "delete" in names:
            return "DeleteObjects" if method == "POST" else "Unsupported"
        return _BUCKET.get(method, "Unsupported")
    if any(f"{prefix}copy-source" in call.head.fields for prefix in ("x-obs-", "x-amz-")):
        return "Unsupported"
    if "uploads" in names:
        return "Initiate" if method == "POST" else "Unsupported"
    if "uploadid" in names:
        return _UPLOAD.get(method, "Unsupported")
    return _OBJECT.get(method, "Unsupported")
