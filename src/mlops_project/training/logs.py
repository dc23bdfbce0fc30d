"""The loggers of a run, and how they go on where a checkpoint was made: no gap and no double."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from mlops_project.config import Config
from mlops_project.training import folders, weights_and_biases
from mlops_project.training.tracking import MONITORABLE

EVENTS = "events.out.tfevents.*"  # TensorBoard's files
CSV_NAME = "lightning_logs"
CSV_COLUMNS = sorted(["epoch", "step", "learning_rate", "train_loss_step", *MONITORABLE])


def build_loggers(
    config: Config, folder: Path, positions: dict[str, Any], rows: list[dict[str, str]]
) -> list[Logger]:
    """TensorBoard, a table of all that is logged and, if enabled, Weights & Biases.

    Args:
        config: of the run.
        folder: the run's folder.
        positions, rows: of a resumed run, from `rewind`; else empty.
    """
    number = int(folder.name.removeprefix("version_"))
    table = CSVLogger(folders.LOGS, name=CSV_NAME, version=_csv_version(folder))
    # All columns from the start: adding one rewrites the file, which a kill could cut short.
    table.experiment.metrics_keys = list(CSV_COLUMNS)
    for row in rows:
        table.experiment.log_metrics(dict(row), step=row["step"])
    loggers: list[Logger] = [
        TensorBoardLogger(folder.parents[1], name=folder.parent.name, version=number),
        table,
    ]
    if config.wandb.enabled:
        loggers.append(weights_and_biases.build_logger(config, folder, positions.get("wandb")))
    return loggers


def positions(loggers: list[Logger], folder: Path) -> dict[str, Any]:
    """Writes out what the loggers hold, and says how far they are.

    Returns:
        Plain containers: "tensorboard": size of each of its files, bytes; "wandb": the run's id.
    """
    result: dict[str, Any] = {}
    for logger in loggers:
        logger.save()
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
            result["tensorboard"] = {p.name: p.stat().st_size for p in folder.glob(EVENTS)}
        if isinstance(logger, WandbLogger):
            result["wandb"] = logger.version
    return result


def rewind(
    folder: Path, positions: dict[str, Any], logged_step: int, epochs: int
) -> list[dict[str, str]]:
    """Takes back what was logged after a checkpoint was made.

    Args:
        folder: the run's folder.
        positions: at the checkpoint.
        logged_step: number of the latest step whose loss was logged then.
        epochs: whose metrics were logged then.

    Returns:
        The rows of the table of all that is logged, up to there.
    """
    sizes = positions.get("tensorboard", {})
    for path in folder.glob(EVENTS):
        if path.name in sizes:
            os.truncate(path, min(path.stat().st_size, sizes[path.name]))
        else:
            path.unlink()
    table = folders.LOGS / CSV_NAME / _csv_version(folder) / "metrics.csv"
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [row for row in csv.DictReader(file) if _is_before(row, logged_step, epochs)]
    table.unlink()
    return rows


def _is_before(row: dict[str, str], logged_step: int, epochs: int) -> bool:
    try:
        if row["learning_rate"]:  # the row of a step
            return int(row["step"]) <= logged_step
        return int(row["epoch"]) < epochs
    except (KeyError, TypeError, ValueError):  # a last line that a kill has cut short
        return False


def _csv_version(folder: Path) -> str:
    return f"{folder.parent.name}_{folder.name}"
