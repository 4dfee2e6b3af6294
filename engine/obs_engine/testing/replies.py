"""What the server answers, as values: a reply, a refusal, a span of a file. No socket, no disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class FileSpan(NamedTuple):
    """Bytes of one file on disk, `length` from `offset`; `mask`: the bits of a single byte that are sent wrong."""

    path: str
    offset: int
    length: int
    mask: int = 0


@dataclass(slots=True)
class Reply:
    """One answer.

    Attributes:
        status: HTTP status.
        headers: the operation's own; ids, Date, Server and framing are added when it is sent.
        body: small bodies (XML).
        spans: an object's bytes, streamed from disk after `body`.
        code: the service's error code, None for a success.
        length: the Content-Length to announce where no body follows (HEAD of an object); None for the true one.
        pinned: the data that must outlive the streaming of `spans`; see `Store.pin`.
    """

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    spans: Sequence[FileSpan] = ()
    code: str | None = None
    length: int | None = None
    pinned: tuple[str, str] | None = None


class Refusal(Exception):
    """The service says no: becomes an `<Error>` document with this status and code.

    Attributes:
        extra: further elements of the document, e.g. StringToSign.
        headers: further headers, e.g. Content-Range.
        is_early: the reply must not wait for the body (it is too large to be read in vain).
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        extra: Sequence[tuple[str, str]] = (),
        headers: Sequence[tuple[str, str]] = (),
        is_early: bool = False,
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message = status, code, message
        self.extra, self.headers, self.is_early = extra, headers, is_early


def no_such_bucket(name: str) -> Refusal:
    """404: there is no bucket of this name."""
    return Refusal(404, "NoSuchBucket", "The specified bucket does not exist.", extra=[("BucketName", name)])


def no_such_key(key: str) -> Refusal:
    """404: the bucket holds no object of this key."""
    return Refusal(404, "NoSuchKey", "The specified key does not exist.", extra=[("Key", key)])


def no_such_upload(upload_id: str) -> Refusal:
    """404: never begun, aborted, or already completed.

    Source: OBS API, "Completing a Multipart Upload": a second Complete of a finished upload finds none.
    """
    return Refusal(
        404,
        "NoSuchUpload",
        "The specified multipart upload does not exist. The upload ID might be invalid, or the multipart "
        "upload might have been aborted or completed.",
        extra=[("UploadId", upload_id)],
    )


def invalid_argument(message: str, name: str, value: str) -> Refusal:
    """400: a parameter out of its range."""
    return Refusal(
        400, "InvalidArgument", message, extra=[("ArgumentName", name), ("ArgumentValue", value)]
    )
