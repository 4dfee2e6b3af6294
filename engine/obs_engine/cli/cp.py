"""`obs-engine cp`: one file to a key, or many below a prefix; `resume` continues one file."""

from __future__ import annotations

import glob
import os
import sys
from typing import Any, get_args

import click

from obs_engine.arguments import RECORD_SUFFIX
from obs_engine.bulk.sources import SYMLINKS
from obs_engine.cli.amounts import Timetable
from obs_engine.cli.connection import SCHEME, Bar, Cap, Command, decorated, open_client, service_options, split_target
from obs_engine.cli.copy_tree import Selection, copy_tree, part_bytes, show_plan
from obs_engine.errors import InvalidArgumentError, ResumeRefusedError, ServiceError
from obs_engine.options import EngineOptions, Reader, Verify
from obs_engine.transfer.messages import Progress


def _upload_command(command: Command) -> Command:
    """File, target, and what `cp` and `resume` have in common."""
    return decorated(_upload_options(command), [
        click.argument("file", type=click.Path()), click.argument("target", metavar="obs://BUCKET/KEY"),
    ])  # fmt: skip


def _upload_options(command: Command) -> Command:
    """What `cp` and `resume` have in common."""
    return service_options()(decorated(command, [  # type: ignore[no-any-return]
        click.option("--part-size", "part_size_mib", type=float, default=9, show_default=True, help="MiB."),
        click.option("-j", "--parts-in-flight", "task_num", type=int,
                     help="[default: 8; of many files 32]"),
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
@_upload_options
@click.argument("sources", nargs=-1, required=True, type=click.Path(), metavar="SRC...")
@click.argument("target", metavar="obs://BUCKET/KEY")
@click.option("--checkpoint/--no-checkpoint", default=True, show_default=True, help="Of one file.")
@click.option("-r", "--recursive", is_flag=True, help="Folders, and all in them.")
@click.option("--include", multiple=True, metavar="PATTERN", help="These alone; repeatable.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Not these; repeatable, and stronger.")
@click.option("--symlinks", type=click.Choice(SYMLINKS), default="follow", show_default=True)
@click.option("--files-from", metavar="FILE", help="A list of paths below SRC, one a line; - for standard input.")
@click.option("--max-failures", type=int, help="End the job when more files than that have failed.")
@click.option("--events", metavar="FILE", help="What happens, one JSON object a line, is appended to it.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent.")
@click.option("--state", metavar="DIR", help="Where jobs are kept.  [default: $XDG_STATE_HOME/obs-engine]")
def cp(
    sources: tuple[str, ...], target: str, checkpoint: bool, recursive: bool, include: tuple[str, ...],
    exclude: tuple[str, ...], symlinks: str, files_from: str | None, max_failures: int | None, events: str | None,
    dry_run: bool, state: str | None, **options: Any,
) -> None:  # fmt: skip
    """Upload files, resumably.

    One file goes to a key; several, folders, patterns and lists go below a
    prefix, as a job. Interrupted by anything, the same command goes on where
    it stopped. `folder` keeps its name, of `folder/` the content goes.

    \b
    Examples:
      obs-engine cp disk.img obs://backups/disk.img
      obs-engine cp -r photos obs://backups/2024/ --exclude '*.tmp'
    Exit status: 0 done, 1 failed, 2 wrong usage, 3 to be gone on with.
    """
    is_one = len(sources) == 1 and not (recursive or files_from or include or exclude or os.path.isdir(sources[0]))
    if is_one and os.path.lexists(sources[0]) and not dry_run:
        _upload(sources[0], target, is_checkpoint=checkpoint, **options)
        return
    if is_one and not os.path.lexists(sources[0]) and not any(sign in sources[0] for sign in "*?["):
        _upload(sources[0], target, is_checkpoint=checkpoint, **options)  # which says what is wrong with it
        return
    _copy(
        sources, target, Selection(recursive, include, exclude, symlinks, files_from), max_failures=max_failures,
        events=events, is_dry=dry_run, state=state, **options,
    )  # fmt: skip


def _copy(
    sources: tuple[str, ...], target: str, selection: Selection, *, max_failures: int | None, events: str | None,
    is_dry: bool, state: str | None, part_size_mib: float, task_num: int | None, processes: int | None,
    checkpoint_file: str | None, checksum: bool, verify: Any, reader: Any, max_connections: int | None,
    max_bandwidth: str, on_source_change: Any, quiet: bool, **connection: Any,
) -> None:  # fmt: skip
    """Many files, as a job."""
    if checkpoint_file is not None:
        raise InvalidArgumentError("--checkpoint-file", "one file to upload", "several", "leave it away")
    if is_dry:
        show_plan(sources, target, selection, part_bytes(part_size_mib))
        return
    tasks = task_num or 32
    caps = Timetable.of(max_bandwidth)
    engine = EngineOptions(
        processes=processes, verify=verify, reader=reader, on_source_change=on_source_change,
        max_connections=max_connections or tasks,
    )  # fmt: skip
    sys.exit(copy_tree(
        sources, target, selection, lambda: open_client(engine, **connection), caps, endpoint=connection["endpoint"],
        state=state, is_quiet=quiet, max_failures=max_failures, events=events, partSize=part_bytes(part_size_mib),
        taskNum=tasks, checkSum=checksum,
    ))  # fmt: skip


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
    """A bar that looks at the clock, too."""

    def __init__(self, bar: Bar, cap: Cap) -> None:
        self._bar, self._cap = bar, cap

    def on_progress(self, progress: Progress) -> None:
        self._cap.look()
        self._bar.on_progress(progress)


def _upload(
    file: str, target: str, *, is_checkpoint: bool, part_size_mib: float, task_num: int | None, processes: int | None,
    checkpoint_file: str | None, checksum: bool, verify: Any, reader: Any, max_connections: int | None,
    max_bandwidth: str, on_source_change: Any, quiet: bool, adopt: bool | str = False, **connection: Any,
) -> None:  # fmt: skip
    bucket, key = split_target(target, file)
    caps = Timetable.of(max_bandwidth)
    engine = EngineOptions(
        processes=processes, verify=verify, reader=reader, on_source_change=on_source_change, adopt=adopt,
        max_connections=max_connections,
    )  # fmt: skip
    with open_client(engine, **connection) as client, Bar(key, is_quiet=quiet) as bar:
        result = client.uploadFile(
            bucket, key, file, part_bytes(part_size_mib), task_num or 8, is_checkpoint, checkpoint_file, checksum,
            progressCallback=_Capped(bar, Cap(client, caps)),
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
