"""Where a run writes: its own folder, its log and its row in the summary of all runs."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from mlops_project.errors import InputError
from mlops_project.files import atomic_write

MODELS = Path("models")
LOGS = Path("logs")
SUMMARY = Path("reports/training_metrics.csv")
PREVIOUS = "previous.ckpt"  # in a run's folder: what last.ckpt was before, until the run is done
TOLD = "writing to "  # begins the line that tells a run's folder, which a search reads
RESULTS = "results.json"  # in the folder of a run that is done
_held: list[int] = []  # file descriptors of the locks


def new_run_folder(model: str, root: Path = MODELS) -> Path:
    """Makes `root/model/version_N` with the next free N; no two runs get the same.

    Raises:
        OSError: the folder cannot be written to.
    """
    parent = root / model
    parent.mkdir(parents=True, exist_ok=True)
    taken = run_folders(model, root)
    number = int(taken[-1].name.removeprefix("version_")) + 1 if taken else 0
    while True:
        folder = parent / f"version_{number}"
        try:
            folder.mkdir()  # atomic: another run's folder of the same number raises
        except FileExistsError:
            number += 1
        else:
            return folder


def discard(folder: Path) -> None:
    """Removes the folder of a run that has come to nothing."""
    release()
    shutil.rmtree(folder, ignore_errors=True)


def run_folders(model: str, root: Path = MODELS) -> list[Path]:
    """The folders of a model's runs, the oldest first."""
    found = [
        path
        for path in (root / model).glob("version_*")
        if path.is_dir() and path.name.removeprefix("version_").isdecimal()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix("version_")))


def settings_of(folder: Path) -> dict[str, Any] | None:
    """The settings of a run, as its folder has them; None where they cannot be read."""
    try:
        container = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return container if isinstance(container, dict) else None


def hold(folder: Path) -> None:
    """Marks a run as this process's own, until `release` or its end, whatever that is.

    Raises:
        InputError: another process is training it.
    """
    # A lock of this kind does not pass to the processes that prepare batches, which may outlive
    # a killed run by some seconds; those of filelock do.
    descriptor = os.open(folder / ".running", os.O_RDWR | os.O_CREAT, 0o666)
    _held.append(descriptor)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        release()
        raise InputError(
            f"{folder}: another process is training this run; wait for it or end it"
        ) from None
    except OSError:
        return  # a file system without locks


def release() -> None:
    """Lets go of the runs that this process holds."""
    while _held:
        os.close(_held.pop())


def run_folder_of(checkpoint: str) -> Path | None:
    """The folder `…/version_N` of the run that wrote a checkpoint; None if it lies elsewhere.

    A run of this working folder is `models/<model>/version_N`, by whatever links it is named.
    """
    path = Path(checkpoint).absolute()
    folder = path.parent if path.name == PREVIOUS else path.parent.parent
    inside = path.name == PREVIOUS or path.parent.name == "checkpoints"
    if not inside or not re.fullmatch(r"version_\d+", folder.name):
        return None
    for own in sorted(MODELS.glob(f"*/{folder.name}")):
        if own.resolve() == folder.resolve():
            return own
    relative = Path(os.path.relpath(folder))
    # Not where that would be mostly "..": a run is called by the last three parts of its path.
    return folder if ".." in relative.parts[-3:] or len(relative.parts) < 3 else relative


def new_log_file() -> Path:
    """Makes an empty `logs/train_<date>_<time>.log` that no other run writes to."""
    LOGS.mkdir(exist_ok=True)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    number = 1
    while True:
        path = LOGS / (f"train_{stamp}.log" if number == 1 else f"train_{stamp}_{number}.log")
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return path


def table_text(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV; a column for every key of any row, in the order of first sight."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def add_to_summary(row: dict[str, Any], path: Path = SUMMARY) -> None:
    """Adds a run's row to the summary, or replaces the row of the same `run`.

    Columns that a row lacks stay empty. Runs that end together wait for each other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f".{path.name}.lock"):
        rows: list[dict[str, Any]] = []
        if path.exists():
            # A spreadsheet may have saved it since, in its own way.
            text = path.read_text(encoding="utf-8-sig", errors="replace")
            header = text.split("\n", 1)[0]
            separator = max(",;\t", key=header.count)
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
            rows = [dict(r) for r in reader if r.get("run") != row["run"]]
        with atomic_write(path) as file:
            file.write(table_text([*rows, row]))
