"""What all commands that speak with a service have in common: its options, its client, its targets, a progress bar.

What is not given as a flag comes from the environment, else from a profile (`profiles`), else, for keys, from a
provider. Keys come from one place whole: never the token of one source with the keys of another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress

from obs_engine.cli.amounts import Timetable, bytes_of
from obs_engine.cli.profiles import DEFAULT, PROVIDERS, SIGNATURES, Profile, Profiles, Value, config_file
from obs_engine.client import ObsClient
from obs_engine.errors import InvalidArgumentError
from obs_engine.limits import MIB
from obs_engine.options import EngineOptions
from obs_engine.transfer.messages import Progress

SCHEME = "obs://"

_PROFILE = "obs_engine.profile"  # where the context keeps it

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]


def connection_options(command: Command) -> Command:
    """File and target, and the options that `open_client` takes."""
    return decorated(command, [
        click.argument("file", type=click.Path()),
        click.argument("target", metavar="obs://BUCKET/KEY"),
        service_options(),
    ])  # fmt: skip


def service_options(*, is_brief: bool = False, is_required: bool = True) -> Callable[[Any], Any]:
    """The options that `open_client` takes.

    Args:
        is_brief: the help shows `--profile` and `--endpoint` alone; `config --help` speaks of all of them.
        is_required: without an endpoint there is nothing to do.
    """

    def option(*names: str, **more: Any) -> Callable[[Any], Any]:
        return click.option(*names, hidden=is_brief, **more)

    def add(command: Any) -> Any:
        return decorated(command, [
            click.option("--profile", envvar="OBS_ENGINE_PROFILE", metavar="NAME", is_eager=True, expose_value=False,
                         callback=_take_profile, help="Of `obs-engine config`; or $OBS_ENGINE_PROFILE."),
            click.option("--endpoint", envvar="OBS_ENDPOINT", required=is_required,
                         help="E.g. https://obs.x.com; or $OBS_ENDPOINT."),
            option("--access-key", envvar="OBS_ACCESS_KEY_ID", default="", help="Better in $OBS_ACCESS_KEY_ID."),
            option("--secret-key", envvar="OBS_SECRET_ACCESS_KEY", default="",
                   help="Better in $OBS_SECRET_ACCESS_KEY."),
            option("--security-token", envvar="OBS_SECURITY_TOKEN", help="Better in $OBS_SECURITY_TOKEN."),
            option("--provider", type=click.Choice(PROVIDERS), help="Of keys, where none are given."),
            option("--signature", type=click.Choice(SIGNATURES), default="obs", show_default=True),
            option("--region", default="region", help="For --signature v4."),
            option("--path-style", is_flag=True, help="host/bucket/key instead of bucket.host/key."),
            option("--ca-file", type=click.Path(exists=True, dir_okay=False), help="Trusted certificates (PEM)."),
        ])  # fmt: skip

    return add


def _take_profile(context: click.Context, _option: click.Parameter, name: str | None) -> None:
    """Puts a profile's values where click looks for what neither a flag nor the environment says."""
    path = config_file()
    # Why silent: who runs as another user, or completes a line, has not asked for a profile.
    if context.resilient_parsing or (name is None and not os.access(path, os.R_OK)):
        return
    profiles = Profiles(path)
    profile = profiles.get(name or DEFAULT)
    if profiles.is_exposed:
        click.echo(
            f"obs-engine: config file {profiles.path}: expected it to be its owner's alone, as secrets are in it, "
            f"found it open to others; run: chmod 600 {profiles.path}", err=True,
        )  # fmt: skip
    context.meta[_PROFILE] = profile
    known = {option.name or "" for option in context.command.params}
    context.default_map = {name: value for name, value in _defaults(profile, known).items() if name in known}


def _defaults(profile: Profile, known: set[str]) -> dict[str, Value | float]:
    """A profile's values by the names that commands have for them; without keys."""
    named: dict[str, Value | float] = {
        name: profile[name]
        for name in ("endpoint", "provider", "signature", "region", "path_style", "ca_file") if name in profile
    }  # fmt: skip
    if "part_size_mib" in known:  # an upload's options: other commands have other ones of the same names
        named |= {name: profile[name] for name in ("verify", "max_bandwidth") if name in profile}
        if "part_size" in profile:
            named["part_size_mib"] = (bytes_of(str(profile["part_size"]), unit="M") or 0) / MIB
        if "parts_in_flight" in profile:
            named["task_num"] = profile["parts_in_flight"]
    return named


def decorated(command: Command, decorators: list[Callable[[Any], Any]]) -> Command:
    """The command with all of these options, in this order."""
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def open_client(
    engine: EngineOptions, *, endpoint: str, access_key: str, secret_key: str, security_token: str | None,
    signature: str, region: str, path_style: bool, ca_file: str | None, provider: str | None = None,
) -> ObsClient:  # fmt: skip
    """A client as the options want it.

    Raises:
        InvalidArgumentError: an option is wrong, or of the two keys there is one.
    """
    context = click.get_current_context(silent=True)
    given = {"access_key": access_key, "secret_key": secret_key, "security_token": security_token or ""}
    keys = given if context is None else _whole(given, context)
    if bool(keys["access_key"]) != bool(keys["secret_key"]):
        missing = "secret" if keys["access_key"] else "id"
        raise InvalidArgumentError(
            f"access keys: expected an access key's id and its secret, found no {missing}; give both, or neither"
        )
    return ObsClient(
        access_key_id=keys["access_key"], secret_access_key=keys["secret_key"], server=endpoint,
        security_token=keys["security_token"] or None, security_provider_policy=provider,
        signature=signature, region=region, path_style=path_style, ssl_verify=ca_file or True, engine=engine,
    )  # fmt: skip


def _whole(given: Mapping[str, str], context: click.Context) -> Mapping[str, str]:
    """Keys of one source, none where the provider that was asked for comes first."""

    def is_flag(name: str) -> bool:
        return context.get_parameter_source(name) is ParameterSource.COMMANDLINE

    if is_flag("access_key") and is_flag("secret_key"):
        return given if is_flag("security_token") else {**given, "security_token": ""}
    if is_flag("provider"):
        return dict.fromkeys(given, "")
    if given["access_key"] or given["secret_key"]:
        return given
    profile: Profile = context.meta.get(_PROFILE, {})
    return {name: str(profile.get(name, "")) for name in given}


def split_target(target: str, file: str) -> tuple[str, str]:
    """Bucket and key of `obs://bucket/key`; a key that is empty or ends with a slash takes the file's name."""
    bucket, _, key = target.removeprefix(SCHEME).partition("/")
    if not target.startswith(SCHEME) or not bucket:
        raise InvalidArgumentError("target", "obs://BUCKET/KEY", target, "name the bucket and the key")
    if not key or key.endswith("/"):
        key += PurePosixPath(file).name
    return bucket, key


class Cap:
    """A client's cap on bandwidth, by the time of day."""

    def __init__(self, client: ObsClient, caps: Timetable) -> None:
        self._client, self._caps = client, caps
        self._now = caps.at(datetime.now())
        client.set_max_bandwidth(self._now)

    def look(self) -> None:
        """Sets it anew where its time has come; to be called now and then."""
        now = self._caps.at(datetime.now())
        if now != self._now:
            self._now = now
            self._client.set_max_bandwidth(now)


class Bar:
    """A progress bar on stderr; to be used in a `with` block."""

    def __init__(self, key: str, *, is_quiet: bool) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), DownloadColumn(binary_units=True),
            TransferSpeedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[state]}"),
            console=Console(stderr=True), disable=is_quiet,
        )  # fmt: skip
        self._row = self._bar.add_task(PurePosixPath(key).name or key, total=None, state="")

    def on_progress(self, progress: Progress) -> None:
        """A progress callback."""
        self._bar.start()  # not before there is something to show: an error before stands alone
        self._bar.update(
            self._row, completed=progress.shown_bytes, total=progress.total_bytes, state=_state(progress)
        )

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar.live.is_started:
            self._bar.stop()


def _state(progress: Progress) -> str:
    """What is going on, and what holds it back."""
    if progress.stored_parts == progress.total_parts:
        return "" if progress.shown_bytes == progress.total_bytes else "completing..."
    flow = progress.flow
    words = f"{flow.parts_in_flight} in flight"
    if flow.parts_in_flight >= flow.parts_in_flight_max:
        words += " (more would only wait)"
    if flow.requests_per_s_max is not None:
        words += f", throttled to {flow.requests_per_s_max:.0f} requests/s"
    return words
