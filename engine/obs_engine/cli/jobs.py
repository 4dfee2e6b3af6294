"""`obs-engine jobs` and `obs-engine job ...`: what was begun, and what is to become of it."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime, timezone
from typing import Any

import click

from obs_engine.bulk.job import ABORT, CANCEL, KEEP, PAUSE, Jobs, JobSummary, Request, state_directory
from obs_engine.cli.amounts import Timetable
from obs_engine.cli.connection import open_client, service_options
from obs_engine.cli.copy_tree import part_bytes, run_job, this_run
from obs_engine.errors import InvalidArgumentError
from obs_engine.options import EngineOptions

_state = click.option("--state", metavar="DIR", help="Where jobs are kept.  [default: $XDG_STATE_HOME/obs-engine]")


def _jobs(state: str | None) -> Jobs:
    return Jobs(state_directory(state, os.environ))


@click.command()
@_state
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line.")
def jobs(state: str | None, is_json: bool) -> None:
    """List jobs, those that began last first.

    A job is a `cp` of many files: its id follows from sources, target and
    filters. The same command goes on with the same job.

    \b
    Example:
      obs-engine jobs
    """
    found = _jobs(state).all()
    for job in found:
        click.echo(json.dumps(_plain(job)) if is_json else _line(job))
    if not found and not is_json:
        click.echo("no jobs", err=True)


@click.group()
def job() -> None:
    """Look after one job; its id may be shortened.

    \b
    Examples:
      obs-engine job show 3f2a
      obs-engine job resume 3f2a
      obs-engine job forget 3f2a
    """


@job.command()
@click.argument("job_id", metavar="ID")
@_state
@click.option("--json", "is_json", is_flag=True, help="One JSON object.")
def show(job_id: str, state: str | None, is_json: bool) -> None:
    """Say what a job is, how far it is, and what failed."""
    held = _jobs(state)
    found = held.get(held.find(job_id))
    if is_json:
        click.echo(json.dumps(_plain(found)))
        return
    click.echo(_line(found))
    if found.arguments is not None:
        click.echo(f"  {' '.join(found.arguments.sources)} -> {found.arguments.target} at {found.arguments.endpoint}")
    click.echo(f"  kept in {found.directory}")
    if found.uploads:
        click.echo(f"  {len(found.uploads)} large files are under way")
    for failure in found.failures[:20]:
        click.echo(f"  failed: {failure.path}: {failure.cause}")


@job.command()
@click.argument("job_id", metavar="ID")
@_state
@service_options(is_brief=True)
@click.option("-j", "--parts-in-flight", "task_num", type=int, default=32, show_default=True)
@click.option("--part-size", "part_size_mib", type=float, default=9, show_default=True, help="MiB.")
@click.option("--max-bandwidth", metavar="CAP", default="off", show_default=True, help="As of `cp`.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def resume(
    job_id: str, state: str | None, task_num: int, part_size_mib: float, max_bandwidth: str, quiet: bool,
    **connection: Any,
) -> None:  # fmt: skip
    """Go on with a job, with the arguments that it was begun with."""
    caps = Timetable.of(max_bandwidth)
    held = _jobs(state)
    opened = held.resume(held.find(job_id), this_run())
    there, asked = opened.arguments.endpoint, connection["endpoint"]
    if asked != there:
        opened.close()
        raise InvalidArgumentError("--endpoint", f"that of the job, {there}", asked, "name that one")
    engine = EngineOptions(max_connections=task_num)
    sys.exit(run_job(
        opened, lambda: open_client(engine, **connection), caps, is_quiet=quiet, max_failures=None,
        partSize=part_bytes(part_size_mib), taskNum=task_num,
    ))  # fmt: skip


@job.command()
@click.argument("job_id", metavar="ID")
@_state
def pause(job_id: str, state: str | None) -> None:
    """Ask a running job to stop, to be gone on with later."""
    held = _jobs(state)
    held.ask(held.find(job_id), Request(PAUSE))
    click.echo("asked; it ends within some seconds")


@job.command()
@click.argument("job_id", metavar="ID")
@_state
def cancel(job_id: str, state: str | None) -> None:
    """Ask a running job to end, or say so of one that does not run. What is stored stays, also of large files."""
    held = _jobs(state)
    found = held.get(held.find(job_id))
    if found.state == "running":
        held.ask(found.job_id, Request(CANCEL, KEEP))
        click.echo("asked; it ends within some seconds")
    else:
        held.cancel_stopped(found.job_id, this_run(), KEEP)
        click.echo(f"job {found.job_id} cancelled; the same command begins where it ended")
    if found.uploads:
        click.echo(f"{len(found.uploads)} large files are under way: see obs-engine uploads ls, or {ABORT} them there")


@job.command()
@click.argument("job_id", metavar="ID")
@_state
@click.option("--with-uploads", is_flag=True, help="Also where large files are under way: their parts stay, billed.")
def forget(job_id: str, state: str | None, with_uploads: bool) -> None:
    """Delete what is kept of a job. Nothing at the service is touched."""
    held = _jobs(state)
    found = held.find(job_id)
    for other in held.forget(found, with_uploads=with_uploads):
        click.echo(f"left alone: {other}", err=True)
    click.echo(f"job {found} forgotten")


def _line(job: JobSummary) -> str:
    began = "-" if job.since_s is None else datetime.fromtimestamp(job.since_s).strftime("%Y-%m-%d %H:%M")
    target = "?" if job.arguments is None else job.arguments.target
    failed = f", {job.failed.files} failed" if job.failed.files else ""
    fault = f"  ({job.fault})" if job.fault else ""
    return (
        f"{job.job_id}  {job.state:<11}  {began}  {job.done.files + job.skipped.files} files, "
        f"{job.done.size_bytes} bytes{failed}  {target}{fault}"
    )


def _plain(job: JobSummary) -> dict[str, Any]:
    since = None if job.since_s is None else datetime.fromtimestamp(job.since_s, timezone.utc).isoformat()
    arguments = None if job.arguments is None else job.arguments._asdict()
    return {
        "id": job.job_id, "state": job.state, "directory": job.directory, "since": since, "arguments": arguments,
        "done": job.done._asdict(), "skipped": job.skipped._asdict(), "failed": job.failed._asdict(),
        "uploads": list(job.uploads), "fault": job.fault, "now_s": int(time.time()),
    }  # fmt: skip
