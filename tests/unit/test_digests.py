"""Digests: known answers, the same promises from the C core and from its Python twins, errors, threads."""

from __future__ import annotations

import array
import hashlib
import importlib.util
import logging
import random
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from obs_engine import digests

try:
    from obs_engine import _native
except ImportError as error:
    _native = None  # type: ignore[assignment]
    WHY_NOT = f"the C core is not built: {error}"
else:
    WHY_NOT = ""
MD5_KERNELS = _native.kernels() if _native else ()
CRC64_KERNELS = _native.crc64_kernels() if _native else ()
needs_native = pytest.mark.skipif(_native is None, reason=WHY_NOT)

# Source: RFC 1321, appendix A.5.
RFC_1321 = {
    b"": "d41d8cd98f00b204e9800998ecf8427e",
    b"a": "0cc175b9c0f1b6a831c399e269772661",
    b"abc": "900150983cd24fb0d6963f7d28e17f72",
    b"message digest": "f96b697d7cb7938d525a2f31aaf161d0",
    b"abcdefghijklmnopqrstuvwxyz": "c3fcd3d76192e4007dfb496cca67e13b",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789": "d174ab98d277d9f5a5611c2c9f419d9f",
    b"1234567890" * 8: "57edf4a22be3c955ac49da2e2107b67a",
}
# Source: the official SDK's answers; that of 123456789 is also the published check value of CRC-64/XZ.
CRC64 = {
    b"": 0,
    b"123456789": 11051210869376104954,
    b"12345": 6748440630437108969,
    b"6789": 10278880121275185425,
}


def without_native(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A second copy of the module, imported as on a machine without a compiler."""
    monkeypatch.setitem(sys.modules, "obs_engine._native", None)
    spec = importlib.util.spec_from_file_location("digests_without_native", digests.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["native", "python"])
def face(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One suite, two implementations."""
    if request.param == "native":
        if _native is None:
            pytest.skip(WHY_NOT)
        yield digests
    else:
        yield without_native(monkeypatch)


@pytest.mark.parametrize(("text", "expected"), RFC_1321.items())
def test_md5_has_the_answers_of_its_rfc(face: Any, text: bytes, expected: str) -> None:
    """An `Md5` gives the digest of RFC 1321, in bytes and in hexadecimal."""
    md5 = face.Md5()
    md5.update(text)
    assert md5.hexdigest() == expected
    assert md5.digest() == bytes.fromhex(expected)


@pytest.mark.parametrize(("text", "expected"), CRC64.items())
def test_crc64_has_the_answers_of_the_service(face: Any, text: bytes, expected: int) -> None:
    """The CRC is CRC-64/XZ, which the service calls crc64ecma; that of nothing is 0."""
    assert face.crc64(text) == expected


def test_crc64_of_a_whole_comes_from_those_of_its_parts(face: Any) -> None:
    """CRCs of neighbours combine without reading either again, and a CRC continues from the bytes before."""
    a, b, whole = CRC64[b"12345"], CRC64[b"6789"], CRC64[b"123456789"]
    assert face.crc64_combine(a, b, 4) == whole
    assert face.crc64(b"6789", a) == whole
    assert face.crc64_combine(a, 0, 0) == a
    assert face.crc64_combine(0, b, 4) == b


def test_crc64_combines_over_lengths_that_nobody_reads(face: Any) -> None:
    """The length of B may be anything up to 2**64 - 1: carrying over it twice by halves is carrying over it once."""
    for length in (2**40, 5 * 10**13, 2**63 - 1):
        once = face.crc64_combine(1234567, 0, 2 * length)
        assert face.crc64_combine(face.crc64_combine(1234567, 0, length), 0, length) == once


def test_a_digest_does_not_end_the_stream(face: Any) -> None:
    """A digest may be asked for at any time; the stream goes on from where it was."""
    md5 = face.Md5()
    for n in range(200):
        assert md5.hexdigest() == hashlib.md5(b"x" * n).hexdigest()
        md5.update(b"x")


def test_a_copy_goes_its_own_way(face: Any) -> None:
    """`copy` begins with what the first has seen, and neither sees what the other gets later."""
    first = face.Md5()
    first.update(b"shared ")
    second = first.copy()
    first.update(b"one")
    second.update(b"two")
    assert first.hexdigest() == hashlib.md5(b"shared one").hexdigest()
    assert second.hexdigest() == hashlib.md5(b"shared two").hexdigest()


def test_many_streams_of_unequal_lengths_advance_in_one_call(face: Any) -> None:
    """Each hasher gets its own buffer, whatever the lengths and however many there are, none included."""
    numbers = random.Random(1)
    for count in (0, 1, 2, 5, 16, 17, 33, 70):
        hashers, expected = [face.Md5() for _ in range(count)], [hashlib.md5() for _ in range(count)]
        for _ in range(3):
            buffers = [numbers.randbytes(numbers.choice((0, 1, 63, 64, 65, 1000, 5000))) for _ in range(count)]
            face.md5_update_many(hashers, buffers)
            for md5, buffer in zip(expected, buffers, strict=True):
                md5.update(buffer)
        assert [md5.digest() for md5 in hashers] == [md5.digest() for md5 in expected]


def test_any_contiguous_buffer_is_read_in_place(face: Any) -> None:
    """Bytes, bytearrays, arrays, memoryviews and shapes of several dimensions count as their bytes."""
    raw = bytes(range(240))
    shaped = memoryview(raw).cast("B", (12, 20))
    for buffer in (raw, bytearray(raw), memoryview(raw), array.array("d", raw), shaped):
        md5 = face.Md5()
        md5.update(buffer)
        face.md5_update_many([md5], [buffer])
        assert md5.hexdigest() == hashlib.md5(raw + raw).hexdigest()
        assert face.crc64(buffer) == digests.crc64(raw)


def test_a_buffer_with_gaps_is_refused(face: Any) -> None:
    """Every second byte of something is not a contiguous buffer: BufferError."""
    gaps, md5 = memoryview(bytes(100))[::2], face.Md5()
    for call in (lambda: md5.update(gaps), lambda: face.md5_update_many([md5], [gaps]), lambda: face.crc64(gaps)):
        with pytest.raises(BufferError):
            call()
    with pytest.raises(TypeError):
        md5.update("text")
    assert md5.hexdigest() == RFC_1321[b""]


def test_update_many_feeds_all_or_none(face: Any) -> None:
    """A fault in any pair is found before the first byte is hashed."""
    first, second = face.Md5(), face.Md5()
    with pytest.raises(ValueError, match="one buffer for each hasher, found 1 and 2"):
        face.md5_update_many([first, second], [b"x"])
    with pytest.raises(ValueError, match="each hasher once, found the one at index 2 again"):
        face.md5_update_many([first, second, first], [b"x", b"y", b"z"])
    with pytest.raises(TypeError, match="an Md5 at index 1"):
        face.md5_update_many([first, hashlib.md5()], [b"x", b"y"])
    with pytest.raises(TypeError):
        face.md5_update_many([first, second], [b"x", "text"])
    with pytest.raises(TypeError):
        face.md5_update_many(None, [b"x"])
    assert first.hexdigest() == second.hexdigest() == RFC_1321[b""]
    face.md5_update_many([first, second], [b"a", b"abc"])  # the refused calls left no mark
    assert (first.hexdigest(), second.hexdigest()) == (RFC_1321[b"a"], RFC_1321[b"abc"])


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_crc_that_is_no_64_bit_number_is_refused(face: Any, number: int) -> None:
    """CRCs and lengths are 0 to 2**64 - 1; the message names the argument and what was found."""
    with pytest.raises(ValueError, match=rf"crc64 value: expected 0 to 2\*\*64 - 1, found {number}"):
        face.crc64(b"", number)
    for position, name in enumerate(("crc_a", "crc_b", "length_b")):
        arguments = [0, 0, 0]
        arguments[position] = number
        with pytest.raises(ValueError, match=f"crc64_combine {name}"):
            face.crc64_combine(*arguments)
    with pytest.raises(TypeError):
        face.crc64(b"", 1.5)


def test_the_kernel_has_a_name(face: Any) -> None:
    """`kernel()` says what MD5 runs on; without the C core it says why."""
    if face.is_native:
        assert face.kernel() == MD5_KERNELS[0]
    else:
        assert face.kernel().startswith("python: no native module (")


def test_going_without_the_core_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Importing says nothing; the first digest leaves one INFO record, and the next none."""
    with caplog.at_level(logging.INFO, "obs_engine"):
        twins = without_native(monkeypatch)
        assert not caplog.records
        for _ in range(3):
            twins.Md5()
            twins.crc64(b"x")
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "no native module" in record.getMessage()


@needs_native
def test_the_best_kernel_comes_first_and_the_portable_one_last() -> None:
    """Every machine can run the portable kernels."""
    assert MD5_KERNELS[-1] == CRC64_KERNELS[-1] == "portable"
    assert len(set(MD5_KERNELS)) == len(MD5_KERNELS)


@pytest.mark.parametrize("kernel", MD5_KERNELS)
@pytest.mark.parametrize("count", [1, 2, 4, 5, 8, 9, 15, 16, 17, 32, 33, 100])
def test_every_kernel_agrees_with_hashlib(kernel: str, count: int) -> None:
    """Each kernel that this CPU can run fills its lanes from any number of streams, equal or not."""
    numbers = random.Random(count)
    indices = range(count)
    stairs, chance = [64 * (i + 1) for i in indices], [numbers.randrange(3000) for _ in indices]
    for lengths in ([4096] * count, stairs, chance):
        buffers = [numbers.randbytes(length) for length in lengths]
        hashers = [_native.Md5() for _ in buffers]
        _native.md5_update_many(hashers, buffers, kernel=kernel)
        assert [md5.digest() for md5 in hashers] == [hashlib.md5(buffer).digest() for buffer in buffers]


@needs_native
def test_an_unknown_kernel_is_refused() -> None:
    """A kernel is one that `kernels()` names."""
    with pytest.raises(ValueError, match="expected a name from kernels"):
        _native.md5_update_many([], [], kernel="abacus")
    with pytest.raises(ValueError, match="expected a name from crc64_kernels"):
        _native.crc64(b"", kernel="abacus")
    with pytest.raises(TypeError):
        _native.md5_update_many([], [], kernel=16)  # type: ignore[arg-type]


@needs_native
def test_a_stream_that_a_thread_is_updating_is_left_alone() -> None:
    """While one thread updates an `Md5`, for which it needs no GIL, any use by another is a RuntimeError."""
    data, idle = bytes(32 << 20), _native.Md5()
    expected = hashlib.md5(data).hexdigest()
    uses = {
        "update": lambda md5: md5.update(b""),
        "digest": lambda md5: md5.digest(),
        "hexdigest": lambda md5: md5.hexdigest(),
        "copy": lambda md5: md5.copy(),
        "update_many": lambda md5: _native.md5_update_many([idle, md5], [b"", b""]),
    }
    refused: dict[str, str] = {}
    for _ in range(20):  # one is enough, unless this machine has other things to do
        md5 = _native.Md5()
        thread = threading.Thread(target=md5.update, args=(data,))
        thread.start()
        while thread.is_alive() and len(refused) < len(uses):
            for name, use in uses.items():
                try:
                    use(md5)
                except RuntimeError as error:
                    refused[name] = str(error)
        thread.join()
        assert md5.hexdigest() == expected
        if len(refused) == len(uses):
            break
    assert set(refused) == set(uses)
    assert all("another thread is updating" in text for text in refused.values())
    idle.update(b"")  # what a refused call had marked is free again


@needs_native
def test_threads_with_hashers_of_their_own_do_not_disturb_each_other() -> None:
    """Calls from several threads at once, each with its own streams, give what they give alone."""
    data = random.Random(7).randbytes(200_000)
    expected, found = [hashlib.md5(data[i:]).hexdigest() for i in range(20)], []

    def work() -> None:
        hashers = [_native.Md5() for _ in expected]
        _native.md5_update_many(hashers, [memoryview(data)[i:] for i in range(20)])
        found.append([md5.hexdigest() for md5 in hashers])

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 6


@needs_native
def test_buffers_are_held_during_the_call_and_let_go_after_it() -> None:
    """A bytearray may be resized as soon as the call is over, be it well or not."""
    data, md5 = bytearray(5000), _native.Md5()
    _native.md5_update_many([md5], [data])
    md5.update(data)
    _native.crc64(data)
    with pytest.raises(ValueError, match="once"):
        _native.md5_update_many([md5, md5], [data, data])
    data.append(1)


@needs_native
def test_the_core_may_be_loaded_more_than_once() -> None:
    """The core keeps nothing outside its module: a second load has types of its own, and the two do not mix."""
    spec = importlib.util.spec_from_file_location("obs_engine._native", _native.__file__)
    assert spec is not None
    assert spec.loader is not None
    other = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    assert other.Md5 is not _native.Md5
    with pytest.raises(TypeError, match="expected an Md5 at index 0"):
        other.md5_update_many([_native.Md5()], [b""])
