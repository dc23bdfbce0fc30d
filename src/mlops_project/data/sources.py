"""From a folder to one table of images: the layouts HAM10000 comes in, told apart by looking.

A source is one or more tables with the diagnoses, and images in folders or zip archives.
"""

from __future__ import annotations

import csv
import io
import lzma
import os
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mlops_project.data.folder import require_folder
from mlops_project.errors import InputError
from mlops_project.printable import printable

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
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
TABLE_ENDINGS = (".csv", ".tab", ".tsv", "", ".txt")
MAX_TABLE_BYTES = 500 * 2**20
MAX_IMAGE_BYTES = 200 * 2**20
# What a damaged archive makes `zipfile` raise: on opening it, or on reading a member.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    LookupError,
    RuntimeError,  # encrypted
    NotImplementedError,
    ValueError,
    OverflowError,
)
# The official test set may lie beside the training images: it must never be trained on.
TEST_MARK = "isic2018_task3_test"
SYNTHETIC_MARKER = "SYNTHETIC.json"  # lies in folders whose images a program made

ACCEPTED = """Accepted, recognised by looking:
  Kaggle      HAM10000_metadata.csv, HAM10000_images_part_1/ and _part_2/
  Dataverse   HAM10000_metadata (.csv, .tab, no ending), HAM10000_images_part_1.zip and _part_2.zip
  ISIC 2018   *_Input/ with the images and *_GroundTruth.csv, one column a diagnosis
  plain       images/ and metadata/ with one table: image_id, dx, and lesion_id if known"""


@dataclass(frozen=True)
class Source:
    """Images and what is known of them.

    Attributes:
        folder: where they were found.
        layout: "kaggle", "dataverse", "challenge" or "plain".
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


def read_source(folder: str | os.PathLike[str]) -> Source:
    """Finds and reads the table and the images of a folder.

    Raises:
        InputError: the folder cannot be used; the message says what was found and what is accepted.
    """
    folder = Path(folder)
    require_folder(folder)
    layout, tables, places = _recognise(folder)
    if layout == "challenge":
        table = pd.concat([_read_challenge(t, folder) for t in tables], ignore_index=True)
    else:
        table = pd.concat([_read_metadata(t) for t in tables], ignore_index=True)
    if table.empty:
        names = ", ".join(str(t) for t in tables)
        raise InputError(f"{names}: the table has no rows; it needs one row for each image")
    table = _without_doubles(table)
    files = _image_files(places)
    found = [files.get(image_id.lower()) for image_id in table["image_id"]]
    has_image = pd.Series([f is not None for f in found], index=table.index)
    if not has_image.any():
        raise InputError(
            f"{folder}: none of the {len(table)} images in the table exists "
            f"({len(files)} images found; the table's first is "
            f"'{printable(table['image_id'].iloc[0])}')\n"
            f"{ACCEPTED}"
        )
    missing = tuple(table.loc[~has_image, "image_id"])
    table["path"] = [f[0] if f else "" for f in found]
    table["member"] = [f[1] if f else "" for f in found]
    table = table[has_image].sort_values("image_id").reset_index(drop=True)
    synthetic = (folder / SYNTHETIC_MARKER).is_file()
    return Source(folder, layout, table[list(COLUMNS)], missing, synthetic)


_archives = threading.local()


def read_bytes(path: str, member: str = "") -> bytes:
    """The bytes of an image file, or of a member of the zip archive `path`.

    Raises:
        OSError: the file cannot be read.
        ValueError: the member is damaged or larger than 200 MiB.
    """
    if not member:
        with open(path, "rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
        if len(data) > MAX_IMAGE_BYTES:
            raise ValueError(f"larger than {MAX_IMAGE_BYTES // 2**20} MiB")
        return data
    # Opening an archive reads its whole directory, so each thread keeps its own open.
    key = (path, os.getpid(), os.stat(path).st_mtime_ns)
    opened = _archives.__dict__.setdefault("opened", {})
    try:
        if key not in opened:
            opened[key] = zipfile.ZipFile(path)
        too_large = opened[key].getinfo(member).file_size > MAX_IMAGE_BYTES
        data = b"" if too_large else opened[key].read(member)
    except DAMAGED as error:
        raise ValueError(f"damaged archive member: {printable(str(error), 200)}") from error
    if too_large:
        raise ValueError(f"larger than {MAX_IMAGE_BYTES // 2**20} MiB")
    return data


def _recognise(folder: Path) -> tuple[str, list[Path], list[Path]]:
    """The layout, its tables, and the folders and archives with its images."""
    entries = sorted(p for p in folder.iterdir() if not _is_junk(p))
    tests = [p for p in entries if TEST_MARK in p.name.lower()]
    training = [p for p in entries if p not in tests]
    layout = _layout(training, folder) or _layout(tests, folder)
    if layout:
        return layout
    tables = [p for p in tests if _is_table(p)]
    if tables and len(tests) > 1:
        return "dataverse", tables[:1], [p for p in tests if p.is_dir() or _is_zip(p)]
    found = ", ".join(printable(p.name) + ("/" if p.is_dir() else "") for p in entries[:8])
    more = f" and {len(entries) - 8} more" if len(entries) > 8 else ""
    raise InputError(
        f"{folder}: no layout of HAM10000 found. It holds: {found or 'nothing'}{more}\n{ACCEPTED}"
    )


def _layout(entries: list[Path], folder: Path) -> tuple[str, list[Path], list[Path]] | None:
    lower = {p: p.name.lower() for p in entries}
    metadata = [p for p in entries if lower[p].startswith("ham10000_metadata") and _is_table(p)]
    if metadata:
        places = [p for p in entries if p.is_dir() or _is_zip(p)]
        parts = [p for p in places if lower[p].startswith("ham10000_images")]
        layout = "dataverse" if any(_is_zip(p) for p in parts) else "kaggle"
        # The same table may lie there twice, as .csv and as .tab.
        return layout, metadata[:1], parts or [*places, folder]
    truths = [p for p in entries if lower[p].endswith("_groundtruth.csv") and p.is_file()]
    for inner in (p for p in entries if p.is_dir() and "groundtruth" in lower[p]):
        truths += sorted(q for q in inner.glob("*_GroundTruth.csv") if not _is_junk(q))
    truths += [p for p in entries if "groundtruth" in lower[p] and _is_zip(p)]
    inputs = [p for p in entries if "input" in lower[p] and (p.is_dir() or _is_zip(p))]
    if truths and inputs and "dx" not in _read_table(truths[0]).columns:
        return "challenge", truths, inputs
    images = [p for p in entries if p.stem.lower() == "images" and (p.is_dir() or _is_zip(p))]
    tables = []
    for place in [p for p in entries if p.is_dir() and lower[p] == "metadata"]:
        tables += sorted(p for p in place.iterdir() if _is_table(p) and not _is_junk(p))
    tables += [p for p in entries if p.stem.lower() == "metadata" and _is_table(p)]
    if images and tables:
        # Notes and licences may lie beside the table; it has the likeliest ending.
        return (
            "plain",
            sorted(tables, key=lambda p: TABLE_ENDINGS.index(p.suffix.lower()))[:1],
            images,
        )
    return None


def _is_table(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in TABLE_ENDINGS


def _is_junk(path: Path) -> bool:
    return path.name.startswith((".", "__MACOSX")) or path.parent.name.startswith("__MACOSX")


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def _image_files(places: list[Path]) -> dict[str, tuple[str, str]]:
    """(path, member) of every image, by its name without ending, in lower case."""
    files: dict[str, tuple[str, str]] = {}
    for place in places:
        for name, path, member in _zipped(place) if _is_zip(place) else _in_folder(place):
            stem, ending = os.path.splitext(name)
            if ending.lower() not in IMAGE_ENDINGS or name.startswith("."):
                continue
            if member or os.path.isfile(path):  # reading a pipe or a device may never end
                files.setdefault(stem.lower(), (path, member))
    return files


def _in_folder(place: Path) -> Iterator[tuple[str, str, str]]:
    for parent, folders, names in os.walk(place):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        for name in sorted(names):
            yield name, os.path.join(parent, name), ""


def _zipped(place: Path) -> Iterator[tuple[str, str, str]]:
    try:
        with zipfile.ZipFile(place) as archive:
            for member in archive.namelist():
                if not member.startswith("__MACOSX"):
                    yield member.rsplit("/", 1)[-1], str(place), member
    except (*DAMAGED, OSError) as error:
        reason = printable(str(error), 200)
        raise InputError(f"{place}: not a readable zip archive: {reason}") from error


def _read_text(path: Path) -> str:
    """The text of a table, or of the one table in a zip archive."""
    try:
        if not path.is_file():  # reading a pipe or a device may never end
            raise InputError(f"{path}: not a file")
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise InputError(f"{path}: larger than {MAX_TABLE_BYTES // 2**20} MiB, not a table")
        if _is_zip(path):
            with zipfile.ZipFile(path) as archive:
                members = [
                    i
                    for i in archive.infolist()
                    if i.filename.lower().endswith(".csv") and "__MACOSX" not in i.filename
                ]
                if not members or members[0].file_size > MAX_TABLE_BYTES:
                    raise InputError(f"{path}: no table (.csv) in this archive")
                data = archive.read(members[0])
        else:
            data = path.read_bytes()
    except (*DAMAGED, OSError) as error:
        raise InputError(f"{path}: cannot be read ({printable(str(error), 200)})") from error
    for encoding in (
        ("utf-8-sig", "utf-16")
        if data[:2] in (b"\xff\xfe", b"\xfe\xff")
        else (
            "utf-8-sig",
            "latin-1",
        )
    ):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise InputError(f"{path}: not a text table; it needs comma- or tab-separated text")


def _read_table(path: Path) -> pd.DataFrame:
    """All columns as text, their names in lower case."""
    text = _read_text(path)
    header = text.lstrip().split("\n", 1)[0]
    separator = max(",\t;", key=header.count)
    try:
        with warnings.catch_warnings():
            # It would leave out the cells for which the header has no column, with a warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.StringIO(text),
                sep=separator,
                dtype=str,
                keep_default_na=False,
                skipinitialspace=True,
                index_col=False,
                engine="c",
            )
    except pd.errors.EmptyDataError:
        raise InputError(f"{path}: the table is empty; it needs one row an image") from None
    except pd.errors.ParserWarning as error:
        raise InputError(f"{path}: its rows have more cells than its header") from error
    except (pd.errors.ParserError, ValueError, csv.Error, OverflowError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise InputError(f"{path}: not a readable table ({reason})") from error
    table.columns = [str(c).strip().strip('"').lower() for c in table.columns]
    if table.columns.duplicated().any():
        doubled = sorted(set(table.columns[table.columns.duplicated()]))
        raise InputError(
            f"{path}: columns that occur twice: {', '.join(map(printable, doubled[:12]))}"
        )
    return table.apply(lambda column: column.fillna("").str.strip())


def _require(table: pd.DataFrame, columns: tuple[str, ...], path: Path) -> None:
    lacking = [c for c in columns if c not in table.columns]
    if lacking:
        raise InputError(
            f"{path}: no column {', '.join(map(repr, lacking))}; "
            f"its columns are {_listed(table.columns)}"
        )


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(f"'{printable(c, 30)}'" for c in list(columns)[:12])


def _without_ending(image_ids: pd.Series) -> pd.Series:
    endings = "|".join(ending[1:] for ending in IMAGE_ENDINGS)
    return image_ids.str.replace(rf"\.({endings})$", "", case=False, regex=True)


def _read_metadata(path: Path) -> pd.DataFrame:
    raw = _read_table(path)
    if "image_id" not in raw.columns and "image" in raw.columns:
        raw = raw.rename(columns={"image": "image_id"})
    _require(raw, ("image_id", "dx"), path)
    raw = raw[raw["image_id"] != ""]
    table = pd.DataFrame({"image_id": _without_ending(raw["image_id"])})
    lesions = raw["lesion_id"] if "lesion_id" in raw.columns else pd.Series("", index=raw.index)
    table["lesion_id"] = lesions.where(lesions != "", table["image_id"])
    table["dx"] = raw["dx"].str.lower()
    for column in ("dx_type", "sex", "localization", "dataset"):
        values = raw[column] if column in raw.columns else pd.Series("", index=raw.index)
        table[column] = values.where(values != "", "unknown")
    ages = raw["age"] if "age" in raw.columns else pd.Series("", index=raw.index)
    table["age"] = pd.to_numeric(ages, errors="coerce").astype("float64")
    return table


def _read_challenge(path: Path, folder: Path) -> pd.DataFrame:
    """A one-hot ground truth, with the lesions of a LesionGroupings table if there is one."""
    raw = _read_table(path)
    _require(raw, ("image",), path)
    classes = [c for c in raw.columns if c != "image"]
    if not classes:
        raise InputError(f"{path}: no column for any diagnosis")
    shares = raw[classes].apply(pd.to_numeric, errors="coerce")
    wrong = (shares.isna().any(axis=1)) | ((shares > 0.5).sum(axis=1) != 1)
    if wrong.any():
        raise InputError(
            f"{path}: {int(wrong.sum())} rows do not mark exactly one diagnosis with 1.0 "
            f"(the first: '{printable(raw.loc[wrong, 'image'].iloc[0])}')"
        )
    table = pd.DataFrame({"image_id": _without_ending(raw["image"])})
    table["lesion_id"] = table["image_id"]
    table["dx"] = shares.idxmax(axis=1).str.lower() if len(shares) else pd.Series(dtype=str)
    for column in ("dx_type", "sex", "localization"):
        table[column] = "unknown"
    table["dataset"] = path.stem.removesuffix("_GroundTruth")
    table["age"] = float("nan")
    for groups in sorted(p for p in folder.rglob("*LesionGroupings*.csv") if not _is_junk(p)):
        grouping = _read_table(groups)
        _require(grouping, ("image", "lesion_id"), groups)
        lesion = dict(zip(_without_ending(grouping["image"]), grouping["lesion_id"], strict=True))
        table["lesion_id"] = table["image_id"].map(lesion).fillna(table["lesion_id"])
        confirmed = "diagnosis_confirm_type"
        if confirmed in grouping.columns:
            images = _without_ending(grouping["image"])
            kinds = dict(zip(images, grouping[confirmed], strict=True))
            table["dx_type"] = table["image_id"].map(kinds).fillna(table["dx_type"])
    return table


def _without_doubles(table: pd.DataFrame) -> pd.DataFrame:
    table = table.drop_duplicates()
    doubled = table["image_id"].str.lower().duplicated(keep=False)
    if doubled.any():
        names = sorted(set(table.loc[doubled, "image_id"]))
        raise InputError(
            f"{len(names)} image ids occur in several, different rows: "
            f"{', '.join(map(printable, names[:5]))}\n"
            "Keep one row for each image."
        )
    return table.reset_index(drop=True)
