"""A job as it runs: files that are not done are sent, and what became of each is written down. Runs in the caller's
process.

    walk → leave out what the log knows → uploadFiles → manifest and log, in groups

Knows a job and a client; does not know the terminal.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from typing import Any, NamedTuple

from obs_engine.bulk.file_table import DONE, SKIPPED, file_identity, file_name
from obs_engine.bulk.job import CANCEL, Job, Outcome, Request
from obs_engine.bulk.manifest import Line
from obs_engine.bulk.sources import Found, Odd
from obs_engine.client import ObsClient
from obs_engine.many_files import FileResult, FileToUpload

SYNC_S = 1.0
"""So often what was said of files is synced, and requests of others are looked for."""


class Tally(NamedTuple):
    """How far a run is, in files and bytes.

    Attributes:
        found, found_bytes: by the walk so far.
        known, known_bytes: of them, done by an earlier run.
        under_way_bytes: stored of large files that are not done yet.
    """

    found: int = 0
    found_bytes: int = 0
    known: int = 0
    known_bytes: int = 0
    stored: int = 0
    stored_bytes: int = 0
    failed: int = 0
    under_way_bytes: int = 0


class TooManyFailures(Exception):
    """More files failed than may."""


class _Asked(Exception):
    """Somebody asked for the end while a large file was under way."""


class Copy:
    """One run of a job.

    Attributes:
        tally: how far it is.
        request: why it ended early; None where it did not.
    """

    def __init__(
        self, job: Job, client: ObsClient, bucket: str, files: Iterable[Found | Odd], *,
        on_progress: Callable[[Tally], object], max_failures: int | None = None, **how: Any,
    ) -> None:  # fmt: skip
        """
        Args:
            on_progress: hears of each change, in the thread of `run`.
            max_failures: more end the run; None for any number.
            how: arguments of `uploadFiles`.
        """
        self._job = job
        self._client = client
        self._bucket = bucket
        self._files = files
        self._on_progress = on_progress
        self._max_failures = max_failures
        self._how = how
        self._under_way: dict[str, int] = {}
        self._sending: dict[tuple[str, str], Found] = {}
        self._odd: list[Line] = []
        self._synced_s = time.monotonic()
        self.tally = Tally()
        self.request: Request | None = None

    def run(self) -> Iterator[Line]:
        """Sends what is to be sent, and yields what became of each file, once it is written down.

        Raises:
            TooManyFailures: more than may.
            ObsEngineError: nothing can be sent at all, or the job's disk fails.
        """
        folder = os.path.join(self._job.directory, "uploads")
        results = self._client.uploadFiles(
            self._bucket, self._to_send(), checkpointFolder=folder, progressCallback=self._look_at_large, **self._how
        )
        with closing(results), suppress(_Asked):  # type: ignore[type-var]
            for result in results:
                yield self._told(result)
                yield from self._odd_lines()
                self._look_around()
                if self.request is not None:
                    break
        yield from self._odd_lines()

    def _to_send(self) -> Iterator[FileToUpload]:
        for found in self._files:
            if isinstance(found, Odd):
                line = Line("", found.path, 0, cause=found.cause)
                self._odd.append(line)
                self._fail(line, 0, 0)
                continue
            self._count(found=1, found_bytes=found.size_bytes)
            name = file_name(found.key, found.path)
            known = self._job.look(name, file_identity(name, found.size_bytes, found.mtime_ns, found.inode))
            if known.outcome in (DONE, SKIPPED):
                self._count(known=1, known_bytes=found.size_bytes)
                continue
            if known.is_changed:
                self._job.log.withdraw([name])
            self._sending[found.path, found.key] = found
            yield FileToUpload(found.path, found.key, found.size_bytes)
            if self.request is not None:
                return

    def _told(self, result: FileResult) -> Line:
        found = self._sending.pop((result.path, result.key))
        self._under_way.pop(result.path, None)
        crc64 = "" if result.crc64 is None else str(result.crc64)
        cause = "" if result.error is None else str(result.error)
        line = Line(
            result.key, result.path, result.size_bytes, result.etag, crc64, result.version_id, result.request_id,
            round(result.seconds, 3), cause,
        )  # fmt: skip
        if result.error is not None:
            self._fail(line, found.mtime_ns, found.inode)
        else:
            # Of a large file, what it was when it was found: where it has changed since, it is sent again.
            mtime_ns, inode = (result.mtime_ns, result.inode) if result.inode else (found.mtime_ns, found.inode)
            self._job.succeeded([Outcome.of(line, mtime_ns, inode)])  # at once: a kill sends no more again than it must
            self._count(stored=1, stored_bytes=result.size_bytes)
        return line

    def _look_at_large(self, path: str, stored_bytes: int, _size_bytes: int) -> None:
        self._under_way[path] = stored_bytes
        self._count()
        self._look_around()
        if self.request is not None:
            raise _Asked

    def _fail(self, line: Line, mtime_ns: int, inode: int) -> None:
        self._count(failed=1)
        self._job.failed(Outcome.of(line, mtime_ns, inode))
        if self._max_failures is not None and self.tally.failed > self._max_failures:
            raise TooManyFailures

    def _look_around(self) -> None:
        if time.monotonic() - self._synced_s >= SYNC_S:
            self._synced_s = time.monotonic()
            self._job.sync()
            self.request = self._job.request()

    def _odd_lines(self) -> Iterator[Line]:
        odd, self._odd = self._odd, []
        yield from odd

    def _count(self, **more: int) -> None:
        added = {name: getattr(self.tally, name) + by for name, by in more.items()}
        self.tally = self.tally._replace(**added, under_way_bytes=sum(self._under_way.values()))
        self._on_progress(self.tally)

    def end(self, now_s: int, *, is_cut: bool = False) -> str:
        """Says how the run ended, and gives the job up; "interrupted" where it is to be gone on with.

        Raises:
            JournalError: the disk failed.
        """
        if self.request is not None:
            ending = "cancelled" if self.request.what == CANCEL else "paused"
        elif is_cut:
            self._job.sync()
            self._job.close()
            return "interrupted"
        else:
            ending = "failed" if self.tally.failed else "done"
        self._job.end(now_s, ending)
        return ending
