"""While only the head of a network learns, the rest need not be computed again and again."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.nn import functional as F

from mlops_project.data.device import to_device
from mlops_project.models.build import head, head_dropout, knows_head_dropout
from mlops_project.training.processes import gather

log = logging.getLogger("mlops_project")

LARGEST_TABLE = 2**31  # bytes; a larger one is not made


@dataclass
class Features:
    """What the frozen part of a network makes of images.

    Attributes:
        table: features, float [M, F], on the device.
        position: of each row of the data in it, int64 [N]; -1 where it is not.
        head: features to logits.
        dropout: before the head, in training.
    """

    table: torch.Tensor
    position: np.ndarray
    head: nn.Module
    dropout: float

    def of(self, rows: torch.Tensor) -> torch.Tensor | None:
        """Features of rows, int64 [B], as float [B, F]; None unless all are known."""
        # A draw is a row, plus its repetitions.
        positions = self.position[rows.cpu().numpy() % len(self.position)]
        if (positions < 0).any():
            return None
        return self.table[to_device(positions, self.table.device)]

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """What the network would make of the images with these features, float [B, K]."""
        return self.head(F.dropout(features, self.dropout, self.head.training))


@torch.no_grad()
def compute_features(trainer: pl.Trainer, module: Any) -> Features | None:
    """Features of the images that look the same in each epoch.

    Those of the validation split and, where images neither are augmented nor grow, those of the
    training split. They are computed in batches that depend on nothing else, so that a resumed run
    has the same.

    Args:
        trainer, module: of the run; all but the head of the network is frozen.

    Returns:
        None where they would not fit, or the network is more than its head after its features.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    last = head(module.network)
    if data is None or not isinstance(last, nn.Module) or not knows_head_dropout(module.network):
        return None
    if isinstance(trainer.strategy, FSDPStrategy):
        return None  # its weights come together only in a step
    changing = data.settings.augment or data.settings.start_size
    splits = ["val"] if changing else ["train", "val"]
    rows = np.flatnonzero(np.isin(data.split, splits))
    position = np.full(len(data.table), -1)
    position[rows] = np.arange(len(rows))
    table: torch.Tensor | None = None
    seen: list[torch.Tensor] = []
    watch = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    modes = {part: part.training for part in module.network.modules()}
    try:
        module.network.eval()
        for batch in data.evaluation_loader(rows):
            images, _, draws = data.transfer_batch_to_device(batch, module.device, 0)
            images = module.augmentation(images, draws, 0, training=False)
            seen.clear()
            with trainer.precision_plugin.forward_context():
                logits = module.network(images)
                if len(seen) != 1 or seen[0].ndim != 2:
                    return None
                features = seen[0]
                if table is None:
                    if not torch.allclose(last(features), logits, rtol=1e-3, atol=1e-5):
                        return None
                    if features[0].nbytes * len(rows) > LARGEST_TABLE:
                        return None
                    table = features.new_zeros((len(rows), features.shape[1]))
            where = position[gather(draws.to(module.device)).cpu().numpy()]
            table[torch.from_numpy(where).to(table.device)] = gather(features)
    finally:
        watch.remove()
        for part, mode in modes.items():
            part.training = mode
    if table is None:
        return None
    log.info("only the head learns: features of %d images are computed once", len(rows))
    return Features(table, position, last, head_dropout(module.network))
