"""Fingerprints of the options that change an object: enough to tell that one changed, nothing to read it from.

The options themselves never reach a disk, as an encryption key may be among them. The digest is keyed with a salt of
the journal's own: equal options of two journals look different, and a table of digests made beforehand is of no use.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

GROUPS = ("metadata", "properties", "encryption")
DIGEST_BYTES = 16
_NO_SALT = bytes(DIGEST_BYTES)

Options = Mapping[str, Iterable[tuple[str, str]]]
"""Headers by group of `GROUPS`."""


class Fingerprint(NamedTuple):
    """16 bytes of salt and a digest of 16 bytes for each group.

    A journal of version 1 had one digest without a salt over all options; here that is a salt of zeros, and the digest
    in the first place.
    """

    salt: bytes
    digests: tuple[bytes, ...]

    def changed(self, options: Options) -> list[str]:
        """The groups in which `options` differ from those that this was made of."""
        if self.salt == _NO_SALT:
            return [] if _version_1(options) == self.digests[0] else ["options"]
        now = fingerprint(options, self.salt)
        return [name for name, ours, theirs in zip(GROUPS, self.digests, now.digests, strict=True) if ours != theirs]


def fingerprint(options: Options, salt: bytes | None = None) -> Fingerprint:
    """The fingerprint of options; a new salt where none is given."""
    salt = salt or os.urandom(DIGEST_BYTES)
    return Fingerprint(salt, tuple(_digest(options.get(name, ()), salt) for name in GROUPS))


def from_version_1(digest: bytes) -> Fingerprint:
    """What a journal of version 1 kept."""
    return Fingerprint(_NO_SALT, (digest, *[bytes(DIGEST_BYTES)] * (len(GROUPS) - 1)))


def _version_1(options: Options) -> bytes:
    return _digest((header for headers in options.values() for header in headers), b"")


def _digest(headers: Iterable[tuple[str, str]], key: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, key=key)
    for name, value in sorted((name.lower(), value) for name, value in headers):
        digest.update(f"{name}:{value}\n".encode())
    return digest.digest()
