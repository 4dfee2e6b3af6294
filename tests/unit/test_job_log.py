"""The log of a job: its bytes, what they say, its lock, and a disk that fails."""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from obs_engine.bulk.file_table import DONE, FAILED, NONE, SKIPPED, Count, FileTable, file_identity, file_name
from obs_engine.bulk.job_log import TEXTS_MAX, JobLog, Known, open_locked, peek
from obs_engine.bulk.job_records import (
    DATA_MAX_BYTES,
    FILES_MAX,
    MAGIC,
    Cleared,
    Ended,
    Entry,
    Failed,
    Files,
    Listed,
    Opened,
    Record,
    Scanned,
    UnreadableRecord,
    Withdrawn,
    beginning,
    decode,
    encode,
    header,
    scan,
)
from obs_engine.checkpoint.disk import Disk
from obs_engine.errors import JournalDamagedError, JournalError, JournalLockedError, JournalVersionError

ROOT = Path(__file__).parents[2]
JOB = "0123456789ab"
BEGINNING = beginning(JOB, 1790000000, "obs-engine 1", '{"a":1}')
OPENED = Opened(4711, 1790000000, b"b" * 16, "host1")
REBOOTED = Opened(4712, 1790000100, b"c" * 16, "host1")
A, B, C = Entry(0x0A0A, 0x10, 100), Entry(0x0B0B, 0x20, 200), Entry(0x0C0C, 0x30, 300)


def said(data: bytes) -> Scanned:
    return scan(lambda length, at: data[at : at + length], len(data), "log")


def begun(path: Path, opened: Opened = OPENED, disk: Disk | None = None) -> JobLog:
    log = JobLog(str(path), disk=disk or Disk())
    log.claim(opened, BEGINNING)
    return log


def outcomes(log: JobLog) -> list[int]:
    return [log.look(entry.name, entry.identity).outcome for entry in (A, B, C)]


# --- what is known of files -------------------------------------------------------------------------------------


def test_the_last_word_of_a_file_counts() -> None:
    """Counts and bytes follow when a file becomes another's, is said again, or is withdrawn."""
    table = FileTable()
    table.put(*A, DONE)
    table.put(*A, DONE)
    table.put(*B, FAILED)
    table.put(B.name, 0x24, 250, DONE)
    table.put(*C, SKIPPED)
    assert [table.count(outcome) for outcome in (DONE, SKIPPED, FAILED)] == [(2, 350), (1, 300), (0, 0)]
    assert table.get(B.name) == (0x24, DONE)
    table.withdraw([A.name, 99])
    assert (table.get(A.name), table.get(99)) == ((0, NONE), (0, NONE))
    assert table.count(DONE) == (1, 250)


def test_a_table_grows_and_forgets_nothing() -> None:
    """100,000 files: each is found with its identity, others are not; seed 1."""
    rng = random.Random(1)
    files = {rng.getrandbits(64) or 1: rng.getrandbits(62) << 2 for _ in range(100_000)}
    table = FileTable()
    table.put_all(((name, identity, 1) for name, identity in files.items()), len(files), DONE)
    assert all(table.get(name) == (identity, DONE) for name, identity in files.items())
    assert table.count(DONE) == (len(files), len(files))
    assert all(table.get(rng.getrandbits(64))[1] == NONE for _ in range(1000))


def test_names_that_collide_in_the_table_stay_apart() -> None:
    """Names of one slot, at the table's end too, each have their own entry."""
    table, names = FileTable(), [(n << 32) | 1023 for n in range(1, 50)]
    for n in names:
        table.put(n, n << 2, n, DONE)
    assert [table.get(n) for n in names] == [((n << 2) & (2**64 - 1), DONE) for n in names]


def test_who_a_file_is_follows_from_its_key_path_and_state() -> None:
    """Another key, path, size, time or inode is another file; names need not be UTF-8."""
    name = file_name("k", "/p")
    assert name == file_name("k", "/p") != 0
    others = [file_name("k2", "/p"), file_name("k", "/p2"), file_name("/p", "k"), file_name("k", os.fsdecode(b"/\xff"))]
    states = [file_identity(*state) for state in ((name, 1, 2, 3), (name, 2, 2, 3), (name, 1, 3, 3), (name, 1, 2, 4))]
    assert len({name, *others, *states, file_identity(others[0], 1, 2, 3)}) == 10


# --- records ----------------------------------------------------------------------------------------------------

ALL: list[Record] = [
    *BEGINNING, OPENED, Files.of(DONE, [A, B]), Files.of(SKIPPED, [C]), Failed(A, os.fsdecode(b"/\xff\xfe"), "refused"),
    Withdrawn((1, 2**64 - 1)), Listed(), Ended(-5, "paused", Count(1, 2), Count(3, 4), Count(5, 2**63)), Cleared(),
]  # fmt: skip


@pytest.mark.parametrize("record", ALL, ids=lambda record: type(record).__name__)
def test_records_come_back_as_they_went(record: Record) -> None:
    """Every kind of record survives its bytes, names that are not UTF-8 included."""
    data = encode(record, 7)
    assert decode(b"x" + data, 1) == (record, 7, len(data) + 1)


def test_a_done_file_takes_36_bytes_and_24_in_company() -> None:
    """So a million files are 36 MB of log at most."""
    assert len(encode(Files.of(DONE, [A]), 0)) == 36
    assert len(encode(Files.of(DONE, [A] * 100), 0)) == 2412
    assert len(encode(Files.of(DONE, [A] * FILES_MAX), 0)) <= 12 + DATA_MAX_BYTES


def test_a_frame_that_no_record_has_is_none() -> None:
    """An unknown kind, a byte that must be zero, half a file, data where there are none: never read."""
    for kind, zero, data in [(0, 0, b""), (11, 0, b""), (8, 1, b""), (4, 0, b"x" * 23), (4, 0, b""), (8, 0, b"x"),
                             (7, 0, b"x" * 9), (6, 0, b"x" * 25), (9, 0, b"x"), (1, 0, b"x")]:  # fmt: skip
        tail = struct.pack("<HBBI", len(data), kind, zero, 0) + data
        with pytest.raises(UnreadableRecord):
            decode(struct.pack("<I", zlib.crc32(tail)) + tail)


def test_texts_are_bounded() -> None:
    """The end of a long path and the beginning of a long cause are kept, whole characters of it."""
    found, _, _ = decode(encode(Failed(A, "/" + "é" * 9000, "€" * 1000), 0))
    assert isinstance(found, Failed)
    assert found.path == "é" * 2048
    assert found.cause == "€" * 333


def test_long_arguments_take_many_records() -> None:
    """A command line of a megabyte comes back whole; one with a piece missing is known to be lost."""
    text = '"' + "x" * (1 << 20) + '"'
    records = beginning(JOB, 1, "p", text)
    data = [encode(record, 0) for record in records]
    assert said(header() + b"".join(data)).state.whole_arguments() == text
    assert said(header() + b"".join(data[:5] + data[6:])).state.whole_arguments() is None


def test_the_example_of_the_document_is_what_is_written() -> None:
    """The hex example of JOURNAL.md is what this code writes, byte for byte."""
    chapter = (ROOT / "engine" / "JOURNAL.md").read_text().partition("# The job log")[2]
    example = re.search(r"```hex\n(.*?)```", chapter, re.S)
    assert example is not None
    written = bytes.fromhex("".join(line.partition("|")[0] for line in example.group(1).splitlines()))
    records = [*BEGINNING, OPENED, Files.of(DONE, [A]), Listed()]
    assert written == header() + b"".join(encode(record, 0) for record in records)


# --- what they say together -------------------------------------------------------------------------------------


def test_a_file_is_done_as_it_was(tmp_path: Path) -> None:
    """One that has changed since is not; withdrawn, it is unknown also when it is put back as it was."""
    log = begun(tmp_path / "log")
    log.done([A, B])
    assert log.look(A.name, A.identity) == Known(DONE)
    assert log.look(A.name, 0x44) == Known(NONE, is_changed=True)
    log.failed(C, "/c", "refused")
    assert log.look(C.name, 0x44) == Known(NONE)  # nothing to withdraw
    log.withdraw([A.name])
    log.close()
    log = begun(tmp_path / "log")
    assert log.look(A.name, A.identity) == Known(NONE)
    assert outcomes(log) == [NONE, DONE, FAILED]
    log.close()


def test_a_failure_is_tried_again_and_forgotten_when_it_succeeds(tmp_path: Path) -> None:
    """Failures that still stand are kept with path and cause, the newest hundred of them."""
    log = begun(tmp_path / "log")
    for number in range(1, 151):
        log.failed(Entry(number, 4, 1), f"/f{number}", "refused")
    assert len(log.state.failures) == 100
    log.done([Entry(150, 4, 1)])
    assert log.look(150, 4) == Known(DONE)
    assert [failed.path for failed in log.state.failures.values()] == [f"/f{number}" for number in range(51, 150)]
    assert log.state.files.count(FAILED) == (149, 149)
    log.close()


def test_texts_of_failures_are_bounded_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where everything fails, the log says so of each file, and why of the first thousands; the manifest has all."""
    assert TEXTS_MAX * 5200 < 100e6
    monkeypatch.setattr("obs_engine.bulk.job_log.TEXTS_MAX", 2)
    log = begun(tmp_path / "log")
    for entry in (A, B, C):
        log.failed(entry, "/f", "refused")
    assert outcomes(log) == [FAILED] * 3
    assert list(log.state.failures) == [A.name, B.name]
    log.close()


def test_an_ended_run_is_over_until_the_next_one_opens(tmp_path: Path) -> None:
    """The end has all counts, and is found by a look at the log's last bytes."""
    path = tmp_path / "log"
    log = begun(path)
    log.done([A])
    log.done([B], SKIPPED)
    log.failed(C, "/c", "refused")
    ended = log.end(5, "failed")
    assert ended == Ended(5, "failed", Count(1, 100), Count(1, 200), Count(1, 300))
    log.close()
    seen = peek(str(path), is_whole=False)
    assert (seen.ended, seen.is_whole, seen.is_held) == (ended, False, False)
    assert seen.state is not None
    assert seen.state.whole_arguments() == '{"a":1}'
    log = begun(path)
    assert log.state.ended is None
    assert peek(str(path), is_whole=False).is_held
    log.close()
    assert peek(str(path)).ended is None


def test_what_was_not_listed_when_the_machine_stopped_is_sent_again(tmp_path: Path) -> None:
    """A kill costs nothing; a stop of the machine, or a machine that nobody knows, those since the last sync."""
    unknown = Opened(1, 2, bytes(16), "h")
    lost = [DONE, NONE, NONE]
    for opened, expected in ((OPENED, [DONE, DONE, NONE]), (REBOOTED, lost), (unknown, lost)):
        path = tmp_path / str(opened.pid)
        log = begun(path)
        log.done([A])
        log.mark_listed()
        log.done([B])
        log.close()
        log = begun(path, opened)
        assert outcomes(log) == expected
        log.close()
        log = begun(path, opened)
        assert outcomes(log)[:1] == [DONE]
        log.close()


def test_a_job_is_begun_anew(tmp_path: Path) -> None:
    """Nothing is done any more, and the log is as small as it was."""
    path = tmp_path / "log"
    log = begun(path)
    size = path.stat().st_size
    log.done([A, B])
    log.withdraw([B.name])
    log.restart(OPENED, BEGINNING)
    assert outcomes(log) == [NONE] * 3
    assert path.stat().st_size == size
    log.done([A])
    log.close()
    log = begun(path)
    assert log.damage is None
    assert outcomes(log) == [DONE, NONE, NONE]
    log.close()


# --- torn, damaged, not ours ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", header()[:9], bytes(9), bytes(100), bytes(4096), header() + bytes(700), MAGIC + bytes(600)],
    ids=["empty", "half a header", "short zeros", "zeros", "a page of zeros", "zeros behind the header", "magic"],
)  # fmt: skip
def test_a_log_torn_at_its_birth_is_begun_anew(tmp_path: Path, data: bytes) -> None:
    """What a crash leaves of the first write is no reason to stop, and nothing is kept of it."""
    path = tmp_path / "log"
    path.write_bytes(data)
    begun(path).close()
    assert path.read_bytes() == header() + b"".join(encode(record, 0) for record in [*BEGINNING, OPENED])
    assert os.listdir(tmp_path) == ["log"]


@pytest.mark.parametrize("data", [b"notes\n", b"\0" * 600 + b"x" * (5 << 20), MAGIC + b"x" * 40, header(2) + b"x" * 99])
def test_a_file_that_is_not_ours_is_left_as_it_is(tmp_path: Path, data: bytes) -> None:
    """Another file, and a log of a later version, are refused with a sentence."""
    path = tmp_path / "log"
    path.write_bytes(data)
    with pytest.raises(JournalVersionError, match=r"job log .*: expected .+, found .+; .+"):
        JobLog(str(path))
    assert path.read_bytes() == data
    open_fds = JobLog(str(tmp_path / "other"))  # and the lock is free again
    open_fds.close()
    os.close(open_locked(str(path)))


def test_a_later_version_names_the_two() -> None:
    """Version 2 is refused by version 1, and nothing is read of it."""
    with pytest.raises(JournalVersionError, match="expected version 1, found 2; continue this job with the release"):
        said(header(2) + encode(OPENED, 0))


def test_records_of_two_jobs_are_refused() -> None:
    """No list is made of two."""
    other = beginning("f" * 12, 1, "p", "{}")
    with pytest.raises(JournalDamagedError, match=f"found job {'f' * 12} after job {JOB}"):
        said(header() + b"".join(encode(record, 0) for record in [*BEGINNING, *other]))


def test_a_torn_tail_is_cut_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a crash leaves of the last write goes; the next record stands in its place."""
    path = tmp_path / "log"
    log = begun(path)
    log.done([A])
    log.done([B])
    log.close()
    path.write_bytes(path.read_bytes()[:-5])
    with caplog.at_level(logging.INFO, "obs_engine"):
        log = begun(path)
    assert "cut an unfinished tail of 31 bytes" in caplog.text
    assert outcomes(log) == [DONE, NONE, NONE]
    log.close()
    assert [name for name in os.listdir(tmp_path) if name != "log"] == []


def test_damage_is_told_kept_aside_and_costs_its_own_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With offset, expected and found; the file is kept, and the sound records count on in a new one."""
    path = tmp_path / "log"
    log = begun(path)
    for entry in (A, B, C):
        log.done([entry])
    log.close()
    data = bytearray(path.read_bytes())
    data[-36 - 10] ^= 1
    path.write_bytes(data)
    log = begun(path)
    assert f"damaged at offset {len(data) - 72}: expected a sound record, found checksum" in caplog.text
    assert outcomes(log) == [DONE, NONE, DONE]
    log.done([B])
    log.close()
    assert (tmp_path / "log.damaged").read_bytes() == data
    log = begun(path)
    assert log.damage is None
    assert outcomes(log) == [DONE] * 3
    log.close()


def test_a_lost_withdrawal_is_noticed(tmp_path: Path) -> None:
    """Every record counts them: where one was lost, what was said of files before it is not believed."""
    path = tmp_path / "log"
    log = begun(path)
    log.done([A, B])
    at = path.stat().st_size
    log.withdraw([A.name])
    log.done([C])
    log.close()
    data = bytearray(path.read_bytes())
    data[at + 13] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        log = begun(path)
        assert outcomes(log) == [NONE, NONE, DONE]
        log.close()
    assert log.damage is None
    assert sorted(os.listdir(tmp_path)) == ["log", "log.damaged"]


def test_each_damage_is_kept(tmp_path: Path) -> None:
    """A second damaged log stands beside the first; one without second names is copied."""

    class NoLinks(Disk):
        def link(self, path: str, other: str) -> None:
            raise OSError(errno.EPERM, "no second names") if not os.path.exists(other) else FileExistsError(17, "there")

    path = tmp_path / "log"
    kept = []
    for disk in (Disk(), NoLinks(), NoLinks()):
        log = begun(path)
        log.done([A])
        log.done([B])
        log.close()
        data = bytearray(path.read_bytes())
        data[-40] ^= 1
        path.write_bytes(data)
        kept.append(bytes(data))
        begun(path, disk=disk).close()
    assert [(tmp_path / name).read_bytes() for name in ("log.damaged", "log.damaged.2", "log.damaged.3")] == kept


# --- lock and disk ----------------------------------------------------------------------------------------------


def test_a_log_has_one_writer(tmp_path: Path) -> None:
    """The second one is told who the first is; those who look are in nobody's way."""
    path = tmp_path / "log"
    log = begun(path)
    with pytest.raises(JournalLockedError, match=r"found process 4711 on host host1 \(since 2026-09-21 14:13:20 UTC\)"):
        JobLog(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    log.close()
    fd = os.open(path, os.O_RDONLY)
    Disk().share(fd)
    with pytest.raises(JournalLockedError, match="at work on it"):  # somebody who looks for ever
        JobLog(str(path))
    os.close(fd)
    begun(path).close()


def test_who_only_looks_is_waited_for(tmp_path: Path) -> None:
    """A look that ends in a moment costs nobody his lock."""
    path = tmp_path / "log"
    begun(path).close()
    looking = os.open(path, os.O_RDONLY)
    Disk().share(looking)

    class Patient(Disk):
        tries = 0

        def share(self, fd: int) -> bool:
            self.tries += 1
            if self.tries == 3:
                os.close(looking)
            return super().share(fd)

    begun(path, disk=Patient()).close()


def test_a_full_disk_takes_nothing_half(tmp_path: Path) -> None:
    """A record that cannot be written is taken back, and says so; the log goes on when there is room."""

    class Full(Disk):
        is_full = False

        def write(self, fd: int, data: bytes, offset: int) -> None:
            if self.is_full:
                super().write(fd, data[:5], offset)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().write(fd, data, offset)

    path, disk = tmp_path / "log", Full()
    log = begun(path, disk=disk)
    log.done([A])
    was = path.read_bytes()
    disk.is_full = True
    with pytest.raises(JournalError, match="expected to be written, found No space left on device; free the disk"):
        log.done([B])
    with pytest.raises(JournalError, match="expected to be written anew"):
        log.restart(OPENED, BEGINNING)
    assert path.read_bytes() == was
    assert outcomes(log) == [DONE, NONE, NONE]
    assert os.listdir(tmp_path) == ["log"]
    disk.is_full = False
    log.done([B])
    log.close()
    log = begun(path)
    assert outcomes(log) == [DONE, DONE, NONE]
    log.close()


def test_a_withdrawal_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    """Before the file is sent; records of done files wait for the caller's sync."""

    class Counting(Disk):
        syncs = 0

        def sync(self, fd: int) -> None:
            self.syncs += 1
            super().sync(fd)

    disk = Counting()
    log = begun(tmp_path / "log", disk=disk)
    assert disk.syncs == 1
    log.done([A, B])
    assert disk.syncs == 1
    log.withdraw([A.name])
    assert disk.syncs == 2
    log.sync()
    assert disk.syncs == 2
    log.close()


def test_looking_changes_nothing(tmp_path: Path) -> None:
    """A look at a damaged log, at no log, and at one of another kind: told, and left as it is."""
    path = tmp_path / "log"
    with pytest.raises(FileNotFoundError):
        peek(str(path))
    path.write_bytes(b"notes\n")
    assert "found another file" in peek(str(path)).fault
    path.write_bytes(header() + b"x" * 50 + encode(OPENED, 0))
    seen = peek(str(path))
    assert seen.state is not None
    assert seen.state.opened == OPENED
    assert os.listdir(tmp_path) == ["log"]
    path.unlink()
    path.mkdir()
    assert "cannot be read" in peek(str(path)).fault


def test_a_million_files_fit(tmp_path: Path) -> None:
    """A log of a million files is read with less than 80 MB of memory; seed 1."""
    path, rng = tmp_path / "log", random.Random(1)
    with path.open("wb") as file:
        file.write(header() + encode(OPENED, 0))
        for outcome in (DONE, SKIPPED) * 1000:
            file.write(encode(Files(outcome, rng.randbytes(24 * 500)), 0))
    program = (
        "import resource, sys; from obs_engine.bulk.job_log import peek\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "files = peek(sys.argv[1]).state.files\n"
        "used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print(files.count(1).files + files.count(2).files, used)"
    )
    told = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=True, timeout=60)
    files, used_kib = map(int, told.stdout.split())
    assert files == 1_000_000
    assert used_kib < 80 * 1024
