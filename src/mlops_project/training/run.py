"""A run, from settings to a tested model: told from top to bottom."""

from __future__ import annotations

import csv
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import FSDPStrategy

from mlops_project.config import Config
from mlops_project.console import show_kept_warnings
from mlops_project.errors import InputError, forget_signals
from mlops_project.models.build import build_model
from mlops_project.printable import first_line
from mlops_project.training import (
    checkpoints,
    folders,
    logs,
    processes,
    summary,
    weights_and_biases,
)
from mlops_project.training.failures import retelling, retelling_single_images
from mlops_project.training.lean import make_lean
from mlops_project.training.module import LesionClassifier, build_module
from mlops_project.training.nonfinite import NonFinite
from mlops_project.training.preparation import Prepared, prepare
from mlops_project.training.preview import draw_preview
from mlops_project.training.saving import Checkpoints
from mlops_project.training.signals import Interruption, end_with_parent, handlers_put_back
from mlops_project.training.speed import Speed
from mlops_project.training.summary import Result
from mlops_project.training.tracking import EpochMetrics, History, draw_curves
from mlops_project.training.trainer import build_trainer
from mlops_project.training.tuning import find_learning_rate

log = logging.getLogger("mlops_project")


def train(config: Config, given: frozenset[str] | None = None) -> Result:
    """Trains, checks and saves a model.

    Args:
        config: settings of the run.
        given: the keys that the command line names, which a resumed run is checked against; None:
            all.

    Raises:
        InputError: settings or data that cannot be used; nothing but decoded images and a log is
            written then.
        Interrupted: a signal has ended it; the message says how to go on.
        KeyboardInterrupt: before or after the training itself.
        ProjectError: it cannot go on; what is done is kept.
    """
    processes.join_the_watch()
    end_with_parent()
    try:
        with handlers_put_back():
            return _train(config, given)
    except BaseException as error:
        show_kept_warnings()
        if processes.is_started_by_another():
            processes.leave_word(error)
        processes.stop_watching()
        if config.wandb.enabled:
            weights_and_biases.abandon()
        raise
    finally:
        processes.end_others()
        folders.release()
        forget_signals()


@dataclass
class _Parts:
    """What trains, and what watches it."""

    trainer: pl.Trainer
    module: LesionClassifier
    metrics: EpochMetrics
    history: History
    speed: Speed
    keeper: Checkpoints
    wandb: WandbLogger | None


def _train(config: Config, given: frozenset[str] | None) -> Result:
    prepared = prepare(config, given)
    resume = prepared.resume
    folder = resume.folder if resume else None
    if not processes.is_first():
        folder = None
    elif folder is None:
        folder = folders.new_run_folder(prepared.config.model.name)
        folders.hold(folder)
        logs.clear(folder)
    try:
        parts = _assemble(prepared, folder)
    except BaseException:
        if folder is not None and (resume is None or resume.folder is None):
            folders.discard(folder)
        raise
    best, epoch = _fit(prepared, parts)
    with retelling(parts.keeper, prepared.config):
        result = _finish(prepared, parts, folder, best, epoch)
    if parts.wandb is not None:  # last, for its server may let it wait
        weights_and_biases.finish(parts.wandb, prepared.config, result.checkpoint, result.test)
    return result


def _assemble(prepared: Prepared, folder: Path | None) -> _Parts:
    """Builds all that trains, and brings the folder to where it begins, as the last thing."""
    config, resume, data = prepared.config, prepared.resume, prepared.data
    options = config.training
    if options.learning_rate == "auto":
        with retelling_single_images(config):
            options.learning_rate = find_learning_rate(config, prepared.built, data, folder)
        pl.seed_everything(config.seed, verbose=False)
    earlier = checkpoints.learned_before(config, data, resume.facts if resume else None)
    module = build_module(config, prepared.built, data, prepared.auto, earlier)
    # A run that starts from another one's checkpoint is another one to the loggers, too.
    positions = resume.positions if resume and resume.folder else {}
    loggers = logs.build_loggers(config, folder, positions) if folder else []
    guard = NonFinite(options, data, folder)
    metrics = EpochMetrics(guard.refuse)
    history = History(folder, metrics, options.monitor_metric, options.log_every_n_steps)
    path = str(resume.path) if resume else None
    keeper = Checkpoints(options, folder, history, guard, Interruption(), path)
    speed = Speed(folder)
    trainer = build_trainer(config, folder, [metrics, history, guard, speed, keeper], loggers)
    make_lean(trainer, module)
    wandb_logger = next((g for g in trainer.loggers if isinstance(g, WandbLogger)), None)
    if wandb_logger is not None:
        weights_and_biases.watch(wandb_logger, config, module.network)
    if folder is not None:
        if resume:
            resume.rewind(folder)
        summary.describe(config, prepared.built, data, folder)
        if resume:
            log.info("going on from %s", resume.told)
            if resume.epochs_done >= options.max_epochs:
                log.info("all of its epochs are done: only the test is repeated")
        if config.data.preview:
            draw_preview(data, module.augmentation, folder / "preview.png")
    return _Parts(trainer, module, metrics, history, speed, keeper, wandb_logger)


def _fit(prepared: Prepared, parts: _Parts) -> tuple[Path, int]:
    """Trains, and tests the best epoch: its checkpoint, and its number, counted from 0."""
    config, trainer, data = prepared.config, parts.trainer, prepared.data
    with _quiet(), retelling(parts.keeper, config), retelling_single_images(config):
        path = str(prepared.resume.path) if prepared.resume else None
        trainer.fit(parts.module, datamodule=data, ckpt_path=path, weights_only=True)
        _say_why_it_ended(config, parts)
        best, epoch, weights = _best(parts.keeper)
        module = parts.module
        if isinstance(trainer.strategy, FSDPStrategy):  # it keeps the network in pieces
            size = module.metadata["preprocessing"]["image_size"]
            built = build_model(config.model, size, load_weights=False)
            module = build_module(config, built, data)
        module.load_state_dict(weights)
        if len(data.rows_of("test")):
            trainer.test(module, datamodule=data, verbose=False)
    return best, epoch


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Lightning's warnings of what is meant to be so."""
    with warnings.catch_warnings():
        # Preparing batches in this process is the fast path here, not an oversight; and the
        # training batches know by themselves where a resumed run is.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*number of training batches .* smaller than.*")
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode.*")
        yield


def _say_why_it_ended(config: Config, parts: _Parts) -> None:
    """Logs the reason of a training that ended before its last epoch."""
    early = parts.trainer.early_stopping_callback
    if isinstance(early, EarlyStopping) and early.stopping_reason_message:
        log.info("stopped early: %s", early.stopping_reason_message)
    done, asked = len(parts.history.rows), config.training.max_epochs
    if parts.keeper.time_is_over and done < asked:
        longest = config.training.max_time
        log.info("stopped by training.max_time=%s after epoch %d of %d", longest, done, asked)


def _best(keeper: Checkpoints) -> tuple[Path, int, dict[str, Any]]:
    """The best checkpoint that can be read, its epoch, counted from 0, and its weights."""
    for path in keeper.ranking[:-1]:
        try:
            found = checkpoints.load_checkpoint(path)
        except InputError as error:
            log.warning("%s\nThe next best one is tested instead.", first_line(error))
        else:
            return path, found["epoch"], found["state_dict"]
    found = checkpoints.load_checkpoint(keeper.ranking[-1])
    return keeper.ranking[-1], found["epoch"], found["state_dict"]


def _finish(
    prepared: Prepared, parts: _Parts, folder: Path | None, best: Path, epoch: int
) -> Result:
    """Writes what came of the run, and shows it."""
    config, data, rows = prepared.config, prepared.data, parts.history.rows
    test = {n: v for n, v in parts.metrics.latest.items() if n.startswith("test_")}
    result = Result(folder, best, parts.history.row(epoch), test)
    if folder is not None:
        title = f"{config.model.name}: {folder}" + (" (synthetic data)" if data.synthetic else "")
        draw_curves(rows, folder / "curves.png", title)
        speed, seconds = parts.speed.summary(), parts.keeper.seconds
        row = summary.summary_row(config, prepared.auto, data, result, len(rows), seconds, speed)
        try:  # before the run counts as done: whoever goes on with it adds the row again
            folders.add_to_summary(row)
        except (OSError, csv.Error) as error:
            log.warning("%s: this run's row could not be added (%s)", folders.SUMMARY, error)
        summary.write_results(row, folder)
        (folder / folders.PREVIOUS).unlink(missing_ok=True)
        summary.report(config, prepared.built, data, result, speed, prepared.log_path)
    return result
