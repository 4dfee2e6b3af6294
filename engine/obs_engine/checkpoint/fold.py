"""What a journal's records say, taken together. State changes only here, live and in recovery alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from obs_engine.checkpoint.records import Binding, Completed, Initiated, Opened, PartStored, Record, core_of


@dataclass
class UploadState:
    """All that is known for certain of one upload. Owned by the coordinator; changed by `fold` alone.

    Invariant: `parts` holds numbers from 1 to the binding's part count, and only after an upload id. (What `salvage`
    finds in a damaged journal may lack the binding or the upload id.)

    Attributes:
        core: the binding, as the upload id's record repeats it.
        opened: who wrote last.
        contents: digests of what was sent of the parts, by number, with `checkSum`.
    """

    binding: Binding | None = None
    upload_id: str | None = None
    parts: dict[int, str] = field(default_factory=dict)
    is_completed: bool = False
    core: bytes = b""
    opened: Opened | None = None
    contents: dict[int, bytes] = field(default_factory=dict)

    def records(self) -> list[Record]:
        """The fewest records that fold into this state; without a word of who wrote them."""
        found: list[Record] = []
        if self.binding is not None:
            found.append(self.binding)
        if self.upload_id is not None:
            core = self.core or (core_of(self.binding) if self.binding is not None else b"")  # version 1 had none
            found.append(Initiated(self.upload_id, core))
        found += (PartStored(n, etag, self.contents.get(n, b"")) for n, etag in sorted(self.parts.items()))
        if self.is_completed:
            found.append(Completed())
        return found

    def stored_bytes(self) -> int:
        """Bytes of the parts that the service acknowledged."""
        if self.binding is None or not self.parts:
            return 0
        size, part_size = self.binding.size_bytes, self.binding.part_size_bytes
        last = self.binding.part_count
        stored = len(self.parts) * part_size
        return stored - (last * part_size - size) if last in self.parts else stored

    def missing_parts(self) -> list[int]:
        """Numbers of the parts that are still to be sent, ascending."""
        assert self.binding is not None
        return [n for n in range(1, self.binding.part_count + 1) if n not in self.parts]


class ContradictoryRecord(Exception):
    """A sound record that cannot follow those before it: the journal was not written by this engine's rules."""


def fold(state: UploadState, record: Record) -> None:
    """Takes one record in.

    Raises:
        ContradictoryRecord: the record cannot follow; the state is unchanged.
    """
    if isinstance(record, PartStored):
        if state.binding is None or state.upload_id is None:
            raise ContradictoryRecord("a part before an upload id")
        if not 1 <= record.part_number <= state.binding.part_count:
            raise ContradictoryRecord(f"part {record.part_number} of {state.binding.part_count}")
        _take_part(state, record)
    elif isinstance(record, Initiated):
        if state.binding is None or state.upload_id is not None:
            raise ContradictoryRecord("an upload id without a binding, or a second one")
        state.upload_id, state.core = record.upload_id, record.core
    elif isinstance(record, Completed):
        if state.binding is None or len(state.parts) != state.binding.part_count:
            raise ContradictoryRecord("completed with parts missing")
        state.is_completed = True
    elif isinstance(record, Opened):
        state.opened = record
    else:
        if state.binding is not None:
            raise ContradictoryRecord("a second binding")
        state.binding = record


def fold_all(records: Iterable[Record]) -> UploadState:
    """The state that a whole journal stands for."""
    state = UploadState()
    for record in records:
        fold(state, record)
    return state


def salvage(records: Iterable[Record]) -> UploadState:
    """What the sound records of a damaged journal say, whatever is missing between them.

    Raises:
        ContradictoryRecord: they speak of two uploads.
    """
    state = UploadState()
    for record in records:
        if isinstance(record, PartStored):
            _take_part(state, record)
        elif isinstance(record, Initiated):
            if state.upload_id not in (None, record.upload_id):
                raise ContradictoryRecord("a second upload id")
            state.upload_id, state.core = record.upload_id, record.core
        elif isinstance(record, Completed):
            state.is_completed = True
        elif isinstance(record, Opened):
            state.opened = record
        else:
            if state.binding not in (None, record):
                raise ContradictoryRecord("a second binding")
            state.binding = record
    return state


def _take_part(state: UploadState, part: PartStored) -> None:
    state.parts[part.part_number] = part.etag
    if part.content:
        state.contents[part.part_number] = part.content
    else:
        state.contents.pop(part.part_number, None)
