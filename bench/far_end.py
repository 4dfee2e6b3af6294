"""Where does an upload go? The sink as a process of its own, and what is asked of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen


class Sink:
    """The sink, for the life of a `with` block.

    Args:
        is_tls: listen for TLS too.

    Attributes:
        url: without TLS; it is asked here whatever the clients use.
        tls_url: the same sink, through TLS; "" where that is off.
        authority: path of the certificate to trust; "" without TLS.
    """

    def __init__(self, *, is_tls: bool = False) -> None:
        self._is_tls = is_tls

    def __enter__(self) -> Sink:
        self._folder = tempfile.mkdtemp(prefix="obs-engine-sink-")
        command = [sys.executable, str(Path(__file__).with_name("sink.py"))]
        self._process = subprocess.Popen(
            [*command, "--tls", self._folder] if self._is_tls else command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        port, *tls_port = self._process.stdout.readline().split()
        self.url = f"http://127.0.0.1:{port}"
        self.tls_url = f"https://127.0.0.1:{tls_port[0]}" if tls_port else ""
        self.authority = str(Path(self._folder, "ca.pem")) if tls_port else ""
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def reset(self) -> None:
        """Forgets what it counted."""
        self._tell("reset")

    def give_etags(self, etags: Mapping[str, Sequence[str]]) -> None:
        """What to answer for the parts of these keys, from now on."""
        self._tell("etags", etags)

    def refuse(self, part_numbers: Sequence[int]) -> None:
        """Refuses these parts with 403, from now on."""
        self._tell("refuse", part_numbers)

    def be_rough(self, **how: object) -> None:
        """What makes it a rough service from now on (`sink.Rough`); nothing for a smooth one."""
        self._tell("rough", how)

    def stats(self) -> dict[str, Any]:
        """What it counted since the last reset."""
        with urlopen(f"{self.url}/-/stats", timeout=10) as reply:
            found: dict[str, Any] = json.load(reply)
        return found

    def _tell(self, what: str, content: object = None) -> None:
        data = None if content is None else json.dumps(content).encode()
        urlopen(Request(f"{self.url}/-/{what}", method="POST", data=data), timeout=10).close()
