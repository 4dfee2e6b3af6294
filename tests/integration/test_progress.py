"""What a progressCallback is told: of uploads that succeed, are retried, resumed or fail."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from harness import client_of, is_equal, make_file
from obs_engine import Progress, ServiceError
from obs_engine.testing import LocalObs
from proxy import Door

pytestmark = pytest.mark.timeout(60)

PART = 102_400
Told = list[tuple[int, int, float]]


def uploaded(server: LocalObs, key: str, source: Path, tell: Callable[..., object], **more: object) -> int:
    """One upload with a callback; says the status."""
    arguments: dict[str, object] = {"partSize": PART, "taskNum": 4, "progressCallback": tell} | more
    with client_of(server) as client:
        return int(client.uploadFile("bench", key, source, **arguments).status)  # type: ignore[arg-type]


def never_goes_back(told: Told) -> bool:
    """Bytes and seconds both."""
    return all(a[0] <= b[0] and a[2] <= b[2] for a, b in pairwise(told))


def test_calls_begin_at_zero_and_end_at_the_total(server: LocalObs, key: str, source: Path) -> None:
    """In between they rise, all bytes are told once, and every number has its kind."""
    told: Told = []
    assert uploaded(server, key, source, lambda *said: told.append(said)) == 200
    size = source.stat().st_size
    assert told[0][:2] == (0, size)
    assert told[-1][:2] == (size, size)
    assert [stored for stored, _, _ in told].count(size) == 1
    assert {total for _, total, _ in told} == {size}
    assert never_goes_back(told)
    assert {tuple(map(type, said)) for said in told} == {(int, int, float)}
    assert all(seconds > 0 for _, _, seconds in told)  # callers divide by it


def test_a_listener_is_told_of_parts_and_what_limits_them(server: LocalObs, key: str, source: Path) -> None:
    """An object with `on_progress` gets values: bytes, parts, and how they get there."""

    class Listener:
        told: list[Progress] = []  # noqa: RUF012 (of one test)

        def on_progress(self, progress: Progress) -> None:
            self.told.append(progress)

    server.set_faults([{"operation": "UploadPart", "delay_s": 0.1, "times": 4}])
    with client_of(server) as client:
        assert client.uploadFile("bench", key, str(source), PART, 4, progressCallback=Listener()).status == 200
    told, size = Listener.told, source.stat().st_size
    assert told[0].stored_bytes == 0
    assert (told[-1].stored_bytes, told[-1].stored_parts) == (size, told[-1].total_parts)
    assert all(a.stored_bytes <= b.stored_bytes and a.shown_bytes <= b.shown_bytes for a, b in pairwise(told))
    assert max(p.flow.parts_in_flight for p in told) == 4
    assert all(p.flow.requests_per_s_max is None and p.flow.parts_in_flight_max >= 4 for p in told)


def test_an_empty_file_is_told_of(server: LocalObs, key: str, tmp_path: Path) -> None:
    """Nothing of nothing, without a division or a miss."""
    told: Told = []
    assert uploaded(server, key, make_file(tmp_path / "empty", 0, seed=1), lambda *said: told.append(said)) == 200
    assert told
    assert {said[:2] for said in told} == {(0, 0)}


def test_the_callback_runs_in_the_calling_thread(server: LocalObs, key: str, source: Path) -> None:
    """Whatever thread that is."""
    seen: set[int] = set()
    status: list[int] = []
    thread = threading.Thread(
        target=lambda: status.append(uploaded(server, key, source, lambda *_: seen.add(threading.get_ident())))
    )
    thread.start()
    caller = thread.ident
    thread.join()
    assert status == [200]
    assert seen == {caller}


def test_calls_are_few(server: LocalObs, key: str, source: Path) -> None:
    """Some twenty a second, the first and the last beside them, over a slow upload of many parts."""
    server.set_faults([{"operation": "UploadPart", "delay_s": 0.1}])
    told: Told = []
    began_s = time.monotonic()
    assert uploaded(server, key, source, lambda *said: told.append(said), taskNum=2) == 200
    took_s = time.monotonic() - began_s
    assert took_s > 0.9
    assert 5 <= len(told) <= 20 * took_s + 3


class _SlowDoor(Door):
    """Passes an upload on, reading slowly: some 40 MB a second."""

    def __init__(self, port: int) -> None:
        self._to = port
        super().__init__()

    def serve(self, number: int, client: object) -> None:  # type: ignore[override]
        import socket

        assert isinstance(client, socket.socket)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        with self.connect(self._to) as server:
            back = threading.Thread(target=self._back, args=(server, client))
            back.start()
            while data := client.recv(1 << 19):
                server.sendall(data)
                time.sleep(len(data) / 40e6)  # the slow network itself, not a wait for something
            server.shutdown(socket.SHUT_WR)
            back.join()

    def _back(self, server: object, client: object) -> None:
        import contextlib
        import socket

        assert isinstance(server, socket.socket)
        assert isinstance(client, socket.socket)
        with contextlib.suppress(OSError):
            while data := server.recv(65_536):
                client.sendall(data)


def test_bytes_on_their_way_are_counted(server: LocalObs, key: str, tmp_path: Path) -> None:
    """One part of 20 MB over a slow network shows what lies between nothing and all."""
    source = make_file(tmp_path / "one-part", 20_000_000, seed=2)
    told: Told = []
    with _SlowDoor(server.port) as door, client_of(server, server=f"http://127.0.0.1:{door.port}") as client:
        result = client.uploadFile(
            "bench", key, source, partSize=64 << 20, progressCallback=lambda *said: told.append(said)
        )
    assert (result.status, result.report.parts) == (200, 1)
    between = {stored for stored, _, _ in told if 0 < stored < 19_000_000}
    assert len(between) >= 3, told
    assert never_goes_back(told)


@pytest.mark.parametrize(
    "fault",
    [{"status": 503, "code": "SlowDown"}, {"reset": {"after_body_bytes": 60_000}}, {"reset": "after_work"}],
    ids=["503", "reset in the body", "lost reply"],
)  # fmt: skip
def test_a_retry_never_goes_back(server: LocalObs, key: str, source: Path, fault: dict[str, object]) -> None:
    """And retries are made as without a callback."""
    server.set_faults([{"operation": "UploadPart", "nth": [2, 5, 6, 11], **fault}])
    told: Told = []
    assert uploaded(server, key, source, lambda *said: told.append(said)) == 200
    assert len(server.requests("UploadPart")) >= 24
    assert never_goes_back(told)
    assert told[-1][0] == told[-1][1] == source.stat().st_size
    assert is_equal(server, "bench", key, source)


def failing(server: LocalObs, key: str, source: Path, tell: Callable[[int, int, float], object]) -> ServiceError:
    """An upload that is refused from its ninth part on, with a checkpoint."""
    server.set_faults([{"operation": "UploadPart", "nth": list(range(9, 99)), "status": 403, "code": "AccessDenied"}])
    with pytest.raises(ServiceError) as caught:
        uploaded(server, key, source, tell, enableCheckpoint=True)
    server.set_faults([])
    return caught.value


def test_a_failed_upload_never_tells_the_total(server: LocalObs, key: str, source: Path) -> None:
    """Nor goes back."""
    told: Told = []
    failing(server, key, source, lambda *said: told.append(said))
    assert told
    assert all(stored < total for stored, total, _ in told)
    assert never_goes_back(told)


def test_all_parts_stored_is_not_success(server: LocalObs, key: str, source: Path) -> None:
    """Where Complete is refused, all bytes are stored, and the total is not told."""
    server.set_faults([{"operation": "Complete", "status": 403, "code": "AccessDenied"}])
    told: Told = []
    assert uploaded(server, key, source, lambda *said: told.append(said)) == 403
    assert all(stored < total for stored, total, _ in told)


def test_a_resumed_upload_begins_with_what_is_stored(server: LocalObs, key: str, source: Path) -> None:
    """Whole parts: at least the eight that were acknowledged."""
    failing(server, key, source, lambda *_: None)
    told: Told = []
    assert uploaded(server, key, source, lambda *said: told.append(said), enableCheckpoint=True) == 200
    assert told[0][0] >= 8 * PART - 777
    assert told[0][0] % PART in (0, PART - 777)
    assert never_goes_back(told)
    assert told[-1][0] == source.stat().st_size


def test_a_callback_that_raises_is_logged_once(
    server: LocalObs, key: str, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The upload goes on, retries included, and the callback is asked again each time."""
    server.set_faults([{"operation": "UploadPart", "nth": [3], "status": 503, "code": "SlowDown"}])
    calls: list[int] = []

    def broken(*said: float) -> None:
        calls.append(int(said[0]))
        raise RuntimeError("broken on purpose")

    with caplog.at_level(logging.WARNING, logger="obs_engine"):
        assert uploaded(server, key, source, broken) == 200
    said = [record for record in caplog.records if "progressCallback" in record.getMessage()]
    assert len(said) == 1
    assert said[0].exc_info is not None
    assert len(calls) >= 2
    assert is_equal(server, "bench", key, source)
