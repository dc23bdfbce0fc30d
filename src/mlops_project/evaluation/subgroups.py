"""For whom a model is better or worse."""

from __future__ import annotations

from itertools import pairwise
from math import comb
from typing import Any

import numpy as np
import pandas as pd

from mlops_project.data.identity import told_lesions
from mlops_project.evaluation import bootstrap, measures, patients

AGE_BANDS = (0, 30, 45, 60, 75, np.inf)  # years, from … up to, but not including
FEWEST = 20  # lesions that a group must have for its measures to be told
FEWEST_OF_A_KIND = 5  # malignant ones, and benign ones
UNKNOWN = "unknown"
# No table that is read here says which skin an image shows.
SKIN_TONE = "There are no labels of skin tone: nothing can be said of differences between them."


def attributes(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """What images are grouped by: for each attribute the group of each image, texts [N].

    Args:
        table: image_id, lesion_id, age (years), sex, localization, dataset and dx_type.
    """
    patient = patients.cleaned(table)
    ages = patient["age"].to_numpy(dtype=float)
    names = [f"{low:.0f} to {high - 1:.0f}" for low, high in pairwise(AGE_BANDS[:-1])]
    names.append(f"{AGE_BANDS[-2]:.0f} and older")
    band = np.searchsorted(AGE_BANDS, np.nan_to_num(ages), side="right") - 1
    counts = table.groupby("lesion_id")["lesion_id"].transform("size").to_numpy()
    found = {
        "age": np.where(np.isnan(ages), UNKNOWN, np.array(names)[band.clip(0, len(names) - 1)]),
        "images_of_the_lesion": np.where(
            told_lesions(table).isna(), UNKNOWN, np.where(counts == 1, "one", "several")
        ),
    }
    found |= {c: patient[c].fillna(UNKNOWN).to_numpy(dtype=str) for c in ("sex", "localization")}
    for column in ("dataset", "dx_type"):
        found[column] = table[column].fillna(UNKNOWN).replace("", UNKNOWN).to_numpy(dtype=str)
    return found


def compare(
    table: pd.DataFrame, truth: np.ndarray, scores: np.ndarray, positive: np.ndarray
) -> dict[str, Any]:
    """How well malignant images are told from benign ones in each group.

    Args:
        table: as for `attributes`.
        truth: which images are malignant, bool [N].
        scores: probability of it, float [N].
        positive: which ones the model takes for malignant, bool [N].

    Returns:
        `groups`: for each attribute and group n_images, n_lesions, n_malignant (images) and either
        auroc, sensitivity and specificity with intervals, or `gap`, why there are none;
        `largest_gap`: the largest difference of an AUROC between two groups of one attribute, with
        the interval that this pair would have by itself; n_pairs, out of how many it is the
        largest; p_value, `chance` that some pair differs so much where none does, NaN without an
        interval. `skin_tone`: a remark.
    """
    lesions = table["lesion_id"].to_numpy()
    groups: dict[str, dict[str, Any]] = {}
    known = attributes(table)
    for attribute, values in known.items():
        groups[attribute] = {}
        for group in sorted(set(values)):
            own = values == group
            facts: dict[str, Any] = {
                "n_images": int(own.sum()),
                "n_lesions": len(np.unique(lesions[own])),
                "n_malignant": int(truth[own].sum()),
            }
            fewest = min(len(np.unique(lesions[own & kind])) for kind in (truth, ~truth))
            if facts["n_lesions"] < FEWEST or fewest < FEWEST_OF_A_KIND:
                facts["gap"] = "too few lesions"
            else:
                facts |= _measured(lesions[own], truth[own], scores[own], positive[own])
            groups[attribute][group] = facts
    gap = _largest_gap(groups)
    if gap is not None:
        values = known[gap["attribute"]]
        better, worse = (values == gap[name] for name in ("better", "worse"))
        both = better | worse

        def difference(weights: np.ndarray) -> dict[str, np.ndarray]:
            one, other = (
                measures.ranking(weights[:, own[both]], truth[own], scores[own])[0]
                for own in (better, worse)
            )
            return {"auroc": one - other}

        gap["ci95"] = bootstrap.with_intervals(lesions[both], difference)["auroc"]["ci95"]
        gap["p_value"] = chance(gap["difference"], gap["ci95"], gap["n_pairs"])
    return {"groups": groups, "largest_gap": gap, "skin_tone": SKIN_TONE}


def chance(difference: float, interval: list[float], pairs: int) -> float:
    """At most how often the largest of so many differences is as large where there is none.

    Its interval is that of a pair chosen beforehand. The largest of many is chosen because it is
    large: where no group differs from another, every second such interval leaves 0 out. By
    Bonferroni, the two-sided probability of each pair counts as often as there are pairs.

    Args:
        difference: the largest, at least 0.
        interval: its ends, of a normal distribution; NaN gives NaN.
        pairs: out of how many.
    """
    from scipy.stats import norm

    low, high = interval
    error = (high - low) / (2 * norm.ppf((1 + bootstrap.LEVEL) / 2))
    return float(np.minimum(1.0, pairs * 2 * norm.sf(difference / error)))


def _measured(
    lesions: np.ndarray, truth: np.ndarray, scores: np.ndarray, positive: np.ndarray
) -> dict[str, Any]:
    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        decided = measures.binary(weights, truth, positive)
        auroc, _ = measures.ranking(weights, truth, scores)
        return {"auroc": auroc} | {n: decided[n] for n in ("sensitivity", "specificity")}

    return bootstrap.with_intervals(lesions, measure, measures.seen_by(truth, positive))


def _largest_gap(groups: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The largest difference of an AUROC between two groups of one attribute.

    Those of whom the attribute is not known are no group that a model could be worse for.
    """
    found, pairs = [], 0
    for attribute, known in groups.items():
        told = {
            group: facts["auroc"]["value"]
            for group, facts in known.items()
            if "auroc" in facts and group != UNKNOWN
        }
        pairs += comb(len(told), 2)
        if len(told) > 1:
            worst, best = min(told, key=lambda g: told[g]), max(told, key=lambda g: told[g])
            if told[best] > told[worst]:
                found.append((told[best] - told[worst], attribute, best, worst))
    if not found:
        return None
    difference, attribute, best, worst = max(found)
    return {
        "measure": "auroc",
        "attribute": attribute,
        "better": best,
        "worse": worst,
        "difference": difference,
        "n_pairs": pairs,
    }
