"""`LocalObs`: the local server as a process of its own, for the life of a `with` block.

    with LocalObs(buckets=["photos"]) as obs:
        client = ObsClient(obs.access_key, obs.secret_key, server=obs.url, signature="obs")

The server ends with the block, and with this process however it ends. Its secrets travel through a pipe, not on the
process list.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from obs_engine.errors import InvalidArgumentError, ObsEngineError

_START = "obs_engine.cli.serve"


class LocalObs:
    """Starts a server and stops it.

    Args:
        buckets: made where missing.
        access_key, secret_key: made up where None.
        security_token: with one, every request must carry it.
        data_dir: kept afterwards where given; a temporary one, removed afterwards, where None.
        port: 0 to 65535; 0 takes a free one.
        faults: rules as in `obs_engine.testing.faults`.
        tls: paths of a PEM certificate chain and of its key; None for plain HTTP.
        region: what a v4 scope must name; None for any.
        cnames: custom domains, each with its bucket.
        crc64: "checked", or "ignored" for a service that passes over every CRC-64 and shows none.
        clock_offset_s: how far the server's clock is ahead of the machine's.
        encryption: buckets that encrypt what does not say how itself, each with `AES256`, `kms` or `kms:KEY-ID`.

    Attributes:
        port: the port in use, the same after a restart.
        url: scheme, address and port; path style for an address.
        virtual_url: the same with `localhost`, so that `bucket.localhost` names a bucket.

    Raises:
        InvalidArgumentError: the server refused to start; its own sentence.
    """

    def __init__(
        self,
        *,
        buckets: Sequence[str] = ("bucket",),
        access_key: str = "AKLOCAL0000000000001",
        secret_key: str | None = None,
        security_token: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: Sequence[Mapping[str, Any]] = (),
        tls: tuple[str, str] | None = None,
        region: str | None = None,
        cnames: Mapping[str, str] | None = None,
        crc64: str = "checked",
        encryption: Mapping[str, str] | None = None,
        clock_offset_s: float = 0.0,
    ) -> None:
        self.access_key = access_key
        self.secret_key = secret_key if secret_key is not None else secrets.token_hex(20)
        self.security_token = security_token
        self.host = host
        self.port = port
        self._buckets, self._region = tuple(buckets), region
        self._tls: tuple[str, str] | None = None
        if tls is not None:
            self._tls = (os.path.abspath(tls[0]), os.path.abspath(tls[1]))
        self._cnames = dict(cnames or {})
        self._crc64, self._encryption = crc64, dict(encryption or {})
        self._clock_offset_s = clock_offset_s
        self._faults: list[Mapping[str, Any]] = list(faults)
        self._room = tempfile.mkdtemp(prefix="obs-engine-local-")
        self.data_dir = Path(data_dir).absolute() if data_dir is not None else Path(self._room, "data")
        self._log = Path(self._room, "requests.jsonl")
        self._entries: list[dict[str, Any]] = []
        self._offset = 0
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    @property
    def scheme(self) -> str:
        """`https` with a certificate, else `http`."""
        return "https" if self._tls else "http"

    @property
    def url(self) -> str:
        """Where clients find it, path style."""
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def virtual_url(self) -> str:
        """Where clients find it, virtual-host style."""
        return f"{self.scheme}://localhost:{self.port}"

    @property
    def pid(self) -> int | None:
        """The server's process, None while it is stopped."""
        return self._process.pid if self._process is not None else None

    def requests(self, operation: str | None = None) -> list[dict[str, Any]]:
        """The logged requests since the start, oldest first, those before a restart included.

        Every request whose reply was received is there. Fields: see `connection` and `log`.

        Args:
            operation: only those of this name, e.g. `UploadPart`.
        """
        if self._process is not None and self._process.poll() is None:
            self._ask({"flush": True})
        if self._log.exists():
            with open(self._log, "rb") as file:
                file.seek(self._offset)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            self._entries += [json.loads(line) for line in whole.splitlines()]
        return [entry for entry in self._entries if operation is None or entry["operation"] == operation]

    def clear_requests(self) -> None:
        """Forgets what was logged until now."""
        self.requests()
        self._entries.clear()

    def set_faults(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """Puts new rules in the place of all old ones, counters at zero, from the next request on.

        Raises:
            InvalidArgumentError: a rule is wrong; the old rules stay.
        """
        self._ask({"faults": list(rules)})
        self._faults = list(rules)

    def set_keys(self, access_key: str, secret_key: str, security_token: str | None = None) -> None:
        """The one account has these keys, from the next request on; its token until now has expired."""
        self._ask({"keys": [access_key, secret_key, security_token]})
        self.access_key, self.secret_key, self.security_token = access_key, secret_key, security_token

    def stop(self) -> None:
        """SIGTERM, and waits for the end. Data, port and log stay for `restart`."""
        if self._process is not None:
            self._process.terminate()
            self._reap()

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def restart(self) -> None:
        """Starts again on the same port and data, after stopping if needed; fault counters begin anew."""
        self.stop()
        self._start()

    def close(self) -> None:
        """Stops, and removes what is temporary."""
        with contextlib.suppress(ProcessLookupError):
            self.stop()
        shutil.rmtree(self._room, ignore_errors=True)

    def __enter__(self) -> LocalObs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- inside -------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        command = [
            sys.executable, "-m", _START, "--control", "--host", self.host, "--port", str(self.port), "--data",
            str(self.data_dir), "--access-key", self.access_key, "--log", str(self._log), "--crc64", self._crc64,
            "--clock-offset", str(self._clock_offset_s),
        ]  # fmt: skip
        for name in self._buckets:
            command += ["--bucket", name]
        for domain, bucket in self._cnames.items():
            command += ["--cname", f"{domain}={bucket}"]
        for bucket, how in self._encryption.items():
            command += ["--encryption", f"{bucket}={how}"]
        if self._tls:
            command += ["--tls-cert", self._tls[0], "--tls-key", self._tls[1]]
        if self._region:
            command += ["--region", self._region]
        source_root = str(Path(__file__).resolve().parents[2])
        inherited = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([source_root, *inherited]), "PYTHONSAFEPATH": "1"},
            cwd=self._room,  # Why: `-m` puts this directory before all others, and a caller's may hold an `xml.py`.
            start_new_session=True,  # Why: ^C in a terminal is for the test, which then closes this pipe.
        )  # fmt: skip
        self._tell({
            "secret_key": self.secret_key, "security_token": self.security_token, "faults": self._faults,
            "temporary": self._room, "parent": os.getpid(),
        })  # fmt: skip
        ready = self._hear()
        if "error" in ready:
            self._reap()
            raise InvalidArgumentError(ready["error"])
        self.port = int(ready["port"])

    def _pipe(self, name: str) -> IO[bytes]:
        assert self._process is not None, "the server is stopped"
        pipe: IO[bytes] = getattr(self._process, name)
        return pipe

    def _tell(self, message: Mapping[str, Any]) -> None:
        pipe = self._pipe("stdin")
        with contextlib.suppress(BrokenPipeError):
            pipe.write(json.dumps(message).encode() + b"\n")
            pipe.flush()

    def _hear(self) -> dict[str, Any]:
        line = self._pipe("stdout").readline()
        if not line:
            self._reap()
            raise ObsEngineError("local server: expected an answer, found its end; see its message above")
        found: dict[str, Any] = json.loads(line)
        return found

    def _ask(self, message: Mapping[str, Any]) -> None:
        self._tell(message)
        answer = self._hear()
        if "error" in answer:
            raise InvalidArgumentError(answer["error"])

    def _reap(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # Why only now: the server takes a closed pipe for the death of this process, and tidies up.
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
