"""The power goes before any call to the disk, and the disk shows whatever it may: a resume completes.

Seeds of the worlds in which some of what was not synced survived: `SEEDS`.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from model import BUCKET, KEY, PART, World
from obs_engine.checkpoint.fold import UploadState
from obs_engine.checkpoint.records import Initiated, PartStored
from obs_engine.checkpoint.recovery import recover
from power import Killed, PowerLossDisk

PARTS, SYNC_PARTS, TASK_NUM = 12, 3, 2
STORED = 7
"""Parts that the service has of an upload that was interrupted; of the last one there is no record."""
SEEDS = range(4)
LOSSES = [("nothing", 0), ("everything", 0), *(("some", seed) for seed in SEEDS)]
POWER = {"durability": "power", "sync_parts": SYNC_PARTS, "task_num": TASK_NUM}


# --- how it stood before the call -------------------------------------------------------------------------------


def fresh(world: World) -> dict[str, Any]:
    return {}


def interrupted(world: World) -> dict[str, Any]:
    with pytest.raises(Killed):
        world.call(["none"] * STORED + ["killed after"], task_num=1, durability="crash")
    return {}


def flipped(world: World, kind: type) -> bytes:
    """Of the first record of that kind, a byte is wrong."""
    data = bytearray(world.record.read_bytes())
    data[next(offset for offset, record in recover(data, "r").records if isinstance(record, kind)) + 9] ^= 1
    world.record.write_bytes(data)
    return bytes(data)


def torn(world: World) -> dict[str, Any]:
    interrupted(world)
    world.record.write_bytes(world.record.read_bytes()[:-5])
    return {}


def damaged(world: World) -> dict[str, Any]:
    interrupted(world)
    flipped(world, PartStored)
    return {}


def id_lost(world: World) -> dict[str, Any]:
    interrupted(world)
    flipped(world, Initiated)
    return {}


def adopted(world: World) -> dict[str, Any]:
    interrupted(world)
    world.record.unlink()
    return {"adopt": True}


def part_lost(world: World) -> dict[str, Any]:
    interrupted(world)
    (upload,) = world.service.uploads.values()
    del upload.parts[2]
    return {}


def of_the_sdk(world: World) -> dict[str, Any]:
    interrupted(world)
    state, stat = world.state(), world.source.stat()
    slices = [
        {"partNumber": n, "offset": (n - 1) * PART, "length": min(PART, stat.st_size - (n - 1) * PART),
         "isCompleted": n in state.parts} for n in range(1, PARTS + 1)
    ]  # fmt: skip
    world.record.write_text(json.dumps({
        "bucketName": BUCKET, "objectKey": KEY, "uploadId": state.upload_id, "uploadFile": str(world.source),
        "fileStatus": [stat.st_size, stat.st_mtime, ""], "uploadParts": slices,
        "partEtags": [{"partNum": n, "etag": etag} for n, etag in state.parts.items()],
    }))  # fmt: skip
    return {}


def other_options(world: World) -> dict[str, Any]:
    interrupted(world)
    return {"initiate_headers": (("x-amz-meta-a", "1"),)}


SCENES = [fresh, interrupted, torn, damaged, id_lost, adopted, part_lost, of_the_sdk, other_options]
IS_KEPT_ASIDE = (damaged, id_lost, of_the_sdk)
NEED_THE_SERVICE = (id_lost, adopted, part_lost)


# --- the laws ---------------------------------------------------------------------------------------------------


class Loss(NamedTuple):
    """The moment at which the power went."""

    world: World
    disk: PowerLossDisk
    options: dict[str, Any]
    was: bytes  # the record before the call
    began_with: frozenset[str]  # the uploads before it

    def lay_out(self, survived: str, seed: int) -> UploadState:
        self.disk.after_power_loss(survived, random.Random(seed))
        return self.world.state()


def losses(folder: Path, prepare: Callable[[World], dict[str, Any]]) -> Iterator[tuple[str, Loss]]:
    """One for each call to the disk, until the power lasts; twice for a write, of which a half may be done."""
    for fuse, is_torn in ((fuse, is_torn) for fuse in count(1) for is_torn in (False, True)):
        place = folder / f"{fuse}{is_torn}"
        place.mkdir()
        world = World(place, random.Random(PARTS).randbytes(PARTS * PART - 9))
        options = prepare(world)
        was = world.record.read_bytes() if world.record.exists() else b""
        began_with = frozenset(world.service.uploads)
        disk = PowerLossDisk(world.records, fuse, is_torn=is_torn)
        try:
            assert world.call(disk=disk, **POWER, **options).reply.status == 200
        except Killed:
            yield f"call {fuse}", Loss(world, disk, options, was, began_with)
        else:
            yield "the end", Loss(world, disk, options, was, began_with)
            return


@pytest.mark.parametrize("prepare", SCENES, ids=lambda prepare: prepare.__name__)
def test_what_was_promised_is_on_the_disk(tmp_path: Path, prepare: Callable[[World], dict[str, Any]]) -> None:
    """No part is sent for an upload id that a loss of power forgets; of parts, at most one group is forgotten."""
    for place, loss in losses(tmp_path, prepare):
        sent = loss.world.service.was_asked("UploadPart")
        uploads = loss.world.service.uploads
        durable = loss.lay_out("nothing", 0)
        assert {asked.upload_id for asked in sent} <= {durable.upload_id} or place == "the end", place
        if sent and durable.upload_id in uploads:
            forgotten = {a.part_number for a in sent} - durable.parts.keys()
            assert len(forgotten) <= SYNC_PARTS + TASK_NUM, place
        for survived, seed in LOSSES:
            state = loss.lay_out(survived, seed)
            if durable.upload_id in uploads:
                assert state.upload_id == durable.upload_id, f"{place}, {survived} {seed}"
                held = uploads[durable.upload_id].parts.keys()
                assert state.parts.keys() >= durable.parts.keys() & held, f"{place}, {survived} {seed}"


@pytest.mark.parametrize("is_silent", [False, True], ids=["asked", "silent"])
@pytest.mark.parametrize("prepare", SCENES, ids=lambda prepare: prepare.__name__)
def test_a_resume_completes(tmp_path: Path, prepare: Callable[[World], dict[str, Any]], is_silent: bool) -> None:
    """In every world: the object is the file, nothing is sent again that the record or the service can tell of.

    The one upload that may be left behind has no part: the power went between its Initiate and the sync of its record.
    """
    if is_silent and prepare in NEED_THE_SERVICE:
        pytest.skip("nobody else can tell")
    for place, loss in losses(tmp_path, prepare):
        world, service = loss.world, loss.world.service
        for survived, seed in LOSSES:
            where = f"{place}, {survived} {seed}"
            state = loss.lay_out(survived, seed)
            world.service = copy.deepcopy(service)
            world.service.forbidden = {"ListParts"} if is_silent else set()
            done = world.call(**POWER, **loss.options)
            assert done.reply.status == 200, where
            assert world.service.object is not None
            assert world.service.object.content == world.source.read_bytes(), where
            assert world.service.object.headers == loss.options.get("initiate_headers", ()), where
            assert {path.name for path in world.records.iterdir()} <= {"r.damaged", "r.sdk"}, where
            assert prepare not in IS_KEPT_ASIDE or loss.was in world.aside(), where
            asked = world.service.was_asked("UploadPart")
            sent = {a.part_number for a in asked}
            assert len(sent) == len(asked), where
            known = {state.upload_id} if prepare not in NEED_THE_SERVICE else service.uploads.keys()
            if prepare is other_options:
                known -= loss.began_with
            for upload_id in known & service.uploads.keys():
                held = service.uploads[upload_id].parts.keys()
                assert not sent & (state.parts.keys() if is_silent else held), where
                assert not world.service.was_asked("Initiate"), where
            if service.object is not None and state.upload_id is not None:
                assert world.service.object == service.object, where
                assert not world.service.was_asked("Initiate"), where
            assert all(not upload.parts for upload in world.service.uploads.values()), where
            assert not world.service.uploads.keys() & (known | loss.began_with), where


def test_what_a_disk_may_show(tmp_path: Path) -> None:
    """The disk itself: what was synced is there in every world, the rest in some; a sector is old or new."""
    path, other = str(tmp_path / "a"), str(tmp_path / "b")
    seen = set()
    disk = PowerLossDisk(tmp_path)
    fd = disk.open(path)
    disk.write(fd, b"1" * 600, 0)
    disk.sync(fd)
    disk.sync_directory(path)
    disk.write(fd, b"2" * 600, 300)
    disk.rename(path, other)
    disk.link(other, path)
    disk.end()
    for seed in range(200):
        disk.after_power_loss("some", random.Random(seed))
        names = tuple(sorted(file.name for file in tmp_path.iterdir()))
        (data,) = {file.read_bytes() for file in tmp_path.iterdir()}
        seen.add((names, data.replace(b"\0", b"0").decode()))
    new = "1" * 300 + "2" * 600
    contents = {old + "1" * 88 for old in ("1" * 512, new[:512])}
    contents |= {old + tail for old in ("1" * 512, new[:512]) for tail in ("2" * 388, "1" * 88 + "0" * 300, "2" * 88)}
    assert seen == {(names, content) for names in (("a",), ("b",), ("a", "b")) for content in contents}
