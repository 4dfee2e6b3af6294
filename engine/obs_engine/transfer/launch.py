"""Starts the coordinator and speaks with it. Runs in the caller's process, of which it changes nothing.

The coordinator is a fresh interpreter behind a socket pair: no fork of the host, no import of its `__main__`, no
thread in it, no signal handler. Every upload has a socket of its own, so any thread may call.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from obs_engine.errors import ClientClosedError, EngineDiedError
from obs_engine.transfer.messages import LAST_WORDS, Asked, Decoder, SetBandwidth, encode

# Why without collection while modules load: what they make stays for good, and is looked through again and again.
_BOOT = (
    "import gc; gc.disable(); import sys, json; sys.path += json.loads(sys.argv[2]); "
    "from obs_engine.transfer.coordinator import main; main(int(sys.argv[1]), int(sys.argv[3]))"
)
# What a child needs of the environment. Everything else stays out of it: keys are often kept there.
_ENVIRONMENT = frozenset({"PATH", "HOME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "SSL_CERT_FILE", "SSL_CERT_DIR"})
_ENVIRONMENT_PREFIXES = ("LC_", "LD_", "DYLD_", "MALLOC_", "ASAN_", "UBSAN_", "LSAN_")
_RECEIVE_BYTES = 1 << 16
_CANCEL_S = 1.0
_CLOSE_S = 3.0


class Launcher:
    """One client's coordinator: started at the first upload, started anew should it die."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._coordinator: _Coordinator | None = None
        self._is_closed = False

    def call(self, request: Asked) -> Call:
        """Begins an upload, or a comparison.

        Raises:
            EngineDiedError: no process can be started.
            ClientClosedError: `close` was called before.
        """
        return Call(self, self._running().open_call(), request)

    def tell(self, message: SetBandwidth) -> None:
        """Says something to the coordinator, if there is one."""
        with self._lock:
            current = self._coordinator
            if current is None or current.owner_pid != os.getpid() or not current.is_alive():
                return
            with current.open_call() as channel, contextlib.suppress(ConnectionError):
                channel.sendall(encode(message))

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        """Ends the coordinator; running uploads keep what a checkpoint has of them. May be called twice."""
        with self._lock:
            self._is_closed = True
            coordinator, self._coordinator = self._coordinator, None
        if coordinator is not None:
            coordinator.close()

    def _running(self) -> _Coordinator:
        with self._lock:
            if self._is_closed:
                raise ClientClosedError("ObsClient: expected an open client, found a closed one; make a new one")
            current = self._coordinator
            if current is not None and current.owner_pid != os.getpid():
                current.disown()  # inherited through a fork: it is the parent's
                current = None
            if current is None or not current.is_alive():
                if current is not None:
                    current.close()
                current = self._coordinator = _Coordinator()
            return current


class Call:
    """An upload (or a comparison) that runs, as its caller hears of it; to be used in a `with` block.

    Leaving the block before the last message cancels the upload: what is in flight is given up, the journal synced.
    """

    def __init__(self, launcher: Launcher, channel: socket.socket, request: Asked) -> None:
        self._launcher = launcher
        self._channel = channel
        self._is_done = False
        self._saying = threading.Lock()
        self.say(request)

    def say(self, message: object) -> None:
        """Sends a message to the coordinator, from any thread; where it has died, the reader finds out."""
        data = encode(message)
        with self._saying, contextlib.suppress(ConnectionError):
            self._channel.sendall(data)

    def cancel(self) -> None:
        """Ends it from another thread: the reader hears no more."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def messages(self) -> Iterator[Any]:
        """The coordinator's messages; one of `LAST_WORDS` is the last.

        Raises:
            EngineDiedError: the coordinator ended without a word.
            ClientClosedError: `close` was called.
        """
        decoder = Decoder()
        with contextlib.suppress(ConnectionError):
            while data := self._channel.recv(_RECEIVE_BYTES):
                for message in decoder.feed(data):
                    self._is_done = isinstance(message, LAST_WORDS)
                    yield message
        self._is_done = True
        if self._launcher.is_closed:
            raise ClientClosedError("ObsClient: expected to stay open during the upload, found it closed")
        raise EngineDiedError(
            "coordinator: expected a result, found its process ended (killed, or out of memory); with a checkpoint "
            "nothing is lost: call again to continue"
        )

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_done:
            _cancel(self._channel)
        self._channel.close()


class _Coordinator:
    """A running coordinator process."""

    def __init__(self) -> None:
        if not sys.executable:
            raise EngineDiedError(
                "coordinator: expected a Python interpreter in sys.executable, found none; set sys.executable"
            )
        self.owner_pid = os.getpid()
        self._control, theirs = socket.socketpair()
        try:
            path = json.dumps(_import_path())
            utf8 = ["-X", "utf8"] if sys.flags.utf8_mode else []
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", *utf8, "-c", _BOOT, str(theirs.fileno()), path, str(self.owner_pid)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,  # Why: a terminal's Ctrl-C is for the caller, who then says what to do
            )
        except OSError as error:
            self._control.close()
            raise EngineDiedError(
                f"coordinator: expected to start {sys.executable!r}, found {error.strerror}; set sys.executable to a "
                "Python interpreter, or raise the process limit"
            ) from error
        finally:
            theirs.close()
        self._finalizer = weakref.finalize(self, _end, self._control, self._process, self.owner_pid)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def open_call(self) -> socket.socket:
        """A new call's socket; the other end is on its way to the coordinator."""
        ours, theirs = socket.socketpair()
        try:
            socket.send_fds(self._control, [b"c"], [theirs.fileno()])
        except OSError:
            theirs.close()
            return ours  # the reader meets its end and says that the coordinator died
        theirs.close()
        return ours

    def close(self) -> None:
        self._finalizer()

    def disown(self) -> None:
        self._finalizer.detach()
        self._control.close()
        self._process.returncode = 0  # not our child: nothing to wait for


def _end(control: socket.socket, process: subprocess.Popen[bytes], owner_pid: int) -> None:
    """Closes the control socket, which ends the coordinator and its workers, and reaps it."""
    control.close()
    if owner_pid != os.getpid():
        return
    try:
        process.wait(_CLOSE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _cancel(channel: socket.socket) -> None:
    """Says that the caller leaves, and waits a moment until the coordinator has put the journal in order."""
    with contextlib.suppress(OSError):
        channel.shutdown(socket.SHUT_WR)
        channel.settimeout(_CANCEL_S)
        while channel.recv(_RECEIVE_BYTES):
            pass


def _import_path() -> list[str]:
    """Where the coordinator finds modules, behind the standard library: this package, then all that the host has.

    Why in this order: a script may have an `asyncio.py` beside it that the host never imports, but we do.
    """
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return [here, *(os.path.abspath(entry) for entry in sys.path)]


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
    }
