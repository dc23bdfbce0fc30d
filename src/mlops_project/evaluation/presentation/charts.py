"""Charts of an evaluation by class and by group, as `curves` has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from sklearn.metrics import confusion_matrix as count_pairs

from mlops_project.evaluation.presentation.drawing import (
    BLUE,
    GREY,
    VERMILLION,
    WIDTH,
    Drawing,
    full_title,
    new_figure,
    short,
)
from mlops_project.evaluation.presentation.reading import get, labelled, metric, number
from mlops_project.evaluation.subgroups import FEWEST


def confusion_matrix(facts: dict[str, Any], predictions: pd.DataFrame) -> Drawing | None:
    """Which class is taken for which."""
    known = labelled(facts, predictions)
    if known is None:
        return None
    title = "Confusion matrix: what is taken for what"
    truth, chosen = known.labels, known.raw.argmax(axis=1)
    figure = matrix(truth, chosen, known.names, full_title(facts, title))
    told = []
    for k, name in enumerate(known.names):
        own = chosen[truth == k]
        if not len(own):
            continue
        text = f"of {len(own)} {short(name)}, {(own == k).sum()} are right"
        wrong = own[own != k]
        if len(wrong):
            other = np.bincount(wrong).argmax()
            text += f" and {(own == other).sum()} are taken for {short(known.names[other])}"
        told.append(text)
    return Drawing(figure, title, f"True against predicted class: {'; '.join(told)}.")


def matrix(truth: np.ndarray, chosen: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Counts, coloured by the share of each true class.

    Args:
        truth, chosen: indices of classes, int64 [N].
        names: of the classes, in the order of rows and columns.
        title: above it.
    """
    counts = count_pairs(truth, chosen, labels=range(len(names)))
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    figure = new_figure(WIDTH if len(names) > 2 else 3.4, title)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = min(10.0, 58 / len(names)) if len(names) > 5 else 10
    for (i, j), count in np.ndenumerate(counts):
        colour = "white" if shares[i, j] > 0.55 else "black"
        text = f"{count:,}\n{shares[i, j]:.0%}" if count else "0" if totals[i] else "–"
        axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=size)
    ticks = range(len(names))
    labels = [short(name, 14) for name in names]
    rotation = 45 if len(names) > 2 and max(map(len, labels)) > 5 else 0
    axes.set_xticks(ticks, labels, rotation=rotation)
    axes.set_yticks(ticks, [f"{n}\n({t:,})" for n, t in zip(labels, totals[:, 0], strict=True)])
    axes.set(xlabel="predicted (counts, and shares of the true class)", ylabel="true (images)")
    axes.grid(False)
    return figure


def prediction_sets(facts: dict[str, Any], predictions: pd.DataFrame) -> Drawing | None:
    """How many classes the prediction sets of the lowest coverage name, by true class."""
    known, found = labelled(facts, predictions), get(facts, "prediction_sets")
    if known is None or known.calibrated is None or not found or len(known.labels) < FEWEST:
        return None
    level = min(found, key=float)
    of_class = [get(found, level, "per_class", name) for name in known.names]
    thresholds = np.array([number(get(own, "threshold")) for own in of_class])
    if np.isnan(thresholds).any():
        return None
    sizes = (known.calibrated >= thresholds).sum(axis=1)
    rows: list[tuple[str, np.ndarray, float]] = [
        ("all", np.ones(len(sizes), bool), number(get(found, level, "coverage")))
    ]
    rows += [
        (short(name, 14), known.labels == k, number(get(own, "coverage")))
        for k, (name, own) in enumerate(zip(known.names, of_class, strict=True))
        if (known.labels == k).any()
    ]
    title = f"Prediction sets for {float(level):.0%}: how many classes they name"
    figure = new_figure(1.9 + 0.36 * len(rows), full_title(facts, title))
    axes = figure.subplots()
    places = np.arange(len(rows))
    left = np.zeros(len(rows))
    blues = colormaps["Blues_r"](np.linspace(0.1, 0.85, max(2, len(known.names))))
    for size in range(len(known.names) + 1):
        shares = np.array([(sizes[own] == size).mean() for _, own, _ in rows])
        if not shares.any():
            continue
        colour = VERMILLION if size == 0 else tuple(blues[size - 1])
        label = "none" if size == 0 else str(size)
        axes.barh(places, shares, left=left, color=colour, label=label, ec="white", lw=0.5)
        dark = 0 < size <= len(known.names) / 2
        for place, share in enumerate(shares):
            if share >= 0.09:
                x = left[place] + share / 2
                shade = "white" if dark else "black"
                axes.text(x, place, f"{share:.0%}", ha="center", va="center", c=shade, fontsize=8)
        left += shares
    for place, (_, _, coverage) in enumerate(rows):
        text = "–" if math.isnan(coverage) else f"{coverage:.0%}"
        axes.text(1.02, place, text, va="center")
    axes.text(1.02, -0.75, "hold the\ntrue one", va="bottom", fontsize=8)
    axes.set_yticks(places, [f"{name} ({own.sum():,})" for name, own, _ in rows])
    axes.set(xlim=(0, 1), xlabel="share of the images")
    axes.invert_yaxis()
    axes.grid(False)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(loc="outside lower center", ncols=8, title="classes in the set", handlelength=1)
    told = [
        f"{name} {sizes[own].mean():.1f} classes"
        + ("" if math.isnan(coverage) else f", {coverage:.0%} hold the true one")
        for name, own, coverage in rows
    ]
    return Drawing(figure, title, f"Mean size of the sets: {'; '.join(told)}.")


def subgroups(facts: dict[str, Any], predictions: pd.DataFrame) -> Drawing | None:
    """AUROC of malignant against benign in each group, with its interval."""
    groups = get(facts, "subgroups", "groups") or {}
    # None: the attribute of those below it. A clinic or a site for each image would make a picture
    # of thousands of rows without a value.
    rows: list[tuple[str, dict[str, Any] | None]] = []
    untold = 0
    values: dict[str, float] = {}
    ends = [0.9]
    for attribute, known in groups.items():
        heading = short(attribute, 24).replace("_", " ")
        told_of = []
        for group, own in known.items():
            value, *bounds = metric(get(own, "auroc"))
            if math.isnan(value):
                untold += 1
                continue
            told_of.append((short(group), own))
            values[f"{heading}: {short(group)}"] = value
            ends += [value, *bounds]
        rows += [(heading, None), *told_of] if told_of else []
    if not values:
        return None
    title = "Subgroups: AUROC of malignant against benign"
    figure = new_figure(1.5 + 0.19 * len(rows), full_title(facts, title))
    axes = figure.subplots()
    low = max(0.0, math.floor(10 * np.nanmin(ends) - 0.5) / 10)
    for place, (_, own) in enumerate(rows):
        if own is None:
            axes.axhline(place - 0.5, color=GREY, linewidth=0.5)
            continue
        value, start, end = metric(own.get("auroc"))
        count = f"{number(own.get('n_images')):,.0f} ({number(own.get('n_malignant')):,.0f})"
        axes.text(1.03, place, count.replace("nan", "–"), va="center", fontsize=8)
        axes.plot([start, end], [place, place], color=BLUE, linewidth=1.6)
        axes.plot(value, place, "s", color=BLUE, markersize=4.5)
    axes.text(1.03, -1, "images\n(malignant)", va="bottom", fontsize=8)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    for text, (_, own) in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_fontweight("bold" if own is None else "normal")
    axes.tick_params(axis="y", length=0)
    few = f"\n{untold:,} group{'s' * (untold != 1)} with too few lesions" if untold else ""
    axes.set(xlim=(low, 1), ylim=(len(rows) - 0.5, -0.7), xlabel=f"AUROC, 95 % interval{few}")
    axes.grid(axis="y", visible=False)
    worst, best = (f(values, key=lambda g: values[g]) for f in (min, max))
    told = (
        f"AUROC with its 95 % interval in {len(values)} groups: the lowest is {values[worst]:.2f} "
        f"({worst}), the highest {values[best]:.2f} ({best})"
    )
    return Drawing(figure, title, told + (f"; without a value: {untold}." if untold else "."))
