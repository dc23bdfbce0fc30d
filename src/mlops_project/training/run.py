"""A run, from settings to a tested model: told from top to bottom."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from mlops_project import settings
from mlops_project.config import Config
from mlops_project.data.augmentation import BatchAugmentation
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.files import atomic_write
from mlops_project.models.build import BuiltModel, build_model, count_parameters
from mlops_project.training import checkpoints, folders
from mlops_project.training.finetuning import Unfreezing, freezes
from mlops_project.training.losses import ClassificationLoss, balanced_class_weights
from mlops_project.training.module import LesionClassifier
from mlops_project.training.optimizers import check_optimizer
from mlops_project.training.tracking import (
    EpochMetrics,
    EpochTable,
    draw_curves,
    monitor_mode,
    start_logging,
)

log = logging.getLogger("mlops_project")


@dataclass
class Result:
    """What came out of a run.

    Attributes:
        folder: the run's folder; None on processes other than the first.
        checkpoint: the best one (the last, if none was kept).
        best: the row of metrics.csv of the best epoch.
        test: metrics on the test split, named test_…
    """

    folder: Path | None
    checkpoint: Path
    best: dict[str, Any]
    test: dict[str, float]


def train(config: Config) -> Result:
    """Trains, checks and saves a model.

    Raises:
        InputError: settings or data that cannot be used; nothing is written then.
    """
    started = time.time()
    mode = monitor_mode(config.training.monitor_metric)
    check_optimizer(config.training.optimizer)
    start_logging(None)
    first = rank_zero_only.rank == 0

    # Whatever may be wrong with the input shows here, before anything is written but the cache.
    data = open_data(config)
    data.read()
    log_path = folders.new_log_file() if first else None
    start_logging(log_path)
    data.setup("fit")
    pl.seed_everything(config.seed, verbose=False)
    built = build_model(config.model, data.image_size)
    folder = folders.new_run_folder(config.model.name) if first else None

    module = build_module(config, built, data)
    metrics = EpochMetrics()
    table = EpochTable(folder, metrics, config.training.monitor_metric)
    keeper = checkpoint_callback(config, folder, mode)
    trainer = build_trainer(config, folder, [metrics, table, keeper])
    if folder is not None:
        describe(config, built, data, module, folder)

    with warnings.catch_warnings():
        # Preparing batches in this process is the fast path here, not an oversight.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists.*")
        warnings.filterwarnings("ignore", message=".*number of training batches .* smaller than.*")
        trainer.fit(module, datamodule=data)
        best = Path(keeper.best_model_path or keeper.last_model_path)
        module.load_state_dict(checkpoints.load_checkpoint(best)["state_dict"])
        trainer.test(module, datamodule=data, verbose=False)

    test = {n: v for n, v in metrics.latest.items() if n.startswith("test_")}
    result = Result(folder, best, table.best(), test)
    if folder is not None:
        title = f"{config.model.name}: {folder}" + (" (synthetic data)" if is_demo(config) else "")
        draw_curves(table.rows, folder / "curves.png", title)
        folders.add_to_summary(summary_row(config, result, len(table.rows), time.time() - started))
        report(config, built, data, result, log_path)
    return result


def open_data(config: Config) -> HAM10000DataModule:
    """The data module these settings describe."""
    fields = settings.to_container(config)["data"]
    return HAM10000DataModule(
        fields.pop("data_dir"),
        num_classes=config.model.num_classes,
        seed=config.seed,
        **fields,
    )


def build_module(
    config: Config, built: BuiltModel, data: HAM10000DataModule
) -> LesionClassifier:
    """Network, loss and augmentation, with what a checkpoint needs to say about them."""
    options, augment = config.training, config.data.augment
    labels = data.labels[data.rows_of("train")]
    weights = None
    if options.class_weights == "balanced":
        weights = balanced_class_weights(labels, config.model.num_classes)
    batches = len(data.training_batches())
    if options.limit_train_batches:
        batches = min(batches, options.limit_train_batches)
    return LesionClassifier(
        built.network,
        config,
        augmentation=BatchAugmentation(
            mean=built.mean,
            std=built.std,
            seed=config.seed,
            rotation_degrees=config.data.rotation_degrees * augment,
            color_jitter=config.data.color_jitter * augment,
            random_erasing=config.data.random_erasing * augment,
            randaugment=config.data.randaugment * augment,
            mixup=config.data.mixup * augment,
            cutmix=config.data.cutmix * augment,
            num_classes=config.model.num_classes,
        ),
        loss=ClassificationLoss(
            options.loss,
            class_weights=weights,
            label_smoothing=options.label_smoothing,
            focal_gamma=options.focal_gamma,
        ),
        steps_per_epoch=math.ceil(batches / options.accumulate_grad_batches),
        metadata=checkpoints.metadata(config, built, data),
    )


def checkpoint_callback(config: Config, folder: Path | None, mode: str) -> ModelCheckpoint:
    """Keeps the best epochs and the last one."""
    monitor = config.training.monitor_metric
    return ModelCheckpoint(
        dirpath=folder / "checkpoints" if folder else None,
        filename=f"{{epoch:03d}}-{{{monitor}:.3f}}",
        monitor=monitor if config.training.save_top_k else None,
        mode=mode,
        save_top_k=config.training.save_top_k,
        save_last=config.training.save_last or config.training.save_top_k == 0,
    )


def build_trainer(config: Config, folder: Path | None, callbacks: list[Callback]) -> pl.Trainer:
    """Lightning's trainer for these settings; processes other than the first log nothing."""
    options = config.training
    mode = monitor_mode(options.monitor_metric)
    if options.early_stopping_patience:
        stopping = EarlyStopping(
            options.monitor_metric, mode=mode, patience=options.early_stopping_patience
        )
        callbacks = [*callbacks, stopping]
    if freezes(options):
        callbacks = [*callbacks, Unfreezing(options)]
    loggers: list[Logger] = []
    if folder is not None:
        number = int(folder.name.removeprefix("version_"))
        loggers = [
            TensorBoardLogger(folder.parents[1], name=folder.parent.name, version=number),
            CSVLogger(
                folders.LOGS, name="lightning_logs", version=f"{folder.parent.name}_{folder.name}"
            ),
        ]
    bars = bool(folder) and os.isatty(1) and options.progress_bar != "none"
    if bars and options.progress_bar == "rich":
        from lightning.pytorch.callbacks import RichProgressBar

        callbacks = [*callbacks, RichProgressBar(leave=False)]
    return pl.Trainer(
        accelerator=options.accelerator,
        devices=int(options.devices) if options.devices.isdigit() else options.devices,
        max_epochs=options.max_epochs,
        limit_train_batches=options.limit_train_batches,
        limit_val_batches=options.limit_val_batches,
        log_every_n_steps=options.log_every_n_steps,
        callbacks=callbacks,
        logger=loggers or False,
        plugins=[checkpoints.AtomicCheckpointIO()],
        default_root_dir=folders.LOGS,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=bars,
    )


def is_demo(config: Config) -> bool:
    """Whether the images are synthetic."""
    return config.data.name == "demo"


def describe(
    config: Config,
    built: BuiltModel,
    data: HAM10000DataModule,
    module: LesionClassifier,
    folder: Path,
) -> None:
    """Writes settings and split into the run's folder, and says what is about to happen."""
    import yaml

    container = settings.to_container(config)
    with atomic_write(folder / "config.yaml") as file:
        yaml.safe_dump(container, file, sort_keys=False)
    split = data.table[["image_id", "lesion_id", "dx"]].assign(split=data.split)
    with atomic_write(folder / "split.csv") as file:
        split.to_csv(file, index=False)
    module.save_hyperparameters({**container, "weights": built.weights})
    counts = ", ".join(f"{len(data.rows_of(s))} {s}" for s in ("train", "val", "test"))
    if is_demo(config):
        log.info("SYNTHETIC DATA: generated images, no clinical meaning")
    log.info(
        "%s, %.1f M parameters, weights: %s",
        " ".join(filter(None, (config.model.name, config.model.variant))),
        count_parameters(built.network) / 1e6,
        built.weights,
    )
    log.info(
        "%s: %s images at %d px, %d classes, split %s",
        config.data.data_dir,
        counts,
        data.image_size,
        config.model.num_classes,
        data.split_hash(),
    )
    log.info("writing to %s", folder)


def summary_row(config: Config, result: Result, epochs: int, seconds: float) -> dict[str, Any]:
    """The run's row in reports/training_metrics.csv: its best epoch's metrics."""
    return {
        "run": str(result.folder),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "model": config.model.name,
        "variant": config.model.variant or "",
        "num_classes": config.model.num_classes,
        "data": "synthetic demo" if is_demo(config) else config.data.data_dir,
        "image_size": config.data.image_size,
        "seed": config.seed,
        "epochs": epochs,
        "seconds": round(seconds, 1),
        "monitor": config.training.monitor_metric,
        **{f"best_{n}" if n == "epoch" else n: v for n, v in result.best.items()},
        **result.test,
        "checkpoint": str(result.checkpoint),
    }


def report(
    config: Config,
    built: BuiltModel,
    data: HAM10000DataModule,
    result: Result,
    log_path: Path | None,
) -> None:
    """Prints the results, and where they are."""
    from rich.console import Console
    from rich.table import Table

    assert result.folder is not None
    title = f"{config.model.name}, best epoch {result.best.get('epoch', 0) + 1}"
    table = Table(title=title + (", SYNTHETIC DATA" if is_demo(config) else ""))
    table.add_column("metric")
    for name in ("training", "validation", "test"):
        table.add_column(name, justify="right")
    for metric in ("loss", "accuracy", "balanced_accuracy", "f1_score", "auroc"):
        values = [result.best.get(f"{s}_{metric}", math.nan) for s in ("train", "val")]
        values.append(result.test.get(f"test_{metric}", math.nan))
        shown = ["–" if math.isnan(v) else f"{v:.3f}" for v in values]
        table.add_row(metric.replace("_", " ").replace("auroc", "AUROC").replace("f1", "F1"), *shown)
    places = [
        f"best checkpoint  {result.checkpoint}",
        f"run folder       {result.folder}/  (metrics.csv, curves.png, split.csv, config.yaml)",
        f"all runs         {folders.SUMMARY}",
        f"log              {log_path}",
        f"weights          {built.weights}",
        f"next             uv run src/mlops_project/evaluate.py --checkpoint {result.checkpoint}",
    ]
    # The file keeps what the console shows, without its colours and line breaks.
    record = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    for console in (Console(), record):
        console.print(table)
        for place in places:
            console.print(place, soft_wrap=True, highlight=False, markup=False)
    if log_path is not None:
        with log_path.open("a", encoding="utf-8") as file:
            file.write(record.export_text())


