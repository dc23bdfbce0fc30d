"""Lightning's training step without what a run does not ask for.

In each step Lightning calls six hooks of every callback, most of which are empty, and looks up anew
what stays the same for the whole run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.optimization.automatic import ClosureResult

STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class _Outputs(ClosureResult):
    """A step's loss and outputs, the loss neither copied nor divided by one."""

    @classmethod
    def from_training_step_output(cls, training_step_output: Any, normalize: int = 1) -> Any:
        if normalize != 1 or not isinstance(training_step_output, Mapping):
            return super().from_training_step_output(training_step_output, normalize)
        extra = dict(training_step_output)
        return cls(extra.pop("loss"), extra=extra)

    def _clone_loss(self) -> None:
        if self.closure_loss is not None:
            self.loss = self.closure_loss.detach()


def make_lean(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Spares each step what changes nothing.

    Args:
        trainer: with all its callbacks; its batches come from a data module.
        module: that it is going to train; its `training_step` takes a batch and its number.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for owner, base in [*((c, Callback) for c in callbacks), (module, pl.LightningModule)]:
        for name in STEP_HOOKS:
            if getattr(type(owner), name) is getattr(base, name):
                setattr(owner, name, None)  # Lightning passes over what it cannot call
    if trainer.gradient_clip_val is None:
        module.configure_gradient_clipping = None  # type: ignore[assignment,method-assign]

    def to_device(batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        moved = data.transfer_batch_to_device(batch, device or module.device, dataloader_idx)
        return module.on_after_batch_transfer(moved, dataloader_idx)

    changed: Any = module
    changed._on_before_batch_transfer = lambda batch, dataloader_idx=0: batch
    changed._apply_batch_transfer_handler = to_device
    epoch_loop: Any = trainer.fit_loop.epoch_loop
    epoch_loop._build_kwargs = lambda kwargs, batch, batch_idx: OrderedDict(
        batch=batch, batch_idx=batch_idx
    )
    epoch_loop.automatic_optimization.output_result_cls = _Outputs
    # Of several processes each would wait for its GPU in each step, to ask the first one whether it
    # was told to end; `Checkpoints` asks that without waiting.
    epoch_loop._broadcast_sigterm_tensor = lambda: None
