"""None of the official SDK's defects D1 to D27: the same body for both, and the SDK's half is expected to fail."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from harness import DEADLINE_S, acknowledged, client_arguments, fetch, is_equal, make_file, open_uploads, wait_until
from obs_engine import InvalidArgumentError, ObsClient, ObsEngineError, UploadFileHeader
from obs_engine.testing import LocalObs
from obs_engine.wire import requests
from proxy import Relay

obs = pytest.importorskip("obs", reason="the official SDK (esdk-obs-python) is the other half")

pytestmark = pytest.mark.timeout(60)

PART, PARTS, STORED = 102_400, 20, 8
REST = set(range(STORED + 1, PARTS + 1))

_CALLER = """
import json, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
config = json.loads(sys.stdin.readline())
module = __import__("obs_engine" if config["kind"] == "engine" else "obs")
client = module.ObsClient(**config["client"])
try:
    if config["is_paused"] and config["kind"] == "sdk":
        begun = threading.Event()
        task = client.uploadFileAsync(
            **config["upload"], enableCheckpoint=True, progressCallback=lambda done, *_: done and begun.set()
        )
        begun.wait(10)
        task.pause()
        threading.Event().wait(0.5)  # until the part that is under way has ended
        task.cancel()
        print("cancelled", flush=True)
        task.wait_for_completion()
    else:
        client.uploadFile(**config["upload"])
finally:
    client.close()
"""

Make = Callable[..., Any]


def defect(does: str) -> pytest.MarkDecorator:
    """Both halves; `does` is what the SDK does."""
    marks = pytest.mark.xfail(strict=True, raises=AssertionError, reason=does)
    return pytest.mark.parametrize("kind", ["engine", pytest.param("sdk", marks=marks)])


@pytest.fixture
def make(kind: str, server: LocalObs) -> Iterator[Make]:
    """Makes clients of either kind, and closes them."""
    made: list[Any] = []

    def make_one(**more: Any) -> Any:
        arguments = client_arguments(server, max_retry_count=0, timeout=20) | more
        made.append((ObsClient if kind == "engine" else obs.ObsClient)(**arguments))
        return made[-1]

    yield make_one
    for client in made:
        client.close()


def attempt(client: Any, key: str, source: Path, **more: Any) -> Any:
    """One call: its result, or what it raised."""
    try:
        return client.uploadFile("bench", key, str(source), **({"partSize": PART} | more))
    except Exception as error:
        return error


def is_good(outcome: Any) -> bool:
    """A result of 200; an error may carry that status too."""
    return not isinstance(outcome, Exception) and outcome.status == 200


def is_done(server: LocalObs, key: str, source: Path, outcome: Any) -> bool:
    """A success that is one: the object is the file, and nothing is left open."""
    return is_good(outcome) and is_equal(server, "bench", key, source) and open_uploads(server, "bench", key) == 0


def record_of(source: Path) -> Path:
    return Path(f"{source}.upload_record")


def interrupt(server: LocalObs, client: Any, key: str, source: Path, stored: int = STORED) -> None:
    """Parts 1 to `stored` are acknowledged and recorded, then the network fails."""
    parts = {} if stored == PARTS else {"part_number": list(range(stored + 1, PARTS + 1))}
    operation = "Complete" if stored == PARTS else "UploadPart"
    server.set_faults([{"operation": operation, "status": 503, "code": "SlowDown"} | parts])
    outcome = attempt(client, key, source, enableCheckpoint=True)
    server.set_faults([])
    server.clear_requests()
    if is_good(outcome) or not record_of(source).exists():
        raise RuntimeError(f"the interruption itself failed: {outcome!r}")


def sdk_record(server: LocalObs, key: str, source: Path) -> dict[str, Any]:
    """The record of an upload that the SDK began."""
    client = obs.ObsClient(**client_arguments(server, max_retry_count=0))
    interrupt(server, client, key, source)
    client.close()
    found: dict[str, Any] = json.loads(record_of(source).read_text())
    return found


def upload_id_of(server: LocalObs, key: str) -> str:
    listing = fetch(server, requests.Request("ListUploads", "GET", "bench", query=(("uploads", None),))).decode()
    found = re.search(rf"<Key>{re.escape(key)}</Key>\s*<UploadId>([^<]+)<", listing)
    if found is None:
        raise RuntimeError(listing)
    return found[1]


@defect("cuts the object short, and reports 200")
def test_d01_no_tasks_never_truncate(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """taskNum=0 is refused, or the object is whole."""
    outcome = attempt(make(), key, source, taskNum=0)
    assert not is_good(outcome) or is_equal(server, "bench", key, source)


@defect("leaves out the part that has no ETag")
def test_d02_a_part_without_an_etag_is_sent_again(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """A record that a race left, with a part completed and no ETag for it, gives the whole object."""
    record = sdk_record(server, key, source)
    part = next(p for p in record["uploadParts"] if not p["isCompleted"])
    part["isCompleted"] = True
    record_of(source).write_text(json.dumps(record))
    assert is_done(server, key, source, attempt(make(), key, source, enableCheckpoint=True))


@defect("begins anew and leaves the old upload open for ever")
def test_d03_a_torn_record_orphans_nothing(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """The last write came to the disk in part: the next call succeeds, and no upload is left open."""
    client = make()
    interrupt(server, client, key, source)
    os.truncate(record_of(source), record_of(source).stat().st_size - 20)
    assert is_done(server, key, source, attempt(client, key, source, enableCheckpoint=True))


@defect("raises a KeyError, now and at every later call")
def test_d04_a_malformed_record_is_no_riddle(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """A record without an upload id is repaired, or refused with a sentence that names the file."""
    record = sdk_record(server, key, source)
    del record["uploadId"]
    record_of(source).write_text(json.dumps(record))
    client = make()
    outcomes = [attempt(client, key, source, enableCheckpoint=True) for _ in range(2)]
    assert is_good(outcomes[-1]) or record_of(source).name in str(outcomes[-1])


@defect("throws away the progress of the first target")
def test_d05_two_targets_keep_their_progress(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """The file goes to another key in between; the first upload still continues where it was."""
    client = make()
    interrupt(server, client, key, source)
    attempt(client, f"{key}-other", source, enableCheckpoint=True)
    assert is_done(server, key, source, attempt(client, key, source, enableCheckpoint=True))
    assert set(acknowledged(server, key)) == REST


@defect("aborts the upload and deletes the record")
def test_d06_an_expired_token_keeps_the_record(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """A part that is refused for its token costs no progress."""
    client = make()
    server.set_faults([
        {"operation": "UploadPart", "part_number": sorted(REST), "status": 403, "code": "ExpiredToken"}
    ])  # fmt: skip
    assert not is_good(attempt(client, key, source, enableCheckpoint=True))
    server.set_faults([])
    server.clear_requests()
    assert record_of(source).exists()
    assert is_done(server, key, source, attempt(client, key, source, enableCheckpoint=True))
    assert set(acknowledged(server, key)) == REST


@defect("does not retry where progress is watched")
def test_d07_progress_and_retries_go_together(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """One 503 is retried, with a callback as without."""
    server.set_faults([{"operation": "UploadPart", "times": 1, "status": 503, "code": "SlowDown"}])
    outcome = attempt(make(max_retry_count=1), key, source, progressCallback=lambda *_: None)
    assert is_done(server, key, source, outcome)


@defect("reports 404 for an object that is there")
def test_d08_a_lost_reply_to_complete_is_a_success(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """The work is done and the reply lost: the repetition is understood."""
    server.set_faults([{"operation": "Complete", "times": 1, "reset": "after_work"}])
    assert is_done(server, key, source, attempt(make(max_retry_count=1), key, source))


@defect("takes an Error for a success")
def test_d09_an_error_in_a_200_is_an_error(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """Complete answers 200 with an <Error>."""
    server.set_faults([{"operation": "Complete", "error_in_200": True, "code": "InternalError"}])
    assert not is_good(attempt(make(), key, source))


@defect("makes an object of two files, and reports 200")
def test_d10_a_change_during_the_upload_is_seen(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """The file's end is rewritten while the second part waits at the service."""
    server.set_faults([{"operation": "UploadPart", "part_number": 2, "delay_s": 1.0}])

    def rewrite() -> None:
        wait_until(lambda: acknowledged(server, key)[1], "the first part")
        with open(source, "r+b") as file:
            file.seek(-1000, os.SEEK_END)
            file.write(bytes(1000))

    writer = threading.Thread(target=rewrite)
    writer.start()
    outcome = attempt(make(), key, source)
    writer.join()
    assert not is_good(outcome)


@defect("deletes the record")
def test_d11_a_missing_file_keeps_the_record(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """A disk may only be unmounted: the record waits for it."""
    client = make()
    interrupt(server, client, key, source)
    source.rename(f"{source}.away")
    assert not is_good(attempt(client, key, source, enableCheckpoint=True))
    assert record_of(source).exists()


@defect("deletes the file")
def test_d12_an_unused_checkpoint_file_is_left_alone(
    server: LocalObs, make: Make, key: str, source: Path, tmp_path: Path
) -> None:
    """Without enableCheckpoint, checkpointFile is not touched."""
    other = tmp_path / "precious"
    other.write_text("precious")
    server.set_faults([{"operation": "UploadPart", "status": 403, "code": "AccessDenied"}])
    attempt(make(), key, source, checkpointFile=str(other))
    assert other.exists()
    assert other.read_text() == "precious"


@defect("goes on uploading in the background, and leaves the upload open")
def test_d13_ctrl_c_ends_it_all(server: LocalObs, kind: str, key: str, source: Path) -> None:
    """After ^C no upload is left open that nobody can continue."""
    server.set_faults([{"operation": "UploadPart", "delay_s": 0.1}])
    upload = {"bucketName": "bench", "objectKey": key, "uploadFile": str(source), "partSize": PART, "taskNum": 2}
    config = {"kind": kind, "is_paused": False, "client": client_arguments(server, max_retry_count=0), "upload": upload}
    with subprocess.Popen([sys.executable, "-c", _CALLER], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(config).encode() + b"\n")
            process.stdin.flush()
            wait_until(lambda: acknowledged(server, key), "a part")
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    assert open_uploads(server, "bench", key) == 0
    assert len(acknowledged(server, key)) < PARTS


@defect("leaves the upload open")
def test_d14_a_callback_that_is_none_costs_nothing(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """What cannot be called is refused before anything begins."""
    assert not is_good(attempt(make(), key, source, progressCallback="no function"))
    assert open_uploads(server, "bench", key) == 0


@defect("raises though the object is there")
def test_d14_a_callback_that_raises_is_harmless(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """An upload does not fail for what watches it."""

    def broken(*_: object) -> None:
        raise ValueError

    assert is_done(server, key, source, attempt(make(), key, source, progressCallback=broken))


@defect("tells 0 of all")
def test_d15_the_last_word_is_all(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """Where only Complete was left to do, progress still ends with all bytes."""
    client = make()
    # The SDK drops its record when Complete is answered; a reply that never comes leaves it.
    server.set_faults([{"operation": "Complete", "reset": "before_reply"}])
    attempt(client, key, source, enableCheckpoint=True)
    server.set_faults([])
    if not record_of(source).exists():
        raise RuntimeError("the interruption itself failed")
    told: list[tuple[int, int]] = []
    outcome = attempt(
        client, key, source, enableCheckpoint=True, progressCallback=lambda done, total, _: told.append((done, total))
    )
    assert is_good(outcome)
    assert told
    assert told[-1] == (source.stat().st_size, source.stat().st_size)


@defect("raises a bare Exception")
def test_d16_an_error_says_what_and_where(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """Status, code and part are fields of an error of a class of its own."""
    server.set_faults([{"operation": "UploadPart", "part_number": 3, "status": 403, "code": "AccessDenied"}])
    error = attempt(make(), key, source)
    assert type(error) is not Exception
    assert (error.status, error.errorCode, error.part_number) == (403, "AccessDenied", 3)


@defect("sends a closed file again")
def test_d17_kept_connections_retry(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """A retry works with use_http_conns too."""
    server.set_faults([{"operation": "UploadPart", "times": 1, "status": 503, "code": "SlowDown"}])
    outcome = attempt(make(max_retry_count=1, use_http_conns=True), key, source)
    assert is_done(server, key, source, outcome)


# The engine alone: the SDK misses the reply where a reset follows it, which happens at no server every time.
@pytest.mark.parametrize("kind", ["engine"])
def test_d18_an_early_refusal_is_heard(server: LocalObs, make: Make, key: str, tmp_path: Path) -> None:
    """A 403 that comes while the body is going out is the error."""
    source = make_file(tmp_path / "large", 32 << 20, seed=18)
    server.set_faults([{"operation": "UploadPart", "status": 403, "code": "AccessDenied", "early": True}])
    assert "AccessDenied" in str(attempt(make(), key, source, partSize=32 << 20))


@defect("checks neither")
@pytest.mark.parametrize("is_known", [False, True], ids=["untrusted", "wrong name"])
def test_d19_tls_is_verified(
    make: Make, kind: str, key: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    """By default, a certificate of nobody's, or one for another host, is refused."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    if is_known:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    leaf = authority.issue_cert("another.example" if is_known else "127.0.0.1")
    leaf.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    (tmp_path / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    with LocalObs(buckets=["bench"], tls=(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))) as secure:
        assert not is_good(attempt(make(**client_arguments(secure)), key, source))
        assert secure.requests() == []


@defect("gives up where HEAD bucket is denied")
def test_d20_head_bucket_is_not_needed(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """PutObject is permission enough."""
    server.set_faults([{"operation": "HeadBucket", "status": 403, "code": "AccessDenied"}])
    assert is_done(server, key, source, attempt(make(), key, source))


@defect("drops the first two and sends the third raw")
def test_d21_headers_are_sent_as_meant(server: LocalObs, make: Make, kind: str, key: str, source: Path) -> None:
    """location, successActionRedirect and requesterPayer reach the service under their names, once."""
    make_header = UploadFileHeader if kind == "engine" else obs.UploadFileHeader
    headers = make_header()
    headers.successActionRedirect = "http://elsewhere.example/"
    headers.location = "http://some.example/"
    with Relay(server.port) as relay:
        outcome = attempt(
            make(server=f"http://127.0.0.1:{relay.port}"), key, source, headers=headers,
            extensionHeaders={"requesterPayer": "requester"},
        )  # fmt: skip
        passed = relay.passed()
    if not passed:
        raise RuntimeError(repr(outcome))
    initiate = next(r.headers for r in passed if r.method == "POST" and "uploadId" not in r.target)
    assert "http://elsewhere.example/" in initiate.values()
    assert "http://some.example/" in initiate.values()
    assert initiate.get("x-amz-request-payer") == "requester"
    assert all("requesterpayer" not in {name.lower() for name in r.headers} for r in passed)


@defect("drops it without a word")
def test_d21_an_unknown_acl_is_refused(server: LocalObs, make: Make, kind: str, key: str, source: Path) -> None:
    """An object is not stored with other rights than were asked for."""
    headers = (UploadFileHeader if kind == "engine" else obs.UploadFileHeader)()
    headers.acl = "no such acl"
    assert not is_good(attempt(make(), key, source, headers=headers))


@defect("fails, and leaves the upload open")
def test_d22_an_empty_file_has_a_crc_too(server: LocalObs, make: Make, key: str, tmp_path: Path) -> None:
    """isAttachCrc64 works for an empty file."""
    source = make_file(tmp_path / "empty", 0, seed=22)
    assert is_done(server, key, source, attempt(make(), key, source, isAttachCrc64=True))


@defect("fails with a KeyError, and leaves the upload open")
def test_d22_a_service_need_not_know_crc64(make: Make, key: str, source: Path) -> None:
    """isAttachCrc64 at a service that shows none: the upload is done, and proven by its ETags."""
    with LocalObs(buckets=["bench"], crc64="ignored") as silent:
        assert is_done(silent, key, source, attempt(make(**client_arguments(silent)), key, source, isAttachCrc64=True))


@defect("dead-locks where a paused upload is cancelled")
def test_d23_cancelling_never_hangs(server: LocalObs, kind: str, key: str, source: Path) -> None:
    """An upload that is stopped comes to its end: the SDK's paused and cancelled, the engine's at a silent service."""
    server.set_faults([{"operation": "UploadPart", "delay_s": 0.1}, {"operation": "UploadPart", "stall": True}])
    if kind == "engine":
        server.set_faults([{"operation": "UploadPart", "part_number": list(range(2, PARTS + 1)), "stall": True}])
    upload = {"bucketName": "bench", "objectKey": key, "uploadFile": str(source), "partSize": PART, "taskNum": 1}
    config = {"kind": kind, "is_paused": True, "client": client_arguments(server, max_retry_count=0), "upload": upload}
    process = subprocess.Popen(
        [sys.executable, "-c", _CALLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(config).encode() + b"\n")
        process.stdin.flush()
        if kind == "engine":
            wait_until(lambda: acknowledged(server, key), "a part")
            process.send_signal(signal.SIGINT)
        elif process.stdout.readline() != b"cancelled\n":
            raise RuntimeError("the SDK's upload was not cancelled")
        try:
            process.communicate(timeout=5)
            is_ended = True
        except subprocess.TimeoutExpired:
            is_ended = False
    finally:
        process.kill()
        process.communicate()
    assert is_ended


@defect("names the bucket a second time")
def test_d24_the_url_of_a_cname_is_its_own(
    make: Make, key: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With is_cname, objectUrl is a URL that finds the object."""
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo",
        lambda host, *a, **k: resolve("127.0.0.1" if str(host).endswith("localhost") else host, *a, **k),
    )  # fmt: skip
    with LocalObs(buckets=["bench"], cnames={"files.localhost": "bench"}) as named:
        url = f"http://files.localhost:{named.port}"
        outcome = attempt(make(**client_arguments(named, server=url, is_cname=True)), key, source)
        if not is_good(outcome):
            raise RuntimeError(repr(outcome))
        assert outcome.body.objectUrl in (f"{url}/{key}", f"http://files.localhost/{key}")


@defect("takes the address apart at its colons")
def test_d24_an_ipv6_address_is_an_endpoint(make: Make, key: str, source: Path) -> None:
    """With brackets and a trailing slash, as a browser takes it."""
    try:
        server = LocalObs(buckets=["bench"], host="::1")
    except InvalidArgumentError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with server as named:
        url = f"http://[::1]:{named.port}/"
        assert is_done(named, key, source, attempt(make(**client_arguments(named, server=url)), key, source))


@defect("uses what Python's ssl has given up")
def test_d25_tls_needs_nothing_deprecated(make: Make, key: str, source: Path) -> None:
    """A client for https is made, and used, without a DeprecationWarning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attempt(make(server="https://127.0.0.1:1"), key, source)
    assert not [str(w.message) for w in caught if issubclass(w.category, DeprecationWarning)]


@defect("believes its record alone")
def test_d26_a_part_that_the_service_lost_is_sent_again(
    server: LocalObs, make: Make, key: str, source: Path
) -> None:
    """A recorded part is not what the service holds any more: it is sent again."""
    client = make()
    interrupt(server, client, key, source)
    part = requests.upload_part("bench", key, upload_id_of(server, key), 3, PART)
    fetch(server, replace(part, headers=(("content-type", "text/plain"),), body=bytes(PART)))
    assert is_done(server, key, source, attempt(client, key, source, enableCheckpoint=True))


@defect("shares its sockets with the child")
def test_d27_a_fork_has_connections_of_its_own(server: LocalObs, make: Make, key: str, source: Path) -> None:
    """A used client in a forked child never speaks on its parent's connections."""
    client = make(long_conn_mode=True)
    if not is_good(attempt(client, key, source)):
        raise RuntimeError("the parent's upload failed")
    before = {entry["connection"] for entry in server.requests()}
    server.clear_requests()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        attempt(client, f"{key}-child", source)
        os._exit(0)
    os.waitpid(child, 0)
    assert not before & {entry["connection"] for entry in server.requests()}


@defect("says only that a lock cannot be pickled")
def test_d27_pickling_says_what_to_do(make: Make) -> None:
    """A client stays in its process, and the error says so."""
    with pytest.raises(TypeError) as caught:
        pickle.dumps(make())
    assert "ObsClient" in str(caught.value)
    assert not isinstance(caught.value, ObsEngineError)
