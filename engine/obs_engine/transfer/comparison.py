"""A range of the object against the same range of the file, as its bytes arrive. Runs in a worker.

No more of it is kept than what libcurl hands over at once: a piece is compared and forgotten. What the reply says of
itself (its range, its ETag) is looked at when all of it is there. Knows windows and replies; does not know sockets.
"""

from __future__ import annotations

from obs_engine.errors import ObsEngineError, ServiceError, TransportError
from obs_engine.source.window import Window
from obs_engine.transfer.messages import Compared, CompareTask, ErrorInfo, Outcome, TaskFailed, TaskReplied
from obs_engine.wire.replies import Reply


class Comparison:
    """How far a range is compared.

    Attributes:
        taken_bytes: of the reply's body.
        first_difference: offset in the file; None as long as there is none.
    """

    def __init__(self, task: CompareTask, window: Window, what: str) -> None:
        """
        Args:
            window: onto the range of the file; whoever opened it closes it.
            what: names the object in messages.
        """
        self.taken_bytes = 0
        self.first_difference: int | None = None
        self._task = task
        self._window = window
        self._what = what

    def take(self, data: bytes) -> None:
        """The next bytes of the object.

        Raises:
            SourceError: the file cannot be read.
            ServiceError: more bytes than were asked for.
        """
        start = self.taken_bytes
        self.taken_bytes += len(data)
        if self.taken_bytes > self._task.length:
            raise self._strange(f"{self._task.length} bytes", "more")
        if self.first_difference is None:
            ours = bytes(self._window[start : self.taken_bytes])  # Why a copy: views are compared item by item
            if ours != data:
                at = next(at for at, (mine, other) in enumerate(zip(ours, data, strict=True)) if mine != other)
                self.first_difference = self._task.offset + start + at

    def outcome(self, result: Reply | ObsEngineError) -> Outcome:
        """What the end of the transfer means; a refusal goes back as it is."""
        number = self._task.task
        if isinstance(result, Reply):
            if result.status not in (200, 206):
                return TaskReplied(number, result)
            fault = self._fault(result)
            if fault is None:
                return Compared(number, self.first_difference)
            result = fault
        return TaskFailed(number, ErrorInfo.of(result))

    def _fault(self, reply: Reply) -> ObsEngineError | None:
        """What is wrong with a success: the bytes must be those that were asked for, and all of them."""
        task = self._task
        etag = reply.header("etag")
        if task.etag and etag is not None and etag.strip('"') != task.etag.strip('"'):
            return self._strange(f"ETag {task.etag}, as it had when the comparison began", f"ETag {etag}")
        asked = f"bytes {task.offset}-{task.offset + task.length - 1}/"
        found = reply.header("content-range") or f"status {reply.status} without a range"
        # A service that knows no ranges may send all of an object where that is what was asked for.
        is_all = reply.status == 200 and task.offset == 0
        if not (is_all or found.startswith(asked)):
            return self._strange(asked.rstrip("/"), found)
        if self.taken_bytes < task.length:
            return TransportError(
                f"GetObject {self._what} (offset {task.offset}): expected {task.length} bytes, found "
                f"{self.taken_bytes}; check the network, then call again"
            )
        return None

    def _strange(self, expected: str, found: str) -> ServiceError:
        return ServiceError(
            f"GetObject {self._what} (offset {self._task.offset}): expected {expected}, found {found}; the object was "
            "replaced, or the service does not do as asked: call again"
        )
