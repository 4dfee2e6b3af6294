"""The constructor's arguments, checked and turned into what an upload needs to know. Runs in the caller's process.

Source of the mode table and of the meaning of each argument: the official SDK; where ours differ, README says so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from obs_engine.credentials import Proxy
from obs_engine.errors import InvalidArgumentError
from obs_engine.limits import KIB, MIB
from obs_engine.models import field_of
from obs_engine.options import EngineOptions
from obs_engine.transfer.messages import TransportOptions
from obs_engine.wire.endpoint import Addressing, Endpoint, parse_endpoint
from obs_engine.wire.requests import Target
from obs_engine.wire.signing import SignatureKind

CHUNK_SIZE_DEFAULT_BYTES = 65_536
RETRIES_MAX, REDIRECTS_MAX = 100, 100
# Where Debian, Red Hat, SUSE and Alpine keep the authorities that a host trusts.
_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)  # fmt: skip
_SIGNATURES: tuple[SignatureKind, ...] = ("obs", "v2", "v4")


@dataclass(frozen=True)
class Settings:
    """One client's arguments.

    Attributes:
        is_negotiated: each bucket is asked whether it understands `obs`; `v2` is spoken where it does not.
        proxy: for what the caller's process itself asks of a service.
    """

    target: Target
    is_negotiated: bool
    transport: TransportOptions
    max_retry_count: int
    max_redirect_count: int
    engine: EngineOptions
    proxy: Proxy | None

    @property
    def signatures(self) -> tuple[SignatureKind, ...]:
        """The signature that is spoken; or two, of which a bucket is to say which it understands."""
        return ("obs", "v2") if self.is_negotiated else (self.target.signature,)

    def transport_for(self, task_num: int) -> TransportOptions:
        """With libcurl's buffer for each connection: what was measured best, less where many would cost memory."""
        best = 512 * KIB if self.target.endpoint.scheme == "https" else MIB
        size = self.transport.upload_buffer_bytes or max(64 * KIB, min(best, 32 * MIB // task_num))
        return replace(self.transport, upload_buffer_bytes=size)


def read_settings(
    *, is_secure: Any, server: Any, signature: Any, region: Any, path_style: Any, ssl_verify: Any, is_use_gmssl: Any,
    port: Any, max_retry_count: Any, timeout: Any, chunk_size: Any, proxy_host: Any, proxy_port: Any,
    client_verify: Any, proxy_username: Any, proxy_password: Any, custom_ciphers: Any, use_http2: Any,
    is_signature_negotiation: Any, is_cname: Any, max_redirect_count: Any, client_mode: Any, trust_env: Any,
    engine: Any,
) -> Settings:  # fmt: skip
    """Checks all of them; see `ObsClient` for what each means.

    Raises:
        InvalidArgumentError: which argument, what was expected.
    """
    if is_use_gmssl:
        raise InvalidArgumentError("is_use_gmssl", "False: this engine has no GM/TLS", True, "use standard TLS")
    if signature not in _SIGNATURES:
        raise InvalidArgumentError("signature", "'obs', 'v2' or 'v4'", signature)
    if client_mode not in ("obs", "workflow"):
        raise InvalidArgumentError("client_mode", "'obs' or 'workflow'", client_mode)
    if not isinstance(region, str) or not region.isprintable():
        raise InvalidArgumentError("region", "a name such as 'cn-north-4'", region)
    if engine is not None and not isinstance(engine, EngineOptions):
        raise InvalidArgumentError("engine", "EngineOptions", engine)
    options = engine or EngineOptions()
    seconds = _seconds(timeout)
    endpoint = parse_endpoint(server, is_secure=bool(is_secure), port=port)
    addressing: Addressing = "cname" if is_cname else "path" if path_style or endpoint.is_ip else "virtual"
    kind: SignatureKind = signature
    is_workflow = client_mode == "workflow"
    if kind == "obs" and addressing != "virtual" and not is_workflow:
        kind = "v2"  # the service knows its own signature on virtual hosts only
    proxy = _proxy(endpoint, proxy_host, proxy_port, proxy_username, proxy_password, bool(trust_env))
    certificate, certificate_key, certificate_password = _certificate(client_verify)
    return Settings(
        target=Target(endpoint, addressing, kind, region),
        is_negotiated=kind == "obs" and bool(is_signature_negotiation) and not is_workflow and options.negotiate,
        transport=TransportOptions(
            timeout_s=seconds,
            connect_timeout_s=float(options.connect_timeout_s or seconds),
            is_verified=bool(ssl_verify),
            ca_file=_ca_file(ssl_verify) if ssl_verify else None,
            upload_buffer_bytes=options.upload_buffer_bytes or _chunk_bytes(chunk_size),
            ciphers=_ciphers(custom_ciphers),
            is_http2=_is_http2(use_http2),
            proxy=_proxy_url(proxy),
            proxy_user="" if proxy is None else proxy.username or "",
            proxy_password="" if proxy is None else proxy.password or "",
            certificate=certificate,
            certificate_key=certificate_key,
            certificate_password=certificate_password,
        ),
        max_retry_count=_count("max_retry_count", max_retry_count, RETRIES_MAX),
        max_redirect_count=_count("max_redirect_count", max_redirect_count, REDIRECTS_MAX),
        engine=options,
        proxy=proxy,
    )


def _count(name: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidArgumentError(name, f"an int from 0 to {most}", value)
    return value


def _seconds(timeout: Any) -> float:
    if timeout is None:
        raise InvalidArgumentError("timeout", "seconds above 0", None, "timeout can not be None")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        raise InvalidArgumentError("timeout", "seconds above 0", timeout)
    return float(timeout)


def _chunk_bytes(chunk_size: Any) -> int:
    """libcurl's buffer where the caller chose a size; 0 where it is the SDK's default, to choose it for each upload."""
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise InvalidArgumentError("chunk_size", "bytes, an int above 0", chunk_size)
    return 0 if chunk_size == CHUNK_SIZE_DEFAULT_BYTES else min(max(chunk_size, 16 * KIB), 2 * MIB)


def _ciphers(names: Any) -> str:
    if names is None:
        return ""
    if not isinstance(names, str) or not names.isprintable():
        raise InvalidArgumentError("custom_ciphers", "an OpenSSL cipher list such as 'ECDHE+AESGCM'", names)
    return names.strip()


def _is_http2(wanted: Any) -> bool:
    if not wanted:
        return False
    from obs_engine.transfer.transport import has_http2

    if not has_http2():
        raise InvalidArgumentError("use_http2", "False: this libcurl was built without HTTP/2", True, "leave it away")
    return True


def _proxy(
    endpoint: Endpoint, host: Any, port: Any, username: Any, password: Any, is_environment_trusted: bool
) -> Proxy | None:
    if host is None or not str(host).strip():
        return _environments_proxy(endpoint) if is_environment_trusted else None
    # Why no word of what was found: people put passwords there.
    if not isinstance(host, str) or not host.isascii() or not host.isprintable() or any(c in host for c in "/@ "):
        raise InvalidArgumentError("proxy_host: expected a host name or address, found something else; correct it")
    if any(value is not None and not isinstance(value, str) for value in (username, password)):
        raise InvalidArgumentError("proxy_username, proxy_password: expected strings, found another type; convert them")
    number = int(port) if isinstance(port, str) and port.isdecimal() else port
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 65535:
        raise InvalidArgumentError("proxy_port", "1 to 65535", port)
    return Proxy(host.strip().strip("[]"), number, username, password)


def _proxy_url(proxy: Proxy | None) -> str:
    if proxy is None:
        return ""
    return f"http://[{proxy.host}]:{proxy.port}" if ":" in proxy.host else f"http://{proxy.host}:{proxy.port}"


def _environments_proxy(endpoint: Endpoint) -> Proxy | None:
    """What http_proxy, https_proxy and no_proxy say, as they are now: children do not see this environment."""
    from urllib.parse import unquote, urlsplit
    from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

    found = getproxies_environment().get(endpoint.scheme)
    if not found or proxy_bypass_environment(f"{endpoint.host}:{endpoint.port}"):
        return None
    try:
        parts = urlsplit(found if "://" in found else f"http://{found}")
        is_readable = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_readable = False
    if not is_readable:
        raise InvalidArgumentError(
            f"trust_env: expected {endpoint.scheme}_proxy as http://host:port, found another form; correct it"
        )
    return _proxy(
        endpoint, parts.hostname, parts.port or 80,
        unquote(parts.username) if parts.username else None, unquote(parts.password) if parts.password else None, False,
    )  # fmt: skip


def _certificate(client_verify: Any) -> tuple[str, str, str]:
    """The files of certificate and key by which the client shows who it is, and the key's password."""
    if client_verify is None:
        return "", "", ""
    if not isinstance(client_verify, Mapping) and not hasattr(client_verify, "clientCert"):
        raise InvalidArgumentError("client_verify", "a ClientVerify", client_verify)
    if field_of(client_verify, "clientEncCert") or field_of(client_verify, "clientEncKey"):
        raise InvalidArgumentError(
            "client_verify: expected clientCert and clientKey alone, found an encryption certificate, which belongs to "
            "GM/TLS; this engine has none: leave it away"
        )
    files = [field_of(client_verify, name) for name in ("clientCert", "clientKey")]
    password = field_of(client_verify, "clientKeyPassword") or ""
    if not any(files):
        return "", "", ""
    for name, path in zip(("clientCert", "clientKey"), files, strict=True):
        if not isinstance(path, str) or not os.access(path, os.R_OK):
            raise InvalidArgumentError(f"client_verify.{name}", "the path of a PEM file that can be read", path)
    if not isinstance(password, str):
        raise InvalidArgumentError("client_verify.clientKeyPassword: expected a string, found another type; convert it")
    import ssl

    try:
        # Why a function: without one OpenSSL asks for the password at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(files[0], files[1], password.encode)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"client_verify: expected a certificate, its key and the key's password, found others ({error}); "
            "correct them"
        ) from None
    return os.path.abspath(files[0]), os.path.abspath(files[1]), password


def _ca_file(ssl_verify: bool | str) -> str | None:
    """The file of trusted authorities: the one named, the environment's, or the system's.

    Why not libcurl's own: a wheel's libcurl carries the path of the machine that it was built on.
    """
    if isinstance(ssl_verify, (str, os.PathLike)):
        if not os.path.isfile(ssl_verify):
            raise InvalidArgumentError("ssl_verify", "True, False, or a file of trusted certificates", str(ssl_verify))
        return os.path.abspath(ssl_verify)
    for candidate in (os.environ.get("SSL_CERT_FILE"), *_AUTHORITIES):
        if candidate and os.path.isfile(candidate):
            return candidate
    import ssl  # last, as it takes 10 ms to load

    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return paths.cafile
    try:
        import certifi
    except ImportError:
        return None
    return str(certifi.where())
