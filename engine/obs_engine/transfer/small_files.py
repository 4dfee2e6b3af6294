"""Many small files, one request each. Runs in the coordinator.

    agree on the dialect → deal out batches as the caller brings files → tell of each what became of it

A batch is one task of a worker, on one connection; so the limits that hold for parts in flight hold for batches. What a
reply asks for is decided for single files, by the one policy. Knows no journal: a file that was not told of is sent
again. Files that fail are told of, and fail nobody else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from obs_engine.errors import ObsEngineError, ServiceError
from obs_engine.limits import MIB
from obs_engine.source.identity import FileIdentity
from obs_engine.transfer.access import Access
from obs_engine.transfer.messages import (
    AllFilesPut,
    BatchDone,
    BatchTask,
    ErrorInfo,
    FilePut,
    FilesPut,
    MoreFiles,
    NoMoreFiles,
    Outcome,
    PutFiles,
    SmallFile,
    TaskReplied,
)
from obs_engine.transfer.negotiation import Negotiator
from obs_engine.transfer.pool import Session
from obs_engine.transfer.service import Service, together
from obs_engine.wire.replies import Reply, error_of

BATCH_FILES_MAX, BATCH_BYTES_MAX = 16, MIB
"""As many as the widest MD5 kernel has lanes; and little enough to be over soon. A larger file goes alone."""
TELL_S = 0.01
"""Results are told so often, many at a time."""
_NO_FILE = FileIdentity(0, 0, 0, 0, 0)


class SmallFiles:
    """One `uploadFiles` in the coordinator."""

    def __init__(
        self, asked: PutFiles, session: Session, negotiator: Negotiator, tell: Callable[[object], None]
    ) -> None:
        """
        Args:
            session: this call's share of the workers.
            negotiator: knows which dialect a bucket understands.
            tell: sends a message to the caller.
        """
        self._request = asked.upload
        self._session = session
        self._negotiator = negotiator
        self._tell = tell
        self.access = Access(asked.upload, session, tell)
        self._service = Service(asked.upload, session, self.access, lambda: None)
        self._waiting: deque[SmallFile] = deque()
        self._is_more = asyncio.Event()
        self._is_over = False
        self._idle = 0  # senders that wait for files
        self._results: list[FilePut] = []
        self._teller: asyncio.TimerHandle | None = None

    def take(self, message: MoreFiles | NoMoreFiles) -> None:
        """What the caller brings."""
        if isinstance(message, MoreFiles):
            self._waiting.extend(message.files)
        else:
            self._is_over = True
        self._is_more.set()

    async def run(self) -> AllFilesPut:
        """Sends files as they come, until the caller says that there are no more.

        Raises:
            ObsEngineError: none can be sent at all.
        """
        self.access.open(self._request, _NO_FILE)
        try:
            if len(self._request.dialects) > 1:
                found = await self._negotiator.dialect(self._request, self._service)
                if isinstance(found, Reply):
                    raise error_of(found, f"bucket {self._request.bucket}", "check its name and the endpoint")
                self._request = self._request.speaking(found)
                self._service.speak(self._request)
                self.access.open(self._request, _NO_FILE)
            await together(self._send_batches() for _ in range(self._session.limit))
            self._tell_results()
            return AllFilesPut()
        finally:
            if self._teller is not None:
                self._teller.cancel()
            self._session.close()

    async def _send_batches(self) -> None:
        while True:
            while not self._waiting:
                if self._is_over:
                    return
                self._is_more.clear()
                self._idle += 1
                try:
                    await self._is_more.wait()
                finally:
                    self._idle -= 1
            await self._send(self._batch())

    def _batch(self) -> deque[SmallFile]:
        """The next files: few where many senders could share them, or where each request has to wait its turn."""
        share = len(self._waiting) // (self._idle + 1)
        most = 1 if self._session.flow.is_paced else max(1, min(BATCH_FILES_MAX, share))
        found = deque([self._waiting.popleft()])
        size = found[0].size_bytes
        while self._waiting and len(found) < most and size + self._waiting[0].size_bytes <= BATCH_BYTES_MAX:
            size += self._waiting[0].size_bytes
            found.append(self._waiting.popleft())
        return found

    async def _send(self, files: deque[SmallFile]) -> None:
        def make_task(number: int) -> BatchTask:
            return BatchTask(number, self._session.upload, tuple(files), self._service.now_s())

        def look(outcome: Outcome) -> Outcome:
            if not isinstance(outcome, BatchDone):
                return outcome
            for stored in outcome.stored:
                files.popleft()
                self._add(stored)
                self.access.keys_have_worked = True
            return outcome.rest or outcome

        while files:
            size = sum(file.size_bytes for file in files)
            try:
                outcome = await self._service.settled(make_task, part_bytes=max(1, size), look=look)
                if isinstance(outcome, TaskReplied):
                    raise self._refusal(files[0], outcome.reply)
            except ObsEngineError as error:
                file = files.popleft()
                self._add(FilePut(file.number, file.size_bytes, 0, 0, error=ErrorInfo.of(error)))

    def _refusal(self, file: SmallFile, reply: Reply) -> ServiceError:
        return error_of(
            reply, f"object {self._request.bucket}/{file.key} of {file.path!r}",
            "check the permission PutObject, the key and the bucket",
        )  # fmt: skip

    def _add(self, result: FilePut) -> None:
        self._results.append(result)
        if self._teller is None:
            self._teller = asyncio.get_running_loop().call_later(TELL_S, self._tell_results)

    def _tell_results(self) -> None:
        self._teller = None
        if self._results:
            self._tell(FilesPut(tuple(self._results)))
            self._results.clear()
