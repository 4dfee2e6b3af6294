"""The addresses that the system gives for a host, asked for now and again. Runs in the coordinator.

`getaddrinfo` may block for long, and a thread for it would make forking unsafe: so each question is asked by a process
of its own, a fork that does nothing else (2 ms). It also reads the system's configuration anew each time: an upload of
days lives through a change of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from typing import NoReturn

FRESH_S = 60.0
"""Addresses that were asked for so long ago are asked for again, while requests go on with them."""
ANSWER_S = 20.0
"""So long is an answer waited for; without one, libcurl asks by itself, and says what is wrong."""
_ANSWER_MAX_BYTES = 1 << 20


class Resolver:
    """What is known of hosts and ports."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[str, ...]] = {}
        self._asked_s: dict[tuple[str, int], float] = {}
        self._asking: dict[tuple[str, int], asyncio.Future[None]] = {}

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        """All addresses of a host, in the system's order; none where it has none. Waits the first time alone."""
        place = host, port
        if place not in self._asking and time.monotonic() - self._asked_s.get(place, float("-inf")) > FRESH_S:
            self._asked_s[place] = time.monotonic()
            self._asking[place] = asyncio.ensure_future(self._ask(place))
        if place not in self._known:
            await asyncio.shield(self._asking[place])  # others wait for the same answer
        return self._known.get(place, ())

    async def _ask(self, place: tuple[str, int]) -> None:
        try:
            found = await lookup(*place)
            # Why: a name service that fails for a moment takes nothing away.
            self._known[place] = found or self._known.get(place, ())
        finally:
            del self._asking[place]


async def lookup(host: str, port: int) -> tuple[str, ...]:
    """All addresses of a host, as text; none where the system knows none, or does not answer."""
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        return ()
    if pid == 0:
        _become_lookup(writer, host, port)
    os.close(writer)
    loop = asyncio.get_running_loop()
    is_answered = asyncio.Event()
    loop.add_reader(reader, is_answered.set)
    try:
        await asyncio.wait_for(is_answered.wait(), ANSWER_S)
        found = json.loads(os.read(reader, _ANSWER_MAX_BYTES) or b"[]")
    except (asyncio.TimeoutError, ValueError):
        found = []
    finally:
        loop.remove_reader(reader)
        os.close(reader)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)  # which has said all that it had to say
            os.waitpid(pid, 0)
    return tuple(str(address) for address in found)


def _become_lookup(writer: int, host: str, port: int) -> NoReturn:
    """What the forked child does: asks, answers, ends."""
    try:
        os.dup2(writer, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))  # a copy of a channel would hide the coordinator's death from it
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        os.write(3, json.dumps(list(dict.fromkeys(address[4][0] for address in found))).encode())
    finally:
        os._exit(0)  # also where there is no answer, which is one
