"""Swift's four servers in one process, on green threads, as Swift's own functional tests run them.

Reads its settings, one line of JSON, from standard input; says the proxy's port on standard output when ready; logs
to standard error. Ends when standard input closes or the parent's process does, whichever is first, and takes its
folder along. Run by `swift.SwiftS3` alone.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import eventlet
import eventlet.wsgi
from eventlet.hubs import trampoline

_KINDS = ("account", "container", "object", "proxy")

_BACKEND = """
[DEFAULT]
devices = {room}/devices
mount_check = false
disable_fallocate = true
swift_dir = {room}
log_custom_handlers = __main__.log_to_stderr
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{app}
network_chunk_size = 1048576
recon_cache_path = {room}
"""

_PROXY = """
[DEFAULT]
swift_dir = {room}
log_custom_handlers = __main__.log_to_stderr
[pipeline:main]
pipeline = catch_errors gatekeeper listing_formats s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
client_chunk_size = 1048576
object_chunk_size = 1048576
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = {region}
storage_domain = {domain}
max_upload_part_num = 10000
min_segment_size = {part_min_bytes}
[filter:tempauth]
use = egg:swift#tempauth
user_{user} = {secret_key} .admin
[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10000
minimum_segment_size = 1
rate_limit_under_size = 0
"""

_SWIFT = """
[swift-hash]
swift_hash_path_suffix = judge
swift_hash_path_prefix = judge
[storage-policy:0]
name = default
default = yes
"""


def log_to_stderr(
    conf: Any, name: str, log_to_console: bool, log_route: str, fmt: str, logger: logging.Logger, adapted_logger: Any
) -> None:
    """Swift's hook for log handlers: lines go to standard error, not to the machine's syslog."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    logger.addHandler(handler)


def run(settings: dict[str, Any]) -> None:
    """Serves until the parent leaves."""
    room = Path(settings["room"])
    from swift.common import utils

    utils.monkey_patch()
    (room / "swift.conf").write_text(_SWIFT)
    utils.SWIFT_CONF_FILE = str(room / "swift.conf")
    from swift.common import constraints, storage_policy
    from swift.common.http_protocol import SwiftHttpProtocol
    from swift.common.utils import NullLogger
    from swift.common.wsgi import loadapp

    constraints.reload_constraints()
    storage_policy.reload_storage_policies()
    (room / "devices" / "d1").mkdir(parents=True)
    listeners = {kind: eventlet.listen(("127.0.0.1", 0), backlog=1024) for kind in _KINDS}
    ports = {kind: listener.getsockname()[1] for kind, listener in listeners.items()}
    for kind in _KINDS:
        if kind == "proxy":
            text = _PROXY.format(user=settings["access_key"].replace(":", "_"), **settings)
        else:
            _save_ring(room, kind, ports[kind])
            text = _BACKEND.format(kind=kind, app="mem_object" if kind == "object" else kind, **settings)
        (room / f"{kind}.conf").write_text(text)
    if settings["tls"]:
        from eventlet.green import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*settings["tls"])
        listeners["proxy"] = context.wrap_socket(listeners["proxy"], server_side=True)
    # Why not Swift's own run_server: it puts a new event hub in the old one's place, under the other servers' feet.
    for kind in _KINDS:
        app = loadapp(str(room / f"{kind}.conf"), global_conf={"log_name": kind})
        eventlet.spawn(
            eventlet.wsgi.server, listeners[kind], app, NullLogger(), protocol=SwiftHttpProtocol,
            capitalize_response_headers=False,  # s3api says "ETag"; "Etag" is not found by some clients
            url_length_limit=constraints.MAX_REQUEST_LINE,
        )  # fmt: skip
    print(ports["proxy"], flush=True)
    _wait_for_the_end(settings["parent"])


def _save_ring(room: Path, kind: str, port: int) -> None:
    """One device, one replica: the smallest ring there is."""
    from swift.common.ring import RingBuilder

    builder = RingBuilder(4, 1, 0)
    address = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "device": "d1", "weight": 1.0, "meta": "", **address})
    builder.rebalance()
    builder.get_ring().save(str(room / f"{kind}.ring.gz"))


def _wait_for_the_end(parent: int) -> None:
    """Returns when standard input closes, or the parent's process ends.

    Why both: a process forked by the parent may hold a copy of the pipe and keep it open.
    """
    ends = eventlet.Queue()
    watched = [sys.stdin.fileno()]
    if hasattr(os, "pidfd_open"):
        try:
            watched.append(os.pidfd_open(parent))
        except ProcessLookupError:
            return

    def watch(descriptor: int) -> None:
        trampoline(descriptor, read=True)
        ends.put(None)

    for descriptor in watched:
        eventlet.spawn(watch, descriptor)
    ends.get()


if __name__ == "__main__":
    found = json.loads(sys.stdin.readline())
    try:
        run(found)
    finally:
        shutil.rmtree(found["room"], ignore_errors=True)
        sys.stderr.flush()
        os._exit(0)  # green threads may be in the middle of a request that nobody waits for
