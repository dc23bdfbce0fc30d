"""One training step, told once: prepare the batch, run the network, compute the loss."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Timer
from torch import nn

from mlops_project import settings
from mlops_project.config import Config
from mlops_project.data.augmentation import BatchAugmentation
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.data.image_operations import shrink
from mlops_project.data.randomness import seed_for
from mlops_project.data.sampling import POWERS
from mlops_project.errors import InputError
from mlops_project.models.build import BuiltModel, stages
from mlops_project.training.batch_norm import count_batches_once
from mlops_project.training.checkpoints import ENTRY, metadata
from mlops_project.training.features import Features
from mlops_project.training.losses import (
    ClassificationLoss,
    balanced_class_weights,
    log_frequencies,
)
from mlops_project.training.optimizers import (
    Schedule,
    build_optimizer,
    parameter_groups,
    time_share,
)
from mlops_project.training.progressive_resizing import side_in

PreparedBatch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class LesionClassifier(pl.LightningModule):
    """A network with its loss, augmentation, optimizer and schedule.

    Args:
        network: images float32 [B, 3, S, S], normalised -> logits [B, K].
        config: settings; training.learning_rate and weight_decay are numbers.
        augmentation: uint8 batches to normalised ones, on the device.
        loss: of a batch's logits.
        images_per_step: gives the images of each optimizer step of an epoch, of all processes
            together; asked once training knows how many processes there are.
        metadata: plain containers kept in every checkpoint, for using the model elsewhere.
    """

    def __init__(
        self,
        network: nn.Module,
        config: Config,
        *,
        augmentation: BatchAugmentation,
        loss: ClassificationLoss,
        images_per_step: Callable[[], list[int]],
        metadata: dict[str, Any],
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.augmentation = augmentation
        self.loss = loss
        self.images_per_step = images_per_step
        self.metadata = metadata
        # Noted here: shared by several processes (FSDP) weights have one dimension each.
        self._decaying = {id(p) for p in network.parameters() if p.ndim > 1}
        self.compiled: Callable[[torch.Tensor], torch.Tensor] | None = None
        if config.training.compile is True:
            # Else compiled dropout would draw other numbers than that of the network as it is.
            self.compiled = torch.compile(network.forward, options={"fallback_random": True})
        self.time_used: Callable[[], float] | None = None  # share of training.max_time
        self.used_before = 0.0  # the present epoch, by the clock of the first process
        self.side = side_in(0, config)  # of the training images, pixels
        self.features: Features | None = None  # while the images need not be looked at again

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the name of each hook, some fifty times a step; nn.Module would look each
        # time whether it is a weight.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def on_fit_start(self) -> None:
        if self.config.training.enable_checkpointing:
            count_batches_once(self.network)

    def on_train_start(self) -> None:
        # A run that goes on within an epoch does not start it again.
        self.side = side_in(self.current_epoch, self.config, self.used_before)
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, Schedule):
                config.scheduler.refresh()  # by the clock

    def on_train_epoch_start(self) -> None:
        self._look_at_the_clock()

    def _look_at_the_clock(self) -> None:
        if self.time_used:
            self.used_before = self.trainer.strategy.broadcast(self.time_used())
        self.side = side_in(self.current_epoch, self.config, self.used_before)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout and the like draw from torch's generator. Seeded anew for each batch, their
        # numbers are a function of (seed, epoch, batch), whatever happened before it.
        seed = seed_for(self.config.seed, self.current_epoch, batch_idx, self.global_rank)
        # torch.manual_seed would note a traceback for each kind of device that is not there.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> PreparedBatch:
        """Augments and normalises (images uint8, labels, rows) on the device.

        Returns:
            Images float32 [B, 3, S, S], in training [B, 3, T, T] with T of `side_in` (or their
            features [B, F], where these are known), targets
            (class indices [B] or shares [B, K]), labels int64 [B], rows int64 [B].
        """
        images, labels, rows = batch
        features = self.features.of(rows) if self.features is not None else None
        if features is not None:
            return features, labels, labels, rows
        training = self.trainer.training
        epoch = self.current_epoch
        if training:
            images = shrink(images, self.side)
        usual = training and self._is_usual(images)
        prepared = self.augmentation(images, rows, epoch, training=training, usual=usual)
        targets = labels
        if training:
            prepared, targets = self.augmentation.mix(prepared, labels, rows, epoch)
        return prepared, targets, labels, rows

    def training_step(self, batch: PreparedBatch, batch_idx: int) -> dict[str, torch.Tensor]:
        usual = self._is_usual(batch[0])
        network = self.compiled if self.compiled is not None and usual else self.network
        total, outputs = self._outputs(batch, network)
        # The mean over all images of the optimizer step, whatever batches and processes they come
        # in: Lightning divides by the number of batches, and DDP by that of the processes.
        parts = self.config.training.accumulate_grad_batches
        images = self.step_images[min(batch_idx // parts, len(self.step_images) - 1)]
        share = parts * self.trainer.world_size / images
        outputs["loss"] = total * share
        return outputs

    def _is_usual(self, images: torch.Tensor) -> bool:
        """Whether a batch has the shape that most have; only for that one is anything compiled."""
        size = self.config.data.batch_size, self.config.data.image_size
        return (len(images), images.shape[-1]) == size

    def validation_step(self, batch: PreparedBatch, batch_idx: int) -> dict[str, torch.Tensor]:
        return self._outputs(batch, self.network)[1]

    def test_step(self, batch: PreparedBatch, batch_idx: int) -> dict[str, torch.Tensor]:
        return self._outputs(batch, self.network)[1]

    def _outputs(
        self, batch: PreparedBatch, network: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum of the images' losses, and what the metrics of an epoch are made of."""
        images, targets, labels, rows = batch
        known = self.features if images.ndim == 2 else None
        logits = known.logits(images) if known is not None else network(images)
        losses, weights = self.loss(logits, targets)
        return losses.sum(), {
            "losses": losses.detach(),
            "weights": weights.detach(),
            "probabilities": logits.detach().float().softmax(dim=1),
            "labels": labels,
            "rows": rows,
        }

    def configure_optimizers(self) -> Any:
        self.step_images = self.images_per_step()
        options = self.config.training
        rate = float(options.learning_rate or self.config.model.learning_rate)
        groups = parameter_groups(
            stages(self.network),
            learning_rate=rate,
            weight_decay=float(options.weight_decay or 0.0),
            decays=lambda parameter: id(parameter) in self._decaying,
            backbone_factor=options.unfreeze_lr_factor,
            layer_decay=options.layer_decay,
        )
        optimizer = build_optimizer(options.optimizer, groups)
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        timer = next((c for c in callbacks if isinstance(c, Timer)), None)
        self.time_used = time_share(timer) if timer else None
        # Several processes must not go by several clocks: their weights would part.
        clock = self.time_used if self.trainer.world_size == 1 else lambda: self.used_before
        schedule = Schedule(optimizer, options, rate, len(self.step_images), clock)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # PyTorch clips no empty list by value, as a step that is skipped has it.
        if any(p.grad is not None for p in self.parameters()):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[ENTRY] = {**self.metadata, "used_before": self.used_before}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.used_before = checkpoint[ENTRY].get("used_before", 0.0)


def build_module(
    config: Config,
    built: BuiltModel,
    data: HAM10000DataModule,
    auto: Collection[str] = (),
    earlier: dict[str, list[str]] | None = None,
) -> LesionClassifier:
    """Network, loss and augmentation, with what a checkpoint needs to say about them.

    Args:
        config: of the run.
        built: the network.
        data: has read its table.
        auto: names of the settings whose values were found for "auto".
        earlier: see `checkpoints.metadata`.
    """
    options, augment = config.training, config.data.augment
    labels = data.labels[data.rows_of("train")]
    weights = None
    if options.class_weights == "balanced":
        weights = balanced_class_weights(labels, config.model.num_classes)
    offsets = None
    if options.logit_adjustment:
        power = POWERS[config.data.sampler]
        offsets = log_frequencies(labels, config.model.num_classes, power)
        offsets *= options.logit_adjustment
    if options.channels_last is True:
        built.network.to(memory_format=torch.channels_last)
    module = LesionClassifier(
        built.network,
        config,
        augmentation=BatchAugmentation(
            mean=built.mean,
            std=built.std,
            seed=config.seed,
            rotation_degrees=config.data.rotation_degrees * augment,
            zoom=config.data.zoom * augment,
            color_jitter=config.data.color_jitter * augment,
            hue=config.data.hue * augment,
            random_erasing=config.data.random_erasing * augment,
            randaugment=config.data.randaugment * augment,
            mixup=config.data.mixup * augment,
            cutmix=config.data.cutmix * augment,
            num_classes=config.model.num_classes,
            channels_last=options.channels_last is True,
            compiled=options.compile is True,
        ),
        loss=ClassificationLoss(
            options.loss,
            class_weights=weights,
            label_smoothing=options.label_smoothing,
            focal_gamma=options.focal_gamma,
            logit_offsets=offsets,
        ),
        images_per_step=lambda: data.training_batches().images_per_step(
            options.accumulate_grad_batches, options.limit_train_batches
        ),
        metadata=metadata(config, built, data, earlier) | {"auto": sorted(auto)},
    )
    module.save_hyperparameters({**settings.to_container(config), "weights": built.weights})
    return module


def recompute_activations(network: nn.Module, config: Config) -> None:
    """Turns gradient checkpointing on: less memory, for a second forward pass.

    Raises:
        InputError: the network cannot.
    """
    try:
        network.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"training.enable_checkpointing=true: {config.model.variant or config.model.name} has "
            "no gradient checkpointing; a smaller data.batch_size with "
            "training.accumulate_grad_batches saves memory as well"
        ) from error
