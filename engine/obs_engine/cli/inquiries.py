"""What the commands ask of the service beside uploads, in plain words: open uploads, their parts, an end to one.

Why no more of the official SDK's names on `ObsClient`: its results have fields (owner, initiator, local times) that
nothing here needs, and a drop-in by half would be worse than none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from obs_engine.client import ObsClient
from obs_engine.errors import ServiceError
from obs_engine.wire import requests
from obs_engine.wire.replies import (
    ListedUpload,
    Reply,
    error_of,
    read_parts_page,
    read_upload_id,
    read_uploads_page,
)
from obs_engine.wire.requests import Request

Ask = Callable[[Request], Reply]


class Stored(NamedTuple):
    """What the service has of an open upload."""

    parts: int
    size_bytes: int


def asking(client: ObsClient) -> Ask:
    """How that client sends a small request: with its keys, its redirects and its retries."""
    return client._ask


def open_uploads(ask: Ask, bucket: str, prefix: str = "") -> Iterator[ListedUpload]:
    """The open uploads of all keys that begin with `prefix`, in the service's order.

    Raises:
        ServiceError: they may not be listed.
    """
    markers = "", ""
    seen = {markers}
    while True:
        reply = ask(requests.list_uploads(bucket, prefix, *markers))
        page = read_uploads_page(reply) if reply.status == 200 else None
        if page is None:
            raise error_of(
                reply, f"ListMultipartUploads of {bucket}",
                "check the bucket's name, the endpoint, the keys and the permission ListBucketMultipartUploads",
            )  # fmt: skip
        yield from page.uploads
        if page.next_markers is None:
            return
        markers = page.next_markers
        if markers in seen:
            raise ServiceError(
                f"ListMultipartUploads of {bucket}: expected pages that advance, found one again; report it to the "
                "service"
            )
        seen.add(markers)


def stored_of(ask: Ask, bucket: str, upload: ListedUpload) -> Stored | None:
    """What is stored of an upload; None where it has ended meanwhile.

    Raises:
        ServiceError: its parts may not be listed.
    """
    parts = size_bytes = marker = 0
    what = f"ListParts of {bucket}/{upload.key}"
    while True:
        # Why encoded: the reply repeats the key, and a control character in it would be no XML.
        page_wanted = requests.list_parts(bucket, upload.key, upload.upload_id, marker)
        reply = ask(replace(page_wanted, query=(*page_wanted.query, ("encoding-type", "url"))))
        if reply.status == 404:
            return None
        page = read_parts_page(reply) if reply.status == 200 else None
        if page is None:
            raise error_of(reply, what, "check the permission ListMultipartUploadParts")
        parts += len(page.parts)
        size_bytes += sum(part.size_bytes for part in page.parts)
        if page.next_marker is None:
            return Stored(parts, size_bytes)
        if page.next_marker <= marker:
            raise ServiceError(f"{what}: expected pages that advance, found one again; report it to the service")
        marker = page.next_marker


def abort_upload(ask: Ask, bucket: str, key: str, upload_id: str) -> bool:
    """Ends an upload and takes its parts away; False where it had ended already.

    Raises:
        ServiceError: refused.
    """
    reply = ask(requests.abort(bucket, key, upload_id))
    if reply.status == 404:
        return False
    if reply.status >= 300:
        raise error_of(reply, f"Abort of {bucket}/{key}", "check the permission AbortMultipartUpload")
    return True


def initiated(reply: Reply) -> str | None:
    """The upload id of an Initiate's reply; None where it was refused."""
    return read_upload_id(reply) if reply.status < 300 else None
