"""From images to class probabilities and features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from mlops_project.data.augmentation import BatchAugmentation
from mlops_project.errors import InputError
from mlops_project.evaluation import patients
from mlops_project.evaluation.images import Images
from mlops_project.evaluation.predictions_table import as_binary, columns_of
from mlops_project.evaluation.trained_model import TrainedModel
from mlops_project.models.build import head
from mlops_project.progress import track

# (quarter turns, mirrored): a dermoscopic image has no up.
VIEWS = tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4))


@dataclass(frozen=True)
class Predictions:
    """What models say of images.

    Attributes:
        table: a row an image: image_id, lesion_id, y_true ("" where unknown) and y_pred (names of
            classes), for each class probability_<name>, float32, and age, sex and localization.
        features: what the networks' last layers see, of length 1, float32 [N, D]; of several
            models side by side, so that a product of two rows is their mean cosine. None where
            images were shown to different models.
    """

    table: pd.DataFrame
    features: np.ndarray | None

    def labelled(self) -> pd.DataFrame:
        """The rows of the table with a known class."""
        return self.table[self.table["y_true"] != ""].reset_index(drop=True)


def predict(models: Sequence[TrainedModel], images: Images, *, tta: bool = False) -> Predictions:
    """Class probabilities: the mean over the models asked and, with `tta`, over turned images.

    Args:
        models: of the same classes.
        images: opened for these models.
        tta: test-time augmentation by the eight `VIEWS`, else the image as it is.
    """
    views = VIEWS if tta else VIEWS[:1]
    names = models[0].class_names
    total, features = np.zeros((len(images.rows), len(names))), []
    for number, (model, data) in enumerate(zip(models, images.data, strict=True)):
        title = f"predicting, model {number + 1} of {len(models)}"
        asked = images.asked[number]
        if asked.any():
            loader = data.evaluation_loader(images.rows[asked])
            batches = track(((b[0], b[2]) for b in loader), title, len(loader))
            probabilities, seen = _forward(model, batches, views)
            total[asked] += probabilities
            features.append(seen)
    mean = (total / images.asked.sum(axis=0)[:, None]).astype(np.float32)
    broken = ~np.isfinite(mean).all(axis=1)
    if broken.any():
        raise InputError(
            f"{models[0].path}: the answer to {broken.sum()} of {len(mean)} images is not a "
            "number: its training has diverged\nEvaluate an earlier checkpoint of the run."
        )
    table = images.table[["image_id", "lesion_id"]].copy()
    table["y_pred"] = np.array(names, dtype=object)[mean.argmax(axis=1)]
    table[columns_of(names)] = mean
    if images.class_names != names:
        table = as_binary(table)
    # The last, for the label -1, is that of an image without one.
    truth = np.array([*images.class_names, ""], dtype=object)[images.labels]
    table.insert(2, "y_true", truth)
    table[list(patients.COLUMNS)] = images.table[list(patients.COLUMNS)]
    return Predictions(table, _side_by_side(features) if images.asked.all() else None)


def embed(models: Sequence[TrainedModel], images: np.ndarray) -> np.ndarray:
    """Features, as in `Predictions`, of images uint8 [N, 3, S, S] of any size, float32 [N, D]."""
    features = []
    for model in models:
        size = (model.image_size, model.image_size)
        scaled = F.interpolate(torch.from_numpy(images), size, mode="bilinear", antialias=True)
        batches = ((batch, torch.arange(len(batch))) for batch in scaled.split(32))
        features.append(_forward(model, batches, VIEWS[:1])[1])
    return _side_by_side(features)


def _forward(
    model: TrainedModel, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], views: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, float32 [N, K], and features of length 1, float32 [N, D]."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = model.network.to(device)
    facts = model.facts["preprocessing"]
    prepare = BatchAugmentation(
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        channels_last=model.config.training.channels_last is True,
    ).to(device)
    probabilities, features = [], []
    # Weights that came to a GPU in inference mode would have no gradients, which the maps of what
    # a network looks at are made of.
    with torch.inference_mode(), _input_of(head(network)) as seen:
        for images, draws in batches:
            batch = prepare(images.to(device, non_blocking=True), draws, 0, training=False)
            total = sum(network(_turned(batch, *view)).float().softmax(dim=1) for view in views)
            probabilities.append(total / len(views))
            # The image as it is comes first.
            features.append(F.normalize(seen[0].flatten(1).float(), dim=1))
            seen.clear()
    return torch.cat(probabilities).cpu().numpy(), torch.cat(features).cpu().numpy()


def _turned(batch: torch.Tensor, turns: int, mirrored: bool) -> torch.Tensor:
    turned = batch.rot90(turns, (2, 3)) if turns else batch
    return turned.flip(3) if mirrored else turned


@contextmanager
def _input_of(layer: nn.Module | Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Collects what the layer is given; of several layers in parallel, the first."""
    seen: list[torch.Tensor] = []
    first = layer if isinstance(layer, nn.Module) else layer[0]
    handle = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _side_by_side(features: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(features, axis=1) / np.float32(np.sqrt(len(features)))
