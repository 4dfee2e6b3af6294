"""A judge that we did not write: OpenStack Swift with s3api, as a process of its own for the life of a `with` block.

    with SwiftS3(buckets=["photos"]) as swift:
        client = ObsClient(swift.access_key, swift.secret_key, server=swift.url, signature="v4", region=swift.region)

Swift verifies V2 and V4, path style and virtual hosts, and knows no `OBS ak:signature`. It keeps the multipart rules
of S3, so what it accepts was not shaped after our own server. Objects live in its memory, listings in a temporary
folder. No root, no fixed port; it ends with the block, and with this process however it ends.

Knows: how to start, reach and end it. The other end of the pipe is `swift_process`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from urllib.error import HTTPError
from urllib.request import Request, urlopen

START_S = 60.0
STOP_S = 5.0
_PROGRAM = Path(__file__).with_name("swift_process.py")
# Why not `python swift_process.py`: that puts this directory first, where `swift` is this very file.
_BOOT = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"


class SwiftFailed(Exception):
    """Swift did not start or refused a bucket; the message ends with its log."""


def skip_reason() -> str | None:
    """Why Swift cannot run here, as a sentence for `pytest.skip`; None where it can."""
    missing = [name for name in ("swift", "eventlet", "paste.deploy") if not _is_importable(name)]
    if missing:
        return f"the judge OpenStack Swift needs {', '.join(missing)}: pip install 'obs-engine[test]' brings them"
    return None


class SwiftS3:
    """Starts Swift's proxy, account, container and object servers and stops them.

    Args:
        buckets: made at the start.
        tls: paths of a PEM certificate chain and of its key; None for plain HTTP. For virtual hosts it must name each
            bucket's host: no client takes `*.localhost`.
        part_min_bytes: smallest part that is not the last; 100 KB as in OBS (S3's own is 5 MiB).

    Attributes:
        url: scheme, address and port; path style.
        virtual_url: the same with `localhost`, so that `bucket.localhost` names a bucket: libcurl resolves every such
            name to this machine.
        access_key, secret_key, region: what it accepts.
        room: its temporary folder; None before the start.

    Raises:
        SwiftFailed: it did not get ready.
    """

    access_key = "judge:tester"
    secret_key = "swift-judge-secret"
    region = "us-east-1"

    def __init__(
        self,
        *,
        buckets: Sequence[str] = (),
        tls: tuple[str, str] | None = None,
        part_min_bytes: int = 100 * 1024,
    ) -> None:
        self._buckets = tuple(buckets)
        self._tls = tuple(os.path.abspath(path) for path in tls) if tls else None
        self._part_min_bytes = part_min_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self.room: Path | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._port}"

    @property
    def virtual_url(self) -> str:
        return f"{self._scheme}://localhost:{self._port}"

    @property
    def pid(self) -> int:
        """The one process that all four servers share."""
        assert self._process is not None, "Swift is stopped"
        return self._process.pid

    def log(self, last_bytes: int = 8000) -> str:
        """The end of what the servers had to say: one line for each request, and every traceback."""
        if self.room is None:
            return ""
        with contextlib.suppress(OSError):
            return (self.room / "log").read_bytes()[-last_bytes:].decode(errors="replace")
        return ""

    def create_bucket(self, name: str) -> None:
        """Makes a bucket; one of ours that exists is kept.

        Raises:
            SwiftFailed: it was refused.
        """
        # Why signed by hand: the engine's own signing is what this judge is asked about.
        date = formatdate(usegmt=True)
        digest = hmac.digest(self.secret_key.encode(), f"PUT\n\n\n{date}\n/{name}".encode(), hashlib.sha1)
        headers = {"Date": date, "Authorization": f"AWS {self.access_key}:{base64.b64encode(digest).decode()}"}
        context = None
        if self._tls:
            import ssl

            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # trust is the client's test, not ours
        try:
            with urlopen(Request(f"{self.url}/{name}", headers=headers, method="PUT"), timeout=30, context=context):
                pass
        except HTTPError as refused:
            body = refused.read().decode(errors="replace")
            if "BucketAlreadyOwnedByYou" not in body:
                found = f"{refused.code}: {body}\n{self.log()}"
                raise SwiftFailed(f"bucket {name!r}: expected 200, found {found}") from None

    def __enter__(self) -> SwiftS3:
        self.room = Path(tempfile.mkdtemp(prefix="swift-judge-"))
        try:
            self._start()
            for name in self._buckets:
                self.create_bucket(name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process and removes its folder. May be called twice."""
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.room is not None:
            shutil.rmtree(self.room, ignore_errors=True)

    @property
    def _scheme(self) -> str:
        return "https" if self._tls else "http"

    def _start(self) -> None:
        assert self.room is not None
        reason = skip_reason()
        if reason:
            raise SwiftFailed(reason)
        with open(self.room / "log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", _BOOT, str(_PROGRAM)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=self.room,
                start_new_session=True,  # Why: ^C in a terminal is for the test, which then closes this pipe.
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        settings = {
            "room": str(self.room), "parent": os.getpid(), "access_key": self.access_key,
            "secret_key": self.secret_key, "region": self.region, "domain": "localhost", "tls": self._tls,
            "part_min_bytes": self._part_min_bytes,
        }  # fmt: skip
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(settings).encode() + b"\n")
            self._process.stdin.flush()
        began_s = time.monotonic()
        ready, _, _ = select.select([self._process.stdout], [], [], START_S)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            waited_s = time.monotonic() - began_s
            found = f"its end or silence after {waited_s:.1f} s\n{self.log()}"
            raise SwiftFailed(f"Swift: expected it ready, found {found}")
        self._port = int(line)


def _is_importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False
