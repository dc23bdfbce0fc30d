"""A run, from settings to a tested model: told from top to bottom."""

from __future__ import annotations

import csv
import logging
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from mlops_project import settings
from mlops_project.config import Config
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.errors import (
    InputError,
    Interrupted,
    ProjectError,
    file_failure,
    forget_signals,
    interrupted_by,
    is_out_of_memory,
    signal_arrived,
    worker_failure,
)
from mlops_project.metrics import monitor_mode
from mlops_project.models.build import build_model, try_size
from mlops_project.training import (
    checkpoints,
    folders,
    logs,
    processes,
    summary,
    weights_and_biases,
)
from mlops_project.training.allocator import keep_freed_memory
from mlops_project.training.module import build_module, recompute_activations, sides_in
from mlops_project.training.nonfinite import NonFinite
from mlops_project.training.optimizers import check_optimizer
from mlops_project.training.presets import choose_presets, device_type
from mlops_project.training.preview import draw_preview
from mlops_project.training.resume import find_resume
from mlops_project.training.saving import Checkpoints
from mlops_project.training.signals import Interruption, end_with_parent
from mlops_project.training.speed import Speed
from mlops_project.training.summary import Result
from mlops_project.training.tracking import (
    EpochMetrics,
    History,
    draw_curves,
    start_logging,
)
from mlops_project.training.trainer import build_trainer, check_machine
from mlops_project.training.tuning import find_batch_size, find_learning_rate

log = logging.getLogger("mlops_project")

# Settings whose value for "auto" is found by trials, which differ among repetitions of a run.
FOUND = ("data.batch_size", "training.learning_rate")


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
        return _train(config, given)
    except BaseException as error:
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


def _train(config: Config, given: frozenset[str] | None) -> Result:
    start_logging(None)
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]

    # Whatever may be wrong with the input shows here, before a folder is made for the run.
    config, resume = find_resume(config, given)
    auto = {n for n, v in settings.shaping(config).items() if n in FOUND and v == "auto"}
    auto |= resume.auto(config) if resume else set()
    monitor_mode(config.training.monitor_metric)
    check_optimizer(config.training.optimizer)
    processes_here = check_machine(config.training)
    if resume:
        resume.check_processes(processes_here)
    data = open_data(config)
    data.read()
    log_path = folders.new_log_file() if first else None
    start_logging(log_path)
    data.setup("fit")
    if resume:
        resume.check_data(data, config)
    pl.seed_everything(config.seed, verbose=False)
    built = build_model(config.model, data.image_size, load_weights=resume is None)
    for side in sides_in(config)[:-1]:
        try_size(built.network, config.model, side, "data.start_size")
    if config.training.enable_checkpointing:
        recompute_activations(built.network, config)
    if resume:
        resume.check_network(built.network)
        built.weights = resume.facts["weights"]
    choose_presets(config, built.network, len(data.rows_of("train")))
    if device_type(config.training) == "cpu":
        keep_freed_memory()
    if config.data.batch_size == "auto":
        images = len(data.rows_of("train"))
        data.settings.batch_size = find_batch_size(config, built.network, data.image_size, images)
        config.data.batch_size = data.settings.batch_size

    folder = None
    if first:
        folder = resume.folder if resume else None
        if folder is None:
            folder = folders.new_run_folder(config.model.name)
            folders.hold(folder)
            logs.clear(folder)
    with _discarded_unless_it_begins(folder if resume is None or resume.folder is None else None):
        if config.training.learning_rate == "auto":
            with _single_images(config):
                config.training.learning_rate = find_learning_rate(config, built, data, folder)
            pl.seed_everything(config.seed, verbose=False)
        earlier = checkpoints.learned_before(config, data, resume.facts if resume else None)
        module = build_module(config, built, data, auto, earlier)
        if folder is not None:
            if resume:
                resume.rewind(folder)
            summary.describe(config, built, data, folder)
            if resume:
                log.info("going on from %s", resume.told)
                if resume.epochs_done >= config.training.max_epochs:
                    log.info("all of its epochs are done: only the test is repeated")
            if config.data.preview:
                draw_preview(data, module.augmentation, folder / "preview.png")
        # A run that starts from another one's checkpoint is another one to the loggers, too.
        positions = resume.positions if resume and resume.folder else {}
        loggers = logs.build_loggers(config, folder, positions) if folder else []
        guard = NonFinite(config.training, data, folder)
        metrics = EpochMetrics(guard.refuse)
        options = config.training
        history = History(folder, metrics, options.monitor_metric, options.log_every_n_steps)
        path = str(resume.path) if resume else None
        keeper = Checkpoints(options, folder, history, guard, Interruption(), path)
        speed = Speed(folder)
        trainer = build_trainer(config, folder, [metrics, history, guard, speed, keeper], loggers)
        wandb_logger = next((g for g in trainer.loggers if isinstance(g, WandbLogger)), None)
        if wandb_logger is not None:
            weights_and_biases.watch(wandb_logger, config, module.network)

    with warnings.catch_warnings():
        # Preparing batches in this process is the fast path here, not an oversight; and the
        # training batches know by themselves where a resumed run is.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*number of training batches .* smaller than.*")
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode.*")
        with _failures(trainer, keeper, config), _single_images(config):
            trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
            early = trainer.early_stopping_callback
            if isinstance(early, EarlyStopping) and early.stopping_reason_message:
                log.info("stopped early: %s", early.stopping_reason_message)
            if keeper.time_is_over and len(history.rows) < options.max_epochs:
                told = options.max_time, len(history.rows), options.max_epochs
                log.info("stopped by training.max_time=%s after epoch %d of %d", *told)
            best, epoch, weights = _best(keeper)
            module.load_state_dict(weights)
            if len(data.rows_of("test")):
                trainer.test(module, datamodule=data, verbose=False)

    test = {n: v for n, v in metrics.latest.items() if n.startswith("test_")}
    result = Result(folder, best, history.row(epoch), test)
    if folder is not None:
        title = f"{config.model.name}: {folder}" + (" (synthetic data)" if data.synthetic else "")
        draw_curves(history.rows, folder / "curves.png", title)
        epochs = len(history.rows)
        row = summary.summary_row(
            config, auto, data, result, epochs, keeper.seconds, speed.summary()
        )
        summary.write_results(row, folder)
        (folder / folders.PREVIOUS).unlink(missing_ok=True)
        try:
            folders.add_to_summary(row)
        except (OSError, csv.Error) as error:
            log.warning("%s: this run's row could not be added (%s)", folders.SUMMARY, error)
        summary.report(config, built, data, result, speed.summary(), log_path)
    if wandb_logger is not None:  # last, for its server may let it wait
        weights_and_biases.finish(wandb_logger, config, result.checkpoint, test)
    return result


@contextmanager
def _discarded_unless_it_begins(folder: Path | None) -> Iterator[None]:
    """Removes a new run's folder where the run ends before its training has begun."""
    try:
        yield
    except BaseException:
        if folder is not None:
            folders.discard(folder)
        raise


def _best(keeper: Checkpoints) -> tuple[Path, int, dict[str, Any]]:
    """The best checkpoint that can be read, its epoch, counted from 0, and its weights."""
    for path in keeper.ranking[:-1]:
        try:
            found = checkpoints.load_checkpoint(path)
        except InputError as error:
            log.warning("%s\nThe next best one is tested instead.", str(error).splitlines()[0])
        else:
            return path, found["epoch"], found["state_dict"]
    found = checkpoints.load_checkpoint(keeper.ranking[-1])
    return keeper.ranking[-1], found["epoch"], found["state_dict"]


@contextmanager
def _failures(trainer: pl.Trainer, keeper: Checkpoints, config: Config) -> Iterator[None]:
    """Raises what ends a training as what it is, with how to go on."""
    hook = threading.excepthook
    # TensorBoard's thread has a full disk or a vanished folder as well; this one tells of it.
    threading.excepthook = lambda told: None if _is_of_files(told) else hook(told)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        # Lightning turns a signal into an exit code of its own.
        told, code = interrupted_by(signal_arrived())
        raise Interrupted(told + go_on(keeper), code) from None
    except Interrupted as error:
        if "To go on" in str(error):
            raise
        raise Interrupted(f"{error}{go_on(keeper)}", error.exit_code) from None
    except RuntimeError as error:
        other = processes.failure_of_another(error) or worker_failure(error)
        if other is not None:
            raise ProjectError(other + go_on(keeper)) from error
        if is_out_of_memory(error):
            raise ProjectError(memory_advice(config) + go_on(keeper)) from error
        raise
    except OSError as error:
        message = file_failure(error)
        if isinstance(error, FileNotFoundError):
            place = error.filename or keeper.folder
            message = f"{place}: it has vanished: was its folder moved or deleted meanwhile?"
        if message is None and isinstance(error, ConnectionError) and config.wandb.enabled:
            message = f"Weights & Biases has ended ({error})"  # which watches the gradients
        if message is None:
            raise
        raise ProjectError(message + go_on(keeper)) from error
    finally:
        threading.excepthook = hook


@contextmanager
def _single_images(config: Config) -> Iterator[None]:
    """Tells of a batch of one image that has features of a single pixel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ProjectError(
            f"data.batch_size={config.data.batch_size}: a batch of a single image cannot be "
            f"normalised by this network at data.image_size={config.data.image_size}\n"
            "Try a data.batch_size that leaves no single image over; some networks take one if the "
            "images are larger."
        ) from error


def _is_of_files(told: threading.ExceptHookArgs) -> bool:
    return issubclass(told.exc_type, OSError)


def go_on(keeper: Checkpoints) -> str:
    """How to continue a run, as a line to add to a message; nothing without a checkpoint."""
    path = keeper.directory / checkpoints.LAST
    if not path.is_file():
        return ""
    return (
        "\nTo go on from the latest checkpoint: uv run src/mlops_project/train.py "
        f"training.resume_from_checkpoint={path}"
    )


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
