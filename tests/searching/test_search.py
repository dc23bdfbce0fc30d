"""The search as a user runs it: trials are trained, killed and interrupted for real."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from mlops_project import hydra_overrides, settings
from mlops_project.search import app
from tests.conftest import Call, Run
from tests.searching.conftest import TINY, WriteSweep

ENDLESS = ("training.max_epochs=100000", "training.early_stopping_patience=0")
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def tiny(demo_folder: Path) -> tuple[str, ...]:
    """Settings of a training that takes as little time as one can."""
    return (f"data.data_dir={demo_folder}", f"data.cache={demo_folder.parent / 'cache'}", *TINY)


@pytest.fixture
def start(tmp_path: Path, command: Callable[..., list[str]]) -> Start:
    """Starts a search in a folder of the test."""

    def begin(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command("search.py", *arguments),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return begin


def until(search: subprocess.Popen[str], condition: Callable[[], bool]) -> psutil.Process:
    """Waits for something to happen while a search runs; the training that it is at."""
    while not condition():
        try:
            said, _ = search.communicate(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(said)
    return psutil.Process(search.pid).children()[0]


def epochs_of(run_folder: Path) -> int:
    metrics = run_folder / "metrics.csv"
    return len(pd.read_csv(metrics)) if metrics.exists() else 0


def table(folder: Path, name: str = "small") -> pd.DataFrame:
    return pd.read_csv(folder / f"reports/search/{name}/trials.csv")


def test_a_search_survives_kills_and_goes_on_where_it_was(
    tiny: tuple[str, ...], start: Start, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    path = write_sweep()
    words = (str(path), "--trials", "2", "--grace", "3", *tiny)

    runs = [tmp_path / f"models/baseline_cnn/version_{number}" for number in range(3)]

    # A trial's process is killed: the search goes on. The search is told to end: the trial saves.
    search = start(*words, *ENDLESS)
    until(search, lambda: epochs_of(runs[0]) > 0).kill()
    process = until(search, lambda: epochs_of(runs[1]) > 0)
    search.send_signal(signal.SIGTERM)
    said, _ = search.communicate(timeout=200)
    assert search.returncode == 143, said
    assert not process.is_running()
    assert "trial 0, failed" in said
    assert "killed by SIGKILL (was the memory used up?)" in said
    again = re.search(r"To go on: (uv run src/mlops_project/search.py .*)", said)
    assert again
    assert sorted(shlex.split(again[1])[3:]) == sorted([*words, *ENDLESS])
    assert table(tmp_path)["state"].tolist()[:2] == ["failed", "interrupted"]
    epochs = epochs_of(runs[1])

    # The search itself is killed: what it trains ends by itself, after having gone on.
    search = start(*words, *ENDLESS)
    process = until(search, lambda: epochs_of(runs[1]) > epochs)
    search.kill()
    search.communicate()
    process.wait(100)
    assert not runs[2].exists()
    assert "going on from" in (tmp_path / "reports/search/small/trial_0002.log").read_text()


def test_what_a_search_leaves(
    tiny: tuple[str, ...],
    start: Start,
    run: Run,
    call: Call,
    write_sweep: WriteSweep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As where srun starts several workers: their trials are not parts of one training.
    for name, value in {"SLURM_NTASKS": "4", "SLURM_NNODES": "1", "SLURM_PROCID": "1"}.items():
        monkeypatch.setenv(name, value)
    path = write_sweep(metric={"name": "val_auroc", "goal": "maximize"})
    words = (str(path), *tiny, "training.max_epochs=2", "--trials", "2", "--grace", "2")

    # It dies between the end of a training and the word of it: nothing is trained twice.
    search = start(*words)
    mark = tmp_path / "models/baseline_cnn/version_0/trial.json"
    until(search, mark.exists)
    search.send_signal(signal.SIGSTOP)
    until(search, (mark.parent / "results.json").exists)
    search.kill()
    search.communicate()

    done = run("search.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    folder = tmp_path / "reports/search/small"
    for name in ("history.png", "parallel_coordinates.png", "importances.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    trials = table(tmp_path)
    assert sorted(trials["state"]) == ["complete", "complete", "its worker died"]
    trials = trials[trials["state"] == "complete"]
    assert sorted(Path(f).name for f in trials["folder"]) == ["version_0", "version_1"]
    assert len(list((tmp_path / "models/baseline_cnn").iterdir())) == 2
    assert not (tmp_path / "wandb").exists()  # the file asks for it, and a search needs none
    for trial in trials.to_dict("records"):
        results = json.loads((Path(trial["folder"]) / "results.json").read_text())
        assert results["val_auroc"] == trial["val_auroc"]
        assert results["monitor"] == "val_auroc"

    # The last line trains the best one.
    best = max(trials.to_dict("records"), key=lambda trial: trial["val_auroc"])
    assert (
        f"best             trial {best['trial']}, val_auroc {best['val_auroc']:.4f}" in done.stdout
    )
    command = shlex.split(done.stdout.splitlines()[-1])
    assert command[:3] == ["uv", "run", "src/mlops_project/train.py"]
    config = settings.load(command[3:])
    assert config.training.learning_rate == best["training.learning_rate"]
    trained = yaml.safe_load((Path(best["folder"]) / "config.yaml").read_text())
    assert trained["training"]["learning_rate"] == config.training.learning_rate

    # Nothing is left to do.
    handler = signal.getsignal(signal.SIGINT)
    again = call(app, "run", *words)
    assert signal.getsignal(signal.SIGINT) is handler
    assert again.splitlines()[-1] == done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_search_ends_where_its_next_trial_would_have_other_settings(
    tiny: tuple[str, ...],
    start: Start,
    run: Run,
    write_sweep: WriteSweep,
    own_configs: Path,
    tmp_path: Path,
) -> None:
    words = (str(write_sweep()), *tiny, "training.max_epochs=1", "--trials")
    file = own_configs / "training/default.yaml"
    before = file.read_text()
    search = start(*words, "2")
    # By then the first trial has read its settings.
    until(search, (tmp_path / "models/baseline_cnn/version_0").exists)
    file.write_text(before + "label_smoothing: 0.1\n")
    said, _ = search.communicate(timeout=200)
    assert search.returncode == 2, said
    assert "begun with training.label_smoothing: 0.0, now it is 0.1\n--name NAME" in said
    assert re.search(r"configs/ was edited .* as it was: uv run src/mlops_project/search.py", said)
    assert "Traceback" not in said
    assert table(tmp_path)["state"].tolist() == ["complete", "interrupted"]
    file.write_text(before)
    done = run("search.py", *words, "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(table(tmp_path)["state"]) == ["complete", "complete", "interrupted"]


@pytest.mark.slow  # it races a training
def test_a_hopeless_trial_ends_early(
    tiny: tuple[str, ...], run: Run, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    rates = [0.01, 1e-7]
    path = write_sweep(
        method="grid",
        parameters={"training.learning_rate": {"values": rates}},
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2},
    )
    done = run("search.py", str(path), *tiny, "training.max_epochs=30")
    assert done.returncode == 0, done.stdout + done.stderr
    trials = table(tmp_path)
    assert trials["training.learning_rate"].tolist() == rates
    assert trials["state"].tolist() == ["complete", "ended early"]
    pruned = Path(trials["folder"][1])
    assert 2 <= len(pd.read_csv(pruned / "metrics.csv")) < 30
    assert not (pruned / "results.json").exists()
    assert done.stdout.splitlines()[-1].endswith("training.learning_rate=0.01")


@pytest.mark.slow
def test_a_trial_of_several_folds_is_worth_their_mean(
    tiny: tuple[str, ...], run: Run, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    path = write_sweep()
    words = ("--trials", "1", "--folds", "2", "training.max_epochs=1")
    done = run("search.py", str(path), *tiny, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    values, checkpoints = [], []
    for fold in range(2):
        folder = tmp_path / f"models/baseline_cnn/version_{fold}"
        results = json.loads((folder / "results.json").read_text())
        values.append(results["val_loss"])
        checkpoints.append(results["checkpoint"])
        assert f"fold: {fold}\n" in (folder / "config.yaml").read_text()
    assert values[0] != values[1]
    row = table(tmp_path).iloc[0]
    assert row["val_loss"] == pytest.approx(sum(values) / 2)
    assert row["checkpoint"] == ", ".join(checkpoints)
    spread = abs(values[0] - values[1]) / 2**0.5
    assert f"{sum(values) / 2:.4f} ± {spread:.4f} (mean and SD of 2 folds)" in done.stdout
    lines = done.stdout.splitlines()
    told = shlex.split(lines[lines.index("All its folds evaluated as one:") + 1])
    assert told[:3] == ["uv", "run", "src/mlops_project/evaluate.py"]
    evaluated = run("evaluate.py", *told[3:])
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    # The last line trains both folds again.
    told = shlex.split(lines[-1])
    assert told[:4] == ["uv", "run", "src/mlops_project/train.py", "-m"]
    jobs = [settings.load(job) for job in hydra_overrides.expand(told[4:])]
    assert [(c.data.folds, c.data.fold) for c in jobs] == [(2, 0), (2, 1)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        (["small.yaml", "training.max_epoch=3"], "did you mean training.max_epochs"),
        (["small.yaml", "--storage", "redis://here"], "must be sqlite:///FILE or postgresql://"),
        (["small.yaml", "--trials", "0"], "--trials"),
        (["small.yaml"], "data/ham10000: no such folder"),
        (["small.yaml", "training.resume_from_checkpoint=auto"], "each trial is a run of its own"),
    ],
)
def test_a_mistake_is_told_in_a_line_and_nothing_is_written(
    arguments: list[str], told: str, run: Run, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    write_sweep()
    done = run("search.py", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) <= 3 or "Usage" in done.stderr
    assert os.listdir(tmp_path) == ["small.yaml"]
