"""Which images show the same picture, saved anew, turned or mirrored, though the ids differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mlops_project.progress import track

if TYPE_CHECKING:
    import torch

    from mlops_project.data.datamodule import HAM10000DataModule

SIDE = 32
# Pictures are the same when their edges, on thumbnails of SIDE pixels, correlate by more than this.
# Among all pairs of HAM10000's lesions, turned and mirrored too, the only pair that is the same
# picture has 0.994, and the next, two round nevi, 0.913. Of 500 images saved anew, the lowest had
# 0.974 at JPEG quality 50, 0.98 at half the size, turned or mirrored, 0.95 at half the size and
# quality 50, with 20 % more light, and when shifted by 2 of 400 pixels; at quality 20, 98 % had
# more than 0.94. Crops by 5 %, other proportions and other angles are not found.
# Thumbnails of a cache's squares of 74 to 343 pixels give the same to 0.01, also where two caches
# differ; squares of 37 pixels give 0.93 for the two nevi. Smaller ones would have to be enlarged,
# and then other lesions come to 0.95 (from 26 pixels) and 0.97 (from 19).
EDGES = 0.94
# A pair whose shades correlate less is not looked at closely: the 500 had at least 0.974.
SHADES = 0.95


@dataclass(frozen=True)
class SamePicture:
    """Images that show the same picture, turned or mirrored or not, under several lesion ids.

    Attributes:
        rows: of the checked table.
        identical: whether the files are the same, byte for byte.
        similarity: lowest correlation of the edges that links them, 1 is the same.
    """

    rows: tuple[int, ...]
    identical: bool
    similarity: float


def same_pictures(
    thumbnails: np.ndarray, digests: np.ndarray, rows: np.ndarray, lesions: np.ndarray
) -> Iterator[SamePicture]:
    """Groups of images that are linked by their similarity and belong to several lesions."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if len(rows) == 0:
        return
    # Files that are the same, byte for byte, are one node of the graph.
    _, firsts, node = np.unique(digests, return_index=True, return_inverse=True)
    i, j, similarity = similar_pairs(thumbnails[firsts])
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(len(firsts), len(firsts)))
    _, group = connected_components(graph, directed=False)
    for number, members in pd.Series(rows).groupby(group[node]):
        if len(set(lesions[members])) > 1:
            links = similarity[group[i] == number]
            yield SamePicture(tuple(members), len(links) == 0, float(min(links, default=1.0)))


def thumbnails(data: HAM10000DataModule, rows: np.ndarray) -> np.ndarray:
    """Small copies of images that are decoded already, the whole of their squares.

    Args:
        data: with the rows decoded.
        rows: int64 [N].

    Returns:
        uint8 [N, 3, SIDE, SIDE].
    """
    from torch.nn.functional import interpolate

    from mlops_project.data.loading import DecodedImages, Undecoded

    source = data.dataset(augment=False).source
    if source.side < SIDE:  # enlarged, different lesions look alike
        source = Undecoded(data.table, SIDE)
    whole = DecodedImages(source, data.labels, source.side)
    small = np.empty((len(rows), 3, SIDE, SIDE), dtype=np.uint8)
    starts = range(0, len(rows), 64)
    for start in track(starts, "making thumbnails", len(starts)):
        squares, _, _ = whole.batch(0, rows[start : start + 64])
        small[start : start + 64] = interpolate(
            squares, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False
        )
    return small


def similar_pairs(
    thumbnails: np.ndarray, others: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which thumbnails show the same picture, turned or mirrored or not.

    Args:
        thumbnails: uint8 [N, 3, SIDE, SIDE].
        others: what to compare them with, uint8 [M, 3, SIDE, SIDE], turned here, so best the
            smaller set; None: each with every other.

    Returns:
        Positions in `thumbnails` and in `others`, int64 [P] each, or i < j within one set; and how
        the edges correlate, float32 [P]. What is alike in several positions occurs several times.
    """
    import torch

    def to_grey(pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels).mean(dim=1, dtype=torch.float32)

    none = torch.zeros(0, dtype=torch.long)
    pairs = [(none, none, torch.zeros(0))]
    first = to_grey(thumbnails)
    second = first if others is None else to_grey(others)
    shades = _shades(first)
    views = list(product(range(4), (False, True)))
    for turns, mirrored in track(views, "comparing images", len(views)):
        turned = second.rot90(turns, (1, 2))
        turned = turned.flip(2) if mirrored else turned
        other_shades = _shades(turned)
        for start in range(0, len(first), 1024):
            skipped = start if others is None else 0
            alike = shades[start : start + 1024] @ other_shades[skipped:].T > SHADES
            i, j = alike.nonzero().T
            i, j = i + start, j + skipped
            if others is None:
                i, j = i[i < j], j[i < j]
            for a, b in zip(i.split(4096), j.split(4096), strict=True):
                similarity = (_edges(first[a]) * _edges(turned[b])).sum(dim=1)
                same = similarity > EDGES
                pairs.append((a[same], b[same], similarity[same]))
    one, other, values = (torch.cat(column).numpy() for column in zip(*pairs, strict=True))
    return one, other, values


def _shades(grey: torch.Tensor) -> torch.Tensor:
    """Of pictures [N, SIDE, SIDE]: float32 [N, SIDE² / 4], whose products are correlations."""
    from torch.nn.functional import avg_pool2d

    return _unit(avg_pool2d(grey[:, None], 2).flatten(1))


def _edges(grey: torch.Tensor) -> torch.Tensor:
    """Likewise the steps from pixel to pixel, float32 [N, 2 SIDE (SIDE - 1)]."""
    import torch

    return _unit(torch.cat([grey.diff(dim=1).flatten(1), grey.diff(dim=2).flatten(1)], dim=1))


def _unit(values: torch.Tensor) -> torch.Tensor:
    values = values - values.mean(dim=1, keepdim=True)
    return values / values.norm(dim=1, keepdim=True).clamp_min(1e-6)
