"""Reading what an evaluation has found, where any of it may be missing or not a number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mlops_project.data.diagnoses import questions
from mlops_project.evaluation.predictions_table import CALIBRATED, classes_of, columns_of


def get(facts: Any, *keys: str) -> Any:
    """What lies under keys within keys; None where one of them is missing."""
    for key in keys:
        facts = facts.get(key) if facts else None
    return facts


def number(value: Any) -> float:
    """A finite number as it is; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return math.nan
    return float(value) if math.isfinite(value) else math.nan


def numbers(values: Any) -> np.ndarray:
    """Each of them by `number`, float [N]; N = 0 where there is no list."""
    return np.array([number(value) for value in values or ()], dtype=float)


def metric(value: Any) -> tuple[float, float, float]:
    """A metric's value and the ends of its interval, NaN for what is missing."""
    return number(get(value, "value")), *interval(get(value, "ci95"))


def interval(bounds: Any) -> tuple[float, float]:
    """The ends of an interval; NaN both where one is missing."""
    known = numbers(bounds)
    if len(known) != 2 or np.isnan(known).any():
        return math.nan, math.nan
    return float(known[0]), float(known[1])


def present(facts: Any) -> Any:
    """The same without the entries of dictionaries that are None or not a finite number."""
    if isinstance(facts, list):
        return [present(value) for value in facts]
    if not isinstance(facts, dict):
        return facts
    return {
        key: present(value)
        for key, value in facts.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def flat(settings: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested dictionaries as pairs of a dotted key and a value."""
    for key, value in (settings or {}).items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def operating_points(facts: dict[str, Any]) -> dict[str, Any]:
    """Thresholds and what they come to, by question: of the image alone, then with patient data."""
    with_patients = get(facts, "with_patient_data", "operating_points") or {}
    return dict(facts.get("operating_points") or {}) | {
        f"{question}, with patient data": point for question, point in with_patients.items()
    }


def class_names(facts: dict[str, Any], predictions: pd.DataFrame) -> list[str]:
    """The names of the K classes, in the order of the probabilities."""
    columns = classes_of(predictions)
    names = facts.get("class_names") or []
    return names if len(names) > 1 and len(names) >= len(columns) else columns


@dataclass(frozen=True)
class Labelled:
    """The images whose true class is known.

    Attributes:
        names: of the K classes.
        lesions: which lesion each image shows, [N].
        labels: int64 [N].
        raw: probabilities, float [N, K].
        calibrated: the same after calibration; None where there is none.
    """

    names: list[str]
    lesions: np.ndarray
    labels: np.ndarray
    raw: np.ndarray
    calibrated: np.ndarray | None

    @property
    def best(self) -> np.ndarray:
        """The calibrated probabilities, else those that the model gives."""
        return self.raw if self.calibrated is None else self.calibrated

    def truth(self, question: str) -> np.ndarray:
        """Which images are "malignant" or "melanoma", bool [N]."""
        return np.isin(self.labels, questions(self.names).get(question, []))


def labelled(facts: dict[str, Any], predictions: pd.DataFrame) -> Labelled | None:
    """The images with a true class and probabilities; None where there is not one."""
    names = class_names(facts, predictions)
    if not names or not {"y_true", *columns_of(names)} <= set(predictions.columns):
        return None
    index = {name: k for k, name in enumerate(names)}
    labels = predictions["y_true"].map(index).to_numpy(dtype=float)
    raw = _probabilities(columns_of(names), predictions)
    known = ~np.isnan(labels) & np.isfinite(raw).all(axis=1)
    if not known.any():
        return None
    calibrated = None
    if set(columns_of(names, CALIBRATED)) <= set(predictions.columns):
        calibrated = _probabilities(columns_of(names, CALIBRATED), predictions)[known]
        calibrated = calibrated if np.isfinite(calibrated).all() else None
    lesions = predictions.get("lesion_id", pd.Series(range(len(predictions)))).astype(str)
    return Labelled(
        names, lesions.to_numpy()[known], labels[known].astype(int), raw[known], calibrated
    )


def _probabilities(columns: list[str], predictions: pd.DataFrame) -> np.ndarray:
    numeric = predictions[columns].apply(pd.to_numeric, errors="coerce")
    return numeric.to_numpy(dtype=float)
