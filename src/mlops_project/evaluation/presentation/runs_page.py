"""Runs side by side, in the terminal, as a table and on a page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mlops_project.evaluation.finished_runs import (
    METRICS,
    Group,
    differing,
    ensembles,
    finished,
    group,
    read_whole,
    table,
)
from mlops_project.evaluation.presentation import rendering
from mlops_project.evaluation.presentation.drawing import (
    COLOURS,
    DASHES,
    full_title,
    new_figure,
    save,
    style,
)
from mlops_project.evaluation.presentation.page import embedded, page_frame
from mlops_project.files import atomic_write
from mlops_project.metrics import label

CURVES = ("loss", "balanced_accuracy")  # of validation
SEVERAL_SEEDS = "each seed splits the images anew: they differ by training and by what is tested"
OTHER_IMAGES = "the images changed between them (split.csv), and with them perhaps what is tested"


def write_comparison(groups: Sequence[Group], folder: Path) -> list[Path]:
    """Writes comparison.html, runs.csv and curves.png."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = table(groups)
    with atomic_write(folder / "runs.csv") as file:
        pd.DataFrame(rows).to_csv(file, index=False)
    synthetic = any(run.results.get("synthetic") for one in groups for run in one.runs)
    with style():
        save(_curves(groups, synthetic), folder / "curves.png")
    values = page_frame() | {
        "rows": rows,
        "differing": differing(groups),
        "metrics": _measured(rows),
        "synthetic": synthetic,
        "groups": [
            {
                "name": g.name,
                "folders": [str(r.folder) for r in g.runs],
                "note": _note(g),
                "next": next_command([g]),
            }
            for g in groups
        ],
        "ensembles": [{"names": _names(e), "next": next_command(e)} for e in ensembles(groups)],
        "curves": embedded(folder / "curves.png"),
    }
    page = rendering.write(folder / "comparison.html", "comparison.html.jinja", values)
    return [page, folder / "runs.csv", folder / "curves.png"]


def show(groups: Sequence[Group], written: Sequence[Path] = ()) -> None:
    """Prints the table: means, and standard deviations where there are several runs."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console()
    rows = table(groups)
    for split in ("val", "test"):
        names = [m for m in _measured(rows) if m.startswith(split)]
        if not names:
            continue
        title = {"val": "validation, best epoch", "test": "test split"}[split]
        shown = Table(title=title, box=SIMPLE, pad_edge=False)
        for column in ("group", "runs"):
            shown.add_column(column, overflow="fold")
        for name in names:
            metric = name.removeprefix(f"{split}_")
            shown.add_column(label(metric, short=True), justify="right", overflow="fold")
        for row in rows:
            cells = [_spread(row, name) for name in names]
            shown.add_row(row["group"], str(row["runs"]), *cells)
        console.print(shown)
    lines = []
    for one, row in zip(groups, rows, strict=True):
        own = " ".join(f"{name}={row[name]}" for name in differing(groups))
        lines.append(f"group {one.name}: {own or 'the same settings'} ({row['folders']})")
        if note := _note(one):
            lines.append(f"  {note}")
        if command := next_command([one]):
            lines.append(f"  as one: {command}")
    for members in ensembles(groups):
        lines.append(f"groups {_names(members)} as one: {next_command(members)}")
    if written:
        files = ", ".join(path.name for path in written)
        lines.append(f"written to {written[0].parent}/: {files}")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def show_new() -> Iterator[list[Path]]:
    """Shows the runs that end meanwhile side by side, where there are several.

    Yields:
        A list for the folders of earlier runs that are to be shown as well.
    """
    before, also = set(finished()), list[Path]()
    try:
        yield also
    finally:  # also where the next run was refused
        new = [folder for folder in finished() if folder not in before or folder in also]
        if len(whole := read_whole(new)) > 1:
            show(group(whole))


def next_command(groups: Sequence[Group]) -> str:
    """What evaluates a group, or one of `ensembles`, as one.

    Nothing for a single run, and for several seeds: what one of them tests another was trained on.
    """
    paths = [path for one in groups for path in one.checkpoints()]
    seeds = set[int]().union(*(one.seeds for one in groups))
    if len(paths) == 1 or len(seeds) > 1:
        return ""
    kept = [run.settings for run in groups[0].runs]
    # Of an unfinished cross-validation without a test split there is nothing else to evaluate.
    parts = kept[0]["data.folds"] is not None and kept[0]["data.test_fraction"] == 0
    split = " --split out-of-fold" if parts or groups[0].is_cross_validation() else ""
    return f"uv run src/mlops_project/evaluate.py --checkpoint {shlex.join(paths)}{split}"


def _note(one: Group) -> str:
    """Why the runs of a group differ by more than training; or nothing."""
    notes = [SEVERAL_SEEDS] if len(one.seeds) > 1 else []
    if not one.had_same_images():
        notes.append(OTHER_IMAGES)
    return "; ".join(notes)


def _names(groups: Sequence[Group]) -> str:
    return ", ".join(one.name for one in groups)


def _measured(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = [f"{split}_{name}" for split in ("val", "test") for name in METRICS]
    return [name for name in names if any(name in row for row in rows)]


def _spread(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return "–"
    spread = row[f"{name}_sd"]
    return f"{row[name]:.3f}" + ("" if math.isnan(spread) else f" ± {spread:.3f}")


def _curves(groups: Sequence[Group], synthetic: bool) -> Figure:
    """Each run's metrics over its epochs, those of a group in one colour."""
    figure = new_figure(5.4, full_title({"synthetic": synthetic}, "Validation over the epochs"))
    for axes, metric in zip(figure.subplots(2, 1), CURVES, strict=True):
        name = f"val_{metric}"
        for number, one in enumerate(groups):
            look = {
                "color": COLOURS[number % len(COLOURS)],
                "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
            }
            for run in one.runs:
                label_once = f"group {one.name}" if run is one.runs[0] else None
                if name in run.history:
                    epochs = run.history["epoch"] + 1
                    marker = "o" if len(epochs) == 1 else None
                    axes.plot(
                        epochs, run.history[name], label=label_once, marker=marker, lw=1, **look
                    )
        axes.set(xlabel="epoch", ylabel=f"{label(metric)} (validation)")
        axes.legend(ncols=3)
    return figure
