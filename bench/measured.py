"""What did a process and all its descendants cost? CPU seconds and peak memory of a command, from outside it.

A command runs below a *warden*: a fork of the bench that adopts every orphan of its descendants
(`PR_SET_CHILD_SUBREAPER`), waits until none is left, and reports `RUSAGE_CHILDREN`. The kernel adds a process's times
to its parent's when the parent waits for it; as nobody here escapes being waited for, the sum is complete. It would
not be if a descendant ignored SIGCHLD, so that the kernel reaps for it: `check` proves that a worker of a worker,
killed or orphaned, is counted, and `Usage.seen_cpu_s` is a second sum from /proc to compare with.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_GONE_S = 5.0


class RunFailed(Exception):
    """A command that failed, hung, or left processes behind; the message ends with what it said."""


@dataclass(frozen=True)
class Usage:
    """One run of a command.

    Attributes:
        user_s, system_s: CPU seconds of the command and all its descendants, interpreter start included.
        wall_s: from before its start until its end.
        started_ns: CLOCK_MONOTONIC before its start.
        output: what it wrote to standard output.
        peak_pss_bytes: the largest sum of proportional set sizes that was seen, over all processes at once; 0 where
            not sampled. `peak_uss_bytes`: private pages alone, of that same moment.
        processes: the most that were seen at once.
        samples: how often it was looked at.
        seen_cpu_s: CPU seconds as last seen in /proc, summed over all processes; never above the true sum.
    """

    user_s: float
    system_s: float
    wall_s: float
    started_ns: int
    output: str
    peak_pss_bytes: int = 0
    peak_uss_bytes: int = 0
    processes: int = 0
    samples: int = 0
    seen_cpu_s: float = 0.0

    @property
    def cpu_s(self) -> float:
        return self.user_s + self.system_s


def run(
    command: Sequence[str], env: Mapping[str, str], *, timeout_s: float, sample_every_s: float | None = None
) -> Usage:
    """Runs a command to its end.

    Args:
        sample_every_s: look at the memory so often, from this process; None for never. Looking takes the command's
            locks and a core, so a run that is sampled is not one to take CPU seconds from.

    Raises:
        RunFailed: it failed, took longer than `timeout_s`, or a descendant outlived it by 5 s.
    """
    read_end, write_end = os.pipe()
    started_ns = time.monotonic_ns()
    warden = os.fork()
    if warden == 0:
        os.close(read_end)
        _guard(command, env, write_end)
    os.close(write_end)
    watch = _Watch(warden)
    chunks: list[bytes] = []
    deadline_s = time.monotonic() + timeout_s
    try:
        while True:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise RunFailed(f"{command}: expected its end within {timeout_s:.0f} s, found it running")
            wait_s = left_s if sample_every_s is None else min(left_s, sample_every_s)
            if select.select([read_end], [], [], wait_s)[0]:
                chunk = os.read(read_end, 1 << 16)
                if not chunk:
                    break
                chunks.append(chunk)
            elif sample_every_s is not None:
                watch.look()
    finally:
        os.close(read_end)
        watch.end()
    wall_s = (time.monotonic_ns() - started_ns) / 1e9
    said: dict[str, Any] = json.loads(b"".join(chunks) or b'{"status": -1, "error": "the warden died", "left": 0}')
    if said["status"] or said["left"]:
        raise RunFailed(f"{command}: status {said['status']}, processes left behind {said['left']}\n{said['error']}")
    return Usage(
        said["user_s"], said["system_s"], wall_s, started_ns, said["output"], watch.peak_pss_bytes,
        watch.peak_uss_bytes, watch.processes, watch.samples, sum(watch.cpu_s.values()),
    )  # fmt: skip


def _guard(command: Sequence[str], env: Mapping[str, str], report: int) -> None:
    """The warden: starts the command, waits for it and for every orphan, reports, ends."""
    said: dict[str, Any] = {"status": -1, "error": "", "left": 0}
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with subprocess.Popen(
            command, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        ) as process:  # fmt: skip
            output, error = process.communicate()
        left = _wait_for_orphans()
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = {
            "status": process.returncode, "output": output, "error": error[-4000:], "left": left,
            "user_s": usage.ru_utime, "system_s": usage.ru_stime,
        }  # fmt: skip
    except BaseException as failure:
        said["error"] = repr(failure)
    finally:
        with contextlib.suppress(OSError), open(report, "w") as pipe:
            json.dump(said, pipe)
        os._exit(0)


def _wait_for_orphans() -> int:
    """Waits for all that is left; how many had to be killed."""
    deadline_s, killed = time.monotonic() + _GONE_S, 0
    while True:
        try:
            found, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return killed
        if found:
            continue
        if time.monotonic() > deadline_s:
            for child in psutil.Process().children(recursive=True):
                child.kill()
                killed += 1
            deadline_s = time.monotonic() + _GONE_S
        time.sleep(0.002)


class _Watch:
    """Looks at the descendants of a warden."""

    def __init__(self, warden: int) -> None:
        self._warden = warden
        self.peak_pss_bytes = self.peak_uss_bytes = self.processes = self.samples = 0
        self.cpu_s: dict[tuple[int, float], float] = {}

    def look(self) -> None:
        try:
            found = psutil.Process(self._warden).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        pss = uss = 0
        for process in found:
            with contextlib.suppress(OSError, psutil.Error):
                sizes = _rollup(process.pid)
                pss += sizes["Pss"]
                uss += sizes["Private_Clean"] + sizes["Private_Dirty"]
                times = process.cpu_times()
                self.cpu_s[process.pid, process.create_time()] = times.user + times.system
        self.samples += 1
        self.processes = max(self.processes, len(found))
        if pss > self.peak_pss_bytes:
            self.peak_pss_bytes, self.peak_uss_bytes = pss, uss

    def end(self) -> None:
        """Reaps the warden; where it still runs, kills it and all below it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            warden = psutil.Process(self._warden)
            for process in [*warden.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        os.waitpid(self._warden, 0)


def _rollup(pid: int) -> dict[str, int]:
    """The sums over all mappings of a process, in bytes. A process that is ending has none."""
    sizes = {"Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        for line in file:
            name, _, rest = line.partition(b":")
            if name.decode("latin-1") in sizes:
                sizes[name.decode()] = int(rest.split()[0]) * 1024
    return sizes


def kernel_threads_cpu_s(name: str = "ksoftirqd") -> float:
    """CPU seconds so far of all kernel threads of that name; 0 where the kernel does not tell."""
    found = 0
    for process in psutil.process_iter(["name"]):
        if process.info["name"].startswith(name):
            with contextlib.suppress(OSError, ValueError):
                found += int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0])
    return found / 1e9


_BURNERS = """
import os, signal, sys, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
def child(seconds, then):
    pid = os.fork()
    if pid == 0:
        burn(seconds)
        then()
        os._exit(0)
    return pid
def below():
    killed = child(0.3, signal.pause)
    time.sleep(0.6)
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    child(0.3, lambda: None)
burn(0.1)
os.waitpid(child(0.2, below), 0)
"""


def check() -> None:
    """Proves that the sum is complete: 0.1 s in a process, 0.2 s in its child, 0.3 s in a grandchild that is killed,
    0.3 s in one that is orphaned.

    Raises:
        RunFailed: some of it was lost on this machine.
    """
    found = run([sys.executable, "-I", "-S", "-c", _BURNERS], os.environ, timeout_s=30).cpu_s
    if not 0.89 <= found <= 1.2:
        raise RunFailed(f"CPU seconds of descendants: expected 0.90 to 1.20, found {found:.3f}: it is incomplete")
