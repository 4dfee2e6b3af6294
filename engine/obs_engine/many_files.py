"""Many files at a time: small ones over one call, large ones a few calls at a time. Runs in the caller's process.

Threads of its own: one listens to what becomes of small files, a few wait for large ones. Files are read, and results
are handed out, in the calling thread alone. Knows paths, keys and results; does not know requests, parts or journals.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from obs_engine.errors import InvalidArgumentError, ObsEngineError, ServiceError, SourceError
from obs_engine.models import GetResult
from obs_engine.transfer.launch import Call
from obs_engine.transfer.messages import FilePut, FilesPut, MoreFiles, NoMoreFiles, SmallFile

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

LARGE_AT_A_TIME = 3
"""So that one that is being completed, or is slow, leaves no connection idle."""
SMALL_OUTSTANDING_MAX = 4096
"""Small files that were dealt out and not yet told of: enough for batches, little enough to be forgotten."""
GROUP_MAX = 64
"""Of small files that are said at once."""

FilesProgressCallback = Callable[[str, int, int], object]


class FileToUpload(NamedTuple):
    """A file and its key.

    Attributes:
        size_bytes: where it is known, to spare a look at the file; what it is when it is read counts.
    """

    path: str
    key: str
    size_bytes: int | None = None


@dataclass(frozen=True)
class FileResult:
    """What became of one file.

    Attributes:
        path, key: as given.
        size_bytes: of what was sent.
        mtime_ns, inode: of the file that was sent; 0 where it went in parts, or failed.
        etag: without quotes; "" where it failed.
        version_id, request_id: the service's, or "".
        crc64: where it was asked for.
        seconds: that it took.
        parts: 1 for a file that went as one request.
        error: None where it was stored.
    """

    path: str
    key: str
    size_bytes: int
    mtime_ns: int = 0
    inode: int = 0
    etag: str = ""
    version_id: str = ""
    request_id: str = ""
    crc64: int | None = None
    seconds: float = 0.0
    parts: int = 1
    error: ObsEngineError | None = None

    @property
    def is_stored(self) -> bool:
        """Did it arrive?"""
        return self.error is None


class UploadLarge(Protocol):
    """Uploads a file in parts.

    Args:
        record: the name of its journal; None for none.
        callback: as of `uploadFile`.
        on_call: gets the call, by which it can be cancelled.
    """

    def __call__(
        self, file: FileToUpload, record: str | None, callback: Any, on_call: Callable[[Call], object], /
    ) -> GetResult: ...


class _Done(NamedTuple):
    """A large file was stored, or not."""

    number: int
    result: FileResult


class _Progress(NamedTuple):
    """Of a large file."""

    path: str
    stored_bytes: int
    size_bytes: int


def upload_many(
    files: Iterable[FileToUpload | tuple[str, str]],
    begin: Callable[[], Call],
    heard: Callable[[Call], Iterator[Any]],
    upload_large: UploadLarge,
    *,
    part_size_bytes: int,
    checkpoint_folder: str | os.PathLike[str] | None,
    callback: FilesProgressCallback | None,
) -> Iterator[FileResult]:
    """See `ObsClient.uploadFiles`.

    Args:
        begin: a call for small files.
        heard: its messages, as far as they are for us.
        upload_large: one file, and its journal.
    """
    folder = None if checkpoint_folder is None else os.path.abspath(checkpoint_folder)
    if folder is not None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    return _Uploads(begin, heard, upload_large, part_size_bytes, folder, callback).results(files)


class _Uploads:
    """One `uploadFiles`.

    Invariant: every file that was read from the caller is in `_small`, in `_large`, or was yielded.
    """

    def __init__(
        self, begin: Callable[[], Call], heard: Callable[[Call], Iterator[Any]], upload_large: UploadLarge,
        part_size_bytes: int, folder: str | None, callback: FilesProgressCallback | None,
    ) -> None:  # fmt: skip
        self._begin = begin
        self._heard = heard
        self._upload_large = upload_large
        self._part_size_bytes = part_size_bytes
        self._folder = folder
        self._callback = callback
        self._news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._small: dict[int, FileToUpload] = {}
        self._large: set[int] = set()
        self._group: list[SmallFile] = []
        self._call: Call | None = None
        self._calls: dict[int, Call] = {}  # of large files, by number
        self._listener: threading.Thread | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._is_over = threading.Event()

    def results(self, files: Iterable[FileToUpload | tuple[str, str]]) -> Iterator[FileResult]:
        try:
            for number, given in enumerate(files):
                file = _checked(given)
                try:
                    size = os.stat(file.path).st_size if file.size_bytes is None else file.size_bytes
                except (OSError, ValueError) as error:
                    yield _failed(file, 0, _unreadable(file, error))
                    continue
                if size < self._part_size_bytes:
                    self._deal(number, file, size)
                else:
                    self._begin_large(number, file)
                yield from self._news_until_there_is_room()
            self._say_group()
            while self._small or self._large:
                yield from self._hear(self._news.get())
            if self._call is not None:
                self._call.say(NoMoreFiles())
            self._is_over.set()
        finally:
            self._end()

    # --- small ones ---------------------------------------------------------------------------------------------

    def _deal(self, number: int, file: FileToUpload, size: int) -> None:
        if self._call is None:
            self._call = self._begin()
            self._listener = threading.Thread(target=self._listen, args=(self._call,), name="obs-engine files")
            self._listener.start()
        self._group.append(SmallFile(number, os.path.abspath(file.path), file.key, size))
        is_first = not self._small
        self._small[number] = file
        if is_first or len(self._group) >= GROUP_MAX:
            self._say_group()

    def _say_group(self) -> None:
        if self._group and self._call is not None:
            self._call.say(MoreFiles(tuple(self._group)))
            self._group.clear()

    def _listen(self, call: Call) -> None:
        try:
            with call:
                for message in self._heard(call):
                    self._news.put(message)
        except BaseException as error:
            self._news.put(error)

    # --- large ones ---------------------------------------------------------------------------------------------

    def _begin_large(self, number: int, file: FileToUpload) -> None:
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(LARGE_AT_A_TIME, "obs-engine large file")
        self._large.add(number)
        self._pool.submit(self._upload, number, file)

    def _upload(self, number: int, file: FileToUpload) -> None:
        began_s = time.monotonic()

        def tell(stored: int, total: int, _seconds: float) -> None:
            self._news.put(_Progress(file.path, stored, total))

        def begun(call: Call) -> None:
            self._calls[number] = call
            if self._is_over.is_set():
                call.cancel()

        try:
            done = self._upload_large(file, self._record(file), None if self._callback is None else tell, begun)
            self._news.put(_Done(number, _of_large(file, done, time.monotonic() - began_s)))
        except ObsEngineError as error:
            self._news.put(_Done(number, _failed(file, file.size_bytes or 0, error)))
        except BaseException as error:
            self._news.put(error)
        finally:
            self._calls.pop(number, None)

    def _record(self, file: FileToUpload) -> str | None:
        """The name of a file's journal: it is of both, file and key."""
        if self._folder is None:
            return None
        import hashlib

        whose = f"{os.path.abspath(file.path)}\0{file.key}".encode("utf-8", "surrogateescape")
        return os.path.join(self._folder, f"{hashlib.sha256(whose).hexdigest()[:32]}.upload_record")

    # --- news ---------------------------------------------------------------------------------------------------

    def _news_until_there_is_room(self) -> Iterator[FileResult]:
        while True:
            is_full = len(self._small) >= SMALL_OUTSTANDING_MAX or len(self._large) >= 2 * LARGE_AT_A_TIME
            try:
                yield from self._hear(self._news.get(block=is_full))
            except queue.Empty:
                return

    def _hear(self, news: Any) -> Iterator[FileResult]:
        if isinstance(news, BaseException):
            raise news
        if isinstance(news, FilesPut):
            for put in news.files:
                yield _of_small(self._small.pop(put.number), put)
            if not self._small:
                self._say_group()
        elif isinstance(news, _Done):
            self._large.discard(news.number)
            yield news.result
        elif isinstance(news, _Progress) and self._callback is not None:
            self._callback(*news)

    def _end(self) -> None:
        """Whatever is under way is given up; where all is told, there is nothing."""
        is_cut = not self._is_over.is_set()
        self._is_over.set()
        if is_cut:
            for call in (*self._calls.values(), *filter(None, [self._call])):
                call.cancel()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._listener is not None:
            self._listener.join()


def _checked(given: FileToUpload | tuple[str, str]) -> FileToUpload:
    file = given if isinstance(given, FileToUpload) else None
    if file is None and isinstance(given, tuple) and len(given) == 2:
        file = FileToUpload(os.fspath(given[0]), given[1])
    if file is None or not isinstance(file.path, str) or not isinstance(file.key, str):
        raise InvalidArgumentError("files", "FileToUpload, or pairs of a path and a key", repr(given))
    return file


def _of_small(file: FileToUpload, put: FilePut) -> FileResult:
    crc64 = int(put.crc64, 16) if put.crc64 else None
    error = None if put.error is None else put.error.error()
    return FileResult(
        file.path, file.key, put.size_bytes, put.mtime_ns, put.inode, put.etag, put.version_id, put.request_id, crc64,
        put.seconds, 1, error,
    )  # fmt: skip


def _of_large(file: FileToUpload, done: GetResult, seconds: float) -> FileResult:
    report = done.report
    if done.status >= 300:
        error = ServiceError(
            f"object {file.key!r} of {file.path!r}: expected success, found {done.errorCode}: {done.errorMessage}; "
            "with a checkpoint its parts are kept: send it again", status=done.status, errorCode=done.errorCode,
            errorMessage=done.errorMessage, requestId=done.requestId,
        )  # fmt: skip
        return _failed(file, report.size_bytes, error)
    return FileResult(
        file.path, file.key, report.size_bytes, 0, 0, (done.body.etag or "").strip('"'), done.body.versionId or "",
        done.requestId or "", report.crc64, seconds, report.parts,
    )  # fmt: skip


def _failed(file: FileToUpload, size_bytes: int, error: ObsEngineError) -> FileResult:
    return FileResult(file.path, file.key, size_bytes, request_id=error.requestId or "", parts=0, error=error)


def _unreadable(file: FileToUpload, error: Exception) -> SourceError:
    found = getattr(error, "strerror", None) or str(error)
    return SourceError(f"upload {file.path!r}: expected a file, found {found}; leave it out, or restore it")
