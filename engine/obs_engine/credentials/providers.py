"""The three providers that are asked by default: the environment, a cloud server, a pod."""

from __future__ import annotations

import os

from obs_engine.credentials.asking import TRIES, Proxy, ask
from obs_engine.credentials.id_token import IdTokenCredentialsProvider
from obs_engine.credentials.keeper import Found, Keeper, Keys, read_temporary
from obs_engine.errors import CredentialsError, InvalidArgumentError

METADATA_TIMEOUT_S = 5.0
ECS_REFRESH_BEFORE_S = 600


class ENV:
    """The environment: OBS_ACCESS_KEY_ID, OBS_SECRET_ACCESS_KEY, and OBS_SECURITY_TOKEN where they are temporary."""

    @staticmethod
    def search() -> Keys:
        """Reads it anew at every call.

        Raises:
            CredentialsError: which variable is not set.
        """
        access_key, secret_key, token = (
            (os.environ.get(f"OBS_{name}") or "").strip()
            for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SECURITY_TOKEN")
        )
        missing = [
            name
            for name, value in (("OBS_ACCESS_KEY_ID", access_key), ("OBS_SECRET_ACCESS_KEY", secret_key))
            if not value
        ]
        if missing:
            raise CredentialsError(
                f"ENV: expected OBS_ACCESS_KEY_ID and OBS_SECRET_ACCESS_KEY in the environment, found no "
                f"{' and no '.join(missing)}; set it"
            )
        return {"accessKey": access_key, "secretKey": secret_key, "securityToken": token or None}


class ECS:
    """The metadata service of a cloud server: the keys of the agency that is bound to it.

    Asked by its second version (first a token, then the keys), by the first where there is no second. Never through a
    proxy. Kept until 10 minutes before they expire; until then they are used on if new ones cannot be had. Each
    subclass keeps its own.

    Attributes:
        host: address, and perhaps `:port`, of the service.
        timeout_s: for a connection, and for each piece of an answer.
    """

    host = "169.254.169.254"
    timeout_s = METADATA_TIMEOUT_S
    _keeper = Keeper()

    def __init_subclass__(cls) -> None:
        cls._keeper = Keeper()

    @classmethod
    def search(cls) -> Keys:
        """The keys, from memory or from the service.

        Raises:
            CredentialsError: this is no cloud server, has no agency, or the service does not answer.
        """
        return cls._keeper.get(ECS_REFRESH_BEFORE_S, cls._ask_service)

    @classmethod
    def refresh(cls) -> None:
        """Forgets the keys: the next `search` asks the service."""
        cls._keeper.forget()

    @classmethod
    def _ask_service(cls) -> Found:
        where, origin = f"ECS: metadata service {cls.host}", f"http://{cls.host}"
        lifetime = {"X-securitykey-Token-Ttl-Seconds": "21600"}
        answer = ask(where, TRIES, origin, "PUT", "/meta-data/latest/api/token", lifetime, cls.timeout_s)
        token = answer.body.decode("ascii", "replace").strip() if answer.status < 300 else ""
        if answer.status >= 300 and answer.status not in (404, 405):
            raise CredentialsError(
                f"{where}: expected a session token, found status {answer.status}; give access_key_id and "
                f"secret_access_key if this server has no agency"
            )
        headers = {"X-securitykey-Token": token} if token else {}
        answer = ask(
            where, TRIES, origin, "GET", "/openstack/latest/securitykey", headers, cls.timeout_s,
            is_retried=lambda a: a.status < 300 and not a.body.strip(),
        )  # fmt: skip
        if answer.status != 200:
            raise CredentialsError(
                f"{where}: expected temporary keys, found status {answer.status}; bind an agency to this server"
            )
        return read_temporary(where, answer.body)


class OIDC:
    """The identity provider of a pod: HUAWEI_CLOUD_IDP_ID, and the token in the file that OIDC_TOKEN_FILE names or in
    `/var/run/secrets/tokens/oidc-token`; keys of no scope from IAM.

    Kept until 5 minutes before they expire; the file is read anew for the next. Each subclass keeps its own.

    Attributes:
        default_token_file, iam_endpoint: where to look.
        proxy: the way to IAM, None for the straight one.
    """

    default_token_file = IdTokenCredentialsProvider.DEFAULT_TOKEN_FILE
    iam_endpoint = IdTokenCredentialsProvider.DEFAULT_IAM_ENDPOINT
    proxy: Proxy | None = None
    _made: dict[tuple[str, str], IdTokenCredentialsProvider] = {}  # noqa: RUF012 - of the class, on purpose

    def __init_subclass__(cls) -> None:
        cls._made = {}

    @classmethod
    def search(cls) -> Keys:
        """The keys, from memory or from IAM; the environment is read anew at every call.

        Raises:
            CredentialsError: a variable or the file is missing, or IAM refuses or does not answer.
        """
        idp_id = (os.environ.get("HUAWEI_CLOUD_IDP_ID") or "").strip()
        if not idp_id:
            raise CredentialsError("OIDC: expected HUAWEI_CLOUD_IDP_ID in the environment, found none; set it")
        path = os.environ.get("OIDC_TOKEN_FILE") or cls.default_token_file
        return cls._provider_for(idp_id, path).get_credentials()

    @classmethod
    def refresh(cls) -> None:
        """Forgets the keys: the next `search` asks IAM."""
        cls._made.clear()

    @classmethod
    def _provider_for(cls, idp_id: str, path: str) -> IdTokenCredentialsProvider:
        made = cls._made.get((idp_id, path))
        if made is not None:
            return made
        try:
            provider = IdTokenCredentialsProvider(oidc_token_file=path, idp_id=idp_id, iam_endpoint=cls.iam_endpoint)
        except InvalidArgumentError as error:
            raise CredentialsError(f"OIDC: {error.message}") from None
        if cls.proxy is not None:
            provider.set_proxy(*cls.proxy)
        return cls._made.setdefault((idp_id, path), provider)  # another thread's, if it was faster
