"""An evaluation that holds everything that one can hold, from made-up predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from mlops_project.data.diagnoses import class_names, malignant_classes
from mlops_project.evaluation import decisions, evaluator, judgement, subgroups

SHARES = {2: [0.8, 0.2], 7: [0.03, 0.05, 0.11, 0.01, 0.11, 0.68, 0.01]}  # about those of HAM10000
SETTINGS: dict[str, Any] = {
    "seed": 42,
    "model": {"name": "efficientnet", "variant": "b0", "pretrained": True, "pretrained_path": None},
    "data": {"image_size": 224, "batch_size": 32},
    "training": {"max_epochs": 30, "loss": "cross_entropy", "class_weights": "none"},
}


def make_predictions(images: int, classes: int, seed: int = 0) -> pd.DataFrame:
    """Predictions of a middling model, as `evaluator.predict` gives them."""
    random = np.random.default_rng(seed)
    names = np.array(class_names(classes), dtype=object)
    labels = random.choice(classes, images, p=SHARES[classes])
    logits = 1.5 * random.normal(size=(images, classes)) + 2.2 * np.eye(classes)[labels]
    logits += 1.5 * np.log(SHARES[classes])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    table = pd.DataFrame({"image_id": [f"ISIC_{i:07d}" for i in range(images)]})
    table["lesion_id"] = [f"HAM_{i:07d}" for i in random.integers(0, images, images)]
    # All images of a lesion have one diagnosis.
    first = table.groupby("lesion_id").cumcount() == 0
    table.loc[~first, "lesion_id"] += "_" + pd.Series(labels.astype(str))[~first]
    table["y_true"], table["y_pred"] = names[labels], names[probabilities.argmax(axis=1)]
    for k, name in enumerate(names):
        table[f"probability_{name}"] = probabilities[:, k].astype(np.float32)
    random = np.random.default_rng(seed + 1000)
    malignant = np.isin(labels, malignant_classes(list(names)))
    ages = (random.normal(50, 15, images) + 15 * malignant).round(-1).clip(0, 90)
    table["age"] = np.where(random.random(images) < 0.05, np.nan, ages)
    table["sex"] = random.choice(["female", "male", "unknown"], images, p=[0.45, 0.54, 0.01])
    table["localization"] = random.choice(["back", "lower extremity", "face", ""], images)
    return table


def make_facts(
    folder: Path, images: int = 400, classes: int = 7
) -> tuple[dict[str, Any], pd.DataFrame]:
    """All entries of metrics.json, and the predictions; pictures of explanations lie in the folder.

    Those of the numbers that are not the point here are made up.
    """
    names = list(class_names(classes))
    predictions = make_predictions(images, classes)
    random = np.random.default_rng(1)
    given = names, make_predictions(images, classes, seed=2), predictions, 0.9, np.zeros(classes)
    decided, calibrated = decisions.decide(*given)
    with_patients, others = decisions.decide(*given, with_patients=True)
    with_patients["difference"] = judgement.difference(
        names, predictions, others, calibrated, np.zeros(classes)
    )
    malignant = [names[k] for k in malignant_classes(names)]
    for k, name in enumerate(names):
        predictions[f"calibrated_{name}"] = calibrated[:, k]
    table = predictions.assign(
        dataset=random.choice(["vidir_modern", "rosendahl"], images),
        dx_type=random.choice(["histo", "follow_up"], images),
    )
    right = (predictions["y_true"] == predictions["y_pred"]).to_numpy()
    shares = np.arange(1, 101) / 100
    facts: dict[str, Any] = {
        "checkpoint": "models/efficientnet/version_0/checkpoints/last.ckpt",
        "checkpoints": ["models/efficientnet/version_0/checkpoints/last.ckpt"],
        "model": "efficientnet",
        "data_dir": "data/ham10000",
        "split": "test",
        "tta": False,
        "synthetic": False,
        "ham10000": True,
        "split_hash": "816bfc68a1c88bd9",
        "settings": SETTINGS,
        "class_names": names,
        "n_images": len(predictions),
        "n_lesions": int(predictions["lesion_id"].nunique()),
        **evaluator.measure(names, predictions),
        **decided,
        "with_patient_data": with_patients,
        "subgroups": subgroups.compare(
            table,
            predictions["y_true"].isin(malignant).to_numpy(),
            predictions[[f"probability_{n}" for n in malignant]].sum(axis=1).to_numpy(),
            predictions["y_pred"].isin(malignant).to_numpy(),
        ),
        "leaks": {
            "status": "overlap",
            "n_training_images": 7009,
            "shared_images": ["ISIC_0000003"],
            "shared_lesions": ["HAM_0000003"],
            "near_duplicates": [
                {
                    "image_id": "ISIC_0000004",
                    "training_image_id": "ISIC_0900004",
                    "similarity": 0.987,
                }
            ],
            "leaked_images": ["ISIC_0000003", "ISIC_0000004"],
            "excluded": False,
            "sentence": "2 of the images, or lesions in them, were in the training.",
        },
        "out_of_distribution": {
            "method": "distance to the nearest neighbours in the features",
            "neighbours": 5,
            "threshold": 0.31,
            "false_alarm_rate": 0.05,
            "flagged": _metric(0.06, 0.02),
            "auroc": {"noise": _metric(0.99, 0.01), "blurred": _metric(0.71, 0.05)},
            "worst_images": ["ISIC_0000007", "ISIC_0000009"],
            "caution": "blurred images are not told from those that the model knows.",
        },
        "abstention": {
            "coverage": shares.tolist(),
            "error": ((1 - right.mean()) * shares**1.5).tolist(),
            "area": _metric(0.1, 0.02),
            "at": [
                {"coverage": c, "kept": c, "error": (1 - right.mean()) * c**1.5}
                for c in (1.0, 0.8, 0.5)
            ],
        },
        "comparison": {
            "checkpoint": "models/resnet/version_0/checkpoints/last.ckpt",
            "n_images": images,
            "difference": {
                "balanced_accuracy": _metric(0.021, 0.02),
                "auroc": _metric(0.013, 0.007),
            },
            "mcnemar": {
                "only_first_right": 61,
                "only_second_right": 38,
                "p_value": 0.027,
                "by_lesion": {"only_first_right": 41, "only_second_right": 30, "p_value": 0.24},
            },
        },
        "explanations": _explanations(folder, predictions, right),
        "gaps": ["the ages of 20 images are not known"],
    }
    return facts, predictions


def _metric(value: float, half: float) -> dict[str, Any]:
    return {"value": value, "ci95": [value - half, value + half]}


def _explanations(folder: Path, predictions: pd.DataFrame, right: np.ndarray) -> list[dict]:
    (folder / "explanations").mkdir(parents=True, exist_ok=True)
    found = []
    for kind, chosen in (("mistake", ~right), ("success", right)):
        for row in predictions[chosen].head(4).to_dict("records"):
            name = f"explanations/{row['image_id']}.png"
            Image.effect_mandelbrot((240, 180), (-2, -1.5, 1, 1.5), 60).save(folder / name)
            keys = ("image_id", "lesion_id", "y_true", "y_pred")
            probability = float(row[f"probability_{row['y_pred']}"])
            found.append(
                {k: row[k] for k in keys}
                | {"probability": probability, "kind": kind, "picture": name}
            )
    return found


def without_numbers(facts: Any, value: float | None) -> Any:
    """The same with every float replaced."""
    if isinstance(facts, dict):
        return {k: without_numbers(v, value) for k, v in facts.items()}
    if isinstance(facts, list):
        return [without_numbers(v, value) for v in facts]
    return value if isinstance(facts, float) else facts


HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "$\\frac{1}{",
    "_a|b`c`*d*",
    "{{ 7 * 7 }}{% raise %}",
    "皮膚\u202e\n---\udc80 & < \x00",
    "x" * 300,
)


def with_hostile_names(
    facts: dict[str, Any], predictions: pd.DataFrame
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The same with other names of classes, images, groups and folders; the facts are changed."""
    known = dict(zip(facts["class_names"], HOSTILE, strict=True))
    predictions = predictions.rename(
        columns={
            f"{kind}_{old}": f"{kind}_{new}"
            for old, new in known.items()
            for kind in ("probability", "calibrated")
        }
    )
    for column in ("y_true", "y_pred"):
        predictions[column] = predictions[column].map(known)
    predictions["image_id"] = [f"{HOSTILE[i % 7]}{i}" for i in range(len(predictions))]

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {known.get(k, k): renamed(v) for k, v in value.items()}
        if isinstance(value, list):
            return [renamed(v) for v in value]
        return known.get(value, value) if isinstance(value, str) else value

    facts |= renamed({k: facts[k] for k in ("class_names", "per_class", "per_class_ci95")})
    for key in ("by_lesion", "prediction_sets", "explanations"):
        facts[key] = renamed(facts[key])
    for name in ("model", "checkpoint", "data_dir", "split", "split_hash"):
        facts[name] = HOSTILE[1]
    groups = facts["subgroups"]["groups"]
    groups["sex"] = dict(zip(HOSTILE, list(groups["localization"].values()), strict=False))
    facts["subgroups"]["groups"] = dict(zip(HOSTILE, groups.values(), strict=False))
    facts["leaks"]["leaked_images"] = list(HOSTILE)
    facts["leaks"]["sentence"] = HOSTILE[0]
    facts["gaps"] = list(HOSTILE)
    for entry in facts["explanations"]:
        entry["image_id"] = HOSTILE[1]
    facts["settings"] = {"model": {"name": HOSTILE[0], "variant": HOSTILE[1]}, HOSTILE[0]: HOSTILE}
    return facts, predictions
