"""From probabilities to decisions: a threshold chosen before the test is looked at."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlops_project.evaluation.subgroups import FEWEST_OF_A_KIND

THRESHOLDS = np.arange(0.05, 0.96, 0.05)  # of the decision curve

MISSING = {  # why a value does not exist
    "sensitivity": "no sensitivity: no image has it",
    "specificity": "no specificity: all images have it",
    "ppv": "no PPV: no image reaches the threshold",
    "npv": "no NPV: all images reach the threshold",
}


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


def undecided(facts: dict[str, Any]) -> list[str]:
    """What of the entry operating_points of `facts` does not exist or hold, in sentences."""
    sentences = []
    for question, point in facts.get("operating_points", {}).items():
        if "gap" in point:
            sentences.append(f"no threshold for {question}: {point['gap']}")
            continue
        if point["chosen_by"] < FEWEST_OF_A_KIND:
            sentences.append(
                f"the threshold for {question} was chosen by {point['chosen_by']} images that have "
                "it: it is not to be relied on"
            )
        sentences += [
            f"{question}: {why}"
            for name, why in MISSING.items()
            if "evaluated" in point and np.isnan(point["evaluated"][name]["value"])
        ]
    return sentences


def net_benefit(truth: np.ndarray, scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Net benefit of treating those whose probability reaches a threshold, float [T].

    True positives less false positives, these weighted by the odds of the threshold, as a share of
    all (Vickers and Elkin, Decision curve analysis, Medical Decision Making 2006).
    """
    positive = scores[None, :] >= thresholds[:, None]
    hits = (positive & truth).mean(axis=1)
    false_alarms = (positive & ~truth).mean(axis=1)
    return hits - false_alarms * thresholds / (1 - thresholds)
