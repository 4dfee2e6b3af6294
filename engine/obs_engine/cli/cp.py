"""`obs-engine cp FILE obs://bucket/key`, one resumable upload with a progress bar; `resume` continues one."""

from __future__ import annotations

import glob
import os
from datetime import datetime
from typing import Any, get_args

import click

from obs_engine.arguments import RECORD_SUFFIX
from obs_engine.cli.amounts import Timetable
from obs_engine.cli.connection import SCHEME, Bar, Command, connection_options, decorated, open_client, split_target
from obs_engine.client import ObsClient
from obs_engine.errors import ResumeRefusedError, ServiceError
from obs_engine.limits import MIB
from obs_engine.options import EngineOptions, Reader, Verify
from obs_engine.transfer.messages import Progress


def _upload_command(command: Command) -> Command:
    """What `cp` and `resume` have in common."""
    return connection_options(decorated(command, [
        click.option("--part-size", "part_size_mib", type=float, default=9, show_default=True, help="MiB."),
        click.option("-j", "--parts-in-flight", "task_num", type=int, default=8, show_default=True),
        click.option("--processes", type=int, help="Workers.  [default: cores]"),
        click.option("--checkpoint-file", type=click.Path(), help=f"[default: FILE{RECORD_SUFFIX}]"),
        click.option("--checksum", is_flag=True, help="Tell by content, too, whether FILE is the one begun with."),
        click.option("--verify", type=click.Choice(get_args(Verify)), default="etag", show_default=True,
                     help="What must be proven before success is reported."),
        click.option("--reader", type=click.Choice(get_args(Reader)), default="auto", show_default=True,
                     help="How FILE is read."),
        click.option("--max-connections", type=int, help="At a time.  [default: what file limits allow]"),
        click.option("--max-bandwidth", metavar="CAP", default="off", show_default=True,
                     help="Bytes a second, e.g. 20M; or by the time of day: '08:00,20M 19:00,off'."),
        click.option("--on-source-change", type=click.Choice(["restart", "refuse"]), default="restart",
                     show_default=True, help="Where FILE changed since its upload began."),
        click.option("--quiet", is_flag=True, help="No progress bar."),
    ]))  # fmt: skip


@click.command()
@_upload_command
@click.option("--checkpoint/--no-checkpoint", default=True, show_default=True, help="Continue after an interruption.")
def cp(file: str, target: str, checkpoint: bool, **options: Any) -> None:
    """Upload FILE, resumably.

    Interrupted by anything, the same command goes on where it stopped.

    \b
    Example:
      export OBS_ACCESS_KEY_ID=... OBS_SECRET_ACCESS_KEY=...
      obs-engine cp disk.img obs://backups/disk.img --endpoint https://obs.cn-north-4.myhuaweicloud.com
    """
    _upload(file, target, is_checkpoint=checkpoint, **options)


@click.command()
@_upload_command
@click.option("--adopt", is_flag=True, help="No record is left here: find the open upload on the service.")
@click.option("--upload-id", help="The same, with its upload id.")
def resume(file: str, target: str, adopt: bool, upload_id: str | None, **options: Any) -> None:
    """Continue an interrupted upload of FILE.

    From its record; or, with --adopt, from what the service has of it: on another machine, or after a lost disk. Parts
    that the service has are compared with FILE by their MD5, and only what is missing or differs is sent.
    """
    record = options["checkpoint_file"] or f"{file}{RECORD_SUFFIX}"
    of_another_target = glob.glob(f"{glob.escape(record)}.{'[0-9a-f]' * 8}")
    if not (adopt or upload_id or os.path.exists(record) or of_another_target):
        raise ResumeRefusedError(
            f"resume {file!r}: expected its record {record!r}, found none; look for the upload on the service with "
            "--adopt, or begin one with cp"
        )
    _upload(file, target, is_checkpoint=True, adopt=upload_id or adopt, **options)


class _Capped:
    """A bar that looks at the clock, too, and sets the client's cap by it."""

    def __init__(self, bar: Bar, client: ObsClient, caps: Timetable) -> None:
        self._bar, self._client, self._caps = bar, client, caps
        self._cap = caps.at(datetime.now())

    def on_progress(self, progress: Progress) -> None:
        cap = self._caps.at(datetime.now())
        if cap != self._cap:
            self._cap = cap
            self._client.set_max_bandwidth(cap)
        self._bar.on_progress(progress)


def _upload(
    file: str, target: str, *, is_checkpoint: bool, part_size_mib: float, task_num: int, processes: int | None,
    checkpoint_file: str | None, checksum: bool, verify: Any, reader: Any, max_connections: int | None,
    max_bandwidth: str, on_source_change: Any, quiet: bool, adopt: bool | str = False, **connection: Any,
) -> None:  # fmt: skip
    bucket, key = split_target(target, file)
    caps = Timetable.of(max_bandwidth)
    engine = EngineOptions(
        processes=processes, verify=verify, reader=reader, on_source_change=on_source_change, adopt=adopt,
        max_connections=max_connections, max_bandwidth_bytes_per_s=caps.at(datetime.now()),
    )  # fmt: skip
    with open_client(engine, **connection) as client, Bar(key, is_quiet=quiet) as bar:
        result = client.uploadFile(
            bucket, key, file, int(part_size_mib * MIB), task_num, is_checkpoint, checkpoint_file, checksum,
            progressCallback=_Capped(bar, client, caps),
        )  # fmt: skip
    if result.status >= 300:
        raise ServiceError(
            f"Complete of {bucket}/{key}: expected success, found {result.errorCode}: {result.errorMessage} (status "
            f"{result.status}, request {result.requestId}); with a checkpoint the parts are kept: run it again"
        )
    report = result.report
    adopted = f" ({report.parts_adopted} found on the service)" if report.parts_adopted else ""
    crc64 = f"  CRC-64 {report.crc64}" if report.crc64 is not None else ""
    xxh3 = f"  xxh3 {report.xxh3}" if report.xxh3 is not None else ""
    click.echo(
        f"{SCHEME}{bucket}/{key}  {report.size_bytes} bytes  {report.parts} parts  resumed {report.parts_resumed}"
        f"{adopted}  sent {report.parts_sent}  {report.seconds:.2f} s  verified by {report.verify}"
        f"  ETag {result.body.etag}{crc64}{xxh3}"
    )
