"""The loggers of a run, and how they go on where a checkpoint was made: no gap and no double."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary

from mlops_project.config import MONITORABLE, Config
from mlops_project.files import atomic_write
from mlops_project.training import folders, weights_and_biases

EVENTS = "events.out.tfevents.*"  # TensorBoard's files
CSV_NAME = "lightning_logs"
CSV_COLUMNS = sorted(["epoch", "step", "learning_rate", "train_loss_step", *MONITORABLE])


class _Table(ExperimentWriter):
    """Goes on with the file that is there, where Lightning's begins it anew."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        # All columns from the start: adding one rewrites the file, which a kill could cut short.
        self.metrics_keys = list(CSV_COLUMNS)

    def _check_log_dir_exists(self) -> None:
        pass


class _Events(TensorBoardLogger):
    """Writes what is told of a step as one record; one for each takes two to four times as long."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = [Summary.Value(tag=n, simple_value=float(v)) for n, v in metrics.items()]
        self.experiment._get_file_writer().add_summary(Summary(value=values), step)


def build_loggers(config: Config, folder: Path, positions: dict[str, Any]) -> list[Logger]:
    """TensorBoard, a table of all that is logged and, if enabled, Weights & Biases.

    Args:
        config: of the run.
        folder: the run's folder.
        positions: of a resumed run, as its checkpoint has them; else empty.
    """
    number = int(folder.name.removeprefix("version_"))
    table = CSVLogger(folders.LOGS, name=CSV_NAME, version=_csv_version(folder))
    table._experiment = _Table(table.log_dir)
    events = _Events(
        folder.parents[1], name=folder.parent.name, version=number, default_hp_metric=False
    )
    loggers: list[Logger] = [events, table]
    if config.wandb.enabled:
        loggers.append(weights_and_biases.build_logger(config, folder, positions.get("wandb")))
    return loggers


def clear(folder: Path) -> None:
    """Removes what a run has logged whose folder, of the same name as this new one, is gone."""
    (folders.LOGS / CSV_NAME / _csv_version(folder) / "metrics.csv").unlink(missing_ok=True)


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


def rewind(folder: Path, positions: dict[str, Any], logged_step: int, epochs: int) -> None:
    """Takes back what was logged after a checkpoint was made.

    Args:
        folder: the run's folder.
        positions: at the checkpoint.
        logged_step: number of the latest step whose loss was logged then.
        epochs: whose metrics were logged then.
    """
    sizes = positions.get("tensorboard", {})
    for path in folder.glob(EVENTS):
        if path.name in sizes:
            os.truncate(path, min(path.stat().st_size, sizes[path.name]))
        else:
            path.unlink()
    table = folders.LOGS / CSV_NAME / _csv_version(folder) / "metrics.csv"
    if not table.is_file():
        return
    with table.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [row for row in csv.DictReader(file) if _is_before(row, logged_step, epochs)]
    with atomic_write(table) as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _is_before(row: dict[str, str], logged_step: int, epochs: int) -> bool:
    try:
        if row["learning_rate"]:  # the row of a step
            return int(row["step"]) <= logged_step
        return int(row["epoch"]) < epochs
    except (KeyError, TypeError, ValueError):  # a last line that a kill has cut short
        return False


def _csv_version(folder: Path) -> str:
    name = f"{folder.parent.name}_{folder.name}"
    if folder.parents[1] == folders.MODELS:
        return name
    # A run of another working folder, beside which one of this name may lie here.
    return f"{name}_{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:8]}"
