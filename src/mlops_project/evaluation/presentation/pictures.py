"""Pictures of an evaluation: which there are, and their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from mlops_project.evaluation.presentation import charts, curves, ranking_curves
from mlops_project.evaluation.presentation.drawing import Drawing, save, style

# By the name of the file, in the order of the page
PICTURES: dict[str, Callable[[dict[str, Any], pd.DataFrame], Drawing | None]] = {
    "confusion_matrix": charts.confusion_matrix,
    "roc": ranking_curves.roc,
    "precision_recall": ranking_curves.precision_recall,
    "decision_curve_malignant": partial(curves.decision_curve, question="malignant"),
    "decision_curve_melanoma": partial(curves.decision_curve, question="melanoma"),
    "reliability": curves.reliability,
    "prediction_sets": charts.prediction_sets,
    "subgroups": charts.subgroups,
    "abstention": curves.abstention,
}


@dataclass(frozen=True)
class Picture:
    """A picture that has been written.

    Attributes:
        path: of the PNG.
        title: a few words.
        alternative_text: what it shows, with its main numbers, for those who cannot see it.
    """

    path: Path
    title: str
    alternative_text: str


def draw_pictures(facts: dict[str, Any], predictions: pd.DataFrame, folder: Path) -> list[Picture]:
    """Draws every picture that there is enough for, as a PNG.

    Args:
        facts: what metrics.json holds; an entry may be missing, and a number NaN or None.
        predictions: what predictions.csv holds.
        folder: to write to; one of these pictures that an earlier evaluation has left there and
            that this one has not enough for is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    with style():
        for name, draw in PICTURES.items():
            path = folder / f"{name}.png"
            drawn = draw(facts, predictions)
            if drawn is None:
                path.unlink(missing_ok=True)
                continue
            save(drawn.figure, path)
            title = drawn.title + (" – SYNTHETIC DATA" if facts.get("synthetic") else "")
            pictures.append(Picture(path, title, drawn.alternative_text))
    return pictures
