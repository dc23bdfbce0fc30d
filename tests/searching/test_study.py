"""Workers that share a study: how many trials there are, which ones, and what a dead worker leaves.

The workers here are processes that claim trials as a search does, and train nothing.
"""

from __future__ import annotations

import io
import itertools
import math
import random
import threading
import time
from collections.abc import Container
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from mlops_project.errors import InputError
from mlops_project.searching.display import Display
from mlops_project.searching.results import report
from mlops_project.searching.storage import RETRIES, Storage
from mlops_project.searching.study import Done, Lost, Study
from mlops_project.searching.sweep import read
from mlops_project.searching.trials import abandoned, count, failed_combinations, time_left
from tests.searching import claims
from tests.searching.conftest import Server, WriteSweep


def open_study(path: Path, storage: str, *given: str, grace: int = 600) -> Study:
    sweep = read(path, given)
    return Study(sweep, Storage(storage, sweep.name, grace), None)


def run_all(path: Path, storage: str, total: int, notes: Path, kills: int) -> Study:
    """Two workers, of which one after the other is killed and replaced, until all is done."""
    chance = random.Random(5)
    workers = [claims.start(path, storage, total, notes) for _ in range(2)]
    for _ in range(kills):
        victim = chance.randrange(2)
        process, says = workers[victim]
        with suppress(EOFError):  # it has nothing left to do
            for _ in range(chance.randrange(2, 5)):  # some trials later, at a moment of its own
                says.recv()
        process.kill()
        process.join()
        workers[victim] = claims.start(path, storage, total, notes)
    for process, _ in workers:
        process.join(200)
        assert process.exitcode == 0
    return open_study(path, storage)


def test_killed_workers_leave_no_trial_undone_and_none_done_twice(
    postgres: str, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    path, notes = write_sweep("random.yaml"), tmp_path / "notes"
    trials = run_all(path, postgres, 12, notes, kills=2).trials()
    assert count(trials).done == 12
    assert count(trials).running == 0
    complete = [t.params["training.learning_rate"] for t in trials if t.state.name == "COMPLETE"]
    assert len(set(complete)) == 12
    # What a dead worker was at is tried again, with the same parameters.
    for trial in trials:
        if trial.state.name == "FAIL":
            assert trial.params["training.learning_rate"] in complete
    numbers = [line.split()[0] for line in notes.read_text().splitlines()]
    assert len(numbers) == len(set(numbers))


def test_no_combination_of_a_grid_is_tried_twice(write_sweep: WriteSweep, tmp_path: Path) -> None:
    rates, sizes = [0.1, 0.01, 0.001], [8, 16, 32, 64]
    path = write_sweep(
        method="grid",
        parameters={
            "training.learning_rate": {"values": rates},
            "data.batch_size": {"values": sizes},
        },
    )
    study = run_all(path, f"sqlite:///{tmp_path / 'study.db'}", 12, tmp_path / "notes", kills=2)
    tried = [tuple(t.params.values()) for t in study.trials() if t.state.name == "COMPLETE"]
    assert sorted(tried) == sorted(itertools.product(rates, sizes))


def test_a_search_waits_for_a_server_that_is_started_again(
    server: Server, write_sweep: WriteSweep
) -> None:
    study = open_study(write_sweep("restart.yaml"), server.address)
    trial = study.claim(1)
    assert trial is not None
    server.stop()
    starting = threading.Thread(target=server.start)
    starting.start()
    study.report(trial, 0.5, 1)
    study.complete(trial, 0.5)
    starting.join()
    with pytest.raises(Done):
        study.claim(1)
    assert study.trials()[0].intermediate_values == {1: 0.5}


def test_draws_depend_on_the_seed_and_the_number_of_the_trial_alone(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    def draws(
        file: str, *given: str, failing: int = -1, interrupted: Container[int] = ()
    ) -> list[Any]:
        study = open_study(write_sweep(), f"sqlite:///{tmp_path / file}", *given)
        found = []
        for number in range(4):
            if number == 2:  # as in a worker that is started later
                study = open_study(write_sweep(), f"sqlite:///{tmp_path / file}", *given)
            trial = study.claim(99)
            assert trial is not None
            if number in interrupted:
                study.give_back(trial)
                again = study.claim(99)
                assert again is not None
                assert again.params == trial.params
                trial = again
            found.append(trial.params)
            if number == failing:
                study.fail(trial, "tried")
            else:
                study.complete(trial, 0.5)
        return found

    first = draws("a.db")
    assert draws("b.db", failing=0) == first
    assert draws("d.db", interrupted=(0, 2)) == first
    assert draws("c.db", "seed=7") != first
    assert len({repr(p) for p in first}) == 4


def test_more_trials_may_be_asked_for_later(write_sweep: WriteSweep, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    for total in (1, 3, 3):
        study = open_study(write_sweep(), storage)
        while count(study.trials()).done < total:
            trial = study.claim(total)
            assert trial is not None
            study.complete(trial, 0.5)
        with pytest.raises(Done):
            study.claim(total)


def test_a_study_of_another_program_is_left_alone(write_sweep: WriteSweep, tmp_path: Path) -> None:
    path, storage = write_sweep(), f"sqlite:///{tmp_path / 'study.db'}"
    name = open_study(path, storage).sweep.name
    other = f"sqlite:///{tmp_path / 'other.db'}"
    theirs = optuna.create_study(storage=other, study_name=name)
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(InputError, match="no search of this project has made"):
        open_study(path, other)
    assert theirs.user_attrs == {}


def test_a_failed_trial_does_not_count_and_an_interrupted_one_comes_back(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    study = open_study(write_sweep(), f"sqlite:///{tmp_path / 'study.db'}")
    first = study.claim(1)
    assert first is not None
    assert study.claim(1) is None  # all that are wanted are under way
    study.fail(first, "out of memory")
    assert [t.user_attrs["error"] for t in study.failures_in_a_row()] == ["out of memory"]
    second = study.claim(1)
    assert second is not None
    assert second.params != first.params
    study.note(second, "folder", "models/x/version_3")
    study.give_back(second)
    third = study.claim(1)
    assert third is not None
    assert third.params == second.params
    assert third.user_attrs["folder"] == "models/x/version_3"
    assert len(study.failures_in_a_row()) == 1  # an interruption is none
    study.complete(third, 0.5)
    assert study.failures_in_a_row() == []


def test_a_worker_that_comes_back_too_late_has_lost_its_trial(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    asleep, awake = (open_study(write_sweep(), storage, grace=2) for _ in range(2))
    trial = asleep.claim(1)
    assert trial is not None
    taken = None
    while taken is None:
        taken = awake.claim(1)
    assert taken.params == trial.params
    for late in (
        lambda: asleep.report(trial, 1.0, 1),
        lambda: asleep.complete(trial, 0.1),
        lambda: asleep.give_back(trial),
    ):
        with pytest.raises(Lost):
            late()
    awake.complete(taken, 0.5)
    assert [t.state.name for t in awake.trials()] == ["FAIL", "COMPLETE"]


def test_a_trial_that_was_worse_at_the_same_epoch_may_end(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    path = write_sweep(early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2})
    study = open_study(path, f"sqlite:///{tmp_path / 'study.db'}")
    good, bad = study.claim(9), study.claim(9)
    assert good is not None
    assert bad is not None
    verdicts = []
    for epoch in (1, 2):
        study.report(good, 0.5, epoch)
        verdicts.append(study.is_behind(good, epoch))
        study.report(bad, 0.6, epoch)
        verdicts.append(study.is_behind(bad, epoch))
    assert verdicts == [False, False, False, True]
    study.prune(bad)
    study.complete(good, 0.4)
    assert (count(study.trials()).complete, count(study.trials()).pruned) == (1, 1)


def test_an_interrupted_trial_is_never_given_up_and_counts_once(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    path = write_sweep(early_terminate={"type": "hyperband", "min_iter": 1, "eta": 3})
    study = open_study(path, f"sqlite:///{tmp_path / 'study.db'}")

    def begun(value: float) -> tuple[Any, bool]:
        trial = study.claim(99)
        assert trial is not None
        if 1 not in study.reported(trial):
            study.report(trial, value, 1)
        return trial, study.is_behind(trial, 1)

    for _ in range(RETRIES + 3):
        best, behind = begun(0.10)
        assert not behind
        study.give_back(best)
    best, _ = begun(0.10)
    assert study.reported(best) == {1}
    assert "error" not in best.user_attrs
    study.complete(best, 0.10)
    for _ in range(4):
        trial, behind = begun(0.5)
        assert behind
        study.prune(trial)
    trial, behind = begun(0.11)  # the second of six: two go on
    assert not behind
    study.complete(trial, 0.11)
    assert abandoned(study.trials()) == []


def test_what_is_not_a_number_is_behind_and_ranks_nobody(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    path = write_sweep(early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2})
    study = open_study(path, f"sqlite:///{tmp_path / 'study.db'}")
    verdicts = []
    for value in (math.nan, math.nan, math.nan, 0.5, 0.6, 0.4):
        trial = study.claim(99)
        assert trial is not None
        study.report(trial, value, 1)
        verdicts.append(study.is_behind(trial, 1))
    assert verdicts == [True, True, True, False, True, False]
    late = study.claim(99)
    assert late is not None
    study.report(late, 0.1, 1)
    study.optuna_study.tell(late, state=TrialState.FAIL)  # another worker has taken it for dead
    with pytest.raises(Lost):
        study.is_behind(late, 1)


def test_a_trial_is_judged_once_whoever_goes_on_with_it(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    path = write_sweep(early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2})
    study = open_study(path, f"sqlite:///{tmp_path / 'study.db'}")
    first, second = study.claim(99), study.claim(99)
    assert first is not None
    assert second is not None
    study.report(first, 0.5, 1)
    assert not study.is_behind(first, 1)
    study.report(second, 0.6, 1)  # and its worker dies before it judges
    for trial in (first, second):
        study.give_back(trial)
    better = study.claim(99)
    assert better is not None
    again = [better, study.claim(99)]
    assert [study.reported(t) for t in again if t is not None] == [{1}, {1}]
    third = study.claim(99)
    assert third is not None
    study.report(third, 0.1, 1)
    by_params = {repr(t.params): t for t in again if t is not None}
    assert not study.is_behind(by_params[repr(first.params)], 1)  # as it was judged before
    assert study.is_behind(by_params[repr(second.params)], 1)


def test_a_trial_that_all_workers_die_of_is_given_up_and_told(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    path = write_sweep(method="grid", parameters={"training.learning_rate": {"values": [0.1, 0.2]}})
    study = open_study(path, f"sqlite:///{tmp_path / 'study.db'}")
    for _ in range(RETRIES + 1):
        trial = study.claim(2)
        assert trial is not None
        assert trial.params["training.learning_rate"] == 0.1
        # What another worker does with a trial whose heartbeat has stopped.
        study.optuna_study.tell(trial, state=TrialState.FAIL)
    trial = study.claim(2)
    assert trial is not None
    assert trial.params["training.learning_rate"] == 0.2
    study.complete(trial, 0.5)
    with pytest.raises(Done):
        study.claim(2)
    assert [t.params for t in abandoned(study.trials())] == [{"training.learning_rate": 0.1}]
    lines: list[str] = []
    report(study, tmp_path, lines.append)
    assert any(line.startswith(f"given up, for {RETRIES + 1} workers") for line in lines)


def test_a_combination_of_a_grid_that_failed_is_tried_again_by_the_next_worker(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    """After those that no trial has had: a search ends where several fail one after the other."""
    rates = {"values": [0.1, 0.2, 0.3, 0.4]}
    path = write_sweep(method="grid", parameters={"training.learning_rate": rates})
    address = f"sqlite:///{tmp_path / 'study.db'}"
    study = open_study(path, address)
    for _ in range(2):
        trial = study.claim(4)
        assert trial is not None
        study.fail(trial, "the disk is full")
    study = open_study(path, address)
    for _ in range(2):
        trial = study.claim(4)
        assert trial is not None
        study.complete(trial, 0.5)
    for told in (2, 0):
        lines: list[str] = []
        report(study, tmp_path, lines.append)
        assert sum(f"of the grid {told} failed" in line for line in lines) == bool(told)
        for _ in range(told):
            trial = study.claim(4)
            assert trial is not None
            study.complete(trial, 0.5)
    with pytest.raises(Done):
        study.claim(4)
    tried = [t.params["training.learning_rate"] for t in study.trials()]
    assert tried == [0.1, 0.2, 0.3, 0.4, 0.1, 0.2]


def test_a_combination_that_failed_after_its_worker_had_died_is_counted(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    path = write_sweep(method="grid", parameters={"training.learning_rate": {"values": [0.1, 0.2]}})
    study = open_study(path, f"sqlite:///{tmp_path / 'study.db'}")
    first = study.claim(2)
    assert first is not None
    study.optuna_study.tell(first, state=TrialState.FAIL)  # as for a heartbeat that has stopped
    again = study.claim(2)
    assert again is not None
    assert again.params == first.params
    study.fail(again, "out of memory")
    assert failed_combinations(study.trials()) == 1


def test_the_target_ends_a_search(write_sweep: WriteSweep, tmp_path: Path) -> None:
    metric = {"name": "val_auroc", "goal": "maximize", "target": 0.9}
    study = open_study(write_sweep(metric=metric), f"sqlite:///{tmp_path / 'study.db'}")
    for value in (0.8, 0.95):
        trial = study.claim(9)
        assert trial is not None
        study.complete(trial, value)
    with pytest.raises(Done):
        study.claim(9)


@pytest.mark.parametrize(
    ("hours", "told"),
    [
        # Europe's clocks were set to three o'clock when it was two, and to two when it was three.
        ((datetime(2026, 3, 29, 1, 30), datetime(2026, 3, 29, 3, 30)), "about 60 min left"),
        ((datetime(2026, 10, 25, 1, 30), datetime(2026, 10, 25, 3, 0)), "about 2.5 h left"),
        ((datetime(2026, 6, 1, 1, 30), datetime(2026, 6, 1, 3, 0)), "about 1.5 h left"),
    ],
)
def test_a_trial_takes_as_long_whether_or_not_the_clock_is_set_meanwhile(
    hours: tuple[datetime, datetime], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = optuna.trial.create_trial(value=0.5)
    trial.datetime_start, trial.datetime_complete = hours
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        left = time_left([trial], 1)
    time.tzset()
    assert left == told


def test_bayes_looks_where_trials_were_good(write_sweep: WriteSweep, tmp_path: Path) -> None:
    study = open_study(write_sweep(method="bayes"), f"sqlite:///{tmp_path / 'study.db'}")
    rates = []
    for _ in range(40):
        trial = study.claim(99)
        assert trial is not None
        rates.append(trial.params["training.learning_rate"])
        study.complete(trial, abs(rates[-1] - 0.05))
    later = rates[25:]
    assert sum(0.02 < rate < 0.08 for rate in later) > len(later) / 2  # by chance a fifth


@pytest.mark.parametrize(
    ("given", "sections", "told"),
    [
        (["data.image_size=64"], {}, "data.image_size: 224, now it is 64"),
        ([], {"metric": {"name": "val_auroc", "goal": "maximize"}}, "metric: val_loss (minimize)"),
        ([], {"parameters": {"data.batch_size": {"values": [4, 8]}}}, "parameters."),
        (
            [],
            {"parameters": {"training.learning_rate": {"min": 0.001, "max": 0.5}}},
            "0.0001 to 0.1, log, now it is 0.001 to 0.5\n",
        ),
    ],
)
def test_a_search_goes_on_only_with_what_can_be_compared(
    given: list[str],
    sections: dict[str, Any],
    told: str,
    write_sweep: WriteSweep,
    tmp_path: Path,
) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    open_study(write_sweep(), storage)
    open_study(write_sweep(), storage, "data.num_workers=2", "data.data_dir=elsewhere")
    with pytest.raises(InputError, match="was begun with") as refused:
        open_study(write_sweep(**sections), storage, *given)
    assert told in str(refused.value)
    assert "--name" in str(refused.value)


def test_a_text_that_was_a_number_is_another_search(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    open_study(write_sweep(parameters={"data.batch_size": {"values": [4, 8]}}), storage)
    with pytest.raises(InputError, match=r"parameters\.data\.batch_size: 4, 8, now it is 4, 8 \("):
        open_study(write_sweep(parameters={"data.batch_size": {"values": ["4", "8"]}}), storage)


def test_what_is_shown_in_a_terminal_and_in_a_pipe(
    write_sweep: WriteSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")  # a dumb terminal is shown no display
    study = open_study(write_sweep(), f"sqlite:///{tmp_path / 'study.db'}")
    terminal = Console(file=io.StringIO(), force_terminal=True, width=44)
    pipe = Console(file=io.StringIO(), width=100)
    for console in (terminal, pipe):
        with Display(study.sweep, 4, console) as display:
            first = study.claim(4)
            assert first is not None
            display.started(study.trials())
            display.epoch(first.number, [0.75, 0.625, float("nan")], study.trials())
            study.complete(first, 0.625)
            display.ended(first.number, study.trials())
    drawn = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "0 of 4 trials" in drawn
    assert "1 of 4 trials, about" in drawn
    rate = study.trials()[0].params["training.learning_rate"]
    for word in ("running", "best", "0.6250", "learning", f"{rate:.4g}"):
        assert word in drawn
    lines = pipe.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 1
    assert lines[0].startswith("[2/4] trial 1, complete, val_loss 0.6250")
    assert lines[0].endswith("s left")
