"""Crops and flips: the same pixels wherever the decoded images lie."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlops_project.data.crops import cut, cut_on_device, places


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 40),
    margin=st.integers(0, 9),
    rows=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_a_device_cuts_what_the_host_cuts(
    seed: int, size: int, margin: int, rows: list[int], flip: float
) -> None:
    side = size + margin
    images = np.random.default_rng(seed).integers(0, 256, (6, 3, side, side), dtype=np.uint8)
    draws = np.array(rows) + 6 * np.arange(len(rows))
    where = places(
        np.array(rows),
        margin,
        draws=draws,
        seed=seed,
        epoch=3,
        horizontal_flip=flip,
        vertical_flip=0.5,
        transpose=0.5,
    )
    host = cut(images, where, size)
    there = torch.from_numpy(where)
    device = cut_on_device(torch.from_numpy(images), there[:, 0], there, size)
    assert torch.equal(host, device)
    assert device.is_contiguous()
    for image, (row, top, left, exchanged, upside_down, mirrored) in zip(
        host, where.tolist(), strict=True
    ):
        expected = images[row, :, top : top + size, left : left + size]
        expected = expected.swapaxes(1, 2) if exchanged else expected
        expected = expected[:, ::-1] if upside_down else expected
        expected = expected[:, :, ::-1] if mirrored else expected
        assert np.array_equal(image, expected)
