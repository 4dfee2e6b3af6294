"""Uploads through all processes, against the local server."""

from __future__ import annotations

import hashlib
import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import (
    Caller,
    acknowledged,
    client_arguments,
    client_of,
    fetch,
    is_alive,
    is_equal,
    make_file,
    open_uploads,
    wait_until,
)
from obs_engine import (
    EngineDiedError,
    EngineOptions,
    InvalidArgumentError,
    JournalError,
    JournalLockedError,
    JournalVersionError,
    ServiceError,
    SourceChangedError,
    TransportError,
)
from obs_engine.checkpoint.journal import peek
from obs_engine.testing import LocalObs
from obs_engine.wire import requests

PART = 102_400


def upload(server: LocalObs, key: str, source: Path, *more: Any, **named: Any) -> Any:
    arguments: dict[str, Any] = {"partSize": PART, "taskNum": 4} | named
    client = arguments.pop("client", {})
    with client_of(server, **client) as caller:
        return caller.uploadFile("bench", key, source, *more, **arguments)


def interrupted(server: LocalObs, key: str, source: Path, stored: int, **named: Any) -> Path:
    """An upload with a checkpoint that failed when `stored` parts (or a few more) were acknowledged."""
    server.set_faults([{"operation": "UploadPart", "nth": list(range(stored + 1, 999)), "status": 403,
                        "code": "AccessDenied"}])  # fmt: skip
    with pytest.raises(ServiceError) as caught:
        upload(server, key, source, enableCheckpoint=True, **named)
    assert caught.value.errorCode == "AccessDenied"
    assert caught.value.checkpoint_file
    server.set_faults([])
    server.clear_requests()
    return Path(caught.value.checkpoint_file)


def recorded_parts(source: Path) -> int:
    """Parts in the file's default record."""
    state = peek(f"{source}.upload_record")
    return len(state.parts) if state is not None else 0


# --- fresh uploads ----------------------------------------------------------------------------------------------


def test_a_fresh_upload_sends_what_it_must_and_nothing_else(server: LocalObs, key: str, source: Path) -> None:
    """One Initiate, each part once, one Complete, on at most taskNum connections; the result is the document's."""
    result = upload(server, key, source, metadata={"origin": "test"})
    log = server.requests()
    assert Counter(r["operation"] for r in log) == {"Initiate": 1, "UploadPart": 20, "Complete": 1}
    assert sorted(r["part_number"] for r in log if r["operation"] == "UploadPart") == list(range(1, 21))
    assert len({r["connection"] for r in log}) <= 4
    assert is_equal(server, "bench", key, source)
    assert result.status == 200
    assert result.body.bucket == "bench"
    assert result.body.key == key
    digests = b"".join(
        hashlib.md5(source.read_bytes()[offset : offset + PART]).digest() for offset in range(0, 20 * PART, PART)
    )
    assert result.body.etag == f'"{hashlib.md5(digests).hexdigest()}-20"'
    assert result.requestId
    assert result.body.objectUrl == f"{server.url}/bench/{key}"
    assert (result.report.parts, result.report.parts_sent, result.report.parts_resumed) == (20, 20, 0)


@pytest.mark.parametrize("task_num", [1, 2, 3, 5, 16, 10_000])
def test_connections_never_exceed_task_num(server: LocalObs, key: str, source: Path, task_num: int) -> None:
    """Whatever the number of workers, and however their loads shift."""
    upload(server, key, source, taskNum=task_num, client={"engine": EngineOptions(processes=3)})
    assert len({r["connection"] for r in server.requests()}) <= task_num
    assert is_equal(server, "bench", key, source)


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1])
def test_small_files_upload_correctly(server: LocalObs, key: str, tmp_path: Path, size: int) -> None:
    """Empty, one byte, just below, at and above one part."""
    source = make_file(tmp_path / "f", size, seed=size)
    result = upload(server, key, source, checkSum=True, enableCheckpoint=True)
    assert result.report.parts == max(1, -(-size // PART))
    assert is_equal(server, "bench", key, source)


@pytest.mark.parametrize("signature", ["obs", "v2", "v4"])
@pytest.mark.parametrize("is_virtual", [True, False])
def test_every_signature_in_both_styles(
    server: LocalObs, key: str, source: Path, signature: str, is_virtual: bool
) -> None:
    """Odd keys included; the server verifies each signature."""
    key = f"{key}/ü +%25~(中文)//../x"
    url = server.virtual_url if is_virtual else server.url
    result = upload(server, key, source, client={"server": url, "signature": signature}, encoding_type="url")
    assert result.body.key == key
    expected = "v2" if signature == "obs" and not is_virtual else signature
    assert {r["signature"] for r in server.requests() if r["operation"] != "ApiVersion"} == {expected}
    assert is_equal(server, "bench", key, source)


def test_a_wrong_secret_is_a_service_error(server: LocalObs, key: str, source: Path) -> None:
    """The error carries the service's own words, and no secret."""
    with pytest.raises(ServiceError, match="initiateMultipartUpload failed") as caught:
        upload(server, key, source, enableCheckpoint=True, client={"secret_access_key": "not-the-secret"})
    assert os.listdir(source.parent) == [source.name]  # no record of what never began
    assert caught.value.checkpoint_file is None
    assert (caught.value.status, caught.value.errorCode) == (403, "SignatureDoesNotMatch")
    assert caught.value.requestId
    assert not caught.value.is_retryable
    assert "not-the-secret" not in str(caught.value)


def test_a_missing_bucket_is_found_by_initiate_or_before(server: LocalObs, key: str, source: Path) -> None:
    """With `check_bucket` a HEAD comes first, as in the SDK, and its message is the SDK's."""
    with client_of(server) as client, pytest.raises(ServiceError, match=r"initiate.*NoSuchBucket"):
        client.uploadFile("no-such-bucket", key, source)
    checking = client_of(server, engine=EngineOptions(check_bucket=True))
    with checking as client, pytest.raises(ServiceError, match=r"head bucket no-such-bucket failed.*Status:404"):
        client.uploadFile("no-such-bucket", key, source)


def test_progress_is_monotone_and_ends_at_the_total(server: LocalObs, key: str, source: Path) -> None:
    """Bytes stored, bytes in all, seconds; in the calling thread."""
    seen: list[tuple[int, int, float]] = []
    threads = set()

    def show(stored: int, total: int, seconds: float) -> None:
        threads.add(threading.current_thread())
        seen.append((stored, total, seconds))

    upload(server, key, source, progressCallback=show)
    size = source.stat().st_size
    assert seen[0][0] == 0
    assert seen[-1][:2] == (size, size)
    assert all(a[0] <= b[0] and a[2] <= b[2] for a, b in itertools.pairwise(seen))
    assert threads == {threading.current_thread()}


def test_a_callback_that_raises_fails_nothing(
    server: LocalObs, key: str, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and the upload succeeds."""
    result = upload(server, key, source, progressCallback=lambda *_: 1 / 0)
    assert result.status == 200
    assert len([r for r in caplog.records if "progressCallback" in r.message]) == 1


def test_tls_is_verified(key: str, source: Path, tmp_path: Path) -> None:
    """A certificate that nobody vouches for is refused before anything is sent; a named authority, or none, is not."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("127.0.0.1", "*.localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    pem = str(tmp_path / "server.pem")
    with LocalObs(buckets=["bench"], tls=(pem, pem)) as server:
        with pytest.raises(TransportError, match="certificate") as caught:
            upload(server, key, source)
        assert not caught.value.is_retryable
        assert server.requests() == []
        for verify in (str(tmp_path / "ca.pem"), False):
            assert upload(server, key, source, client={"ssl_verify": verify}).status == 200
        with pytest.raises(TransportError):  # the right authority, the wrong name
            upload(server, key, source, client={"ssl_verify": str(tmp_path / "ca.pem"),
                                                "server": server.url.replace("127.0.0.1", "localhost"),
                                                "path_style": True})  # fmt: skip


# --- faults -----------------------------------------------------------------------------------------------------

FAULTS: dict[str, list[dict[str, Any]]] = {
    "a part is refused for now": [{"operation": "UploadPart", "nth": [3, 9], "status": 503, "code": "SlowDown"}],
    "early, while the body is on its way": [
        {"operation": "UploadPart", "nth": [2, 7], "status": 503, "early": True, "code": "SlowDown"}
    ],
    "parts are reset": [{"operation": "UploadPart", "nth": [1, 5], "reset": {"after_body_bytes": 5000}}],
    "a part's answer is lost": [{"operation": "UploadPart", "nth": [4], "reset": "after_work"}],
    "a kept connection is closed": [{"hang_up_after": 3}],
    "initiate is refused for now": [{"operation": "Initiate", "nth": [1, 2], "status": 500}],
    "complete is refused for now": [{"operation": "Complete", "nth": [1, 2], "status": 503, "code": "SlowDown"}],
    "complete answers 200 with an error": [
        {"operation": "Complete", "nth": [1], "error_in_200": True, "code": "InternalError"}
    ],
    "complete's answer is lost": [{"operation": "Complete", "nth": [1], "reset": "after_work"}],
    "complete's answer is cut": [{"operation": "Complete", "nth": [1], "truncate": 40}],
}


@pytest.mark.parametrize("is_checkpoint", [True, False])
@pytest.mark.parametrize("rules", FAULTS.values(), ids=FAULTS)
def test_passing_faults_are_survived(
    server: LocalObs, key: str, source: Path, rules: list[dict[str, Any]], is_checkpoint: bool
) -> None:
    """The object is the file, and nothing is left open, with a progress callback or without."""
    server.set_faults(rules)
    result = upload(server, key, source, enableCheckpoint=is_checkpoint, progressCallback=lambda *_: None)
    assert result.status == 200
    assert any(r["fault"] for r in server.requests()) or "hang_up_after" in rules[0]
    assert is_equal(server, "bench", key, source)
    assert open_uploads(server, "bench", key) == 0


def test_a_complete_that_keeps_answering_200_with_an_error_is_no_success(
    server: LocalObs, key: str, source: Path
) -> None:
    """It is raised, and the checkpoint lets the next call finish."""
    server.set_faults([{"operation": "Complete", "error_in_200": True, "code": "InternalError"}])
    with pytest.raises(ServiceError, match=r"Complete.*InternalError"):
        upload(server, key, source, enableCheckpoint=True, client={"max_retry_count": 1})
    server.set_faults([])
    server.clear_requests()
    result = upload(server, key, source, enableCheckpoint=True)
    assert result.report.parts_sent == 0
    assert not server.requests("UploadPart")
    assert is_equal(server, "bench", key, source)


def test_a_refused_complete_is_returned_and_the_parts_are_kept(server: LocalObs, key: str, source: Path) -> None:
    """As in the SDK, Complete's refusal is a result, not an exception; unlike there, no progress is dropped."""
    server.set_faults([{"operation": "Complete", "status": 403, "code": "AccessDenied"}])
    result = upload(server, key, source, enableCheckpoint=True)
    assert (result.status, result.errorCode, result.body) == (403, "AccessDenied", None)
    server.set_faults([])
    assert upload(server, key, source, enableCheckpoint=True).report.parts_resumed == 20


def test_without_a_checkpoint_a_failed_upload_is_aborted(server: LocalObs, key: str, source: Path) -> None:
    """Nobody could continue it, and its parts would be billed."""
    server.set_faults([{"operation": "UploadPart", "nth": [7], "status": 403, "code": "AccessDenied"}])
    with pytest.raises(ServiceError, match="AccessDenied") as caught:
        upload(server, key, source)
    assert caught.value.part_number
    assert caught.value.checkpoint_file is None
    assert open_uploads(server, "bench", key) == 0


def test_an_unreachable_service_is_a_transport_error(key: str, source: Path) -> None:
    """It names the request and the host, and may be retried."""
    with LocalObs() as gone:
        url = gone.url
    with (
        client_of(gone, server=url, max_retry_count=0) as client,
        pytest.raises(TransportError, match="Initiate at 127"),
    ):
        client.uploadFile("bench", key, source)


def test_a_corrupted_etag_is_no_success(server: LocalObs, key: str, source: Path) -> None:
    """The service refuses to complete with an ETag that it did not give, and so nothing false is reported."""
    server.set_faults([{"operation": "UploadPart", "nth": [5], "corrupt": "etag"}])
    result = upload(server, key, source, enableCheckpoint=True, client={"engine": EngineOptions(verify="none")})
    assert result.status == 400
    assert result.errorCode == "InvalidPart"


# --- resuming ---------------------------------------------------------------------------------------------------


def test_a_refused_part_keeps_the_progress(server: LocalObs, key: str, source: Path) -> None:
    """A 403 in the middle is an error; the same call then sends what is missing, and removes the record."""
    record = interrupted(server, key, source, stored=8)
    assert record == Path(f"{source}.upload_record")
    stored = peek(str(record))
    assert stored is not None
    assert len(stored.parts) >= 5
    result = upload(server, key, source, enableCheckpoint=True, partSize=5 * PART, taskNum=2)
    assert result.report.parts_resumed - result.report.parts_adopted == len(stored.parts)
    assert result.report.part_size_bytes == PART  # the recorded cut wins
    assert not set(stored.parts) & set(acknowledged(server, key))
    assert not server.requests("Initiate")
    assert is_equal(server, "bench", key, source)
    assert not record.exists()


def test_progress_of_a_resumed_upload_begins_with_what_is_stored(server: LocalObs, key: str, source: Path) -> None:
    """And so never starts at zero."""
    interrupted(server, key, source, stored=8)
    seen: list[int] = []
    upload(server, key, source, enableCheckpoint=True, progressCallback=lambda stored, *_: seen.append(stored))
    assert seen[0] >= 5 * PART
    assert seen[-1] == source.stat().st_size


def test_a_changed_file_starts_again_and_says_so(
    server: LocalObs, key: str, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The old upload is aborted, the new object is the new file."""
    interrupted(server, key, source, stored=8)
    make_file(source, source.stat().st_size, seed=2)
    caplog.set_level(logging.INFO, "obs_engine")
    result = upload(server, key, source, enableCheckpoint=True)
    assert result.report.parts_resumed == 0
    assert [r["operation"] for r in server.requests()][:2] == ["Abort", "Initiate"]
    assert is_equal(server, "bench", key, source)
    assert open_uploads(server, "bench", key) == 0
    assert any("changed its size or modification time" in r.message for r in caplog.records)


def test_checksum_notices_a_change_that_kept_size_and_time(server: LocalObs, key: str, source: Path) -> None:
    """Without it, size and modification time are believed, as in the SDK."""
    before = source.stat()
    interrupted(server, key, source, stored=8, checkSum=True)
    make_file(source, before.st_size, seed=2)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    result = upload(server, key, source, enableCheckpoint=True, checkSum=True)
    assert result.report.parts_resumed == 0
    assert is_equal(server, "bench", key, source)


def test_options_that_change_the_object_are_never_mixed(server: LocalObs, key: str, source: Path) -> None:
    """Other metadata: the upload starts again, as its parts belong to the old metadata."""
    interrupted(server, key, source, stored=8, metadata={"a": "1"})
    assert upload(server, key, source, enableCheckpoint=True, metadata={"a": "2"}).report.parts_resumed == 0
    assert open_uploads(server, "bench", key) == 0


def test_two_targets_of_one_file_do_not_share_a_record(server: LocalObs, key: str, source: Path) -> None:
    """The second gets a record of its own; both resume."""
    first = interrupted(server, key, source, stored=8)
    second = interrupted(server, f"{key}-b", source, stored=8)
    assert first != second
    assert upload(server, key, source, enableCheckpoint=True).report.parts_resumed >= 5
    assert upload(server, f"{key}-b", source, enableCheckpoint=True).report.parts_resumed >= 5
    assert not list(source.parent.glob("*.upload_record*"))


def test_a_named_record_of_another_upload_is_refused(server: LocalObs, key: str, source: Path, tmp_path: Path) -> None:
    """Nothing is dropped without the user's word."""
    record = str(tmp_path / "record")
    interrupted(server, key, source, stored=8, checkpointFile=record)
    content = Path(record).read_bytes()
    with pytest.raises(JournalError, match="name another checkpointFile, or delete"):
        upload(server, f"{key}-b", source, enableCheckpoint=True, checkpointFile=record)
    assert Path(record).read_bytes() == content
    assert not server.requests()


def test_a_foreign_checkpoint_file_stops_the_upload_before_it_starts(
    server: LocalObs, key: str, source: Path, tmp_path: Path
) -> None:
    """It is not overwritten, and nothing is initiated."""
    for content in (b"my notes", b"\x89OBSENG\n but not really a journal of any kind"):
        record = tmp_path / "record"
        record.write_bytes(content)
        with pytest.raises((JournalVersionError, JournalError), match="record"):
            upload(server, key, source, enableCheckpoint=True, checkpointFile=record)
        assert record.read_bytes() == content
    for place in (tmp_path / "no" / "record", tmp_path):
        with pytest.raises(JournalError, match="name another checkpointFile"):
            upload(server, key, source, enableCheckpoint=True, checkpointFile=place)
    assert not server.requests()


def test_a_checkpoint_file_without_checkpoints_is_not_touched(
    server: LocalObs, key: str, source: Path, tmp_path: Path
) -> None:
    """Neither read nor removed, on success and on failure."""
    record = tmp_path / "record"
    record.write_bytes(b"something")
    upload(server, key, source, checkpointFile=record)
    assert record.read_bytes() == b"something"


def test_an_upload_that_the_service_forgot_starts_again(server: LocalObs, key: str, source: Path) -> None:
    """The service's word drops progress: the upload was aborted by a lifecycle rule, say."""
    record = interrupted(server, key, source, stored=8)
    state = peek(str(record))
    assert state is not None
    assert state.upload_id
    fetch(server, requests.abort("bench", key, state.upload_id))
    result = upload(server, key, source, enableCheckpoint=True)
    assert result.status == 200
    assert result.report.upload_id != state.upload_id
    assert is_equal(server, "bench", key, source)


def test_a_complete_whose_answer_was_lost_with_the_process_is_found(
    server: LocalObs, key: str, source: Path, tmp_path: Path
) -> None:
    """The object's `x-obs-uploadId` tells that it is ours: success, and no part is sent again."""
    record = tmp_path / "record"
    server.set_faults([{"operation": "Complete", "reset": "after_work"}, {"operation": "HeadObject", "status": 403}])
    with pytest.raises(TransportError):
        upload(server, key, source, enableCheckpoint=True, checkpointFile=record, client={"max_retry_count": 0})
    server.set_faults([])
    server.clear_requests()
    result = upload(server, key, source, enableCheckpoint=True, checkpointFile=record)
    assert result.status == 200
    assert result.body.etag
    assert Counter(r["operation"] for r in server.requests()) == {"ListParts": 1, "HeadObject": 1}
    assert is_equal(server, "bench", key, source)
    assert not record.exists()


def test_one_record_has_one_writer(server: LocalObs, key: str, source: Path) -> None:
    """A second call on the same record is refused while the first runs."""
    server.set_faults([{"operation": "UploadPart", "stall": True}])
    caller = Caller(client_arguments(server), upload_arguments(key, source))
    try:
        wait_until(lambda: peek(f"{source}.upload_record"), "the record")
        with pytest.raises(JournalLockedError, match=rf"process {caller.process.pid} on host .* since 20"):
            upload(server, key, source, enableCheckpoint=True)
    finally:
        caller.end()


# --- the source -------------------------------------------------------------------------------------------------


def test_a_file_that_changes_during_the_upload_is_not_completed(server: LocalObs, key: str, source: Path) -> None:
    """Its object would be a mixture."""
    server.set_faults([{"operation": "UploadPart", "part_number": 20, "delay_s": 0.3}])

    def touch(stored: int, *_: Any) -> None:
        if stored:
            os.utime(source)

    with pytest.raises(SourceChangedError, match="nothing was completed"):
        upload(server, key, source, progressCallback=touch)
    assert not server.requests("Complete")
    assert open_uploads(server, "bench", key) == 0


def test_a_file_that_shrinks_during_the_upload_is_an_error(server: LocalObs, key: str, source: Path) -> None:
    """Whether a worker met the missing pages or only the new size: the caller lives, and nothing is completed."""
    server.set_faults([{"operation": "UploadPart", "nth": [1], "delay_s": 0.2}])

    def cut(*_: Any) -> None:
        os.truncate(source, 3 * PART)

    with pytest.raises((SourceChangedError, EngineDiedError)):
        upload(server, key, source, progressCallback=cut, taskNum=1)
    assert not server.requests("Complete")


# --- hosts ------------------------------------------------------------------------------------------------------


def upload_arguments(key: str, source: Path, **more: Any) -> dict[str, Any]:
    return {
        "bucketName": "bench", "objectKey": key, "uploadFile": str(source), "partSize": PART, "taskNum": 4,
        "enableCheckpoint": True,
    } | more  # fmt: skip


def in_pool(arguments: tuple[dict[str, Any], dict[str, Any]]) -> int:
    from obs_engine import ObsClient

    client, call = arguments
    with ObsClient(**client) as caller:
        return int(caller.uploadFile(**call).status)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_call_from_a_daemonic_pool_worker_works(server: LocalObs, key: str, source: Path, method: str) -> None:
    """Daemonic processes may have no `multiprocessing` children; the engine needs none."""
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(in_pool, [(client_arguments(server), upload_arguments(key, source))]) == [200]
    assert is_equal(server, "bench", key, source)


def test_calls_from_many_threads_share_one_client(server: LocalObs, key: str, source: Path) -> None:
    """Each call has its own result; the engine's processes are shared."""
    results: list[int] = []
    with client_of(server, engine=EngineOptions(processes=2)) as client:

        def call(index: int) -> None:
            name = f"{key}-{index}"
            results.append(client.uploadFile("bench", name, source, PART, 3).status)

        threads = [threading.Thread(target=call, args=(index,)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [200] * 6
        mine = [p for p in psutil.Process().children() if "coordinator" in " ".join(p.cmdline())]
        assert len(mine) == 1
    assert all(is_equal(server, "bench", f"{key}-{index}", source) for index in range(6))


def test_the_documents_example_works_without_a_main_guard(
    server: LocalObs, key: str, source: Path, tmp_path: Path
) -> None:
    """A script, run as a file, at module level, from another directory, with modules of unlucky names beside it."""
    (tmp_path / "asyncio.py").write_text("raise RuntimeError('the engine imported a module of the script')")
    script = tmp_path / "example.py"
    script.write_text(
        "import os, traceback\n"
        "from obs_engine import ObsClient\n"
        "obsClient = ObsClient(access_key_id=os.getenv('AccessKeyID'), secret_access_key=os.getenv('SecretAccessKey'),"
        " server=os.getenv('Server'))\n"
        "try:\n"
        f"    resp = obsClient.uploadFile('bench', {key!r}, {source.name!r}, 10 * 1024 * 1024, 5, True,"
        " encoding_type='url')\n"
        "    if resp.status < 300:\n"
        "        print('Upload File Succeeded')\n"
        "        print('requestId:', resp.requestId)\n"
        "    else:\n"
        "        print('Upload File Failed', resp.errorCode)\n"
        "except:\n"
        "    print('Upload File Failed')\n"
        "    print(traceback.format_exc())\n"
    )
    environment = {**os.environ, "AccessKeyID": server.access_key, "SecretAccessKey": server.secret_key,
                   "Server": server.url}  # fmt: skip
    done = subprocess.run([sys.executable, str(script)], cwd=source.parent, env=environment, capture_output=True,
                          text=True, timeout=60, check=False)  # fmt: skip
    assert done.stdout.startswith("Upload File Succeeded"), done.stdout + done.stderr
    assert is_equal(server, "bench", key, source)


def test_ctrl_c_gives_up_what_is_in_flight_and_keeps_the_rest(server: LocalObs, key: str, source: Path) -> None:
    """KeyboardInterrupt within a second, no process left, and the next call continues."""
    server.set_faults([{"operation": "UploadPart", "nth": list(range(11, 99)), "stall": True}])
    caller = Caller(client_arguments(server), upload_arguments(key, source))
    wait_until(lambda: recorded_parts(source) == 10, "ten parts")
    children = caller.process.children(recursive=True)
    caller.process.send_signal(signal.SIGINT)
    wait_until(lambda: not any(map(is_alive, [caller.process, *children])), "the end of all", deadline_s=2)
    caller.end()
    server.set_faults([])
    assert upload(server, key, source, enableCheckpoint=True).report.parts_resumed == 10


def test_a_client_is_usable_after_its_coordinator_died(server: LocalObs, key: str, source: Path) -> None:
    """The next call starts another."""
    with client_of(server) as client:
        client.uploadFile("bench", key, source, PART)
        (coordinator,) = [p for p in psutil.Process().children() if "coordinator" in " ".join(p.cmdline())]
        coordinator.kill()
        coordinator.wait(5)
        assert client.uploadFile("bench", key, source, PART).status == 200


def test_an_inherited_client_works_after_fork(server: LocalObs, key: str, source: Path) -> None:
    """The child starts an engine of its own, and leaves the parent's alone."""
    with client_of(server) as client:
        client.uploadFile("bench", key, source, PART)
        child = os.fork()
        if child == 0:
            try:
                status = client.uploadFile("bench", f"{key}-child", source, PART).status
                client.close()
                os._exit(0 if status == 200 else 1)
            except BaseException:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.uploadFile("bench", f"{key}-parent", source, PART).status == 200
    assert is_equal(server, "bench", f"{key}-child", source)


def test_no_secret_leaves_the_callers_memory(server: LocalObs, key: str, source: Path) -> None:
    """Not on a command line, not in a child's environment, not in the journal, not in an error or a log line."""
    server.set_faults([{"operation": "UploadPart", "nth": list(range(6, 99)), "stall": True}])
    os.environ["HOST_SECRET"] = server.secret_key
    try:
        caller = Caller(client_arguments(server, security_token="tok-secret-en"), upload_arguments(key, source))
        wait_until(lambda: len(acknowledged(server, key)) == 5, "five parts")
        for process in caller.process.children(recursive=True):
            seen = Path(f"/proc/{process.pid}/cmdline").read_bytes() + Path(f"/proc/{process.pid}/environ").read_bytes()
            assert server.secret_key.encode() not in seen
            assert b"tok-secret-en" not in seen
        content = Path(f"{source}.upload_record").read_bytes()
        assert server.secret_key.encode() not in content
        assert b"tok-secret-en" not in content
        caller.end()
    finally:
        del os.environ["HOST_SECRET"]


def test_the_host_is_left_as_it_was(server: LocalObs, key: str, source: Path) -> None:
    """Signals, threads, directory and logging of the host stay its own."""
    before = (
        [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)], threading.active_count(),
        os.getcwd(), list(logging.getLogger().handlers), len(os.listdir("/proc/self/fd")),
    )  # fmt: skip
    upload(server, key, source)
    after = (
        [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)], threading.active_count(),
        os.getcwd(), list(logging.getLogger().handlers), len(os.listdir("/proc/self/fd")),
    )  # fmt: skip
    assert after == before


def test_a_closed_client_says_so(server: LocalObs, key: str, source: Path) -> None:
    """`close` may be called twice; a call afterwards is an error of the caller's."""
    client = client_of(server)
    client.close()
    client.close()
    with pytest.raises(Exception, match="closed one; make a new one"):
        client.uploadFile("bench", key, source)


def test_a_bad_argument_starts_no_process(server: LocalObs, key: str) -> None:
    """Not even the coordinator."""
    with client_of(server) as client:
        with pytest.raises(InvalidArgumentError):
            client.uploadFile("bench", key, "/dev/null")
        assert not [p for p in psutil.Process().children() if "coordinator" in " ".join(p.cmdline())]
