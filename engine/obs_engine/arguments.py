"""One call's arguments, checked and turned into one frozen request. Runs in the caller's process, sends nothing.

Source of ranges and meanings: the API document's tables 1 to 8; of the words in messages: the official SDK, as scripts
look for them.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

from obs_engine.errors import InvalidArgumentError
from obs_engine.limits import (
    BUCKET_LENGTH_MAX,
    BUCKET_LENGTH_MIN,
    KEY_LENGTH_MAX,
    LOCATION_MAX_BYTES,
    METADATA_MAX_BYTES,
    PART_SIZE_DEFAULT_BYTES,
    PART_SIZE_MAX_BYTES,
    TASK_NUM_MAX,
    TASK_NUM_MIN,
)
from obs_engine.models import field_of
from obs_engine.settings import Settings
from obs_engine.source.identity import identify
from obs_engine.source.plan import plan_parts
from obs_engine.transfer.messages import Dialect, UploadRequest, VerifyRequest
from obs_engine.wire.content_types import content_type_of
from obs_engine.wire.object_headers import (
    ACLS,
    GRANTS,
    STORAGE_CLASSES,
    extension_headers,
    property_headers,
    sse_c_headers,
    sse_kms_headers,
    without,
)
from obs_engine.wire.signing import Credentials, Headers, SignatureKind

_log = logging.getLogger("obs_engine")

RECORD_SUFFIX = ".upload_record"
VERIFY_TASK_NUM_DEFAULT = 8
Against = Literal["auto", "crc64", "etag", "content"]

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]*[a-z0-9]")
_IP = re.compile(r"\d+\.\d+\.\d+\.\d+")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_RESERVED_HEADERS = frozenset({"host", "authorization", "content-length", "transfer-encoding", "connection"})


def read_arguments(
    settings: Settings, credentials: Credentials, *, bucket: Any, key: Any, upload_file: Any, part_size: Any,
    task_num: Any, is_checkpoint: Any, checkpoint_file: Any, is_checksum: Any, metadata: Any, callback: Any,
    headers: Any, extensions: Any, encoding_type: Any, is_crc64: Any,
) -> UploadRequest:  # fmt: skip
    """Checks all of them; see `ObsClient.uploadFile` for what each means.

    Raises:
        InvalidArgumentError: which argument, what was expected.
        SourceError: there is no such file, or it cannot be used.
    """
    bucket = "" if settings.target.addressing == "cname" and not bucket else _bucket(bucket)
    key = _key(key)
    path = _path("uploadFile", upload_file)
    if callback is not None and not callable(callback) and not hasattr(callback, "on_progress"):
        raise InvalidArgumentError(
            "progressCallback", "a callable (bytes stored, bytes in all, seconds)", callback, "Invalid callback"
        )
    if isinstance(part_size, bool) or not isinstance(part_size, (int, float)) or math.isnan(part_size):
        raise InvalidArgumentError("partSize", "a number of bytes, such as 9 * 1024 * 1024", part_size)
    if encoding_type not in (None, "url"):
        raise InvalidArgumentError("encoding_type", "'url' or None", encoding_type)
    if settings.engine.adopt and not is_checkpoint:
        raise InvalidArgumentError(
            "EngineOptions.adopt", "enableCheckpoint=True: an adopted upload needs a record", settings.engine.adopt
        )
    tasks = _task_num(task_num)
    _check_metadata(metadata)
    extensions = _extensions(extensions)
    grants = _grants(field_of(headers, "extensionGrants"))
    dialects = tuple(_dialect(kind, key, metadata, headers, grants, extensions) for kind in settings.signatures)
    identity = identify(path)
    plan_parts(identity.size_bytes, part_size)
    record = None
    if is_checkpoint:
        record = _path("checkpointFile", checkpoint_file) if checkpoint_file else path + RECORD_SUFFIX
        if os.path.realpath(record) == os.path.realpath(path):
            raise InvalidArgumentError("checkpointFile", "another file than uploadFile", record)
    return _request(
        settings, credentials, path=path, bucket=bucket, key=key, part_size_bytes=part_size, task_num=tasks,
        checkpoint_file=record, is_default_record=not checkpoint_file, is_checksum=bool(is_checksum),
        is_crc64=bool(is_crc64), dialects=dialects, encoding_type=encoding_type, shows_progress=callback is not None,
    )  # fmt: skip


def read_bucket_arguments(
    settings: Settings, credentials: Credentials, *, bucket: Any, task_num: Any = 1, metadata: Any = None,
    headers: Any = None, extensions: Any = None, is_crc64: Any = False,
) -> UploadRequest:  # fmt: skip
    """Checks what is said of a bucket, and of all objects that are put there; see `ObsClient.uploadFiles`.

    Returns:
        A request as of an upload without file and key. Of its headers, those of parts are those of whole objects; their
        type is left to each key, where none is given for all.

    Raises:
        InvalidArgumentError: which argument, what was expected.
    """
    bucket = "" if settings.target.addressing == "cname" and not bucket else _bucket(bucket)
    tasks = _task_num(task_num)
    _check_metadata(metadata)
    extensions = _extensions(extensions)
    grants = _grants(field_of(headers, "extensionGrants"))
    found = (_dialect(kind, "", metadata, headers, grants, extensions) for kind in settings.signatures)
    dialects = tuple(dialect._replace(initiate=(), part=(*dialect.initiate, *dialect.part)) for dialect in found)
    return _request(
        settings, credentials, path="", bucket=bucket, key="", part_size_bytes=0, task_num=tasks, checkpoint_file=None,
        is_default_record=False, is_checksum=False, is_crc64=bool(is_crc64), dialects=dialects, encoding_type=None,
        shows_progress=False,
    )  # fmt: skip


def _request(
    settings: Settings, credentials: Credentials, *, task_num: int, is_crc64: bool, **fields: Any
) -> UploadRequest:
    """A call's own fields with those of its client."""
    return UploadRequest(
        caller_pid=os.getpid(),
        target=settings.target,
        credentials=credentials,
        task_num=task_num,
        is_crc64=is_crc64 or settings.engine.verify == "crc64",
        max_retry_count=settings.max_retry_count,
        max_redirect_count=settings.max_redirect_count,
        transport=settings.transport_for(task_num),
        engine=settings.engine,
        log_level=_log.getEffectiveLevel(),
        **fields,
    )


def read_verify_arguments(
    settings: Settings, credentials: Credentials, *, bucket: Any, key: Any, upload_file: Any, against: Any,
    part_size: Any, version_id: Any, task_num: Any, headers: Any, extensions: Any, callback: Any,
) -> VerifyRequest:  # fmt: skip
    """Checks all of them; see `ObsClient.verifyFile` for what each means.

    Raises:
        InvalidArgumentError: which argument, what was expected.
        SourceError: there is no such file, or it cannot be used.
    """
    if against not in get_args(Against):
        raise InvalidArgumentError("against", f"one of {', '.join(map(repr, get_args(Against)))}", against)
    is_size = isinstance(part_size, int) and not isinstance(part_size, bool) and 1 <= part_size <= PART_SIZE_MAX_BYTES
    if part_size is not None and not is_size:
        raise InvalidArgumentError("partSize", f"None, or bytes from 1 to {PART_SIZE_MAX_BYTES}", part_size)
    if version_id is not None and (not isinstance(version_id, str) or not version_id):
        raise InvalidArgumentError("versionId", "None, or the id of a version", version_id)
    upload = read_arguments(
        replace(settings, engine=replace(settings.engine, adopt=False)), credentials, bucket=bucket, key=key,
        upload_file=upload_file, part_size=PART_SIZE_DEFAULT_BYTES, task_num=task_num, is_checkpoint=False,
        checkpoint_file=None, is_checksum=False, metadata=None, callback=callback, headers=headers,
        extensions=extensions, encoding_type=None, is_crc64=False,
    )  # fmt: skip
    return VerifyRequest(upload, against, part_size, version_id)


def _task_num(task_num: Any) -> int:
    number = math.ceil(task_num) if isinstance(task_num, float) and math.isfinite(task_num) else task_num
    if isinstance(number, bool) or not isinstance(number, int) or not TASK_NUM_MIN <= number <= TASK_NUM_MAX:
        raise InvalidArgumentError("taskNum", f"an int from {TASK_NUM_MIN} to {TASK_NUM_MAX}", task_num)
    return number


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


def _check_metadata(metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) and key for key in metadata):
        raise InvalidArgumentError("metadata", "a dict of strings", metadata)
    for name in metadata:
        if ":" in name:
            raise InvalidArgumentError("metadata", "names without a colon, which ends a header's name", name)
    size = sum(len(str(k).encode()) + len(str(v).encode()) for k, v in metadata.items())
    if size > METADATA_MAX_BYTES:
        raise InvalidArgumentError("metadata", f"at most {METADATA_MAX_BYTES} bytes of keys and values", size)


def _extensions(headers: Any) -> dict[str, Any]:
    """The extension headers as a dict, whether they came as one or as an `ExtensionHeader`."""
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        headers = {name: field_of(headers, name) for name in ("requesterPayer", "locationClusterGroupId")}
        if not any(headers.values()):
            raise InvalidArgumentError("extensionHeaders", "a dict of strings, or an ExtensionHeader with a value", "")
    for name in headers:
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise InvalidArgumentError("extensionHeaders", "header names as HTTP allows them", name)
        if name.lower() in _RESERVED_HEADERS:
            raise InvalidArgumentError("extensionHeaders", "no header that the engine itself must set", name)
    return dict(headers)


def _dialect(
    kind: SignatureKind, key: str, metadata: Any, headers: Any, grants: list[tuple[str, str]],
    extensions: Mapping[str, Any],
) -> Dialect:  # fmt: skip
    """All headers of the upload in the words of one signature, from an `UploadFileHeader` of ours or of the SDK's."""
    expires = field_of(headers, "expires")
    if expires is not None and (isinstance(expires, bool) or not isinstance(expires, int) or expires < 0):
        raise InvalidArgumentError("headers.expires", "days, an int from 0", expires)
    location = _text(headers, "location") or _text(headers, "websiteRedirectLocation")
    if location and not location.startswith(("/", "http://", "https://")):
        raise InvalidArgumentError("headers.location", "a value beginning with '/', 'http://' or 'https://'", location)
    if location and len(location.encode()) > LOCATION_MAX_BYTES:
        raise InvalidArgumentError("headers.location", f"at most {LOCATION_MAX_BYTES} bytes", len(location.encode()))
    content_type = field_of(headers, "contentType") and _text(headers, "contentType")
    encryption, customer = _encryption(kind, field_of(headers, "sseHeader"))
    properties = property_headers(
        kind,
        acl=_known(headers, "acl", ACLS),
        storage_class=_known(headers, "storageClass", STORAGE_CLASSES),
        metadata=metadata,
        website_redirect=location,
        content_type=content_type_of(key) if content_type is None else content_type,
        expires_days=expires,
        grants=grants,
        success_action_redirect=_text(headers, "successActionRedirect"),
    )
    common = extension_headers(kind, extensions)
    initiate = (*without(properties, encryption), *encryption)
    return Dialect(kind, without(initiate, common), without(customer, common), common)


def _text(headers: Any, name: str) -> str | None:
    value = field_of(headers, name)
    if value is not None and not isinstance(value, str):
        raise InvalidArgumentError(f"headers.{name}", "a string", value)
    return value or None


def _known(headers: Any, name: str, known: frozenset[str]) -> str | None:
    """A word that some signature's dialect has; whether the service at hand takes it is the service's to say."""
    value = _text(headers, name)
    if value and value not in known:
        raise InvalidArgumentError(f"headers.{name}", f"one of {', '.join(sorted(known))}", value)
    return value


def _grants(grants: Any) -> list[tuple[str, str]]:
    found = []
    for grant in grants or ():
        permission, grantee = field_of(grant, "permission"), field_of(grant, "granteeId")
        if not permission or not grantee:
            continue
        if permission == "WRITE":
            _log.warning("headers.extensionGrants: WRITE is not applicable to an object, and not sent")
            continue
        if permission not in GRANTS or not isinstance(grantee, str):
            raise InvalidArgumentError("headers.extensionGrants", f"{', '.join(GRANTS)} for an account id", permission)
        found.append((permission, grantee))
    return found


def _encryption(kind: SignatureKind, sse: Any) -> tuple[Headers, Headers]:
    """Headers of encryption: of Initiate, and of every part."""
    if sse is None:
        return (), ()
    word = field_of(sse, "encryption")
    is_kms = type(sse).__name__ == "SseKmsHeader" or (isinstance(sse, Mapping) and word in ("kms", "aws:kms"))
    if is_kms:
        if word not in (None, "", "kms", "aws:kms"):
            raise InvalidArgumentError("headers.sseHeader.encryption", "'kms'", word)
        return sse_kms_headers(kind, field_of(sse, "key")), ()
    if word not in (None, "", "AES256"):
        raise InvalidArgumentError("headers.sseHeader.encryption", "'AES256' with a key of yours, or 'kms'", word)
    key = field_of(sse, "key")
    secret = key.encode() if isinstance(key, str) else key
    if not isinstance(secret, bytes) or len(secret) != 32:
        found = len(secret) if isinstance(secret, bytes) else type(secret).__name__
        raise InvalidArgumentError(f"headers.sseHeader.key: expected 32 bytes, found {found}; give an AES-256 key")
    headers = sse_c_headers(kind, "AES256", secret)
    return headers, headers
