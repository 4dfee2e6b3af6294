"""`obs-engine doctor`: is this machine, and are these keys, fit for uploads? A report of one line a finding."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from obs_engine.cli.connection import open_client, service_options
from obs_engine.cli.inquiries import asking
from obs_engine.cli.machine import Finding, limits, rates, software
from obs_engine.cli.profiles import shown
from obs_engine.cli.reach import Permissions, network
from obs_engine.cli.uploads import split_prefix
from obs_engine.client import ObsClient
from obs_engine.errors import InvalidArgumentError, ObsEngineError
from obs_engine.options import EngineOptions
from obs_engine.wire.endpoint import Addressing, parse_endpoint

EXIT_BAD = 1
_MARKS = {"good": "✓", "notice": "!", "bad": "✗"}
_PLAIN_MARKS = {"good": "ok", "notice": "!", "bad": "X"}
_COLOURS = {"good": "green", "notice": "yellow", "bad": "red"}


@click.command(short_help="Look at machine, way, keys and permissions.")
@click.argument("target", required=False, metavar="[obs://BUCKET]")
@click.option("--dir", "directory", default=".", show_default=True, metavar="DIR",
              help="Whose disk is measured, by a temporary file of 256 MiB.")
@click.option("--write", is_flag=True, help="Begin an upload in the bucket, and abort it.")
@click.option("--no-rates", is_flag=True, help="Measure nothing.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object.")
@service_options(is_brief=True, is_required=False)
def doctor(
    target: str | None, directory: str, write: bool, no_rates: bool, is_json: bool, **connection: Any
) -> None:
    """Look at what uploads need: software, limits, rates; and at a bucket: the way there, clock, permissions.

    A tick is fine, an exclamation mark worth a look, a cross in the way. Exit status: 1 where there is a cross.

    \b
    Examples:
      obs-engine doctor --dir /data
      obs-engine doctor obs://backups --write
    """
    report: dict[str, list[Finding]] = {}
    for section, findings in _sections(target, directory, connection, is_writing=write, is_measuring=not no_rates):
        if not is_json:
            click.echo(click.style(section, bold=True))
        report[section] = []
        for finding in findings:
            report[section].append(finding)
            if not is_json:
                _show(finding)
    is_bad = any(finding.verdict == "bad" for findings in report.values() for finding in findings)
    if is_json:
        document = {section: [_document(finding) for finding in findings] for section, findings in report.items()}
        click.echo(json.dumps({"is_fine": not is_bad, **document}, indent=1))
    sys.exit(EXIT_BAD if is_bad else 0)


def _sections(
    target: str | None, directory: str, connection: dict[str, Any], *, is_writing: bool, is_measuring: bool
) -> Iterator[tuple[str, Iterable[Finding]]]:
    bucket = split_prefix(target)[0] if target else ""
    if bucket and not connection["endpoint"]:
        raise InvalidArgumentError("--endpoint", "the service's, for a bucket", None, "give it, or $OBS_ENDPOINT")
    yield "software", software()
    yield "limits", limits()
    if is_measuring:
        yield "rates", rates(directory)
    if not bucket:
        return
    endpoint = parse_endpoint(connection["endpoint"])
    addressing: Addressing = "path" if connection["path_style"] or endpoint.is_ip else "virtual"
    way: list[Finding] = []
    yield "way", _kept(network(endpoint, addressing, bucket, connection["ca_file"]), way)
    if any(finding.verdict == "bad" for finding in way):
        return
    with open_client(EngineOptions(processes=1), **connection) as client:
        keys = _keys(client)
        permissions = Permissions(asking(client), bucket)
        if keys.verdict != "bad":
            permissions.look(may_write=is_writing)
    yield "bucket", [keys, *permissions.found]


def _keys(client: ObsClient) -> Finding:
    try:
        found = client._source.current()
    except ObsEngineError as error:
        return Finding("bad", "keys", "their provider has none", str(error))
    if found.is_anonymous:
        return Finding("notice", "keys", "none: requests are anonymous", "see: obs-engine config --help")
    token = " with a token" if found.security_token else ""
    return Finding("good", "keys", f"access key {shown('access_key', found.access_key_id)}{token}")


def _kept(findings: Iterator[Finding], kept: list[Finding]) -> Iterator[Finding]:
    for finding in findings:
        kept.append(finding)
        yield finding


def _show(finding: Finding) -> None:
    is_able = "utf" in (sys.stdout.encoding or "").lower()
    mark = (_MARKS if is_able else _PLAIN_MARKS)[finding.verdict]
    click.echo(f"  {click.style(mark, fg=_COLOURS[finding.verdict])} {finding.name}: {finding.text}")
    if finding.advice:
        click.echo(f"      {finding.advice}")


def _document(finding: Finding) -> dict[str, Any]:
    words = {"name": finding.name, "verdict": finding.verdict, "text": finding.text}
    return {**words, **({"advice": finding.advice} if finding.advice else {}), **finding.values}
