"""Which run goes on, from where, and with which settings."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from mlops_project import settings
from mlops_project.config import Config
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.data.splits import UNUSED, split_hash
from mlops_project.errors import InputError
from mlops_project.files import link_or_copy, remove_unfinished
from mlops_project.printable import listed
from mlops_project.training import folders, logs
from mlops_project.training.changed_settings import check_changes, differences, merged
from mlops_project.training.checkpoints import ENTRY, LAST, load_checkpoint
from mlops_project.training.processes import is_first
from mlops_project.training.unfinished import newest_unfinished

log = logging.getLogger("mlops_project")

# Where a run is trained and tested; a finished one may repeat its test elsewhere.
WHERE = settings.FASTEST | {"training.accelerator", "training.devices", "training.strategy"}
POSITION = "HAM10000DataModule"  # where a checkpoint keeps the place in the order of the batches


@dataclass
class Resume:
    """A run that goes on.

    Attributes:
        path: of the checkpoint.
        checkpoint: what it holds, but for the weights.
        folder: the run's; None where the checkpoint lies elsewhere, or where its run has later
            epochs and other settings are to follow, so that a new one is made.
        shapes: of the network's weights in it, by their names.
    """

    path: Path
    checkpoint: dict[str, Any]
    folder: Path | None
    shapes: dict[str, torch.Size]

    @property
    def facts(self) -> dict[str, Any]:
        """The checkpoint's entry of `checkpoints.metadata`."""
        return self.checkpoint[ENTRY]

    @property
    def positions(self) -> dict[str, Any]:
        """How far the loggers were."""
        return self.checkpoint["callbacks"]["Checkpoints"]["logs"]

    @property
    def epochs_done(self) -> int:
        """Epochs that are complete."""
        return self.checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]

    @property
    def told(self) -> str:
        """The checkpoint to go on from, and how far it is, for the user."""
        step = self.checkpoint["global_step"]
        return f"{self.path} ({self.epochs_done} epochs done, {step} steps)"

    @property
    def within_epoch(self) -> bool:
        """Whether it was made between two steps of an epoch, and not between two epochs."""
        return self.checkpoint[POSITION]["batches"] > 0

    @property
    def has_later_epochs(self) -> bool:
        """Whether its run has gone further, and an earlier epoch is asked for by name."""
        if self.folder is None or self.path.name in (LAST, folders.PREVIOUS):
            return False
        try:
            return len(pd.read_csv(self.folder / "metrics.csv")) > self.epochs_done
        except (OSError, ValueError):  # it is made anew from the checkpoint
            return False

    def auto(self, config: Config) -> set[str]:
        """Names of the settings that the run has found for "auto", and that it keeps."""
        before = settings.shaping(settings.from_container(self.facts["config"]))
        now = settings.shaping(config)
        kept = self.facts.get("auto", [])
        return {name for name in kept if name in now and now[name] == before[name]}

    def check_processes(self, count: int) -> None:
        """Raises InputError for another number of processes than those that share its epoch."""
        keeper = self.checkpoint["callbacks"]["Checkpoints"]
        before = keeper.get("processes", count)  # earlier ones lack it
        if self.within_epoch and before != count:
            raise InputError(
                f"{self.path}: made within an epoch, where the number of processes ({before}, now "
                f"{count}) cannot change\nA checkpoint of the end of an epoch (epoch=….ckpt) "
                "can go on with any."
            )

    def check_network(self, network: nn.Module) -> None:
        """Raises InputError if the weights are those of another network."""
        theirs, ours = self.shapes, {n: w.shape for n, w in network.state_dict().items()}
        names = [n for n in theirs | ours if theirs.get(n) != ours.get(n)]
        if not names:
            return
        before, now = (tuple(shapes.get(names[0], ())) for shapes in (theirs, ours))
        raise InputError(
            f"{self.path}: its weights do not fit the network of these settings ({names[0]}: "
            f"{before}, now {now})\nLeave the settings as they were."
        )

    def check_data(self, data: HAM10000DataModule, config: Config) -> None:
        """Raises InputError if the images, their split or diagnoses are not what they were."""
        self._leave_out_what_cannot_be_read(data)
        diagnoses = split_hash(data.table, data.table["dx"].to_numpy())
        if data.split_hash() != self.facts["split_hash"]:
            leak = "images that it was trained on may then be in the validation or test split"
            changed = (
                f"{self.path}: the images of {config.data.data_dir} or their split have changed "
                f"since (split {self.facts['split_hash']}, now {data.split_hash()})"
            )
        elif diagnoses != self.facts.get("diagnoses_hash", diagnoses):  # earlier ones lack it
            leak = "some epochs then learn from other diagnoses than the rest"
            changed = f"{self.path}: diagnoses of {config.data.data_dir} have changed since"
        else:
            return
        if self.within_epoch and data.split_hash() != self.facts["split_hash"]:
            raise InputError(
                f"{changed}, and it was made within an epoch of them\nA checkpoint of the end of "
                "an epoch (epoch=….ckpt) can go on, with training.allow_changes=true."
            )
        if not config.training.allow_changes:
            raise InputError(
                f"{changed}\ntraining.allow_changes=true goes on all the same: {leak}."
            )
        log.warning("%s: %s", changed, leak)

    def _leave_out_what_cannot_be_read(self, data: HAM10000DataModule) -> None:
        """Takes over the unused images, where that alone makes the split what it was.

        Without a cache, nothing tells beforehand which of the images cannot be read.
        """
        if data.settings.cache != "off" or data.split_hash() == self.facts["split_hash"]:
            return
        before = self.facts.get("split", {"image_id": [], "split": []})
        parts = dict(zip(before["image_id"], before["split"], strict=True))
        unused = data.table["image_id"].map(parts).to_numpy() == UNUSED
        if split_hash(data.table, np.where(unused, UNUSED, data.split)) == self.facts["split_hash"]:
            data.leave_out(np.flatnonzero(unused))

    def rewind(self, folder: Path) -> None:
        """Brings a run's folder, its own or a new one, to where the checkpoint was made."""
        for name in (folders.RESULTS, "hparams.yaml"):  # Lightning leaves the latter as it is
            (folder / name).unlink(missing_ok=True)
        (folder / "checkpoints").mkdir(exist_ok=True)
        for place in (folder, folder / "checkpoints"):
            remove_unfinished(place)
        last = folder / "checkpoints" / LAST
        if self.path.absolute() != last.absolute():  # an older one, or last.ckpt is damaged
            link_or_copy(self.path, last)
        history = self.checkpoint["callbacks"]["History"]
        logs.rewind(folder, self.positions, history["logged_step"], len(history["rows"]))


def find_resume(config: Config, given: frozenset[str] | None) -> tuple[Config, Resume | None]:
    """Finds what `training.resume_from_checkpoint` asks for, and the settings to go on with.

    A checkpoint named by its path brings its settings along; what the command line names beside it
    must be what it was, or free to change. `auto` takes the newest unfinished run whose settings
    are those of the command line.

    Args:
        config: of the command line.
        given: the keys that the command line names; None: all.

    Returns:
        The settings, and None where a new run is to start.

    Raises:
        InputError: no such checkpoint, or the run had other settings.
    """
    wanted = config.training.resume_from_checkpoint
    if wanted == "auto":
        wanted, given = newest_unfinished(config), None
    if not wanted:
        return config, None
    resume = open_resume(wanted)
    before, path = resume.facts["config"], resume.path
    own = settings.from_container(before)
    changed = differences(config, given, before)
    check_changes(
        changed,
        path,
        allowed=config.training.allow_changes,
        within_epoch=resume.within_epoch,
        monitor=own.training.monitor_metric,
    )
    result = settings.resolve(merged(config, given, before))
    # It is asked for once, and not from then on.
    result.training.allow_changes = config.training.allow_changes
    if result.training.max_epochs < resume.epochs_done:
        raise InputError(
            f"training.max_epochs={result.training.max_epochs}: {path} has "
            f"{resume.epochs_done} behind it"
        )
    others = changed.keys() - WHERE
    if others and result.training.max_epochs == resume.epochs_done:
        raise InputError(
            f"{path}: its {resume.epochs_done} epochs are done, and nothing would be trained with "
            f"{listed(sorted(others))}\nA larger training.max_epochs goes on with the change; "
            f"model.init_from={path} starts a new run with it."
        )
    same = settings.shaping(result) == settings.shaping(own)
    if given is not None and not same and resume.has_later_epochs:
        log.warning(
            "%s has later epochs, which stay: with other settings this goes on in a folder of its "
            "own",
            resume.folder,
        )
        folders.release()  # it is left alone, and others may go on from it
        resume.folder = None
    return result, resume


def open_resume(path: str) -> Resume:
    """Reads a checkpoint that a run is to go on from, and keeps the run for this process.

    Raises:
        InputError: it cannot be read, or not resumed from, or another process goes on with the run.
    """
    folder = folders.run_folder_of(path)
    if folder is not None and folder.is_dir() and is_first():
        folders.hold(folder)
    checkpoint = load_checkpoint(path)
    if checkpoint[ENTRY]["format"] < 2:
        raise InputError(
            f"{path}: made by an earlier version, which did not keep all that an exact resume "
            f"needs\nmodel.init_from={path} starts a new run from its weights."
        )
    try:
        # Not the weights, which Lightning reads again.
        names = (ENTRY, "callbacks", "loops", POSITION, "global_step")
        kept = {name: checkpoint[name] for name in names}
        weights = checkpoint["state_dict"].items()
        prefix = "network."
        shapes = {n.removeprefix(prefix): w.shape for n, w in weights if n.startswith(prefix)}
        resume = Resume(Path(path), kept, folder, shapes)
        history = kept["callbacks"]["History"]
        _ = [history["logged_step"], history["rows"], resume.facts["weights"], resume.positions]
        _ = [resume.facts["config"], resume.facts["split_hash"], resume.within_epoch]
        _ = [resume.epochs_done, resume.told]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: lacks what a run needs to go on ({error})\n"
            f"model.init_from={path} starts a new run from its weights."
        ) from error
    return resume
