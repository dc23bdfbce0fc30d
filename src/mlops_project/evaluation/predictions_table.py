"""The table of predictions: its columns of classes, as arrays or seen as two classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from mlops_project.data.diagnoses import class_names, malignant_classes

# Kinds of columns, one for each class
PROBABILITY, CALIBRATED, WITH_PATIENTS = "probability", "calibrated", "with_patient_data"


def classes_of(predictions: pd.DataFrame) -> list[str]:
    """The classes that a table of `inference.Predictions` has probabilities of, in their order."""
    prefix = f"{PROBABILITY}_"
    return [c.removeprefix(prefix) for c in predictions.columns if c.startswith(prefix)]


def columns_of(names: Iterable[str], kind: str = PROBABILITY) -> list[str]:
    """The columns of one kind that a table has for these classes."""
    return [f"{kind}_{name}" for name in names]


def arrays(names: Sequence[str], predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Labels, int64 [N], -1 where unknown, and probabilities, float64 [N, K].

    To float32's rounding, a row of these sums to 1.
    """
    labels = pd.Index(list(names)).get_indexer(pd.Index(predictions["y_true"]))
    return labels, predictions[columns_of(names)].to_numpy(dtype=float)


def as_binary(predictions: pd.DataFrame) -> pd.DataFrame:
    """The same predictions as benign or malignant.

    A probability is the sum of its diagnoses' probabilities, and `y_pred` the more probable of the
    two: malignant also where no single malignant diagnosis is the most probable one.

    Args:
        predictions: a table of `inference.Predictions`, of two or seven classes.

    Returns:
        image_id, lesion_id, y_true where it is known, y_pred, probability_benign and
        probability_malignant.
    """
    names = classes_of(predictions)
    positive = malignant_classes(names)
    probabilities = predictions[columns_of(names)].to_numpy(dtype=float)
    two = np.array(class_names(2), dtype=object)
    table = predictions[["image_id", "lesion_id"]].copy()
    if "y_true" in predictions:
        malignant = predictions["y_true"].isin([names[k] for k in positive])
        table["y_true"] = two[malignant.to_numpy(dtype=int)]
    negative = [k for k in range(len(names)) if k not in positive]
    summed = np.stack([probabilities[:, k].sum(axis=1) for k in (negative, positive)], axis=1)
    table["y_pred"] = two[summed.argmax(axis=1)]
    table[columns_of(two)] = summed
    return table
