"""What a model gains where it may leave its least sure images to a person."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlops_project.evaluation import bootstrap

COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.5)  # shares of the images that the model decides on
POINTS = np.arange(1, 101) / 100  # coverages at which the curve is told


def judge(wrong: np.ndarray, confidence: np.ndarray, lesions: np.ndarray) -> dict[str, Any]:
    """How the error falls where images are left out in the order of how sure the model is of them.

    Args:
        wrong: whether the model's class is not the true one, bool [N].
        confidence: how probable that class is, float [N].
        lesions: of each image, which the bootstrap draws.

    Returns:
        `coverage` and `error`: the curve, at most 100 points with rising coverage, the last of them
        that of all images. `area`: under it, with its interval. `at`: for each of `COVERAGES` the
        share `kept`, which is larger where images are equally sure, its `error` and `ci95`.
    """
    coverages, errors, _ = risk_coverage(np.ones((1, len(wrong))), wrong, confidence)
    curve = np.unique(_first(coverages, POINTS))

    def measure(weights: np.ndarray) -> dict[Any, np.ndarray]:
        kept, risk, area = risk_coverage(weights, wrong, confidence)
        chosen = np.take_along_axis(risk, _first(kept, np.array(COVERAGES)), axis=1)
        return {"area": area} | dict(zip(COVERAGES, chosen.T, strict=True))

    found = bootstrap.with_intervals(lesions, measure, {1.0: np.ones(len(wrong), dtype=bool)})
    kept = coverages[0, _first(coverages, np.array(COVERAGES))[0]]
    return {
        "coverage": coverages[0, curve].tolist(),
        "error": errors[0, curve].tolist(),
        "area": found["area"],
        "at": [
            {
                "coverage": coverage,
                "kept": float(share),
                "error": found[coverage]["value"],
                "ci95": found[coverage]["ci95"],
            }
            for coverage, share in zip(COVERAGES, kept, strict=True)
        ],
    }


def risk_coverage(
    weights: np.ndarray, wrong: np.ndarray, confidence: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The curve of error against coverage, and the area under it.

    A threshold keeps the images whose confidence reaches it, so equally sure ones stay or go
    together (Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS
    2017). The area is the mean over the images of the error at the threshold that just keeps each
    (AURC: Geifman, Uziel and El-Yaniv, Bias-Reduced Uncertainty Estimation, ICLR 2019).

    Args:
        weights: float [R, N].
        wrong: whether the model's class is not the true one, bool [N].
        confidence: float [N].

    Returns:
        Coverage and error at each of the T thresholds, from the largest, float [R, T], the error
        NaN where nothing is kept; and the area, float [R].
    """
    order = np.argsort(-confidence, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(confidence[order]) != 0])  # of equal confidence
    added = np.add.reduceat(weights[:, order], starts, axis=1)
    kept = added.cumsum(axis=1)
    mistakes = np.add.reduceat(weights[:, order] * wrong[order], starts, axis=1).cumsum(axis=1)
    errors = np.divide(mistakes, kept, out=np.full(kept.shape, np.nan), where=kept > 0)
    total = kept[:, -1:]
    return kept / total, errors, (added * np.nan_to_num(errors)).sum(axis=1) / total[:, 0]


def _first(coverages: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The first threshold that reaches each of W coverages, int64 [R, W]."""
    return np.stack([(coverages >= share).argmax(axis=1) for share in wanted], axis=1)
