"""The tail of an upload: a part that takes far longer than its peers is sent a second time. Runs in the coordinator.

A connection may crawl without ever failing: a bad path, a slow disk behind one host of the service. While other parts
are left to be sent that costs little; at the end everybody waits for it. So whoever has nothing left to send doubles
the part that is late by the measure of its peers, over another connection, and the first good answer counts. Both read
the same bytes of the same file, which the part's digest proves as for any part; the loser's connection is closed.
Precedent: Dean and Barroso, "The Tail at Scale": hedged requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from obs_engine.transfer.messages import PartTask
from obs_engine.transfer.pool import Attempt, Session

_log = logging.getLogger("obs_engine")

SAMPLES_MIN = 8
"""Parts that must be stored before one can be late."""
LATE_QUANTILE, LATE_TIMES, LATE_MIN_S = 0.9, 2.0, 0.3
"""Late is who takes twice as long as nine of ten did, and so long at least."""
EXTRA_MAX = 0.04
"""Of the bytes that this call sends: no more are sent twice."""
LOOK_S = 0.05


class Tail:
    """Watches over the parts of one upload that are on their way when nothing else is left to be sent.

    Attributes:
        doubled: parts that were sent twice at a time.
    """

    def __init__(self, session: Session, bytes_to_send: int, what: str) -> None:
        self._session = session
        self._what = what
        self._left_bytes = EXTRA_MAX * bytes_to_send
        self._idle = 0
        self._doubles: set[Attempt] = set()
        self._watch: asyncio.Future[None] | None = None
        self.doubled: set[int] = set()

    def on_idle(self) -> None:
        """A sender has nothing left to send: there is room for one part more."""
        self._idle += 1
        if self._watch is None:
            self._watch = asyncio.ensure_future(self._look_on())

    def stop(self) -> None:
        """Nothing more is doubled."""
        if self._watch is not None:
            self._watch.cancel()

    async def _look_on(self) -> None:
        while True:
            late_s = late_after_s(self._session.part_seconds)
            if late_s is not None:
                self._double_what_is_late(time.monotonic() - late_s)
            await asyncio.sleep(LOOK_S)

    def _double_what_is_late(self, before_s: float) -> None:
        """Those that were sent before this moment, the latest of all first."""
        self._doubles &= self._session.attempts
        late = [attempt for attempt in self._session.attempts - self._doubles if attempt.sent_s < before_s]
        for attempt in sorted(late, key=lambda attempt: attempt.sent_s):
            task = attempt.task
            if not isinstance(task, PartTask):
                continue
            is_room = len(self._doubles) < self._idle and task.length <= self._left_bytes
            if not is_room or not self._session.double(attempt):
                return
            self._doubles.add(attempt)
            self._left_bytes -= task.length
            self.doubled.add(task.part_number)
            _log.info("%s: part %d is late, and sent a second time", self._what, task.part_number)


def late_after_s(part_seconds: Sequence[float]) -> float | None:
    """After how many seconds a part is late, by what its peers took; None where too few are known."""
    if len(part_seconds) < SAMPLES_MIN:
        return None
    return max(LATE_MIN_S, LATE_TIMES * sorted(part_seconds)[int(LATE_QUANTILE * len(part_seconds))])
