"""Profiles: where the service is, with which keys, and how uploads run, by name in one TOML file.

Knows the file, its keys and what they may be. Does not know flags or the environment, which both win over it; see
`connection`. Secrets are in it in the clear, so it is made for its owner alone (0600), and no message shows one.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, get_args

from obs_engine.cli.amounts import Timetable, bytes_of
from obs_engine.errors import InvalidArgumentError
from obs_engine.options import Verify
from obs_engine.wire.endpoint import parse_endpoint

Value = str | int | bool
Profile = dict[str, Value]

DEFAULT = "default"
PROVIDERS = ("ENV", "ECS", "OIDC", "OBS_DEFAULT")
SIGNATURES = ("obs", "v2", "v4")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # what TOML takes without quotes
_KEY_LENGTH_SHOWN = 12  # of a shorter one, four letters would be much
_HEAD = "# Written by `obs-engine config`, which keeps no comments. Secrets are in the clear: keep it to yourself.\n"


class Kind(NamedTuple):
    """One key of a profile.

    Attributes:
        read: its value from text, or ValueError (of which InvalidArgumentError is one).
        expected: in words.
        is_secret: never shown, and never taken from a command line, where other users see it.
    """

    read: Callable[[str], Value]
    expected: str
    is_secret: bool = False


def _endpoint(text: str) -> str:
    parse_endpoint(text)
    return text.strip()


def _printable(text: str) -> str:
    if not text.strip() or not text.strip().isprintable():
        raise ValueError
    return text.strip()


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return read


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "yes", "false", "no"):
        raise ValueError
    return text.lower() in ("true", "yes")


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 10_000:
        raise ValueError
    return number


def _size(text: str) -> str:
    if not bytes_of(text, unit="M"):
        raise ValueError
    return text


def _cap(text: str) -> str:
    Timetable.of(text)
    return text


_KINDS: Mapping[str, Kind] = {
    "endpoint": Kind(_endpoint, "a host such as https://obs.cn-north-4.myhuaweicloud.com"),
    "access_key": Kind(_printable, "an access key id"),
    "secret_key": Kind(_printable, "a secret access key", is_secret=True),
    "security_token": Kind(_printable, "a security token", is_secret=True),
    "provider": Kind(_one_of(*PROVIDERS), f"one of {', '.join(PROVIDERS)}"),
    "signature": Kind(_one_of(*SIGNATURES), f"one of {', '.join(SIGNATURES)}"),
    "region": Kind(_printable, "a name such as cn-north-4"),
    "path_style": Kind(_yes_or_no, "true or false"),
    "ca_file": Kind(lambda text: os.path.abspath(_printable(text)), "the path of a PEM file"),
    "part_size": Kind(_size, "MiB, or a number with B, K, M or G"),
    "parts_in_flight": Kind(_count, "a number from 1 to 10000"),
    "verify": Kind(_one_of(*get_args(Verify)), f"one of {', '.join(get_args(Verify))}"),
    "max_bandwidth": Kind(_cap, "bytes a second such as 20M, off, or '08:00,20M 19:00,off'"),
}  # fmt: skip
KEYS = tuple(_KINDS)


def is_secret(key: str) -> bool:
    """May its value not be shown?"""
    return _KINDS[key].is_secret


def read_value(key: str, text: str) -> Value:
    """The value of a profile's key, from text.

    Raises:
        InvalidArgumentError: there is no such key, or the text is no value of it. A secret is not shown.
    """
    kind = _kind(key)
    try:
        return kind.read(text)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{key}: {error.message}") from None
    except ValueError:
        found = "another text" if kind.is_secret else text
        raise InvalidArgumentError(key, kind.expected, found, "correct the value") from None


def config_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where profiles are kept. Source: XDG Base Directory Specification; a relative $XDG_CONFIG_HOME does not count."""
    home = environment.get("XDG_CONFIG_HOME") or ""
    where = Path(home) if os.path.isabs(home) else Path(os.path.expanduser("~"), ".config")
    return where / "obs-engine" / "config.toml"


class Profiles:
    """The profiles of one file.

    Attributes:
        path: of the file, which need not be there.
        is_exposed: others than its owner may read it, and there are secrets in it.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            InvalidArgumentError: it cannot be read, or is not what `config` writes.
        """
        self.path = path
        self._tables: dict[str, dict[str, Any]] = {}
        self.is_exposed = False
        try:
            with open(path, "rb") as file:
                others_may = os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO)
                text = file.read().decode()
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise self._wrong(f"{getattr(error, 'strerror', None) or 'bytes that are no UTF-8'}") from None
        for name, table in _parsed(text, self).items():
            if not isinstance(table, dict) or not _NAME.fullmatch(name):
                raise self._wrong(f"{name!r} outside of a table such as [{DEFAULT}]")
            self._tables[name] = table
        holds_secret = any(_KINDS[key].is_secret for table in self._tables.values() for key in table if key in _KINDS)
        self.is_exposed = bool(others_may) and holds_secret

    @property
    def names(self) -> list[str]:
        """Of all profiles."""
        return list(self._tables)

    def get(self, name: str) -> Profile:
        """A profile's values, each checked; the one that is named "default" may be missing.

        Raises:
            InvalidArgumentError: there is none of that name, or a value is wrong.
        """
        if name not in self._tables:
            if name == DEFAULT:
                return {}
            known = ", ".join(self._tables) or "none"
            raise InvalidArgumentError(
                f"profile {name!r}: expected one of {self.path}, found {known} there; correct --profile or "
                "$OBS_ENGINE_PROFILE, or make it with `obs-engine config set`"
            )
        found: Profile = {}
        for key, value in self._tables[name].items():
            if not isinstance(value, (str, int, float)):
                raise self._wrong(f"[{name}] {key}: a {type(value).__name__}")
            try:
                found[key] = read_value(key, str(value))
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"config file {self.path}, [{name}] {error.message}") from None
        return found

    def put(self, name: str, changes: Mapping[str, Value | None]) -> None:
        """Changes a profile, made where missing, and writes the file; None takes a key away.

        Raises:
            InvalidArgumentError: the name is none for a profile, or the file cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError("profile", "1 to 64 letters, digits, '-' and '_'", name, "choose another name")
        tables = {known: self.get(known) for known in self._tables}
        table = tables.setdefault(name, {})
        for key, value in changes.items():
            _kind(key)
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value
        try:
            _replace(self.path, _written(tables))
        except OSError as error:
            raise InvalidArgumentError(
                f"config file {self.path}: expected to write it, found {error.strerror}; the old one stays"
            ) from None
        self._tables, self.is_exposed = {**tables}, False

    def _wrong(self, found: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"config file {self.path}: expected tables of plain values such as `obs-engine config set` writes, found "
            f"{found}; correct the file"
        )


def shown(key: str, value: Value) -> str:
    """A value for people: nothing of a secret, the end of an access key."""
    if is_secret(key):
        return "****"
    if key == "access_key":
        return f"****{str(value)[-4:] if len(str(value)) >= _KEY_LENGTH_SHOWN else ''}"
    return _toml(value)[1:-1] if isinstance(value, str) else _toml(value)


def read_obsutil(text: str) -> tuple[Profile, list[str]]:
    """A profile from obsutil's configuration file, and what of it was left out, in words.

    Source: obsutil's Tools Guide: lines `key=value`; `endpoint`, `ak`, `sk`, `token`, `autoChooseSecurityProvider`.
    """
    said: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and value.strip() and not line.lstrip().startswith(("#", ";")):
            said[name.strip()] = value.strip()
    found: Profile = {}
    left_out: list[str] = []
    names = {"endpoint": "endpoint", "ak": "access_key", "sk": "secret_key", "token": "security_token"}
    # Why all or nothing: one key without the other, or with another's token, is refused by the service.
    are_readable = _is_plain_pair(said.get("ak"), said.get("sk"))
    for theirs, key in names.items():
        if theirs not in said:
            continue
        if theirs != "endpoint" and not are_readable:
            left_out.append(f"{theirs}: its pair of ak and sk is not whole, or is encrypted, as newer releases do")
            continue
        try:
            found[key] = read_value(key, said[theirs])
        except InvalidArgumentError as error:
            left_out.append(f"{theirs}: {error.message}")
    if said.get("autoChooseSecurityProvider", "").lower() == "true":
        found["provider"] = "OBS_DEFAULT"
    return found, left_out


def _is_plain_pair(access_key: str | None, secret_key: str | None) -> bool:
    """Do both look as the service issues them? What is encrypted is longer, and of other letters."""
    return bool(
        access_key and re.fullmatch(r"[A-Za-z0-9]{8,32}", access_key)
        and secret_key and re.fullmatch(r"[A-Za-z0-9+/]{16,64}", secret_key)
    )  # fmt: skip


def _kind(key: str) -> Kind:
    if key not in _KINDS:
        raise InvalidArgumentError(f"key {key!r}: expected one of {', '.join(KEYS)}, found another; correct it")
    return _KINDS[key]


def _parsed(text: str, profiles: Profiles) -> dict[str, Any]:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        toml = import_module(name)
    except ImportError:
        raise InvalidArgumentError(
            f"config file {profiles.path}: expected the package {name} to read it, found none; run: pip install "
            "'obs-engine[cli]'"
        ) from None
    try:
        found: dict[str, Any] = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise profiles._wrong(f"no TOML ({error})") from None
    return found


def _written(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Flat tables of plain values as TOML. Why no library: this is all of it that is needed."""
    blocks = [
        f"\n[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    ]
    return _HEAD + "".join(blocks)


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    # Source: TOML 1.0, basic strings: quotes, backslashes and control characters are escaped.
    return '"' + "".join(_escaped(character) for character in value) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return f"\\u{ord(character):04X}" if ord(character) < 0x20 or ord(character) == 0x7F else character


def _replace(path: Path, text: str) -> None:
    """Puts a file in the place of the old one, at once, for its owner alone. Follows a link."""
    if not path.is_absolute():
        raise OSError(errno.ENOENT, "no home directory to write it to (set HOME or XDG_CONFIG_HOME)")
    path = Path(os.path.realpath(path))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".config-")  # 0600
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
