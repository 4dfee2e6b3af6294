"""What each request means: the service's rules over the store. No socket, no signature.

`begin` judges a request before its body and says where the body goes; `finish` does the work once it is in.
Source, unless a rule names its own: OBS API Reference, the page of the operation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from itertools import pairwise
from urllib.parse import quote

from obs_engine import limits
from obs_engine.digests import crc64_combine
from obs_engine.testing import encryption, xml
from obs_engine.testing.bodies import MEMORY_MAX_BYTES, Body, check_promises, promised_crc64
from obs_engine.testing.calls import Call
from obs_engine.testing.encryption import Encryption
from obs_engine.testing.faults import Fault
from obs_engine.testing.listing import number_argument, page_of
from obs_engine.testing.replies import (
    FileSpan,
    Refusal,
    Reply,
    invalid_argument,
    no_such_bucket,
    no_such_key,
    no_such_upload,
)
from obs_engine.testing.store import Attributes, Bucket, Part, Store, StoredObject, Upload
from obs_engine.wire.requests import http_date
from obs_engine.wire.signing import SignatureKind

_BUCKET_NAME = re.compile(r"(?!.*(\.\.|\.-|-\.))[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_STANDARD = ("cache-control", "content-disposition", "content-encoding", "content-language", "expires")
_REDIRECT = "website-redirect-location"
_V2_CLASSES = {"STANDARD_IA": "WARM", "GLACIER": "COLD"}
_OBS_CLASSES = {obs: v2 for v2, obs in _V2_CLASSES.items()}


class Operations:
    """The rules, over one store.

    Args:
        scheme: of the addresses that replies name.
        owner_id: the account's id in listings.
        is_crc64_checked: False passes over every CRC-64 and shows none, like most S3-compatible services.
        defaults: buckets that encrypt what does not say how itself.
    """

    def __init__(
        self,
        store: Store,
        scheme: str = "http",
        owner_id: str = "obs-engine",
        *,
        is_crc64_checked: bool = True,
        defaults: Mapping[str, Encryption] | None = None,
    ) -> None:
        self._store = store
        self._scheme = scheme
        self._is_crc64_checked = is_crc64_checked
        self._defaults = defaults or {}
        self._owner = xml.wrap("Owner", xml.element("ID", owner_id), xml.element("DisplayName", owner_id))
        self._finish: dict[str, Callable[[Call, Body], Reply]] = {
            "ApiVersion": self._api_version,
            "ListBuckets": self._list_buckets,
            "CreateBucket": self._create_bucket,
            "HeadBucket": self._head_bucket,
            "GetBucketLocation": self._get_bucket_location,
            "DeleteBucket": self._delete_bucket,
            "ListObjects": self._list_objects,
            "DeleteObjects": self._delete_objects,
            "Initiate": self._initiate,
            "UploadPart": self._upload_part,
            "ListParts": self._list_parts,
            "ListUploads": self._list_uploads,
            "Complete": self._complete,
            "Abort": self._abort,
            "PutObject": self._put_object,
            "GetObject": self._get_object,
            "HeadObject": self._get_object,
            "DeleteObject": self._delete_object,
        }

    def begin(self, call: Call) -> Body:
        """Judges a request by its head alone; returns where its body goes, a file or memory.

        Raises:
            Refusal: whatever can be known without the body. OSError: the disk.
        """
        if call.operation not in self._finish:
            raise Refusal(
                501, "NotImplemented", f"This local server does not do {call.head.method} {call.head.target[:200]}."
            )
        is_crc64_checked = self._is_crc64_checked
        check_promises(call, is_crc64_checked=is_crc64_checked)
        if call.key is not None and len(call.key.encode()) > limits.KEY_LENGTH_MAX:
            raise Refusal(400, "KeyTooLongError", "Your key is too long.", extra=[("Size", str(len(call.key)))])
        length = call.head.content_length
        if call.operation in ("UploadPart", "PutObject"):
            if not call.head.has_length:
                raise Refusal(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
            if length is not None and length > limits.PART_SIZE_MAX_BYTES:
                raise _too_large(length)
            bucket = self._bucket(call)
            if call.operation == "PutObject":
                encryption.customer_key_md5(call)
                incoming = self._store.receive_object(bucket)
            else:
                upload = self._upload(bucket, call)
                _part_number(call)
                encryption.check_part(call, encryption.of_attributes(upload.attributes.own))
                incoming = self._store.receive_part(bucket, upload.id)
            return Body(call, incoming, is_crc64_checked=is_crc64_checked)
        if length is not None and length > MEMORY_MAX_BYTES:
            raise Refusal(400, "EntityTooLarge", f"A {call.operation} has a small body.", is_early=True)
        return Body(call, None, is_crc64_checked=is_crc64_checked)

    def finish(self, call: Call, body: Body, fault: Fault | None = None) -> Reply:
        """Does the work; badly where the fault is that Complete puts another object together.

        Raises:
            Refusal: the service's no. OSError: the disk.
        """
        if fault is not None and fault.corrupt == "object" and call.operation == "Complete":
            return self._complete(call, body, fault)
        return self._finish[call.operation](call, body)

    # --- the service and its buckets ----------------------------------------------------------------------------

    def _api_version(self, call: Call, _: Body) -> Reply:
        if call.bucket is not None:
            self._bucket(call)
        return Reply(200, [("x-obs-api", "3.0")])

    def _list_buckets(self, call: Call, _: Body) -> Reply:
        items = [
            xml.wrap("Bucket", xml.element("Name", bucket.name),
                     xml.element("CreationDate", xml.iso_time(bucket.created_s)),
                     xml.element("Location", bucket.region or ""))
            for _, bucket in sorted(self._store.buckets.items())
        ]  # fmt: skip
        return _document("ListAllMyBucketsResult", [self._owner, xml.wrap("Buckets", *items)], call)

    def _create_bucket(self, call: Call, body: Body) -> Reply:
        body.check()
        name = call.bucket or ""
        if not is_bucket_name(name):
            raise Refusal(400, "InvalidBucketName", "The specified bucket is not valid.", extra=[("BucketName", name)])
        if name not in self._store.buckets:
            # Source: OBS API, "Creating a Bucket": the owner's own name again is 200.
            region = re.search(rb"<Location(?:Constraint)?>([^<]*)</Location", bytes(body.memory))
            self._store.create_bucket(
                name,
                region[1].decode("utf-8", "replace") if region else None,
                _storage_class(call) if call.own("storage-class") else "STANDARD",
            )
        return Reply(200, [("Location", f"/{name}")])

    def _head_bucket(self, call: Call, _: Body) -> Reply:
        bucket = self._bucket(call)
        name = "bucket-location" if call.kind == "obs" else "bucket-region"
        return Reply(200, [
            (f"{call.prefix}{name}", bucket.region or "local"),
            (f"{call.prefix}storage-class", _spell_class(bucket.storage_class, call.kind)),
            (f"{call.prefix}version", "3.0"),
            ("x-obs-api", "3.0"),
        ])  # fmt: skip

    def _get_bucket_location(self, call: Call, _: Body) -> Reply:
        region = self._bucket(call).region or ""
        if call.kind == "obs":
            return _document("Location", [region], call)
        return _document("LocationConstraint", [region], call)

    def _delete_bucket(self, call: Call, _: Body) -> Reply:
        bucket = self._bucket(call)
        if bucket.objects or bucket.uploads:
            raise Refusal(
                409, "BucketNotEmpty", "The bucket you tried to delete is not empty.",
                extra=[("BucketName", bucket.name)],
            )  # fmt: skip
        self._store.delete_bucket(bucket)
        return Reply(204)

    def _list_objects(self, call: Call, _: Body) -> Reply:
        bucket = self._bucket(call)
        is_v2 = call.argument("list-type") == "2"
        prefix, delimiter = call.argument("prefix") or "", call.argument("delimiter") or ""
        if is_v2:
            marker = call.argument("continuation-token") or call.argument("start-after") or ""
        else:
            marker = call.argument("marker") or ""
        limit = number_argument(call.argument, "max-keys", 1000, 0, 1000)
        page = page_of(bucket.keys_after(marker, prefix), prefix, delimiter, marker, limit)
        spell = _speller(call)
        inner = [xml.element("Name", bucket.name), xml.element("Prefix", spell(prefix))]
        if is_v2:
            inner.append(xml.element("KeyCount", len(page.keys) + len(page.prefixes)))
            if page.next_marker is not None:
                inner.append(xml.element("NextContinuationToken", page.next_marker))
        else:
            inner.append(xml.element("Marker", spell(marker)))
            if page.next_marker is not None:
                inner.append(xml.element("NextMarker", spell(page.next_marker)))
        inner.append(xml.element("MaxKeys", limit))
        if delimiter:
            inner.append(xml.element("Delimiter", spell(delimiter)))
        inner += [xml.element("IsTruncated", page.next_marker is not None), *_encoding(call)]
        for key in page.keys:
            stored = bucket.objects[key]
            inner.append(
                xml.wrap("Contents", xml.element("Key", spell(key)),
                         xml.element("LastModified", xml.iso_time(stored.modified_s)),
                         xml.element("ETag", f'"{stored.etag}"'), xml.element("Size", stored.size_bytes), self._owner,
                         xml.element("StorageClass", _spell_class(stored.attributes.storage_class, call.kind)))
            )  # fmt: skip
        inner += [xml.wrap("CommonPrefixes", xml.element("Prefix", spell(name))) for name in page.prefixes]
        return _document("ListBucketResult", inner, call)

    def _delete_objects(self, call: Call, body: Body) -> Reply:
        body.check()
        bucket = self._bucket(call)
        keys, is_quiet = xml.read_keys(bytes(body.memory))
        for key in keys:
            self._store.delete_object(bucket, key)
        inner = [] if is_quiet else [xml.wrap("Deleted", xml.element("Key", key)) for key in keys]
        return _document("DeleteResult", inner, call)

    # --- multipart uploads --------------------------------------------------------------------------------------

    def _initiate(self, call: Call, body: Body) -> Reply:
        body.check()
        bucket = self._bucket(call)
        upload = self._store.initiate(bucket, call.key or "", self._attributes(call))
        inner = [xml.element("Bucket", bucket.name), xml.element("Key", _speller(call)(upload.key)),
                 xml.element("UploadId", upload.id), *_encoding(call)]  # fmt: skip
        reply = _document("InitiateMultipartUploadResult", inner, call)
        reply.headers += _encryption_headers(call, upload.attributes)
        return reply

    def _upload_part(self, call: Call, body: Body) -> Reply:
        assert body.incoming is not None
        md5 = body.check()
        if body.incoming.size_bytes > limits.PART_SIZE_MAX_BYTES:
            raise _too_large(body.incoming.size_bytes)
        bucket = self._bucket(call)
        upload = self._upload(bucket, call)  # again: it may have been aborted while the bytes came
        etag = encryption.etag_of(md5, encryption.of_attributes(upload.attributes.own))
        part = self._store.add_part(bucket, upload, _part_number(call), body.incoming, etag, body.crc64)
        headers = [("ETag", f'"{part.etag}"'), *self._crc_header(call, part.crc64)]
        return Reply(200, [*headers, *_encryption_headers(call, upload.attributes)])

    def _list_parts(self, call: Call, _: Body) -> Reply:
        bucket = self._bucket(call)
        upload = self._upload(bucket, call)
        limit = number_argument(call.argument, "max-parts", limits.LIST_PARTS_PAGE_MAX, 1, limits.LIST_PARTS_PAGE_MAX)
        marker = number_argument(call.argument, "part-number-marker", 0, 0, 1 << 31)
        numbers = [n for n in sorted(upload.parts) if n > marker]
        shown = numbers[:limit]
        spell = _speller(call)
        inner = [
            xml.element("Bucket", bucket.name), xml.element("Key", spell(upload.key)),
            xml.element("UploadId", upload.id), xml.wrap("Initiator", xml.element("ID", "obs-engine")), self._owner,
            xml.element("StorageClass", _spell_class(upload.attributes.storage_class, call.kind)),
            xml.element("PartNumberMarker", marker),
            xml.element("NextPartNumberMarker", shown[-1] if shown else marker), xml.element("MaxParts", limit),
            xml.element("IsTruncated", len(numbers) > limit), *_encoding(call),
        ]  # fmt: skip
        for number in shown:
            part = upload.parts[number]
            inner.append(
                xml.wrap("Part", xml.element("PartNumber", number),
                         xml.element("LastModified", xml.iso_time(part.modified_s)),
                         xml.element("ETag", f'"{part.etag}"'), xml.element("Size", part.size_bytes))
            )  # fmt: skip
        return _document("ListPartsResult", inner, call)

    def _list_uploads(self, call: Call, _: Body) -> Reply:
        bucket = self._bucket(call)
        prefix, delimiter = call.argument("prefix") or "", call.argument("delimiter") or ""
        key_marker, id_marker = call.argument("key-marker") or "", call.argument("upload-id-marker") or ""
        limit = number_argument(call.argument, "max-uploads", 1000, 1, 1000)
        rows = sorted(
            ((u.key, u.initiated_s, u.id) for u in bucket.uploads.values() if u.key.startswith(prefix)),
        )
        if key_marker:
            rows = [r for r in rows if r[0] > key_marker or (id_marker and r[0] == key_marker and r[2] > id_marker)]
        rows.sort(key=lambda row: (row[0], row[2]))
        folded = sorted({_fold(key, prefix, delimiter) for key, _, _ in rows} - {""})
        rows = [row for row in rows if not _fold(row[0], prefix, delimiter)]
        shown = rows[:limit]
        spell = _speller(call)
        inner = [
            xml.element("Bucket", bucket.name), xml.element("KeyMarker", spell(key_marker)),
            xml.element("UploadIdMarker", id_marker),
            xml.element("NextKeyMarker", spell(shown[-1][0]) if shown else ""),
            xml.element("NextUploadIdMarker", shown[-1][2] if shown else ""), xml.element("Prefix", spell(prefix)),
            xml.element("Delimiter", spell(delimiter)), xml.element("MaxUploads", limit),
            xml.element("IsTruncated", len(rows) > limit), *_encoding(call),
        ]  # fmt: skip
        for key, initiated_s, upload_id in shown:
            storage_class = bucket.uploads[upload_id].attributes.storage_class
            inner.append(
                xml.wrap("Upload", xml.element("Key", spell(key)), xml.element("UploadId", upload_id),
                         xml.wrap("Initiator", xml.element("ID", "obs-engine")), self._owner,
                         xml.element("StorageClass", _spell_class(storage_class, call.kind)),
                         xml.element("Initiated", xml.iso_time(initiated_s)))
            )  # fmt: skip
        inner += [xml.wrap("CommonPrefixes", xml.element("Prefix", spell(name))) for name in folded]
        return _document("ListMultipartUploadsResult", inner, call)

    def _complete(self, call: Call, body: Body, spoiled_by: Fault | None = None) -> Reply:
        body.incoming = None
        bucket = self._bucket(call)
        upload = self._upload(bucket, call)
        parts = _chosen_parts(upload, xml.read_parts(bytes(body.memory)))
        size = sum(part.size_bytes for part in parts)
        if size > limits.OBJECT_SIZE_MAX_BYTES:
            raise _too_large(size)
        crc = _joined_crc(parts)
        promised = promised_crc64(call) if self._is_crc64_checked else None
        if promised is not None and crc is not None and int(promised) != crc:
            raise Refusal(
                400, "BadDigest", "The CRC-64 of the object does not match that of its parts.",
                extra=[("ExpectedDigest", promised), ("CalculatedDigest", str(crc))],
            )  # fmt: skip
        if spoiled_by is not None and size:
            parts = self._spoiled(bucket, upload, parts, *spoiled_by.bit(size))
            crc = _joined_crc(parts)
        # Under encryption the parts' ETags are no MD5s, and therefore this one tells nothing of the bytes either.
        joined = hashlib.md5(b"".join(bytes.fromhex(part.etag) for part in parts), usedforsecurity=False)
        stored = self._store.complete(bucket, upload, parts, f"{joined.hexdigest()}-{len(parts)}", crc)
        location = f"{self._scheme}://{call.head.fields.get('host', '')}{call.head.path}"
        inner = [xml.element("Location", location), xml.element("Bucket", bucket.name),
                 xml.element("Key", _speller(call)(stored.key)), xml.element("ETag", f'"{stored.etag}"'),
                 *_encoding(call)]  # fmt: skip
        reply = _document("CompleteMultipartUploadResult", inner, call)
        reply.headers += [*self._crc_header(call, crc), *_encryption_headers(call, stored.attributes)]
        return reply

    def _spoiled(self, bucket: Bucket, upload: Upload, parts: list[Part], offset: int, mask: int) -> list[Part]:
        """Flips a bit of the bytes that these parts make up; the part that has it is told as it is now."""
        found = []
        for part in parts:
            if 0 <= offset < part.size_bytes:
                md5, crc = self._store.spoil_part(bucket, part, offset, mask)
                etag = encryption.etag_of(md5, encryption.of_attributes(upload.attributes.own))
                part = replace(part, etag=etag, crc64=None if part.crc64 is None else crc)  # noqa: PLW2901
            found.append(part)
            offset -= part.size_bytes
        return found

    def _abort(self, call: Call, _: Body) -> Reply:
        bucket = self._bucket(call)
        self._store.abort(bucket, self._upload(bucket, call))
        return Reply(204)

    # --- objects ------------------------------------------------------------------------------------------------

    def _put_object(self, call: Call, body: Body) -> Reply:
        assert body.incoming is not None
        md5 = body.check()
        if body.incoming.size_bytes > limits.PART_SIZE_MAX_BYTES:
            raise _too_large(body.incoming.size_bytes)
        bucket = self._bucket(call)
        attributes = self._attributes(call)
        etag = encryption.etag_of(md5, encryption.of_attributes(attributes.own))
        self._store.add_object(bucket, call.key or "", body.incoming, etag, body.crc64, attributes)
        headers = [("ETag", f'"{etag}"'), *self._crc_header(call, body.crc64)]
        return Reply(200, [*headers, *_encryption_headers(call, attributes)])

    def _get_object(self, call: Call, _: Body) -> Reply:
        bucket = self._bucket(call)
        stored = bucket.objects.get(call.key or "")
        if stored is None:
            raise no_such_key(call.key or "")
        encryption.check_reader(call, encryption.of_attributes(stored.attributes.own))
        refused = _precondition(call, stored)
        headers = [*_object_headers(call, stored), *self._crc_header(call, stored.crc64)]
        if refused is not None:
            if refused == 304:
                return Reply(304, headers, length=0)
            raise Refusal(412, "PreconditionFailed", "At least one of the preconditions you specified did not hold.")
        start, length, status = 0, stored.size_bytes, 200
        wanted: tuple[int, int] | None
        # Why not in `obs`: OBS documents no partNumber of an object; what it does not know, it passes over.
        if call.kind == "obs" or call.argument("partNumber") is None:
            wanted = _range(call.head.fields.get("range", ""), stored.size_bytes)
        else:
            wanted = _part_range(call, stored)
            if stored.upload_id is not None:
                headers.append((f"{call.prefix}mp-parts-count", str(len(stored.files))))
        if wanted is not None:
            start, end = wanted
            length, status = end - start, 206
            if length:  # an empty part has no range that could be told
                headers.append(("Content-Range", f"bytes {start}-{end - 1}/{stored.size_bytes}"))
        if call.head.method == "HEAD":
            return Reply(status, headers, length=length)
        spans: Iterable[FileSpan] = stored.spans(bucket.data, start, length)
        return Reply(status, headers, spans=tuple(spans), length=length, pinned=self._store.pin(bucket, stored))

    def _delete_object(self, call: Call, _: Body) -> Reply:
        self._store.delete_object(self._bucket(call), call.key or "")
        return Reply(204)

    # --- what they share ----------------------------------------------------------------------------------------

    def _attributes(self, call: Call) -> Attributes:
        fields = call.head.fields
        meta = f"{call.prefix}meta-"
        redirect = call.own(_REDIRECT)
        return Attributes(
            fields.get("content-type"),
            call.own("acl"),
            _storage_class(call),
            {name[len(meta) :]: value for name, value in fields.items() if name.startswith(meta)},
            {name: fields[name] for name in _STANDARD if name in fields},
            {
                **({} if redirect is None else {_REDIRECT: redirect}),
                **encryption.asked(call, self._defaults.get(call.bucket or "", {})),
            },
        )

    def _crc_header(self, call: Call, crc: int | None) -> list[tuple[str, str]]:
        if crc is None or not self._is_crc64_checked:
            return []
        return [(f"{call.prefix}checksum-crc64ecma", str(crc))]

    def _bucket(self, call: Call) -> Bucket:
        bucket = self._store.buckets.get(call.bucket or "")
        if bucket is None:
            raise no_such_bucket(call.bucket or "")
        return bucket

    @staticmethod
    def _upload(bucket: Bucket, call: Call) -> Upload:
        upload_id = call.argument("uploadId") or ""
        upload = bucket.uploads.get(upload_id)
        if upload is None or upload.key != call.key:
            raise no_such_upload(upload_id)
        return upload


def is_bucket_name(name: str) -> bool:
    """True for 3 to 63 small letters, digits, hyphens and single dots, beginning and ending with no mark.

    Source: OBS API, "Creating a Bucket", naming rules; addresses are refused too.
    """
    return bool(_BUCKET_NAME.fullmatch(name)) and not re.fullmatch(r"\d+\.\d+\.\d+\.\d+", name)


def _chosen_parts(upload: Upload, listed: list[tuple[int, str]]) -> list[Part]:
    """Checks a Complete's list by the documented rules, in the service's order of precedence."""
    numbers = [number for number, _ in listed]
    if any(a >= b for a, b in pairwise(numbers)):
        raise Refusal(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
    parts = []
    for number, etag in listed:
        part = upload.parts.get(number)
        if part is None or part.etag != etag.lower():
            raise Refusal(
                400, "InvalidPart",
                "One or more of the specified parts could not be found. The part might not have been uploaded, or "
                "the specified entity tag might not have matched the part's entity tag.",
                extra=[("PartNumber", str(number)), ("ETag", etag)],
            )  # fmt: skip
        parts.append(part)
    for part in parts[:-1]:
        if part.size_bytes < limits.PART_SIZE_MIN_BYTES:
            raise Refusal(
                400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size.",
                extra=[("PartNumber", str(part.number)), ("ProposedSize", str(part.size_bytes)),
                       ("MinSizeAllowed", str(limits.PART_SIZE_MIN_BYTES)), ("ETag", part.etag)],
            )  # fmt: skip
    return parts


def _part_number(call: Call) -> int:
    number = call.part_number
    if number is None or not 1 <= number <= limits.PART_COUNT_MAX:
        raise invalid_argument(
            f"Part number must be an integer between 1 and {limits.PART_COUNT_MAX}, inclusive.",
            "partNumber",
            call.argument("partNumber") or "",
        )
    return number


def _joined_crc(parts: list[Part]) -> int | None:
    joined = 0
    for part in parts:
        if part.crc64 is None:
            return None
        joined = crc64_combine(joined, part.crc64, part.size_bytes)
    return joined


def _too_large(size: int) -> Refusal:
    return Refusal(
        400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size.",
        extra=[("ProposedSize", str(size)), ("MaxSizeAllowed", str(limits.PART_SIZE_MAX_BYTES))], is_early=True,
    )  # fmt: skip


def _storage_class(call: Call) -> str:
    named = call.own("storage-class") or "STANDARD"
    return _V2_CLASSES.get(named, named)


def _spell_class(name: str, kind: SignatureKind) -> str:
    return name if kind == "obs" else _OBS_CLASSES.get(name, name)


def _encryption_headers(call: Call, attributes: Attributes) -> list[tuple[str, str]]:
    used = encryption.of_attributes(attributes.own)
    return [(f"{call.prefix}{name}", value) for name, value in encryption.headers_of(used, call.kind)]


def _object_headers(call: Call, stored: StoredObject) -> list[tuple[str, str]]:
    attributes = stored.attributes
    headers = [
        ("ETag", f'"{stored.etag}"'),
        ("Last-Modified", _http_time(stored.modified_s)),
        ("Accept-Ranges", "bytes"),
        ("Content-Type", attributes.content_type or "binary/octet-stream"),
    ]
    headers += [(name.title(), value) for name, value in attributes.standard.items()]
    for name in ("content-type", "content-language", "expires", "cache-control", "content-disposition",
                 "content-encoding"):  # fmt: skip
        value = call.argument(f"response-{name}")
        if value:
            headers = [(n, v) for n, v in headers if n.lower() != name] + [(name.title(), value)]
    headers += [(f"{call.prefix}meta-{name}", value) for name, value in attributes.metadata.items()]
    if attributes.storage_class != "STANDARD":
        headers.append((f"{call.prefix}storage-class", _spell_class(attributes.storage_class, call.kind)))
    if _REDIRECT in attributes.own:
        headers.append((f"{call.prefix}{_REDIRECT}", attributes.own[_REDIRECT]))
    headers += _encryption_headers(call, attributes)
    if stored.upload_id is not None:
        # Source: OBS API, "Completing a Multipart Upload": HEAD the object and compare x-obs-uploadId.
        headers.append(("x-obs-uploadId", stored.upload_id))
    return headers


def _http_time(seconds: float) -> str:
    return http_date(datetime.fromtimestamp(seconds, timezone.utc))


def _precondition(call: Call, stored: StoredObject) -> int | None:
    """304 or 412 where a condition on the ETag does not hold."""
    fields = call.head.fields
    tags = {"*", stored.etag}
    if "if-match" in fields and not tags & _tags(fields["if-match"]):
        return 412
    if "if-none-match" in fields and tags & _tags(fields["if-none-match"]):
        return 304
    return None


def _tags(text: str) -> set[str]:
    return {item.strip().removeprefix("W/").strip('"') for item in text.split(",")}


def _part_range(call: Call, stored: StoredObject) -> tuple[int, int]:
    """The half-open range of the part that the query names.

    Source: AWS S3, GetObject and HeadObject, `partNumber`; its errors InvalidRequest beside a Range, InvalidPartNumber.
    """
    number = _part_number(call)
    if "range" in call.head.fields:
        raise Refusal(400, "InvalidRequest", "Cannot specify both Range header and partNumber query parameter.")
    found = stored.part(number)
    if found is None:
        raise Refusal(
            416, "InvalidPartNumber", "The requested partnumber is not satisfiable.",
            extra=[("PartNumberRequested", str(number)), ("ActualPartCount", str(len(stored.files)))],
        )  # fmt: skip
    return found


def _range(text: str, size: int) -> tuple[int, int] | None:
    """The half-open range of a `bytes=first-last`; None where it is to be ignored, 416 where it holds no byte."""
    match = _RANGE.fullmatch(text.replace(" ", ""))
    if match is None:
        return None
    first, last = match[1], match[2]
    if (first and last and int(last) < int(first)) or not (first or last):
        return None
    if first:
        start, end = int(first), min(int(last) + 1 if last else size, size)
    else:
        start, end = max(0, size - int(last)), size
    if start >= size:
        raise Refusal(
            416, "InvalidRange", "The requested range is not satisfiable.",
            headers=[("Content-Range", f"bytes */{size}")], extra=[("ActualObjectSize", str(size))],
        )  # fmt: skip
    return start, end


def _speller(call: Call) -> Callable[[str], str]:
    return (lambda text: quote(text, safe="/")) if call.argument("encoding-type") == "url" else (lambda text: text)


def _encoding(call: Call) -> list[str]:
    return [xml.element("EncodingType", "url")] if call.argument("encoding-type") == "url" else []


def _fold(key: str, prefix: str, delimiter: str) -> str:
    cut = key.find(delimiter, len(prefix)) if delimiter else -1
    return "" if cut < 0 else key[: cut + len(delimiter)]


def _document(root: str, inner: Iterable[str], call: Call) -> Reply:
    return Reply(200, [("Content-Type", xml.CONTENT_TYPE)], xml.document(root, inner, call.kind))
