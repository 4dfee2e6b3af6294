"""How much is on its way at a time: connections, parts in flight, and a second attempt at the part that is late."""

from __future__ import annotations

import logging
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import acknowledged, client_of, is_equal, make_file
from obs_engine import EngineOptions
from obs_engine.testing import LocalObs

pytestmark = pytest.mark.timeout(60)

BUCKET = "flow"
PART = 102_400


@pytest.fixture(scope="module")
def server() -> Iterator[LocalObs]:
    with LocalObs(buckets=[BUCKET, "secret"], encryption={"secret": "kms"}) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_faults_left(server: LocalObs) -> Iterator[None]:
    yield
    server.set_faults([])
    server.clear_requests()


def connections(server: LocalObs) -> int:
    return len({r["connection"] for r in server.requests()})


# --- the tail ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["none", "etag", "crc64"])
def test_a_part_that_is_late_is_sent_twice(server: LocalObs, tmp_path: Path, verify: Any) -> None:
    """It comes on another connection, the first answer counts, and nobody waits for the other."""
    source = make_file(tmp_path / "source", 60 * PART + 7, 11)
    server.set_faults([{"operation": "UploadPart", "part_number": 57, "times": 1, "delay_s": 20}])
    with client_of(server, engine=EngineOptions(verify=verify)) as client:
        began_s = time.monotonic()
        result = client.uploadFile(BUCKET, "late", str(source), PART, 8, True)
        assert time.monotonic() - began_s < 10
    assert result.status == 200
    assert (result.report.parts_doubled, result.report.part_attempts) == (1, 62)
    assert is_equal(server, BUCKET, "late", source)
    of_late = [r for r in server.requests("UploadPart") if r["part_number"] == 57]
    assert [r["status"] for r in of_late[-1:]] == [200]


def test_no_more_than_a_few_per_cent_are_sent_twice(server: LocalObs, tmp_path: Path) -> None:
    """Of five parts that crawl, two may be doubled in an upload of 60; the others are waited for."""
    source = make_file(tmp_path / "source", 60 * PART, 12)
    server.set_faults(
        [{"operation": "UploadPart", "part_number": [56, 57, 58, 59, 60], "times": 5, "delay_s": 3}]
    )
    with client_of(server) as client:
        result = client.uploadFile(BUCKET, "crawling", str(source), PART, 8)
    assert result.status == 200
    assert result.report.parts_doubled == 2
    assert is_equal(server, BUCKET, "crawling", source)


def test_where_every_attempt_has_an_etag_of_its_own_nothing_is_doubled(server: LocalObs, tmp_path: Path) -> None:
    """The loser might come last, and the ETag in the record be another one's: under encryption it is waited for."""
    source = make_file(tmp_path / "source", 40 * PART, 13)
    server.set_faults([{"operation": "UploadPart", "part_number": 39, "times": 1, "delay_s": 2}])
    with client_of(server) as client:
        result = client.uploadFile("secret", "late", str(source), PART, 8)
    assert result.status == 200
    assert result.report.parts_doubled == 0


def test_a_double_that_fails_takes_nothing_from_the_first(server: LocalObs, tmp_path: Path) -> None:
    """And counts for no attempt: with no retries allowed the upload succeeds all the same."""
    source = make_file(tmp_path / "source", 60 * PART, 14)
    server.set_faults([
        {"operation": "UploadPart", "part_number": 58, "nth": 1, "delay_s": 2},
        {"operation": "UploadPart", "part_number": 58, "nth": 2, "status": 500, "code": "InternalError"},
    ])  # fmt: skip
    with client_of(server, max_retry_count=0) as client:
        result = client.uploadFile(BUCKET, "failed-double", str(source), PART, 8)
    assert result.status == 200
    assert result.report.parts_doubled == 1
    assert is_equal(server, BUCKET, "failed-double", source)


# --- bounds -----------------------------------------------------------------------------------------------------


def test_connections_of_a_client_are_bounded(server: LocalObs, tmp_path: Path) -> None:
    """Four uploads at a time with taskNum 50 each, five connections: no more, and all arrive."""
    sources = [make_file(tmp_path / f"{n}", 20 * PART, n) for n in range(4)]
    with client_of(server, engine=EngineOptions(max_connections=5)) as client, ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(client.uploadFile, BUCKET, f"bound-{f.name}", str(f), PART, 50) for f in sources]
        assert [call.result().status for call in calls] == [200] * 4
    assert connections(server) <= 5
    for source in sources:
        assert is_equal(server, BUCKET, f"bound-{source.name}", source)


def test_one_connection_is_enough(server: LocalObs, tmp_path: Path) -> None:
    """Whatever taskNum and processes say; even a fresh connection after a reset takes the place of the old one."""
    source = make_file(tmp_path / "source", 20 * PART, 5)
    server.set_faults([{"operation": "UploadPart", "part_number": 7, "times": 1, "reset": "before_reply"}])
    with client_of(server, engine=EngineOptions(max_connections=1, processes=4)) as client:
        assert client.uploadFile(BUCKET, "one", str(source), PART, 10_000).status == 200
    assert connections(server) == 2  # the second after the reset
    assert is_equal(server, BUCKET, "one", source)


_FEW_DESCRIPTORS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from obs_engine import ObsClient, EngineOptions
with ObsClient(sys.argv[1], sys.argv[2], server=sys.argv[3], engine=EngineOptions(processes=2)) as client:
    print(client.uploadFile("flow", "few", sys.argv[4], 102400, 10_000).status)
"""


def test_few_descriptors_mean_few_connections(server: LocalObs, tmp_path: Path) -> None:
    """Where a process may open 64 files, taskNum 10,000 opens what fits."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 64
    source = make_file(tmp_path / "source", 300 * PART, 6)
    command = [sys.executable, "-c", _FEW_DESCRIPTORS, server.access_key, server.secret_key, server.url, str(source)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("200\n", "")
    assert 2 <= connections(server) <= 2 * 24
    assert is_equal(server, BUCKET, "few", source)


def test_memory_stays_small_with_256_parts_in_flight(server: LocalObs, tmp_path: Path) -> None:
    """Caller, coordinator and workers together stay below 300 MB."""
    source = make_file(tmp_path / "source", 600 * PART, 7)
    server.set_faults([{"operation": "UploadPart", "delay_s": 1.0, "times": 256, "delay_at": "before_reading"}])
    peaks = [0]
    me, before = psutil.Process(), set(psutil.Process().children(recursive=True))

    def look(*_: Any) -> None:
        engine = set(me.children(recursive=True)) - before
        peaks.append(sum(process.memory_full_info().pss for process in engine))

    with client_of(server) as client:
        result = client.uploadFile(BUCKET, "many", str(source), PART, 256, progressCallback=look)
    assert result.status == 200
    assert 200 < connections(server) <= 256
    print(f"peak PSS of the engine: {max(peaks) / 1e6:.0f} MB, {connections(server)} connections")
    assert max(peaks) <= 300e6


# --- parts in flight --------------------------------------------------------------------------------------------


def test_a_service_that_slows_down_gets_less_at_a_time(
    server: LocalObs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It turns away many in a row: what is in flight is cut, nothing is lost, and the log says so."""
    source = make_file(tmp_path / "source", 150 * PART, 8)
    server.set_faults([
        {"operation": "UploadPart", "nth": list(range(40, 60)), "status": 503, "code": "SlowDown"},
        {"operation": "UploadPart", "delay_s": 0.05},
    ])  # fmt: skip
    with caplog.at_level(logging.INFO, "obs_engine"), client_of(server) as client:
        assert client.uploadFile(BUCKET, "slow", str(source), PART, 24).status == 200
    assert "parts in flight from here on" in caplog.text
    assert "requests a second from here on" in caplog.text
    assert Counter(acknowledged(server, "slow").values()) == {1: 150}
