"""`obs-engine journal dump FILE`: a checkpoint file for people, damaged ones too. Reads only, takes no lock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import click

from obs_engine.checkpoint.journal import read_file
from obs_engine.checkpoint.records import (
    HEADER_BYTES,
    Binding,
    Completed,
    Initiated,
    Opened,
    PartStored,
    Record,
)
from obs_engine.checkpoint.recovery import Recovered, looks_like_json, recover
from obs_engine.checkpoint.sdk_record import read_sdk_record

_NAMES = {Binding: "binding", Initiated: "initiated", PartStored: "part stored", Completed: "completed",
          Opened: "opened"}  # fmt: skip


@click.group()
def journal() -> None:
    """Look into checkpoint files."""


@journal.command()
@click.argument("file", type=click.Path())
@click.option("--json", "is_json", is_flag=True, help="One JSON object: version, damage, records, state.")
def dump(file: str, is_json: bool) -> None:
    """Print a journal, damaged ones too; or what a record of the official SDK says."""
    data = read_file(file)
    if looks_like_json(data):
        said = read_sdk_record(data, file)._asdict()
        said["claimed"] = sorted(said["claimed"])
        said["parts"] = dict(sorted(said["parts"].items()))
        click.echo(_json({"kind": "official SDK", **said}))
        return
    found = recover(data, file)
    click.echo(_json(_document(found, data)) if is_json else "\n".join(_lines(found, data)))


def _document(found: Recovered, data: bytes) -> dict[str, Any]:
    state = found.state
    return {
        "kind": "journal",
        "version": found.version,
        "bytes": len(data),
        "torn_bytes": _torn(found, data),
        "damage": found.damage._asdict() if found.damage else None,
        "records": [{"offset": at, "type": _NAMES[type(record)], **_fields(record)} for at, record in found.records],
        "state": {
            "upload_id": state.upload_id,
            "parts_stored": len(state.parts),
            "parts": state.binding.part_count if state.binding else None,
            "bytes_stored": state.stored_bytes(),
            "is_completed": state.is_completed,
        },
    }


def _lines(found: Recovered, data: bytes) -> Iterator[str]:
    yield f"journal, version {found.version}, {len(data)} bytes, {len(found.records)} records"
    if found.damage:
        yield f"DAMAGED at {found.damage}"
    if torn := _torn(found, data):
        yield f"torn: the last {torn} bytes are an unfinished record"
    yield f"{0:>10}  header"
    for at, record in found.records:
        fields = _fields(record)
        fields.pop("core", None)  # the binding again
        words = "  ".join(f"{name}={value}" for name, value in fields.items() if value not in ("", None))
        yield f"{at:>10}  {_NAMES[type(record)]}  {words}".rstrip()
    state = found.state
    if state.binding is None:
        yield f"{len(state.parts)} parts stored; no binding"
        return
    yield (
        f"{len(state.parts)} of {state.binding.part_count} parts stored, {state.stored_bytes()} of "
        f"{state.binding.size_bytes} bytes" + (", completed" if state.is_completed else "")
    )


def _torn(found: Recovered, data: bytes) -> int:
    return max(0, len(data) - max(found.sound_bytes, min(HEADER_BYTES, len(data))))


def _fields(record: Record) -> dict[str, Any]:
    """A record's fields in words: bytes as hex, times as dates."""
    said: dict[str, Any] = {}
    for name, value in asdict(record).items():
        match name, value:
            case "since_s", int():
                said["since"] = _date(value)
            case "options", (salt, digests):
                said["options"] = ":".join(value.hex() for value in (salt, *digests))
            case _, bytes():
                said[name] = value.hex()
            case _, str():
                said[name] = value.encode("utf-8", "backslashreplace").decode()
            case _:
                said[name] = value
    return said


def _date(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False)
