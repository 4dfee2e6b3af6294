"""What an ETag says of the parts that it is made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obs_engine.limits import MIB, PART_SIZE_DEFAULT_BYTES
from obs_engine.source.plan import plan_parts
from obs_engine.transfer.part_sizes import is_cut, part_sizes, parts_of

MD5 = "d41d8cd98f00b204e9800998ecf8427e"


@pytest.mark.parametrize(
    ("etag", "parts"),
    [
        (MD5, 0), (f"{MD5}-1", 1), (f"{MD5}-10000", 10_000), ("", None), (f"{MD5}-0", None), (f"{MD5}-", None),
        (f"{MD5}-01", None), (f"{MD5}-100000", None), (f'"{MD5}"', None), (MD5.upper(), None), (MD5[1:], None),
        (f"{MD5}a", None), (f"W/{MD5}", None), (f"{MD5}-1-1", None),
    ],
)  # fmt: skip
def test_an_etag_says_how_many_parts(etag: str, parts: int | None) -> None:
    """None where it is of another kind, and nothing can be made to equal it."""
    assert parts_of(etag) == parts


@pytest.mark.parametrize(
    ("size", "parts", "first"),
    [
        (100 * MIB, 12, PART_SIZE_DEFAULT_BYTES), (100 * MIB, 13, 8 * MIB), (100 * MIB, 20, 5 * MIB),
        (100 * MIB, 7, 15 * MIB), (1_000_000_000, 200, 5_000_000), (2_047_223, 20, 102_400), (0, 1, 1), (7, 1, 7),
        (10_000 * PART_SIZE_DEFAULT_BYTES + 1, 10_000, PART_SIZE_DEFAULT_BYTES + 1),
        (3_000_000_000_000, 559, 5 << 30), (3_000_000_000_000, 600, 5_000_000_000), (12_345, 5, 2469),
    ],
)  # fmt: skip
def test_the_likeliest_size_comes_first(size: int, parts: int, first: int) -> None:
    """The official SDK's default, what it grows to, round numbers, and last an equal share."""
    assert part_sizes(size, parts)[0] == first


def test_a_number_of_parts_that_no_size_makes_has_no_candidate() -> None:
    """5 bytes are never 4 parts of one size."""
    assert part_sizes(5, 4) == []


@given(st.integers(0, 48 << 40), st.integers(100 << 10, 5 << 30))
def test_every_candidate_fits_and_the_default_is_found(size: int, asked: int) -> None:
    """Whatever the file: what was cut by a size that is in use is found by its number of parts."""
    plan = plan_parts(size, PART_SIZE_DEFAULT_BYTES)
    found = part_sizes(size, plan.part_count)
    assert all(is_cut(size, candidate, plan.part_count) for candidate in found)
    assert len(set(found)) == len(found)
    assert plan.part_count == 1 or found[0] == plan.part_size_bytes
    other = plan_parts(size, asked)
    assert is_cut(size, other.part_size_bytes, other.part_count)
