"""A search from its file to its best trial: told from top to bottom."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mlops_project.data.folder import require_images
from mlops_project.searching import results
from mlops_project.searching.display import Display
from mlops_project.searching.storage import GRACE_SECONDS, Storage
from mlops_project.searching.study import Study
from mlops_project.searching.sweep import Sweep, inspect, read
from mlops_project.searching.worker import Worker

SEARCHES = Path("reports/search")
COMMAND = "uv run src/mlops_project/search.py"
TRIALS = 20  # where neither the user nor the file says how many, and there is no grid to end


def search(
    path: Path,
    arguments: Sequence[str],
    trials: int | None = None,
    storage: str | None = None,
    name: str | None = None,
    folds: int | None = None,
    grace: int = GRACE_SECONDS,
) -> None:
    """Runs trials until enough count, together with all others that do the same.

    Args:
        path: of the sweep file.
        arguments: settings of all trials, as on the command line.
        trials: how many are to count in the end, of all workers and all starts; None: what the file
            says, all of a grid, else `TRIALS`.
        storage: address of the database; None: a file in the search's folder.
        name: of the search; None: the file's.
        folds: trainings of a trial, whose mean counts; None: one, on the usual split.
        grace: seconds without a sign of life after which a worker is taken for dead.

    Raises:
        InputError: the file, the settings or the address cannot be used; nothing is written then.
        Interrupted: a signal has ended it; the message says how to go on.
        ProjectError: trial after trial fails, or the database has gone.
    """
    sweep = read(path, arguments).named(name)
    folder = SEARCHES / sweep.name
    database = Storage(storage or f"sqlite:///{folder / 'study.db'}", sweep.name, grace)
    require_images(sweep.config)
    study = Study(sweep, database, folds)
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)

    def tell(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    total = trials or sweep.run_cap or TRIALS
    if sweep.method == "grid":
        total = min(trials or sweep.run_cap or sweep.size, sweep.size)
    tell(f"{sweep.name}: {total} trials of a {sweep.method} search, {sweep.goal} {sweep.metric}")
    for parameter in sweep.parameters:
        tell(f"  {parameter.name}: {parameter.told}")
    tell(f"in {database.file or database.told}; each trial's output in {folder}/trial_*.log")

    given = list(arguments)
    for option, value in (
        ("--trials", trials),
        ("--storage", database.told if storage else None),
        ("--name", name),
        ("--folds", folds),
        ("--grace", grace if grace != GRACE_SECONDS else None),
    ):
        given += [option, str(value)] if value is not None else []
    again = f"{COMMAND} {shlex.join([str(path), *given])}"
    with Display(sweep, total, console) as display:
        worker = Worker(study, folder, total, folds, display, again)
        try:
            worker.run()
        finally:
            results.write_table(study, folder)
    results.report(study, folder, tell)


def check(path: Path, arguments: Sequence[str]) -> tuple[list[str], Sweep | None]:
    """Looks for what would go wrong with a sweep file.

    Returns:
        A line for each mistake, or what is searched in some lines; and the sweep, where nothing is
        wrong with it.
    """
    sweep, found = inspect(path, arguments)
    if sweep is None:
        return [f"{path}: {problem}" for problem in found.problems], None
    lines = [f"{path}: {sweep.method} search, {sweep.goal} {sweep.metric}"]
    width = max(len(p.name) for p in sweep.parameters)
    lines += [f"  {p.name:{width}}  {p.told}" for p in sweep.parameters]
    if sweep.size:
        lines.append(f"  {sweep.size} combinations")
    if sweep.overrides:
        lines.append(f"all trials with {shlex.join(sweep.overrides)}")
    if sweep.halving:
        epochs = sweep.halving.before(sweep.config.training.max_epochs)
        if epochs:
            told = ", ".join(map(str, epochs))
            lines.append(f"after epoch {told}: one of {sweep.halving.factor} goes on")
    return [*lines, *(f"note: {note}" for note in found.notes)], sweep
