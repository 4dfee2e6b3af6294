"""Records of a journal, and their bytes. The format is JOURNAL.md; this module is its only reader and writer."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from obs_engine.checkpoint.fingerprint import DIGEST_BYTES, GROUPS, Fingerprint, from_version_1

MAGIC = b"\x89OBSENG\n"  # Why 0x89 and a newline: a text-mode copy or a 7-bit channel damages them visibly
VERSION = 3
BYTE_ORDER_MARK = 0x0102

_HEADER = struct.Struct("<8sHHI")
_FRAME = struct.Struct("<IHBB")
_NUMBERS = struct.Struct("<QqqQQQ")
_PART = struct.Struct("<I")
_OPENED = struct.Struct("<Iq16s")
_RESERVED = bytes(DIGEST_BYTES)  # version 2 had one digest of the whole content here
_FINGERPRINT_BYTES = DIGEST_BYTES * (1 + len(GROUPS))
_CORE_BYTES = _NUMBERS.size + _FINGERPRINT_BYTES + 2 * DIGEST_BYTES

HEADER_BYTES = _HEADER.size
FRAME_BYTES = _FRAME.size
DATA_MAX_BYTES = 16 * 1024
PATH_MAX_BYTES = 255
HOST_MAX_BYTES = 64


@dataclass(frozen=True)
class Binding:
    """Which upload this journal belongs to.

    Attributes:
        bucket, key, endpoint: the target, the endpoint as `scheme://host[:port]`.
        path: the end of the file's absolute path, `PATH_MAX_BYTES` of it; see `path_end`.
        size_bytes, mtime_ns, ctime_ns, inode, device: identity of the file.
        part_size_bytes: the plan; part n covers bytes from (n-1) * part_size_bytes.
        options: fingerprint of the options that change the object; never the options themselves.
    """

    bucket: str
    key: str
    endpoint: str
    path: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int
    part_size_bytes: int
    options: Fingerprint

    @property
    def target(self) -> tuple[str, str, str]:
        return self.endpoint, self.bucket, self.key

    @property
    def part_count(self) -> int:
        return max(1, -(-self.size_bytes // self.part_size_bytes))


@dataclass(frozen=True)
class Initiated:
    """The service gave an upload id.

    `core` repeats the binding but for its texts, so that no single damage takes both; see `core_of`. Empty in a journal
    of version 1.
    """

    upload_id: str
    core: bytes = b""


@dataclass(frozen=True)
class PartStored:
    """The service acknowledged a part; its ETag exactly as given.

    `content` is a digest (16 bytes) of the bytes that were sent, with `checkSum`; else empty.
    """

    part_number: int
    etag: str
    content: bytes = b""


@dataclass(frozen=True)
class Completed:
    """The service has assembled the object. What remains is to remove the journal."""


@dataclass(frozen=True)
class Opened:
    """Who writes the journal: for the message to others, and for people. Says nothing of the upload.

    Attributes:
        pid, host: the process that called; `HOST_MAX_BYTES` of the host's name.
        since_s: when it came, seconds since 1970.
        target: `target_digest` of what it uploads to.
    """

    pid: int
    since_s: int
    target: bytes
    host: str


Record = Binding | Initiated | PartStored | Completed | Opened

_BINDING, _INITIATED, _PART_STORED, _COMPLETED, _OPENED_BY = 1, 2, 3, 4, 5


_TYPE_AND_ZERO = re.compile(rb"[\x01-\x05]\x00")


class UnreadableRecord(Exception):
    """No whole, sound record begins here. Says nothing of why: torn or damaged is the journal's to judge."""


def header(version: int = VERSION) -> bytes:
    """The 16 bytes that open a journal."""
    head = _HEADER.pack(MAGIC, version, BYTE_ORDER_MARK, 0)[:12]
    return head + struct.pack("<I", zlib.crc32(head))


def read_header(data: bytes) -> int | None:
    """The version of a journal that begins with `data`; None where it does not begin with a sound header."""
    if len(data) < HEADER_BYTES:
        return None
    magic, version, mark, checksum = _HEADER.unpack_from(data)
    if magic != MAGIC or mark != BYTE_ORDER_MARK or checksum != zlib.crc32(data[:12]):
        return None
    return int(version)


def encode(record: Record) -> bytes:
    """A record as framed bytes: checksum (over all that follows), length, type, zero, data."""
    kind, data = _pack(record)
    assert len(data) <= DATA_MAX_BYTES, f"a record of {len(data)} bytes"
    tail = _FRAME.pack(0, len(data), kind, 0)[4:] + data
    return struct.pack("<I", zlib.crc32(tail)) + tail


def decode(data: bytes, offset: int, version: int = VERSION) -> tuple[Record, int]:
    """The record at `offset`, and the offset behind it.

    Args:
        version: 1 to 3, from the header.

    Raises:
        UnreadableRecord: it is cut, or its checksum or content is wrong.
    """
    if offset + FRAME_BYTES > len(data):
        raise UnreadableRecord("cut in its frame")
    checksum, length, kind, zero = _FRAME.unpack_from(data, offset)
    end = offset + FRAME_BYTES + length
    if length > DATA_MAX_BYTES or zero:
        raise UnreadableRecord("no frame")
    if end > len(data):
        raise UnreadableRecord("cut in its data")
    found = zlib.crc32(data[offset + 4 : end])
    if found != checksum:
        raise UnreadableRecord(f"checksum {checksum:08x} written, {found:08x} found")
    try:
        return _unpack(kind, data[offset + FRAME_BYTES : end], version), end
    except (struct.error, UnicodeDecodeError, IndexError, ValueError) as error:
        raise UnreadableRecord(f"type {kind}: {error}") from None


def may_begin(data: bytes, start: int) -> Iterator[int]:
    """Offsets from `start` on at which a record may begin, as type and zero stand where they must."""
    for found in _TYPE_AND_ZERO.finditer(data, start + 6):
        yield found.start() - 6


def target_digest(endpoint: str, bucket: str, key: str) -> bytes:
    """16 bytes that stand for a target."""
    return hashlib.blake2b("\0".join((endpoint, bucket, key)).encode(), digest_size=DIGEST_BYTES).digest()


def path_end(path: str) -> str:
    """As much of a path's end as a binding keeps."""
    return os.fsdecode(os.fsencode(path)[-PATH_MAX_BYTES:])


def core_of(binding: Binding) -> bytes:
    """All of a binding but its texts, of which a digest of the target stands there."""
    return _packed_core(binding) + target_digest(*binding.target)


def restored(core: bytes, endpoint: str, bucket: str, key: str, path: str) -> Binding | None:
    """The binding behind a core, if it is that of this target; None otherwise."""
    if len(core) != _CORE_BYTES or core[-DIGEST_BYTES:] != target_digest(endpoint, bucket, key):
        return None
    return Binding(bucket, key, endpoint, path_end(path), *_unpacked_core(core))


def _pack(record: Record) -> tuple[int, bytes]:
    match record:
        case PartStored():
            assert len(record.content) in (0, DIGEST_BYTES)
            return _PART_STORED, _PART.pack(record.part_number) + _text(record.etag) + record.content
        case Initiated():
            return _INITIATED, record.core + _text(record.upload_id)
        case Completed():
            return _COMPLETED, b""
        case Opened():
            host = _text(record.host.encode("utf-8", "replace")[:HOST_MAX_BYTES].decode("utf-8", "ignore"))
            return _OPENED_BY, _OPENED.pack(record.pid, record.since_s, record.target) + host
        case Binding():
            texts = b"".join(map(_text, (record.bucket, record.key, record.endpoint, record.path)))
            return _BINDING, _packed_core(record) + texts


def _unpack(kind: int, data: bytes, version: int) -> Record:
    if kind == _PART_STORED:
        (number,) = _PART.unpack_from(data)
        (length,) = struct.unpack_from("<H", data, _PART.size)
        end = _PART.size + 2 + length
        content = data[end:] if version > 2 else b""
        if len(content) not in (0, DIGEST_BYTES):
            raise ValueError(f"a digest of {len(content)} bytes")
        (etag,) = _texts(data[: len(data) - len(content)], _PART.size, 1)
        return PartStored(number, etag, content)
    if kind == _INITIATED:
        core = data[:_CORE_BYTES] if version > 1 else b""
        (upload_id,) = _texts(data, len(core), 1)
        return Initiated(upload_id, core)
    if kind == _COMPLETED and not data:
        return Completed()
    if kind == _OPENED_BY:
        pid, since_s, target = _OPENED.unpack_from(data)
        (host,) = _texts(data, _OPENED.size, 1)
        return Opened(pid, since_s, target, host)
    if kind == _BINDING:
        head = _CORE_BYTES - DIGEST_BYTES
        if version == 1:  # one digest of the options, where there is a fingerprint now
            head -= _FINGERPRINT_BYTES - DIGEST_BYTES
        bucket, key, endpoint, path = _texts(data, head, 4)
        return Binding(bucket, key, endpoint, path, *_unpacked_core(data[:head], version))
    raise ValueError("unknown type")


def _packed_core(binding: Binding) -> bytes:
    numbers = _NUMBERS.pack(
        binding.size_bytes, binding.mtime_ns, binding.ctime_ns, binding.inode, binding.device, binding.part_size_bytes
    )
    options = b"".join((binding.options.salt, *binding.options.digests))
    assert len(options) == _FINGERPRINT_BYTES
    return numbers + options + _RESERVED


def _unpacked_core(core: bytes, version: int = VERSION) -> tuple[int, int, int, int, int, int, Fingerprint]:
    size, mtime, ctime, inode, device, part_size = _NUMBERS.unpack_from(core)
    if part_size < 1:
        raise ValueError("a part size below 1")
    digests = [core[at : at + DIGEST_BYTES] for at in range(_NUMBERS.size, len(core), DIGEST_BYTES)]
    salt, groups = digests[0], tuple(digests[1 : 1 + len(GROUPS)])
    options = from_version_1(salt) if version == 1 else Fingerprint(salt, groups)
    return size, mtime, ctime, inode, device, part_size, options


def _text(text: str) -> bytes:
    # Why surrogateescape: a file's name need not be UTF-8, and its bytes must come back as they were.
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<H", len(data)) + data


def _texts(data: bytes, offset: int, count: int) -> Iterator[str]:
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, offset)
        offset += 2
        if offset + length > len(data):
            raise ValueError("a text is cut")
        yield data[offset : offset + length].decode("utf-8", "surrogateescape")
        offset += length
    if offset != len(data):
        raise ValueError(f"{len(data) - offset} bytes too many")
