"""Replies: what an answer of the service means."""

from __future__ import annotations

import pytest

from obs_engine.wire.replies import (
    ListedUpload,
    Reply,
    UploadsPage,
    error_of,
    read_completed,
    read_fault,
    read_parts_page,
    read_upload_id,
    read_uploads_page,
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
    assert read_uploads_page(Reply(200, body=body)) is None


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


def uploads_page(inner: bytes, attributes: bytes = b"") -> UploadsPage | None:
    body = b"<ListMultipartUploadsResult" + attributes + b">" + inner + b"</ListMultipartUploadsResult>"
    return read_uploads_page(Reply(200, body=body))


UPLOAD = b"<Upload><Key>a%2Fb+c</Key><UploadId>U1</UploadId><Initiated>2026-09-01T12:00:00Z</Initiated></Upload>"


@pytest.mark.parametrize("attributes", [b"", b" " + XMLNS, b' xmlns="http://s3.example.com/doc/2006-03-01/"'])
def test_open_uploads_are_read_in_any_namespace(attributes: bytes) -> None:
    """Key, id and time as the service says; a key is decoded only where the service says that it is encoded."""
    listed = ListedUpload("a%2Fb+c", "U1", "2026-09-01T12:00:00Z")
    assert uploads_page(UPLOAD, attributes) == UploadsPage((listed,), None)
    encoded = b"<EncodingType>url</EncodingType>" + UPLOAD
    assert uploads_page(encoded, attributes) == UploadsPage((ListedUpload("a/b c", "U1", listed.initiated),), None)
    assert uploads_page(b"", attributes) == UploadsPage((), None)


def test_pages_of_uploads_end_where_the_service_says() -> None:
    """The next markers are of key and id, the key decoded; without the word "truncated" the page is the last."""
    markers = b"<NextKeyMarker>a%2Fb</NextKeyMarker><NextUploadIdMarker>U%2F9</NextUploadIdMarker>"
    truncated = b"<IsTruncated>true</IsTruncated>" + markers
    assert uploads_page(truncated) == UploadsPage((), ("a%2Fb", "U%2F9"))
    assert uploads_page(b"<EncodingType>url</EncodingType>" + truncated) == UploadsPage((), ("a/b", "U%2F9"))
    assert uploads_page(b"<IsTruncated>false</IsTruncated>" + markers) == UploadsPage((), None)
    assert uploads_page(markers) == UploadsPage((), None)


@pytest.mark.parametrize("inner", [b"", b"<Key>k</Key>", b"<Key/><UploadId>U</UploadId>", b"<Key>k</Key><UploadId/>"])
def test_an_upload_without_a_name_makes_no_page(inner: bytes) -> None:
    """Half an entry is not guessed at: the page is none; a time alone may be missing."""
    assert uploads_page(UPLOAD + b"<Upload>" + inner + b"</Upload>") is None
    timeless = uploads_page(b"<Upload><Key>k</Key><UploadId>U</UploadId></Upload>")
    assert timeless == UploadsPage((ListedUpload("k", "U", ""),), None)


def test_another_document_is_no_page_of_uploads() -> None:
    """A page of parts, or an error under status 200, is none of uploads."""
    for body in (b"<ListPartsResult></ListPartsResult>", b"<Error><Code>InternalError</Code></Error>"):
        assert read_uploads_page(Reply(200, body=body)) is None
