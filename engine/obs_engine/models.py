"""The values of the standard API, under the names that it gives them. camelCase is Huawei's.

All of them may be given as the official SDK's own instances, or as plain dicts; `field_of` reads each alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


class HeadPermission:
    """Table 3: pre-defined ACLs; the last three are understood with the signatures v2 and v4 alone."""

    PRIVATE: Final = "private"
    PUBLIC_READ: Final = "public-read"
    PUBLIC_READ_WRITE: Final = "public-read-write"
    PUBLIC_READ_DELIVERED: Final = "public-read-delivered"
    PUBLIC_READ_WRITE_DELIVERED: Final = "public-read-write-delivered"
    BUCKET_OWNER_FULL_CONTROL: Final = "bucket-owner-full-control"
    AUTHENTICATED_READ: Final = "authenticated-read"
    BUCKET_OWNER_READ: Final = "bucket-owner-read"
    LOG_DELIVERY_WRITE: Final = "log-delivery-write"


class StorageClass:
    """Table 4."""

    STANDARD: Final = "STANDARD"
    WARM: Final = "WARM"
    COLD: Final = "COLD"


class Permission:
    """Table 8."""

    READ: Final = "READ"
    WRITE: Final = "WRITE"
    READ_ACP: Final = "READ_ACP"
    WRITE_ACP: Final = "WRITE_ACP"
    FULL_CONTROL: Final = "FULL_CONTROL"


@dataclass
class SseCHeader:
    """Table 5: encryption with a key of yours, 32 bytes."""

    encryption: str = "AES256"
    key: str | bytes | None = None

    @staticmethod
    def getInstance(key: str | bytes, encryption: str = "AES256") -> SseCHeader:
        """The SDK's way to make one."""
        return SseCHeader(encryption, key)

    def __repr__(self) -> str:
        return f"SseCHeader(encryption={self.encryption!r}, key=...)"


@dataclass
class SseKmsHeader:
    """Table 6: encryption with a key of the service; None for the default key."""

    encryption: str = "kms"
    key: str | None = None

    @staticmethod
    def getInstance(key: str | None = None, encryption: str = "kms") -> SseKmsHeader:
        """The SDK's way to make one."""
        return SseKmsHeader(encryption, key)


@dataclass
class ExtensionGrant:
    """Table 7."""

    granteeId: str | None = None
    permission: str | None = None


@dataclass
class UploadFileHeader:
    """Table 2, in the SDK's order. `location` is the document's name for the SDK's `websiteRedirectLocation`."""

    acl: str | None = None
    websiteRedirectLocation: str | None = None
    contentType: str | None = None
    sseHeader: SseCHeader | SseKmsHeader | None = None
    storageClass: str | None = None
    successActionRedirect: str | None = None
    expires: int | None = None
    extensionGrants: list[ExtensionGrant] | None = None
    location: str | None = None


@dataclass
class ExtensionHeader:
    """Two extension headers that have names of their own; any other goes into a dict."""

    requesterPayer: str | None = None
    locationClusterGroupId: str | None = None


@dataclass
class ClientVerify:
    """How this client shows who it is on TLS: PEM files of a certificate and its key.

    The `Enc` fields belong to GM/TLS, which this engine has not.
    """

    clientCert: str | None = None
    clientKey: str | None = None
    clientKeyPassword: str | None = None
    clientEncCert: str | None = None
    clientEncKey: str | None = None
    clientEncKeyPassword: str | None = None

    def __repr__(self) -> str:
        return f"ClientVerify(clientCert={self.clientCert!r}, clientKey={self.clientKey!r}, ...)"


class _Attributes(dict[str, Any]):
    """A dict whose items are attributes as well; as in the SDK, an unknown one reads as None, and a name may begin with
    a capital."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name[:1].lower() + name[1:])

    def __setattr__(self, name: str, value: Any) -> None:
        self[name[:1].lower() + name[1:]] = value

    def __delattr__(self, name: str) -> None:
        self.pop(name[:1].lower() + name[1:], None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (), None, None, iter(self.items())


class GetResult(_Attributes):
    """Table 10: what a call came to: `status`, `reason`, `errorCode`, `errorMessage`, `requestId`, `indicator`,
    `hostId`, `resource`, `header` (a list of pairs), `body`; and `report`, an `UploadReport` of this engine."""


class CompleteMultipartUploadResponse(_Attributes):
    """Table 12: `etag` (quoted, as the service gives it), `bucket`, `key`, `location`, `versionId`, `sseKms`,
    `sseKmsKey`, `sseC`, `sseCKeyMd5`, `objectUrl`, `encoding_type`, `crc64`."""


def field_of(value: Any, name: str) -> Any:
    """A field of a value of the API: ours, the SDK's, or a dict; None where it has none."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
