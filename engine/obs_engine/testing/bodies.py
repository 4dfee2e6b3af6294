"""Request bodies on their way in: hashed side by side, checked against what the head promised, written once.

Many bodies are fed at a time, so that the native MD5 works on several streams at once. Knows no socket.
"""

from __future__ import annotations

import errno
import hashlib
from base64 import b64decode, b64encode
from collections.abc import Sequence

from obs_engine.digests import Md5, crc64, md5_update_many
from obs_engine.testing.calls import Call
from obs_engine.testing.replies import Refusal
from obs_engine.testing.store import Incoming

MEMORY_MAX_BYTES = 8 << 20
"""A body that is no object's data: the largest is a Complete of 10,000 parts, about 1.2 MB."""


class Body:
    """One request's body.

    Args:
        call: whose promises (Content-MD5, CRC-64, SHA-256) are to be kept.
        incoming: the file it goes to; None keeps it in `memory`.
        is_crc64_checked: False passes over a CRC-64, as services do that know none.
    """

    __slots__ = ("_expected_crc64", "_expected_md5", "_expected_sha256", "crc64", "failure", "incoming", "md5",
                 "memory", "sha256")  # fmt: skip

    def __init__(self, call: Call, incoming: Incoming | None, *, is_crc64_checked: bool = True) -> None:
        self.incoming = incoming
        self.failure: OSError | None = None
        self.memory = bytearray()
        self.md5: Md5 | None = Md5() if incoming is not None or "content-md5" in call.head.fields else None
        self._expected_md5 = call.head.fields.get("content-md5")
        self._expected_sha256 = call.payload_sha256
        self.sha256 = hashlib.sha256() if call.payload_sha256 is not None else None
        text = promised_crc64(call) if is_crc64_checked else None
        self._expected_crc64 = text
        self.crc64: int | None = None if text is None else 0

    def check(self) -> str:
        """Returns the MD5 in hex once all bytes are in (empty where none was wanted).

        Raises:
            Refusal: 400 BadDigest or XAmzContentSHA256Mismatch; see `disk_refusal` where the disk failed.
        """
        if self.failure is not None:
            raise disk_refusal(self.failure)
        digest = b"" if self.md5 is None else bytes(self.md5.digest())
        if self._expected_md5 is not None and b64encode(digest).decode() != self._expected_md5:
            raise Refusal(
                400, "BadDigest", "The Content-MD5 you specified did not match what we received.",
                extra=[("ExpectedDigest", self._expected_md5), ("CalculatedDigest", b64encode(digest).decode())],
            )  # fmt: skip
        if self.crc64 is not None and str(self.crc64) != self._expected_crc64:
            raise Refusal(
                400, "BadDigest", "The CRC-64 you specified did not match what we received.",
                extra=[("ExpectedDigest", str(self._expected_crc64)), ("CalculatedDigest", str(self.crc64))],
            )  # fmt: skip
        if self.sha256 is not None and self.sha256.hexdigest() != self._expected_sha256:
            raise Refusal(
                400, "XAmzContentSHA256Mismatch",
                "The provided 'x-amz-content-sha256' header does not match what was computed.",
                extra=[("ClientComputedContentSHA256", str(self._expected_sha256)),
                       ("S3ComputedContentSHA256", self.sha256.hexdigest())],
            )  # fmt: skip
        return digest.hex()

    def discard(self) -> None:
        """Lets go of what was received."""
        if self.incoming is not None:
            self.incoming.discard()


def promised_crc64(call: Call) -> str | None:
    """The CRC-64 that came with a request, as it was written; None where none came."""
    return call.own("checksum-crc64ecma")


def check_promises(call: Call, *, is_crc64_checked: bool = True) -> None:
    """Refuses digests that cannot be right, before a byte is read.

    Args:
        is_crc64_checked: False passes over a CRC-64.

    Raises:
        Refusal: 400 InvalidDigest.
    """
    text = call.head.fields.get("content-md5")
    if text is not None:
        try:
            is_right = len(b64decode(text, validate=True)) == 16
        except ValueError:
            is_right = False
        if not is_right:
            raise Refusal(400, "InvalidDigest", "The Content-MD5 you specified is not a base64 MD5.")
    crc = promised_crc64(call) if is_crc64_checked else None
    if crc is not None and not (crc.isascii() and crc.isdigit() and int(crc) < 1 << 64):
        raise Refusal(400, "InvalidDigest", "The CRC-64 you specified is no number below 2^64.")


def feed(bodies: Sequence[Body], pieces: Sequence[memoryview]) -> None:
    """Adds one piece to each body: all MD5 together, then the other digests and the file.

    A disk that fails one body is remembered there (`Body.check` tells), and the others go on.
    """
    hashers = [body.md5 for body in bodies if body.md5 is not None]
    if len(hashers) == len(bodies):
        md5_update_many(hashers, list(pieces))
    elif hashers:
        md5_update_many(hashers, [p for b, p in zip(bodies, pieces, strict=True) if b.md5 is not None])
    for body, piece in zip(bodies, pieces, strict=True):
        if body.sha256 is not None:
            body.sha256.update(piece)
        if body.crc64 is not None:
            body.crc64 = crc64(piece, body.crc64)
        if body.incoming is None:
            body.memory += piece
        elif body.failure is None:
            try:
                body.incoming.write(piece)
            except OSError as error:
                body.failure = error


def disk_refusal(error: OSError) -> Refusal:
    """What a client hears when this server's disk fails.

    Source: OBS API, error codes InsufficientStorageSpace (403) and InternalError (500).
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refusal(403, "InsufficientStorageSpace", "The disk under the server's data directory is full.")
    return Refusal(500, "InternalError", f"The server's disk failed: {error.strerror}.")
