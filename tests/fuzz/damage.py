"""Damage to a valid file, as strategies: what crashes a reader is nearly valid."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from hypothesis import strategies as st

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


class Step(NamedTuple):
    """One change at a share of the file's length; the rest means what `how` makes of it."""

    how: str
    where: float
    number: int
    data: bytes


HOW = ("cut", "flip", "flip", "field", "write", "insert", "remove", "repeat", "zero", "end")
steps = st.builds(
    Step,
    st.sampled_from(HOW),
    st.integers(1, 1000).map(lambda n: n / 1000) | st.integers(1, 100).map(lambda n: n / 2000),
    st.integers(0, 4095),
    st.binary(min_size=1, max_size=12),
)
some_steps = st.lists(steps, max_size=4)


def damage(whole: bytes, changes: list[Step]) -> bytes:
    """The file after the changes, one by one."""
    data = bytearray(whole)
    for how, share, number, new in changes:
        at = int(share * max(0, len(data) - 1))
        if how == "cut":
            del data[at:]
        elif how == "flip" and data:
            data[at] ^= 1 << number % 8
        elif how == "field":
            width, order = ((1, 2, 4)[number % 3], (">", "<")[number % 2])
            value = EXTREMES[number % len(EXTREMES)] % 256**width
            data[at : at + width] = struct.pack(order + {1: "B", 2: "H", 4: "I"}[width], value)
        elif how == "write":
            data[at : at + len(new)] = new
        elif how == "insert":
            data[at:at] = new
        elif how == "remove":
            del data[at : at + 1 + number % 64]
        elif how == "repeat":
            data[at:at] = data[at : at + number] * 3
        elif how == "zero":
            data[at : at + number] = bytes(len(data[at : at + number]))
        elif how == "end":
            data += new * (1 + number % 50)
    return bytes(data)


def with_png_checksums(data: bytes) -> bytes:
    """A damaged PNG whose chunks' checksums are right again, so that the damage is looked at."""
    result, position = bytearray(data), 8
    while position + 12 <= len(result):
        (length,) = struct.unpack_from(">I", result, position)
        end = position + 8 + length
        if end + 4 > len(result):
            break
        struct.pack_into(">I", result, end, zlib.crc32(result[position + 4 : end]))
        position = end + 4
    return bytes(result)
