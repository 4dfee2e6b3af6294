"""Jobs: what was asked for, under an id that follows from it, and how far it is, kept in a state directory.

Runs in the process that runs a job, and in those that ask about one. Knows directories, logs and manifests; does not
know how files are sent. Layout: `jobs/ID/log`, `jobs/ID/uploads/` (journals of large files), `jobs/ID/*.jsonl` (the
manifest), `jobs/ID/request` (what somebody wants of the running job).

Why a request is a file, and no signal: a pid may be another's by now, and of another host or container; and a library
has no signal handlers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from obs_engine.bulk.file_table import DONE, SKIPPED, Count, file_identity, file_name
from obs_engine.bulk.job_log import JobLog, Known, open_locked, peek
from obs_engine.bulk.job_records import Ended, Entry, Failed, Opened, beginning
from obs_engine.bulk.manifest import Line, Manifest, is_manifest, manifest_files, run_name, sync_files
from obs_engine.checkpoint.disk import Disk
from obs_engine.errors import InvalidArgumentError, JournalError

ID_DIGITS = 12
PAUSE, CANCEL = "pause", "cancel"
KEEP, ABORT = "keep", "abort"
STATES = ("running", "interrupted", "paused", "done", "failed", "cancelled", "aborted", "unreadable")
"""Running: a process holds its log. Interrupted: none does, and nobody said why. The rest: how its last run ended."""

FINAL = ("aborted",)
"""After these there is nothing to go on with, and the same command begins anew. After `done` it sends what is new."""

_ID = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}")
_SECRETS = re.compile(r"secret|password|token|credential|^[as]k$|access_?key", re.IGNORECASE)
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_BOOT_BYTES = 16
_REQUEST_MAX_BYTES = 4096
_DISK = Disk()


class Arguments(NamedTuple):
    """What a job is asked for, as far as it decides what is stored where.

    Attributes:
        sources: in the order given. Absolute; a slash at the end is kept, as it may mean the content alone.
        target: bucket and prefix, such as "obs://bucket/prefix/".
        endpoint: "scheme://host[:port]".
        options: those that change what is uploaded, as values of JSON. No secret; a key is named by a fingerprint.
    """

    sources: tuple[str, ...]
    target: str
    endpoint: str
    options: Mapping[str, Any]

    @classmethod
    def of(
        cls, sources: Iterable[str], target: str, endpoint: str, options: Mapping[str, Any], directory: str
    ) -> Arguments:
        """Makes sources absolute.

        Args:
            directory: that relative sources are in.

        Raises:
            InvalidArgumentError: an option may be a secret, or is no value of JSON.
        """
        for name in options:
            if _SECRETS.search(name):
                raise InvalidArgumentError("job options", "none that may be a secret", name, "leave it out")
        found = cls(tuple(_absolute(source, directory) for source in sources), target, endpoint, dict(options))
        try:
            found.canonical()
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError("job options", "values of JSON", str(error)) from None
        return found

    def canonical(self) -> str:
        """The same text for the same job: JSON in ASCII, its names sorted, an option that is None left out."""
        told = self._asdict() | {"options": {name: v for name, v in self.options.items() if v is not None}}
        return json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def parsed(cls, text: str) -> Arguments:
        """From `canonical`."""
        told = json.loads(text)
        return cls(tuple(told["sources"]), told["target"], told["endpoint"], told["options"])


def job_id(arguments: Arguments) -> str:
    """12 hex digits that the arguments alone decide: whoever asks for the same, goes on with the same job."""
    return hashlib.blake2b(arguments.canonical().encode(), digest_size=ID_DIGITS // 2).hexdigest()


def state_directory(given: str | None, environ: Mapping[str, str]) -> str:
    """Where jobs are kept: as given, else where XDG says, else under the home directory. Creates nothing."""
    if given:
        return os.path.abspath(given)
    # Source: XDG Base Directory Specification: a relative path in these variables is invalid, and is to be ignored.
    xdg = environ.get("XDG_STATE_HOME", "")
    base = xdg if os.path.isabs(xdg) else os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".local/state")
    return os.path.join(base, "obs-engine")


class Run(NamedTuple):
    """The process that runs a job, and when.

    Attributes:
        since_s: now, seconds since 1970.
        program: its name and version.
        boot: see `boot_id`.
    """

    since_s: int
    program: str
    pid: int
    host: str
    boot: bytes

    @classmethod
    def here(cls, since_s: int, program: str) -> Run:
        """This process."""
        return cls(since_s, program, os.getpid(), os.uname().nodename, boot_id())


def boot_id() -> bytes:
    """16 bytes that this machine has anew whenever it is started; zeros where nobody knows."""
    with contextlib.suppress(OSError, ValueError), open(_BOOT_ID, encoding="ascii") as file:
        found = bytes.fromhex(file.read().strip().replace("-", ""))
        if len(found) == _BOOT_BYTES:
            return found
    return bytes(_BOOT_BYTES)


class Request(NamedTuple):
    """What somebody wants of a running job: `PAUSE` or `CANCEL`; and of the uploads then begun, `KEEP` or `ABORT`."""

    what: str
    uploads: str = KEEP


class Outcome(NamedTuple):
    """A file of which is known what became of it.

    Attributes:
        line: for the manifest.
        name, identity: from `file_name` and `file_identity`; the identity as the file was when it was sent.
    """

    line: Line
    name: int
    identity: int

    @classmethod
    def of(cls, line: Line, mtime_ns: int, inode: int) -> Outcome:
        """Of a file that was sent as it was then."""
        name = file_name(line.key, line.path)
        return cls(line, name, file_identity(name, line.size_bytes, mtime_ns, inode))

    @property
    def entry(self) -> Entry:
        return Entry(self.name, self.identity, self.line.size_bytes)


class Job:
    """A job that this process runs.

    Attributes:
        job_id, arguments: which one it is.
        directory: that all of it is in.
        uploads: the directory for the journals of large files: `<32 hex digits>.upload_record`.
        run: name of this run, as in the manifest's file names.
        first_run: name of the first run whose manifest counts.
    """

    def __init__(
        self, log: JobLog, job_id: str, arguments: Arguments, opened: Opened, manifest: Manifest, disk: Disk
    ) -> None:
        self.job_id = job_id
        self.arguments = arguments
        self.directory = os.path.dirname(log.path)
        self.uploads = os.path.join(self.directory, "uploads")
        self.log = log
        self.manifest = manifest
        self.run = run_name(opened.since_s)
        began = log.state.began
        self.first_run = run_name(began.since_s) if began is not None else self.run
        self._opened = opened
        self._disk = disk

    def look(self, name: int, identity: int) -> Known:
        """What is known of a file. One that has changed must be withdrawn from the log before it is sent."""
        return self.log.look(name, identity)

    def succeeded(self, outcomes: Iterable[Outcome]) -> None:
        """Says that files are stored. Not yet synced; a kill loses nothing of it.

        Raises:
            JournalError: the disk is full or failed.
        """
        self._say("succeeded", DONE, outcomes)

    def skipped(self, outcomes: Iterable[Outcome]) -> None:
        """Says that files need not be sent, which is not asked again; raises as `succeeded` does."""
        self._say("skipped", SKIPPED, outcomes)

    def failed(self, outcome: Outcome) -> None:
        """Says that a file could not be sent; raises as `succeeded` does."""
        self.manifest.write("failed", outcome.line)
        self.log.failed(outcome.entry, outcome.line.path, outcome.line.cause)

    def sync(self) -> None:
        """Makes durable all that was said, as far as the durability policy asks.

        Raises:
            JournalError: the disk failed: no more may be built on this job.
        """
        self.manifest.sync()
        self.log.mark_listed()
        self.log.sync()

    def request(self) -> Request | None:
        """What is wanted of this run, None for nothing. Cheap: to be asked every second or so."""
        path = os.path.join(self.directory, "request")
        try:
            with open(path, "rb") as file:
                told = json.loads(file.read(_REQUEST_MAX_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            told = None
        if isinstance(told, dict):
            found = Request(str(told.get("what")), str(told.get("uploads")))
            is_ours = (told.get("pid"), told.get("since_s")) == (self._opened.pid, self._opened.since_s)
            if is_ours and found.what in (PAUSE, CANCEL) and found.uploads in (KEEP, ABORT):
                return found
        with contextlib.suppress(OSError):
            self._disk.unlink(path)  # meant for an earlier run, or nothing that anybody can read
        return None

    def end(self, since_s: int, ending: str) -> Ended:
        """Says durably how this run ended, one of `ENDINGS`, and gives the job up.

        Raises:
            JournalError: the disk is full or failed; the job is given up nevertheless.
        """
        try:
            self.sync()
            ended = self.log.end(since_s, ending)
            with contextlib.suppress(OSError):
                self._disk.unlink(os.path.join(self.directory, "request"))
            return ended
        finally:
            self.close()

    def close(self) -> None:
        """Gives the job up as it is: it is interrupted. May be called twice."""
        self.manifest.close()
        self.log.close()

    def _say(self, listed_as: str, outcome: int, outcomes: Iterable[Outcome]) -> None:
        entries = []
        try:
            for told in outcomes:
                self.manifest.write(listed_as, told.line)
                entries.append(told.entry)
        finally:
            self.log.done(entries, outcome)


class JobSummary(NamedTuple):
    """A job, for people.

    Attributes:
        state: one of `STATES`.
        since_s: when it began, None where unknown.
        arguments: None where they are lost.
        opened: who runs it, or ran it last; None where that was not looked for.
        ended_s: when its last run ended; None where it did not.
        done, skipped, failed: files, and their bytes.
        failures: the newest that still stand; none where they were not looked for.
        uploads: journals of uploads that were begun and not ended.
        fault: why it could not be read; "" where it could.
    """

    job_id: str
    state: str
    directory: str
    since_s: int | None = None
    arguments: Arguments | None = None
    opened: Opened | None = None
    ended_s: int | None = None
    done: Count = Count(0, 0)
    skipped: Count = Count(0, 0)
    failed: Count = Count(0, 0)
    failures: tuple[Failed, ...] = ()
    uploads: tuple[str, ...] = ()
    fault: str = ""


class Jobs:
    """All jobs of a state directory."""

    def __init__(self, state_directory: str, *, is_power_safe: bool = True, disk: Disk = _DISK) -> None:
        """
        Args:
            state_directory: see `state_directory`; created when a job begins.
            is_power_safe: what is synced survives a power loss; otherwise a kill.
        """
        self.state_directory = state_directory
        self._is_power_safe = is_power_safe
        self._disk = disk

    def open(self, arguments: Arguments, run: Run, manifest_directory: str | None = None) -> Job:
        """Begins a job, or goes on with it: one that is done, with what is new. One that was aborted is begun anew.

        Args:
            run: who runs it from now on.
            manifest_directory: where its manifest is written; None for beside its log.

        Raises:
            JournalLockedError: it runs already.
            JournalError: the state directory or the log cannot be used.
        """
        id_ = job_id(arguments)
        for directory in (self.state_directory, self._jobs, self._of(id_)):
            _make(directory)
        log = JobLog(self._log(id_), is_power_safe=self._is_power_safe, disk=self._disk)
        return self._opened(log, id_, arguments, run, manifest_directory)

    def resume(self, id_: str, run: Run, manifest_directory: str | None = None) -> Job:
        """Goes on with a job, with the arguments that it was begun with.

        Raises:
            InvalidArgumentError: there is none of this id, or nothing to go on with.
            JournalLockedError: it runs already.
            JournalError: its log cannot be used, or has lost the arguments.
        """
        self._check(id_)
        log = JobLog(self._log(id_), is_power_safe=self._is_power_safe, disk=self._disk)
        if (ended := log.state.ended) is not None and ended.ending in FINAL:
            log.close()
            raise InvalidArgumentError(
                f"job {id_}", "one to go on with", f"one that is {ended.ending}", "run its command to begin it anew"
            )
        text = log.state.whole_arguments()
        if text is None:
            log.close()
            raise JournalError(
                f"job {id_}: expected its arguments in {log.path!r}, found them lost; run the same command again, and "
                "it goes on with this job"
            )
        return self._opened(log, id_, Arguments.parsed(text), run, manifest_directory)

    def all(self) -> list[JobSummary]:
        """All jobs, those that began last first.

        Raises:
            JournalError: the state directory cannot be read. One that does not exist has no jobs.
        """
        try:
            names = sorted(os.listdir(self._jobs))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise JournalError(
                f"state directory {self.state_directory!r}: expected one that can be read, found {error.strerror}; "
                "name another one"
            ) from None
        found = []
        for name in names:
            if _ID.fullmatch(name):
                with contextlib.suppress(FileNotFoundError):  # of a job that was forgotten, or just begins
                    found.append(self._summary(name, is_whole=False))
        return sorted(found, key=lambda job: (-(job.since_s or 0), job.job_id))

    def get(self, id_: str) -> JobSummary:
        """One job.

        Raises:
            InvalidArgumentError: there is none of this id.
        """
        self._check(id_)
        try:
            return self._summary(id_, is_whole=True)
        except FileNotFoundError:
            raise _unknown(id_, self.state_directory) from None

    def find(self, beginning_of_id: str) -> str:
        """The id that begins so, where there is exactly one.

        Raises:
            InvalidArgumentError: there is none, or more than one.
        """
        with contextlib.suppress(OSError):
            found = [n for n in sorted(os.listdir(self._jobs)) if _ID.fullmatch(n) and n.startswith(beginning_of_id)]
            if len(found) == 1 and beginning_of_id:
                return found[0]
        raise _unknown(beginning_of_id, self.state_directory)

    def ask(self, id_: str, request: Request) -> None:
        """Asks a running job to pause, or to be cancelled. It answers by ending; a later request takes the place.

        Raises:
            InvalidArgumentError: there is no such job, or it does not run.
            JournalError: the request cannot be written.
        """
        job = self.get(id_)
        if job.state != "running" or job.opened is None:
            raise InvalidArgumentError(
                f"job {id_}", "a running job", f"one that is {job.state}", "there is nothing to ask it"
            )
        path = os.path.join(job.directory, "request")
        new = f"{path}.{os.getpid()}"
        told = {**request._asdict(), "pid": job.opened.pid, "since_s": job.opened.since_s}
        try:
            self._disk.unlink(new)
            fd = self._disk.open(new, is_new=True)
            try:
                self._disk.write(fd, json.dumps(told).encode(), 0)
            finally:
                self._disk.close(fd)
            self._disk.rename(new, path)
        except OSError as error:
            raise JournalError(
                f"job {id_}: expected to write {path!r}, found {error.strerror}; free the disk, then ask again"
            ) from None

    def cancel_stopped(self, id_: str, run: Run, uploads: str = KEEP) -> None:
        """Says that a job that does not run is cancelled; of one that is done there is nothing to cancel.

        Args:
            uploads: `ABORT` where the caller has aborted those that were begun.

        Raises:
            As `resume`.
        """
        self.resume(id_, run).end(run.since_s, "aborted" if uploads == ABORT else "cancelled")

    def forget(self, id_: str, *, with_uploads: bool = False) -> list[str]:
        """Deletes what there is of a job; what others put into its directory stays.

        Args:
            with_uploads: also where journals of begun uploads are left. Their parts stay at the service, where they
                cost money until they are aborted.

        Returns:
            What was left, by path.

        Raises:
            InvalidArgumentError: there is no such job, or journals of uploads are left.
            JournalLockedError: it runs.
            JournalError: something cannot be deleted.
        """
        self._check(id_)
        directory, path = self._of(id_), self._log(id_)
        fd = open_locked(path, self._disk)
        try:
            uploads = _journals(directory)
            if uploads and not with_uploads:
                raise InvalidArgumentError(
                    f"job {id_}", "no upload that was begun and not ended", f"{len(uploads)} in {directory}/uploads",
                    "resume the job, or cancel it and abort them",
                )  # fmt: skip
            others = []
            folder = os.path.join(directory, "uploads")
            for name in _names(folder):
                self._disk.unlink(os.path.join(folder, name)) if _is_upload_record(name) else others.append(
                    os.path.join(folder, name)
                )
            with contextlib.suppress(OSError):
                os.rmdir(folder)
            for name in _names(directory):
                if _is_ours(name):
                    self._disk.unlink(os.path.join(directory, name))
                elif name not in ("log", "uploads"):
                    others.append(os.path.join(directory, name))
            self._disk.unlink(path)  # Why last: as long as there is a log, there is a job to forget
            with contextlib.suppress(OSError):
                os.rmdir(directory)
            return others
        except OSError as error:
            raise JournalError(
                f"job {id_}: expected to delete it, found {error.strerror}; change the mode of {directory!r}"
            ) from None
        finally:
            self._disk.close(fd)

    @property
    def _jobs(self) -> str:
        return os.path.join(self.state_directory, "jobs")

    def _of(self, id_: str) -> str:
        return os.path.join(self._jobs, id_)

    def _log(self, id_: str) -> str:
        return os.path.join(self._of(id_), "log")

    def _check(self, id_: str) -> None:
        if not _ID.fullmatch(id_) or not os.path.exists(self._log(id_)):
            raise _unknown(id_, self.state_directory)

    def _opened(self, log: JobLog, id_: str, arguments: Arguments, run: Run, manifest_directory: str | None) -> Job:
        try:
            was, ended, began = log.state.opened, log.state.ended, log.state.began
            if began is not None and began.job_id != id_:
                raise JournalError(
                    f"job log {log.path!r}: expected job {id_}, found job {began.job_id}; move the log away"
                )
            # Why: the runs of a job follow each other also where the clock went back, and so do their manifests.
            since_s = max(run.since_s, was.since_s + 1) if was is not None else run.since_s
            opened = Opened(run.pid, since_s, run.boot, run.host)
            directory = manifest_directory or self._of(id_)
            # Of a job whose beginning is lost, all manifests count: it is not known which runs were its own.
            began_s = began.since_s if began is not None else since_s if was is None else 0
            if ended is not None and ended.ending in FINAL:
                log.restart(opened, beginning(id_, since_s, run.program, arguments.canonical()))
            else:
                if was is not None and ended is None and self._is_power_safe and os.path.isdir(directory):
                    sync_files(manifest_files(directory, run_name(was.since_s)), self._disk)
                log.claim(opened, beginning(id_, began_s, run.program, arguments.canonical()))
            manifest = Manifest(directory, run_name(since_s), is_power_safe=self._is_power_safe, disk=self._disk)
            return Job(log, id_, arguments, opened, manifest, self._disk)
        except BaseException:
            log.close()
            raise

    def _summary(self, id_: str, *, is_whole: bool) -> JobSummary:
        directory = self._of(id_)
        found = peek(self._log(id_), disk=self._disk)
        uploads = tuple(_journals(directory))
        if found.fault:
            word = "running" if found.is_held else "unreadable"
            return JobSummary(id_, word, directory, uploads=uploads, fault=found.fault)
        state, ended = found.state, found.ended
        assert state is not None
        word = "running" if found.is_held else "interrupted" if ended is None else ended.ending
        counts = ended or state.how_it_ended(0, "paused")
        text = state.whole_arguments()
        return JobSummary(
            id_, word, directory, (state.began.since_s or None) if state.began is not None else None,
            Arguments.parsed(text) if text is not None else None, state.opened if found.is_whole else None,
            None if ended is None else ended.since_s, counts.done, counts.skipped, counts.failed,
            tuple(state.failures.values()) if found.is_whole else (), uploads,
        )  # fmt: skip


def _absolute(source: str, directory: str) -> str:
    path = os.path.normpath(os.path.join(directory, source))
    return path + "/" if source.endswith("/") and path != "/" else path


def _make(directory: str) -> None:
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
    except OSError as error:
        raise JournalError(
            f"state directory {directory!r}: expected one that can be written, found {error.strerror}; name another "
            "one with --state-dir or XDG_STATE_HOME"
        ) from None


def _names(directory: str) -> Sequence[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return ()


def _is_upload_record(name: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{32}\.upload_record(\..*)?", name) is not None


def _journals(directory: str) -> list[str]:
    """Journals of uploads that were begun and not ended; not those that were kept aside."""
    folder = os.path.join(directory, "uploads")
    return [os.path.join(folder, n) for n in _names(folder) if re.fullmatch(r"[0-9a-f]{32}\.upload_record", n)]


def _is_ours(name: str) -> bool:
    """Is this a name of a job's directory, but for the log and the uploads?"""
    is_log = re.fullmatch(r"log\.(new|damaged(\.\d+)?)", name) is not None
    return is_log or re.fullmatch(r"request(\.\d+)?", name) is not None or is_manifest(name)


def _unknown(id_: str, directory: str) -> InvalidArgumentError:
    return InvalidArgumentError("job", "the id of a job", id_, f"`obs-engine jobs` lists those of {directory}")
