"""Many files to a prefix, as a job: what `cp` does with folders, patterns, lists, and more than one source."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext
from importlib.metadata import version
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

from obs_engine.bulk.copy import Copy, Tally, TooManyFailures
from obs_engine.bulk.events import Events
from obs_engine.bulk.job import Arguments, Job, Jobs, Run, state_directory
from obs_engine.bulk.manifest import Line
from obs_engine.bulk.sources import Filters, Found, Odd, Walk, listed
from obs_engine.cli.amounts import Timetable
from obs_engine.cli.connection import SCHEME, Cap
from obs_engine.client import ObsClient
from obs_engine.errors import InvalidArgumentError, ObsEngineError
from obs_engine.limits import MIB
from obs_engine.source.plan import plan_parts

EXIT_SOME_FAILED, EXIT_RESUMABLE = 1, 3
BAR_S, LINE_S = 0.1, 20.0
"""The bar moves so often; where nobody looks at a terminal, there is a line so often."""
SHOWN_FAILURES = 10

OpenClient = Callable[[], ObsClient]


class Selection(NamedTuple):
    """Which files of the sources are meant. It is part of what a job is."""

    is_recursive: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    symlinks: str
    files_from: str | None = None

    def files(self, sources: Sequence[str], prefix: str) -> Iterable[Found | Odd]:
        """The files, with their keys.

        Raises:
            InvalidArgumentError: a source that is not there, or is a folder without --recursive.
        """
        if self.files_from is not None:
            base = sources[0] if sources else os.getcwd()
            return listed(_lines(self.files_from), base, prefix)
        # An exclude beats an include: whatever is included, this is not.
        filters = Filters([*((False, pattern) for pattern in self.exclude), *((True, p) for p in self.include)])
        return Walk(sources, prefix, is_recursive=self.is_recursive, filters=filters, symlinks=self.symlinks)


def split_prefix(target: str) -> tuple[str, str]:
    """Bucket and prefix of `obs://bucket/prefix/`; the slash at its end may be left out."""
    bucket, _, prefix = target.removeprefix(SCHEME).partition("/")
    if not target.startswith(SCHEME) or not bucket:
        raise InvalidArgumentError("target", "obs://BUCKET/PREFIX/", target, "name the bucket")
    return bucket, prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def show_plan(sources: Sequence[str], target: str, selection: Selection, part_size_bytes: int) -> None:
    """What would be sent: one line a file, and the sum."""
    bucket, prefix = split_prefix(target)
    files = size = requests = odd = 0
    for found in selection.files(sources, prefix):
        if isinstance(found, Odd):
            odd += 1
            click.echo(f"cannot be sent: {found.path}: {found.cause}", err=True)
            continue
        is_small = found.size_bytes < part_size_bytes
        parts = 1 if is_small else plan_parts(found.size_bytes, part_size_bytes).part_count
        files, size, requests = files + 1, size + found.size_bytes, requests + (1 if is_small else parts + 2)
        click.echo(f"{found.size_bytes:>14}  {parts:>5}  {SCHEME}{bucket}/{found.key}")
    click.echo(f"{files} files, {size} bytes, {requests} requests; {odd} cannot be sent")


def copy_tree(
    sources: Sequence[str], target: str, selection: Selection, open_client: OpenClient, caps: Timetable, *,
    endpoint: str, state: str | None, is_quiet: bool, max_failures: int | None, events: str | None, **how: Any,
) -> int:  # fmt: skip
    """Runs the job that these arguments are, from where it stopped; says how it ended, and returns the exit status.

    Args:
        how: arguments of `uploadFiles`.
    """
    selection.files(sources, split_prefix(target)[1])  # Why here: what is wrong with them is said before a job begins
    options = {**selection._asdict(), "include": list(selection.include), "exclude": list(selection.exclude)}
    arguments = Arguments.of(sources, target, endpoint, options, os.getcwd())
    jobs = Jobs(state_directory(state, os.environ))
    job = jobs.open(arguments, this_run())
    return run_job(job, open_client, caps, is_quiet=is_quiet, max_failures=max_failures, events=events, **how)


def run_job(
    job: Job, open_client: OpenClient, caps: Timetable, *, is_quiet: bool, max_failures: int | None,
    events: str | None = None, **how: Any,
) -> int:  # fmt: skip
    """Runs an open job to its end, or to Ctrl-C."""
    try:
        arguments = job.arguments
        bucket, prefix = split_prefix(arguments.target)
        options = dict(arguments.options)
        selection = Selection(**options | {name: tuple(options[name]) for name in ("include", "exclude")})
        files = selection.files(arguments.sources, prefix)
        teller = None if events is None else Events(events, time.time)
        client = open_client()
    except BaseException:
        job.close()
        raise

    def tell(event: str, **fields: Any) -> None:
        if teller is not None:
            teller.tell(event, job=job.job_id, **fields)

    why, is_cut = "", True
    tell("began", target=arguments.target)
    with client, closing(teller) if teller else nullcontext(), _Show(job.job_id, is_quiet=is_quiet) as show:
        cap = Cap(client, caps)

        def look(tally: Tally) -> None:
            cap.look()
            show.progress(tally)

        copy = Copy(job, client, bucket, files, on_progress=look, max_failures=max_failures, **how)
        try:
            for line in copy.run():
                show.line(line)
                tell(
                    "file_failed" if line.cause else "file_done", key=line.key, path=line.path, bytes=line.size_bytes,
                    etag=line.etag, seconds=line.seconds, cause=line.cause,
                )  # fmt: skip
            is_cut = False
        except (KeyboardInterrupt, TooManyFailures) as stopped:
            why = "too many failures" if isinstance(stopped, TooManyFailures) else ""
        except ObsEngineError:
            copy.end(int(time.time()), is_cut=True)
            raise
        ending = copy.end(int(time.time()), is_cut=is_cut)
        tell("ended", how=ending, **copy.tally._asdict())
    return _say_how(job, copy.tally, ending, why, files)


def _say_how(job: Job, tally: Tally, ending: str, why: str, files: Iterable[Found | Odd]) -> int:
    skipped = f", {files.skipped} left out" if isinstance(files, Walk) and files.skipped else ""
    known = f", {tally.known} done before" if tally.known else ""
    failed = f", {tally.failed} failed" if tally.failed else ""
    click.echo(
        f"job {job.job_id} {ending}{f' ({why})' if why else ''}: {tally.stored} files stored, {tally.stored_bytes} "
        f"bytes{known}{failed}{skipped}; manifest in {job.directory}"
    )
    if ending in ("interrupted", "paused", "cancelled"):
        click.echo("obs-engine: run the same command again to go on", err=True)
        return EXIT_SOME_FAILED if why else EXIT_RESUMABLE
    return EXIT_SOME_FAILED if tally.failed else 0


def this_run() -> Run:
    """Of the job that this process runs."""
    return Run.here(int(time.time()), f"obs-engine {version('obs-engine')}")


def _lines(path: str) -> Iterable[str]:
    if path == "-":
        yield from sys.stdin
        return
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as lines:
            yield from lines
    except OSError as error:
        raise InvalidArgumentError("--files-from", "a file that can be read", path, str(error.strerror)) from None


class _Show:
    """A bar on a terminal, a line now and then elsewhere; the first failures in words."""

    def __init__(self, job_id: str, *, is_quiet: bool) -> None:
        console = Console(stderr=True)
        self._is_quiet = is_quiet
        self._is_terminal = console.is_terminal and not is_quiet
        self._bar = RichProgress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[files]}"), console=console, disable=not self._is_terminal,
        )  # fmt: skip
        self._row = self._bar.add_task(f"job {job_id}", total=None, files="")
        self._told_s = time.monotonic()
        self._shown_bytes = 0
        self._failures = 0

    def line(self, line: Line) -> None:
        """What became of a file: told where it failed."""
        if line.cause:
            self._failures += 1
            if self._failures <= SHOWN_FAILURES:
                self._print(f"failed: {line.path}: {line.cause}")
            elif self._failures == SHOWN_FAILURES + 1:
                self._print("failed: and more, see the manifest")

    def progress(self, tally: Tally) -> None:
        """How far it all is; it never goes back."""
        self._shown_bytes = max(self._shown_bytes, tally.known_bytes + tally.stored_bytes + tally.under_way_bytes)
        now_s = time.monotonic()
        if self._is_quiet or now_s - self._told_s < (BAR_S if self._is_terminal else LINE_S):
            return
        self._told_s = now_s
        failed = f", {tally.failed} failed" if tally.failed else ""
        files = f"{tally.known + tally.stored} of {tally.found} files{failed}"
        if self._is_terminal:
            self._bar.start()
            self._bar.update(self._row, completed=self._shown_bytes, total=tally.found_bytes, files=files)
        else:
            click.echo(f"{files}, {self._shown_bytes} bytes", err=True)

    def _print(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> _Show:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal and self._bar.live.is_started:
            self._bar.stop()


def part_bytes(part_size_mib: float) -> int:
    """Of an option in MiB."""
    return int(part_size_mib * MIB)
