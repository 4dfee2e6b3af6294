"""Buckets, objects, uploads and parts on disk; every change is one rename, so a killed server loses nothing whole.

    DIR/lock                                   held while a server owns the directory
    DIR/buckets/NAME/bucket.json
    DIR/buckets/NAME/objects/SHA256(key).json  a manifest: attributes, and the files that make up the object
    DIR/buckets/NAME/uploads/ID.json           an upload in progress: key and attributes
    DIR/buckets/NAME/data/ID/NUMBER.SEQUENCE.MD5.CRC64   a whole part; its name is all its metadata
    DIR/buckets/NAME/data/ID                   (a file) the bytes of an object put in one request
    …/incoming.N                               being received; removed at the next start

Complete copies no bytes: it writes a manifest that names the parts' files. The index in memory is only what a scan of
the directory at start-up gives, kept current. Survives the death of the process at any instruction; not a power cut
(nothing here is synced: this is a test server). Knows no HTTP.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import secrets
import shutil
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from obs_engine import digests
from obs_engine.errors import InvalidArgumentError
from obs_engine.testing.replies import FileSpan

FORMAT = 1
_INCOMING = "incoming."


@dataclass(frozen=True)
class Attributes:
    """What an object carries beside its bytes, in the service's own words (class names as `obs` spells them)."""

    content_type: str | None = None
    acl: str | None = None
    storage_class: str = "STANDARD"
    metadata: dict[str, str] = field(default_factory=dict)
    standard: dict[str, str] = field(default_factory=dict)
    """Cache-Control and its like, by their HTTP names."""
    own: dict[str, str] = field(default_factory=dict)
    """Headers to be echoed behind the mode's prefix, e.g. `website-redirect-location`."""


@dataclass(frozen=True)
class Part:
    """A whole part. `number` from 1; `name` is its file's path under the bucket's data."""

    number: int
    etag: str
    size_bytes: int
    crc64: int | None
    modified_s: float
    name: str


@dataclass
class Upload:
    """A multipart upload in progress."""

    id: str
    key: str
    initiated_s: float
    attributes: Attributes
    parts: dict[int, Part] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredObject:
    """A whole object; `files` are (name under data, bytes) in order."""

    key: str
    etag: str
    size_bytes: int
    modified_s: float
    attributes: Attributes
    data_id: str
    upload_id: str | None
    crc64: int | None
    files: Sequence[tuple[str, int]]

    def part(self, number: int) -> tuple[int, int] | None:
        """The half-open range of a part's bytes, by the number it was uploaded under; None where there is none.

        An object put in one request is its own part 1. Why from the files' names: they say it after a restart, too.
        """
        start = 0
        for name, size in self.files:
            if number == (1 if self.upload_id is None else _part_number(name)):
                return start, start + size
            start += size
        return None

    def spans(self, data: str, start: int, length: int) -> Iterator[FileSpan]:
        """The files' pieces that make up `length` bytes from `start`."""
        for name, size in self.files:
            if length <= 0:
                return
            if start < size:
                taken = min(size - start, length)
                yield FileSpan(f"{data}/{name}", start, taken)
                length -= taken
            start = max(0, start - size)


@dataclass
class Bucket:
    """A bucket's index. `keys` is sorted."""

    name: str
    root: str
    created_s: float
    region: str | None = None
    storage_class: str = "STANDARD"
    objects: dict[str, StoredObject] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    uploads: dict[str, Upload] = field(default_factory=dict)

    @property
    def data(self) -> str:
        """The directory of all bytes."""
        return f"{self.root}/data"

    def keys_after(self, marker: str, prefix: str) -> Iterator[str]:
        """Keys above `marker` that begin with `prefix`, in order."""
        index = max(bisect_right(self.keys, marker), bisect_left(self.keys, prefix))
        for position in range(index, len(self.keys)):
            if not self.keys[position].startswith(prefix):
                return
            yield self.keys[position]


class Incoming:
    """A file being received: invisible until committed, gone if not."""

    __slots__ = ("_fd", "path", "size_bytes")

    def __init__(self, path: str) -> None:
        self.path = path
        self.size_bytes = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(self, data: memoryview) -> None:
        """Appends; all of it or OSError."""
        while data:
            written = os.pwrite(self._fd, data, self.size_bytes)
            self.size_bytes += written
            data = data[written:]

    def flip(self, offset: int, mask: int) -> None:
        """Damages one of the received bytes, for a fault rule."""
        _flip(self._fd, offset, mask)

    def commit(self, path: str) -> None:
        """Becomes `path`. Durable against a kill from here."""
        os.close(self._fd)
        self._fd = -1
        os.rename(self.path, path)

    def discard(self) -> None:
        """Removes what was received; harmless after a commit."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


class Store:
    """All buckets of one data directory, owned by one server at a time.

    Args:
        directory: created where missing.
        now: seconds since 1970.

    Raises:
        InvalidArgumentError: not a directory, not writable, another server's, or of another format.
    """

    def __init__(self, directory: str | os.PathLike[str], now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._root = os.path.abspath(directory)
        self._counter = itertools.count()
        self._sequence = 0
        self._pins: dict[tuple[str, str], int] = {}
        self._doomed: set[tuple[str, str]] = set()
        self.buckets: dict[str, Bucket] = {}
        try:
            os.makedirs(f"{self._root}/buckets", exist_ok=True)
            self._lock = os.open(f"{self._root}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise InvalidArgumentError(
                "data directory", "a directory that can be created and written", str(directory),
                f"{error.strerror}; choose another with --data",
            ) from None  # fmt: skip
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise InvalidArgumentError(
                "data directory", "one that no other server uses", str(directory), "stop that server, or use another"
            ) from None
        try:
            self._load()
        except (OSError, ValueError, KeyError, TypeError) as error:
            os.close(self._lock)
            raise InvalidArgumentError(
                "data directory", f"files of a server of format {FORMAT}", str(directory),
                f"reading it failed ({type(error).__name__}: {error}); move it away or use another",
            ) from None  # fmt: skip

    def close(self) -> None:
        """Lets go of the directory; once is enough."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- buckets ------------------------------------------------------------------------------------------------

    def create_bucket(self, name: str, region: str | None = None, storage_class: str = "STANDARD") -> Bucket:
        """Makes an empty bucket; the name must be valid and free."""
        assert name not in self.buckets
        root = f"{self._root}/buckets/{name}"
        bucket = Bucket(name, root, self._now(), region, storage_class)
        making = f"{self._root}/{_INCOMING}{next(self._counter)}"
        for room in ("objects", "uploads", "data"):
            os.makedirs(f"{making}/{room}")
        record = {"format": FORMAT, "created_s": bucket.created_s, "region": region, "storage_class": storage_class}
        Path(f"{making}/bucket.json").write_text(json.dumps(record), "utf-8")
        os.rename(making, root)
        self.buckets[name] = bucket
        return bucket

    def delete_bucket(self, bucket: Bucket) -> None:
        """Removes an empty bucket."""
        assert not bucket.objects, "only an empty bucket is removed"
        assert not bucket.uploads, "only an empty bucket is removed"
        doomed = f"{self._root}/{_INCOMING}{next(self._counter)}"
        os.rename(bucket.root, doomed)
        del self.buckets[bucket.name]
        shutil.rmtree(doomed, ignore_errors=True)

    # --- uploads ------------------------------------------------------------------------------------------------

    def initiate(self, bucket: Bucket, key: str, attributes: Attributes) -> Upload:
        """Begins an upload; its id is 32 hex digits, as the service's."""
        upload = Upload(secrets.token_hex(16).upper(), key, self._now(), attributes)
        os.mkdir(f"{bucket.data}/{upload.id}")
        record = {"key": key, "initiated_s": upload.initiated_s, "attributes": asdict(attributes)}
        self._write_json(bucket, f"uploads/{upload.id}.json", record)
        bucket.uploads[upload.id] = upload
        return upload

    def receive_part(self, bucket: Bucket, upload_id: str) -> Incoming:
        """Opens a file for the bytes of a part."""
        return Incoming(f"{bucket.data}/{upload_id}/{_INCOMING}{next(self._counter)}")

    def add_part(
        self, bucket: Bucket, upload: Upload, number: int, incoming: Incoming, etag: str, crc64: int | None
    ) -> Part:
        """Makes a received part visible; it takes the place of an older one of the same number."""
        # Why not the time alone: a clock may be set back, and the newer of two parts must sort last at a start-up.
        self._sequence = sequence = max(self._sequence + 1, time.time_ns())
        crc = "-" if crc64 is None else f"{crc64:016x}"
        name = f"{upload.id}/{number:05d}.{sequence:016x}.{etag}.{crc}"
        incoming.commit(f"{bucket.data}/{name}")
        part = Part(number, etag, incoming.size_bytes, crc64, self._now(), name)
        older = upload.parts.get(number)
        upload.parts[number] = part
        if older is not None:
            os.unlink(f"{bucket.data}/{older.name}")
        return part

    def spoil_part(self, bucket: Bucket, part: Part, offset: int, mask: int) -> tuple[str, int]:
        """Damages one byte of a stored part, for a fault rule; returns MD5 and CRC-64 of what it is now."""
        descriptor = os.open(f"{bucket.data}/{part.name}", os.O_RDWR | os.O_CLOEXEC)
        md5, crc = hashlib.md5(usedforsecurity=False), 0
        with open(descriptor, "rb") as file:
            _flip(descriptor, offset, mask)
            while piece := file.read(1 << 20):
                md5.update(piece)
                crc = digests.crc64(piece, crc)
        return md5.hexdigest(), crc

    def complete(
        self, bucket: Bucket, upload: Upload, parts: Sequence[Part], etag: str, crc64: int | None
    ) -> StoredObject:
        """Turns listed parts into an object without copying; unlisted parts are deleted."""
        stored = StoredObject(
            upload.key, etag, sum(p.size_bytes for p in parts), self._now(), upload.attributes, upload.id, upload.id,
            crc64, [(p.name, p.size_bytes) for p in parts],
        )  # fmt: skip
        self._put(bucket, stored)
        # Invariant: the manifest is in place, so a start-up that still finds the upload's record knows it is over.
        self._forget_upload(bucket, upload)
        listed = {p.number for p in parts}
        for part in upload.parts.values():
            if part.number not in listed:
                os.unlink(f"{bucket.data}/{part.name}")
        return stored

    def abort(self, bucket: Bucket, upload: Upload) -> None:
        """Forgets an upload and its parts."""
        self._forget_upload(bucket, upload)
        shutil.rmtree(f"{bucket.data}/{upload.id}", ignore_errors=True)

    # --- objects ------------------------------------------------------------------------------------------------

    def receive_object(self, bucket: Bucket) -> Incoming:
        """Opens a file for the bytes of an object put in one request."""
        return Incoming(f"{bucket.data}/{_INCOMING}{next(self._counter)}")

    def add_object(
        self, bucket: Bucket, key: str, incoming: Incoming, etag: str, crc64: int | None, attributes: Attributes
    ) -> StoredObject:
        """Makes a received object visible, in place of an older one."""
        data_id = secrets.token_hex(16).upper()
        incoming.commit(f"{bucket.data}/{data_id}")
        size = incoming.size_bytes
        stored = StoredObject(key, etag, size, self._now(), attributes, data_id, None, crc64, [(data_id, size)])
        self._put(bucket, stored)
        return stored

    def delete_object(self, bucket: Bucket, key: str) -> None:
        """Removes an object if it is there."""
        stored = bucket.objects.pop(key, None)
        if stored is not None:
            os.unlink(_manifest(bucket, key))
            del bucket.keys[bisect_left(bucket.keys, key)]
            self._remove_data(bucket, stored.data_id)

    def pin(self, bucket: Bucket, stored: StoredObject) -> tuple[str, str]:
        """Keeps an object's bytes while they are streamed, though it be deleted or replaced; see `unpin`."""
        pinned = (bucket.data, stored.data_id)
        self._pins[pinned] = self._pins.get(pinned, 0) + 1
        return pinned

    def unpin(self, pinned: tuple[str, str]) -> None:
        """Ends one `pin`."""
        self._pins[pinned] -= 1
        if not self._pins[pinned]:
            del self._pins[pinned]
            if pinned in self._doomed:
                self._doomed.remove(pinned)
                _remove(f"{pinned[0]}/{pinned[1]}")

    # --- inside -------------------------------------------------------------------------------------------------

    def _put(self, bucket: Bucket, stored: StoredObject) -> None:
        record = {**asdict(stored), "files": list(stored.files)}
        self._write_json(bucket, os.path.relpath(_manifest(bucket, stored.key), bucket.root), record)
        older = bucket.objects.get(stored.key)
        bucket.objects[stored.key] = stored
        if older is None:
            insort(bucket.keys, stored.key)
        else:
            self._remove_data(bucket, older.data_id)

    def _remove_data(self, bucket: Bucket, data_id: str) -> None:
        if (bucket.data, data_id) in self._pins:
            self._doomed.add((bucket.data, data_id))
        else:
            _remove(f"{bucket.data}/{data_id}")

    def _forget_upload(self, bucket: Bucket, upload: Upload) -> None:
        del bucket.uploads[upload.id]
        os.unlink(f"{bucket.root}/uploads/{upload.id}.json")

    def _write_json(self, bucket: Bucket, name: str, record: dict[str, Any]) -> None:
        path = f"{bucket.root}/{_INCOMING}{next(self._counter)}"
        with open(path, "wb") as file:
            file.write(json.dumps(record).encode())
        os.rename(path, f"{bucket.root}/{name}")

    def _load(self) -> None:
        _remove_incoming(self._root)
        for entry in os.scandir(f"{self._root}/buckets"):
            record = json.loads(Path(entry.path, "bucket.json").read_text("utf-8"))
            if record["format"] != FORMAT:
                raise ValueError(f"bucket {entry.name} has format {record['format']}")
            bucket = Bucket(entry.name, entry.path, record["created_s"], record["region"], record["storage_class"])
            _remove_incoming(bucket.root)
            self._load_objects(bucket)
            self._load_uploads(bucket)
            self._remove_orphans(bucket)
            self.buckets[bucket.name] = bucket

    @staticmethod
    def _load_objects(bucket: Bucket) -> None:
        for entry in os.scandir(f"{bucket.root}/objects"):
            record = json.loads(Path(entry.path).read_text("utf-8"))
            record["attributes"] = Attributes(**record["attributes"])
            record["files"] = [(name, size) for name, size in record["files"]]
            stored = StoredObject(**record)
            bucket.objects[stored.key] = stored
        bucket.keys = sorted(bucket.objects)

    def _load_uploads(self, bucket: Bucket) -> None:
        finished = {stored.upload_id for stored in bucket.objects.values()}
        for entry in os.scandir(f"{bucket.root}/uploads"):
            upload_id = entry.name.removesuffix(".json")
            directory = f"{bucket.data}/{upload_id}"
            if upload_id in finished or not os.path.isdir(directory):
                os.unlink(entry.path)
                continue
            record = json.loads(Path(entry.path).read_text("utf-8"))
            upload = Upload(upload_id, record["key"], record["initiated_s"], Attributes(**record["attributes"]))
            _remove_incoming(directory)
            for item in sorted(os.scandir(directory), key=lambda found: found.name):
                number, sequence, etag, crc = item.name.split(".")
                self._sequence = max(self._sequence, int(sequence, 16))
                status = item.stat()
                older = upload.parts.get(int(number))
                if older is not None:
                    os.unlink(f"{bucket.data}/{older.name}")
                upload.parts[int(number)] = Part(
                    int(number), etag, status.st_size, None if crc == "-" else int(crc, 16), status.st_mtime,
                    f"{upload_id}/{item.name}",
                )  # fmt: skip
            bucket.uploads[upload_id] = upload

    @staticmethod
    def _remove_orphans(bucket: Bucket) -> None:
        wanted = {stored.data_id: stored for stored in bucket.objects.values()}
        for entry in os.scandir(bucket.data):
            if entry.name in bucket.uploads:
                continue
            stored = wanted.get(entry.name)
            if stored is None:
                _remove(entry.path)
            elif entry.is_dir():
                named = {os.path.basename(name) for name, _ in stored.files}
                for item in os.scandir(entry.path):
                    if item.name not in named:
                        os.unlink(item.path)


def _manifest(bucket: Bucket, key: str) -> str:
    return f"{bucket.root}/objects/{hashlib.sha256(key.encode()).hexdigest()}.json"


def _part_number(name: str) -> int:
    return int(name.rpartition("/")[2].partition(".")[0])


def _flip(descriptor: int, offset: int, mask: int) -> None:
    os.pwrite(descriptor, bytes([os.pread(descriptor, 1, offset)[0] ^ mask]), offset)


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _remove_incoming(directory: str) -> None:
    for entry in os.scandir(directory):
        if entry.name.startswith(_INCOMING):
            _remove(entry.path)
