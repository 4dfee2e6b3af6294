"""How `LocalObs` speaks to its server: JSON lines in, JSON lines out; the end of the lines ends the server.

The first line brings the secrets, which therefore are on no process list. Each later line is a command and gets one
answer: {"faults": [...]} -> {"ok": true} or {"error": "sentence"}; {"keys": [access key, secret key, token]} and
{"flush": true} -> {"ok": true}, the last once every request answered before is in the log.
"""

from __future__ import annotations

import json
import os
from typing import Any, TextIO

from obs_engine.errors import InvalidArgumentError
from obs_engine.testing.faults import Faults
from obs_engine.testing.server import Server
from obs_engine.wire.signing import Credentials


def read_secrets(source: int) -> dict[str, Any]:
    """Reads the first line of a descriptor, and not a byte more.

    Raises:
        InvalidArgumentError: it is no JSON object.
    """
    try:
        with open(source, "rb", buffering=0, closefd=False) as lines:
            found = json.loads(lines.readline())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidArgumentError("control input", "a JSON object with secret_key", "something else", "use LocalObs")
    return found


class Control:
    """Serves commands from a descriptor, and stops the server at its end or when the parent process ends.

    Attributes:
        is_orphaned: that is why the server stopped; nobody else will tidy up.
    """

    def __init__(self, server: Server, source: int, out: TextIO, parent_pid: int) -> None:
        self._server, self._source, self._out = server, source, out
        self._pending = b""
        self.is_orphaned = False
        os.set_blocking(source, False)
        server.on_readable(source, self._read)
        self._watch(parent_pid)

    def _watch(self, parent_pid: int) -> None:
        """Why beside the pipe: a child that the parent forked may hold the pipe's other end for ever.

        Why not `getppid`: where the parent has ended already, that is somebody else.
        """
        if hasattr(os, "pidfd_open"):
            try:
                descriptor = os.pidfd_open(parent_pid)
            except ProcessLookupError:
                self._stop_as_orphan()
            except OSError:
                return
            else:
                self._server.on_readable(descriptor, self._stop_as_orphan)

    def _stop_as_orphan(self) -> None:
        self.is_orphaned = True
        self._server.stop()

    def _read(self) -> None:
        try:
            data = os.read(self._source, 65536)
        except BlockingIOError:
            return
        if not data:
            self._server.off(self._source)
            self._stop_as_orphan()
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            try:
                self._out.write(json.dumps(self._do(json.loads(line))) + "\n")
                self._out.flush()
            except BrokenPipeError:
                self._stop_as_orphan()

    def _do(self, command: dict[str, Any]) -> dict[str, Any]:
        try:
            if "faults" in command:
                self._server.faults = Faults(command["faults"])
            if "keys" in command:
                self._server.verifier.set_keys(Credentials(*command["keys"]))
        except InvalidArgumentError as error:
            return {"error": error.message}
        self._server.log.flush()
        return {"ok": True}
