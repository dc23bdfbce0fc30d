"""From a folder of images to batches of (images uint8, labels int64, rows int64)."""

from __future__ import annotations

import logging
import math
import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from mlops_project.config import DataConfig
from mlops_project.data import diagnoses
from mlops_project.data.augmentation import crop_and_flip
from mlops_project.data.cache import ImageCache, open_cache
from mlops_project.data.sampling import EvaluationBatches, Request, TrainingBatches
from mlops_project.data.sources import Source, read_source
from mlops_project.data.splits import SPLITS, UNUSED, split_by_lesion, split_hash, subsample
from mlops_project.errors import ENDING_SIGNALS, InputError

log = logging.getLogger("mlops_project")

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
DEFAULT_IMAGE_SIZE = 224
CACHE_FOLDER = Path("data/cache")


def cached_side(image_size: int, crop_fraction: float) -> int:
    """Side of the cached squares that crops of `image_size` are cut from, pixels."""
    return math.ceil(image_size / crop_fraction)


class CachedImages(Dataset):
    """Batches cut from the cache: ask it with (epoch, draws) to get a `Batch`.

    Args:
        cache: decoded images.
        labels: int64 [N], for each row of the table.
        size: side of the crops, pixels.
        augment: settings and seed of random crops and flips; None: centre crops.
    """

    def __init__(
        self,
        cache: ImageCache,
        labels: np.ndarray,
        size: int,
        augment: dict[str, Any] | None = None,
    ) -> None:
        self.cache, self.labels, self.size, self.augment = cache, labels, size, augment

    def __getitem__(self, request: Request) -> Batch:
        epoch, draws = request
        rows = draws % len(self.labels)
        if self.augment is None:
            images = crop_and_flip(self.cache.images, rows, self.size)
        else:
            images = crop_and_flip(
                self.cache.images, rows, self.size, draws=draws, epoch=epoch, **self.augment
            )
        return images, torch.from_numpy(self.labels[rows]), torch.from_numpy(draws)


class HAM10000DataModule(pl.LightningDataModule):
    """HAM10000 in any of its layouts, split by lesion, decoded once, served in batches.

    Several processes get as many batches of the validation and test split each; one that would
    have one less shows its first rows again.

    A batch is (images uint8 [B, 3, S, S], labels int64 [B], rows int64 [B]); a row is an image's
    position in `table` (see `TrainingBatches` for draws of the balanced sampler).

    Args:
        data_dir: folder with the images and the table.
        num_classes: 2 (benign, malignant) or 7 (the diagnoses).
        seed: of the split, the order and the augmentation.
        settings: any field of `config.DataConfig`, such as batch_size or image_size.

    Attributes, after `setup`:
        source: what was read; `table`: its table.
        split: "train", "val", "test" or "unused" for each row, dtype object [N].
        labels: class index of each row, int64 [N].
        class_names: in the order of the labels.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] = "data/ham10000",
        *,
        num_classes: int = 2,
        seed: int = 42,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.settings = DataConfig(data_dir=os.fspath(data_dir), **settings)
        self.num_classes, self.seed = num_classes, seed
        self.image_size = self.settings.image_size or DEFAULT_IMAGE_SIZE
        self.class_names = diagnoses.class_names(num_classes)
        self.source: Source | None = None
        self._cache: ImageCache | None = None
        self._decoded: set[int] = set()
        self._training_batches: TrainingBatches | None = None
        self._start = (0, 0)  # epoch, and batches of it that are done already
        self.split: np.ndarray
        self.labels: np.ndarray

    @property
    def table(self) -> pd.DataFrame:
        """One row an image; see `sources.Source`."""
        assert self.source is not None, "call setup() first"
        return self.source.table

    @property
    def synthetic(self) -> bool:
        """Whether a program made the images."""
        assert self.source is not None, "call setup() first"
        return self.source.synthetic

    def read(self) -> None:
        """Reads the table and makes the split; decodes nothing.

        Raises:
            InputError: the folder, the table or a diagnosis cannot be used.
        """
        if self.source is not None:
            return
        settings = self.settings
        if settings.name == "demo":
            from mlops_project.data.demo import generate

            generate(Path(settings.data_dir))
        source = read_source(settings.data_dir)
        table = source.table
        self.labels = diagnoses.labels(table["dx"], self.num_classes)
        split = split_by_lesion(table, self.seed, settings.val_fraction, settings.test_fraction)
        kept = subsample(
            table, split, settings.subsample_percentage, settings.stratified_sampling, self.seed
        )
        self.split = np.where(kept, split, UNUSED)
        self.source = source

    def setup(self, stage: str | None = None) -> None:
        """Reads the table, splits it and decodes the images that the stage needs.

        Args:
            stage: "fit" decodes all three splits, "validate" and "test" only their own.
        """
        self.read()
        splits = {"validate": ("val",), "test": ("test",)}.get(stage or "fit", SPLITS)
        self.decode(np.flatnonzero(np.isin(self.split, splits)))
        for name in splits:
            if not (self.split == name).any():
                raise InputError(
                    f"{self.settings.data_dir}: no image is left for the {name} split; it needs "
                    "at least three lesions\n(see uv run src/mlops_project/dataset.py check "
                    f"{self.settings.data_dir})"
                )

    def decode(self, rows: np.ndarray) -> dict[int, str]:
        """Opens the cache with these rows in it; those that cannot be read become unused.

        Args:
            rows: int64 [N].

        Returns:
            Why, for each row that cannot be read.
        """
        wanted = set(rows.tolist())
        if self._cache is not None and wanted <= self._decoded:
            return self._cache.unreadable
        missing = self.source.missing if self.source and self._cache is None else ()
        if missing:
            text = "%d images of the table do not exist and are left out: %s"
            log.warning(text, len(missing), _some(list(missing)))
        folder = CACHE_FOLDER if self.settings.cache == "auto" else Path(self.settings.cache)
        side = cached_side(self.image_size, self.settings.crop_fraction)
        self._cache = open_cache(self.table, rows, side, folder)
        self._decoded = wanted
        bad = self._cache.unreadable
        if bad:
            named = [f"{self.table['image_id'].iloc[row]} ({why})" for row, why in bad.items()]
            log.warning("%d images cannot be read and are left out: %s", len(bad), _some(named))
            self.split[list(bad)] = UNUSED
        return bad

    def rows_of(self, split: str) -> np.ndarray:
        """Rows of a split, int64."""
        return np.flatnonzero(self.split == split)

    def split_hash(self) -> str:
        """Names the split: equal for equal images in equal splits."""
        return split_hash(self.table, self.split)

    def dataset(self, *, augment: bool) -> CachedImages:
        """The images behind the batches; with `augment`, randomly cropped and flipped."""
        assert self._cache is not None, "call setup() first"
        settings = self.settings
        random = {
            "seed": self.seed,
            "horizontal_flip": settings.horizontal_flip,
            "vertical_flip": settings.vertical_flip,
        }
        return CachedImages(self._cache, self.labels, self.image_size, random if augment else None)

    def training_batches(self) -> TrainingBatches:
        """The order of the training batches; the same object throughout, so that it can be set."""
        rank, world = self._processes()
        batches = self._training_batches
        if batches is None or (batches.rank, batches.world) != (rank, world):
            rows = self.rows_of("train")
            self._training_batches = batches = TrainingBatches(
                rows,
                self.labels[rows],
                images=len(self.table),
                batch_size=int(self.settings.batch_size),
                seed=self.seed,
                balanced=self.settings.sampler == "balanced",
                rank=rank,
                world=world,
            )
        return batches

    def state_dict(self) -> dict[str, int]:
        """Where in the order of the training batches the trainer is."""
        assert self.trainer is not None
        loop: Any = self.trainer.fit_loop
        epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress.current
        if epochs.processed == epochs.ready:  # between two epochs
            return {"epoch": epochs.processed, "batches": 0}
        return {"epoch": epochs.processed, "batches": batches.ready}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on there."""
        self._start = (state_dict["epoch"], state_dict["batches"])

    def train_dataloader(self) -> DataLoader:
        # Before workers ask for their first batches, which they do at once.
        self.training_batches().start_at(*self._start)
        dataset = self.dataset(augment=self.settings.augment)
        return self._loader(dataset, self.training_batches())

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader("test")

    def evaluation_loader(self, rows: np.ndarray) -> DataLoader:
        """Batches of centre crops of the rows, each once and in order."""
        rank, world = self._processes()
        batches = EvaluationBatches(
            rows,
            batch_size=int(self.settings.batch_size),
            rank=rank,
            world=world,
            equal=True,
        )
        return self._loader(self.dataset(augment=False), batches)

    def _evaluation_loader(self, split: str) -> DataLoader:
        return self.evaluation_loader(self.rows_of(split))

    def _loader(self, dataset: CachedImages, batches: Any) -> DataLoader:
        settings = self.settings
        # A slice of the cache costs less than handing it over from another process.
        workers = 0 if settings.num_workers == "auto" else int(settings.num_workers)
        pin = settings.pin_memory
        return DataLoader(
            dataset,
            sampler=batches,
            batch_size=None,  # the sampler asks for whole batches
            num_workers=workers,
            pin_memory=torch.cuda.is_available() if pin == "auto" else bool(pin),
            persistent_workers=settings.persistent_workers and workers > 0,
            worker_init_fn=_leave_signals_to_the_main_process,
        )

    def _processes(self) -> tuple[int, int]:
        """(rank, number of processes) of the training this belongs to."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _leave_signals_to_the_main_process(worker: int) -> None:
    # Ctrl-C reaches every process of a terminal; the step in flight still needs its batch.
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
