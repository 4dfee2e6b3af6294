"""`obs-engine cp` of many files: a job that may be killed, asked to pause, and gone on with."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import make_file, object_of, wait_until
from obs_engine.bulk.job import Jobs
from obs_engine.bulk.manifest import read_manifest
from obs_engine.testing import LocalObs

pytestmark = pytest.mark.timeout(110)

BUCKET = "jobs"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalObs]:
    with LocalObs(buckets=[BUCKET]) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_faults_left(server: LocalObs) -> Iterator[None]:
    yield
    server.set_faults([])
    server.clear_requests()


class Shell:
    """Runs the command in a world of its own."""

    def __init__(self, server: LocalObs, home: Path) -> None:
        self.state = home / "state"
        self.env = {
            **os.environ, "HOME": str(home), "XDG_STATE_HOME": str(self.state), "OBS_ENDPOINT": server.url,
            "OBS_ACCESS_KEY_ID": server.access_key, "OBS_SECRET_ACCESS_KEY": server.secret_key,
        }  # fmt: skip

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "obs_engine", *words]
        return subprocess.Popen(
            command, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return process.returncode, out, err

    @property
    def jobs(self) -> Jobs:
        return Jobs(str(self.state / "obs-engine"))


@pytest.fixture
def shell(server: LocalObs, tmp_path: Path) -> Shell:
    return Shell(server, tmp_path)


def tree(root: Path, count: int, seed: int, large: int = 2) -> dict[str, Path]:
    """Files of all sizes, some in folders with odd names, by their path below the root."""
    rng = random.Random(seed)
    folders = ["", "a/", "a/b c/", "ünïcode/", "日本/語/", "%20+&/"]
    found = {}
    for n in range(count):
        name = f"{rng.choice(folders)}{n} {rng.choice(['x', '~', '#', 'é'])}.dat"
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = rng.randrange(300_000, 900_000) if n < large else rng.choice([0, 1, rng.randrange(20_000)])
        found[name] = make_file(path, size, seed + n)
    return found


def test_a_tree_arrives_and_a_second_run_does_nothing(server: LocalObs, shell: Shell, tmp_path: Path) -> None:
    """Every file under its key; a manifest that accounts for each; and the same command again sends nothing."""
    files = tree(tmp_path / "tree", 60, 1)
    command = ("cp", "-r", f"{tmp_path}/tree/", f"obs://{BUCKET}/first", "--part-size", "0.1", "--quiet")
    status, out, _ = shell.run(*command, "--events", f"{tmp_path}/events")
    assert (status, "done: 60 files stored" in out) == (0, True), out
    for name, path in files.items():
        assert object_of(server, BUCKET, f"first/{name}") == path.read_bytes()
    (job,) = shell.jobs.all()
    listed = list(read_manifest(job.directory))
    assert Counter(one.outcome for one in listed) == {"succeeded": 60}
    assert {one.line.key for one in listed} == {f"first/{name}" for name in files}
    assert all(one.line.etag and one.line.request_id for one in listed)
    told = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert Counter(event["event"] for event in told) == {"began": 1, "file_done": 60, "ended": 1}
    assert (told[0]["event"], told[-1]["event"], told[-1]["stored"]) == ("began", "ended", 60)
    server.clear_requests()
    status, out, _ = shell.run(*command)
    assert status == 0
    assert server.requests("PutObject") == server.requests("UploadPart") == []


@pytest.mark.parametrize("seed", [1, 2])
def test_a_job_survives_kills(server: LocalObs, shell: Shell, tmp_path: Path, seed: int) -> None:
    """Killed again and again at seeded moments, through faults: at the end all is there, and listed once."""
    files = tree(tmp_path / "tree", 150, 100 * seed)
    rng, prefix = random.Random(seed), f"killed-{seed}"
    print(f"seed {seed}")
    server.set_faults([
        {"operation": "PutObject", "delay_s": 0.02},
        {"operation": ["PutObject", "UploadPart"], "probability": 0.05, "seed": seed, "reset": "before_reply"},
    ])  # fmt: skip
    command = (
        "cp", "-r", f"{tmp_path}/tree/", f"obs://{BUCKET}/{prefix}/", "--part-size", "0.1", "-j", "6", "--quiet"
    )  # fmt: skip
    for _ in range(5):
        stored = sum(r["status"] == 200 for r in server.requests("PutObject"))
        wanted = min(140, stored + rng.randrange(5, 30))
        process = shell.start(*command)
        wait_until(
            lambda w=wanted, p=process: p.poll() is not None  # type: ignore[misc]
            or sum(r["status"] == 200 for r in server.requests("PutObject")) >= w,
            "some files are stored",
        )
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    status, out, _ = shell.run(*command)
    assert status == 0, out
    for name, path in files.items():
        assert object_of(server, BUCKET, f"{prefix}/{name}") == path.read_bytes()
    (job,) = shell.jobs.all()
    listed = Counter(one.line.key for one in read_manifest(job.directory))
    assert listed == dict.fromkeys((f"{prefix}/{name}" for name in files), 1)
    again = Counter(r["key"] for r in server.requests("PutObject") if r["status"] == 200)
    assert max(again.values()) <= 6, "a kill costs what was in flight"
    assert sum(again.values()) <= len(files) + 5 * 6 * 16


def test_one_bad_file_fails_that_file(server: LocalObs, shell: Shell, tmp_path: Path) -> None:
    """The job goes on, says which, ends with 1; what is odd is never mangled; when mended, the rest is sent."""
    tree(tmp_path / "tree", 10, 5, large=0)
    (tmp_path / "tree" / "new\nline").write_text("x")
    bad = make_file(tmp_path / "tree" / "bad", 10, 1)
    server.set_faults([{"operation": "PutObject", "key": "bad/tree/bad", "status": 403, "code": "AccessDenied"}])
    command = ("cp", "-r", f"{tmp_path}/tree", f"obs://{BUCKET}/bad/", "--quiet")
    status, out, err = shell.run(*command)
    assert (status, "10 files stored" in out, "2 failed" in out) == (1, True, True), out
    assert "AccessDenied" in err
    assert "control characters" in err
    server.set_faults([])
    (tmp_path / "tree" / "new\nline").unlink()
    status, out, _ = shell.run(*command)
    assert (status, "done: 1 files stored" in out) == (0, True), out
    assert object_of(server, BUCKET, "bad/tree/bad") == bad.read_bytes()


def test_a_job_is_paused_and_resumed_by_its_id(server: LocalObs, shell: Shell, tmp_path: Path) -> None:
    """Asked from another process, it ends within seconds with 3; its id is enough to go on."""
    tree(tmp_path / "tree", 80, 7, large=0)
    server.set_faults([{"operation": "PutObject", "delay_s": 0.2}])
    process = shell.start("cp", "-r", f"{tmp_path}/tree/", f"obs://{BUCKET}/paused/", "-j", "2", "--quiet")
    wait_until(lambda: len(server.requests("PutObject")) >= 3, "it runs")
    job_id = shell.jobs.all()[0].job_id
    assert json.loads(shell.run("job", "show", job_id[:5], "--json")[1])["state"] == "running"
    assert shell.run("job", "pause", job_id[:5])[0] == 0
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, f"job {job_id} paused" in out) == (3, True), out
    server.set_faults([])
    status, out, _ = shell.run("job", "resume", job_id, "--quiet")
    assert (status, "done before" in out) == (0, True), out
    assert "done" in shell.run("jobs")[1]
    assert shell.run("job", "forget", job_id)[0] == 0
    assert shell.jobs.all() == []


def test_a_pause_need_not_wait_for_a_large_file(server: LocalObs, shell: Shell, tmp_path: Path) -> None:
    """Its parts are kept: the job goes on with them."""
    path = make_file(tmp_path / "large", 40 * 102_400, 3)
    server.set_faults([{"operation": "UploadPart", "delay_s": 0.3}])
    other = make_file(tmp_path / "other", 10, 4)
    how = ("--part-size", "0.1", "-j", "2", "--quiet")
    process = shell.start("cp", str(path), str(other), f"obs://{BUCKET}/large/", *how)
    wait_until(lambda: sum(r["status"] == 200 for r in server.requests("UploadPart")) >= 6, "it is under way")
    job_id = shell.jobs.all()[0].job_id
    assert shell.run("job", "pause", job_id)[0] == 0
    out, err = process.communicate(timeout=30)
    assert (process.returncode, "paused" in out) == (3, True), out + err
    assert len(shell.jobs.all()[0].uploads) == 1
    server.set_faults([])
    assert shell.run("job", "resume", job_id, "--part-size", "0.1", "--quiet")[0] == 0
    assert len(server.requests("Initiate")) == 1
    assert object_of(server, BUCKET, "large/large") == path.read_bytes()


def test_ctrl_c_ends_a_job_that_goes_on_later(server: LocalObs, shell: Shell, tmp_path: Path) -> None:
    """Status 3, and the command that goes on."""
    tree(tmp_path / "tree", 60, 9, large=0)
    server.set_faults([{"operation": "PutObject", "delay_s": 0.2}])
    command = ("cp", "-r", f"{tmp_path}/tree/", f"obs://{BUCKET}/cut/", "-j", "2", "--quiet")
    process = subprocess.Popen(
        [sys.executable, "-c", "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); "
         "runpy.run_module('obs_engine', run_name='__main__')", *command],
        env=shell.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: len(server.requests("PutObject")) >= 3, "it runs")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, "interrupted" in out, "Traceback" in err) == (3, True, False), out + err
    server.set_faults([])
    assert shell.run(*command)[0] == 0


def usage(shell: Shell, *words: str) -> Any:
    return shell.run("cp", *words)[::2]


def test_wrong_usage_starts_nothing(server: LocalObs, shell: Shell, tmp_path: Path) -> None:
    """A folder without -r, a pattern that fits nothing, a target that is none; a dry run sends nothing."""
    tree(tmp_path / "tree", 3, 3, large=0)
    for words in (
        (f"{tmp_path}/tree", f"obs://{BUCKET}/"), (f"{tmp_path}/*.no", f"obs://{BUCKET}/"),
        ("-r", f"{tmp_path}/tree", "s3://x/"), ("-r", f"{tmp_path}/missing", f"obs://{BUCKET}/"),
    ):  # fmt: skip
        status, err = usage(shell, *words)
        assert (status, err.startswith("obs-engine: ")) == (2, True), (words, status, err)
    status, out, _ = shell.run("cp", "-r", f"{tmp_path}/tree", f"obs://{BUCKET}/p/", "--dry-run")
    assert (status, "3 files" in out) == (0, True)
    assert server.requests() == []
    assert shell.jobs.all() == []
