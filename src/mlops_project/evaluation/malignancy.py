"""Seven diagnoses seen as two classes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mlops_project.data.diagnoses import BINARY
from mlops_project.evaluation.decisions import malignant_classes

PREFIX = "probability_"  # of a class's column


def classes_of(table: pd.DataFrame) -> list[str]:
    """The classes that a table of `inference.Predictions` has probabilities of, in their order."""
    return [c.removeprefix(PREFIX) for c in table.columns if c.startswith(PREFIX)]


def benign_and_malignant(probabilities: np.ndarray, names: list[str]) -> np.ndarray:
    """Probabilities [N, 2] of the two, from those [N, K] of the classes of these names."""
    positive = np.isin(np.arange(len(names)), malignant_classes(names))
    return np.stack([probabilities[:, own].sum(axis=1) for own in (~positive, positive)], axis=1)


def as_binary(table: pd.DataFrame) -> pd.DataFrame:
    """The same predictions as benign or malignant.

    `y_pred` is the more probable of the two: malignant also where no single malignant diagnosis is
    the most probable one, but all of them together are.

    Args:
        table: of `inference.Predictions`, of two or seven classes.

    Returns:
        image_id, lesion_id, y_true ("" where it is so), y_pred and the two probabilities.
    """
    names = classes_of(table)
    malignant = [names[k] for k in malignant_classes(names)]
    probabilities = table[[f"{PREFIX}{n}" for n in names]].to_numpy(dtype=float)
    two = benign_and_malignant(probabilities, names)
    result = table[["image_id", "lesion_id"]].copy()
    truth = table["y_true"]
    result["y_true"] = np.where(truth == "", "", np.where(truth.isin(malignant), *BINARY[::-1]))
    result["y_pred"] = np.array(BINARY, dtype=object)[two.argmax(axis=1)]
    result[[f"{PREFIX}{n}" for n in BINARY]] = two
    return result
