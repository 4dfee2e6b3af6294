"""`uploads`, `doctor`, `config`: what they say, what they do, and what they never do."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from harness import client_of, fetch, is_equal, open_uploads
from obs_engine.checkpoint.disk import Disk
from obs_engine.cli.inquiries import Stored, abort_upload, asking, stored_of
from obs_engine.cli.inquiries import open_uploads as listed_uploads
from obs_engine.cli.main import _group
from obs_engine.errors import ObsEngineError, ServiceError
from obs_engine.testing import LocalObs
from obs_engine.wire import requests
from obs_engine.wire.replies import ListedUpload, Reply
from obs_engine.wire.requests import Request

PARTS, STORED = 20, 4
SCREEN_LINES, SCREEN_COLUMNS = 24, 80
SECRET = "s3cretKey0123456789012345678901234567890"

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no configuration of whoever runs the tests."""
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.chdir(room)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    for name in ("ENDPOINT", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SECURITY_TOKEN", "ENGINE_PROFILE"):
        monkeypatch.delenv(f"OBS_{name}", raising=False)
    return room


def environment_of(server: LocalObs) -> dict[str, str]:
    return {
        "OBS_ENDPOINT": server.url, "OBS_ACCESS_KEY_ID": server.access_key, "OBS_SECRET_ACCESS_KEY": server.secret_key
    }  # fmt: skip


def run(server: LocalObs | None, *words: object, told: str = "", **environment: str) -> Result:
    """`obs-engine WORDS` in this process; its output may not hold a secret."""
    known = environment_of(server) if server else {}
    done = CliRunner().invoke(_group(), list(map(str, words)), input=told, env={**known, **environment})
    assert done.exception is None or isinstance(done.exception, (SystemExit, ObsEngineError)), done.exception
    said = f"{done.output}{done.exception}"
    assert SECRET not in said
    assert server is None or server.secret_key not in said
    return done


def begin(server: LocalObs, key: str) -> str:
    """An upload that nobody here has a record of; its id."""
    found = re.search(rb"<UploadId>(.*?)</UploadId>", fetch(server, requests.initiate("bench", key)))
    assert found is not None
    return found[1].decode()


def interrupt(server: LocalObs, key: str, source: Path) -> Path:
    """A `cp` that ended after some parts; its record."""
    nth = list(range(STORED + 1, 999))
    server.set_faults([{"operation": "UploadPart", "nth": nth, "status": 403, "code": "AccessDenied"}])
    run(server, "cp", source, f"obs://bench/{key}", "--part-size", 0.09765625, "-j", 1, "--quiet")
    server.set_faults([])
    server.clear_requests()
    return Path(f"{source}.upload_record")


def listing(server: LocalObs, prefix: str, *more: object) -> list[dict[str, Any]]:
    done = run(server, "uploads", "ls", f"obs://bench/{prefix}", "--json", *more)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


# --- uploads ls -----------------------------------------------------------------------------------------------------


def test_ls_tells_what_can_be_resumed_from_what_cannot(server: LocalObs, key: str, source: Path) -> None:
    """By the records in the directories that are named; with parts and bytes of each."""
    record = interrupt(server, f"{key}/mine", source)
    orphan = begin(server, f"{key}/orphan")
    mine, other = listing(server, key, "--records", source.parent)
    assert (mine["key"], mine["parts"], mine["stored_bytes"]) == (f"{key}/mine", STORED, STORED * 102_400)
    assert (mine["is_resumable"], mine["record"], mine["source"]) == (True, str(record), str(source))
    assert not mine["is_running"]
    assert (other["upload_id"], other["parts"], other["stored_bytes"]) == (orphan, 0, 0)
    assert (other["is_resumable"], other["record"]) == (False, None)
    assert 0 <= mine["age_s"] < 60
    assert [upload["key"] for upload in listing(server, key, "--records", source.parent, "--mine")] == [mine["key"]]
    assert listing(server, key, "--mine") == []


def test_ls_shows_a_line_for_each_and_a_sum(server: LocalObs, key: str, source: Path) -> None:
    """And where the record of what can be resumed is."""
    record = interrupt(server, f"{key}/mine", source)
    begin(server, f"{key}/\x1b[2Jorphan")
    said = run(server, "uploads", "ls", f"obs://bench/{key}", "--records", source.parent).stdout
    lines = said.splitlines()
    assert lines[0].split() == ["AGE", "PARTS", "STORED", "HERE", "KEY", "UPLOAD", "ID"]
    assert any("orphan" in line and r"\x1b[2Jorphan" in line for line in lines)
    assert f"its record is {record}" in said
    assert lines[-1] == "2 open, 1 of them resumable here, 400.0 KiB stored"
    assert "\x1b" not in said


def test_ls_lives_without_the_permission_to_list_parts(server: LocalObs, key: str) -> None:
    """Parts and bytes are then unknown, and said to be."""
    begin(server, key)
    server.set_faults([{"operation": "ListParts", "status": 403, "code": "AccessDenied"}])
    assert listing(server, key)[0]["parts"] is None
    said = run(server, "uploads", "ls", f"obs://bench/{key}").stdout
    assert "in 0 of them; the others' parts may not be listed" in said


def test_ls_says_what_is_missing(server: LocalObs) -> None:
    """A bucket that is not there, a permission, a directory: each with what to do."""
    assert "check the bucket's name" in str(run(server, "uploads", "ls", "obs://nobody").exception)
    assert "correct --records" in str(run(server, "uploads", "ls", "obs://bench", "--records", "none").exception)
    server.set_faults([{"operation": "ListUploads", "status": 403, "code": "AccessDenied"}])
    assert "ListBucketMultipartUploads" in str(run(server, "uploads", "ls", "obs://bench").exception)


def test_other_files_are_no_records(server: LocalObs, key: str, source: Path, room: Path) -> None:
    """Damaged, empty, foreign or unreadable ones beside a good one change nothing."""
    record = interrupt(server, key, source)
    (room / "copy").write_bytes(record.read_bytes())
    (room / "broken.upload_record").write_bytes(b"OBSENG" + os.urandom(100))
    (room / "empty.upload_record").touch()
    (room / "fifo.upload_record.1").symlink_to("/dev/zero")
    (room / "photo.jpg").write_bytes(os.urandom(5000))
    assert [upload["record"] for upload in listing(server, key)] == ["./copy"]


def test_a_record_of_the_sdk_counts(server: LocalObs, key: str, room: Path) -> None:
    """Its upload can be resumed here, too."""
    upload_id = begin(server, key)
    record = {"bucketName": "bench", "objectKey": key, "uploadId": upload_id, "uploadFile": "f", "partEtags": []}
    (room / "f.upload_record").write_text(json.dumps(record))
    assert listing(server, key)[0]["is_resumable"]


# --- uploads abort --------------------------------------------------------------------------------------------------


def test_abort_ends_the_upload_that_is_named_and_no_other(server: LocalObs, key: str) -> None:
    """Of several of the same key; and says so."""
    first, second = begin(server, key), begin(server, key)
    done = run(server, "uploads", "abort", f"obs://bench/{key}", "--upload-id", first, "--yes")
    assert done.exit_code == 0
    assert f"aborted  obs://bench/{key}  {first}" in done.stdout
    assert len(server.requests("ListParts")) == 1
    assert [upload["upload_id"] for upload in listing(server, key)] == [second]


def test_abort_by_age_leaves_younger_ones_and_other_prefixes(server: LocalObs, key: str) -> None:
    """So long ago at least; nothing to abort is no error."""
    begin(server, f"{key}/a")
    begin(server, f"other-{key}")
    done = run(server, "uploads", "abort", f"obs://bench/{key}", "--older-than", "7d", "--yes")
    assert (done.exit_code, done.stdout) == (0, "nothing to abort\n")
    assert run(server, "uploads", "abort", f"obs://bench/{key}", "--older-than", "0m", "--yes").exit_code == 0
    assert listing(server, key) == []
    assert len(listing(server, f"other-{key}")) == 1


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="the system does not list locks")
def test_abort_by_age_leaves_what_runs_here(server: LocalObs, key: str, source: Path) -> None:
    """It is named by its upload id, or left alone."""
    record = interrupt(server, key, source)
    words = "uploads", "abort", f"obs://bench/{key}", "--older-than", "0m", "--yes", "--records", source.parent
    with open(record, "rb") as held:
        assert Disk().lock(held.fileno())
        (found,) = listing(server, key, "--records", source.parent)
        assert (found["is_resumable"], found["is_running"]) == (True, True)
        assert run(server, *words).stdout == "nothing to abort\n"
    assert "aborted  obs://" in run(server, *words).stdout


def test_abort_asks_nobody_where_nobody_is(server: LocalObs, key: str) -> None:
    """Without a terminal it needs --yes, and does nothing."""
    begin(server, key)
    done = run(server, "uploads", "abort", f"obs://bench/{key}", "--older-than", "0m", told="y\n")
    assert done.exit_code == 2
    assert "1 upload would be aborted: expected --yes" in done.output
    assert not server.requests("Abort")


@pytest.mark.parametrize(("answer", "left"), [("n", 1), ("y", 0)])
def test_abort_does_as_it_is_answered(server: LocalObs, key: str, answer: str, left: int) -> None:
    """At a terminal, after the list; Enter alone is a no."""
    begin(server, key)
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    words = ["uploads", "abort", f"obs://bench/{key}", "--older-than", "0m"]
    done = subprocess.run(
        [sys.executable, "-m", "obs_engine", *words], env={**os.environ, **environment_of(server)}, stdin=theirs,
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert "Abort 1 upload?" in done.stdout
    assert ("nothing was aborted" in done.stdout) is bool(left)
    assert open_uploads(server, "bench", key) == left


def test_abort_says_what_it_does_not_find_or_may_not_do(server: LocalObs, key: str) -> None:
    """A wrong id, no id, a refusal: exit status above 0, and the rest is still done."""
    begin(server, key)
    target = f"obs://bench/{key}"
    assert "found no such one" in str(run(server, "uploads", "abort", target, "--upload-id", "F" * 32).exception)
    assert run(server, "uploads", "abort", target).exit_code == 2
    begin(server, key)
    server.set_faults([{"operation": "Abort", "nth": 1, "status": 403, "code": "AccessDenied"}])
    done = run(server, "uploads", "abort", target, "--older-than", "0m", "--yes")
    assert done.exit_code == 1
    assert "AbortMultipartUpload" in done.stderr
    assert done.stdout.count("aborted  obs://") == 1


# --- uploads adopt --------------------------------------------------------------------------------------------------


def test_adopt_continues_an_upload_without_a_record(server: LocalObs, key: str, source: Path) -> None:
    """What the service has of it is not sent again."""
    interrupt(server, key, source).unlink()
    (found,) = listing(server, key)
    done = run(server, "uploads", "adopt", source, f"obs://bench/{key}", "--upload-id", found["upload_id"], "--quiet")
    assert done.exit_code == 0, done.output
    assert f"resumed {STORED} ({STORED} found on the service)  sent {PARTS - STORED}" in done.stdout
    assert is_equal(server, "bench", key, source)


# --- small requests -------------------------------------------------------------------------------------------------


def test_a_small_request_has_an_uploads_patience(server: LocalObs, key: str) -> None:
    """A busy service is asked again; the last reply counts, whatever it is."""
    with client_of(server) as client:
        ask = asking(client)
        server.set_faults([{"operation": "HeadBucket", "nth": [1, 2], "status": 503, "code": "SlowDown"}])
        assert ask(requests.head_bucket("bench")).status == 200
        assert len(server.requests("HeadBucket")) == 3
        assert ask(requests.head_bucket("nobody")).status == 404
        assert not abort_upload(ask, "bench", key, "F" * 32)
        assert stored_of(ask, "bench", ListedUpload(key, "F" * 32, "")) is None


def test_pages_are_followed_to_their_end() -> None:
    """Of uploads and of parts; pages that do not advance are an error and not an endless wait."""

    def page(inner: str, root: str) -> Reply:
        return Reply(200, body=f"<{root}>{inner}</{root}>".encode())

    def uploads(request: Request) -> Reply:
        marker = dict(request.query).get("key-marker")
        key, more = ("b", "") if marker else ("a", "<IsTruncated>true</IsTruncated><NextKeyMarker>a</NextKeyMarker>")
        return page(f"<Upload><Key>{key}</Key><UploadId>1</UploadId></Upload>{more}", "ListMultipartUploadsResult")

    def parts(request: Request) -> Reply:
        marker = int(dict(request.query)["part-number-marker"] or 0)
        part = f"<Part><PartNumber>{marker + 1}</PartNumber><Size>5</Size><ETag>e</ETag></Part>"
        more = f"<IsTruncated>true</IsTruncated><NextPartNumberMarker>{marker + 1}</NextPartNumberMarker>"
        return page(part + (more if marker < 2 else ""), "ListPartsResult")

    def stuck(_: Request) -> Reply:
        more = "<IsTruncated>true</IsTruncated><NextKeyMarker>a</NextKeyMarker>"
        return page(more, "ListMultipartUploadsResult")

    assert [upload.key for upload in listed_uploads(uploads, "bench")] == ["a", "b"]
    assert stored_of(parts, "bench", ListedUpload("a", "1", "")) == Stored(3, 15)
    with pytest.raises(ServiceError, match="pages that advance"):
        list(listed_uploads(stuck, "bench"))


def test_the_bucket_is_asked_which_signature_it_understands(server: LocalObs, key: str) -> None:
    """Once, before the first request to it, as before an upload; a bucket that is missing is told as such."""
    upload_id = begin(server, key)
    server.clear_requests()
    with client_of(server, server=server.virtual_url) as client:
        ask = asking(client)
        assert [upload.upload_id for upload in listed_uploads(ask, "bench", key)] == [upload_id]
        assert abort_upload(ask, "bench", key, upload_id)
        assert ask(requests.head_bucket("nobody")).status == 404
    asked = [(request["operation"], request["bucket"]) for request in server.requests()]
    assert asked == [("ApiVersion", "bench"), ("ListUploads", "bench"), ("Abort", "bench"), ("ApiVersion", "nobody")]


# --- doctor ---------------------------------------------------------------------------------------------------------


def doctor(server: LocalObs | None, *words: object, **environment: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit status, and the findings by their names."""
    done = run(server, "doctor", "--json", *words, **environment)
    report = json.loads(done.stdout)
    assert report.pop("is_fine") is (done.exit_code == 0)
    return done.exit_code, {finding["name"]: finding for findings in report.values() for finding in findings}


def test_doctor_measures_this_machine(room: Path) -> None:
    """Software, limits, rates; its file is gone afterwards."""
    status, found = doctor(None)
    assert status == 0
    for name in ("MD5", "CRC-64", "xxh3-128", "loopback", "disk of ."):
        assert found[name]["bytes_per_s"] > 1e6, name
    assert found["libcurl"]["tls"]
    assert found["cores"]["workers"] >= 1
    assert not list(room.iterdir())


def test_doctor_tells_what_the_keys_may_do(server: LocalObs) -> None:
    """Whether they may upload only with --write, by an upload that is aborted."""
    status, found = doctor(server, "obs://bench", "--no-rates")
    assert status == 0
    assert found["PutObject"]["permission"] == "unknown"
    assert not server.requests("Initiate")
    status, found = doctor(server, "obs://bench", "--no-rates", "--write")
    assert status == 0
    names = "HeadBucket ListBucketMultipartUploads GetObject PutObject ListMultipartUploadParts AbortMultipartUpload"
    assert {found[name]["permission"] for name in names.split()} == {"allowed"}
    (probe,) = server.requests("Initiate")
    assert probe["key"].startswith(".obs-engine-doctor-")
    assert open_uploads(server, "bench", probe["key"]) == 0
    assert abs(found["clock"]["offset_s"]) < 2


@pytest.mark.parametrize(
    ("operation", "name", "status"),
    [
        ("Initiate", "PutObject", 1), ("ListUploads", "ListBucketMultipartUploads", 0),
        ("HeadBucket", "HeadBucket", 0), ("HeadObject", "GetObject", 0),
        ("ListParts", "ListMultipartUploadParts", 0), ("Abort", "AbortMultipartUpload", 1),
    ],
)  # fmt: skip
def test_doctor_tells_what_is_denied_and_what_it_is_for(
    server: LocalObs, operation: str, name: str, status: int
) -> None:
    """Only what an upload cannot do without is a failure; or an upload that was left open."""
    server.set_faults([{"operation": operation, "status": 403, "code": "AccessDenied"}])
    found_status, found = doctor(server, "obs://bench", "--no-rates", "--write")
    assert (found_status, found[name]["permission"]) == (status, "denied")
    assert found[name]["advice"].startswith("needed for ")


def test_doctor_tells_wrong_keys_from_a_missing_permission(server: LocalObs) -> None:
    """A wrong secret, an unknown key, a bucket that is not there: each has its own advice, and is a failure."""
    status, found = doctor(server, "obs://bench", "--no-rates", OBS_SECRET_ACCESS_KEY="wrong")
    assert (status, "GetObject" in found) == (1, False)
    assert "secret key is another one" in found["ListBucketMultipartUploads"]["advice"]
    status, found = doctor(server, "obs://bench", "--no-rates", OBS_ACCESS_KEY_ID="AKUNKNOWN")
    assert status == 1
    assert "no such access key" in found["ListBucketMultipartUploads"]["advice"]
    status, found = doctor(server, "obs://nobody", "--no-rates")
    assert status == 1
    assert "no bucket 'nobody'" in found["ListBucketMultipartUploads"]["text"]


def test_doctor_tells_a_way_that_ends(free_port: int) -> None:
    """At the first step that fails; what is behind it is not asked."""
    status, found = doctor(None, "obs://bench", "--no-rates", "--endpoint", f"http://127.0.0.1:{free_port}")
    assert (status, found["connect"]["verdict"]) == (1, "bad")
    assert "keys" not in found


def test_doctor_goes_the_way_that_an_upload_goes(server: LocalObs) -> None:
    """By the bucket's own name, where the host is one."""
    status, found = doctor(server, "obs://bench", "--no-rates", OBS_ENDPOINT=server.virtual_url)
    assert status == 0
    assert found["DNS"]["text"].startswith("bench.localhost is ")
    assert found["HeadBucket"]["permission"] == "allowed"


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port on which nobody listens, and that nobody else gets meanwhile."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_doctor_looks_at_the_clock() -> None:
    """One that is an hour off is said to be, and costs no other finding but those of HEAD."""
    with LocalObs(buckets=["bench"], clock_offset_s=-3600) as server:
        status, found = doctor(server, "obs://bench", "--no-rates", "--write")
    assert status == 0
    assert (found["clock"]["verdict"], round(found["clock"]["offset_s"] / 10)) == ("notice", 360)
    assert found["PutObject"]["permission"] == "allowed"


def test_doctor_for_people_has_a_mark_for_each_line(server: LocalObs) -> None:
    """And words where the terminal has no such letters."""
    said = run(server, "doctor", "obs://bench", "--no-rates").stdout
    assert "  ✓ libcurl: " in said
    assert "  ! PutObject: unknown" in said
    assert "begin and abort one: --write" in said


def test_doctor_needs_an_endpoint_for_a_bucket() -> None:
    """And says so before it measures."""
    assert "--endpoint" in str(run(None, "doctor", "obs://bench").exception)


# --- config ---------------------------------------------------------------------------------------------------------


def test_a_profile_serves_every_command(server: LocalObs, key: str, source: Path) -> None:
    """Endpoint, keys and defaults of an upload; `show` shows no secret."""
    for name, value in (("endpoint", server.url), ("access_key", server.access_key), ("part_size", "100K")):
        assert run(None, "config", "set", "--profile", "work", name, value).exit_code == 0
    done = run(None, "config", "set", "--profile", "work", "secret_key", told=f"{server.secret_key}\n")
    assert done.exit_code == 0
    assert server.secret_key not in done.output
    said = run(server, "config", "show").stdout
    assert "[work]" in said
    assert "secret_key = ****\n" in said
    assert f"access_key = ****{server.access_key[-4:]}\n" in said
    done = run(None, "cp", source, f"obs://bench/{key}", "--quiet", "--profile", "work")
    assert f"{PARTS} parts" in done.stdout, done.output
    done = run(None, "uploads", "ls", "obs://bench/nothing", OBS_ENGINE_PROFILE="work")
    assert (done.exit_code, done.stdout) == (0, "0 open, 0 of them resumable here, 0 B stored\n")


def test_a_secret_on_the_command_line_is_refused() -> None:
    """Others have seen it already, so it should be replaced; nothing is written, nothing echoed."""
    done = run(None, "config", "set", "secret_key", SECRET)
    assert "expected no value on the command line" in str(done.exception)
    assert "not there yet" in run(None, "config", "show").stdout


def test_a_profile_that_is_not_there_is_named(server: LocalObs) -> None:
    """With those that are."""
    run(None, "config", "set", "region", "a")
    said = str(run(server, "uploads", "ls", "obs://bench", "--profile", "wrok").exception)
    assert "profile 'wrok'" in said
    assert "found default there" in said


def test_a_file_that_nobody_asked_for_is_in_nobodys_way(
    server: LocalObs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who runs as another user, perhaps without a home, has no profile; `set` then says what it needs."""
    (tmp_path / "file").touch()
    words = "uploads", "ls", "obs://bench/nothing"
    assert run(server, *words, XDG_CONFIG_HOME=str(tmp_path / "file")).exit_code == 0
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert run(server, *words, XDG_CONFIG_HOME="").exit_code == 0
    assert "set HOME" in str(run(None, "config", "set", "region", "a", XDG_CONFIG_HOME="").exception)


def test_others_who_may_read_secrets_are_pointed_out(server: LocalObs) -> None:
    """On every use, until it is put right."""
    run(None, "config", "set", "secret_key", told=SECRET)
    path = Path(run(None, "config", "path").stdout.strip())
    path.chmod(0o640)
    assert f"chmod 600 {path}" in run(server, "uploads", "ls", "obs://bench/nothing").stderr
    assert f"chmod 600 {path}" in run(None, "config", "show").stderr
    path.chmod(0o600)
    assert not run(server, "uploads", "ls", "obs://bench/nothing").stderr


def test_import_takes_obsutils_file(room: Path) -> None:
    """What can be read of it; encrypted keys are named, and not shown."""
    (room / "old").write_text(f"endpoint=obs.x.com\nak=AKEXAMPLE00000000001\nsk={SECRET}\n")
    run(None, "config", "set", "security_token", "--profile", "old", told="of other keys")
    done = run(None, "config", "import", "old", "--profile", "old")
    assert done.exit_code == 0
    assert "secret_key = ****" in done.stdout
    assert "security_token" not in run(None, "config", "show", "--profile", "old").stdout
    (room / "new").write_text("endpoint=obs.x.com\nak=Zm9vYmFyYmF6Zm9vYmFy==\nsk=YmFyZm9v==\n")
    done = run(None, "config", "import", "new", "--profile", "new")
    assert "endpoint = obs.x.com" in done.stdout
    assert "left out ak: " in done.stderr
    assert "Zm9v" not in done.output
    assert "[new]\nendpoint = obs.x.com\n" in run(None, "config", "show").stdout
    assert "found No such file" in str(run(None, "config", "import", "none").exception)


def test_a_value_can_be_taken_out_again() -> None:
    """And one that is not there is no error."""
    run(None, "config", "set", "region", "a")
    assert "is gone" in run(None, "config", "unset", "region").stdout
    assert "has no region" in run(None, "config", "unset", "region").stdout


# --- help -----------------------------------------------------------------------------------------------------------

HELPS = [
    "uploads", "uploads ls", "uploads abort", "uploads adopt", "doctor", "config", "config set", "config unset",
    "config show", "config import", "config path",
]  # fmt: skip


@pytest.mark.parametrize("words", HELPS)
def test_help_fits_a_screen_and_has_an_example(words: str) -> None:
    """24 lines of 80 columns, under which the next prompt stands."""
    done = CliRunner().invoke(_group(), [*words.split(), "--help"], terminal_width=SCREEN_COLUMNS)
    lines = done.stdout.splitlines()
    assert len(lines) < SCREEN_LINES, done.stdout
    assert max(map(len, lines)) <= SCREEN_COLUMNS
    assert any(line.strip() in ("Example:", "Examples:") for line in lines)


def test_every_command_of_these_has_its_help_looked_at() -> None:
    """A new one is not forgotten."""
    group = _group()
    found = []
    for name in ("uploads", "doctor", "config"):
        command = group.commands[name]
        inner = command.commands if isinstance(command, click.Group) else {}
        found += [name, *(f"{name} {other}" for other in inner)]
    assert sorted(found) == sorted(HELPS)
