"""What caller, coordinator and workers say to each other: small frozen values, and their bytes.

A message crosses a socket as four bytes of length and JSON. Why JSON: it can build nothing but values, so a broken
or hostile peer cannot run code here; a part costs some 300 bytes and 20 microseconds of it. The file's bytes never
travel this way.

Why named tuples and not dataclasses: every process of an upload defines these classes as it starts, and a dataclass
takes ten times as long to define (0.65 ms). Five stay dataclasses: three keep what may be a key out of their `repr`,
and `UploadReport` and `VerifyResult` are values of the public API.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from obs_engine.errors import ObsEngineError, from_fields
from obs_engine.options import EngineOptions
from obs_engine.source.identity import FileIdentity
from obs_engine.wire.endpoint import Endpoint
from obs_engine.wire.object_headers import by_effect
from obs_engine.wire.replies import Reply
from obs_engine.wire.requests import Request, Target
from obs_engine.wire.signing import Credentials, Headers, SignatureKind

FRAME_MAX_BYTES = 64 << 20
_LENGTH = struct.Struct("<I")


# --- shared values ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TransportOptions:
    """How connections behave.

    Attributes:
        timeout_s: a transfer without a byte for so long has stalled.
        connect_timeout_s: for a connection to stand, TLS included.
        is_verified: check certificate and host name on TLS.
        ca_file: PEM file of trusted authorities; None where libcurl's own default is right.
        upload_buffer_bytes: libcurl's buffer between the read callback and the socket.
        ciphers: OpenSSL's list for TLS up to 1.2; "" for libcurl's own.
        is_http2: offer HTTP/2 on TLS.
        proxy: `http://host:port` through which every connection is tunnelled; "" for none.
        proxy_user, proxy_password: for it, or "".
        certificate, certificate_key: PEM files by which this client shows who it is; "" for none.
        certificate_password: of the key, or "".
    """

    timeout_s: float
    connect_timeout_s: float
    is_verified: bool
    ca_file: str | None
    upload_buffer_bytes: int
    ciphers: str = ""
    is_http2: bool = False
    proxy: str = ""
    proxy_user: str = ""
    proxy_password: str = field(default="", repr=False)
    certificate: str = ""
    certificate_key: str = ""
    certificate_password: str = field(default="", repr=False)


class ErrorInfo(NamedTuple):
    """An error on its way to another process, with what caused it; a cause that is not ours arrives as its words."""

    name: str
    message: str
    fields: dict[str, Any]
    cause: ErrorInfo | None = None

    @staticmethod
    def of(error: BaseException) -> ErrorInfo:
        cause = None if error.__cause__ is None else ErrorInfo.of(error.__cause__)
        if isinstance(error, ObsEngineError):
            return ErrorInfo(type(error).__name__, error.message, error.fields(), cause)
        return ErrorInfo("ObsEngineError", f"{type(error).__name__}: {error}", {}, cause)

    def error(self) -> ObsEngineError:
        error = from_fields(self.name, self.message, self.fields)
        error.__cause__ = None if self.cause is None else self.cause.error()
        return error


# --- caller -> coordinator --------------------------------------------------------------------------------------


class Dialect(NamedTuple):
    """The headers of one upload in the words of one signature.

    Attributes:
        initiate: of Initiate alone (metadata, ACL, type, encryption).
        part: of every part (SSE-C).
        common: of every request (extension headers).
    """

    signature: SignatureKind
    initiate: Headers
    part: Headers
    common: Headers

    def __repr__(self) -> str:  # the headers may hold an encryption key
        return f"Dialect({self.signature!r}, ...)"


@dataclass(frozen=True)
class UploadRequest:
    """One `uploadFile`, validated: all that the coordinator needs to know of it.

    Attributes:
        caller_pid: of the process that calls.
        path: absolute.
        part_size_bytes: as asked; the plan clamps it.
        task_num: parts in flight at most, 1-10000.
        checkpoint_file: absolute; None without a checkpoint.
        is_default_record: the caller named no checkpoint file, so another name may be chosen where it is taken.
        is_checksum: identify the file by its content too.
        is_crc64: send the CRC-64 of each part and of the object, for the service to check.
        dialects: the one that is spoken; or two, of which the service is to say which it understands, the newer first.
        log_level: the caller's logger takes no lines below it.
        shows_progress: somebody looks at the bytes in flight.
    """

    caller_pid: int
    path: str
    bucket: str
    key: str
    target: Target
    credentials: Credentials
    part_size_bytes: float
    task_num: int
    checkpoint_file: str | None
    is_default_record: bool
    is_checksum: bool
    is_crc64: bool
    dialects: tuple[Dialect, ...]
    encoding_type: str | None
    max_retry_count: int
    max_redirect_count: int
    transport: TransportOptions
    engine: EngineOptions
    log_level: int
    shows_progress: bool

    def speaking(self, dialect: Dialect) -> UploadRequest:
        """The same request in one dialect."""
        return replace(self, target=replace(self.target, signature=dialect.signature), dialects=(dialect,))

    @property
    def compares_etags(self) -> bool:
        """Is each part's ETag to be the MD5 of its bytes? Not where the service checks a CRC-64 of them."""
        return self.engine.verify in ("etag", "readback") and not self.is_crc64

    @property
    def is_encrypted(self) -> bool:
        """Was server-side encryption asked for? Then ETags need be no MD5s."""
        return bool(self.object_options.get("encryption"))

    @property
    def dialect(self) -> Dialect:
        """The one that is spoken."""
        return self.dialects[0]

    @property
    def target_name(self) -> tuple[str, str, str]:
        """Endpoint, bucket and key: what a journal is bound to."""
        return str(self.target.endpoint), self.bucket, self.key

    @property
    def object_options(self) -> dict[str, Headers]:
        """The headers that make the object what it is, by group."""
        return by_effect((*self.dialect.initiate, *self.dialect.part), self.dialect.common)


class VerifyRequest(NamedTuple):
    """One `verifyFile`, validated.

    Attributes:
        upload: how the service is reached, and which file and object are meant, as if the one became the other.
        against: "auto", "crc64", "etag" or "content".
        part_size_bytes: that the object was uploaded with; None where the caller did not say.
        version_id: None for the newest.
    """

    upload: UploadRequest
    against: str
    part_size_bytes: int | None
    version_id: str | None


class Ask(NamedTuple):
    """One small request that belongs to no upload.

    Attributes:
        upload: how the service is reached, and which bucket is meant; nothing of its file or its key counts.
    """

    upload: UploadRequest
    request: Request


class PutFiles(NamedTuple):
    """One `uploadFiles`: small files, one request each. `MoreFiles` follow, and `NoMoreFiles`.

    Attributes:
        upload: how the service is reached, as if it were of one file without path and key.
    """

    upload: UploadRequest


class SmallFile(NamedTuple):
    """A file that goes as one request.

    Attributes:
        number: the caller's, by which its result is told.
        size_bytes: as it was seen; what it is when it is read counts.
    """

    number: int
    path: str
    key: str
    size_bytes: int


class MoreFiles(NamedTuple):
    """Files to be sent."""

    files: tuple[SmallFile, ...]


class NoMoreFiles(NamedTuple):
    """That was all."""


class NewCredentials(NamedTuple):
    """The access keys as they are now; the answer to `CredentialsWanted`.

    Attributes:
        may_change: they come from a provider, which may have others later.
    """

    credentials: Credentials
    may_change: bool = False


class SetBandwidth(NamedTuple):
    """From now on so many bytes a second, all uploads together; None for no cap. A call by itself; nothing answers."""

    bytes_per_s: float | None


# --- coordinator -> caller --------------------------------------------------------------------------------------


class FlowState(NamedTuple):
    """What an endpoint gets at the moment, from all uploads of the client.

    Attributes:
        parts_in_flight: on their way.
        parts_in_flight_max: at most; see `concurrency`.
        requests_per_s_max: at most, since the service asked to slow down; None where it never did.
    """

    parts_in_flight: int
    parts_in_flight_max: int
    requests_per_s_max: float | None


class Progress(NamedTuple):
    """How far an upload is.

    Attributes:
        shown_bytes: stored or on their way; never falling, and all of them only when the object stands.
        stored_bytes, stored_parts: acknowledged by the service.
        flow: how it gets there.
    """

    shown_bytes: int
    stored_bytes: int
    total_bytes: int
    stored_parts: int
    total_parts: int
    flow: FlowState


class CredentialsWanted(NamedTuple):
    """Please say what the access keys are now; the service may have refused those that were said last."""

    is_refused: bool


@dataclass(frozen=True)
class UploadReport:
    """What one call did.

    Attributes:
        upload_id: the service's.
        size_bytes, part_size_bytes, parts: the plan.
        parts_resumed: parts that an earlier call had stored.
        parts_adopted: those of them of which the service knew, and no record.
        parts_sent: parts that this call stored.
        part_attempts: UploadPart requests of this call: retries and doubles included.
        parts_doubled: parts that were late, and were sent a second time at the same time.
        seconds: of this call in the coordinator.
        verify: the rung of verification that was climbed.
        etag: of the object, as its parts make it, without quotes; None where their ETags are no MD5s.
        crc64: of the file, where it was asked for; 0 to 2**64 - 1.
        xxh3: with `checkSum`, 32 hex digits over the whole content: the xxh3-128 of those of each 64 MiB of the file,
            each of which is that of those of each 1 MiB of it, whatever the size of the parts.
    """

    upload_id: str
    size_bytes: int
    part_size_bytes: int
    parts: int
    parts_resumed: int
    parts_adopted: int
    parts_sent: int
    part_attempts: int
    parts_doubled: int
    seconds: float
    verify: str = "none"
    etag: str | None = None
    crc64: int | None = None
    xxh3: str | None = None


class Uploaded(NamedTuple):
    """The last word of a call that came to a reply of Complete, good or bad."""

    reply: Reply
    report: UploadReport


@dataclass(frozen=True)
class VerifyResult:
    """Is an object what a file is?

    Attributes:
        is_equal: it is, as far as `against` can tell (see SEMANTICS.md).
        against: how they were compared: "crc64", "etag" or "content"; where their sizes differ, how they would be.
        expected: what the object would have if it were the file: CRC-64 in decimal, ETag without quotes, or bytes.
        found: what it has.
        size_bytes: of the file.
        part_size_bytes: of the parts that make the ETag `expected`; None where none do.
        tried_part_sizes: in bytes, all with which an ETag was computed; the object may be of parts of yet another size.
        first_difference: offset of the first byte that differs, where contents were compared and do; else None.
        compared_bytes: of the file, read to digest or compare them.
        seconds: of this call in the coordinator.
    """

    is_equal: bool
    against: str
    expected: str
    found: str
    size_bytes: int
    part_size_bytes: int | None
    tried_part_sizes: tuple[int, ...]
    first_difference: int | None
    compared_bytes: int
    seconds: float


class Verified(NamedTuple):
    """The last word of a call that compared a file with an object."""

    result: VerifyResult


class Answered(NamedTuple):
    """The last word of a call that asked: the last reply, whatever its status."""

    reply: Reply


class FilePut(NamedTuple):
    """A file that was stored, or was not.

    Attributes:
        number: the caller's.
        size_bytes, mtime_ns, inode: of the file that was sent.
        etag, version_id, request_id: the service's; "" for none.
        crc64: in 16 hex digits where it was asked for, else "".
        seconds: that its request took.
        error: None where it was stored.
    """

    number: int
    size_bytes: int
    mtime_ns: int
    inode: int
    etag: str = ""
    version_id: str = ""
    request_id: str = ""
    crc64: str = ""
    seconds: float = 0.0
    error: ErrorInfo | None = None


class FilesPut(NamedTuple):
    """What became of some files, in any order."""

    files: tuple[FilePut, ...]


class AllFilesPut(NamedTuple):
    """The last word of an `uploadFiles`: all files have been told of."""


class Failed(NamedTuple):
    """The last word of a call that failed."""

    error: ErrorInfo


class Logged(NamedTuple):
    """A log line, from a worker or the coordinator, for the caller's logger; `upload` is the pool's number, or 0."""

    upload: int
    level: int
    text: str


# --- coordinator -> worker --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenUpload:
    """All that a worker must know of an upload, once, and again when it changed; tasks name it by `upload`.

    Attributes:
        part_headers: of what carries bytes of a file: parts, or whole objects.
        is_crc64, is_md5: what each whole object is to be proven by.
        addresses: of the target's host, where there are several to choose from.
    """

    upload: int
    path: str
    identity: FileIdentity
    bucket: str
    key: str
    target: Target
    credentials: Credentials
    part_headers: Headers = field(repr=False)
    transport: TransportOptions
    is_crc64: bool
    is_md5: bool
    reader: str
    log_level: int
    shows_progress: bool
    addresses: tuple[str, ...] = ()


class CloseUpload(NamedTuple):
    """Give up what is in flight for the upload and forget it."""

    upload: int


class CancelTask(NamedTuple):
    """Give up a task, without a word."""

    upload: int
    task: int


class Allow(NamedTuple):
    """So many bytes more may be sent; None for as many as there are."""

    size: int | None


class PartTask(NamedTuple):
    """Send `length` bytes from `offset` as part `part_number` of `upload_id`.

    Attributes:
        now_s: dates the signature.
        content_md5: for the service to check; "" for none.
        is_md5: digest it as a whole behind its sending.
        is_hashed: digest it piece by piece as it is sent.
        is_fresh: on a new connection.
    """

    task: int
    upload: int
    upload_id: str
    part_number: int
    offset: int
    length: int
    now_s: float
    content_md5: str = ""
    is_md5: bool = False
    is_hashed: bool = False
    is_fresh: bool = False


class BatchTask(NamedTuple):
    """Send these files, one request each, one after the other over one connection, up to the first that fails."""

    task: int
    upload: int
    files: tuple[SmallFile, ...]
    now_s: float
    is_fresh: bool = False


class RequestTask(NamedTuple):
    """Send a small request, on a new connection if `is_fresh`, and bring the whole reply back."""

    task: int
    upload: int
    request: Request
    now_s: float
    is_fresh: bool = False


class HashTask(NamedTuple):
    """xxh3-128 of each piece of `length` bytes from `offset`, see `pieces`."""

    task: int
    upload: int
    offset: int
    length: int


class Md5Task(NamedTuple):
    """MD5 of each range (offset, length), all of them side by side."""

    task: int
    upload: int
    ranges: tuple[tuple[int, int], ...]


class Crc64Task(NamedTuple):
    """CRC-64 of `length` bytes from `offset`."""

    task: int
    upload: int
    offset: int
    length: int


class CompareTask(NamedTuple):
    """GET `length` bytes of the object from `offset` (one at least), and compare them with the file's.

    Attributes:
        now_s: dates the signature.
        etag: that the object must have; "" for any.
        version_id: None for the newest.
    """

    task: int
    upload: int
    offset: int
    length: int
    now_s: float
    etag: str = ""
    version_id: str | None = None


# --- worker -> coordinator --------------------------------------------------------------------------------------


class PartStoredReply(NamedTuple):
    """The service acknowledged the part.

    Attributes:
        crc64: of the bytes that were sent, in 16 hex digits; "" where it was not asked for.
        is_crc64_shown: the service computed the same.
        is_encrypted: the service says that it encrypts: the ETag need be no MD5.
        md5: of the file's bytes, in 32 hex digits; "" where it was not asked for.
        pieces: xxh3-128 of each piece of what was sent (see `pieces`), where they were asked for.
    """

    task: int
    etag: str
    crc64: str = ""
    is_crc64_shown: bool = False
    is_encrypted: bool = False
    md5: str = ""
    pieces: tuple[str, ...] = ()


class TaskReplied(NamedTuple):
    """A whole reply arrived: of a request task, or an unwanted one of a part."""

    task: int
    reply: Reply


class HashDone(NamedTuple):
    """Digests of a task's ranges, in their order, in hex digits."""

    task: int
    digests: tuple[str, ...]


class Compared(NamedTuple):
    """All bytes of a range arrived; the offset in the file of the first that differs, or None."""

    task: int
    first_difference: int | None


class TaskFailed(NamedTuple):
    """No reply arrived, or the source failed."""

    task: int
    error: ErrorInfo


class BatchDone(NamedTuple):
    """So many files of a batch were stored, from its first on; and what was said of the next one.

    Attributes:
        rest: None where all were stored.
    """

    task: int
    stored: tuple[FilePut, ...]
    rest: TaskReplied | TaskFailed | None = None


class InFlight(NamedTuple):
    """Bytes of the upload that this worker has given to its connections, of parts not yet acknowledged."""

    upload: int
    sent_bytes: int


class CreditWanted(NamedTuple):
    """There are bytes to send, and none that may be."""


Outcome = PartStoredReply | BatchDone | TaskReplied | HashDone | Compared | TaskFailed
Task = PartTask | BatchTask | RequestTask | HashTask | Md5Task | Crc64Task | CompareTask

Asked = UploadRequest | VerifyRequest | PutFiles | Ask
"""What begins a call."""
LAST_WORDS = Uploaded, Verified, AllFilesPut, Answered, Failed

_CLASSES: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        TransportOptions, ErrorInfo, Dialect, UploadRequest, NewCredentials, Progress, CredentialsWanted, UploadReport,
        Uploaded, Failed, Logged, OpenUpload, CloseUpload, PartTask, RequestTask, HashTask, Md5Task, Crc64Task,
        PartStoredReply, TaskReplied, HashDone, TaskFailed, InFlight, EngineOptions, FileIdentity, Endpoint, Reply,
        Request, Target, Credentials, SetBandwidth, Allow, CreditWanted, VerifyRequest, VerifyResult, Verified,
        CompareTask, Compared, CancelTask, FlowState, PutFiles, SmallFile, MoreFiles, NoMoreFiles, FilePut, FilesPut,
        AllFilesPut, BatchTask, BatchDone, Ask, Answered,
    )
}  # fmt: skip
_FIELDS = {
    name: cls._fields if issubclass(cls, tuple) else tuple(f.name for f in fields(cls))
    for name, cls in _CLASSES.items()
}


class ProtocolError(Exception):
    """A peer sent what is no message. A programming mistake, or a foreign process on the socket."""


def encode(message: object) -> bytes:
    """The framed bytes of a message."""
    data = json.dumps(_plain(message), separators=(",", ":")).encode()
    return _LENGTH.pack(len(data)) + data


class Decoder:
    """Turns a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Takes bytes in and yields the messages that are now whole.

        Raises:
            ProtocolError: the bytes are no message.
        """
        buffer = self._buffer
        buffer += data
        offset = 0
        try:
            while len(buffer) - offset >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(buffer, offset)
                if length > FRAME_MAX_BYTES:
                    raise ProtocolError(f"a frame of {length} bytes")
                end = offset + _LENGTH.size + length
                if end > len(buffer):
                    break
                try:
                    message = json.loads(buffer[offset + _LENGTH.size : end], object_hook=_build)
                except (ValueError, TypeError, KeyError) as error:
                    raise ProtocolError(str(error)) from error
                offset = end
                yield message
        finally:
            del buffer[:offset]  # also where the reader stops early: what follows is for the next one


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    name = type(value).__name__
    if name in _FIELDS:
        return {name: [_plain(getattr(value, attribute)) for attribute in _FIELDS[name]]}
    if isinstance(value, bytes):
        return {"bytes": value.decode("latin-1")}
    if isinstance(value, dict):
        return {"dict": [[key, _plain(item)] for key, item in value.items()]}
    assert isinstance(value, (tuple, list)), f"a {name} is no part of a message"
    return [_plain(item) for item in value]


def _build(tagged: dict[str, Any]) -> Any:
    ((tag, content),) = tagged.items()
    if tag == "bytes":
        return content.encode("latin-1")
    if tag == "dict":
        return {key: _value(item) for key, item in content}
    return _CLASSES[tag](*map(_value, content))


def _value(value: Any) -> Any:
    return tuple(map(_value, value)) if isinstance(value, list) else value
