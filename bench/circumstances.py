"""When, what and where was it? What a number is worth nothing without."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
GB = 10**9


def say(text: str) -> None:
    """Progress, for the person who waits; the table alone goes to standard output."""
    print(text, file=sys.stderr, flush=True)


def environment() -> dict[str, str]:
    """For a client's process: this checkout's engine first."""
    path = [str(ROOT / "engine"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Why bytecode is allowed: a user's second start finds it compiled, and so shall every client here.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": ""}


def available(needs: Mapping[str, str | None]) -> Iterator[str]:
    """The rows that can run here, of those and the package that each needs; says why another cannot."""
    sys.path.append(str(ROOT / "engine"))
    for name, needed in needs.items():
        if needed and importlib.util.find_spec(needed) is None:
            say(f"skipped {name}: expected the package {needed!r}, found none; pip install -e '.[test]' brings it")
        else:
            yield name


def circumstances() -> dict[str, Any]:
    """What a number is worth nothing without."""
    versions = {}
    for name in ("obs-engine", "pycurl", "esdk-obs-python", "xxhash"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    libcurl = "none"
    with contextlib.suppress(ImportError):
        import pycurl

        libcurl = pycurl.version
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short=12", "HEAD") or "unknown",
        "is_changed": bool(_git("status", "--porcelain", "--", "engine", "native", "bench")),
        "machine": {
            "cpu": cpu_name(), "cores": len(psutil.Process().cpu_affinity()), "kernel": platform.release(),
            "memory_gb": round(psutil.virtual_memory().total / GB), "load_before": round(os.getloadavg()[0], 2),
        },
        "python": platform.python_version(),
        "libcurl": libcurl,
        "openssl": ssl.OPENSSL_VERSION,
        "versions": versions,
    }  # fmt: skip


def heading(facts: Mapping[str, Any]) -> str:
    """One line on when, what and where."""
    machine, changed = facts["machine"], " with changes" if facts["is_changed"] else ""
    return (
        f"{facts['date']}, commit {facts['commit']}{changed}, {machine['cores']} x {machine['cpu']}, kernel "
        f"{machine['kernel']}, load before {machine['load_before']}, Python {facts['python']}, "
        f"{' '.join(facts['libcurl'].split()[:3])}, SDK {facts['versions'].get('esdk-obs-python', 'none')}"
    )


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def is_in_memory(folder: Path) -> bool:
    """Is the folder on a tmpfs? A sparse file there turns into memory as it is read."""
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda m: len(m.mountpoint))
    found = [m.fstype for m in mounts if folder.resolve().is_relative_to(m.mountpoint)]
    return bool(found) and found[-1] in ("tmpfs", "ramfs")


def _git(*arguments: str) -> str:
    with contextlib.suppress(OSError):
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if not done.returncode else ""
    return ""
