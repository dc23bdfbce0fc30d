"""Seven diagnoses seen as two classes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mlops_project.data.diagnoses import class_names, malignant_classes

PREFIX = "probability_"  # of a class's column


def classes_of(predictions: pd.DataFrame) -> list[str]:
    """The classes that a table of `inference.Predictions` has probabilities of, in their order."""
    return [c.removeprefix(PREFIX) for c in predictions.columns if c.startswith(PREFIX)]


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
    probabilities = predictions[[f"{PREFIX}{n}" for n in names]].to_numpy(dtype=float)
    two = np.array(class_names(2), dtype=object)
    table = predictions[["image_id", "lesion_id"]].copy()
    if "y_true" in predictions:
        malignant = predictions["y_true"].isin([names[k] for k in positive])
        table["y_true"] = two[malignant.to_numpy(dtype=int)]
    negative = [k for k in range(len(names)) if k not in positive]
    summed = np.stack([probabilities[:, k].sum(axis=1) for k in (negative, positive)], axis=1)
    table["y_pred"] = two[summed.argmax(axis=1)]
    table[[f"{PREFIX}{n}" for n in two]] = summed
    return table
