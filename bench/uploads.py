"""Does this run count? One client in a fresh process, measured, and all that must be true of its upload checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from circumstances import environment, say
from clients import BUCKET, CLIENTS, PART_BYTES
from far_end import Sink
from measured import RunFailed, Usage, run

RUN_TIMEOUT_S = 600.0
LINKS = "plain", "tls"


class Run(NamedTuple):
    """One run that counts.

    Attributes:
        calls: what the client said of each of its calls, in order.
        stats: what the sink counted of the last one.
    """

    usage: Usage
    calls: list[dict[str, Any]]
    stats: dict[str, Any]

    @property
    def wall_s(self) -> float:
        """Of the last call alone."""
        return float(self.calls[-1]["returned_ns"] - self.calls[-1]["called_ns"]) / 1e9

    @property
    def request_ms(self) -> float:
        """From the last call to the first byte of any request."""
        return float(self.stats["first_request_ns"] - self.calls[-1]["called_ns"]) / 1e6

    @property
    def part_ms(self) -> float:
        """From the last call to the first byte of a part's body."""
        return float(self.stats["first_part_body_ns"] - self.calls[-1]["called_ns"]) / 1e6


def command(sink: Sink, name: str, paths: Sequence[Path], link: str = "plain") -> list[str]:
    """The command line of a client."""
    url, authority = (sink.tls_url, sink.authority) if link == "tls" else (sink.url, "")
    return [sys.executable, str(Path(__file__).with_name("clients.py")), name, url, authority, *map(str, paths)]


def upload(
    sink: Sink, name: str, paths: Sequence[Path], link: str = "plain", *, sample_every_s: float | None = None,
    is_resumed: bool = False,
) -> Run:  # fmt: skip
    """Runs a client.

    Args:
        is_resumed: an earlier run has stored some of the parts.

    Raises:
        RunFailed: it failed, not all of the last file's bytes arrived, or something was not done that the row is for.
    """
    sink.reset()
    usage = run(command(sink, name, paths, link), environment(), timeout_s=RUN_TIMEOUT_S, sample_every_s=sample_every_s)
    done = Run(usage, [json.loads(line) for line in usage.output.splitlines()], sink.stats())
    size = paths[-1].stat().st_size
    if done.stats["body_bytes"] != size and not is_resumed:
        raise RunFailed(f"{name}: expected {size} bytes of parts at the sink, found {done.stats['body_bytes']}")
    for path in paths:
        if records := records_of(path):
            raise RunFailed(f"{name}: expected its record removed after success, found {records[0].name}")
    _check_proof(name, done, link)
    return done


def _check_proof(name: str, done: Run, link: str) -> None:
    """Was done what the row says? A client that forgot to verify would be the fastest."""
    client, call, stats = CLIENTS[name], done.calls[-1], done.stats
    parts = stats["requests"].get("UploadPart", 0)
    expected = {"UploadPart": parts, "Complete": 1} if client.is_crc64 else {}
    if stats["crc64s"] != expected:
        raise RunFailed(f"{name}: expected requests with a CRC-64 {expected}, found {stats['crc64s']}")
    if (stats["tls"] is not None) != (link == "tls"):
        raise RunFailed(f"{name}: expected the link {link}, found {stats['tls'] or 'plain'}")
    if client.package == "obs_engine":
        if call["verify"] != client.verify:
            raise RunFailed(f"{name}: expected verify={client.verify!r} in its report, found {call['verify']!r}")
        if (call["xxh3"] is not None) != client.is_checksum:
            raise RunFailed(f"{name}: expected checkSum={client.is_checksum}, found xxh3 {call['xxh3']} in its report")


def check_refusals(sink: Sink, names: Sequence[str], path: Path, etags: Sequence[str]) -> None:
    """Proves that a wrong ETag is noticed by those who promise it, and by nobody else: else they would be compared as
    what they are not.

    Args:
        path: a small file; `etags`: the right ones of its parts.

    Raises:
        RunFailed: a wrong ETag passed, or one was looked at that should not be.
    """
    sink.give_etags({path.name: ["f" * 32] * len(etags)})
    try:
        for name in names:
            try:
                upload(sink, name, [path])
                is_refused = False
            except RunFailed as failure:
                if "IntegrityError" not in str(failure):
                    raise
                is_refused = True
            if is_refused != (CLIENTS[name].verify == "etag"):
                said = "refused" if is_refused else "taken"
                raise RunFailed(f"{name}: a wrong ETag of a part in {BUCKET}/{path.name} was {said}")
    finally:
        sink.give_etags({path.name: etags})
        for record in records_of(path):
            record.unlink()


def records_of(path: Path) -> list[Path]:
    """The checkpoint records beside a file."""
    return list(path.parent.glob(f"{path.name}.upload_record*"))


def part_count(size: int) -> int:
    return max(1, -(-size // PART_BYTES))


class Row(Protocol):
    """A row of any benchmark."""

    failure: str | None

    @property
    def name(self) -> str: ...


_Row = TypeVar("_Row", bound=Row)


def take_turns(what: str, rows: Sequence[_Row], step: Callable[[_Row], object], count: int) -> None:
    """The rows in turn (A B C A B C), so that a slow minute of the machine falls on all of them.

    One that has failed is passed over.
    """
    for number in range(count):
        say(f"{what}: {number + 1} of {count}")
        for row in rows:
            if row.failure is None:
                try:
                    step(row)
                except RunFailed as failure:
                    row.failure = str(failure)
                    say(f"{row.name} failed: {failure}")
