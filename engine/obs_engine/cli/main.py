"""The command group, and the errors that a person sees."""

from __future__ import annotations

import logging
import sys
from typing import NoReturn

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main() -> None:
    """Entry point of `obs-engine`."""
    try:
        import click
        import rich  # noqa: F401
    except ImportError as missing:
        print(f"obs-engine: expected the extra [cli], found no {missing.name}; run: pip install 'obs-engine[cli]'",
              file=sys.stderr)  # fmt: skip
        sys.exit(EXIT_USAGE)

    from obs_engine.errors import InvalidArgumentError, ObsEngineError

    warnings = logging.StreamHandler()
    warnings.setLevel(logging.WARNING)
    warnings.setFormatter(logging.Formatter("obs-engine: %(message)s"))
    logging.getLogger("obs_engine").addHandler(warnings)
    try:
        _group().main(prog_name="obs-engine", standalone_mode=False)
    except InvalidArgumentError as error:
        fail(str(error), EXIT_USAGE)
    except ObsEngineError as error:
        fail(str(error), EXIT_FAILED)
    except click.UsageError as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_FAILED)
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted; run the same command again to continue", EXIT_INTERRUPTED)


def _group() -> click.Group:  # type: ignore[name-defined]  # noqa: F821
    import click

    from obs_engine.cli.config import config
    from obs_engine.cli.cp import cp, resume
    from obs_engine.cli.demo import demo
    from obs_engine.cli.doctor import doctor
    from obs_engine.cli.jobs import job, jobs
    from obs_engine.cli.journal import journal
    from obs_engine.cli.serve import serve
    from obs_engine.cli.uploads import uploads
    from obs_engine.cli.verify import verify

    @click.group(context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(package_name="obs-engine")
    def group() -> None:
        """Resumable, multiprocessing uploads to Huawei OBS."""

    for command in (cp, resume, jobs, job, verify, journal, uploads, doctor, config, serve, demo):
        group.add_command(command)
    return group


def fail(sentence: str, status: int) -> NoReturn:
    """Says what went wrong, and ends."""
    print(f"obs-engine: {sentence}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
