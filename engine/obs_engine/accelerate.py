"""`accelerate`: one line that puts the engine behind the `uploadFile` of a stock `obs.ObsClient`."""

from __future__ import annotations

import logging
from typing import Any

from obs_engine.client import ObsClient
from obs_engine.credentials import CredentialSource, checked_credentials
from obs_engine.errors import CredentialsError, InvalidArgumentError
from obs_engine.options import EngineOptions
from obs_engine.wire.signing import Credentials

_log = logging.getLogger("obs_engine")

# What a stock client keeps under the name of its argument.
_SETTINGS = (
    "is_secure", "server", "region", "path_style", "is_use_gmssl", "port", "max_retry_count", "timeout", "chunk_size",
    "proxy_host", "proxy_port", "client_verify", "proxy_username", "proxy_password", "use_http2",
    "is_signature_negotiation", "is_cname", "max_redirect_count",
)  # fmt: skip


class _StockKeys(CredentialSource):
    """The keys of a stock client, as it would use them for its next request: `refresh` and its policy included."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self._stock = stock

    def current(self, refused: Credentials | None = None) -> Credentials:
        try:
            found = self._stock._get_token()
        except Exception as error:
            raise CredentialsError(
                f"the stock client's access keys: expected some, found {type(error).__name__}; see its policy"
            ) from error
        return checked_credentials(found.access_key_id, found.secret_access_key, found.security_token)


def accelerate(obs_client: Any, *, ssl_verify: bool | str | None = None, engine: EngineOptions | None = None) -> Any:
    """Replaces the `uploadFile` of a stock client by the engine's, and leaves the rest of it as it is.

    The engine takes over endpoint, settings, and the access keys as the client has them at every moment; closing the
    client closes the engine. Uploads then differ from the stock client's only as README's table says.

    Args:
        obs_client: an `obs.ObsClient` of the official SDK.
        ssl_verify: as in `ObsClient`; None takes the client's where it verifies, and verifies where it does not, as
            the SDK's default cannot be told from a choice: pass False to go without.
        engine: tuning of this engine.

    Returns:
        The same client.

    Raises:
        InvalidArgumentError: it is no stock client, or one of its settings cannot be honoured; it is unchanged.
    """
    if not all(hasattr(obs_client, name) for name in (*_SETTINGS, "securityProvider", "_get_token", "uploadFile")):
        raise InvalidArgumentError("obs_client", "an obs.ObsClient of the official SDK", obs_client)
    fast = ObsClient(
        **{name: getattr(obs_client, name) for name in _SETTINGS},
        signature=getattr(obs_client, "signature", "obs"),
        ssl_verify=_trust(obs_client, ssl_verify),
        engine=engine,
        _source=_StockKeys(obs_client),
    )
    known = getattr(obs_client, "obs_engine", None)
    if known is not None:
        known.close()
    close = type(obs_client).close.__get__(obs_client)

    def close_both() -> None:
        fast.close()
        close()

    obs_client.uploadFile = fast.uploadFile
    obs_client.close = close_both
    obs_client.obs_engine = fast
    return obs_client


def _trust(stock: Any, ssl_verify: bool | str | None) -> bool | str:
    if ssl_verify is not None:
        return ssl_verify
    if not stock.ssl_verify and stock.is_secure:
        _log.warning("accelerate: the client does not verify TLS, its engine does; pass ssl_verify=False to go without")
    return stock.ssl_verify or True
