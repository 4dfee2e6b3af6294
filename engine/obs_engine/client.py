"""`ObsClient`: the standard API in front of the engine. Runs in the caller's process.

Checks every argument before anything is started, turns the call into one frozen request, and the engine's last word
into a `GetResult` or an exception. Touches no signal, logging configuration, start method or working directory.
"""

from __future__ import annotations

import logging
import math
import mimetypes
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

from obs_engine.errors import InvalidArgumentError, ObsEngineError
from obs_engine.limits import (
    BUCKET_LENGTH_MAX,
    BUCKET_LENGTH_MIN,
    KEY_LENGTH_MAX,
    KIB,
    METADATA_MAX_BYTES,
    MIB,
    PART_SIZE_DEFAULT_BYTES,
    TASK_NUM_MAX,
    TASK_NUM_MIN,
)
from obs_engine.models import CompleteMultipartUploadResponse, GetResult, SseKmsHeader
from obs_engine.options import EngineOptions
from obs_engine.source.identity import identify
from obs_engine.source.plan import plan_parts
from obs_engine.transfer.launch import Launcher
from obs_engine.transfer.messages import (
    Failed,
    Logged,
    Progress,
    TransportOptions,
    Uploaded,
    UploadReport,
    UploadRequest,
)
from obs_engine.wire.endpoint import Addressing, parse_endpoint
from obs_engine.wire.object_headers import (
    encode_value,
    metadata_headers,
    property_headers,
    sse_c_headers,
    sse_kms_headers,
)
from obs_engine.wire.replies import Reply, read_completed, read_fault
from obs_engine.wire.requests import Target
from obs_engine.wire.signing import Credentials, Headers, SignatureKind

_log = logging.getLogger("obs_engine")
_log.addHandler(logging.NullHandler())

RECORD_SUFFIX = ".upload_record"
ProgressCallback = Callable[[int, int, float], object]

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]*[a-z0-9]")
_IP = re.compile(r"\d+\.\d+\.\d+\.\d+")
_SIGNATURES: tuple[SignatureKind, ...] = ("obs", "v2", "v4")


class ObsClient:
    """A connection to one OBS endpoint, and the engine behind it.

    The engine's processes start with the first upload and end with `close`, with the `with` block, or with this
    process. One client may be used from many threads.
    """

    def __init__(
        self,
        access_key_id: str = "",
        secret_access_key: str = "",
        is_secure: bool = True,
        server: str | None = None,
        signature: str = "obs",
        region: str = "region",
        path_style: bool = False,
        ssl_verify: bool | str = True,
        is_use_gmssl: bool = False,
        port: int | None = None,
        max_retry_count: int = 3,
        timeout: float = 60,
        *,
        security_token: str | None = None,
        is_cname: bool = False,
        engine: EngineOptions | None = None,
    ) -> None:
        """The first arguments stand in the official SDK's order.

        Args:
            access_key_id, secret_access_key: empty for anonymous access.
            server: `https://obs.region.example.com`, a host alone, or with a port; see `parse_endpoint`.
            signature: 'obs', 'v2' or 'v4'. With `path_style`, an IP address or `is_cname`, 'obs' becomes 'v2', as in
                the official SDK: the service knows its own signature on virtual hosts only.
            region: for 'v4'.
            path_style: `host/bucket/key` instead of `bucket.host/key`; always so where the host is an IP address.
            ssl_verify: True (the default; the official SDK's is False) checks the certificate and the host name; a
                path names a file of trusted authorities; False checks nothing.
            max_retry_count: repetitions after a first failure, 0-100.
            timeout: seconds without a byte until a transfer counts as stalled; and for connecting. Above 0.
            security_token: of temporary credentials.
            is_cname: `server` is the bucket's own domain.
            engine: tuning of this engine.

        Raises:
            InvalidArgumentError: which argument, what was expected.
        """
        if is_use_gmssl:
            raise InvalidArgumentError("is_use_gmssl", "False: this engine has no GM/TLS", True, "use standard TLS")
        if signature not in _SIGNATURES:
            raise InvalidArgumentError("signature", "'obs', 'v2' or 'v4'", signature)
        if isinstance(max_retry_count, bool) or not isinstance(max_retry_count, int) or not 0 <= max_retry_count <= 100:
            raise InvalidArgumentError("max_retry_count", "an int from 0 to 100", max_retry_count)
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
            raise InvalidArgumentError("timeout", "seconds above 0", timeout)
        if engine is not None and not isinstance(engine, EngineOptions):
            raise InvalidArgumentError("engine", "EngineOptions", engine)
        for name, value in (("access_key_id", access_key_id), ("secret_access_key", secret_access_key),
                            ("security_token", security_token)):  # fmt: skip
            if value is not None and not isinstance(value, str):
                # Why not show it: it may be a secret of another type.
                raise InvalidArgumentError(f"{name}: expected a string, found a {type(value).__name__}; convert it")
            if value and not value.strip().isprintable():
                raise InvalidArgumentError(f"{name}: expected printable characters, found others; copy it again")
        if not isinstance(region, str) or not region.isprintable():
            raise InvalidArgumentError("region", "a name such as 'cn-north-4'", region)
        endpoint = parse_endpoint(server, is_secure=is_secure, port=port)
        addressing: Addressing = (
            "cname" if is_cname else "path" if path_style or endpoint.is_ip else "virtual"
        )
        kind: SignatureKind = "v4" if signature == "v4" else "v2" if signature == "v2" else "obs"
        if kind == "obs" and addressing != "virtual":
            kind = "v2"
        self._options = engine or EngineOptions()
        self._target = Target(endpoint, addressing, kind, region)
        self._credentials = Credentials(
            (access_key_id or "").strip(), (secret_access_key or "").strip(), (security_token or "").strip() or None
        )
        self._max_retry_count = max_retry_count
        self._transport = TransportOptions(
            timeout_s=float(timeout),
            connect_timeout_s=float(self._options.connect_timeout_s or timeout),
            is_verified=bool(ssl_verify),
            ca_file=_ca_file(ssl_verify) if endpoint.scheme == "https" and ssl_verify else None,
            upload_buffer_bytes=self._options.upload_buffer_bytes or 0,  # 0: chosen for each upload
        )
        self._launcher = Launcher()

    def uploadFile(
        self,
        bucketName: str,
        objectKey: str,
        uploadFile: str | os.PathLike[str],
        partSize: int = PART_SIZE_DEFAULT_BYTES,
        taskNum: int = 1,
        enableCheckpoint: bool = False,
        checkpointFile: str | os.PathLike[str] | None = None,
        checkSum: bool = False,
        metadata: Mapping[str, object] | None = None,
        progressCallback: ProgressCallback | None = None,
        headers: Any = None,
        extensionHeaders: Mapping[str, object] | None = None,
        encoding_type: str | None = None,
    ) -> GetResult:
        """Uploads a file in parts, and continues where an earlier call was interrupted.

        Args:
            bucketName: 3-63 characters, see the document's Table 1.
            objectKey: 1-1024 characters.
            uploadFile: path of a regular file of any size, empty included.
            partSize: bytes; clamped to 100 KB - 5 GB, and grown where more than 10,000 parts would be needed.
            taskNum: parts in flight at most, 1-10000.
            enableCheckpoint: keep a journal, and continue from it.
            checkpointFile: the journal's path; by default `<uploadFile>.upload_record`. Unused without
                `enableCheckpoint`.
            checkSum: identify the file by its content too (xxh3-128), beyond size and modification time.
            metadata: custom metadata, 8 KB at most; keys without prefix.
            progressCallback: called with (bytes stored, bytes in all, seconds), in the calling thread.
            headers: an `UploadFileHeader`.
            extensionHeaders: more headers, sent with every request.
            encoding_type: 'url' to have the reply's key URL-encoded on the wire.

        Returns:
            A `GetResult` whose `body` is a `CompleteMultipartUploadResponse`, and whose `report` says what this call
            did. Where only the last request, Complete, was refused, `status` is 300 or more, as in the SDK.

        Raises:
            InvalidArgumentError, SourceError: before anything is started on the service.
            ServiceError, TransportError, IntegrityError, JournalError, EngineDiedError: the upload failed. With a
                checkpoint its progress is kept, and the same call continues it.
        """
        request = self._request(
            bucketName, objectKey, uploadFile, partSize, taskNum, enableCheckpoint, checkpointFile, checkSum,
            metadata, progressCallback, headers, extensionHeaders, encoding_type,
        )  # fmt: skip
        progress = _ProgressTeller(progressCallback)
        messages = self._launcher.run(request)
        try:
            for message in messages:
                if isinstance(message, Progress):
                    progress.tell(message)
                elif isinstance(message, Logged):
                    _log.log(message.level, "%s", message.text)
                elif isinstance(message, Failed):
                    raise message.error.error()
                elif isinstance(message, Uploaded):
                    return self._result(request, message.reply, message.report)
        finally:
            messages.close()  # type: ignore[attr-defined]
        _unreachable()

    def close(self) -> None:
        """Ends the engine's processes. A running upload fails; with a checkpoint its progress is kept."""
        self._launcher.close()

    def __enter__(self) -> ObsClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ObsClient {self._target.endpoint} {self._target.signature}>"

    def _request(
        self, bucket: Any, key: Any, upload_file: Any, part_size: Any, task_num: Any, is_checkpoint: Any,
        checkpoint_file: Any, is_checksum: Any, metadata: Any, callback: Any, headers: Any, extension_headers: Any,
        encoding_type: Any,
    ) -> UploadRequest:  # fmt: skip
        bucket = "" if self._target.addressing == "cname" and not bucket else _bucket(bucket)
        path = _path("uploadFile", upload_file)
        if callback is not None and not callable(callback):
            raise InvalidArgumentError(
                "progressCallback", "a callable (bytes stored, bytes in all, seconds)", callback, "Invalid callback"
            )
        if isinstance(part_size, bool) or not isinstance(part_size, (int, float)) or math.isnan(part_size):
            raise InvalidArgumentError("partSize", "a number of bytes, such as 9 * 1024 * 1024", part_size)
        if isinstance(task_num, bool) or not isinstance(task_num, int) or not TASK_NUM_MIN <= task_num <= TASK_NUM_MAX:
            raise InvalidArgumentError("taskNum", f"an int from {TASK_NUM_MIN} to {TASK_NUM_MAX}", task_num)
        if encoding_type not in (None, "url"):
            raise InvalidArgumentError("encoding_type", "'url' or None", encoding_type)
        if self._options.adopt and not is_checkpoint:
            raise InvalidArgumentError(
                "EngineOptions.adopt", "enableCheckpoint=True: an adopted upload needs a record", self._options.adopt
            )
        key = _key(key)
        kind = self._target.signature
        properties, part_headers = _property_headers(kind, key, headers)
        identity = identify(path)
        plan_parts(identity.size_bytes, part_size)
        record = None
        if is_checkpoint:
            record = _path("checkpointFile", checkpoint_file) if checkpoint_file else path + RECORD_SUFFIX
            if os.path.realpath(record) == os.path.realpath(path):
                raise InvalidArgumentError("checkpointFile", "another file than uploadFile", record)
        return UploadRequest(
            caller_pid=os.getpid(),
            path=path,
            bucket=bucket,
            key=key,
            target=self._target,
            credentials=self._credentials,
            part_size_bytes=part_size,
            task_num=task_num,
            checkpoint_file=record,
            is_default_record=not checkpoint_file,
            is_checksum=bool(is_checksum),
            initiate_headers=(*_metadata(kind, metadata), *properties),
            part_headers=part_headers,
            common_headers=_extension_headers(extension_headers),
            encoding_type=encoding_type,
            max_retry_count=self._max_retry_count,
            transport=self._transport._replace(upload_buffer_bytes=self._upload_buffer_bytes(task_num)),
            engine=self._options,
        )

    def _upload_buffer_bytes(self, task_num: int) -> int:
        """libcurl's buffer for each connection: what was measured best, less where many would cost memory."""
        best = 512 * KIB if self._target.endpoint.scheme == "https" else MIB
        return self._options.upload_buffer_bytes or max(64 * KIB, min(best, 64 * MIB // task_num))

    def _result(self, request: UploadRequest, reply: Reply, report: UploadReport) -> GetResult:
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
        url = self._target.endpoint.url(request.bucket, request.key, self._target.addressing)
        result.body = CompleteMultipartUploadResponse(
            location=completed.location if completed else url,
            bucket=completed.bucket if completed else request.bucket,
            key=completed.key if completed else request.key,
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


class _ProgressTeller:
    """Calls the caller's callback; one that raises is logged once and never fails an upload."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._started_s = time.monotonic()
        self._is_broken = False

    def tell(self, progress: Progress) -> None:
        if self._callback is None:
            return
        try:
            self._callback(progress.stored_bytes, progress.total_bytes, max(0.001, time.monotonic() - self._started_s))
        except Exception:
            if not self._is_broken:
                _log.exception("progressCallback raised; the upload goes on")
            self._is_broken = True


def _bucket(name: Any) -> str:
    rule = "3-63 lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit"
    if not isinstance(name, str) or not name.strip():
        raise InvalidArgumentError("bucketName", rule, name, "bucketName is empty")
    text = name.strip()
    is_legal = (
        BUCKET_LENGTH_MIN <= len(text) <= BUCKET_LENGTH_MAX
        and _BUCKET.fullmatch(text)
        and not _IP.fullmatch(text)
        and not any(pair in text for pair in ("..", "-.", ".-"))
    )
    if not is_legal:
        raise InvalidArgumentError("bucketName", f"{rule}; no IP address, no '..', '-.' or '.-'", name, "correct it")
    return text


def _key(key: Any) -> str:
    if not isinstance(key, str) or not key.strip():
        raise InvalidArgumentError("objectKey", f"1 to {KEY_LENGTH_MAX} characters", key, "objectKey is empty")
    if len(key) > KEY_LENGTH_MAX:
        raise InvalidArgumentError(
            "objectKey", f"1 to {KEY_LENGTH_MAX} characters", f"{key[:40]}... ({len(key)})", "shorten it"
        )
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError("objectKey", "text that UTF-8 can spell", ascii(key), "rename the object") from None
    return key


def _path(what: str, path: Any) -> str:
    try:
        text = os.fsdecode(path)
    except TypeError:
        text = ""
    if not text.strip():
        raise InvalidArgumentError(what, "the path of a file", path, f"{what} is empty")
    if "\0" in text:
        raise InvalidArgumentError(what, "a path without NUL", text)
    return os.path.abspath(text)


def _metadata(kind: SignatureKind, metadata: Any) -> Headers:
    if metadata is None:
        return ()
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) and key for key in metadata):
        raise InvalidArgumentError("metadata", "a dict of strings", metadata)
    size = sum(len(str(k).encode()) + len(str(v).encode()) for k, v in metadata.items())
    if size > METADATA_MAX_BYTES:
        raise InvalidArgumentError("metadata", f"at most {METADATA_MAX_BYTES} bytes of keys and values", size)
    return metadata_headers(kind, metadata)


def _extension_headers(headers: Any) -> Headers:
    if headers is None:
        return ()
    if not isinstance(headers, Mapping) or not all(isinstance(key, str) and key for key in headers):
        raise InvalidArgumentError("extensionHeaders", "a dict of strings", headers)
    for name in headers:
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise InvalidArgumentError("extensionHeaders", "header names as HTTP allows them", name)
    return tuple((name, encode_value(value)) for name, value in headers.items() if value is not None)


def _property_headers(kind: SignatureKind, key: str, headers: Any) -> tuple[Headers, Headers]:
    """Headers of Initiate, and of every part, from an `UploadFileHeader` of ours or of the SDK's."""

    def field(name: str) -> Any:
        return headers.get(name) if isinstance(headers, Mapping) else getattr(headers, name, None)

    expires = field("expires")
    if expires is not None and (isinstance(expires, bool) or not isinstance(expires, int) or expires < 0):
        raise InvalidArgumentError("headers.expires", "days, an int from 0", expires)
    grants = [(g.permission, g.granteeId) for g in field("extensionGrants") or () if g.permission and g.granteeId]
    properties = property_headers(
        kind,
        acl=field("acl"),
        storage_class=field("storageClass"),
        website_redirect=field("location") or field("websiteRedirectLocation"),
        content_type=field("contentType") or mimetypes.guess_type(key)[0],
        expires_days=expires,
        grants=grants,
        success_action_redirect=field("successActionRedirect"),
    )
    sse = field("sseHeader")
    if sse is None:
        return properties, ()
    if isinstance(sse, SseKmsHeader) or type(sse).__name__ == "SseKmsHeader":
        return (*properties, *sse_kms_headers(kind, sse.key)), ()
    secret = sse.key.encode() if isinstance(sse.key, str) else sse.key
    if not isinstance(secret, bytes) or len(secret) != 32:
        found = len(secret) if isinstance(secret, bytes) else type(secret).__name__
        raise InvalidArgumentError(f"headers.sseHeader.key: expected 32 bytes, found {found}; give an AES-256 key")
    customer = sse_c_headers(kind, sse.encryption or "AES256", secret)
    return (*properties, *customer), customer


def _visible_headers(headers: Headers) -> list[tuple[str, str]]:
    """Reply headers as the SDK shows them: the service's prefix taken away, values decoded."""
    found = []
    for name, value in headers:
        for prefix in ("x-obs-meta-", "x-amz-meta-", "x-obs-", "x-amz-"):
            if name.startswith(prefix):
                found.append((name[len(prefix) :], unquote(value)))
                break
        else:
            found.append((name, value))
    return found


def _ca_file(ssl_verify: bool | str) -> str | None:
    """The file of trusted authorities: the one named, the environment's, or the system's.

    Why not libcurl's own: a wheel's libcurl carries the path of the machine that it was built on.
    """
    if isinstance(ssl_verify, str):
        if not os.path.isfile(ssl_verify):
            raise InvalidArgumentError("ssl_verify", "True, False, or a file of trusted certificates", ssl_verify)
        return os.path.abspath(ssl_verify)
    import ssl

    paths = ssl.get_default_verify_paths()
    candidates = [
        os.environ.get("SSL_CERT_FILE"), paths.cafile, paths.openssl_cafile, "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem",
    ]  # fmt: skip
    for candidate in candidates:
        if candidate and os.path.isfile(candidate):
            return candidate
    try:
        import certifi
    except ImportError:
        return None
    return str(certifi.where())


def _unreachable() -> NoReturn:
    raise ObsEngineError("the coordinator's messages ended without a result; please report it")
