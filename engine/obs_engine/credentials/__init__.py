"""Where access keys come from: arguments, the environment, a server's metadata service, an identity provider.

Runs in the caller's process only; the workers are told what was found. Knows how to ask the metadata service and IAM;
does not know OBS. No secret is in a message, a log line or a `repr` from here: of an exception that is not this
engine's own, only the class is named.

Source: the official SDK's loadtoken and searchmethod for names, addresses, order and times; ECS User Guide, "Metadata";
IAM API Reference, "Obtaining a Token with an OpenID Connect ID Token" and "Obtaining a Temporary Access Key".
"""

from __future__ import annotations

from obs_engine.credentials.asking import Proxy
from obs_engine.credentials.id_token import IdTokenCredentialsProvider
from obs_engine.credentials.providers import ECS, ENV, OIDC
from obs_engine.credentials.source import CredentialSource, checked_credentials, provider_of

__all__ = [
    "ECS", "ENV", "OIDC", "CredentialSource", "IdTokenCredentialsProvider", "Proxy", "checked_credentials",
    "provider_of",
]  # fmt: skip
