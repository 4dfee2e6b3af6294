"""The values of the standard API, under the names that it gives them. camelCase is Huawei's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


class HeadPermission:
    """Table 3: pre-defined ACLs."""

    PRIVATE: Final = "private"
    PUBLIC_READ: Final = "public-read"
    PUBLIC_READ_WRITE: Final = "public-read-write"
    PUBLIC_READ_DELIVERED: Final = "public-read-delivered"
    PUBLIC_READ_WRITE_DELIVERED: Final = "public-read-write-delivered"
    BUCKET_OWNER_FULL_CONTROL: Final = "bucket-owner-full-control"


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

    def __repr__(self) -> str:
        return f"SseCHeader(encryption={self.encryption!r}, key=...)"


@dataclass
class SseKmsHeader:
    """Table 6: encryption with a key of the service; None for the default key."""

    encryption: str = "kms"
    key: str | None = None


@dataclass
class ExtensionGrant:
    """Table 7."""

    granteeId: str | None = None
    permission: str | None = None


@dataclass
class UploadFileHeader:
    """Table 2. `websiteRedirectLocation` is the SDK's name for `location`."""

    acl: str | None = None
    location: str | None = None
    contentType: str | None = None
    sseHeader: SseCHeader | SseKmsHeader | None = None
    storageClass: str | None = None
    successActionRedirect: str | None = None
    extensionGrants: list[ExtensionGrant] | None = None
    expires: int | None = None
    websiteRedirectLocation: str | None = None


class _Attributes(dict[str, Any]):
    """A dict whose items are attributes as well; an unknown one reads as None, as in the SDK."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (), None, None, iter(self.items())


class GetResult(_Attributes):
    """Table 10: what a call came to: `status`, `reason`, `errorCode`, `errorMessage`, `requestId`, `indicator`,
    `hostId`, `resource`, `header` (a list of pairs), `body`; and `report`, an `UploadReport` of this engine."""


class CompleteMultipartUploadResponse(_Attributes):
    """Table 12: `etag` (quoted, as the service gives it), `bucket`, `key`, `location`, `versionId`, `sseKms`,
    `sseKmsKey`, `sseC`, `sseCKeyMd5`, `objectUrl`, `encoding_type`, `crc64`."""
