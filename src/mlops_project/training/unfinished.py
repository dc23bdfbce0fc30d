"""The run that `training.resume_from_checkpoint=auto` goes on with."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mlops_project.config import Config
from mlops_project.errors import ProjectError
from mlops_project.printable import first_line
from mlops_project.training import folders
from mlops_project.training.changed_settings import setting_of_another_run
from mlops_project.training.checkpoints import ENTRY, LAST, good_checkpoints
from mlops_project.training.processes import is_first, tell

log = logging.getLogger("mlops_project")

CHOSEN = "MLOPS_PROJECT_RESUME"  # environment: what the first process has found


def newest_unfinished(config: Config) -> str | None:
    """The checkpoint where the newest unfinished run with these settings goes on, if there is one.

    The run is kept for this process then; the other processes learn of it from the first one.
    """
    if CHOSEN in os.environ and not is_first():
        return os.environ[CHOSEN] or None
    found = _newest_unfinished(config)
    tell(CHOSEN, found or "")
    return found


def _newest_unfinished(config: Config) -> str | None:
    reasons = []
    found_folders = reversed(folders.run_folders(config.model.name))
    # A run of as many epochs comes before one to lengthen, which may be another search's.
    for folder in sorted(found_folders, key=lambda f: not _is_as_long(config, f)):
        try:
            found, reason = _last_of(folder, config)
        except (ProjectError, OSError) as error:
            found, reason = None, first_line(error)
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
    """The checkpoint that an unfinished run with these settings goes on from, or why it does not.

    The run is kept for this process then.
    """
    if (folder / folders.RESULTS).exists():
        return None, "is finished"
    if other := _other_setting(config, folder):
        return None, f"has another {other}"
    if is_first():
        folders.hold(folder)
    path, checkpoint = next(good_checkpoints(folder), (None, {}))
    if path is None or checkpoint[ENTRY]["format"] < 2:
        return None, "has no checkpoint to go on from"
    if other := setting_of_another_run(config, checkpoint[ENTRY]["config"]):
        return None, f"has another {other}"
    last = folder / "checkpoints" / LAST
    if path != last and last.exists():
        log.warning("%s is damaged: going on from %s", last, path)
    return path, ""


def _is_as_long(config: Config, folder: Path) -> bool:
    container = folders.settings_of(folder) or {}
    return (container.get("training") or {}).get("max_epochs") == config.training.max_epochs


def _other_setting(config: Config, folder: Path) -> str | None:
    """What the folder's settings say of it already, which spares reading its checkpoints."""
    container = folders.settings_of(folder)
    try:
        return setting_of_another_run(config, container) if container else None
    except (ProjectError, AttributeError):
        return None
