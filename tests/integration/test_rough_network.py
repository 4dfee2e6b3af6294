"""A rough network, a busy service, a wrong clock: what passes is lived through, what does not is told at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness import client_of, make_file, object_of
from obs_engine import EngineOptions, InvalidArgumentError, ObsEngineError, ServiceError
from obs_engine.errors import DeadlineExceededError
from obs_engine.testing import LocalObs

pytestmark = pytest.mark.timeout(60)

BUCKET = "bench"
PART = 102_400


@pytest.fixture(scope="module")
def server() -> Iterator[LocalObs]:
    with LocalObs(buckets=[BUCKET]) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_faults_left(server: LocalObs) -> Iterator[None]:
    yield
    server.set_faults([])
    server.clear_requests()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_file(tmp_path / "source", 12 * PART + 5, 1)


def send(server: LocalObs, key: str, source: Path, engine: dict[str, Any] | None = None, **more: Any) -> Any:
    arguments: dict[str, Any] = {"partSize": PART, "taskNum": 3, "enableCheckpoint": True} | more
    with client_of(server, engine=EngineOptions(**(engine or {}))) as client:
        return client.uploadFile(BUCKET, key, str(source), **arguments)


PASSING: list[dict[str, Any]] = [
    {"status": 503, "code": "SlowDown", "early": True},
    {"status": 200, "code": "InternalError", "error_in_200": True},
    {"reset": "before_reply"},
    {"reset": "after_work"},
    {"reset": "at_once"},
    {"reset": {"after_body_bytes": 50_000}},
    {"truncate": 0},
    {"hang_up_after": 2},
    {"corrupt": "wire"},
]


@pytest.mark.parametrize("callback", [False, True], ids=["silent", "progress"])
@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_what_passes_is_lived_through(server: LocalObs, source: Path, fault: dict[str, Any], callback: bool) -> None:
    """A part and a Complete that meet each fault once: no wrong object, no lost upload."""
    fault = {name: value for name, value in fault.items() if not (name == "status" and "error_in_200" in fault)}
    is_of_parts = "corrupt" in fault or "after_body_bytes" in str(fault)
    rules = [{**fault, "operation": "UploadPart", "part_number": [2, 5], "times": 2}]
    server.set_faults(rules if is_of_parts else [*rules, {**fault, "operation": "Complete", "times": 1}])
    result = send(server, "passing", source, progressCallback=print if callback else None)
    assert result.status == 200
    assert object_of(server, BUCKET, "passing") == source.read_bytes()
    assert result.report.part_attempts <= result.report.parts + 3


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AccessDenied"), (403, "InArrearOrInsufficientBalance"), (404, "NoSuchBucket"), (405, "MethodNotAllowed"),
     (501, "NotImplemented")],
)  # fmt: skip
def test_what_does_not_pass_is_told_at_once(server: LocalObs, source: Path, status: int, code: str) -> None:
    """One request, the service's own word, and progress kept; early refusals, too."""
    server.set_faults([{"operation": "UploadPart", "part_number": 4, "status": status, "code": code, "early": True}])
    with pytest.raises(ServiceError) as raised:
        send(server, "refused", source, taskNum=1)
    assert raised.value.status == status
    assert raised.value.errorCode == code
    assert raised.value.part_number == 4
    assert [r["status"] for r in server.requests("UploadPart")] == [200, 200, 200, status]
    server.set_faults([])
    result = send(server, "refused", source)
    assert result.report.parts_resumed == 3
    assert object_of(server, BUCKET, "refused") == source.read_bytes()


def test_the_service_says_how_long_to_wait(server: LocalObs, source: Path) -> None:
    """Retry-After is heeded: the part that was turned away comes again not before."""
    server.set_faults([{"operation": "UploadPart", "part_number": 2, "times": 1, "status": 503, "code": "SlowDown",
                        "headers": {"Retry-After": "1"}}])  # fmt: skip
    began_s = time.monotonic()
    assert send(server, "later", source).status == 200
    assert time.monotonic() - began_s >= 1.0


def test_a_service_that_bears_so_many_a_second_gets_no_more(server: LocalObs, tmp_path: Path) -> None:
    """SlowDown beyond 50 requests a second: nothing fails, and those who are turned away soon are few."""
    source = make_file(tmp_path / "source", 300 * PART, 2)
    busy = {"operation": "UploadPart", "above_per_s": 50, "status": 503, "code": "SlowDown", "early": True}
    server.set_faults([busy])
    assert send(server, "busy", source, taskNum=32, enableCheckpoint=False).status == 200
    answers = [r["status"] for r in server.requests("UploadPart")]
    print(f"{answers.count(503)} of {len(answers)} turned away, {answers[150:].count(503)} of the last")
    assert answers.count(200) == 300
    assert answers[150:].count(503) <= 0.15 * len(answers[150:])
    assert object_of(server, BUCKET, "busy") == source.read_bytes()


def test_a_connection_that_failed_is_not_trusted_again(server: LocalObs, source: Path) -> None:
    """After a reset, the part comes on a connection that carried nothing before."""
    server.set_faults([{"operation": "UploadPart", "part_number": 3, "times": 1, "reset": "before_reply"}])
    assert send(server, "fresh", source, taskNum=2).status == 200
    parts = server.requests("UploadPart")
    again = [r for r in parts if r["part_number"] == 3][-1]
    before = [r["connection"] for r in server.requests()[: server.requests().index(again)]]
    assert again["connection"] not in before


@pytest.mark.parametrize("offset_s", [3600.0, -3600.0])
@pytest.mark.parametrize("signature", ["v2", "v4"])
def test_a_clock_an_hour_off_is_corrected(
    source: Path, signature: str, offset_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The first refusal brings the service's clock; everything after it is signed by that one."""
    with (
        LocalObs(buckets=[BUCKET], clock_offset_s=offset_s) as skewed,
        client_of(skewed, signature=signature) as client,
        caplog.at_level(logging.WARNING, "obs_engine"),
    ):
        result = client.uploadFile(BUCKET, "skewed", str(source), PART, 4)
        assert result.status == 200
        assert [r["status"] for r in skewed.requests()].count(403) == 1
    assert caplog.text.count("the service's clock is") == 1


def test_a_call_has_a_deadline_if_it_is_given_one(server: LocalObs, source: Path) -> None:
    """A service that never recovers ends the call when it is over, progress kept; without one, attempts end it."""
    server.set_faults([{"operation": "UploadPart", "part_number": 6, "stall": True}])
    began_s = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"expected .* within 0.5 s") as raised:
        send(server, "late", source, {"deadline_s": 0.5})
    assert time.monotonic() - began_s < 10
    assert raised.value.is_retryable
    assert raised.value.checkpoint_file
    server.set_faults([])
    result = send(server, "late", source, {"deadline_s": 60})
    assert result.report.parts_resumed >= 5
    assert object_of(server, BUCKET, "late") == source.read_bytes()


def test_a_cap_holds_for_all_uploads_together(server: LocalObs, tmp_path: Path) -> None:
    """Two uploads at a time, 2 MB/s: together they take at least as long as their bytes."""
    sources = [make_file(tmp_path / name, 15 * PART, seed) for seed, name in enumerate("ab")]
    with client_of(server, engine=EngineOptions(max_bandwidth_bytes_per_s=2e6)) as client:
        began_s = time.monotonic()
        with ThreadPoolExecutor(2) as threads:
            calls = [threads.submit(client.uploadFile, BUCKET, f"cap-{f.name}", str(f), PART, 4) for f in sources]
            assert [call.result().status for call in calls] == [200, 200]
        assert time.monotonic() - began_s >= (30 * PART - 0.2 * 2e6 - 8 * 16384) / 2e6
    for path in sources:
        assert object_of(server, BUCKET, f"cap-{path.name}") == path.read_bytes()


def test_a_cap_changes_while_an_upload_runs(server: LocalObs, tmp_path: Path) -> None:
    """An upload that would take a minute is set free, and is done at once."""
    source = make_file(tmp_path / "source", 40 * PART, 3)
    with client_of(server, engine=EngineOptions(max_bandwidth_bytes_per_s=70_000)) as client:

        def look(sent: int, *_: Any) -> None:
            if sent:
                client.set_max_bandwidth(None)

        began_s = time.monotonic()
        result = client.uploadFile(BUCKET, "freed", str(source), PART, 4, progressCallback=look)
        assert result.status == 200
        assert time.monotonic() - began_s < 30
        with pytest.raises(InvalidArgumentError, match="max_bandwidth"):
            client.set_max_bandwidth(5)
    assert object_of(server, BUCKET, "freed") == source.read_bytes()


def test_a_name_that_is_none_is_told_with_its_kind(server: LocalObs, source: Path) -> None:
    """So that a program can tell DNS from a refused connection."""
    for url, kind in (("http://no-such-host.invalid", "dns"), ("http://127.0.0.1:1", "connect")):
        with client_of(server, server=url, max_retry_count=0) as client, pytest.raises(ObsEngineError) as raised:
            client.uploadFile(BUCKET, "key", str(source))
        assert raised.value.kind == kind
