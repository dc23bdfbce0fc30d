"""A run, from settings to a tested model: told from top to bottom."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mlops_project import settings
from mlops_project.config import Config
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.errors import ProjectError, Terminated, is_out_of_memory
from mlops_project.models.build import build_model
from mlops_project.training import checkpoints, folders, summary, weights_and_biases
from mlops_project.training.module import LesionClassifier, build_module
from mlops_project.training.optimizers import check_optimizer
from mlops_project.training.preview import draw_preview
from mlops_project.training.summary import Result
from mlops_project.training.tracking import (
    EpochMetrics,
    EpochTable,
    draw_curves,
    monitor_mode,
    start_logging,
)
from mlops_project.training.trainer import build_trainer, check_machine, keep_checkpoints
from mlops_project.training.tuning import find_batch_size, find_learning_rate

log = logging.getLogger("mlops_project")


def train(config: Config) -> Result:
    """Trains, checks and saves a model.

    Raises:
        InputError: settings or data that cannot be used; nothing but decoded images and a log is
            written then.
        Terminated: by SIGTERM; the epochs done are kept.
        KeyboardInterrupt: likewise.
    """
    started = time.time()
    monitor_mode(config.training.monitor_metric)
    check_optimizer(config.training.optimizer)
    check_machine(config.training)
    start_logging(None)
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]

    # Whatever may be wrong with the input shows here, before a folder is made for the run.
    resume = config.training.resume_from_checkpoint
    if resume:
        checkpoints.load_checkpoint(resume)
    data = open_data(config)
    data.read()
    log_path = folders.new_log_file() if first else None
    start_logging(log_path)
    data.setup("fit")
    pl.seed_everything(config.seed, verbose=False)
    built = build_model(config.model, data.image_size, load_weights=not resume)
    if config.data.batch_size == "auto":
        images = len(data.rows_of("train"))
        data.settings.batch_size = find_batch_size(built.network, data.image_size, images)
        config.data.batch_size = data.settings.batch_size

    folder = None
    if first:
        folder = folders.run_folder_of(resume) if resume else None
        folder = folder or folders.new_run_folder(config.model.name)
    if config.training.learning_rate == "auto":
        found = folder or Path(tempfile.mkdtemp())
        config.training.learning_rate = find_learning_rate(config, built, data, found)
        pl.seed_everything(config.seed, verbose=False)
    module = build_module(config, built, data)
    if folder is not None:
        summary.describe(config, built, data, folder)
        if config.data.preview:
            draw_preview(data, module.augmentation, folder / "preview.png")
    metrics = EpochMetrics()
    table = EpochTable(folder, metrics, config.training.monitor_metric)
    keeper = keep_checkpoints(config, folder)
    trainer = build_trainer(config, folder, [metrics, table, keeper])
    wandb_logger = next((g for g in trainer.loggers if isinstance(g, WandbLogger)), None)
    if wandb_logger is not None:
        weights_and_biases.watch(wandb_logger, config, module.network)

    with warnings.catch_warnings():
        # Preparing batches in this process is the fast path here, not an oversight.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists.*")
        warnings.filterwarnings("ignore", message=".*number of training batches .* smaller than.*")
        fit(trainer, module, data, resume, config)
        best = Path(keeper.best_model_path or keeper.last_model_path)
        module.load_state_dict(checkpoints.load_checkpoint(best)["state_dict"])
        trainer.test(module, datamodule=data, verbose=False)

    test = {n: v for n, v in metrics.latest.items() if n.startswith("test_")}
    result = Result(folder, Path(os.path.relpath(best)), table.best(), test)
    if wandb_logger is not None:
        weights_and_biases.finish(wandb_logger, config, result.checkpoint, test)
    if folder is not None:
        title = f"{config.model.name}: {folder}" + (" (synthetic data)" if data.synthetic else "")
        draw_curves(table.rows, folder / "curves.png", title)
        seconds = time.time() - started
        row = summary.summary_row(config, data, result, len(table.rows), seconds)
        folders.add_to_summary(row)
        summary.report(config, built, data, result, log_path)
    return result


def fit(
    trainer: pl.Trainer,
    module: LesionClassifier,
    data: HAM10000DataModule,
    resume: str | None,
    config: Config,
) -> None:
    """Lightning's fit, with an interruption or a lack of memory raised as what it is."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except SIGTERMException:
        raise Terminated("ended by SIGTERM; the epochs done so far are kept") from None
    except SystemExit:
        # Lightning turns Ctrl-C into exit code 1.
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ProjectError(memory_advice(config)) from error
    early = trainer.early_stopping_callback
    if isinstance(early, EarlyStopping) and early.stopped_epoch:
        log.info("stopped early: %s", early.stopping_reason_message)


def memory_advice(config: Config) -> str:
    """What to try when the memory is too small, with values that keep the effective batch size."""
    size, parts = int(config.data.batch_size), config.training.accumulate_grad_batches
    half = max(1, size // 2)
    return (
        f"out of memory at data.batch_size={size}, data.image_size={config.data.image_size}; the "
        f"epochs done are kept. Try data.batch_size={half}, with "
        f"training.accumulate_grad_batches={parts * math.ceil(size / half)} for the same steps,\n"
        "a smaller network (model=efficientnet model.variant=b0), a smaller data.image_size, or "
        "training.enable_checkpointing=true"
    )


def open_data(config: Config) -> HAM10000DataModule:
    """The data module these settings describe."""
    fields = settings.to_container(config)["data"]
    return HAM10000DataModule(
        fields.pop("data_dir"),
        num_classes=config.model.num_classes,
        seed=config.seed,
        **fields,
    )
