"""The model card: what a model is, what it is worth, and what it is not for.

Mitchell et al., Model Cards for Model Reporting, FAT* 2019; its head and its headings are those of
Hugging Face's cards.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from mlops_project.data.diagnoses import DIAGNOSES
from mlops_project.evaluation.presentation import rendering, wording
from mlops_project.evaluation.presentation.reading import (
    class_names,
    get,
    metric,
    operating_points,
    present,
)
from mlops_project.evaluation.presentation.summary import largest_gap, summary
from mlops_project.metrics import label

TYPES = {  # of metrics, as Hugging Face's hub knows them
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "macro_f1": "f1",
    "auroc": "roc_auc",
    "brier": "brier_score",
}


def write_model_card(facts: dict[str, Any], folder: Path, predictions: pd.DataFrame) -> Path:
    """Writes MODEL_CARD.md.

    Args:
        facts: what metrics.json holds; an entry may be missing, and a number NaN or None.
        folder: to write to.
        predictions: what predictions.csv holds, of which any column may be missing: without its
            probabilities the card does not say whether the model is too sure.

    Returns:
        The card.
    """
    results = [
        (kind, label(name), metric(get(facts, "metrics", name))[0]) for name, kind in TYPES.items()
    ]
    known = present(facts)
    alone = len(facts.get("checkpoints") or ()) < 2
    variant = get(known, "settings", "model", "variant") if alone else None
    names = class_names(facts, predictions)
    values = {
        "facts": known,
        "points": operating_points(known),
        "settings": known.get("settings") or {},
        "name": f"{facts.get('model') or 'unnamed'} {variant or ''}".strip(),
        "names": names,
        "classes": [f"{n} ({DIAGNOSES[n]})" if n in DIAGNOSES else n for n in names],
        "data_name": _data(facts),
        "weights": _weights(known),
        "results": [r for r in results if not math.isnan(r[2])],
        "ood": known.get("out_of_distribution") or {},
        "warnings": wording.warnings(facts),
        "not_for": wording.NOT_FOR,
        "summary": summary(facts, predictions),
        "largest_gap": largest_gap(facts),
    }
    folder.mkdir(parents=True, exist_ok=True)
    return rendering.write(folder / "MODEL_CARD.md", "MODEL_CARD.md.jinja", values)


def _data(facts: dict[str, Any]) -> str:
    """What was evaluated, in a few words: a folder's name is all that is known of other images."""
    if facts.get("synthetic"):
        return "synthetic images"
    name = Path(str(facts.get("data_dir") or "images")).name
    return "HAM10000" if name.lower() == "ham10000" else name


def _weights(facts: dict[str, Any]) -> str:
    """Which weights the training started from: in words, or by the settings."""
    if facts.get("weights"):
        return str(facts["weights"])
    for key in ("init_from", "pretrained_path", "pretrained"):
        value = get(facts, "settings", "model", key)
        if value is not None:
            return f"model.{key}={value}"
    return "unknown"
