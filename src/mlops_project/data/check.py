"""What is in a folder of images, and what is wrong with it, before any training.

It goes on where `read_source` stops at the first problem, so that one look shows them all.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mlops_project.config import Config, DataConfig
from mlops_project.data import archives, sources
from mlops_project.data.decode import decode, decoding_threads
from mlops_project.data.diagnoses import unknown_diagnoses
from mlops_project.data.identity import image_key
from mlops_project.data.same_pictures import SIDE, SamePicture, same_pictures
from mlops_project.data.splits import SPLITS, UNUSED, split_by_lesion
from mlops_project.data.tables import read_rows
from mlops_project.errors import InputError
from mlops_project.printable import first_line
from mlops_project.progress import track

# Between splits the share of leaked melanomas varies by 0.04 on HAM10000; their mean by 0.006.
NAIVE_SPLITS = 50


@dataclass(frozen=True)
class Leak:
    """Shares, 0 to 1, of test images whose lesion the training images show too.

    Attributes:
        images, melanomas: of all test images, and of the melanomas among them; NaN without any.
        fractions: of train, val and test in random splits by image, stratified by diagnosis;
            the shares are the means of `NAIVE_SPLITS` of them.
    """

    images: float
    melanomas: float
    fractions: tuple[float, float, float]


@dataclass(frozen=True)
class Report:
    """What `check_folder` found.

    Attributes:
        folder: that was checked; `layout`: as in `sources.Source`, "" if there is none.
        table: image_id, lesion_id, dx, split; one row for each image id of the folder's table.
            `split` is the one that training uses by default, "unused" without a usable image.
        leak: what a split by image would do.
        unusable: messages about tables and archives that cannot be read.
        missing: image ids without an image.
        unreadable: reason for each image id whose image cannot be decoded.
        unknown: how often each text that is not a diagnosis occurs.
        duplicates: number of different rows of each image id that has several.
        repeated_rows: number of rows that repeat another one exactly.
        without_row: number of images that the table does not name.
        same: images that show the same picture under several lesion ids.
        several_diagnoses: diagnoses of each lesion id that has several.
        doubles: of images in several, different files, the one that is taken and another one.
    """

    folder: Path
    layout: str
    table: pd.DataFrame
    leak: Leak
    unusable: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    repeated_rows: int = 0
    without_row: int = 0
    same: tuple[SamePicture, ...] = ()
    several_diagnoses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    doubles: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def broken(self) -> bool:
        """Whether training would refuse the folder or leave out some of its images."""
        problems = (self.unusable, self.missing, self.unreadable, self.unknown, self.duplicates)
        return any((*problems, self.empty_splits))

    @property
    def empty_splits(self) -> list[str]:
        """The splits for which no image is left, though there are images."""
        found = set(self.table["split"]) - {UNUSED}
        return [name for name in SPLITS if found and name not in found]


def check_folder(folder: str | os.PathLike[str]) -> Report:
    """Reads a folder in any of the layouts of `sources`, decodes every image and compares them all.

    The splits are those of a training with the default seed and fractions.

    Args:
        folder: with the images and the table.

    Raises:
        InputError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        sources.read_source(folder)  # raises, and says where to get one
    layout, rows, (files, doubles), unusable = _read(folder)
    distinct = rows.drop_duplicates()
    name = distinct["image_id"].map(image_key)  # on many disks a.jpg and A.jpg are one file
    times = distinct.groupby(name)["image_id"].agg(["first", "size"]).set_index("first")["size"]
    table = distinct[~name.duplicated()].sort_values("image_id").reset_index(drop=True)
    table = table[["image_id", "lesion_id", "dx"]].assign(split=UNUSED)
    found = [files.get(image_key(name)) for name in table["image_id"]]
    existing = np.array([row for row, file in enumerate(found) if file], dtype=np.int64)
    thumbnails, digests, reasons = _decode_all([file for file in found if file])
    if len(existing):
        table.loc[existing, "split"] = split_by_lesion(table.iloc[existing], Config.seed)
    bad = {int(existing[position]): reason for position, reason in reasons.items()}
    table.loc[list(bad), "split"] = UNUSED
    usable = np.setdiff1d(existing, list(bad))
    diagnoses = table[table["dx"] != ""].groupby("lesion_id")["dx"].unique()
    return Report(
        folder=folder,
        layout=layout,
        table=table,
        leak=_naive_leak(table.iloc[usable]),
        unusable=tuple(unusable),
        missing=tuple(table.loc[~table.index.isin(existing), "image_id"]),
        unreadable={table["image_id"].iloc[row]: reason for row, reason in bad.items()},
        unknown=unknown_diagnoses(table["dx"]),
        duplicates={str(name): int(n) for name, n in times[times > 1].items()},
        repeated_rows=len(rows) - len(distinct),
        without_row=len(files.keys() - set(table["image_id"].map(image_key))),
        same=tuple(same_pictures(thumbnails, digests, usable, table["lesion_id"].to_numpy())),
        several_diagnoses={str(k): tuple(sorted(v)) for k, v in diagnoses.items() if len(v) > 1},
        doubles={
            image: doubles[image_key(image)]
            for image in table["image_id"]
            if image_key(image) in doubles
        },
    )


def _read(folder: Path) -> tuple[str, pd.DataFrame, archives.Files, list[str]]:
    """The layout, all rows of the tables, the images by name, and what cannot be read."""
    parts = [pd.DataFrame(columns=["image_id", "lesion_id", "dx"], dtype=str)]
    try:
        layout, tables, places = sources.recognise(folder)
    except InputError as error:
        return "", parts[0], ({}, {}), [str(error)]
    unusable = []
    for path in tables:
        try:
            parts.append(read_rows(path, layout, folder))
            if parts[-1].empty:
                unusable.append(f"{path}: the table has no rows; it needs one row for each image")
        except InputError as error:
            unusable.append(str(error))
    readable = []
    for place in places:
        try:
            archives.image_files([place])
            readable.append(place)
        except InputError as error:
            unusable.append(str(error))
    files = archives.image_files(readable)
    return layout, pd.concat(parts, ignore_index=True), files, unusable


def _decode_all(
    files: list[tuple[str, str]],
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Thumbnails uint8 [M, 3, SIDE, SIDE] and digests [M] of what is readable; else the reasons."""

    def look(file: tuple[str, str]) -> tuple[np.ndarray, str] | str:
        try:
            data = archives.read_bytes(*file)
            return decode(data, SIDE), hashlib.blake2b(data, digest_size=16).hexdigest()
        except (OSError, ValueError) as error:
            return first_line(error)

    with decoding_threads() as pool:
        seen = list(track(pool.map(look, files), "decoding images", len(files)))
    good = [result for result in seen if not isinstance(result, str)]
    thumbnails = np.array([pixels for pixels, _ in good], np.uint8).reshape(-1, 3, SIDE, SIDE)
    digests = np.array([digest for _, digest in good], dtype=str)
    return thumbnails, digests, {i: r for i, r in enumerate(seen) if isinstance(r, str)}


def _naive_leak(table: pd.DataFrame) -> Leak:
    val_fraction, test_fraction = DataConfig.val_fraction, DataConfig.test_fraction
    lesion, melanoma = table["lesion_id"].factorize()[0], (table["dx"] == "mel").to_numpy()
    tested, leaked = np.zeros(2), np.zeros(2)
    for number in range(NAIVE_SPLITS):
        drawn = pd.Series(np.random.default_rng([Config.seed, number]).random(len(table)))
        # An image's place in the random order of its diagnosis, from above 0 to 1.
        place = drawn.groupby(table["dx"].to_numpy()).rank(pct=True).to_numpy()
        test = place <= test_fraction
        seen = np.isin(lesion, lesion[place > test_fraction + val_fraction])
        tested += test.sum(), (test & melanoma).sum()
        leaked += (test & seen).sum(), (test & seen & melanoma).sum()
    images, melanomas = (
        float(a / n) if n else math.nan for a, n in zip(leaked, tested, strict=True)
    )
    return Leak(images, melanomas, (1 - val_fraction - test_fraction, val_fraction, test_fraction))
