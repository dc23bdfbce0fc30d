"""An evaluation from beginning to end: predict, measure, write, show."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mlops_project.data import same_pictures
from mlops_project.data.diagnoses import malignant_classes
from mlops_project.errors import InputError
from mlops_project.evaluation import (
    abstention,
    calibration,
    comparison,
    evaluator,
    explanations,
    leaks,
    operating_points,
    out_of_distribution,
    patients,
    subgroups,
)
from mlops_project.evaluation.decisions import decide, decide_across, difference
from mlops_project.evaluation.images import Images, open_images, reopen
from mlops_project.evaluation.inference import Predictions, embed, predict
from mlops_project.evaluation.presentation import terminal
from mlops_project.evaluation.presentation.model_card import write_model_card
from mlops_project.evaluation.presentation.page import write_page
from mlops_project.evaluation.presentation.pictures import draw_pictures
from mlops_project.evaluation.trained_model import TrainedModel, describe, load_models
from mlops_project.files import atomic_write

log = logging.getLogger("mlops_project")
FEW_IMAGES = 20  # of the validation split: with fewer, nothing fitted on them holds


def evaluate(
    checkpoints: Path | Sequence[Path],
    data_dir: str | None = None,
    split: str = "test",
    output: Path | None = None,
    target_sensitivity: float = 0.9,
    *,
    tta: bool = False,
    exclude_leaked: bool = False,
    compare_with: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint, or several as one; writes what docs/evaluation.md lists.

    Args:
        checkpoints: of runs; the probabilities of several are averaged.
        data_dir: folder with images; None: the run's own.
        split: "val", "test", "out-of-fold" or "all".
        output: folder to write to; None: reports/evaluation/<model>-version_N.
        target_sensitivity: that thresholds reach on the validation split.
        tta: average over turned and mirrored images.
        exclude_leaked: leave out what shows anything of the training split.
        compare_with: checkpoint of another model.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: a checkpoint, the folder or the split cannot be used.
    """
    if not 0 < target_sensitivity <= 1:
        raise InputError(
            f"--target-sensitivity {target_sensitivity}: must be more than 0 and at most 1"
        )
    models = load_models([checkpoints] if isinstance(checkpoints, Path) else checkpoints)
    other = load_models([compare_with]) if compare_with else None
    images = open_images(models, data_dir, split)
    audit, images = _audited(models, images, exclude_leaked)
    folder = output or default_output(models)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise InputError(f"{folder}: cannot be made ({why})\nChoose another --output.") from error
    log.info("predicting %d images", len(images.rows))
    facts = _facts(models, images, split, tta) | {"leaks": audit}
    predictions = predict(models, images, tta=tta)
    validation, gap = _validation(models, images, split, tta)
    facts["gaps"] += [gap] if gap else []
    table, labelled = predictions.table, predictions.labelled()
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
    if validation is not None:
        _calibrate(facts, models, images, validation, table, target_sensitivity)
    elif images.folds is not None:
        _calibrate_across(facts, models, images, table, target_sensitivity)
    if not labelled.empty:
        facts["abstention"] = _abstention(images.class_names, predictions.labelled())
    written = _write(folder, facts, table)  # whatever may fail below
    if validation is not None:
        unlike = _out_of_distribution(models, images, predictions, validation)
        _add(facts, "out_of_distribution", unlike)
    if other is not None:
        _compare(facts, other, images, predictions)
    _explain(facts, models, images, labelled, folder)
    _write(folder, facts, table)
    pictures = draw_pictures(facts, table, folder)
    written.append(write_page(facts, pictures, folder, table))
    written.append(write_model_card(facts, folder, table))
    written += [picture.path for picture in pictures]
    terminal.show(facts, written)
    return facts


def _audited(
    models: Sequence[TrainedModel], images: Images, exclude: bool
) -> tuple[dict[str, Any], Images]:
    """The audit of what was trained on, and the images that are to be evaluated."""
    facts = leaks.audit(
        [model.facts["split"] for model in models],
        images.table,
        same_pictures.thumbnails(images.data[0], images.rows),
        leaks.training_pictures(models),
        asked=images.asked,
        excluded=exclude,
    )
    if facts["status"] != "clean":
        log.warning(facts["sentence"])
    return facts, images.without(set(facts["leaked_images"])) if exclude else images


def _calibrate(
    facts: dict[str, Any],
    models: Sequence[TrainedModel],
    images: Images,
    validation: Predictions,
    table: pd.DataFrame,
    target_sensitivity: float,
) -> None:
    """Adds the decisions to the facts, and the calibrated probabilities to the table."""
    names = images.class_names
    prior = np.mean([model.log_prior(names) for model in models], axis=0)
    fitting = partial(decide, names, validation.labelled(), table, target_sensitivity, prior)
    decided, calibrated = fitting()
    facts |= decided
    facts["gaps"] += operating_points.undecided(decided)
    table[[f"calibrated_{name}" for name in names]] = calibrated
    _with_patients(facts, names, table, validation.table, fitting, prior)
    # Those of the model's own logits are stored, for whoever uses it without this program.
    known = decided.get("calibration")
    if known and known["validation_images"] < FEW_IMAGES:
        facts["gaps"].append(
            f"the calibration and the thresholds are those of {known['validation_images']} "
            "validation images: they are not to be relied on, and not stored"
        )
    elif known and calibration.at_the_end(known["temperature"]):
        facts["gaps"].append(
            f"the temperature {known['temperature']:.2f} is as far as was looked: the validation "
            "split is too small, or its answers are all right or no better than chance"
        )
    elif known and len(models) == 1 and not facts["tta"] and names == models[0].class_names:
        calibration.store(
            models[0].path,
            {name: known[name] for name in ("temperature", "offsets", "prior")},
            models[0].epoch,
            known["validation_images"],
        )


def _calibrate_across(
    facts: dict[str, Any],
    models: Sequence[TrainedModel],
    images: Images,
    table: pd.DataFrame,
    target_sensitivity: float,
) -> None:
    """`_calibrate` for a cross-validation."""
    names, folds = images.class_names, images.folds
    assert folds is not None
    prior = np.mean([model.log_prior(names) for model in models], axis=0)
    fitting = partial(decide_across, names, table, folds, target_sensitivity, prior)
    decided, calibrated = fitting()
    facts |= decided
    facts["gaps"] += operating_points.undecided(decided)
    table[[f"calibrated_{name}" for name in names]] = calibrated
    _with_patients(facts, names, table, table, fitting, prior)


def _with_patients(
    facts: dict[str, Any],
    names: list[str],
    table: pd.DataFrame,
    fitted_on: pd.DataFrame,
    fitting: Callable[..., tuple[dict[str, Any], np.ndarray]],
    prior: np.ndarray,
) -> None:
    """Adds what the same decisions come to where age, sex and site have a say in them."""
    if not (patients.known(table) and patients.known(fitted_on)):
        return
    decided, probabilities = fitting(with_patients=True)
    if decided:
        known = (table["y_true"] != "").to_numpy()
        alone = table[[f"calibrated_{name}" for name in names]].to_numpy()
        both = probabilities[known], alone[known]
        decided["difference"] = difference(names, table[known], *both, prior)
        facts["with_patient_data"] = decided
    table[[f"with_patient_data_{name}" for name in names]] = probabilities


def _abstention(names: list[str], labelled: pd.DataFrame) -> dict[str, Any]:
    kind = "calibrated" if f"calibrated_{names[0]}" in labelled else "probability"
    probabilities = labelled[[f"{kind}_{name}" for name in names]].to_numpy(dtype=float)
    # It need not be the largest of the calibrated ones: it is the answer that counts.
    answers = pd.Index(names).get_indexer(pd.Index(labelled["y_pred"]))
    return abstention.judge(
        (labelled["y_pred"] != labelled["y_true"]).to_numpy(),
        probabilities[np.arange(len(answers)), answers],
        labelled["lesion_id"].to_numpy(),
    )


def _compare(
    facts: dict[str, Any],
    other: Sequence[TrainedModel],
    images: Images,
    predictions: Predictions,
) -> None:
    """Adds the differences to another model, or why there are none."""
    second = predict(other, reopen(images, other), tta=facts["tta"])
    audit = leaks.audit(
        [other[0].facts["split"]],
        images.table,
        same_pictures.thumbnails(images.data[0], images.rows),
        leaks.training_pictures(other),
    )
    try:
        found = comparison.compare(
            images.class_names,
            predictions.labelled(),
            second.labelled(),
            str(other[0].path),
            trained_on={*audit["leaked_images"], *facts["leaks"]["leaked_images"]},
        )
    except InputError as error:
        facts["gaps"].append("no comparison: " + str(error).splitlines()[0])
        return
    if audit["n_not_compared"]:
        facts["gaps"].append(
            f"{audit['n_not_compared']} training images of the other model are not at hand: images "
            "like them under other ids are compared all the same"
        )
    facts["gaps"] += found.pop("gaps")
    facts["comparison"] = found


def _out_of_distribution(
    models: Sequence[TrainedModel],
    images: Images,
    predictions: Predictions,
    validation: Predictions,
) -> dict[str, Any]:
    """The entry of metrics.json, or a gap; adds each image's distance to the table."""
    features, known = predictions.features, validation.features
    if features is None or known is None:
        return {"gap": "no out-of-distribution scores: images were shown to different models"}
    found = out_of_distribution.judge(
        (validation.table, known),
        (predictions.table, features),
        images.pixels,
        lambda made: embed(models, made),
    )
    if "threshold" in found:
        table = predictions.table
        lesions = [part["lesion_id"].to_numpy(dtype=str) for part in (table, validation.table)]
        table["distance"] = out_of_distribution.distances(features, lesions[0], known, lesions[1])
        table["flagged"] = table["distance"] > found["threshold"]
    return found


def _explain(
    facts: dict[str, Any],
    models: Sequence[TrainedModel],
    images: Images,
    labelled: pd.DataFrame,
    folder: Path,
) -> None:
    """Adds pictures of what the first model looks at."""
    names = models[0].class_names
    if labelled.empty:
        explanations.remove_others(folder / explanations.FOLDER)
        return
    if images.class_names != names or not images.asked[0].all():
        why = "the first model has finer classes than the labels"
        if images.class_names == names:
            why = "the first model is not asked about all images"
        facts["gaps"].append(f"no pictures of what the network looks at: {why}")
        explanations.remove_others(folder / explanations.FOLDER)
        return
    chosen = explanations.choose(labelled, names)
    positions = pd.Index(images.table["image_id"]).get_indexer(pd.Index(chosen["image_id"]))
    pixels = torch.from_numpy(images.pixels(positions))
    found, missing = explanations.explain(models[0], chosen, pixels, folder, len(models))
    facts["explanations"] = found
    facts["gaps"] += [missing] if missing else []


def _add(facts: dict[str, Any], name: str, found: dict[str, Any]) -> None:
    """Adds an entry, or why there is none."""
    if "gap" in found:
        facts["gaps"].append(found["gap"])
    else:
        facts[name] = found


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
        "split_hashes": sorted({model.facts["split_hash"] for model in models}),
        "epoch": first.epoch,
        "weights": first.facts["weights"],
        "tta": tta,
        "synthetic": images.data[0].synthetic or any(m.facts["synthetic"] for m in models),
        "settings": first.facts["config"],
        "n_images": len(images.rows),
        "n_lesions": int(images.table["lesion_id"].nunique()),
        "gaps": [text for text in (images.left_out, images.absent) if text],
    }


def _subgroups(names: list[str], table: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, Any]:
    malignant = [names[k] for k in malignant_classes(names)]
    scores = predictions[[f"probability_{name}" for name in malignant]].sum(axis=1).to_numpy()
    truth, positive = (predictions[c].isin(malignant).to_numpy() for c in ("y_true", "y_pred"))
    return subgroups.compare(table, truth, scores, positive)


def _validation(
    models: Sequence[TrainedModel], images: Images, split: str, tta: bool
) -> tuple[Predictions | None, str]:
    """Predictions of the runs' own validation split, and what is missing of them."""
    missing = "no calibration, thresholds, prediction sets and out-of-distribution scores: "
    if images.folds is not None:
        return (
            None,
            "no prediction sets and out-of-distribution scores: all images are of folds",
        )
    if split != "test":
        return None, f"{missing}they are fitted on images that are evaluated here"
    if len({model.facts["split_hash"] for model in models}) > 1:
        # What single models say of images would tell nothing of how sure their mean is.
        return None, f"{missing}the models have different validation splits"
    try:
        own = open_images(models, None, "val", images.class_names)
    except InputError as error:
        return None, missing + str(error).splitlines()[0]
    gap = f"of the validation split, {own.absent}" if own.absent else ""
    return predict(models, own, tta=tta), gap


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
