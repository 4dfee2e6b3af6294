"""The coordinator's workers: forks them, gives them tasks, notices their deaths.

Why fork and not a fresh interpreter: the coordinator has one thread and holds no lock, so a fork is safe, takes 2 ms
instead of 60, and shares the interpreter's pages. Runs in the coordinator. Does not know plans, journals or retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from itertools import count
from typing import Any

from obs_engine.errors import EngineDiedError
from obs_engine.transfer.bandwidth import Bandwidth
from obs_engine.transfer.messages import (
    Allow,
    CloseUpload,
    CreditWanted,
    Decoder,
    InFlight,
    Logged,
    OpenUpload,
    Outcome,
    Task,
    encode,
)
from obs_engine.transfer.pace import Pace
from obs_engine.transfer.worker import run_worker

_RECEIVE_BYTES = 1 << 20
CONNECTIONS_PER_WORKER_MAX = 256
"""Well below the usual limit of 1,024 descriptors a process."""


class WorkerDied(Exception):
    """The worker that held this task ended; whether the service saw the request is unknown."""


class WorkerPool:
    """Up to `size` workers, started when first needed and replaced when they die."""

    def __init__(self, size: int, bandwidth: Bandwidth) -> None:
        self._bandwidth = bandwidth
        self._workers: list[_WorkerHandle | None] = [None] * size
        self._uploads = count(1)
        self._tasks = count(1)
        self._paces: dict[str, Pace] = {}

    @property
    def size(self) -> int:
        return len(self._workers)

    def session(self, task_num: int, tell: Callable[[Logged], None]) -> Session:
        """A share of the pool for one upload: at most `task_num` tasks in flight over all workers.

        Args:
            tell: takes the log lines of the upload's workers.
        """
        return Session(self, next(self._uploads), task_num, tell)

    def pace(self, endpoint: str) -> Pace:
        """That of all uploads to an endpoint."""
        return self._paces.setdefault(endpoint, Pace(endpoint))

    def next_task(self) -> int:
        return next(self._tasks)

    def worker(self, slot: int) -> _WorkerHandle:
        """The living worker of a slot, forked if need be."""
        worker = self._workers[slot]
        if worker is None or worker.is_dead:
            worker = self._workers[slot] = _WorkerHandle(self._bandwidth)
        return worker

    def kill(self) -> None:
        """Ends all workers at once and reaps them."""
        workers = [worker for worker in self._workers if worker is not None]
        for worker in workers:
            worker.kill()
        self._workers = [None] * len(self._workers)


class Session:
    """One upload's use of the pool.

    Invariant: a slot holds at most its share, and the shares add up to `limit`, which is at most `task_num`; as a
    worker keeps one connection for each task in flight, the upload opens no more than that.
    """

    def __init__(self, pool: WorkerPool, upload: int, task_num: int, tell: Callable[[Logged], None]) -> None:
        self._pool = pool
        self._tell = tell
        self.upload = upload
        self.pace = Pace()  # until it is known where to
        used = min(pool.size, task_num)
        self.limit = min(task_num, used * CONNECTIONS_PER_WORKER_MAX)
        self._shares = [self.limit // used + (slot < self.limit % used) for slot in range(used)]
        self._loads = [0] * used
        self._computing = [0] * used
        self._opened: dict[int, _WorkerHandle] = {}
        self._open_message: OpenUpload | None = None
        self._in_flight: dict[_WorkerHandle, int] = {}  # by every worker that was opened, the bytes last heard of

    @property
    def slots(self) -> int:
        """Workers that this upload may use."""
        return len(self._shares)

    @property
    def in_flight_bytes(self) -> int:
        """Bytes that the workers have given to their connections, of parts not yet acknowledged; as last heard of."""
        return sum(sent for worker, sent in self._in_flight.items() if not worker.is_dead)

    def open(self, message: OpenUpload) -> None:
        """Says what workers must know; again when it changed: from the next task on each of them has it."""
        self._open_message = message
        self._opened.clear()
        self.pace = self._pool.pace(str(message.target.endpoint))

    async def run(self, make_task: Callable[[int], Task]) -> Outcome:
        """Gives a task to the worker with the most room when it is its turn, and waits for its outcome.

        Args:
            make_task: from a task number.

        Raises:
            WorkerDied: the worker ended first.
            EngineDiedError: no worker can be started.
        """
        await self.pace.turn()
        slot = max(range(len(self._loads)), key=lambda s: self._shares[s] - self._loads[s])
        assert self._loads[slot] < self._shares[slot], "more tasks than task_num"
        return await self._run(slot, self._loads, make_task)

    async def compute(self, make_task: Callable[[int], Task]) -> Outcome:
        """As `run`, for a task without a connection: it counts for nobody's share."""
        slot = min(range(len(self._computing)), key=self._computing.__getitem__)
        return await self._run(slot, self._computing, make_task)

    async def _run(self, slot: int, loads: list[int], make_task: Callable[[int], Task]) -> Outcome:
        worker = self._pool.worker(slot)
        if self._opened.get(slot) is not worker:
            assert self._open_message is not None
            worker.say(self._open_message)
            self._opened[slot] = worker
            self._listen(worker)
        number = self._pool.next_task()
        loads[slot] += 1
        try:
            return await worker.run(number, make_task(number))
        finally:
            loads[slot] -= 1

    def close(self) -> None:
        """Gives up all that is in flight for the upload."""
        for worker in self._in_flight:
            if not worker.is_dead:
                worker.say(CloseUpload(self.upload))
            worker.listeners.pop(self.upload, None)
        self._in_flight.clear()
        self._opened.clear()

    def _listen(self, worker: _WorkerHandle) -> None:
        def on_message(message: InFlight | Logged) -> None:
            if isinstance(message, InFlight):
                self._in_flight[worker] = message.sent_bytes
            else:
                self._tell(message)

        self._in_flight.setdefault(worker, 0)
        worker.listeners[self.upload] = on_message


class _WorkerHandle:
    """One worker process as the coordinator sees it."""

    def __init__(self, bandwidth: Bandwidth) -> None:
        ours, theirs = socket.socketpair()
        try:
            self.pid = os.fork()
        except OSError as error:
            raise EngineDiedError(
                f"worker: expected to start a process, found {error.strerror}; raise the process or memory limit"
            ) from None
        if self.pid == 0:
            _become_worker(theirs)
        theirs.close()
        ours.setblocking(False)
        self.is_dead = False
        self.listeners: dict[int, Callable[[InFlight | Logged], None]] = {}  # by upload
        self._channel = ours
        self._decoder = Decoder()
        self._outgoing = bytearray()
        self._is_flushing = False
        self._waiting: dict[int, asyncio.Future[Outcome]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(ours.fileno(), self._on_readable)
        self._bandwidth = bandwidth
        bandwidth.join(self, lambda size: self.say(Allow(size)))

    async def run(self, number: int, task: Task) -> Outcome:
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._waiting[number] = future
        self.say(task)
        try:
            return await future
        finally:
            self._waiting.pop(number, None)

    def say(self, message: Any) -> None:
        self._outgoing += encode(message)
        if not self._is_flushing:
            self._flush()

    def kill(self) -> None:
        """Ends the process and reaps it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._on_death()

    def _flush(self) -> None:
        try:
            while self._outgoing:
                sent = self._channel.send(self._outgoing)
                del self._outgoing[:sent]
        except BlockingIOError:
            if not self._is_flushing:
                self._is_flushing = True
                self._loop.add_writer(self._channel.fileno(), self._flush)
            return
        except OSError:
            self._outgoing.clear()  # the reader meets the end of the channel and says so
        if self._is_flushing:
            self._is_flushing = False
            self._loop.remove_writer(self._channel.fileno())

    def _on_readable(self) -> None:
        try:
            data = self._channel.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._on_death()
            return
        for outcome in self._decoder.feed(data):
            if isinstance(outcome, CreditWanted):
                self._bandwidth.ask(self)
                continue
            if isinstance(outcome, (InFlight, Logged)):
                listener = self.listeners.get(outcome.upload)
                if listener is not None:
                    listener(outcome)
                continue
            future = self._waiting.pop(outcome.task, None)
            if future is not None and not future.done():
                future.set_result(outcome)

    def _on_death(self) -> None:
        if self.is_dead:
            return
        self.is_dead = True
        self._bandwidth.leave(self)
        self._loop.remove_reader(self._channel.fileno())
        if self._is_flushing:
            self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # a worker that closed its channel has nothing left to do
        status = 0
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(self.pid, 0)
        how = "by a fault of a mapped page (SIGBUS)" if os.WTERMSIG(status) == signal.SIGBUS else "unexpectedly"
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(WorkerDied(f"worker process {self.pid} ended {how}"))
        self._waiting.clear()


def _become_worker(channel: socket.socket) -> None:
    """What the forked child does: keeps its channel and the standard streams, works, and ends."""
    status = 1
    try:
        # Why: a copy of another channel here would hide the coordinator's death from that channel's worker.
        keep = os.dup2(channel.fileno(), 3, inheritable=False) if channel.fileno() != 3 else 3
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        run_worker(socket.socket(fileno=keep))
        status = 0
    except KeyboardInterrupt:
        pass
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)
