"""What all commands that speak with a service have in common: its options, its client, its targets, a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, TypeVar

import click
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

from obs_engine.client import ObsClient
from obs_engine.errors import InvalidArgumentError
from obs_engine.options import EngineOptions
from obs_engine.transfer.messages import Progress

SCHEME = "obs://"

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]


def connection_options(command: Command) -> Command:
    """File and target, and the options that `open_client` takes."""
    return decorated(command, [
        click.argument("file", type=click.Path()),
        click.argument("target", metavar="obs://BUCKET/KEY"),
        click.option("--endpoint", envvar="OBS_ENDPOINT", required=True,
                     help="E.g. https://obs.x.com; or $OBS_ENDPOINT."),
        click.option("--access-key", envvar="OBS_ACCESS_KEY_ID", default="", help="Better in $OBS_ACCESS_KEY_ID."),
        click.option("--secret-key", envvar="OBS_SECRET_ACCESS_KEY", default="",
                     help="Better in $OBS_SECRET_ACCESS_KEY."),
        click.option("--security-token", envvar="OBS_SECURITY_TOKEN", help="Better in $OBS_SECURITY_TOKEN."),
        click.option("--signature", type=click.Choice(["obs", "v2", "v4"]), default="obs", show_default=True),
        click.option("--region", default="region", help="For --signature v4."),
        click.option("--path-style", is_flag=True, help="host/bucket/key instead of bucket.host/key."),
        click.option("--ca-file", type=click.Path(exists=True, dir_okay=False), help="Trusted certificates (PEM)."),
    ])  # fmt: skip


def decorated(command: Command, decorators: list[Callable[[Any], Any]]) -> Command:
    """The command with all of these options, in this order."""
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def open_client(
    engine: EngineOptions, *, endpoint: str, access_key: str, secret_key: str, security_token: str | None,
    signature: str, region: str, path_style: bool, ca_file: str | None,
) -> ObsClient:  # fmt: skip
    """A client as the options want it."""
    return ObsClient(
        access_key_id=access_key, secret_access_key=secret_key, server=endpoint, security_token=security_token,
        signature=signature, region=region, path_style=path_style, ssl_verify=ca_file or True, engine=engine,
    )  # fmt: skip


def split_target(target: str, file: str) -> tuple[str, str]:
    """Bucket and key of `obs://bucket/key`; a key that is empty or ends with a slash takes the file's name."""
    bucket, _, key = target.removeprefix(SCHEME).partition("/")
    if not target.startswith(SCHEME) or not bucket:
        raise InvalidArgumentError("target", "obs://BUCKET/KEY", target, "name the bucket and the key")
    if not key or key.endswith("/"):
        key += PurePosixPath(file).name
    return bucket, key


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
