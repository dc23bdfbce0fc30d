"""Crops and flips, cut from decoded images: the same numbers in the memory of any device."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from mlops_project.data import randomness


def places(
    rows: np.ndarray,
    margin: int,
    *,
    draws: np.ndarray | None = None,
    seed: int = 0,
    epoch: int = 0,
    horizontal_flip: float = 0.0,
    vertical_flip: float = 0.0,
    transpose: float = 0.0,
) -> np.ndarray:
    """Where in the decoded images the batch's images lie.

    Args:
        rows: of the decoded images, int64 [B].
        margin: how many pixels a decoded side is longer than a crop's.
        draws: what the random choices are keyed by, int64 [B]; None: centre crops, no flips.
        seed, epoch: of the random choices.
        horizontal_flip, vertical_flip, transpose: probabilities.

    Returns:
        Row, top, left, whether the crop's rows and columns are exchanged, and whether it is turned
        upside down and mirrored after that; int64 [B, 6].
    """
    if draws is None:
        corners = np.full((len(rows), 2), margin // 2)
        flips = np.zeros((len(rows), 3), dtype=bool)
    else:
        corners = randomness.integers(seed, epoch, draws, "crop", margin + 1, 2)
        exchanged = np.zeros((len(rows), 1), dtype=bool)
        if transpose:
            exchanged = randomness.uniform(seed, epoch, draws, "transpose", 1) < transpose
        flipped = randomness.uniform(seed, epoch, draws, "flip", 2)
        flips = np.column_stack([exchanged, flipped < (vertical_flip, horizontal_flip)])
    return np.column_stack([rows, corners, flips]).astype(np.int64)


def cut(images: Any, where: np.ndarray, size: int) -> torch.Tensor:
    """Cuts a batch out of decoded images in the host's memory.

    Args:
        images: uint8 [N, 3, C, C], C >= size.
        where: of `places`, int64 [B, 6].
        size: side S of the crops, pixels.

    Returns:
        uint8 [B, 3, S, S].
    """
    images = np.asarray(images)  # a memmap makes a new object of itself at each slice
    batch = np.empty((len(where), 3, size, size), dtype=np.uint8)
    # numpy reverses bytes one by one; whole words, and then the bytes in each, go several times
    # faster. Unlike torch.flip this wakes no threads, which costs more than it gains here.
    words = batch.view(f"u{math.gcd(size, 8)}")
    for i, (row, top, left, exchanged, upside_down, mirrored) in enumerate(where.tolist()):
        crop = images[row, :, top : top + size, left : left + size]
        crop = crop.transpose(0, 2, 1) if exchanged else crop
        batch[i] = crop[:, ::-1] if upside_down else crop
        if mirrored:
            words[i] = words[i, :, :, ::-1].byteswap()
    return torch.from_numpy(batch)


def cut_on_device(
    images: torch.Tensor, rows: torch.Tensor, where: torch.Tensor, size: int
) -> torch.Tensor:
    """`cut`, out of images in the memory of a device, without waiting for it.

    Args:
        images: uint8 [M, 3, C, C].
        rows: which of them, int64 [B], on the same device, as is `where`.
        where: of `places`, int64 [B, 6]; its own rows are not looked at.
        size: side S of the crops, pixels.

    Returns:
        uint8 [B, 3, S, S].
    """
    _, top, left, exchanged, upside_down, mirrored = where.T
    windows = images.unfold(2, size, 1).unfold(3, size, 1)  # a view of every crop there is
    batch = windows[rows, :, top, left]
    # In this order: the result has the memory layout of torch.where's first tensor.
    batch = torch.where(exchanged.view(-1, 1, 1, 1) == 0, batch, batch.mT)
    for flips, dim in ((upside_down, 2), (mirrored, 3)):
        batch = torch.where(flips.view(-1, 1, 1, 1) > 0, batch.flip(dim), batch)
    return batch
