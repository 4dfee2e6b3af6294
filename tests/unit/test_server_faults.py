"""Fault rules as data: which requests they meet, and how wrong ones are refused."""

from __future__ import annotations

import pytest

from obs_engine.errors import InvalidArgumentError
from obs_engine.testing.faults import OPERATIONS, Fault, Faults


def names(faults: Faults, count: int, operation: str = "UploadPart", part_number: int | None = None) -> list[int]:
    """The numbers, from 1, of the requests that met a fault."""
    met = [faults.choose(operation, "b", "k", part_number) for _ in range(count)]
    return [number for number, fault in enumerate(met, 1) if fault is not None]


def test_a_rule_without_conditions_meets_every_request() -> None:
    """No condition means every request of every operation."""
    assert names(Faults([{"status": 503}]), 3) == [1, 2, 3]
    assert names(Faults(), 3) == []


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"nth": 2}, [2]),
        ({"nth": [1, 5]}, [1, 5]),
        ({"every": 3}, [3, 6]),
        ({"times": 2}, [1, 2]),
        ({"every": 2, "times": 2}, [2, 4]),
        ({"operation": "Complete"}, []),
        ({"operation": ["Complete", "UploadPart"]}, [1, 2, 3, 4, 5, 6]),
        ({"bucket": "b", "key": "k", "nth": 6}, [6]),
        ({"key": "other"}, []),
        ({"part_number": 7}, []),
        ({"probability": 0}, []),
        ({"probability": 1.0, "times": 1}, [1]),
    ],
)
def test_conditions_choose_requests(conditions: dict[str, object], expected: list[int]) -> None:
    """nth, every and times count matching requests, from 1."""
    assert names(Faults([{**conditions, "stall": True}]), 6) == expected


def test_a_part_number_is_a_condition() -> None:
    """A rule may name one part, or several."""
    faults = Faults([{"part_number": [2, 3], "status": 500}])
    assert names(faults, 1, part_number=1) == []
    assert names(faults, 1, part_number=3) == [1]


def test_the_first_rule_that_is_due_acts_and_all_count() -> None:
    """Every rule counts what it matches, but only the first that is due acts."""
    faults = Faults([{"nth": 2, "status": 500}, {"every": 2, "status": 503}])
    met = [faults.choose("UploadPart", "b", "k", 1) for _ in range(4)]
    assert [f.status if f else None for f in met] == [None, 500, None, 503]


def test_chance_is_the_same_in_every_run() -> None:
    """The same seed draws the same faults; another seed others."""
    rule = {"probability": 0.3, "seed": 7, "status": 500}
    first = names(Faults([rule]), 200)
    assert first == names(Faults([rule]), 200)
    assert first != names(Faults([{**rule, "seed": 8}]), 200)
    assert 30 < len(first) < 90


def test_an_action_carries_its_details() -> None:
    """Status, code, message, headers and delay arrive as they were written."""
    rule = {
        "status": 429, "code": "TooManyRequests", "message": "slower", "headers": {"Retry-After": "1"},
        "early": True, "delay_s": 0.5, "delay_at": "before_reading",
    }  # fmt: skip
    assert Faults([rule]).choose("Initiate", None, None, None) == Fault(
        "status", 429, "TooManyRequests", "slower", (("Retry-After", "1"),), True, delay_s=0.5,
        delay_at="before_reading",
    )  # fmt: skip
    reset = Faults([{"reset": {"after_body_bytes": 10}}]).choose("UploadPart", "b", "k", 1)
    assert reset is not None
    assert reset.reset_after_bytes == 10


@pytest.mark.parametrize(
    ("corrupt", "operations"),
    [
        ("wire", ["UploadPart", "PutObject"]), ("stored", ["UploadPart", "PutObject"]), ("object", ["Complete"]),
        ("reply", ["GetObject"]), ("crc64", ["UploadPart", "PutObject", "Complete", "GetObject", "HeadObject"]),
        ("etag", ["UploadPart", "PutObject", "Complete", "GetObject", "HeadObject", "ListParts", "ListObjects"]),
    ],
)  # fmt: skip
def test_corruption_meets_what_can_be_corrupted(corrupt: str, operations: list[str]) -> None:
    """A rule that names no operation meets those that have such a thing; one that names another is refused."""
    faults = Faults([{"corrupt": corrupt}])
    met = {operation for operation in OPERATIONS if faults.choose(operation, "b", "k", 1) is not None}
    assert met == set(operations)
    with pytest.raises(InvalidArgumentError, match=rf"operation: expected one of .* \(for corrupt {corrupt}\)"):
        Faults([{"corrupt": corrupt, "operation": [operations[0], "Abort"]}])


def bits(rule: dict[str, object], count: int, size: int) -> list[tuple[int, int]]:
    """What the rule damages in bodies of this size, request by request; nothing where it is not due."""
    faults = Faults([rule])
    met = [faults.choose("UploadPart", "b", "k", 1) for _ in range(count)]
    return [fault.bit(size) for fault in met if fault is not None]


def test_the_damaged_bit_is_anywhere_and_the_same_in_every_run() -> None:
    """Seed and count choose it: every byte and every bit has its turn, none outside, and other conditions move none."""
    rule = {"corrupt": "stored", "seed": 3}
    found = bits(rule, 2000, 10)
    assert found == bits(rule, 2000, 10)
    assert found != bits({**rule, "seed": 4}, 2000, 10)
    assert {byte for byte, _ in found} == set(range(10))
    assert {mask for _, mask in found} == {1 << bit for bit in range(8)}
    assert bits({**rule, "nth": [2, 5]}, 5, 10) == [found[1], found[4]]
    assert {byte for byte, _ in bits(rule, 100, 1)} == {0}
    assert all(byte < 5 << 30 for byte, _ in bits(rule, 100, 5 << 30))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"status": 500}, ["faults", "a list of rules"]),
        (["x"], ["rule 1", "an object"]),
        ([{"status": 500}, {}], ["rule 2", "action"]),
        ([{"status": 500, "stall": True}], ["rule 1", "action", "status, stall"]),
        ([{"status": 99}], ["status", "200 to 599", "99"]),
        ([{"status": None}], ["status", "a value"]),
        ([{"status": "500"}], ["status", "whole number"]),
        ([{"operation": "Upload", "status": 500}], ["operation", "UploadPart", "'Upload'"]),
        ([{"nth": 0, "status": 500}], ["nth", "0"]),
        ([{"probability": 2, "status": 500}], ["probability", "0 to 1"]),
        ([{"reset": "sometimes"}], ["reset", "before_reply"]),
        ([{"reset": {"after_body_bytes": -1}}], ["after_body_bytes"]),
        ([{"stall": False}], ["stall", "true"]),
        ([{"corrupt": "all"}], ["corrupt", "stored"]),
        ([{"corrupt": "stored", "operation": "Complete"}], ["operation", "PutObject", "corrupt stored", "'Complete'"]),
        ([{"truncate": True}], ["truncate"]),
        ([{"statsu": 500, "stall": True}], ["statsu"]),
        ([{"stall": True, "code": "X"}], ["code", "fits"]),
        ([{"delay_s": -1}], ["delay_s"]),
        ([{"status": 500, "headers": {"a": 1}}], ["headers", "texts"]),
    ],
)
def test_a_wrong_rule_is_refused_with_one_sentence(rules: object, words: list[str]) -> None:
    """What, where, what was expected and what was found: the rule's number and field are named."""
    with pytest.raises(InvalidArgumentError) as caught:
        Faults(rules)
    for word in words:
        assert word in caught.value.message
    assert "\n" not in caught.value.message
