"""Lightning's trainer, set up from the settings."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)

from mlops_project.config import Config, TrainingConfig
from mlops_project.errors import InputError
from mlops_project.metrics import monitor_mode
from mlops_project.training import folders
from mlops_project.training.averaging import MovingAverage
from mlops_project.training.batch_norm import SyncedBatchNorm
from mlops_project.training.checkpoints import AtomicCheckpointIO
from mlops_project.training.finetuning import Unfreezing, freezes
from mlops_project.training.presets import device_type
from mlops_project.training.processes import START_SECONDS, WatchedDDP, WatchedFSDP, placement

log = logging.getLogger("mlops_project")


def build_trainer(
    config: Config, folder: Path | None, callbacks: list[Callback], loggers: list[Logger]
) -> pl.Trainer:
    """Lightning's trainer for these settings.

    Args:
        config: of the run.
        folder: the run's folder; None on processes other than the first, which log nothing.
        callbacks: to run besides early stopping, unfreezing and the progress bar.
        loggers: of the run.
    """
    options = config.training
    callbacks = list(callbacks)
    if options.early_stopping_patience:
        callbacks.append(
            EarlyStopping(
                options.monitor_metric,
                mode=monitor_mode(options.monitor_metric),
                patience=options.early_stopping_patience,
                check_on_train_epoch_end=True,
                check_finite=False,  # an AUROC may lack a class; `NonFinite` looks at the losses
            )
        )
    if freezes(options):
        callbacks.append(Unfreezing(options))
    if options.ema_decay:
        callbacks.append(MovingAverage(options.ema_decay, device_type(options)))
    bar = _progress_bar(options) if folder is not None else None
    strategy = _strategy(options)
    plugins: list[Any] = [AtomicCheckpointIO()]
    if isinstance(strategy, (WatchedDDP, WatchedFSDP)):
        plugins.append(SyncedBatchNorm(options.process_timeout))
    trainer = pl.Trainer(
        accelerator=options.accelerator,
        devices=_devices(options),
        num_nodes=(placement() or (1, 1))[1],
        strategy=strategy,
        precision=lightning_precision(options),
        accumulate_grad_batches=options.accumulate_grad_batches,
        gradient_clip_val=options.gradient_clip_val,
        gradient_clip_algorithm=options.gradient_clip_algorithm,
        max_time=options.max_time,
        profiler=_profiler(options, folder),
        max_epochs=options.max_epochs,
        limit_train_batches=options.limit_train_batches,
        limit_val_batches=options.limit_val_batches,
        log_every_n_steps=options.log_every_n_steps,
        callbacks=[*callbacks, bar] if bar else callbacks,
        logger=loggers or False,
        plugins=plugins,
        default_root_dir=folders.LOGS,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=bar is not None,
    )
    if not torch.cuda.is_available():
        # Adam asks in each step whether there is a GPU, and Lightning has PyTorch find out in a way
        # that leaves processes free to fork, but takes longer. Without one there is no such danger.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    return trainer


def check_machine(options: TrainingConfig) -> int:
    """How many processes these settings make train together.

    Raises:
        InputError: devices that are not here.
    """
    _check_accelerator(options)
    _devices(options)
    _strategy(options)
    return _processes(options)


def _processes(options: TrainingConfig) -> int:
    if placed := placement():
        return placed[0] * placed[1]
    devices = _devices(options)
    return torch.cuda.device_count() if devices == "auto" else int(devices)


def _check_accelerator(options: TrainingConfig) -> None:
    if options.accelerator == "gpu" and not torch.cuda.is_available():
        raise InputError(
            "training.accelerator=gpu: PyTorch sees no GPU here (is its driver installed?)\n"
            "training.accelerator=auto takes what there is."
        )
    if options.accelerator == "mps" and not torch.backends.mps.is_available():
        raise InputError("training.accelerator=mps: PyTorch sees no Apple GPU here")


def _devices(options: TrainingConfig) -> int | str:
    placed = placement()
    if placed and options.devices not in ("auto", placed[0]):
        raise InputError(
            f"training.devices={options.devices}: {placed[0]} processes were started on each host; "
            "leave training.devices out"
        )
    if placed:
        return placed[0]
    if options.devices == "auto":
        # Several processes on one CPU only get in each other's way.
        return "auto" if torch.cuda.is_available() and options.accelerator != "cpu" else 1
    count = int(options.devices)
    if options.accelerator in ("auto", "gpu") and 0 < torch.cuda.device_count() < count:
        raise InputError(
            f"training.devices={count}: only {torch.cuda.device_count()} GPUs are here"
        )
    return count


def lightning_precision(options: TrainingConfig) -> Any:
    """Lightning's word for `training.precision`, which is no longer `auto`."""
    name = options.precision.removesuffix("-mixed").removesuffix("-true")
    if name == "16" and device_type(options) == "cpu":
        log.info("training.precision=16: bfloat16, since a CPU has no fast float16")
        name = "bf16"
    return {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true"}[name]


def _strategy(options: TrainingConfig) -> Any:
    several = _processes(options) > 1
    if options.strategy == "fsdp" and device_type(options) != "cuda":
        raise InputError("training.strategy=fsdp: needs GPUs; training.strategy=ddp runs anywhere")
    patience = timedelta(seconds=START_SECONDS)
    if options.strategy == "ddp" or (options.strategy == "auto" and several):
        # DDP would wait for the gradients of frozen parameters.
        return WatchedDDP(find_unused_parameters=freezes(options), timeout=patience)
    if options.strategy == "fsdp":
        return WatchedFSDP(timeout=patience)
    return options.strategy


class _NoProfiler(PassThroughProfiler):
    """Lightning asks it some fifty times a step; its own makes a generator each time."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._nothing


def _profiler(options: TrainingConfig, folder: Path | None) -> Profiler:
    kinds: dict[str, type[Profiler]] = {
        "simple": SimpleProfiler,
        "advanced": AdvancedProfiler,
        "pytorch": PyTorchProfiler,
    }
    if options.profiler == "none" or folder is None:
        return _NoProfiler()
    log.info("profile: %s", folder / "*profile*")
    return kinds[options.profiler](dirpath=str(folder), filename="profile")


class _RichBar(RichProgressBar):
    """Epochs counted from 1, as in the log, and no version number, which the log has."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs} "


def _progress_bar(options: TrainingConfig) -> Callback | None:
    """None in a pipe or a file: the log has a line for each epoch."""
    bars: dict[str, Any] = {"rich": _RichBar, "tqdm": TQDMProgressBar}
    if options.progress_bar == "none" or not sys.stdout.isatty():
        return None
    # Rich draws a hundred times a second by default, in the time of the training; tqdm's rate is
    # in steps.
    rate = {"refresh_rate": 10} if options.progress_bar == "rich" else {}
    return bars[options.progress_bar](leave=False, **rate)
