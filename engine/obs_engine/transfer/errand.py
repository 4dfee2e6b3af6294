"""One small request that belongs to no upload: a listing, a look at a bucket, an abort. Runs in the coordinator.

    agree on the dialect → send it by way of a worker → bring the reply back, whatever its status

The third story, and the shortest: it is here so that whoever looks after a bucket has the keys, the redirects, the
clock and the patience of an upload. Knows neither files nor journals, nor what the answer is good for.
"""

from __future__ import annotations

from collections.abc import Callable

from obs_engine.source.identity import FileIdentity
from obs_engine.transfer.access import Access
from obs_engine.transfer.messages import Answered, Ask, RequestTask, TaskReplied
from obs_engine.transfer.negotiation import Negotiator
from obs_engine.transfer.pool import Session
from obs_engine.transfer.service import Service
from obs_engine.wire.replies import Reply
from obs_engine.wire.requests import with_headers

_NO_FILE = FileIdentity(0, 0, 0, 0, 0)


class Errand:
    """One request of a caller in the coordinator."""

    def __init__(
        self, asked: Ask, session: Session, negotiator: Negotiator, tell: Callable[[object], None]
    ) -> None:
        """
        Args:
            session: this request's share of the workers.
            negotiator: knows which dialect a bucket understands.
            tell: sends a message to the caller.
        """
        self._asked = asked
        self._request = asked.upload
        self._session = session
        self._negotiator = negotiator
        self.access = Access(asked.upload, session, tell)
        self._service = Service(asked.upload, session, self.access, lambda: None)

    async def run(self) -> Answered:
        """Sends it, and again where that helps.

        Raises:
            ObsEngineError: no reply came.
        """
        self.access.open(self._request, _NO_FILE)
        try:
            if len(self._request.dialects) > 1:
                found = await self._negotiator.dialect(self._request, self._service)
                if isinstance(found, Reply):  # the bucket is missing, or down
                    return Answered(found)
                self._request = self._request.speaking(found)
                self._service.speak(self._request)
                self.access.open(self._request, _NO_FILE)
            return Answered(await self._reply())
        finally:
            self._session.close()

    async def _reply(self) -> Reply:
        service, upload = self._service, self._session.upload
        request = with_headers(self._asked.request, self._request.dialect.common)
        outcome = await service.settled(lambda number: RequestTask(number, upload, request, service.now_s()))
        assert isinstance(outcome, TaskReplied)
        return outcome.reply
