"""Measures of predictions under many weightings at once, as a bootstrap needs them.

Every function takes weights [R, N], R weightings of N images (or lesions), and gives R values; a
weight of 2 counts an image twice. Weights of 1 give the plain measure, so that a value and its
interval come from the same lines. NaN stands where a measure does not exist, such as the AUROC of a
class without images. A mean over the classes does not exist either where a weighting leaves one out
that has images: of the others alone it would be another measure. For the same reason a class that
only wrong answers name stays in the mean of F1, as 0, in a weighting that leaves these out.
"""

from __future__ import annotations

import numpy as np

# Resampling makes these larger: it takes noise in the bins for miscalibration once more.
BIASED = ("ece", "class_wise_ece")
SMALLEST = float(np.finfo(float).eps)  # probability, so that its logarithm exists; scikit-learn's
BINS = 15  # of confidence: Guo et al., On Calibration of Modern Neural Networks, ICML 2017


def overall(
    weights: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    each: list[dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Measures of all classes together.

    Args:
        weights: float [R, N].
        labels: int64 [N].
        probabilities: float [N, K], rows that sum to 1.
        each: `against_rest` of each class.

    Returns:
        float [R] each: accuracy; balanced_accuracy (mean sensitivity of the classes present, the
        ISIC 2018 measure); f1_score (of class 1 for two classes, NaN if it is neither present nor
        predicted; else the mean of the classes that are) and macro_f1 (that mean); auroc and
        average_precision (of class 1 for two classes, else the mean of the classes for which they
        exist); brier (sum over classes, Brier 1950), log_loss, ece and class_wise_ece (Kull et al.,
        2019; equal bins).
    """
    classes = probabilities.shape[1]
    complete = _complete(weights, labels, classes)
    named = np.union1d(labels, probabilities.argmax(axis=1))
    f1 = np.stack([e["f1_score"] for e in each])
    ranked = {n: np.stack([e[n] for e in each]) for n in ("auroc", "average_precision")}
    macro_f1 = _mean(np.nan_to_num(f1[named]), complete)
    result = by_answer(weights, labels, probabilities.argmax(axis=1), classes) | {
        "f1_score": macro_f1 if classes > 2 else np.nan_to_num(f1[1]) if 1 in named else f1[1],
        "macro_f1": macro_f1,
    }
    result |= {n: v[1] if classes == 2 else _mean(v, complete) for n, v in ranked.items()}
    return result | calibration(weights, labels, probabilities)


def calibration(
    weights: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, np.ndarray]:
    """How far the probabilities are from the frequencies; brier, log_loss, ece, class_wise_ece."""
    classes, total = probabilities.shape[1], weights.sum(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    truth = np.eye(classes)[labels]
    chosen = np.clip(probabilities[np.arange(len(labels)), labels], SMALLEST, 1)
    return {
        "brier": weights @ ((probabilities - truth) ** 2).sum(axis=1) / total,
        "log_loss": weights @ -np.log(chosen) / total,
        "ece": calibration_error(weights, probabilities.max(axis=1), correct),
        "class_wise_ece": np.mean(
            [calibration_error(weights, probabilities[:, k], labels == k) for k in range(classes)],
            axis=0,
        ),
    }


def by_answer(
    weights: np.ndarray, labels: np.ndarray, answers: np.ndarray, classes: int
) -> dict[str, np.ndarray]:
    """accuracy and balanced_accuracy of answers int [N], out of so many classes; float [R] each."""
    right = answers == labels
    found = [mean(weights, right, labels == k) for k in range(classes)]
    everywhere = np.ones(len(labels), dtype=bool)
    return {
        "accuracy": mean(weights, right, everywhere),
        "balanced_accuracy": _mean(np.stack(found), _complete(weights, labels, classes)),
    }


def against_rest(
    weights: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, k: int
) -> dict[str, np.ndarray]:
    """Measures of class k against the rest, at the most probable class; float [R] each."""
    truth, positive = labels == k, probabilities.argmax(axis=1) == k
    result = binary(weights, truth, positive)
    result["auroc"], result["average_precision"] = ranking(weights, truth, probabilities[:, k])
    return result


def binary(weights: np.ndarray, truth: np.ndarray, positive: np.ndarray) -> dict[str, np.ndarray]:
    """Sensitivity, specificity, ppv, npv and f1_score of decisions.

    Args:
        weights: float [R, N].
        truth: whether each has the condition, bool [N].
        positive: whether it is taken to have it, bool [N].
    """
    hits, false_alarms = weights @ (truth & positive), weights @ (~truth & positive)
    misses, correct_rejections = weights @ (truth & ~positive), weights @ (~truth & ~positive)
    return {
        "sensitivity": _ratio(hits, hits + misses),
        "specificity": _ratio(correct_rejections, correct_rejections + false_alarms),
        "ppv": _ratio(hits, hits + false_alarms),
        "npv": _ratio(correct_rejections, correct_rejections + misses),
        "f1_score": _ratio(2 * hits, 2 * hits + false_alarms + misses),
    }


def seen_by(truth: np.ndarray, positive: np.ndarray) -> dict[str, np.ndarray]:
    """The images in the denominator of each share of `binary`, bool [N]; arguments as there."""
    return {"sensitivity": truth, "specificity": ~truth, "ppv": positive, "npv": ~positive}


def ranking(
    weights: np.ndarray, truth: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC (ties count half) and average precision (as scikit-learn defines it), float [R] each.

    Both are NaN where all images, or none, have the condition; there scikit-learn's average
    precision is 1 or 0, whatever the scores.

    Args:
        weights: float [R, N].
        truth: bool [N].
        scores: float [N], larger for what is more likely true.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])  # of equal scores
    positive = np.add.reduceat(weights[:, order] * truth[order], starts, axis=1)
    negative = np.add.reduceat(weights[:, order] * ~truth[order], starts, axis=1)
    hits, false_alarms = positive.cumsum(axis=1), negative.cumsum(axis=1)
    # A pair is right where the negative one comes later; one with the same score is half right.
    pairs = (positive * (false_alarms[:, -1:] - false_alarms + negative / 2)).sum(axis=1)
    auroc = _ratio(pairs, hits[:, -1] * false_alarms[:, -1])
    precision = np.nan_to_num(_ratio(hits, hits + false_alarms))
    both = hits[:, -1] * (false_alarms[:, -1] > 0)
    return auroc, _ratio((positive * precision).sum(axis=1), both)


def calibration_error(
    weights: np.ndarray, confidence: np.ndarray, correct: np.ndarray
) -> np.ndarray:
    """Mean distance of confidence and frequency over `BINS` equal bins of confidence, float [R].

    Args:
        weights: float [R, N].
        confidence: float [N], 0 to 1; `correct`: whether it came true, bool [N].
    """
    where = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.zeros((len(confidence), BINS))
    gaps[np.arange(len(confidence)), where] = confidence - correct
    return np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1)


def mean(weights: np.ndarray, values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean of values [N] over the chosen ones, bool [N]; float [R], NaN where none is drawn."""
    return _ratio(weights @ (values * chosen), weights @ chosen)


def _complete(weights: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Which weightings leave none of the classes out that have images, bool [R]."""
    drawn = weights @ np.eye(classes)[labels] > 0
    return drawn[:, np.bincount(labels, minlength=classes) > 0].all(axis=1)


def _mean(values: np.ndarray, complete: np.ndarray) -> np.ndarray:
    """Mean of values [K, R] over the classes, of what is not NaN; NaN where not `complete`."""
    known = ~np.isnan(values)
    mean = _ratio(np.nansum(values, axis=0), known.sum(axis=0))
    return np.where(complete, mean, np.nan)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)
