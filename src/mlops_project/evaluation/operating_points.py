"""From probabilities to decisions: a threshold chosen before the test is looked at."""

from __future__ import annotations

import numpy as np

THRESHOLDS = np.arange(0.05, 0.96, 0.05)  # of the decision curve


def choose_threshold(truth: np.ndarray, scores: np.ndarray, sensitivity: float) -> float:
    """The largest threshold that finds this share of the validation images with the condition.

    Args:
        truth: whether each has the condition, bool [N].
        scores: float [N]; an image is taken to have it from the threshold on.
        sensitivity: to be reached, 0 to 1.

    Returns:
        NaN where no image has the condition.
    """
    found = np.sort(scores[truth])[::-1]
    if len(found) == 0:
        return float("nan")
    needed = max(1, int(np.ceil(sensitivity * len(found) - 1e-9)))
    return float(found[needed - 1])


def net_benefit(truth: np.ndarray, scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Net benefit of treating those whose probability reaches a threshold, float [T].

    True positives less false positives, these weighted by the odds of the threshold, as a share of
    all (Vickers and Elkin, Decision curve analysis, Medical Decision Making 2006).
    """
    positive = scores[None, :] >= thresholds[:, None]
    hits = (positive & truth).mean(axis=1)
    false_alarms = (positive & ~truth).mean(axis=1)
    return hits - false_alarms * thresholds / (1 - thresholds)
