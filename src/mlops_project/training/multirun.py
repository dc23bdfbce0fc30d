"""Several runs from one command, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mlops_project import hydra_overrides, settings
from mlops_project.config import Config
from mlops_project.data.folder import require_images
from mlops_project.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, InputError, ProjectError
from mlops_project.models.check import check_network
from mlops_project.printable import listed
from mlops_project.training import folders

PROGRAM = Path(__file__).resolve().parents[1] / "train.py"


def _run(words: list[str]) -> int:
    """Runs a command, and passes on the signals that ask for its end; its exit code."""
    process = subprocess.Popen(words)
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt as error:
            number = getattr(error, "number", signal.SIGINT)
            # A terminal has sent Ctrl-C to both; a second one would end the run at once.
            if number != signal.SIGINT or not _in_the_foreground():
                process.send_signal(number)
        else:
            return 128 - code if code < 0 else code


def _in_the_foreground() -> bool:
    """Whether a terminal sends its Ctrl-C to this process and those that it has started."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)  # its own, wherever its input comes from
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _check(job: Sequence[str], config: Config) -> None:
    """Raises InputError for what a run would refuse before it begins to train."""
    if config.training.resume_from_checkpoint not in (None, "", "auto"):
        from mlops_project.training.resume import find_resume

        config, _ = find_resume(config, settings.given(job))
        folders.release()
    require_images(config)
    if config.training.optimizer.lower() not in ("adam", "adamw"):  # spares importing torch
        from mlops_project.training.optimizers import check_optimizer

        check_optimizer(config.training.optimizer)
    check_network(config.model, files=not config.training.resume_from_checkpoint)


def _require_unedited(job: Sequence[str], config: Config) -> None:
    """Raises InputError where `configs/`, which the run will read, makes it another one now."""
    before, now = settings.shaping(config), settings.shaping(settings.load(job))
    if changed := [f"{n}={before[n]} (now {now[n]})" for n in before if before[n] != now[n]]:
        raise InputError(listed(changed))


def _finished(config: Config) -> Path | None:
    """The newest finished run with these settings."""
    wanted = settings.shaping(config)
    for folder in reversed(folders.run_folders(config.model.name)):
        if not (folder / folders.RESULTS).is_file():
            continue
        try:
            auto = json.loads((folder / folders.RESULTS).read_text(encoding="utf-8"))["auto"]
            before = settings.from_container(folders.settings_of(folder))
            had = settings.shaping(before, auto.split())
        except (OSError, ValueError, KeyError, AttributeError, ProjectError):
            continue
        given = {n: v for n, v in wanted.items() if n not in settings.FASTEST or v != "auto"}
        if all(had[name] == value for name, value in given.items()):
            return folder
    return None


Job = tuple[list[str], Config]  # overrides, and the settings that they make


def checked_jobs(arguments: Sequence[str]) -> list[Job]:
    """Every combination of the comma-separated values.

    Args:
        arguments: overrides as on the command line, without -m.

    Raises:
        InputError: for what any of them would refuse: a mistake in the last one should not be
            found after hours.
    """
    jobs = [(job, settings.load(job)) for job in hydra_overrides.expand(arguments)]
    for job, config in jobs:
        _check(job, config)
    return jobs


def run_each(jobs: Sequence[Job], done: list[Path]) -> int:
    """Trains each job, one after the other.

    A run that fails does not stop the others. With training.resume_from_checkpoint=auto those that
    are finished are not repeated, as when the command is given again after an interruption.

    Args:
        jobs: of `checked_jobs`.
        done: is told the folders of runs that were finished before.

    Returns:
        0, or the exit code of the first run that failed.

    Raises:
        InputError: a file of `configs/` has changed, and the next run would be another one.
    """
    first_failure = 0
    for number, (job, config) in enumerate(jobs, start=1):
        again = config.training.resume_from_checkpoint == "auto"
        if again and (folder := _finished(config)) is not None:
            print(f"[{number}/{len(jobs)}] done already: {folder}/", flush=True)
            done.append(folder)
            continue
        try:
            _require_unedited(job, config)
        except InputError as error:
            left = len(jobs) + 1 - number
            raise InputError(
                f"{error}\nA file in configs/ was edited meanwhile, and {left} of {len(jobs)} runs "
                "were not started. Once it is as it was, training.resume_from_checkpoint=auto "
                "repeats none that is finished."
            ) from error
        print(f"[{number}/{len(jobs)}] {' '.join(job)}", flush=True)
        code = _run([sys.executable, str(PROGRAM), *job])
        if code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            print(f"{len(jobs) - number} of {len(jobs)} runs were not started", flush=True)
            return code
        first_failure = first_failure or code
    return first_failure
