"""What the processes say to each other."""

from __future__ import annotations

import pickle

import pytest

from obs_engine.errors import ServiceError, SourceNotFoundError, from_fields
from obs_engine.options import EngineOptions
from obs_engine.transfer.messages import (
    Decoder,
    Dialect,
    ErrorInfo,
    PartStoredReply,
    PartTask,
    ProtocolError,
    RequestTask,
    TaskReplied,
    TransportOptions,
    UploadRequest,
    encode,
)
from obs_engine.wire.endpoint import Endpoint
from obs_engine.wire.replies import Reply
from obs_engine.wire.requests import Target, complete
from obs_engine.wire.signing import Credentials

REQUEST = UploadRequest(
    4711, "/f\udcff", "b", "k/é", Target(Endpoint("https", "x", 443), "virtual", "v4", "r"),
    Credentials("a", "s", None),
    9437184, 8, None, True, False, True, (Dialect("v4", (("x-obs-acl", "private"),), (), ()),), None, 3, 10,
    TransportOptions(60.0, 60.0, True, None, 65536), EngineOptions(processes=2), 10, False,
)  # fmt: skip
MESSAGES = [
    REQUEST,
    PartTask(1, 2, "U", 3, 4, 5, 6.5),
    RequestTask(2, 1, complete("b", "k", "U", (("1", '"e"'),)), 1.0),
    PartStoredReply(1, '"etag"', ""),
    TaskReplied(3, Reply(503, "Busy", (("a", "b"),), b"\x00\xff<Error/>")),
    ErrorInfo("ServiceError", "m", {"status": 503, "part_number": 7}),
]


@pytest.mark.parametrize("chunk", [1, 3, 1000000])
def test_messages_come_back_whole_whatever_the_pieces(chunk: int) -> None:
    """Framing does not depend on how a socket cuts the stream."""
    stream = b"".join(map(encode, MESSAGES))
    decoder = Decoder()
    found = [m for i in range(0, len(stream), chunk) for m in decoder.feed(stream[i : i + chunk])]
    assert found == MESSAGES


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x02\0\0\0{]", b"\x0c\0\0\0" + b'{"Nope":[1]}'])
def test_what_is_no_message_is_a_protocol_error(data: bytes) -> None:
    """A broken peer is noticed, and can build nothing but the values above."""
    with pytest.raises(ProtocolError):
        list(Decoder().feed(data))


def test_a_part_costs_little() -> None:
    """A part's task and its answer are small, so that workers may be far away."""
    assert len(encode(PartTask(10000, 1, "0" * 32, 10000, 1 << 40, 1 << 30, 1.7e9))) < 200
    assert len(encode(PartStoredReply(10000, '"' + "0" * 32 + '"', ""))) < 100


def test_errors_keep_their_class_and_fields_on_every_way() -> None:
    """Through a socket and through pickle, an error stays what it was."""
    error = ServiceError("part 7: refused", status=403, errorCode="AccessDenied", part_number=7)
    for copy in (ErrorInfo.of(error).error(), pickle.loads(pickle.dumps(error))):
        assert type(copy) is ServiceError
        assert copy.fields() == error.fields()
        assert str(copy) == "part 7: refused"
    missing = from_fields("SourceNotFoundError", "gone", {})
    assert isinstance(missing, SourceNotFoundError)
    assert isinstance(missing, FileNotFoundError)
    assert str(missing) == "gone"
    assert type(from_fields("os.system", "x", {})).__name__ == "ObsEngineError"
