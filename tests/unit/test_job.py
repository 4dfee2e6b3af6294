"""Jobs: their ids, the state directory, what people are told of them, requests, manifests and events."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from obs_engine.bulk.events import Events
from obs_engine.bulk.file_table import DONE, FAILED, NONE, SKIPPED
from obs_engine.bulk.job import (
    ABORT,
    CANCEL,
    PAUSE,
    STATES,
    Arguments,
    Job,
    Jobs,
    Outcome,
    Request,
    Run,
    boot_id,
    job_id,
    state_directory,
)
from obs_engine.bulk.job_records import ENDINGS
from obs_engine.bulk.manifest import Line, Listed, Manifest, is_manifest, manifest_files, read_manifest, run_name
from obs_engine.checkpoint.disk import Disk
from obs_engine.errors import InvalidArgumentError, JournalError, JournalLockedError

ARGUMENTS = Arguments.of(["logs", "/data/"], "obs://b/p/", "https://obs.x.com", {"storage_class": "WARM"}, "/home/u")
JOB = job_id(ARGUMENTS)
NOW = 1790000000
LINE = Line("k", "/data/k", 10, '"aa"', "77", "v1", "r1", 0.25)


def run(since_s: int = NOW, boot: bytes = b"b" * 16) -> Run:
    return Run(since_s, "obs-engine 1", 4711, "host1", boot)


def outcome(key: str, cause: str = "") -> Outcome:
    return Outcome.of(LINE._replace(key=key, path=f"/data/{key}", cause=cause), 1, 2)


def knows(job: Job, key: str) -> int:
    told = outcome(key)
    return job.look(told.name, told.identity).outcome


def upload_record(job: Job) -> Path:
    """The journal of an upload that was begun."""
    os.makedirs(job.uploads, exist_ok=True)
    path = Path(job.uploads, "0123456789abcdef" * 2 + ".upload_record")
    path.touch()
    return path


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(str(tmp_path / "state"))


@pytest.fixture
def job(jobs: Jobs) -> Iterator[Job]:
    job = jobs.open(ARGUMENTS, run())
    yield job
    job.close()


# --- ids and places ---------------------------------------------------------------------------------------------


def test_the_id_follows_from_the_arguments() -> None:
    """12 hex digits, the same in every release; whatever changes what is uploaded changes it."""
    assert JOB == "c600593d453c"
    assert ARGUMENTS.sources == ("/home/u/logs", "/data/")
    same = Arguments.of(["./logs", "/data/./"], "obs://b/p/", "https://obs.x.com",
                        {"acl": None, "storage_class": "WARM"}, "/home/u")  # fmt: skip
    assert job_id(same) == JOB
    others = [
        ARGUMENTS._replace(sources=("/home/u/logs", "/data")), ARGUMENTS._replace(target="obs://b/p"),
        ARGUMENTS._replace(endpoint="http://obs.x.com"), ARGUMENTS._replace(options={}),
        ARGUMENTS._replace(sources=ARGUMENTS.sources[::-1]),
    ]  # fmt: skip
    assert len({JOB, *map(job_id, others)}) == 6


def test_arguments_come_back_from_their_text() -> None:
    """Names that are not UTF-8 as well; the text is ASCII."""
    odd = Arguments.of([os.fsdecode(b"/\xff\xfe"), "/é"], "obs://b/", "e", {"n": [1, None, "ü"], "x": True}, "/")
    assert odd.canonical().isascii()
    assert Arguments.parsed(odd.canonical()) == odd


@pytest.mark.parametrize("name", ["sk", "secret_key", "security_token", "Password", "access_key", "accesskey"])
def test_no_secret_is_an_argument(name: str) -> None:
    """An option whose name says that it is one is refused, without its value."""
    with pytest.raises(InvalidArgumentError, match="leave it out") as raised:
        Arguments.of(["/a"], "obs://b/", "e", {name: "hush"}, "/")
    assert "hush" not in str(raised.value)


def test_an_option_is_a_value_of_json() -> None:
    """Whatever is none is refused before anything is written."""
    for value in (object(), float("nan")):
        with pytest.raises(InvalidArgumentError, match="values of JSON"):
            Arguments.of(["/a"], "obs://b/", "e", {"x": value}, "/")


def test_where_jobs_are_kept() -> None:
    """As given, else as XDG says, but for a relative path there, else under the home directory."""
    assert state_directory("/given", {"XDG_STATE_HOME": "/x"}) == "/given"
    assert state_directory(None, {"XDG_STATE_HOME": "/x", "HOME": "/h"}) == "/x/obs-engine"
    assert state_directory(None, {"XDG_STATE_HOME": "x", "HOME": "/h"}) == "/h/.local/state/obs-engine"
    assert state_directory("", {"HOME": "/h"}) == "/h/.local/state/obs-engine"
    assert os.path.isabs(state_directory(None, {}))


def test_a_machine_has_a_boot_id() -> None:
    """The same as long as it runs."""
    assert boot_id() == boot_id() == Run.here(NOW, "p").boot
    assert len(boot_id()) == 16


def test_only_the_user_can_look_in(job: Job, jobs: Jobs) -> None:
    """Directories have mode 0700, files 0600."""
    job.succeeded([outcome("a")])
    for path in [Path(jobs.state_directory), *Path(jobs.state_directory).rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_state_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """With what can be done about it."""
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="expected one that can be written, found Not a directory; name another one"):
        Jobs(str(tmp_path / "file" / "state")).open(ARGUMENTS, run())
    with pytest.raises(JournalError, match="expected one that can be read, found Not a directory"):
        Jobs(str(tmp_path / "file")).all()


# --- a job and its runs -----------------------------------------------------------------------------------------


def test_a_job_goes_on_where_it_stopped(jobs: Jobs, job: Job) -> None:
    """The same arguments, or its id: what is done is not done again."""
    job.succeeded([outcome("a"), outcome("b")])
    job.skipped([outcome("c")])
    job.failed(outcome("d", "refused"))
    job.close()
    for begin in (lambda: jobs.open(ARGUMENTS, run(NOW + 1)), lambda: jobs.resume(JOB, run(NOW + 2))):
        again = begin()
        assert again.arguments == ARGUMENTS
        assert [knows(again, key) for key in "abcde"] == [DONE, DONE, SKIPPED, FAILED, NONE]
        again.close()


def test_a_job_that_was_aborted_begins_anew(jobs: Jobs, job: Job) -> None:
    """There is nothing to resume, and the old manifest counts no more."""
    job.succeeded([outcome("a")])
    job.end(NOW + 5, "aborted")
    with pytest.raises(InvalidArgumentError, match="found 'one that is aborted'"):
        jobs.resume(JOB, run())
    job = jobs.open(ARGUMENTS, run(NOW + 10))
    assert knows(job, "a") == NONE
    assert job.first_run == job.run == run_name(NOW + 10)
    assert list(read_manifest(job.directory, job.first_run)) == []
    job.close()


@pytest.mark.parametrize("ending", ["done", "failed", "paused", "cancelled"])
def test_a_job_that_may_go_on_keeps_what_is_done(jobs: Jobs, job: Job, ending: str) -> None:
    """After its end, as there may be new files; after failures, a pause, a cancellation that kept what was begun."""
    job.succeeded([outcome("a")])
    job.end(NOW + 5, ending)
    job = jobs.resume(JOB, run(NOW + 9))
    assert knows(job, "a") == DONE
    assert job.first_run == run_name(NOW)
    job.close()


def test_runs_follow_each_other_whatever_the_clock_says(jobs: Jobs, job: Job) -> None:
    """A run that begins earlier, or in the same second, is named as the later one."""
    job.close()
    for since_s in (NOW, NOW - 1000):
        again = jobs.open(ARGUMENTS, run(since_s))
        assert again.run > job.run
        again.close()
        job = again


def test_the_manifest_has_what_the_log_believes_when_the_machine_stopped(jobs: Jobs, job: Job) -> None:
    """What was not synced is sent again where the machine has another boot id; in the same, its lines are synced."""
    job.succeeded([outcome("a")])
    job.sync()
    job.succeeded([outcome("b")])
    job.close()
    job = jobs.open(ARGUMENTS, run(NOW + 1))
    assert (knows(job, "a"), knows(job, "b")) == (DONE, DONE)
    job.close()
    job = jobs.open(ARGUMENTS, run(NOW + 2, b"c" * 16))
    assert (knows(job, "a"), knows(job, "b")) == (DONE, NONE)
    job.close()


def test_without_its_arguments_a_job_is_resumed_by_its_command_alone(jobs: Jobs, job: Job) -> None:
    """A log that has lost its beginning still knows what is done."""
    job.succeeded([outcome("a")])
    job.close()
    path = Path(job.directory, "log")
    data = path.read_bytes()
    path.write_bytes(data[:20] + bytes(100) + data[120:])
    with pytest.raises(JournalError, match="found them lost; run the same command again"):
        jobs.resume(JOB, run(NOW + 1))
    job = jobs.open(ARGUMENTS, run(NOW + 1))
    assert knows(job, "a") == DONE
    assert [listed.line.key for listed in read_manifest(job.directory, job.first_run)] == ["a"]
    job.close()
    assert jobs.get(JOB).arguments == ARGUMENTS
    jobs.forget(JOB)


def test_the_log_of_another_job_is_refused(jobs: Jobs, job: Job) -> None:
    """A log that was put into the wrong directory."""
    job.close()
    other = ARGUMENTS._replace(target="obs://other/")
    directory = Path(job.directory).rename(Path(job.directory).with_name(job_id(other)))
    with pytest.raises(JournalError, match=f"expected job {job_id(other)}, found job {JOB}"):
        jobs.open(other, run())
    assert (directory / "log").exists()


def test_a_job_runs_once_at_a_time(jobs: Jobs, job: Job) -> None:
    """The second one is told who runs it."""
    with pytest.raises(JournalLockedError, match="process 4711 on host host1"):
        jobs.open(ARGUMENTS, run())
    with pytest.raises(JournalLockedError):
        jobs.forget(JOB)
    assert Path(job.directory, "log").exists()


# --- what people are told ---------------------------------------------------------------------------------------


def test_all_jobs_are_listed_with_their_state(jobs: Jobs) -> None:
    """Running, interrupted, unreadable, or as their last run ended; those that began last come first."""
    assert jobs.all() == []
    expected = {}
    running = None
    for number, state in enumerate(STATES):
        arguments = ARGUMENTS._replace(target=f"obs://{state}/")
        job = jobs.open(arguments, run(NOW + number))
        job.succeeded([outcome("a"), outcome("b")])
        job.failed(outcome("c", "refused"))
        if state in ENDINGS:
            job.end(NOW + 100, state)
        elif state == "running":
            running = job
        job.close() if state != "running" else None
        if state == "unreadable":
            Path(job.directory, "log").write_bytes(b"notes")
        expected[job.job_id] = state
    os.mkdir(os.path.join(jobs.state_directory, "jobs", "other"))
    os.mkdir(os.path.join(jobs.state_directory, "jobs", "f" * 12))
    listed = jobs.all()
    assert {job.job_id: job.state for job in listed} == expected
    readable = [job for job in listed if not job.fault]
    assert [job.since_s for job in readable] == sorted((job.since_s or 0 for job in readable), reverse=True)
    for job in readable:
        assert (job.done, job.failed, job.skipped) == ((2, 20), (1, 10), (0, 0))
        assert job.arguments is not None
        assert job.arguments.target == f"obs://{job.state}/"
        assert job.ended_s == (NOW + 100 if job.state in ENDINGS else None)
        whole = jobs.get(job.job_id)
        assert whole._replace(opened=None, failures=()) == job._replace(opened=None, failures=())
        assert [(failed.path, failed.cause) for failed in whole.failures] == [("/data/c", "refused")]
    (broken,) = [job for job in listed if job.fault]
    assert "found another file beginning with b'notes'" in broken.fault
    assert running is not None
    running.close()


def test_a_job_is_found_by_the_beginning_of_its_id(jobs: Jobs, job: Job) -> None:
    """Where there is exactly one."""
    assert jobs.find(JOB[:4]) == JOB
    for unknown in ("", "x", "../" + JOB):
        with pytest.raises(InvalidArgumentError, match="obs-engine jobs"):
            jobs.find(unknown)
        with pytest.raises(InvalidArgumentError, match="obs-engine jobs"):
            jobs.get(unknown)


# --- requests ---------------------------------------------------------------------------------------------------


def test_a_running_job_is_asked_by_a_file(jobs: Jobs, job: Job) -> None:
    """It looks for it, and answers by ending; the later request counts."""
    assert job.request() is None
    jobs.ask(JOB, Request(PAUSE))
    assert job.request() == job.request() == Request(PAUSE)
    jobs.ask(JOB, Request(CANCEL, ABORT))
    assert job.request() == Request(CANCEL, ABORT)
    job.end(NOW + 1, "aborted")
    assert jobs.get(JOB).state == "aborted"
    assert "request" not in os.listdir(job.directory)
    with pytest.raises(InvalidArgumentError, match="found 'one that is aborted'"):
        jobs.ask(JOB, Request(PAUSE))


@pytest.mark.parametrize(
    "told",
    [b"", b"{", b"[1]", b'{"what": "pause", "uploads": "keep"}',
     b'{"what": "stop", "uploads": "keep", "pid": 4711, "since_s": 1790000000}'],
)  # fmt: skip
def test_a_request_that_is_not_for_this_run_is_removed(job: Job, told: bytes) -> None:
    """One for an earlier run, or that nobody can read."""
    path = Path(job.directory, "request")
    path.write_bytes(told)
    assert job.request() is None
    assert not path.exists()


def test_a_job_that_does_not_run_is_cancelled_at_once(jobs: Jobs, job: Job) -> None:
    """Its log says so; one that is done has nothing to cancel."""
    job.close()
    jobs.cancel_stopped(JOB, run(NOW + 1))
    assert jobs.get(JOB).state == "cancelled"
    jobs.cancel_stopped(JOB, run(NOW + 2), ABORT)
    assert jobs.get(JOB).state == "aborted"
    with pytest.raises(InvalidArgumentError, match="aborted"):
        jobs.cancel_stopped(JOB, run(NOW + 3))


# --- forgetting -------------------------------------------------------------------------------------------------


def test_a_job_is_forgotten_without_a_trace(jobs: Jobs, job: Job) -> None:
    """Log, manifest, requests and what was kept aside; other jobs stay."""
    job.succeeded([outcome("a")])
    upload_record(job)
    os.unlink(upload_record(job))
    for name in ("log.damaged", "log.damaged.2", "log.new", "request", "request.12"):
        Path(job.directory, name).touch()
    job.close()
    jobs.open(ARGUMENTS._replace(target="obs://other/"), run()).close()
    assert jobs.forget(JOB) == []
    assert not os.path.exists(job.directory)
    assert len(jobs.all()) == 1
    with pytest.raises(InvalidArgumentError):
        jobs.forget(JOB)


def test_begun_uploads_are_not_forgotten_by_mistake(jobs: Jobs, job: Job) -> None:
    """Their parts would stay at the service, and cost money, with nobody who knows their ids."""
    record = upload_record(job)
    record.with_name(record.name + ".damaged").touch()
    job.close()
    assert jobs.get(JOB).uploads == (str(record),)
    with pytest.raises(InvalidArgumentError, match="resume the job, or cancel it and abort them"):
        jobs.forget(JOB)
    assert record.exists()
    assert jobs.forget(JOB, with_uploads=True) == []
    assert not os.path.exists(job.directory)


def test_what_others_put_there_stays(jobs: Jobs, job: Job) -> None:
    """It is told by path."""
    theirs = [Path(job.directory, "notes.txt"), Path(job.uploads, "notes")]
    os.mkdir(job.uploads)
    for path in theirs:
        path.touch()
    job.close()
    assert sorted(jobs.forget(JOB)) == sorted(map(str, theirs))
    assert all(path.exists() for path in theirs)
    assert jobs.all() == []


# --- manifest ---------------------------------------------------------------------------------------------------


def listed(directory: Path) -> dict[str, str]:
    return {told.line.key: told.outcome for told in read_manifest(str(directory))}


def test_lines_come_back_as_they_went(tmp_path: Path) -> None:
    """Three files a run, for grep; each line is JSON by itself, with names that are not UTF-8 as well."""
    odd = Line(os.fsdecode(b"\xff\n"), os.fsdecode(b"/\xfe"), 0, cause='refused "x"')
    manifest = Manifest(str(tmp_path / "m"), run_name(NOW))
    assert list(read_manifest(str(tmp_path / "m"))) == []
    manifest.write("succeeded", LINE)
    manifest.write("failed", odd)
    manifest.sync()
    manifest.close()
    names = sorted(os.listdir(tmp_path / "m"))
    assert names == ["20260921T141320Z.failed.jsonl", "20260921T141320Z.succeeded.jsonl"]
    assert all(map(is_manifest, names))
    assert list(read_manifest(str(tmp_path / "m"))) == [Listed("failed", odd), Listed("succeeded", LINE)]
    assert json.loads((tmp_path / "m" / names[1]).read_text()) == {
        "outcome": "succeeded", "key": "k", "path": "/data/k", "bytes": 10, "etag": '"aa"', "crc64": "77",
        "version_id": "v1", "request_id": "r1", "seconds": 0.25,
    }  # fmt: skip


def test_the_last_line_of_a_file_counts(tmp_path: Path) -> None:
    """A file that failed and then succeeded, or was sent twice by a kill between, is there once."""
    runs = [[("failed", "a"), ("succeeded", "b")], [("succeeded", "a")], [("skipped", "b")] * 2]
    for number, told in enumerate(runs):
        manifest = Manifest(str(tmp_path), run_name(NOW + number))
        for outcome_, key in told:
            manifest.write(outcome_, LINE._replace(key=key))
        manifest.close()
    assert [(t.line.key, t.outcome) for t in read_manifest(str(tmp_path))] == [("a", "succeeded"), ("b", "skipped")]
    assert [t.line.key for t in read_manifest(str(tmp_path), run_name(NOW + 2))] == ["b"]
    assert len(manifest_files(str(tmp_path), run_name(NOW + 1))) == 2


def test_a_line_that_a_crash_cut_is_none(tmp_path: Path) -> None:
    """And none that follows is lost for it."""
    path = tmp_path / "20260921T141320Z.succeeded.jsonl"
    path.write_bytes(b'{"outcome": "succeeded", "key": "a", "path"')
    for key in "bc":
        manifest = Manifest(str(tmp_path), run_name(NOW))
        manifest.write("succeeded", LINE._replace(key=key))
        manifest.close()
    with path.open("ab") as file:
        file.write(bytes(100) + b'\n[]\n{"outcome": "x"}\n')
        file.write(b'{"outcome": "succeeded", "key": "a", "path": "p", "bytes": 1, "x": 1}\n')
    assert listed(tmp_path) == {"b": "succeeded", "c": "succeeded"}
    (tmp_path / "notes.jsonl").write_text("x")
    assert listed(tmp_path) == {"b": "succeeded", "c": "succeeded"}


def test_a_manifest_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """The file is not said to be done: it is sent and listed again. What was said before counts."""

    class Full(Disk):
        lines = 0

        def append(self, fd: int, data: bytes) -> None:
            self.lines += 1
            if self.lines > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().append(fd, data)

    jobs = Jobs(str(tmp_path), disk=Full())
    job = jobs.open(ARGUMENTS, run())
    with pytest.raises(JournalError, match=r"manifest .*: expected to be written, found No space left on device"):
        job.succeeded([outcome("a"), outcome("b")])
    assert (knows(job, "a"), knows(job, "b")) == (DONE, NONE)
    job.close()
    with pytest.raises(InvalidArgumentError, match="one that can be made"):
        Manifest(str(tmp_path / "jobs" / JOB / "log" / "m"), run_name(NOW))
    with pytest.raises(InvalidArgumentError, match="expected a directory"):
        list(read_manifest(str(tmp_path / "none")))


def test_a_line_is_one_write(tmp_path: Path) -> None:
    """So a kill leaves whole lines; a short write is taken back."""
    path = str(tmp_path / "lines")
    disk = Disk()
    fd = disk.open_to_append(path)
    disk.append(fd, b"one\n")
    with pytest.MonkeyPatch.context() as patch:
        real = os.write
        patch.setattr(os, "write", lambda fd, data: real(fd, data[:2]))
        with pytest.raises(OSError, match="No space left"):
            disk.append(fd, b"two\n")
    disk.append(fd, b"three\n")
    disk.close(fd)
    assert Path(path).read_text() == "one\nthree\n"


# --- events -----------------------------------------------------------------------------------------------------


def test_events_are_lines_of_json_with_their_time(tmp_path: Path) -> None:
    """Appended to a file of mode 0600."""
    path, times = tmp_path / "events", iter([1.0004, 2.5])
    events = Events(str(path), lambda: next(times))
    events.tell("began", job=JOB, files=2)
    events.tell("file_done", key="é", bytes=10, seconds=0.5, cause=None)
    events.close()
    events.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    told: list[Any] = [json.loads(line) for line in path.read_text().splitlines()]
    assert told == [
        {"event": "began", "at": 1.0, "job": JOB, "files": 2},
        {"event": "file_done", "at": 2.5, "key": "é", "bytes": 10, "seconds": 0.5, "cause": None},
    ]


def test_a_reader_of_events_may_go_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The job goes on, and says once that no more are told."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    events = Events(str(path), lambda: 1.0)
    events.tell("began")
    assert os.read(reader, 100) == b'{"event": "began", "at": 1.0}\n'
    os.close(reader)
    with caplog.at_level(logging.WARNING, "obs_engine"):
        events.tell("progress", bytes=1)
        events.tell("ended")
    assert caplog.text.count("no more are told") == 1
    with pytest.raises(InvalidArgumentError, match="a file that can be written"):
        Events(str(tmp_path), lambda: 1.0)
