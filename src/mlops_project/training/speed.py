"""How fast a run is, and what it waits for."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from mlops_project.config import DataConfig
from mlops_project.files import atomic_write
from mlops_project.training.folders import table_text

FILE = "speed.csv"
MEASURED = (
    "epoch_seconds",
    "images_per_second",
    "data_wait_fraction",
    "peak_memory_mib",
    "model_rate_share",
)
MODEL_STEPS = 10  # of the network alone, timed for comparison
HIGH_WAIT = 0.1  # share of the time from which on the data is worth a hint


class Speed(Callback):
    """Measures each epoch and writes speed.csv.

    epoch_seconds is all of the epoch with its validation; images_per_second the rate of its
    training alone, of all processes together; data_wait_fraction the share of the time in which the
    training waited for a batch; peak_memory_mib the largest memory of the process so far (of the
    GPU's, where there is one); model_rate_share the rate as a share of what the network and its
    gradients alone reach on one batch (on one GPU).

    These numbers depend on the clock: they are not in metrics.csv, which is the same for each
    repetition of a run.

    Args:
        folder: the run's folder; None on processes other than the first.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.rows: list[dict[str, float]] = []
        self._model_rate: float | None = None
        self._measured_step: tuple[int, torch.Size] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # of what was tried out before
        self._start(trainer)  # a run that goes on within an epoch does not start it again

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer)

    def _start(self, trainer: pl.Trainer) -> None:
        self._images, self._until = 0, 0.0
        self._waited = self._waiting(trainer)
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch[2])
        on_gpu = pl_module.device.type == "cuda"
        if on_gpu and trainer.world_size == 1 and batch_idx == 0:
            # Frozen stages, larger images, or features in their place make another step of it.
            step = sum(p.requires_grad for p in pl_module.parameters()), batch[0].shape[1:]
            if step != self._measured_step:
                began = time.perf_counter()
                self._measured_step = step
                self._model_rate = model_rate(trainer, pl_module, batch)
                self._began += time.perf_counter() - began
        if on_gpu and trainer.is_last_batch:
            torch.cuda.synchronize()
        self._until = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seconds = self._until - self._began
        if seconds <= 0:
            return  # the epoch has gone on with its validation
        rate = self._images * trainer.world_size / seconds
        waited = min(1.0, (self._waiting(trainer) - self._waited) / seconds)
        whole = time.perf_counter() - self._began
        values = [whole, rate, waited, peak_memory(pl_module.device) / 2**20]
        if self._model_rate is not None:
            values.append(rate / self._model_rate)
        told = dict(zip(MEASURED, values, strict=False))
        self.rows.append({"epoch": trainer.current_epoch, **told})
        self._write()
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):  # whose table is the same for each repetition
                logger.log_metrics(told, step=trainer.global_step)

    def summary(self) -> dict[str, float]:
        """Medians over the epochs, and the largest memory; empty before the first epoch."""
        result = {}
        for name in MEASURED:
            values = [row[name] for row in self.rows if name in row]
            if values:
                result[name] = max(values) if "peak" in name else statistics.median(values)
        return result

    @staticmethod
    def _waiting(trainer: pl.Trainer) -> float:
        return float(getattr(trainer.train_dataloader, "waited", 0.0))

    @rank_zero_only
    def _write(self) -> None:
        if self.folder is not None:
            with atomic_write(self.folder / FILE) as file:
                file.write(table_text(self.rows))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]
        self._write()


def peak_memory(device: torch.device) -> int:
    """The most memory of the GPU, or else of the machine, that this process has held, bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # man 2 getrusage


def model_rate(trainer: pl.Trainer, module: Any, batch: Any) -> float | None:
    """Images per second of the network with its gradients, on one batch again and again.

    Weights, statistics and the optimizer are left as they are.

    Args:
        trainer, module: of the run, between two steps.
        batch: as a step gets it.

    Returns:
        None where the memory is too small for a second set of gradients.
    """
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    gradients = [(p, p.grad) for p in module.parameters()]
    module.zero_grad(set_to_none=True)

    def step() -> None:
        with trainer.precision_plugin.forward_context():
            total = module.training_step(batch, 0)["loss"]
        total.backward()
        module.zero_grad(set_to_none=True)

    def wait() -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()

    try:
        step()
        wait()
        began = time.perf_counter()
        for _ in range(MODEL_STEPS):
            step()
        wait()
        return MODEL_STEPS * len(batch[2]) / (time.perf_counter() - began)
    except torch.OutOfMemoryError:
        return None
    finally:
        for buffer, value in kept:
            buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def hint(speed: dict[str, float], data: DataConfig, *, on_gpu: bool) -> str | None:
    """What to do where the data is what the run waits for; None where it is not.

    Args:
        speed: of `Speed.summary`.
        data: settings of the run.
        on_gpu: whether the network is on one, which may be busy while this process waits.
    """
    share = speed.get("data_wait_fraction", 0.0)
    # How busy a GPU is, is not known of several.
    busy = speed.get("model_rate_share", 1.0 if on_gpu else 0.0) > 1 - HIGH_WAIT
    if share < HIGH_WAIT or busy:
        return None
    text = f"{share:.0%} of the training time went by waiting for data"
    if data.cache == "off":
        return f"{text}: data.cache=auto decodes each image only once"
    if data.num_workers != "auto":
        return f"{text}: data.num_workers=auto tries out what prepares batches fastest"
    return f"{text}: a faster disk, or more memory to keep the decoded images in, would help"
