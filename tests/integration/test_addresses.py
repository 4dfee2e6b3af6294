"""A host with several addresses: connections go to all of them, and not to those that are dead."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import is_equal, make_file
from obs_engine.testing import LocalObs
from obs_engine.transfer.resolver import lookup

pytestmark = pytest.mark.timeout(60)

BUCKET = "addresses"
PART = 102_400

# Of 127.0.0.0/8 every address is this machine; nothing listens on the IPv6 one.
_HOSTS = "".join(f"{at} {BUCKET}.many.test\n" for at in ("::1", "127.0.0.2", "127.0.0.3", "127.0.0.4"))
_IN_A_WORLD_OF_ITS_OWN = ["unshare", "--map-root-user", "--mount", "sh", "-c",
                          'mount --bind "$0" /etc/hosts && exec "$@"']  # fmt: skip
_UPLOAD = """
import json, sys
import psutil
from obs_engine import ObsClient, EngineOptions
config = json.loads(sys.argv[1])
seen = set()

def look(*_):
    for process in psutil.Process().children(recursive=True):
        found = [c for c in process.net_connections("inet") if c.status == "ESTABLISHED"]
        seen.update((process.pid, c.fd, c.raddr.ip) for c in found)

with ObsClient(**config["client"], engine=EngineOptions(processes=2)) as client:
    result = client.uploadFile(**config["upload"], progressCallback=look)
addresses = [ip for _, _, ip in seen]
print(json.dumps({"status": result.status, "by_address": {ip: addresses.count(ip) for ip in sorted(set(addresses))}}))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[LocalObs]:
    with LocalObs(buckets=[BUCKET], host="0.0.0.0") as running:
        yield running


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hosts file in which the bucket's host has four addresses."""
    path = tmp_path_factory.mktemp("etc") / "hosts"
    path.write_text(_HOSTS)
    try:
        subprocess.run([*_IN_A_WORLD_OF_ITS_OWN, path, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets nobody have a hosts file of his own (user namespaces)")
    return path


def upload(server: LocalObs, hosts: Path, source: Path) -> dict[str, Any]:
    client = {"access_key_id": server.access_key, "secret_access_key": server.secret_key}
    config = {
        "client": client | {"server": f"http://many.test:{server.port}"},
        "upload": {"bucketName": BUCKET, "objectKey": "many", "uploadFile": str(source)}
        | {"partSize": PART, "taskNum": 12},
    }
    command = [*_IN_A_WORLD_OF_ITS_OWN, str(hosts), sys.executable, "-c", _UPLOAD, json.dumps(config)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_connections_go_to_all_addresses(server: LocalObs, hosts: Path, tmp_path: Path) -> None:
    """Twelve connections over three living addresses; the dead one costs nothing but the attempt."""
    source = make_file(tmp_path / "source", 150 * PART, 1)
    server.set_faults([{"operation": "UploadPart", "delay_s": 0.05}])
    said = upload(server, hosts, source)
    server.set_faults([])
    print(said)
    assert said["status"] == 200
    assert set(said["by_address"]) == {"127.0.0.2", "127.0.0.3", "127.0.0.4"}
    assert min(said["by_address"].values()) >= 2
    assert sum(said["by_address"].values()) <= 12
    assert is_equal(server, BUCKET, "many", source)


def test_the_system_is_asked_in_a_process_of_its_own() -> None:
    """All addresses, each once; none for a name that is none."""

    async def ask() -> tuple[tuple[str, ...], tuple[str, ...]]:
        return await lookup("localhost", 80), await lookup("no-such-host.invalid", 80)

    found, none = asyncio.run(ask())
    assert set(found) & {"127.0.0.1", "::1"}
    assert len(set(found)) == len(found)
    assert none == ()
