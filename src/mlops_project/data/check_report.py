"""What a check found, printed: the counts, what needs a look, and last what to do."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlops_project.data.check import NAIVE_SPLITS, Report
from mlops_project.data.diagnoses import BINARY, DIAGNOSES, MALIGNANT
from mlops_project.data.identity import told_lesions
from mlops_project.data.splits import SPLITS, UNUSED
from mlops_project.printable import printable

LISTED = 20
STYLES = {"broken": "bold red", "warning": "yellow", "note": "cyan"}


@dataclass(frozen=True)
class _Finding:
    kind: str  # of STYLES
    found: str
    advice: str
    columns: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()


def print_report(report: Report, console: Console) -> None:
    """Prints the counts, the images and rows that need a look, and last what to do about them."""
    if len(report.table):
        console.print(_counts(report))
    findings = list(_findings(report))
    for finding in findings:
        if finding.rows:
            listed = Table(*finding.columns)
            for row in finding.rows[:LISTED]:
                listed.add_row(*map(_text, row))
            console.print(_text(finding.found, "bold"))
            console.print(listed)
            if len(finding.rows) > LISTED:
                console.print(f"and {len(finding.rows) - LISTED:,} more")
    title = _text(f"Summary of {report.folder}")
    summary = Table("", "found", "what to do", title=title, show_lines=True)
    for finding in findings:
        kind = Text(finding.kind, STYLES[finding.kind])
        summary.add_row(kind, _text(finding.found), _text(finding.advice))
    console.print(summary)
    if report.broken:
        console.print("Broken: see above what to do, then check again.", style="bold red")
    else:
        console.print("Nothing is broken.", style="bold green")


def _counts(report: Report) -> Table:
    table = report.table
    splits = [*SPLITS, UNUSED] if (table["split"] == UNUSED).any() else list(SPLITS)
    shown = Table("diagnosis", title=f"Images / lesions in each split ({report.layout} layout)")
    for name in (*splits, "all"):
        shown.add_column(name, justify="right")
    known = table["dx"].isin([*DIAGNOSES, *BINARY])
    malignant = table["dx"].isin([*MALIGNANT, BINARY[1]])
    rows = [(dx, table["dx"] == dx) for dx in DIAGNOSES]
    rows += [] if known.all() else [("unknown", ~known)]
    classes = [("benign", known & ~malignant), ("malignant", malignant)]
    for section in (rows, classes, [("all", known | ~known)]):
        for name, chosen in section:
            parts = [table[chosen & (table["split"] == split)] for split in splits]
            cells = [(len(part), part["lesion_id"].nunique()) for part in (*parts, table[chosen])]
            shown.add_row(name, *(f"{images:,} / {lesions:,}" for images, lesions in cells))
        shown.add_section()
    return shown


def _findings(report: Report) -> Iterator[_Finding]:
    """What the report has to say, the worst first."""
    table, leak = report.table, report.leak
    for message in report.unusable:
        yield _Finding("broken", message, "Correct it, or fetch the files again.")
    if report.missing:
        yield _Finding(
            "broken",
            f"Missing images: {len(report.missing):,}",
            "Fetch them, or remove their rows. Training leaves them out.",
            ("image",),
            [(image_id,) for image_id in report.missing],
        )
    if report.unreadable:
        yield _Finding(
            "broken",
            f"Unreadable images: {len(report.unreadable):,}",
            "Fetch them again. Training leaves them out.",
            ("image", "reason"),
            list(report.unreadable.items()),
        )
    if report.unknown:
        yield _Finding(
            "broken",
            f"Images with an unknown diagnosis: {sum(report.unknown.values()):,}",
            "Correct or remove their rows, training refuses them. Known: "
            f"{', '.join([*DIAGNOSES, *BINARY])}",
            ("diagnosis", "images"),
            [(printable(dx or "(empty)"), f"{n:,}") for dx, n in report.unknown.items()],
        )
    if report.duplicates:
        yield _Finding(
            "broken",
            f"Image ids with several, different rows: {len(report.duplicates):,}",
            "Keep one row for each image, training refuses them. Counted here: the first.",
            ("image", "rows"),
            [(image_id, f"{n:,}") for image_id, n in report.duplicates.items()],
        )
    if report.empty_splits:
        yield _Finding(
            "broken",
            f"No image is left for: {', '.join(report.empty_splits)}",
            "Add images of other lesions: training needs at least three lesions.",
        )
    if report.same:
        groups = [(table.iloc[list(same.rows)], same) for same in report.same]
        apart = sum(images["split"].nunique() > 1 for images, _ in groups)
        yield _Finding(
            "warning",
            f"(Nearly) the same picture under different lesion ids: {len(groups):,}, "
            f"in different splits: {apart:,}",
            "Give these images one lesion id, or keep one of each: they leak into the test.",
            ("images", "lesions", "diagnoses", "splits", "similarity"),
            [
                (
                    *(_some(images[c]) for c in ("image_id", "lesion_id", "dx", "split")),
                    "same file" if same.identical else f"{same.similarity:.3f}",
                )
                for images, same in groups
            ],
        )
    if report.doubles:
        yield _Finding(
            "warning",
            f"Images in several, different files: {len(report.doubles):,}",
            "Leave only the one to use (masks and clinical pictures belong outside this folder).",
            ("image", "taken", "left out"),
            [
                (image_id, *(printable(os.path.relpath(path, report.folder)) for path in paths))
                for image_id, paths in report.doubles.items()
            ],
        )
    known = table[table["dx"].isin([*DIAGNOSES, *BINARY]) & (table["split"] != UNUSED)]
    for dx, images in known.groupby("dx"):
        if lacking := [split for split in SPLITS if split not in set(images["split"])]:
            yield _Finding(
                "warning",
                f"No image of {dx} in {', '.join(lacking)}",
                "A diagnosis needs three lesions to be in every split.",
            )
    for kind, names in (("benign", DIAGNOSES.keys() - MALIGNANT), ("malignant", MALIGNANT)):
        if len(known) and not known["dx"].isin([*names, kind]).any():
            yield _Finding(
                "warning",
                f"No image is {kind}",
                "Add some: from images of one class nothing can be learned.",
            )
    if unknown := int(told_lesions(table).isna().sum()):
        yield _Finding(
            "warning",
            f"Images without a lesion id: {unknown:,} (or with their own as one)",
            "If lesions have several images, add the column lesion_id; otherwise they leak.",
        )
    if report.several_diagnoses:
        yield _Finding(
            "note",
            f"Lesions with several diagnoses: {len(report.several_diagnoses):,}",
            "Correct them if they are wrong. A lesion stays in one split anyway.",
            ("lesion", "diagnoses"),
            [(lesion, ", ".join(dx)) for lesion, dx in report.several_diagnoses.items()],
        )
    if report.repeated_rows:
        yield _Finding("note", f"Rows that repeat another: {report.repeated_rows:,}", "Nothing.")
    if report.without_row:
        yield _Finding(
            "note",
            f"Images that are not in the table: {report.without_row:,}",
            "Nothing, unless the table is cut off: they are not used.",
        )
    if not math.isnan(leak.images):
        melanomas = (
            "" if math.isnan(leak.melanomas) else f" ({100 * leak.melanomas:.1f} % of melanomas)"
        )
        fractions = " / ".join(f"{100 * share:.0f}" for share in leak.fractions)
        yield _Finding(
            "note",
            f"A split by image would leak {100 * leak.images:.1f} % of the test images{melanomas}: "
            f"training shows their lesions too (mean of {NAIVE_SPLITS} random splits {fractions})",
            "Nothing: the splits made here keep lesions whole.",
        )


def _text(text: str, style: str = "") -> Text:
    """The text without markup, and without what a name from outside could do to a terminal."""
    return Text("\n".join(printable(line, 300) for line in text.split("\n")), style)


def _some(values: pd.Series) -> str:
    more = [f"and {len(values) - 5} more"] if len(values) > 5 else []
    return "\n".join([*values[:5], *more])
