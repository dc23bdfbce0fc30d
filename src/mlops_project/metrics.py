"""What a prediction is worth: the metrics that training logs and evaluation reports."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

NAMES = ("accuracy", "balanced_accuracy", "f1_score", "auroc")


def auroc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the ROC curve: of class 1 for two classes, else the mean of one-against-rest.

    Args:
        labels: int64 [N].
        probabilities: float [N, K].

    Returns:
        The mean over the classes that have both positive and negative images; NaN with none.
    """
    from sklearn.metrics import roc_auc_score

    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = [
        roc_auc_score(labels == k, probabilities[:, k])
        for k in classes
        if 0 < (labels == k).sum() < len(labels)
    ]
    return float(np.mean(areas)) if areas else float("nan")


def classification_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy, F1 and AUROC of one set of predictions.

    Balanced accuracy is the mean sensitivity over the classes present (the ISIC 2018 measure).
    F1 is that of class 1 (malignant) for two classes, else the mean over the classes that are
    present or predicted.

    Args:
        labels: int64 [N].
        probabilities: float [N, K].

    Returns:
        A value for each of `NAMES`; all NaN with no image or a probability that is not finite.
    """
    from sklearn.metrics import f1_score, recall_score

    if len(labels) == 0 or not np.isfinite(probabilities).all():
        return dict.fromkeys(NAMES, float("nan"))
    predicted = probabilities.argmax(axis=1)
    average = "binary" if probabilities.shape[1] == 2 else "macro"
    return {
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(
            recall_score(labels, predicted, labels=np.unique(labels), average="macro")
        ),
        "f1_score": float(f1_score(labels, predicted, average=average, zero_division=0)),
        "auroc": auroc(labels, probabilities),
    }


def per_class_metrics(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """What each class's predictions are worth, each class against the rest.

    Args:
        labels: int64 [N]; `probabilities`: float [N, K].
        class_names: K names.

    Returns:
        For each class: n_images, sensitivity, specificity, ppv, f1_score, auroc and
        average_precision; NaN where there is nothing to divide by.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    predicted = probabilities.argmax(axis=1)
    result = {}
    for k, name in enumerate(class_names):
        truth, positive = labels == k, predicted == k
        hits = int((truth & positive).sum())
        both = 0 < truth.sum() < len(truth)
        result[name] = {
            "n_images": int(truth.sum()),
            "sensitivity": _ratio(hits, truth.sum()),
            "specificity": _ratio((~truth & ~positive).sum(), (~truth).sum()),
            "ppv": _ratio(hits, positive.sum()),
            "f1_score": _ratio(2 * hits, truth.sum() + positive.sum()),
            "auroc": float(roc_auc_score(truth, probabilities[:, k])) if both else math.nan,
            "average_precision": (
                float(average_precision_score(truth, probabilities[:, k])) if both else math.nan
            ),
        }
    return result


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
