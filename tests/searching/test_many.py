"""Whole searches by several workers, killed at random and started again; minutes each."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import Run
from tests.searching.conftest import TINY, WriteSweep

pytestmark = pytest.mark.slow


def finished(folder: Path) -> list[float]:
    """The learning rates of all runs that were trained to the end."""
    found = []
    for path in sorted((folder / "models/baseline_cnn").glob("version_*/results.json")):
        marked = json.loads((path.parent / "trial.json").read_text())
        found.append(marked["parameters"]["training.learning_rate"])
    return found


@pytest.mark.parametrize(("total", "kills", "shared"), [(30, 10, False), (6, 2, True)])
def test_two_workers_killed_at_random_train_each_trial_once(
    total: int,
    kills: int,
    shared: bool,
    request: pytest.FixtureRequest,
    command: Callable[..., list[str]],
    demo_folder: Path,
    write_sweep: WriteSweep,
    tmp_path: Path,
) -> None:
    name = f"many_{total}"
    words = command("search.py", str(write_sweep(f"{name}.yaml")), *TINY, "--grace", "15")
    words += [f"data.data_dir={demo_folder}", f"data.cache={demo_folder.parent / 'cache'}"]
    words += ["training.max_epochs=2", "--trials", str(total)]
    if shared:
        words += ["--storage", request.getfixturevalue("postgres")]
    said = (tmp_path / "said").open("w")

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(words, cwd=tmp_path, stdout=said, stderr=said, text=True)

    chance = random.Random(3)
    workers = [start(), start()]
    for _ in range(kills):
        victim = chance.randrange(2)
        try:
            workers[victim].wait(chance.uniform(10, 60))
        except subprocess.TimeoutExpired:
            workers[victim].kill()
            workers[victim].wait()
            workers[victim] = start()
    for process in workers:
        assert process.wait(3000) == 0, (tmp_path / "said").read_text()

    trials = pd.read_csv(tmp_path / f"reports/search/{name}/trials.csv")
    states = Counter(trials["state"])
    print(states, file=sys.stderr)
    assert set(states) == {"complete", "its worker died"}
    complete = trials[trials["state"] == "complete"]
    rates = complete["training.learning_rate"].tolist()
    assert len(rates) == len(set(rates)) == total
    assert sorted(finished(tmp_path)) == sorted(rates)
    for trial in complete.to_dict("records"):
        results = json.loads((Path(trial["folder"]) / "results.json").read_text())
        assert results["val_loss"] == trial["val_loss"]


def test_a_search_in_which_nothing_works_ends(
    run: Run, demo_folder: Path, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    path = write_sweep()
    words = [f"data.data_dir={demo_folder}", f"data.cache={demo_folder.parent / 'cache'}", *TINY]
    (tmp_path / "nothing.ckpt").touch()
    done = run("search.py", str(path), *words, "model.init_from=nothing.ckpt", timeout=900)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: 5 trials have failed one after the other, the last one of: ")
    assert "nothing.ckpt" in lines[0]
    assert lines[2].startswith("To go on: uv run src/mlops_project/search.py")
    trials = pd.read_csv(tmp_path / "reports/search/small/trials.csv")
    assert trials["state"].tolist() == ["failed"] * 5
