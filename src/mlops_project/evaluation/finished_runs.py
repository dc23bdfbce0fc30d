"""Runs side by side: which settings differ, and how far the same settings differ among seeds."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mlops_project import settings
from mlops_project.config import METRICS
from mlops_project.errors import InputError
from mlops_project.printable import first_line
from mlops_project.training.folders import MODELS, RESULTS

log = logging.getLogger("mlops_project")

# What a file that was damaged, or written by something else, may raise
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    yaml.YAMLError,
    InputError,
)


@dataclass(frozen=True)
class Run:
    """A run that is done.

    Attributes:
        folder: models/<model>/version_N.
        settings: by dotted name, without those that change nothing about the result.
        results: what results.json holds: the tested epoch's metrics and those on the test split.
        history: metrics.csv, one row an epoch.
    """

    folder: Path
    settings: dict[str, Any]
    results: dict[str, Any]
    history: pd.DataFrame


@dataclass(frozen=True)
class Group:
    """Runs with the same settings but for `settings.REPEATED`.

    Attributes:
        name: 1, 2, …, as tables and pictures call it.
        runs: at least one.
    """

    name: str
    runs: list[Run]

    def values(self, metric: str) -> pd.Series:
        """A metric, such as val_auroc, of each of the R runs that have it; float64 [R]."""
        found = [run.results.get(metric) for run in self.runs]
        return pd.Series([v for v in found if v is not None and math.isfinite(v)], dtype=float)

    def checkpoints(self) -> list[str]:
        """The path of each run's best checkpoint."""
        return [str(run.results["checkpoint"]) for run in self.runs]

    @property
    def seeds(self) -> set[int]:
        """The seeds of its runs, each of which deals the images to other splits."""
        return {run.settings["seed"] for run in self.runs}

    def had_same_images(self) -> bool:
        """Whether all runs of a seed had the same images, and the same ones to test.

        A run whose split.csv has gone since tells nothing.
        """
        found = set()
        for run in self.runs:
            with suppress(*UNREADABLE):
                split = pd.read_csv(run.folder / "split.csv", dtype=str, keep_default_na=False)
                tested = split["image_id"][split["split"] == "test"]
                found.add((run.settings["seed"], frozenset(split["image_id"]), frozenset(tested)))
        return len({seed for seed, *_ in found}) == len(found)

    def is_cross_validation(self) -> bool:
        """Whether each fold of a cross-validation has been trained, once."""
        folds = self.runs[0].settings.get("data.folds")
        done = sorted(run.settings["data.fold"] for run in self.runs)
        return folds is not None and done == list(range(folds)) and len(self.seeds) == 1


def finished(root: Path = MODELS) -> list[Path]:
    """The folders of all runs that are done, in the order of their end."""
    done = sorted(root.glob(f"*/version_*/{RESULTS}"), key=lambda path: path.stat().st_mtime)
    return [path.parent for path in done]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads what runs have left; one that is named twice counts once.

    Raises:
        InputError: a folder holds no finished run.
    """
    return [
        _read_run(folder) for folder in {folder.resolve(): folder for folder in folders}.values()
    ]


def read_whole(folders: Sequence[Path]) -> list[Run]:
    """Reads what runs have left; a warning tells of each whose files are missing or damaged."""
    found = []
    for folder in folders:
        try:
            found.append(_read_run(folder))
        except InputError as error:
            log.warning("left out: %s", first_line(error))
    return found


def _read_run(folder: Path) -> Run:
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        container = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        history = pd.read_csv(folder / "metrics.csv", dtype=float)
        _ = results["checkpoint"], history["epoch"]
        for name, value in results.items():
            if name.startswith(("val_", "test_")) and value is not None:
                float(value)
        auto = results.get("auto", "").split()
        kept = settings.shaping(settings.from_container(container), auto)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{folder}: no finished run ({Path(error.filename).name} is missing)\n"
            "Name folders like models/resnet/version_0."
        ) from error
    except UNREADABLE as error:
        raise InputError(f"{folder}: the run cannot be read ({first_line(error)})") from error
    return Run(folder, kept, results, history)


def group(runs: Sequence[Run]) -> list[Group]:
    """The runs by their settings, in the order of the first of each."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(settings.fingerprint(run.settings), []).append(run)
    return [Group(str(number), members) for number, members in enumerate(found.values(), 1)]


def ensembles(groups: Sequence[Group]) -> list[list[Group]]:
    """The cross-validations that have the same folds, where there are several of them.

    A model of each has left out the same images, so that together they can be asked about these.
    """
    found: dict[tuple[Any, ...], list[Group]] = {}
    for one in groups:
        if not one.is_cross_validation():
            continue
        kept = one.runs[0].settings
        try:
            splits = sorted((run.folder / "split.csv").read_bytes() for run in one.runs)
        except OSError:
            continue  # gone since; all else about the run can be told without it
        same = (kept["model.num_classes"], kept["data.data_dir"], *splits)
        found.setdefault(same, []).append(one)
    return [members for members in found.values() if len(members) > 1]


def differing(groups: Sequence[Group]) -> list[str]:
    """Names of the settings that not all groups have in common."""
    first = groups[0].runs[0].settings
    return [
        name
        for name in first
        if name not in settings.REPEATED
        and any(g.runs[0].settings.get(name) != first[name] for g in groups)
    ]


def table(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A row a group: its name, number of runs, settings that differ, and of each metric mean and
    standard deviation, named …_sd, which is NaN for a single run."""
    rows = []
    for one in groups:
        row: dict[str, Any] = {"group": one.name, "runs": len(one.runs)}
        row |= {name: one.runs[0].settings.get(name) for name in differing(groups)}
        for metric in (f"{split}_{name}" for split in ("val", "test") for name in METRICS):
            values = one.values(metric)
            if len(values):
                row[metric], row[f"{metric}_sd"] = float(values.mean()), float(values.std())
        row["folders"] = ", ".join(str(run.folder) for run in one.runs)
        rows.append(row)
    return rows
