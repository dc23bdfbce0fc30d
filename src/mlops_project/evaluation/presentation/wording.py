"""What the numbers of an evaluation are called, what they mean, and what to beware of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mlops_project.evaluation.presentation.reading import get, number

MEANINGS = {
    "accuracy": "share of images whose most probable class is the true one",
    "balanced_accuracy": "mean sensitivity of the classes; the measure of the ISIC 2018 challenge",
    "f1_score": "of malignant for two classes, else the mean over the classes",
    "macro_f1": "harmonic mean of PPV and sensitivity, averaged over the classes",
    "auroc": "chance that of two images, one of the class, this one gets the higher probability",
    "average_precision": "area under the curve of precision and recall",
    "brier": "squared distance of the probabilities from the truth; smaller is better",
    "log_loss": "mean of -log of the true class's probability; smaller is better",
    "ece": "mean gap between how sure the model is and how often it is right; smaller is better",
    "class_wise_ece": "the same gap for the probability of every class; smaller is better",
    "sensitivity": "share of the images of the class that are found",
    "specificity": "share of the other images that raise no alarm",
    "ppv": "share of the alarms that are right",
    "npv": "share of the images without an alarm that are rightly without",
}
MISSING = {  # why there may be no value
    "sensitivity": "no image of the class",
    "specificity": "no image of another class",
    "ppv": "no image was taken for the class",
    "npv": "every image was taken for the class",
    "f1_score": "no image of the class, and none taken for it",
    "auroc": "needs images of the class and of others",
    "average_precision": "needs images of the class and of others",
}
NO_VALUE = "not known, or not defined for these images"
NO_INTERVAL = "resampling the lesions gives no interval"
SIGNIFICANT = 0.05  # a p-value below it is more than chance
NOT_FOR = (
    "For research and education only. This is not a medical device: do not use it to diagnose, to "
    "sort patients or to reassure anybody."
)


def of_100(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """A share as a count of a hundred, with its interval."""
    if math.isnan(value):
        return "an unknown number"
    count = f"about {100 * value:.0f}"
    if 0 < value < 0.005:
        count = "fewer than 1"
    elif 0.995 < value < 1:
        count = "more than 99"
    if math.isnan(low) or math.isnan(high) or low == high:  # all resamples alike tell nothing
        return count
    return f"{count} (95 % interval {100 * low:.0f} to {100 * high:.0f})"


def joined(names: Sequence[str]) -> str:
    """A list within a sentence: a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def summed(columns: Sequence[str] | None) -> str:
    """What a threshold is compared with, by its `applies_to`; empty where that is missing."""
    if not columns:
        return ""
    return f"sum of {joined(columns)}" if len(columns) > 1 else columns[0]


def by_chance(gap: Any) -> str:
    """Whether chance may be all there is to the largest gap between groups, a sentence."""
    p_value, pairs = (number(get(gap, key)) for key in ("p_value", "n_pairs"))
    if math.isnan(p_value + pairs):
        return "This may be chance: how probable that is could not be told."
    which = f"the largest of {pairs:.0f} differences" if pairs > 1 else "the only difference"
    told = f"it is {which}, p = {p_value:.2g}."
    return told.capitalize() if p_value < SIGNIFICANT else f"This may be chance: {told}"


def warnings(facts: dict[str, Any]) -> list[str]:
    """What makes the numbers mean less than they seem to, the gravest first."""
    found = []
    if facts.get("synthetic"):
        found.append(
            "SYNTHETIC DATA: the images were made by a program. Nothing here says anything about "
            "real skin lesions."
        )
    status, sentence = get(facts, "leaks", "status"), get(facts, "leaks", "sentence")
    if status == "overlap":
        text = "Some of these images, or their lesions, were in the training."
        if not get(facts, "leaks", "excluded"):
            text += " The numbers flatter the model."
        found.append(sentence or text)
    elif status != "clean":
        found.append(sentence or "Whether images of the training are among these is unknown.")
    chose = get(facts, "leaks", "n_shared_with_validation")
    if facts.get("split") in ("val", "out-of-fold") or chose:
        found.append(
            "There are validation images among these, which chose the best epoch: on images that "
            "had no say in the training the model does worse."
        )
    excluded = get(facts, "leaks", "excluded")
    if facts.get("split") == "all" and not excluded and status == "overlap":
        found.append("All images of the folder were taken, those of the training among them.")
    if "metrics" not in facts:
        found.append(
            "No diagnoses of these images are known: nothing tells how often the model is right."
        )
    caution = get(facts, "out_of_distribution", "caution")
    found += ([caution] if caution else []) + (facts.get("gaps") or [])
    return list(dict.fromkeys(text[:1].upper() + text[1:] for text in found))
