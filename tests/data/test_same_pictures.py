"""The same pictures are found between two sets as within one, from whatever is decoded already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_project.data.archives import read_bytes
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.data.decode import decode
from mlops_project.data.same_pictures import SIDE, similar_pairs, thumbnails


@pytest.mark.parametrize("options", [{"image_size": 28}, {"image_size": 16}, {"cache": "off"}])
def test_thumbnails_are_those_of_the_files(
    make_folder: Callable[..., Path], caches: Path, options: dict[str, Any]
) -> None:
    """Also where the decoded squares are smaller, and where none are kept."""
    data = HAM10000DataModule(make_folder(), **{"cache": str(caches), "image_size": 28, **options})
    data.setup()
    rows = data.rows_of("train")
    files = [decode(read_bytes(path), SIDE) for path in data.table["path"].iloc[rows]]
    assert np.array_equal(thumbnails(data, rows), np.stack(files))


def pictures(random: np.random.Generator, n: int) -> np.ndarray:
    coarse = random.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)
    return coarse.repeat(4, axis=2).repeat(4, axis=3)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), n=st.integers(0, 6), m=st.integers(0, 6))
def test_two_sets_are_compared_as_one_set_of_both_is(seed: int, n: int, m: int) -> None:
    random = np.random.default_rng(seed)
    known = pictures(random, 8)

    def draw(count: int) -> np.ndarray:
        """Some of the known pictures, each turned or mirrored at random."""
        chosen = known[random.integers(0, len(known), count)]
        turned = [np.rot90(p, int(random.integers(4)), (1, 2)) for p in chosen]
        turned = [p[:, ::-1] if random.integers(2) else p for p in turned]
        return np.array(turned, np.uint8).reshape(-1, 3, SIDE, SIDE)

    first, second = draw(n), draw(m)
    i, j, similarity = similar_pairs(first, second)
    assert (similarity > 0.99).all()
    one, other, _ = similar_pairs(np.concatenate([first, second]))
    across = (one < n) & (other >= n)
    assert set(zip(i, j, strict=True)) == set(zip(one[across], other[across] - n, strict=True))
    assert set(zip(j, i, strict=True)) == set(zip(*similar_pairs(second, first)[:2], strict=True))
