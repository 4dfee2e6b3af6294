"""A worker: maps a window for each part and streams it to the service, many at a time.

Runs in a process of its own, forked by the coordinator's pool. Knows the uploads it was told of and the tasks in
flight. Does not know plans, journals, retries, other workers, or the time: each task brings what it needs.
Ends when the coordinator's socket closes.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from typing import Any

from obs_engine.errors import ObsEngineError, SourceChangedError, SourceError
from obs_engine.source.window import Window
from obs_engine.transfer.messages import (
    CloseUpload,
    Decoder,
    ErrorInfo,
    HashDone,
    HashTask,
    OpenUpload,
    Outcome,
    PartStoredReply,
    PartTask,
    RequestTask,
    TaskFailed,
    TaskReplied,
    encode,
)
from obs_engine.transfer.transport import Transport
from obs_engine.wire.replies import Reply
from obs_engine.wire.requests import finish, upload_part, with_headers

_RECEIVE_BYTES = 1 << 20
_HASH_STEP_BYTES = 8 << 20


class Worker:
    """The event loop of one worker and what it owns: transfers in flight, open files, windows."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        channel.setblocking(False)
        self._decoder = Decoder()
        self._outgoing = bytearray()
        self._poller = select.epoll()
        self._wanted = select.EPOLLIN
        self._poller.register(channel.fileno(), self._wanted)
        self._transport = Transport(self._poller)
        self._uploads: dict[int, _OpenFile] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            OpenUpload: self._open,
            CloseUpload: self._close,
            PartTask: self._send_part,
            RequestTask: self._send_request,
            HashTask: self._hash,
        }

    def run(self) -> None:
        """Works until the coordinator is gone."""
        channel = self._channel.fileno()
        while True:
            timeout = self._transport.timeout_s()
            events = self._poller.poll(timeout)
            if not events or timeout == 0:
                self._transport.on_timeout()
            for descriptor, mask in events:
                if descriptor == channel:
                    if mask & (select.EPOLLIN | select.EPOLLHUP) and not self._receive():
                        return
                else:
                    self._transport.on_event(descriptor, mask)
            self._transport.finish_transfers()
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

    def _say(self, outcome: Outcome) -> None:
        self._outgoing += encode(outcome)

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

    def _open(self, message: OpenUpload) -> None:
        known = self._uploads.get(message.upload)
        self._uploads[message.upload] = _OpenFile(message) if known is None else known.renewed(message)

    def _close(self, message: CloseUpload) -> None:
        upload = self._uploads.pop(message.upload, None)
        if upload is not None:
            for token, window in upload.in_flight.values():
                self._transport.cancel(token)
                if window is not None:
                    window.close()
            upload.close()

    def _send_part(self, task: PartTask) -> None:
        upload = self._uploads[task.upload]
        known = upload.known
        try:
            window = upload.window(task.offset, task.length)
        except ObsEngineError as error:
            self._say(TaskFailed(task.task, ErrorInfo.of(error)))
            return
        request = upload_part(
            known.bucket, known.key, task.upload_id, task.part_number, task.length, known.part_headers
        )

        def done(result: Reply | ObsEngineError) -> None:
            del upload.in_flight[task.task]
            window.close()
            etag = result.header("etag") if isinstance(result, Reply) and result.status == 200 else None
            self._say(PartStoredReply(task.task, etag) if etag else _outcome(task.task, result))

        finished = finish(request, known.target, known.credentials, task.now_s)
        token = self._transport.start(finished, window, known.transport, done)
        upload.in_flight[task.task] = token, window

    def _send_request(self, task: RequestTask) -> None:
        upload = self._uploads[task.upload]
        known = upload.known

        def done(result: Reply | ObsEngineError) -> None:
            del upload.in_flight[task.task]
            self._say(_outcome(task.task, result))

        finished = finish(with_headers(task.request, ()), known.target, known.credentials, task.now_s)
        token = self._transport.start(finished, memoryview(finished.body), known.transport, done)
        upload.in_flight[task.task] = token, None

    def _hash(self, task: HashTask) -> None:
        from xxhash import xxh3_128

        digest = xxh3_128()
        try:
            for offset in range(task.offset, task.offset + task.length, _HASH_STEP_BYTES):
                length = min(_HASH_STEP_BYTES, task.offset + task.length - offset)
                window = self._uploads[task.upload].window(offset, length)
                digest.update(window[0:length])
                window.close()
        except ObsEngineError as error:
            self._say(TaskFailed(task.task, ErrorInfo.of(error)))
            return
        self._say(HashDone(task.task, digest.hexdigest()))


class _OpenFile:
    """An upload as a worker knows it, with its file open and its transfers in flight."""

    def __init__(self, known: OpenUpload) -> None:
        self.known = known
        self.in_flight: dict[int, tuple[object, Window | None]] = {}
        self._descriptor = -1

    def renewed(self, known: OpenUpload) -> _OpenFile:
        self.known = known
        return self

    def window(self, offset: int, length: int) -> Window:
        if self._descriptor < 0:
            self._descriptor = self._open()
        return Window(self._descriptor, offset, length)

    def _open(self) -> int:
        path = self.known.path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(
                f"uploadFile {path!r}: expected the file that the upload began with, found {error.strerror}; "
                "restore it, then call again"
            ) from None
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


def _outcome(task: int, result: Reply | ObsEngineError) -> Outcome:
    if isinstance(result, Reply):
        return TaskReplied(task, result)
    return TaskFailed(task, ErrorInfo.of(result))


def run_worker(channel: socket.socket) -> None:
    """The whole life of a worker process."""
    Worker(channel).run()
