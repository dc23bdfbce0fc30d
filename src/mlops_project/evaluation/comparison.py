"""Whether one model is better than another on the same images, or only luckier."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from mlops_project.errors import InputError
from mlops_project.evaluation import bootstrap, measures
from mlops_project.evaluation.evaluator import FEW_LESIONS, most_frequent
from mlops_project.evaluation.predictions_table import arrays, as_binary, classes_of, columns_of

COARSELY = "the two models have different classes: compared as benign against malignant"


def compare(
    names: list[str],
    first: pd.DataFrame,
    second: pd.DataFrame,
    checkpoint: str,
    *,
    trained_on: Collection[str] = (),
) -> dict[str, Any]:
    """Compares two models on the images that both were asked about.

    Both are measured on the same resamples of lesions, so that what makes an image hard for both
    cancels out of the difference. Where one tells two classes apart and the other seven, both are
    compared as benign against malignant.

    Args:
        names: classes of the first, in the order of its probabilities.
        first, second: tables of `inference.Predictions`, only with images of a known class.
        checkpoint: of the second.
        trained_on: ids of images to leave out, because one of them was trained on these.

    Returns:
        The entry `comparison` of metrics.json: checkpoint, class_names, n_images, n_lesions;
        `difference`, first less second, of each of `measures.overall` with its interval;
        `mcnemar`, of the images, and in its `by_lesion` of the lesions; `gaps`, sentences.

    Raises:
        InputError: they have no image in common, or different diagnoses of one.
    """
    gaps = []
    if set(names) != set(classes_of(second)):
        first, second = as_binary(first), as_binary(second)
        names = classes_of(first)
        gaps.append(COARSELY)
    known = second[~second["image_id"].isin(list(trained_on))]
    if len(known) < len(second):
        gaps.append(
            f"{len(second) - len(known)} images are left out of the comparison: one of the "
            "models was trained on them"
        )
    ids = np.intersect1d(first["image_id"], known["image_id"])
    if len(ids) == 0:
        raise InputError(
            f"{checkpoint}: there is no image to compare the two models on\n"
            "Compare models that have the same split (data and seed)."
        )
    one_sided = len(np.setxor1d(first["image_id"], second["image_id"]))
    if one_sided:
        gaps.append(
            f"{one_sided} images are left out of the comparison: only one model was asked of them"
        )
    first, second = (t.set_index("image_id").loc[ids].reset_index() for t in (first, known))
    different = int((first["y_true"].to_numpy() != second["y_true"].to_numpy()).sum())
    if different:
        raise InputError(
            f"{checkpoint}: {different} images have another diagnosis than for the first model\n"
            "Compare the two on one folder."
        )
    counts = first.groupby("y_true")["lesion_id"].nunique()
    few = [f"{n} ({counts[n]})" for n in names if 0 < counts.get(n, 0) < FEW_LESIONS]
    if few:
        gaps.append(
            f"the two models are compared on {len(ids)} images with fewer than {FEW_LESIONS} "
            f"lesions of {', '.join(few)}: the intervals of the differences say little"
        )
    lesions = first["lesion_id"].to_numpy()
    labels, one = arrays(names, first)
    _, other = arrays(names, second)

    def difference(weights: np.ndarray) -> dict[str, np.ndarray]:
        ours, theirs = (_overall(weights, labels, p) for p in (one, other))
        return {name: ours[name] - theirs[name] for name in ours}

    # A lesion counts once, by the mean of its images' probabilities.
    means = dict.fromkeys(columns_of(names), "mean") | {"y_true": most_frequent}
    true_class, whole = arrays(names, first.groupby(lesions).agg(means))
    _, other_whole = arrays(names, second.groupby(lesions).agg(means))
    return {
        "checkpoint": checkpoint,
        "class_names": list(names),
        "n_images": len(ids),
        "n_lesions": len(whole),
        "difference": bootstrap.with_intervals(
            lesions, difference, biased=measures.BIASED, least=-1.0
        ),
        "mcnemar": mcnemar(labels, one, other)
        | {"by_lesion": mcnemar(true_class, whole, other_whole)},
        "gaps": gaps,
    }


def mcnemar(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """McNemar's exact test of two models' most probable classes, two-sided.

    Were the models equally good, either would be as likely to be the only one that is right
    (McNemar, Psychometrika 1947). The test takes its N for independent. Images of one lesion are
    not, so that by images its p-value comes out too small; by lesions it holds.

    Args:
        labels: int64 [N]; `first`, `second`: probabilities, float [N, K].

    Returns:
        only_first_right and only_second_right, counts; p_value, 1 where the two never differ.
    """
    from scipy.stats import binomtest

    right, other_right = (p.argmax(axis=1) == labels for p in (first, second))
    only_first, only_second = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return {
        "only_first_right": only_first,
        "only_second_right": only_second,
        "p_value": p_value,
    }


def _overall(
    weights: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, np.ndarray]:
    classes = range(probabilities.shape[1])
    each = [measures.against_rest(weights, labels, probabilities, k) for k in classes]
    return measures.overall(weights, labels, probabilities, each)
