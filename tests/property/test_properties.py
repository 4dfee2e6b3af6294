"""Laws that hold for any input: the cut into parts, journals, endpoints and keys."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterable
from dataclasses import replace
from urllib.parse import unquote, urlsplit

from hypothesis import given
from hypothesis import strategies as st

from obs_engine.checkpoint.fingerprint import GROUPS, Fingerprint, fingerprint
from obs_engine.checkpoint.fold import UploadState, fold_all, salvage
from obs_engine.checkpoint.records import (
    HEADER_BYTES,
    Binding,
    Completed,
    Initiated,
    Opened,
    PartStored,
    Record,
    UnreadableRecord,
    core_of,
    decode,
    encode,
    header,
    path_end,
    restored,
)
from obs_engine.checkpoint.recovery import recover
from obs_engine.errors import JournalDamagedError, JournalVersionError
from obs_engine.limits import OBJECT_SIZE_MAX_BYTES, PART_COUNT_MAX, PART_SIZE_MAX_BYTES, PART_SIZE_MIN_BYTES
from obs_engine.source.plan import plan_parts
from obs_engine.transfer.messages import Decoder, TaskReplied
from obs_engine.transfer.messages import encode as encode_message
from obs_engine.wire.endpoint import Endpoint
from obs_engine.wire.replies import Reply, read_completed, read_fault, read_parts_page, read_uploads_page

TEXT = st.text(min_size=1, max_size=40)
NUMBER = st.integers(0, 2**64 - 1)
TIME = st.integers(-(2**63), 2**63 - 1)
DIGEST = st.binary(min_size=16, max_size=16)
OPENED = st.builds(Opened, st.integers(0, 2**32 - 1), TIME, DIGEST, st.text(max_size=16))


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
    """A whole, consistent journal of up to 30 parts, which several processes wrote one after the other."""
    parts = draw(st.integers(1, 30))
    part_size = draw(st.integers(1, 2**40))
    size = (parts - 1) * part_size + draw(st.integers(1, part_size))
    binding = Binding(
        draw(TEXT), draw(TEXT), draw(TEXT), draw(TEXT), size, draw(TIME), draw(TIME), draw(NUMBER), draw(NUMBER),
        part_size, draw(st.builds(Fingerprint, DIGEST, st.tuples(DIGEST, DIGEST, DIGEST))),
    )  # fmt: skip
    stored = draw(st.lists(st.integers(1, parts), unique=True) | st.permutations(range(1, parts + 1)))
    records: list[Record] = [binding, Initiated(draw(TEXT), core_of(binding))]
    records += (PartStored(n, draw(TEXT), draw(DIGEST | st.just(b""))) for n in stored)
    if len(stored) == parts and draw(st.booleans()):
        records.append(Completed())
    for place in sorted(draw(st.lists(st.integers(0, len(records)), max_size=3)), reverse=True):
        records.insert(place, draw(OPENED))
    return records


def bytes_of(records: Iterable[Record]) -> bytes:
    return header() + b"".join(map(encode, records))


def is_of(state: UploadState, records: list[Record]) -> bool:
    """Was everything in the state written?"""
    said = salvage(records)
    return (
        state.parts.items() <= said.parts.items()
        and state.contents.items() <= said.contents.items()
        and state.upload_id in (None, said.upload_id)
        and state.core in (b"", said.core)
        and state.binding in (None, said.binding)
        and state.is_completed <= said.is_completed
        and state.opened in (None, *records)
    )


@given(records=journals(), data=st.data())
def test_a_cut_journal_holds_what_was_whole(records: list[Record], data: st.DataObject) -> None:
    """Whatever the cut, the state is that of a prefix of the records, and there is no damage."""
    content = bytes_of(records)
    cut = data.draw(st.integers(0, len(content)))
    found = recover(content[:cut], "j")
    assert found.sound_bytes <= cut
    assert found.damage is None
    assert found.state in [fold_all(records[:count]) for count in range(len(records) + 1)]
    assert recover(content, "j").state == fold_all(records)


@given(records=journals(), data=st.data())
def test_a_wrong_byte_costs_its_own_record(records: list[Record], data: st.DataObject) -> None:
    """It is damage, or the last record torn; all others still count."""
    content = bytearray(bytes_of(records))
    offset = data.draw(st.integers(0, len(content) - 1))
    content[offset] ^= data.draw(st.integers(1, 255))
    hit = sum(len(bytes_of(records[:count])) <= offset for count in range(len(records) + 1)) - 1
    found = recover(bytes(content), "j")
    assert found.state == salvage(records[:hit] + records[hit + 1 :] if hit >= 0 else records)
    assert (found.damage is None) == (hit == len(records) - 1)
    assert found.damage is None or found.damage.offset == (len(bytes_of(records[:hit])) if hit >= 0 else 0)


@given(records=journals(), data=st.data())
def test_damage_never_invents_progress(records: list[Record], data: st.DataObject) -> None:
    """However much is overwritten, left out or doubled: what is read was written."""
    content = bytearray(bytes_of(records))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(HEADER_BYTES, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 600)))
        content[start:end] = data.draw(st.sampled_from([b"", bytes(end - start), content[start:end] * 2, b"\1\0" * 20]))
    found = recover(bytes(content), "j")
    assert is_of(found.state, records)
    assert found.sound_bytes <= len(content)
    assert all(record in records for _, record in found.records)


@given(records=journals(), data=st.data())
def test_salvage_never_invents(records: list[Record], data: st.DataObject) -> None:
    """From any of the records, in any order, comes a part of what all of them say; from all of them, just that."""
    some = data.draw(st.lists(st.sampled_from(records)))
    assert is_of(salvage(some), records)
    assert salvage(records) == fold_all(records)


@given(records=journals(), data=st.data())
def test_a_state_is_the_fold_of_its_records(records: list[Record], data: st.DataObject) -> None:
    """So a journal that is written anew says what the old one said; without the name of who wrote it."""
    state = fold_all(records[: data.draw(st.integers(0, len(records)))])
    assert fold_all(state.records()) == replace(state, opened=None)
    assert recover(bytes_of(state.records()), "j").state == replace(state, opened=None)
    assert len(state.records()) <= len(records)


@given(records=journals(), path=st.binary(max_size=400), other=TEXT)
def test_an_upload_id_restores_its_binding(records: list[Record], path: bytes, other: str) -> None:
    """For the target that it was made for, and no other."""
    binding = next(record for record in records if isinstance(record, Binding))
    name = "/" + path.decode("utf-8", "surrogateescape")
    found = restored(core_of(binding), *binding.target, name)
    assert found == replace(binding, path=path_end(name))
    assert decode(encode(found), 0)[0] == found
    assert (restored(core_of(binding), binding.endpoint, binding.bucket, other, name) is None) == (other != binding.key)


@given(options=st.dictionaries(st.sampled_from(GROUPS), st.lists(st.tuples(TEXT, TEXT))), data=st.data())
def test_a_fingerprint_names_what_changed(options: dict[str, list[tuple[str, str]]], data: st.DataObject) -> None:
    """Equal options agree in any order, and one more header is noticed in its group; salts hide what is equal."""
    made = fingerprint(options)
    assert made.changed({name: data.draw(st.permutations(headers)) for name, headers in options.items()}) == []
    group = data.draw(st.sampled_from(GROUPS))
    assert made.changed({**options, group: [*options.get(group, []), ("x", "y")]}) == [group]
    assert not set(made.digests) & set(fingerprint(options).digests)


@given(content=st.binary(max_size=300), offset=st.integers(0, 20))
def test_arbitrary_bytes_are_no_record(content: bytes, offset: int) -> None:
    """Reading never fails in another way than by saying so."""
    for start in (content, header(1) + content, header() + content):
        with contextlib.suppress(JournalDamagedError, JournalVersionError):
            recover(start, "j")
    try:
        record, end = decode(content, min(offset, len(content)))
    except UnreadableRecord:
        return
    assert encode(record) == content[min(offset, len(content)) : end]


@given(
    frames=st.lists(st.tuples(st.integers(0, 7), st.binary(max_size=200)), max_size=4), version=st.sampled_from([1, 2])
)
def test_arbitrary_records_are_no_surprise(frames: list[tuple[int, bytes]], version: int) -> None:
    """A sound checksum over nonsense makes no other failure either."""
    content = header(version)
    for kind, data in frames:
        tail = struct.pack("<HBB", len(data), kind, 0) + data
        content += struct.pack("<I", zlib.crc32(tail)) + tail
    with contextlib.suppress(JournalDamagedError):
        state = recover(content, "j").state
        restored(state.core, "e", "b", "k", "/p")
        state.stored_bytes()


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
    read_uploads_page(reply)
    assert list(Decoder().feed(encode_message(TaskReplied(1, reply)))) == [TaskReplied(1, reply)]
