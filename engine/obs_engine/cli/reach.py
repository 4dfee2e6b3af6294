"""Can the service be reached from here, and what may these keys do there? For `doctor`.

Looks at name, connection and TLS by itself; everything else is asked as an upload asks it, by way of the engine. Leaves
nothing behind: the one upload that it begins, where it may write, is aborted.
"""

from __future__ import annotations

import secrets
import socket
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from obs_engine.cli.inquiries import Ask, initiated
from obs_engine.cli.machine import Finding, Measure, Verdict
from obs_engine.errors import ObsEngineError
from obs_engine.wire import requests
from obs_engine.wire.endpoint import Addressing, Endpoint
from obs_engine.wire.replies import Reply, read_fault

CONNECT_TIMEOUT_S = 5.0
CLOCK_NOTICE_S, CLOCK_REFUSED_S = 60.0, 900.0
"""What is 15 minutes off is refused; where the service says why, the engine signs by the service's clock."""
PROBE_KEY = ".obs-engine-doctor-"

_WRONG_KEYS = {
    "InvalidAccessKeyId": "the service knows no such access key: correct it",
    "SignatureDoesNotMatch": "the secret key is another one, or --signature or --region is: correct them",
    "InvalidSecurity": "the token is missing or wrong: give it with its keys",
    "ExpiredToken": "these temporary keys have expired: fetch new ones",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
}


def network(endpoint: Endpoint, addressing: Addressing, bucket: str, ca_file: str | None) -> Iterator[Finding]:
    """Addresses, a connection, TLS; ends at the first that fails."""
    host, port = endpoint.host_of(bucket, addressing), endpoint.port
    started_s = time.perf_counter()
    try:
        found = socket.getaddrinfo(_asked_for(host), port, type=socket.SOCK_STREAM)
    except OSError as error:
        yield Finding("bad", "DNS", f"{host}: {error.strerror}", "check --endpoint, the bucket's name, the resolver")
        return
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    shown = ", ".join(addresses[:4]) + (f" and {len(addresses) - 4} more" if len(addresses) > 4 else "")
    dns_ms = (time.perf_counter() - started_s) * 1000
    if not endpoint.is_ip:
        yield Finding("good", "DNS", f"{host} is {shown} ({dns_ms:.0f} ms)", "", {"addresses": addresses})
    started_s = time.perf_counter()
    try:
        connection = socket.create_connection((_asked_for(host), port), CONNECT_TIMEOUT_S)
    except OSError as error:
        yield Finding("bad", "connect", f"{host}:{port}: {error.strerror or error}",
                      "check the port, the firewall, or whether a proxy is needed")  # fmt: skip
        return
    connect_ms = (time.perf_counter() - started_s) * 1000
    with connection:
        yield Finding("good", "connect", f"port {port} in {connect_ms:.1f} ms", "", {"ms": round(connect_ms, 1)})
        if endpoint.scheme != "https":
            yield Finding("notice", "TLS", "none: keys are safe, the data can be read on the way", "use https://")
            return
        yield _tls(connection, host, ca_file)


def _asked_for(host: str) -> str:
    """The name to look for. Source: RFC 6761: all below `localhost` is here; libcurl knows that, resolvers may not."""
    return "localhost" if host.endswith(".localhost") else host


def _tls(connection: socket.socket, host: str, ca_file: str | None) -> Finding:
    try:
        context = ssl.create_default_context(cafile=ca_file)
        with context.wrap_socket(connection, server_hostname=host) as secure:
            cipher, version = (secure.cipher() or ("?",))[0], secure.version()
            until = (secure.getpeercert() or {}).get("notAfter", "?")
    except ssl.SSLCertVerificationError as error:
        return Finding("bad", "TLS", f"the certificate is not trusted: {error.verify_message}",
                       "name its authority with --ca-file")  # fmt: skip
    except (OSError, ValueError) as error:
        return Finding("bad", "TLS", f"{getattr(error, 'strerror', None) or error}", "check the port and the scheme")
    values: Measure = {"version": version, "cipher": cipher, "certificate_until": str(until)}
    return Finding("good", "TLS", f"{version}, {cipher}, certificate until {until}", "", values)


class Permissions:
    """What some keys may do in a bucket, request by request.

    Attributes:
        found: in the order asked.
    """

    def __init__(self, ask: Ask, bucket: str) -> None:
        self._ask = ask
        self._bucket = bucket
        self.found: list[Finding] = []

    def look(self, *, may_write: bool) -> None:
        """Asks; ends where there is no such bucket, or the keys are wrong.

        Args:
            may_write: begin an upload and abort it; else it stays unknown whether that is allowed.
        """
        bucket, key = self._bucket, f"{PROBE_KEY}{secrets.token_hex(8)}"
        before_s = time.time()
        # Why this first: only a body says what is wrong with keys, and the replies to HEAD have none.
        listing = self._try(requests.list_uploads(bucket, key), "ListBucketMultipartUploads",
                            "`uploads ls`, and `resume --adopt` without an upload id")  # fmt: skip
        if listing is None:
            return
        is_skewed = self._look_at_clock(listing, (before_s + time.time()) / 2)
        if listing.status == 404 or read_fault(listing).code in _WRONG_KEYS:
            return
        if is_skewed:
            self._say("notice", "HeadBucket, GetObject", "unknown: a HEAD that is refused does not say why",
                      "set the clock, and ask again", permission="unknown")  # fmt: skip
        else:
            self._try(requests.head_bucket(bucket), "HeadBucket", "EngineOptions.check_bucket alone")
            self._try(requests.head_object(bucket, key), "GetObject", "`verify`, and for settling a Complete that "
                      "was not answered; it may be ListBucket that is missing")  # fmt: skip
        if may_write:
            self._begin_and_abort(key)
        else:
            self._say("notice", "PutObject", "unknown: only an upload would tell", "begin and abort one: --write",
                      permission="unknown")  # fmt: skip

    def _begin_and_abort(self, key: str) -> None:
        bucket = self._bucket
        begun = self._try(requests.initiate(bucket, key), "PutObject", "every upload", is_vital=True)
        upload_id = None if begun is None else initiated(begun)
        if upload_id is None:
            return
        self._try(requests.list_parts(bucket, key, upload_id), "ListMultipartUploadParts",
                  "resuming where a record is lost, damaged or another's")  # fmt: skip
        ended = self._try(requests.abort(bucket, key, upload_id), "AbortMultipartUpload", "`uploads abort`")
        if ended is None or ended.status >= 300:
            self._say("bad", "probe upload", f"{upload_id} of {key} is still open", "have it aborted")

    def _try(self, request: requests.Request, name: str, needed_for: str, *, is_vital: bool = False) -> Reply | None:
        """Asks, and says what came of it; None where no reply did."""
        try:
            reply = self._ask(request)
        except ObsEngineError as error:
            self._say("bad", name, "no answer", str(error), permission="unknown")
            return None
        code = read_fault(reply).code
        words = f"{code or reply.reason or 'status'} ({reply.status})"
        if reply.status < 300 or (reply.status == 404 and request.key is not None):
            self._say("good", name, "allowed", permission="allowed", status=reply.status)
        elif code in _WRONG_KEYS:
            self._say("bad", name, words, _WRONG_KEYS[code], permission="unknown", status=reply.status)
        elif reply.status == 404:
            self._say("bad", name, f"there is no bucket {self._bucket!r} here", "check its name and its region",
                      permission="unknown", status=404)  # fmt: skip
        elif reply.status in (401, 403):
            self._say("bad" if is_vital else "notice", name, f"denied: {words}", f"needed for {needed_for}",
                      permission="denied", status=reply.status)  # fmt: skip
        else:
            self._say("notice", name, f"unknown: {words}", "ask again later", permission="unknown", status=reply.status)
        return reply

    def _look_at_clock(self, reply: Reply, here_s: float) -> bool:
        """Says how far it is from the service's; is that too far for a request that is not signed by the latter?"""
        try:
            there_s = parsedate_to_datetime(reply.header("date") or "").timestamp()
        except ValueError:
            return False
        offset_s = here_s - there_s - 0.5  # Date has whole seconds
        text = "the service's, within a second" if abs(offset_s) <= 1.5 else f"{offset_s:+.0f} s from the service's"
        verdict: Verdict = "good" if abs(offset_s) < CLOCK_NOTICE_S else "notice"
        self._say(verdict, "clock", text, "" if verdict == "good" else "uploads correct it; set this machine's clock",
                  offset_s=round(offset_s, 1))  # fmt: skip
        return abs(offset_s) >= CLOCK_REFUSED_S

    def _say(self, verdict: Verdict, name: str, text: str, advice: str = "", **values: str | int | float) -> None:
        self.found.append(Finding(verdict, name, text, advice, {**values}))
