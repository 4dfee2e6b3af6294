"""How a file is cut into parts."""

from __future__ import annotations

from dataclasses import dataclass

from obs_engine.errors import InvalidArgumentError
from obs_engine.limits import OBJECT_SIZE_MAX_BYTES, PART_COUNT_MAX, PART_SIZE_MAX_BYTES, PART_SIZE_MIN_BYTES


@dataclass(frozen=True)
class PartPlan:
    """Parts of one size, the last one shorter; an empty file is one empty part.

    Invariant: the parts cover the file once, without gap or overlap, and there are 1 to 10,000 of them.
    """

    size_bytes: int
    part_size_bytes: int

    @property
    def part_count(self) -> int:
        return max(1, -(-self.size_bytes // self.part_size_bytes))

    def part(self, part_number: int) -> tuple[int, int]:
        """Offset and length in bytes of a part, numbered from 1."""
        assert 1 <= part_number <= self.part_count
        offset = (part_number - 1) * self.part_size_bytes
        return offset, min(self.part_size_bytes, self.size_bytes - offset)


def plan_parts(size_bytes: int, asked_bytes: float) -> PartPlan:
    """Clamps the asked part size to 100 KB - 5 GB, and grows it where more than 10,000 parts would be needed.

    The size grows to `ceil(size / 10000)` and to no rounder number, as in the official SDK, whose records can so be
    continued.

    Raises:
        InvalidArgumentError: the file is larger than 10,000 parts of 5 GB.
    """
    if size_bytes > OBJECT_SIZE_MAX_BYTES:
        raise InvalidArgumentError(
            "uploadFile", f"at most {OBJECT_SIZE_MAX_BYTES} bytes (10,000 parts of 5 GB)", size_bytes, "split the file"
        )
    part_size = int(min(max(asked_bytes, PART_SIZE_MIN_BYTES), PART_SIZE_MAX_BYTES))
    if size_bytes > part_size * PART_COUNT_MAX:
        part_size = -(-size_bytes // PART_COUNT_MAX)
    return PartPlan(size_bytes, part_size)
