"""The resume table: every combination of what the witnesses say has one row, and the rows keep their promises."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from obs_engine.checkpoint.resume_table import (
    PART_TABLE,
    RESUME_TABLE,
    Action,
    Bytes,
    Listed,
    PartRow,
    Policy,
    Record,
    Recorded,
    Row,
    Service,
    Source,
    Verdict,
    decide,
    judge,
    needs_bytes,
)

UPLOADS = [
    (*combination, decide(*combination).action)
    for combination in itertools.product(Record, Source, Policy, Service)
]  # fmt: skip
PARTS = [
    (*combination, judge(*combination).verdict)
    for combination in itertools.product(Recorded, Listed, Bytes, (True, False))
]


def words(combination: tuple[Any, ...]) -> str:
    return " × ".join(getattr(word, "name", str(word)) for word in combination)


# --- both tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "columns"), [(RESUME_TABLE, (Record, Source, Policy, Service)),
                           (PART_TABLE, (Recorded, Listed, Bytes, (True, False)))], ids=["uploads", "parts"]
)  # fmt: skip
def test_every_combination_has_exactly_one_row(table: tuple[Row | PartRow, ...], columns: tuple[Any, ...]) -> None:
    """No world is without a row, none has two, and no row is without a world."""
    left = {row.label for row in table}
    for combination in itertools.product(*columns):
        fitting = [row.label for row in table
                   if all(word in said for word, said in zip(combination, row[1:], strict=False))]  # fmt: skip
        assert len(fitting) == 1, f"{words(combination)}: {fitting}"
        left -= set(fitting)
    assert not left, "rows that never apply"


@pytest.mark.parametrize("table", [RESUME_TABLE, PART_TABLE], ids=["uploads", "parts"])
def test_every_row_has_a_name_and_a_story(table: tuple[Row | PartRow, ...]) -> None:
    """Labels are told apart in a log, and every row says how the world came to it, in whole sentences."""
    assert len({row.label for row in table}) == len(table)
    for row in table:
        assert row.label.strip()
        assert row.story.endswith(".")
        assert "  " not in row.story


# --- uploads ----------------------------------------------------------------------------------------------------


def test_success_is_never_claimed_without_proof() -> None:
    """Nothing is sent only where the service has the object and the file is known to be the one that made it."""
    for record, source, _, service, action in UPLOADS:
        if action is Action.SUCCEED:
            assert (source, service) == (Source.SAME, Service.COMPLETED)
            assert record in (Record.OPEN, Record.COMPLETED, Record.ID_LOST)


def test_a_refusing_owner_loses_nothing() -> None:
    """With `refuse`, a changed file neither begins nor aborts anything where an upload is recorded; nor goes on."""
    for record, source, policy, _, action in UPLOADS:
        if policy is Policy.REFUSE and source is Source.CHANGED and record not in (Record.NOTHING, Record.NAMED):
            assert action is Action.REFUSE


def test_the_policy_counts_for_a_changed_file_alone() -> None:
    """What else happens does not depend on it."""
    for record, source, _, service, _ in UPLOADS:
        if source is not Source.CHANGED:
            assert len({decide(record, source, policy, service) for policy in Policy}) == 1


def test_only_what_is_surely_ours_is_aborted() -> None:
    """An upload is aborted only where our record names it, is not completed, and cannot make the object asked for."""
    for record, source, _, _, action in UPLOADS:
        if action is Action.ABORT_AND_BEGIN:
            assert record is Record.OPEN
            assert source in (Source.CHANGED, Source.OTHER_OPTIONS)


def test_what_cannot_make_the_object_is_never_continued() -> None:
    """Another file or other options of a record's own upload: never mixed with its parts."""
    for record, source, _, _, action in UPLOADS:
        if record not in (Record.NAMED, Record.NOTHING) and source in (Source.CHANGED, Source.OTHER_OPTIONS):
            assert action not in (Action.CONTINUE, Action.SUCCEED)


def test_an_upload_that_is_there_is_continued() -> None:
    """An open upload of this file and these options is never begun anew: that would leave billed parts behind."""
    for record, source, _, service, action in UPLOADS:
        fits = record is not Record.NOTHING and source in (Source.SAME, Source.UNPROVEN)
        if fits and service is Service.OPEN:
            assert action is Action.CONTINUE


def test_a_silent_service_never_costs_progress() -> None:
    """Without an answer, a sound record is enough to go on; nothing is begun anew, nothing reported as done."""
    for record, source, _, service, action in UPLOADS:
        if service is Service.SILENT and source in (Source.SAME, Source.UNPROVEN) and record is not Record.NOTHING:
            is_known = record in (Record.OPEN, Record.COMPLETED)
            assert action is (Action.CONTINUE if is_known else Action.REFUSE)


def test_a_named_upload_is_continued_or_refused() -> None:
    """The user meant that one, and no new upload."""
    for record, _, _, service, action in UPLOADS:
        if record is Record.NAMED:
            assert action is (Action.CONTINUE if service is Service.OPEN else Action.REFUSE)


def test_nothing_recorded_begins() -> None:
    """The first call for a file begins, whatever the other witnesses would say: they need not be asked."""
    assert {action for record, _, _, _, action in UPLOADS if record is Record.NOTHING} == {Action.BEGIN}


# --- parts ------------------------------------------------------------------------------------------------------


def test_a_part_is_kept_only_where_it_was_acknowledged_and_may_still_be_there() -> None:
    """Never one that the service lacks or has with another size, never one without a recorded ETag."""
    for recorded, listed, _, _, verdict in PARTS:
        if verdict is Verdict.KEEP:
            assert recorded is Recorded.STORED
            assert listed in (Listed.AGREES, Listed.SILENT)


def test_a_part_is_adopted_only_where_its_bytes_are_the_files() -> None:
    """The service's word counts where it has the part and the MD5 is that of the file's bytes."""
    for recorded, listed, content, _, verdict in PARTS:
        if verdict is Verdict.ADOPT:
            assert recorded in (Recorded.STORED, Recorded.ABSENT)
            assert listed in (Listed.AGREES, Listed.OTHER)
            assert content is Bytes.EQUAL


def test_a_part_without_an_etag_is_sent() -> None:
    """What is only said to be done is sent, whatever the service has: the official SDK truncates the object here."""
    assert {verdict for recorded, *_, verdict in PARTS if recorded is Recorded.CLAIMED} == {Verdict.SEND}


def test_nothing_of_an_unproven_file_goes_unread() -> None:
    """Where the file may be another, only a part whose bytes were compared need not be sent."""
    for _, _, content, is_proven, verdict in PARTS:
        if not is_proven and verdict is not Verdict.SEND:
            assert content is Bytes.EQUAL


def test_equal_bytes_are_never_sent_twice() -> None:
    """A part that the service has with its size, and whose MD5 is that of the file's bytes, is not sent again."""
    for recorded, listed, content, _, verdict in PARTS:
        is_there = listed in (Listed.AGREES, Listed.OTHER)
        if recorded is not Recorded.CLAIMED and is_there and content is Bytes.EQUAL:
            assert verdict is not Verdict.SEND


def test_bytes_are_read_only_where_they_count() -> None:
    """`needs_bytes` says whether the verdict depends on them: for a proven file's confirmed part it does not."""
    for recorded, listed, is_proven in itertools.product(Recorded, Listed, (True, False)):
        verdicts = {judge(recorded, listed, content, is_proven).verdict for content in Bytes}
        assert needs_bytes(recorded, listed, is_proven) == (len(verdicts) > 1)
    assert not needs_bytes(Recorded.STORED, Listed.AGREES, True)
    assert not needs_bytes(Recorded.ABSENT, Listed.LACKS, False)
    assert needs_bytes(Recorded.STORED, Listed.AGREES, False)
    assert needs_bytes(Recorded.ABSENT, Listed.OTHER, True)
