"""Uploads of one file in a world where anything may happen between calls, and during them: what is a success, is true.

One definition of correctness. A call that reports success leaves an object that is, byte for byte, the file as the call
found it, made with the options of that call (of its Initiate, where an upload was adopted). Any other call ends with an
`ObsEngineError`, or with the service's refusal of Complete, and keeps what was stored. See `Resume.check`.
"""

from __future__ import annotations

import os
import random
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from model import FAULTS, KEY, PART, SSE, World
from obs_engine.checkpoint.fold import UploadState
from obs_engine.errors import JournalVersionError, ObsEngineError, ResumeRefusedError, ServiceError
from obs_engine.transfer.messages import Uploaded
from power import LOSSES, Killed, MortalDisk, PowerLossDisk

SIZES = st.one_of(st.integers(3 * PART, 6 * PART), st.integers(0, PART + 1))
OPERATIONS = ["Initiate", "UploadPart", "Complete", "Abort", "ListParts", "ListUploads", "HeadObject"]
METADATA = [(), (("x-amz-meta-a", "1"),), (("x-amz-meta-a", "2"),)]
KEYS = [(), ((SSE, "k1"),), ((SSE, "k2"),)]
PART_SIZES = [PART, PART + 1, 3 * PART]
FILE_CHANGES = ["rewritten", "edited", "edited unseen", "touched", "cut", "copied", "moved", "restored"]
LOSSES_OF_THE_SERVICE = ["upload", "part", "object"]
MEANWHILE = ["edited", "touched", "cut", "upload", "part"]
SCRIPTS = st.lists(st.sampled_from(["none"] * 8 + list(FAULTS) + MEANWHILE), max_size=12)
DAMAGES = ["flip", "cut", "zeros", "loss"]


class Version(NamedTuple):
    """What the file was at some time."""

    content: bytes
    mtime_ns: int


class Before(NamedTuple):
    """How it stood as a call began.

    Attributes:
        known: what the record says.
        parts: of the upload that the record names, as the service had them.
        is_open: the uploads that were open.
    """

    file: Version
    options: dict[str, Any]
    known: UploadState
    parts: dict[int, tuple[bytes, str]]
    is_open: frozenset[str]


class Begun(NamedTuple):
    """With which file and options an upload was begun, or bound anew."""

    file: Version
    options: dict[str, Any]


def is_interrupted(machine: Resume) -> bool:
    """Is there something to be lost, or to be continued?"""
    return bool(machine.world.record.exists() or machine.ours())


class Resume(RuleBasedStateMachine):
    """A file, its record and a service; calls, and what befalls them."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._now = 1_700_000_000_000_000_000
        self._random = random.Random(0)
        self._options: dict[str, Any] = {}
        self._begun: dict[str, Begun] = {}
        self._adoptable: set[str] = set()
        self._lost: set[tuple[str, int]] = set()
        self._is_harmed = False

    @initialize(
        size=SIZES, page=st.sampled_from([1, 2, 1000]), names_maker=st.booleans(), after=st.integers(0, 7)
    )
    def begin(self, size: int, page: int, names_maker: bool, after: int) -> None:
        """A first call that is killed, or done."""
        self.world = World(Path(self._folder.name))
        self.world.service.page = page
        self.world.service.names_maker = names_maker
        self.world.service.begin(f"{KEY}.another")
        self.world.events = {
            "edited": lambda: self._change_file("edited", 1), "touched": lambda: self._change_file("touched", 1),
            "cut": lambda: self._change_file("cut", 1), "upload": lambda: self._lose("upload", 1),
            "part": lambda: self._lose("part", 1),
        }  # fmt: skip
        self._versions: list[Version] = []
        self._write(self._random.randbytes(size))
        self._call([*["none"] * after, "killed after"])

    def ours(self) -> list[str]:
        """Open uploads of the key."""
        return [upload_id for upload_id, upload in self.world.service.uploads.items() if upload.key == KEY]

    def teardown(self) -> None:
        self._folder.cleanup()

    # --- the file -------------------------------------------------------------------------------------------------

    @property
    def _file(self) -> Version:
        return self._versions[-1]

    def _write(self, content: bytes, mtime_ns: int | None = None, *, is_copy: bool = False) -> None:
        path = self.world.source
        if is_copy:
            other = path.with_name("copy")
            other.write_bytes(content)
            other.rename(path)
        else:
            path.write_bytes(content)
        self._now += 1_000_000_001
        self._versions.append(Version(content, self._now if mtime_ns is None else mtime_ns))
        os.utime(path, ns=(self._now, self._file.mtime_ns))

    @precondition(is_interrupted)
    @rule(how=st.sampled_from(FILE_CHANGES), at=st.integers(0, 10))
    def change_file(self, how: str, at: int) -> None:
        self._change_file(how, at)

    def _change_file(self, how: str, at: int) -> None:
        content, mtime_ns = self._file
        edited = bytearray(content)
        if edited:
            edited[(at * PART) % len(content)] ^= 1
        match how:
            case "rewritten":
                self._write(self._random.randbytes(at * PART // 2))
            case "edited":
                self._write(bytes(edited))
            case "edited unseen":
                self._write(bytes(edited), mtime_ns, is_copy=at % 2 == 0)
            case "touched":
                self._write(content)
            case "cut":
                self._write(content[: len(content) // 2])
            case "copied":
                self._write(content, mtime_ns, is_copy=True)
            case "moved":
                self.world.source = self.world.source.rename(self.world.source.with_name(f"source{at}"))
                self._write(content, mtime_ns, is_copy=True)
            case "restored":
                self._write(*self._versions[at % len(self._versions)], is_copy=at % 2 == 0)

    @property
    def _needs_checksum(self) -> bool:
        """Was there another file of this size and time? Only its content can then tell them apart."""
        size, mtime_ns = len(self._file.content), self._file.mtime_ns
        like = {v.content for v in self._versions if (len(v.content), v.mtime_ns) == (size, mtime_ns)}
        return len(like) > 1

    # --- the rest of the world --------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(["metadata", "key", "part size", "checksum", "policy"]), choice=st.integers(0, 2))
    def change_option(self, name: str, choice: int) -> None:
        match name:
            case "metadata":
                self._options["metadata"] = METADATA[choice]
            case "key":
                self._options["key"] = KEYS[choice]
            case "part size":
                self._options["part_size_bytes"] = PART_SIZES[choice]
            case "checksum":
                self._options["is_checksum"] = choice > 0
            case "policy":
                self._options["on_source_change"] = "refuse" if choice == 2 else "restart"

    @precondition(is_interrupted)
    @rule(forbidden=st.sets(st.sampled_from(OPERATIONS), max_size=3), unoffered=st.booleans())
    def change_permissions(self, forbidden: set[str], unoffered: bool) -> None:
        self.world.service.forbidden = set(forbidden)
        self.world.service.unoffered = {"ListParts"} if unoffered else set()

    @precondition(is_interrupted)
    @rule(what=st.sampled_from(LOSSES_OF_THE_SERVICE), which=st.integers(0, 10))
    def lose(self, what: str, which: int) -> None:
        self._lose(what, which)

    def _lose(self, what: str, which: int) -> None:
        service, ours = self.world.service, self.ours()
        if what == "object":
            service.object = None
        elif ours:
            upload_id = ours[which % len(ours)]
            parts = service.uploads[upload_id].parts
            if what == "upload":
                del service.uploads[upload_id]
            elif parts:
                number = sorted(parts)[which % len(parts)]
                del parts[number]
                self._lost.add((upload_id, number))

    @rule(is_done=st.booleans(), is_equal=st.booleans(), metadata=st.sampled_from(METADATA))
    def another_host_uploads(self, is_done: bool, is_equal: bool, metadata: tuple[tuple[str, str], ...]) -> None:
        """The same file or another, to the same key; it is done, or has but begun."""
        content = self._file.content if is_equal else self._random.randbytes(len(self._file.content))
        parts = {at // PART + 1: content[at : at + PART] for at in range(0, max(1, len(content)), PART)}
        service = self.world.service
        upload_id = service.begin(headers=metadata, parts=parts)
        if is_done:
            service.assemble(upload_id, sorted(parts))
        elif len(parts) > 1:
            del service.uploads[upload_id].parts[len(parts)]

    @precondition(is_interrupted)
    @rule(how=st.sampled_from(DAMAGES), at=st.floats(0, 1, exclude_max=True))
    def damage_record(self, how: str, at: float) -> None:
        record = self.world.record
        data = bytearray(record.read_bytes() if record.exists() else b"")
        if not data:
            return
        self._is_harmed = True
        place = int(at * len(data))
        match how:
            case "flip":
                data[place] ^= 0x40
            case "cut":
                del data[place:]
            case "zeros":
                start = place // 512 * 512
                data[start : start + 512] = bytes(len(data[start : start + 512]))
            case "loss":
                return record.unlink()
        record.write_bytes(data)

    # --- calls ------------------------------------------------------------------------------------------------------

    @precondition(is_interrupted)
    @rule(adopt=st.sampled_from([False, False, True, "U002", "U003"]))
    def call(self, adopt: bool | str) -> None:
        """Nothing befalls it."""
        self._call(adopt=adopt)

    @rule(script=SCRIPTS, task_num=st.integers(1, 3))
    def call_in_trouble(self, script: list[str], task_num: int) -> None:
        """The network, the service, workers and the file fail; the process may be killed."""
        self._call(script, task_num=task_num)

    @rule(script=SCRIPTS)
    def call_without_record(self, script: list[str]) -> None:
        """The same, and nothing is kept of it."""
        self._call(script, checkpoint_file=None)

    @rule(after=st.integers(0, 9), how=st.sampled_from(["killed before", "killed after"]), adopt=st.booleans())
    def call_killed(self, after: int, how: str, adopt: bool) -> None:
        """As its requests go."""
        self._call([*["none"] * after, how], adopt=adopt)

    @rule(fuse=st.integers(1, 25), is_torn=st.booleans())
    def call_killed_in_its_record(self, fuse: int, is_torn: bool) -> None:
        """Before, or amid, any of its calls to the disk."""
        self._call([], MortalDisk(fuse, is_torn=is_torn))

    @rule(fuse=st.integers(1, 25), is_torn=st.booleans(), survived=st.sampled_from(LOSSES), seed=st.integers(0, 99))
    def call_without_power(self, fuse: int, is_torn: bool, survived: str, seed: int) -> None:
        """The same, and what was not synced may be lost."""
        disk = PowerLossDisk(self.world.records, fuse, is_torn=is_torn)
        self._call([], disk, lambda: disk.after_power_loss(survived, random.Random(seed)), durability="power")

    @precondition(is_interrupted)
    @rule()
    def settle(self) -> None:
        """All is permitted and nothing fails: the call succeeds.

        A harmed record, or one of an upload that was adopted with another key, may first have to be moved away.
        """
        self.world.service.forbidden.clear()
        self.world.service.unoffered.clear()
        self._options["on_source_change"] = "restart"
        ended = self._call()
        is_refused = self._is_harmed and isinstance(ended, (ResumeRefusedError, JournalVersionError))
        if is_refused or (isinstance(ended, ServiceError) and self.world.state().upload_id in self._adoptable):
            self.world.record.unlink()
            ended = self._call()
        assert isinstance(ended, Uploaded), ended
        assert ended.reply.status == 200, ended
        self._is_harmed = False

    def _call(
        self, script: Sequence[str] = (), disk: MortalDisk | None = None, lose: Callable[[], None] = lambda: None,
        **how: Any,
    ) -> Uploaded | ObsEngineError | None:  # fmt: skip
        """One call, and what must be true of it.

        Args:
            lose: what befalls the record if the call is killed.

        Returns:
            Its end; None where it was killed.
        """
        world, options = self.world, {"durability": "crash", "sync_parts": 2, **self._options, **how}
        if self._needs_checksum:
            options["is_checksum"] = True
        metadata, key = options.pop("metadata", ()), options.pop("key", ())
        options |= {"initiate_headers": (*metadata, *key), "part_headers": key}
        has_record = options.get("checkpoint_file", "") is not None
        before = self._look(options, world.state() if has_record else UploadState())
        if before.known.upload_id is None and has_record:
            self._adoptable |= self._may_be_taken(before)
        self._lost.clear()
        ended: Uploaded | ObsEngineError | None = None
        try:
            ended = world.call(script, disk, **options)
        except ObsEngineError as error:
            ended = error
        except Killed:
            lose()
        now = world.state()
        for upload_id in world.service.uploads.keys() - before.is_open:
            self._begun[upload_id] = Begun(before.file, options)
        if has_record and now.upload_id is not None and now.binding != before.known.binding:
            self._begun[now.upload_id] = Begun(before.file, options)
        self._check(before, ended, has_record=has_record, is_quiet=not script)
        return ended

    def _may_be_taken(self, before: Before) -> set[str]:
        """Open uploads that may be continued though no record names them, and nobody knows with which options."""
        known, uploads = before.known, self.world.service.uploads
        if before.options.get("adopt") or (self._is_harmed and known.binding is None):
            return set(before.is_open)
        return {
            upload_id
            for upload_id in before.is_open
            if any(n in uploads[upload_id].parts and uploads[upload_id].etag(n) == etag.strip('"')
                   for n, etag in known.parts.items())
        }  # fmt: skip

    def _look(self, options: dict[str, Any], known: UploadState) -> Before:
        upload = self.world.service.uploads.get(known.upload_id or "")
        parts = {n: (data, upload.etag(n)) for n, data in upload.parts.items()} if upload is not None else {}
        return Before(self._file, options, known, parts, frozenset(self.world.service.uploads))

    # --- the laws ---------------------------------------------------------------------------------------------------

    def _check(
        self, before: Before, ended: Uploaded | ObsEngineError | None, *, has_record: bool, is_quiet: bool
    ) -> None:
        """All that must be true after any call."""
        is_success = isinstance(ended, Uploaded) and ended.reply.status < 300
        if is_success:
            self._check_success(before)
            left = {"r", "r.new"} & {path.name for path in self.world.records.iterdir()}
            assert not (has_record and left), f"left of a finished upload: {left}"
        if isinstance(ended, ObsEngineError):
            assert re.search("expected .+, found .+; .+", str(ended), re.DOTALL), f"not clear: {ended}"
        if ended is not None and not self.world.service.forbidden and is_quiet:
            is_kept = not is_success and has_record
            self._check_that_nothing_is_left_behind(before, is_kept=is_kept)
        if not is_success:
            self._check_that_progress_is_kept(before)
        self._check_that_nothing_is_sent_again(before)
        self._check_that_only_ours_is_touched(before)
        self._check_that_a_refusing_owner_loses_nothing(before)

    def _check_success(self, before: Before) -> None:
        """The object is the file, with the options that were asked for."""
        made = self.world.service.object
        assert made is not None, "success without an object"
        assert made.content == before.file.content, "another object than the file"
        if made.upload_id not in self._adoptable:
            assert made.headers == before.options["initiate_headers"], "other options than asked for"

    def _check_that_nothing_is_left_behind(self, before: Before, *, is_kept: bool) -> None:
        """No upload of ours is open, but for the one of which there is a record."""
        left = self.world.service.uploads.keys() - (before.is_open - {before.known.upload_id})
        assert left <= ({self.world.state().upload_id} if is_kept else set()), "an upload was left behind"

    def _check_that_progress_is_kept(self, before: Before) -> None:
        """What the record had, and the service has, it has still, unless the upload was aborted."""
        service, upload_id = self.world.service, before.known.upload_id
        if upload_id in service.uploads and not service.was_asked("Abort"):
            now = self.world.state()
            assert now.upload_id == upload_id, "an open upload was forgotten"
            if not self._is_incomparable(before):
                assert now.parts.keys() >= self._kept(before), "stored parts were forgotten"

    def _check_that_nothing_is_sent_again(self, before: Before) -> None:
        """A part that the record has, and the service has, and whose bytes are the file's, is not sent to it again."""
        service, upload_id = self.world.service, before.known.upload_id
        sent = {asked.part_number for asked in service.was_asked("UploadPart") if asked.upload_id == upload_id}
        assert not sent & self._kept(before) or self._is_incomparable(before), "parts were sent again"
        if self._is_same(before):
            assert all(upload_id not in asked.is_open for asked in service.was_asked("Initiate")), "begun anew"

    def _check_that_only_ours_is_touched(self, before: Before) -> None:
        """Only the record's upload is aborted, and only if it cannot make the object; nobody else's is written to."""
        service, upload_id = self.world.service, before.known.upload_id
        for asked in service.was_asked("Abort"):
            assert asked.upload_id == upload_id or asked.upload_id not in before.is_open, "another's was aborted"
            assert asked.upload_id != upload_id or not self._is_same(before), "aborted without need"
        for asked in service.was_asked("UploadPart", "Complete"):
            theirs = before.is_open - self._begun.keys() - self._adoptable
            assert asked.upload_id not in theirs, "another's was written to"

    def _check_that_a_refusing_owner_loses_nothing(self, before: Before) -> None:
        """With `on_source_change="refuse"`, the upload of a file that changed is left as it is."""
        begun = self._begun.get(before.known.upload_id or "")
        if begun is not None and before.options.get("on_source_change") == "refuse":
            then, now = begun.file, before.file
            if (len(then.content), then.mtime_ns) != (len(now.content), now.mtime_ns):
                assert not self.world.service.was_asked("Initiate", "UploadPart", "Complete", "Abort")

    def _kept(self, before: Before) -> set[int]:
        """Recorded parts that the service had as recorded, and whose bytes are the file's."""
        known, content = before.known, before.file.content
        size = known.binding.part_size_bytes if known.binding is not None else PART
        return {
            number
            for number, etag in known.parts.items()
            if (known.upload_id, number) not in self._lost
            and before.parts.get(number) == (content[(number - 1) * size : number * size], etag.strip('"'))
        }

    def _is_same(self, before: Before) -> bool:
        """Are the file and the options those that the record's upload was begun with?"""
        begun = self._begun.get(before.known.upload_id or "")
        return begun is not None and (
            (begun.file, begun.options["initiate_headers"]) == (before.file, before.options["initiate_headers"])
        )

    def _is_incomparable(self, before: Before) -> bool:
        """Must the bytes be compared, and cannot be, as under a customer's key no ETag is an MD5?"""
        begun, held = self._begun.get(before.known.upload_id or ""), before.known.binding
        is_encrypted = bool(before.options["part_headers"] or (begun and begun.options["part_headers"]))
        is_proven = (
            held is not None
            and held.path == str(self.world.source)
            and (not before.options.get("is_checksum") or before.known.contents.keys() >= before.known.parts.keys())
        )
        return is_encrypted and not is_proven


def settings_of(examples: int) -> settings:
    return settings(max_examples=examples, stateful_step_count=12, deadline=None)


TestResume = Resume.TestCase
TestResume.settings = settings_of(1500)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_in_thirty_thousand_worlds() -> None:
    """The same, in many more worlds."""
    run_state_machine_as_test(Resume, settings=settings(settings_of(30_000), derandomize=False))
