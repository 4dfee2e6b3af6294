"""Replies: what an answer of the service means."""

from __future__ import annotations

import pytest

from obs_engine.wire.replies import (
    Reply,
    error_of,
    read_completed,
    read_fault,
    read_parts_page,
    read_upload_id,
)

XMLNS = b'xmlns="http://obs.example.com/doc/2015-06-30/"'


def test_a_fault_is_read_from_the_body_and_else_from_headers() -> None:
    """Code and message come from the XML; a HEAD has only headers."""
    body = b"<?xml version='1.0'?><Error " + XMLNS + b"><Code>AccessDenied</Code><Message>no</Message></Error>"
    fault = read_fault(Reply(403, "Forbidden", (("x-obs-request-id", "R1"), ("x-obs-id-2", "H")), body))
    assert (fault.code, fault.message, fault.request_id, fault.host_id) == ("AccessDenied", "no", "R1", "H")
    assert read_fault(Reply(404, headers=(("x-amz-request-id", "R2"),))).request_id == "R2"


DECLARED = b'<!DOCTYPE E [<!ENTITY a "aaaa">]><Error><Code>&a;</Code></Error>'


@pytest.mark.parametrize("body", [b"", b"<", b"<Error", b"\xff\xfe", b"{}", b"<html>busy</html>", DECLARED])
def test_a_broken_body_is_a_fault_without_words(body: bytes) -> None:
    """Whatever a proxy answers, reading it never raises."""
    assert read_fault(Reply(502, body=body)).code is None
    assert read_completed(Reply(200, body=body)) is None
    assert read_upload_id(Reply(200, body=body)) is None
    assert read_parts_page(Reply(200, body=body)) is None


def test_a_complete_that_answers_200_with_an_error_is_no_object() -> None:
    """A status alone proves nothing."""
    reply = Reply(200, "OK", (), b"<Error><Code>InternalError</Code><Message>again</Message></Error>")
    assert read_completed(reply) is None
    error = error_of(reply, "Complete", "call again")
    assert (error.errorCode, error.is_retryable) == ("InternalError", True)
    assert "InternalError" in str(error)


def test_a_completed_object_is_read_with_its_quoted_etag() -> None:
    """The ETag keeps its quotes; a URL-encoded key is decoded."""
    body = (
        b"<CompleteMultipartUploadResult " + XMLNS + b"><Location>http://x/k</Location><Bucket>b</Bucket>"
        b'<Key>a%20b%2B</Key><ETag>"x-2"</ETag><EncodingType>url</EncodingType></CompleteMultipartUploadResult>'
    )
    found = read_completed(Reply(200, body=body))
    assert found is not None
    assert (found.key, found.etag, found.bucket) == ("a b+", '"x-2"', "b")


def test_blanks_around_a_key_are_the_keys_own() -> None:
    """A key may begin or end with a space."""
    body = b"<CompleteMultipartUploadResult><Key> a </Key><ETag>e</ETag></CompleteMultipartUploadResult>"
    found = read_completed(Reply(200, body=body))
    assert found is not None
    assert found.key == " a "


def test_pages_of_parts_end_where_the_service_says() -> None:
    """The next marker is None on the last page."""
    part = b"<Part><PartNumber>3</PartNumber><Size>7</Size><ETag>e</ETag></Part>"
    more = b"<IsTruncated>true</IsTruncated><NextPartNumberMarker>3</NextPartNumberMarker>"
    page = read_parts_page(Reply(200, body=b"<ListPartsResult>" + part + more + b"</ListPartsResult>"))
    assert page is not None
    assert page.next_marker == 3
    assert page.parts[0].size_bytes == 7
    last = read_parts_page(Reply(200, body=b"<ListPartsResult>" + part + b"</ListPartsResult>"))
    assert last is not None
    assert last.next_marker is None
