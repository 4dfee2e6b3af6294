"""`obs-engine cp FILE obs://bucket/key`, one resumable upload with a progress bar; `resume` continues one."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from obs_engine.arguments import RECORD_SUFFIX
from obs_engine.client import ObsClient
from obs_engine.errors import InvalidArgumentError, ResumeRefusedError, ServiceError
from obs_engine.limits import MIB
from obs_engine.options import EngineOptions

SCHEME = "obs://"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _upload_command(command: _Command) -> _Command:
    """What `cp` and `resume` have in common."""
    for decorate in reversed([
        click.argument("file", type=click.Path()),
        click.argument("target", metavar="obs://BUCKET/KEY"),
        click.option("--endpoint", envvar="OBS_ENDPOINT", required=True,
                     help="E.g. https://obs.x.com; or $OBS_ENDPOINT."),
        click.option("--access-key", envvar="OBS_ACCESS_KEY_ID", default="", help="Better in $OBS_ACCESS_KEY_ID."),
        click.option("--secret-key", envvar="OBS_SECRET_ACCESS_KEY", default="",
                     help="Better in $OBS_SECRET_ACCESS_KEY."),
        click.option("--security-token", envvar="OBS_SECURITY_TOKEN", help="Better in $OBS_SECURITY_TOKEN."),
        click.option("--signature", type=click.Choice(["obs", "v2", "v4"]), default="obs", show_default=True),
        click.option("--region", default="region", help="For --signature v4."),
        click.option("--path-style", is_flag=True, help="host/bucket/key instead of bucket.host/key."),
        click.option("--ca-file", type=click.Path(exists=True, dir_okay=False), help="Trusted certificates (PEM)."),
        click.option("--part-size", "part_size_mib", type=float, default=9, show_default=True, help="MiB."),
        click.option("-j", "--parts-in-flight", "task_num", type=int, default=8, show_default=True),
        click.option("--processes", type=int, help="Workers.  [default: cores]"),
        click.option("--checkpoint-file", type=click.Path(), help=f"[default: FILE{RECORD_SUFFIX}]"),
        click.option("--checksum", is_flag=True, help="Tell by content, too, whether FILE is the one begun with."),
        click.option("--on-source-change", type=click.Choice(["restart", "refuse"]), default="restart",
                     show_default=True, help="Where FILE changed since its upload began."),
        click.option("--quiet", is_flag=True, help="No progress bar."),
    ]):  # fmt: skip
        command = decorate(command)
    return command


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


def _upload(
    file: str, target: str, *, is_checkpoint: bool, endpoint: str, access_key: str, secret_key: str,
    security_token: str | None, signature: str, region: str, path_style: bool, ca_file: str | None,
    part_size_mib: float, task_num: int, processes: int | None, checkpoint_file: str | None, checksum: bool,
    on_source_change: Any, quiet: bool, adopt: bool | str = False,
) -> None:  # fmt: skip
    bucket, key = split_target(target, file)
    client = ObsClient(
        access_key_id=access_key, secret_access_key=secret_key, server=endpoint, security_token=security_token,
        signature=signature, region=region, path_style=path_style, ssl_verify=ca_file or True,
        engine=EngineOptions(processes=processes, on_source_change=on_source_change, adopt=adopt),
    )  # fmt: skip
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), DownloadColumn(binary_units=True),
        TransferSpeedColumn(), TimeRemainingColumn(), console=console, disable=quiet,
    )  # fmt: skip
    row = bar.add_task(PurePosixPath(key).name or key, total=None)

    def show(stored: int, total: int, _seconds: float) -> None:
        bar.start()  # not before there is something to show: an error before stands alone
        bar.update(row, completed=stored, total=total)

    with client:
        try:
            result = client.uploadFile(
                bucket, key, file, int(part_size_mib * MIB), task_num, is_checkpoint, checkpoint_file, checksum,
                progressCallback=show,
            )  # fmt: skip
        finally:
            if bar.live.is_started:
                bar.stop()
    if result.status >= 300:
        raise ServiceError(
            f"Complete of {bucket}/{key}: expected success, found {result.errorCode}: {result.errorMessage} (status "
            f"{result.status}, request {result.requestId}); with a checkpoint the parts are kept: run it again"
        )
    report = result.report
    adopted = f" ({report.parts_adopted} found on the service)" if report.parts_adopted else ""
    click.echo(
        f"{SCHEME}{bucket}/{key}  {report.size_bytes} bytes  {report.parts} parts  resumed {report.parts_resumed}"
        f"{adopted}  sent {report.parts_sent}  {report.seconds:.2f} s  ETag {result.body.etag}"
    )


def split_target(target: str, file: str) -> tuple[str, str]:
    """Bucket and key of `obs://bucket/key`; a key that is empty or ends with a slash takes the file's name."""
    bucket, _, key = target.removeprefix(SCHEME).partition("/")
    if not target.startswith(SCHEME) or not bucket:
        raise InvalidArgumentError("target", "obs://BUCKET/KEY", target, "name the bucket and the key")
    if not key or key.endswith("/"):
        key += PurePosixPath(file).name
    return bucket, key
