"""The command, as a person runs it: cp, resume, journal dump; what they print, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from harness import is_equal, open_uploads
from obs_engine.checkpoint.records import VERSION, header
from obs_engine.testing import LocalObs

PARTS = 20


class Said(NamedTuple):
    status: int
    out: str
    err: str


def run(server: LocalObs, *words: object, cwd: Path | None = None) -> Said:
    """`obs-engine WORDS`, its keys in the environment."""
    environment = {
        **os.environ, "OBS_ENDPOINT": server.url, "OBS_ACCESS_KEY_ID": server.access_key,
        "OBS_SECRET_ACCESS_KEY": server.secret_key,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "obs_engine", *map(str, words)],
        env=environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert server.secret_key not in done.stdout + done.stderr
    return Said(done.returncode, done.stdout, done.stderr)


def interrupted(server: LocalObs, key: str, source: Path, stored: int = 8) -> Path:
    """A `cp` that was refused after some parts."""
    rule = {"operation": "UploadPart", "nth": list(range(stored + 1, 999)), "status": 403, "code": "AccessDenied"}
    server.set_faults([rule])
    said = run(server, "cp", source, f"obs://bench/{key}", "--part-size", 0.09765625, "-j", 1)
    assert (said.status, said.out) == (1, "")
    assert "AccessDenied" in said.err
    server.set_faults([])
    server.clear_requests()
    return Path(f"{source}.upload_record")


def test_cp_goes_on_where_it_stopped(server: LocalObs, key: str, source: Path) -> None:
    """The same command again sends the rest and says so."""
    interrupted(server, key, source)
    said = run(server, "cp", source, f"obs://bench/{key}", "-j", 2)
    assert said.status == 0, said.err
    assert f"{PARTS} parts  resumed 8" in said.out
    assert is_equal(server, "bench", key, source)


def test_resume_needs_a_record_or_the_users_word(server: LocalObs, key: str, source: Path) -> None:
    """Without either it says what to do; with --adopt it needs no record."""
    record = interrupted(server, key, source)
    record.unlink()
    said = run(server, "resume", source, f"obs://bench/{key}")
    assert said.status == 1
    assert "expected its record" in said.err
    assert "--adopt" in said.err
    assert not server.requests()
    said = run(server, "resume", source, f"obs://bench/{key}", "--adopt")
    assert said.status == 0, said.err
    assert f"{PARTS} parts  resumed 8 (8 found on the service)  sent 12" in said.out
    assert is_equal(server, "bench", key, source)
    assert open_uploads(server, "bench", key) == 0


def test_resume_takes_an_upload_id(server: LocalObs, key: str, source: Path) -> None:
    """A wrong one begins nothing; the right one continues."""
    record = interrupted(server, key, source)
    said = run(server, "journal", "dump", record, "--json")
    upload_id = json.loads(said.out)["state"]["upload_id"]
    record.unlink()
    wrong = run(server, "resume", source, f"obs://bench/{key}", "--upload-id", "F" * 32)
    assert wrong.status == 1
    assert "found none that may be listed" in wrong.err
    assert not server.requests("Initiate")
    right = run(server, "resume", source, f"obs://bench/{key}", "--upload-id", upload_id)
    assert right.status == 0, right.err
    assert is_equal(server, "bench", key, source)


def test_resume_continues_a_record(server: LocalObs, key: str, source: Path) -> None:
    """As cp does; here from the file's own folder, with a relative path."""
    interrupted(server, key, source)
    said = run(server, "resume", source.name, f"obs://bench/{key}", "--quiet", cwd=source.parent)
    assert said.status == 0, said.err
    assert "resumed 8" in said.out
    assert said.err == ""


def test_a_changed_file_is_restarted_or_refused(server: LocalObs, key: str, source: Path) -> None:
    """As asked: refused with a way out, or begun anew with a warning."""
    record = interrupted(server, key, source)
    source.write_bytes(source.read_bytes() + b"more")
    before = record.read_bytes()
    said = run(server, "cp", source, f"obs://bench/{key}", "--on-source-change", "refuse")
    assert said.status == 1
    assert "changed its size or modification time" in said.err
    assert record.read_bytes().startswith(before)
    said = run(server, "cp", source, f"obs://bench/{key}")
    assert said.status == 0
    assert "abort the old upload, begin a new one" in said.err
    assert is_equal(server, "bench", key, source)
    assert open_uploads(server, "bench", key) == 0


def test_dump_shows_a_journal(server: LocalObs, key: str, source: Path) -> None:
    """For people, a line a record; for programs, one JSON object; nothing of it a secret."""
    record = interrupted(server, key, source)
    said = run(server, "journal", "dump", record)
    assert said.status == 0
    lines = said.out.splitlines()
    assert lines[0].startswith("journal, version 3, ")
    assert lines[-1].startswith(f"8 of {PARTS} parts stored, ")
    assert sum("part stored" in line for line in lines) == 8
    assert f"key={key}" in said.out
    document = json.loads(run(server, "journal", "dump", record, "--json").out)
    assert document["damage"] is None
    assert document["torn_bytes"] == 0
    assert [r["type"] for r in document["records"]][:3] == ["opened", "binding", "initiated"]
    assert document["state"]["parts_stored"] == 8
    assert record.exists()


def test_dump_shows_what_is_left_of_a_damaged_journal(server: LocalObs, key: str, source: Path) -> None:
    """The place of the damage, the torn tail, and all sound records; the file is left as it is."""
    record = interrupted(server, key, source)
    data = bytearray(record.read_bytes())
    data[-60] ^= 1
    record.write_bytes(data + b"\x05\x00torn")
    said = run(server, "journal", "dump", record)
    assert said.status == 0
    assert f"DAMAGED at offset {len(data) - 96}: expected a sound record, found checksum" in said.out
    assert "torn: the last 6 bytes" in said.out
    assert f"7 of {PARTS} parts stored" in said.out
    document = json.loads(run(server, "journal", "dump", record, "--json").out)
    assert document["damage"]["offset"] == len(data) - 96
    assert document["torn_bytes"] == 6
    assert record.read_bytes() == data + b"\x05\x00torn"


@pytest.mark.parametrize("length", [0, 5, 16, 40, 60])
def test_dump_shows_the_beginning_of_a_journal(server: LocalObs, key: str, source: Path, length: int) -> None:
    """Cut anywhere, even in its header."""
    record = interrupted(server, key, source)
    os.truncate(record, length)
    for more in ([], ["--json"]):
        assert run(server, "journal", "dump", record, *more).status == 0


def test_dump_shows_a_record_of_the_sdk(server: LocalObs, tmp_path: Path) -> None:
    """What would be continued of it."""
    record = tmp_path / "r"
    record.write_text(
        '{"bucketName": "b", "objectKey": "k", "uploadFile": "f", "partEtags": [{"partNum": 1, "etag": "\\"aa\\""}], '
        '"uploadParts": [{"partNumber": 1, "offset": 0, "length": 10, "isCompleted": true}, '
        '{"partNumber": 2, "offset": 10, "length": 4, "isCompleted": true}], "uploadId": "U", "fileStatus": [14, 1.5]}'
    )
    document = json.loads(run(server, "journal", "dump", record).out)
    assert document["kind"] == "official SDK"
    assert (document["upload_id"], document["parts"], document["claimed"]) == ("U", {"1": '"aa"'}, [2])


@pytest.mark.parametrize("content", [None, b"notes", b"{}", header(VERSION + 1)])
def test_dump_refuses_other_files(server: LocalObs, tmp_path: Path, content: bytes | None) -> None:
    """A sentence and status 1, for a missing file, other kinds, and a later version."""
    path = tmp_path / "f"
    if content is not None:
        path.write_bytes(content)
    said = run(server, "journal", "dump", path)
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith("obs-engine: checkpoint file ")
