"""A record that is cut, flipped or zeroed, at every byte: the upload goes on, and nothing is sent that need not be.

An upload of 50 parts was interrupted: three parts were never sent, and one was stored without its record. Another one
was done, and its record not yet removed.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from model import PART, World
from obs_engine.checkpoint.records import HEADER_BYTES, Initiated, PartStored, encode, header
from obs_engine.checkpoint.recovery import recover
from obs_engine.errors import ResumeRefusedError
from power import Killed, MortalDisk

PARTS, SEED = 50, 1
NEVER_SENT, NOT_RECORDED = {7, 23, 50}, {11}
UNKNOWN = NEVER_SENT | NOT_RECORDED
SINGLE_BITS = tuple(1 << bit for bit in range(8))


class Piece(NamedTuple):
    """The bytes of one record, or of the header."""

    start: int
    end: int
    is_id: bool = False
    part: int = 0

    def touches(self, damage: range) -> bool:
        return self.start < damage.stop and damage.start < self.end


class Interrupted:
    """An interrupted upload, to be continued again and again from damaged copies of its record."""

    def __init__(self, folder: Path, parts: int, *, is_done: bool = False) -> None:
        self.world = World(folder, random.Random(SEED).randbytes(parts * PART - 9))
        self.content = self.world.source.read_bytes()
        unknown = frozenset() if is_done else UNKNOWN
        script = [] if is_done else ["none"] * (parts + 1) + ["killed before"]  # Initiate, the parts, Complete
        disk = MortalDisk(parts + 6)  # created, opened, bound, initiated, the parts, completed, removed
        with pytest.raises(Killed):
            self.world.call(script, disk, task_num=1, durability="crash", verify="none")  # a task each
        records = [record for _, record in recover(self.world.record.read_bytes(), "r").records]
        records = [r for r in records if not isinstance(r, PartStored) or r.part_number not in unknown]
        self.data = header() + b"".join(map(encode, records))
        self._service = self.world.service
        self._service.asked.clear()
        for upload in self._service.uploads.values():
            upload.parts = {number: data for number, data in upload.parts.items() if number not in NEVER_SENT}
        self.pieces = [Piece(0, HEADER_BYTES)]
        for record in records:
            start, part = self.pieces[-1].end, record.part_number if isinstance(record, PartStored) else 0
            self.pieces.append(Piece(start, start + len(encode(record)), isinstance(record, Initiated), part))
        assert self.pieces[-1].end == len(self.data)

    @property
    def id_piece(self) -> Piece:
        return next(piece for piece in self.pieces if piece.is_id)

    def parts_in(self, damage: range) -> set[int]:
        """Parts whose records the damage touches."""
        return {piece.part for piece in self.pieces if piece.part and piece.touches(damage)}

    def resume(self, record: bytes, *, is_silent: bool = False, adopt: bool = False) -> tuple[set[int], int]:
        """Continues from these bytes, and to the end.

        Returns:
            The parts that were sent, and how many uploads were begun.
        """
        world = self.world
        for path in world.records.iterdir():
            path.unlink()
        world.record.write_bytes(record)
        world.service = copy.deepcopy(self._service)
        world.service.forbidden = {"ListParts"} if is_silent else set()
        done = world.call(durability="crash", adopt=adopt)
        assert done.reply.status == 200
        assert world.service.object is not None
        assert world.service.object.content == self.content
        assert not world.record.exists()
        asked = world.service.was_asked("UploadPart")
        assert len({a.part_number for a in asked}) == len(asked)
        return {a.part_number or 0 for a in asked}, len(world.service.was_asked("Initiate"))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    return Interrupted(tmp_path_factory.mktemp("damage"), PARTS)


# --- cut --------------------------------------------------------------------------------------------------------


def test_a_record_cut_anywhere_costs_what_was_cut(interrupted: Interrupted) -> None:
    """From the upload id on, nothing is sent that the service lists; where it may not be asked, what was cut is."""
    data = interrupted.data
    for length in range(interrupted.id_piece.end, len(data)):
        sent, begun = interrupted.resume(data[:length])
        assert (sent, begun) == (NEVER_SENT, 0), f"cut at {length}"
        assert interrupted.world.aside() == []
        sent, begun = interrupted.resume(data[:length], is_silent=True)
        assert (sent, begun) == (UNKNOWN | interrupted.parts_in(range(length, len(data))), 0), f"cut at {length}"


def test_a_record_cut_before_the_upload_id_begins_anew_or_adopts(interrupted: Interrupted) -> None:
    """It looks like one that was torn at its birth: a new upload begins; who says that there is one continues it."""
    for length in range(interrupted.id_piece.end):
        sent, begun = interrupted.resume(interrupted.data[:length])
        assert (sent, begun) == (set(range(1, PARTS + 1)), 1), f"cut at {length}"
        sent, begun = interrupted.resume(interrupted.data[:length], adopt=True)
        assert (sent, begun) == (NEVER_SENT, 0), f"cut at {length}"


def test_a_finished_upload_is_found_to_be_done(tmp_path: Path) -> None:
    """Its record, cut behind the upload id or with a wrong byte anywhere: the object stands, and nothing is sent."""
    done = Interrupted(tmp_path, 5, is_done=True)
    cuts = [done.data[:length] for length in range(done.id_piece.end, len(done.data) + 1)]
    for record in [*cuts, *(record for _, record in flips(done, SINGLE_BITS))]:
        assert done.resume(record) == (set(), 0)


# --- flipped and zeroed -----------------------------------------------------------------------------------------


def flips(interrupted: Interrupted, masks: Iterable[int], offsets: Iterable[int] = ()) -> Iterator[tuple[range, bytes]]:
    for offset in offsets or range(len(interrupted.data)):
        for mask in masks:
            damaged = bytearray(interrupted.data)
            damaged[offset] ^= mask
            yield range(offset, offset + 1), bytes(damaged)


def zeroed(interrupted: Interrupted, size: int) -> Iterator[tuple[range, bytes]]:
    data = interrupted.data
    for start in range(0, len(data), size):
        end = min(start + size, len(data))
        yield range(start, end), data[:start] + bytes(end - start) + data[end:]


def check_where_the_service_is_asked(interrupted: Interrupted, damages: Iterable[tuple[range, bytes]]) -> None:
    """No damage costs a part that the service lists, none is refused, and the damaged record is kept aside."""
    tail = interrupted.pieces[-1].start
    for damage, record in damages:
        sent, begun = interrupted.resume(record)
        assert (sent, begun) == (NEVER_SENT, 0), f"damage at {damage}"
        assert interrupted.world.aside() == ([] if damage.stop > tail else [record]), f"damage at {damage}"


def check_where_the_service_is_silent(interrupted: Interrupted, damages: Iterable[tuple[range, bytes]]) -> None:
    """What is sent again is what the damage touched; only without the upload id it is refused, and nothing changed."""
    for damage, record in damages:
        if interrupted.id_piece.touches(damage):
            with pytest.raises(ResumeRefusedError, match=r"expected .+, found .+; name it with"):
                interrupted.resume(record, is_silent=True)
            assert interrupted.world.record.read_bytes() == record
            assert interrupted.world.aside() == []
            assert not interrupted.world.service.was_asked("Initiate", "UploadPart", "Complete", "Abort")
        else:
            sent, begun = interrupted.resume(record, is_silent=True)
            assert (sent, begun) == (UNKNOWN | interrupted.parts_in(damage), 0), f"damage at {damage}"


def test_a_flip_anywhere_costs_nothing(interrupted: Interrupted) -> None:
    """A wrong byte, wherever it is: the service is asked, and only what was never stored is sent."""
    check_where_the_service_is_asked(interrupted, flips(interrupted, [0x40]))
    check_where_the_service_is_asked(interrupted, flips(interrupted, range(1, 256), [0]))


def test_a_flip_anywhere_costs_its_own_record(interrupted: Interrupted) -> None:
    """The same, with parts that may not be listed: the part of the damaged record is sent again, and no other."""
    check_where_the_service_is_silent(interrupted, flips(interrupted, [0x40]))


@pytest.mark.parametrize("size", [64, 512])
def test_zeroed_blocks_cost_their_own_records(interrupted: Interrupted, size: int) -> None:
    """A lost block of a disk, wherever it is."""
    check_where_the_service_is_asked(interrupted, zeroed(interrupted, size))
    check_where_the_service_is_silent(interrupted, zeroed(interrupted, size))


def test_the_records_of_a_large_journal_outlive_its_beginning(tmp_path: Path) -> None:
    """With the header and the first record gone, all others count, however many there are."""
    large = Interrupted(tmp_path, 600)
    opened = large.pieces[1]
    record = bytes(opened.end) + large.data[opened.end :]
    assert large.resume(record) == (NEVER_SENT, 0)
    assert large.resume(record, is_silent=True) == (UNKNOWN, 0)


@pytest.mark.parametrize("is_silent", [False, True])
def test_without_its_path_a_record_believes_no_other_file(tmp_path: Path, is_silent: bool) -> None:
    """The binding's texts are damaged, and a file of the same size and time stands in for the one that was begun."""
    interrupted = Interrupted(tmp_path, 5)
    source, other = interrupted.world.source, tmp_path / "other"
    times = source.stat()
    interrupted.content = bytes(byte ^ 1 for byte in interrupted.content)
    other.write_bytes(interrupted.content)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(source)
    binding = interrupted.pieces[2]
    damaged = bytearray(interrupted.data)
    damaged[binding.end - 1] ^= 1
    sent, _ = interrupted.resume(bytes(damaged), is_silent=is_silent)
    assert sent == set(range(1, 6))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_flips_of_every_bit(interrupted: Interrupted) -> None:
    """Every single bit, and every bit of a byte at once; in the header and behind it every value of every byte."""
    for masks, offsets in (((*SINGLE_BITS, 0xFF), ()), (range(1, 256), range(HEADER_BYTES + 8))):
        check_where_the_service_is_asked(interrupted, flips(interrupted, masks, offsets))
        check_where_the_service_is_silent(interrupted, flips(interrupted, masks, offsets))
