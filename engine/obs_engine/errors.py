"""Every error of the engine, in one tree split by who is at fault.

Each class is picklable and travels between processes as its name and fields. A message reads
*what, where: expected X, found Y; what to do next*, and never holds a secret.
"""

from __future__ import annotations

from typing import Any


class ObsEngineError(Exception):
    """The root: `except ObsEngineError` catches all that the engine raises on purpose.

    Attributes (None where unknown):
        status: HTTP status of the reply behind it.
        errorCode, errorMessage, requestId, hostId, resource: the service's own words.
        part_number: the part, from 1.
        checkpoint_file: path of the journal that still holds the progress.
        kind: of a transfer that failed: a word of `wire/policy.py`, such as "dns", "connect", "stalled", "cut off".
        expected_bytes, found_bytes: of a file that was cut, its length then and now.
        is_retryable: True where calling again without a change may succeed.
    """

    is_retryable: bool = False

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status: int | None = fields.pop("status", None)
        self.errorCode: str | None = fields.pop("errorCode", None)
        self.errorMessage: str | None = fields.pop("errorMessage", None)
        self.requestId: str | None = fields.pop("requestId", None)
        self.hostId: str | None = fields.pop("hostId", None)
        self.resource: str | None = fields.pop("resource", None)
        self.part_number: int | None = fields.pop("part_number", None)
        self.checkpoint_file: str | None = fields.pop("checkpoint_file", None)
        self.kind: str | None = fields.pop("kind", None)
        self.expected_bytes: int | None = fields.pop("expected_bytes", None)
        self.found_bytes: int | None = fields.pop("found_bytes", None)
        self.is_retryable = bool(fields.pop("is_retryable", type(self).is_retryable))
        assert not fields, f"unknown error fields {sorted(fields)}"

    @property
    def message(self) -> str:
        """The sentence alone."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return self.message

    def explained(self, context: str) -> ObsEngineError:
        """The same error with words before its own."""
        return from_fields(type(self).__name__, f"{context}: {self.message}", self.fields())

    def fields(self) -> dict[str, Any]:
        """All fields that are set, as keyword arguments for the constructor."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self).__name__, self.message, self.fields()))


# --- you: an argument or an option ------------------------------------------------------------------------------


class InvalidArgumentError(ObsEngineError, ValueError):
    """An argument is wrong; nothing was sent to the service."""

    def __init__(self, what: str, expected: str = "", found: object = None, next_step: str = "", **fields: Any) -> None:
        if expected:
            what = f"{what}: expected {expected}, found {_show(found)}; {next_step or 'correct the argument'}"
        super().__init__(what, **fields)


class CredentialsError(ObsEngineError):
    """No access keys could be had from where they were to come from."""

    is_retryable = True


class ClientClosedError(ObsEngineError):
    """The client was closed before or during the call."""


class UploadCancelledError(ObsEngineError):
    """The caller went away or cancelled; with a checkpoint the progress is kept."""

    is_retryable = True


# --- the file ---------------------------------------------------------------------------------------------------


class SourceError(ObsEngineError):
    """The file to upload cannot be used."""


class SourceNotFoundError(SourceError, FileNotFoundError):
    """There is no such file. An existing checkpoint is kept: the disk may only be unmounted."""


class SourceUnreadableError(SourceError, PermissionError):
    """The file exists but may not be read."""


class SourceChangedError(SourceError):
    """The file is not the one that the upload began with."""


class SourceTruncatedError(SourceChangedError):
    """The file has become shorter than it was when the upload began; see `expected_bytes` and `found_bytes`."""


# --- the wire and the service -----------------------------------------------------------------------------------


class TransportError(ObsEngineError):
    """No complete reply arrived: connection, DNS, time-out or TLS."""

    is_retryable = True


class ServiceError(ObsEngineError):
    """The service answered with an error."""


class IntegrityError(ObsEngineError):
    """What the service holds is not what was sent."""


class DeadlineExceededError(ObsEngineError):
    """The call took longer than `EngineOptions.deadline_s`; with a checkpoint the progress is kept."""

    is_retryable = True


# --- the journal ------------------------------------------------------------------------------------------------


class JournalError(ObsEngineError):
    """The checkpoint file cannot be used; it was not changed."""


class JournalLockedError(JournalError):
    """Another upload is writing this journal."""

    is_retryable = True


class JournalDamagedError(JournalError):
    """The records speak of two uploads: damage that cannot be repaired."""


class ResumeRefusedError(JournalError):
    """An earlier upload is known of, and whether or how it goes on is the user's to say; nothing was changed."""


class JournalVersionError(JournalError):
    """The file is of a version that this release does not read, or no journal at all."""


# --- the engine's own processes ---------------------------------------------------------------------------------


class EngineDiedError(ObsEngineError):
    """The coordinator or too many workers ended without a word (killed, out of memory)."""

    is_retryable = True


def from_fields(name: str, message: str, fields: dict[str, Any]) -> ObsEngineError:
    """Rebuilds an error that travelled between processes; an unknown name becomes the root class."""
    cls = globals().get(name)
    if not (isinstance(cls, type) and issubclass(cls, ObsEngineError)):
        cls = ObsEngineError
    error = cls.__new__(cls)
    ObsEngineError.__init__(error, message, **fields)
    return error


_rebuild = from_fields


def _show(value: object) -> str:
    if isinstance(value, (str, int, float, bool)) or value is None:
        text = repr(value)
        return text if len(text) <= 120 else f"{text[:117]}..."
    return f"a {type(value).__name__}"
