"""From a folder of images to batches of (images uint8, labels int64, rows int64)."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.trainer.states import TrainerStatus

from mlops_project.combinations import check_data
from mlops_project.config import DEFAULT_IMAGE_SIZE, DataConfig
from mlops_project.data import diagnoses
from mlops_project.data.cache import ImageCache, open_cache
from mlops_project.data.device import Delivery
from mlops_project.data.identity import told_lesions
from mlops_project.data.loading import (
    Batch,
    DecodedImages,
    Loader,
    Undecoded,
    choose_workers,
    trial_batches,
)
from mlops_project.data.sampling import POWERS, EvaluationBatches, TrainingBatches
from mlops_project.data.sources import Source, read_source
from mlops_project.data.splits import SPLITS, UNUSED, make_split, split_hash
from mlops_project.errors import InputError
from mlops_project.printable import listed
from mlops_project.setting_keys import convert, keys, typed
from mlops_project.threads import usable_cores

log = logging.getLogger("mlops_project")

CACHE_FOLDER = Path("data/cache")
NOT_SET_UP = 'call setup("fit") first, which makes the split and decodes the images'


def cached_side(image_size: int, crop_fraction: float) -> int:
    """Side of the cached squares that crops of `image_size` are cut from, pixels."""
    return math.ceil(image_size / crop_fraction)


class HAM10000DataModule(pl.LightningDataModule):
    """HAM10000 in any of its layouts, split by lesion, decoded once, served in batches.

    Several processes get as many batches of the validation and test split each; one that would
    have one less shows its first rows again.

    A batch is (images uint8 [B, 3, S, S], labels int64 [B], rows int64 [B]); a row is an image's
    position in `table` (see `TrainingBatches` for draws of rare classes).

    Args:
        data_dir: folder with the images and the table.
        num_classes: 2 (benign, malignant) or 7 (the diagnoses).
        seed: of the split, the order and the augmentation.
        settings: any field of `config.DataConfig`, such as batch_size or image_size, in the ranges
            of the command line.

    Raises:
        InputError: a setting is unknown, out of its range or contradicts another one.

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
        self.settings = typed(DataConfig, settings, "data.")
        self.settings.data_dir = os.path.expanduser(data_dir)
        self.settings.cache = os.path.expanduser(self.settings.cache)
        check_data(self.settings)
        num_classes = convert(keys()["model.num_classes"], num_classes)
        self.num_classes, self.seed = num_classes, convert(keys()["seed"], seed)
        self.image_size = self.settings.image_size or DEFAULT_IMAGE_SIZE
        self.class_names = diagnoses.class_names(num_classes)
        self.source: Source | None = None
        self._images: ImageCache | Undecoded | None = None
        self._decoded: set[int] = set()  # of the present stage
        self._ready: set[int] = set()  # of all stages so far
        self._delivery = Delivery(self.settings.device_cache, self.image_size)
        self._workers: int | None = None
        self._training_batches: TrainingBatches | None = None
        # Epoch, and batches of it that are done already; None: where one's own loop has got to.
        self._start: tuple[int, int] | None = (0, 0)
        self.split: np.ndarray
        self.labels: np.ndarray

    @property
    def table(self) -> pd.DataFrame:
        """One row an image; see `sources.Source`."""
        if self.source is None:
            raise InputError(NOT_SET_UP)
        return self.source.table

    @property
    def synthetic(self) -> bool:
        """Whether a program made the images."""
        if self.source is None:
            raise InputError(NOT_SET_UP)
        return self.source.synthetic

    def read(self, source: Source | None = None) -> None:
        """Reads the table and makes the split; decodes nothing.

        Args:
            source: read already; its images may lack a diagnosis, and have the label -1 then.

        Raises:
            InputError: the folder, the table or a diagnosis cannot be used.
        """
        if self.source is not None:
            return
        settings = self.settings
        if settings.name == "demo":
            from mlops_project.data.demo import generate

            generate(settings.data_dir, keep=True)
        # Only an evaluation brings a source, and may do without diagnoses.
        known = slice(None) if source is None else (source.table["dx"] != "").to_numpy()
        source = source or read_source(settings.data_dir)
        table = source.table
        self.labels = np.full(len(table), -1, dtype=np.int64)
        self.labels[known] = diagnoses.labels(table["dx"][known], self.num_classes)
        self.split = make_split(table, settings, self.seed)
        self.source = source

    def setup(self, stage: str | None = None) -> None:
        """Reads the table, splits it and decodes the images that the stage needs.

        Args:
            stage: "fit" decodes all three splits, "validate" and "test" only their own.
        """
        self.read()
        splits = {"validate": ("val",), "test": ("test",)}.get(stage or "fit", SPLITS)
        self._require_images(splits)
        first = self._images is None
        self.decode(np.flatnonzero(np.isin(self.split, splits)))
        self._require_images(splits)
        if first and "train" in splits:
            self._warn()

    def _warn(self) -> None:
        """Warns of what makes a training or its measures worthless, and is no error."""
        unknown = int(told_lesions(self.table).isna().sum())
        if unknown:
            log.warning(
                "%d of %d images have no lesion id (or their own as one): if several show one "
                "lesion, they may be in different splits, which makes the measures too good",
                unknown,
                len(self.table),
            )
        found = np.unique(self.labels[self.rows_of("train")])
        if len(found) == 1:
            log.warning(
                "all training images are of one class, %s: nothing can be learned from them",
                self.class_names[found[0]],
            )

    def _require_images(self, splits: tuple[str, ...]) -> None:
        """Raises InputError if one of these splits is to be, and has no image."""
        for name in splits:
            if not (self.split == name).any() and (name != "test" or self.settings.test_fraction):
                count = "three" if self.settings.test_fraction else "two"
                needs = f"it needs at least {count} lesions"
                if self.settings.folds and name == "val":
                    needs = f"data.folds={self.settings.folds}: it needs a lesion for each of them"
                raise InputError(
                    f"{self.settings.data_dir}: no image is left for the {name} split; {needs}\n"
                    f"(see uv run src/mlops_project/dataset.py check {self.settings.data_dir})"
                )

    def decode(self, rows: np.ndarray) -> dict[int, str]:
        """Opens the cache with these rows in it; those that cannot be read become unused.

        Args:
            rows: int64 [N].

        Returns:
            Why, for each row that cannot be read.
        """
        wanted = set(rows.tolist())
        images = self._images
        if images is not None and wanted <= self._decoded:
            return images.unreadable
        missing = self.source.missing if self.source and images is None else ()
        if missing:
            text = "%d images of the table do not exist and are left out: %s"
            log.warning(text, len(missing), listed(list(missing)))
        folder = CACHE_FOLDER if self.settings.cache == "auto" else Path(self.settings.cache)
        side = cached_side(self.image_size, self.settings.crop_fraction)
        if self.settings.cache == "off":
            self._images = Undecoded(self.table, side)
        else:
            self._images = open_cache(self.table, rows, side, folder)
        self._decoded, self._delivery.images = wanted, None
        self._ready |= wanted
        bad = self._images.unreadable
        if bad:
            named = [f"{self.table['image_id'].iloc[row]} ({why})" for row, why in bad.items()]
            log.warning("%d images cannot be read and are left out: %s", len(bad), listed(named))
            self.split[list(bad)] = UNUSED
        return bad

    def leave_out(self, rows: np.ndarray) -> None:
        """Makes rows, int64 [N], unused, and shows their images no more."""
        self.split[rows] = UNUSED
        self._decoded -= set(rows.tolist())

    def rows_of(self, split: str) -> np.ndarray:
        """Rows of a split, int64."""
        if self.source is None:
            raise InputError(NOT_SET_UP)
        return np.flatnonzero(self.split == split)

    def split_hash(self) -> str:
        """Names the split: equal for equal images in equal splits."""
        return split_hash(self.table, self.split)

    def dataset(self, *, augment: bool, places_only: bool = False) -> DecodedImages:
        """The images behind the batches; with `augment`, randomly cropped and flipped."""
        if self._images is None:
            raise InputError(NOT_SET_UP)
        names = ("horizontal_flip", "vertical_flip", "transpose")
        random = {"seed": self.seed, **{name: getattr(self.settings, name) for name in names}}
        return DecodedImages(
            self._images,
            self.labels,
            self.image_size,
            random if augment else None,
            places_only=places_only,
        )

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
                batch_size=self._batch_size(),
                seed=self.seed,
                power=POWERS[self.settings.sampler],
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
        """Sets where the order of the training batches goes on."""
        self._start = (state_dict["epoch"], state_dict["batches"])

    def train_dataloader(self) -> Loader:
        self._require_decoded(self.rows_of("train"))
        # Before workers ask for their first batches, which they do at once.
        if self._start is not None or self._is_running():
            self.training_batches().start_at(*(self._start or (0, 0)))
        if not self._is_running():  # one's own loop may ask for a loader in each epoch
            self._start = None
        return self._loader(self.training_batches(), augment=self.settings.augment)

    def val_dataloader(self) -> Loader:
        return self.evaluation_loader(self.rows_of("val"))

    def test_dataloader(self) -> Loader:
        return self.evaluation_loader(self.rows_of("test"))

    def evaluation_loader(self, rows: np.ndarray) -> Loader:
        """Batches of centre crops of the rows, each once and in order."""
        self._require_decoded(rows)
        rank, world = self._processes()
        size = self._batch_size()
        batches = EvaluationBatches(rows, batch_size=size, rank=rank, world=world)
        return self._loader(batches, augment=False)

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Brings a batch to the device; the rows stay on the CPU, where they are read."""
        return self._delivery(batch, device)

    def _loader(self, batches: Any, *, augment: bool) -> Loader:
        settings = self.settings
        on_device = self._device_has_images()
        dataset = self.dataset(augment=augment, places_only=on_device)
        pin = self._goes_to_a_gpu() if settings.pin_memory == "auto" else settings.pin_memory

        def make(workers: int, batches: Any = batches) -> Loader:
            return Loader(
                dataset,
                batches,
                workers,
                pin_memory=bool(pin),
                persistent_workers=settings.persistent_workers and workers > 0,
            )

        if settings.num_workers != "auto":
            return make(int(settings.num_workers))
        if on_device:
            return make(0)
        if self._workers is None:
            most = usable_cores() // (self.trainer.num_devices if self.trainer else 1)
            rows = np.array(sorted(self._decoded))
            trial = trial_batches(rows, self._batch_size(), most)
            self._workers = choose_workers(lambda n: make(n, trial), most)
        return make(self._workers)

    def _batch_size(self) -> int:
        if self.settings.batch_size == "auto":
            raise InputError("data.batch_size=auto: only a training finds it; give a number here")
        return int(self.settings.batch_size)

    def _require_decoded(self, rows: np.ndarray) -> None:
        """Raises InputError for rows that no stage has decoded: they may be black in the cache."""
        if not self._ready.issuperset(rows.tolist()):
            raise InputError(NOT_SET_UP)

    def _goes_to_a_gpu(self) -> bool:
        if self.trainer is None:
            return torch.cuda.is_available()
        return bool(self.trainer.strategy.root_device.type == "cuda")

    def _is_running(self) -> bool:
        """Whether it is a trainer that asks for batches."""
        return self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING

    def _device_has_images(self) -> bool:
        """Whether the decoded images are in the device's memory; brings them there if they fit."""
        # Not where the user asks for batches, and no trainer whose device they go to.
        if self.trainer is None or not self._is_running():
            return False
        if not isinstance(self._images, ImageCache):
            return False
        rows = np.array(sorted(self._decoded))
        device = self.trainer.strategy.root_device
        return self._delivery.prepare(self._images.images, rows, device)

    def _processes(self) -> tuple[int, int]:
        """(rank, number of processes) of the training this belongs to."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
