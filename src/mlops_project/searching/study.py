"""The trials of a search: who runs which, what came of it, and how many are left.

Any number of workers share a study. Each one asks for a trial under a lock, so that no more are
begun than are wanted, and no combination of a grid twice. A trial whose worker is gone is marked as
failed, and its parameters are queued to be tried again.
"""

from __future__ import annotations

import itertools
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mlops_project.errors import InputError
from mlops_project.printable import printable
from mlops_project.searching.identity import check_same, identity
from mlops_project.searching.sections import powers
from mlops_project.searching.storage import AFTER, Storage, queue_again
from mlops_project.searching.sweep import Sweep
from mlops_project.searching.trials import (
    INTERRUPTED,
    abandoned,
    count,
    has_failed,
    is_behind,
)

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial


class Lost(Exception):
    """Another worker has taken this one for dead, and its trial over."""


class Done(Exception):
    """There is no trial left to run."""


class Study:
    """The trials of one search.

    Args:
        sweep: what is searched.
        storage: where it is kept.
        folds: trainings of a trial.

    Raises:
        InputError: the study was begun with other settings.
        ProjectError: the database does not answer.
    """

    def __init__(self, sweep: Sweep, storage: Storage, folds: int | None) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed.*")
        self.sweep, self.storage, self.folds = sweep, storage, folds
        self._optuna = optuna
        self._distributions = {p.name: p.distribution() for p in sweep.parameters}
        self._study = storage.open(self._create)
        self._failed_before = {t.number for t in self.trials() if t.state.name == "FAIL"}

    def _create(self, database: optuna.storages.RDBStorage) -> optuna.Study:
        study = self._optuna.create_study(
            storage=database,
            study_name=self.sweep.name,
            direction=self.sweep.goal,
            load_if_exists=True,
        )
        facts = identity(self.sweep, self.folds)
        before = study.user_attrs.get("search")
        if before is None and study.get_trials(deepcopy=False):
            raise InputError(
                f"the study {printable(self.sweep.name)} holds trials that no search of this "
                "project has made\nChoose another --name."
            )
        if before is None:
            study.set_user_attr("search", facts)
        else:
            check_same(self.sweep.name, before, facts)
        return study

    def _sampler(self, trials: Sequence[FrozenTrial]) -> optuna.samplers.BaseSampler:
        """Draws the next trial: the same for the same seed, whichever worker asks, and when."""
        import numpy as np

        # Those that go on with another one were not drawn, nor were those that none can go on with.
        number = sum(AFTER not in t.system_attrs and self._is_whole(t) for t in trials)
        sequence = np.random.SeedSequence(self.sweep.config.seed, spawn_key=(number,))
        seed = int(sequence.generate_state(1)[0])
        if self.sweep.method == "bayes":
            return self._optuna.samplers.TPESampler(
                seed=seed, multivariate=True, constant_liar=True
            )
        return self._optuna.samplers.RandomSampler(seed)

    def claim(self, total: int) -> Trial | None:
        """A trial for this worker to run; None while others run the last ones.

        It is this worker's until it is told to be complete, pruned, failed or given back.

        Args:
            total: how many trials are to count in the end.

        Raises:
            Done: there is none left.
        """

        def work() -> Trial | None:
            with self.storage.alone():
                return self._claim(total)

        return self.storage.patiently(work)

    def _claim(self, total: int) -> Trial | None:
        self._recover()
        trials = self.trials()
        counts = count(trials)
        if counts.done >= total or self._target_reached(trials):
            raise Done
        if counts.done + counts.running >= total:
            return None
        waiting = any(t.state.name == "WAITING" for t in trials)
        if self.sweep.method == "grid" and not waiting:
            combination = self._next_combination(trials)
            if combination is None:
                if counts.running:
                    return None
                raise Done
            self._study.enqueue_trial(combination)
        self._study.sampler = self._sampler(trials)
        trial = self._study.ask(self._distributions)
        self.beat(trial)
        trial.set_user_attr("worker", f"{platform.node()}:{os.getpid()}")
        trial.set_user_attr("claimed", trial.number)
        return trial

    def _recover(self) -> None:
        """Marks the trials of dead workers as failed, and queues what nobody goes on with."""
        self._optuna.storages.fail_stale_trials(self._study)
        for trial in self.trials():
            # Only one worker claims at a time: another one has died in the middle of it.
            if trial.state.name == "RUNNING" and trial.user_attrs.get("claimed") != trial.number:
                self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        for trial in abandoned(self.trials()):
            if self._is_whole(trial):
                queue_again(self._study, trial)

    def _is_whole(self, trial: FrozenTrial) -> bool:
        """Whether all parameters were drawn before its worker died."""
        return set(trial.params) == set(self._distributions)

    def _next_combination(self, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
        """The first combination of the grid that no trial has had.

        Last come those that failed before this worker started: what was in their way may be gone.
        """
        names = [p.name for p in self.sweep.parameters]
        before = {t.number for t in trials if has_failed(t)} & self._failed_before
        for again in (set[int](), before):
            tried = {
                _key(t.params.get(name) for name in names) for t in trials if t.number not in again
            }
            for values in itertools.product(*(p.values() for p in self.sweep.parameters)):
                if _key(values) not in tried:
                    return dict(zip(names, values, strict=True))
        return None

    def _target_reached(self, trials: Sequence[FrozenTrial]) -> bool:
        if self.sweep.target is None:
            return False
        sign = 1 if self.sweep.goal == "minimize" else -1
        values = [t.value for t in trials if t.state.name == "COMPLETE" and t.value is not None]
        return any(sign * value <= sign * self.sweep.target for value in values)

    def beat(self, trial: Trial) -> None:
        """Tells the other workers that this one is alive; `Lost` where it is too late for that."""
        database: Any = self._study._storage

        def work() -> bool:
            database.record_heartbeat(trial._trial_id)
            return database.get_trial(trial._trial_id).state.is_finished()

        if self.storage.patiently(work):
            raise Lost

    def note(self, trial: Trial, name: str, value: Any) -> None:
        """Keeps something about a trial."""
        self._as_own(lambda: trial.set_user_attr(name, value))

    def report(self, trial: Trial, value: float, step: int) -> None:
        """Keeps the metric of an epoch, or of a fold; steps are counted from 1."""
        self._as_own(lambda: trial.report(value, step))

    def reported(self, trial: Trial) -> set[int]:
        """The steps whose metric is kept, by this worker or the one that it goes on after."""
        database: Any = self._study._storage
        return set(self._as_own(lambda: database.get_trial(trial._trial_id)).intermediate_values)

    def is_behind(self, trial: Trial, step: int) -> bool:
        """Whether the trial is worse than others were at the same step, and may end.

        It is asked once of each step, whichever worker goes on with the trial.
        """
        halving = self.sweep.halving
        if halving is None or step <= trial.user_attrs.get("judged", 0):
            return False
        steps = powers(1, halving.factor) if self.folds else halving.epochs
        if step not in steps:
            return False
        trials = self.trials()
        if not any(t.number == trial.number and t.state.name == "RUNNING" for t in trials):
            raise Lost
        behind = is_behind(trial.number, trials, step, halving.factor, self.sweep.goal)
        if not behind:
            self.note(trial, "judged", step)
        return behind

    def complete(self, trial: Trial, value: float) -> None:
        """The trial was trained to the end."""
        self._as_own(lambda: self._study.tell(trial, value))

    def prune(self, trial: Trial) -> None:
        """The trial was ended early."""
        state = self._optuna.trial.TrialState.PRUNED
        self._as_own(lambda: self._study.tell(trial, state=state))

    def fail(self, trial: Trial, reason: str) -> None:
        """The trial has failed, and does not count."""
        self.note(trial, "error", reason)
        state = self._optuna.trial.TrialState.FAIL
        self._as_own(lambda: self._study.tell(trial, state=state))

    def give_back(self, trial: Trial) -> None:
        """The trial was interrupted: whoever goes on with the search goes on with it."""
        self.fail(trial, INTERRUPTED)  # and the next claim finds it

    def _as_own(self, work: Callable[[], Any]) -> Any:
        """Does something to a trial of this worker; `Lost` where it no longer is."""
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            return self.storage.patiently(work)
        except (UpdateFinishedTrialError, ValueError) as error:
            # Optuna has no class of its own for a trial that is finished already.
            if isinstance(error, ValueError) and "Cannot tell a" not in str(error):
                raise
            raise Lost from error

    def trials(self) -> list[FrozenTrial]:
        """All trials, in the order of their numbers."""
        return self.storage.patiently(lambda: self._study.get_trials(deepcopy=False))

    @property
    def optuna_study(self) -> optuna.Study:
        """Optuna's study, for its own pictures."""
        return self._study

    def failures_in_a_row(self) -> list[FrozenTrial]:
        """The trials that have failed since this worker started and since one last succeeded.

        Interrupted ones, and those of dead workers, are none of them.
        """
        ended = [t for t in self.trials() if t.state.is_finished() and t.datetime_complete]
        ended.sort(key=lambda t: (t.datetime_complete, t.number))
        ended = [t for t in ended if t.state.name != "FAIL" or has_failed(t)]
        last = itertools.takewhile(lambda t: t.state.name == "FAIL", reversed(ended))
        return [t for t in last if t.number not in self._failed_before]


def _key(values: Any) -> tuple[str, ...]:
    """Values to compare, where 1, 1.0 and true are not the same."""
    return tuple(repr(v) for v in values)
