"""Reads a record of the official SDK (`esdk-obs-python`), sound or not, so that its upload can go on here.

The SDK rewrites its JSON after each part with neither a temporary file nor a lock, so records are torn, and contradict
themselves. What each kind of record comes to:

    whole                                            continued
    a part that is completed and has no ETag         continued, that part sent again
    no upload id, or torn before it                  the upload is searched on the service
    fileStatus that says nothing (`[]`)              continued, every part proven by its MD5
    uploadParts or partEtags that say nothing        continued, the plan and the parts taken from ListParts
    of another bucket or key                         another upload: refused, or left alone under a default name
    another size or time in fileStatus               the file changed: see the resume table
    `{}`, `[]`, another JSON, too little to tell     refused with the reason
    empty                                            no record: nothing in it says that there was an upload

Never writes: the record is kept aside as it is. Source: the SDK's `transfer.py`, and records that it left.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from obs_engine.errors import JournalError
from obs_engine.limits import OBJECT_SIZE_MAX_BYTES, PART_COUNT_MAX

# Not compiled here: every upload loads this module, and few need it.
_HEAD = r'\s*\{"bucketName": ("(?:[^"\\]|\\.)*"), "objectKey": ("(?:[^"\\]|\\.)*")'
_TIME_MAX_S = 1e12
_ETAG = r'"?[0-9A-Za-z-]{1,128}"?'


class SdkRecord(NamedTuple):
    """What can be known of an upload that the SDK began; None or empty where the record does not say.

    Attributes:
        path: as it was passed to the SDK, perhaps relative.
        size_bytes, mtime_s: the file as it was, the time as a float, as `os.stat` gives it.
        part_size_bytes: where the parts are of one size, the last one shorter.
        parts: ETags by number.
        claimed: numbers of parts that are said to be completed, without an ETag.
    """

    bucket: str
    key: str
    path: str | None = None
    upload_id: str | None = None
    size_bytes: int | None = None
    mtime_s: float | None = None
    part_size_bytes: int | None = None
    parts: Mapping[int, str] = MappingProxyType({})
    claimed: frozenset[int] = frozenset()

    def is_of(self, size_bytes: int, mtime_ns: int) -> bool | None:
        """Is it the record of a file of that size and time? None where it does not say."""
        if self.size_bytes is None or self.mtime_s is None:
            return None
        return (self.size_bytes, self.mtime_s) == (size_bytes, mtime_ns // 10**9 + 1e-9 * (mtime_ns % 10**9))


def read_sdk_record(data: bytes, path: str) -> SdkRecord:
    """The upload behind a record.

    Raises:
        JournalError: it is not recognised as a record of the SDK, or too little of it is left.
    """
    text = data.decode("ascii", "replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = _head(text, path)
    if not isinstance(said, dict):
        raise _refused(path, f"a JSON {type(said).__name__}")
    bucket, key = _text(said.get("bucketName")), _text(said.get("objectKey"))
    if bucket is None or key is None:
        raise _refused(path, "a JSON object without bucketName and objectKey")
    size, mtime = _file_status(said.get("fileStatus"))
    part_size, numbers, done = _slices(said.get("uploadParts"), size)
    etags = _etags(said.get("partEtags"))
    parts = {number: etag for number, etag in etags.items() if part_size is None or number in numbers}
    return SdkRecord(
        bucket, key, _text(said.get("uploadFile"), "surrogateescape"), _text(said.get("uploadId")), size, mtime,
        part_size, parts if part_size is not None else {},
        # Without a list of ETags nothing contradicts the flags: there is only nothing to hold against the service.
        frozenset(done - parts.keys()) if isinstance(said.get("partEtags"), list) else frozenset(),
    )  # fmt: skip


def _head(text: str, path: str) -> Any:
    """What is left of a record that was cut as it was written: its first fields name the target."""
    head = re.match(_HEAD, text)
    if head is not None:
        with contextlib.suppress(ValueError):  # an escape that is none
            return json.loads(head[0] + "}")
    raise _refused(path, f"text that is cut, or no JSON, beginning with {text[:24]!r}")


def _text(said: Any, errors: str = "strict") -> str | None:
    """A text with which a service or a file system can be asked; None for another value, or half a character."""
    with contextlib.suppress(UnicodeEncodeError):
        if isinstance(said, str) and said.encode("utf-8", errors):
            return said
    return None


def _file_status(said: Any) -> tuple[int | None, float | None]:
    match said:
        case [int(size), int() | float() as mtime, *_] if size >= 0 and abs(mtime) < _TIME_MAX_S:
            return size, float(mtime)
    return None, None


def _slices(said: Any, size: int | None) -> tuple[int | None, set[int], set[int]]:
    """The part size, the numbers of the parts, and of those that are said to be done; None for no sound plan."""
    nothing: tuple[None, set[int], set[int]] = (None, set(), set())
    if not isinstance(said, list) or not 1 <= len(said) <= PART_COUNT_MAX:
        return nothing
    part_size = end = 0
    done = set()
    for number, item in enumerate(said, 1):
        match item:
            case {"partNumber": int(n), "offset": int(offset), "length": int(length)} if length >= 0:
                part_size = part_size or length
                is_whole = length == part_size and (length > 0 or len(said) == 1)  # an empty file is one empty part
                is_last = 0 < length < part_size and number == len(said)
                if (n, offset) != (number, end) or not (is_whole or is_last):
                    return nothing
                end = offset + length
                if item.get("isCompleted") is True:
                    done.add(number)
            case _:
                return nothing
    if end > OBJECT_SIZE_MAX_BYTES or size not in (None, end):
        return nothing
    return max(1, part_size), set(range(1, len(said) + 1)), done


def _etags(said: Any) -> dict[int, str]:
    found = {}
    for item in said if isinstance(said, list) else []:
        match item:
            case {"partNum": int(number), "etag": str(etag)} if number >= 1 and re.fullmatch(_ETAG, etag):
                found[number] = etag
    return found


def _refused(path: str, found: str) -> JournalError:
    return JournalError(
        f"checkpoint file {path!r}: expected a journal, or a record of the official SDK, found {found}; it was left as "
        "it is: move it away to begin anew, or set EngineOptions(adopt=True) to look for its upload on the service",
        checkpoint_file=path,
    )
