"""Which signature a bucket understands, asked once in a while and remembered. Runs in the coordinator.

Source: the official SDK. `HEAD /?apiversion` needs no credentials; a bucket of OBS 3.0 answers with `x-obs-api`, an
older one without, and understands V2 alone.
"""

from __future__ import annotations

import random
import time

from obs_engine.transfer.messages import Dialect, UploadRequest
from obs_engine.transfer.service import Service
from obs_engine.wire.replies import Reply

NEWER_API = "3.0"
REMEMBERED_MAX = 1000
REMEMBERED_S = (900.0, 1200.0)
"""Between these, at random: many clients of one bucket must not ask all at once."""


class Negotiator:
    """What the buckets of one client have answered."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[bool, float]] = {}

    async def dialect(self, request: UploadRequest, service: Service) -> Dialect | Reply:
        """The dialect of the request that its bucket understands; or the bucket's refusal: it is missing, or down."""
        newer, older = request.dialects
        name = str(request.target.endpoint), request.bucket
        is_newer, until_s = self._known.get(name, (False, 0.0))
        if time.monotonic() >= until_s:
            reply = await service.probe()
            if reply.status == 404 or reply.status >= 500:
                return reply
            is_newer = (reply.header("x-obs-api") or "") >= NEWER_API
            if len(self._known) >= REMEMBERED_MAX:
                del self._known[next(iter(self._known))]
            self._known[name] = is_newer, time.monotonic() + random.uniform(*REMEMBERED_S)  # noqa: S311
        return newer if is_newer else older
