"""Folders, log files and the summary of all runs, with many runs at the same time."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlops_project.training.folders import (
    add_to_summary,
    new_run_folder,
    run_folder_of,
    table_text,
)

PROCESSES, EACH = 4, 6


def at_the_same_time(body: str, folder: Path) -> list[str]:
    """What processes print that run `body` at once, each with its `number`, `EACH` times."""
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from mlops_project.training.folders import *\n"
        "number = int(sys.argv[1])\nprint('ready', flush=True)\ninput()\n"
        f"for turn in range({EACH}):\n    {body}\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(number)],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = []
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        printed += out.split()
    return printed


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# A run's folder


def test_runs_that_start_together_get_a_folder_each(tmp_path: Path) -> None:
    older = 400  # so many that all look through them at once
    for number in range(older):
        (tmp_path / f"models/resnet/version_{number}").mkdir(parents=True)
    made = at_the_same_time("print(new_run_folder('resnet'))", tmp_path)

    wanted = {f"models/resnet/version_{older + n}" for n in range(PROCESSES * EACH)}
    assert len(made) == PROCESSES * EACH
    assert set(made) == wanted
    assert all((tmp_path / folder).is_dir() for folder in wanted)


def test_the_next_folder_follows_the_highest_and_each_model_counts_alone(tmp_path: Path) -> None:
    for name in ("version_2", "version_9", "version_old", "notes", "version_"):
        (tmp_path / "resnet" / name).mkdir(parents=True)
    (tmp_path / "resnet" / "version_10").write_text("a file in the way")

    assert new_run_folder("resnet", tmp_path).name == "version_11"
    assert new_run_folder("efficientnet", tmp_path).name == "version_0"


@pytest.mark.parametrize(
    ("checkpoint", "folder"),
    [
        ("models/resnet/version_3/checkpoints/last.ckpt", "models/resnet/version_3"),
        ("models/resnet/version_3/last.ckpt", None),
        ("models/resnet/best/checkpoints/last.ckpt", None),
        ("checkpoints/last.ckpt", None),
        ("last.ckpt", None),
        ("/last.ckpt", None),
    ],
)
def test_the_folder_of_a_run_is_known_from_its_checkpoint(
    checkpoint: str, folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = Path(folder) if folder else None
    assert run_folder_of(checkpoint) == expected
    if not os.path.isabs(checkpoint):
        assert run_folder_of(str(tmp_path / checkpoint)) == expected


def test_a_run_above_the_present_folder_is_called_by_its_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "models/resnet/version_3"
    (run / "checkpoints").mkdir(parents=True)
    for place in (tmp_path / "models", run.parent, run, run / "checkpoints"):
        monkeypatch.chdir(place)
        assert run_folder_of(os.path.relpath(run / "checkpoints/last.ckpt")) == run


@pytest.mark.parametrize("linked", [".", "models", "models/resnet"])
def test_a_run_of_the_present_folder_is_called_by_its_place_there(
    linked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the link leads to the folder, or from it to another disk."""
    run = Path("models/resnet/version_3")
    here, disk = tmp_path / "here", tmp_path / "disk"
    (disk / run.relative_to(linked) / "checkpoints").mkdir(parents=True)
    (here / linked).parent.mkdir(parents=True, exist_ok=True)
    (here / linked).symlink_to(disk)
    monkeypatch.chdir(here)
    for place in (here / run, disk / run.relative_to(linked)):
        assert run_folder_of(str(place / "checkpoints/last.ckpt")) == run


# The log


def test_commands_that_start_in_the_same_second_get_a_log_each(tmp_path: Path) -> None:
    made = at_the_same_time("print(new_log_file())", tmp_path)

    assert len(set(made)) == PROCESSES * EACH
    for name in made:
        assert re.fullmatch(r"logs/train_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?\.log", name)
        assert (tmp_path / name).read_text() == ""


# The summary of all runs


def test_runs_that_end_together_all_have_their_row(tmp_path: Path) -> None:
    at_the_same_time("add_to_summary({'run': f'{number}/{turn}', 'by': number})", tmp_path)

    rows = rows_of(tmp_path / "reports" / "training_metrics.csv")
    expected = {
        f"{number}/{turn}": str(number) for number in range(PROCESSES) for turn in range(EACH)
    }
    assert len(rows) == PROCESSES * EACH
    assert {row["run"]: row["by"] for row in rows} == expected


def test_a_run_that_ends_again_replaces_its_row_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "runs.csv"
    for run, loss in (("a", 0.5), ("b", 0.4), ("a", 0.3)):
        add_to_summary({"run": run, "val_loss": loss}, path)
    assert rows_of(path) == [{"run": "b", "val_loss": "0.4"}, {"run": "a", "val_loss": "0.3"}]


def test_a_new_column_leaves_the_older_rows_empty_and_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    add_to_summary({"run": "a", "val_loss": 0.5}, path)
    add_to_summary({"run": "b", "test_auroc": 0.9}, path)
    assert rows_of(path) == [
        {"run": "a", "val_loss": "0.5", "test_auroc": ""},
        {"run": "b", "val_loss": "", "test_auroc": "0.9"},
    ]


def test_any_text_of_a_row_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    row: dict[str, Any] = {"run": 'models/a, "b"', "note": "Größe 3 µm,\nzweite Zeile", "empty": ""}
    add_to_summary(row, path)
    add_to_summary({"run": "next"}, path)
    assert rows_of(path)[0] == row


@pytest.mark.parametrize("content", ["", "run,val_loss\n", "loss\n0.5\n"])
def test_a_summary_that_someone_emptied_or_edited_is_continued(
    content: str, tmp_path: Path
) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(content)
    add_to_summary({"run": "a", "val_loss": 0.5}, path)
    assert rows_of(path)[-1].items() >= {"run": "a", "val_loss": "0.5"}.items()
    assert len(rows_of(path)) == max(1, len(content.splitlines()))


@pytest.mark.parametrize(
    "saved",
    [
        "run,data\nmodels/baseline_cnn/version_0,Läsionen\n".encode("latin-1"),
        "run,data\nmodels/baseline_cnn/version_0,x\n".encode("utf-8-sig"),
        b"run;data\r\nmodels/baseline_cnn/version_0;x\r\n",
    ],
)
def test_a_summary_may_have_been_saved_by_a_spreadsheet(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(saved)
    add_to_summary({"run": "models/baseline_cnn/version_0", "val_loss": 0.5}, path)
    (row,) = rows_of(path)
    assert row.items() >= {"run": "models/baseline_cnn/version_0", "val_loss": "0.5"}.items()


def test_a_table_has_a_column_for_every_key_in_the_order_of_first_sight() -> None:
    assert table_text([{"b": 1}, {"a": 2, "b": 3}]) == "b,a\n1,\n3,2\n"
