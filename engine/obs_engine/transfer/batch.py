"""Small files on their way, one request each, one after the other over one connection. Runs in a worker.

Why in batches: a file of some KB costs its request, and what is said of it between processes should be next to nothing.
The files of a batch are opened and digested together, side by side where the kernel of the digest has lanes, then sent.
The first that fails ends the batch: what is to be done about that is the coordinator's business.
"""

from __future__ import annotations

import os
import stat
from base64 import b64encode
from collections.abc import Generator
from typing import NamedTuple

from obs_engine.errors import (
    IntegrityError,
    ObsEngineError,
    SourceChangedError,
    SourceError,
    SourceNotFoundError,
    SourceUnreadableError,
)
from obs_engine.source.filesystem import choose_reader
from obs_engine.source.window import MemoryWindow, Window, open_window
from obs_engine.transfer.messages import (
    BatchDone,
    BatchTask,
    ErrorInfo,
    FilePut,
    OpenUpload,
    SmallFile,
    TaskFailed,
    TaskReplied,
)
from obs_engine.wire.content_types import content_type_of
from obs_engine.wire.replies import Reply
from obs_engine.wire.requests import Request, crc64_header, put_object

_IN_MEMORY_MAX_BYTES = 256 << 10
"""A file up to here is read at once: cheaper than mapping it, and of one moment."""
_STEP_BYTES = 512 << 10
_NO_DIGEST = ""


class _Loaded(NamedTuple):
    """A file, open for sending.

    Attributes:
        found: what it was when it was opened.
        descriptor: that the window reads by; -1 for none.
    """

    file: SmallFile
    window: Window
    found: os.stat_result
    descriptor: int = -1

    def close(self) -> None:
        self.window.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)


class Batch:
    """The files of one task."""

    def __init__(self, task: BatchTask, known: OpenUpload) -> None:
        self.task = task
        self._known = known
        self._loaded: list[_Loaded] = []
        self._digests: tuple[str, ...] = ()
        self._stored: list[FilePut] = []
        self._failure: ObsEngineError | None = None  # of the file after those that are loaded

    def load(self) -> None:
        """Opens the files, up to the first that cannot be sent."""
        for file in self.task.files:
            try:
                self._loaded.append(_load(file, self._known.reader))
            except ObsEngineError as error:
                self._failure = error
                return

    def digests(self) -> Generator[None, None, tuple[str, ...]]:
        """What each file is to be proven by: MD5 or CRC-64 in hex digits, in steps."""
        if self._known.is_crc64:
            from obs_engine.digests import crc64

            found = []
            for loaded in self._loaded:
                value, window = 0, loaded.window
                for offset in range(0, len(window), _STEP_BYTES):
                    value = crc64(window[offset : min(offset + _STEP_BYTES, len(window))], value)
                    yield
                found.append(f"{value:016x}")
            return tuple(found)
        from obs_engine.digests import Md5, md5_update_many

        windows = [loaded.window for loaded in self._loaded]
        hashers = [Md5() for _ in windows]
        for offset in range(0, max(map(len, windows), default=0), _STEP_BYTES):
            rows = [
                (hasher, window[offset : min(offset + _STEP_BYTES, len(window))])
                for hasher, window in zip(hashers, windows, strict=True)
                if offset < len(window)
            ]
            md5_update_many([hasher for hasher, _ in rows], [piece for _, piece in rows])
            yield
        return tuple(hasher.hexdigest() for hasher in hashers)

    def proven_by(self, digests: tuple[str, ...]) -> None:
        self._digests = digests

    def next(self) -> tuple[Request, Window] | None:
        """The next request, and the file's bytes; None where there is none."""
        if len(self._stored) == len(self._loaded):
            return None
        known, (file, window, _, _) = self._known, self._loaded[len(self._stored)]
        headers = [*known.part_headers]
        kind = content_type_of(file.key)
        if kind is not None and not any(name.lower() == "content-type" for name, _ in headers):
            headers.append(("Content-Type", kind))
        digest = self._digest
        if known.is_crc64:
            headers.append(crc64_header(known.target.signature, int(digest, 16)))
        elif known.is_md5:
            headers.append(("Content-MD5", b64encode(bytes.fromhex(digest)).decode()))
        return put_object(known.bucket, file.key, len(window), tuple(headers)), window

    def judge(self, result: Reply | ObsEngineError, seconds: float) -> BatchDone | None:
        """What came of it; the outcome of the batch where that ends it."""
        file, was = self._loaded[len(self._stored)].file, self._loaded[len(self._stored)].found
        if isinstance(result, Reply) and result.status == 200:
            wrong = self._wrong(file, was, result)
            if wrong is None:
                self._loaded[len(self._stored)].close()
                self._stored.append(self._put(file, was, result, seconds))
                return self.end() if len(self._stored) == len(self._loaded) else None
            result = wrong
        return self.end(result)

    def end(self, result: Reply | ObsEngineError | None = None) -> BatchDone:
        """The outcome: so many are stored, and the next one has failed, or there is none."""
        self.close()
        task, failed = self.task.task, result if result is not None else self._failure
        rest: TaskReplied | TaskFailed | None = None
        if failed is not None:
            is_reply = isinstance(failed, Reply)
            rest = TaskReplied(task, failed) if is_reply else TaskFailed(task, ErrorInfo.of(failed))  # type: ignore[arg-type]
        return BatchDone(task, tuple(self._stored), rest)

    def close(self) -> None:
        """Gives up what is open."""
        for loaded in self._loaded[len(self._stored) :]:
            loaded.close()

    @property
    def _digest(self) -> str:
        return self._digests[len(self._stored)] if self._digests else _NO_DIGEST

    def _wrong(self, file: SmallFile, was: os.stat_result, reply: Reply) -> ObsEngineError | None:
        """What speaks against a success."""
        try:
            now = os.stat(file.path)
        except OSError:
            now = None
        if now is None or _identity(now) != _identity(was):
            return SourceChangedError(
                f"upload {file.path!r}: expected the file to stay as it was, found it changed while it was sent; send "
                "it again when it is at rest"
            )
        etag, digest = (reply.header("etag") or "").strip('"').lower(), self._digest
        is_compared = self._known.is_md5 and not self._known.is_crc64 and len(etag) == len(digest)
        if is_compared and etag != digest and not any("server-side-encryption" in name for name, _ in reply.headers):
            return IntegrityError(
                f"object {self._known.bucket}/{file.key}: expected ETag {digest}, found {etag}; what arrived is not "
                "what was sent",
                is_retryable=True,
            )
        told = reply.own_header("checksum-crc64ecma")
        if self._known.is_crc64 and told not in (None, str(int(digest, 16))):
            return IntegrityError(
                f"object {self._known.bucket}/{file.key}: expected CRC-64 {int(digest, 16)}, found {told} there",
                is_retryable=True,
            )
        return None

    def _put(self, file: SmallFile, was: os.stat_result, reply: Reply, seconds: float) -> FilePut:
        return FilePut(
            file.number, was.st_size, was.st_mtime_ns, was.st_ino, (reply.header("etag") or "").strip('"'),
            reply.own_header("version-id") or "", reply.own_header("request-id") or "",
            self._digest if self._known.is_crc64 else "", round(seconds, 6),
        )  # fmt: skip


def _load(file: SmallFile, reader: str) -> _Loaded:
    path = file.path
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise SourceNotFoundError(f"upload {path!r}: expected a file, found none; it was there a moment ago") from None
    except OSError as error:
        raise SourceUnreadableError(f"upload {path!r}: expected a readable file, found {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise SourceError(f"upload {path!r}: expected a regular file, found another kind; leave it out")
        if found.st_size <= _IN_MEMORY_MAX_BYTES:
            data = os.pread(descriptor, found.st_size + 1, 0)
            if len(data) != found.st_size:
                raise SourceChangedError(f"upload {path!r}: expected {found.st_size} bytes, found its size changing")
            return _Loaded(file, MemoryWindow(data), found)
        how = choose_reader(found.st_dev) if reader == "auto" else reader
        window = open_window(descriptor, 0, found.st_size, how, step_bytes=_STEP_BYTES)
        descriptor, kept = -1, descriptor
        return _Loaded(file, window, found, kept)
    except OSError as error:
        raise SourceUnreadableError(f"upload {path!r}: expected a readable file, found {error.strerror}") from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev
