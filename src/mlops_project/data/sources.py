"""From a folder to one table of images: the layouts HAM10000 comes in, told apart by looking.

A source is one or more tables with the diagnoses, and images in folders or zip archives.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mlops_project.data.archives import find_images, image_files, is_junk, is_zip
from mlops_project.data.diagnoses import DIAGNOSES
from mlops_project.data.folder import require_folder
from mlops_project.data.identity import image_key, spelled_alike
from mlops_project.data.tables import (
    PREDICTED,
    TABLE_ENDINGS,
    diagnoses_of,
    is_table,
    read_rows,
    read_table,
    renamed,
    without_doubles,
)
from mlops_project.data.without_table import table_of_images
from mlops_project.errors import InputError
from mlops_project.printable import listed, printable

log = logging.getLogger("mlops_project")

COLUMNS = (
    "image_id",
    "lesion_id",
    "dx",
    "dx_type",
    "age",
    "sex",
    "localization",
    "dataset",
    "path",
    "member",
)
# The official test set may lie beside the training images: it must never be trained on.
TEST_MARK = "isic2018_task3_test"
SYNTHETIC_MARKER = "SYNTHETIC.json"  # lies in folders whose images a program made

ACCEPTED = """Accepted, recognised by looking:
  Kaggle      HAM10000_metadata.csv, HAM10000_images_part_1/ and _part_2/
  Dataverse   HAM10000_metadata (.csv, .tab, no ending), HAM10000_images_part_1.zip and _part_2.zip
  ISIC 2018   *_Input/ or images/, and *GroundTruth.csv with one column a diagnosis
  plain       images/ and metadata/ with one table: image_id, dx, and lesion_id if known;
              or one such table (.csv) beside the images"""


class NoLayout(InputError):
    """A folder in which no layout was recognised; any other refusal is of one that was."""


@dataclass(frozen=True)
class Source:
    """Images and what is known of them.

    Attributes:
        folder: where they were found.
        layout: "kaggle", "dataverse", "challenge", "plain", or "images" without a table.
        table: `COLUMNS`, one row an image that exists, sorted by image_id; an image's position
            in it, its row, identifies it everywhere. `member` is "" for a plain file, else the
            name within the zip archive `path`; `age` is in years, float64, NaN where unknown.
        missing: image ids in the table that have no image.
        synthetic: whether a program made the images.
    """

    folder: Path
    layout: str
    table: pd.DataFrame
    missing: tuple[str, ...]
    synthetic: bool


def read_source(folder: str | os.PathLike[str], *, unlabelled: bool = False) -> Source:
    """Finds and reads the table and the images of a folder.

    Args:
        folder: with images.
        unlabelled: whether images may lack a diagnosis, their dx is "" then, or even a table.
            Where none of them has a diagnosis, those that no table names are taken as well.

    Raises:
        InputError: the folder cannot be used; the message says what was found and what is accepted.
    """
    folder = Path(folder)
    require_folder(folder)
    synthetic = (folder / SYNTHETIC_MARKER).is_file()
    try:
        layout, tables, places = recognise(folder)
    except NoLayout:
        places = _pictures_first(folder)
        if not unlabelled or not any(find_images(places)):
            raise
        tables = _tables_without_diagnoses(folder)
        if len(tables) > 1:
            told = "%s: no column dx in any of %s: what they say of the images is left out"
            log.warning(told, folder, listed([printable(path.name) for path in tables]))
        if len(tables) != 1:
            table = table_of_images(folder, places)
            return Source(folder, "images", table[list(COLUMNS)], (), synthetic)
        log.warning("%s: no column dx: its images count as without a diagnosis", tables[0])
        layout = "plain"
    parts = [read_rows(path, layout, folder, unlabelled=unlabelled) for path in tables]
    table = pd.concat(parts, ignore_index=True)
    if table.empty:
        names = ", ".join(str(t) for t in tables)
        raise InputError(f"{names}: the table has no rows; it needs one row for each image")
    table["lesion_id"] = spelled_alike(table["lesion_id"])  # of several tables, too
    table = without_doubles(table)
    files, doubles = image_files(places)
    _warn_of_doubles(folder, [i for i in table["image_id"].map(image_key) if i in doubles], doubles)
    found = [files.get(image_key(image_id)) for image_id in table["image_id"]]
    has_image = pd.Series([f is not None for f in found], index=table.index)
    more = pd.DataFrame()
    if unlabelled and (table["dx"] == "").all():  # notes on images do not choose among them
        # Beside images/ there may be masks, which nobody asked about.
        shown = [place for place in places if place != folder] or places
        more = table_of_images(folder, shown, set(table["image_id"].map(image_key)))
    if not has_image.any() and more.empty:
        raise InputError(
            f"{folder}: none of the {len(table)} images in the table exists "
            f"({len(files)} images found; the table's first is "
            f"'{printable(table['image_id'].iloc[0])}')\n"
            f"{ACCEPTED}"
        )
    missing = tuple(table.loc[~has_image, "image_id"])
    table["path"] = [f[0] if f else "" for f in found]
    table["member"] = [f[1] if f else "" for f in found]
    table = table[has_image]
    if len(more):
        log.warning("%s: %d images that no table names are taken as well", folder, len(more))
        table = pd.concat([table, more])
    table = table.sort_values("image_id").reset_index(drop=True)
    return Source(folder, layout, table[list(COLUMNS)], missing, synthetic)


def _warn_of_doubles(
    folder: Path, image_ids: list[str], doubles: dict[str, tuple[str, str]]
) -> None:
    if image_ids:
        listed = " and ".join(
            printable(os.path.relpath(path, folder)) for path in doubles[image_ids[0]]
        )
        log.warning(
            "%s: %d images of the table lie there in several, different files (%s): the first of "
            "them is taken",
            folder,
            len(image_ids),
            listed,
        )


def _tables_beside(folder: Path) -> list[Path]:
    endings = (".csv", ".tab", ".tsv")
    return [
        path
        for path in sorted(folder.iterdir())
        if is_table(path) and path.suffix.lower() in endings and not is_junk(path)
    ]


def _tables_without_diagnoses(folder: Path) -> list[Path]:
    """Tables that name images and say nothing of diagnoses.

    Raises:
        InputError: a table cannot be read, so that it may hold the diagnoses; or it tells them in
            another way than a column dx.
    """
    found = []
    for path in _tables_beside(folder):
        columns = set(read_table(path).columns)
        if "image_id" in renamed(columns) and PREDICTED not in columns:
            if _is_one_hot(path):
                raise InputError(
                    f"{path}: one column a diagnosis; name it *GroundTruth.csv, and the folder of "
                    "the images *_Input or images"
                )
            found.append(path)
    return found


def _is_one_hot(path: Path) -> bool:
    return len(set(read_table(path).columns) & set(DIAGNOSES)) > 1


def recognise(folder: Path) -> tuple[str, list[Path], list[Path]]:
    """The layout, its tables, and the folders and archives with its images."""
    entries = sorted(p for p in folder.iterdir() if not is_junk(p))
    tests = [p for p in entries if TEST_MARK in p.name.lower()]
    training = [p for p in entries if p not in tests]
    layout = _layout(training, folder) or _layout(tests, folder)
    if layout:
        return layout
    tables = [p for p in tests if is_table(p)]
    if tables and len(tests) > 1:
        return "dataverse", tables[:1], [p for p in tests if p.is_dir() or is_zip(p)]
    beside = [p for p in _tables_beside(folder) if diagnoses_of(p) is not None]
    if beside:
        return "plain", [_the_one_of(beside, folder)], _pictures_first(folder)
    # Beside a table with lesions it is left aside: it tells none.
    bare = [p for p in training if p.name.lower() == "groundtruth.csv" and _is_one_hot(p)]
    if bare and (images := _pictures_first(folder)[:-1]):
        return "challenge", bare, images
    found = listed([printable(p.name) + ("/" if p.is_dir() else "") for p in entries], 8)
    raise NoLayout(
        f"{folder}: no layout of HAM10000 found. It holds: {found or 'nothing'}\n"
        + "".join(f"{reason}\n" for reason in _reasons(folder)[:3])
        + ACCEPTED
    )


def _pictures_first(folder: Path) -> list[Path]:
    """Where to look for images: masks and clinical pictures may have the same names elsewhere."""
    images = [p for p in sorted(folder.iterdir()) if p.stem.lower() == "images" and not is_junk(p)]
    return [*(p for p in images if p.is_dir() or is_zip(p)), folder]


def _reasons(folder: Path) -> list[str]:
    """Why each table beside the images, or beneath metadata/, is no table of diagnoses."""
    reasons = []
    inner = folder / "metadata"
    tables = _tables_beside(folder) + (_tables_beside(inner) if inner.is_dir() else [])
    for path in tables:
        try:
            read_rows(path, "plain", folder)
        except InputError as error:
            reasons.append(str(error))
    return reasons


def _layout(entries: list[Path], folder: Path) -> tuple[str, list[Path], list[Path]] | None:
    lower = {p: p.name.lower() for p in entries}
    metadata = [p for p in entries if lower[p].startswith("ham10000_metadata") and is_table(p)]
    if metadata:
        places = [p for p in entries if p.is_dir() or is_zip(p)]
        parts = [p for p in places if lower[p].startswith("ham10000_images")]
        layout = "dataverse" if any(is_zip(p) for p in parts) else "kaggle"
        # The same table may lie there twice, as .csv and as .tab.
        return layout, [_the_one_of(metadata, folder)], parts or [*places, folder]
    truths = [p for p in entries if lower[p].endswith("_groundtruth.csv") and p.is_file()]
    for inner in (p for p in entries if p.is_dir() and "groundtruth" in lower[p]):
        truths += sorted(q for q in inner.glob("*_GroundTruth.csv") if not is_junk(q))
    truths += [p for p in entries if "groundtruth" in lower[p] and is_zip(p)]
    inputs = [p for p in entries if "input" in lower[p] and (p.is_dir() or is_zip(p))]
    images = [p for p in entries if p.stem.lower() == "images" and (p.is_dir() or is_zip(p))]
    inputs = inputs or images
    if truths and inputs and "dx" not in read_table(truths[0]).columns:
        return "challenge", truths, inputs
    tables = []
    for place in [p for p in entries if p.is_dir() and lower[p] == "metadata"]:
        tables += sorted(p for p in place.iterdir() if is_table(p) and not is_junk(p))
    tables += [p for p in entries if p.stem.lower() == "metadata" and is_table(p)]
    if images and tables:
        # Notes and licences may lie beside the table; it has the likeliest ending.
        likely = sorted(tables, key=lambda p: TABLE_ENDINGS.index(p.suffix.lower()))
        return "plain", [_the_one_of(likely, folder)], images
    return None


def _the_one_of(tables: list[Path], folder: Path) -> Path:
    """The first table of diagnoses, if the others tell nothing else.

    Raises:
        InputError: another one names more images, or tells another diagnosis or lesion of one.
    """
    if len(tables) == 1:
        return tables[0]
    told = {path: diagnoses_of(path) or {} for path in tables}
    first, *others = [path for path in tables if told[path]] or tables
    for path in others:
        listed = ", ".join(printable(str(p.relative_to(folder))) for p in (first, path))
        if told[path].keys() - told[first].keys():
            raise InputError(
                f"{folder}: several tables name images: {listed}\n"
                "Put all rows into one table, or leave only the one to use."
            )
        for image, (dx, lesion) in told[path].items():
            dx_before, lesion_before = told[first][image]
            if dx != dx_before or lesion not in ("", lesion_before):
                raise InputError(
                    f"{folder}: {listed} tell different things, of '{printable(image)}' for one\n"
                    "Leave only the one to use."
                )
    return first
