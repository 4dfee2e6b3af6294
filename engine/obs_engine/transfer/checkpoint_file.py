"""Which file holds the record of an upload, and whether it may be taken over. Runs in the coordinator.

Knows names, locks and owners; does not know what becomes of the upload that is recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from obs_engine.checkpoint.journal import Journal, JournalLike, NoJournal, peek
from obs_engine.checkpoint.records import Opened, target_digest
from obs_engine.checkpoint.sdk_record import SdkRecord, read_sdk_record
from obs_engine.errors import JournalError, JournalLockedError
from obs_engine.transfer.messages import UploadRequest

_log = logging.getLogger("obs_engine")

HOLDER_WAIT_S, HOLDER_LOOKS = 0.02, 50
"""How long a journal may be locked by somebody who has not yet said what he uploads to."""


class OpenRecord(NamedTuple):
    """A journal that is ours to write, and the official SDK's record where one stands in its place."""

    journal: JournalLike
    sdk: SdkRecord | None = None
    is_damaged: bool = False
    is_foreign: bool = False

    @property
    def is_appendable(self) -> bool:
        """May records follow what is there? Otherwise it must be written anew."""
        return not (self.is_damaged or self.is_foreign)


class _AnotherTarget(Exception):
    """The file holds the upload to another target."""


async def open_record(request: UploadRequest) -> OpenRecord:
    """Opens and locks the checkpoint file of a request's target; a sound journal bears our name from then on.

    Raises:
        JournalLockedError: another process uploads to this target.
        JournalError: the file belongs to another upload, is of no known kind, or cannot be used.
    """
    path = request.checkpoint_file
    if path is None:
        return OpenRecord(NoJournal())
    *shared, last = _names(path, request.target_name) if request.is_default_record else [path]
    for name in shared:
        with contextlib.suppress(_AnotherTarget):
            return await _open(name, request, is_shared=True)
    try:
        return await _open(last, request, is_shared=False)
    except _AnotherTarget as another:
        endpoint, bucket, key = request.target_name
        raise JournalError(
            f"checkpoint file {last!r}: expected the upload of {bucket}/{key} at {endpoint}, found that of {another}; "
            "name another checkpointFile, or delete this one to give that upload up",
            checkpoint_file=last,
        ) from None


def _names(path: str, target: tuple[str, str, str]) -> Iterator[str]:
    """Where the record of this target may be by default: `path`, or beside it where another target has that one.

    Why: the SDK lets two uploads of one file share a record, and each destroys the other's progress.
    """
    own = f"{path}.{hashlib.blake2b(chr(0).join(target).encode(), digest_size=4).hexdigest()}"
    if not os.path.exists(own):
        yield path
    yield own


async def _open(path: str, request: UploadRequest, *, is_shared: bool) -> OpenRecord:
    """Opens one file.

    Args:
        is_shared: the upload of another target may be at work on it.

    Raises:
        _AnotherTarget: it is the record of another, and was left as it is.
    """
    target = request.target_name
    opened = Opened(request.caller_pid, int(time.time()), target_digest(*target), os.uname().nodename)
    for look in range(HOLDER_LOOKS):
        try:
            journal = Journal(path, opened, is_power_safe=request.engine.durability == "power")
            break
        except JournalLockedError:
            held = peek(path)
            holder = held.opened if held is not None else None
            if is_shared and holder is not None and holder.target != opened.target:
                raise _AnotherTarget from None
            if holder is not None or not is_shared or look == HOLDER_LOOKS - 1:
                raise
            await asyncio.sleep(HOLDER_WAIT_S)
    try:
        sdk = _sdk_record(journal, path, is_optional=bool(request.engine.adopt))
        if (owner := _owner(journal, sdk, target)) is not None:
            raise _AnotherTarget(owner)
        found = OpenRecord(journal, sdk, journal.damage is not None, journal.foreign is not None)
        if journal.damage is not None:
            _log.warning("checkpoint file %s is damaged at %s", path, journal.damage)
        if found.is_appendable:
            journal.claim()
    except BaseException:
        journal.close()
        raise
    return found


def _sdk_record(journal: Journal, path: str, *, is_optional: bool) -> SdkRecord | None:
    if journal.foreign is None:
        return None
    try:
        return read_sdk_record(journal.foreign, path)
    except JournalError as error:
        if not is_optional:
            raise
        _log.warning("%s", error)  # the user says that there is an upload: the service knows it
        return None


def _owner(journal: Journal, sdk: SdkRecord | None, target: tuple[str, str, str]) -> str | None:
    """The other target that a record belongs to; None where it is ours, or nobody's."""
    if sdk is not None:
        return None if (sdk.bucket, sdk.key) == target[1:] else f"{sdk.bucket}/{sdk.key}"
    state = journal.state
    if state.binding is not None:
        is_ours, name = state.binding.target == target, "{1}/{2} at {0}".format(*state.binding.target)
    elif state.core:
        is_ours, name = state.core.endswith(target_digest(*target)), "another target (its name is damaged)"
    else:
        return None
    has_progress = state.upload_id is not None or state.parts or journal.damage is not None
    return name if has_progress and not is_ours else None
