"""The local server's disk: what is visible, and what a start-up after a kill finds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from obs_engine.digests import crc64
from obs_engine.errors import InvalidArgumentError
from obs_engine.testing.store import Attributes, Incoming, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "data", lambda: 1_788_264_000.0)
    made.create_bucket("bucket")
    yield made
    made.close()


def reopen(store: Store, tmp_path: Path) -> Store:
    """As after a kill: nothing but the lock is let go."""
    store.close()
    return Store(tmp_path / "data")


def receive(incoming: Incoming, data: bytes) -> Incoming:
    incoming.write(memoryview(data))
    return incoming


def put(store: Store, key: str, data: bytes) -> None:
    bucket = store.buckets["bucket"]
    store.add_object(bucket, key, receive(store.receive_object(bucket), data), "etag", None, Attributes())


def read(store: Store, key: str, start: int = 0, length: int | None = None) -> bytes:
    bucket = store.buckets["bucket"]
    stored = bucket.objects[key]
    data = b""
    for span in stored.spans(bucket.data, start, stored.size_bytes if length is None else length):
        data += Path(span.path).read_bytes()[span.offset : span.offset + span.length]
    return data


def files(tmp_path: Path) -> set[str]:
    room = tmp_path / "data" / "buckets" / "bucket" / "data"
    return {path.relative_to(room).as_posix() for path in room.rglob("*") if path.is_file()}


def test_everything_survives_a_restart(store: Store, tmp_path: Path) -> None:
    """Buckets, objects with their attributes, uploads and parts are all there after a start."""
    bucket = store.buckets["bucket"]
    attributes = Attributes("text/plain", "private", "WARM", {"name": "väl\nue"}, {"cache-control": "no"}, {})
    key = "dir/ü~\x01 " + "k" * 900
    store.add_object(bucket, key, receive(store.receive_object(bucket), b"abc"), "e", 7, attributes)
    upload = store.initiate(bucket, "big", attributes)
    store.add_part(bucket, upload, 3, receive(store.receive_part(bucket, upload.id), b"part"), "f" * 32, 2**64 - 1)
    again = reopen(store, tmp_path)
    found = again.buckets["bucket"]
    assert found.objects == bucket.objects
    assert found.keys == [key]
    assert found.uploads[upload.id].attributes == attributes
    part = found.uploads[upload.id].parts[3]
    assert (part.etag, part.size_bytes, part.crc64) == ("f" * 32, 4, 2**64 - 1)
    again.close()


def test_a_part_is_visible_only_when_whole(store: Store, tmp_path: Path) -> None:
    """Bytes of a part that was still coming when the server was killed are gone after a start."""
    bucket = store.buckets["bucket"]
    upload = store.initiate(bucket, "big", Attributes())
    receive(store.receive_part(bucket, upload.id), b"half")
    receive(store.receive_object(bucket), b"half")
    assert len(files(tmp_path)) == 2
    again = reopen(store, tmp_path)
    assert again.buckets["bucket"].uploads[upload.id].parts == {}
    assert files(tmp_path) == set()
    again.close()


def test_the_last_part_of_a_number_wins(store: Store, tmp_path: Path) -> None:
    """A part sent twice is the later one, also where a kill left both files behind."""
    bucket = store.buckets["bucket"]
    upload = store.initiate(bucket, "big", Attributes())
    first = store.add_part(bucket, upload, 1, receive(store.receive_part(bucket, upload.id), b"one"), "a" * 32, None)
    kept = Path(bucket.data, first.name).read_bytes()
    store.add_part(bucket, upload, 1, receive(store.receive_part(bucket, upload.id), b"second"), "b" * 32, None)
    assert len(files(tmp_path)) == 1
    Path(bucket.data, first.name).write_bytes(kept)
    again = reopen(store, tmp_path)
    assert again.buckets["bucket"].uploads[upload.id].parts[1].etag == "b" * 32
    assert len(files(tmp_path)) == 1
    again.close()


def test_complete_copies_nothing_and_drops_unlisted_parts(store: Store, tmp_path: Path) -> None:
    """The object is made of the parts' own files; parts that were not listed are deleted."""
    bucket = store.buckets["bucket"]
    upload = store.initiate(bucket, "big", Attributes())
    for number, data in ((1, b"aaaa"), (2, b"bb"), (3, b"c")):
        store.add_part(bucket, upload, number, receive(store.receive_part(bucket, upload.id), data), "e" * 32, None)
    before = files(tmp_path)
    store.complete(bucket, upload, [upload.parts[1], upload.parts[3]], "etag-2", None)
    assert files(tmp_path) < before
    assert len(files(tmp_path)) == 2
    assert read(store, "big") == b"aaaac"
    assert read(store, "big", 3, 2) == b"ac"
    assert bucket.uploads == {}


def test_a_kill_between_manifest_and_the_end_of_the_upload_is_a_success(store: Store, tmp_path: Path) -> None:
    """Once the manifest is in place the upload is over, though its own record was not yet removed."""
    bucket = store.buckets["bucket"]
    upload = store.initiate(bucket, "big", Attributes())
    record = Path(bucket.root, "uploads", f"{upload.id}.json")
    text = record.read_text()
    store.add_part(bucket, upload, 1, receive(store.receive_part(bucket, upload.id), b"a"), "e" * 32, None)
    store.complete(bucket, upload, [upload.parts[1]], "etag-1", None)
    record.write_text(text)
    Path(bucket.data, upload.id, "00002.0000000000000001.x.-").write_bytes(b"unlisted")
    again = reopen(store, tmp_path)
    assert again.buckets["bucket"].uploads == {}
    assert again.buckets["bucket"].objects["big"].upload_id == upload.id
    assert len(files(tmp_path)) == 1
    assert not record.exists()
    again.close()


def test_replaced_deleted_and_aborted_bytes_are_removed(store: Store, tmp_path: Path) -> None:
    """Nothing stays behind of what nobody can read any more."""
    put(store, "k", b"one")
    put(store, "k", b"two")
    assert len(files(tmp_path)) == 1
    assert read(store, "k") == b"two"
    bucket = store.buckets["bucket"]
    upload = store.initiate(bucket, "k", Attributes())
    store.add_part(bucket, upload, 1, receive(store.receive_part(bucket, upload.id), b"a"), "e" * 32, None)
    store.abort(bucket, upload)
    store.delete_object(bucket, "k")
    store.delete_object(bucket, "never")
    assert files(tmp_path) == set()
    assert bucket.keys == []
    store.delete_bucket(bucket)
    assert not Path(tmp_path, "data", "buckets", "bucket").exists()


def test_bytes_that_are_being_read_outlive_their_object(store: Store, tmp_path: Path) -> None:
    """An object that is replaced or deleted while it is streamed can be read to its end."""
    put(store, "k", b"one")
    bucket = store.buckets["bucket"]
    pinned = store.pin(bucket, bucket.objects["k"])
    again = store.pin(bucket, bucket.objects["k"])
    store.delete_object(bucket, "k")
    store.unpin(pinned)
    assert len(files(tmp_path)) == 1
    store.unpin(again)
    assert files(tmp_path) == set()


def test_one_server_owns_a_directory(store: Store, tmp_path: Path) -> None:
    """A second server on the same directory is refused, and so are a file and a foreign format."""
    with pytest.raises(InvalidArgumentError, match="no other server"):
        Store(tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgumentError, match="can be created"):
        Store(tmp_path / "file")
    foreign = tmp_path / "foreign" / "buckets" / "b"
    foreign.mkdir(parents=True)
    (foreign / "bucket.json").write_text('{"format": 99}')
    with pytest.raises(InvalidArgumentError, match="format"):
        Store(tmp_path / "foreign")


def test_a_flipped_bit_is_where_it_should_be(store: Store) -> None:
    """The fault `corrupt: stored` changes one bit, and neither the length nor anything else."""
    bucket = store.buckets["bucket"]
    incoming = receive(store.receive_object(bucket), b"abcde")
    incoming.flip(2, 1)
    incoming.flip(4, 128)
    store.add_object(bucket, "k", incoming, "e", None, Attributes())
    assert read(store, "k") == b"abbd\xe5"


def test_a_spoiled_part_is_told_as_it_is(store: Store) -> None:
    """The fault `corrupt: object` damages a part that is there, and needs the digests of what it has become."""
    bucket = store.buckets["bucket"]
    upload = store.initiate(bucket, "k", Attributes())
    part = store.add_part(bucket, upload, 1, receive(store.receive_part(bucket, upload.id), b"abcde"), "e" * 32, 5)
    assert store.spoil_part(bucket, part, 0, 2) == (hashlib.md5(b"cbcde").hexdigest(), crc64(b"cbcde"))
    store.complete(bucket, upload, [part], "e", None)
    assert read(store, "k") == b"cbcde"


def test_the_parts_of_an_object_are_known_after_a_restart(store: Store, tmp_path: Path) -> None:
    """By the numbers they were uploaded under; an object put in one request is its own part 1."""
    bucket = store.buckets["bucket"]
    upload = store.initiate(bucket, "big", Attributes())
    for number, data in ((2, b"aaaa"), (700, b""), (10_000, b"c")):
        store.add_part(bucket, upload, number, receive(store.receive_part(bucket, upload.id), data), "e" * 32, None)
    store.complete(bucket, upload, [upload.parts[n] for n in (2, 700, 10_000)], "etag-3", None)
    put(store, "small", b"abc")
    again = reopen(store, tmp_path)
    big, small = (again.buckets["bucket"].objects[key] for key in ("big", "small"))
    assert [big.part(n) for n in (1, 2, 700, 10_000)] == [None, (0, 4), (4, 4), (4, 5)]
    assert [small.part(n) for n in (1, 2)] == [(0, 3), None]
    again.close()
