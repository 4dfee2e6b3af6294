"""kill -9 of every process at seeded points: nothing that was acknowledged and recorded is ever sent again."""

from __future__ import annotations

import random
from pathlib import Path

import psutil
import pytest

from harness import Caller, acknowledged, client_arguments, is_alive, is_equal, make_file, open_uploads, wait_until
from obs_engine.checkpoint.journal import peek
from obs_engine.testing import LocalObs

SEED = 20260901
PARTS, PART_SIZE, TASK_NUM = 150, 102_400, 4
KILLS = 15  # of each victim
SOAK_ROUNDS = 150


def kills_of(victim: str) -> pytest.MarkDecorator:
    """Points at which a victim is killed: acknowledged parts, and whether the service then holds all others.

    Half of the points stop the service at a part, so that the moment is exact; half leave it running, so that it is not
    (but for the last ones: the upload would be over).
    """
    points = sorted(random.Random(f"{SEED} {victim}").sample(range(1, PARTS), KILLS))
    cases = [(point, index % 2 == 0 or point > PARTS - 30) for index, point in enumerate(points)]
    return pytest.mark.parametrize(("point", "is_exact"), cases)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_file(tmp_path_factory.mktemp("kills") / "big.bin", PARTS * PART_SIZE - 321, SEED)


def start(
    server: LocalObs, key: str, source: Path, record: Path, point: int, is_exact: bool, **client: object
) -> Caller:
    """An upload that is left when the service has acknowledged `point` parts."""
    held = {"stall": True} if is_exact else {"delay_s": 0.01}
    server.set_faults([{"operation": "UploadPart", "nth": list(range(point + 1, 2 * PARTS)), **held}])
    caller = Caller(client_arguments(server, **client), arguments(key, source, record), {"processes": 2})
    wait_until(lambda: len(acknowledged(server, key)) >= point, f"{point} parts acknowledged (seed {SEED})")
    return caller


def arguments(key: str, source: Path, record: Path) -> dict[str, object]:
    return {
        "bucketName": "bench", "objectKey": key, "uploadFile": str(source), "partSize": PART_SIZE,
        "taskNum": TASK_NUM, "enableCheckpoint": True, "checkpointFile": str(record),
    }  # fmt: skip


def rerun_and_check(server: LocalObs, key: str, source: Path, record: Path) -> None:
    """The same call again: it completes, and what the journal had is not sent again."""
    state = peek(str(record))
    assert state is not None
    recorded = set(state.parts)
    server.set_faults([])
    server.clear_requests()
    said = Caller(client_arguments(server), arguments(key, source, record)).result()
    assert said.get("status") == 200, said
    assert not recorded & set(acknowledged(server, key))
    report = said["report"]
    assert report["parts_resumed"] - report["parts_adopted"] == len(recorded)
    assert report["parts_resumed"] + report["parts_sent"] == PARTS
    check_object(server, key, source, record)


def check_object(server: LocalObs, key: str, source: Path, record: Path) -> None:
    assert is_equal(server, "bench", key, source)
    assert open_uploads(server, "bench", key) == 0
    assert not record.exists()


def all_gone(processes: list[psutil.Process]) -> None:
    wait_until(lambda: not any(map(is_alive, processes)), f"the end of {processes}", deadline_s=2)


@kills_of("caller")
def test_a_killed_caller_takes_all_with_it_and_loses_nothing(
    server: LocalObs, key: str, big: Path, tmp_path: Path, point: int, is_exact: bool
) -> None:
    """The caller dies: coordinator and workers follow, and the next call continues."""
    record = tmp_path / "record"
    caller = start(server, key, big, record, point, is_exact)
    children = caller.process.children(recursive=True)
    assert len(children) == 3
    caller.end()
    all_gone(children)
    rerun_and_check(server, key, big, record)


@kills_of("coordinator")
def test_a_killed_coordinator_is_an_error_and_loses_nothing(
    server: LocalObs, key: str, big: Path, tmp_path: Path, point: int, is_exact: bool
) -> None:
    """The coordinator dies: the workers follow, the caller gets a clear error, and the next call continues."""
    record = tmp_path / "record"
    caller = start(server, key, big, record, point, is_exact)
    coordinator, workers = caller.coordinator(), caller.workers()
    coordinator.kill()
    said = caller.result()
    assert said["error"] == "EngineDiedError"
    assert "call again" in said["message"]
    all_gone(workers)
    rerun_and_check(server, key, big, record)


@kills_of("worker")
def test_a_killed_worker_is_replaced(
    server: LocalObs, key: str, big: Path, tmp_path: Path, point: int, is_exact: bool
) -> None:
    """A worker dies: its parts are sent by another, and the caller notices nothing."""
    record = tmp_path / "record"
    caller = start(server, key, big, record, point, is_exact)
    state = peek(str(record))
    assert state is not None
    recorded = set(state.parts)
    worker = random.Random(SEED + point).choice(caller.workers())
    server.set_faults([])
    worker.kill()
    if is_exact:  # the other worker's requests were stalled, too: it must not wait for them for a minute
        for other in caller.workers():
            if other.pid != worker.pid and other.is_running():
                other.kill()
    said = caller.result()
    assert said.get("status") == 200, said
    counts = acknowledged(server, key)
    assert all(counts[part] == 1 for part in recorded)
    assert set(counts) == set(range(1, PARTS + 1))
    check_object(server, key, big, record)


@kills_of("service")
def test_a_killed_service_loses_nothing(
    server: LocalObs, key: str, big: Path, tmp_path: Path, point: int, is_exact: bool
) -> None:
    """The service dies, and comes back: a patient call goes on; one that is not fails, and the next one continues."""
    record, is_patient = tmp_path / "record", not is_exact
    caller = start(server, key, big, record, point, is_exact, max_retry_count=20 if is_patient else 0)
    state = peek(str(record))
    assert state is not None
    server.kill()
    if not is_patient:
        said = caller.result()
        assert said["error"] == "TransportError", said
    server.restart()
    if not is_patient:
        rerun_and_check(server, key, big, record)
        return
    said = caller.result()
    assert said.get("status") == 200, said
    counts = acknowledged(server, key)  # the last lines before the kill may be missing
    assert all(counts[part] <= 1 for part in state.parts)
    check_object(server, key, big, record)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_kills_at_random_moments(server: LocalObs, key: str, big: Path, tmp_path: Path) -> None:
    """Any process, any moment, up to three times in one upload, the service never held: the object is the file."""
    for round_number in range(SOAK_ROUNDS):
        draws = random.Random(SEED + round_number)
        record, name = tmp_path / f"record-{round_number}", f"{key}-{round_number}"
        server.set_faults([{"operation": "UploadPart", "delay_s": 0.004}])
        for _ in range(draws.randint(1, 3)):
            server.clear_requests()
            caller = Caller(client_arguments(server), arguments(name, big, record), {"processes": 2})
            point = draws.randrange(0, PARTS)
            process = caller.process
            wait_until(lambda n=name, p=point, c=process: len(acknowledged(server, n)) >= p or not is_alive(c), "parts")
            victims = [process, *process.children(recursive=True)] if is_alive(process) else [process]
            draws.choice(victims).kill()
            caller.end()
            all_gone(victims)
            if not record.exists():
                break
        server.set_faults([])
        if record.exists():
            rerun_and_check(server, name, big, record)
        assert is_equal(server, "bench", name, big), f"seed {SEED + round_number}"
        assert open_uploads(server, "bench", name) == 0
