"""The coordinator: one process for each client, single-threaded; owner of the journals and of the workers.

Knows its caller by one control socket, over which each upload's own socket arrives. The end of an upload's socket
cancels that upload; the end of the control socket, or of the caller's process, ends everything: no child outlives
the caller.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NoReturn

from obs_engine.errors import EngineDiedError, ObsEngineError, UploadCancelledError
from obs_engine.transfer.bandwidth import Bandwidth
from obs_engine.transfer.errand import Errand
from obs_engine.transfer.messages import (
    Ask,
    Asked,
    Decoder,
    ErrorInfo,
    Failed,
    Logged,
    MoreFiles,
    NewCredentials,
    NoMoreFiles,
    ProtocolError,
    PutFiles,
    SetBandwidth,
    UploadRequest,
    VerifyRequest,
    encode,
)
from obs_engine.transfer.negotiation import Negotiator
from obs_engine.transfer.pool import WorkerPool
from obs_engine.transfer.small_files import SmallFiles
from obs_engine.transfer.upload import Upload
from obs_engine.transfer.verification import Verification

PROCESSES_MAX = 8
_RECEIVE_BYTES = 1 << 20
_SHUTDOWN_S = 1.5


class Coordinator:
    """Accepts uploads and runs them side by side."""

    def __init__(self, control: socket.socket, caller_pid: int) -> None:
        self._control = control
        self._caller_pid = caller_pid
        self._pool: WorkerPool | None = None
        self._negotiator = Negotiator()
        self._bandwidth = Bandwidth()
        self._calls: dict[_Call, asyncio.Task[None]] = {}
        self._is_ending = asyncio.Event()

    async def run(self) -> None:
        """Works until the caller is gone, then ends all uploads: with a checkpoint, their progress is kept."""
        loop = asyncio.get_running_loop()
        self._control.setblocking(False)
        loop.add_reader(self._control.fileno(), self._on_control)
        # Why: another process forked by the host may hold a copy of the control socket and keep it open.
        try:
            loop.add_reader(os.pidfd_open(self._caller_pid), self._is_ending.set)
        except ProcessLookupError:  # ended already: its parent's number would be somebody else's
            self._is_ending.set()
        except (AttributeError, OSError):
            pass  # a system without pidfd: the control socket must do
        logger = logging.getLogger("obs_engine")
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(_ToCaller())
        await self._is_ending.wait()
        loop.remove_reader(self._control.fileno())
        tasks = list(self._calls.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_SHUTDOWN_S)
        if self._pool is not None:
            self._pool.kill()

    def _on_control(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 64, 16)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        for descriptor in descriptors:
            call = _Call(socket.socket(fileno=descriptor))
            self._calls[call] = asyncio.ensure_future(self._serve(call))
        if not data:
            self._is_ending.set()

    async def _serve(self, call: _Call) -> None:
        try:
            request = await call.receive()
            if isinstance(request, (UploadRequest, VerifyRequest, PutFiles, Ask)):
                await self._work(call, request)
            elif isinstance(request, SetBandwidth):
                self._bandwidth.set(request.bytes_per_s)
        finally:
            del self._calls[call]
            call.close()

    async def _work(self, call: _Call, request: Asked) -> None:
        asked = request if isinstance(request, UploadRequest) else request.upload
        if self._pool is None:
            engine = asked.engine
            size = engine.processes or default_processes()
            self._pool = WorkerPool(size, self._bandwidth, engine.max_connections)
        self._bandwidth.set(asked.engine.max_bandwidth_bytes_per_s)
        _call.set(call)
        call.log_level = asked.log_level
        session = self._pool.session(asked.task_num, call.tell)
        story: Upload | Verification | SmallFiles | Errand
        if isinstance(request, VerifyRequest):
            story = Verification(request, session, self._negotiator, call.tell)
        elif isinstance(request, PutFiles):
            story = SmallFiles(request, session, self._negotiator, call.tell)
        elif isinstance(request, Ask):
            story = Errand(request, session, self._negotiator, call.tell)
        else:
            story = Upload(request, session, self._negotiator, call.tell)
        work: asyncio.Future[Any] = asyncio.ensure_future(story.run())

        def hear(message: object) -> None:
            if isinstance(message, NewCredentials):
                story.access.renew(message)
            elif isinstance(message, (MoreFiles, NoMoreFiles)) and isinstance(story, SmallFiles):
                story.take(message)

        gone = asyncio.ensure_future(call.listen(hear))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
            answer: object = await work
        except ObsEngineError as error:
            answer = Failed(ErrorInfo.of(error))
        except asyncio.CancelledError:
            work.cancel()
            await asyncio.wait({work})
            answer = Failed(ErrorInfo.of(UploadCancelledError("the upload was cancelled; a checkpoint keeps it")))
        except Exception as error:  # a mistake of ours must reach the caller, not hang him
            logging.getLogger("obs_engine").exception("the coordinator failed")
            answer = Failed(ErrorInfo.of(EngineDiedError(f"coordinator: unexpected {error!r}; please report it")))
        finally:
            gone.cancel()
        call.tell(answer)
        await call.drained()


class _Call:
    """The socket of one upload's caller."""

    def __init__(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        self.log_level = logging.WARNING
        self._channel = channel
        self._outgoing = bytearray()
        self._is_flushing = False
        self._decoder = Decoder()

    async def receive(self) -> Any:
        """The next message; None at the end."""
        loop = asyncio.get_running_loop()
        while True:
            data = await loop.sock_recv(self._channel, _RECEIVE_BYTES)
            if not data:
                return None
            try:
                for message in self._decoder.feed(data):
                    return message
            except ProtocolError:
                return None

    async def listen(self, hear: Callable[[object], None]) -> None:
        """Takes what the caller says; returns when the caller has left."""
        loop = asyncio.get_running_loop()
        data = b""  # what came with the first message comes first
        try:
            while True:
                for message in self._decoder.feed(data):
                    hear(message)
                data = await loop.sock_recv(self._channel, _RECEIVE_BYTES)
                if not data:
                    return
        except (ConnectionError, ProtocolError):
            return

    def tell(self, message: object) -> None:
        """Sends what the socket takes, and the rest when it can; a caller that does not read delays nobody."""
        self._outgoing += encode(message)
        if not self._is_flushing:
            self._flush()

    async def drained(self) -> None:
        """Waits until all was sent."""
        self._stop_flushing()
        try:
            await asyncio.get_running_loop().sock_sendall(self._channel, bytes(self._outgoing))
        except OSError:
            return

    def close(self) -> None:
        self._stop_flushing()
        self._channel.close()

    def _flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: self._channel.send(self._outgoing)]
        except BlockingIOError:
            if not self._is_flushing:
                self._is_flushing = True
                asyncio.get_running_loop().add_writer(self._channel.fileno(), self._flush)
            return
        except OSError:
            self._outgoing.clear()  # nobody is there to hear it
        self._stop_flushing()

    def _stop_flushing(self) -> None:
        if self._is_flushing:
            self._is_flushing = False
            asyncio.get_running_loop().remove_writer(self._channel.fileno())


_call: ContextVar[_Call] = ContextVar("call")


class _ToCaller(logging.Handler):
    """Hands a log line to the caller whose upload it is of: this process writes none itself."""

    def emit(self, record: logging.LogRecord) -> None:
        call = _call.get(None)
        if call is not None and record.levelno >= call.log_level:
            call.tell(Logged(0, record.levelno, self.format(record)))


def default_processes() -> int:
    """Workers where the caller names no number: the cores that this process may use, 8 at most."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        import psutil

        cores = psutil.cpu_count() or 1
    return max(1, min(PROCESSES_MAX, cores))


def main(control_descriptor: int, caller_pid: int) -> NoReturn:
    """The whole life of a coordinator process."""
    os.chdir("/")  # Why: the host's directory must stay free to be unmounted
    gc.freeze()  # what was loaded is never garbage; workers inherit this, and leave those pages shared
    gc.enable()
    asyncio.run(Coordinator(socket.socket(fileno=control_descriptor), caller_pid).run())
    os._exit(0)  # Why: all is closed and synced, and taking an interpreter apart costs as much as 100 MB of upload
