"""A range of an object against the file's: whatever pieces it arrives in, and whatever the service says of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obs_engine.errors import ServiceError, TransportError
from obs_engine.limits import MIB
from obs_engine.transfer.comparison import Comparison
from obs_engine.transfer.messages import (
    Compared,
    CompareTask,
    Decoder,
    TaskFailed,
    TaskReplied,
    Verified,
    VerifyResult,
    encode,
)
from obs_engine.transfer.readback import PIECE_MAX_BYTES, PIECE_MIN_BYTES, piece_bytes
from obs_engine.wire.replies import Reply
from obs_engine.wire.requests import get_object, head_object

OFFSET, DATA = 1000, bytes(range(100))
RANGE = ("content-range", "bytes 1000-1099/5000")
ETAG = ("etag", '"e"')


def comparison(offset: int = OFFSET) -> Comparison:
    window: Any = memoryview(DATA)
    return Comparison(CompareTask(7, 1, offset, len(DATA), 0.0, '"e"'), window, "b/k")


def outcome_of(body: bytes, *headers: tuple[str, str], status: int = 206, offset: int = OFFSET) -> Any:
    made = comparison(offset)
    made.take(body)
    return made.outcome(Reply(status, "", headers))


@given(st.lists(st.integers(0, 99)), st.sets(st.integers(0, 99)))
def test_the_first_difference_is_found_in_whatever_pieces_it_arrives(cuts: list[int], wrong: set[int]) -> None:
    """Its offset is that in the file; there is none where there is none."""
    other = bytes(byte ^ 1 if at in wrong else byte for at, byte in enumerate(DATA))
    made = comparison()
    edges = sorted({0, *cuts, 100})
    for start, stop in pairwise(edges):
        made.take(other[start:stop])
    found = made.outcome(Reply(206, "", (RANGE, ETAG)))
    assert found == Compared(7, OFFSET + min(wrong) if wrong else None)


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ([("content-range", "bytes 0-99/5000"), ETAG], 206, "expected bytes 1000-1099, found bytes 0-99/5000"),
        ([ETAG], 206, "found status 206 without a range"),
        ([ETAG], 200, "found status 200 without a range"),
        ([RANGE, ("etag", '"f"')], 206, 'expected ETag "e", as it had when the comparison began, found ETag "f"'),
    ],
)  # fmt: skip
def test_bytes_of_another_range_or_object_are_an_error(
    headers: list[tuple[str, str]], status: int, words: str
) -> None:
    """A service that ignores Range or If-Match is noticed."""
    found = outcome_of(DATA, *headers, status=status)
    assert isinstance(found, TaskFailed)
    assert isinstance(found.error.error(), ServiceError)
    assert words in found.error.message


def test_a_whole_object_may_come_without_a_range() -> None:
    """It is what was asked for."""
    assert outcome_of(DATA, ETAG, status=200, offset=0) == Compared(7, None)


def test_too_few_bytes_are_asked_for_again_and_too_many_end_the_transfer() -> None:
    """Neither is taken for equal."""
    found = outcome_of(DATA[:99], RANGE, ETAG)
    assert isinstance(found, TaskFailed)
    assert isinstance(found.error.error(), TransportError)
    assert found.error.error().is_retryable
    made = comparison()
    made.take(DATA)
    with pytest.raises(ServiceError, match=r"offset 1000.*expected 100 bytes, found more"):
        made.take(b"x")


def test_a_refusal_goes_back_as_it_is() -> None:
    """With its body, which says why."""
    reply = Reply(412, "Precondition Failed", (), b"<Error/>")
    assert comparison().outcome(reply) == TaskReplied(7, reply)


def test_requests_of_a_comparison() -> None:
    """Range, If-Match, version and part stand where the service looks for them."""
    found = get_object("b", "k", (("a", "b"),), start=5, stop=8, version_id="V", if_match='"e"')
    assert (found.query, found.headers) == (
        (("versionId", "V"),), (("a", "b"), ("Range", "bytes=5-7"), ("If-Match", '"e"')),
    )  # fmt: skip
    assert (get_object("b", "k").query, get_object("b", "k").headers) == ((), ())
    assert head_object("b", "k", version_id="V", part_number=1).query == (("partNumber", "1"), ("versionId", "V"))
    assert head_object("b", "k").query == ()


def test_a_result_crosses_processes_whole() -> None:
    """None, tuples and texts as they were."""
    messages = [
        Verified(VerifyResult(False, "etag", "a-2 or b-2", "c-2", 7, None, (4, 5), None, 14, 0.5)),
        CompareTask(1, 2, 3, 4, 5.0, '"e"', None), Compared(1, None), Compared(1, 1 << 45),
    ]  # fmt: skip
    assert list(Decoder().feed(b"".join(map(encode, messages)))) == messages


@given(st.integers(0, 48 << 40), st.integers(1, 10_000))
def test_ranges_are_shares_within_bounds(size: int, connections: int) -> None:
    """Whole MiB, so that no page is mapped twice; never more than a piece of the documented size."""
    found = piece_bytes(size, connections)
    assert PIECE_MIN_BYTES <= found <= PIECE_MAX_BYTES
    assert found % MIB == 0
    assert found == PIECE_MAX_BYTES or found * connections >= size
