"""The request log: one JSON line for each request, at its end. Never a secret, never a signature.

    time         seconds since 1970, when the head was in
    connection   its number, from 1
    operation    as in `wire.requests` (Initiate, UploadPart, Complete, …); Unsupported; Unreadable where the head is
    method, path, bucket, key, part_number, upload_id   as asked; None where absent
    status, code what was answered, the code None for a success; None and ConnectionLost where no reply went out whole
    bytes_in     of the body, after its framing
    bytes_out    of the reply, its head included
    seconds      from head to the end of the reply
    signature    obs, v2 or v4 where one was verified
    fault        the action of the fault rule that was met
    request_id   the reply's x-obs-request-id

Lines are collected and written once per turn of the server's loop, before the turn's end is visible to anyone.
"""

from __future__ import annotations

import json
import os
from typing import Any

from obs_engine.errors import InvalidArgumentError


class RequestLog:
    """Appends to a file; without a path it forgets everything.

    Raises:
        InvalidArgumentError: the file cannot be opened.
    """

    def __init__(self, path: str | None) -> None:
        self._lines: list[str] = []
        self._fd = -1
        if path is not None:
            try:
                self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise InvalidArgumentError(
                    "log file", "a path that can be written", path, f"{error.strerror}; choose another with --log"
                ) from None

    def add(self, entry: dict[str, Any]) -> None:
        """Takes one entry."""
        if self._fd >= 0:
            self._lines.append(json.dumps(entry))

    def flush(self) -> None:
        """Writes what was taken. A full disk loses lines, never requests."""
        if self._lines:
            data = ("\n".join(self._lines) + "\n").encode()
            self._lines.clear()
            try:
                os.write(self._fd, data)
            except OSError:
                return

    def close(self) -> None:
        """Writes the rest and closes."""
        self.flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
