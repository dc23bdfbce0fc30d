"""What a run tells: metrics of each epoch, the table and curves in its folder, the console."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from mlops_project.files import atomic_write, save_figure
from mlops_project.metrics import classification_metrics, label, monitor_mode
from mlops_project.training.arrivals import Arrivals
from mlops_project.training.folders import table_text
from mlops_project.training.optimizers import Schedule
from mlops_project.training.predictions import Predictions
from mlops_project.training.processes import gather, is_first

log = logging.getLogger("mlops_project")


class EpochMetrics(Callback):
    """Collects the predictions of an epoch and logs its metrics.

    Nothing is computed, and the device not waited for, within a step. The predictions of all
    processes are gathered and sorted by image, so that the number of processes does not matter.

    Args:
        refuse: called with the split and the rows of an evaluation whose losses are not finite.
    """

    def __init__(self, refuse: Callable[[str, np.ndarray], None]) -> None:
        self.refuse = refuse
        self.predictions: dict[str, Predictions] = {}
        self.latest: dict[str, float] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.module = pl_module

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish("train", trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish("val", trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish("test", trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self._collect("train", outputs)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self._collect("val", outputs)

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self._collect("test", outputs)

    def state_dict(self) -> dict[str, Any]:
        """The epoch so far, of all processes, so that a resumed epoch's metrics cover all of it."""
        return {"train": self._gathered("train"), "latest": dict(self.latest)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        train = state_dict["train"]
        if not is_first():
            # The first process has all of it; the others take part in gathering nothing.
            train = {name: values[:0] for name, values in train.items()}
        self.predictions.pop("train", None)
        if train:
            self._collect("train", train)
        self.latest = dict(state_dict["latest"])

    def _collect(self, split: str, outputs: dict[str, torch.Tensor]) -> None:
        kept = {name: value for name, value in outputs.items() if name != "loss"}
        self.predictions.setdefault(split, Predictions()).add(kept)

    def _gathered(self, split: str) -> dict[str, torch.Tensor]:
        """The predictions so far of all processes, on the CPU; empty where there are none."""
        joined = self.predictions.get(split, Predictions()).joined()
        return {n: gather(value.to(self.module.device)).cpu() for n, value in joined.items()}

    def _finish(self, split: str, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        joined = {name: values.numpy() for name, values in self._gathered(split).items()}
        self.predictions.pop(split, None)
        if not joined:
            return
        # In the order of the images, each once: a process may have shown some of them again.
        _, order = np.unique(joined["rows"], return_index=True)
        labels, probabilities = joined["labels"][order], joined["probabilities"][order]
        losses = joined["losses"][order].astype(np.float64)
        weights = joined["weights"][order].astype(np.float64)
        finite = np.isfinite(losses)
        if split == "train":  # with on_nonfinite=skip, what was skipped is not learned from
            labels, probabilities = labels[finite], probabilities[finite]
            losses, weights = losses[finite], weights[finite]
        elif not finite.all():
            self.refuse(split, joined["rows"][order][~finite])
        values = {"loss": float(losses.sum() / weights.sum())}
        values |= classification_metrics(labels, probabilities)
        named = {f"{split}_{name}": value for name, value in values.items()}
        self.latest |= named
        # For early stopping and the progress bar; `History` passes them on to the loggers.
        module.log_dict(named, logger=False)


class History(Callback):
    """What a run has told so far: losses of steps and metrics of epochs.

    They go to metrics.csv, the loggers, the console and into checkpoints, so that a resumed run's
    files have no gap and no double. The rows hold nothing that depends on the clock. All is written
    here, before a checkpoint is, and not left to Lightning, which writes after it.

    Args:
        folder: the run's folder; None on processes other than the first.
        metrics: whose latest values make the row.
        monitor: name of the metric that picks the best epoch.
        every_n_steps: steps between logged losses.
    """

    def __init__(
        self, folder: Path | None, metrics: EpochMetrics, monitor: str, every_n_steps: int
    ) -> None:
        self.folder, self.metrics, self.monitor = folder, metrics, monitor
        self.every_n_steps = every_n_steps
        self.rows: list[dict[str, Any]] = []
        self.learning_rate = math.nan  # the head's, in the latest step
        self._logged_step = 0
        self._losses = Arrivals()

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        # Once the step is done the schedule has set the next one's rate.
        self.learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._logged_step or step % self.every_n_steps:
            return
        self._logged_step = step
        if trainer.loggers:
            note = (step, {"learning_rate": self.learning_rate, "epoch": trainer.current_epoch})
            self._losses.put(note, outputs["losses"].mean())
        self.catch_up(trainer)

    def catch_up(self, trainer: pl.Trainer, *, wait: bool = False) -> None:
        """Tells the loggers of the steps whose losses have arrived from the device.

        Args:
            wait: for the others as well, as has to be done before a checkpoint is saved.
        """
        for (step, known), loss in self._losses.take(wait=wait):
            for logger in trainer.loggers:
                logger.log_metrics({"train_loss_step": float(loss), **known}, step=step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "learning_rate": self.learning_rate,
        }
        row |= {n: v for n, v in self.metrics.latest.items() if not n.startswith("test_")}
        self.rows.append(row)
        self._write()
        self.catch_up(trainer, wait=True)
        told = {n: v for n, v in row.items() if n not in ("epoch", "step", "learning_rate")}
        self._log(trainer, told)
        for config in trainer.lr_scheduler_configs:
            if self.monitor in row and isinstance(config.scheduler, Schedule):
                config.scheduler.observe(row[self.monitor], monitor_mode(self.monitor))
        if trainer.is_global_zero:
            shown = dict.fromkeys(
                ("train_loss", "val_loss", "val_balanced_accuracy", "val_auroc", self.monitor)
            )
            text = "  ".join(f"{name} {row[name]:.4f}" for name in shown if name in row)
            log.info("epoch %d/%s  %s", row["epoch"] + 1, trainer.max_epochs, text)

    def row(self, epoch: int) -> dict[str, Any]:
        """The metrics of an epoch, counted from 0; empty if it has none."""
        return next((row for row in self.rows if row["epoch"] == epoch), {})

    def _log(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        for logger in trainer.loggers:
            told = {**values, "epoch": trainer.current_epoch}
            logger.log_metrics(told, step=trainer.global_step)

    @rank_zero_only
    def _write(self) -> None:
        if self.folder is not None:
            with atomic_write(self.folder / "metrics.csv") as file:
                file.write(table_text(self.rows))

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": [dict(row) for row in self.rows],
            "learning_rate": self.learning_rate,
            "logged_step": self._logged_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]
        self.learning_rate = state_dict["learning_rate"]
        self._logged_step = state_dict["logged_step"]
        self._write()


def draw_curves(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draws loss, balanced accuracy and AUROC over the epochs as a PNG picture."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] + 1 for row in rows]
    # Laying it out by what its texts measure would take as long as all the rest.
    places = {"left": 0.065, "right": 0.985, "bottom": 0.13, "top": 0.84, "wspace": 0.24}
    figure = Figure(figsize=(13, 4))
    axes = figure.subplots(1, 3, gridspec_kw=places)
    for axis, name in zip(axes, ("loss", "balanced_accuracy", "auroc"), strict=True):
        for split, told in (("train", "training"), ("val", "validation")):
            values = [row.get(f"{split}_{name}", math.nan) for row in rows]
            axis.plot(epochs, values, marker="o", markersize=3, label=told)
        axis.set(xlabel="epoch", title=label(name))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    save_figure(figure, path)
