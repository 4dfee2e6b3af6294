"""A worker: maps a window for each part and streams it to the service, many at a time.

Runs in a process of its own, forked by the coordinator's pool. Knows the uploads it was told of and the tasks in
flight. Does not know plans, journals, retries, other workers, or the time of day: each task brings what it needs.
Ends when the coordinator's socket closes.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from obs_engine.errors import IntegrityError, ObsEngineError, SourceChangedError, SourceError, TransportError
from obs_engine.source.window import Window, open_window
from obs_engine.transfer.bandwidth import Allowance
from obs_engine.transfer.batch import Batch
from obs_engine.transfer.comparison import Comparison
from obs_engine.transfer.follower import Follower, follow
from obs_engine.transfer.messages import (
    Allow,
    BatchDone,
    BatchTask,
    CancelTask,
    CloseUpload,
    CompareTask,
    Crc64Task,
    CreditWanted,
    Decoder,
    ErrorInfo,
    HashDone,
    HashTask,
    InFlight,
    Logged,
    Md5Task,
    OpenUpload,
    Outcome,
    PartStoredReply,
    PartTask,
    RequestTask,
    TaskFailed,
    TaskReplied,
    encode,
)
from obs_engine.transfer.pieces import HashedWindow, Pieces
from obs_engine.transfer.spread import Spread
from obs_engine.transfer.transport import Sink, Transport
from obs_engine.wire.replies import Reply
from obs_engine.wire.requests import Request, crc64_header, finish, get_object, upload_part, with_headers

_RECEIVE_BYTES = 1 << 20
_HASH_STEP_BYTES = 2 << 20
_MD5_STEP_BYTES = 512 << 10
_COMPARE_STEP_BYTES = 256 << 10
_KEPT_BYTES = 64 << 20
"""Of parts that are read twice, digested and sent, mapped pages that may stay for the second time."""
_DIGEST_TURN_S = 0.002
"""So long transfers may wait for digests."""
_SHOW_INTERVAL_S = 0.05

_Digesting = Generator[None, None, tuple[str, ...]]
"""A digest on its way: each step does a piece, the end is the digests."""
_DigestTask = TypeVar("_DigestTask", HashTask, Md5Task, Crc64Task)
_OnDigests = Callable[[tuple[str, ...] | ObsEngineError], None]


class Worker:
    """The event loop of one worker and what it owns: transfers in flight, open files, windows."""

    def __init__(self, channel: socket.socket, connections_max: int) -> None:
        self._channel = channel
        channel.setblocking(False)
        self._decoder = Decoder()
        self._outgoing = bytearray()
        self._poller = select.epoll()
        self._wanted = select.EPOLLIN
        self._poller.register(channel.fileno(), self._wanted)
        self._allowance = Allowance()
        self._transport = Transport(self._poller, self._allowance, connections_max)
        self._uploads: dict[int, _OpenFile] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            Allow: self._allow,
            OpenUpload: self._open,
            CloseUpload: self._close,
            CancelTask: self._cancel,
            PartTask: self._send_part,
            RequestTask: self._send_request,
            BatchTask: self._send_batch,
            CompareTask: self._compare,
            HashTask: lambda task: self._digest(task, _pieces),
            Md5Task: lambda task: self._digest(task, _md5s),
            Crc64Task: lambda task: self._digest(task, _crc64_of_range),
        }
        self._digesting: dict[int, tuple[_OpenFile, _Digesting, _OnDigests]] = {}
        self._followers: dict[int, Follower] = {}  # by task
        self._batches: dict[int, Batch] = {}  # by task
        self._spreads: dict[tuple[str, int], Spread] = {}  # by host and port
        self._shown_s = 0.0

    def run(self) -> None:
        """Works until the coordinator is gone."""
        channel = self._channel.fileno()
        while True:
            timeout = 0 if self._digesting else self._transport.timeout_s()
            events = self._poller.poll(timeout)
            if not events or timeout == 0:
                self._transport.on_timeout()
            for descriptor, mask in events:
                if descriptor == channel:
                    if mask & (select.EPOLLIN | select.EPOLLHUP) and not self._receive():
                        return
                else:
                    self._transport.on_event(descriptor, mask)
            self._follow_on()
            self._transport.finish_transfers()
            self._digest_on()
            self._show_in_flight()
            if self._allowance.ask():
                self._say(CreditWanted())
            self._flush()

    def _receive(self) -> bool:
        try:
            data = self._channel.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        for message in self._decoder.feed(data):
            self._handlers[type(message)](message)
        return bool(data)

    def _say(self, message: Outcome | InFlight | Logged | CreditWanted) -> None:
        self._outgoing += encode(message)

    def _flush(self) -> None:
        if self._outgoing:
            try:
                sent = self._channel.send(self._outgoing)
            except BlockingIOError:
                sent = 0
            except ConnectionError:
                return  # the next turn reads the end of the channel
            del self._outgoing[:sent]
            wanted = select.EPOLLIN | (select.EPOLLOUT if self._outgoing else 0)
            if wanted != self._wanted:
                self._wanted = wanted
                self._poller.modify(self._channel.fileno(), wanted)

    def _allow(self, message: Allow) -> None:
        self._allowance.grant(message.size)
        self._transport.go_on()

    def _open(self, message: OpenUpload) -> None:
        known = self._uploads.get(message.upload)
        self._uploads[message.upload] = _OpenFile(message) if known is None else known.renewed(message)

    def _close(self, message: CloseUpload) -> None:
        upload = self._uploads.pop(message.upload, None)
        if upload is not None:
            digesting = [task for task, (owner, _, _) in self._digesting.items() if owner is upload]
            for task in {*digesting, *upload.in_flight}:
                self._give_up(upload, task)
            upload.close()

    def _cancel(self, message: CancelTask) -> None:
        upload = self._uploads.get(message.upload)
        if upload is not None:
            self._give_up(upload, message.task)

    def _give_up(self, upload: _OpenFile, task: int) -> None:
        """Whatever stage it is at; nothing where it is over."""
        self._digesting.pop(task, None)
        token, window = upload.in_flight.pop(task, (None, None))
        if token is not None:
            self._transport.cancel(token)
        if window is not None:
            window.close()
        batch = self._batches.pop(task, None)
        if batch is not None:
            batch.close()
        self._stop_following(task)

    @property
    def _busy(self) -> int:
        """Transfers and digests in hand."""
        return len(self._digesting) + sum(len(upload.in_flight) for upload in self._uploads.values())

    def _send_part(self, task: PartTask) -> None:
        upload = self._uploads[task.upload]
        is_crc64 = upload.known.is_crc64
        try:
            step_bytes = self._transport.buffer_bytes(upload.known.transport)
            keeps_pages = is_crc64 and task.length * (1 + self._busy) <= _KEPT_BYTES
            window: Window = upload.window(task.offset, task.length, step_bytes, keeps_pages=keeps_pages)
            if task.is_md5:
                self._followers[task.task] = Follower(task, upload.window(task.offset, task.length, step_bytes))
        except ObsEngineError as error:
            self._say(TaskFailed(task.task, ErrorInfo.of(error)))
            return
        if not is_crc64:
            self._stream_part(upload, task, window, None)
            return

        def on_crc64(found: tuple[str, ...] | ObsEngineError) -> None:
            if isinstance(found, ObsEngineError):
                window.close()
                self._say(TaskFailed(task.task, ErrorInfo.of(found)))
            else:
                self._stream_part(upload, task, window, int(found[0], 16))

        # Why before: the service wants the sum in a header.
        self._begin_digest(upload, task.task, _crc64(window), on_crc64)

    def _stream_part(self, upload: _OpenFile, task: PartTask, window: Window, crc64: int | None) -> None:
        known = upload.known
        if task.is_hashed:
            window = HashedWindow(window, task.offset)
        checked = [] if crc64 is None else [crc64_header(known.target.signature, crc64)]
        if task.content_md5:
            checked.append(("Content-MD5", task.content_md5))
        request = upload_part(
            known.bucket, known.key, task.upload_id, task.part_number, task.length, (*known.part_headers, *checked)
        )

        def on_done(result: Reply | ObsEngineError) -> None:
            window.close()
            self._show_in_flight(is_forced=True)
            pieces = window.digests() if isinstance(window, HashedWindow) else ()
            self._say(self._part_outcome(known, task, crc64, pieces, result))
            self._stop_following(task.task)

        self._start(upload, task.task, request, task.now_s, on_done, window, is_fresh=task.is_fresh)

    def _part_outcome(
        self, known: OpenUpload, task: PartTask, crc64: int | None, pieces: tuple[str, ...],
        result: Reply | ObsEngineError,
    ) -> Outcome:  # fmt: skip
        etag = result.header("etag") if isinstance(result, Reply) and result.status == 200 else None
        if etag is None:
            return _outcome(task.task, result)
        assert isinstance(result, Reply)
        told = result.own_header("checksum-crc64ecma")
        if crc64 is not None and told not in (None, str(crc64)):
            return TaskFailed(task.task, ErrorInfo.of(_other_part(known, task, crc64, told)))
        follower = self._followers.get(task.task)
        if follower is not None:
            follow([follower], lambda follower: follower.length)
            if follower.failure is not None:
                return TaskFailed(task.task, ErrorInfo.of(follower.failure))
        return PartStoredReply(
            task.task, etag,
            crc64="" if crc64 is None else f"{crc64:016x}",
            is_crc64_shown=told is not None,
            is_encrypted=any("server-side-encryption" in name for name, _ in result.headers),
            md5="" if follower is None else follower.md5.hexdigest(),
            pieces=pieces,
        )  # fmt: skip

    def _send_batch(self, task: BatchTask) -> None:
        upload = self._uploads[task.upload]
        batch = self._batches[task.task] = Batch(task, upload.known)
        batch.load()

        def on_digests(found: tuple[str, ...] | ObsEngineError) -> None:
            if isinstance(found, ObsEngineError):
                self._end_batch(batch, batch.end(found))
            else:
                batch.proven_by(found)
                self._send_next(upload, batch, is_fresh=task.is_fresh)

        if upload.known.is_md5 or upload.known.is_crc64:
            self._begin_digest(upload, task.task, batch.digests(), on_digests)
        else:
            on_digests(())

    def _send_next(self, upload: _OpenFile, batch: Batch, *, is_fresh: bool = False) -> None:
        following = batch.next()
        if following is None:
            self._end_batch(batch, batch.end())
            return
        request, window = following
        began_s = time.monotonic()

        def on_done(result: Reply | ObsEngineError) -> None:
            outcome = batch.judge(result, time.monotonic() - began_s)
            if outcome is None:
                self._send_next(upload, batch)
            else:
                self._end_batch(batch, outcome)

        self._start(upload, batch.task.task, request, batch.task.now_s, on_done, window, is_fresh=is_fresh)

    def _end_batch(self, batch: Batch, outcome: BatchDone) -> None:
        del self._batches[batch.task.task]
        self._say(outcome)

    def _send_request(self, task: RequestTask) -> None:
        upload = self._uploads[task.upload]
        request = with_headers(task.request, ())


        def on_done(result: Reply | ObsEngineError) -> None:
            self._say(_outcome(task.task, result))

        self._start(upload, task.task, request, task.now_s, on_done, is_fresh=task.is_fresh)

    def _compare(self, task: CompareTask) -> None:
        upload = self._uploads[task.upload]
        known = upload.known
        try:
            window = upload.window(task.offset, task.length, _COMPARE_STEP_BYTES)
        except ObsEngineError as error:
            self._say(TaskFailed(task.task, ErrorInfo.of(error)))
            return
        comparison = Comparison(task, window, f"{known.bucket}/{known.key}")
        request = get_object(
            known.bucket, known.key, known.part_headers, start=task.offset, stop=task.offset + task.length,
            version_id=task.version_id, if_match=task.etag or None,
        )  # fmt: skip

        def on_done(result: Reply | ObsEngineError) -> None:
            window.close()
            self._show_in_flight(is_forced=True)
            self._say(comparison.outcome(result))

        self._start(upload, task.task, request, task.now_s, on_done, window, comparison.take)

    def _start(
        self, upload: _OpenFile, task: int, request: Request, now_s: float,
        on_done: Callable[[Reply | ObsEngineError], None], window: Window | None = None, sink: Sink | None = None,
        *, is_fresh: bool = False,
    ) -> None:  # fmt: skip
        """Begins a transfer; `on_done` is called when it is over and no longer in flight."""
        known = upload.known
        finished = finish(request, known.target, known.credentials, now_s)
        started_s = time.monotonic()

        def done(result: Reply | ObsEngineError) -> None:
            del upload.in_flight[task]
            if known.log_level <= logging.DEBUG:
                self._say(Logged(known.upload, logging.DEBUG, _line(request, result, time.monotonic() - started_s)))
            on_done(result)

        body = memoryview(finished.body) if window is None else window
        try:
            upload.in_flight[task] = self._transport.start(
                finished, body, known.transport, done, sink, is_fresh=is_fresh, spread=self._spread(known)
            ), window
        except Exception as error:  # an option that libcurl refuses must cost this request, and not the process
            on_done(TransportError(f"{request.operation}: libcurl refuses it ({error!r}); please report it"))

    def _spread(self, known: OpenUpload) -> Spread | None:
        if not known.addresses:
            return None
        target = known.target
        place = target.endpoint.host_of(known.bucket, target.addressing), target.endpoint.port
        spread = self._spreads.setdefault(place, Spread(*place, os.getpid()))
        spread.set(known.addresses)
        return spread

    def _show_in_flight(self, *, is_forced: bool = False) -> None:
        """Says how many bytes are on their way, where somebody looks at them: now and then, and when a part ends."""
        now_s = time.monotonic()
        if not is_forced and now_s - self._shown_s < _SHOW_INTERVAL_S:
            return
        self._shown_s = now_s
        for number, upload in self._uploads.items():
            if upload.known.shows_progress:
                sent = sum(self._transport.sent_bytes(token) for token, window in upload.in_flight.values() if window)
                if sent != upload.shown_bytes:
                    upload.shown_bytes = sent
                    self._say(InFlight(number, sent))

    def _digest(self, task: _DigestTask, begin: Callable[[_OpenFile, _DigestTask], _Digesting]) -> None:
        def on_digests(found: tuple[str, ...] | ObsEngineError) -> None:
            is_error = isinstance(found, ObsEngineError)
            self._say(TaskFailed(task.task, ErrorInfo.of(found)) if is_error else HashDone(task.task, found))  # type: ignore[arg-type]

        upload = self._uploads[task.upload]
        self._begin_digest(upload, task.task, begin(upload, task), on_digests)

    def _begin_digest(self, upload: _OpenFile, task: int, work: _Digesting, on_digests: _OnDigests) -> None:
        self._digesting[task] = upload, work, on_digests

    def _digest_on(self) -> None:
        """Some steps of the oldest digest, between two looks at the connections: transfers wait for no whole file."""
        stop_s = time.monotonic() + _DIGEST_TURN_S
        while self._digesting and time.monotonic() < stop_s:
            number, (_, work, on_digests) = next(iter(self._digesting.items()))
            found: tuple[str, ...] | ObsEngineError
            try:
                next(work)
                continue
            except StopIteration as done:
                found = done.value
            except ObsEngineError as error:
                found = error
            del self._digesting[number]
            on_digests(found)

    def _follow_on(self) -> None:
        """Digests what was sent of parts that are digested behind their sending, side by side."""
        if self._followers:
            sent = {
                number: self._transport.sent_bytes(token)
                for upload in self._uploads.values()
                for number, (token, _) in upload.in_flight.items()
            }
            follow(self._followers.values(), lambda follower: sent.get(follower.task, 0))

    def _stop_following(self, task: int) -> None:
        follower = self._followers.pop(task, None)
        if follower is not None:
            follower.close()


class _OpenFile:
    """An upload as a worker knows it, with its file open and its transfers in flight.

    Attributes:
        in_flight: by task, what the transport knows the transfer by, and the window that is sent (no small request's).
        shown_bytes: what was last said of the bytes in flight.
    """

    def __init__(self, known: OpenUpload) -> None:
        self.known = known
        self.in_flight: dict[int, tuple[object, Window | None]] = {}
        self.shown_bytes = 0
        self._descriptor = -1

    def renewed(self, known: OpenUpload) -> _OpenFile:
        self.known = known
        return self

    def window(self, offset: int, length: int, step_bytes: int, *, keeps_pages: bool = False) -> Window:
        """A part of it, to be read in steps of about so many bytes."""
        if self._descriptor < 0:
            self._descriptor = self._open()
        return open_window(
            self._descriptor, offset, length, self.known.reader, keeps_pages=keeps_pages, step_bytes=step_bytes
        )

    def _open(self) -> int:
        path = self.known.path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(
                f"uploadFile {path!r}: expected the file that the upload began with, found {error.strerror}; "
                "restore it, then call again"
            ) from error
        found = os.fstat(descriptor)
        if (found.st_ino, found.st_dev) != (self.known.identity.inode, self.known.identity.device):
            os.close(descriptor)
            raise SourceChangedError(
                f"uploadFile {path!r}: expected the file that the upload began with, found another one under its "
                "name; call again to upload what is there now"
            )
        return descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _pieces(upload: _OpenFile, task: HashTask) -> _Digesting:
    pieces, window = Pieces(task.offset), upload.window(task.offset, task.length, _HASH_STEP_BYTES)
    try:
        for offset in range(0, task.length, _HASH_STEP_BYTES):
            pieces.take(window[offset : min(offset + _HASH_STEP_BYTES, task.length)])
            yield
    finally:
        window.close()
    return pieces.digests()


def _crc64(window: Window) -> _Digesting:
    from obs_engine.digests import crc64

    value = 0
    for offset in range(0, len(window), _HASH_STEP_BYTES):
        value = crc64(window[offset : min(offset + _HASH_STEP_BYTES, len(window))], value)
        yield
    return (f"{value:016x}",)


def _crc64_of_range(upload: _OpenFile, task: Crc64Task) -> _Digesting:
    window = upload.window(task.offset, task.length, _HASH_STEP_BYTES)
    try:
        return (yield from _crc64(window))
    finally:
        window.close()


def _md5s(upload: _OpenFile, task: Md5Task) -> _Digesting:
    """All ranges side by side, as the kernel's lanes cost little more together than one alone."""
    from obs_engine.digests import Md5, md5_update_many

    hashers = [Md5() for _ in task.ranges]
    for step in range(0, max((length for _, length in task.ranges), default=0), _MD5_STEP_BYTES):
        rows = [
            (hasher, upload.window(offset + step, min(_MD5_STEP_BYTES, length - step), _MD5_STEP_BYTES))
            for hasher, (offset, length) in zip(hashers, task.ranges, strict=True)
            if step < length
        ]
        md5_update_many([hasher for hasher, _ in rows], [window[0 : len(window)] for _, window in rows])
        for _, window in rows:
            window.close()
        yield
    return tuple(hasher.hexdigest() for hasher in hashers)


def _outcome(task: int, result: Reply | ObsEngineError) -> Outcome:
    if isinstance(result, Reply):
        return TaskReplied(task, result)
    return TaskFailed(task, ErrorInfo.of(result))


def _other_part(known: OpenUpload, task: PartTask, expected: int, found: str | None) -> IntegrityError:
    return IntegrityError(
        f"part {task.part_number} of {known.bucket}/{known.key} (offset {task.offset}): expected CRC-64 {expected}, "
        f"found {found} at the service; call again to send it again",
        is_retryable=True,
    )


def _line(request: Request, result: Reply | ObsEngineError, seconds: float) -> str:
    """What is logged of a request: nothing of its headers, where keys and signatures are."""
    part = next((f" {value}" for name, value in request.query if name == "partNumber"), "")
    if isinstance(result, Reply):
        told = f"{result.status}, request {result.own_header('request-id')}"
    else:
        told = f"failed: {result}"
    return f"{request.operation}{part} {request.bucket}/{request.key or ''}: {told}, {seconds * 1000:.0f} ms"


def run_worker(channel: socket.socket, connections_max: int) -> None:
    """The whole life of a worker process, which keeps so many connections at most."""
    Worker(channel, connections_max).run()
