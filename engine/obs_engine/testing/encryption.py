"""Server-side encryption as far as a client can see it: headers, whose key is needed, and ETags that are no MD5s.

Bytes are stored as they came: nobody but this machine's owner reads them, and what a client could notice is all here.
Source: OBS API, "Server-Side Encryption" (overview, SSE-KMS, SSE-OBS, SSE-C): "the returned ETag value is not the
object's MD5 value. OBS will verify the object's MD5 value as long as the upload request includes the Content-MD5
header". Knows no disk and no socket.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Mapping

from obs_engine.errors import InvalidArgumentError
from obs_engine.testing.calls import Call
from obs_engine.testing.replies import Refusal, invalid_argument
from obs_engine.wire.signing import SignatureKind

_WORD = "server-side-encryption"
_KMS_KEY = f"{_WORD}-kms-key-id"
_CUSTOMER = f"{_WORD}-customer-"
_KEY_MD5 = f"{_CUSTOMER}key-MD5"
_CUSTOMER_KEY_BYTES = 32

Encryption = Mapping[str, str]
"""How an object is encrypted: names of headers behind the mode's prefix, as `obs` spells them; empty for not at all."""


def asked(call: Call, default: Encryption) -> Encryption:
    """What an Initiate or PutObject asks for, or else what its bucket does by default.

    Source: OBS API, "Configuring Default Bucket Encryption": it is for objects whose requests name none of their own.

    Raises:
        Refusal: 400 for a customer's key that is none.
    """
    key_md5 = customer_key_md5(call)
    if key_md5 is not None:
        return {f"{_CUSTOMER}algorithm": "AES256", _KEY_MD5: key_md5}
    word = call.own(_WORD)
    if word is None:
        return default
    found = {_WORD: word.removeprefix("aws:")}
    key_id = call.own(_KMS_KEY) or call.own(f"{_WORD}-aws-kms-key-id")
    return {**found, _KMS_KEY: key_id} if key_id is not None else found


def customer_key_md5(call: Call) -> str | None:
    """The MD5, in base64, of the customer's key that a request brings; None where it brings none.

    Raises:
        Refusal: 400 InvalidEncryptionAlgorithmError for an algorithm other than AES256, InvalidArgument for a key that
            is not 256 bits in base64 or has another MD5 than the request says.
    """
    algorithm, key, key_md5 = (call.own(f"{_CUSTOMER}{name}") for name in ("algorithm", "key", "key-md5"))
    if algorithm is None and key is None and key_md5 is None:
        return None
    if algorithm != "AES256":
        raise Refusal(400, "InvalidEncryptionAlgorithmError", "The valid algorithm for a customer's key is AES256.")
    try:
        decoded = b64decode(key or "", validate=True)
    except ValueError:
        decoded = b""
    if len(decoded) != _CUSTOMER_KEY_BYTES:
        # Why without the value: what may be a key belongs into no reply.
        raise invalid_argument("The customer's key must be 256 bits in base64.", f"{call.prefix}{_CUSTOMER}key", "")
    found = b64encode(hashlib.md5(decoded, usedforsecurity=False).digest()).decode()
    if found != key_md5:
        name = f"{call.prefix}{_KEY_MD5}"
        raise invalid_argument("The MD5 of the customer's key is another than specified.", name, key_md5 or "")
    return found


def check_part(call: Call, encryption: Encryption) -> None:
    """A part of an upload under a customer's key brings that key, and a part of any other brings none.

    Source: OBS API, "Uploading Parts": mandatory under SSE-C, the same as with Initiate. The code is AWS S3's.

    Raises:
        Refusal: 400 InvalidRequest, or as `customer_key_md5`.
    """
    if customer_key_md5(call) != encryption.get(_KEY_MD5):
        raise Refusal(400, "InvalidRequest", "The customer's key of a part must be that of its upload, or none.")


def check_reader(call: Call, encryption: Encryption) -> None:
    """Who reads an object, or its metadata, under a customer's key must have that key.

    Source: OBS API, "Querying Object Metadata" and "Downloading Objects" (the headers are required), and error code
    InvalidEncryptionAlgorithmError (400: an SSE-C object is downloaded with wrong encryption headers). In the `amz`
    dialect as AWS S3: 400 InvalidRequest without a key, 403 AccessDenied with another.

    Raises:
        Refusal: as above, or as `customer_key_md5`.
    """
    needed = encryption.get(_KEY_MD5)
    if needed is None:
        return
    brought = customer_key_md5(call)
    if brought == needed:
        return
    if call.kind == "obs":
        raise Refusal(400, "InvalidEncryptionAlgorithmError", "The encryption headers are not those of the object.")
    if brought is None:
        raise Refusal(400, "InvalidRequest", "The object is under a customer's key, which the request must bring.")
    raise Refusal(403, "AccessDenied", "The object is under another customer's key.")


def etag_of(md5: str, encryption: Encryption) -> str:
    """The ETag of bytes with this MD5: the MD5 itself or, under encryption, 32 hex digits that do not betray it.

    The same bytes under the same key have the same ETag: faults and tests stay repeatable. (The service promises
    neither that nor the contrary.)
    """
    if not encryption:
        return md5
    key = "\n".join(f"{name}:{value}" for name, value in sorted(encryption.items())).encode()
    return hashlib.blake2b(bytes.fromhex(md5), key=hashlib.sha256(key).digest(), digest_size=16).hexdigest()


def of_attributes(own: Mapping[str, str]) -> Encryption:
    """The encryption among an object's own headers."""
    return {name: value for name, value in own.items() if name.startswith(_WORD)}


def headers_of(encryption: Encryption, kind: SignatureKind) -> list[tuple[str, str]]:
    """Names, behind the mode's prefix, and values as the mode spells them: `kms` is `aws:kms` in `amz`."""
    found = []
    for name, value in encryption.items():
        if kind != "obs" and name == _KMS_KEY:
            found.append((f"{_WORD}-aws-kms-key-id", value))
        elif kind != "obs" and name == _WORD and value == "kms":
            found.append((name, "aws:kms"))
        else:
            found.append((name, value))
    return found


def read_default(text: str) -> Encryption:
    """A bucket's default as it is written in options: `AES256`, `kms`, or `kms:KEY-ID`.

    Raises:
        InvalidArgumentError: anything else.
    """
    word, colon, key_id = text.partition(":")
    if text == "AES256" or (word == "kms" and bool(colon) == bool(key_id)):
        return {_WORD: word, _KMS_KEY: key_id} if key_id else {_WORD: word}
    raise InvalidArgumentError("bucket encryption", "AES256, kms, or kms:KEY-ID", text, "write it so")
