"""Laws that hold for any input: the cut into parts, journals, endpoints and keys."""

from __future__ import annotations

import contextlib
from urllib.parse import unquote, urlsplit

from hypothesis import given
from hypothesis import strategies as st

from obs_engine.checkpoint.fold import UploadState, fold_all
from obs_engine.checkpoint.journal import recover
from obs_engine.checkpoint.records import (
    Binding,
    Initiated,
    PartStored,
    Record,
    UnreadableRecord,
    decode,
    encode,
    header,
)
from obs_engine.errors import JournalDamagedError, JournalVersionError
from obs_engine.limits import OBJECT_SIZE_MAX_BYTES, PART_COUNT_MAX, PART_SIZE_MAX_BYTES, PART_SIZE_MIN_BYTES
from obs_engine.source.plan import plan_parts
from obs_engine.transfer.messages import Decoder, TaskReplied
from obs_engine.transfer.messages import encode as encode_message
from obs_engine.wire.endpoint import Endpoint
from obs_engine.wire.replies import Reply, read_completed, read_fault, read_parts_page

TEXT = st.text(min_size=1, max_size=40)
NUMBER = st.integers(0, 2**64 - 1)
TIME = st.integers(-(2**63), 2**63 - 1)


@given(size=st.integers(0, OBJECT_SIZE_MAX_BYTES), asked=st.integers(-5, 2**45))
def test_parts_cover_the_file_once(size: int, asked: int) -> None:
    """Parts are contiguous, end with the file, and keep the service's limits."""
    plan = plan_parts(size, asked)
    assert 1 <= plan.part_count <= PART_COUNT_MAX
    assert PART_SIZE_MIN_BYTES <= plan.part_size_bytes <= PART_SIZE_MAX_BYTES
    numbers = {1, plan.part_count, max(1, plan.part_count // 2), min(plan.part_count, plan.part_count // 2 + 1)}
    for number in numbers:
        offset, length = plan.part(number)
        assert offset == (number - 1) * plan.part_size_bytes
        assert length == plan.part_size_bytes or number == plan.part_count
        assert length > 0 or size == 0
    assert sum(plan.part(plan.part_count)) == size


@st.composite
def journals(draw: st.DrawFn) -> list[Record]:
    """A whole, consistent journal of up to 30 parts."""
    parts = draw(st.integers(1, 30))
    part_size = draw(st.integers(1, 2**40))
    size = (parts - 1) * part_size + draw(st.integers(1, part_size))
    binding = Binding(
        draw(TEXT), draw(TEXT), draw(TEXT), draw(TEXT), size, draw(TIME), draw(TIME), draw(NUMBER), draw(NUMBER),
        part_size, draw(st.binary(min_size=16, max_size=16)),
        draw(st.sampled_from([b"", b"c" * 16])),
    )  # fmt: skip
    stored = draw(st.lists(st.integers(1, parts), unique=True))
    return [binding, Initiated(draw(TEXT)), *(PartStored(n, draw(TEXT)) for n in stored)]


@given(records=journals(), data=st.data())
def test_a_cut_journal_holds_what_was_whole(records: list[Record], data: st.DataObject) -> None:
    """Whatever the cut, the state is that of a prefix of the records."""
    content = header() + b"".join(map(encode, records))
    cut = data.draw(st.integers(0, len(content)))
    found = recover(content[:cut], "j")
    assert found.sound_bytes <= cut
    assert found.state in [fold_all(records[:count]) for count in range(len(records) + 1)]
    assert recover(content, "j").state == fold_all(records)


@given(records=journals(), data=st.data())
def test_a_flipped_bit_never_invents_progress(records: list[Record], data: st.DataObject) -> None:
    """What is read from a damaged journal, if anything, is what was written of it."""
    content = bytearray(header() + b"".join(map(encode, records)))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        state = recover(bytes(content), "j").state
    except (JournalDamagedError, JournalVersionError):
        return
    assert state in [fold_all(records[:-1]), UploadState()]


@given(content=st.binary(max_size=300), offset=st.integers(0, 20))
def test_arbitrary_bytes_are_no_record(content: bytes, offset: int) -> None:
    """Reading never fails in another way than by saying so."""
    for start in (content, header() + content):
        with contextlib.suppress(JournalDamagedError, JournalVersionError):
            recover(start, "j")
    try:
        record, end = decode(content, min(offset, len(content)))
    except UnreadableRecord:
        return
    assert encode(record) == content[min(offset, len(content)) : end]


@given(bucket=st.from_regex(r"[a-z0-9][a-z0-9-]{1,20}[a-z0-9]", fullmatch=True), key=st.text(min_size=1, max_size=60))
def test_a_url_leads_back_to_its_key(bucket: str, key: str) -> None:
    """No key is spelled like another, in any style."""
    endpoint = Endpoint("https", "obs.x.com", 443)
    assert unquote(urlsplit(endpoint.url(bucket, key, "virtual")).path) == f"/{key}"
    assert unquote(urlsplit(endpoint.url(bucket, key, "path")).path) == f"/{bucket}/{key}"


@given(status=st.integers(100, 599), body=st.binary(max_size=200), headers=st.lists(st.tuples(TEXT, TEXT), max_size=3))
def test_any_reply_can_be_read_and_passed_on(status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
    """A service may answer anything; reading it and sending it between processes never fails."""
    reply = Reply(status, "reason", tuple(headers), body)
    read_fault(reply)
    read_completed(reply)
    read_parts_page(reply)
    assert list(Decoder().feed(encode_message(TaskReplied(1, reply)))) == [TaskReplied(1, reply)]
