"""What happens in a job, told to another program: one line of JSON for each event, as it happens.

Runs where the job runs. Knows names of events and a file; does not know what is done about them. Who reads may go away:
the job goes on without. A pipe whose reader is slow slows the job down.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable

from obs_engine.errors import InvalidArgumentError

_log = logging.getLogger("obs_engine")

EVENTS = (
    "began", "file_started", "part_stored", "file_done", "file_failed", "file_skipped", "progress", "throttled",
    "ended",
)  # fmt: skip
"""All that are told. Each has `event`, and `at`: seconds since 1970."""

Value = str | int | float | bool | None


class Events:
    """Writes events to a file, a pipe or a terminal."""

    def __init__(self, path: str, now: Callable[[], float]) -> None:
        """
        Args:
            path: appended to; created with mode 0600 where it is missing. A FIFO is waited for until somebody reads.
            now: seconds since 1970.

        Raises:
            InvalidArgumentError: it cannot be written.
        """
        self.path = path
        self._now = now
        self._lock = threading.Lock()
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o600)
        except OSError as error:
            raise InvalidArgumentError(
                "events", "a file that can be written", f"{path} ({error.strerror})", "name another one"
            ) from None

    def tell(self, event: str, **fields: Value) -> None:
        """Tells an event, one of `EVENTS`. Never fails: where it cannot be written, no more are told."""
        assert event in EVENTS, event
        line = json.dumps({"event": event, "at": round(self._now(), 3), **fields}).encode() + b"\n"
        with self._lock:
            try:
                while line and self._fd >= 0:
                    line = line[os.write(self._fd, line) :]
            except OSError as error:
                _log.warning("events %s: %s; no more are told", self.path, error.strerror)
                self._close()

    def close(self) -> None:
        """Ends the file."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
