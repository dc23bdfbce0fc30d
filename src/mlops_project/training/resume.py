"""Which run goes on, from where, and with which settings."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlops_project import settings
from mlops_project.config import Config
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.errors import InputError, ProjectError
from mlops_project.files import remove_unfinished
from mlops_project.training import folders, logs
from mlops_project.training.checkpoints import ENTRY, LAST, good_checkpoints, load_checkpoint

log = logging.getLogger("mlops_project")

CHOSEN = "MLOPS_PROJECT_RESUME"  # environment: what the first process has found for `auto`


@dataclass
class Resume:
    """A run that goes on.

    Attributes:
        path: of the checkpoint.
        checkpoint: what it holds.
        folder: the run's; None where the checkpoint lies elsewhere, so that a new one is made.
    """

    path: Path
    checkpoint: dict[str, Any]
    folder: Path | None

    @property
    def facts(self) -> dict[str, Any]:
        """The checkpoint's entry of `checkpoints.metadata`."""
        return self.checkpoint[ENTRY]

    @property
    def positions(self) -> dict[str, Any]:
        """How far the loggers were."""
        return self.checkpoint["callbacks"]["Checkpoints"]["logs"]

    def check_data(self, data: HAM10000DataModule, config: Config) -> None:
        """Raises InputError if the images or their split are not what they were."""
        if data.split_hash() != self.facts["split_hash"] and not config.training.allow_changes:
            raise InputError(
                f"{self.path}: the images of {config.data.data_dir} or their split have changed "
                f"since (split {self.facts['split_hash']}, now {data.split_hash()})\n"
                "training.allow_changes=true goes on all the same: images that it was trained on "
                "may then be in the validation or test split."
            )

    def rewind(self) -> list[dict[str, str]]:
        """Brings the run's folder to where the checkpoint was made.

        Returns:
            Rows for `logs.build_loggers`.
        """
        if self.folder is None:
            return []
        (self.folder / folders.RESULTS).unlink(missing_ok=True)
        for place in (self.folder, self.folder / "checkpoints"):
            remove_unfinished(place)
        _make_last(self.path, self.folder / "checkpoints" / LAST)
        history = self.checkpoint["callbacks"]["History"]
        return logs.rewind(
            self.folder, self.positions, history["logged_step"], len(history["rows"])
        )


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
        os.environ[CHOSEN] = wanted or ""  # for the processes that this one starts
    if not wanted:
        return config, None
    resume = open_resume(wanted)
    return _settings(config, given, resume), resume


def open_resume(path: str) -> Resume:
    """Reads a checkpoint that a run is to go on from.

    Raises:
        InputError: it cannot be read, or not resumed from.
    """
    checkpoint = load_checkpoint(path)
    states = checkpoint.get("callbacks")
    if checkpoint[ENTRY]["format"] < 2 or not isinstance(states, dict) or "History" not in states:
        raise InputError(
            f"{path}: made by an earlier version, which did not keep all that an exact resume "
            f"needs\nmodel.init_from={path} starts a new run from its weights."
        )
    return Resume(Path(path), checkpoint, folders.run_folder_of(path))


def _automatic(config: Config) -> str | None:
    if CHOSEN in os.environ and int(os.environ.get("LOCAL_RANK", "0")) > 0:
        return os.environ[CHOSEN] or None
    for folder in _unfinished(config):
        good = next(good_checkpoints(folder), None)
        if good is None:
            continue
        path, checkpoint = good
        facts = checkpoint[ENTRY]
        if facts["format"] < 2 or differences(config, None, facts["config"]):
            continue
        last = folder / "checkpoints" / LAST
        if path != last and last.exists():
            log.warning("%s is damaged: going on from %s", last, path)
        return str(path)
    log.info("no unfinished run of %s with these settings: starting a new one", config.model.name)
    return None


def _unfinished(config: Config) -> Iterator[Path]:
    """Run folders of the model without results that no other process works on, newest first."""
    for folder in reversed(folders.run_folders(config.model.name)):
        if (folder / folders.RESULTS).exists() or not _may_match(config, folder):
            continue
        if folders.is_running(folder):
            log.info("%s: another process is training it", folder)
            continue
        yield folder


def _may_match(config: Config, folder: Path) -> bool:
    """False where the folder's settings say so already, which spares reading its checkpoints."""
    try:
        container = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return not differences(config, None, container)
    except (OSError, ValueError, yaml.YAMLError, ProjectError, AttributeError):
        return True


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
    for name, key in settings.keys().items():
        old, new = _value(before, name), _value(now, name)
        rule = key.facts["resume"]
        if (given is not None and name not in given) or rule == "free" or new in (old, "auto"):
            continue
        if rule == "longer" and new > old:
            continue
        result[name] = (old, new)
    return result


def _settings(config: Config, given: frozenset[str] | None, resume: Resume) -> Config:
    """The run's settings, with what the command line names."""
    changed = differences(config, given, resume.facts["config"])
    if changed and not config.training.allow_changes:
        told = [f"{name}={old} (now {new})" for name, (old, new) in changed.items()]
        more = f" and {len(told) - 4} more" if len(told) > 4 else ""
        raise InputError(
            f"{resume.path}: its run had other settings: {', '.join(told[:4])}{more}\n"
            "Leave them as they were, or training.allow_changes=true to go on with the new ones."
        )
    merged = settings.from_container(resume.facts["config"])
    for name in list(settings.keys()):
        value = _value(config, name)
        named = given is None or name in given
        # What was found for `auto` at the start of the run holds to its end.
        if named and (value != "auto" or name == "data.cache"):
            group, _, leaf = name.rpartition(".")
            setattr(_group(merged, group), leaf, value)
    done = resume.checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if merged.training.max_epochs < done:
        raise InputError(
            f"training.max_epochs={merged.training.max_epochs}: {resume.path} has {done} behind it"
        )
    return merged


def _group(config: Config, name: str) -> Any:
    result: Any = config
    for part in name.split(".") if name else ():
        result = getattr(result, part)
    return result


def _value(config: Config, name: str) -> Any:
    group, _, leaf = name.rpartition(".")
    return getattr(_group(config, group), leaf)


def _make_last(path: Path, last: Path) -> None:
    """Makes `last.ckpt` what the run goes on from, which may be an older one, or it is damaged."""
    if path.absolute() == last.absolute():
        return
    temporary = last.with_name(f".{LAST}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without links
        shutil.copyfile(path, temporary)
    os.replace(temporary, last)
