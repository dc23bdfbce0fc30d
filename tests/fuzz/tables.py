"""Folders of images with a table, in every layout, where the table or the folder is odd."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from rich.console import Console

from mlops_project.data.cache import open_cache
from mlops_project.data.check import check_folder
from mlops_project.data.check_report import print_report
from mlops_project.data.diagnoses import labels
from mlops_project.data.sources import read_source
from mlops_project.data.splits import split_by_lesion, subsample
from tests.fuzz.damage import Step, damage, some_steps
from tests.fuzz.images import encoded

LAYOUTS = {  # where the images and the table lie, and the columns
    "kaggle": ("HAM10000_images_part_1", "HAM10000_metadata.csv", "image_id"),
    "dataverse": ("HAM10000_images_part_2", "HAM10000_metadata.tab", "image_id"),
    "no ending": ("HAM10000_images_part_1", "HAM10000_metadata", "image_id"),
    "challenge": ("ISIC2018_Task3_Training_Input", "ISIC2018_Task3_Training_GroundTruth.csv", ""),
    "plain": ("images", "metadata/metadata.csv", "image_id"),
    "isic": ("images", "metadata.csv", "image"),
}
ENCODINGS = (*["utf-8"] * 5, "utf-8-sig", "utf-16", "utf-16-be", "latin-1", "utf-32", "cp037")
CHANGES = ("drop", "double", "rename", "ragged")  # of a column
NAMES = ("ISIC_0000001", "ISIC_0000002", "ISIC_0000003", "ISIC_0000004")
ODD = (
    "",
    "../../outside",
    "/etc/passwd",
    "..",
    ".",
    "a/b",
    "a\\b",
    "ISIC_0000001.JPG",
    "isic_0000002",
    "x" * 5000,
    "\0",
    "é\u202e\U0001f4a9",
    "\x1b[2J\x1b]0;owned\x07",
    '"',
    '""',
    "'",
    "a\nb",
    "=cmd|' /C calc'!A0",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "1e999",
    "-0",
    "1_000",
    "None",
    "NULL",
    "True",
    "0x10",
    "{}",
    "[bold]",
    "%s%n",
    "٣",
)
odd = st.sampled_from(ODD) | st.text(max_size=20)
names = st.sampled_from(NAMES * 3) | odd
diagnoses = st.sampled_from(("mel", "nv", "bcc", "MEL", "nv", "bkl")) | odd
ages = st.sampled_from(("45.0", "45", "", "unknown", "nan", "inf", "-5", "1e400")) | odd
COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset")


Oddity = Callable[[Path, Path, Path], object]  # of the folder, its images' folder and its table


class Input(NamedTuple):
    """A table's text and encoding, and what else is odd about the folder."""

    layout: str
    header: list[str]
    rows: list[list[str]]
    separator: str
    quoted: int  # 0: not at all, 1: every cell, 2: cells are cut loose from their quotes
    newline: str
    encoding: str
    changes: list[Step]
    oddities: list[str]
    checked: bool


@st.composite
def inputs_of(draw: st.DrawFn) -> Input:
    layout = draw(st.sampled_from(tuple(LAYOUTS)))
    if layout == "challenge":
        header = ["image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
        hot = st.sampled_from((*(["0.0"] * i + ["1.0"] + ["0.0"] * (6 - i) for i in range(7)),))
        row = st.tuples(names, hot).map(lambda r: [r[0], *r[1]])
    else:
        header = [LAYOUTS[layout][2] if c == "image_id" else c for c in COLUMNS]
        row = st.tuples(names, names, diagnoses, odd, ages, odd, odd, odd).map(list)
        row |= st.sampled_from(NAMES).map(lambda n: [n, n, "mel", "", "45.0", "male", "back", "x"])
    oddities = draw(st.lists(st.sampled_from(tuple(ODDITIES)), max_size=2))
    checked = draw(st.integers(0, 4)) == 0
    if draw(st.integers(0, 3)) == 0:
        return good_table(layout, oddities, checked)
    rows = draw(st.lists(row, max_size=6))
    for change in draw(st.lists(st.sampled_from(CHANGES), max_size=1)):
        at = draw(st.integers(0, len(header) - 1))
        if change == "drop":
            header, rows = header[:at] + header[at + 1 :], [r[:at] + r[at + 1 :] for r in rows]
        elif change == "double":
            header, rows = [*header, header[at]], [[*r, r[at]] for r in rows]
        elif change == "rename":
            header = [*header[:at], draw(odd), *header[at + 1 :]]
        else:
            rows = [r[:at] if i % 2 else r + r[:at] for i, r in enumerate(rows)]
    return Input(
        layout,
        header,
        rows,
        draw(st.sampled_from((",", ",", "\t", ";", "|"))),
        draw(st.sampled_from((0, 1, 1, 1, 2))),
        draw(st.sampled_from(("\n", "\n", "\r\n", "\r", "\n\n"))),
        draw(st.sampled_from(ENCODINGS)),
        draw(st.just([]) | some_steps),
        oddities,
        checked,
    )


inputs = inputs_of()


def good_table(layout: str, oddities: list[str], checked: bool = False) -> Input:
    """A folder of which only the oddities may be wrong."""
    if layout == "challenge":
        header, rows = ["image", "MEL", "NV"], [[name, "1", "0"] for name in NAMES]
    else:
        header = [LAYOUTS[layout][2] if c == "image_id" else c for c in COLUMNS]
        rows = [[name, name, "mel", "", "45.0", "male", "back", "x"] for name in NAMES]
    return Input(layout, header, rows, ",", 0, "\n", "utf-8", [], oddities, checked)


def table_bytes(value: Input) -> bytes:
    def cell(text: str) -> str:
        if value.quoted == 1:
            return '"' + text.replace('"', '""') + '"'
        return '"' + text if value.quoted == 2 and len(text) % 3 == 0 else text

    lines = [value.separator.join(map(cell, row)) for row in [value.header, *value.rows]]
    text = value.newline.join(lines) + value.newline
    return damage(text.encode(value.encoding, errors="replace"), value.changes)


def build(value: Input, folder: Path) -> None:
    place, table, _ = LAYOUTS[value.layout]
    (folder / place).mkdir()
    for number, name in enumerate(NAMES[:3]):
        ending = ("jpg", "png", "jpg")[number]
        format = {"jpg": "JPEG", "png": "PNG"}[ending]
        data = encoded(format, "RGB", (48, 32), number, None)
        (folder / place / f"{name}.{ending}").write_bytes(data)
    (folder / table).parent.mkdir(exist_ok=True)
    (folder / table).write_bytes(table_bytes(value))
    for oddity in value.oddities:
        with contextlib.suppress(OSError):  # two that do not go together
            ODDITIES[oddity](folder, folder / place, folder / table)


def _swap(path: Path, make: str) -> None:
    """Something else takes the file's name."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    if make == "fifo":
        os.mkfifo(path)
    elif make == "folder":
        path.mkdir()
    elif make == "loop":
        path.symlink_to(path.name)
    elif make == "device":
        path.symlink_to("/dev/zero")
    elif make == "dangling":
        path.symlink_to("/nonexistent/file")
    elif make == "passwd":
        path.symlink_to("/etc/passwd")
    elif make == "empty":
        path.touch()


def _raw_names(folder: Path) -> None:
    for name in (b"ISIC_\xff\xfe.jpg", b"\x80.csv", b"ISIC_\n1.jpg", b"\x1b[2J.jpg", b"a" * 250):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(b"x")


def _link(path: Path, target: str) -> None:
    path.symlink_to(target)


def _image_is(make: str) -> Oddity:
    return lambda folder, place, table: _swap(place / f"{NAMES[0]}.jpg", make)


def _table_is(make: str) -> Oddity:
    return lambda folder, place, table: _swap(table, make)


def _images_are(make: str) -> Oddity:
    return lambda folder, place, table: _swap(place, make)


MAKES = ("fifo", "folder", "loop", "device", "dangling", "passwd", "empty")
# f is the folder, p the place of the images, t the table.
ODDITIES: dict[str, Oddity] = {
    **{f"image is a {make}": _image_is(make) for make in MAKES},
    **{f"table is a {make}": _table_is(make) for make in MAKES},
    **{f"images are a {make}": _images_are(make) for make in ("fifo", "loop", "device", "empty")},
    "a folder links to itself": lambda f, p, t: _link(p / "again", "."),
    "images link to the root": lambda f, p, t: _link(p / "root", "/"),
    "names in no encoding": lambda f, p, t: _raw_names(p),
    "names in no encoding above": lambda f, p, t: _raw_names(f),
    "a fifo beside": lambda f, p, t: os.mkfifo(f / "HAM10000_images_part_0.zip"),
    "a fifo for a table": lambda f, p, t: os.mkfifo(f / "HAM10000_metadata"),
    "a marker that is a folder": lambda f, p, t: (f / "SYNTHETIC.json").mkdir(),
    "lesion groups": lambda f, p, t: (f / "ISIC2018_Task3_Training_LesionGroupings.csv").write_text(
        f"image,lesion_id,diagnosis_confirm_type\n{NAMES[0]},L1,histo\n{NAMES[0]},L2\n"
    ),
    "lesion groups that are none": lambda f, p, t: os.mkfifo(f / "LesionGroupings.csv"),
    "a test set": lambda f, p, t: (f / "ISIC2018_Task3_Test_GroundTruth.csv").write_bytes(b"\xff"),
    "deep folders": lambda f, p, t: os.makedirs(p / "/".join(["d" * 50] * 40).lstrip("/")),
}


def use(value: Input, folder: Path) -> None:
    """Prepares a training with it, or checks it."""
    use_folder(folder, value.checked)


def use_folder(folder: Path, checked: bool) -> None:
    if checked:
        report = check_folder(folder)
        with (folder / "report.txt").open("w", encoding="utf-8") as file:
            print_report(report, Console(file=file, width=100))
        return
    source = read_source(folder)
    labels(source.table["dx"], 2)
    split = split_by_lesion(source.table, 42)
    subsample(source.table, split, 0.5, True, 42)
    rows = np.arange(len(source.table))
    cache = open_cache(source.table, rows, 16, folder / "cache", workers=1)
    assert all(len(reason.splitlines()) == 1 for reason in cache.unreadable.values())
    assert len(cache.images) == len(source.table)
