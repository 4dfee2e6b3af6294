"""Where a redirect leads, and when the caller is asked for other keys."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from obs_engine.options import EngineOptions
from obs_engine.source.identity import FileIdentity
from obs_engine.transfer import access as access_module
from obs_engine.transfer.access import Access
from obs_engine.transfer.messages import CredentialsWanted, Dialect, NewCredentials, OpenUpload, UploadRequest
from obs_engine.wire.endpoint import parse_endpoint
from obs_engine.wire.replies import Reply
from obs_engine.wire.requests import Target
from obs_engine.wire.signing import Credentials

OLD, NEW = Credentials("old", "secret"), Credentials("new", "secret")
VIRTUAL = Target(parse_endpoint("https://obs.a.com"), "virtual", "obs")
PATH = Target(parse_endpoint("http://10.0.0.1:9000"), "path", "v2")
CNAME = Target(parse_endpoint("https://files.a.com"), "cname", "v2")


@pytest.mark.parametrize(
    ("target", "location", "expected"),
    [
        (VIRTUAL, "https://bkt.obs.b.com/k?uploads", ("https://obs.b.com", "virtual")),
        (VIRTUAL, "https://bkt.obs.b.com:8443/k", ("https://obs.b.com:8443", "virtual")),
        (VIRTUAL, "https://obs.b.com/bkt/k", ("https://obs.b.com", "path")),
        (VIRTUAL, "https://[::1]:9/bkt", ("https://[::1]:9", "path")),
        (PATH, "http://10.0.0.2:9000/bkt/k", ("http://10.0.0.2:9000", "path")),
        (PATH, "https://bkt.obs.b.com/k", ("https://obs.b.com", "virtual")),
        (CNAME, "https://other.b.com/k", ("https://other.b.com", "cname")),
        (VIRTUAL, "http://bkt.obs.b.com/k", None),  # out of TLS
        (VIRTUAL, "https://obs.b.com/k", None),  # of no bucket, or another
        (VIRTUAL, "https://obs.b.com/bkt2/k", None),
        (VIRTUAL, "/k", None),
        (VIRTUAL, "", None),
        (VIRTUAL, "https://", None),
        (VIRTUAL, "https://bkt.obs.b.com:99999/k", None),
        (VIRTUAL, "https://u:p@bkt.obs.b.com/k", None),
        (VIRTUAL, "ftp://bkt.obs.b.com/k", None),
    ],
)
def test_a_redirect_leads_where_the_bucket_is(target: Target, location: str, expected: tuple[str, str] | None) -> None:
    """Its host and its way to name the bucket count; nothing less safe, and nothing that is not the bucket."""
    found = target.redirected("bkt", location)
    assert (found and (str(found.endpoint), found.addressing)) == expected
    assert found is None or found.signature == target.signature


class Caller:
    """An upload's session and its caller, who answers with `keys` as soon as he is asked, or stays silent."""

    upload = 1

    def __init__(self, keys: Credentials | None) -> None:
        self.keys = keys
        self.opened: list[OpenUpload] = []
        self.asked: list[bool] = []
        request = {
            "path": "/f", "bucket": "bkt", "key": "k", "target": VIRTUAL, "credentials": OLD, "transport": None,
            "is_crc64": False, "engine": EngineOptions(), "log_level": 30, "shows_progress": False,
            "dialects": (Dialect("obs", (), (("a", "1"),), (("b", "2"),)),),
        }  # fmt: skip
        self.request = cast(UploadRequest, object.__new__(UploadRequest))
        vars(self.request).update(request)
        self.access = Access(self.request, cast(Any, self), self.tell)
        self.access.open(self.request, FileIdentity(0, 0, 0, 0, 0))

    def open(self, message: OpenUpload) -> None:
        self.opened.append(message)

    def tell(self, message: object) -> None:
        assert isinstance(message, CredentialsWanted)
        self.asked.append(message.is_refused)
        if self.keys is not None:
            asyncio.get_running_loop().call_soon(self.access.renew, NewCredentials(self.keys))


def test_refused_keys_are_asked_for_once_by_all() -> None:
    """Workers have the new ones with their next task; who was refused meanwhile waits for the same answer."""

    async def work() -> None:
        caller = Caller(NEW)
        access = caller.access
        version = access.version
        assert await asyncio.gather(*(access.has_other_keys(version) for _ in range(5))) == [True] * 5
        assert caller.asked == [True]
        assert [message.credentials for message in caller.opened] == [OLD, NEW]
        assert caller.opened[-1].part_headers == (("a", "1"), ("b", "2"))
        assert await access.has_other_keys(version), "they changed since that request"
        assert caller.asked == [True]

    asyncio.run(work())


def test_the_same_keys_again_are_no_reason_to_try_once_more() -> None:
    """Whoever asks gets an answer, and nothing has changed."""

    async def work() -> None:
        caller = Caller(OLD)
        assert not await caller.access.has_other_keys(caller.access.version)
        assert caller.asked == [True]
        assert len(caller.opened) == 1

    asyncio.run(work())


def test_a_slow_provider_is_asked_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The upload pauses where its keys have worked; not where they never did, nor for keys that cannot change."""
    monkeypatch.setattr(access_module, "KEYS_AGAIN_S", 0.001)

    class Slow(Caller):
        def tell(self, message: object) -> None:
            assert isinstance(message, CredentialsWanted)
            self.asked.append(message.is_refused)
            if len(self.asked) == 4:
                self.keys = NEW
            keys = self.keys
            assert keys is not None
            asyncio.get_running_loop().call_soon(self.access.renew, NewCredentials(keys, self.may_change))

        may_change = True

    async def work() -> None:
        caller = Slow(OLD)
        version = caller.access.version
        assert not await caller.access.has_other_keys(version, is_patient=True), "they never worked"
        assert len(caller.asked) == 1
        caller.access.keys_have_worked = True
        assert not await caller.access.has_other_keys(version), "no word why it was refused"
        assert len(caller.asked) == 2
        assert await caller.access.has_other_keys(version, is_patient=True)
        assert len(caller.asked) == 4
        assert caplog.text.count("the upload pauses") == 1
        fixed = Slow(OLD)
        fixed.may_change = False
        fixed.access.keys_have_worked = True
        assert not await fixed.access.has_other_keys(fixed.access.version, is_patient=True)

    asyncio.run(work())


def test_the_services_clock_is_taken(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """From a reply's Date, once; a clock that is right, and a Date that is none, change nothing."""
    monkeypatch.setattr(access_module.time, "time", lambda: 1_000_000_000.0)
    access = Caller(NEW).access
    assert access.now_s() == 1_000_000_000.0
    for date in ("Sun, 09 Sep 2001 01:46:41 GMT", "tomorrow", ""):
        assert not access.set_clock(Reply(403, "", (("date", date),)))
    assert not access.set_clock(Reply(403))
    late = Reply(403, "", (("date", "Sun, 09 Sep 2001 02:46:40 GMT"),))
    assert access.set_clock(late)
    assert access.now_s() == 1_000_003_600.0
    assert "+3600 s" in caplog.text
    assert not access.set_clock(late)


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [("7", 7.0), ("0", 0.0), ("Sun, 09 Sep 2001 01:46:45 GMT", 5.0), ("Sun, 09 Sep 2001 01:46:00 GMT", 0.0),
     ("soon", 0.0), ("-3", 0.0), (None, 0.0)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(asked: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything else asks for nothing."""
    monkeypatch.setattr(access_module.time, "time", lambda: 1_000_000_000.0)
    headers = () if asked is None else (("retry-after", asked),)
    assert Caller(NEW).access.wait_asked_s(Reply(503, "", headers)) == seconds


def test_a_silent_caller_holds_nobody_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the refusal stands; his answer is taken when it comes."""
    monkeypatch.setattr(access_module, "KEYS_ANSWER_S", 0.001)

    async def work() -> None:
        caller = Caller(None)
        version = caller.access.version
        assert not await caller.access.has_other_keys(version)
        assert not await caller.access.has_other_keys(version)
        assert caller.asked == [True], "one question at a time"
        caller.access.renew(NewCredentials(NEW))
        assert await caller.access.has_other_keys(version)

    asyncio.run(work())


def test_keys_are_asked_for_in_passing(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the last answer is old, and not before; nobody waits for it."""
    now_s = [0.0]
    monkeypatch.setattr(access_module.time, "monotonic", lambda: now_s[0])

    async def work() -> None:
        caller = Caller(None)
        for now_s[0], asked in ((0.9, []), (1.0, [False]), (5.0, [False])):
            await caller.access.keep_fresh()
            assert caller.asked == asked
        caller.access.renew(NewCredentials(OLD))
        await caller.access.keep_fresh()
        assert caller.asked == [False, False]
        assert len(caller.opened) == 1

    asyncio.run(work())


def test_a_redirect_is_remembered() -> None:
    """Workers are told once; one that leaves TLS is not followed, and not shown but for its host."""

    async def work() -> None:
        caller = Caller(OLD)
        reply = Reply(307, headers=(("location", "https://bkt.obs.b.com/k"),))
        assert caller.access.follow(reply)
        assert caller.access.follow(reply)
        assert [str(message.target.endpoint) for message in caller.opened] == ["https://obs.a.com", "https://obs.b.com"]
        assert not caller.access.follow(Reply(302, headers=(("location", "http://bkt.obs.b.com/k"),)))
        assert not caller.access.follow(Reply(307))

    asyncio.run(work())
