"""Which images show the same picture, saved anew, turned or mirrored, though the ids differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

if TYPE_CHECKING:
    import torch

SIDE = 32
# Pictures are the same when their edges, on thumbnails of SIDE pixels, correlate by more than this.
# Among all pairs of HAM10000's lesions, turned and mirrored too, the only pair that is the same
# picture has 0.994, and the next, two round nevi, 0.913. Of 500 images saved anew, the lowest had
# 0.974 at JPEG quality 50, 0.98 at half the size, 0.95 with 20 % more light and when shifted by 2
# of 400 pixels; at quality 20, 98 % had more than 0.94. Crops by 5 %, other proportions and other
# angles are not found.
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


def shown(steps: Iterable[Any], text: str, total: int) -> Iterator[Any]:
    """Passes the steps on, with a progress bar on a terminal."""
    console = Console(stderr=True)
    quiet = not console.is_terminal
    yield from track(steps, text, total=total, console=console, transient=True, disable=quiet)


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
    i, j, similarity = _similar_pairs(thumbnails[firsts])
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(len(firsts), len(firsts)))
    _, group = connected_components(graph, directed=False)
    for number, members in pd.Series(rows).groupby(group[node]):
        if len(set(lesions[members])) > 1:
            links = similarity[group[i] == number]
            yield SamePicture(tuple(members), len(links) == 0, float(min(links, default=1.0)))


def _similar_pairs(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs i < j, int64 [P] each, and how their edges correlate, float32 [P]."""
    import torch
    from torch.nn.functional import avg_pool2d

    def unit(values: torch.Tensor) -> torch.Tensor:
        values = values - values.mean(dim=1, keepdim=True)
        return values / values.norm(dim=1, keepdim=True).clamp_min(1e-6)

    def describe(grey: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        steps = [grey.diff(dim=1).flatten(1), grey.diff(dim=2).flatten(1)]
        return unit(avg_pool2d(grey, 2).flatten(1)), unit(torch.cat(steps, dim=1))

    none = torch.zeros(0, dtype=torch.long)
    pairs = [(none, none, torch.zeros(0))]
    grey = torch.from_numpy(thumbnails).float().mean(dim=1)
    shades, edges = describe(grey)
    views = list(product(range(4), (False, True)))
    for turns, mirrored in shown(views, "comparing images", len(views)):
        turned = grey.rot90(turns, (1, 2))
        other_shades, other_edges = describe(turned.flip(2) if mirrored else turned)
        for start in range(0, len(grey), 1024):
            alike = shades[start : start + 1024] @ other_shades[start:].T > SHADES
            i, j = (alike.nonzero() + start).T
            for a, b in zip(i[i < j].split(4096), j[i < j].split(4096), strict=True):
                similarity = (edges[a] * other_edges[b]).sum(dim=1)
                same = similarity > EDGES
                pairs.append((a[same], b[same], similarity[same]))
    first, second, values = (torch.cat(column).numpy() for column in zip(*pairs, strict=True))
    return first, second, values
