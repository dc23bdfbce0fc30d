"""Which images are unlike all that a model knows, so that its answer to them means little.

An image's score is its distance to the k-th nearest validation image of another lesion, in the
features before the head (Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors,
ICML 2022). The validation images serve, as the network was not fitted to them: they lie no closer
to one another than new images like them would, so that a threshold fitted on them holds for those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from mlops_project.evaluation import bootstrap
from mlops_project.evaluation.synthetic_images import synthetic_images

METHOD = "cosine distance to the k-th nearest validation image of another lesion (Sun et al. 2022)"
NEIGHBOURS = 5
FALSE_ALARMS = 0.05  # share of images like the validation's that are flagged, at most
WORST = 10  # images that are named
LEAST_AUROC = 0.8  # below it, a kind of images is not told from those that are evaluated
CHUNK = 1024  # images at once, which bounds the memory
COUNT = 32  # synthetic images of each kind


def judge(
    validation: tuple[pd.DataFrame, np.ndarray],
    evaluated: tuple[pd.DataFrame, np.ndarray],
    images_of: Callable[[np.ndarray], np.ndarray],
    features_of: Callable[[np.ndarray], np.ndarray],
) -> dict[str, Any]:
    """Fits a threshold on the validation images, and tells how many evaluated ones lie beyond it.

    Args:
        validation, evaluated: a table with image_id and lesion_id, and the features of its rows,
            of unit length, float32 [N, D].
        images_of: gives the images of rows of the evaluated table, int64 [n], as uint8
            [n, 3, S, S].
        features_of: gives the features of such images, of unit length, float32 [n, D].

    Returns:
        `method`, `neighbours`, `threshold` (images with a larger score are flagged),
        `false_alarm_rate` (share of the validation images flagged), `flagged` (share of the
        evaluated ones), `auroc` (each kind of `synthetic_images` against the evaluated ones),
        `worst_images` (ids of the least alike, the worst first) and, where the score does not tell
        one of the kinds, `caution`. Or nothing but `gap`, why there are no scores.
    """
    if not len(evaluated[0]):
        return {"gap": "no out-of-distribution scores: there are no images to score"}
    (known_table, known), (table, features) = validation, evaluated
    known_lesions, lesions = (t["lesion_id"].to_numpy(dtype=str) for t in (known_table, table))
    if not (np.isfinite(known).all() and np.isfinite(features).all()):
        return {"gap": "no out-of-distribution scores: the model's features are not all numbers"}
    known_scores = distances(known, known_lesions, known, known_lesions)
    threshold = fit_threshold(known_scores)
    if not math.isfinite(threshold):
        count = f"{len(known)} validation images of {len(set(known_lesions))} lesions"
        return {"gap": f"no out-of-distribution scores: {count} are too few"}
    scores = distances(features, lesions, known, known_lesions)
    rows = np.sort(np.random.default_rng(0).permutation(len(table))[:COUNT])
    unlike = {
        kind: distances(features_of(images), lesions[rows], known, known_lesions)
        for kind, images in synthetic_images(images_of(rows)).items()
    }
    flagged = scores > threshold
    won = {kind: _wins(scores, own) for kind, own in unlike.items()}

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        # A synthetic image counts as often as the lesion of the image that it stands for.
        total, made = weights.sum(axis=1), weights[:, rows]
        found = {kind: _auroc(weights, made, wins) for kind, wins in won.items()}
        return found | {"flagged": weights @ flagged / total}

    found = bootstrap.with_intervals(lesions, measure, {"flagged": np.ones(len(lesions), bool)})
    facts = {
        "method": METHOD,
        "neighbours": NEIGHBOURS,
        "threshold": threshold,
        "false_alarm_rate": float((known_scores > threshold).mean()),
        "flagged": found["flagged"],
        "auroc": {kind: found[kind] for kind in unlike},
        "worst_images": table["image_id"].iloc[np.argsort(-scores, kind="stable")[:WORST]].tolist(),
    }
    missed = [kind for kind in unlike if not found[kind]["value"] >= LEAST_AUROC]
    if missed:
        facts["caution"] = (
            f"AUROC below {LEAST_AUROC} for {', '.join(missed)}: the score hardly tells these from "
            "the evaluated images, so one that is not flagged may still be unlike what the model "
            "knows"
        )
    return facts


def distances(
    features: np.ndarray,
    lesions: np.ndarray,
    known: np.ndarray,
    known_lesions: np.ndarray,
    neighbours: int = NEIGHBOURS,
) -> np.ndarray:
    """Cosine distance of images to the k-th nearest known one of another lesion.

    Args:
        features: of unit length, float [N, D]; `lesions`: which they show, text [N].
        known, known_lesions: of the images to compare to, [M, D] and [M].
        neighbours: k.

    Returns:
        float [N], 0 to 2; infinite where there are fewer than k, or the features are not numbers.
    """
    found = np.full(len(features), np.inf)
    if len(known) < neighbours:
        return found
    for start in range(0, len(features), CHUNK):
        part = slice(start, start + CHUNK)
        distance = 1 - features[part] @ known.T
        distance[(lesions[part, None] == known_lesions) | np.isnan(distance)] = np.inf
        found[part] = np.partition(distance, neighbours - 1, axis=1)[:, neighbours - 1]
    return found


def fit_threshold(scores: np.ndarray, false_alarms: float = FALSE_ALARMS) -> float:
    """The score that at most this share of images like these exceeds.

    Of new images that come like those of the validation, no more are expected beyond it (split
    conformal: Vovk et al., Algorithmic Learning in a Random World, 2005).

    Args:
        scores: of validation images, float [N].
        false_alarms: 0 to 1.

    Returns:
        Infinite where there are too few images to tell, as with fewer than 19 for 5 %.
    """
    rank = math.ceil((len(scores) + 1) * (1 - false_alarms) - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def _wins(scores: np.ndarray, unlike: np.ndarray) -> np.ndarray:
    """1 where one of n scores is above one of N, a half where they are equal; float [N, n]."""
    return (unlike > scores[:, None]) + (unlike == scores[:, None]) / 2


def _auroc(weights: np.ndarray, made: np.ndarray, wins: np.ndarray) -> np.ndarray:
    """The weighted mean of the wins, float [R]; NaN where nothing has a weight.

    Much faster than sorting for each kind, as there are few synthetic images.

    Args:
        weights: of the evaluated images, float [R, N]; `made`: of the synthetic ones, [R, n].
        wins: float [N, n].
    """
    pairs = weights.sum(axis=1) * made.sum(axis=1)
    won = (weights @ wins * made).sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
