"""The rules of the house, checked: floors, walls, and words that do not belong here."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "engine" / "obs_engine"

# A module imports only from lower floors, and on its own floor only within its own room.
FLOORS = {
    "errors": 0, "limits": 0, "_native": 0,
    "wire": 1, "checkpoint": 1, "source": 1, "options": 1, "digests": 1, "models": 1, "log_conf": 1, "log_file": 1,
    "transfer": 2, "credentials": 2,
    "settings": 3, "results": 3,
    "arguments": 4, "many_files": 4,
    "client": 5,
    "accelerate": 6,
    "__init__": 7, "bulk": 7, "testing": 7,
    "cli": 8,
    "__main__": 9,
}  # fmt: skip
# Which rooms may go through which door to the outside. `testing` is a server of its own, with its own doors.
KEEPERS = {
    "pycurl": {"transfer/transport.py", "cli/machine.py"},  # machine: only to say which libcurl it is
    "mmap": {"source"},
    "fcntl": {"checkpoint/disk.py"},
    "hmac": {"wire/signing.py"},
    "xxhash": {"transfer/pieces.py", "transfer/content_tree.py"},
    "_native": {"digests.py"},
    "random": {"transfer/service.py", "transfer/negotiation.py"},
    "time": {
        "transfer/upload.py", "transfer/service.py", "transfer/access.py", "transfer/negotiation.py",
        "transfer/worker.py", "transfer/checkpoint_file.py", "transfer/bandwidth.py", "transfer/pace.py",
        "transfer/verification.py", "transfer/flow.py", "transfer/tail.py", "transfer/resolver.py",
        "transfer/transport.py",
        "client.py", "many_files.py", "bulk/copy.py", "credentials/source.py", "credentials/keeper.py",
        "credentials/asking.py", "cli",
    },
    "subprocess": {"transfer/launch.py", "cli"},
    "asyncio": {
        "transfer/pool.py", "transfer/upload.py", "transfer/coordinator.py", "transfer/service.py",
        "transfer/access.py", "transfer/checkpoint_file.py", "transfer/progress.py",
        "transfer/bandwidth.py", "transfer/content_tree.py", "transfer/pace.py", "transfer/proof.py",
        "transfer/gate.py", "transfer/concurrency.py", "transfer/tail.py", "transfer/resolver.py",
        "transfer/small_files.py",
    },
    "xml": {"wire/xml.py"},
    "click": {"cli"},
    "rich": {"cli"},
    "h11": set(),
    "pickle": set(),
    "marshal": set(),
    "ctypes": set(),
}
FORBIDDEN_CALLS = {"eval", "exec", "print"}
PRINTERS = {"cli", "testing"}  # testing's server says that it is ready
FORBIDDEN_NAMES = {"utils", "helpers", "manager", "base", "common", "misc"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(), str(path))


def room(relative: str) -> str:
    return relative.split("/", maxsplit=1)[0].removesuffix(".py")


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every module that is named in an import, except those for type checking alone."""
    skipped = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or "", node.lineno
            if node.module == "obs_engine":
                yield from ((f"obs_engine.{alias.name}", node.lineno) for alias in node.names)


def is_kept_by(relative: str, keepers: set[str]) -> bool:
    return any(relative == keeper or relative.startswith(f"{keeper}/") for keeper in keepers)


@pytest.mark.parametrize(("relative", "tree"), [pytest.param(*m, id=m[0]) for m in modules()])
def test_module_keeps_the_house_rules(relative: str, tree: ast.Module) -> None:
    """Imports go down; doors have keepers; names say what a thing is; every module says what it is for."""
    faults = [*import_faults(relative, tree), *call_faults(relative, tree), *name_faults(relative, tree)]
    assert not faults, f"{relative}: " + "; ".join(faults)


def import_faults(relative: str, tree: ast.Module) -> Iterator[str]:
    here = room(relative)
    for name, line in imports(tree):
        top, _, rest = name.partition(".")
        if top == "obs_engine":
            there = rest.partition(".")[0] or "__init__"
            if there == "__init__" and here in ("cli", "testing", "__main__"):
                continue
            if there == "testing" and here != "testing" and relative not in {"cli/serve.py", "cli/demo.py"}:
                yield f"line {line}: only `serve` and `demo` may import testing"
            if there != here and FLOORS[there] >= FLOORS[here]:
                yield f"line {line}: {here} (floor {FLOORS[here]}) imports {there} (floor {FLOORS[there]})"
        keepers = KEEPERS.get("_native" if name == "obs_engine._native" else top)
        if keepers is not None and here != "testing" and not is_kept_by(relative, keepers):
            yield f"line {line}: {top} is kept by {sorted(keepers) or 'nobody'}"


def call_faults(relative: str, tree: ast.Module) -> Iterator[str]:
    here = room(relative)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in FORBIDDEN_CALLS and not (called == "print" and here in PRINTERS):
            yield f"line {node.lineno}: {called}()"
        if called in ("os.fsync", "os.fdatasync") and relative != "checkpoint/disk.py" and here != "testing":
            yield f"line {node.lineno}: fsync is kept by checkpoint/disk.py"


def name_faults(relative: str, tree: ast.Module) -> Iterator[str]:
    if set(Path(relative).with_suffix("").parts) & FORBIDDEN_NAMES:
        yield "a module is named for what it does, not utils, helpers, manager or base"
    if not ast.get_docstring(tree):
        yield "a module says what it is, where it runs, what it knows"
    for node in tree.body:
        is_public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        if is_public and not ast.get_docstring(node):
            yield f"line {node.lineno}: {node.name} has no docstring"


def test_every_module_has_a_floor() -> None:
    """A new room is given a floor before it is built."""
    assert {room(relative) for relative, _ in modules()} <= set(FLOORS)


def test_no_wall_is_kept_for_nobody_who_left() -> None:
    """A keeper that no longer exists is taken off the list."""
    for keepers in KEEPERS.values():
        for keeper in keepers:
            assert (PACKAGE / keeper).exists(), keeper


def test_every_difference_has_its_test() -> None:
    """Each row of README's table names the beginning of a test's name, and there is such a test."""
    text = (ROOT / "README.md").read_text()
    _, _, table = text.partition("## Differences from the official SDK")
    rows = [line for line in table.partition("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`([a-z_/0-9]+\.py)::(test_\w*)`", row)
        assert named, row
        for path, name in named:
            assert f"def {name}" in (ROOT / "tests" / path).read_text(), f"{path}::{name}"


def test_tree_is_free_of_leftovers() -> None:
    """No path of a machine, no registry host, no unfinished marks."""
    words = [r"/[w]ork/", r"/tmp/[d]ev", r"files\.[p]ythonhosted", r"\bFIX[M]E\b", r"\bXX[X]\b", r"\bTO[D]O\b"]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if path.suffix in {".bin", ".png"} or not path.is_file():
            continue
        found = re.search("|".join(words), path.read_text(errors="replace"))
        assert not found, f"{name}: {found.group() if found else ''}"
