"""Of parts of which size may an ETag be made? Pure functions: nobody tells it, but few sizes are in use.

Source: AWS S3, "Checking object integrity", ETag of a multipart upload: the MD5 of the parts' MD5s, a hyphen, and
their number. OBS documents the same. With the object's size, the number alone leaves few candidates.
"""

from __future__ import annotations

import re

from obs_engine.limits import GIB, MIB, PART_SIZE_DEFAULT_BYTES, PART_SIZE_MIN_BYTES
from obs_engine.source.plan import plan_parts

_USUAL_MEGABYTES = (5, 8, 10, 15, 16, 20, 25, 32, 50, 64, 100, 128, 256, 512, 1024)
"""Defaults and round numbers of tools in use, as MiB or MB: 5 the least of S3 and rclone, 8 awscli, 10 Cyberduck, 15
s3cmd, 16 mc, 50 s5cmd. The official SDK's 9 MiB, and this engine's, come before all of them."""
_MB, _GB = 10**6, 10**9
_ETAG = re.compile(r"[0-9a-f]{32}(?:-([1-9][0-9]{0,4}))?")


def parts_of(etag: str) -> int | None:
    """How many parts an ETag (without quotes, in lower case) says that it is made of.

    Returns:
        0 for a plain MD5; None for an ETag of another kind.
    """
    found = _ETAG.fullmatch(etag)
    return None if found is None else int(found[1] or 0)


def part_sizes(size_bytes: int, parts: int) -> list[int]:
    """Part sizes in bytes, of those in use, that cut so many bytes into so many parts (1 or more); the likeliest first.
    """
    if parts == 1:
        return [max(1, size_bytes)]
    usual = [
        plan_parts(size_bytes, PART_SIZE_DEFAULT_BYTES).part_size_bytes,
        *(number * unit for unit in (MIB, _MB) for number in _USUAL_MEGABYTES),
        PART_SIZE_MIN_BYTES, 5 * GIB, 5 * _GB,
        -(-size_bytes // parts),
    ]  # fmt: skip
    return [size for size in dict.fromkeys(usual) if is_cut(size_bytes, size, parts)]


def is_cut(size_bytes: int, part_size_bytes: int, parts: int) -> bool:
    """Do parts of that size make so many of so many bytes?"""
    return max(1, -(-size_bytes // part_size_bytes)) == parts
