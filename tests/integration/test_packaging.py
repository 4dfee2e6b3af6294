"""The wheel, as a user gets it: with a compiler, and without."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ["engine", "native", "pyproject.toml", "setup.py", "README.md", "LICENSE"]
SHOW = """
from obs_engine import digests
stream = digests.Md5()
stream.update(b"a")
print(digests.kernel(), stream.hexdigest(), sep="\\n")
"""


def build(tmp_path: Path, compiler: str | None) -> Path:
    """A wheel from a copy of the tree."""
    pytest.importorskip("setuptools")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in PARTS:
        if (ROOT / name).is_dir():
            built = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__")
            shutil.copytree(ROOT / name, tree / name, ignore=built)
        else:
            shutil.copy(ROOT / name, tree)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **({"CC": compiler} if compiler else {})}
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), "."],
        cwd=tree, env=environment, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    return wheel


def run(wheel: Path, tmp_path: Path) -> list[str]:
    """What the wheel's package says of its digests."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    done = subprocess.run([sys.executable, "-c", SHOW], cwd="/", env={"PYTHONPATH": str(tmp_path / "installed")},
                          capture_output=True, text=True, timeout=60, check=True)  # fmt: skip
    return done.stdout.split("\n")


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """Types, stubs and, with a compiler, the native module; no test, no benchmark, no document."""
    wheel = build(tmp_path, None)
    names = zipfile.ZipFile(wheel).namelist()
    assert "obs_engine/py.typed" in names
    assert "obs_engine/_native.pyi" in names
    assert all(name.startswith(("obs_engine/", "obs_engine-")) for name in names)
    if shutil.which("cc"):
        assert any(name.startswith("obs_engine/_native.") and name.endswith(".so") for name in names)
        assert not run(wheel, tmp_path)[0].startswith("python")


def test_without_a_compiler_the_install_succeeds_and_says_so(tmp_path: Path) -> None:
    """The portable twins take over, with the same answers."""
    wheel = build(tmp_path, "false")
    assert not any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())
    kernel, digest, *_ = run(wheel, tmp_path)
    assert kernel.startswith("python: no native module")
    assert digest == "0cc175b9c0f1b6a831c399e269772661"
