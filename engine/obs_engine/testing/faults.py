"""Faults as data: which requests, and what goes wrong. Deterministic: the same requests meet the same faults.

A rule is a JSON object. Which requests (all given conditions must hold; none given means every request):

    operation     "UploadPart", or a list of names as in the request log
    bucket, key   exact text
    part_number   a number, or a list of numbers
    nth           the nth matching request, from 1, or a list of such
    every         each k-th matching request
    times         fires at most so often
    probability   0 to 1, drawn from `seed` (a number, 0 where absent): the same draws in every run
    above_per_s   those beyond so many a second: a bucket of as many, filled as time goes on

What happens (exactly one, or `delay_s` alone or beside one):

    status        200 to 599, with `code`, `message`, `headers` (an object), `early` (true: before the body is read),
                  `bare` (true: without a word, no body at all)
    reset         "before_reply" (the work is not done), "after_work" (done, the reply is lost), "at_once" (as soon as
                  the head is in), or {"after_body_bytes": k}: a TCP reset
    stall         true: reads everything, answers nothing, until the client goes away
    truncate      k: the connection ends after k bytes of the reply's body
    corrupt       "wire", "stored", "object", "reply", "etag" or "crc64": what is wrong where, see below
    error_in_200  true: nothing is done, status 200, and the body is an <Error> with `code` and `message`
    hang_up_after k: the connection ends, unannounced, after the reply to its k-th request (or a later one)
    delay_s       seconds, with `delay_at`: "before_reply" (after the work; where absent) or "before_reading"

What is corrupted, and who could notice. A rule meets only operations that have such a thing, all of them where it names
none. One bit is wrong, anywhere in the bytes or digits meant: drawn from `seed` for each matching request.

    wire      UploadPart, PutObject: a bit of the body flips before anything is computed of it. Content-MD5, CRC-64
              and a v4 SHA-256 that came with the request refuse it: 400, and nothing is stored. Without them it is
              stored, and ETag and CRC-64 in the reply are those of the wrong bytes. (Of a chunked body, whose length
              is not known beforehand, the first byte is hit.)
    stored    UploadPart, PutObject: a bit on disk flips after all checks. The reply is right, ListParts and HEAD
              are, Complete is; only who reads the bytes back finds it.
    object    Complete: after all checks, a bit of the bytes put together flips, and the service tells what it has:
              ETag and CRC-64 of the wrong object, in the reply and to every HEAD and GET from then on.
    reply     GetObject: a bit of the object's bytes flips on its way back, of those asked for where a Range asks; the
              object is right, and so are the headers.
    etag      a wrong ETag in the reply, all its digits, the first where it lists several; what is stored is right:
              UploadPart, PutObject, Complete, GetObject, HeadObject, ListParts, ListObjects
    crc64     a wrong CRC-64 in the reply where it has one; what is stored is right:
              UploadPart, PutObject, Complete, GetObject, HeadObject

Every rule counts every request that it matches; of the rules that are due, the first in the list acts.

    [{"operation": "UploadPart", "nth": 3, "status": 503, "code": "SlowDown", "headers": {"Retry-After": "1"}},
     {"operation": "Complete", "times": 1, "reset": "after_work"},
     {"part_number": 7, "times": 1, "corrupt": "stored"}]
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from obs_engine.errors import InvalidArgumentError

OPERATIONS = frozenset(
    {"ApiVersion", "ListBuckets", "CreateBucket", "HeadBucket", "GetBucketLocation", "DeleteBucket", "ListObjects",
     "DeleteObjects", "Initiate", "UploadPart", "ListParts", "ListUploads", "Complete", "Abort", "PutObject",
     "GetObject", "HeadObject", "DeleteObject", "Unsupported"}
)  # fmt: skip

_ACTIONS = ("status", "reset", "stall", "truncate", "corrupt", "error_in_200", "hang_up_after")
_RESETS = ("before_reply", "after_work", "at_once")
_BODIES = ("UploadPart", "PutObject")
_ANSWERS = (*_BODIES, "Complete", "GetObject", "HeadObject")
_CORRUPTIONS = {
    "wire": _BODIES, "stored": _BODIES, "object": ("Complete",), "reply": ("GetObject",),
    "etag": (*_ANSWERS, "ListParts", "ListObjects"), "crc64": _ANSWERS,
}  # fmt: skip
"""What can be corrupted, and the operations that have it."""


@dataclass(frozen=True)
class Fault:
    """What is to happen to one request; see the module for the meaning of each field."""

    name: str
    status: int | None = None
    code: str = "InternalError"
    message: str = "We encountered an internal error. Please try again."
    headers: tuple[tuple[str, str], ...] = ()
    is_early: bool = False
    is_bare: bool = False
    reset: str | None = None
    reset_after_bytes: int | None = None
    is_stalled: bool = False
    truncate: int | None = None
    corrupt: str | None = None
    place: float = 0.0
    is_error_in_200: bool = False
    hang_up_after: int | None = None
    delay_s: float = 0.0
    delay_at: str = "before_reply"

    def bit(self, size_bytes: int) -> tuple[int, int]:
        """The one bit of so many bytes, 1 or more, that is to be wrong: its byte, and a mask for that."""
        byte, bit = divmod(int(self.place * size_bytes * 8), 8)
        return byte, 1 << bit


@dataclass
class _Rule:
    operations: frozenset[str] | None
    bucket: str | None
    key: str | None
    part_numbers: frozenset[int] | None
    nth: frozenset[int] | None
    every: int | None
    times: int | None
    probability: float | None
    draws: random.Random
    fault: Fault
    above_per_s: float | None = None
    tokens: float = 0.0
    filled_s: float = 0.0
    seen: int = 0
    fired: int = field(default=0)
    place: float = 0.0

    def is_due(self, operation: str, bucket: str | None, key: str | None, part_number: int | None) -> bool:
        """Counts a request that it matches, and says whether it is one of those meant."""
        if (
            (self.operations is not None and operation not in self.operations)
            or (self.bucket is not None and bucket != self.bucket)
            or (self.key is not None and key != self.key)
            or (self.part_numbers is not None and part_number not in self.part_numbers)
        ):
            return False
        self.seen += 1
        # Why drawn first: the draws then depend on the matching requests alone, not on the other conditions.
        is_drawn = self.probability is None or self.draws.random() < self.probability
        if self.fault.corrupt is not None:
            self.place = self.draws.random()
        return (
            is_drawn
            and self._is_above()
            and (self.nth is None or self.seen in self.nth)
            and (self.every is None or self.seen % self.every == 0)
            and (self.times is None or self.fired < self.times)
        )

    def _is_above(self) -> bool:
        if self.above_per_s is None:
            return True
        now_s = time.monotonic()
        earned = (now_s - self.filled_s) * self.above_per_s
        self.tokens, self.filled_s = min(self.above_per_s, self.tokens + earned), now_s
        is_above = self.tokens < 1
        self.tokens -= not is_above
        return is_above


class Faults:
    """Rules with their counters.

    Args:
        rules: as the module says, straight from JSON.

    Raises:
        InvalidArgumentError: names the rule (from 1), the field, what is expected and what was found.
    """

    def __init__(self, rules: object = ()) -> None:
        if isinstance(rules, (str, bytes, Mapping)) or not isinstance(rules, Sequence):
            raise InvalidArgumentError("faults", "a list of rules", rules, "put the rules into [ and ]")
        self._rules = [_read_rule(number, rule) for number, rule in enumerate(rules, 1)]

    def choose(self, operation: str, bucket: str | None, key: str | None, part_number: int | None) -> Fault | None:
        """The fault that this request meets, or None. To be asked once for each request, in their order."""
        chosen: _Rule | None = None
        for rule in self._rules:
            if rule.is_due(operation, bucket, key, part_number) and chosen is None:
                chosen = rule
        if chosen is None:
            return None
        chosen.fired += 1
        return chosen.fault if chosen.fault.corrupt is None else replace(chosen.fault, place=chosen.place)


class _Reader:
    """Takes fields out of one rule, each with its own sentence when it is wrong."""

    def __init__(self, number: int, rule: object) -> None:
        self._where = f"fault rule {number}"
        if not isinstance(rule, Mapping):
            raise InvalidArgumentError(self._where, "an object", rule, "see `obs-engine serve --help`")
        self._rule = dict(rule)
        for name, value in rule.items():
            if value is None:
                raise self.fail(str(name), "a value", None)

    def fail(self, name: str, expected: str, found: object) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self._where}, {name}", expected, found, "correct the rule")

    def has(self, name: str) -> bool:
        return name in self._rule

    def take(self, name: str) -> Any:
        return self._rule.pop(name, None)

    def text(self, name: str, among: Sequence[str] = ()) -> str | None:
        value = self.take(name)
        if value is None or (isinstance(value, str) and (not among or value in among)):
            return value
        raise self.fail(name, f"one of {', '.join(among)}" if among else "a text", value)

    def number(self, name: str, low: int, high: int) -> int | None:
        value = self.take(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
            return value
        raise self.fail(name, f"a whole number from {low} to {high}", value)

    def numbers(self, name: str, low: int, high: int) -> frozenset[int] | None:
        value = self.take(name)
        if value is None:
            return None
        items = value if isinstance(value, list) and value else [value]
        for item in items:
            if not isinstance(item, int) or isinstance(item, bool) or not low <= item <= high:
                raise self.fail(name, f"a whole number from {low} to {high}, or a list of such", value)
        return frozenset(items)

    def real(self, name: str, low: float, high: float) -> float | None:
        value = self.take(name)
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high):
            return value
        raise self.fail(name, f"a number from {low} to {high}", value)

    def truth(self, name: str) -> bool:
        value = self.take(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self.fail(name, "true or false", value)

    def pairs(self, name: str) -> tuple[tuple[str, str], ...]:
        value = self.take(name)
        if value is None:
            return ()
        if isinstance(value, Mapping) and all(isinstance(n, str) and isinstance(v, str) for n, v in value.items()):
            return tuple(value.items())
        raise self.fail(name, "an object of texts", value)

    def end(self) -> None:
        if self._rule:
            name = next(iter(self._rule))
            raise self.fail(str(name), "a field of the documented names that fits the rule's action", self._rule[name])


_MANY = 1 << 53


def _read_rule(number: int, rule: object) -> _Rule:
    reader = _Reader(number, rule)
    actions = [name for name in _ACTIONS if reader.has(name)]
    if len(actions) > 1 or (not actions and not reader.has("delay_s")):
        raise reader.fail("action", f"one of {', '.join(_ACTIONS)}, or delay_s", ", ".join(actions) or None)
    corrupt = reader.text("corrupt", tuple(_CORRUPTIONS))
    seed = reader.number("seed", 0, _MANY)
    read = _Rule(
        _read_operations(reader, OPERATIONS if corrupt is None else frozenset(_CORRUPTIONS[corrupt]), corrupt),
        reader.text("bucket"),
        reader.text("key"),
        reader.numbers("part_number", 1, 10_000),
        reader.numbers("nth", 1, _MANY),
        reader.number("every", 1, _MANY),
        reader.number("times", 1, _MANY),
        reader.real("probability", 0, 1),
        random.Random(seed or 0),  # noqa: S311 (a repeatable draw is the point)
        replace(_read_fault(reader, actions[0] if actions else "delay"), corrupt=corrupt),
        reader.real("above_per_s", 1, _MANY),
    )
    reader.end()
    return read


def _read_operations(reader: _Reader, among: frozenset[str], corrupt: str | None) -> frozenset[str] | None:
    """The operations that a rule meets; None for all."""
    value = reader.take("operation")
    if value is None:
        return None if corrupt is None else among
    names = value if isinstance(value, list) and value else [value]
    for name in names:
        if name not in among:
            # Why refused, where nothing could be corrupted: such a rule would fire, be logged, and do nothing.
            suffix = "" if corrupt is None else f" (for corrupt {corrupt})"
            raise reader.fail("operation", f"one of {', '.join(sorted(among))}, or a list of such{suffix}", name)
    return frozenset(names)


def _read_fault(reader: _Reader, action: str) -> Fault:
    fields: dict[str, Any] = {"name": action, "delay_s": reader.real("delay_s", 0, 86_400) or 0.0}
    if fields["delay_s"]:
        fields["delay_at"] = reader.text("delay_at", ("before_reply", "before_reading")) or "before_reply"
    if action in ("status", "error_in_200"):
        fields["code"] = reader.text("code") or Fault.code
        fields["message"] = reader.text("message") or Fault.message
        fields["headers"] = reader.pairs("headers")
    fields.update(_read_action(reader, action))
    return Fault(**fields)


def _read_action(reader: _Reader, action: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if action == "status":
        fields["status"] = reader.number("status", 200, 599)
        fields["is_early"] = reader.truth("early")
        fields["is_bare"] = reader.truth("bare")
    elif action == "reset":
        value = reader.take("reset")
        if isinstance(value, Mapping) and set(value) == {"after_body_bytes"}:
            count = value["after_body_bytes"]
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise reader.fail("reset after_body_bytes", "a whole number from 0", count)
            fields["reset_after_bytes"] = count
        elif value in _RESETS:
            fields["reset"] = value
        else:
            raise reader.fail("reset", f"one of {', '.join(_RESETS)}, or {{'after_body_bytes': k}}", str(value))
    elif action in ("stall", "error_in_200"):
        if not reader.truth(action):
            raise reader.fail(action, "true", False)
        fields["is_stalled" if action == "stall" else "is_error_in_200"] = True
    elif action == "truncate":
        fields["truncate"] = reader.number("truncate", 0, _MANY)
    elif action == "hang_up_after":
        fields["hang_up_after"] = reader.number("hang_up_after", 1, _MANY)
    return fields
