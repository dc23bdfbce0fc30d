"""An evaluation in plain words: what a clinician may want to know first."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from mlops_project.data.diagnoses import questions
from mlops_project.evaluation.decisions import COVERAGES
from mlops_project.evaluation.presentation.reading import (
    Labelled,
    class_names,
    get,
    labelled,
    metric,
    number,
)
from mlops_project.evaluation.presentation.wording import by_chance, joined, of_100
from mlops_project.evaluation.subgroups import FEWEST_OF_A_KIND
from mlops_project.metrics import label

QUESTIONS = {  # what is found, what is not to be, and the class of it
    "malignant": ("malignant lesions", "benign ones", "malignant"),
    "melanoma": ("melanomas", "other lesions", "mel"),
}


def summary(facts: dict[str, Any], predictions: pd.DataFrame) -> dict[str, str]:
    """What can be said of an evaluation, a sentence or two by topic."""
    names = class_names(facts, predictions)
    images = labelled(facts, predictions)
    found = {
        "Right answers": _answers(facts, names),
        "Malignant lesions": _findings(facts, names, images, "malignant"),
        "Melanomas": _findings(facts, names, images, "melanoma"),
        "How sure it is": _calibration(facts, images),
        "Where it may name several classes": _sets(facts),
        "Where it may leave images to a person": _abstention(facts),
        "Groups": largest_gap(facts),
    }
    return {topic: text for topic, text in found.items() if text}


def largest_gap(facts: dict[str, Any]) -> str:
    """The largest difference between groups, in words; empty where there is none."""
    gap = get(facts, "subgroups", "largest_gap")
    difference = number(get(gap, "difference"))
    if math.isnan(difference) or difference == 0:
        return ""
    attribute, measure, *of = (gap[key] for key in ("attribute", "measure", "worse", "better"))
    known = get(facts, "subgroups", "groups", attribute)
    worse, better = (metric(get(known, group, measure)) for group in of)
    text = (
        "The largest gap between groups: malignant is told from benign worse for "
        f"{label(attribute)} “{of[0]}” than for “{of[1]}”: "
        f"{label(measure)} {_with_interval(worse)} against {_with_interval(better)}, "
        f"{difference:.3f} lower."
    )
    return f"{text} {by_chance(gap)}"


def _with_interval(known: tuple[float, float, float]) -> str:
    value, low, high = known
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" + ("" if math.isnan(low) else f" ({low:.3f} to {high:.3f})")


def _answers(facts: dict[str, Any], names: list[str]) -> str:
    known = facts.get("metrics")
    accuracy = metric(get(known, "accuracy"))
    counts = [number(get(facts, "per_class", name, "n_images")) for name in names]
    measured = min(sum(counts), number(facts.get("n_images")))  # some may lack a diagnosis
    if math.isnan(accuracy[0]) or measured < FEWEST_OF_A_KIND:
        return ""
    choice = f"one of {len(names)} classes" if len(names) != 2 else " or ".join(names)
    text = f"The model answers each image with {choice}. Of 100 images it gets {of_100(*accuracy)}"
    balanced = metric(get(known, "balanced_accuracy"))
    if len(names) > 2 and not math.isnan(balanced[0]):
        text += f" right; where each class counts the same, {of_100(*balanced)}"
        return text + "."
    return text + " right."


def _findings(
    facts: dict[str, Any], names: list[str], images: Labelled | None, question: str
) -> str:
    """How many it finds at the threshold or, where there is none, by the most probable class."""
    of, rest, name = QUESTIONS[question]
    point = get(facts, "operating_points", question)
    found = {n: metric(get(point, "evaluated", n)) for n in ("sensitivity", "specificity", "ppv")}
    where = "other folds" if get(facts, "calibration", "folds") else "validation images"
    how = f"at the threshold chosen on the {where}"
    threshold = number(get(point, "threshold"))
    if not math.isnan(threshold):
        classes = [names[k] for k in questions(names).get(question, [])]
        together = f", {joined(classes)} together" if len(classes) > 1 else ""
        how += f" (a calibrated probability of {100 * threshold:.0f} %{together})"
    if math.isnan(found["sensitivity"][0]):
        own, ci95 = (get(facts, key, name) for key in ("per_class", "per_class_ci95"))
        found = {n: metric({"value": get(own, n), "ci95": get(ci95, n)}) for n in found}
        how = "where it is the most probable class (no threshold was chosen)"
    if math.isnan(found["sensitivity"][0]):
        return ""
    count = FEWEST_OF_A_KIND if images is None else int(images.truth(question).sum())
    if count < FEWEST_OF_A_KIND:
        there = "is 1 image" if count == 1 else f"are {count} images"
        return f"There {there} of {of}: too few to say how many it finds."
    text = f"Of 100 images of {of} it finds {of_100(*found['sensitivity'])} {how}"
    value, low, high = found["specificity"]
    if not math.isnan(value):
        alarms = of_100(1 - value, 1 - high, 1 - low)
        text += f"; of 100 of {rest} it raises a false alarm for {alarms}"
    if not math.isnan(found["ppv"][0]):
        text += f". Of 100 alarms {of_100(*found['ppv'])} are right here"
        text += "; where such lesions are rarer than here, fewer are"
    return text + "."


def _calibration(facts: dict[str, Any], known: Labelled | None) -> str:
    before = metric(get(facts, "calibration", "before", "ece"))
    after = metric(get(facts, "calibration", "after", "ece"))
    calibrated = not math.isnan(after[0])
    value, low, high = after if calibrated else metric(get(facts, "metrics", "ece"))
    if known is None or math.isnan(value):
        return ""
    probabilities = known.best if calibrated else known.raw
    excess = float(probabilities.max(axis=1).mean())
    excess -= float((probabilities.argmax(axis=1) == known.labels).mean())
    between = "" if math.isnan(low) else f", 95 % interval {100 * low:.1f} to {100 * high:.1f}"
    text = f"How sure it says it is differs from how often it is right by {100 * value:.1f} points"
    text += (
        f" of 100 on average ({'after calibration' if calibrated else 'not calibrated'}{between}"
    )
    if calibrated and not math.isnan(before[0]):
        text += f"; before it {100 * before[0]:.1f}"
    text += "); "
    if abs(excess) < 0.02:
        return text + "it is neither too sure on the whole nor too unsure."
    return text + f"on the whole it is {'too sure' if excess > 0 else 'not sure enough'}."


def _sets(facts: dict[str, Any]) -> str:
    sets = get(facts, "prediction_sets", str(COVERAGES[0]))
    coverage, size = number(get(sets, "coverage")), number(get(sets, "mean_size"))
    if math.isnan(coverage + size):
        return ""
    return (
        f"It names {size:.1f} classes on average, so that the true one is among them in at least "
        f"{100 * COVERAGES[0]:.0f} of 100 images of each class; here it was among them in "
        f"{of_100(coverage)} of 100."
    )


def _abstention(facts: dict[str, Any]) -> str:
    points = {
        number(p.get("kept", p.get("coverage"))): number(p.get("error"))
        for p in get(facts, "abstention", "at") or ()
    }
    known = {c: e for c, e in points.items() if not math.isnan(c + e)}
    partial = [c for c in known if c < 1]
    if not partial or 1.0 not in known:
        return ""
    share = min(partial, key=lambda c: abs(c - 0.8))
    return (
        f"Without the {100 * (1 - share):.0f} % of the images that it is least sure of, "
        f"{of_100(known[share])} of 100 of its answers are wrong; with them, "
        f"{of_100(known[1.0])}."
    )
