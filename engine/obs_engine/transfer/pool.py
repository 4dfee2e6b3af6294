"""The coordinator's workers: forks them, gives them tasks, notices their deaths.

Why fork and not a fresh interpreter: the coordinator has one thread and holds no lock, so a fork is safe, takes 2 ms
instead of 60, and shares the interpreter's pages. Runs in the coordinator. Does not know plans, journals or retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from obs_engine.errors import EngineDiedError
from obs_engine.transfer.bandwidth import Bandwidth
from obs_engine.transfer.flow import Flow
from obs_engine.transfer.gate import Gate
from obs_engine.transfer.messages import (
    Allow,
    BatchDone,
    CancelTask,
    CloseUpload,
    CreditWanted,
    Decoder,
    InFlight,
    Logged,
    OpenUpload,
    Outcome,
    PartStoredReply,
    PartTask,
    Task,
    encode,
)
from obs_engine.transfer.resolver import Resolver
from obs_engine.transfer.worker import run_worker

_RECEIVE_BYTES = 1 << 20
CONNECTIONS_PER_WORKER_MAX = 256
DESCRIPTORS_RESERVED = 40
"""Of a worker, for what is no connection: its channel, epoll, files, name resolution."""
SAMPLES_MAX = 100
"""Of the parts that were stored last, so many say how long one takes."""


class WorkerDied(Exception):
    """The worker that held this task ended; whether the service saw the request is unknown."""


class WorkerPool:
    """Workers, started when first needed and replaced when they die.

    Invariant: no worker has more tasks with a connection than its share of `connections`, nor libcurl in it more
    connections, idle ones among them.

    Attributes:
        connections: of all uploads together, to be passed by every task that needs one.
        shares: of each worker in them.
        loads: tasks with a connection that each worker has.
        resolver: knows the addresses of hosts.
        promised: what the open sessions may give each worker, to spread new ones.
    """

    def __init__(self, size: int, bandwidth: Bandwidth, connections_max: int | None = None) -> None:
        """
        Args:
            size: workers at most.
            connections_max: None for as many as the workers' descriptors allow.
        """
        limit = min(connections_max or size * CONNECTIONS_PER_WORKER_MAX, size * _connections_of_a_worker())
        size = min(size, limit)
        self._bandwidth = bandwidth
        self.connections = Gate(limit)
        self.resolver = Resolver()
        self.shares = [limit // size + (slot < limit % size) for slot in range(size)]
        self.loads = [0] * size
        self.promised = [0] * size
        self._workers: list[_WorkerHandle | None] = [None] * size
        self._uploads = count(1)
        self._tasks = count(1)
        self._flows: dict[str, Flow] = {}

    @property
    def size(self) -> int:
        return len(self._workers)

    def session(self, task_num: int, tell: Callable[[Logged], None]) -> Session:
        """A share of the pool for one upload: at most `task_num` tasks in flight over all workers.

        Args:
            tell: takes the log lines of the upload's workers.
        """
        return Session(self, next(self._uploads), task_num, tell)

    def flow(self, endpoint: str) -> Flow:
        """That of all uploads to an endpoint."""
        return self._flows.setdefault(endpoint, Flow(endpoint))

    def next_task(self) -> int:
        return next(self._tasks)

    def worker(self, slot: int) -> _WorkerHandle:
        """The living worker of a slot, forked if need be."""
        worker = self._workers[slot]
        if worker is None or worker.is_dead:
            worker = self._workers[slot] = _WorkerHandle(self._bandwidth, self.shares[slot])
        return worker

    def kill(self) -> None:
        """Ends all workers at once and reaps them."""
        workers = [worker for worker in self._workers if worker is not None]
        for worker in workers:
            worker.kill()
        self._workers = [None] * len(self._workers)


class Session:
    """One upload's use of the pool.

    Invariant: `limit`, which is at most `task_num`, is spread over fixed shares of as few workers as it takes; as a
    worker keeps one connection for each task in flight, the upload opens no more than that.

    Attributes:
        attempts: parts on their way.
        part_seconds: what the latest parts took from being sent to being stored.
    """

    def __init__(self, pool: WorkerPool, upload: int, task_num: int, tell: Callable[[Logged], None]) -> None:
        self._pool = pool
        self._tell = tell
        self.upload = upload
        self.flow = Flow()  # until it is known where to
        self.limit = min(task_num, pool.connections.limit)
        # Why by what is promised: uploads side by side use all workers, and one after the other the same connections.
        self._slots = sorted(range(pool.size), key=pool.promised.__getitem__)[: self.limit]
        used = len(self._slots)
        self._shares = [0] * pool.size
        for place, slot in enumerate(self._slots):
            self._shares[slot] = self.limit // used + (place < self.limit % used)
            pool.promised[slot] += self._shares[slot]
        self._loads = [0] * pool.size
        self._computing = dict.fromkeys(self._slots, 0)
        self._opened: dict[int, _WorkerHandle] = {}
        self._host = ""
        self._open_message: OpenUpload | None = None
        self._in_flight: dict[_WorkerHandle, int] = {}  # by every worker that was opened, the bytes last heard of
        self._is_closed = False
        self.attempts: set[Attempt] = set()
        self.part_seconds: deque[float] = deque(maxlen=SAMPLES_MAX)

    @property
    def slots(self) -> int:
        """Workers that this upload may use."""
        return len(self._slots)

    @property
    def in_flight_bytes(self) -> int:
        """Bytes that the workers have given to their connections, of parts not yet acknowledged; as last heard of."""
        return sum(sent for worker, sent in self._in_flight.items() if not worker.is_dead)

    def open(self, message: OpenUpload) -> None:
        """Says what workers must know; again when it changed: from the next task on each of them has it."""
        target = message.target
        self._open_message = message
        self._opened.clear()
        self.flow = self._pool.flow(str(target.endpoint))
        # Why not behind a proxy: it is the one that looks for the host.
        is_named = not target.endpoint.is_ip and not message.transport.proxy
        self._host = target.endpoint.host_of(message.bucket, target.addressing) if is_named else ""

    async def run(self, make_task: Callable[[int], Task], *, part_bytes: int = 0) -> Outcome:
        """Gives a task to the worker with the most room when it is its turn, and waits for its outcome.

        Args:
            make_task: from a task number.
            part_bytes: of the part that it sends; 0 where it sends none.

        Raises:
            WorkerDied: the worker ended first.
            EngineDiedError: no worker can be started.
        """
        if self._host:
            await self._know_addresses()
        flow, pool = self.flow, self._pool
        await pool.connections.enter()
        try:
            sent = await flow.enter(is_part=part_bytes > 0)
            outcome: Outcome | None = None
            try:
                outcome = await self._run(self._roomiest(), make_task, sent.at_s)
                return outcome
            finally:
                is_stored = isinstance(outcome, (PartStoredReply, BatchDone))
                seconds = flow.leave(sent, part_bytes, is_stored=is_stored)
                if is_stored:
                    self.part_seconds.append(seconds)
        finally:
            pool.connections.leave()

    def double(self, attempt: Attempt) -> bool:
        """Sends a part that is on its way a second time, on another connection; False where there is no room."""
        flow, pool, task = self.flow, self._pool, attempt.task
        assert isinstance(task, PartTask)
        if not pool.connections.try_enter():
            return False
        sent = flow.try_enter()
        if sent is None:
            pool.connections.leave()
            return False
        slot = self._roomiest()
        self._load(slot, 1)

        def over(_: object) -> None:
            self._load(slot, -1)
            flow.leave(sent, task.length, is_stored=False)
            pool.connections.leave()

        attempt.future.add_done_callback(over)
        attempt.give(self._worker(slot), task._replace(task=pool.next_task()))
        return True

    async def compute(self, make_task: Callable[[int], Task]) -> Outcome:
        """As `run`, for a task without a connection: it counts for nobody's share."""
        slot = min(self._slots, key=self._computing.__getitem__)
        self._computing[slot] += 1
        try:
            return await Attempt(make_task(self._pool.next_task()), 0.0).given(self._worker(slot))
        finally:
            self._computing[slot] -= 1

    async def _know_addresses(self) -> None:
        """Waits for the host's addresses the first time; later, workers learn of a change with their next task."""
        known = self._open_message
        assert known is not None
        found = await self._pool.resolver.addresses(self._host, known.target.endpoint.port)
        addresses = found if len(found) > 1 else ()
        if addresses != known.addresses:
            self._open_message = replace(known, addresses=addresses)
            self._opened.clear()

    async def _run(self, slot: int, make_task: Callable[[int], Task], sent_s: float) -> Outcome:
        assert sum(self._loads) < self.limit, "more tasks than task_num"
        worker = self._worker(slot)
        attempt = Attempt(make_task(self._pool.next_task()), sent_s)
        self._load(slot, 1)
        self.attempts.add(attempt)
        try:
            return await attempt.given(worker)
        finally:
            self.attempts.discard(attempt)
            self._load(slot, -1)

    def _roomiest(self) -> int:
        pool = self._pool
        return max(
            (slot for slot in range(pool.size) if pool.loads[slot] < pool.shares[slot]),
            key=lambda slot: self._shares[slot] - self._loads[slot],
        )

    def _load(self, slot: int, more: int) -> None:
        self._loads[slot] += more
        self._pool.loads[slot] += more

    def _worker(self, slot: int) -> _WorkerHandle:
        """The worker of a slot, which knows the upload."""
        worker = self._pool.worker(slot)
        if self._opened.get(slot) is not worker:
            assert self._open_message is not None
            worker.say(self._open_message)
            self._opened[slot] = worker
            self._listen(worker)
        return worker

    def close(self) -> None:
        """Gives up all that is in flight for the upload."""
        for worker in self._in_flight:
            if not worker.is_dead:
                worker.say(CloseUpload(self.upload))
            worker.listeners.pop(self.upload, None)
        self._in_flight.clear()
        self._opened.clear()
        if not self._is_closed:
            self._is_closed = True
            for slot in self._slots:
                self._pool.promised[slot] -= self._shares[slot]

    def _listen(self, worker: _WorkerHandle) -> None:
        def on_message(message: InFlight | Logged) -> None:
            if isinstance(message, InFlight):
                self._in_flight[worker] = message.sent_bytes
            else:
                self._tell(message)

        self._in_flight.setdefault(worker, 0)
        worker.listeners[self.upload] = on_message


class Attempt:
    """A task in the hands of a worker, or of two: the first good outcome counts, or the last bad one.

    Attributes:
        task: as it was given out first.
        sent_s: when.
        future: its outcome.
    """

    def __init__(self, task: Task, sent_s: float) -> None:
        self.task = task
        self.sent_s = sent_s
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._holders: dict[int, _WorkerHandle] = {}  # by the number that the task has there

    async def given(self, worker: _WorkerHandle) -> Outcome:
        """Gives it to a worker and waits for the outcome."""
        self.give(worker, self.task)
        try:
            return await self.future
        finally:
            for number, holder in self._holders.items():
                holder.drop(number)
                if not holder.is_dead:
                    holder.say(CancelTask(self.task.upload, number))
            self._holders.clear()

    def give(self, worker: _WorkerHandle, task: Task) -> None:
        self._holders[task.task] = worker
        worker.take(task, self)

    def on_outcome(self, number: int, outcome: Outcome) -> None:
        del self._holders[number]
        if not self.future.done() and (not self._holders or isinstance(outcome, PartStoredReply)):
            self.future.set_result(outcome)

    def on_death(self, number: int, died: WorkerDied) -> None:
        del self._holders[number]
        if not self.future.done() and not self._holders:
            self.future.set_exception(died)


class _WorkerHandle:
    """One worker process as the coordinator sees it."""

    def __init__(self, bandwidth: Bandwidth, connections_max: int) -> None:
        ours, theirs = socket.socketpair()
        try:
            self.pid = os.fork()
        except OSError as error:
            raise EngineDiedError(
                f"worker: expected to start a process, found {error.strerror}; raise the process or memory limit"
            ) from None
        if self.pid == 0:
            _become_worker(theirs, connections_max)
        theirs.close()
        ours.setblocking(False)
        self.is_dead = False
        self.listeners: dict[int, Callable[[InFlight | Logged], None]] = {}  # by upload
        self._channel = ours
        self._decoder = Decoder()
        self._outgoing = bytearray()
        self._is_flushing = False
        self._waiting: dict[int, Attempt] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(ours.fileno(), self._on_readable)
        self._bandwidth = bandwidth
        bandwidth.join(self, lambda size: self.say(Allow(size)))

    def take(self, task: Task, attempt: Attempt) -> None:
        """Does a task, and tells the attempt of its outcome."""
        self._waiting[task.task] = attempt
        self.say(task)

    def drop(self, number: int) -> None:
        """Nobody waits for that task any more."""
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
            attempt = self._waiting.pop(outcome.task, None)
            if attempt is not None:
                attempt.on_outcome(outcome.task, outcome)

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
        waiting, self._waiting = self._waiting, {}
        for number, attempt in waiting.items():
            attempt.on_death(number, WorkerDied(f"worker process {self.pid} ended {how}"))


def _connections_of_a_worker() -> int:
    """What a worker's limit on descriptors allows."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return CONNECTIONS_PER_WORKER_MAX
    return max(1, min(CONNECTIONS_PER_WORKER_MAX, allowed - DESCRIPTORS_RESERVED))


def _become_worker(channel: socket.socket, connections_max: int) -> None:
    """What the forked child does: keeps its channel and the standard streams, works, and ends."""
    status = 1
    try:
        # Why: a copy of another channel here would hide the coordinator's death from that channel's worker.
        keep = os.dup2(channel.fileno(), 3, inheritable=False) if channel.fileno() != 3 else 3
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        run_worker(socket.socket(fileno=keep), connections_max)
        status = 0
    except KeyboardInterrupt:
        pass
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)
