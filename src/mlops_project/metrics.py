"""What metrics are called, and their values while a run goes on.

Evaluations have theirs from `evaluation.measures`.
"""

from __future__ import annotations

import numpy as np

from mlops_project.config import METRICS

NAMES = tuple(name for name in METRICS if name != "loss")
# Of those whose names are no words
LABELS = {
    "f1_score": "F1 score",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "brier": "Brier score",
    "ppv": "PPV",
    "npv": "NPV",
    "ece": "ECE",
    "class_wise_ece": "class-wise ECE",
}
SHORT = {"balanced_accuracy": "bal. acc.", "f1_score": "F1", "average_precision": "AP"}


def label(name: str, *, short: bool = False) -> str:
    """What a metric is called in texts, or `short` where a table is narrow."""
    if short and name in SHORT:
        return SHORT[name]
    return LABELS.get(name, name.replace("_", " "))


def monitor_mode(metric: str) -> str:
    """Whether a smaller or a larger value of a metric is better: "min" or "max"."""
    return "min" if metric.endswith("_loss") else "max"


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
