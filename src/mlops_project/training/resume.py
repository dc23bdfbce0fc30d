"""Which run goes on, from where, and with which settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlops_project import setting_keys, settings
from mlops_project.config import Config
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.data.splits import split_hash
from mlops_project.errors import InputError, ProjectError
from mlops_project.files import link_or_copy, remove_unfinished
from mlops_project.training import folders, logs
from mlops_project.training.checkpoints import ENTRY, LAST, good_checkpoints, load_checkpoint
from mlops_project.training.processes import is_first, tell

log = logging.getLogger("mlops_project")

POSITION = "HAM10000DataModule"  # where a checkpoint keeps the place in the order of the batches
# What decides which batches an epoch has, in which order, and how many steps they make
BATCHES = {
    "seed",
    "data.batch_size",
    "data.sampler",
    "data.subsample_percentage",
    "data.stratified_sampling",
    "data.val_fraction",
    "data.folds",
    "data.fold",
    "data.test_fraction",
    "training.accumulate_grad_batches",
    "training.devices",
    "training.limit_train_batches",
}
# Where these are "auto", a run goes on with what it has.
KEPT = settings.FOUND | settings.FASTEST | {"model.pretrained"}
CHOSEN = "MLOPS_PROJECT_RESUME"  # environment: what the first process has found for `auto`


@dataclass
class Resume:
    """A run that goes on.

    Attributes:
        path: of the checkpoint.
        checkpoint: what it holds, but for the weights.
        folder: the run's; None where the checkpoint lies elsewhere, so that a new one is made.
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
        """Where it goes on, for the user."""
        step = self.checkpoint["global_step"]
        return f"{self.path} ({self.epochs_done} epochs done, {step} steps)"

    @property
    def within_epoch(self) -> bool:
        """Whether it was made between two steps of an epoch, and not between two epochs."""
        return self.checkpoint[POSITION]["batches"] > 0

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
        wanted, given = _automatic(config), None
        tell(CHOSEN, wanted or "")
    if not wanted:
        return config, None
    resume = open_resume(wanted)
    return _settings(config, given, resume), resume


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


def _automatic(config: Config) -> str | None:
    if CHOSEN in os.environ and not is_first():
        return os.environ[CHOSEN] or None
    reasons = []
    found_folders = reversed(folders.run_folders(config.model.name))
    # A run of as many epochs comes before one to lengthen, which may be another search's.
    for folder in sorted(found_folders, key=lambda f: not _is_as_long(config, f)):
        try:
            found, reason = _last_of(folder, config)
        except (ProjectError, OSError) as error:
            found, reason = None, str(error).splitlines()[0]
        if found is not None:
            return str(found)
        folders.release()
        reasons.append(f"; {folder} {reason}")
    log.info(
        "no unfinished run of %s with these settings: starting a new one%s",
        config.model.name,
        reasons[0] if reasons else "",
    )
    return None


def _last_of(folder: Path, config: Config) -> tuple[Path | None, str]:
    """Where an unfinished run with these settings goes on, and else why it does not.

    The run is kept for this process then.
    """
    if (folder / folders.RESULTS).exists():
        return None, "is finished"
    if not _may_match(config, folder):
        return None, "has other settings"
    if is_first():
        folders.hold(folder)
    path, checkpoint = next(good_checkpoints(folder), (None, {}))
    if path is None or checkpoint[ENTRY]["format"] < 2:
        return None, "has no checkpoint to go on from"
    if _differ(config, checkpoint[ENTRY]["config"]):
        return None, "has other settings"
    last = folder / "checkpoints" / LAST
    if path != last and last.exists():
        log.warning("%s is damaged: going on from %s", last, path)
    return path, ""


def _is_as_long(config: Config, folder: Path) -> bool:
    container = folders.settings_of(folder) or {}
    return (container.get("training") or {}).get("max_epochs") == config.training.max_epochs


def _may_match(config: Config, folder: Path) -> bool:
    """False where the folder's settings say so already, which spares reading its checkpoints."""
    container = folders.settings_of(folder)
    try:
        return container is None or not _differ(config, container)
    except (ProjectError, AttributeError):
        return True


def _differ(config: Config, container: dict[str, Any]) -> bool:
    """Whether `auto` takes them for the settings of another run."""
    before = settings.from_container(container)
    return bool(differences(config, None, container)) or any(
        _value(before, name) != _value(config, name) for name in settings.FREE_BUT_SHAPING
    )


def differences(
    config: Config, given: frozenset[str] | None, container: dict[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Settings that a run must keep and that differ: (before, now) of each key.

    Args:
        config: of the command line.
        given: the keys to look at; None: all.
        container: settings of the run, as its checkpoint has them.
    """
    before, now = settings.from_container(container), config
    result = {}
    for name, key in setting_keys.keys().items():
        old, new = _value(before, name), _value(now, name)
        rule = key.facts["resume"]
        if (given is not None and name not in given) or rule == "free" or new == old:
            continue
        if new == "auto" and (given is None or name in KEPT):
            continue
        if rule == "longer" and new > old:
            continue
        result[name] = (old, new)
    return result


def _settings(config: Config, given: frozenset[str] | None, resume: Resume) -> Config:
    """The run's settings, with what the command line names."""
    changed = differences(config, given, resume.facts["config"])
    fixed = [name for name in changed if setting_keys.keys()[name].facts["resume"] == "fixed"]
    if fixed:
        raise InputError(
            f"{resume.path}: its run had other settings: {_told(changed, fixed)}; these cannot "
            "change within a run\nLeave them as they were, or start a new run (with its weights, "
            f"where the network is the same: model.init_from={resume.path})."
        )
    if changed and not config.training.allow_changes:
        raise InputError(
            f"{resume.path}: its run had other settings: {_told(changed, changed)}\n"
            "Leave them as they were, or training.allow_changes=true to go on with the new ones."
        )
    for name, (old, new) in changed.items():
        log.warning("%s=%s from here on (before: %s)", name, new, old)
    within = sorted(changed.keys() & BATCHES)
    if within and resume.within_epoch:
        raise InputError(
            f"{resume.path}: made within an epoch, where {', '.join(within)} cannot change\n"
            "A checkpoint of the end of an epoch (epoch=….ckpt) can go on with it."
        )
    merged = settings.from_container(resume.facts["config"])
    for name in list(setting_keys.keys()):
        value = _value(config, name)
        named = given is None or name in given
        if named and (value != "auto" or name not in KEPT):
            group, _, leaf = name.rpartition(".")
            setattr(_group(merged, group), leaf, value)
    done = resume.epochs_done
    if merged.training.max_epochs < done:
        raise InputError(
            f"training.max_epochs={merged.training.max_epochs}: {resume.path} has {done} behind it"
        )
    return merged


def _told(changed: dict[str, tuple[Any, Any]], names: Collection[str]) -> str:
    told = [f"{name}={changed[name][0]} (now {changed[name][1]})" for name in names]
    return ", ".join(told[:4]) + (f" and {len(told) - 4} more" if len(told) > 4 else "")


def _group(config: Config, name: str) -> Any:
    result: Any = config
    for part in name.split(".") if name else ():
        result = getattr(result, part)
    return result


def _value(config: Config, name: str) -> Any:
    group, _, leaf = name.rpartition(".")
    return getattr(_group(config, group), leaf)
