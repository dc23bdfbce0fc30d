"""Random numbers that are a function of (seed, epoch, row), not of what was drawn before.

Each number is a hash of its coordinates, so any process, worker or resumed run that asks for the
same number gets it, on any machine. The hash is a chain of steps of SplitMix64 (Steele, Lea and
Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014; the increment and the
multipliers are its own, the latter from Stafford's variant 13 of MurmurHash3's finaliser).
"""

from __future__ import annotations

import zlib

import numpy as np

_INCREMENT = 0x9E3779B97F4A7C15  # 2^64 / golden ratio
_MULTIPLIERS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 0xFFFFFFFFFFFFFFFF  # arithmetic is modulo 2^64


def _mix(value: int) -> int:
    value = (value + _INCREMENT) & _WORD
    value = ((value ^ (value >> 30)) * _MULTIPLIERS[0]) & _WORD
    value = ((value ^ (value >> 27)) * _MULTIPLIERS[1]) & _WORD
    return value ^ (value >> 31)


def _mix_array(values: np.ndarray) -> np.ndarray:
    """`_mix` of each element, uint64."""
    values = values + np.uint64(_INCREMENT)
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(multiplier)
    values ^= values >> np.uint64(31)
    return values


def _key(*parts: int) -> int:
    key = 0
    for part in parts:
        key = _mix(key ^ (part & _WORD))
    return key


def hashes(seed: int, epoch: int, rows: np.ndarray, stream: str, count: int = 1) -> np.ndarray:
    """Uniform 64-bit numbers, uint64 [B, count], each a function of its coordinates.

    Args:
        seed: of the run.
        epoch: numbers of other epochs are independent.
        rows: int64 [B]. Within a column, different rows never share a number.
        stream: name of what the numbers are for; other names give independent numbers.
        count: numbers a row. Asking for more leaves the first ones as they are.
    """
    key = np.uint64(_key(seed, epoch, zlib.crc32(stream.encode())))
    row_keys = _mix_array(key ^ _mix_array(np.asarray(rows).astype(np.uint64)))
    columns = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_INCREMENT)
    return _mix_array(row_keys[:, None] + columns)


def uniform(seed: int, epoch: int, rows: np.ndarray, stream: str, count: int = 1) -> np.ndarray:
    """Numbers in [0, 1), float64 [B, count]; arguments as for `hashes`."""
    return (hashes(seed, epoch, rows, stream, count) >> np.uint64(11)) * 2.0**-53


def integers(
    seed: int, epoch: int, rows: np.ndarray, stream: str, high: int, count: int = 1
) -> np.ndarray:
    """Numbers in 0, …, high - 1, int64 [B, count]; other arguments as for `hashes`."""
    return (uniform(seed, epoch, rows, stream, count) * high).astype(np.int64)


def permutation(seed: int, epoch: int, rows: np.ndarray, stream: str = "order") -> np.ndarray:
    """The rows in a random order, int64 [N], whatever order they are given in."""
    rows = np.sort(np.asarray(rows, dtype=np.int64))
    return rows[np.argsort(hashes(seed, epoch, rows, stream)[:, 0], kind="stable")]


def seed_for(seed: int, *parts: int) -> int:
    """A seed in [0, 2^63) for another generator, a function of the run's seed and the parts."""
    return _key(seed, *parts) >> 1
