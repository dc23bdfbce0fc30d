"""How sure a measure is: a bootstrap that draws lesions, not images.

Images of one lesion are much alike; a bootstrap of images takes them for independent, and its
intervals are too narrow (Field and Welsh, Bootstrapping clustered data, JRSS B 2007).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

RESAMPLES = 2000
CHUNK = 250  # resamples at once, which bounds the memory
LEVEL = 0.95


def weightings(
    lesions: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Iterator[np.ndarray]:
    """Weights of the images in resamples of as many lesions as there are, in chunks.

    Args:
        lesions: which lesion each image shows, any type [N].
        resamples: how many.
        seed: of the draws.

    Yields:
        float64 [R, N], R up to `CHUNK`: how often each image's lesion was drawn.
    """
    unique, lesion = np.unique(lesions, return_inverse=True)
    random = np.random.default_rng(seed)
    shares = np.full(len(unique), 1 / len(unique))
    for start in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - start)
        yield random.multinomial(len(unique), shares, size=count)[:, lesion].astype(float)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle share of the resampled values; (NaN, NaN) where more than half of them are NaN.

    A mean over classes is NaN in resamples that lack one of them, and these are left out.
    """
    known = values[~np.isnan(values)]
    if len(known) < len(values) / 2:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def exact_interval(value: float, clusters: int) -> tuple[float, float]:
    """The 95 % interval of a share of 0 or 1, from which no resample can differ.

    Clopper and Pearson, Biometrika 1934.

    Args:
        value: 0 or 1.
        clusters: how many independent ones it was seen in, at least 1.
    """
    bound = ((1 - LEVEL) / 2) ** (1 / clusters)
    return (bound, 1.0) if value == 1 else (0.0, 1 - bound)


def with_intervals(
    lesions: np.ndarray,
    measure: Callable[[np.ndarray], dict[Any, np.ndarray]],
    shares: Mapping[Any, np.ndarray] | None = None,
    biased: Collection[Any] = (),
    least: float = 0.0,
) -> dict[Any, dict[str, Any]]:
    """The value of each measure, and its 95 % interval.

    Args:
        lesions: which lesion each image shows, any type [N].
        measure: gives R values of each measure for weights float [R, N].
        shares: for measures that are shares, of which images, bool [N]: a share of 0 or 1 has an
            exact interval of its lesions.
        biased: measures that resampling makes larger, or differences of such, whose interval is
            moved back by as much.
        least: what these cannot be less than.

    Returns:
        {"value": float, "ci95": [low, high]} of each; NaN for the interval where no resample
        differs, as of a single lesion or where all is right, and there is no exact one.
    """
    plain = measure(np.ones((1, len(lesions))))
    chunks = [measure(weights) for weights in weightings(lesions)]
    found = {}
    for name, one in plain.items():
        value, resampled = float(one[0]), np.concatenate([chunk[name] for chunk in chunks])
        low, high = interval(resampled)
        clusters = len(np.unique(lesions[shares[name]])) if shares and name in shares else 0
        if low == high and clusters and value in (0, 1):
            low, high = exact_interval(value, clusters)
        elif low == high:
            low = high = float("nan")
        elif name in biased:
            excess = float(np.nanmean(resampled)) - value
            low, high = max(least, min(low - excess, value)), max(high - excess, value)
        found[name] = {"value": value, "ci95": [low, high]}
    return found
