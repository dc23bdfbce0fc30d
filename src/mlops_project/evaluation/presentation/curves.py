"""Curves of an evaluation: calibration, decisions, abstention.

Each function takes what metrics.json and predictions.csv hold, and gives None where that is not
enough for a picture that does not mislead.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import PercentFormatter

from mlops_project.evaluation import measures
from mlops_project.evaluation.presentation.drawing import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    VERMILLION,
    Drawing,
    full_title,
    new_figure,
)
from mlops_project.evaluation.presentation.reading import (
    get,
    interval,
    labelled,
    number,
    numbers,
)
from mlops_project.evaluation.subgroups import FEWEST, FEWEST_OF_A_KIND


def reliability(facts: dict[str, Any], predictions: pd.DataFrame) -> Drawing | None:
    """How often the most probable class is right, by how sure the model is of it."""
    known = labelled(facts, predictions)
    if known is None or len(known.labels) < FEWEST:
        return None
    title = "Calibration: is it right as often as it says?"
    figure = new_figure(4.9, full_title(facts, title))
    axes, below = figure.subplots(2, height_ratios=(3.2, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect")
    series = [("as the model gives it", known.raw, ORANGE, "s")]
    if known.calibrated is not None:
        series[0] = ("before calibration", known.raw, ORANGE, "s")
        series.append(("after calibration", known.calibrated, BLUE, "o"))
    told = []
    for i, (label, probabilities, colour, marker) in enumerate(series):
        confidence = probabilities.max(axis=1)
        correct = probabilities.argmax(axis=1) == known.labels
        where = np.minimum((confidence * measures.BINS).astype(int), measures.BINS - 1)
        counts = np.bincount(where, minlength=measures.BINS)
        some = counts > 0
        of_bin = [np.bincount(where, v, measures.BINS)[some] for v in (confidence, correct)]
        x, y = (total / counts[some] for total in of_bin)
        ones = np.ones((1, len(correct)))
        error = measures.calibration_error(ones, confidence, correct)[0]
        axes.plot(x, y, color=colour, linewidth=1.2)
        axes.plot([], [], marker, ls="-", color=colour, label=f"{label}: ECE {error:.3f}")
        for enough in (True, False):
            own = (counts[some] >= FEWEST) == enough
            face = colour if enough else "white"
            axes.plot(x[own], y[own], marker, color=colour, markersize=5, markerfacecolor=face)
        edges = np.arange(measures.BINS) / measures.BINS
        width = 0.4 / measures.BINS
        below.bar(
            edges + (0.1 + i * 0.4) / measures.BINS, counts, width, 0, align="edge", fc=colour
        )
        told.append(
            f"{label}, the expected calibration error is {error:.3f}; the mean confidence is "
            f"{confidence.mean():.0%} and {correct.mean():.0%} are right"
        )
    start = math.floor(10 * min(p.max(axis=1).min() for _, p, *_ in series)) / 10
    axes.plot([], [], "o", color=BLACK, mfc="white", label=f"hollow: fewer than {FEWEST} images")
    axes.set(xlim=(start, 1.01), ylim=(-0.02, 1.02), ylabel="share that is right")
    axes.legend(loc="lower right")
    below.set(xlabel="probability of the most probable class", ylabel="images")
    for each in (below.xaxis, axes.yaxis):
        each.set_major_formatter(PercentFormatter(1))
    text = f"Reliability diagram of {len(known.labels)} images in {measures.BINS} bins: "
    return Drawing(figure, title, text + "; ".join(told) + ".")


def decision_curve(
    facts: dict[str, Any], predictions: pd.DataFrame, question: str
) -> Drawing | None:
    """Net benefit over thresholds, of the model, of treating all and of treating none.

    Vickers and Elkin, Decision curve analysis, Medical Decision Making 2006.
    """
    images = labelled(facts, predictions)
    truth = np.zeros(0, dtype=bool) if images is None else images.truth(question)
    if min(truth.sum(), (~truth).sum()) < FEWEST_OF_A_KIND:
        return None
    point = get(facts, "operating_points", question)
    curve = get(point, "decision_curve")
    columns = [numbers(get(curve, n)) for n in ("threshold", "model", "treat_all")]
    known = np.isfinite(columns).all(axis=0)
    threshold, model, everybody = (c[known] for c in columns)
    if len(threshold) < 2:
        return None
    title = f"Decision curve: {question}"
    figure = new_figure(3.6, full_title(facts, title))
    axes = figure.subplots()
    axes.axhline(0, color=BLACK, linestyle=":", linewidth=1.5, label="treat none")
    axes.plot(threshold, everybody, color=VERMILLION, linestyle="--", label="treat all")
    axes.plot(threshold, model, color=BLUE, linewidth=2, marker="o", markersize=3, label="model")
    top = max(model.max(), everybody.max(), 0.01)
    axes.set(
        ylim=(-0.35 * top, 1.1 * top),
        xlim=(0, 1),
        xlabel=f"probability of {question} from which to treat",
        ylabel="net benefit per image",
    )
    chosen = number(get(point, "threshold"))
    if not math.isnan(chosen):
        axes.axvline(chosen, color=GREY, linestyle="-.", linewidth=1, label="chosen threshold")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="upper right")
    useful = threshold[model > np.maximum(everybody, 0) + 1e-12]
    text = "nowhere better than treating all or none"
    if len(useful):
        text = "better than treating all and treating none "
        text += f"at {len(useful)} of {len(threshold)} thresholds, "
        text += f"the lowest {useful[0]:.0%} and the highest {useful[-1]:.0%}"
    middle = np.abs(threshold - (0.5 if math.isnan(chosen) else chosen)).argmin()
    text = (
        f"Net benefit for {question} over thresholds: the model is {text}. At a threshold of "
        f"{threshold[middle]:.0%} its net benefit is {model[middle]:.3f}, that of treating all "
        f"{everybody[middle]:.3f}, that of treating none 0."
    )
    return Drawing(figure, title, text)


def abstention(facts: dict[str, Any], predictions: pd.DataFrame) -> Drawing | None:
    """The error among the images that the model is surest of, by how many these are."""
    images = labelled(facts, predictions)
    if images is None or len(images.labels) < FEWEST:
        return None
    coverage, error = (numbers(get(facts, "abstention", n)) for n in ("coverage", "error"))
    known = np.isfinite(coverage) & np.isfinite(error)
    coverage, error = coverage[known], error[known]
    if len(coverage) < 2 or np.ptp(coverage) == 0:
        return None
    order = np.argsort(coverage)
    title = "Abstention: leaving out the least sure"
    figure = new_figure(3.4, full_title(facts, title))
    axes = figure.subplots()
    axes.plot(coverage[order], error[order], color=BLUE, linewidth=2)
    told = []
    for point in get(facts, "abstention", "at") or ():
        x, y = number(point.get("kept", point.get("coverage"))), number(point.get("error"))
        if math.isnan(x + y):
            continue
        axes.plot([x, x], interval(point.get("ci95")), color=BLACK, linewidth=1)
        axes.plot(x, y, "o", color=BLACK, markersize=4)
        axes.annotate(f"{y:.0%}", (x, y), (-4, 5), textcoords="offset points", ha="right")
        told.append(f"{y:.0%} of the surest {x:.0%}")
    axes.set(
        xlim=(0, 1.02),
        xlabel="share of images that the model answers",
        ylabel="share that is wrong",
    )
    axes.set_ylim(bottom=0)
    for each in (axes.xaxis, axes.yaxis):
        each.set_major_formatter(PercentFormatter(1))
    ends = f"{error[order][-1]:.0%} with {coverage[order][-1]:.0%} answered"
    text = f"Share of wrong answers: {', '.join(told) or ends}."
    return Drawing(figure, title, text)
