"""A judge that we did not write: the official SDK and this engine are asked for the same uploads, and what each sends
must be the same to the byte, but for the differences that are listed here, and in README's table."""

from __future__ import annotations

import hashlib
import random
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import obs_engine
from harness import make_file
from obs_engine import EngineOptions, ObsEngineError
from recorder import NAMESPACE, Answer, Recorded, Recorder

obs = pytest.importorskip("obs", reason="the official SDK (esdk-obs-python) is the judge here")

pytestmark = pytest.mark.timeout(60)

SEED = 4
COMBINATIONS = 45  # of each mode
BUCKET = "bucket"
ACCESS_KEY, SECRET = "AKEXAMPLE0123456789A", "SKexample/0123456789abcdefghijklmnopqrst"
PART = 102_400

Chosen = dict[str, Any]


# --- the modes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mode:
    """A way to address and to sign.

    Attributes:
        dialect: of the headers that the service should hear.
        options: of both constructors.
        api: what the service answers to the probe.
    """

    host: str
    dialect: str
    options: dict[str, Any] = field(default_factory=dict)
    api: str | None = "3.0"

    @property
    def prefix(self) -> str:
        return "x-obs-" if self.dialect == "obs" else "x-amz-"

    @property
    def is_v4(self) -> bool:
        return self.options.get("signature") == "v4"

    @property
    def is_cname(self) -> bool:
        return "is_cname" in self.options

    @property
    def is_anonymous(self) -> bool:
        return self.options.get("access_key_id") == ""


_STATED = {"is_signature_negotiation": False}
MODES = {
    "path": Mode("127.0.0.1", "v2"),
    "path-v4": Mode("127.0.0.1", "v2", {"signature": "v4", "region": "cn-north-4"}),
    "path-asked-for": Mode("obs.localhost", "v2", {"path_style": True, "long_conn_mode": True}),
    "path-workflow": Mode("127.0.0.1", "obs", {"client_mode": "workflow"}),
    "path-anonymous": Mode("127.0.0.1", "v2", {"access_key_id": "", "secret_access_key": ""}),
    "virtual": Mode("obs.localhost", "obs"),
    "virtual-older-service": Mode("obs.localhost", "v2", api=None),
    "virtual-obs": Mode("obs.localhost", "obs", {"signature": "obs", "long_conn_mode": True, **_STATED}),
    "virtual-v2": Mode("obs.localhost", "v2", {"signature": "v2", **_STATED}),
    "virtual-v4": Mode("obs.localhost", "v2", {"signature": "v4", "region": "cn-north-4", **_STATED}),
    "cname": Mode("files.localhost", "v2", {"is_cname": True}),
    "cname-v4": Mode("files.localhost", "v2", {"is_cname": True, "signature": "v4"}),
}


# --- the options ------------------------------------------------------------------------------------------------

KEYS = [
    "plain", "dir/file.txt", "/leading", "a//b///c", "../up/./x/..", "..", ".", "a/", "%41%2F%", "with  spaces ",
    "plus+plus", "til~de", "caf\u00e9.PNG", "cafe\u0301.png", "\U0001f600/\U0001f468\u200d\U0001f469.jpg",
    "(a)[b]{c}", "quote'\"back\\slash`", "what?", "#hash", "a&b=c;d,e", "k" * 1024, "\u4e2d" * 1024,
    "archive.tar.gz", "no.suffix/here", "txt", ".html", "dot.", "x.unknown", "tab\there", "*star!$@:|<>^",
    "uploads?uploadId=1&partNumber=2", "nb\u00a0sp\u2028", "-_.~",
]  # fmt: skip
ACLS = [None, *(value for name, value in vars(obs.HeadPermission).items() if name.isupper())]
_ADAPTER = obs.convertor.Adapter
STORAGE_CLASSES = [None, *dict.fromkeys(_ADAPTER.OBS_ALLOWED_STORAGE_CLASS + _ADAPTER.V2_ALLOWED_STORAGE_CLASS)]
METADATA: list[dict[str, Any] | None] = [
    None,
    {},
    {"colour": "blue", "shape": "round"},
    {"colour": "blau gr\u00fcn"},
    {"quotes": "say \"hi\" and 'bye'"},
    {"percent": "100% %41 %2B %"},
    {"plus": "1+1=2&3"},
    {"slash": "/a//b/../c?d#e"},
    {"odd": "<>[]{}|\\^`#!()*~;:@$,"},
    {"control": "a\tb\nc\rd\x01\x7f"},
    {"cjk": "\u4e2d\u6587", "emoji": "\U0001f600", "nbsp": "a\u00a0b"},
    {"empty": "", "kept": "x"},
    {"blank": "   ", "kept": "x"},
    {"edges": "  x  "},
    {"int": 7, "zero": 0, "float": 1.5, "flag": True, "none": None},
    {"x-obs-meta-one": "1", "x-amz-meta-two": "2"},
    {"X-OBS-META-Three": "3", "X-Amz-Meta-Four": "4"},
    {"x-obs-acl": "private"},
    {"x-amz-acl": "private"},
    {"X-OBS-expires": "9"},
    {"MixedCase": "V", "mixedcase": "w", "MIXEDCASE": "x"},
    {"\u043a\u043b\u044e\u0447": "\u0437\u043d\u0430\u0447\u0435\u043d\u0438\u0435"},
    {"caf\u00e9": "nfc", "cafe\u0301": "nfd", "\U0001f600": "emoji"},
    {"k;/?@&=+$,": "safe", "k'*()!\"": "others", "100%": "percent", "a%20b": "encoded"},
    {"a name": "with a space"},
    {"~_-.": "plain marks"},
    {"n" * 200: "v" * 2000},
    {"Content-Type": "text/own", "Content-Language": "de", "expires": "7", "host": "x", "date": "y"},
]
SSE: list[tuple[str, Any, str] | None] = [
    None,
    ("SseCHeader", "12345678901234567890123456789012", "AES256"),
    ("SseCHeader", "\u00e9" * 16, "AES256"),
    ("SseCHeader", bytes(range(32)), "AES256"),
    ("SseKmsHeader", None, "kms"),
    ("SseKmsHeader", "4f1cd4de-ab64-4807-920a-47fc42e7f0d0", "kms"),
    ("SseKmsHeader", "cn-north-4:domain id:key/\u00fc%", "kms"),
]
PERMISSIONS = [value for name, value in vars(obs.Permission).items() if name.isupper()]
EXTENSIONS: list[Any] = [
    None,
    {},
    {"x-obs-traffic-limit": 819200},
    {"Cache-Control": "no-cache, max-age=0", "Content-Disposition": 'attachment; filename="a b (\u00e9).txt"'},
    {"Content-Encoding": "gzip", "Content-Language": "de, en", "Expires": "Thu, 01 Dec 2050 16:00:00 GMT"},
    {"x-custom": '\u00fc %41 "q" <>', "X-Upper": "UPPER"},
    {"x-empty": "", "x-blank": "  ", "x-none": None, "x-zero": 0, "x-flag": True, "x-obs-edge": " v "},
    {"requesterPayer": "requester"},
    {"requesterPayer": "requester", "locationClusterGroupId": "group-1", "x-obs-tagging": "a=b&c=d%20e"},
    ("requester", None),  # an ExtensionHeader of both
    ("requester", "group 2"),
    {"Content-Type": "application/x-own"},
    {"x-amz-meta-ext": "v w", "x-obs-meta-ext": "w\u00fc", "x-obs-server-side-encryption": "AES256"},
    {"x-obs-acl": "private", "x-amz-acl": "private"},
]
VALUES: dict[str, Sequence[Any]] = {
    "key": KEYS,
    "acl": ACLS,
    "storage_class": STORAGE_CLASSES,
    "metadata": METADATA,
    "sse": SSE,
    "extension": EXTENSIONS,
    "expires": [None, 0, 1, 30],
    "content_type": [None, None, None, "", "text/html; charset=utf-8", "image/png", 'application/x-\u00fc "q"'],
    "redirect": [None, None, "/other/key", "https://example.com/?a=b&c=%41 d#\u00fc"],
    "location": [None, None, "/elsewhere?x=y z"],
    "success": [None, None, "https://example.com/done?a=b c"],
    "encoding_type": [None, "url"],
    "crc64": [False, False, True],
    "checksum": [False, False, True],
    "checkpoint": [False, False, True],
    "token": [None, None, "TOK/en+1=="],
    "size": [0, 10, 204_800, 250_000],
    "part_size": [PART, 1, 9 << 20, 150_000.0],
    "tasks": [1, 1, 3],
    "upload_id": ["000001648453845DBB78F2340DD460D8", "U+/=&?#%41 ~\u00fc'"],
    "models": ["sdk", "own", "dict", "sdk"],
}
PLAIN: Chosen = {option: values[0] for option, values in VALUES.items()} | {
    "grants": None, "answers": {}, "number": "plain",
}  # fmt: skip
# What one of the two refuses, each alone, in every mode.
REFUSED: list[Chosen] = [
    {"acl": "everybody"},
    {"storage_class": "LUKEWARM"},
    {"size": 0, "crc64": True},
    {"sse": ("SseCHeader", "too short", "AES256")},
    {"metadata": {"a:b": "c"}},
    {"grants": [("account", "READ_DELIVERED")]},
]


def replies(prefix: str) -> dict[str, Answer]:
    """What a service may answer to Complete, well or not, in the words of a dialect."""
    aws = "" if prefix == "x-obs-" else "aws-"
    encryption = f"{prefix}server-side-encryption"
    told = (
        ("Content-Type", "application/xml"), (f"{prefix}request-id", "0000018A"), (f"{prefix}id-2", "32AAA%2B"),
        ("x-reserved-indicator", "a%20b"), ("Server", "OBS"), ("X-Other", "o"), ("ETag", '"e"'),
    )  # fmt: skip
    rich = (
        *told, (f"{prefix}version-id", "v%201"), (encryption, f"{aws.replace('-', ':')}kms"),
        (f"{encryption}-{aws}kms-key-id", "k/1"), (f"{encryption}-customer-algorithm", "AES256"),
        (f"{encryption}-customer-key-MD5", "dnF5x6K/8ZZRzpfSlMMM+w=="), (f"{prefix}checksum-crc64ecma", "1105"),
        (f"{prefix}meta-Na%20me", "v%20%C3%BC+1"), (f"{prefix}expiration", 'rule-id="a%20b"'),
        ("Cache-Control", "no-cache"), ("Content-Language", "de"), ("Last-Modified", "Tue, 01 Sep 2026 12:00:00 GMT"),
        ("Expires", "0"), ("Location", "/else"), ("x-amz-meta-other", "o"), ("x-obs-meta-another", "p"),
        ("Access-Control-Allow-Origin", "*"), ("x-oef-request-id", "q"), ("Via", "proxy"), ("Date", "today"),
    )  # fmt: skip
    result = "CompleteMultipartUploadResult"
    etag = f"<ETag>&quot;{hashlib.md5(hashlib.md5().digest()).hexdigest()}-1&quot;</ETag>"  # of an empty file
    done = (
        f'<{result} xmlns="{NAMESPACE}"><Location>http://h/b/k?a&amp;b</Location><Bucket>b</Bucket><Key>a+b%20c</Key>'
    )
    error = "<Code>Odd</Code><Message>m &amp; \u00fc</Message><RequestId>R</RequestId><HostId>H</HostId>"
    return {
        "well": Answer(headers=rich, body=f"{done}{etag}</{result}>".encode()),
        "well, encoded": Answer(headers=told, body=f"{done}<EncodingType>url</EncodingType>{etag}</{result}>".encode()),
        "well, and brief": Answer(headers=told[:1], body=f"<{result}>{etag}</{result}>".encode()),
        "403": Answer(403, "Forbidden", told, f"<Error>{error}<Resource>/b/k</Resource></Error>".encode()),
        "403 with a namespace": Answer(403, "No", rich, f'<Error xmlns="{NAMESPACE}">{error}</Error>'.encode()),
        "400 that says little": Answer(400, "Bad Request", told, b"<Error><Code>Odd</Code></Error>"),
        "409 without a word": Answer(409, "Conflict", told),
        "409 in JSON": Answer(
            409, "Conflict", (("Content-Type", "application/json"),), b'{"code":"C","message":"m","request_id":"r"}'
        ),
        "400 in HTML": Answer(400, "Bad Request", (("Content-Type", "text/html"),), b"<html><p>Sorry<br></html>"),
        "404": Answer(404, "Not Found", told, b"<Error><Code>NoSuchBucket</Code></Error>"),
        "501": Answer(501, "Not Implemented", told, f"<Error>{error}</Error>".encode()),
    }


SUCCESSES = ("well", "well, encoded", "well, and brief")


def combinations(mode: str) -> Iterator[Chosen]:
    """Every value of every option, as often as another, in an order of chance."""
    # Why a string: a seed of another type may change with the interpreter.
    chance = random.Random(f"{SEED} {mode}")
    columns: dict[str, list[Any]] = {}
    for option, values in VALUES.items():
        column = [values[index % len(values)] for index in range(COMBINATIONS)]
        chance.shuffle(column)
        columns[option] = column
    for index in range(COMBINATIONS):
        chosen = {option: column[index] for option, column in columns.items()}
        chosen["number"] = index
        chosen["answers"] = {}
        chosen["grants"] = grants(chance, index)
        if chosen["size"] == 0:
            chosen["crc64"] = False  # see REFUSED
        if chosen["models"] == "sdk" or chosen["redirect"]:
            chosen["location"] = None
        yield chosen


def grants(chance: random.Random, index: int) -> list[tuple[str, str]] | None:
    """Some (account, permission), one of them twice."""
    if index % 4 == 0:
        return None
    made = [(f"{chance.getrandbits(64):016x}", chance.choice(PERMISSIONS)) for _ in range(index % 13)]
    return [*made, *made[:1], ("odd id/\u00fc%", "READ")]


# --- what each is asked -----------------------------------------------------------------------------------------


def upload_headers(models: Any, chosen: Chosen, *, is_location: bool) -> Any:
    """`headers` in the models of the SDK, or of ours."""
    sse, given = chosen["sse"], chosen["grants"]
    location = {"location": chosen["location"]} if is_location and chosen["location"] else {}
    return models.UploadFileHeader(
        acl=chosen["acl"],
        websiteRedirectLocation=chosen["redirect"],
        contentType=chosen["content_type"],
        sseHeader=None if sse is None else getattr(models, sse[0]).getInstance(key=sse[1], encryption=sse[2]),
        storageClass=chosen["storage_class"],
        successActionRedirect=chosen["success"],
        expires=chosen["expires"],
        extensionGrants=None if given is None else [models.ExtensionGrant(*grant) for grant in given],
        **location,
    )


class Plain:
    """Models of a caller who has neither: dicts, but for keys of encryption."""

    UploadFileHeader = dict
    SseCHeader = obs_engine.SseCHeader
    SseKmsHeader = obs_engine.SseKmsHeader

    @staticmethod
    def ExtensionGrant(account: str, permission: str) -> dict[str, str]:
        return {"granteeId": account, "permission": permission}


def arguments(models: Any, chosen: Chosen, source: Path, record: Path, *, is_ours: bool) -> dict[str, Any]:
    """Of `uploadFile`."""
    extension = chosen["extension"]
    if isinstance(extension, tuple):
        header = obs.ExtensionHeader if models is Plain else models.ExtensionHeader
        extension = header(requesterPayer=extension[0], locationClusterGroupId=extension[1])
    return {
        "bucketName": BUCKET, "objectKey": chosen["key"], "uploadFile": str(source),
        "partSize": chosen["part_size"], "taskNum": chosen["tasks"], "enableCheckpoint": chosen["checkpoint"],
        "checkpointFile": str(record), "checkSum": chosen["checksum"], "metadata": chosen["metadata"],
        "headers": upload_headers(models, chosen, is_location=is_ours),
        "extensionHeaders": extension, "encoding_type": chosen["encoding_type"], "isAttachCrc64": chosen["crc64"],
    }  # fmt: skip


@dataclass(frozen=True)
class Did:
    """What a client sent for one upload, and what it said."""

    requests: list[Recorded]
    result: Any = None
    error: Exception | None = None

    @property
    def outcome(self) -> str:
        return "a result" if self.error is None else f"{type(self.error).__name__}: {self.error}"


class Pair:
    """Both clients before one recorder."""

    def __init__(self, mode: Mode, recorder: Recorder, theirs: Any, ours: Any, tmp_path: Path) -> None:
        self.mode = mode
        self.recorder = recorder
        self.theirs = theirs
        self.ours = ours
        self._sources = {size: make_file(tmp_path / f"{size}", size, seed=size) for size in VALUES["size"]}
        self._record = tmp_path / "record"

    def upload(self, chosen: Chosen) -> tuple[Did, Did]:
        """The same upload by both: ours, theirs."""
        self.recorder.upload_id = chosen["upload_id"]
        self.recorder.answers = chosen["answers"]
        keys = ("", "") if self.mode.is_anonymous else (ACCESS_KEY, SECRET)
        self.theirs.refresh(*keys, chosen["token"])
        self.ours.refresh(*keys, chosen["token"])
        models = {"sdk": obs, "own": obs_engine, "dict": Plain}[chosen["models"]]
        source = self._sources[chosen["size"]]
        theirs = self._did(self.theirs, arguments(obs, chosen, source, self._record, is_ours=False))
        ours = self._did(self.ours, arguments(models, chosen, source, self._record, is_ours=True))
        return ours, theirs

    def _did(self, client: Any, given: dict[str, Any]) -> Did:
        self._record.unlink(missing_ok=True)
        self.recorder.take()
        try:
            result = client.uploadFile(**given)
        except Exception as error:
            return Did(self.recorder.take(), error=error)
        return Did(self.recorder.take(), result)


@contextmanager
def pair_of(mode: Mode, tmp_path: Path, **engine: Any) -> Iterator[Pair]:
    """Both clients of a mode; ours with `EngineOptions(**engine)`."""
    with Recorder(mode.prefix, mode.api) as recorder:
        given: dict[str, Any] = {
            "access_key_id": ACCESS_KEY, "secret_access_key": SECRET, "server": f"http://{mode.host}:{recorder.port}",
            "timeout": 20, "max_retry_count": 0, **mode.options,
        }  # fmt: skip
        options = EngineOptions(**{"check_bucket": True} | engine)
        with closing(obs.ObsClient(**given)) as theirs, closing(obs_engine.ObsClient(**given, engine=options)) as ours:
            yield Pair(mode, recorder, theirs, ours, tmp_path)


@pytest.fixture(autouse=True)
def _names_under_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any `*.localhost` is this machine, whatever the resolver thinks of it; libcurl knows by itself."""
    resolve = socket.getaddrinfo

    def resolve_here(host: Any, *args: Any, **kwargs: Any) -> Any:
        return resolve("127.0.0.1" if str(host).endswith("localhost") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_here)


# --- what differs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """`what`: a header's name in lower case, "method", "path", "query", "body", "requests", "outcome", or a field."""

    chosen: Chosen
    operation: str
    what: str
    ours: Any
    theirs: Any

    def __str__(self) -> str:
        given = ", ".join(f"{n}={_short(v, 60)}" for n, v in self.chosen.items() if v is not None and v is not False)
        return f"\n    ours:   {_short(self.ours)}\n    theirs: {_short(self.theirs)}\n    with:   {given}"


# Of every request and of no upload: times, names, and what becomes of the connection.
UNCOMPARED = {"date", "authorization", "user-agent", "connection"}
RESULT_FIELDS = ["status", "reason", "errorCode", "errorMessage", "requestId", "hostId", "resource", "indicator"]
BODY_FIELDS = list(obs.model.CompleteMultipartUploadResponse.allowedAttr)


def differences(chosen: Chosen, ours: Did, theirs: Did) -> Iterator[Difference]:
    """All of one upload; requests that only one has sent are not looked at further."""
    if ours.outcome != theirs.outcome:
        yield Difference(chosen, "uploadFile", "outcome", ours.outcome, theirs.outcome)
    elif ours.error is None:
        yield from _result_differences(chosen, ours.result, theirs.result)
    sent, wanted = (_arranged(did.requests, chosen["tasks"]) for did in (ours, theirs))
    names, wanted_names = ([request.operation for request in requests] for requests in (sent, wanted))
    if names != wanted_names:
        yield Difference(chosen, "uploadFile", "requests", names, wanted_names)
    for our, their in zip(sent, wanted, strict=False):
        if our.operation != their.operation:
            return
        yield from _request_differences(chosen, our, their)


def _arranged(requests: list[Recorded], tasks: int) -> list[Recorded]:
    """Parts that went side by side in the order of their numbers."""
    if tasks == 1:
        return requests
    parts = sorted(
        (request for request in requests if request.operation == "UploadPart"), key=lambda r: int(r.query["partNumber"])
    )
    following = iter(parts)
    return [next(following) if request.operation == "UploadPart" else request for request in requests]


def _request_differences(chosen: Chosen, our: Recorded, their: Recorded) -> Iterator[Difference]:
    lines = {
        "method": (our.method, their.method),
        "path": (our.target.partition("?")[0], their.target.partition("?")[0]),
        "query": (our.target.partition("?")[2], their.target.partition("?")[2]),
        "body": (our.body, their.body),
        "authorization": (_signer(our), _signer(their)),
    }
    for what, (ours, theirs) in lines.items():
        if ours != theirs:
            yield Difference(chosen, their.operation, what, ours, theirs)
    for name in sorted((our.header_names | their.header_names) - UNCOMPARED):
        if our.values(name) != their.values(name):
            yield Difference(chosen, their.operation, name, our.values(name), their.values(name))


def _signer(request: Recorded) -> list[str]:
    """Who signed, and how; without the signature, which is as old as the request."""
    return [re.sub(r"/\d{8}/|:[\w+/=]+$|,Signed.*", "", value) for value in request.values("authorization")]


def _result_differences(chosen: Chosen, ours: Any, theirs: Any) -> Iterator[Difference]:
    for name in RESULT_FIELDS:
        if getattr(ours, name) != getattr(theirs, name):
            yield Difference(chosen, "result", name, getattr(ours, name), getattr(theirs, name))
    if set(ours.header) != set(theirs.header):
        yield Difference(chosen, "result", "header", set(ours.header), set(theirs.header))
    if isinstance(theirs.body, dict) and isinstance(ours.body, dict):
        for name in BODY_FIELDS:
            if getattr(ours.body, name) != getattr(theirs.body, name):
                yield Difference(chosen, "body", name, getattr(ours.body, name), getattr(theirs.body, name))
    elif ours.body != theirs.body:
        yield Difference(chosen, "result", "body", ours.body, theirs.body)


def _short(value: object, length: int = 300) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}... ({len(text)})"


# --- what may differ --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Documented:
    """A row of README's table: which differences it explains, and in which modes it must be met."""

    row: str
    explains: Callable[[Mode, Difference], bool]
    is_due: Callable[[Mode], bool] = lambda _: True


def _encoded(value: str) -> str:
    return quote(value, safe=" ;/?:@&=+$,'*~")


def _is_added(difference: Difference, name: str, value: str | None) -> bool:
    return (difference.operation, difference.what, difference.theirs) == ("Initiate", name, ()) and (
        value is not None and difference.ours == (_encoded(value),)
    )


def _known_acls(mode: Mode) -> list[str]:
    return list(_ADAPTER.OBS_ALLOWED_ACL_CONTROL if mode.dialect == "obs" else _ADAPTER.V2_ALLOWED_ACL_CONTROL)


def _is_refused_by_us(difference: Difference) -> bool:
    """We raise and send nothing; the SDK begins."""
    if difference.what == "outcome":
        return str(difference.ours).startswith("InvalidArgumentError")
    return difference.what == "requests" and difference.ours == []


DOCUMENTED = [
    Documented(
        "success-action-redirect is sent",
        lambda mode, d: _is_added(d, "success-action-redirect", d.chosen["success"]),
    ),
    Documented(
        "headers.location is honoured",
        lambda mode, d: _is_added(d, f"{mode.prefix}website-redirect-location", d.chosen["location"]),
    ),
    Documented(
        "an ACL of another mode is sent as given",
        lambda mode, d: d.chosen["acl"] not in _known_acls(mode) and _is_added(d, f"{mode.prefix}acl", d.chosen["acl"]),
    ),
    Documented(
        "an ACL or a storage class that no mode knows is refused",
        lambda mode, d: d.chosen["number"] in ("acl", "storage_class") and _is_refused_by_us(d),
    ),
    Documented(
        "wrong arguments are refused before anything is sent",
        lambda mode, d: d.chosen["number"] in ("sse", "metadata", "grants") and _is_refused_by_us(d),
    ),
    Documented(
        "an empty file may have a CRC-64",
        lambda mode, d: (
            (d.chosen["size"], d.chosen["crc64"]) == (0, True)
            and (d.what == "outcome" or (d.what == "requests" and d.ours == [*d.theirs, "Complete"]))
        ),
    ),
    Documented(
        "grants are sorted",
        lambda mode, d: (
            d.what.startswith(f"{mode.prefix}grant-")
            and sorted(",".join(d.theirs).split(",")) == ",".join(d.ours).split(",")
        ),
    ),
    Documented(
        "names of the model's fields are no headers",
        lambda mode, d: d.what in ("requesterpayer", "locationclustergroupid") and d.ours == (),
    ),
    Documented(
        "GetResult.body of an error is None",
        lambda mode, d: (
            (d.operation, d.what, d.ours) == ("result", "body", None) and d.chosen["number"] not in SUCCESSES
        ),
    ),
    Documented(
        "GetResult.hostId is read from the header where the error does not say it",
        lambda mode, d: (d.operation, d.what, d.ours, d.theirs) == ("result", "hostId", "32AAA%2B", None),
    ),
    Documented(
        "a name of metadata with a space is percent-encoded",
        lambda mode, d: (
            "a name" in (d.chosen["metadata"] or {})
            and (
                (d.what == f"{mode.prefix}meta-a name" and d.ours == ())
                or (d.what == f"{mode.prefix}meta-a%20name" and d.theirs == ())
            )
        ),
    ),
    Documented(
        "objectUrl of a custom domain names the domain alone",
        lambda mode, d: d.what == "objectUrl" and d.theirs == d.ours.replace("//", "//bucket.", 1),
        lambda mode: mode.is_cname,
    ),
    Documented(
        "a Complete that may have been done is looked for",
        lambda mode, d: (
            d.chosen["number"] == "501" and d.what == "requests" and d.ours == [*d.theirs[:-1], "Head", "Abort"]
        ),
    ),
    Documented(
        "V4: x-amz-date as well",
        lambda mode, d: d.what == "x-amz-date" and d.theirs == () and bool(re.fullmatch(r"\d{8}T\d{6}Z", *d.ours)),
        lambda mode: mode.is_v4,
    ),
    Documented(
        "parts under server-side encryption: Content-MD5, as their ETags prove nothing",
        lambda mode, d: (
            (d.operation, d.what, d.theirs) == ("UploadPart", "content-md5", ())
            and (d.chosen["sse"] is not None or "server-side-encryption" in str(d.chosen["extension"]))
        ),
    ),
]  # fmt: skip


class Findings:
    """What is not explained, and which rows were met."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self.met: Counter[str] = Counter()
        self._open: dict[tuple[str, str], list[Difference]] = {}

    def add(self, difference: Difference) -> None:
        for documented in DOCUMENTED:
            if documented.explains(self._mode, difference):
                self.met[documented.row] += 1
                return
        self._open.setdefault((difference.operation, difference.what), []).append(difference)

    def __str__(self) -> str:
        """Two examples of each kind."""
        return "\n".join(
            f"{len(found)} x {operation}, {what}:{''.join(str(one) for one in found[:2])}"
            for (operation, what), found in self._open.items()
        )


def test_there_are_enough_combinations() -> None:
    """The matrix is what was promised, and each value of each option stands in it, in every mode."""
    assert len(MODES) * COMBINATIONS >= 400
    for mode in MODES:
        made = list(combinations(mode))
        for option, values in VALUES.items():
            assert {repr(value) for value in values} == {repr(chosen[option]) for chosen in made}, (mode, option)


@pytest.mark.parametrize("name", list(MODES), ids=[f"{name}-seed{SEED}" for name in MODES])
def test_both_send_the_same(name: str, tmp_path: Path) -> None:
    """Requests and results of both, over the matrix; nothing differs but what is documented, and that does."""
    mode = MODES[name]
    findings = Findings(mode)
    compared_signatures = 0
    more = [PLAIN | odd | {"number": next(iter(odd))} for odd in REFUSED]
    more += [PLAIN | {"answers": {"Complete": a}, "number": name} for name, a in replies(mode.prefix).items()]
    with pair_of(mode, tmp_path) as pair:
        for chosen in (*combinations(name), *more):
            ours, theirs = pair.upload(chosen)
            for difference in differences(chosen, ours, theirs):
                findings.add(difference)
            compared_signatures += _compared_signatures(mode, chosen, ours, theirs, findings)
    if text := str(findings):
        pytest.fail(f"{name}, seed {SEED}:\n{text}", pytrace=False)
    due = {documented.row for documented in DOCUMENTED if documented.is_due(mode)}
    assert due == set(findings.met)
    assert compared_signatures or mode.is_v4 or mode.is_anonymous


def _compared_signatures(mode: Mode, chosen: Chosen, ours: Did, theirs: Did, findings: Findings) -> int:
    """Requests that are equal to the second must have equal signatures; V4 of ours covers a header more."""
    if mode.is_v4 or mode.is_anonymous:
        return 0
    compared = 0
    for our, their in zip(ours.requests, theirs.requests, strict=False):
        is_equal = not [*_request_differences(chosen, our, their)] and our.values("date") == their.values("date")
        if is_equal:
            compared += 1
            if our.values("authorization") != their.values("authorization"):
                signatures = our.values("authorization"), their.values("authorization")
                findings.add(Difference(chosen, their.operation, "signature", *signatures))
    return compared


@pytest.mark.parametrize(
    ("answer", "signature"),
    [(Answer(404, "Not Found"), None), (Answer(503, "Slow Down"), None), (Answer(403, "Forbidden"), "v2"),
     (Answer(headers=(("x-obs-api", "2.9"),)), "v2"), (Answer(headers=(("x-obs-api", "3.1"),)), "obs")],
)  # fmt: skip
def test_both_understand_the_probe(answer: Answer, signature: str | None, tmp_path: Path) -> None:
    """A missing bucket, or a service that is down, is the result of the upload; any other answer tells the dialect."""
    mode = Mode("obs.localhost", signature or "obs")
    findings = Findings(mode)
    with pair_of(mode, tmp_path) as pair:
        ours, theirs = pair.upload(PLAIN | {"answers": {"Probe": answer}})
        for difference in differences(PLAIN, ours, theirs):
            findings.add(difference)
    assert str(findings) == ""
    assert not findings.met
    assert len(ours.requests) == (5 if signature else 1)
    assert ours.result.status == (200 if signature else answer.status)


REFUSALS = {
    "bucket": {"Head": Answer(404, "Not Found")},
    "bucket, without permission": {"Head": Answer(403, "Forbidden")},
    "Initiate": {"Initiate": replies("x-amz-")["403"]},
    "Initiate, out of order": {"Initiate": replies("x-amz-")["501"]},
    "part": {"UploadPart": replies("x-amz-")["403"]},
    "part, out of order": {"UploadPart": replies("x-amz-")["501"]},
}


@pytest.mark.parametrize("size", [10, 250_000])
def test_errors_contain_what_the_sdk_says(size: int, tmp_path: Path) -> None:
    """Who reads messages finds the same words; and both leave the service alike."""
    with pair_of(MODES["path"], tmp_path) as pair:
        for name, answers in REFUSALS.items():
            ours, theirs = pair.upload(PLAIN | {"size": size, "answers": answers})
            assert isinstance(ours.error, ObsEngineError), (name, ours.outcome)
            assert str(theirs.error) in str(ours.error), name
            assert {r.operation for r in ours.requests} == {r.operation for r in theirs.requests}, name
        for blank in ("bucketName", "objectKey", "uploadFile"):
            given = {"bucketName": BUCKET, "objectKey": "key", "uploadFile": str(tmp_path / "10")} | {blank: " "}
            said = []
            for client in (pair.theirs, pair.ours):
                with pytest.raises(Exception, match=f"{blank} is empty") as caught:
                    client.uploadFile(**given)
                said.append(str(caught.value))
            assert said[0] in said[1]


def test_what_only_the_sdk_asks_first(tmp_path: Path) -> None:
    """HEAD bucket is not sent unless asked for; a signature that was stated is not negotiated away."""
    with pair_of(MODES["virtual"], tmp_path, check_bucket=False) as pair:
        ours, theirs = pair.upload(PLAIN)
    assert [r.operation for r in theirs.requests] == ["Probe", "Head", "Initiate", "UploadPart", "Complete"]
    assert [r.operation for r in ours.requests] == ["Probe", "Initiate", "UploadPart", "Complete"]
    with pair_of(Mode("obs.localhost", "v2", {"signature": "v4"}), tmp_path) as pair:
        ours, theirs = pair.upload(PLAIN)
    assert [r.operation for r in theirs.requests] == ["Probe", "Head", "Initiate", "UploadPart", "Complete"]
    assert [r.operation for r in ours.requests] == ["Head", "Initiate", "UploadPart", "Complete"]
    assert theirs.requests[-1].values("authorization")[0].startswith("OBS ")
    assert ours.requests[-1].values("authorization")[0].startswith("AWS4-HMAC-SHA256 ")


# --- types by suffix --------------------------------------------------------------------------------------------

UNKNOWN_SUFFIXES = """avif avro bat bin c cfg conf cpp dat db dll exe go h heic html5 java jp jsonl log1 lz4 map md mjs
    ndjson orc parquet pcap proto py rs sh so sql sqlite tgz toml ts tsx txt2 vue webp whl x xz zst""".split()


def test_types_by_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK itself is asked which Content-Type it gives to a key: each suffix that it knows, and many others."""
    from obs_engine.wire.content_types import content_type_of

    with closing(obs.ObsClient(server="http://127.0.0.1:1")) as client:
        monkeypatch.setattr(client, "_make_post_request", lambda *_, headers, **__: headers.get("Content-Type"))
        known = list(obs.const.MIME_TYPES)
        assert len(known) >= 100
        assert not set(UNKNOWN_SUFFIXES) & set(known)
        keys = []
        for suffix in (*known, *UNKNOWN_SUFFIXES):
            keys += [
                f"k.{suffix}", f"d/K.{suffix.upper()}", f"k.{suffix.capitalize()}", suffix, f"{suffix}.", f".{suffix}",
                f"k.tar.{suffix}", f"k.{suffix}.gz", f"k.{suffix}.bin", f"d.{suffix}/k", f"k.{suffix} ",
                f"k.{suffix}?x", f"k{suffix}", f"d/{suffix}",
            ]  # fmt: skip
        keys += ["", ".", "..", "k.", "k..txt", "\u00fc.txt", "k.\u212apeg", "k.TX\u0054", "txt/"]
        wrong = {
            key: (content_type_of(key), theirs)
            for key in keys
            if content_type_of(key) != (theirs := client.initiateMultipartUpload(BUCKET, key))
        }
    assert not wrong
