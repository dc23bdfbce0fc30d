"""A whole epoch, training and validation: ours against plain Lightning, and a loop around timm's.

uv run python benchmarks/end_to_end.py [DATA_DIR [SHARE]]

The peers are the same network in float32. Plain Lightning has images decoded by PIL and augmented
by torchvision in two workers, and torchmetrics' accuracy in each step, as most of its templates;
the other is a bare loop over `timm.data.create_loader`, with two workers too. All see the same
images of DATA_DIR (or of synthetic data), SHARE of them; our cache is built before.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
import torchmetrics
from measure import Files, report, rows, timms_loader
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from mlops_project import settings
from mlops_project.data.demo import generate
from mlops_project.models.build import IMAGENET_MEAN, IMAGENET_STD, build_model
from mlops_project.training.preparation import open_data
from mlops_project.training.presets import device_type
from mlops_project.training.run import train

WORKERS = 2
EPOCHS = 3  # of each run; the first one is not counted
ROUNDS = 2


class Plain(pl.LightningModule):
    """A classifier as the templates have it."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.train_accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)
        self.val_accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)
        self.seconds: list[float] = []

    def _step(self, batch: Any, name: str, metric: torchmetrics.Metric) -> torch.Tensor:
        images, labels = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        self.log(f"{name}_loss", loss)
        metric(logits, labels)
        self.log(f"{name}_accuracy", metric)
        return loss

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self._step(batch, "train", self.train_accuracy)

    def validation_step(self, batch: Any, index: int) -> None:
        self._step(batch, "val", self.val_accuracy)

    def on_train_epoch_start(self) -> None:
        self._began = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        self.seconds.append(time.perf_counter() - self._began)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


def main() -> None:
    be_quiet()
    words, common = prepare()
    table = []
    for size in (64, 224):
        arguments = [*common, f"data.image_size={size}"]
        images = in_a_process(count_images, arguments)  # builds the cache
        cases = {
            f"plain Lightning, {size} px": (plain_epochs, arguments),
            f"timm's loader, {size} px": (timms_epochs, arguments),
            f"ours, {size} px": (our_epochs, arguments),
        }
        times = in_turn(cases, images)
        *peers, ours = cases
        table += rows(times, {ours: peers[0]})
        table += rows({name: times[name] for name in (peers[1], ours)}, {ours: peers[1]})[1:]
    command = f"uv run python benchmarks/end_to_end.py {words}".strip()
    report("end_to_end", table, command, unit="an image of an epoch")


def prepare() -> tuple[str, list[str]]:
    """Goes to a new folder, with synthetic images where the command line names no others.

    Returns:
        How the command goes on, and the settings of all cases.
    """
    folder = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else None
    share = sys.argv[2] if len(sys.argv) > 2 else "1"
    words = f"DATA_DIR {share}" if folder else ""
    os.chdir(tempfile.mkdtemp())
    if folder is None:
        folder = Path("demo").absolute()
        generate(folder, images=1000, seed=5)
    return words, [
        *(f"data.data_dir={folder}", f"data.subsample_percentage={share}"),
        *(f"training.max_epochs={EPOCHS}", "training.early_stopping_patience=0"),
        "training.progress_bar=none",
    ]


def in_turn(
    cases: Mapping[str, tuple[Callable[[list[str]], list[float]], list[str]]], images: int
) -> dict[str, list[float]]:
    """Microseconds an image of each case's median epoch, once a round."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, (epochs, arguments) in cases.items():
            seconds = in_a_process(epochs, arguments)
            times[name].append(float(np.median(seconds)) / images * 1e6)
    return times


def in_a_process(work: Callable[[list[str]], Any], arguments: list[str]) -> Any:
    """What `work` returns in a process of its own: ours sets up memory as `train.py` does."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=be_quiet) as pool:
        return pool.submit(work, arguments).result()


def be_quiet() -> None:
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore")


def opened(arguments: list[str]) -> Any:
    """The data module of these settings, set up."""
    data = open_data(settings.load(arguments))
    data.setup("fit")
    return data


def count_images(arguments: list[str]) -> int:
    """Of training and validation."""
    data = opened(arguments)
    return len(data.rows_of("train")) + len(data.rows_of("val"))


def our_epochs(arguments: list[str]) -> list[float]:
    """Seconds of each epoch but the first."""
    result = train(settings.load(arguments))
    assert result.folder is not None
    return pd.read_csv(result.folder / "speed.csv")["epoch_seconds"].iloc[1:].tolist()


def timms_epochs(arguments: list[str]) -> list[float]:
    """Seconds of each epoch but the first, in a bare loop over timm's loader."""
    data = opened(arguments)
    size = data.image_size
    config = settings.load(arguments)
    device = device_type(config.training)
    network = build_model(config.model, size).network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    train_images, val_images = (
        timms_loader(data, split, size, 32, WORKERS, device) for split in ("train", "val")
    )
    seconds = []
    for _ in range(EPOCHS):
        began, seen = time.perf_counter(), 0
        network.train()
        for images, labels in train_images:
            seen += len(labels)
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
        network.eval()
        right = 0
        with torch.no_grad():
            for images, labels in val_images:
                seen += len(labels)
                right += int((network(images).argmax(1) == labels).sum())
        # Its loader leaves out the last training images, where they fill no batch.
        share = seen / (len(data.rows_of("train")) + len(data.rows_of("val")))
        seconds.append((time.perf_counter() - began) / share)
    return seconds[1:]


def plain_epochs(arguments: list[str]) -> list[float]:
    """Seconds of each epoch but the first, of plain Lightning."""
    data = opened(arguments)
    size = data.image_size
    side = round(size / 0.875)
    last = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    resize = [transforms.Resize(side), transforms.CenterCrop(side)]
    training = [
        *(transforms.RandomCrop(size), transforms.RandomHorizontalFlip()),
        *(transforms.RandomVerticalFlip(), transforms.RandomRotation(15)),
        transforms.ColorJitter(0.1, 0.1, 0.1),
    ]
    loaders = []
    for split, chosen in (("train", training), ("val", [transforms.CenterCrop(size)])):
        part = data.rows_of(split)
        transform = transforms.Compose([*resize, *chosen, *last])
        files = Files(data.table.iloc[part], data.labels[part], transform)
        shuffled = split == "train"
        loaders.append(
            DataLoader(files, 32, shuffled, num_workers=WORKERS, persistent_workers=True)
        )
    config = settings.load(arguments)
    module = Plain(build_model(config.model, size).network)
    trainer = pl.Trainer(
        accelerator=config.training.accelerator,
        max_epochs=EPOCHS,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, loaders[0], loaders[1])
    return module.seconds[1:]


if __name__ == "__main__":
    main()
