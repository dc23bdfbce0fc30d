"""An evaluation from beginning to end: predict, measure, write, show."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mlops_project.errors import InputError
from mlops_project.evaluation import calibration, evaluator, subgroups, terminal
from mlops_project.evaluation.decisions import decide, malignant_classes
from mlops_project.evaluation.images import OUT_OF_FOLD, Images, open_images
from mlops_project.evaluation.inference import Predictions, predict
from mlops_project.evaluation.pictures import draw_confusion_matrix
from mlops_project.evaluation.trained_model import TrainedModel, describe, load_models
from mlops_project.files import atomic_write

log = logging.getLogger("mlops_project")


def evaluate(
    checkpoints: Path | Sequence[Path],
    data_dir: str | None = None,
    split: str = "test",
    output: Path | None = None,
    target_sensitivity: float = 0.9,
    *,
    tta: bool = False,
) -> dict[str, Any]:
    """Evaluates a checkpoint, or several as one; writes what docs/evaluation.md lists.

    Args:
        checkpoints: of runs; the probabilities of several are averaged.
        data_dir: folder with images; None: the run's own.
        split: "val", "test", "out-of-fold" or "all".
        output: folder to write to; None: reports/evaluation/<model>-version_N.
        target_sensitivity: that thresholds reach on the validation split.
        tta: average over turned and mirrored images.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: a checkpoint, the folder or the split cannot be used.
    """
    models = load_models([checkpoints] if isinstance(checkpoints, Path) else checkpoints)
    images = open_images(models, data_dir, split)
    folder = output or default_output(models)
    folder.mkdir(parents=True, exist_ok=True)
    facts = _facts(models, images, split, tta)
    predictions = predict(models, images, tta=tta)
    table = predictions.table
    labelled = predictions.labelled()
    if len(labelled) < len(table):
        gap = f"{len(table) - len(labelled)} images have no diagnosis (column dx): not measured"
        if labelled.empty:
            gap = "no image has a diagnosis (column dx): nothing is measured"
        facts["gaps"].append(gap)
    if not labelled.empty:
        facts |= evaluator.measure(images.class_names, labelled)
        facts["gaps"] += evaluator.unmeasured(facts)
        known = images.table[(table["y_true"] != "").to_numpy()].reset_index(drop=True)
        facts["subgroups"] = _subgroups(images.class_names, known, labelled)
    validation, gap = _validation(models, images, split, tta)
    if validation is None:
        facts["gaps"].append(gap)
    else:
        decided, calibrated = decide(
            images.class_names, validation.labelled(), table, target_sensitivity
        )
        facts |= decided
        for k, name in enumerate(images.class_names):
            table[f"calibrated_{name}"] = calibrated[:, k]
        # The temperature of the model's own logits, for whoever uses it without this program
        if "calibration" in facts and len(models) == 1 and not tta:
            known = facts["calibration"]
            calibration.store_temperature(
                models[0].path, known["temperature"], models[0].epoch, known["validation_images"]
            )
    written = _write(folder, facts, table)
    if not labelled.empty:
        title = f"{facts['model']}, {len(labelled)} images ({split})"
        title += "\nSYNTHETIC DATA" if facts["synthetic"] else ""
        path = folder / "confusion_matrix.png"
        draw_confusion_matrix(labelled, images.class_names, path, title)
        written.append(path)
    terminal.show(facts, written)
    return facts


def default_output(models: Sequence[TrainedModel]) -> Path:
    """reports/evaluation/<model>-version_N for a run's checkpoint, else named after its file."""
    path = models[0].path.absolute()
    run, name = path.parent.parent, path.stem
    if path.parent.name == "checkpoints" and run.name.startswith("version_"):
        name = f"{run.parent.name}-{run.name}"
    more = len(models) - 1
    return Path("reports/evaluation") / (f"{name}-and-{more}-more" if more else name)


def _facts(models: Sequence[TrainedModel], images: Images, split: str, tta: bool) -> dict[str, Any]:
    """What is known before anything is predicted."""
    first = models[0]
    return {
        "checkpoint": str(first.path),
        "checkpoints": [str(model.path) for model in models],
        "model": describe(models),
        "class_names": images.class_names,
        "data_dir": str(images.folder),
        "split": split,
        "split_hash": first.facts["split_hash"],
        "epoch": first.epoch,
        "weights": first.facts["weights"],
        "tta": tta,
        "synthetic": images.data[0].synthetic or any(m.facts["synthetic"] for m in models),
        "settings": first.facts["config"],
        "n_images": len(images.rows),
        "n_lesions": int(images.table["lesion_id"].nunique()),
        "gaps": [],
    }


def _subgroups(names: list[str], table: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, Any]:
    malignant = [names[k] for k in malignant_classes(names)]
    scores = predictions[[f"probability_{name}" for name in malignant]].sum(axis=1).to_numpy()
    truth, positive = (predictions[c].isin(malignant).to_numpy() for c in ("y_true", "y_pred"))
    return subgroups.compare(table, truth, scores, positive)


def _validation(
    models: Sequence[TrainedModel], images: Images, split: str, tta: bool
) -> tuple[Predictions | None, str]:
    """Predictions of the runs' own validation split, or why there are none."""
    missing = "no calibration, thresholds and prediction sets: "
    if split != "test":
        return None, f"{missing}they are fitted on images that are evaluated here"
    same = len({model.facts["split_hash"] for model in models}) == 1
    try:
        # With other splits, as in a cross-validation, no image is of all validation splits.
        own = open_images(models, None, "val" if same else OUT_OF_FOLD, images.class_names)
    except InputError as error:
        return None, missing + str(error).splitlines()[0]
    return predict(models, own, tta=tta), ""


def _write(folder: Path, facts: dict[str, Any], predictions: pd.DataFrame) -> list[Path]:
    """Writes metrics.json and predictions.csv; a value that is not a number becomes null."""
    with atomic_write(folder / "predictions.csv") as file:
        predictions.to_csv(file, index=False)
    with atomic_write(folder / "metrics.json") as file:
        json.dump(_finite(facts), file, indent=2, allow_nan=False)
        file.write("\n")
    return [folder / "metrics.json", folder / "predictions.csv"]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
