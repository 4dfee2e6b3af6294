"""Where the service is, and how a bucket and a key are spelled in a URL.

Knows: schemes, hosts, ports, the three ways to address a bucket. Does not know: DNS, connections.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlsplit

from obs_engine.errors import InvalidArgumentError

Addressing = Literal["virtual", "path", "cname"]
"""virtual: `bucket.host/key`; path: `host/bucket/key`; cname: `host/key`, the host being the bucket's own domain."""

Query = Sequence[tuple[str, str | None]]

_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class Endpoint:
    """Scheme, host (an IPv6 literal without brackets) and port (1-65535) of the service."""

    scheme: Literal["https", "http"]
    host: str
    port: int

    @property
    def is_ip(self) -> bool:
        """True where the host is an address: a bucket name cannot be put before it."""
        return _is_ip(self.host)

    def host_of(self, bucket: str | None, addressing: Addressing) -> str:
        """The name to connect to."""
        return f"{bucket}.{self.host}" if addressing == "virtual" and bucket else self.host

    def authority(self, bucket: str | None, addressing: Addressing) -> str:
        """The Host header: the port is left out where it is the scheme's own, as OBS signs it."""
        host = self.host_of(bucket, addressing)
        host = f"[{host}]" if ":" in host else host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def path(self, bucket: str | None, key: str | None, addressing: Addressing) -> str:
        """The percent-encoded absolute path of a bucket or an object."""
        prefix = f"/{bucket}" if addressing == "path" and bucket else ""
        if key is None:
            return prefix or "/"
        return f"{prefix}/{encode_key(key)}"

    def url(self, bucket: str | None, key: str | None, addressing: Addressing, query: Query = ()) -> str:
        """The full URL, ready to be requested."""
        tail = encode_query(query)
        path = self.path(bucket, key, addressing)
        return f"{self.scheme}://{self.authority(bucket, addressing)}{path}{'?' + tail if tail else ''}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority(None, 'path')}"


def parse_endpoint(server: object, *, is_secure: bool = True, port: int | None = None) -> Endpoint:
    """Reads `server` as the SDK does: `obs.x.com`, `https://obs.x.com:8443`, `http://[::1]:9000/`.

    Args:
        server: host, or scheme, host and port. A scheme wins over `is_secure`, a port in it over `port`.
        is_secure: https where no scheme is given.
        port: 1-65535 where `server` has none; None for the scheme's own.

    Raises:
        InvalidArgumentError: no host, an unknown scheme, a path, or a port out of range.
    """
    wanted = "a host such as 'https://obs.cn-north-4.myhuaweicloud.com'"
    if not isinstance(server, str) or not server.strip():
        raise InvalidArgumentError("server", wanted, server, "server is not set correctly")
    text = server.strip()
    # Why not show it: before the @ there may be a password.
    shown = server if "@" not in text else "<credentials>@..."
    if "://" not in text:
        text = f"{'https' if is_secure else 'http'}://{text}"
    try:
        parts = urlsplit(text)
        found_port = parts.port
    except ValueError as error:
        raise InvalidArgumentError("server", wanted, shown, f"it cannot be read ({error})") from None
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise InvalidArgumentError("server", "scheme http or https", shown, "change the scheme")
    if not parts.hostname or parts.username or parts.password or any(c.isspace() for c in parts.netloc):
        raise InvalidArgumentError("server", wanted, shown, "give a host name or address, without credentials")
    if not parts.hostname.isascii():
        raise InvalidArgumentError("server", wanted, shown, "write the name as DNS does, `xn--...`")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise InvalidArgumentError("server", wanted, shown, "leave the path and the query away")
    number = found_port if found_port is not None else port if port is not None else _DEFAULT_PORTS[scheme]
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 65535:
        raise InvalidArgumentError("port", "1 to 65535", number, "correct the port")
    return Endpoint("https" if scheme == "https" else "http", parts.hostname, number)


def encode_key(key: str) -> str:
    """Percent-encodes an object key for a path; slashes and tildes stand for themselves.

    Source: the official SDK's path encoding, which the service's signature check repeats.
    """
    return quote(key, safe="/~")


def encode_query(query: Query) -> str:
    """Encodes a query string: a name without a value stands alone (`uploads`), slashes in values stay."""
    return "&".join(name if value is None else f"{name}={quote(value, safe='/')}" for name, value in query)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
