"""The service as one upload speaks with it: small requests by way of the workers, repeated where that helps.

Knows requests and replies; does not know journals, plans or what an answer is good for.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from obs_engine.errors import (
    EngineDiedError,
    IntegrityError,
    ObsEngineError,
    ServiceError,
    SourceError,
)
from obs_engine.options import Verify
from obs_engine.transfer.access import KEY_CHANGES_MAX, Access
from obs_engine.transfer.messages import (
    BatchDone,
    BatchTask,
    Crc64Task,
    HashDone,
    HashTask,
    Md5Task,
    Outcome,
    PartStoredReply,
    PartTask,
    RequestTask,
    Task,
    TaskFailed,
    TaskReplied,
    UploadRequest,
)
from obs_engine.transfer.pool import Session, WorkerDied
from obs_engine.wire import requests
from obs_engine.wire.object_headers import by_effect
from obs_engine.wire.policy import REPEATING, Action, reply_row
from obs_engine.wire.replies import (
    ListedPart,
    ListedUpload,
    Reply,
    error_of,
    read_completed,
    read_fault,
    read_parts_page,
    read_upload_id,
    read_uploads_page,
)
from obs_engine.wire.requests import Request, with_headers

_log = logging.getLogger("obs_engine")

BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.2, 10.0
THROTTLED_MAX = 100
"""So often a request may be turned away from a service that lets others in, before that counts as failing."""
WAIT_ASKED_MAX_S = 120.0
"""Of the wait that a reply asks for (Retry-After), no more than this is heeded."""
WORKER_DEATHS_MAX = 5
UPLOAD_ID_LENGTH_MAX = 1024
MD5_LANES = 16
"""Ranges digested side by side in one task: what the widest kernel takes at once."""

_MULTIPART_ETAG = re.compile(r"[0-9a-f]{32}-[0-9]+")
_MD5_ETAG = re.compile(r"[0-9a-f]{32}")


class Found(NamedTuple):
    """What a look at the object told: the reply where it is ours, and whether it could be seen at all."""

    reply: Reply | None
    is_seen: bool = True


class Service:
    """Requests of one upload."""

    def __init__(
        self, request: UploadRequest, session: Session, access: Access, check_source: Callable[[], object]
    ) -> None:
        """
        Args:
            check_source: raises what is wrong with the file; asked where a worker died, perhaps of it.
        """
        self._request = request
        self._session = session
        self._access = access
        self._check_source = check_source
        self._bucket, self._key = request.bucket, request.key
        self.what = f"{request.bucket}/{request.key}"

    def speak(self, request: UploadRequest) -> None:
        """From here on in the request's dialect."""
        self._request = request

    # --- requests -----------------------------------------------------------------------------------------------

    async def probe(self) -> Reply:
        """What the service says of the bucket, to anybody who asks."""
        return await self._settled_reply(requests.probe(self._bucket))

    async def check_bucket(self) -> None:
        """HEAD bucket, as the official SDK sends it first.

        Raises:
            ServiceError: it is not there, or not for these credentials.
        """
        reply = await self._ask(requests.head_bucket(self._bucket))
        if reply.status > 300:
            raise error_of(
                reply,
                f"head bucket {self._bucket} failed. Please check. Status:{reply.status}. HEAD bucket",
                "check the bucket's name, its region's endpoint and the permission HeadBucket",
            )

    async def initiate(self) -> str:
        """Begins an upload and returns its id.

        Raises:
            ServiceError: refused.
        """
        request = self._request
        reply = await self._ask(
            requests.initiate(self._bucket, self._key, request.dialect.initiate, request.encoding_type)
        )
        upload_id = read_upload_id(reply) if reply.status < 300 else None
        if upload_id is None or len(upload_id) > UPLOAD_ID_LENGTH_MAX:
            fault = read_fault(reply)
            raise error_of(
                reply,
                f"initiateMultipartUpload failed. ErrorCode:{fault.code}. ErrorMessage:{fault.message}. {self.what}",
                "check the bucket, the endpoint, the credentials and the permission PutObject",
            )
        return upload_id

    async def parts(self, upload_id: str) -> dict[int, ListedPart] | Reply:
        """All parts that the service has of an upload, or its refusal.

        Raises:
            TransportError, ServiceError: no answer that is one.
        """
        found: dict[int, ListedPart] = {}
        marker = 0
        while True:
            reply = await self._ask(requests.list_parts(self._bucket, self._key, upload_id, marker))
            page = read_parts_page(reply) if reply.status == 200 else None
            if page is None:
                return reply
            found.update((part.part_number, part) for part in page.parts)
            if page.next_marker is None:
                return found
            if page.next_marker <= marker:
                raise self._endless("ListParts", reply)
            marker = page.next_marker

    async def uploads(self) -> list[ListedUpload] | Reply:
        """The open uploads of the key, or the refusal.

        Raises:
            TransportError, ServiceError: no answer that is one.
        """
        found: list[ListedUpload] = []
        markers = "", ""
        seen = {markers}
        while True:
            reply = await self._ask(requests.list_uploads(self._bucket, self._key, *markers))
            page = read_uploads_page(reply) if reply.status == 200 else None
            if page is None:
                return reply
            ours = [upload for upload in page.uploads if upload.key == self._key]
            found += ours
            # Keys come in order, and of all that begin with ours, ours is the first.
            if page.next_markers is None or len(ours) < len(page.uploads):
                return found
            markers = page.next_markers
            if markers in seen:
                raise self._endless("ListMultipartUploads", reply)
            seen.add(markers)

    async def complete(self, upload_id: str, etags: Sequence[str], crc64: int | None) -> Reply:
        """Complete with these ETags, of parts 1 to n, and the object's CRC-64 if it is known; whatever the answer."""
        parts = [(str(number), etag) for number, etag in enumerate(etags, 1)]
        checked = () if crc64 is None else (requests.crc64_header(self._request.dialect.signature, crc64),)
        return await self._ask(
            requests.complete(self._bucket, self._key, upload_id, parts, checked, self._request.encoding_type)
        )

    async def abort(self, upload_id: str) -> None:
        """Abort; one that is refused is logged, as nothing else can be done."""
        try:
            reply = await self._ask(requests.abort(self._bucket, self._key, upload_id))
            if reply.status >= 300 and reply.status != 404:
                raise error_of(reply, f"Abort of {self.what}", "abort it by other means, its parts are billed")
        except ObsEngineError as error:
            _log.warning("upload %s was left on the service: %s", upload_id, error)

    # --- the object ---------------------------------------------------------------------------------------------

    async def prove(
        self, reply: Reply, etags: Sequence[str], size_bytes: int, crc64: int | None, rung: Verify
    ) -> None:
        """A Complete that answered 2xx: is the object there, and is it ours, as far as the rung asks?

        Source: S3-like services answer 200 before they know, and put the error into the body.

        Raises:
            ServiceError: it was an error after all.
            IntegrityError: what was assembled is not what was sent.
        """
        completed = read_completed(reply)
        if completed is None:
            raise error_of(reply, f"Complete of {self.what}", "the parts are kept: call again")
        told = reply.own_header("checksum-crc64ecma")
        if crc64 is not None and told not in (None, str(crc64)):
            raise self._other_object(f"CRC-64 {crc64}", str(told))
        etag = (completed.etag or "").strip('"')
        expected = multipart_etag(etags)
        if rung == "length":
            await self._prove_length(size_bytes)
        if rung in ("none", "length") or expected is None or etag == expected:
            return
        if not _MULTIPART_ETAG.fullmatch(etag):
            # Some servers give no ETag here (Ceph), or one of another kind: then the object's size must do.
            head = await self.head()
            size = head.header("content-length")
            if head.status in (401, 403, 405) or (head.status == 200 and size == str(size_bytes)):
                return
            etag = f"{head.status}, {size} bytes"
        if has_foreign_etags(reply):
            return
        raise self._other_object(f"ETag {expected}", etag)

    async def _prove_length(self, size_bytes: int) -> None:
        head = await self.head()
        if head.status in (401, 403, 405):
            _log.warning("object %s may not be looked at (HEAD: status %d): its length is not verified",
                         self.what, head.status)  # fmt: skip
            return
        found = head.header("content-length") if head.status == 200 else f"status {head.status}"
        if found != str(size_bytes):
            raise self._other_object(f"{size_bytes} bytes", f"{found}")

    async def find_object(self, upload_id: str | None, etags: Sequence[str], size_bytes: int) -> Found:
        """The object's HEAD, if this upload made it.

        Source: OBS documents `x-obs-uploadId` of the object as the way to settle an unanswered Complete. Where the
        service has no such header, the multipart ETag over all parts proves as much.

        Args:
            etags: of all parts, or none where they are not all known.

        Raises:
            IntegrityError: it comes from this upload, and is not what was sent.
        """
        head = await self.head()
        if head.status != 200:
            if head.status != 404:
                _log.warning("object %s may not be looked at (HEAD: status %d)", self.what, head.status)
            return Found(None, is_seen=head.status == 404)
        expected = multipart_etag(etags)
        etag, made_by = (head.header("etag") or "").strip('"'), head.own_header("uploadid")
        if head.header("content-length") != str(size_bytes):
            return Found(None)
        if made_by is None or upload_id is None:
            # An older object may be of the same bytes; its metadata at least must be those asked for.
            is_ours = expected is not None and etag == expected and self._has_our_metadata(head)
            return Found(head if is_ours else None)
        if made_by != upload_id:
            return Found(None)
        if is_another_object(head, etags):
            raise self._other_object(f"ETag {expected}", etag)
        return Found(head)

    def _has_our_metadata(self, head: Reply) -> bool:
        ours, found = (
            {(name.lower().partition("meta-")[2], value) for name, value in headers}
            for headers in (self._request.object_options["metadata"], by_effect(head.headers)["metadata"])
        )
        return ours == found

    async def head(self, version_id: str | None = None, part_number: int | None = None) -> Reply:
        """HEAD object, of a version or a part of it where one is named; whatever the answer."""
        # Why the parts' headers: an object under the customer's own key is shown to who has that key.
        return await self._ask(
            requests.head_object(
                self._bucket, self._key, self._request.dialect.part, version_id=version_id, part_number=part_number
            )
        )

    def _other_object(self, expected: str, found: str) -> IntegrityError:
        return IntegrityError(
            f"object {self.what}: expected {expected}, found {found}; what the service assembled is not what was "
            "sent: delete the object and upload again"
        )

    # --- the file's bytes ---------------------------------------------------------------------------------------

    async def md5s(self, ranges: Sequence[tuple[int, int]]) -> list[str]:
        """MD5 of each range (offset, length) of the file, by the workers, as 32 hex digits.

        Raises:
            SourceError: the file cannot be read.
        """
        upload = self._session.upload
        groups = [tuple(ranges[at : at + MD5_LANES]) for at in range(0, len(ranges), MD5_LANES)]
        found = await self._digests([lambda task, g=group: Md5Task(task, upload, g) for group in groups])  # type: ignore[misc]
        return [md5 for digests in found for md5 in digests]

    async def crc64s(self, ranges: Sequence[tuple[int, int]]) -> list[int]:
        """CRC-64 of each range (offset, length) of the file, by the workers.

        Raises:
            SourceError: the file cannot be read.
        """
        upload = self._session.upload
        found = await self._digests([lambda task, at=at: Crc64Task(task, upload, *at) for at in ranges])  # type: ignore[misc]
        return [int(digest, 16) for (digest,) in found]

    async def pieces(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[str, ...]]:
        """xxh3-128 of each piece of each range (offset, length) of the file, by the workers, as 32 hex digits.

        Raises:
            SourceError: the file cannot be read.
        """
        upload = self._session.upload
        return await self._digests([lambda task, at=at: HashTask(task, upload, *at) for at in ranges])  # type: ignore[misc]

    async def _digests(self, tasks: Sequence[Callable[[int], Task]]) -> list[tuple[str, ...]]:
        """The digests of each task, in their order; one task in each worker at a time."""
        found: list[tuple[str, ...]] = [()] * len(tasks)
        waiting = iter(enumerate(tasks))

        async def digest() -> None:
            for index, make_task in waiting:
                outcome = await self.settled(make_task, is_local=True)
                assert isinstance(outcome, HashDone)
                found[index] = outcome.digests

        await together(digest() for _ in range(min(self._session.slots, len(tasks))))
        return found

    # --- asking workers -----------------------------------------------------------------------------------------

    async def _ask(self, request: Request) -> Reply:
        """Sends a small request with the caller's own headers; the last reply counts, whatever its status."""
        return await self._settled_reply(with_headers(request, self._request.dialect.common))

    async def _settled_reply(self, request: Request) -> Reply:
        outcome = await self.settled(lambda number: RequestTask(number, self._session.upload, request, self.now_s()))
        assert isinstance(outcome, TaskReplied)
        self._access.keys_have_worked |= request.is_signed and outcome.reply.status < 300
        return outcome.reply

    def now_s(self) -> float:
        """Seconds since 1970 by the service's clock, as far as it is known: what dates a signature."""
        return self._access.now_s()

    async def settled(
        self, make_task: Callable[[int], Task], *, part_bytes: int = 0, is_local: bool = False,
        look: Callable[[Outcome], Outcome] = lambda outcome: outcome,
    ) -> Outcome:  # fmt: skip
        """Runs a task until its outcome is final: good, hopeless, or tried often enough.

        Args:
            part_bytes: of the part that it sends; 0 where it sends none.
            is_local: it needs no connection.
            look: sees each outcome first, and says which one is to be judged.

        Raises:
            ObsEngineError: no reply came, or the source failed.
        """
        access, request, session = self._access, self._request, self._session
        deaths = attempt = redirects = key_changes = 0
        throttled, accepted = 0, session.flow.accepted
        is_fresh = False
        while True:
            await access.keep_fresh()
            version = access.version
            try:
                sending = session.compute(make_task) if is_local else self._sent(make_task, part_bytes, is_fresh)
                outcome = look(await sending)
            except WorkerDied as died:
                # A mapped file that was cut kills who reads it (SIGBUS): contained there, and told as what it is.
                self._check_source()
                # Why a count of its own: a worker's death says nothing against the service or the network.
                deaths += 1
                if deaths > WORKER_DEATHS_MAX:
                    raise EngineDiedError(f"{self.what}: {died}, {deaths} times in a row; call again") from died
                continue
            error = outcome.error.error() if isinstance(outcome, TaskFailed) else None
            if isinstance(error, SourceError):
                self._check_source()  # which sees the whole file, and says more
            action, reply = _action(outcome, error), outcome.reply if isinstance(outcome, TaskReplied) else Reply(0)
            # None of these three counts as an attempt: the request itself has not been looked at yet.
            if action is Action.FOLLOW and redirects < request.max_redirect_count and access.follow(reply):
                redirects += 1
                continue
            is_refused = action in (Action.RENEW_KEYS, Action.AWAIT_KEYS) and key_changes < KEY_CHANGES_MAX
            if is_refused and await access.has_other_keys(version, is_patient=action is Action.AWAIT_KEYS):
                key_changes += 1
                continue
            if action is Action.SET_CLOCK and access.set_clock(reply):
                continue
            if isinstance(outcome, (TaskReplied, PartStoredReply, BatchDone)):
                if action is Action.SLOW_DOWN:
                    session.flow.on_slow_down()
                else:
                    session.flow.on_accepted()
            # Who is turned away while others are let in has not failed: it waits its turn.
            is_crowded = action is Action.SLOW_DOWN and session.flow.accepted != accepted and throttled < THROTTLED_MAX
            is_attempt = not is_crowded or request.max_retry_count == 0
            throttled, accepted = throttled + is_crowded, session.flow.accepted
            if action not in REPEATING or (is_attempt and attempt == request.max_retry_count):
                if error is not None:
                    raise error
                return outcome
            attempt += is_attempt
            is_fresh = error is not None  # where one connection has failed, those beside it may be dead as well
            backoff_s = random.uniform(0, min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**attempt))  # noqa: S311
            await asyncio.sleep(backoff_s + min(access.wait_asked_s(reply), WAIT_ASKED_MAX_S))

    async def _sent(self, make_task: Callable[[int], Task], part_bytes: int, is_fresh: bool) -> Outcome:
        if not is_fresh:
            return await self._session.run(make_task, part_bytes=part_bytes)

        def fresh(number: int) -> Task:
            task = make_task(number)
            return task._replace(is_fresh=True) if isinstance(task, (PartTask, BatchTask, RequestTask)) else task

        return await self._session.run(fresh, part_bytes=part_bytes)

    def _endless(self, operation: str, reply: Reply) -> ServiceError:
        what = f"{operation} of {self.what}, whose pages do not advance"
        return error_of(replace(reply, body=b""), what, "report it to the service")


def multipart_etag(etags: Sequence[str]) -> str | None:
    """MD5 over the parts' MD5s; None without parts, and where their ETags are no MD5s (server-side encryption)."""
    bare = [bare_etag(etag) for etag in etags]
    if not bare or not all(map(is_md5, bare)):
        return None
    digest = hashlib.md5(b"".join(map(bytes.fromhex, bare)), usedforsecurity=False)
    return f"{digest.hexdigest()}-{len(bare)}"


def is_another_object(head: Reply, etags: Sequence[str]) -> bool:
    """Does an object's ETag say that it is not made of parts with these ETags? False also where it cannot tell."""
    expected, etag = multipart_etag(etags), bare_etag(head.header("etag") or "")
    is_comparable = expected is not None and _MULTIPART_ETAG.fullmatch(etag) and not has_foreign_etags(head)
    return bool(is_comparable) and etag != expected


def bare_etag(etag: str) -> str:
    """An ETag to compare: without its quotes, in lower case."""
    return etag.strip('"').lower()


def is_md5(bare: str) -> bool:
    """May this bare ETag be an MD5?"""
    return _MD5_ETAG.fullmatch(bare) is not None


def has_foreign_etags(reply: Reply) -> bool:
    """True under server-side encryption, where an ETag is not the MD5 of the data. Source: OBS API, ETag."""
    return any("server-side-encryption" in name for name, _ in reply.headers)


def _action(outcome: Outcome, error: ObsEngineError | None) -> Action:
    if error is not None:
        return Action.RETRY if error.is_retryable else Action.GIVE_UP
    if not isinstance(outcome, TaskReplied):
        return Action.TAKE
    reply = outcome.reply
    return reply_row(reply.status, read_fault(reply).code if reply.body else None).action


async def together(work: Iterable[Coroutine[Any, Any, None]], *stops: Awaitable[None]) -> None:
    """Waits for all; the first failure, of work or stop, cancels the rest and is raised."""
    tasks = [asyncio.ensure_future(item) for item in work]
    pending: set[asyncio.Future[None]] = set(tasks)
    extra = {asyncio.ensure_future(stop) for stop in stops}
    try:
        while pending:
            done, _ = await asyncio.wait(pending | extra, return_when=asyncio.FIRST_COMPLETED)
            for item in done:
                item.result()
            pending -= done
    finally:
        for item in pending:
            item.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
