"""Records of a journal, and their bytes. The format is JOURNAL.md; this module is its only reader and writer."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

MAGIC = b"\x89OBSENG\n"  # Why 0x89 and a newline: a text-mode copy or a 7-bit channel damages them visibly
VERSION = 1
BYTE_ORDER_MARK = 0x0102

_HEADER = struct.Struct("<8sHHI")
_FRAME = struct.Struct("<IHBB")
_NUMBERS = struct.Struct("<QqqQQQ")
_PART = struct.Struct("<I")
_NO_DIGEST = bytes(16)

HEADER_BYTES = _HEADER.size
FRAME_BYTES = _FRAME.size
DATA_MAX_BYTES = 16 * 1024


@dataclass(frozen=True)
class Binding:
    """The first record: which upload this journal belongs to.

    Attributes:
        bucket, key, endpoint: the target, the endpoint as `scheme://host[:port]`.
        path: absolute path of the file, for people; not compared, a file may be moved.
        size_bytes, mtime_ns, ctime_ns, inode, device: identity of the file.
        part_size_bytes: the plan; part n covers bytes from (n-1) * part_size_bytes.
        options_digest: 16 bytes over the options that change the object; never the options themselves.
        content_digest: 16 bytes over the file's content with `checkSum`, else empty.
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
    options_digest: bytes
    content_digest: bytes = b""

    @property
    def target(self) -> tuple[str, str, str]:
        return self.endpoint, self.bucket, self.key

    @property
    def part_count(self) -> int:
        return max(1, -(-self.size_bytes // self.part_size_bytes))


@dataclass(frozen=True)
class Initiated:
    """The service gave an upload id."""

    upload_id: str


@dataclass(frozen=True)
class PartStored:
    """The service acknowledged a part; its ETag exactly as given."""

    part_number: int
    etag: str


@dataclass(frozen=True)
class Completed:
    """The service has assembled the object. What remains is to remove the journal."""


Record = Binding | Initiated | PartStored | Completed

_BINDING, _INITIATED, _PART_STORED, _COMPLETED = 1, 2, 3, 4


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


def decode(data: bytes, offset: int) -> tuple[Record, int]:
    """The record at `offset`, and the offset behind it.

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
        return _unpack(kind, data[offset + FRAME_BYTES : end]), end
    except (struct.error, UnicodeDecodeError, IndexError, ValueError) as error:
        raise UnreadableRecord(f"type {kind}: {error}") from None


def _pack(record: Record) -> tuple[int, bytes]:
    if isinstance(record, PartStored):
        return _PART_STORED, _PART.pack(record.part_number) + _text(record.etag)
    if isinstance(record, Initiated):
        return _INITIATED, _text(record.upload_id)
    if isinstance(record, Completed):
        return _COMPLETED, b""
    numbers = _NUMBERS.pack(
        record.size_bytes, record.mtime_ns, record.ctime_ns, record.inode, record.device, record.part_size_bytes
    )
    assert len(record.options_digest) == 16
    assert len(record.content_digest) in (0, 16)
    texts = b"".join(map(_text, (record.bucket, record.key, record.endpoint, record.path)))
    return _BINDING, numbers + record.options_digest + (record.content_digest or _NO_DIGEST) + texts


def _unpack(kind: int, data: bytes) -> Record:
    if kind == _PART_STORED:
        (number,) = _PART.unpack_from(data)
        (etag,) = _texts(data, _PART.size, 1)
        return PartStored(number, etag)
    if kind == _INITIATED:
        return Initiated(*_texts(data, 0, 1))
    if kind == _COMPLETED:
        return Completed()
    if kind == _BINDING:
        size, mtime, ctime, inode, device, part_size = _NUMBERS.unpack_from(data)
        options, content = data[_NUMBERS.size :][:16], data[_NUMBERS.size + 16 :][:16]
        bucket, key, endpoint, path = _texts(data, _NUMBERS.size + 32, 4)
        if part_size < 1:
            raise ValueError("a part size below 1")
        content = b"" if content == _NO_DIGEST else content
        return Binding(bucket, key, endpoint, path, size, mtime, ctime, inode, device, part_size, options, content)
    raise ValueError("unknown type")


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
