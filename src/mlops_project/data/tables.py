"""Tables of diagnoses: Kaggle's and Dataverse's, the ISIC challenge's, and anybody's."""

from __future__ import annotations

import csv
import io
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from mlops_project.data.archives import DAMAGED, is_junk, is_zip
from mlops_project.data.identity import image_key, lesion_key, spelled_alike, without_ending
from mlops_project.errors import InputError
from mlops_project.printable import first_line, printable

TABLE_ENDINGS = (".csv", ".tab", ".tsv", "", ".txt")
MAX_TABLE_BYTES = 500 * 2**20
# What the ISIC challenges, the ISIC archive and others call our columns.
OTHER_NAMES = {
    "image_id": ("image", "isic_id", "image_name", "filename", "file_name"),
    "age": ("age_approx",),
    "localization": ("anatom_site_general",),
}
# Columns of the ISIC 2019 test's ground truth that are no diagnoses.
WEIGHTS = ("score_weight", "validation_weight")
# How programs write that a cell is empty (R, pandas, SQL), and people
MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none", "unknown", "-", "?")
PREDICTED = "y_pred"  # a column of the predictions that an evaluation leaves


def is_table(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in TABLE_ENDINGS


def _read_text(path: Path) -> str:
    """The text of a table, or of the one table in a zip archive."""
    try:
        if not path.is_file():  # reading a pipe or a device may never end
            raise InputError(f"{path}: not a file")
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise InputError(f"{path}: larger than {MAX_TABLE_BYTES // 2**20} MiB, not a table")
        if is_zip(path):
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
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from error
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


def read_table(path: Path) -> pd.DataFrame:
    """All columns as text, their names in lower case."""
    text = _read_text(path).lstrip("\r\n ")
    told = re.match(r"sep=(.)\r?\n", text)  # Excel's, for programs that would guess it otherwise
    text = text[told.end() :] if told else text
    header = text.split("\n", 1)[0]
    separator = told[1] if told else max(",\t;", key=header.count)

    def parse(**options: Any) -> pd.DataFrame:
        return pd.read_csv(
            io.StringIO(text),
            sep=separator,
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
            index_col=False,
            engine="c",
            **options,
        )

    try:
        with warnings.catch_warnings():
            # It would leave out the cells for which the header has no column, with a warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = parse()
        # Of names that occur twice pandas has made different ones.
        first = parse(header=None, nrows=1).iloc[0]
    except pd.errors.EmptyDataError:
        raise InputError(f"{path}: the table is empty; it needs one row an image") from None
    except pd.errors.ParserWarning as error:
        raise InputError(f"{path}: its rows have more cells than its header") from error
    except (pd.errors.ParserError, ValueError, csv.Error, OverflowError) as error:
        raise InputError(f"{path}: not a readable table ({first_line(error)})") from error
    table.columns = [str(c).strip().strip('"').lower() for c in table.columns]
    names = first.astype(str).str.strip().str.strip('"').str.lower()
    doubled = sorted(set(names[names.duplicated() & (names != "")]))
    if doubled:
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


def read_rows(path: Path, layout: str, folder: Path, *, unlabelled: bool = False) -> pd.DataFrame:
    """The rows of a table: image_id, lesion_id, dx, dx_type, age, sex, localization, dataset.

    Args:
        path: of the table.
        layout: "challenge" for one column a diagnosis, else one column of diagnoses.
        folder: where it was found, which may have a table of the lesions too.
        unlabelled: whether rows, or the table, may lack a diagnosis; it is "" then.

    Raises:
        InputError: the table cannot be read, or lacks a column.
    """
    if layout == "challenge":
        rows = _read_challenge(path, folder, unlabelled)
    else:
        rows = _read_metadata(path, unlabelled)
    unnamed = int((rows["image_id"] == "").sum())
    if unnamed:
        raise InputError(
            f"{path}: {unnamed} rows have no image_id\nName their images, or remove them."
        )
    rows["lesion_id"] = spelled_alike(rows["lesion_id"])
    return rows


def diagnoses_of(path: Path) -> dict[str, tuple[str, str]] | None:
    """Diagnosis and `lesion_key`, "" if unknown, by the `image_key` of each image of a table.

    None if it is no table of diagnoses. A table of predictions is none.
    """
    try:
        table = read_table(path)
    except InputError:
        return None
    table.columns = renamed(table.columns)
    if not {"image_id", "dx"} <= set(table.columns) or PREDICTED in table.columns:
        return None
    rows = _read_metadata(path, unlabelled=True)
    rows = rows[rows["image_id"] != ""]
    lesions = rows["lesion_id"].mask(rows["lesion_id"] == rows["image_id"], "")
    names = rows["image_id"].map(image_key)
    return dict(zip(names, zip(rows["dx"], lesions.map(lesion_key), strict=True), strict=True))


def renamed(columns: Iterable[str]) -> list[str]:
    """The columns of a table, by our names for those that are known by others."""
    ours = list(columns)
    for name, others in OTHER_NAMES.items():
        found = [other for other in others if other in ours]
        if found and name not in ours:
            ours[ours.index(found[0])] = name
    return ours


def _read_metadata(path: Path, unlabelled: bool) -> pd.DataFrame:
    raw = read_table(path)
    raw.columns = renamed(raw.columns)
    if unlabelled and "dx" not in raw.columns:
        raw["dx"] = ""
    _require(raw, ("image_id", "dx"), path)
    raw = raw[(raw != "").any(axis=1)]  # a spreadsheet may leave empty rows at the end
    names = raw["image_id"].str.replace(r"^.*[/\\]", "", regex=True)  # of files, maybe in folders
    paths = without_ending(raw["image_id"]).map(image_key).str.replace("\\", "/")
    paths = paths.str.removeprefix("./")
    several = paths.groupby(without_ending(names).map(image_key)).nunique() > 1
    if several.any():
        raise InputError(
            f"{path}: several images in different folders are called "
            f"{printable(str(several.idxmax()))}\nRename them: an image is known by its name alone."
        )
    table = pd.DataFrame({"image_id": without_ending(names)})
    lesions = raw["lesion_id"] if "lesion_id" in raw.columns else pd.Series("", index=raw.index)
    table["lesion_id"] = lesions.mask(lesions.str.lower().isin(MISSING), table["image_id"])
    dx = raw["dx"].str.lower()
    table["dx"] = dx.mask(dx.isin(MISSING), "")
    for column in ("dx_type", "sex", "localization", "dataset"):
        values = raw[column] if column in raw.columns else pd.Series("", index=raw.index)
        table[column] = values.mask(values.str.lower().isin(MISSING), "unknown")
    ages = raw["age"] if "age" in raw.columns else pd.Series("", index=raw.index)
    table["age"] = _ages(ages)
    return table


def _ages(texts: pd.Series) -> pd.Series:
    """Years, float64."""
    texts = texts.str.replace(r"^(\d+),(\d+)$", r"\1.\2", regex=True)  # as Excel writes in Europe
    return pd.to_numeric(texts, errors="coerce").astype("float64")


def _read_challenge(path: Path, folder: Path, unlabelled: bool) -> pd.DataFrame:
    """A one-hot ground truth, with the lesions of a LesionGroupings table if there is one."""
    raw = read_table(path)
    _require(raw, ("image",), path)
    classes = [c for c in raw.columns if c not in ("image", "lesion_id", *WEIGHTS)]
    if not classes:
        raise InputError(f"{path}: no column for any diagnosis")
    shares = raw[classes].apply(pd.to_numeric, errors="coerce")
    empty = (raw[classes] == "").all(axis=1) | (shares == 0).all(axis=1)
    wrong = (shares.isna().any(axis=1)) | ((shares > 0.5).sum(axis=1) != 1)
    if unlabelled:
        wrong &= ~empty
    if wrong.any():
        raise InputError(
            f"{path}: {int(wrong.sum())} rows do not mark exactly one diagnosis with 1.0 "
            f"(the first: '{printable(raw.loc[wrong, 'image'].iloc[0])}')"
        )
    table = pd.DataFrame({"image_id": without_ending(raw["image"])})
    lesions = raw["lesion_id"] if "lesion_id" in raw.columns else pd.Series("", index=raw.index)
    table["lesion_id"] = lesions.mask(lesions.str.lower().isin(MISSING), table["image_id"])
    largest = shares.fillna(0).idxmax(axis=1) if len(shares) else pd.Series(dtype=str)
    table["dx"] = largest.str.lower().mask(empty, "")
    for column in ("dx_type", "sex", "localization"):
        table[column] = "unknown"
    table["dataset"] = re.sub("_?groundtruth$", "", path.stem, flags=re.IGNORECASE) or "unknown"
    table["age"] = float("nan")
    # ISIC 2018 and 2019 have their lesions, and the latter its patients, in tables of these names.
    own = lesions[~lesions.str.lower().isin(MISSING)].map(lesion_key)
    grouped = dict(zip(table["image_id"][own.index].map(image_key), own, strict=True))
    lists = {*folder.rglob("*LesionGroupings*.csv"), *folder.rglob("*_Metadata.csv")}
    for groups in sorted(p for p in lists if not is_junk(p)):
        more = read_table(groups)
        more.columns = renamed(more.columns)
        if not groups.name.endswith("_Metadata.csv"):
            _require(more, ("image_id", "lesion_id"), groups)
        elif "image_id" not in more.columns:
            continue
        more = more.rename(columns={"diagnosis_confirm_type": "dx_type"})
        images = table["image_id"].map(image_key)
        names = without_ending(more["image_id"]).map(image_key)
        for column in ("lesion_id", "dx_type", "sex", "localization", "age"):
            if column in more.columns:
                values = _ages(more[column]) if column == "age" else more[column]
                told = ~more[column].str.lower().isin(MISSING)
                known = dict(zip(names[told], values[told], strict=True))
                if not known:
                    continue
                if column == "lesion_id":
                    _refuse_other_lesions(groups, names[told], values[told], grouped)
                table[column] = images.map(known).fillna(table[column])
    return table


def _refuse_other_lesions(
    path: Path, names: pd.Series, lesions: pd.Series, known: dict[str, str]
) -> None:
    """Adds the lesion of each image to those known.

    Raises:
        InputError: an image has another one in this list, or in an earlier one.
    """
    for name, lesion in zip(names, lesions.map(lesion_key), strict=True):
        if known.setdefault(name, lesion) != lesion:
            raise InputError(
                f"{path}: it tells another lesion of '{printable(name)}' than was told before\n"
                "Leave only the right list of lesions, with one row for each image."
            )


def without_doubles(table: pd.DataFrame) -> pd.DataFrame:
    table = table.drop_duplicates()
    doubled = table["image_id"].map(image_key).duplicated(keep=False)
    if doubled.any():
        names = sorted(set(table.loc[doubled, "image_id"]))
        raise InputError(
            f"{len(names)} image ids occur in several, different rows: "
            f"{', '.join(map(printable, names[:5]))}\n"
            "Keep one row for each image, and rename files that differ by their ending alone."
        )
    return table.reset_index(drop=True)
