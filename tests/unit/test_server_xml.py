"""OBS's XML as the local server writes and reads it, its pages of keys, and HTTP heads."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from obs_engine.testing import xml
from obs_engine.testing.http import BadHeadError, Chunks, parse_head, reply_head
from obs_engine.testing.listing import number_argument, page_of
from obs_engine.testing.replies import Refusal
from obs_engine.wire.requests import complete


def test_an_error_document_names_code_message_ids_and_resource() -> None:
    """Code, Message, RequestId, HostId and Resource stand under a root without a namespace."""
    body = xml.error("NoSuchKey", "a <b> & \x00", "R1", "H1", "/bkt/k", [("Key", "k&")])
    root = ElementTree.fromstring(body)
    assert root.tag == "Error"
    assert {child.tag: child.text for child in root} == {
        "Code": "NoSuchKey", "Message": "a <b> & ?", "RequestId": "R1", "HostId": "H1", "Resource": "/bkt/k",
        "Key": "k&",
    }  # fmt: skip


def test_a_document_has_the_namespace_of_the_mode() -> None:
    """`obs` answers in OBS's namespace, `v2` and `v4` in that of S3."""
    assert b"obs.myhwclouds.com" in xml.document("A", [xml.element("B", True)], "obs")
    assert b"s3.amazonaws.com" in xml.document("A", [], "v4")


def test_complete_is_read_as_the_engine_writes_it() -> None:
    """Part numbers and ETags come in the order given, the ETags without their quotes."""
    body = complete("b", "k", "U", (("2", '"aa"'), ("1", "bb"))).body
    assert xml.read_parts(body) == [(2, "aa"), (1, "bb")]
    spaced = b'<?xml version="1.0"?><CompleteMultipartUpload xmlns="urn:x"> <Part> <ETag> &quot;cc&quot; </ETag>' + (
        b"<PartNumber> 3 </PartNumber></Part></CompleteMultipartUpload>"
    )
    assert xml.read_parts(spaced) == [(3, "cc")]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<", b"<CompleteMultipartUpload/>", b"<Other><Part/></Other>",
        b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>",
        b"<CompleteMultipartUpload><Part><PartNumber>-1</PartNumber><ETag>a</ETag></Part></CompleteMultipartUpload>",
        b"<CompleteMultipartUpload><Thing/></CompleteMultipartUpload>",
        b'<!DOCTYPE a [<!ENTITY b "c">]><CompleteMultipartUpload/>', b"\xff\xfe\x00",
    ],
)  # fmt: skip
def test_what_is_no_complete_document_is_malformed(body: bytes) -> None:
    """Broken XML, another root, a missing field, a document type: 400 MalformedXML."""
    with pytest.raises(Refusal) as caught:
        xml.read_parts(body)
    assert (caught.value.status, caught.value.code) == (400, "MalformedXML")


def test_times_are_in_utc_with_milliseconds() -> None:
    """Seconds since 1970 become ISO 8601."""
    assert xml.iso_time(1_788_264_000.1239) == "2026-09-01T12:00:00.123Z"


def test_pages_fold_below_a_delimiter_and_go_on_from_their_last_name() -> None:
    """A common prefix counts as one entry, is given once, and not again on the next page."""
    keys = ["a", "b/1", "b/2", "b/3", "c", "d/1"]
    first = page_of(keys, "", "/", "", 2)
    assert (first.keys, first.prefixes, first.next_marker) == (["a"], ["b/"], "b/")
    rest = page_of(keys[1:], "", "/", "b/", 10)
    assert (rest.keys, rest.prefixes, rest.next_marker) == (["c"], ["d/"], None)
    inner = page_of(["b/1", "b/2"], "b/", "/", "", 10)
    assert (inner.keys, inner.prefixes) == (["b/1", "b/2"], [])
    assert page_of(keys, "", "", "", 0).keys == []


def test_numbers_in_a_query_have_a_range() -> None:
    """Too large a page size is cut down, no number is InvalidArgument."""
    assert number_argument({"max": "5000"}.get, "max", 1000, 1, 1000) == 1000
    assert number_argument({}.get, "max", 7, 1, 1000) == 7
    for wrong in ("0", "-1", "x", "1" * 30):
        with pytest.raises(Refusal, match="InvalidArgument"):
            number_argument({"max": wrong}.get, "max", 1000, 1, 1000)


def test_heads_are_read_by_the_rfc() -> None:
    """Header names in lower case, values joined, the query decoded, keep-alive by version and header."""
    head = parse_head(b"PUT /b/k?a=1%2F&uploads HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 5\r\n\r\n")
    assert (head.path, head.query, head.fields["x-a"]) == ("/b/k", [("a", "1/"), ("uploads", None)], "1,2")
    assert (head.content_length, head.is_kept_alive) == (5, True)
    assert not parse_head(b"GET / HTTP/1.0\r\nHost: h\r\n\r\n").is_kept_alive
    assert not parse_head(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Close\r\n\r\n").is_kept_alive
    assert parse_head(b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\n\r\n").expects_continue


@pytest.mark.parametrize(
    "data",
    [b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nHost : h\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
     b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\n"],
)  # fmt: skip
def test_a_broken_head_is_refused(data: bytes) -> None:
    """What breaks the RFC is not guessed at."""
    with pytest.raises(BadHeadError):
        parse_head(data)


def test_a_reply_value_cannot_begin_a_line() -> None:
    """Control characters in an echoed value become spaces."""
    assert reply_head(200, [("x", "a\r\nb: c")]) == b"HTTP/1.1 200 OK\r\nx: a  b: c\r\n\r\n"


def test_chunked_bodies_are_joined() -> None:
    """The framing is undone across any cuts, and the bytes after the end are given back."""
    chunks = Chunks(b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert chunks.feed(b"3\r\nab") == ([b"ab"], False, b"")
    assert chunks.feed(b"c\r\n2\r\nde\r\n0\r\n\r\nGET") == ([b"c", b"de"], True, b"GET")
