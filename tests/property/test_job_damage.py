"""A job that is killed, whose machine stops, whose log is cut or flipped at every byte: exactly the rest is done.

Beside each log stands a model of it, a dict. `SEEDS`: of the worlds in which some of what was not synced survived.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obs_engine.bulk.file_table import DONE, FAILED, NONE, SKIPPED, file_identity, file_name
from obs_engine.bulk.job import Arguments, Job, Outcome, job_id
from obs_engine.bulk.job_log import JobLog
from obs_engine.bulk.job_records import (
    HEADER_BYTES,
    Entry,
    Failed,
    Files,
    JobState,
    Listed,
    Opened,
    Record,
    Withdrawn,
    beginning,
    encode,
    fold,
    header,
    scan,
)
from obs_engine.bulk.manifest import Line, Manifest, read_manifest, run_name
from obs_engine.errors import JournalVersionError
from power import Killed, MortalDisk, PowerLossDisk

SEEDS = range(12)
LOSSES = [("nothing", 0), ("everything", 0), *(("some", seed) for seed in SEEDS)]
OPENED = Opened(1, 1790000000, b"b" * 16, "h")
JOB = "0123456789ab"
Model = dict[int, tuple[int, int]]


def taken(model: Model, record: Record) -> None:
    """What a record does to the model."""
    if isinstance(record, Files):
        model.update({entry.name: (entry.identity, record.outcome) for entry in record.entries()})
    elif isinstance(record, Failed):
        model[record.entry.name] = (record.entry.identity, FAILED)
    elif isinstance(record, Withdrawn):
        for name in record.names:
            model.pop(name, None)


def encoded(records: list[Record]) -> list[bytes]:
    state, pieces = JobState(), []
    for record in records:
        fold(state, record)
        pieces.append(encode(record, state.withdrawals))
    return pieces


def read(data: bytes) -> Callable[[int, int], bytes]:
    return lambda length, at: data[at : at + length]


# --- cut and flipped at every byte ------------------------------------------------------------------------------

NAMES = range(1, 9)
A_FEW: list[Record] = [
    *beginning(JOB, 1, "p", '{"a":1}'), OPENED,
    Files.of(DONE, [(1, 4, 10)]), Files.of(DONE, [(2, 4, 20), (3, 4, 30)]), Failed(Entry(4, 4, 40), "/f", "refused"),
    Files.of(DONE, [(5, 4, 50)]), Listed(), Withdrawn((1, 5)), Files.of(DONE, [(1, 8, 11)]),
    Files.of(SKIPPED, [(6, 4, 60)]), Files.of(DONE, [(7, 4, 70)]), Files.of(DONE, [(8, 4, 80)]),
]  # fmt: skip


def known(path: Path) -> Model:
    """What a log says when it is opened and claimed; and what it says then is what it says when opened again."""
    found: list[Model] = []
    for _ in range(2):
        log = JobLog(str(path), is_power_safe=False)
        if found:
            assert log.damage is None
        log.claim(OPENED, beginning(JOB, 1, "p", '{"a":1}'))
        assert log.state.whole_arguments() == '{"a":1}'
        found.append({name: log.state.files.get(name) for name in NAMES if log.state.files.get(name)[1] != NONE})
        log.close()
    assert found[0] == found[1]
    return found[0]


def expected(lost: set[int]) -> Model:
    """What is left of `A_FEW` without the records of these numbers."""
    model: Model = {}
    withdrawn = next(number for number, record in enumerate(A_FEW) if isinstance(record, Withdrawn))
    for number, record in enumerate(A_FEW):
        if number == withdrawn and number in lost:
            model.clear()
        if number not in lost:
            taken(model, record)
    return model


def test_a_log_cut_anywhere_costs_what_was_cut(tmp_path: Path) -> None:
    """What stood before the cut counts, and nothing else; no copy is kept."""
    pieces = encoded(A_FEW)
    data, path = header() + b"".join(pieces), tmp_path / "log"
    for length in range(len(data)):
        model: Model = {}
        end = HEADER_BYTES
        for record, piece in zip(A_FEW, pieces, strict=True):
            end += len(piece)
            if end <= length:
                taken(model, record)
        path.write_bytes(data[:length])
        assert known(path) == model, f"cut at {length}"
        assert [file.name for file in tmp_path.iterdir()] == ["log"]


@pytest.mark.parametrize("size", [1, 16, 64])
def test_a_log_damaged_anywhere_costs_its_own_records(tmp_path: Path, size: int) -> None:
    """Wrong or lost bytes: the damaged log is kept, the sound records count; nobody believes what was withdrawn."""
    pieces = encoded(A_FEW)
    data, path = header() + b"".join(pieces), tmp_path / "log"
    starts = [HEADER_BYTES + sum(map(len, pieces[:number])) for number in range(len(pieces) + 1)]
    for at in range(0, len(data), size):
        damaged = bytearray(data)
        damaged[at : at + size] = bytes([data[at] ^ 0x40]) if size == 1 else bytes(min(size, len(data) - at))
        lost = {n for n in range(len(A_FEW)) if starts[n] < at + size and at < starts[n + 1]}
        lost -= {n for n in lost if damaged[starts[n] : starts[n + 1]] == pieces[n]}
        path.write_bytes(damaged)
        assert known(path) == expected(lost), f"damage at {at}"
        aside = tmp_path / "log.damaged"
        is_torn = at >= HEADER_BYTES and all(n in lost for n in range(min(lost, default=len(A_FEW)), len(A_FEW)))
        assert aside.exists() != (is_torn or damaged == data), f"damage at {at}"
        if aside.exists():
            assert aside.read_bytes() == damaged
            aside.unlink()


def test_damage_at_the_edges_of_pieces_is_found() -> None:
    """A log of several MiB with damage anywhere near where its pieces meet: all other records count; seed 1."""
    rng = random.Random(1)
    pieces = [encode(Files(DONE, rng.randbytes(24 * rng.choice([1, 3, 600]))), 0) for _ in range(600)]
    data = header() + b"".join(pieces)
    assert len(data) > 2 << 20
    whole = scan(read(data), len(data), "log")
    assert whole.sound_bytes == len(data)
    at = HEADER_BYTES
    for piece in pieces:
        is_near = any(abs(at - edge) < 20_000 for edge in (HEADER_BYTES + (1 << 20), 1 << 20, 2 << 20))
        if is_near and at + len(piece) < len(data):
            damaged = data[: at + 20] + bytes([data[at + 20] ^ 1]) + data[at + 21 :]
            found = scan(read(damaged), len(damaged), "log")
            assert found.damage is not None
            assert found.damage.offset == at
            assert found.ranges == ((HEADER_BYTES, at), (at + len(piece), len(data)))
            assert found.state.files.count(DONE).files == whole.state.files.count(DONE).files - (len(piece) - 12) // 24
        at += len(piece)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_no_bytes_are_too_strange(noise: bytes, at: int) -> None:
    """Noise instead of a log, or within one, is refused or read; nothing else is raised."""
    data = header() + b"".join(encoded(A_FEW))
    for strange in (noise, header() + noise, data[:at] + noise + data[at:], data[:at] + noise):
        try:
            found = scan(read(strange), len(strange), "log")
        except JournalVersionError:
            continue
        assert found.sound_bytes <= len(strange)


# --- what is written is what is read ----------------------------------------------------------------------------

_names, _identities = st.integers(1, 6), st.sampled_from([4, 8, 2**64 - 4])
_entries = st.tuples(_names, _identities, st.integers(0, 2**40)).map(lambda told: Entry(*told))
_steps = st.one_of(
    st.lists(_entries, min_size=1, max_size=4).map(lambda entries: Files.of(DONE, entries)),
    st.lists(_entries, min_size=1, max_size=2).map(lambda entries: Files.of(SKIPPED, entries)),
    st.builds(Failed, _entries, st.text(max_size=5), st.text(max_size=5)),
    st.lists(_names, max_size=2).map(lambda names: Withdrawn(tuple(names))),
    st.just(Listed()), st.just("open again"),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(_steps, max_size=25))
def test_a_log_says_what_was_said(tmp_path_factory: pytest.TempPathFactory, steps: list[Record | str]) -> None:
    """Whatever is said in whatever order, and however often the log is opened in between."""
    path, model = tmp_path_factory.mktemp("log") / "log", Model()
    log = JobLog(str(path), is_power_safe=False)
    log.claim(OPENED)
    for step in [*steps, "open again"]:
        if isinstance(step, str):
            log.close()
            log = JobLog(str(path), is_power_safe=False)
            assert log.damage is None
            log.claim(OPENED)
        else:
            log.append(step)
            taken(model, step)
        files = log.state.files
        assert {name: files.get(name) for name in range(1, 7) if files.get(name)[1] != NONE} == model
        counts = [files.count(outcome).files for outcome in (DONE, SKIPPED, FAILED)]
        assert counts == [sum(was == outcome for _, was in model.values()) for outcome in (DONE, SKIPPED, FAILED)]
    log.close()


# --- kills and losses of power ----------------------------------------------------------------------------------


class KilledDisk(MortalDisk):
    """Lines are written like all the rest."""

    def open_to_append(self, path: str) -> int:
        return self.open(path)

    def append(self, fd: int, data: bytes) -> None:
        self.write(fd, data, self.size(fd))


class PowerlessDisk(KilledDisk, PowerLossDisk):
    """The same with the power."""


class World(NamedTuple):
    """A folder for a job's files, the files that it sends by version, and what the service has of each.

    Attributes:
        sent: in order.
        synced: of those, what the job was told to be durable.
    """

    folder: Path
    files: dict[str, int]
    service: dict[str, int]
    sent: list[str]
    synced: set[str]

    def run(self, disk: MortalDisk, boot: bytes, since_s: int) -> None:
        """What a job does: looks, withdraws, sends, says so, syncs after every third file."""
        arguments = Arguments(("/s",), "obs://b/", "https://e", {})
        opened = Opened(1, since_s, boot, "h")
        log = JobLog(str(self.folder / "log"), disk=disk)
        try:
            log.claim(opened, beginning(job_id(arguments), since_s, "p", arguments.canonical()))
            manifest = Manifest(str(self.folder), run_name(since_s), disk=disk)
            job = Job(log, job_id(arguments), arguments, opened, manifest, disk)
            for number, (key, version) in enumerate(self.files.items(), 1):
                name = file_name(key, f"/s/{key}")
                found = job.look(name, file_identity(name, 10, version, 1))
                if found.is_changed:
                    job.log.withdraw([name])
                if found.outcome != DONE:
                    self.service[key] = version
                    self.sent.append(key)
                    job.succeeded([Outcome.of(Line(key, f"/s/{key}", 10), version, 1)])
                if not number % 3:
                    job.sync()
                    self.synced.update(self.sent)
            job.end(since_s, "done")
        finally:
            disk.end()

    def check(self, where: str) -> None:
        """The service has every file as it is, and the manifest has each exactly once."""
        assert self.service == self.files, where
        assert sorted(listed.line.key for listed in read_manifest(str(self.folder))) == sorted(self.files), where


def worlds(folder: Path, *, with_power: bool) -> Iterator[tuple[str, World, MortalDisk, bytes]]:
    """A second run of a job is ended before each of its calls to the disk. The first one was killed in the middle, and
    a file has changed since, of which the log says that it is done."""
    for fuse, is_torn in ((fuse, is_torn) for fuse in count(1) for is_torn in (False, True)):
        place = folder / f"{fuse}{is_torn}"
        place.mkdir()
        world = World(place, {f"k{number}": 1 for number in range(8)}, {}, [], set())
        first = KilledDisk(24)
        with pytest.raises(Killed):
            world.run(first, b"1" * 16, 1790000000)
        world.files["k1"] = 2
        world.sent.clear()
        world.synced.clear()
        disk = PowerlessDisk(place, fuse, is_torn=is_torn) if with_power else KilledDisk(fuse, is_torn=is_torn)
        try:
            world.run(disk, b"1" * 16, 1790000001)
        except Killed:
            assert world.service["k1"] in (1, 2)
            yield f"call {fuse}", world, disk, b"1" * 16
        else:
            return


@pytest.mark.parametrize("is_put_back", [False, True], ids=["changed", "put back"])
def test_after_a_kill_exactly_the_rest_is_done(tmp_path: Path, is_put_back: bool) -> None:
    """Nothing is sent again, but for one file between its line and its record; also where a file is put back as it
    was, the service has it as it is."""
    for where, world, _, boot in worlds(tmp_path, with_power=False):
        if is_put_back:
            world.files["k1"] = 1
        sent_before = list(world.sent)
        world.run(KilledDisk(), boot, 1790000002)
        world.check(where)
        again = [key for key in sent_before if key in world.sent[len(sent_before) :]]
        assert len([key for key in again if not (is_put_back and key == "k1")]) <= 1, where


@pytest.mark.parametrize("is_put_back", [False, True], ids=["changed", "put back"])
def test_after_a_loss_of_power_nothing_is_missing(tmp_path: Path, is_put_back: bool) -> None:
    """Whatever the disk kept: the rerun ends with every file at the service as it is, and in the manifest once; what
    was synced is not sent again."""
    for where, world, disk, _ in worlds(tmp_path, with_power=True):
        assert isinstance(disk, PowerlessDisk)
        was = dict(world.service)
        for survived, seed in LOSSES:
            disk.after_power_loss(survived, random.Random(seed))
            after = World(world.folder, {**world.files, **({"k1": 1} if is_put_back else {})}, dict(was), [], set())
            after.run(KilledDisk(), b"2" * 16, 1790000002)
            after.check(f"{where}, {survived} {seed}")
            again = world.synced & set(after.sent) - ({"k1"} if is_put_back else set())
            assert not again, f"{where}, {survived} {seed}"
