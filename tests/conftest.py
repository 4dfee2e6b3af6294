"""Fixtures of all tests: one local server for the session, and no process left behind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

# The same examples in every run; the soak profiles draw their own, and print what fails.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

_names = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def _no_profile_of_the_developer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The command reads profiles where there are some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session")
def server_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    from obs_engine.testing import LocalObs

    with LocalObs(buckets=["bench"], data_dir=tmp_path_factory.mktemp("obs")) as server:
        yield server


@pytest.fixture
def server(server_for_all: object) -> object:
    """The session's server, with no faults and an empty request log."""
    from obs_engine.testing import LocalObs

    assert isinstance(server_for_all, LocalObs)
    server_for_all.set_faults([])
    server_for_all.clear_requests()
    return server_for_all


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return f"key-{next(_names)}"


def command_of(process: psutil.Process) -> str:
    """A process's command line; empty of one that has ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """When all tests are done, no child of this process is alive."""
    yield
    import gc

    gc.collect()
    # multiprocessing's own servers, started by tests of such hosts, live as long as this process.
    children = [p for p in psutil.Process().children() if "multiprocessing" not in command_of(p)]
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive, [(p.pid, command_of(p)) for p in alive]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of 20 parts of 100 KB, the last one shorter."""
    from harness import make_file

    return make_file(tmp_path / "source.bin", 20 * 102_400 - 777, seed=1)
