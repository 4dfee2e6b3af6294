"""Which files a job is about: walks, filters, keys, odd names."""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obs_engine.bulk.sources import Filters, Found, Odd, Walk, cause_against, listed
from obs_engine.errors import InvalidArgumentError


def tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def keys(walk: Walk) -> list[str]:
    return [found.key for found in walk if isinstance(found, Found)]


def odd(walk: Walk) -> list[str]:
    return [found.cause for found in walk if isinstance(found, Odd)]


def walk(*sources: Path | str, prefix: str = "", **how: object) -> Walk:
    return Walk([str(source) for source in sources], prefix, **{"is_recursive": True, **how})  # type: ignore[arg-type]


def test_a_folder_keeps_its_name_and_one_with_a_slash_does_not(tmp_path: Path) -> None:
    """As rsync has it; the order is that of names, folder by folder."""
    source = tree(tmp_path / "data", "b", "a/2", "a/1", "c/d/e")
    assert keys(walk(source, prefix="p/")) == ["p/data/a/1", "p/data/a/2", "p/data/b", "p/data/c/d/e"]
    assert keys(walk(f"{source}/")) == ["a/1", "a/2", "b", "c/d/e"]
    assert keys(walk(source / "b", source / "a" / "1", prefix="p/")) == ["p/b", "p/1"]


def test_what_a_file_is_comes_with_it(tmp_path: Path) -> None:
    """One look tells size, time and inode."""
    path = tree(tmp_path, "file") / "file"
    (found,) = walk(path)
    there = path.stat()
    assert found == Found(str(path), "file", 4, there.st_mtime_ns, there.st_ino)


def test_patterns_that_a_shell_left_are_expanded(tmp_path: Path) -> None:
    """And one that fits nothing is said before anything starts."""
    tree(tmp_path, "a.log", "b.log", "c.txt", "d/e.log")
    assert keys(walk(f"{tmp_path}/*.log")) == ["a.log", "b.log"]
    assert keys(walk(f"{tmp_path}/**/*.log")) == ["a.log", "b.log", "e.log"]
    for source in (f"{tmp_path}/*.nothing", tmp_path / "missing"):
        with pytest.raises(InvalidArgumentError, match="a file, a folder or a pattern"):
            walk(source)
    with pytest.raises(InvalidArgumentError, match="--recursive"):
        walk(tmp_path, is_recursive=False)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([], {"a.log", "b.txt", "cache/c.log", "x/cache/d", "x/y/z.log"}),
        ([(False, "*.log")], {"b.txt", "x/cache/d"}),
        ([(True, "*.log")], {"a.log", "cache/c.log", "x/y/z.log"}),
        ([(True, "a.log"), (False, "*.log"), (True, "*")], {"a.log", "b.txt", "x/cache/d"}),
        ([(False, "cache/")], {"a.log", "b.txt", "x/y/z.log"}),
        ([(False, "/cache/")], {"a.log", "b.txt", "x/cache/d", "x/y/z.log"}),
        ([(False, "x/**")], {"a.log", "b.txt", "cache/c.log"}),
        ([(False, "x/*")], {"a.log", "b.txt", "cache/c.log", "x/cache/d", "x/y/z.log"}),
        ([(True, "**/[a-c].*")], {"a.log", "b.txt", "cache/c.log"}),
        ([(False, "[!a]*.log")], {"a.log", "b.txt", "x/cache/d"}),
    ],
)  # fmt: skip
def test_filters(tmp_path: Path, patterns: list[tuple[bool, str]], expected: set[str]) -> None:
    """The first that fits decides; names without a slash, paths with one; folders with one at their end."""
    source = tree(tmp_path, "a.log", "b.txt", "cache/c.log", "x/cache/d", "x/y/z.log")
    assert set(keys(walk(f"{source}/", filters=Filters(patterns)))) == expected


@given(st.text("ab.*?", min_size=1, max_size=6), st.text("ab.", min_size=1, max_size=6))
def test_simple_patterns_are_a_shells(pattern: str, name: str) -> None:
    """Without slashes and classes, they mean what they do in a shell."""
    if pattern.replace("*", ""):
        collapsed = pattern
        while "**" in collapsed:
            collapsed = collapsed.replace("**", "*")
        assert Filters([(True, collapsed)]).takes(name) == fnmatch.fnmatchcase(name, collapsed)


def test_an_empty_pattern_is_none() -> None:
    """It would be everything or nothing."""
    with pytest.raises(InvalidArgumentError, match="a pattern such as"):
        Filters([(False, "/")])


def test_names_that_cannot_be_keys_are_told_and_not_changed(tmp_path: Path) -> None:
    """Other bytes than UTF-8, control characters; the rest goes on."""
    tree(tmp_path, "good", "new\nline")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))).write_text("x")
    found = walk(f"{tmp_path}/")
    assert keys(found) == ["good"]
    said = list(walk(f"{tmp_path}/"))
    causes = sorted(one.cause for one in said if isinstance(one, Odd))
    assert causes == [
        "expected a name in UTF-8, found other bytes; rename it",
        "expected a name without control characters, found one; rename it",
    ]
    assert all(one.path.isprintable() and one.path.isascii() for one in said if isinstance(one, Odd))


@pytest.mark.parametrize(
    ("key", "word"),
    [("a/../b", "'..'"), ("./a", "'.'"), ("k" * 1025, "1025"), ("ä" * 513, "1026"), ("a\x00b", "control"),
     ("a/b", None)],
)  # fmt: skip
def test_keys_that_cannot_be(key: str, word: str | None) -> None:
    """With the reason."""
    cause = cause_against(key)
    assert (cause is None) if word is None else (cause is not None and word in cause)


def test_links_are_followed_or_left_out(tmp_path: Path) -> None:
    """One that leads back up is told, and one that leads nowhere; none of both ends the walk."""
    source = tree(tmp_path / "data", "real/file")
    (source / "link").symlink_to(source / "real")
    (source / "loop").symlink_to(source)
    (source / "nowhere").symlink_to(source / "missing")
    assert keys(walk(f"{source}/")) == ["link/file", "real/file"]
    assert sorted(cause.split(",")[0] for cause in odd(walk(f"{source}/"))) == ["expected a file", "expected a tree"]
    skipping = walk(f"{source}/", symlinks="skip")
    assert keys(skipping) == ["real/file"]
    assert skipping.skipped == 3


def test_what_is_no_regular_file_is_told(tmp_path: Path) -> None:
    """A pipe would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    assert "regular file" in odd(walk(f"{tmp_path}/"))[0]


def test_two_sources_of_one_key_are_told(tmp_path: Path) -> None:
    """The second would overwrite the first."""
    one, two = tree(tmp_path / "1", "same", "a"), tree(tmp_path / "2", "same", "b")
    assert keys(walk(f"{one}/", f"{two}/")) == ["a", "same", "b"]
    assert "another source" in odd(walk(f"{one}/", f"{two}/"))[0]


def test_a_list_of_files(tmp_path: Path) -> None:
    """Their paths below the base are their keys; what is not there, or leads out of it, is told."""
    tree(tmp_path, "a", "b/c")
    found = list(listed(["a\n", "\n", "b/c\n", "missing\n", "../x/a\n", "b\n"], str(tmp_path), "p/"))
    assert [one.key for one in found if isinstance(one, Found)] == ["p/a", "p/b/c"]
    assert len([one for one in found if isinstance(one, Odd)]) == 3
