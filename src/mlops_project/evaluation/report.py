"""An evaluation from beginning to end: predict, measure, write, show."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlops_project import settings
from mlops_project.data import same_pictures
from mlops_project.data.identity import image_key, known_among, told_lesions
from mlops_project.errors import InputError
from mlops_project.evaluation import entries, evaluator, leaks
from mlops_project.evaluation.images import Images, moved_to, open_images
from mlops_project.evaluation.inference import Predictions, predict
from mlops_project.evaluation.membership import ONE_FOLD, known_images, known_split
from mlops_project.evaluation.presentation import terminal
from mlops_project.evaluation.presentation.model_card import write_model_card
from mlops_project.evaluation.presentation.page import write_page
from mlops_project.evaluation.presentation.pictures import draw_pictures
from mlops_project.evaluation.trained_model import TrainedModel, describe, load_model, load_models
from mlops_project.files import atomic_write
from mlops_project.printable import first_line

log = logging.getLogger("mlops_project")


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
        target_sensitivity: that thresholds reach on the validation images.
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
    other = load_model(compare_with) if compare_with else None
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
    validation, gaps = _validation(models, images, split, tta, audit)
    facts["gaps"] += gaps
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
        entries.add_subgroups(facts, images.class_names, known, labelled)
    entries.add_calibration(facts, models, images, validation, table, target_sensitivity)
    if not labelled.empty:
        entries.add_abstention(facts, images.class_names, predictions.labelled())
    written = _write(folder, facts, table)  # whatever may fail below
    if validation is not None:
        entries.add_distances(facts, models, images, predictions, validation)
    if other is not None:
        entries.add_comparison(facts, models, other, images, predictions)
    entries.add_explanations(facts, models, images, labelled, folder)
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
        [leaks.seen_by(model) for model in models],
        images.table,
        same_pictures.thumbnails(images.data[0], images.rows),
        leaks.training_pictures(models, images),
        folder=images.data[0].table,
        asked=images.asked,
        excluded=exclude,
    )
    if facts["status"] != "clean":
        log.warning(facts["sentence"])
    return facts, images.without(set(facts["leaked_images"])) if exclude else images


def _validation(
    models: Sequence[TrainedModel], images: Images, split: str, tta: bool, audit: dict[str, Any]
) -> tuple[Predictions | None, list[str]]:
    """Predictions of the runs' own validation images, and what is missing or special of them.

    Those that are evaluated under other ids are left out, and counted in the audit.
    """
    missing = "no calibration, thresholds, prediction sets and out-of-distribution scores: "
    if images.folds is not None:
        return (
            None,
            [
                "no prediction sets and out-of-distribution scores: all images are of folds",
                *_unlike_folds(models, images),
            ],
        )
    seen = [known_split(images.table, model.facts["split"]) for model in models]
    if any("val" in parts for parts in seen):
        return None, [f"{missing}they are fitted on images that are evaluated here"]
    of_each = {frozenset(map(image_key, known_images([model], "val"))) for model in models}
    several = len(of_each) > 1
    try:
        part = ONE_FOLD if several else "val"
        own = open_images(models, moved_to(models, images), part, images.class_names)
    except InputError as error:
        return None, [missing + first_line(error)]
    gaps = [f"of the validation images, {own.absent}"] if own.absent else []
    again, like = leaks.shown_in_both(own, images)
    if again.any():
        leaks.count_validation(audit, [leaks.seen_by(model) for model in models], images, like)
        told = f"{again.sum()} validation images, or their lesions, are evaluated under other ids"
        if (~again).sum() < entries.FEW_IMAGES:
            return None, [f"{missing}{told}, and too few others are left to fit them on"]
        own = own.without(set(own.table["image_id"][again]))
        gaps.append(f"{told}: what is calibrated is fitted on the other {len(own.rows)}")
    before = {i for model in models for i in model.facts.get("earlier", {}).get("image_id", [])}
    if count := int(known_among(own.table["image_id"], before).sum()):
        gaps.append(
            f"{count} of the {len(own.rows)} validation images, which what is calibrated is fitted "
            "on, are among those that the weights had learned from before the run"
        )
    predictions = predict(models, own, tta=tta)
    if several:
        gaps.append(
            f"what is calibrated was fitted on {len(predictions.table)} images of the folds, each "
            "told by the models that have it in their validation split: the mean of all differs "
            "from these, so that thresholds and prediction sets may somewhat miss what they aim at"
        )
        gaps += _unlike_folds(models, own)
    return predictions, gaps


def _unlike_folds(models: Sequence[TrainedModel], images: Images) -> list[str]:
    """What to say where the folds were not trained alike, and so are no cross-validation of one."""
    folds = images.folds
    assert folds is not None
    kept = [settings.shaping(model.config, model.facts.get("auto", [])) for model in models]
    ignored = {*settings.REPEATED, "data.data_dir"}
    differing = [n for n in kept[0] if n not in ignored and any(k[n] != kept[0][n] for k in kept)]
    kinds = [str([own[name] for name in differing]) for own in kept]
    of_each = {
        tuple(sorted(kinds[m] for m in np.flatnonzero(images.asked[:, folds == fold][:, 0])))
        for fold in np.unique(folds)
    }
    if len(of_each) == 1:
        return []
    return [f"the models of the folds were trained with different settings: {', '.join(differing)}"]


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
    gaps = [text for text in (images.left_out, images.absent) if text]
    # By the folder's whole table: a lesion may bear the id of one image of several.
    unknown = int(told_lesions(images.data[0].table).iloc[images.rows].isna().sum())
    if unknown:
        gaps.append(
            f"of {unknown} of the {len(images.rows)} images no lesion id is known: each counts as "
            "a lesion of its own, so that intervals are too narrow where several show one lesion"
        )
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
        "ham10000": all(_is_ham10000(model) for model in models),
        "settings": first.facts["config"],
        "n_images": len(images.rows),
        "n_lesions": int(images.table["lesion_id"].nunique()),
        "gaps": gaps,
    }


def _is_ham10000(model: TrainedModel) -> bool:
    """Whether most of what a model has learned from has the ids of HAM10000's images.

    They are ISIC_0024306 to ISIC_0034320 (Tschandl, Rosendahl, Kittler, Sci. Data 5:180161, 2018).
    """
    split = pd.DataFrame(model.facts["split"])
    images = split.loc[split["split"] == "train", "image_id"].map(image_key)
    numbers = images.str.extract(r"^isic_(\d{7})$")[0]
    return bool(numbers.astype(float).between(24306, 34320).mean() > 0.5)


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
