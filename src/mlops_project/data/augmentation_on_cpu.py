"""What `augmentation` does to a batch on a device, by OpenCV on a CPU.

An image at a time goes through all operations, so that it stays in the processor's cache, and by
kernels that take the three colours of a pixel together. Against PyTorch's operations for whole
batches this takes half of the time, and differs by rounding alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch

# ITU-R BT.601 luma, as torchvision's rgb_to_grayscale has it.
GREY = (0.2989, 0.587, 0.114)
WORTH_A_THREAD = 2**16  # pixels; for fewer, handing them to a thread costs more than it saves


def augment(
    images: torch.Tensor,
    result: torch.Tensor,
    *,
    normalisation: np.ndarray,
    matrices: np.ndarray | None = None,
    factors: np.ndarray | None = None,
    shifts: np.ndarray | None = None,
) -> None:
    """Warps, recolours and normalises a batch.

    Args:
        images: uint8 [B, 3, S, S].
        result: float32 [B, 3, S, S], which is filled.
        normalisation: scale and offset of each channel's grey levels, [3, 2].
        matrices: of the warp, as for `image_operations.warp`, [B, 2, 3]; None: nothing moves.
        factors: of the colours, as for `image_operations.recolour`, [B, 3]; None: they stay.
        shifts: of the hues, as for `image_operations.turn_hues`, [B]; None: they stay.
    """
    cv2 = _opencv()
    size = images.shape[-1]
    planes, pixels = images.numpy(), result.permute(0, 2, 3, 1).numpy()
    normalise = np.column_stack([np.diag(normalisation[:, 0]), normalisation[:, 1]])
    moves = None if matrices is None else _between_pixels(matrices, size)
    maps = None if factors is None else _colour_maps(factors)
    reflect = {
        "flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        "borderMode": cv2.BORDER_REFLECT,
    }

    def work(part: Iterable[int]) -> None:
        before, after = np.empty((2, size, size, 3), dtype=np.float32)
        for i in part:
            np.copyto(before, cv2.merge(list(planes[i])))
            if moves is not None:
                cv2.warpAffine(before, moves[i], (size, size), dst=after, **reflect)
                before, after = after, before
            if maps is not None:
                colour_map = maps[i].copy()
                colour_map[:, 3] *= np.dot(GREY, cv2.mean(before)[:3])
                cv2.transform(before, colour_map, dst=after)
                np.clip(after, 0, 255, out=after)
                before, after = after, before
            if shifts is not None:
                cv2.cvtColor(before, cv2.COLOR_RGB2HSV, dst=after)
                hues = after[..., 0]
                np.mod(hues + 360 * shifts[i], 360, out=hues)
                cv2.cvtColor(after, cv2.COLOR_HSV2RGB, dst=before)
            if pixels.flags.c_contiguous:
                cv2.transform(before, normalise, dst=pixels[i])
            else:
                cv2.transform(before, normalise, dst=after)
                pixels[i] = after

    every = range(len(images))
    threads = min(torch.get_num_threads(), -(-len(images) * size**2 // WORTH_A_THREAD))
    if threads > 1:
        list(_pool(threads).map(work, (every[k::threads] for k in range(threads))))
    else:
        work(every)


def _between_pixels(matrices: np.ndarray, size: int) -> np.ndarray:
    """Matrices [B, 2, 3] from pixel to pixel, (0, 0) being the centre of the first."""
    middle = (size - 1) / 2
    turns = matrices[:, :, :2].astype(np.float64)
    shifts = matrices[:, :, 2] * size / 2 + middle - turns.sum(axis=2) * middle
    return np.concatenate([turns, shifts[:, :, None]], axis=2)


def _colour_maps(factors: np.ndarray) -> np.ndarray:
    """`image_operations.recolour` as matrices [B, 3, 4], the last column to be multiplied by m."""
    b, c, s = factors.T[:, :, None, None]
    own = b * c * s * np.eye(3) + b * c * (1 - s) * np.asarray(GREY)
    return np.concatenate([own, np.broadcast_to(b * (1 - c), (len(factors), 3, 1))], axis=2)


@cache
def _opencv() -> Any:
    import cv2

    cv2.setNumThreads(1)  # its own threads, waiting for work, would take the time of others
    return cv2


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="augmentation")


if hasattr(os, "register_at_fork"):  # threads do not follow into a new process
    os.register_at_fork(after_in_child=_pool.cache_clear)
