"""A checkpoint's predictions on a split or on other images, and what they are worth."""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from mlops_project import settings
from mlops_project.config import Config
from mlops_project.data.augmentation import BatchAugmentation
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.data.splits import SPLITS, UNUSED
from mlops_project.errors import InputError
from mlops_project.evaluation import bootstrap, measures
from mlops_project.files import atomic_write
from mlops_project.models.build import build_model
from mlops_project.training.checkpoints import ENTRY, load_checkpoint

log = logging.getLogger("mlops_project")


@dataclass(frozen=True)
class TrainedModel:
    """A network as a checkpoint holds it, with all that is needed to use it.

    Attributes:
        path: of the checkpoint.
        network: normalised float images [B, 3, S, S] to logits [B, K]; in evaluation mode.
        config: settings of the run.
        facts: the checkpoint's entry of `training.checkpoints.metadata`.
    """

    path: Path
    network: nn.Module
    config: Config
    facts: dict[str, Any]

    @property
    def class_names(self) -> list[str]:
        """In the order of the probabilities."""
        return self.facts["class_names"]


def load_model(path: str | os.PathLike[str]) -> TrainedModel:
    """Restores a model from its checkpoint alone.

    Raises:
        InputError: no such checkpoint, or not a readable one.
    """
    checkpoint = load_checkpoint(path)
    facts = checkpoint[ENTRY]
    config = settings.from_container(facts["config"])
    built = build_model(config.model, facts["preprocessing"]["image_size"], load_weights=False)
    weights = {
        name.removeprefix("network."): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("network.")
    }
    try:
        built.network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{path}: its weights do not fit the model of its settings: it was made by another "
            f"version ({str(error).splitlines()[-1].strip()[:150]})"
        ) from error
    return TrainedModel(Path(path), built.network.eval(), config, facts)


def open_images(
    model: TrainedModel, data_dir: str | None, split: str
) -> tuple[HAM10000DataModule, np.ndarray]:
    """The images of a split as the run had it, decoded; images it has never seen count as test.

    An image that is new to the run but shows a lesion it has seen belongs to that lesion's split.

    Args:
        model: whose run decides which image is in which split.
        data_dir: folder with the images; None: the run's own.
        split: "val", "test", or "all" for every image.

    Returns:
        The data module, and the rows of the split's readable images, int64 [N].

    Raises:
        InputError: no such folder, or no image of that split in it.
    """
    if data_dir is None and not Path(model.config.data.data_dir).is_dir():
        raise InputError(
            f"{model.config.data.data_dir}: the images of this run are not here\n"
            "Name their folder with --data-dir DIR."
        )
    options = settings.to_container(model.config)["data"]
    options |= {"image_size": model.facts["preprocessing"]["image_size"], "num_workers": "auto"}
    own = options.pop("data_dir")
    if data_dir is not None:
        options["name"] = "ham10000"  # read as it is, generate nothing
    data = HAM10000DataModule(
        data_dir or own,
        num_classes=model.config.model.num_classes,
        seed=model.config.seed,
        **options,
    )
    data.read()
    data.split = known_split(data.table, model.facts["split"])
    wanted = np.ones(len(data.split), bool) if split == "all" else data.split == split
    if not wanted.any():
        counts = ", ".join(f"{(data.split == s).sum()} {s}" for s in (*SPLITS, UNUSED))
        raise InputError(
            f"{data_dir or own}: no image of the {split} split ({counts})\n"
            "--split all takes every one."
        )
    unreadable = data.decode(np.flatnonzero(wanted))
    wanted[list(unreadable)] = False
    return data, np.flatnonzero(wanted)


def known_split(table: pd.DataFrame, seen: dict[str, list[str]]) -> np.ndarray:
    """The split of each image from the point of view of a run.

    Args:
        table: of the images, columns image_id and lesion_id.
        seen: the run's image_id, lesion_id and split, lists of equal length.

    Returns:
        "train", "val", "test" or "unused" for each row, dtype object [N].
    """
    of_image = dict(zip(seen["image_id"], seen["split"], strict=True))
    of_lesion: dict[str, str] = {}
    for lesion, part in zip(seen["lesion_id"], seen["split"], strict=True):
        if of_lesion.get(lesion, UNUSED) == UNUSED:
            of_lesion[lesion] = part
    return np.array(
        [
            of_image.get(image) or of_lesion.get(lesion, "test")
            for image, lesion in zip(table["image_id"], table["lesion_id"], strict=True)
        ],
        dtype=object,
    )


def predict(model: TrainedModel, data: HAM10000DataModule, rows: np.ndarray) -> pd.DataFrame:
    """Class probabilities of images.

    Args:
        model: to ask; `data`: with the rows decoded.
        rows: of the table, int64 [N].

    Returns:
        One row an image: image_id, lesion_id, y_true and y_pred (names), and for each class
        probability_<name>, float32.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = model.network.to(device)
    facts = model.facts["preprocessing"]
    prepare = BatchAugmentation(mean=tuple(facts["mean"]), std=tuple(facts["std"])).to(device)
    chunks = []
    with torch.inference_mode():
        for images, _, draws in _with_bar(data.evaluation_loader(rows)):
            batch = prepare(images.to(device, non_blocking=True), draws, 0, training=False)
            chunks.append(network(batch).float().softmax(dim=1))
    probabilities = torch.cat(chunks).cpu().numpy()
    table = data.table.iloc[rows][["image_id", "lesion_id"]].reset_index(drop=True)
    names = np.array(model.class_names, dtype=object)
    table["y_true"] = names[data.labels[rows]]
    table["y_pred"] = names[probabilities.argmax(axis=1)]
    for k, name in enumerate(names):
        table[f"probability_{name}"] = probabilities[:, k]
    return table


def _with_bar(loader: Any) -> Any:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal:
        return loader
    return track(loader, "predicting", len(loader), console=console, transient=True)


def measure(model: TrainedModel, predictions: pd.DataFrame) -> dict[str, Any]:
    """What the predictions are worth, as `metrics.json` holds it: by image, and by lesion.

    A lesion's probabilities are the mean of its images'.
    """
    names = model.class_names
    columns = [f"probability_{n}" for n in names]
    lesions = predictions.groupby("lesion_id", sort=False).agg(
        {**dict.fromkeys(columns, "mean"), "y_true": "first"}
    )
    by_image = _measured(predictions, predictions["lesion_id"].to_numpy(), names)
    by_lesion = _measured(lesions, lesions.index.to_numpy(), names)
    return {
        "n_images": len(predictions),
        "n_lesions": len(lesions),
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
    labels = table["y_true"].map({n: k for k, n in enumerate(names)}).to_numpy()
    # To float32's rounding, a row sums to 1.
    probabilities = table[[f"probability_{n}" for n in names]].to_numpy(dtype=float)

    def all_measures(weights: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        each = [measures.against_rest(weights, labels, probabilities, k) for k in range(len(names))]
        groups = {"": measures.overall(weights, labels, probabilities, each)}
        groups |= dict(zip(names, each, strict=True))
        return {(group, n): values for group in groups for n, values in groups[group].items()}

    found = bootstrap.with_intervals(lesions, all_measures)
    counts = {name: {"n_images": int((labels == k).sum())} for k, name in enumerate(names)}
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


def default_output(checkpoint: Path) -> Path:
    """reports/evaluation/<model>-version_N for a run's checkpoint, else named after its file."""
    run = checkpoint.absolute().parent.parent
    if checkpoint.absolute().parent.name == "checkpoints" and run.name.startswith("version_"):
        return Path("reports/evaluation") / f"{run.parent.name}-{run.name}"
    return Path("reports/evaluation") / checkpoint.stem


def write(folder: Path, facts: dict[str, Any], predictions: pd.DataFrame) -> None:
    """Writes metrics.json and predictions.csv; a value that is not a number becomes null."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "predictions.csv") as file:
        predictions.to_csv(file, index=False)
    with atomic_write(folder / "metrics.json") as file:
        json.dump(_finite(facts), file, indent=2, allow_nan=False)
        file.write("\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
