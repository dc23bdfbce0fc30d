"""A worker of a search: asks for trials, trains each in a process of its own, and tells of it."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_project import settings
from mlops_project.errors import InputError, Interrupted, ProjectError, interrupted_by
from mlops_project.searching import runs
from mlops_project.searching.display import Display
from mlops_project.searching.identity import check_same, identity
from mlops_project.searching.study import Done, Lost, Study
from mlops_project.searching.sweep import Sweep
from mlops_project.searching.trials import INTERRUPTED
from mlops_project.training.signals import Interruption, handlers_put_back

if TYPE_CHECKING:
    from optuna.trial import Trial

MAX_FAILURES = 5  # trials that may fail one after the other
STEP_SECONDS = 0.25  # between two looks at a run that says nothing
WAIT_SECONDS = 1.0  # between two questions for a trial, where the other workers run the last ones


class _Ended(Exception):
    """The trial's training came to no result.

    Args:
        reason: in one line; "" where the trial is worse than others.
    """


@dataclass
class Worker:
    """Runs trials until enough of all workers' count.

    Attributes:
        study: that it works on.
        folder: for the output of the trials.
        total: trials that are to count in the end.
        folds: trainings of a trial, each with another part of the images for validation.
        display: is told of everything.
        go_on: the command that goes on with the search.
    """

    study: Study
    folder: Path
    total: int
    folds: int | None
    display: Display
    go_on: str

    def run(self) -> None:
        """Works until there is nothing left to do.

        Raises:
            InputError: a file of `configs/` has changed, and trials would no longer be comparable.
            Interrupted: by a signal; the trial in flight is kept, and is gone on with later.
            ProjectError: trial after trial has failed.
        """
        self.interruption = Interruption()
        with handlers_put_back():
            self._work()

    def _work(self) -> None:
        self.interruption.defer()
        try:
            while True:
                self._end_if_asked()
                try:
                    trial = self.study.claim(self.total)
                except Done:
                    return
                if trial is None:
                    self.display.waiting(self.study.trials())
                    time.sleep(WAIT_SECONDS)
                    continue
                try:
                    self._run_trial(trial)
                except Lost:
                    self.display.lost(trial.number)
                self._end_if_failing()
        finally:
            self.interruption.raise_at_once()

    def _end_if_asked(self) -> None:
        number = self.interruption.number
        if number:
            self.interruption.number = 0
            told, code = interrupted_by(number)
            raise Interrupted(f"{told}; the trials so far are kept\nTo go on: {self.go_on}", code)

    def _end_if_failing(self) -> None:
        failed = self.study.failures_in_a_row()
        if len(failed) >= MAX_FAILURES:
            latest = failed[0]
            raise ProjectError(
                f"{len(failed)} trials have failed one after the other, the last one of: "
                f"{latest.user_attrs['error']}\n"
                f"What they said: {self.folder}/trial_*.log\nTo go on: {self.go_on}"
            )

    def _end_if_edited(self) -> None:
        """Raises InputError where `configs/`, which the next trial will read, makes it another."""
        sweep = self.study.sweep
        try:
            now = sweep.composed_again()
            check_same(sweep.name, identity(sweep, self.folds), identity(now, self.folds))
        except InputError as error:
            raise InputError(
                f"{error}\nA file in configs/ was edited meanwhile. To go on once it is as it was: "
                f"{self.go_on}"
            ) from None

    def _run_trial(self, trial: Trial) -> None:
        self.display.started(self.study.trials())
        values: list[float] = []
        known = self.study.reported(trial)
        try:
            for fold in range(self.folds or 1):
                values.append(self._train(trial, fold if self.folds else None))
                step = len(values)
                if self.folds and step not in known:
                    self.study.report(trial, statistics.fmean(values), step)
                if self.folds and step < self.folds and self.study.is_behind(trial, step):
                    raise _Ended("")
        except _Ended as ended:
            reason = str(ended)
            if reason and self.interruption.number:
                self.study.give_back(trial)
                self.display.ended(trial.number, self.study.trials())
                return
            if reason:
                self.study.fail(trial, reason)
            else:
                self.study.prune(trial)
        except InputError:
            self.study.give_back(trial)
            raise
        else:
            self.study.complete(trial, statistics.fmean(values))
        self.display.ended(trial.number, self.study.trials())

    def _train(self, trial: Trial, fold: int | None) -> float:
        """Trains a trial, or one fold of it; the metric of the best epoch."""
        sweep = self.study.sweep
        overrides = sweep.settings_of(trial.params)
        if fold is not None:
            overrides += [f"data.folds={self.folds}", f"data.fold={fold}"]
        facts = {"search": sweep.name, "parameters": trial.params}
        name = "folder" if fold is None else f"folder_{fold}"
        begun = trial.user_attrs.get(name)
        result = None
        options = extra_options(sweep)
        if begun and runs.is_marked(Path(begun), facts):
            # Another worker, or this one before it was interrupted, has begun or even done it.
            result = runs.results(Path(begun))
            options += ["training.resume_from_checkpoint=auto"]
        if result is None:
            self._end_if_edited()
            part = "" if fold is None else f"_fold_{fold}"
            output = self.folder / f"trial_{trial.number:04d}{part}.log"
            run = runs.TrialRun([*overrides, *options], output)
            result = self._follow(trial, run, name, facts, report=fold is None)
        value = runs.metric_of(result, sweep.metric)
        if math.isnan(value):
            raise _Ended(f"{sweep.metric} is not a number")
        epoch = result.get("best_epoch")
        self.study.note(trial, name.replace("folder", "checkpoint"), result.get("checkpoint"))
        self.study.note(trial, name.replace("folder", "epoch"), epoch)
        self.study.note(trial, name.replace("folder", "value"), value)
        return value

    def _follow(
        self, trial: Trial, run: runs.TrialRun, name: str, facts: dict[str, Any], *, report: bool
    ) -> dict[str, Any]:
        """Follows a run to its end; its results."""
        beaten = time.monotonic()
        known = False
        reported = self.study.reported(trial)
        behind = False
        try:
            while (code := run.wait(STEP_SECONDS)) is None:
                if self.interruption.number:
                    run.end()
                if time.monotonic() - beaten >= self.study.storage.beat_seconds:
                    self.study.beat(trial)
                    beaten = time.monotonic()
                if run.folder is not None and not known:
                    known = True
                    # In this order: a run that bears the mark is found again whatever happens.
                    self.study.note(trial, name, str(run.folder.absolute()))
                    runs.mark(run.folder, facts)
                if report and not behind:
                    behind = self._report(trial, run, reported)
                    if behind:
                        run.end()
        except BaseException:
            run.kill()
            raise
        if report:
            self._report(trial, run, reported)
        if code == 0 and run.folder is not None:
            result = runs.results(run.folder)
            if result is not None:
                return result
        if behind:
            raise _Ended("")
        raise _Ended(INTERRUPTED if self.interruption.number else run.failure(code))

    def _report(self, trial: Trial, run: runs.TrialRun, reported: set[int]) -> bool:
        """Hands the epochs since the last time on; whether the trial may end."""
        sweep = self.study.sweep
        values = [runs.metric_of(row, sweep.metric) for row in run.rows()]
        best = min if sweep.goal == "minimize" else max
        epochs = sweep.values_of(trial.params).get("training.max_epochs")
        last = int(epochs or sweep.config.training.max_epochs)
        behind = False
        for step, value in enumerate(values, start=1):
            if sweep.halving and not sweep.halving.strict:
                value = best((v for v in values[:step] if not math.isnan(v)), default=value)
            if step not in reported:
                self.study.report(trial, value, step)
                reported.add(step)
            behind = behind or (step < last and self.study.is_behind(trial, step))
        if values:
            self.display.epoch(trial.number, values, self.study.trials())
        return behind


def extra_options(sweep: Sweep) -> list[str]:
    """Settings of a trial that do not shape its result, where no others are given.

    A search needs no account, whatever its file says.
    """
    options = []
    if "wandb.enabled" not in settings.given(sweep.given):
        options.append("wandb.enabled=false")
    if "training.save_top_k" not in settings.given((*sweep.overrides, *sweep.given)):
        options.append("training.save_top_k=1")
    return options
