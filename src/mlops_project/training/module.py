"""One training step, told once: prepare the batch, run the network, compute the loss."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from mlops_project.config import Config
from mlops_project.data.augmentation import BatchAugmentation
from mlops_project.data.randomness import seed_for
from mlops_project.models.build import stages
from mlops_project.training.checkpoints import ENTRY
from mlops_project.training.losses import ClassificationLoss
from mlops_project.training.optimizers import Schedule, build_optimizer, parameter_groups

Prepared = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class LesionClassifier(pl.LightningModule):
    """A network with its loss, augmentation, optimizer and schedule.

    Args:
        network: images float32 [B, 3, S, S], normalised -> logits [B, K].
        config: settings; training.learning_rate and weight_decay are numbers.
        augmentation: uint8 batches to normalised ones, on the device.
        loss: of a batch's logits.
        steps_per_epoch: optimizer steps an epoch.
        metadata: plain containers kept in every checkpoint, for using the model elsewhere.
    """

    def __init__(
        self,
        network: nn.Module,
        config: Config,
        *,
        augmentation: BatchAugmentation,
        loss: ClassificationLoss,
        steps_per_epoch: int,
        metadata: dict[str, Any],
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.augmentation = augmentation
        self.loss = loss
        self.steps_per_epoch = steps_per_epoch
        self.metadata = metadata
        self.used_learning_rate = 0.0  # the head's, in the latest step

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout and the like draw from torch's generator. Seeded anew for each batch, their
        # numbers are a function of (seed, epoch, batch), whatever happened before it.
        torch.manual_seed(
            seed_for(self.config.seed, self.current_epoch, batch_idx, self.global_rank)
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Prepared:
        """Augments and normalises (images uint8, labels, rows) on the device.

        Returns:
            Images float32 [B, 3, S, S], targets (class indices [B] or shares [B, K]), labels
            int64 [B], rows int64 [B].
        """
        images, labels, rows = batch
        training = self.trainer.training
        epoch = self.current_epoch
        prepared = self.augmentation(images, rows, epoch, training=training)
        targets = labels
        if training:
            prepared, targets = self.augmentation.mix(prepared, labels, rows, epoch)
        return prepared, targets, labels, rows

    def training_step(self, batch: Prepared, batch_idx: int) -> dict[str, torch.Tensor]:
        outputs = self._outputs(batch)
        self.log("train_loss_step", outputs["loss"].detach(), on_step=True, on_epoch=False)
        # Once the step is done the schedule has set the next one's rate.
        self.used_learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("learning_rate", self.used_learning_rate, on_step=True, on_epoch=False)
        return outputs

    def validation_step(self, batch: Prepared, batch_idx: int) -> dict[str, torch.Tensor]:
        return self._outputs(batch)

    def test_step(self, batch: Prepared, batch_idx: int) -> dict[str, torch.Tensor]:
        return self._outputs(batch)

    def _outputs(self, batch: Prepared) -> dict[str, torch.Tensor]:
        images, targets, labels, rows = batch
        logits = self.network(images)
        losses, weights = self.loss(logits, targets)
        return {
            "loss": losses.sum() / weights.sum(),
            "losses": losses.detach(),
            "weights": weights.detach(),
            "probabilities": logits.detach().float().softmax(dim=1),
            "labels": labels,
            "rows": rows,
        }

    def configure_optimizers(self) -> Any:
        settings = self.config.training
        rate = float(settings.learning_rate or self.config.model.learning_rate)
        groups = parameter_groups(
            stages(self.network),
            learning_rate=rate,
            weight_decay=float(settings.weight_decay or 0.0),
            backbone_factor=settings.unfreeze_lr_factor,
            layer_decay=settings.layer_decay,
        )
        optimizer = build_optimizer(settings.optimizer, groups)
        schedule = Schedule(optimizer, settings, rate, self.steps_per_epoch)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[ENTRY] = self.metadata
