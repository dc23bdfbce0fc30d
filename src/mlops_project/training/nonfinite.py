"""Losses that are not finite: the run stops before they are saved, or skips the step and counts."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from mlops_project.config import TrainingConfig
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.errors import ProjectError
from mlops_project.printable import listed
from mlops_project.training.arrivals import Arrivals
from mlops_project.training.checkpoints import newest_good

log = logging.getLogger("mlops_project")

SHOWN = 8  # image ids in a message


@dataclass
class _Step:
    """A step whose loss may not have arrived from the device yet."""

    step: int
    learning_rate: float
    rows: torch.Tensor


class NonFinite(Callback):
    """Looks at the loss of every step, without making the program wait for a GPU.

    With on_nonfinite=stop the run ends when a loss has turned out not to be finite; nothing that
    followed from it has been saved. With skip, a step whose gradients are not finite changes
    neither the weights nor the statistics of batch normalisation; this waits for the device.

    Args:
        options: on_nonfinite, and max_skipped_steps, after which the run ends all the same.
        data: names the images.
        folder: the run's folder; None on processes other than the first.
    """

    def __init__(
        self, options: TrainingConfig, data: HAM10000DataModule, folder: Path | None
    ) -> None:
        self.options, self.data = options, data
        self.folder = folder  # the other processes learn of it in `setup`
        self._bad_rows: torch.Tensor | None = None  # of a loss of this step that is not finite
        self.skipped = 0  # steps of the run
        self._losses = Arrivals()
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def skips(self) -> bool:
        """Whether a step is skipped rather than the run ended."""
        return self.options.on_nonfinite == "skip"

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._rows = batch[3]
        if self.skips and batch_idx % trainer.accumulate_grad_batches == 0:
            self._bad_rows = None
            self._buffers = [(b, b.clone()) for b in pl_module.buffers() if b.is_floating_point()]

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor
    ) -> None:
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        step = _Step(trainer.global_step, rate, self._rows)
        self._losses.put(step, loss)
        self.check(wait=self.skips)

    def check(self, *, wait: bool = False) -> None:
        """Looks at the losses that have arrived.

        Args:
            wait: for those that have not, as has to be done before something is saved.

        Raises:
            ProjectError: one of them is not finite, and the run is to stop then.
        """
        for step, loss in self._losses.take(wait=wait):
            if math.isfinite(loss):
                continue
            self._bad_rows = step.rows
            if not self.skips:
                raise self._failure(
                    f"the loss of step {step.step + 1} is not finite", step.learning_rate, step.rows
                )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if not self.skips:
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        # The same for all processes of DDP, since they have added their gradients up.
        if torch.nn.utils.get_total_norm(gradients).isfinite():
            return
        # But a loss is each process's own, and all of them have to count the same steps.
        bad_loss = trainer.strategy.reduce_boolean_decision(self._bad_rows is not None, all=False)
        for buffer, before in self._buffers:
            buffer.copy_(before)
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            optimizer.zero_grad(set_to_none=True)  # a weight without a gradient stays as it is
        elif not bad_loss:
            # The scaler skips the step itself, and lowers its scale: for float16 that is normal.
            return
        self.skipped += 1
        rate = float(optimizer.param_groups[0]["lr"])
        rows = self._rows if self._bad_rows is None else self._bad_rows
        text = f"the gradients of step {trainer.global_step + 1} are not finite"
        if self.skipped > self.options.max_skipped_steps:
            raise self._failure(f"{text}, after {self.skipped - 1} skipped steps", rate, rows)
        log.warning(
            "%s: skipped (%d of at most %d); learning rate %.3g, last batch: %s",
            *(text, self.skipped, self.options.max_skipped_steps, rate),
            self._names(rows),
        )

    def refuse(self, split: str, rows: np.ndarray) -> None:
        """Ends the run for losses of an evaluation that are not finite.

        Args:
            split: "val" or "test".
            rows: whose losses they are, int64 [N].
        """
        rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        step = self.trainer.global_step
        what = f"{len(rows)} losses of the {split} split after step {step} are not finite"
        raise self._failure(what, rate, torch.from_numpy(rows))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.trainer = trainer
        folder: Any = trainer.strategy.broadcast(self.folder)
        self.folder = Path(folder)

    def _failure(self, what: str, rate: float, rows: torch.Tensor) -> ProjectError:
        good = newest_good(self.folder) if self.folder else None
        return ProjectError(
            f"{what}: learning rate {rate:.3g}, images {self._names(rows)}. "
            f"Last good checkpoint: {good or 'none yet'}\n"
            "Likely causes: too high a learning rate (try a tenth of it, with "
            "training.warmup_epochs=1),\nno training.gradient_clip_val=1.0, or float16 "
            "(training.precision=bf16)."
            + ("" if self.skips else " training.on_nonfinite=skip passes over single steps.")
        )

    def _names(self, rows: torch.Tensor) -> str:
        table = self.data.table
        positions = rows.cpu().numpy() % len(table)  # a draw is a row, plus its repetitions
        return listed(table["image_id"].iloc[positions].tolist(), SHOWN)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


def weights_are_finite(state_dict: dict[str, torch.Tensor]) -> bool:
    """Whether all weights and statistics of a network are; waits for the device once."""
    values = [v for v in state_dict.values() if torch.is_tensor(v) and v.is_floating_point()]
    return bool(torch.stack([v.isfinite().all() for v in values]).all()) if values else True
