"""Which part of a pretrained network learns when: a function of the epoch alone.

Because nothing is remembered, a resumed run freezes exactly what the uninterrupted one had frozen.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import nn

from mlops_project.config import TrainingConfig
from mlops_project.models.build import freeze, stages
from mlops_project.training.features import compute_features


def free_stages(epoch: int, count: int, settings: TrainingConfig) -> int:
    """How many stages, from the head down, learn in an epoch.

    Args:
        epoch: from 0.
        count: stages of the network, the head included.
        settings: freeze_backbone_epochs keeps the backbone fixed before that epoch; with
            progressive_unfreezing each epoch of unfreeze_schedule frees one more stage, and the
            last one the rest.
    """
    if epoch < settings.freeze_backbone_epochs:
        return 1
    if not settings.progressive_unfreezing or not settings.unfreeze_schedule:
        return count
    reached = sum(epoch >= at for at in settings.unfreeze_schedule)
    return count if reached == len(settings.unfreeze_schedule) else min(count, 1 + reached)


def freeze_in(network: nn.Module, epoch: int, settings: TrainingConfig) -> int:
    """Fixes and frees the stages of a network as in an epoch; how many of them learn."""
    parts = stages(network)
    free = free_stages(epoch, len(parts), settings)
    freeze(network, [p for stage in parts[free:] for p in stage])
    return free


def freezes(settings: TrainingConfig) -> bool:
    """Whether any part of the network is fixed in any epoch."""
    return settings.freeze_backbone_epochs > 0 or settings.progressive_unfreezing


class Unfreezing(Callback):
    """Fixes and frees the stages of the network at the start of each epoch."""

    def __init__(self, settings: TrainingConfig) -> None:
        self.settings = settings
        self._tried = False  # to compute features

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._apply(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._apply(trainer, pl_module)

    def _apply(self, trainer: pl.Trainer, module: Any) -> None:
        free = freeze_in(module.network, trainer.current_epoch, self.settings)
        if free > 1 or len(stages(module.network)) == 1:
            module.features = None
        elif not self._tried:
            self._tried = True
            module.features = compute_features(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.features = None
