"""Is an object that is there already what a file is? Nothing is uploaded. Runs in the coordinator.

    identify → look at the object (HEAD) → by its CRC-64, its ETag or its content → identify again

The workers read the file; of the object, only a comparison of contents reads more than its HEAD. What each way proves
stands in SEMANTICS.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from obs_engine.errors import InvalidArgumentError
from obs_engine.source.filesystem import choose_reader
from obs_engine.source.identity import FileIdentity, identify, recheck
from obs_engine.source.page_cache import PageCache
from obs_engine.source.plan import PartPlan
from obs_engine.transfer.access import Access
from obs_engine.transfer.messages import Verified, VerifyRequest, VerifyResult
from obs_engine.transfer.negotiation import Negotiator
from obs_engine.transfer.part_sizes import is_cut, part_sizes, parts_of
from obs_engine.transfer.pool import Session
from obs_engine.transfer.progress import ProgressFeed
from obs_engine.transfer.readback import first_difference, piece_bytes
from obs_engine.transfer.service import (
    MD5_LANES,
    Service,
    bare_etag,
    has_foreign_etags,
    multipart_etag,
    together,
)
from obs_engine.wire.replies import Reply, error_of

_log = logging.getLogger("obs_engine")

_Range = tuple[int, int]
_Digest = TypeVar("_Digest")


class Verification:
    """One call of `verifyFile` in the coordinator."""

    def __init__(
        self, request: VerifyRequest, session: Session, negotiator: Negotiator, tell: Callable[[object], None]
    ) -> None:
        """
        Args:
            session: this comparison's share of the workers.
            negotiator: knows which dialect a bucket understands.
            tell: sends a message to the caller.
        """
        self._asked = request
        self._request = request.upload
        self._session = session
        self._negotiator = negotiator
        self.access = Access(request.upload, session, tell)
        self._service = Service(request.upload, session, self.access, self._check_source)
        self._progress = ProgressFeed(session, tell, is_wanted=request.upload.shows_progress)
        self._identity = FileIdentity(0, 0, 0, 0, 0)
        self._cache = PageCache(request.upload.path, 0, None)
        self._tally = _Tally()
        self._started_s = time.monotonic()
        self._compared_bytes = 0

    async def run(self) -> Verified:
        """Compares the file with the object.

        Raises:
            ObsEngineError: they could not be compared. That they differ is no error.
        """
        request = self._request
        self._identity = identify(request.path)
        if request.engine.reader == "auto":
            engine = replace(request.engine, reader=choose_reader(self._identity.device))
            request = self._request = replace(request, engine=engine)
        self._cache = PageCache(request.path, self._size, request.engine.page_cache_share)
        self.access.open(request, self._identity)
        try:
            _log.info("%s: comparing it with %r, %d bytes", self._what, request.path, self._size)
            await self._agree_on_dialect()
            result = await self._compared(_read_head(await self._service.head(self._asked.version_id), self._what))
            self._check_source()
        finally:
            self._session.close()
            self._cache.close()
            self._progress.stop()
        if result.is_equal:
            self._progress.end(PartPlan(self._size, 1))
        words = "is equal" if result.is_equal else f"differs: expected {result.expected}, found {result.found}"
        _log.info("%s: by %s, it %s (%.3f s)", self._what, result.against, words, result.seconds)
        return Verified(result)

    async def _agree_on_dialect(self) -> None:
        """Asks the bucket which signature it understands, where that is open."""
        if len(self._request.dialects) == 1:
            return
        found = await self._negotiator.dialect(self._request, self._service)
        if isinstance(found, Reply):
            raise error_of(found, f"bucket {self._request.bucket}", "check the bucket's name and the endpoint")
        self._request = self._request.speaking(found)
        self._service.speak(self._request)
        self.access.open(self._request, self._identity)

    def _check_source(self) -> None:
        """Is the file still the one that this call identified?

        Raises:
            SourceTruncatedError, SourceChangedError: it is not.
        """
        recheck(self._request.path, self._identity)

    # --- the three ways -----------------------------------------------------------------------------------------

    async def _compared(self, found: _Object) -> VerifyResult:
        against = self._way(found)
        if found.size_bytes != self._size:
            return self._result(against, f"{self._size} bytes", f"{found.size_bytes} bytes")
        if against == "crc64":
            return await self._by_crc64(found)
        if against == "etag":
            result = await self._by_etag(found)
            if result is not None:
                return result
        return await self._by_content(found)

    def _way(self, found: _Object) -> str:
        """The way that was asked for; or the first of the cheap ones that the object allows."""
        if self._asked.against != "auto":
            return self._asked.against
        if found.crc64 is not None:
            return "crc64"
        return "etag" if found.parts is not None and not found.is_encrypted else "content"

    async def _by_crc64(self, found: _Object) -> VerifyResult:
        from obs_engine.digests import crc64_combine

        if found.crc64 is None:
            raise InvalidArgumentError(
                f"against='crc64', {self._what}: expected the object's CRC-64 in the reply to HEAD, found none; "
                "compare against 'etag' or 'content'"
            )
        plan = PartPlan(self._size, piece_bytes(self._size, self._session.slots))
        pieces = _ranges(plan)
        crc64s = await self._digested(plan, [[piece] for piece in pieces], self._service.crc64s)
        joined = 0
        for crc64, (_, length) in zip(crc64s, pieces, strict=True):
            joined = crc64_combine(joined, crc64, length)
        return self._result("crc64", str(joined), str(found.crc64))

    async def _by_etag(self, found: _Object) -> VerifyResult | None:
        """None where only guessed part sizes speak against the object, and its content may be looked at instead."""
        if found.parts is None or found.is_encrypted:
            kind = "one of an encrypted object, which is no MD5" if found.is_encrypted else found.etag or "none"
            raise InvalidArgumentError(
                f"against='etag', {self._what}: expected an ETag that is made of MD5s, found {kind}; compare against "
                "'crc64' or 'content'"
            )
        sizes, are_guessed = [max(1, self._size)], False
        if found.parts > 1:
            sizes, are_guessed = await self._part_sizes(found.parts)
        is_auto = self._asked.against == "auto"
        if not sizes and not is_auto:
            raise InvalidArgumentError(
                f"partSize, {self._what}: expected the size of the parts that the object was uploaded in, found none "
                f"of the usual ones to make {found.parts} parts of {self._size} bytes; name it, or compare against "
                "'content'"
            )
        etags = []
        for size in sizes:
            etag = await self._etag(size, is_multipart=found.parts > 0)
            etags.append(etag)
            is_equal = etag == found.bare_etag
            if found.parts > 1:
                _log.info("%s: parts of %d bytes %s its ETag", self._what, size, "make" if is_equal else "do not make")
            if is_equal or not are_guessed:
                tried = sizes[: len(etags)] if found.parts else ()
                return self._result("etag", etag, found.bare_etag, size if found.parts else None, tried)
        if is_auto:
            _log.info("%s: no usual part size makes its ETag: its content is compared", self._what)
            return None
        return self._result("etag", " or ".join(etags), found.bare_etag, None, sizes)

    async def _part_sizes(self, parts: int) -> tuple[list[int], bool]:
        """Sizes that the parts may have, and whether that is a guess: the caller's word, the service's, or usual ones.

        Raises:
            InvalidArgumentError: the caller's word is not what the ETag says.
        """
        named = self._asked.part_size_bytes
        if named is not None:
            if not is_cut(self._size, named, parts):
                found = PartPlan(self._size, named).part_count
                raise InvalidArgumentError(
                    f"partSize, {self._what}: expected one that makes {parts} parts of {self._size} bytes, as the ETag "
                    f"says, found {named}, which makes {found}; name another, or none"
                )
            return [named], False
        first = await self._service.head(self._asked.version_id, part_number=1)
        told = first.header("content-length") or ""
        if first.status == 206 and told.isdecimal() and int(told) and is_cut(self._size, int(told), parts):
            return [int(told)], False
        return part_sizes(self._size, parts), True

    async def _etag(self, part_size_bytes: int, *, is_multipart: bool) -> str:
        """The ETag that the file would have."""
        plan = PartPlan(self._size, part_size_bytes)
        ranges = _ranges(plan)
        # Side by side on each core, and on all cores.
        lanes = min(MD5_LANES, -(-len(ranges) // self._session.slots))
        groups = [ranges[at : at + lanes] for at in range(0, len(ranges), lanes)]
        md5s = await self._digested(plan, groups, self._service.md5s)
        etag = multipart_etag(md5s) if is_multipart else md5s[0]
        assert etag is not None
        return etag

    async def _by_content(self, found: _Object) -> VerifyResult:
        self._begin(PartPlan(self._size, 1))
        first = await first_difference(
            self._service, self._session, etag=found.etag, size_bytes=self._size, version_id=self._asked.version_id,
            on_piece=lambda *piece: self._done([piece]),
        )  # fmt: skip
        expected = f"{self._size} equal bytes"
        if first is None:
            return self._result("content", expected, expected)
        return self._result("content", expected, f"another byte at offset {first}", first=first)

    # --- what they share ----------------------------------------------------------------------------------------

    async def _digested(
        self, plan: PartPlan, groups: Sequence[Sequence[_Range]],
        digest: Callable[[Sequence[_Range]], Awaitable[list[_Digest]]],
    ) -> list[_Digest]:  # fmt: skip
        """The digests of all ranges in their order, a group in each worker at a time."""
        self._begin(plan)
        found: list[list[_Digest]] = [[] for _ in groups]
        waiting = iter(enumerate(groups))

        async def work() -> None:
            for index, group in waiting:
                found[index] = await digest(group)
                self._done(group)

        await together(work() for _ in range(min(self._session.slots, len(groups))))
        return [one for group in found for one in group]

    def _begin(self, plan: PartPlan) -> None:
        self._tally = _Tally()
        self._progress.begin(self._tally, plan)

    def _done(self, ranges: Iterable[_Range]) -> None:
        for offset, length in ranges:
            self._cache.drop(offset, length)
            self._tally.parts.append(length)
            self._tally.bytes += length
            self._compared_bytes += length

    def _result(
        self, against: str, expected: str, found: str, part_size_bytes: int | None = None,
        tried: Sequence[int] = (), first: int | None = None,
    ) -> VerifyResult:  # fmt: skip
        return VerifyResult(
            expected == found, against, expected, found, self._size, part_size_bytes,
            tuple(tried), first, self._compared_bytes, time.monotonic() - self._started_s,
        )  # fmt: skip

    @property
    def _size(self) -> int:
        return self._identity.size_bytes

    @property
    def _what(self) -> str:
        return self._service.what


class _Tally:
    """Bytes that were digested or compared, and lengths of the ranges."""

    def __init__(self) -> None:
        self.parts: list[int] = []
        self.bytes = 0

    def stored_bytes(self) -> int:
        return self.bytes


class _Object(NamedTuple):
    """What HEAD says of the object.

    Attributes:
        etag: as it came; "" for none.
        parts: of a multipart ETag; 0 for a plain MD5, None for an ETag of another kind.
        crc64: None where the service keeps none.
    """

    size_bytes: int
    etag: str
    parts: int | None
    crc64: int | None
    is_encrypted: bool

    @property
    def bare_etag(self) -> str:
        return bare_etag(self.etag)


def _read_head(reply: Reply, what: str) -> _Object:
    length, crc64 = reply.header("content-length") or "", reply.own_header("checksum-crc64ecma") or ""
    if reply.status != 200 or not length.isdecimal():
        next_step = {
            404: "there is no such object (or version): check bucket and key",
            400: "an object under a key of yours is shown to who brings that key: give headers.sseHeader",
            403: "check the credentials and the permission GetObject",
        }.get(reply.status, "see the status, then call again")
        raise error_of(reply, f"HeadObject {what}", next_step)
    etag = reply.header("etag") or ""
    return _Object(
        int(length), etag, parts_of(bare_etag(etag)), int(crc64) if crc64.isdecimal() else None,
        has_foreign_etags(reply),
    )  # fmt: skip


def _ranges(plan: PartPlan) -> list[_Range]:
    return [plan.part(number) for number in range(1, plan.part_count + 1)]
