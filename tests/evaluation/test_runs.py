"""Runs side by side: repetitions are one group, and what differs is named."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlops_project.errors import InputError
from mlops_project.evaluation.runs import differing, group, read_runs, table

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folds(
    tmp_path_factory: pytest.TempPathFactory,
    demo_folder: Path,
    command: Callable[..., list[str]],
) -> tuple[Path, str]:
    """A working folder with both folds of a cross-validation, and what the command printed."""
    folder = tmp_path_factory.mktemp("folds")
    words = ["-m", f"data.data_dir={demo_folder}", "data.image_size=32", "training.max_epochs=1"]
    done = subprocess.run(
        command("train.py", *words, "data.folds=2", "data.fold=0,1"),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_several_runs_of_one_command_are_summed_up(folds: tuple[Path, str]) -> None:
    folder, printed = folds
    summary = pd.read_csv(folder / "reports/training_metrics.csv")
    auroc = summary["val_auroc"]
    assert f"{auroc.mean():.3f} ± {auroc.std():.3f}" in printed
    assert "--split out-of-fold" in printed
    assert summary["settings"].nunique() == 1  # by which repetitions are found together
    assert summary["fold"].tolist() == [0, 1]


def test_each_lesion_is_in_one_validation_fold_and_is_evaluated_once(
    folds: tuple[Path, str], run: Run
) -> None:
    folder, printed = folds
    told = next(line for line in printed.splitlines() if "--split out-of-fold" in line)
    words = told.split("evaluate.py ")[1].split()
    done = run("evaluate.py", *words, "--output", "out", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    splits = [pd.read_csv(path) for path in sorted(folder.glob("models/*/*/split.csv"))]
    val = pd.concat(split[split["split"] == "val"] for split in splits)
    test = splits[0].loc[splits[0]["split"] == "test", "image_id"]
    assert not val["image_id"].duplicated().any()
    assert set(val["image_id"]) | set(test) == set(splits[0]["image_id"])
    facts = json.loads((folder / "out/metrics.json").read_text())
    assert facts["calibration"]["folds"] == 2
    told_of = pd.read_csv(folder / "out/predictions.csv")
    assert sorted(told_of["image_id"]) == sorted(val["image_id"])


def test_a_page_and_a_table_show_runs_side_by_side(folds: tuple[Path, str], run: Run) -> None:
    folder, _ = folds
    done = run("compare.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    page = (folder / "reports/comparison/comparison.html").read_text()
    assert "models/baseline_cnn/version_1" in page
    assert "http" not in page.replace("http-equiv", "")
    rows = pd.read_csv(folder / "reports/comparison/runs.csv")
    summary = pd.read_csv(folder / "reports/training_metrics.csv")
    assert rows["runs"].tolist() == [2]
    assert rows["val_loss"].tolist() == pytest.approx([summary["val_loss"].mean()])
    assert rows["val_loss_sd"].tolist() == pytest.approx([summary["val_loss"].std()])


def test_two_cross_validations_with_the_same_folds_are_evaluated_as_one(
    folds: tuple[Path, str], tmp_path: Path, run: Run
) -> None:
    words = folds[1].splitlines()[0].split()[1:-1]  # [1/2] SETTINGS data.fold=0
    shutil.copytree(folds[0], tmp_path, dirs_exist_ok=True)
    for size in (40, 48):
        other_folds = ["data.test_fraction=0.2"] if size == 48 else []
        settings = [*words, f"data.image_size={size}", "data.fold=0,1", *other_folds]
        assert run("train.py", "-m", *settings, cwd=tmp_path).returncode == 0
        done = run("compare.py", cwd=tmp_path)
        assert ("all groups as one" in done.stdout) == (size == 40)  # 48: other lesions in them
        if size == 40:
            told = done.stdout.split("all groups as one: ")[1].splitlines()[0]
    page = (tmp_path / "reports/comparison/comparison.html").read_text()
    assert "All groups" not in page
    words = told.split("evaluate.py ")[1].split()
    done = run("evaluate.py", *words, "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "out/metrics.json").read_text())
    assert facts["calibration"]["folds"] == 2
    assert len(facts["checkpoints"]) == 4


def test_settings_that_differ_make_groups_and_are_named(
    checkpoint: Path, seven: Path, other: Path
) -> None:
    runs = read_runs([path.parents[1] for path in (checkpoint, seven, other)])
    groups = group(runs)
    assert [len(one.runs) for one in groups] == [1, 1, 1]
    assert {"model.num_classes", "data.image_size"} <= set(differing(groups))
    assert "seed" not in differing(groups)
    rows = table(groups)
    assert [row["model.num_classes"] for row in rows] == [2, 7, 2]
    assert all(np.isnan(row["val_loss_sd"]) for row in rows)


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no finished run \(results.json is missing\)"):
        read_runs([tmp_path])
