"""What a run leaves to read: its settings and split before, the table of results after."""

from __future__ import annotations

import io
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlops_project import settings
from mlops_project.config import METRICS, Config
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.data.splits import SPLITS
from mlops_project.files import atomic_write
from mlops_project.metrics import label
from mlops_project.models.build import BuiltModel, count_parameters
from mlops_project.training import folders
from mlops_project.training.checkpoints import LAST
from mlops_project.training.presets import device_type
from mlops_project.training.speed import hint

log = logging.getLogger("mlops_project")


@dataclass
class Result:
    """What came out of a run.

    Attributes:
        folder: the run's folder; None on processes other than the first.
        checkpoint: the best one (the last, if none was kept).
        best: the row of metrics.csv of its epoch.
        test: metrics on the test split, named test_…
    """

    folder: Path | None
    checkpoint: Path
    best: dict[str, Any]
    test: dict[str, float]


def describe(config: Config, built: BuiltModel, data: HAM10000DataModule, folder: Path) -> None:
    """Writes settings and split into the run's folder, and says what is about to happen."""
    with atomic_write(folder / "config.yaml") as file:
        yaml.safe_dump(settings.to_container(config), file, sort_keys=False)
    split = data.table[["image_id", "lesion_id", "dx"]].assign(split=data.split)
    with atomic_write(folder / "split.csv") as file:
        split.to_csv(file, index=False)
    if data.synthetic:
        log.info("SYNTHETIC DATA: images made by a program, without clinical meaning")
    log.info(
        "%s, %.1f M parameters, weights: %s",
        " ".join(filter(None, (config.model.name, config.model.variant))),
        count_parameters(built.network) / 1e6,
        built.weights,
    )
    log.info(
        "%s: %s images at %d px, %d classes, split %s",
        config.data.data_dir,
        ", ".join(f"{len(data.rows_of(s))} {s}" for s in SPLITS),
        data.image_size,
        config.model.num_classes,
        data.split_hash(),
    )
    log.info("%s%s", folders.TOLD, folder)


def summary_row(
    config: Config,
    auto: set[str],
    data: HAM10000DataModule,
    result: Result,
    epochs: int,
    seconds: float,
    speed: dict[str, float],
) -> dict[str, Any]:
    """The run's row in reports/training_metrics.csv: its result's metrics, and its speed.

    `auto` names the settings whose values were found for "auto".
    """
    return {
        "run": str(result.folder),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "model": config.model.name,
        "variant": config.model.variant or "",
        "num_classes": config.model.num_classes,
        "data": config.data.data_dir,
        "synthetic": data.synthetic,
        "image_size": data.image_size,
        "settings": settings.fingerprint(settings.shaping(config, auto)),
        "auto": " ".join(sorted(auto)),
        "seed": config.seed,
        "fold": config.data.fold if config.data.folds else None,
        "epochs": epochs,
        "seconds": round(seconds, 1),
        **{name: round(value, 4) for name, value in speed.items()},
        "monitor": config.training.monitor_metric,
        **{f"best_{n}" if n == "epoch" else n: v for n, v in result.best.items()},
        **result.test,
        "checkpoint": str(result.checkpoint),
    }


def _told(speed: dict[str, float]) -> str:
    text = (
        f"{speed['images_per_second']:,.0f} images/s, {speed['data_wait_fraction']:.1%} of the "
        f"time waiting for data, at most {speed['peak_memory_mib']:,.0f} MiB of memory"
    )
    share = speed.get("model_rate_share")
    return text + (f", {share:.0%} of the rate of the network alone" if share else "")


def write_results(row: dict[str, Any], folder: Path) -> None:
    """Writes `summary_row` into the run's folder, which says that the run is done."""
    known = {n: None if isinstance(v, float) and math.isnan(v) else v for n, v in row.items()}
    with atomic_write(folder / folders.RESULTS) as file:
        json.dump(known, file, indent=2)
        file.write("\n")


def report(
    config: Config,
    built: BuiltModel,
    data: HAM10000DataModule,
    result: Result,
    speed: dict[str, float],
    log_path: Path | None,
) -> None:
    """Prints the results and where they are, and adds the same to the log."""
    from rich.console import Console
    from rich.table import Table

    best, test, checkpoint = result.best, result.test, result.checkpoint
    which = "last" if checkpoint.name == LAST else "best"
    title = f"{config.model.name}, {which} epoch {best.get('epoch', 0) + 1}"
    table = Table(title=title + (", SYNTHETIC DATA" if data.synthetic else ""))
    table.add_column("metric")
    for name in ("training", "validation", "test"):
        table.add_column(name, justify="right")
    for metric in METRICS:
        values = [best.get(f"{s}_{metric}", math.nan) for s in ("train", "val")]
        values.append(test.get(f"test_{metric}", math.nan))
        table.add_row(label(metric), *("–" if math.isnan(v) else f"{v:.3f}" for v in values))
    split = "" if len(data.rows_of("test")) else " --split val"
    places = [f"speed            {_told(speed)}"] if speed else []
    advice = hint(speed, config.data, on_gpu=device_type(config.training) == "cuda")
    places += [f"hint             {advice}"] if advice else []
    places += [
        f"{which} checkpoint  {checkpoint}",
        f"run folder       {result.folder}/  (metrics.csv, curves.png, speed.csv, config.yaml)",
        f"all runs         {folders.SUMMARY}",
        f"log              {log_path}",
        f"weights          {built.weights}",
        f"next             uv run src/mlops_project/evaluate.py --checkpoint {checkpoint}{split}",
    ]
    record = Console(width=100, record=True, file=io.StringIO())
    for console in (Console(), record):
        console.print(table)
        for place in places:
            console.print(place, soft_wrap=True, highlight=False, markup=False)
    if log_path is not None:
        with log_path.open("a", encoding="utf-8") as file:
            file.write(record.export_text())
