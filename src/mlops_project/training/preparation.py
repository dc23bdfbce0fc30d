"""What comes before a run has a folder: whatever is wrong with its settings or data shows here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl

from mlops_project import settings
from mlops_project.combinations import warn_of_a_short_training
from mlops_project.config import Config
from mlops_project.console import start_logging
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.models.build import BuiltModel, build_model, try_size
from mlops_project.models.check import check_network
from mlops_project.training import folders, processes
from mlops_project.training.allocator import keep_freed_memory
from mlops_project.training.module import recompute_activations
from mlops_project.training.optimizers import check_optimizer
from mlops_project.training.presets import choose_presets, device_type
from mlops_project.training.progressive_resizing import sides_in
from mlops_project.training.resume import Resume, find_resume
from mlops_project.training.trainer import check_machine
from mlops_project.training.tuning import find_batch_size


@dataclass
class Prepared:
    """A run that can begin.

    Attributes:
        config: its settings, with what was found for "auto"; only the learning rate is found later,
            since its search leaves a picture in the run's folder.
        auto: names of those that were found for "auto".
        resume: where it goes on; None: from the start.
        data: set up for training.
        built: the network, in its final memory layout and precision.
        log_path: of this process's log file; None where it is not the first one.
    """

    config: Config
    auto: set[str]
    resume: Resume | None
    data: HAM10000DataModule
    built: BuiltModel
    log_path: Path | None


def prepare(config: Config, given: frozenset[str] | None) -> Prepared:
    """Reads and checks all that a run needs; nothing but decoded images and a log is written.

    Args:
        config: settings of the run; values for "auto" are entered there.
        given: see `find_resume`.

    Raises:
        InputError: settings or data that cannot be used.
    """
    first = processes.is_first()
    start_logging(None, first=first)
    config, resume = find_resume(config, given)
    auto = {n for n, v in settings.shaping(config).items() if n in settings.FOUND and v == "auto"}
    auto |= resume.auto(config) if resume else set()
    check_optimizer(config.training.optimizer)
    processes_here = check_machine(config.training)
    if resume:
        resume.check_processes(processes_here)
    else:
        check_network(config.model)
    data = open_data(config)
    data.read()
    log_path = folders.new_log_file() if first else None
    start_logging(log_path, first=first)
    warn_of_a_short_training(config.training)
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
    images = len(data.rows_of("train"))
    choose_presets(config, built.network, images)
    if device_type(config.training) == "cpu":
        keep_freed_memory()
    if config.data.batch_size == "auto":
        config.data.batch_size = find_batch_size(config, built.network, data.image_size, images)
        data.settings.batch_size = config.data.batch_size
    return Prepared(config, auto, resume, data, built, log_path)


def open_data(config: Config) -> HAM10000DataModule:
    """The data module these settings describe."""
    fields = settings.to_container(config)["data"]
    return HAM10000DataModule(
        fields.pop("data_dir"),
        num_classes=config.model.num_classes,
        seed=config.seed,
        **fields,
    )
