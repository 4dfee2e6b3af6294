"""The object read back and compared with the file, a range at a time and many side by side. Runs in the coordinator.

The bytes meet in the workers (`comparison`), and what travels here is one number a range. Knows requests and their
repetition through `Service`; does not know why somebody wants to know.
"""

from __future__ import annotations

from collections.abc import Callable

from obs_engine.errors import ServiceError
from obs_engine.limits import MIB
from obs_engine.transfer.messages import Compared, CompareTask, TaskReplied
from obs_engine.transfer.pool import Session
from obs_engine.transfer.service import Service, together
from obs_engine.wire.replies import Reply, error_of

PIECE_MIN_BYTES, PIECE_MAX_BYTES = MIB, 16 * MIB
"""Of one GET: so many that all connections have work, so large that its round trip does not count, so small that little
is fetched again when one breaks off."""


async def first_difference(
    service: Service,
    session: Session,
    *,
    etag: str,
    size_bytes: int,
    version_id: str | None = None,
    on_piece: Callable[[int, int], None] | None = None,
) -> int | None:
    """Offset of the first byte in which object and file differ; None where they are equal.

    All bytes of both are read, up to the first difference: at most `session.limit` ranges at a time. A range that
    differs is fetched and compared once more, and the second look counts.

    Args:
        etag: of the object, as the service gave it, so that one that is replaced meanwhile is noticed; "" for any.
        size_bytes: of the object and of the file: who calls has found them equal.
        version_id: None for the newest.
        on_piece: told offset and length of each range that was compared, whatever came of it.

    Raises:
        ServiceError: refused (403 without the permission GetObject), or the object was replaced meanwhile (412).
        TransportError, SourceError: it could not be read; the file could not.
    """
    length = piece_bytes(size_bytes, session.limit)
    if etag and not etag.startswith(('"', "W/")):
        etag = f'"{etag}"'
    first: int | None = None
    waiting = iter(range(0, size_bytes, length))

    async def compare() -> None:
        nonlocal first
        for offset in waiting:
            if first is not None:
                return  # Ranges are begun in their order: all that lies before it is on its way.
            piece = min(length, size_bytes - offset)
            found = await _compared(service, session, offset, piece, etag, version_id)
            if found is not None:  # Why a second look: a bit that flipped on its way back is not the object's.
                found = await _compared(service, session, offset, piece, etag, version_id)
            if found is not None:
                first = found if first is None else min(first, found)
            if on_piece is not None:
                on_piece(offset, piece)

    await together(compare() for _ in range(min(session.limit, -(-size_bytes // length))))
    return first


def piece_bytes(size_bytes: int, connections: int) -> int:
    """Bytes of one range, whole MiB: an equal share for each connection, within bounds."""
    share = -(-size_bytes // connections)
    return min(max(-(-share // MIB) * MIB, PIECE_MIN_BYTES), PIECE_MAX_BYTES)


async def _compared(
    service: Service, session: Session, offset: int, length: int, etag: str, version_id: str | None
) -> int | None:
    outcome = await service.settled(
        lambda number: CompareTask(number, session.upload, offset, length, service.now_s(), etag, version_id)
    )
    if isinstance(outcome, TaskReplied):
        raise _refusal(outcome.reply, f"GetObject {service.what} (offset {offset})", etag)
    assert isinstance(outcome, Compared)
    return outcome.first_difference


def _refusal(reply: Reply, what: str, etag: str) -> ServiceError:
    if reply.status in (404, 412, 416):
        next_step = f"the object that had ETag {etag} was replaced or deleted while it was compared: call again"
    elif reply.status == 403:
        next_step = "check the credentials and the permission GetObject"
    else:
        next_step = "see errorCode, then call again"
    return error_of(reply, what, next_step)
