"""While only the head of a network learns, the rest need not be computed again and again."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mlops_project.data.augmentation import to_device
from mlops_project.models.build import head, head_dropout
from mlops_project.training.processes import gather
from mlops_project.training.signals import Interruption

log = logging.getLogger("mlops_project")

LARGEST_TABLE = 2**31  # bytes; a larger one is not made


@dataclass
class Features:
    """What the frozen part of a network makes of images.

    Attributes:
        table: features of each row of the data's table, float [N, F], on the device.
        known: for which of the rows, bool [N].
        head: features to logits.
        dropout: before the head, in training.
    """

    table: torch.Tensor
    known: np.ndarray
    head: nn.Module
    dropout: float

    def of(self, rows: torch.Tensor) -> torch.Tensor | None:
        """Features of rows, int64 [B], as float [B, F]; None unless all are known."""
        positions = rows.cpu().numpy() % len(self.known)  # a draw is a row, plus its repetitions
        if not self.known[positions].all():
            return None
        return self.table[to_device(positions, self.table.device)]

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """What the network would make of the images with these features, float [B, K]."""
        return self.head(F.dropout(features, self.dropout, self.head.training))


@torch.no_grad()
def compute_features(
    trainer: pl.Trainer, module: Any, interruption: Interruption
) -> Features | None:
    """Features of the images that look the same in each epoch.

    That are those of the validation split and, without augmentation, those of the training split.
    They are computed in batches that depend on nothing else, so that a resumed run has the same.

    Args:
        trainer, module: of the run; all but the head of the network is frozen.
        interruption: is asked before each batch.

    Returns:
        None where they would not fit, or the head's input is not one vector an image.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    last = head(module.network)
    if data is None or not isinstance(last, nn.Module):
        return None
    splits = ["val"] if data.settings.augment else ["train", "val"]
    rows = np.flatnonzero(np.isin(data.split, splits))
    seen: list[torch.Tensor] = []
    watch = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    modes = {part: part.training for part in module.network.modules()}
    table, known = None, np.zeros(len(data.table), dtype=bool)
    try:
        module.network.eval()
        for batch in data.evaluation_loader(rows):
            interruption.raise_if_asked()
            images, _, draws = data.transfer_batch_to_device(batch, module.device, 0)
            images = module.augmentation(images, draws, 0, training=False)
            with trainer.precision_plugin.forward_context():
                module.network(images)
            features = seen.pop()
            if features.ndim != 2 or features.nbytes / len(draws) * len(known) > LARGEST_TABLE:
                return None
            features, positions = gather(features), gather(draws.to(module.device)).cpu()
            if table is None:
                table = features.new_zeros((len(known), features.shape[1]))
            table[positions.to(table.device)] = features
            known[positions.numpy()] = True
    finally:
        watch.remove()
        for part, mode in modes.items():
            part.training = mode
    if table is None:
        return None
    log.info("only the head learns: features of %d images are computed once", known.sum())
    return Features(table, known, last, head_dropout(module.network))
