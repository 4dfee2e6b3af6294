"""What a call returns, made of the service's last reply. Runs in the caller's process.

Source: the API document's tables 10 to 12; the official SDK for what it leaves open.
"""

from __future__ import annotations

from urllib.parse import unquote

from obs_engine.models import CompleteMultipartUploadResponse, GetResult
from obs_engine.transfer.messages import UploadReport
from obs_engine.wire.replies import Reply, read_completed, read_fault
from obs_engine.wire.requests import Target
from obs_engine.wire.signing import Headers

# Source: the official SDK, whose users find these and the service's own in `GetResult.header`.
_VISIBLE = frozenset(
    """access-control-allow-headers access-control-allow-methods access-control-allow-origin
    access-control-expose-headers access-control-max-age cache-control checksum-crc64ecma connection content-disposition
    content-encoding content-language content-length content-md5 content-range content-type date etag expires host
    last-modified location origin x-default-storage-class x-oef-request-id x-reserved x-reserved-indicator""".split()
)


def result_of(reply: Reply, report: UploadReport, target: Target, bucket: str, key: str) -> GetResult:
    """The result of a call that came to a last reply, good or bad.

    Args:
        target, bucket, key: what the object's URL is made of.
    """
    result = GetResult(
        status=reply.status, reason=reply.reason, header=_visible_headers(reply.headers), report=report,
        indicator=reply.header("x-reserved-indicator"), requestId=reply.own_header("request-id"),
    )  # fmt: skip
    if reply.status >= 300:
        fault = read_fault(reply)
        result.update(
            errorCode=fault.code, errorMessage=fault.message, requestId=fault.request_id, hostId=fault.host_id,
            resource=fault.resource,
        )  # fmt: skip
        return result
    completed = read_completed(reply)
    url = target.endpoint.url(bucket, key, target.addressing)
    result.body = CompleteMultipartUploadResponse(
        location=completed.location if completed else url,
        bucket=completed.bucket if completed else bucket,
        key=completed.key if completed else key,
        etag=completed.etag if completed else reply.header("etag"),
        encoding_type=completed.encoding_type if completed else None,
        versionId=reply.own_header("version-id"),
        sseKms=reply.own_header("server-side-encryption"),
        sseKmsKey=reply.own_header("server-side-encryption-kms-key-id")
        or reply.own_header("server-side-encryption-aws-kms-key-id"),
        sseC=reply.own_header("server-side-encryption-customer-algorithm"),
        sseCKeyMd5=reply.own_header("server-side-encryption-customer-key-md5"),
        crc64=reply.own_header("checksum-crc64ecma"),
        objectUrl=url,
    )
    return result


def _visible_headers(headers: Headers) -> list[tuple[str, str]]:
    """Reply headers as the SDK shows them: the service's prefix taken away, values decoded, strangers left out."""
    found = []
    for name, value in headers:
        for prefix in ("x-obs-meta-", "x-amz-meta-", "x-obs-", "x-amz-"):
            if name.startswith(prefix):
                bare = name[len(prefix) :]
                found.append((unquote(bare) if "meta-" in prefix else bare, unquote(value)))
                break
        else:
            if name in _VISIBLE:
                found.append((name, value))
    return found
