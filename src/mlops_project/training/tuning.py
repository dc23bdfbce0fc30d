"""Settings found by trying: the learning rate by a range test, the batch size by what fits."""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.tuner.tuning import Tuner
from torch import nn

from mlops_project.config import Config
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.errors import ProjectError
from mlops_project.files import atomic_write
from mlops_project.models.build import BuiltModel
from mlops_project.training.module import build_module

log = logging.getLogger("mlops_project")

# The range and the number of steps of the test: Smith, Cyclical Learning Rates, WACV 2017.
SMALLEST_RATE, LARGEST_RATE, STEPS = 1e-6, 1.0, 100
CPU_BATCH_SIZE = 32
LARGEST_BATCH = 1024


def find_learning_rate(
    config: Config, built: BuiltModel, data: HAM10000DataModule, folder: Path
) -> float:
    """Raises the learning rate from step to step, and takes the one where the loss falls fastest.

    The network is left as it was; `folder/learning_rate.png` shows loss against rate.

    Raises:
        ProjectError: the loss fell nowhere.
    """
    trial = dataclasses.replace(
        config, training=dataclasses.replace(config.training, learning_rate=SMALLEST_RATE)
    )
    module = build_module(
        trial, dataclasses.replace(built, network=copy.deepcopy(built.network)), data
    )
    trainer = pl.Trainer(
        accelerator=config.training.accelerator,
        devices=1,
        max_epochs=1000,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    finder = Tuner(trainer).lr_find(
        module,
        datamodule=data,
        min_lr=SMALLEST_RATE,
        max_lr=LARGEST_RATE,
        num_training=STEPS,
        update_attr=False,
    )
    rate = finder.suggestion() if finder is not None else None
    if finder is None or rate is None:
        raise ProjectError(
            "training.learning_rate=auto: the loss fell at no rate; name one, such as 0.0003"
        )
    _draw(np.array(finder.results["lr"]), np.array(finder.results["loss"]), rate, folder)
    log.info("learning rate found: %.3g (%s)", rate, folder / "learning_rate.png")
    return float(rate)


def _draw(rates: np.ndarray, losses: np.ndarray, chosen: float, folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.semilogx(rates, losses)
    axes.axvline(chosen, color="tab:red", label=f"chosen: {chosen:.3g}")
    axes.set(xlabel="learning rate", ylabel="smoothed training loss")
    axes.legend()
    with atomic_write(folder / "learning_rate.png", "wb") as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)


def find_batch_size(network: nn.Module, image_size: int, images: int) -> int:
    """The largest power of two whose training step fits into the GPU's memory.

    Args:
        network: is left as it was.
        image_size: side of the images, pixels.
        images: for training; a batch is never larger.

    Returns:
        32 without a GPU: there, memory is not what limits a batch.
    """
    if not torch.cuda.is_available():
        size = min(CPU_BATCH_SIZE, images)
        log.info("data.batch_size=auto: %d; without a GPU memory sets no limit", size)
        return size
    trial = copy.deepcopy(network).cuda().train()
    size, fits = 8, 1
    while size <= min(images, LARGEST_BATCH):
        try:
            batch = torch.zeros(size, 3, image_size, image_size, device="cuda")
            trial(batch).float().square().mean().backward()
        except torch.OutOfMemoryError:
            break
        fits, size = size, size * 2
    del trial
    torch.cuda.empty_cache()
    log.info("data.batch_size=auto: %d", fits)
    return fits
