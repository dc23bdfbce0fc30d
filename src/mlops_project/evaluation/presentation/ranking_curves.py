"""How well images are ranked: ROC, and precision and recall; each function is as in `curves`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import PercentFormatter
from sklearn.metrics import precision_recall_curve, roc_curve

from mlops_project.data.diagnoses import questions
from mlops_project.evaluation import bootstrap, measures
from mlops_project.evaluation.presentation.drawing import (
    BLACK,
    COLOURS,
    DASHES,
    GREY,
    Drawing,
    full_title,
    new_figure,
    short,
)
from mlops_project.evaluation.presentation.reading import (
    Labelled,
    get,
    interval,
    labelled,
    number,
)
from mlops_project.evaluation.subgroups import FEWEST_OF_A_KIND
from mlops_project.metrics import label


def roc(facts: dict[str, Any], predictions: pd.DataFrame) -> Drawing | None:
    """Sensitivity against false alarms over all thresholds."""

    def points(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        false_alarms, sensitivity, _ = roc_curve(truth, scores)
        return false_alarms, sensitivity

    title = "ROC: findings against false alarms"
    drawn = _ranking(facts, predictions, title, "auroc", points)
    if drawn is None:
        return None
    axes = drawn.figure.axes[0]
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    axes.set(xlabel="false alarms (1 – specificity)", ylabel="sensitivity")
    evaluated = get(facts, "operating_points", "malignant", "evaluated")
    x, y = (number(get(evaluated, n, "value")) for n in ("specificity", "sensitivity"))
    if not math.isnan(x + y):
        axes.plot(1 - x, y, "o", color=BLACK, markersize=7, markerfacecolor="white")
        axes.annotate("chosen threshold", (1 - x, y), (8, -11), textcoords="offset points")
    return drawn


def precision_recall(facts: dict[str, Any], predictions: pd.DataFrame) -> Drawing | None:
    """Precision (PPV) against sensitivity over all thresholds."""

    def points(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        precision, recall, _ = precision_recall_curve(truth, scores)
        return recall[:-1], precision[:-1]  # without the point at no alarm at all

    title = "Precision and recall: how many alarms are right"
    drawn = _ranking(facts, predictions, title, "average_precision", points)
    if drawn is not None:
        axes = drawn.figure.axes[0]
        axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)")
    return drawn


def _ranking(
    facts: dict[str, Any],
    predictions: pd.DataFrame,
    title: str,
    measure: str,
    points: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> Drawing | None:
    """A curve for malignant against benign and, where there are more classes, for each of them.

    Args:
        facts, predictions: of the evaluation.
        title: of the picture.
        measure: "auroc" or "average_precision", told with each curve.
        points: of a curve, x and y, for truth and scores.
    """
    known = labelled(facts, predictions)
    curves = [] if known is None else _curves(known)
    enough = [c for c in curves if min(c[1].sum(), (~c[1]).sum()) >= FEWEST_OF_A_KIND]
    if known is None or not enough:
        return None
    name = label(measure)
    figure = new_figure(4.6 + 0.09 * len(enough), full_title(facts, title))
    axes = figure.subplots()
    told = []
    for question, truth, scores, colour, dash in enough:
        where: tuple[str, ...] = ("per_class_ci95", question, measure)
        if question == "malignant":  # its scores are calibrated ones
            where = ("operating_points", question, "ranking", measure, "ci95")
        intervals = get(facts, *where)
        value, low, high = _with_interval(known.lesions, truth, scores, measure, intervals)
        between = "" if math.isnan(low) else f" ({low:.2f} to {high:.2f})"
        x, y = points(truth, scores)
        axes.plot(
            *(x, y),
            color=colour,
            linestyle=dash,
            linewidth=2.2 if colour == BLACK else 1.4,
            drawstyle="default" if measure == "auroc" else "steps-post",
            label=f"{value:.2f}{between}  {short(question, 16)}",
        )
        told.append(f"{short(question)} {value:.2f}{between}")
    figure.legend(
        loc="outside lower center", ncols=min(2, len(enough)), title=f"\n{name} (95 % interval)"
    )
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal")
    for each in (axes.xaxis, axes.yaxis):
        each.set_major_formatter(PercentFormatter(1))
    left_out = [short(c[0]) for c in curves if not any(c is e for e in enough)]
    remark = f" Left out, for too few images: {', '.join(left_out)}." if left_out else ""
    return Drawing(figure, title, f"Curves with their {name}: {', '.join(told)}.{remark}")


def _curves(known: Labelled) -> list[tuple[str, np.ndarray, np.ndarray, str, Any]]:
    """Name, truth, scores, colour and dashes of each curve.

    Calibration may change the order of the images, that of each fold by itself or of more than two
    classes: malignant has the scores that its threshold was chosen on, a class those that its
    metrics were measured on.
    """
    curves: list[tuple[str, np.ndarray, np.ndarray, str, Any]] = []
    malignant = questions(known.names)["malignant"]
    if malignant:
        scores = known.best[:, malignant].sum(axis=1)
        curves.append(("malignant", known.truth("malignant"), scores, BLACK, "-"))
    if len(known.names) > 2 or not malignant:
        for k, name in enumerate(known.names):
            dash = DASHES[k % len(DASHES)]
            colour = COLOURS[k % len(COLOURS)]
            curves.append((name, known.labels == k, known.raw[:, k], colour, dash))
    return curves


def _with_interval(
    lesions: np.ndarray, truth: np.ndarray, scores: np.ndarray, measure: str, known: Any
) -> tuple[float, float, float]:
    """The value of what is drawn, with the interval that is known or else a new one."""

    def both(weights: np.ndarray) -> dict[str, np.ndarray]:
        auroc, average_precision = measures.ranking(weights, truth, scores)
        return {"auroc": auroc, "average_precision": average_precision}

    if known is not None:
        return float(both(np.ones((1, len(truth))))[measure][0]), *interval(known)
    found = bootstrap.with_intervals(lesions, both)[measure]
    return found["value"], *found["ci95"]
