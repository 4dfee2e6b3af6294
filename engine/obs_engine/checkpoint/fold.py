"""What a journal's records say, taken together. State changes only here, live and in recovery alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from obs_engine.checkpoint.records import Binding, Completed, Initiated, PartStored, Record


@dataclass
class UploadState:
    """All that is known for certain of one upload. Owned by the coordinator; changed by `fold` alone.

    Invariant: `parts` holds numbers from 1 to the binding's part count, and only after an upload id.
    """

    binding: Binding | None = None
    upload_id: str | None = None
    parts: dict[int, str] = field(default_factory=dict)
    is_completed: bool = False

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
        state.parts[record.part_number] = record.etag
    elif isinstance(record, Initiated):
        if state.binding is None or state.upload_id is not None:
            raise ContradictoryRecord("an upload id without a binding, or a second one")
        state.upload_id = record.upload_id
    elif isinstance(record, Completed):
        if state.binding is None or len(state.parts) != state.binding.part_count:
            raise ContradictoryRecord("completed with parts missing")
        state.is_completed = True
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
