"""Which files a job is about, and the key of each. Runs in the process that runs a job.

A walk hands out files while it goes on: nothing waits for the end of a tree, and no list of it is kept. Names that
cannot be keys are told with a reason, and never changed. Knows paths and keys; does not know what becomes of the files.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from obs_engine.errors import InvalidArgumentError
from obs_engine.limits import KEY_LENGTH_MAX

SYMLINKS = "follow", "skip"
_GLOB = re.compile(r"[*?\[]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Found(NamedTuple):
    """A file to be sent."""

    path: str
    key: str
    size_bytes: int
    mtime_ns: int
    inode: int


class Odd(NamedTuple):
    """What cannot be sent, and why; printable, whatever its name is."""

    path: str
    cause: str


class _Rule(NamedTuple):
    """A pattern: of a path or of a name, for folders (`name/`) or for files."""

    is_included: bool
    is_path: bool
    is_folder: bool
    regex: re.Pattern[str]

    def fits(self, path: str) -> bool:
        return self.regex.match(path if self.is_path else path.rpartition("/")[2]) is not None


class Filters:
    """Which paths of a source count.

    A pattern with a slash is compared with the path below the source, one without with the name alone; `**` stands for
    any folders, `*` and `?` for all but a slash. The first that fits decides. What none fits counts, unless there is an
    include. A pattern with a slash at its end is of folders: one that is excluded is not entered.
    """

    def __init__(self, patterns: Iterable[tuple[bool, str]] = ()) -> None:
        """
        Args:
            patterns: in the order that they were given; True includes.

        Raises:
            InvalidArgumentError: an empty one.
        """
        rules = []
        for is_included, pattern in patterns:
            bare = pattern.strip("/")
            if not bare:
                raise InvalidArgumentError("--include, --exclude", "a pattern such as '*.log' or 'cache/'", pattern)
            is_path = "/" in bare or pattern.startswith("/")
            rules.append(_Rule(is_included, is_path, pattern.endswith("/"), _regex(bare)))
        self._files = [rule for rule in rules if not rule.is_folder]
        self._folders = [rule for rule in rules if rule.is_folder]
        self._default = not any(rule.is_included for rule in self._files)

    def takes(self, path: str) -> bool:
        """A file, by its path below the source."""
        return next((rule.is_included for rule in self._files if rule.fits(path)), self._default)

    def enters(self, path: str) -> bool:
        """A folder."""
        return next((rule.is_included for rule in self._folders if rule.fits(path)), True)


def _regex(pattern: str) -> re.Pattern[str]:
    """Of a pattern whose `*` stops at a slash, and whose `**` does not."""
    words = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+])", pattern)
    found = (words.get(part) or (_class(part) if part.startswith("[") else re.escape(part)) for part in parts)
    return re.compile("".join(found) + r"\Z", re.DOTALL)


def _class(part: str) -> str:
    """`[a-z]` and `[!a-z]` in the words of regular expressions."""
    inner = part[1:-1].replace("\\", "\\\\")
    return f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"


class Walk:
    """The files of some sources; to be iterated once.

    A source that is a folder becomes `prefix/folder/...`; with a slash at its end, its content becomes `prefix/...`, as
    `rsync` has it. A file becomes `prefix/name`. What a shell has left of a pattern is expanded here.

    Attributes:
        skipped: files that the filters left out, and links that were not followed.
    """

    def __init__(
        self, sources: Sequence[str], prefix: str, *, is_recursive: bool, filters: Filters | None = None,
        symlinks: str = "follow",
    ) -> None:  # fmt: skip
        """
        Args:
            prefix: of all keys; "" or with a slash at its end.

        Raises:
            InvalidArgumentError: a source that is not there, a pattern that fits nothing, a folder without
                `is_recursive`.
        """
        self._prefix = prefix
        self._filters = filters or Filters()
        self._follows = symlinks == "follow"
        self.skipped = 0
        self._sources = [path for source in sources for path in _expanded(source)]
        for source in self._sources:
            if os.path.isdir(source) and not is_recursive:
                raise InvalidArgumentError("source", "a file, or --recursive", source, "add --recursive for a folder")
        self._is_alone = len(self._sources) == 1
        self._keys: set[int] = set()

    def __iter__(self) -> Iterator[Found | Odd]:
        for source in self._sources:
            if os.path.isdir(source):
                name = "" if source.endswith("/") else os.path.basename(os.path.abspath(source)) + "/"
                yield from self._folder(os.path.abspath(source), self._prefix + name, "", ())
            else:
                path = os.path.abspath(source)
                yield from self._file(path, self._prefix + os.path.basename(path), os.path.basename(path))

    def _folder(
        self, folder: str, prefix: str, below: str, above: tuple[tuple[int, int], ...]
    ) -> Iterator[Found | Odd]:
        try:
            here = os.stat(folder)
            if (here.st_dev, here.st_ino) in above:
                yield _odd(folder, "expected a tree, found a link that leads back to a folder above it")
                return
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield _odd(folder, f"expected a folder that can be read, found {error.strerror}")
            return
        for entry in found:
            path, name = entry.path, f"{below}{entry.name}"
            try:
                is_link = entry.is_symlink()
                if is_link and not self._follows:
                    self.skipped += 1
                elif entry.is_dir():
                    if self._filters.enters(name):
                        yield from self._folder(path, prefix, f"{name}/", (*above, (here.st_dev, here.st_ino)))
                elif self._filters.takes(name):
                    yield from self._checked(path, prefix + name, entry.stat())
                else:
                    self.skipped += 1
            except OSError as error:
                yield _odd(path, f"expected a file, found {error.strerror}")

    def _file(self, path: str, key: str, name: str) -> Iterator[Found | Odd]:
        if not self._filters.takes(name):
            self.skipped += 1
            return
        try:
            yield from self._checked(path, key, os.stat(path))
        except OSError as error:
            yield _odd(path, f"expected a file, found {error.strerror}")

    def _checked(self, path: str, key: str, found: os.stat_result) -> Iterator[Found | Odd]:
        if not stat.S_ISREG(found.st_mode):
            yield _odd(path, "expected a regular file, found another kind; leave it out with --exclude")
            return
        cause = cause_against(key)
        if cause is None and not self._is_alone:
            if hash(key) in self._keys:
                cause = f"expected a key of its own, found {key!r} of another source, too; rename one"
            self._keys.add(hash(key))
        if cause is not None:
            yield _odd(path, cause)
        else:
            yield Found(path, key, found.st_size, found.st_mtime_ns, found.st_ino)


def cause_against(key: str) -> str | None:
    """Why a key cannot be one; None where it can."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return "expected a name in UTF-8, found other bytes; rename it"
    if size > KEY_LENGTH_MAX:
        return f"expected a key of at most {KEY_LENGTH_MAX} bytes, found {size}; use a shorter prefix, or rename it"
    if _CONTROL.search(key):
        return "expected a name without control characters, found one; rename it"
    if any(part in (".", "..") for part in key.split("/")):
        return "expected a key without '.' and '..', found one; name the file by its own path"
    return None


def listed(lines: Iterable[str], base: str, prefix: str) -> Iterator[Found | Odd]:
    """The files of a list, one path a line, relative to `base`; their paths below it are their keys below `prefix`."""
    for line in lines:
        name = line.rstrip("\n")
        if not name:
            continue
        path = os.path.join(base, name)
        key = prefix + name.lstrip("/")
        cause = cause_against(key)
        try:
            found = os.stat(path)
        except (OSError, ValueError) as error:
            yield _odd(path, f"expected a file, found {getattr(error, 'strerror', None) or error}")
            continue
        if cause is None and not stat.S_ISREG(found.st_mode):
            cause = "expected a regular file, found another kind"
        yield Found(path, key, found.st_size, found.st_mtime_ns, found.st_ino) if cause is None else _odd(path, cause)


def _expanded(source: str) -> list[str]:
    if os.path.lexists(source):
        return [source]
    found = sorted(glob.glob(source, recursive=True)) if _GLOB.search(source) else []
    if not found:
        raise InvalidArgumentError("source", "a file, a folder or a pattern that fits some", source, "check its name")
    return found


def _odd(path: str, cause: str) -> Odd:
    return Odd(path.encode("utf-8", "backslashreplace").decode().encode("unicode_escape").decode(), cause)
