"""Log lines of all processes: where they arrive, and what is never in them or anywhere else."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
import stat
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import client_of, make_file
from obs_engine import InvalidArgumentError, LogConf, ObsClient, ObsEngineError, SseCHeader, SseKmsHeader
from obs_engine.testing import LocalObs
from proxy import ConnectProxy, Relay

pytestmark = pytest.mark.timeout(60)

PART = 102_400
SECRET = "SECRET/of+a=test0123456789abcdefghijklmn"
TOKEN = "TOKEN/of+a=test"
ENCRYPTION_KEY = "an-encryption-key-of-32-bytes-00"
PASSWORD = "proxy/password+1"
LINE = re.compile(r"Initiate|UploadPart|Complete")


@pytest.fixture
def debug() -> Iterator[list[logging.LogRecord]]:
    """All records of the engine's logger, at DEBUG."""
    records: list[logging.LogRecord] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger, keeper = logging.getLogger("obs_engine"), Keeper()
    level = logger.level
    logger.addHandler(keeper)
    logger.setLevel(logging.DEBUG)
    yield records
    logger.removeHandler(keeper)
    logger.setLevel(level)


def uploaded(server: LocalObs, key: str, source: Path, **client: Any) -> Any:
    with client_of(server, **client) as caller:
        return caller.uploadFile("bench", key, source, PART, 4)


# --- where lines arrive -----------------------------------------------------------------------------------------


def test_without_a_handler_nothing_is_written(server: LocalObs, key: str, source: Path) -> None:
    """Not by the caller, not by the other processes; not of a success, a retry or a failure."""
    server.set_faults([{"operation": "UploadPart", "nth": [2], "status": 503}])
    code = f"""
from obs_engine import ObsClient, ObsEngineError
for secret in ({server.secret_key!r}, "wrong"):
    with ObsClient({server.access_key!r}, secret, server={server.url!r}) as client:
        try:
            client.uploadFile("bench", {key!r}, {str(source)!r}, {PART}, 4)
        except ObsEngineError:
            assert secret == "wrong"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_every_request_has_its_line(
    server: LocalObs, key: str, source: Path, debug: list[logging.LogRecord]
) -> None:
    """Operation, status, milliseconds and request id, at DEBUG, of every request that the service saw."""
    server.set_faults([{"operation": "UploadPart", "nth": [2], "status": 503, "code": "SlowDown"}])
    uploaded(server, key, source)
    lines = [r.getMessage() for r in debug if r.levelno == logging.DEBUG and LINE.search(r.getMessage())]
    log = server.requests()
    assert len(log) == 23
    for entry in log:
        mine = [line for line in lines if entry["request_id"] in line]
        assert len(mine) == 1, (entry, lines)
        assert entry["operation"] in mine[0]
        assert str(entry["status"]) in mine[0]
        assert key in mine[0]
        assert re.search(r"\d+(\.\d+)? ?ms|milliseconds", mine[0])


def test_lines_arrive_in_the_callers_process_and_thread(
    server: LocalObs, key: str, source: Path, debug: list[logging.LogRecord]
) -> None:
    """Whatever process they are of, the caller's handlers and filters see them."""
    uploaded(server, key, source)
    assert {r.name for r in debug} == {"obs_engine"}
    assert {r.process for r in debug} == {os.getpid()}
    assert {r.thread for r in debug} == {threading.get_ident()}
    assert logging.INFO in {r.levelno for r in debug}


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_lines_that_nobody_takes_do_not_travel(
    server: LocalObs, key: str, source: Path, debug: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch,
    level: int,
) -> None:  # fmt: skip
    """Above DEBUG, no message about a request reaches this process; above INFO, none at all."""
    from obs_engine.transfer import launch, messages

    seen: list[int] = []
    messages_of = launch.Call.messages

    def watched(call: Any) -> Iterator[Any]:
        for message in messages_of(call):
            if isinstance(message, messages.Logged):
                seen.append(message.level)
            yield message

    monkeypatch.setattr(launch.Call, "messages", watched)
    logging.getLogger("obs_engine").setLevel(level)
    uploaded(server, key, source)
    assert all(found >= level for found in seen)
    assert not [r for r in debug if r.levelno < level]
    assert bool(seen) == (level == logging.INFO)


# --- a test that greps ------------------------------------------------------------------------------------------


class _Watch:
    """Command lines and environments of all processes below this one, gathered until the end."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._is_over.wait(0.01):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error, OSError):
                    self.seen.add(" ".join(process.cmdline()))
                    self.seen.add(repr(process.environ()))

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def forms_of(secret: str) -> set[str]:
    """A secret as it may be spelt."""
    raw = secret.encode()
    digest = hashlib.md5(raw).digest()
    return {secret, base64.b64encode(raw).decode(), base64.b64encode(digest).decode(), digest.hex(), repr(raw)}


HEADERS: dict[str, Any] = {
    "plain": None,
    "sse-c": {"sseHeader": SseCHeader.getInstance(ENCRYPTION_KEY)},
    "kms": {"sseHeader": SseKmsHeader.getInstance("a-kms-key-id")},
}
FAULTS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "403": [{"operation": "UploadPart", "nth": list(range(2, 99)), "status": 403, "code": "AccessDenied"}],
    "Initiate 403": [{"operation": "Initiate", "status": 403, "code": "AccessDenied"}],
    "reset": [{"operation": "UploadPart", "reset": {"after_body_bytes": 1000}}],
    "wrong ETag": [{"operation": "UploadPart", "corrupt": "etag"}],
    "Complete 503": [{"operation": "Complete", "status": 503}],
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalObs]:
    """A server that wants a token, with a secret of ours."""
    with LocalObs(
        buckets=["bench"], secret_key=SECRET, security_token=TOKEN, data_dir=tmp_path_factory.mktemp("guarded")
    ) as server:
        yield server


@pytest.mark.parametrize(
    ("signature", "headers", "fault", "door"),
    [
        ("obs", "plain", "none", "relay"),
        ("v2", "sse-c", "none", "relay"),
        ("v4", "sse-c", "none", "relay"),
        ("v4", "kms", "403", "relay"),
        ("v2", "sse-c", "403", "relay"),
        ("obs", "sse-c", "Initiate 403", "relay"),
        ("v4", "sse-c", "reset", "relay"),
        ("v2", "sse-c", "wrong ETag", "relay"),
        ("obs", "kms", "Complete 503", "relay"),
        ("v2", "sse-c", "none", "proxy"),
        ("v4", "sse-c", "none", "proxy that refuses"),
        ("v4", "sse-c", "none", "refused"),
        ("v4", "sse-c", "none", "broken TLS"),
    ],
)
def test_no_secret_is_anywhere(
    guarded: LocalObs, key: str, tmp_path: Path, debug: list[logging.LogRecord], signature: str, headers: str,
    fault: str, door: str,
) -> None:  # fmt: skip
    """Log lines, errors with all that caused them, the journal, command lines, environments: none holds a secret."""
    source = make_file(tmp_path / "source.bin", 3 * PART, seed=6)
    guarded.set_faults(FAULTS[fault])
    server = guarded.virtual_url if signature == "obs" else guarded.url
    texts: list[str] = []
    with _Watch() as watch, Relay(guarded.port) as relay, ConnectProxy("user", PASSWORD) as proxy:
        url = server.replace(str(guarded.port), str(relay.port))
        options: dict[str, Any] = {"server": url}
        if door.startswith("proxy"):
            password = PASSWORD if door == "proxy" else f"{PASSWORD}-wrong"
            options |= {"proxy_host": "127.0.0.1", "proxy_port": proxy.port, "proxy_username": "user",
                        "proxy_password": password}  # fmt: skip
        elif door == "refused":
            options["server"] = "http://127.0.0.1:1"
        elif door == "broken TLS":
            options["server"] = url.replace("http:", "https:")
        with ObsClient(guarded.access_key, SECRET, signature=signature, security_token=TOKEN, max_retry_count=1,
                       timeout=5, **options) as client:  # fmt: skip
            texts.append(repr(client))
            try:
                result = client.uploadFile(
                    "bench", key, source, PART, 2, True, headers=HEADERS[headers], metadata={"a": "b"}
                )
                texts.append(repr({name: value for name, value in result.items() if name != "header"}))
                is_failed = result.status >= 300
            except ObsEngineError as error:
                texts += [str(error), repr(error), repr(error.fields()), traceback.format_exc()]
                is_failed = True
            assert is_failed == (fault != "none" or door not in ("relay", "proxy"))
        heard = relay.heard().decode("latin-1")
    for record in tmp_path.glob("source.bin.*"):
        texts.append(record.read_bytes().decode("latin-1"))
    texts += [f"{r.getMessage()} {r.exc_text} {r.args!r}" for r in debug] + list(watch.seen)
    assert texts
    authorizations = re.findall(r"(?im)^authorization: *(.*?)\r?$", heard)
    assert bool(authorizations) == (door in ("relay", "proxy"))
    never = {form for secret in (SECRET, TOKEN, ENCRYPTION_KEY, PASSWORD) for form in forms_of(secret)}
    never |= {base64.b64encode(f"user:{PASSWORD}".encode()).decode(), *authorizations}
    never |= {re.split(r"Signature=|:", found)[-1] for found in authorizations}
    if headers == "sse-c" and authorizations:
        # Why: a search for what was never there would find nothing however much is told.
        assert base64.b64encode(ENCRYPTION_KEY.encode()).decode() in heard
    # The service itself answers with the MD5 of the key, for the caller to compare: Table 12, sseCKeyMd5.
    told = [text.replace(base64.b64encode(hashlib.md5(ENCRYPTION_KEY.encode()).digest()).decode(), "")
            if "sseCKeyMd5" in text else text for text in texts]  # fmt: skip
    found = [(secret, text[:500]) for secret in never for text in told if secret in text]
    assert not found


# --- initLog ----------------------------------------------------------------------------------------------------


def ini_of(tmp_path: Path, section: str = "LOGCONF", **more: object) -> Path:
    """The SDK's ini file, with its log in a directory that is not there yet."""
    known: dict[str, object] = {
        "LogFileDir": tmp_path / "logs", "LogFileName": "engine.log", "LogFileSize": 1, "LogFileNumber": 3,
        "LogFileLevel": "DEBUG", "PrintLogToConsole": 0, "PrintLogLevel": "DEBUG",
    }  # fmt: skip
    path = tmp_path / "log.ini"
    lines = [f"{name}={value}" for name, value in (known | more).items()]
    path.write_text("\n".join([f"[{section}]", *lines, ""]))
    return path


def state_of_logging() -> tuple[object, ...]:
    """What a host would notice."""
    root, logger = logging.getLogger(), logging.getLogger("obs_engine")
    others = {name: (log.level, list(log.handlers)) for name, log in root.manager.loggerDict.items()
              if isinstance(log, logging.Logger) and name != "obs_engine"}  # fmt: skip
    return root.level, list(root.handlers), others, logger.level, list(logger.handlers), logger.propagate


def test_init_log_writes_the_sdks_file(server: LocalObs, key: str, source: Path, tmp_path: Path) -> None:
    """Lines of all processes, for its owner alone; when the client is closed, nothing is left of it."""
    before = state_of_logging()
    with client_of(server) as client:
        client.initLog(LogConf(ini_of(tmp_path)), log_name="MY_NAME")
        assert state_of_logging()[:3] == before[:3]
        client.uploadFile("bench", key, source, PART, 4)
    assert state_of_logging() == before
    path = tmp_path / "logs" / "engine.log"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = path.read_text().splitlines()
    assert all("MY_NAME" in line for line in lines)
    assert sum("UploadPart" in line and "|DEBUG|" in line for line in lines) == 20
    assert any("|INFO|" in line for line in lines)
    assert server.secret_key not in path.read_text()


def test_init_log_has_levels(server: LocalObs, key: str, source: Path, tmp_path: Path) -> None:
    """Lines below the file's level are not in it; another section may be named."""
    with client_of(server) as client:
        client.initLog(LogConf(str(ini_of(tmp_path, "MINE", LogFileLevel="INFO")), sec="MINE"))
        client.uploadFile("bench", key, source, PART, 4)
    text = (tmp_path / "logs" / "engine.log").read_text()
    assert "|INFO|" in text
    assert "|DEBUG|" not in text


def test_init_log_rotates(server: LocalObs, tmp_path: Path) -> None:
    """At so many MB, and keeps so many older files, all of them 0600."""
    with client_of(server) as client:
        client.initLog(LogConf(ini_of(tmp_path, LogFileSize=1, LogFileNumber=2)))
        for _ in range(45):
            logging.getLogger("obs_engine").info("x" * 100_000)
    files = sorted((tmp_path / "logs").iterdir())
    assert [path.name for path in files] == ["engine.log", "engine.log.1", "engine.log.2"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert all(path.stat().st_size <= 1 << 20 for path in files)


def test_init_log_may_print(
    server: LocalObs, key: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the console, from its own level on."""
    with client_of(server) as client:
        client.initLog(LogConf(ini_of(tmp_path, PrintLogToConsole=1, PrintLogLevel="INFO")))
        client.uploadFile("bench", key, source, PART, 4)
    said = capsys.readouterr()
    assert "|INFO|" in said.err
    assert "|DEBUG|" not in said.out + said.err


def test_two_clients_share_a_file(server: LocalObs, key: str, source: Path, tmp_path: Path) -> None:
    """Each line is in it once; the file stays until the second is closed."""
    before = state_of_logging()
    config = LogConf(ini_of(tmp_path))
    path = tmp_path / "logs" / "engine.log"
    with client_of(server) as first, client_of(server) as second:
        first.initLog(config)
        second.initLog(config)
        first.uploadFile("bench", key, source, PART, 4)
        first.close()
        assert path.read_text().count("UploadPart") == 20
        second.uploadFile("bench", key, source, PART, 4)
        assert path.read_text().count("UploadPart") == 40
    assert state_of_logging() == before


@pytest.mark.parametrize("fault", ["missing", "section", "text", "number", "directory"])
def test_a_wrong_log_file_is_a_clear_error(server: LocalObs, tmp_path: Path, fault: str) -> None:
    """Which says the path; logging stays as it was."""
    before = state_of_logging()
    path = ini_of(tmp_path)
    if fault == "missing":
        path.unlink()
    elif fault == "text":
        path.write_text("no ini file")
    elif fault == "number":
        ini_of(tmp_path, LogFileSize="many")
    elif fault == "directory":
        (tmp_path / "logs").write_text("in the way")
    with client_of(server) as client, pytest.raises(InvalidArgumentError, match=re.escape(str(tmp_path))):
        client.initLog(LogConf(path, sec="OTHER" if fault == "section" else "LOGCONF"))
    assert state_of_logging() == before


def test_the_sdks_log_conf_is_taken(server: LocalObs, key: str, source: Path, tmp_path: Path) -> None:
    """An instance of the official SDK does the same."""
    obs = pytest.importorskip("obs", reason="the official SDK has a LogConf of its own")
    with client_of(server) as client:
        client.initLog(obs.LogConf(str(ini_of(tmp_path))))
        client.uploadFile("bench", key, source, PART, 4)
    assert (tmp_path / "logs" / "engine.log").read_text().count("UploadPart") == 20
