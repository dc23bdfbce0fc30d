"""What predictions are worth: every measure with its interval, by image and by lesion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mlops_project.evaluation import bootstrap, measures
from mlops_project.evaluation.predictions_table import arrays, columns_of
from mlops_project.metrics import label

FEW_LESIONS = 20  # of a class: with fewer, an interval of AUROC holds the truth too rarely


def measure(names: list[str], predictions: pd.DataFrame) -> dict[str, Any]:
    """What the predictions are worth, as `metrics.json` holds it: by image, and by lesion.

    A lesion's probabilities are the mean of its images', its class the most frequent one.

    Args:
        names: of the classes.
        predictions: a row an image with a known class, at least one; see `inference.Predictions`.
    """
    lesions = predictions.groupby("lesion_id", sort=False).agg(
        {**dict.fromkeys(columns_of(names), "mean"), "y_true": most_frequent}
    )
    by_image = _measured(predictions, predictions["lesion_id"].to_numpy(), names)
    by_lesion = _measured(lesions, lesions.index.to_numpy(), names)
    return {
        **by_image,
        "by_lesion": by_lesion,
    }


def _measured(table: pd.DataFrame, lesions: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Each metric with its interval, over all classes and for each class against the rest.

    Args:
        table: y_true and the probabilities, one row an image or lesion.
        lesions: of each row, which the bootstrap draws.
        names: of the classes.
    """
    labels, probabilities = arrays(names, table)

    def all_measures(weights: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        each = [measures.against_rest(weights, labels, probabilities, k) for k in range(len(names))]
        groups = {"": measures.overall(weights, labels, probabilities, each)}
        groups |= dict(zip(names, each, strict=True))
        return {(group, n): values for group in groups for n, values in groups[group].items()}

    shares = {("", "accuracy"): np.ones(len(labels), dtype=bool)}
    for k, name in enumerate(names):
        own = measures.seen_by(labels == k, probabilities.argmax(axis=1) == k)
        shares |= {(name, n): images for n, images in own.items()}
    biased = [("", name) for name in measures.BIASED]
    found = bootstrap.with_intervals(lesions, all_measures, shares, biased)
    counts = {
        name: {
            "n_images": int((labels == k).sum()),
            "n_lesions": len(np.unique(lesions[labels == k])),
        }
        for k, name in enumerate(names)
    }
    return {
        "metrics": {n: known for (group, n), known in found.items() if not group},
        "per_class": {
            name: counts[name] | {n: v["value"] for (group, n), v in found.items() if group == name}
            for name in names
        },
        "per_class_ci95": {
            name: {n: v["ci95"] for (group, n), v in found.items() if group == name}
            for name in names
        },
    }


def most_frequent(classes: pd.Series) -> str:
    """The most frequent of a lesion's classes; of equally frequent ones the first by alphabet."""
    return classes.iloc[0] if len(classes) == 1 else classes.mode().iloc[0]


def unmeasured(facts: dict[str, Any]) -> list[str]:
    """Why values of `measure` do not exist, or are not to be relied on, in sentences."""
    sentences = _unmeasured(facts)
    whole = [text for text in _unmeasured(facts["by_lesion"]) if text not in sentences]
    if sum(known["n_images"] for known in facts["per_class"].values()) < facts.get("n_images", 0):
        sentences = [f"of the images with a diagnosis: {text}" for text in sentences]
    sentences += [f"by lesion: {text}" for text in whole]
    few = [
        f"{name} ({known['n_lesions']})"
        for name, known in facts["per_class"].items()
        if 0 < known["n_lesions"] < FEW_LESIONS
    ]
    if few:
        sentences.append(
            f"fewer than {FEW_LESIONS} lesions of {', '.join(few)}: intervals of AUROC and average "
            "precision are too narrow there"
        )
    return sentences


def _unmeasured(facts: dict[str, Any]) -> list[str]:
    absent = [name for name, known in facts["per_class"].items() if not known["n_images"]]
    sentences = []
    if absent:
        text = f"no image of {', '.join(absent)}: no sensitivity, AUROC and average precision of it"
        sentences.append(text if len(absent) == 1 else text[:-2] + "them")
    never = [
        name
        for name, known in facts["per_class"].items()
        if known["n_images"] and np.isnan(known["ppv"])
    ]
    if never:
        sentences.append(f"no image is taken for {', '.join(never)}: no PPV of such a class")
    always = [n for n, known in facts["per_class"].items() if np.isnan(known["npv"])]
    if always:
        sentences.append(f"every image is taken for {', '.join(always)}: no NPV of such a class")
    metrics = facts["metrics"]
    missing = [name for name, metric in metrics.items() if np.isnan(metric["value"])]
    if "f1_score" in missing:
        of = list(facts["per_class"])[1]
        sentences.append(f"no {label('f1_score')}: no image of {of}, and none taken for it")
    ranked = [name for name in missing if name != "f1_score"]
    if ranked:
        shown = ", ".join(map(label, ranked))
        sentences.append(f"no {shown}: that takes images of two classes")
    wide = [n for n, m in metrics.items() if n not in missing and np.isnan(m["ci95"][0])]
    if wide:
        shown = ", ".join(map(label, wide))
        sentences.append(
            f"no interval of {shown}: resampled lesions do not differ, or most lack a class"
        )
    return sentences
