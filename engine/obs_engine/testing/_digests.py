from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

Md5 = hashlib.md5
def md5_update_many(hashers: Sequence[Any], buffers: Sequence[Any]) -> None:
    for h, b in zip(hashers, buffers):
        h.update(b)
_T = []
for _i in range(256):
    _c = _i
    for _ in range(8):
        _c = (_c >> 1) ^ (0xC96C5795D7870F42 if _c & 1 else 0)
    _T.append(_c)
def crc64(data: Any, value: int = 0) -> int:
    c = value ^ (2**64 - 1)
    for b in bytes(data):
        c = _T[(c ^ b) & 255] ^ (c >> 8)
    return c ^ (2**64 - 1)
def crc64_combine(a: int, b: int, len_b: int) -> int:
    def times(m, v):
        s = 0; i = 0
        while v:
            if v & 1: s ^= m[i]
            v >>= 1; i += 1
        return s
    if not len_b: return a
    m = [0xC96C5795D7870F42] + [1 << i for i in range(63)]
    n = len_b * 8
    while n:
        if n & 1: a = times(m, a)
        m = [times(m, x) for x in m]; n >>= 1
    return a ^ b
is_native = False
