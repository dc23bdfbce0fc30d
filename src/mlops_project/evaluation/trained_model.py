"""A model as a checkpoint holds it, and several as one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mlops_project import settings
from mlops_project.config import Config
from mlops_project.data.diagnoses import malignant_classes
from mlops_project.data.sampling import POWERS
from mlops_project.errors import InputError
from mlops_project.models.build import build_model
from mlops_project.training.checkpoints import ENTRY, load_checkpoint


@dataclass(frozen=True)
class TrainedModel:
    """A network as a checkpoint holds it, with all that is needed to use it.

    Attributes:
        path: of the checkpoint.
        network: normalised float images [B, 3, S, S] to logits [B, K]; in evaluation mode.
        config: settings of the run.
        facts: the checkpoint's entry of `training.checkpoints.metadata`.
        epoch: after how many epochs of training it was saved, counted from 1.
    """

    path: Path
    network: nn.Module
    config: Config
    facts: dict[str, Any]
    epoch: int

    @property
    def class_names(self) -> list[str]:
        """In the order of the probabilities."""
        return self.facts["class_names"]

    @property
    def image_size(self) -> int:
        """Side of the images it takes, pixels."""
        return self.facts["preprocessing"]["image_size"]

    def log_prior(self, class_names: Sequence[str]) -> np.ndarray:
        """What brings the model's probabilities to the frequencies of its training images.

        Logit adjustment, balanced class weights and balanced sampling each make a network expect
        rare classes more often than they occur: as often as all others, less than that (square
        root), or more (several of these, logit adjustment above 1). The logarithms of the classes'
        frequencies, less those of what it expects, are to be added to the logarithms of its
        probabilities (Saerens et al., Neural Computation 2002).

        Args:
            class_names: the model's, or benign and malignant.

        Returns:
            float64 [K]; 0 where the training was by the images' own frequencies.
        """
        training = self.config.training
        power = POWERS[self.config.data.sampler] * (1 - training.logit_adjustment)
        power -= training.class_weights == "balanced"
        counts = self.facts.get("training_images")
        if power == 1 or counts is None:  # earlier versions did not keep them
            return np.zeros(len(class_names))
        known = np.array([counts[name] for name in self.class_names]).clip(min=1)
        natural, assumed = (known**p / (known**p).sum() for p in (1.0, power))
        if list(class_names) != self.class_names:
            group = np.isin(np.arange(len(known)), malignant_classes(self.class_names)).astype(int)
            natural, assumed = (np.bincount(group, part) for part in (natural, assumed))
        return np.log(natural) - np.log(assumed)


def load_model(path: str | os.PathLike[str]) -> TrainedModel:
    """Restores a model from its checkpoint alone.

    Raises:
        InputError: no such checkpoint, or not a readable one.
    """
    checkpoint = load_checkpoint(path)
    facts = checkpoint[ENTRY]
    try:
        config = settings.from_container(facts["config"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
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
    if config.training.channels_last is True:  # what was the fastest in training is so here
        built.network.to(memory_format=torch.channels_last)
    epoch = int(checkpoint.get("epoch", 0)) + 1
    return TrainedModel(Path(path), built.network.eval(), config, facts, epoch)


def load_models(paths: Sequence[Path]) -> list[TrainedModel]:
    """The models of an ensemble, whose probabilities are averaged.

    Raises:
        InputError: one cannot be used, is named twice, or has other classes than the first.
    """
    models = [load_model(path) for path in paths]
    for n, model in enumerate(models):
        if model.class_names != models[0].class_names:
            raise InputError(
                f"{model.path}: it tells {', '.join(model.class_names)} apart, and "
                f"{models[0].path} {', '.join(models[0].class_names)}\n"
                "Models whose probabilities are averaged need the same classes."
            )
        if model.path.resolve() in [other.path.resolve() for other in models[:n]]:
            raise InputError(f"{model.path}: named twice; each model of an ensemble counts once")
    return models


def describe(models: Sequence[TrainedModel]) -> str:
    """The name of a model, or how many of which kinds an ensemble has."""
    if len(models) == 1:
        return models[0].config.model.name
    kinds = Counter(
        " ".join(filter(None, (m.config.model.name, m.config.model.variant, f"{m.image_size} px")))
        for m in models
    )
    told = ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
    return f"ensemble of {len(models)} ({told})"
