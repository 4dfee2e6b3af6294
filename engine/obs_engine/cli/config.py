"""`obs-engine config`: profiles, written and shown. A secret comes from a hidden prompt or standard input alone."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from obs_engine.cli.profiles import (
    DEFAULT,
    KEYS,
    Profiles,
    config_file,
    is_secret,
    read_obsutil,
    read_value,
    shown,
)
from obs_engine.errors import InvalidArgumentError

_OBSUTIL = "~/.obsutilconfig"
_SECRET_MAX_BYTES = 1 << 16

_profile = click.option("--profile", "name", envvar="OBS_ENGINE_PROFILE", default=DEFAULT, show_default=True,
                        metavar="NAME", help="Or $OBS_ENGINE_PROFILE.")  # fmt: skip


@click.group()
def config() -> None:
    """Keep endpoint, keys and defaults in profiles.

    Whatever is asked for is taken from the flags, else from the environment (OBS_ENDPOINT, OBS_ACCESS_KEY_ID,
    OBS_SECRET_ACCESS_KEY, OBS_SECURITY_TOKEN), else from the profile, else, for keys, from the provider, if it names
    one.

    \b
    Examples:
      obs-engine config set endpoint https://obs.cn-north-4.myhuaweicloud.com
      obs-engine config set secret_key          (asks; never on the command line)
      obs-engine config import                  (from ~/.obsutilconfig)
    """


@config.command("set")
@click.argument("key", type=click.Choice(KEYS), metavar="KEY")
@click.argument("value", required=False)
@_profile
def set_value(key: str, value: str | None, name: str) -> None:
    """Put a value into a profile.

    \b
    KEY: endpoint access_key secret_key security_token provider signature region
         path_style ca_file part_size parts_in_flight verify max_bandwidth
    Without VALUE it is asked for, or read from standard input. A secret is never
    taken from the command line, where other users can see it.

    \b
    Examples:
      obs-engine config set --profile work part_size 16M
      pass obs/secret | obs-engine config set secret_key
    """
    if value is not None and is_secret(key):
        raise InvalidArgumentError(
            f"{key}: expected no value on the command line, where other users see it, found one; it should be replaced "
            "by another at the service. Leave it away here: it is asked for"
        )
    if value is None:
        value = _asked(key)
    profiles = Profiles(config_file())
    profiles.put(name, {key: read_value(key, value)})
    click.echo(f"{profiles.path} [{name}] {key} = {shown(key, read_value(key, value))}")


@config.command()
@click.argument("key", type=click.Choice(KEYS), metavar="KEY")
@_profile
def unset(key: str, name: str) -> None:
    """Take a value out of a profile.

    \b
    Example:
      obs-engine config unset security_token
    """
    profiles = Profiles(config_file())
    if key not in profiles.get(name):
        click.echo(f"{profiles.path} [{name}] has no {key}")
        return
    profiles.put(name, {key: None})
    click.echo(f"{profiles.path} [{name}] {key} is gone")


@config.command()
@click.option("--profile", "name", envvar="OBS_ENGINE_PROFILE", metavar="NAME", help="This one.  [default: all]")
def show(name: str | None) -> None:
    """Show profiles: secrets as ****, of an access key its end.

    \b
    Example:
      obs-engine config show --profile work
    """
    profiles = Profiles(config_file())
    click.echo(f"# {profiles.path}{'' if profiles.path.exists() else ', which is not there yet'}")
    for known in [name] if name else profiles.names:
        click.echo(f"[{known}]")
        for key, value in profiles.get(known).items():
            click.echo(f"{key} = {shown(key, value)}")
    if profiles.is_exposed:
        click.echo(f"obs-engine: others may read the secrets in it; run: chmod 600 {profiles.path}", err=True)


@config.command("import")
@click.argument("file", default=_OBSUTIL, type=click.Path())
@_profile
def import_obsutil(file: str, name: str) -> None:
    """Take endpoint and keys from obsutil's FILE.

    FILE is ~/.obsutilconfig by default, and is only read. Keys that newer releases of obsutil have encrypted cannot be
    read: they are named, and the rest is taken.

    \b
    Example:
      obs-engine config import --profile work
    """
    path = Path(file).expanduser()
    try:
        text = path.read_text("utf-8", "replace")
    except OSError as error:
        raise InvalidArgumentError(
            f"{path}: expected obsutil's configuration, found {error.strerror}; name the file"
        ) from None
    found, left_out = read_obsutil(text)
    for words in left_out:
        click.echo(f"obs-engine: left out {words}; set it with: obs-engine config set", err=True)
    if not found:
        raise InvalidArgumentError(f"{path}: expected endpoint, ak and sk, found none that can be taken")
    profiles = Profiles(config_file())
    # Why: another key's token would stay beside the new keys.
    profiles.put(name, {"security_token": None, **found} if "secret_key" in found else found)
    click.echo(f"{profiles.path} [{name}]")
    for key, value in found.items():
        click.echo(f"{key} = {shown(key, value)}")


@config.command()
def path() -> None:
    """Say where profiles are kept.

    In $XDG_CONFIG_HOME/obs-engine/config.toml, or in ~/.config for that.

    \b
    Example:
      chmod 600 "$(obs-engine config path)"
    """
    click.echo(config_file())


def _asked(key: str) -> str:
    """From a prompt, hidden where it is a secret; or the first line of standard input where nobody is there."""
    if sys.stdin.isatty():
        return str(click.prompt(key, hide_input=is_secret(key), err=True))
    return sys.stdin.readline(_SECRET_MAX_BYTES).rstrip("\r\n")
