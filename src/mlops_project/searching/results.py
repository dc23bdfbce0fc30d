"""What a search leaves: a table of its trials, pictures, and the command that trains the best."""

from __future__ import annotations

import logging
import shlex
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_project.errors import ProjectError
from mlops_project.files import atomic_write
from mlops_project.searching.storage import DEATHS, RETRIES
from mlops_project.searching.study import Study
from mlops_project.searching.trials import (
    abandoned,
    best_trial,
    count,
    duration,
    failed_combinations,
    state,
)
from mlops_project.training.folders import table_text

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

TRAIN = ("uv", "run", "src/mlops_project/train.py")
EVALUATE = ("uv", "run", "src/mlops_project/evaluate.py")
PICTURES = {
    "history.png": "plot_optimization_history",
    "importances.png": "plot_param_importances",
    "parallel_coordinates.png": "plot_parallel_coordinate",
}


def write_table(study: Study, folder: Path) -> Path:
    """Writes trials.csv: a row for each trial, in the order in which they were begun."""
    sweep = study.sweep
    rows: list[dict[str, Any]] = []
    for trial in study.trials():
        attributes = trial.user_attrs
        started = trial.datetime_start
        values = sweep.values_of(trial.params)
        rows.append(
            {
                "trial": trial.number,
                "state": state(trial),
                sweep.metric: trial.value,
                **{p.name: values.get(p.name) for p in sweep.parameters},
                "epochs": max(trial.intermediate_values, default=None) if not study.folds else None,
                "best_epoch": attributes.get("epoch"),
                "seconds": round(duration(trial), 1) if started else None,
                "started": started.isoformat(" ", "seconds") if started else None,
                "worker": attributes.get("worker"),
                "folder": ", ".join(map(str, _of_folds(study, trial, "folder"))) or None,
                "checkpoint": ", ".join(map(str, _of_folds(study, trial, "checkpoint"))) or None,
                "error": attributes.get("error"),
            }
        )
    path = folder / "trials.csv"
    with atomic_write(path) as file:
        file.write(table_text(rows))
    return path


def _of_folds(study: Study, trial: FrozenTrial, name: str) -> list[Any]:
    """What is known of each training of a trial: one, or one a fold."""
    names = [f"{name}_{fold}" for fold in range(study.folds)] if study.folds else [name]
    found = [trial.user_attrs.get(n) for n in names]
    return [value for value in found if value is not None]


def draw(study: Study, folder: Path) -> tuple[list[Path], list[str]]:
    """Draws the pictures of a search.

    Returns:
        Those that could be drawn, and a line for each that could not.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import optuna.visualization.matplotlib as pictures

    metric, drawn, gaps = study.sweep.metric, [], []
    for name, function in PICTURES.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                axes = getattr(pictures, function)(study.optuna_study, target_name=metric)
                figure = axes.figure
                figure.set_size_inches(9, 5)
                with atomic_write(folder / name, "wb") as file:
                    figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
        except (ValueError, RuntimeError) as error:  # too few trials, or all with the same value
            gaps.append(f"{name}: not drawn ({' '.join(str(error).split()) or 'too few trials'})")
        else:
            drawn.append(folder / name)
        plt.close("all")
    return drawn, gaps


def command_of(study: Study, trial: FrozenTrial) -> str:
    """The command that trains a trial by hand, quoted for a shell."""
    words = study.sweep.settings_of(trial.params)
    if study.folds:
        folds = ",".join(map(str, range(study.folds)))
        words = ["-m", *words, f"data.folds={study.folds}", f"data.fold={folds}"]
    return shlex.join([*TRAIN, *words])


def report(study: Study, folder: Path, tell: Callable[[str], None]) -> None:
    """Writes the table and the pictures, and tells what came out; the best's command last.

    Args:
        study: that is done, or was interrupted.
        folder: to write to.
        tell: shows a line.

    Raises:
        ProjectError: there is no best one.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    trials = study.trials()
    counts = count(trials)
    table = write_table(study, folder)
    drawn, gaps = draw(study, folder)
    seconds = [duration(t) for t in trials if t.state.name in ("COMPLETE", "PRUNED")]
    tell(
        f"{counts.done} trials: {counts.complete} trained to the end, {counts.pruned} ended early"
        + (f"; {counts.failed} more failed" if counts.failed else "")
        + (f"; {statistics.fmean(seconds):.0f} s each" if seconds else "")
    )
    if study.sweep.method == "grid" and (failed := failed_combinations(trials)):
        tell(f"of the grid {failed} failed; the same command tries them again, if trials are left")
    lost = [t for t in abandoned(trials) if t.system_attrs.get(DEATHS, 0) >= RETRIES]
    if lost:
        numbers = ", ".join(str(t.number) for t in lost)
        tell(f"given up, for {RETRIES + 1} workers each have died of it: trial {numbers}")
    tell(f"all trials       {table}")
    for gap in gaps:
        tell(f"                 {gap}")
    if drawn:
        tell(f"pictures         {', '.join(map(str, drawn))}")
    best = best_trial(trials, study.sweep.goal)
    if best is None:
        raise ProjectError(
            f"no trial was trained to the end: there is no best one\n"
            f"What they said: {folder}/trial_*.log"
        )
    metric = f"{study.sweep.metric} {best.value:.4f}"
    epoch = best.user_attrs.get("epoch")
    where = f" in epoch {int(epoch) + 1}" if epoch is not None else ""
    values = _of_folds(study, best, "value")
    if len(values) > 1:
        where = f" ± {statistics.stdev(values):.4f} (mean and SD of {len(values)} folds)"
    tell(f"best             trial {best.number}, {metric}{where}")
    checkpoints = _of_folds(study, best, "checkpoint")
    if study.folds:
        words = [*EVALUATE, "--checkpoint", *checkpoints, "--split", "out-of-fold"]
        tell("All its folds evaluated as one:")
        tell(shlex.join(words))
    elif checkpoints:
        tell(f"its checkpoint   {checkpoints[0]}")
    tell("Train it again:")
    tell(command_of(study, best))
