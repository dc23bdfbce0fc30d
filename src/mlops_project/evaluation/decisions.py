"""What follows from the probabilities: calibration, thresholds and sets, fitted on validation
images, or on a cross-validation's other folds, and judged on the images that are evaluated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mlops_project.data.diagnoses import questions
from mlops_project.evaluation import calibration, judgement, operating_points, patients
from mlops_project.evaluation.predictions_table import (
    CALIBRATED,
    WITH_PATIENTS,
    arrays,
    columns_of,
)

COVERAGES = (0.9, 0.95)


def decide(
    names: list[str],
    validation: pd.DataFrame,
    predictions: pd.DataFrame,
    sensitivity: float,
    prior: np.ndarray,
    *,
    with_patients: bool = False,
) -> tuple[dict[str, Any], np.ndarray]:
    """Fits on validation images, and judges on the predictions.

    Args:
        names: of the classes, in the order of the probabilities.
        validation, predictions: tables of `inference.Predictions`; y_true of the latter may be "".
        sensitivity: that the thresholds are to reach on the validation images.
        prior: of `TrainedModel.log_prior`, float [K].
        with_patients: age, sex and site have a say in the calibrated probabilities.

    Returns:
        The entries calibration, operating_points and, of the image alone, prediction_sets of
        metrics.json; where no class is known, what was fitted of the first two alone. And the
        calibrated probabilities of all predictions, float [N, K].
    """
    seen_labels, seen = arrays(names, validation)
    all_labels, raw = arrays(names, predictions)
    columns, (seen_features, all_features) = _features(with_patients, validation, predictions)
    temperature, offsets, weights = calibration.fit(seen_labels, seen, prior, seen_features)
    all_scaled = calibration.with_temperature(raw, temperature, offsets + all_features @ weights)
    seen_scaled = calibration.with_temperature(seen, temperature, offsets + seen_features @ weights)
    asked = questions(names)
    facts: dict[str, Any] = {
        "calibration": {
            **_fitted(names, temperature, offsets, weights, columns),
            "prior": _by_name(names, prior),
            "validation_images": len(validation),
        },
        "operating_points": {
            question: judgement.operating_point(
                np.isin(seen_labels, classes),
                seen_scaled[:, classes].sum(axis=1),
                sensitivity,
                _summed(names, classes, with_patients),
            )
            for question, classes in asked.items()
        },
    }
    known = all_labels >= 0
    if not known.any():
        return facts, all_scaled
    labels, raw, scaled = all_labels[known], raw[known], all_scaled[known]
    lesions = predictions["lesion_id"].to_numpy()[known]
    facts["calibration"] |= {
        "before": judgement.of_probabilities(labels, raw, lesions),
        "after": judgement.of_probabilities(labels, scaled, lesions, prior),
    }
    for question, point in facts["operating_points"].items():
        if "gap" not in point:
            truth = np.isin(labels, asked[question])
            scores = scaled[:, asked[question]].sum(axis=1)
            positive = scores >= point["threshold"]
            point |= judgement.of_decisions(truth, scores, positive, lesions)
    if not with_patients:
        # So many weights fit the validation images better than others, and what the sets promise
        # is for scores that were fitted on neither.
        facts["prediction_sets"] = {
            str(coverage): judgement.prediction_sets(
                names, (seen_labels, seen_scaled), (labels, scaled), lesions, coverage
            )
            for coverage in COVERAGES
        }
    return facts, all_scaled


def decide_across(
    names: list[str],
    predictions: pd.DataFrame,
    folds: np.ndarray,
    sensitivity: float,
    prior: np.ndarray,
    *,
    with_patients: bool = False,
) -> tuple[dict[str, Any], np.ndarray]:
    """`decide` for a cross-validation: of each fold, by what was fitted on all other folds.

    Args:
        names, sensitivity, prior, with_patients: as for `decide`.
        predictions: a table of `inference.Predictions`, out of fold.
        folds: of each prediction, int [N], two folds at least.

    Returns:
        As of `decide`, but for prediction_sets; temperature, offsets, weights and thresholds are
        the folds' means, and in of_folds each one's temperature and how many images it was fitted
        on. What is known of patients is centred over all predictions.
    """
    labels, raw = arrays(names, predictions)
    lesions = predictions["lesion_id"].to_numpy()
    known, numbers = labels >= 0, np.unique(folds)
    columns, (features,) = _features(with_patients, predictions)
    scaled, fitted, of_folds = np.empty_like(raw), [], []
    asked = questions(names)
    positive = {question: np.zeros(len(labels), dtype=bool) for question in asked}
    chosen: dict[str, list[float]] = {question: [] for question in asked}
    having_it: dict[str, list[int]] = {question: [] for question in asked}  # that one is chosen by
    for number in numbers:
        own, others = folds == number, (folds != number) & known
        temperature, offsets, weights = calibration.fit(
            labels[others], raw[others], prior, features[others]
        )
        fitted.append((temperature, offsets, weights))
        of_folds.append({"images": int(others.sum()), "temperature": float(temperature)})
        within = calibration.with_temperature(raw, temperature, offsets + features @ weights)
        scaled[own] = within[own]
        for question, classes in asked.items():
            scores, truth = within[:, classes].sum(axis=1), np.isin(labels, classes)
            threshold = operating_points.choose_threshold(
                truth[others], scores[others], sensitivity
            )
            chosen[question].append(threshold)
            having_it[question].append(int(truth[others].sum()))
            positive[question][own] = scores[own] >= threshold
    if not known.any():
        return {}, scaled
    points = {}
    for question, classes in asked.items():
        truth, scores = np.isin(labels, classes), scaled[:, classes].sum(axis=1)
        threshold = float(np.mean(chosen[question]))
        if np.isnan(threshold):
            gap = "all such images are in one fold" if truth.any() else "there is no such image"
            points[question] = {"threshold": threshold, "gap": gap}
            continue
        found = judgement.of_decisions(
            truth[known], scores[known], positive[question][known], lesions[known]
        )
        points[question] = {
            "target_sensitivity": sensitivity,
            "threshold": threshold,
            "chosen_by": min(having_it[question]),
            "applies_to": _summed(names, classes, with_patients),
        } | found
    temperature, offsets, weights = (np.mean(part, axis=0) for part in zip(*fitted, strict=True))
    facts = {
        "calibration": {
            **_fitted(names, temperature, offsets, weights, columns),
            "prior": _by_name(names, prior),
            "folds": len(numbers),
            "of_folds": of_folds,
            "before": judgement.of_probabilities(labels[known], raw[known], lesions[known]),
            "after": judgement.of_probabilities(
                labels[known], scaled[known], lesions[known], prior
            ),
        },
        "operating_points": points,
    }
    return facts, scaled


def _features(with_patients: bool, *tables: pd.DataFrame) -> tuple[list[str], list[np.ndarray]]:
    """Names of what is known of the patients, and the numbers [N, F] of each table."""
    if not with_patients:
        return [], [np.empty((len(table), 0)) for table in tables]
    found = patients.features(*tables)
    return found[0].columns.tolist(), [features.to_numpy() for features in found]


def _summed(names: list[str], classes: list[int], with_patients: bool) -> list[str]:
    """The columns of predictions.csv whose sum a threshold is compared with."""
    kind = WITH_PATIENTS if with_patients else CALIBRATED
    return columns_of([names[k] for k in classes], kind)


def _fitted(
    names: list[str],
    temperature: float,
    offsets: np.ndarray,
    weights: np.ndarray,
    columns: list[str],
) -> dict[str, Any]:
    """What `calibration.fit` has found, as metrics.json holds it."""
    facts = {"temperature": float(temperature), "offsets": _by_name(names, offsets)}
    if columns:
        by_column = zip(columns, weights, strict=True)
        facts["weights"] = {column: _by_name(names, own) for column, own in by_column}
    return facts


def _by_name(names: list[str], values: np.ndarray) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))
