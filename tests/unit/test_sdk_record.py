"""Records of the official SDK: each kind is continued or refused, and never believed more than it says."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obs_engine.checkpoint.sdk_record import SdkRecord, read_sdk_record
from obs_engine.errors import JournalError
from obs_engine.source.plan import PartPlan

MTIME_NS = 1_790_000_123_456_789_012
MD5 = ['"0f343b0931126a20f133d67c2b018a3b"', '"b6d81b360a5672d80c27430f39153e2c"', '"5f363e0e58a95f06cbe9bbc662c5dfb6"']
WHOLE: dict[str, Any] = {
    "bucketName": "bkt",
    "objectKey": 'a/é "q" \\',
    "uploadFile": "data/f.bin",
    "partEtags": [
        {"partNum": 2, "etag": MD5[1], "crc64": "12345678901234567890", "size": 10},
        {"partNum": 1, "etag": MD5[0], "size": 10},
    ],
    "uploadParts": [
        {"partNumber": 1, "offset": 0, "length": 10, "isCompleted": True},
        {"partNumber": 2, "offset": 10, "length": 10, "isCompleted": True},
        {"partNumber": 3, "offset": 20, "length": 5, "isCompleted": False},
    ],
    "uploadId": "0000018A2B3C4D5E6F708192A3B4C5D6",
    "fileStatus": [25, MTIME_NS // 10**9 + 1e-9 * (MTIME_NS % 10**9), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="],
}
READ = SdkRecord(
    "bkt", WHOLE["objectKey"], "data/f.bin", WHOLE["uploadId"], 25, WHOLE["fileStatus"][1], 10,
    {1: MD5[0], 2: MD5[1]}, frozenset(),
)  # fmt: skip


def read(document: object) -> SdkRecord:
    return read_sdk_record(json.dumps(document).encode(), "r")


def changed(**fields: object) -> dict[str, Any]:
    """The whole record with other fields; None takes one away."""
    return {name: value for name, value in {**copy.deepcopy(WHOLE), **fields}.items() if value is not None}


def slices(*lengths: int, **more: object) -> list[dict[str, Any]]:
    """`uploadParts` of these lengths, one behind the other."""
    return [
        {"partNumber": n, "offset": sum(lengths[: n - 1]), "length": length, "isCompleted": True, **more}
        for n, length in enumerate(lengths, 1)
    ]


def check_parts(record: SdkRecord, document: Any) -> None:
    """Every part that is believed has an ETag of the record, and is the slice of the file that the record says."""
    if not record.parts:
        return
    said = document["uploadParts"]
    assert record.part_size_bytes is not None
    plan = PartPlan(sum(part["length"] for part in said), record.part_size_bytes)
    assert plan.part_count == len(said)
    for number, etag in record.parts.items():
        items = [item for item in document["partEtags"] if isinstance(item, dict) and item.get("partNum") == number]
        assert etag in [item.get("etag") for item in items]
        assert plan.part(number) == (said[number - 1]["offset"], said[number - 1]["length"])
    assert not record.claimed & record.parts.keys()


# --- what each kind comes to ------------------------------------------------------------------------------------


def test_a_whole_record_is_read_whole() -> None:
    """Target, file, cut, upload id and parts are those of the record; a key that is not ASCII is escaped there."""
    assert read(WHOLE) == READ
    assert b"\\u00e9" in json.dumps(WHOLE).encode()


def test_a_record_knows_its_file() -> None:
    """Size and time are compared as the SDK does, with the time as a float; where it does not say, nobody knows."""
    assert READ.is_of(25, MTIME_NS) is True
    assert READ.is_of(26, MTIME_NS) is False
    assert READ.is_of(25, MTIME_NS + 1_000_000) is False
    assert READ._replace(size_bytes=None).is_of(25, MTIME_NS) is None
    assert READ._replace(mtime_s=None).is_of(25, MTIME_NS) is None


def test_a_part_that_is_done_without_an_etag_is_claimed() -> None:
    """The record that truncates an object when the SDK continues it: the part is known to be unproven."""
    record = read(changed(partEtags=[WHOLE["partEtags"][0]]))
    assert (record.parts, record.claimed) == ({2: MD5[1]}, {1})


def test_a_part_with_an_etag_and_no_flag_is_stored() -> None:
    """The SDK sets both at different moments; the ETag is what proves a part."""
    record = read(changed(uploadParts=slices(10, 10, 5, isCompleted=False)))
    assert (record.parts, record.claimed) == (READ.parts, frozenset())


@pytest.mark.parametrize("upload_id", [None, "", 7, [], {}, True, "\ud800"], ids=repr)
def test_a_lost_upload_id_leaves_the_rest(upload_id: object) -> None:
    """Without an id the upload is searched; what else is said stays."""
    assert read(changed(uploadId=upload_id)) == READ._replace(upload_id=None)


@pytest.mark.parametrize(
    "status", [None, [], [25], {}, "25", 25, ["25", 1.0], [-1, 1.0], [25.0, 1.0], [25, "1"], [25, None], [25, 1e300],
               [25, float("nan")], [25, float("inf")], [25, 10**30], [[], []]], ids=repr
)  # fmt: skip
def test_a_file_status_that_says_nothing_proves_nothing(status: object) -> None:
    """`[]`, from which the SDK cannot recover, and all other nonsense: the file is unproven, the parts are known."""
    assert read(changed(fileStatus=status)) == READ._replace(size_bytes=None, mtime_s=None)


def test_a_time_may_be_an_integer() -> None:
    """A whole second is a JSON integer in other writers' hands."""
    assert read(changed(fileStatus=[25, 1790000000])).is_of(25, 1790000000 * 10**9)


@pytest.mark.parametrize(
    "said",
    [None, [], {}, "x", 3, [1, 2, 3], [{}], slices(10, 10), slices(10, 10, 6), slices(10, 10, 10), slices(5, 10, 10),
     slices(10, 5, 10), slices(0, 10, 15), slices(10, 15, 0), slices(-5, 30), slices(10, 10, 5)[1:],
     slices(10, 10, 5)[::-1], [slices(10, 10, 5)[0]] * 3, slices(10, 10, 5, partNumber=1), slices(10, 10, 5, offset=0),
     slices(10, 10, 5, length="10"), slices(10, 10, 5, length=None), slices(10, 10, 5, offset=0.0), slices(*[0] * 3),
     slices(*[1] * 10_001)],
    ids=lambda said: str(said)[:60],
)  # fmt: skip
def test_slices_that_are_no_plan_leave_no_parts(said: object) -> None:
    """Missing, overlapping, uneven, not covering the file: the cut and the parts are the service's to say."""
    assert read(changed(uploadParts=said)) == READ._replace(part_size_bytes=None, parts={})


@pytest.mark.parametrize("lengths", [(0, 10), (0, 0, 0), (10, 0), (-1,), (2**70,), (2**46, 2**46)], ids=repr)
def test_slices_that_no_file_has_leave_no_parts(lengths: tuple[int, ...]) -> None:
    """Also where the record does not know the file: empty parts beside others, and sizes beyond the service."""
    record = read(changed(uploadParts=slices(*lengths), fileStatus=[]))
    assert (record.part_size_bytes, record.parts) == (None, {})


def test_an_empty_file_is_one_empty_part() -> None:
    """The SDK uploads it so; its plan is ours."""
    record = read(changed(uploadParts=slices(0), fileStatus=[0, 1.0], partEtags=[{"partNum": 1, "etag": MD5[0]}]))
    assert (record.size_bytes, record.part_size_bytes, record.parts) == (0, 1, {1: MD5[0]})
    assert PartPlan(0, 1).part_count == 1


@pytest.mark.parametrize(
    "said",
    [None, {}, "x", 3, [1], [{}], [[]], [{"partNum": 1}], [{"etag": MD5[0]}], [{"partNum": "1", "etag": MD5[0]}],
     [{"partNum": 1.0, "etag": MD5[0]}], [{"partNum": 1, "etag": None}], [{"partNum": 0, "etag": MD5[0]}],
     [{"partNum": -1, "etag": MD5[0]}], [{"partNum": 4, "etag": MD5[0]}], [{"partNum": 10**30, "etag": MD5[0]}],
     *([{"partNum": 1, "etag": etag}] for etag in (
        "", '""', "a b", "a\n", "\na", "a\r\nX: y", "é", "\x00", "a" * 129, "</ETag><x>", '"a&b"', "a,b", '"a""b"',
        "\ud800",
     ))],
    ids=repr,
)  # fmt: skip
def test_etags_that_are_none_are_not_believed(said: object) -> None:
    """Of no part, or with anything in them that could speak to the service: sent again. No list: the service tells."""
    record = read(changed(partEtags=said))
    assert record == READ._replace(parts={}, claimed=frozenset({1, 2} if isinstance(said, list) else ()))


def test_the_last_etag_of_a_part_counts() -> None:
    """The SDK appends: the last one is that of the last attempt."""
    twice = [*WHOLE["partEtags"], {"partNum": 1, "etag": MD5[2]}]
    assert read(changed(partEtags=twice)).parts == {1: MD5[2], 2: MD5[1]}


def test_another_target_is_told_by_name() -> None:
    """Whose record it is stays for others to judge."""
    assert read(changed(bucketName="other")) == READ._replace(bucket="other")


@pytest.mark.parametrize("path", [None, 7, [], "", "\ud800"], ids=repr)
def test_a_path_that_is_none_proves_nothing(path: object) -> None:
    """A path is a text that a file system may have; also one that is not UTF-8."""
    assert read(changed(uploadFile=path)) == READ._replace(path=None)
    assert read(changed(uploadFile="/x/\udcff")).path == "/x/\udcff"


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"[1]", b"null", b"7", b"1e999", b"NaN", b"-Infinity", b'"x"', b"{", b"[", b"\xff\xfe{",
     b"\0" * 9, b"9" * 5000, b"[" * 100_000, b'{"a":' * 100_000, b'{"bucketName": "b"}',
     b'{"bucketName": "b", "objectKey": 1}', b'{"bucketName": null, "objectKey": "k"}',
     b'{"bucketName": "", "objectKey": ""}', b'{"bucketName": "b", "objectKey": "\\ud800"}',
     b'{"bucketName": "b", "objectKey": "k', b'{"bucketName": "b", "objectKey": "\\q", ',
     b'{"bucketName": "b\n", "objectKey": "k", ', b'{"bucketName": "b", "objectKey": "\\ud8", '],
    ids=lambda content: repr(content[:44]),
)  # fmt: skip
def test_too_little_to_tell_is_refused_with_the_reason(content: bytes) -> None:
    """Whatever names no bucket and key: one sentence, which says what to do."""
    words = r"'r': expected a journal, or a record of the official SDK, found .+; it was left as it is: .*adopt=True"
    with pytest.raises(JournalError, match=words):
        read_sdk_record(content, "r")


def test_odd_json_is_read_for_what_it_says() -> None:
    """Other orders and unknown fields do not matter; of two equal names the last counts; the absurd is no value."""
    assert read({name: WHOLE[name] for name in reversed(WHOLE)} | {"more": [1]}) == READ
    text = json.dumps(WHOLE)
    assert read_sdk_record(f'{text[:-1]}, "uploadId": "U2"}}'.encode(), "r") == READ._replace(upload_id="U2")
    for tail in (f', "more": {"[" * 100_000}', f', "fileStatus": [{"9" * 5000}, 1]}}'):
        found = read_sdk_record(f"{text[:-1]}{tail}".encode(), "r")
        assert (found.bucket, found.key, found.parts) == ("bkt", WHOLE["objectKey"], {})


def test_every_cut_is_refused_or_leaves_the_target() -> None:
    """Torn at any byte, a record names its target or is refused; no part and no id is read from half of one."""
    data = json.dumps(WHOLE).encode()
    key_end = data.index(b', "uploadFile"')
    for length, zeros in [(length, zeros) for length in range(len(data)) for zeros in (0, 512)]:
        torn = data[:length] + bytes(zeros)
        if length < key_end:
            with pytest.raises(JournalError):
                read_sdk_record(torn, "r")
        else:
            assert read_sdk_record(torn, "r") == SdkRecord("bkt", WHOLE["objectKey"]), f"cut at {length}"


# --- whatever else ----------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-1, 30) | st.floats() | st.text(max_size=5)
    | st.sampled_from(MD5) | st.characters(categories=["Cs"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["partNum", "etag", "partNumber", "offset", "length", "isCompleted"]), inner),
    max_leaves=12,
)  # fmt: skip


@given(document=JSON)
def test_any_json_is_a_record_or_refused(document: Any) -> None:
    """Reading never fails in another way."""
    for said in (document, changed() | (document if isinstance(document, dict) else {"partEtags": document})):
        try:
            check_parts(read(said), said)
        except JournalError:
            assert said is document


@given(data=st.data())
def test_any_change_of_a_record_invents_no_part(data: st.DataObject) -> None:
    """Up to three values replaced, taken away or doubled: what is believed is still what the record says."""
    document = changed()
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = document
        while isinstance(place, (dict, list)) and place:
            at = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if isinstance(place[at], (dict, list)) and place[at] and data.draw(st.booleans()):
                place = place[at]
                continue
            match data.draw(st.sampled_from(["replace", "delete", "double"])):
                case "replace":
                    place[at] = data.draw(JSON)
                case "delete":
                    del place[at]
                case _ if isinstance(place, list):
                    place.insert(at, copy.deepcopy(place[at]))
            break
    try:
        check_parts(read(document), document)
    except JournalError:
        assert any(document.get(name) != WHOLE[name] for name in ("bucketName", "objectKey"))


@given(content=st.binary(max_size=200), at=st.integers(0, 600))
def test_any_bytes_are_a_record_or_refused(content: bytes, at: int) -> None:
    """Also where they are written over a record, as two processes of the SDK do."""
    data = json.dumps(WHOLE).encode()
    for damaged in (content, data[:at] + content, data[:at] + content + data[at + len(content) :]):
        try:
            assert isinstance(read_sdk_record(damaged, "r"), SdkRecord)
        except JournalError as error:
            assert "left as it is" in str(error)  # noqa: PT017 - most are refused, some need not
