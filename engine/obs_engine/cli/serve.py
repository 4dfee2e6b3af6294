"""`obs-engine serve`: the local OBS as a command. Reads options, says where it listens, serves until told to stop."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import click

from obs_engine.errors import InvalidArgumentError, ObsEngineError
from obs_engine.testing.control import Control, read_secrets
from obs_engine.testing.encryption import Encryption, read_default
from obs_engine.testing.faults import Faults
from obs_engine.testing.server import Server, Settings
from obs_engine.wire.signing import Credentials

SECRET_VARIABLE = "OBS_ENGINE_SERVE_SECRET_KEY"  # noqa: S105 (a variable's name)
TOKEN_VARIABLE = "OBS_ENGINE_SERVE_SECURITY_TOKEN"  # noqa: S105

_STANDARD_INPUT = "-"


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="Port; 0 takes a free one.")
@click.option("--data", required=True, help="Directory for buckets and objects; made where missing, kept afterwards.")
@click.option("--access-key", required=True, help="The one account's access key id.")
@click.option(
    "--secret-key",
    envvar=SECRET_VARIABLE,
    help=f"Its secret. Better kept off the process list: set {SECRET_VARIABLE}, or give `-` and write the secret as "
    "the first line of standard input.",
)
@click.option("--security-token", envvar=TOKEN_VARIABLE, help=f"Token that requests must carry [{TOKEN_VARIABLE}].")
@click.option("--bucket", "buckets", multiple=True, metavar="NAME", help="Bucket to make where missing; repeatable.")
@click.option("--cname", "cnames", multiple=True, metavar="DOMAIN=BUCKET", help="Custom domain; repeatable.")
@click.option("--region", help="Region that a v4 signature must name; any where not given.")
@click.option("--tls-cert", metavar="PEM", help="Certificate chain; makes it https.")
@click.option("--tls-key", metavar="PEM", help="The certificate's private key.")
@click.option("--crc64", default="checked", show_default=True, metavar="checked|ignored", help="What a CRC-64 is for.")
@click.option(
    "--encryption",
    "encrypted",
    multiple=True,
    metavar="BUCKET=HOW",
    help="Encrypts by default what is put there: AES256, kms, or kms:KEY-ID; repeatable.",
)
@click.option("--clock-offset", type=float, default=0.0, metavar="SECONDS", help="How far its clock is ahead.")
@click.option("--faults", metavar="FILE", help="JSON list of fault rules; see obs_engine.testing.faults.")
@click.option("--log", metavar="FILE", help="Appends one JSON line for each request.")
@click.option("--control", is_flag=True, hidden=True, help="Secrets and commands on standard input, for LocalObs.")
def serve(
    host: str,
    port: int,
    data: str,
    access_key: str,
    secret_key: str | None,
    security_token: str | None,
    buckets: tuple[str, ...],
    cnames: tuple[str, ...],
    region: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    crc64: str,
    encrypted: tuple[str, ...],
    clock_offset: float,
    faults: str | None,
    log: str | None,
    control: bool,
) -> None:
    """Serves a local OBS: signatures are verified, multipart rules kept, data stays on disk.

    Prints one line with its URL when it is ready, and stops on SIGTERM or SIGINT. For tests and trials: one account,
    nothing is synced to disk, and what is encrypted for clients lies there as it came.
    """
    try:
        rules: object = _read_faults(faults) if faults else ()
        if control:
            given = read_secrets(sys.stdin.fileno())
            secret_key, security_token, rules = (given[name] for name in ("secret_key", "security_token", "faults"))
        elif secret_key == _STANDARD_INPUT:
            secret_key = sys.stdin.readline().rstrip("\n")
        if not secret_key or not access_key:
            raise InvalidArgumentError(
                "keys", "an access key and a secret key", "an empty one",
                f"give --access-key, and --secret-key or {SECRET_VARIABLE}",
            )  # fmt: skip
        settings = Settings(
            data, Credentials(access_key, secret_key, security_token), host, port,
            tuple(_bucket_name(name) for name in buckets), tls_cert, tls_key, region,
            dict(_cname(text) for text in cnames), Faults(rules), log, _is_crc64_checked(crc64),
            dict(_encryption(text) for text in encrypted), clock_offset,
        )  # fmt: skip
        server = Server(settings)
    except ObsEngineError as error:
        if control:
            print(json.dumps({"error": error.message}), flush=True)
            sys.exit(2)
        raise click.ClickException(error.message) from None
    server.stop_on_signals()
    if control:
        print(json.dumps({"port": server.port}), flush=True)
        commands = Control(server, sys.stdin.fileno(), sys.stdout, int(given["parent"]))
        server.run()
        if commands.is_orphaned and given["temporary"]:
            shutil.rmtree(given["temporary"], ignore_errors=True)
    else:
        print(f"READY {server.url}", flush=True)
        server.run()


def _read_faults(path: str) -> object:
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        found, step = path, f"{error.strerror}; correct --faults"
    except ValueError as error:
        found, step = path, f"it is no JSON ({error}); correct the file"
    raise InvalidArgumentError("faults file", "a readable JSON list of rules", found, step)


def _bucket_name(name: str, option: str = "--bucket") -> str:
    from obs_engine.testing.operations import is_bucket_name

    if not is_bucket_name(name):
        raise InvalidArgumentError(
            option, "3 to 63 small letters, digits, hyphens and dots, ends being a letter or digit", name,
            "choose another name",
        )  # fmt: skip
    return name


def _cname(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"([^=]+)=([^=]+)", text)
    if match is None:
        raise InvalidArgumentError("--cname", "DOMAIN=BUCKET", text, "write it so")
    return match[1], match[2]


def _is_crc64_checked(text: str) -> bool:
    if text not in ("checked", "ignored"):
        raise InvalidArgumentError("--crc64", "checked or ignored", text, "write one of them")
    return text == "checked"


def _encryption(text: str) -> tuple[str, Encryption]:
    bucket, equals, how = text.partition("=")
    if not equals:
        raise InvalidArgumentError("--encryption", "BUCKET=HOW", text, "write it so")
    return _bucket_name(bucket, "--encryption"), read_default(how)


if __name__ == "__main__":
    serve()
