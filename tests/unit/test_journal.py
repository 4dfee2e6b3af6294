"""The journal: its bytes, what they mean whole, torn or damaged, its lock, and a disk that fails."""

from __future__ import annotations

import copy
import errno
import itertools
import logging
import os
import re
import stat
import struct
import subprocess
import sys
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import md5
from pathlib import Path

import psutil
import pytest

from obs_engine.checkpoint.disk import Disk
from obs_engine.checkpoint.fingerprint import Fingerprint, fingerprint
from obs_engine.checkpoint.fold import ContradictoryRecord, UploadState, fold, fold_all, salvage
from obs_engine.checkpoint.journal import Journal, NoJournal, peek
from obs_engine.checkpoint.records import (
    DATA_MAX_BYTES,
    HEADER_BYTES,
    MAGIC,
    VERSION,
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
    target_digest,
)
from obs_engine.checkpoint.recovery import recover
from obs_engine.errors import JournalDamagedError, JournalError, JournalLockedError, JournalVersionError
from obs_engine.wire.object_headers import by_effect, sse_c_headers

ROOT = Path(__file__).parents[2]
GOLDEN = {version: ROOT / "tests" / "vectors" / f"journal-{version}.bin" for version in range(1, VERSION + 1)}
OPTIONS = Fingerprint(b"s" * 16, (b"m" * 16, b"p" * 16, b"e" * 16))
BINDING = Binding("bkt", "a/é", "https://obs.x.com", "/data/f", 25, 2, 3, 4, 5, 10, OPTIONS)
OPENED = Opened(4711, 1790000000, target_digest(*BINDING.target), "host1")
INITIATED = Initiated("U1", core_of(BINDING))
PARTS = [PartStored(1, '"aa"'), PartStored(3, '"cc"'), PartStored(2, '"bb"')]
RECORDS: list[Record] = [OPENED, BINDING, INITIATED, *PARTS]
NEXT_STEP = r"checkpoint file .*: expected .+, found .+; .+"


def journal_bytes(records: list[Record] = RECORDS) -> bytes:
    return header() + b"".join(map(encode, records))


def without_holder(state: UploadState) -> UploadState:
    return replace(state, opened=None)


# --- records ----------------------------------------------------------------------------------------------------


def test_records_come_back_as_they_went() -> None:
    """Every kind of record survives its bytes, names that are not UTF-8 and times before 1970 included."""
    odd = Binding("b", "k", "e", os.fsdecode(b"/x/\xff\xfe"), 1, -2, -(2**63), 2**64 - 1, 5, 6, OPTIONS)
    hashed, opened = PartStored(2**32 - 1, "", b"x" * 16), Opened(0, -1, b"t" * 16, "")
    for record in [*RECORDS, Completed(), odd, hashed, Initiated("", core_of(odd)), opened]:
        assert decode(encode(record), 0) == (record, len(encode(record)))


def test_a_frame_that_no_record_has_is_none() -> None:
    """More than 16 KiB, a byte that must be zero, an unknown type, a record with more than it holds: never read."""
    longest = PartStored(1, "e" * (DATA_MAX_BYTES - 6))
    assert decode(encode(longest), 0)[0] == longest
    for length, kind, zero in [(DATA_MAX_BYTES + 1, 3, 0), (0, 4, 1), (0, 0, 0), (0, 6, 0), (1, 4, 0), (0, 3, 0)]:
        data = (b"\1\0\0\0" + struct.pack("<H", length - 6) + b"e" * (length - 6)) if length > 6 else bytes(length)
        tail = struct.pack("<HBB", length, kind, zero) + data
        with pytest.raises(UnreadableRecord):
            decode(struct.pack("<I", zlib.crc32(tail)) + tail, 0)


def test_a_long_host_is_cut_between_characters() -> None:
    """64 bytes of a host's name are kept, and never half a character."""
    found, _ = decode(encode(replace(OPENED, host="é" * 31 + "€€")), 0)
    assert found == replace(OPENED, host="é" * 31)


def test_the_end_of_a_path_is_kept_byte_for_byte() -> None:
    """A path longer than 255 bytes keeps its end, even where that begins inside a character."""
    path = "/" + "é" * 200
    assert os.fsencode(path_end(path)) == os.fsencode(path)[-255:]
    binding = replace(BINDING, path=path_end(path))
    assert decode(encode(binding), 0)[0] == binding


def test_state_is_the_fold_of_the_records() -> None:
    """Parts, stored bytes and what is missing follow from the records alone; the last who opened it counts."""
    state = fold_all(RECORDS[:5])
    assert (state.upload_id, state.core, state.opened) == ("U1", core_of(BINDING), OPENED)
    assert state.missing_parts() == [2]
    assert fold_all(RECORDS[:3]).missing_parts() == [1, 2, 3]
    assert state.stored_bytes() == 15
    assert fold_all(RECORDS[:4]).stored_bytes() == 10
    assert fold_all(RECORDS[:3]).stored_bytes() == salvage(PARTS).stored_bytes() == 0
    fold(state, PARTS[2])
    fold(state, Completed())
    fold(state, replace(OPENED, pid=4712))
    assert state.is_completed
    assert state.stored_bytes() == 25
    assert state.opened == replace(OPENED, pid=4712)
    assert fold_all(state.records()) == without_holder(state)


@pytest.mark.parametrize(
    "records",
    [[INITIATED], [PARTS[0]], [BINDING, PARTS[0]], [BINDING, BINDING], [BINDING, INITIATED, INITIATED],
     [BINDING, INITIATED, PartStored(4, "e")], [BINDING, INITIATED, PartStored(0, "e")],
     [BINDING, INITIATED, PARTS[0], Completed()], [Completed()]],
    ids=lambda records: " ".join(type(record).__name__ for record in records),
)  # fmt: skip
def test_records_that_cannot_follow_are_damage(records: list[Record]) -> None:
    """A sound record in the wrong place is a contradiction, and named as damage with its place."""
    with pytest.raises(ContradictoryRecord):
        fold_all(records)
    found = recover(journal_bytes(records), "j")
    assert found.damage is not None
    assert found.damage.offset == len(journal_bytes(records[:-1]))
    assert found.damage.expected == "a record that follows from those before it"
    assert found.state == salvage(records)


def test_salvage_takes_what_is_there() -> None:
    """Parts without an upload id, a completion without parts, each in any order: it says what is left, and no more."""
    assert salvage([PARTS[0], Completed(), OPENED]) == UploadState(None, None, {1: '"aa"'}, True, b"", OPENED)
    assert salvage([INITIATED, BINDING]) == UploadState(BINDING, "U1", {}, False, core_of(BINDING), None)
    assert salvage([]) == UploadState()


@pytest.mark.parametrize("other", [Initiated("U2", core_of(BINDING)), replace(BINDING, key="other")], ids=["id", "key"])
def test_two_uploads_are_not_joined(tmp_path: Path, other: Record) -> None:
    """A journal whose records speak of two uploads is refused with path and place, and left as it is."""
    path = tmp_path / "j"
    path.write_bytes(journal_bytes([*RECORDS, other]))
    with pytest.raises(JournalDamagedError, match=rf"{path}.*offset {len(journal_bytes())}: expected .*two uploads"):
        Journal(str(path), OPENED)
    assert path.read_bytes() == journal_bytes([*RECORDS, other])


def test_the_core_restores_a_lost_binding() -> None:
    """The upload id's record repeats the binding, for its own target alone."""
    endpoint, bucket, key = BINDING.target
    assert restored(core_of(BINDING), endpoint, bucket, key, BINDING.path) == BINDING
    assert restored(core_of(BINDING), endpoint, bucket, "another", BINDING.path) is None
    assert restored(b"", endpoint, bucket, key, BINDING.path) is None  # as in version 1


# --- what the options leave behind ------------------------------------------------------------------------------


def test_a_fingerprint_tells_which_group_changed() -> None:
    """Metadata, properties and encryption are told apart; order and case of names do not count; no two look alike."""
    options = {"metadata": [("x-obs-meta-a", "1"), ("x-obs-meta-b", "2")], "properties": [("x-obs-acl", "private")]}
    print_ = fingerprint(options)
    assert print_ != fingerprint(options)
    assert print_.changed({**options, "metadata": [("X-OBS-meta-B", "2"), ("x-obs-meta-a", "1")]}) == []
    assert print_.changed({**options, "metadata": [("x-obs-meta-a", "1")]}) == ["metadata"]
    assert print_.changed({"encryption": [("x-obs-server-side-encryption", "kms")]}) == [
        "metadata", "properties", "encryption",
    ]  # fmt: skip


def test_an_encryption_key_never_reaches_the_disk(tmp_path: Path) -> None:
    """Neither the key nor its MD5 stands in a journal, in any spelling; yet another key is noticed."""
    key, other = b"12345678901234567890123456789012", b"x" * 32
    made = fingerprint(by_effect(sse_c_headers("obs", "AES256", key)))
    binding = replace(BINDING, options=made)
    journal = Journal(str(tmp_path / "j"), OPENED)
    journal.claim()
    for record in (binding, Initiated("U1", core_of(binding)), *PARTS):
        journal.append(record)
    journal.close()
    written = (tmp_path / "j").read_bytes()
    for secret in (key, md5(key).digest()):
        for spelled in (secret, b64encode(secret), secret.hex().encode()):
            assert spelled not in written
    assert made.changed(by_effect(sse_c_headers("obs", "AES256", key))) == []
    assert made.changed(by_effect(sse_c_headers("obs", "AES256", other))) == ["encryption"]


# --- versions ---------------------------------------------------------------------------------------------------


def test_the_document_shows_real_bytes() -> None:
    """The hex example of JOURNAL.md is what this code writes, byte for byte."""
    example = re.search(r"```hex\n(.*?)```", (ROOT / "engine" / "JOURNAL.md").read_text(), re.S)
    assert example
    shown = bytes.fromhex("".join(line.split("|")[0] for line in example.group(1).splitlines()))
    binding = Binding("bkt", "k", "https://obs.x.com", "/f", 25, 2, 3, 4, 5, 10, OPTIONS)
    opened = replace(OPENED, target=target_digest(*binding.target))
    assert shown == journal_bytes([opened, binding, Initiated("U1", core_of(binding)), PARTS[0]])


def test_version_3_is_what_it_was() -> None:
    """The golden file of this version is what this code writes today, and reads back."""
    binding = replace(BINDING, path=os.fsdecode(b"/data/\xff"))
    initiated = Initiated("U1", core_of(binding))
    records: list[Record] = [OPENED, binding, initiated, *PARTS[:2], replace(PARTS[2], content=b"x" * 16), Completed()]
    assert GOLDEN[3].read_bytes() == journal_bytes(records)
    found = recover(GOLDEN[3].read_bytes(), "j")
    assert [record for _, record in found.records] == records
    assert (found.state, found.version, found.damage) == (fold_all(records), 3, None)


def test_version_2_is_read_and_becomes_version_3(tmp_path: Path) -> None:
    """The golden file of the version before says what it said, but for its digest of the whole content."""
    path = tmp_path / "j"
    path.write_bytes(GOLDEN[2].read_bytes())
    journal = Journal(str(path), OPENED)
    assert path.read_bytes() == GOLDEN[2].read_bytes()
    assert journal.state.binding == replace(BINDING, path=os.fsdecode(b"/data/\xff"))
    assert journal.state.parts == {part.part_number: part.etag for part in PARTS}
    before = journal.state
    journal.claim()
    journal.close()
    found = recover(path.read_bytes(), "j")
    assert (found.state, found.version, found.damage) == (before, 3, None)


def test_version_1_is_read_and_becomes_version_3(tmp_path: Path) -> None:
    """The golden file of the first version says what it said, before and after it is written anew."""
    path = tmp_path / "j"
    path.write_bytes(GOLDEN[1].read_bytes())
    journal = Journal(str(path), OPENED)
    assert path.read_bytes() == GOLDEN[1].read_bytes()
    binding = journal.state.binding
    assert binding is not None
    assert replace(binding, options=OPTIONS) == BINDING
    assert binding.options.changed({"metadata": [("x-obs-meta-owner", "me")]}) == []
    assert binding.options.changed({"metadata": [("x-obs-meta-owner", "you")]}) == ["options"]
    assert binding.options.changed({}) == ["options"]
    assert (journal.state.upload_id, journal.state.parts) == ("U1", {1: '"aa"', 3: '"cc"'})
    journal.claim()
    assert journal.state.binding == binding
    journal.append(PARTS[2])
    journal.close()
    found = recover(path.read_bytes(), "j")
    assert (found.version, found.damage) == (VERSION, None)
    assert found.state == fold_all([OPENED, binding, Initiated("U1", core_of(binding)), *PARTS])


def test_the_next_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A journal of a later release is not touched, and the sentence says which release can go on."""
    path = tmp_path / "j"
    path.write_bytes(header(VERSION + 1) + b"whatever it holds")
    words = r"expected version 1 to 3, found 4; continue this upload with the release that began it"
    with pytest.raises(JournalVersionError, match=words):
        Journal(str(path), OPENED)
    assert path.read_bytes() == header(VERSION + 1) + b"whatever it holds"
    assert peek(str(path)) is None


@pytest.mark.parametrize(
    "content",
    [b"x", b"\x89PNG\r\n\x1a\n" + bytes(100), b"text\n" * 9000, b"\0" * 9, b"42", bytes(4097), bytes(511) + b"x" * 99,
     b"an archive of" + bytes(499) + journal_bytes(), header()[:-1] + b"?" + b"x" * 99],
    ids="text,picture,long text,few zeros,JSON,many zeros,zeros and text,archive,header alone".split(","),
)  # fmt: skip
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    """A file that is no journal is never written to."""
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(JournalVersionError, match=r"another file.*left as it is"):
        Journal(str(path), OPENED)
    assert path.read_bytes() == content


# --- torn and damaged -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", GOLDEN)
def test_every_cut_is_a_torn_tail(version: int) -> None:
    """Cut at any byte, with zeros behind the cut or not, a journal holds all records that were whole."""
    data = GOLDEN[version].read_bytes()
    records = recover(data, "j").records
    ends = [*(offset for offset, _ in records), len(data)][1:]
    for length, zeros in itertools.product(range(HEADER_BYTES, len(data) + 1), (0, 4096)):
        torn = data[:length] + bytes(zeros)
        whole = [(record, end) for (_, record), end in zip(records, ends, strict=True) if torn[:end] == data[:end]]
        found = recover(torn, "j")
        assert found.state == fold_all(record for record, _ in whole), f"cut at {length}, {zeros} zeros"
        assert (found.sound_bytes, found.damage) == (whole[-1][1] if whole else HEADER_BYTES, None)
    for length, zeros in itertools.product(range(HEADER_BYTES), (0, 4096)):
        torn = data[:length] + (bytes(zeros) if length >= len(MAGIC) else b"")
        assert recover(torn, "j") == ((), UploadState(), 0, VERSION, None)


@pytest.mark.parametrize("content", [bytes(16), bytes(4096), bytes(512) + journal_bytes()[60:-1][:30]], ids=len)
def test_what_never_reached_the_disk_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    """A power loss may keep the length of a file and not its first sector: nothing was sent for it yet."""
    path = tmp_path / "j"
    path.write_bytes(content)
    journal = Journal(str(path), OPENED)
    assert (journal.state, journal.damage) == (UploadState(), None)
    journal.claim()
    journal.close()
    assert path.read_bytes() == journal_bytes([OPENED])


@pytest.mark.parametrize("byte", [b"{", b"[", b" "])
def test_a_bracket_makes_no_record_of_the_sdk(tmp_path: Path, byte: bytes) -> None:
    """A journal whose first byte is wrong is a damaged journal, whatever that byte looks like."""
    path = tmp_path / "j"
    path.write_bytes(byte + journal_bytes()[1:])
    journal = Journal(str(path), OPENED)
    assert (journal.foreign, journal.state) == (None, fold_all(RECORDS))
    assert journal.damage is not None
    journal.close()


@pytest.mark.parametrize("version", GOLDEN)
def test_every_flipped_byte_costs_its_own_record(version: int) -> None:
    """A wrong byte is damage with its place, or a torn tail in the last record; all other records still count."""
    data = GOLDEN[version].read_bytes()
    records = recover(data, "j").records
    for offset, mask in itertools.product(range(len(data)), (1, 2, 4, 8, 16, 32, 64, 128, 255)):
        damaged = bytearray(data)
        damaged[offset] ^= mask
        found = recover(bytes(damaged), "j")
        place = max([0, *(at for at, _ in records if at <= offset)])
        assert found.state == salvage(record for at, record in records if at != place), f"byte {offset} ^ {mask}"
        assert found.version == (VERSION if version > 1 and offset < HEADER_BYTES else version)  # 2 and 3 look alike
        if place == records[-1][0]:
            assert (found.damage, found.sound_bytes) == (None, place)
        else:
            assert found.damage is not None
            assert found.damage.offset == place


def test_damage_names_its_place() -> None:
    """A bad record with sound ones behind it is reported with offset, expected and found."""
    data = bytearray(journal_bytes())
    data[HEADER_BYTES + 20] ^= 1
    words = rf"offset {HEADER_BYTES}: expected a sound record, found checksum \w{{8}} written, \w{{8}} found"
    assert re.fullmatch(words, str(recover(bytes(data), "j").damage))
    data = bytearray(journal_bytes())
    data[3] ^= 1
    assert str(recover(bytes(data), "j").damage) == f"offset 0: expected a sound header, found {data[:16].hex(' ')}"


def test_a_lost_beginning_costs_what_it_held(tmp_path: Path) -> None:
    """Where the first sector is zeros, every sound record behind it counts, however many there are."""
    path = tmp_path / "j"
    binding = replace(BINDING, size_bytes=10_000)
    parts = [PartStored(number, f'"{number:032x}"') for number in range(1, 1001)]
    data = journal_bytes([OPENED, binding, Initiated("U1", core_of(binding)), *parts])
    behind = [record for offset, record in recover(data, "j").records if offset >= 512]
    path.write_bytes(damaged := bytes(512) + data[512:])
    journal = Journal(str(path), OPENED)
    assert journal.damage is not None
    assert journal.state == salvage(behind)
    assert len(journal.state.parts) > 990
    journal.leave()
    assert path.read_bytes() == damaged


def test_damage_never_stops_a_journal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever byte is wrong: the file is only read, then a sound one takes its place and the old one stands aside."""
    records: list[Record] = [BINDING, INITIATED, PARTS[0]]
    last = len(journal_bytes(RECORDS[:-1]))
    for offset in range(last):
        path, aside = tmp_path / f"{offset}", tmp_path / f"{offset}.damaged"
        damaged = bytearray(journal_bytes())
        damaged[offset] ^= 0x40
        path.write_bytes(damaged)
        journal = Journal(str(path), OPENED, is_power_safe=False)
        assert journal.damage is not None
        assert path.read_bytes() == damaged
        journal.rewrite(records)
        assert journal.damage is None
        journal.append(PARTS[1])
        journal.leave()
        assert aside.read_bytes() == damaged
        found = recover(path.read_bytes(), "j")
        assert (found.state, found.damage) == (fold_all([OPENED, *records, PARTS[1]]), None)
        assert f"{path}: written anew; what was there is kept as {aside}" in caplog.messages[-1]


def test_what_is_aside_is_never_overwritten(tmp_path: Path) -> None:
    """A second damaged file gets a name of its own; a file of the official SDK, too."""
    path = tmp_path / "j"
    (tmp_path / "j.damaged").write_bytes(b"the first")
    path.write_bytes(damaged := journal_bytes()[:30] + b"?" + journal_bytes()[31:])
    journal = Journal(str(path), OPENED)
    journal.rewrite([])
    journal.leave()
    assert (tmp_path / "j.damaged").read_bytes() == b"the first"
    assert (tmp_path / "j.damaged.2").read_bytes() == damaged
    path.write_bytes(b'{"bucketName": "b"')
    journal = Journal(str(path), OPENED)
    assert journal.foreign == b'{"bucketName": "b"'
    journal.rewrite([BINDING, INITIATED])
    journal.leave()
    assert (tmp_path / "j.sdk").read_bytes() == b'{"bucketName": "b"'
    assert peek(str(path)) == fold_all([OPENED, BINDING, INITIATED])


def test_what_a_crash_left_of_a_rewriting_is_no_obstacle(tmp_path: Path) -> None:
    """An unfinished `.new`, zeros of a power loss too, is taken away; anything else of that name is not."""
    path, new = tmp_path / "j", tmp_path / "j.new"
    for leftover in (b"", header()[:5], header(), journal_bytes()[:100], bytes(16), header()[:9] + bytes(500)):
        new.write_bytes(leftover)
        path.write_bytes(GOLDEN[1].read_bytes())
        journal = Journal(str(path), OPENED)
        journal.claim()
        journal.close()
        assert not new.exists()
    new.write_bytes(b"somebody's")
    path.write_bytes(GOLDEN[1].read_bytes())
    journal = Journal(str(path), OPENED)
    with pytest.raises(JournalError, match=r"j\.new'.* in the way"):
        journal.claim()
    journal.close()
    assert new.read_bytes() == b"somebody's"
    assert path.read_bytes() == GOLDEN[1].read_bytes()


# --- the file ---------------------------------------------------------------------------------------------------


def test_a_journal_is_created_private_and_removed(tmp_path: Path) -> None:
    """Mode 0600, also when written anew; removal deletes the file."""
    path = tmp_path / "j"
    open_files = psutil.Process().num_fds()
    journal = Journal(str(path), OPENED)
    assert journal.path == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    journal.rewrite([BINDING])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "j.new").write_bytes(header())  # of a call that was killed
    journal.remove()
    assert list(tmp_path.iterdir()) == []
    assert psutil.Process().num_fds() == open_files


def test_a_journal_continues_behind_a_torn_tail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The tail is cut, its length logged, and the next record stands in its place."""
    path = tmp_path / "j"
    path.write_bytes(journal_bytes(RECORDS[:4]) + b"torn")
    journal = Journal(str(path), OPENED)
    assert journal.state == fold_all(RECORDS[:4])
    assert path.read_bytes() == journal_bytes(RECORDS[:4]) + b"torn"
    with caplog.at_level(logging.INFO, "obs_engine"):
        journal.claim()
        journal.claim()
    assert caplog.messages == [f"checkpoint file {path}: cut an unfinished tail of 4 bytes"]
    journal.append(RECORDS[4])
    journal.sync()
    journal.close()
    assert path.read_bytes() == journal_bytes([*RECORDS[:4], OPENED, RECORDS[4]])
    assert peek(str(path)) == fold_all(RECORDS[:5])


def test_opening_again_and_again_does_not_grow_a_journal(tmp_path: Path) -> None:
    """Who opens takes the place of who opened before, where nothing was stored between; what was stored stays."""
    path = tmp_path / "j"
    path.write_bytes(journal_bytes())
    opened = [replace(OPENED, pid=pid, host="h" * length) for pid, length in [(1, 5), (2, 60), (3, 0), (4, 7)]]
    for who in opened:
        journal = Journal(str(path), who)
        journal.claim()
        assert path.read_bytes() == journal_bytes([*RECORDS, who])
        journal.claim()
        journal.close()
        assert path.read_bytes() == journal_bytes([*RECORDS, who])
        assert journal.state == fold_all([*RECORDS, who])
    journal = Journal(str(path), OPENED)
    journal.claim()
    journal.append(Completed())
    journal.claim()
    assert path.read_bytes() == journal_bytes([*RECORDS, OPENED, Completed(), OPENED])
    journal.rewrite(RECORDS[1:])
    journal.claim()
    assert path.read_bytes() == journal_bytes([*RECORDS, OPENED])
    journal.rewrite([])
    journal.claim()
    journal.close()
    assert path.read_bytes() == journal_bytes([OPENED])


def test_a_call_that_stores_nothing_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """Who only looked takes his name away again; a torn tail stays cut; what was stored stays, with the name."""
    path = tmp_path / "j"
    for records in (RECORDS, [*RECORDS, replace(OPENED, pid=1, host="h" * 60)], [*RECORDS, replace(OPENED, host="")]):
        for torn in (b"", b"torn"):
            path.write_bytes(journal_bytes(records) + torn)
            journal = Journal(str(path), replace(OPENED, pid=2))
            journal.claim()
            assert path.read_bytes() == journal_bytes([*RECORDS, replace(OPENED, pid=2)])
            journal.leave()
            assert path.read_bytes() == journal_bytes(records)
    journal = Journal(str(path), replace(OPENED, pid=2))
    journal.claim()
    journal.append(Completed())
    journal.leave()
    assert path.read_bytes() == journal_bytes([*RECORDS, replace(OPENED, pid=2), Completed()])


def test_a_link_to_a_journal_stays_one(tmp_path: Path) -> None:
    """A new journal takes the place of the file, not of the link to it; what is aside is beside the file."""
    path, real = tmp_path / "j", tmp_path / "there" / "real"
    real.parent.mkdir()
    path.symlink_to(real)
    real.write_bytes(damaged := journal_bytes()[:30] + b"?" + journal_bytes()[31:])
    journal = Journal(str(path), OPENED)
    journal.rewrite([BINDING, INITIATED])
    journal.leave()
    assert path.is_symlink()
    assert real.read_bytes() == journal_bytes(RECORDS[:3])
    assert (tmp_path / "there" / "real.damaged").read_bytes() == damaged


@pytest.mark.parametrize(
    ("content", "is_left"),
    [(b"", False), (journal_bytes([OPENED]), False), (journal_bytes([OPENED, BINDING]), False), (header(1), False),
     (journal_bytes(RECORDS[:3]), True), (GOLDEN[1].read_bytes(), True),
     (journal_bytes([OPENED, BINDING])[:30] + b"?" + journal_bytes([OPENED, BINDING])[31:], True), (b"{}", True)],
    ids="empty,opened,bound,version 1,upload id,golden 1,damaged,foreign".split(","),
)  # fmt: skip
def test_only_a_journal_that_knows_of_an_upload_is_left(tmp_path: Path, content: bytes, is_left: bool) -> None:
    """One without progress is not left lying about; a damaged or foreign one is never deleted."""
    path = tmp_path / "j"
    path.write_bytes(content)
    journal = Journal(str(path), OPENED)
    journal.leave()
    journal.leave()
    assert path.exists() == is_left
    assert not is_left or path.read_bytes() == content


def test_no_journal_keeps_the_state_alone() -> None:
    """Without a checkpoint the same records make the same state, and no file."""
    journal = NoJournal()
    for record in RECORDS:
        journal.append(record)
    assert (journal.state, journal.path) == (fold_all(RECORDS), None)
    journal.rewrite(RECORDS[1:4])
    assert journal.state == fold_all(RECORDS[1:4])
    journal.sync()
    journal.leave()
    journal.remove()
    with pytest.raises(ContradictoryRecord):
        journal.append(BINDING)


class CountingDisk(Disk):
    """Counts the bytes that are written."""

    written = 0

    def write(self, fd: int, data: bytes, offset: int) -> None:
        self.written += len(data)
        super().write(fd, data, offset)


@pytest.mark.parametrize("count", [1, 50, 10_000])
def test_a_journal_of_n_parts_takes_128_n_bytes_and_4_kib(tmp_path: Path, count: int) -> None:
    """At most that much is ever written, with the longest names there are; and all of it is read back."""
    path, disk = str(tmp_path / "j"), CountingDisk()
    binding = Binding(
        "b" * 63, "k" * 1024, "https://" + "e" * 60, path_end("/p" * 300), count * 10, 2, 3, 4, 5, 10, OPTIONS,
    )  # fmt: skip
    opened = Opened(2**32 - 1, 1790000000, target_digest(*binding.target), "h" * 80)
    journal = Journal(path, opened, disk=disk)
    journal.claim()
    journal.append(binding)
    journal.append(Initiated("U" * 64, core_of(binding)))
    for number in range(1, count + 1):
        journal.append(PartStored(number, f'"{md5(b"%d" % number).hexdigest()}"'))
    journal.append(Completed())
    journal.sync()
    journal.close()
    assert os.path.getsize(path) == disk.written <= 128 * count + 4096
    state = peek(path)
    assert state is not None
    assert (len(state.parts), state.missing_parts(), state.is_completed) == (count, [], True)
    assert state.parts[count] == f'"{md5(b"%d" % count).hexdigest()}"'


# --- the lock ---------------------------------------------------------------------------------------------------

HOLDER = """
import os, sys
from obs_engine.checkpoint.journal import Journal
from obs_engine.checkpoint.records import Opened, PartStored
journal = Journal(sys.argv[1], Opened(os.getpid(), 1790000000, bytes(16), "host9"))
journal.claim()
journal.append(PartStored(2, '"bb"'))
print("holding", flush=True)
sys.stdin.read()
"""


def test_one_journal_has_one_writer(tmp_path: Path) -> None:
    """A second writer is refused, told who holds it since when, and changes nothing; then it may."""
    path = str(tmp_path / "j")
    journal = Journal(path, OPENED)
    open_files = psutil.Process().num_fds()
    with pytest.raises(JournalLockedError, match="found another upload at work on it; wait"):
        Journal(path, OPENED)
    journal.claim()
    words = "found process 4711 on host host1 at work on it since 2026-09-21 14:13:20 UTC; wait for that one, or name"
    with pytest.raises(JournalLockedError, match=words) as caught:
        Journal(path, replace(OPENED, pid=4712))
    assert caught.value.is_retryable
    journal.rewrite([BINDING, INITIATED])  # under its new inode, too
    with pytest.raises(JournalLockedError, match=words):
        Journal(path, replace(OPENED, pid=4712))
    assert psutil.Process().num_fds() == open_files
    journal.close()
    Journal(path, OPENED).close()


def test_the_lock_of_a_removed_file_is_none(tmp_path: Path) -> None:
    """Where its last owner removes the file just before it is locked, the one that has the name then is taken."""
    path = tmp_path / "j"

    class Racing(Disk):
        def lock(self, fd: int) -> bool:
            if path.read_bytes() == b"":
                path.unlink()
                path.write_bytes(journal_bytes())
            return super().lock(fd)

    open_files = psutil.Process().num_fds()
    journal = Journal(str(path), OPENED, disk=Racing())
    assert journal.state == fold_all(RECORDS)
    journal.close()
    assert psutil.Process().num_fds() == open_files


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    """Another process is named while it lives; killed, its lock is taken over with all that it stored."""
    path = tmp_path / "j"
    path.write_bytes(journal_bytes(RECORDS[:5]))
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"holding\n"
            words = f"process {holder.pid} on host host9 at work on it since 2026-09-21 14:13:20 UTC"
            with pytest.raises(JournalLockedError, match=words):
                Journal(str(path), OPENED)
        finally:
            holder.kill()
    journal = Journal(str(path), OPENED)
    assert without_holder(journal.state) == without_holder(fold_all(RECORDS))
    journal.claim()
    journal.close()
    assert peek(str(path)) == fold_all(RECORDS)


# --- the disk ---------------------------------------------------------------------------------------------------


class NotedDisk(Disk):
    """Notes the calls that change something or make it durable."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        for name in ("write", "truncate", "sync", "sync_directory", "link", "rename", "unlink"):
            setattr(self, name, self._noting(name, getattr(self, name)))

    def _noting(self, name: str, really: Callable[..., None]) -> Callable[..., None]:
        def noting(*arguments: object) -> None:
            self.noted.append(name)
            really(*arguments)

        return noting

    def take(self) -> str:
        """What was noted since the last time."""
        noted, self.noted = " ".join(self.noted), []
        return noted


@pytest.mark.parametrize("is_power_safe", [True, False])
def test_what_is_believed_is_synced_first(tmp_path: Path, is_power_safe: bool) -> None:
    """A new name, a rewriting and a removal in their order, once each; without a word where power may not fail."""

    def check(expected: str) -> None:
        words = [word for word in expected.split() if is_power_safe or not word.startswith("sync")]
        assert disk.take().split() == words

    disk, path = NotedDisk(), tmp_path / "j"
    journal = Journal(str(path), OPENED, is_power_safe=is_power_safe, disk=disk)
    journal.claim()
    check("write")
    journal.append(BINDING)
    journal.append(INITIATED)
    journal.sync()
    check("write write sync sync_directory")
    journal.sync()
    check("")
    journal.append(PARTS[0])
    journal.sync()
    journal.sync()
    check("write sync")
    journal.rewrite([BINDING, INITIATED])
    check("write sync rename sync_directory")
    journal.append(PARTS[1])
    journal.leave()
    check("write sync")
    path.write_bytes(journal_bytes(RECORDS[:4]) + b"torn")
    journal = Journal(str(path), OPENED, is_power_safe=is_power_safe, disk=disk)
    journal.claim()
    journal.sync()
    check("truncate write sync")
    journal.leave()
    disk.take()
    path.write_bytes(journal_bytes()[:30] + b"?" + journal_bytes()[31:])
    journal = Journal(str(path), OPENED, is_power_safe=is_power_safe, disk=disk)
    journal.rewrite([BINDING])
    check("link sync_directory write sync rename sync_directory")
    journal.leave()
    check("unlink sync_directory")


class FaultyDisk(Disk):
    """One method fails from its nth call on; a write has then written a half."""

    def __init__(self, method: str, number: int, nth: int = 1) -> None:
        self.calls = 0
        really = getattr(self, method)

        def faulty(*arguments: object, **named: object) -> object:
            self.calls += 1
            if self.calls < nth:
                return really(*arguments, **named)
            if method == "write":
                fd, data, offset = arguments
                os.pwrite(fd, data[: len(data) // 2], offset)
            raise OSError(number, os.strerror(number))

        setattr(self, method, faulty)


def work(journal: Journal) -> Iterator[UploadState]:
    """A journal's life; after each step, what must not be lost any more."""
    if journal.damage is None:
        journal.claim()
    else:
        journal.rewrite([BINDING, INITIATED])
    yield copy.deepcopy(journal.state)
    if journal.state.binding is None:
        journal.append(BINDING)
        journal.append(INITIATED)
        yield copy.deepcopy(journal.state)
    for part in PARTS:
        journal.append(part)
        yield copy.deepcopy(journal.state)
        journal.sync()
    journal.rewrite(journal.state.records())
    journal.append(Completed())
    yield copy.deepcopy(journal.state)
    journal.leave()


def failure_of(path: Path, disk: Disk, held: UploadState) -> str | None:
    """The error that ends a journal's life on that disk; what was held before it is held still."""
    journal = None
    try:
        journal = Journal(str(path), OPENED, disk=disk)
        for state in work(journal):
            held = state
    except JournalError as error:
        found = recover(path.read_bytes() if path.exists() else b"", "j")
        if journal is not None:
            journal.close()
            assert journal.damage or without_holder(found.state) == without_holder(journal.state)
        assert found.state.upload_id == held.upload_id or held.upload_id is None
        assert found.state.parts.items() >= held.parts.items()
        return str(error)
    return None


FAULTS = [
    *[("open", number) for number in (errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT)],
    ("lock", errno.ENOLCK), ("is_at", errno.EIO), ("read", errno.EIO), ("size", errno.EIO), ("write", errno.ENOSPC),
    ("write", errno.EIO), ("sync", errno.EIO), ("sync_directory", errno.EIO), ("rename", errno.EROFS),
]  # fmt: skip


@pytest.mark.parametrize(("method", "number"), FAULTS, ids=lambda value: errno.errorcode.get(value, value))
@pytest.mark.parametrize(
    "content", [None, journal_bytes(RECORDS[:4]) + b"torn", GOLDEN[1].read_bytes()], ids="new,torn,version 1".split(",")
)
def test_a_failing_disk_leaves_a_sound_journal(tmp_path: Path, method: str, number: int, content: bytes | None) -> None:
    """Whatever call fails, at whatever moment: one error with a next step, and all that was appended before is read."""
    open_files = psutil.Process().num_fds()
    for nth in itertools.count(1):
        path = tmp_path / f"{nth}"
        if content is not None:
            path.write_bytes(content)
        error = failure_of(path, FaultyDisk(method, number, nth), recover(content or b"", "j").state)
        if error is None:
            break
        assert re.fullmatch(NEXT_STEP, error)
        assert os.strerror(number) in error
        assert recover(path.read_bytes() if path.exists() else b"", "j").damage is None
        assert not path.with_name(f"{nth}.new").exists()
    assert nth > 1, f"{method} was never called"
    assert psutil.Process().num_fds() == open_files


@pytest.mark.parametrize(("method", "number"), FAULTS, ids=lambda value: errno.errorcode.get(value, value))
def test_a_failing_disk_never_touches_a_damaged_journal(tmp_path: Path, method: str, number: int) -> None:
    """Until a sound one is in its place, it stands as it was; and from then on it stands aside."""
    damaged = journal_bytes()[:30] + b"?" + journal_bytes()[31:]
    for nth in itertools.count(1):
        path, aside = tmp_path / f"{nth}", tmp_path / f"{nth}.damaged"
        path.write_bytes(damaged)
        error = failure_of(path, FaultyDisk(method, number, nth), UploadState())
        if recover(path.read_bytes(), "j").damage is not None:
            assert path.read_bytes() == damaged
        else:
            assert aside.read_bytes() == damaged
        if error is None:
            break
        assert re.fullmatch(NEXT_STEP, error)


def test_a_filesystem_without_second_names_gets_a_copy(tmp_path: Path) -> None:
    """Where a file cannot have two names, the damaged one is copied aside; no half copy is left by a full disk."""
    damaged = journal_bytes()[:30] + b"?" + journal_bytes()[31:]
    path = tmp_path / "j"
    path.write_bytes(damaged)
    (tmp_path / "j.damaged").write_bytes(b"the first")
    full = FaultyDisk("write", errno.ENOSPC)
    full.link = FaultyDisk("link", errno.EPERM).link  # type: ignore[method-assign]
    journal = Journal(str(path), OPENED, disk=full)
    with pytest.raises(JournalError, match="expected to be kept aside, found No space left on device; free the disk"):
        journal.rewrite([BINDING])
    journal.close()
    assert {file.name for file in tmp_path.iterdir()} == {"j", "j.damaged"}
    journal = Journal(str(path), OPENED, disk=FaultyDisk("link", errno.EPERM))
    journal.rewrite([BINDING, INITIATED])
    journal.leave()
    assert (tmp_path / "j.damaged").read_bytes() == b"the first"
    assert (tmp_path / "j.damaged.2").read_bytes() == damaged
    assert peek(str(path)) == fold_all(RECORDS[:3])


def test_a_damaged_journal_is_set_aside_once(tmp_path: Path) -> None:
    """A full disk that is met again and again does not fill the directory with names of one file."""
    path = tmp_path / "j"
    path.write_bytes(journal_bytes()[:30] + b"?" + journal_bytes()[31:])
    for _ in range(3):
        journal = Journal(str(path), OPENED, disk=FaultyDisk("write", errno.ENOSPC))
        with pytest.raises(JournalError, match="No space left"):
            journal.rewrite([BINDING])
        journal.close()
    assert {file.name for file in tmp_path.iterdir()} == {"j", "j.damaged"}


@pytest.mark.parametrize("place", ["missing/j", "", "fifo"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, place: str) -> None:
    """A missing directory, a directory itself, a FIFO: one clear error, nothing created."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(JournalError, match=NEXT_STEP):
        Journal(str(tmp_path / place) if place else str(tmp_path), OPENED)
    assert [file.name for file in tmp_path.iterdir()] == ["fifo"]


def test_a_full_disk_can_be_freed(tmp_path: Path) -> None:
    """A write that fails half-way is taken back; the same journal goes on when there is room again."""
    path = tmp_path / "j"
    disk = FaultyDisk("write", errno.ENOSPC, nth=3)
    journal = Journal(str(path), OPENED, disk=disk)
    journal.claim()
    journal.append(BINDING)
    with pytest.raises(JournalError, match=r"No space left.*free the disk"):
        journal.append(INITIATED)
    assert path.read_bytes() == journal_bytes(RECORDS[:2])
    del disk.write
    journal.append(INITIATED)
    journal.leave()
    assert path.read_bytes() == journal_bytes(RECORDS[:3])
