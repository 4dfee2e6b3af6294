"""`obs-engine verify FILE obs://bucket/key`: is the object that is there equal to the file? Uploads nothing."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from obs_engine.arguments import VERIFY_TASK_NUM_DEFAULT, Against
from obs_engine.cli.amounts import bytes_of
from obs_engine.cli.connection import SCHEME, Bar, connection_options, open_client, split_target
from obs_engine.cli.main import fail
from obs_engine.errors import ObsEngineError
from obs_engine.options import EngineOptions
from obs_engine.transfer.messages import VerifyResult

EXIT_DIFFERS, EXIT_UNKNOWN = 1, 2
"""As of `cmp`: whoever asks must be able to tell "they differ" from "nobody knows"."""


def _bytes_of(_context: click.Context, _option: click.Parameter, size: str | None) -> int | None:
    """A number of MiB, as `cp` takes it, or one with a unit."""
    if size is None:
        return None
    found = bytes_of(size, unit="M")
    if found is None:
        raise click.BadParameter(f"expected MiB, or a number with B, K, M or G (102400B, 100K, 9M), found {size!r}")
    return found


@click.command()
@connection_options
@click.option("--against", type=click.Choice(["auto", "etag", "crc64", "content"]), default="auto", show_default=True,
              help="What of the object: its ETag, its CRC-64, all its bytes; auto: the cheapest that it has.")
@click.option("--part-size", callback=_bytes_of, metavar="SIZE",
              help="Of the parts that it was uploaded in, MiB, or with a unit (17179870B).  [default: found out]")
@click.option("--version-id", help="Of the object.  [default: the newest]")
@click.option("-j", "--task-num", type=int, default=VERIFY_TASK_NUM_DEFAULT, show_default=True,
              help="Ranges compared at a time.")
@click.option("--processes", type=int, help="Workers.  [default: cores]")
@click.option("--json", "is_json", is_flag=True, help="One line of JSON instead of words.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def verify(
    file: str, target: str, against: Against, part_size: int | None, version_id: str | None, task_num: int,
    processes: int | None, is_json: bool, quiet: bool, **connection: Any,
) -> None:  # fmt: skip
    """Compare FILE with an object that is there already. Nothing is uploaded.

    Exit status: 0 equal, 1 they differ, 2 they could not be compared.

    \b
    Example:
      obs-engine verify disk.img obs://backups/disk.img --against content
    """
    try:
        bucket, key = split_target(target, file)
        with open_client(EngineOptions(processes=processes), **connection) as client, Bar(key, is_quiet=quiet) as bar:
            result = client.verifyFile(
                bucket, key, file, against, part_size, version_id, task_num, progressCallback=bar
            )
    except ObsEngineError as error:
        fail(str(error), EXIT_UNKNOWN)
    name = f"{SCHEME}{bucket}/{key}"
    click.echo(json.dumps({"object": name, "file": file, **asdict(result)}) if is_json else f"{name}  {_words(result)}")
    sys.exit(0 if result.is_equal else EXIT_DIFFERS)


def _words(result: VerifyResult) -> str:
    rate = result.compared_bytes / max(result.seconds, 0.001) / 1e6
    spent = f"{result.compared_bytes} bytes compared  {result.seconds:.2f} s  {rate:.0f} MB/s"
    what = {"crc64": "CRC-64", "etag": "ETag", "content": "content"}[result.against]
    if result.is_equal:
        parts = f" (parts of {result.part_size_bytes} bytes)" if result.part_size_bytes else ""
        digest = "" if result.against == "content" else f" {result.found}"
        return f"equal by {what}{digest}{parts}  {result.size_bytes} bytes  {spent}"
    tried = ", ".join(map(str, result.tried_part_sizes))
    hint = f" (tried parts of {tried} bytes; another size can be named with --part-size)" if tried else ""
    return f"differs by {what}: expected {result.expected}, found {result.found}{hint}  {spent}"
