"""The journal: its bytes, its recovery, its lock."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from obs_engine.checkpoint.fold import ContradictoryRecord, UploadState, fold, fold_all
from obs_engine.checkpoint.journal import Journal, peek, recover
from obs_engine.checkpoint.records import (
    HEADER_BYTES,
    Binding,
    Completed,
    Initiated,
    PartStored,
    Record,
    decode,
    encode,
    header,
)
from obs_engine.errors import JournalDamagedError, JournalError, JournalLockedError, JournalVersionError

DOCUMENT = Path(__file__).parents[2] / "engine" / "JOURNAL.md"
BINDING = Binding("bkt", "a/é", "https://obs.x.com", "/data/f", 25, 2, 3, 4, 5, 10, b"o" * 16)
RECORDS: list[Record] = [BINDING, Initiated("U1"), PartStored(1, '"aa"'), PartStored(3, '"cc"'), PartStored(2, '"bb"')]


def journal_bytes(records: list[Record] = RECORDS) -> bytes:
    return header() + b"".join(map(encode, records))


def test_records_come_back_as_they_went() -> None:
    """Every kind of record survives its bytes, names that are not UTF-8 included."""
    odd = Binding("b", "k", "e", os.fsdecode(b"/x/\xff\xfe"), 1, -2, 3, 4, 5, 6, b"o" * 16, b"c" * 16)
    for record in [*RECORDS, Completed(), odd]:
        assert decode(encode(record), 0) == (record, len(encode(record)))


def test_state_is_the_fold_of_the_records() -> None:
    """Parts, stored bytes and what is missing follow from the records alone."""
    state = fold_all(RECORDS[:4])
    assert state.upload_id == "U1"
    assert state.missing_parts() == [2]
    assert state.stored_bytes() == 15
    fold(state, PartStored(2, '"bb"'))
    fold(state, Completed())
    assert state.is_completed
    assert state.stored_bytes() == 25


@pytest.mark.parametrize(
    "records",
    [[Initiated("U")], [PartStored(1, "e")], [BINDING, PartStored(1, "e")], [BINDING, BINDING],
     [BINDING, Initiated("U"), Initiated("V")], [BINDING, Initiated("U"), PartStored(4, "e")],
     [BINDING, Initiated("U"), PartStored(0, "e")], [BINDING, Initiated("U"), PartStored(1, "e"), Completed()]],
    ids=str,
)  # fmt: skip
def test_records_that_cannot_follow_are_refused(records: list[Record]) -> None:
    """A sound record in the wrong place is a contradiction, not progress."""
    with pytest.raises(ContradictoryRecord):
        fold_all(records)
    with pytest.raises(JournalDamagedError):
        recover(journal_bytes(records), "j")


def test_every_cut_is_a_torn_tail() -> None:
    """Cut at any byte, a journal holds all records that were whole, and asks for nothing more."""
    data = journal_bytes()
    ends = [HEADER_BYTES]
    for record in RECORDS:
        ends.append(ends[-1] + len(encode(record)))
    for length in range(len(data) + 1):
        whole = [record for record, end in zip(RECORDS, ends[1:], strict=True) if end <= length]
        assert recover(data[:length], "j").state == fold_all(whole)


def test_zeros_at_the_end_are_a_torn_tail() -> None:
    """A power loss may leave a file longer than what was written of it."""
    found = recover(journal_bytes() + bytes(4096), "j")
    assert found.state == fold_all(RECORDS)
    assert found.sound_bytes == len(journal_bytes())


def test_every_flipped_byte_is_noticed() -> None:
    """One wrong byte is damage with its offset, a torn tail, or another kind of file: never wrong progress."""
    data = journal_bytes()
    last = len(data) - len(encode(RECORDS[-1]))
    for offset in range(len(data)):
        damaged = bytearray(data)
        damaged[offset] ^= 0x40
        try:
            found = recover(bytes(damaged), "the-journal")
        except (JournalDamagedError, JournalVersionError) as error:
            assert "the-journal" in str(error)  # noqa: PT017 - most flips raise, some need not
        else:
            assert offset >= last, f"offset {offset} went unnoticed"
            assert found.state == fold_all(RECORDS[:-1])


def test_damage_names_its_place() -> None:
    """A bad record with sound ones behind it is reported with offset, expected and found."""
    data = bytearray(journal_bytes())
    data[HEADER_BYTES + 20] ^= 1
    with pytest.raises(JournalDamagedError, match=rf"offset {HEADER_BYTES}: expected a sound record, found checksum"):
        recover(bytes(data), "j")


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    """A file that is no journal, or one of a later version, is never written to."""
    cases = [(b'{"bucketName": "b"}', "another file"), (header(2), "version 1, found 2"), (b"x", "another")]
    for content, word in cases:
        path = tmp_path / "j"
        path.write_bytes(content)
        with pytest.raises(JournalVersionError, match=word):
            Journal(str(path))
        assert path.read_bytes() == content


def test_a_journal_is_created_private_and_removed(tmp_path: Path) -> None:
    """Mode 0600; removal deletes the file."""
    path = tmp_path / "j"
    journal = Journal(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    journal.remove()
    assert not path.exists()


def test_a_journal_continues_behind_a_torn_tail(tmp_path: Path) -> None:
    """The tail is cut, and the next record stands in its place."""
    path = tmp_path / "j"
    path.write_bytes(journal_bytes(RECORDS[:3]) + b"torn")
    journal = Journal(str(path))
    assert journal.state == fold_all(RECORDS[:3])
    journal.append(RECORDS[3])
    journal.sync()
    journal.close()
    assert path.read_bytes() == journal_bytes(RECORDS[:4])
    assert peek(str(path)) == fold_all(RECORDS[:4])


def test_one_journal_has_one_writer(tmp_path: Path) -> None:
    """A second writer is refused until the first has closed."""
    path = str(tmp_path / "j")
    journal = Journal(path)
    with pytest.raises(JournalLockedError, match="another upload"):
        Journal(path)
    journal.close()
    Journal(path).close()


@pytest.mark.parametrize("place", ["missing/j", "", "fifo"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, place: str) -> None:
    """A missing directory, a directory itself, a FIFO: one clear error, nothing created."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(JournalError, match="checkpoint file"):
        Journal(str(tmp_path / place) if place else str(tmp_path))


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half-way is taken back; the error says what to do."""
    path = tmp_path / "j"
    journal = Journal(str(path))
    journal.append(BINDING)
    before = path.read_bytes()
    really = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: really(fd, data[:5], offset))
    with pytest.raises(JournalError, match=r"No space left.*free the disk"):
        journal.append(Initiated("U"))
    monkeypatch.undo()
    assert path.read_bytes() == before
    journal.append(Initiated("U"))
    journal.close()
    assert peek(str(path)) == fold_all([BINDING, Initiated("U")])


def test_a_restart_forgets_all(tmp_path: Path) -> None:
    """After a restart the journal is as new."""
    journal = Journal(str(tmp_path / "j"))
    for record in RECORDS:
        journal.append(record)
    journal.restart()
    assert journal.state == UploadState()
    assert (tmp_path / "j").read_bytes() == header()
    journal.close()


def test_the_document_shows_real_bytes() -> None:
    """The hex example of JOURNAL.md is what this code writes, byte for byte."""
    example = re.search(r"```hex\n(.*?)```", DOCUMENT.read_text(), re.S)
    assert example
    shown = bytes.fromhex("".join(line.split("|")[0] for line in example.group(1).splitlines()))
    binding = Binding("bkt", "k", "https://obs.x.com", "/f", 25, 2, 3, 4, 5, 10, b"o" * 16)
    assert shown == header() + encode(binding) + encode(Initiated("U1")) + encode(PartStored(1, '"aa"'))
