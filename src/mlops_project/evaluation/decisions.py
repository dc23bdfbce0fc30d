"""What follows from the probabilities: calibration, thresholds and sets, fitted on validation
images, or on a cross-validation's other folds, and judged on the images that are evaluated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mlops_project.data.diagnoses import questions
from mlops_project.evaluation import bootstrap, calibration, measures, operating_points, patients
from mlops_project.evaluation.predictions_table import arrays

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
        metrics.json, none where no class is known; and the calibrated probabilities of all
        predictions, float [N, K].
    """
    seen_labels, seen = arrays(names, validation)
    all_labels, raw = arrays(names, predictions)
    columns, (seen_features, all_features) = _features(with_patients, validation, predictions)
    temperature, offsets, weights = calibration.fit(seen_labels, seen, prior, seen_features)
    all_scaled = calibration.with_temperature(raw, temperature, offsets + all_features @ weights)
    known = all_labels >= 0
    if not known.any():
        return {}, all_scaled
    labels, raw, scaled = all_labels[known], raw[known], all_scaled[known]
    lesions = predictions["lesion_id"].to_numpy()[known]
    seen_scaled = calibration.with_temperature(seen, temperature, offsets + seen_features @ weights)
    facts = {
        "calibration": {
            **_fitted(names, temperature, offsets, weights, columns),
            "prior": _by_name(names, prior),
            "validation_images": len(validation),
            "before": _calibration(labels, raw, lesions),
            "after": _calibration(labels, scaled, lesions, prior),
        },
        "operating_points": {
            question: _operating_point(
                (np.isin(seen_labels, positive), seen_scaled[:, positive].sum(axis=1)),
                (np.isin(labels, positive), scaled[:, positive].sum(axis=1)),
                lesions,
                sensitivity,
            )
            for question, positive in questions(names).items()
        },
    }
    if not with_patients:
        # So many weights fit the validation images better than others, and what the sets promise
        # is for scores that were fitted on neither.
        facts["prediction_sets"] = {
            str(coverage): _sets(
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
            positive[question][own] = scores[own] >= threshold
    if not known.any():
        return {}, scaled
    points = {}
    for question, classes in asked.items():
        truth, scores = np.isin(labels, classes), scaled[:, classes].sum(axis=1)
        threshold = float(np.mean(chosen[question]))
        if np.isnan(threshold):
            points[question] = {"threshold": threshold, "gap": "a fold has no such image"}
            continue
        found = _judged(truth[known], scores[known], positive[question][known], lesions[known])
        points[question] = {"target_sensitivity": sensitivity, "threshold": threshold} | found
    temperature, offsets, weights = (np.mean(part, axis=0) for part in zip(*fitted, strict=True))
    facts = {
        "calibration": {
            **_fitted(names, temperature, offsets, weights, columns),
            "prior": _by_name(names, prior),
            "folds": len(numbers),
            "of_folds": of_folds,
            "before": _calibration(labels[known], raw[known], lesions[known]),
            "after": _calibration(labels[known], scaled[known], lesions[known], prior),
        },
        "operating_points": points,
    }
    return facts, scaled


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


def _answers(probabilities: np.ndarray, prior: np.ndarray | float) -> np.ndarray:
    """The most probable classes without the prior, int64 [N]."""
    return (np.log(np.clip(probabilities, calibration.SMALLEST, 1)) - prior).argmax(axis=1)


def _features(with_patients: bool, *tables: pd.DataFrame) -> tuple[list[str], list[np.ndarray]]:
    """Names of what is known of the patients, and the numbers [N, F] of each table."""
    if not with_patients:
        return [], [np.empty((len(table), 0)) for table in tables]
    found = patients.features(*tables)
    return found[0].columns.tolist(), [features.to_numpy() for features in found]


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


def _calibration(
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


def _operating_point(
    validation: tuple[np.ndarray, np.ndarray],
    evaluated: tuple[np.ndarray, np.ndarray],
    lesions: np.ndarray,
    sensitivity: float,
) -> dict[str, Any]:
    """A threshold of the validation's scores, and what it comes to; pairs of truth and scores."""
    threshold = operating_points.choose_threshold(*validation, sensitivity)
    if np.isnan(threshold):
        return {"threshold": threshold, "gap": "no such image in validation"}
    truth, scores = validation
    ones = np.ones((1, len(truth)))
    before = measures.binary(ones, truth, scores >= threshold)
    truth, scores = evaluated
    return {
        "target_sensitivity": sensitivity,
        "threshold": threshold,
        "validation": {name: float(value[0]) for name, value in before.items()},
    } | _judged(truth, scores, scores >= threshold, lesions)


def _judged(
    truth: np.ndarray, scores: np.ndarray, positive: np.ndarray, lesions: np.ndarray
) -> dict[str, Any]:
    """What decisions, bool [N], and the scores that they are made by come to."""
    thresholds = operating_points.THRESHOLDS

    def ranking(weights: np.ndarray) -> dict[str, np.ndarray]:
        auroc, average_precision = measures.ranking(weights, truth, scores)
        return {"auroc": auroc, "average_precision": average_precision}

    return {
        "applies_to": "calibrated probability",
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


def _sets(
    names: list[str],
    validation: tuple[np.ndarray, np.ndarray],
    evaluated: tuple[np.ndarray, np.ndarray],
    lesions: np.ndarray,
    coverage: float,
) -> dict[str, Any]:
    thresholds, enough = calibration.set_thresholds(*validation, coverage)
    labels, probabilities = evaluated
    sets = calibration.prediction_sets(probabilities, thresholds)
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
