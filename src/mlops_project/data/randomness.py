"""Random numbers that are a function of (seed, epoch, row), not of what was drawn before.

Each number is a hash of its coordinates, so any process, worker or resumed run that asks for the
same number gets it. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood,
Fast Splittable Pseudorandom Number Generators, OOPSLA 2014; constants of variant 13, Stafford 2011).
"""

from __future__ import annotations

import zlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: SplitMix64's increment


def _mix(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        values = values + _GOLDEN
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def _key(*parts: int) -> np.ndarray:
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = _mix(key ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return key


def hashes(seed: int, epoch: int, rows: np.ndarray, stream: str, count: int = 1) -> np.ndarray:
    """Uniform 64-bit numbers, uint64 [len(rows), count], each a function of its coordinates.

    Args:
        seed, epoch: of the run.
        rows: int64 [B].
        stream: name of what the numbers are for; other names give independent numbers.
        count: numbers a row.
    """
    key = _key(seed, epoch, zlib.crc32(stream.encode()))
    row_keys = _mix(key ^ _mix(np.asarray(rows).astype(np.uint64)))
    with np.errstate(over="ignore"):
        columns = _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
        return _mix(row_keys[:, None] + columns[None, :])


def uniform(seed: int, epoch: int, rows: np.ndarray, stream: str, count: int = 1) -> np.ndarray:
    """Numbers in [0, 1), float64 [len(rows), count]; arguments as for `hashes`."""
    return (hashes(seed, epoch, rows, stream, count) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, rows: np.ndarray, stream: str = "order") -> np.ndarray:
    """The rows in a random order, int64 [N], whatever order they are given in."""
    rows = np.sort(np.asarray(rows, dtype=np.int64))
    return rows[np.argsort(hashes(seed, epoch, rows, stream)[:, 0], kind="stable")]


def seed_for(*parts: int) -> int:
    """A seed in [0, 2^63) for another generator, a function of the parts."""
    return int(_key(*parts)[0] >> np.uint64(1))
