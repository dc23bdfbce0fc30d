"""Workers of a search that claim trials and train nothing, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mlops_project.searching.storage import Storage
from mlops_project.searching.study import Done, Lost, Study
from mlops_project.searching.sweep import read

processes = multiprocessing.get_context("forkserver")
# Each worker starts from a process that has imported most of what it needs.
processes.set_forkserver_preload(
    ["mlops_project.searching.study", "optuna", "sqlalchemy", "alembic.command", "hydra", "psycopg"]
)


def claim_all(file: Path, storage: str, total: int, notes: Path, told: Connection) -> None:
    """Claims trials until there is none left, and notes down each one that it has completed.

    Says when it is ready, and then the number of each trial that it claims.
    """
    sweep = read(file, [])
    study = Study(sweep, Storage(storage, sweep.name, 2), None)
    told.send("ready")
    while True:
        try:
            trial = study.claim(total)
        except Done:
            return
        if trial is None:
            time.sleep(0.05)
            continue
        told.send(trial.number)
        time.sleep(0.05)
        try:
            study.report(trial, 1.0, 1)
            study.complete(trial, trial.params["training.learning_rate"])
        except Lost:
            continue
        with notes.open("a") as lines:
            lines.write(f"{trial.number} {trial.params}\n")


def start(file: Path, storage: str, total: int, notes: Path) -> tuple[Any, Connection]:
    """A worker's process, and what it says; this ends with EOFError when the worker does."""
    says, told = processes.Pipe(duplex=False)
    process = processes.Process(target=claim_all, args=(file, storage, total, notes, told))
    process.start()
    told.close()
    return process, says
