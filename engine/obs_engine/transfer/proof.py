"""Is what the service stored of a part what the file holds? Runs in the coordinator.

By the MD5 of the part, which its ETag must be. MD5 is serial within a part and 16 parts cost little more than one, so
the parts that are to be sent next are digested side by side, a little ahead of the connections (`_Md5s`). Where parts
are so large that so many of them would leave the page cache before they are sent, the worker digests each part behind
its own sending instead. Where ETags are no MD5s (server-side encryption), the MD5 goes along as Content-MD5, which the
service checks. Where the service checks a CRC-64, no MD5 is needed at all.
"""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from collections.abc import Sequence
from typing import NamedTuple

from obs_engine.limits import MIB
from obs_engine.source.plan import PartPlan
from obs_engine.transfer.messages import PartStoredReply
from obs_engine.transfer.service import MD5_LANES, Service, bare_etag, is_md5

_log = logging.getLogger("obs_engine")

AHEAD_MAX_BYTES = 512 * MIB
"""Of parts digested together: what the page cache must keep from their digest to their sending."""
AHEAD_LANES_MIN = 8
"""Fewer parts side by side are no better than those that a worker has in flight anyway."""
RESENDS_MAX = 3
"""So often a part is read and sent again whose bytes did not arrive as they are in the file."""


class Mismatch(NamedTuple):
    """What was expected and found, in words; `is_corrupt` is False where it could only not be compared."""

    expected: str
    found: str
    is_corrupt: bool = True


class PartProof:
    """Judges what the service says of each part, by the rung of verification that was asked for."""

    def __init__(
        self, service: Service, plan: PartPlan, missing: Sequence[int], *, compares_etags: bool, is_crc64: bool,
        has_foreign_etags: bool,
    ) -> None:  # fmt: skip
        """
        Args:
            missing: the parts that are to be sent, in this order.
            compares_etags: the MD5 of each part is to be what its ETag says.
            is_crc64: the service is asked to check a CRC-64 of each part.
            has_foreign_etags: it is known that ETags are no MD5s.
        """
        self._what = service.what
        self._compares_etags = compares_etags
        self._is_crc64 = is_crc64
        self._sends_md5 = compares_etags and has_foreign_etags
        self._has_odd_etags = False  # seen
        self._md5s = _Md5s(service, plan, missing)

    @property
    def may_double(self) -> bool:
        """May two attempts at a part be on their way at a time? Not where each may have another ETag."""
        return not self._sends_md5 and not self._has_odd_etags

    @property
    def follows(self) -> bool:
        """Shall the worker digest a part behind its sending?"""
        return self._compares_etags and not self._sends_md5 and not self._md5s.is_ahead

    def begin(self, number: int) -> None:
        """The part is about to be sent."""
        if self._compares_etags and (self._sends_md5 or self._md5s.is_ahead):
            self._md5s.begin(number)

    async def content_md5(self, number: int) -> str:
        """What to send along as Content-MD5; "" for nothing.

        Raises:
            SourceError: the file cannot be read.
        """
        if not self._sends_md5:
            return ""
        return b64encode(bytes.fromhex(await self._md5s.get(number))).decode()

    async def mismatch(
        self, number: int, reply: PartStoredReply, content_md5: str, *, is_doubled: bool = False
    ) -> Mismatch | None:
        """What speaks against a part that the service says it stored; None where it is proven as far as was asked.

        Args:
            is_doubled: two attempts were on their way, which must have been of the same bytes, whatever was asked.

        Raises:
            SourceError: the file cannot be read.
        """
        if self._is_crc64 and not reply.is_crc64_shown and not self._compares_etags:
            _log.warning("%s: the service shows no CRC-64 of parts: their MD5s are compared instead", self._what)
            self._compares_etags = True
        etag = bare_etag(reply.etag)
        self._has_odd_etags |= reply.is_encrypted or not is_md5(etag)
        is_compared = self._compares_etags or (is_doubled and not self._is_crc64 and not self._has_odd_etags)
        if not is_compared or content_md5:
            return None
        if not self._compares_etags:
            self._md5s.forget(number)  # this one alone, and not those beside it
        md5 = reply.md5 or await self._md5s.get(number)
        if etag == md5:
            return None
        if reply.is_encrypted or not is_md5(etag):
            if not self._sends_md5:
                _log.info("%s: ETags are no MD5s here: Content-MD5 is sent for the service to check", self._what)
            self._sends_md5 = True
            return Mismatch("an ETag that can be compared", reply.etag, is_corrupt=False)
        self._md5s.forget(number)  # perhaps it is ours that is wrong: it is read again
        return Mismatch(f"ETag {md5}", etag)

    def stop(self) -> None:
        """Nobody wants the digests any more."""
        self._md5s.stop()


class _Md5s:
    """MD5s of parts, in groups of those that are sent one after the other."""

    def __init__(self, service: Service, plan: PartPlan, numbers: Sequence[int]) -> None:
        lanes = min(MD5_LANES, AHEAD_MAX_BYTES // plan.part_size_bytes)
        self.is_ahead = lanes >= AHEAD_LANES_MIN
        lanes = max(1, lanes)
        self._service = service
        self._plan = plan
        groups = [tuple(numbers[at : at + lanes]) for at in range(0, len(numbers), lanes)]
        self._groups = {number: group for group in groups for number in group}
        self._found: dict[int, str] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def begin(self, number: int) -> None:
        if number not in self._found and number not in self._tasks:
            group = self._groups[number]
            task = asyncio.ensure_future(self._digest(group))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # `get` raises it
            self._tasks.update(dict.fromkeys(group, task))

    async def get(self, number: int) -> str:
        self.begin(number)
        if number in self._tasks:
            await asyncio.shield(self._tasks[number])  # others wait for the same group
        return self._found[number]

    def forget(self, number: int) -> None:
        self._found.pop(number, None)
        self._tasks.pop(number, None)
        self._groups[number] = (number,)

    def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _digest(self, group: tuple[int, ...]) -> None:
        md5s = await self._service.md5s([self._plan.part(number) for number in group])
        self._found.update(zip(group, md5s, strict=True))
        for number in group:
            self._tasks.pop(number, None)
