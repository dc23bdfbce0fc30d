"""What a list of trials tells: how far a search is, which one is best, how long the rest takes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from mlops_project.searching.storage import AFTER

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

INTERRUPTED = "interrupted"  # the error of a trial whose worker was asked to end
STATES = {"COMPLETE": "complete", "PRUNED": "ended early", "RUNNING": "running"}


@dataclass
class Counts:
    """How far a search is.

    Attributes:
        complete, pruned: trials that count: trained to the end, ended early.
        failed: trials that do not.
        running: trials that some worker has begun.
    """

    complete: int
    pruned: int
    failed: int
    running: int

    @property
    def done(self) -> int:
        """Trials that count."""
        return self.complete + self.pruned


def has_failed(trial: FrozenTrial) -> bool:
    """Whether a trial failed by itself; not with its worker, and not interrupted."""
    error = trial.user_attrs.get("error")
    return trial.state.name == "FAIL" and error not in (None, INTERRUPTED)


def failed_combinations(trials: Sequence[FrozenTrial]) -> int:
    """Number of combinations of a grid that have failed, and in no other trial come through."""
    failed, others = set[str](), set[str]()
    for trial in trials:
        combination = repr(sorted(trial.params.items()))
        if has_failed(trial):
            failed.add(combination)
        elif trial.state.name != "FAIL":
            others.add(combination)
    return len(failed - others)


def count(trials: Sequence[FrozenTrial]) -> Counts:
    """How far a search is."""
    states = [t.state.name for t in trials]
    return Counts(
        complete=states.count("COMPLETE"),
        pruned=states.count("PRUNED"),
        failed=sum(map(has_failed, trials)),
        running=states.count("RUNNING"),
    )


def state(trial: FrozenTrial) -> str:
    """What became of a trial, in words."""
    if trial.state.name == "FAIL":
        if has_failed(trial):
            return "failed"
        return INTERRUPTED if "error" in trial.user_attrs else "its worker died"
    return STATES.get(trial.state.name, trial.state.name.lower())


def duration(trial: FrozenTrial) -> float:
    """Seconds that a trial has taken, so far or in all."""
    if trial.datetime_start is None:
        return 0.0
    # Optuna gives times of the local clock, which is set forward and back once a year.
    ended = trial.datetime_complete or datetime.now()
    return ended.timestamp() - trial.datetime_start.timestamp()


def best_trial(trials: Sequence[FrozenTrial], goal: str) -> FrozenTrial | None:
    """The best trial; None before the first one is complete."""
    complete = [t for t in trials if t.state.name == "COMPLETE" and t.value is not None]
    sign = 1 if goal == "minimize" else -1
    return min(complete, key=lambda t: sign * (t.value or 0), default=None)


def is_behind(
    number: int, trials: Sequence[FrozenTrial], step: int, factor: int, goal: str
) -> bool:
    """Whether a trial is not among the best of those that have come as far: successive halving.

    One of `factor` goes on, without waiting for the others (Li et al., A System for Massively
    Parallel Hyperparameter Tuning, MLSys 2020). Optuna's pruner does the same, but counts a trial
    again each time that it was interrupted or its worker died.

    Args:
        number: of the trial.
        trials: all of them.
        step: which it has just come to.
        factor: one of so many goes on, at least one.
        goal: "minimize" or "maximize".
    """
    sign = 1 if goal == "minimize" else -1
    found = {
        t.number: sign * t.intermediate_values[step]
        for t in trials
        if step in t.intermediate_values and t.state.name != "FAIL"
    }
    value = found[number]
    if math.isnan(value):
        return True
    ranked = sorted(v for v in found.values() if not math.isnan(v))
    return value > ranked[max(1, len(ranked) // factor) - 1]


def abandoned(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that were interrupted or whose worker died, and that nobody goes on with."""
    continued = {t.system_attrs.get(AFTER) for t in trials}
    return [
        t
        for t in trials
        if t.state.name == "FAIL" and not has_failed(t) and t.number not in continued
    ]


def time_left(trials: Sequence[FrozenTrial], left: int) -> str:
    """About how long the rest takes; empty where nothing tells, or nothing is left.

    Args:
        trials: all of them.
        left: how many are still to be done, the running ones included.
    """
    taken = [duration(t) for t in trials if t.state.name in ("COMPLETE", "PRUNED")]
    if not taken or left <= 0:
        return ""
    mean = statistics.fmean(taken)
    running = [duration(t) for t in trials if t.state.name == "RUNNING"]
    # What runs has some of its time behind it.
    work = left * mean - sum(min(seconds, mean) for seconds in running)
    seconds = work / max(1, len(running))
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min left"
    return f"about {seconds / 3600:.1f} h left"
