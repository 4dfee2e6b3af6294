"""`obs-engine uploads`: the multipart uploads that are open in a bucket: what they hold, an end to them, or their rest.

The parts of an upload that nobody completes are stored, and billed, for ever. Nothing is aborted that was not listed.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import click

from obs_engine.cli.connection import SCHEME, open_client, service_options
from obs_engine.cli.cp import resume
from obs_engine.cli.inquiries import Ask, Stored, abort_upload, asking, open_uploads, stored_of
from obs_engine.cli.records_here import Record, record_of, records_in
from obs_engine.errors import InvalidArgumentError, ServiceError
from obs_engine.limits import GIB, KIB, MIB
from obs_engine.options import EngineOptions
from obs_engine.wire.endpoint import parse_endpoint
from obs_engine.wire.replies import ListedUpload

EXIT_DENIED = 1
_ASKED_AT_A_TIME = 8
_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_ADOPT = """Continue an upload of FILE that has no record here.

Its parts are compared with FILE by their MD5, and only what is missing or differs is sent. The same as
`obs-engine resume --adopt`, which has more options.

\b
Example:
  obs-engine uploads adopt disk.img obs://backups/disk.img --upload-id 0A1B
"""


class OpenUpload(NamedTuple):
    """An open upload, as the service and the records here know it.

    Attributes:
        age: None where the service does not say in a way that is known.
        stored: None where its parts may not be listed.
        record: that can continue it; None for an orphan, as far as can be seen from here.
    """

    listed: ListedUpload
    age: timedelta | None
    stored: Stored | None
    record: Record | None

    @property
    def is_running(self) -> bool:
        """Is it being continued at this moment, by a process of this machine?"""
        return self.record is not None and self.record.is_held


@click.group()
def uploads() -> None:
    """Look after multipart uploads that are open on the service.

    Parts of an upload that is never completed are billed until it is aborted.

    \b
    Examples:
      obs-engine uploads ls obs://backups --records /var/lib/backup
      obs-engine uploads abort obs://backups/2024/ --older-than 7d
      obs-engine uploads adopt disk.img obs://backups/disk.img --upload-id 0A1B
    """


_records = click.option("--records", multiple=True, metavar="DIR", default=["."],
                        help="Where checkpoint files are; repeatable.  [default: here]")  # fmt: skip


@uploads.command()
@click.argument("target", metavar="obs://BUCKET[/PREFIX]")
@click.option("--mine", is_flag=True, help="Only those for which a record is found here.")
@_records
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line.")
@service_options(is_brief=True)
def ls(target: str, mine: bool, records: tuple[str, ...], is_json: bool, **connection: Any) -> None:
    """List open uploads: age, parts, stored bytes, key, upload id.

    "resumable": a record here continues it; "running": it does. "orphan": none is here; another machine may have one.

    \b
    Examples:
      obs-engine uploads ls obs://backups
      obs-engine uploads ls obs://backups/2024/ --mine --records /var/lib/backup
    Keys and endpoint: see obs-engine config --help.
    """
    bucket, prefix = split_prefix(target)
    with open_client(EngineOptions(processes=1), **connection) as client:
        found = _found(asking(client), connection["endpoint"], bucket, prefix, records,
                       lambda upload: upload.record is not None or not mine)  # fmt: skip
    if is_json:
        for upload in found:
            click.echo(json.dumps(_document(bucket, upload)))
        return
    _show(found)
    known = [upload.stored.size_bytes for upload in found if upload.stored]
    resumable = sum(upload.record is not None for upload in found)
    click.echo(
        f"{len(found)} open, {resumable} of them resumable here, {_size(sum(known))} stored"
        + ("" if len(known) == len(found) else f" in {len(known)} of them; the others' parts may not be listed")
    )


@uploads.command()
@click.argument("target", metavar="obs://BUCKET[/PREFIX]")
@click.option("--upload-id", help="This one; then the target is its key, not a prefix.")
@click.option("--older-than", metavar="AGE", help="All begun so long ago: 30m, 12h, 7d, 2w.")
@_records
@click.option("--yes", is_flag=True, help="Do not ask; needed where nobody is there to answer.")
@service_options(is_brief=True)
def abort(
    target: str, upload_id: str | None, older_than: str | None, records: tuple[str, ...], yes: bool, **connection: Any
) -> None:
    """End open uploads, and take their parts away for good.

    Lists what it would end, asks, and ends no other. By age, none that runs here. Exit status: 1 if one was refused.

    \b
    Examples:
      obs-engine uploads abort obs://backups/disk.img --upload-id 0A1B
      obs-engine uploads abort obs://backups/2024/ --older-than 7d
    """
    bucket, prefix = split_prefix(target)
    if upload_id is None and older_than is None:
        raise click.UsageError("say which: --upload-id, or --older-than")
    age = timedelta(0) if older_than is None else age_of(older_than)
    if upload_id is not None and not prefix:
        raise InvalidArgumentError("target", "the key of that upload, obs://BUCKET/KEY", target, "name it")

    def is_meant(upload: OpenUpload) -> bool:
        if upload_id is None:
            is_named = not upload.is_running
        else:
            is_named = (upload.listed.key, upload.listed.upload_id) == (prefix, upload_id)
        return is_named and (older_than is None or (upload.age is not None and upload.age >= age))

    with open_client(EngineOptions(processes=1), **connection) as client:
        ask = asking(client)
        found = _found(ask, connection["endpoint"], bucket, prefix, records, is_meant)
        if not found:
            if upload_id is not None:
                raise ServiceError(
                    f"upload {upload_id} of {bucket}/{prefix}: expected it open, found no such one; see what is: "
                    f"obs-engine uploads ls {SCHEME}{bucket}"
                )
            click.echo("nothing to abort")
            return
        _show(found)
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError(f"{_count(found)} would be aborted: expected --yes, as nobody can be asked here")
            if not click.confirm(f"Abort {_count(found)}? The parts are deleted for good"):
                click.echo("nothing was aborted")
                return
        refused = _abort_all(ask, bucket, found)
    if refused:
        sys.exit(EXIT_DENIED)


def _abort_all(ask: Ask, bucket: str, found: list[OpenUpload]) -> int:
    """Ends each of them, and says so; how many were refused."""
    refused = 0
    for upload in found:
        name = f"{SCHEME}{bucket}/{_printable(upload.listed.key)}  {upload.listed.upload_id}"
        try:
            was_open = abort_upload(ask, bucket, upload.listed.key, upload.listed.upload_id)
        except ServiceError as error:
            refused += 1
            click.echo(f"obs-engine: {error}", err=True)
        else:
            click.echo(f"{'aborted' if was_open else 'gone already'}  {name}")
    return refused


def _adopt(**options: Any) -> None:
    assert resume.callback is not None
    resume.callback(adopt=True, **options)


def _adopting() -> click.Command:
    """`resume --adopt`, under the name by which one looks for it here."""
    shown = {"profile", "upload_id", "task_num", "verify", "checkpoint_file", "endpoint"}
    options = []
    for known in resume.params:
        if known.name != "adopt":
            option = copy.copy(known)
            if isinstance(option, click.Option):
                option.hidden = option.name not in shown
                if option.name == "upload_id":
                    option.help = "Which one; needed where several are open."
            options.append(option)
    return click.Command("adopt", params=options, callback=_adopt, help=_ADOPT, short_help="Go on without a record.")


uploads.add_command(_adopting())


def split_prefix(target: str) -> tuple[str, str]:
    """Bucket and prefix (or key) of `obs://bucket[/prefix]`."""
    bucket, _, prefix = target.removeprefix(SCHEME).partition("/")
    if not target.startswith(SCHEME) or not bucket:
        raise InvalidArgumentError("target", "obs://BUCKET or obs://BUCKET/PREFIX", target, "name the bucket")
    return bucket, prefix


def age_of(text: str) -> timedelta:
    """`30m`, `12h`, `7d`, `2w`.

    Raises:
        InvalidArgumentError: it is none of these.
    """
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", text.strip().lower())
    if found is None:
        raise InvalidArgumentError("--older-than", "a number with m, h, d or w, such as 7d", text)
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


def age_in_words(age: timedelta | None) -> str:
    """In the two largest units."""
    if age is None:
        return "?"
    minutes = max(0, int(age.total_seconds())) // 60
    days, hours = divmod(minutes // 60, 24)
    return f"{days}d {hours}h" if days else f"{hours}h {minutes % 60}m" if hours else f"{minutes}m"


# --- what both commands share ---------------------------------------------------------------------------------------


def _found(
    ask: Ask, endpoint: str, bucket: str, prefix: str, directories: tuple[str, ...],
    is_meant: Callable[[OpenUpload], bool],
) -> list[OpenUpload]:  # fmt: skip
    """The open uploads that are meant; only their parts are asked for, and those that end meanwhile are left out."""
    where = str(parse_endpoint(endpoint))
    records = records_in(directories)
    now = datetime.now(timezone.utc)
    all_open = (
        OpenUpload(listed, _age(listed.initiated, now), None,
                   record_of(records, where, bucket, listed.key, listed.upload_id))
        for listed in open_uploads(ask, bucket, prefix)
    )  # fmt: skip

    def look(upload: OpenUpload) -> OpenUpload | None:
        try:
            stored = stored_of(ask, bucket, upload.listed)
        except ServiceError:
            return upload
        return stored and upload._replace(stored=stored)

    with ThreadPoolExecutor(_ASKED_AT_A_TIME) as threads:
        return [upload for upload in threads.map(look, filter(is_meant, all_open)) if upload is not None]


def _age(initiated: str, now: datetime) -> timedelta | None:
    try:
        begun = datetime.fromisoformat(re.sub(r"(\.[0-9]+)?Z$", "+00:00", initiated))
    except ValueError:
        return None
    return now - begun if begun.tzinfo is not None else None


def _show(found: list[OpenUpload]) -> None:
    if not found:
        return
    rows = [("AGE", "PARTS", "STORED", "HERE", "KEY", "UPLOAD ID")]
    for age, parts, size, here, upload in map(_row, found):
        rows.append((age, parts, size, here, _printable(upload.key), upload.upload_id))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        numbers = "  ".join(f"{word:>{width}}" for word, width in zip(row[:3], widths[:3], strict=True))
        click.echo(f"{numbers}  {row[3]:<{widths[3]}}  {row[4]:<{widths[4]}}  {row[5]}")
    for listed, _, _, record in found:
        if record is not None:
            click.echo(f"  {_printable(listed.key)}: its record is {_printable(record.path)}")


def _row(upload: OpenUpload) -> tuple[str, str, str, str, ListedUpload]:
    parts, size = ("?", "?") if upload.stored is None else (str(upload.stored.parts), _size(upload.stored.size_bytes))
    here = "running" if upload.is_running else "orphan" if upload.record is None else "resumable"
    return age_in_words(upload.age), parts, size, here, upload.listed


def _document(bucket: str, upload: OpenUpload) -> dict[str, Any]:
    listed, stored, record = upload.listed, upload.stored, upload.record
    return {
        "bucket": bucket, "key": listed.key, "upload_id": listed.upload_id, "initiated": listed.initiated,
        "age_s": None if upload.age is None else int(upload.age.total_seconds()),
        "parts": stored and stored.parts, "stored_bytes": stored and stored.size_bytes,
        "is_resumable": record is not None, "is_running": upload.is_running,
        "record": record and record.path, "source": record and record.source,
    }  # fmt: skip


def _count(found: list[OpenUpload]) -> str:
    return f"{len(found)} upload{'' if len(found) == 1 else 's'}"


def _printable(text: str) -> str:
    """Somebody else's key must not move the cursor of who looks at it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _size(size: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"
