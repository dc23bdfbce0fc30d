"""Settings found by trying: the learning rate by a range test, the batch size by its speed."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import time
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.tuner.tuning import Tuner
from torch import nn

from mlops_project.config import Config, TrainingConfig
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.errors import (
    InputError,
    Interrupted,
    ProjectError,
    interrupted_by,
    is_out_of_memory,
    signal_arrived,
)
from mlops_project.files import save_figure
from mlops_project.models.build import BuiltModel
from mlops_project.training.finetuning import freeze_in
from mlops_project.training.module import build_module
from mlops_project.training.presets import device_type
from mlops_project.training.processes import is_first, tell
from mlops_project.training.trainer import lightning_precision

log = logging.getLogger("mlops_project")

# The range and the number of steps of the test: Smith, Cyclical Learning Rates, WACV 2017.
SMALLEST_RATE, LARGEST_RATE, STEPS = 1e-6, 1.0, 100
LIGHTNINGS_BETA = 0.98  # of the moving average that Lightning's range test makes of the losses
SMOOTHING = 5.0  # steps: of the Gaussian that takes its place, which does not lag behind
SMALLEST_BATCH, LARGEST_BATCH = 8, 1024
# Environment: what the first process has found.
FOUND_RATE, FOUND_BATCH = "MLOPS_PROJECT_LEARNING_RATE", "MLOPS_PROJECT_BATCH_SIZE"
GAIN = 0.05  # in speed that the next larger batch must bring
TRIAL_SECONDS = 1.0  # of each batch size
MEMORY_SHARE = 0.6  # of a GPU's memory that a trial may fill; the optimizer needs some too


def _told(name: str, setting: str) -> str | None:
    """What the first process has found; None in that process itself.

    Raises:
        InputError: in a process that was not started by the first one.
    """
    if is_first():
        return None
    if name not in os.environ:
        raise InputError(f"{setting}=auto: name a number where torchrun or SLURM starts")
    return os.environ[name]


def find_learning_rate(
    config: Config, built: BuiltModel, data: HAM10000DataModule, folder: Path | None
) -> float:
    """Raises the learning rate from step to step, and takes the one where the loss falls fastest.

    What learns in the first epoch does so, with one rate for all stages and a step for each batch.
    The network is left as it was; `folder/learning_rate.png` shows loss against rate.

    Args:
        config, built, data: of the run.
        folder: of the run; None on processes other than the first, which has found the rate.

    Raises:
        InputError: in a process that was not started by the first one.
        Interrupted: a signal has asked for the end.
        ProjectError: the loss fell nowhere.
    """
    told = _told(FOUND_RATE, "training.learning_rate")
    if told is not None:
        return float(told)
    assert folder is not None
    trial = dataclasses.replace(
        config,
        training=dataclasses.replace(
            config.training,
            learning_rate=SMALLEST_RATE,
            compile=False,
            accumulate_grad_batches=1,
            limit_train_batches=None,
        ),
    )
    module = build_module(
        trial, dataclasses.replace(built, network=copy.deepcopy(built.network)), data
    )
    freeze_in(module.network, 0, config.training)
    trainer = pl.Trainer(
        accelerator=config.training.accelerator,
        devices=1,
        precision=lightning_precision(config.training),
        max_epochs=1000,
        gradient_clip_val=config.training.gradient_clip_val,
        gradient_clip_algorithm=config.training.gradient_clip_algorithm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    try:
        finder = Tuner(trainer).lr_find(
            module,
            datamodule=data,
            min_lr=SMALLEST_RATE,
            max_lr=LARGEST_RATE,
            num_training=STEPS,
            update_attr=False,
        )
    except (KeyboardInterrupt, SystemExit):  # Lightning makes the second of the first
        raise Interrupted(*interrupted_by(signal_arrived())) from None
    assert finder is not None  # it is None for a trainer's trial run alone
    rates, losses = np.array(finder.results["lr"]), raw_losses(np.array(finder.results["loss"]))
    rate, smoothed = steepest(rates, losses)
    if rate is None:
        raise ProjectError(
            "training.learning_rate=auto: the loss fell at no rate; name one, such as 0.0003"
        )
    _draw(rates[: len(smoothed)], losses[: len(smoothed)], smoothed, rate, folder)
    log.info("learning rate found: %.3g (%s)", rate, folder / "learning_rate.png")
    tell(FOUND_RATE, repr(rate))
    return rate


def raw_losses(averages: np.ndarray) -> np.ndarray:
    """The loss of each step from the averages that Lightning's range test keeps, float64 [S].

    Its average lags by half of the test; and in its correction for the start the power is one too
    large, so that the curve rises from half of the first loss.
    """
    steps = np.arange(1, len(averages) + 1)
    sums = averages * (1 - LIGHTNINGS_BETA ** (steps + 1))
    before = np.concatenate([[0.0], sums[:-1]])
    return (sums - LIGHTNINGS_BETA * before) / (1 - LIGHTNINGS_BETA)


def steepest(rates: np.ndarray, losses: np.ndarray) -> tuple[float | None, np.ndarray]:
    """The rate at which the loss falls fastest, over the logarithm of the rate.

    Over the rate itself, as Lightning takes it, the slope of mere noise at the smallest rates
    exceeds all others.

    Args:
        rates: of each step, rising; losses: float [S].

    Returns:
        The rate, None where the loss falls nowhere; and the smoothed losses up to the first one
        that is not finite.
    """
    from scipy.ndimage import gaussian_filter1d

    finite = np.isfinite(losses)
    count = len(losses) if finite.all() else int(finite.argmin())
    if count < 2:
        return None, losses[:count]
    # How high it flies where it diverges does not matter, and would blur what comes before.
    bounded = np.minimum(losses[:count], 2 * losses[: min(count, 10)].mean())
    smoothed = gaussian_filter1d(bounded, SMOOTHING, mode="nearest")
    # It may fall steeply, too, after it has risen by half of all that it fell: from the heights to
    # which rates that are too large have thrown it.
    risen = smoothed - np.minimum.accumulate(smoothed) > (smoothed[0] - smoothed.min()) / 2
    lowest = int(smoothed[: int(risen.argmax()) or count].argmin())
    if lowest == 0:
        return None, smoothed
    slope = np.gradient(smoothed, np.log(rates[:count]))[: lowest + 1]
    return float(rates[slope.argmin()]), smoothed


def _draw(
    rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, chosen: float, folder: Path
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(rates, losses, ".", color="0.7")
    axes.semilogx(rates, smoothed)
    axes.axvline(chosen, color="tab:red", label=f"chosen: {chosen:.3g}")
    axes.set(
        xlabel="learning rate",
        ylabel="training loss, and smoothed",
        ylim=(0, 2 * losses[:10].mean()),
    )
    axes.legend()
    save_figure(figure, folder / "learning_rate.png")


def find_batch_size(config: Config, network: nn.Module, size: int, images: int) -> int:
    """The smallest power of two with which a training step is about as fast, by trial, as with any.

    Larger batches mean fewer steps an epoch, which costs accuracy: speed has to pay for it.

    Args:
        config: of the run; precision and memory layout are chosen already.
        network: is left as it was.
        size: side of the images, pixels.
        images: for training; a batch is never larger.

    Raises:
        InputError: in a process that was not started by the first one, which has measured it.
        ProjectError: not even the smallest batch fits into the memory.
    """
    known = _told(FOUND_BATCH, "data.batch_size")
    if known is not None:
        return int(known)
    options, device = config.training, device_type(config.training)
    trial = copy.deepcopy(network).to(device).train()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    precision = lightning_precision(options).removesuffix("-mixed")
    rates: dict[int, float] = {}
    batch = min(SMALLEST_BATCH, images)
    while batch <= min(images, LARGEST_BATCH):
        try:
            shape = (batch, 3, size, size)
            rates[batch] = _images_per_second(
                options, precision, trial, torch.device(device), shape
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        if rates[batch] < (1 + GAIN) * max([0.0, *(r for b, r in rates.items() if b < batch)]):
            break  # no faster than before
        if device == "cuda" and torch.cuda.max_memory_reserved() > MEMORY_SHARE * _gpu_memory():
            break
        batch *= 2
    del trial
    if device == "cuda":
        torch.cuda.empty_cache()
    if not rates:
        raise ProjectError(f"data.batch_size=auto: out of memory with {batch} images already")
    best = max(rates.values())
    chosen = min(b for b, rate in rates.items() if rate >= best / (1 + GAIN))
    told = ", ".join(f"{b}: {rate:.0f} images/s" for b, rate in rates.items())
    log.info("data.batch_size=auto: %d (%s)", chosen, told)
    tell(FOUND_BATCH, str(chosen))
    return chosen


def _images_per_second(
    options: TrainingConfig,
    precision: str,
    network: nn.Module,
    device: torch.device,
    shape: tuple[int, ...],
) -> float:
    """Rate of forward and backward passes on one batch of zeros."""
    layout = torch.channels_last if options.channels_last is True else torch.contiguous_format
    images = torch.zeros(shape, device=device).to(memory_format=layout)
    network.to(memory_format=layout)
    kind = {"16": torch.float16, "bf16": torch.bfloat16}.get(precision)

    def seconds(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(device.type, kind, enabled=kind is not None):
                network(images).float().square().mean().backward()
        if device.type != "cpu":  # once: in a run, too, the next step is prepared meanwhile
            torch.accelerator.synchronize()
        return time.perf_counter() - began

    seconds(1)  # the first one takes longer
    steps = max(2, min(20, int(TRIAL_SECONDS / seconds(1))))
    return steps * shape[0] / seconds(steps)


def _gpu_memory() -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
