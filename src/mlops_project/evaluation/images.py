"""Which images are evaluated: those of a split of the run, or of another folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mlops_project import settings
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.data.diagnoses import BINARY
from mlops_project.data.identity import absent_from, known_among
from mlops_project.data.sources import Source, read_source
from mlops_project.data.splits import SPLITS, UNUSED
from mlops_project.errors import InputError
from mlops_project.evaluation.membership import (
    ONE_FOLD,
    OUT_OF_FOLD,
    folds_of,
    known_images,
    known_split,
    one_fold,
    split_of_all,
)
from mlops_project.evaluation.trained_model import TrainedModel


@dataclass(frozen=True)
class Images:
    """Images of one folder, decoded for one model or several.

    Attributes:
        folder: where they lie.
        data: of each model, one table for all, the rows decoded at the model's size.
        rows: of the table, int64 [N].
        asked: which of the M models is asked about which image, bool [M, N].
        left_out: which images of the folder are not asked about, where that may surprise; or "".
        class_names: that the labels are told by: the models', or benign and malignant where the
            table knows no more.
        absent: which images were to be asked about, and cannot be; or "".
    """

    folder: Path
    data: list[HAM10000DataModule]
    rows: np.ndarray
    asked: np.ndarray
    class_names: list[str]
    left_out: str = ""
    absent: str = ""

    @property
    def table(self) -> pd.DataFrame:
        """One row an image; see `data.sources.Source`."""
        return self.data[0].table.iloc[self.rows].reset_index(drop=True)

    @property
    def labels(self) -> np.ndarray:
        """Class index of each image, int64 [N]; -1 where it has no diagnosis."""
        return self.data[0].labels[self.rows]

    @property
    def folds(self) -> np.ndarray | None:
        """Which fold each image is of, by `membership.folds_of`."""
        return folds_of(self.asked)

    def pixels(self, positions: np.ndarray) -> np.ndarray:
        """The images at n of the N positions as the first model sees them, uint8 [n, 3, S, S]."""
        dataset = self.data[0].dataset(augment=False)
        return dataset.batch(0, self.rows[positions])[0].numpy()

    def without(self, image_ids: set[str]) -> Images:
        """All images but these.

        Raises:
            InputError: none is left.
        """
        stay = ~self.table["image_id"].isin(image_ids).to_numpy()
        if not stay.any():
            raise InputError(f"{self.folder}: all {len(stay)} images were seen in training")
        return replace(self, rows=self.rows[stay], asked=self.asked[:, stay])


def open_images(
    models: Sequence[TrainedModel],
    data_dir: str | None,
    split: str,
    class_names: list[str] | None = None,
) -> Images:
    """The images of a split as the run had it, decoded; images it has never seen count as test.

    An image that is new to the run but shows a lesion it has seen belongs to that lesion's split.
    Of several runs, the one that has seen most of an image decides: what one was trained on is of
    the training split, whatever the others did. Out of fold are the images of any run's validation
    split; only models that have an image there are asked about it.

    Args:
        models: whose runs decide which image is in which split.
        data_dir: folder with the images; None: the runs' own.
        split: "val", "test", "out-of-fold", or "all" for every image.
        class_names: to tell the labels by; None: as well as the table and the models can.

    Raises:
        InputError: no such folder, or no image of that split in it; `ONE_FOLD` of models that are
            no cross-validation.
    """
    if data_dir is not None and not data_dir.strip():
        raise InputError("--data-dir: the name is empty (a variable that is not set?)")
    folder = _own_folder(models) if data_dir is None else data_dir
    source = read_source(folder, unlabelled=True)
    if class_names is None:
        coarse = source.table["dx"].isin(BINARY).any()
        class_names = list(BINARY) if coarse else models[0].class_names
    shapes = [(model.image_size, model.config.data.crop_fraction) for model in models]
    shared: dict[tuple[int, float], HAM10000DataModule] = {}
    for shape, model in zip(shapes, models, strict=True):
        if shape not in shared:
            shared[shape] = _data(model, source, len(class_names))
    data = [shared[shape] for shape in shapes]
    of_each = np.stack([known_split(source.table, model.facts["split"]) for model in models])
    parts = split_of_all(of_each)
    asked = np.ones(of_each.shape, dtype=bool)
    wanted = np.ones(len(parts), bool) if split == "all" else parts == split
    if split in (OUT_OF_FOLD, ONE_FOLD):
        # Not those that left an image out by chance, as where each fold is subsampled by itself.
        asked = of_each == "val"
        wanted = asked.any(axis=0) if split == OUT_OF_FOLD else one_fold(source.table, asked)
    if not wanted.any():
        counts = ", ".join(f"{(parts == s).sum()} {s}" for s in (*SPLITS, UNUSED))
        whose = " for all of these checkpoints" if len(models) > 1 else ""
        raise InputError(
            f"{folder}: no image is of the {split} split{whose} ({counts})\n"
            + (
                "--split out-of-fold asks each model about those that it was chosen by."
                if split == "val" and len(models) > 1
                else "--split val takes those that the checkpoint was chosen by, --split all every "
                "one."
            )
        )
    before = wanted.copy()
    for module in shared.values():
        module.split = parts.copy()
        wanted[list(module.decode(np.flatnonzero(wanted)))] = False
    if not wanted.any():
        raise InputError(f"{folder}: no image of the {split} split can be read")
    differ = len({model.facts["split_hash"] for model in models}) > 1
    left_out = _left_out(parts[~before], split) if data_dir is not None or differ else ""
    rows = np.flatnonzero(wanted)
    wanted_ids, known = (known_images(models, s) for s in (split, "all"))
    if data_dir is None:  # what the runs had is known, whatever has become of the table
        missing = len(absent_from(source.table["image_id"], wanted_ids))
    else:
        ids = pd.Series(source.missing, dtype=str)
        counts_as_new = ~known_among(ids, known) & (split in ("test", "all"))
        missing = int((known_among(ids, wanted_ids) | counts_as_new).sum())
    absent = _absent(missing, int((before & ~wanted).sum()))
    return Images(Path(folder), data, rows, asked[:, rows], class_names, left_out, absent)


def _absent(missing: int, unreadable: int) -> str:
    counts = {"are not in the folder": missing, "cannot be read": unreadable}
    told = " and ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"images are left out: {told}" if told else ""


def _left_out(parts: np.ndarray, split: str) -> str:
    counts = {name: int((parts == name).sum()) for name in (*SPLITS, UNUSED) if name != split}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    if not told:
        return ""
    text = f"{sum(counts.values())} images of the folder are left out ({told})"
    known = counts.get("train", 0) + counts.get("val", 0)
    if not known:
        return text
    return (
        f"{text}: by their names or lesions the models have seen those; --split all takes them too"
    )


def reopen(images: Images, model: TrainedModel) -> Images:
    """The same images, decoded for another model, which is asked about all of them."""
    source = images.data[0].source
    assert source is not None
    coarse = images.class_names == list(BINARY)
    class_names = images.class_names if coarse else model.class_names
    data = _data(model, source, len(class_names))
    data.decode(images.rows)
    asked = np.ones((1, len(images.rows)), dtype=bool)
    return Images(images.folder, [data], images.rows, asked, class_names)


def _own_folder(models: Sequence[TrainedModel]) -> str:
    folders = {str(Path(model.config.data.data_dir)) for model in models}
    absent = [folder for folder in sorted(folders) if not Path(folder).is_dir()]
    if absent:
        raise InputError(
            f"{absent[0]}: the images of this run are not here\n"
            "Name their folder with --data-dir DIR."
        )
    if len(folders) > 1:
        raise InputError(
            f"the checkpoints were trained on different folders: {', '.join(sorted(folders))}\n"
            "Name the one to evaluate on with --data-dir DIR."
        )
    return folders.pop()


def moved_to(models: Sequence[TrainedModel], images: Images) -> str | None:
    """The evaluated folder, where it is the models' own one that has been moved; else None.

    It is that if their own is not there, and it has all of their images.
    """
    here = any(Path(model.config.data.data_dir).is_dir() for model in models)
    if here or absent_from(images.data[0].table["image_id"], known_images(models, "all")):
        return None
    return str(images.folder)


def _data(model: TrainedModel, source: Source, num_classes: int) -> HAM10000DataModule:
    options = settings.to_container(model.config)["data"]
    options |= {"image_size": model.image_size, "num_workers": "auto"}
    # The images are there: a program does not make them anew.
    options |= {"name": "ham10000", "data_dir": str(source.folder)}
    if options["cache"] == "off":  # with a cache, an image that cannot be read is left out
        options["cache"] = "auto"
    data = HAM10000DataModule(num_classes=num_classes, seed=model.config.seed, **options)
    data.read(source)
    return data
