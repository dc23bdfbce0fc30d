"""The entries of metrics.json that follow from the predictions; why one is missing is a gap."""

from __future__ import annotations

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
    explanations,
    judgement,
    leaks,
    operating_points,
    out_of_distribution,
    patients,
    subgroups,
)
from mlops_project.evaluation.decisions import decide, decide_across
from mlops_project.evaluation.images import Images, reopen
from mlops_project.evaluation.inference import Predictions, embed, predict
from mlops_project.evaluation.predictions_table import (
    CALIBRATED,
    PROBABILITY,
    WITH_PATIENTS,
    columns_of,
)
from mlops_project.evaluation.trained_model import TrainedModel
from mlops_project.printable import first_line

FEW_IMAGES = 20  # of validation, or of other folds: with fewer, nothing fitted on them holds


def add_calibration(
    facts: dict[str, Any],
    models: Sequence[TrainedModel],
    images: Images,
    validation: Predictions | None,
    table: pd.DataFrame,
    target_sensitivity: float,
) -> None:
    """Adds the decisions to the facts, and the calibrated probabilities to the table.

    They are fitted on the validation images or, where the images are of folds, of each fold on all
    others; without either nothing is added.
    """
    names, folds = images.class_names, images.folds
    prior = np.mean([model.log_prior(names) for model in models], axis=0)
    fitting: Callable[..., tuple[dict[str, Any], np.ndarray]]
    if validation is not None:
        fitting = partial(decide, names, validation.labelled(), table, target_sensitivity, prior)
    elif folds is not None:
        fitting = partial(decide_across, names, table, folds, target_sensitivity, prior)
    else:
        return
    decided, calibrated = fitting()
    facts |= decided
    facts["gaps"] += operating_points.undecided(decided)
    table[columns_of(names, CALIBRATED)] = calibrated
    fitted_on = table if validation is None else validation.table
    _add_patients(facts, names, table, fitted_on, fitting, prior)
    known = decided.get("calibration")
    if known and (doubt := doubted(known)):
        facts["gaps"].append(doubt if validation is None else f"{doubt}; nothing is stored")
        return
    # Those of the model's own logits are stored, for whoever uses it without this program.
    own = len(models) == 1 and not facts["tta"] and names == models[0].class_names
    if known and validation is not None and own:
        calibration.store(
            models[0].path,
            {name: known[name] for name in ("temperature", "offsets", "prior")},
            models[0].epoch,
            known["validation_images"],
        )


def doubted(known: dict[str, Any]) -> str:
    """Why the calibration of metrics.json is not to be relied on; "" where it is."""
    alone = {"images": known.get("validation_images"), "temperature": known["temperature"]}
    fitted, where, of = [alone], "validation images", ""
    if "folds" in known:
        fitted, where, of = known["of_folds"], "images of the other folds", " of a fold"
    fewest = min(one["images"] for one in fitted)
    if fewest < FEW_IMAGES:
        return (
            f"the calibration and the thresholds{of} are those of {fewest} {where}: they are not "
            "to be relied on"
        )
    for one in fitted:
        if calibration.at_the_end(one["temperature"]):
            return (
                f"the temperature{of}, {one['temperature']:.2f}, is as far as was looked: there "
                f"are too few {where}, or the answers to them are all right or no better than "
                "chance"
            )
    return ""


def _add_patients(
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
        facts["with_patient_data"] = decided
    known = (table["y_true"] != "").to_numpy()
    if known.any():
        alone = table[columns_of(names, CALIBRATED)].to_numpy()
        both = probabilities[known], alone[known]
        decided["difference"] = judgement.difference(names, table[known], *both, prior)
    table[columns_of(names, WITH_PATIENTS)] = probabilities


def add_abstention(facts: dict[str, Any], names: list[str], labelled: pd.DataFrame) -> None:
    """Adds what is gained where the least sure images are left to a person."""
    kind = CALIBRATED if f"{CALIBRATED}_{names[0]}" in labelled else PROBABILITY
    probabilities = labelled[columns_of(names, kind)].to_numpy(dtype=float)
    # It need not be the largest of the calibrated ones: it is the answer that counts.
    answers = pd.Index(names).get_indexer(pd.Index(labelled["y_pred"]))
    facts["abstention"] = abstention.judge(
        (labelled["y_pred"] != labelled["y_true"]).to_numpy(),
        probabilities[np.arange(len(answers)), answers],
        labelled["lesion_id"].to_numpy(),
    )


def add_subgroups(
    facts: dict[str, Any], names: list[str], table: pd.DataFrame, predictions: pd.DataFrame
) -> None:
    """Adds the malignant against benign of patients of each kind.

    Args:
        facts: of the evaluation.
        names: of the classes.
        table: the images that have a diagnosis.
        predictions: of the same images, in the same order.
    """
    malignant = [names[k] for k in malignant_classes(names)]
    scores = predictions[columns_of(malignant)].sum(axis=1).to_numpy()
    truth, positive = (predictions[c].isin(malignant).to_numpy() for c in ("y_true", "y_pred"))
    facts["subgroups"] = subgroups.compare(table, truth, scores, positive)


def add_comparison(
    facts: dict[str, Any],
    models: Sequence[TrainedModel],
    other: TrainedModel,
    images: Images,
    predictions: Predictions,
) -> None:
    """Adds the differences to another model, or why there are none."""
    second = predict([other], reopen(images, other), tta=facts["tta"])
    audit = leaks.audit(
        [leaks.seen_by(other)],
        images.table,
        same_pictures.thumbnails(images.data[0], images.rows),
        leaks.training_pictures([other], images),
        folder=images.data[0].table,
    )
    trained_on = {*audit["leaked_images"], *facts["leaks"]["leaked_images"]}
    try:
        found = comparison.compare(
            images.class_names,
            predictions.labelled(),
            second.labelled(),
            str(other.path),
            trained_on=trained_on,
        )
    except InputError as error:
        facts["gaps"].append("no comparison: " + first_line(error))
        return
    if audit["n_not_compared"]:
        facts["gaps"].append(
            f"{audit['n_not_compared']} training images of the other model are not at hand: images "
            "like them under other ids are compared all the same"
        )
    compared = ~images.table["image_id"].isin(trained_on).to_numpy()
    folder = images.data[0].table
    everybody = np.ones((1, len(compared)), dtype=bool)
    theirs = leaks.chosen_by([leaks.seen_by(other)], images.table, folder, everybody) & compared
    ours = leaks.chosen_by([leaks.seen_by(m) for m in models], images.table, folder, images.asked)
    if chosen := int((theirs & ~ours).sum()):
        facts["gaps"].append(
            f"{chosen} evaluated images are of the other model's validation split, by which its "
            "checkpoint was chosen: the comparison favours it"
        )
    if chosen := int((theirs & ours).sum()):
        facts["gaps"].append(
            f"{chosen} evaluated images are of the validation splits of both models, by which the "
            "checkpoints of both were chosen"
        )
    gaps = found.pop("gaps")
    # Where the first has the coarser classes, the second was asked for these already.
    if set(other.class_names) != set(models[0].class_names) and comparison.COARSELY not in gaps:
        gaps.insert(0, comparison.COARSELY)
    facts["gaps"] += gaps
    facts["comparison"] = found


def add_distances(
    facts: dict[str, Any],
    models: Sequence[TrainedModel],
    images: Images,
    predictions: Predictions,
    validation: Predictions,
) -> None:
    """Adds how unlike the known images these are, and each image's distance to the table."""
    features, known = predictions.features, validation.features
    if features is None or known is None:
        facts["gaps"].append("no out-of-distribution scores: the models have seen different images")
        return
    found = out_of_distribution.judge(
        (validation.table, known),
        (predictions.table, features),
        images.pixels,
        lambda made: embed(models, made),
    )
    if "gap" in found:
        facts["gaps"].append(found["gap"])
        return
    facts["out_of_distribution"] = found
    table = predictions.table
    lesions = [part["lesion_id"].to_numpy(dtype=str) for part in (table, validation.table)]
    table["distance"] = out_of_distribution.distances(features, lesions[0], known, lesions[1])
    table["flagged"] = table["distance"] > found["threshold"]


def add_explanations(
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
