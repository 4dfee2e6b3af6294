"""The service's digests, fast: MD5 of many streams side by side, and CRC-64/XZ ("crc64ecma").

The only importer of the C core. Where that is missing (no compiler at install), twins over `hashlib` take its
place with the same promises, and one INFO record in the log "obs_engine" says so when a digest is first used.

Knows buffers and numbers; does not know files, parts, headers or what a digest is wanted for. Runs in any process and
thread; importing it has no effect that can be seen.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import cache
from operator import index
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import SupportsIndex

    from typing_extensions import Buffer

__all__ = ["Md5", "crc64", "crc64_combine", "is_native", "kernel", "md5_update_many"]

_WORD_MAX = 2**64 - 1
_POLYNOMIAL = 0xC96C5795D7870F42  # ECMA-182's, bits reversed: bit 63 is the coefficient of x^0


@cache
def _announce() -> None:
    logging.getLogger("obs_engine").info("digests run in pure Python, at a fraction of the speed: %s", kernel())


def _as_bytes(data: Buffer) -> memoryview | bytes:
    """The bytes of a buffer, without a copy where its items are bytes."""
    view = memoryview(data)
    if not view.c_contiguous:
        raise BufferError("digests: expected a C-contiguous buffer, found one with gaps; copy it to bytes first")
    return view if view.format == "B" and view.ndim == 1 else view.tobytes()


def _word(number: SupportsIndex, what: str) -> int:
    value = index(number)
    if not 0 <= value <= _WORD_MAX:
        raise ValueError(f"{what}: expected 0 to 2**64 - 1, found {value}")
    return value


class _PythonMd5:
    """The MD5 of one stream of bytes: `hashlib`'s, with the four methods that the C core has."""

    def __init__(self) -> None:
        _announce()
        self._hash = hashlib.md5(usedforsecurity=False)

    def update(self, data: Buffer, /) -> None:
        """Adds the bytes of a contiguous buffer to the stream."""
        self._hash.update(_as_bytes(data))

    def digest(self) -> bytes:
        """The 16 bytes of the MD5 so far; the stream may go on."""
        return self._hash.digest()

    def hexdigest(self) -> str:
        """As digest, in 32 lower-case hexadecimal digits."""
        return self._hash.hexdigest()

    def copy(self) -> _PythonMd5:
        """A second stream that begins with what this one has seen."""
        twin = _PythonMd5()
        twin._hash = self._hash.copy()
        return twin


def _python_md5_update_many(hashers: Sequence[_PythonMd5], buffers: Sequence[Buffer]) -> None:
    hashers, views = tuple(hashers), [_as_bytes(buffer) for buffer in buffers]
    if len(hashers) != len(views):
        raise ValueError(
            f"md5_update_many: expected one buffer for each hasher, found {len(views)} and {len(hashers)}"
        )
    seen: set[int] = set()
    for i, hasher in enumerate(hashers):
        if not isinstance(hasher, _PythonMd5):
            raise TypeError(
                f"md5_update_many: expected an Md5 at index {i} of the hashers, found {type(hasher).__name__}"
            )
        if id(hasher) in seen:
            raise ValueError(
                f"md5_update_many: expected each hasher once, found the one at index {i} again; "
                "a stream has one order of bytes"
            )
        seen.add(id(hasher))
    for hasher, view in zip(hashers, views, strict=True):
        hasher.update(view)


def _times_x(a: int) -> int:
    return a >> 1 ^ (_POLYNOMIAL if a & 1 else 0)


@cache
def _crc64_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = _times_x(byte)  # noqa: PLW2901 - the byte is worked into its remainder
        table.append(byte)
    return tuple(table)


def _python_crc64(data: Buffer, value: SupportsIndex = 0) -> int:
    _announce()
    crc, table = _word(value, "crc64 value") ^ _WORD_MAX, _crc64_table()
    for byte in _as_bytes(data):
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ _WORD_MAX


def _times(a: int, b: int) -> int:
    """The product of two polynomials modulo the CRC's."""
    product = 0
    while b:
        if b >> 63:
            product ^= a
        a, b = _times_x(a), b << 1 & _WORD_MAX
    return product


def _python_crc64_combine(crc_a: SupportsIndex, crc_b: SupportsIndex, length_b: SupportsIndex) -> int:
    carried, crc_b = _word(crc_a, "crc64_combine crc_a"), _word(crc_b, "crc64_combine crc_b")
    remaining, power = _word(length_b, "crc64_combine length_b"), 1 << 63 - 8  # x^8: one byte
    while remaining:
        if remaining & 1:
            carried = _times(carried, power)
        remaining, power = remaining >> 1, _times(power, power)
    return carried ^ crc_b


try:
    from obs_engine._native import Md5, kernels
    from obs_engine._native import crc64 as _crc64
    from obs_engine._native import crc64_combine as _crc64_combine
    from obs_engine._native import md5_update_many as _md5_update_many
except ImportError as _error:
    is_native, _kernel = False, f"python: no native module ({_error})"
    if not TYPE_CHECKING:  # a checker sees the C core's types; the twins keep the same promises
        Md5, _md5_update_many = _PythonMd5, _python_md5_update_many
        _crc64, _crc64_combine = _python_crc64, _python_crc64_combine
else:
    is_native, _kernel = True, kernels()[0]


def kernel() -> str:
    """What MD5 runs on here: "avx512", "avx2", "simd128", "portable", or "python: no native module (why)"."""
    return _kernel


def md5_update_many(hashers: Sequence[Md5], buffers: Sequence[Buffer]) -> None:
    """Adds `buffers[i]` to `hashers[i]`, for all i side by side on one core: all of them, or none and an error.

    The GIL is released meanwhile. Side by side, 16 streams take little longer than one, so gather what is there before
    calling; the lengths may differ.

    Args:
        hashers: any number of `Md5`, each listed once and used by no other thread during the call.
        buffers: as many contiguous buffers, of 0 bytes or more each; held, not copied, during the call.

    Raises:
        ValueError: unequal numbers, or a hasher listed twice.
        TypeError: not an `Md5`, or not a buffer.
        BufferError: a buffer with gaps.
        RuntimeError: another thread is updating one of the hashers.
    """
    _md5_update_many(hashers, buffers)


def crc64(data: Buffer, value: SupportsIndex = 0) -> int:
    """The CRC-64/XZ of what `value` is the CRC of, followed by `data`.

    Args:
        data: a contiguous buffer, of 0 bytes or more.
        value: the CRC of the bytes before, 0 to 2**64 - 1; that of nothing is 0.

    Returns:
        0 to 2**64 - 1.

    Raises:
        ValueError: `value` is out of range.
        TypeError, BufferError: not a buffer, or one with gaps.
    """
    return _crc64(data, value)


def crc64_combine(crc_a: SupportsIndex, crc_b: SupportsIndex, length_b: SupportsIndex) -> int:
    """The CRC-64/XZ of A followed by B, without reading either again.

    Args:
        crc_a: CRC of A, 0 to 2**64 - 1.
        crc_b: CRC of B, 0 to 2**64 - 1.
        length_b: length of B in bytes, 0 to 2**64 - 1.

    Raises:
        ValueError: an argument is out of range.
    """
    return _crc64_combine(crc_a, crc_b, length_b)
