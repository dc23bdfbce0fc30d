"""What calibrated probabilities, thresholds and prediction sets are worth on other images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mlops_project.data.diagnoses import questions
from mlops_project.evaluation import bootstrap, calibration, measures, operating_points
from mlops_project.evaluation.predictions_table import arrays


def difference(
    names: list[str],
    labelled: pd.DataFrame,
    first: np.ndarray,
    second: np.ndarray,
    prior: np.ndarray,
) -> dict[str, Any]:
    """What calibrated probabilities are better by than others of the same images.

    Both are measured on the same resamples of lesions.

    Args:
        names: of the classes.
        labelled: rows of `inference.Predictions` with a known class.
        first, second: float [N, K]; the difference is the first less the second.
        prior: that answers are without, float [K].

    Returns:
        balanced_accuracy (of the answers), log_loss and, for each question of operating_points, its
        AUROC, with intervals.
    """
    labels, _ = arrays(names, labelled)
    asked = questions(names)

    def measured(weights: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
        answers = _answers(probabilities, prior)
        by_answer = measures.by_answer(weights, labels, answers, len(names))
        found = {"balanced_accuracy": by_answer["balanced_accuracy"]}
        found["log_loss"] = measures.calibration(weights, labels, probabilities)["log_loss"]
        for question, classes in asked.items():
            scores = probabilities[:, classes].sum(axis=1)
            found[question] = measures.ranking(weights, np.isin(labels, classes), scores)[0]
        return found

    def less(weights: np.ndarray) -> dict[str, np.ndarray]:
        one, other = (measured(weights, probabilities) for probabilities in (first, second))
        return {name: one[name] - other[name] for name in one}

    return bootstrap.with_intervals(labelled["lesion_id"].to_numpy(), less)


def of_probabilities(
    labels: np.ndarray,
    probabilities: np.ndarray,
    lesions: np.ndarray,
    prior: np.ndarray | float = 0.0,
) -> dict[str, Any]:
    """What probabilities are worth, and the answers that they give without the prior."""
    answers = _answers(probabilities, prior)

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        by_answer = measures.by_answer(weights, labels, answers, probabilities.shape[1])
        return measures.calibration(weights, labels, probabilities) | by_answer

    shares = {"accuracy": np.ones(len(labels), dtype=bool)}
    return bootstrap.with_intervals(lesions, measure, shares, measures.BIASED)


def operating_point(
    truth: np.ndarray, scores: np.ndarray, sensitivity: float, columns: list[str]
) -> dict[str, Any]:
    """A threshold, and what it comes to on the validation images, which it is chosen on.

    Args:
        truth, scores: of the validation images, as for `operating_points.choose_threshold`.
        sensitivity: to be reached on them.
        columns: of predictions.csv whose sum the scores are.
    """
    threshold = operating_points.choose_threshold(truth, scores, sensitivity)
    if np.isnan(threshold):
        return {"threshold": threshold, "gap": "no such image in validation"}
    found = measures.binary(np.ones((1, len(truth))), truth, scores >= threshold)
    return {
        "target_sensitivity": sensitivity,
        "threshold": threshold,
        "chosen_by": int(truth.sum()),
        "validation": {name: float(value[0]) for name, value in found.items()},
        "applies_to": columns,
    }


def of_decisions(
    truth: np.ndarray, scores: np.ndarray, positive: np.ndarray, lesions: np.ndarray
) -> dict[str, Any]:
    """What decisions, bool [N], and the scores that they are made by come to."""
    thresholds = operating_points.THRESHOLDS

    def ranking(weights: np.ndarray) -> dict[str, np.ndarray]:
        auroc, average_precision = measures.ranking(weights, truth, scores)
        return {"auroc": auroc, "average_precision": average_precision}

    return {
        "evaluated": bootstrap.with_intervals(
            lesions,
            lambda weights: measures.binary(weights, truth, positive),
            measures.seen_by(truth, positive),
        ),
        "ranking": bootstrap.with_intervals(lesions, ranking),
        "decision_curve": {
            "threshold": [float(t) for t in thresholds],
            "model": operating_points.net_benefit(truth, scores, thresholds).tolist(),
            "treat_all": operating_points.net_benefit(
                truth, np.ones(len(truth)), thresholds
            ).tolist(),
        },
    }


def prediction_sets(
    names: list[str],
    validation: tuple[np.ndarray, np.ndarray],
    evaluated: tuple[np.ndarray, np.ndarray],
    lesions: np.ndarray,
    coverage: float,
) -> dict[str, Any]:
    """What sets of classes that are to hold the true one with this probability come to.

    Args:
        names: of the K classes.
        validation, evaluated: labels, int64 [V] and [N], and probabilities, float [V, K] and
            [N, K]; the first choose the sets' thresholds.
        lesions: of the evaluated images, which the bootstrap draws.
        coverage: 0 to 1.
    """
    thresholds, enough = calibration.set_thresholds(*validation, coverage)
    labels, probabilities = evaluated
    sets = probabilities >= thresholds
    held, sizes = sets[np.arange(len(labels)), labels], sets.sum(axis=1)

    def of(chosen: np.ndarray) -> dict[str, Any]:
        def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
            return {
                "coverage": measures.mean(weights, held, chosen),
                "mean_size": measures.mean(weights, sizes, chosen),
            }

        found = bootstrap.with_intervals(lesions, measure, {"coverage": chosen})
        return {name: known["value"] for name, known in found.items()} | {
            f"{name}_ci95": known["ci95"] for name, known in found.items()
        }

    return {
        **of(np.ones(len(labels), dtype=bool)),
        "per_class": {
            name: {"threshold": float(thresholds[k]), **of(labels == k)}
            for k, name in enumerate(names)
        },
        # With fewer validation images than 1 / (1 - coverage), a class is in every set.
        "too_few_validation_images": [
            n for n, known in zip(names, enough, strict=True) if not known
        ],
    }


def _answers(probabilities: np.ndarray, prior: np.ndarray | float) -> np.ndarray:
    """The most probable classes without the prior, int64 [N]."""
    return (np.log(np.clip(probabilities, calibration.SMALLEST, 1)) - prior).argmax(axis=1)
