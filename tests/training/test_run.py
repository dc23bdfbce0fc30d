"""A whole run: what it writes, that it repeats, and how it ends when something goes wrong."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import shutil
import signal
import subprocess
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from mlops_project import settings
from mlops_project.console import start_logging
from mlops_project.errors import InputError, file_failure
from mlops_project.training.run import Result, train
from tests.training.conftest import ENDLESS

SMALL = ("data.image_size=32", "data.batch_size=16", "training.max_epochs=2")


def train_in(folder: Path, data: Path, *overrides: str) -> Result:
    """Trains baseline_cnn on small images with `folder` as the working folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = train(settings.load([f"data.data_dir={data}", *SMALL, *overrides]))
    return result


@pytest.fixture(scope="module")
def finished(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The working folder of a finished run, and its result."""
    folder = tmp_path_factory.mktemp("run")
    return folder, train_in(folder, demo_folder)


def test_a_run_leaves_all_that_the_guide_lists(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    version = folder / "models/baseline_cnn/version_0"
    names = {p.name for p in version.iterdir()}
    assert {"config.yaml", "hparams.yaml", "split.csv", "metrics.csv", "curves.png"} <= names
    assert any(name.startswith("events.out.tfevents.") for name in names)
    kept = sorted(p.name for p in (version / "checkpoints").iterdir())
    assert kept[-1] == "last.ckpt"
    assert all(re.fullmatch(r"epoch=00[01]-val_loss=\d+\.\d{3}\.ckpt", n) for n in kept[:-1])
    assert folder / result.checkpoint in (version / "checkpoints").iterdir()
    assert len(list((folder / "logs").glob("train_????-??-??_??-??-??.log"))) == 1
    assert (folder / "logs/lightning_logs/baseline_cnn_version_0/metrics.csv").is_file()
    with Image.open(version / "curves.png") as picture:
        assert picture.width > 600


def test_the_tables_agree_with_each_other(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    epochs = pd.read_csv(folder / "models/baseline_cnn/version_0/metrics.csv")
    assert epochs["epoch"].tolist() == [0, 1]
    best = epochs.iloc[epochs["val_loss"].argmin()]
    summary = pd.read_csv(folder / "reports/training_metrics.csv")
    assert len(summary) == 1
    row = summary.iloc[0]
    assert row["run"] == "models/baseline_cnn/version_0"
    assert row["synthetic"]
    for split in ("train", "val", "test"):
        for metric in ("loss", "accuracy", "balanced_accuracy", "f1_score", "auroc"):
            name = f"{split}_{metric}"
            wanted = result.test[name] if split == "test" else best[name]
            assert row[name] == pytest.approx(wanted, nan_ok=True), name
    assert f"val_loss={best['val_loss']:.3f}" in row["checkpoint"]


def test_the_settings_are_written_as_they_were_used(finished: tuple[Path, Result]) -> None:
    folder, _ = finished
    written = yaml.safe_load((folder / "models/baseline_cnn/version_0/config.yaml").read_text())
    config = settings.from_container(written)
    assert settings.to_container(config) == written
    assert (config.data.image_size, config.training.learning_rate) == (32, 0.001)


def test_no_lesion_is_in_two_splits(finished: tuple[Path, Result]) -> None:
    split = pd.read_csv(finished[0] / "models/baseline_cnn/version_0/split.csv")
    assert (split.groupby("lesion_id")["split"].nunique() == 1).all()
    assert set(split["split"]) == {"train", "val", "test"}


def test_a_checkpoint_holds_tensors_and_plain_containers_only(
    finished: tuple[Path, Result],
) -> None:
    folder, result = finished
    checkpoint = torch.load(folder / result.checkpoint, weights_only=True)
    facts = checkpoint["mlops_project"]
    assert facts["class_names"] == ["benign", "malignant"]
    assert facts["preprocessing"]["image_size"] == 32
    assert facts["synthetic"] is True
    split = pd.read_csv(folder / "models/baseline_cnn/version_0/split.csv")
    assert facts["split"]["split"] == split["split"].tolist()


def test_the_log_holds_the_results(finished: tuple[Path, Result]) -> None:
    log = next((finished[0] / "logs").glob("*.log")).read_text()
    assert "SYNTHETIC" in log
    assert "epoch 2/2" in log
    assert "balanced accuracy" in log
    assert str(finished[1].checkpoint) in log


def test_the_same_seed_repeats_a_run_with_any_number_of_workers(
    finished: tuple[Path, Result], demo_folder: Path, tmp_path: Path
) -> None:
    first = (finished[0] / "models/baseline_cnn/version_0/metrics.csv").read_text()
    train_in(tmp_path, demo_folder, "data.num_workers=2")
    assert (tmp_path / "models/baseline_cnn/version_0/metrics.csv").read_text() == first
    train_in(tmp_path, demo_folder, "seed=1")
    assert (tmp_path / "models/baseline_cnn/version_1/metrics.csv").read_text() != first


def test_a_resumed_run_equals_one_that_was_not_interrupted(
    finished: tuple[Path, Result], demo_folder: Path, tmp_path: Path
) -> None:
    train_in(tmp_path, demo_folder, "training.max_epochs=1", "training.lr_scheduler=none")
    last = "models/baseline_cnn/version_0/checkpoints/last.ckpt"
    resumed = train_in(
        tmp_path,
        demo_folder,
        f"training.resume_from_checkpoint={last}",
        "training.lr_scheduler=none",
    )
    whole = train_in(tmp_path, demo_folder, "training.lr_scheduler=none")
    assert resumed.folder == Path("models/baseline_cnn/version_0")
    assert whole.folder == Path("models/baseline_cnn/version_1")
    tables = [(tmp_path / f / "metrics.csv").read_text() for f in (resumed.folder, whole.folder)]
    assert tables[0] == tables[1]
    weights = [
        torch.load(tmp_path / f / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for f in (resumed.folder, whole.folder)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_only_the_last_checkpoint_is_kept_where_none_of_the_best_is_wanted(
    demo_folder: Path, tmp_path: Path
) -> None:
    worse = ("training.learning_rate=1", "training.lr_scheduler=none", "training.max_epochs=3")
    result = train_in(tmp_path, demo_folder, "training.save_top_k=0", "model.num_classes=7", *worse)
    assert result.folder is not None
    kept = [p.name for p in (tmp_path / result.folder / "checkpoints").iterdir()]
    assert kept == ["last.ckpt"]
    # What is told of the training and the validation is of the weights that are tested.
    told = json.loads((tmp_path / result.folder / "results.json").read_text())
    history = pd.read_csv(tmp_path / result.folder / "metrics.csv")
    assert told["best_epoch"] == 2
    assert told["val_loss"] == pytest.approx(history["val_loss"].iloc[-1])
    assert "last epoch 3" in next((tmp_path / "logs").glob("train_*.log")).read_text()


def test_a_number_that_is_given_again_tells_of_the_new_run_alone(
    demo_folder: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        result = train_in(tmp_path, demo_folder, "training.max_epochs=1")
        assert result.folder == Path("models/baseline_cnn/version_0")
        shutil.rmtree(tmp_path / result.folder)
    steps = pd.read_csv(tmp_path / "logs/lightning_logs/baseline_cnn_version_0/metrics.csv")
    assert steps["val_loss"].notna().sum() == 1


def test_training_stops_early_when_nothing_improves(demo_folder: Path, tmp_path: Path) -> None:
    train_in(
        tmp_path,
        demo_folder,
        "training.learning_rate=1e-30",
        "training.monitor_metric=val_accuracy",
        "training.early_stopping_patience=1",
        "training.max_epochs=9",
    )
    epochs = pd.read_csv(tmp_path / "models/baseline_cnn/version_0/metrics.csv")
    assert len(epochs) < 9


def test_where_the_monitored_metric_cannot_be_told_the_latest_epoch_counts_as_the_best(
    demo_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    shutil.copytree(demo_folder, few)
    table = next(few.glob("HAM10000_metadata*"))
    rows = pd.read_csv(table)
    lesion = rows["lesion_id"].iloc[0]
    rows["dx"] = np.where(rows["lesion_id"] == lesion, "mel", "nv")
    rows.to_csv(table, index=False)
    result = train_in(
        tmp_path,
        few,
        "training.monitor_metric=val_auroc",
        "training.early_stopping_patience=2",
        "training.max_epochs=9",
    )
    assert result.checkpoint.name == "epoch=001-val_auroc=nan.ckpt"
    told = capfd.readouterr()
    assert told.err.count("val_auroc cannot be told in epoch 1 ") == 1
    assert "stopped early" in told.out


def test_an_unknown_metric_lists_the_known_ones_and_writes_nothing(
    demo_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="val_f1_score"):
        train_in(tmp_path, demo_folder, "training.monitor_metric=val_f2")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_image_is_left_out_with_a_count(
    demo_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    shutil.copytree(demo_folder, images)
    first, second, third = sorted((images / "HAM10000_images_part_1").iterdir())[:3]
    first.write_bytes(first.read_bytes()[:2000])
    second.write_text("not an image")
    third.unlink()
    result = train_in(tmp_path, images, "training.max_epochs=1")
    output = capfd.readouterr().err
    assert "2 images cannot be read" in output
    assert first.stem in output
    assert "1 images of the table do not exist" in output
    assert result.folder is not None
    split = pd.read_csv(tmp_path / result.folder / "split.csv")
    bad = split[split["image_id"].isin([first.stem, second.stem])]
    assert bad["split"].tolist() == ["unused", "unused"]
    assert third.stem not in set(split["image_id"])


def test_runs_that_start_together_get_a_version_each_and_share_the_cache(
    demo_folder: Path, tmp_path: Path, command: Callable[..., list[str]]
) -> None:
    words = command("train.py", f"data.data_dir={demo_folder}", *SMALL)
    started = [
        subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    tables = [
        (tmp_path / f"models/baseline_cnn/version_{n}/metrics.csv").read_text() for n in (0, 1)
    ]
    assert tables[0] == tables[1]
    assert len([p for p in (tmp_path / "data/cache").iterdir() if p.is_dir()]) == 1
    assert len(pd.read_csv(tmp_path / "reports/training_metrics.csv")) == 2
    assert len(list((tmp_path / "logs").glob("*.log"))) == 2


def test_a_table_of_all_runs_that_cannot_be_written_costs_no_results(
    demo_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reports/training_metrics.csv").mkdir(parents=True)
    result = train_in(tmp_path, demo_folder, "training.max_epochs=1")
    assert result.folder is not None
    assert (tmp_path / result.folder / "results.json").is_file()
    assert "this run's row could not be added" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 143, marks=pytest.mark.slow),
    ],
)
def test_a_signal_costs_at_most_the_step_in_flight(
    number: signal.Signals, code: int, disturb: Any, tmp_path: Path
) -> None:
    ended, output = disturb(
        "epoch 3/",
        lambda process: process.send_signal(number),
        *("data.batch_size=16", "training.log_every_n_steps=1"),
    )
    assert ended == code, output
    assert "Traceback" not in output
    last = Path("models/baseline_cnn/version_0/checkpoints/last.ckpt")
    saved = torch.load(last, weights_only=True)
    lines = output.splitlines()
    assert f"epoch {saved['epoch'] + 1}, step {saved['global_step']} is saved" in lines[-2]
    assert lines[-1].endswith(f"training.resume_from_checkpoint={last}")
    # The step it was in when the signal came is the last one that anything tells of.
    logged = pd.read_csv("logs/lightning_logs/baseline_cnn_version_0/metrics.csv")
    assert logged["step"].max() == saved["global_step"]


def test_the_command_to_go_on_is_one_line_in_a_narrow_terminal(
    here: tuple[str, str], command: Callable[..., list[str]]
) -> None:
    terminal, end = os.openpty()
    termios.tcsetwinsize(end, (24, 80))
    process = subprocess.Popen(
        command("train.py", *here, *SMALL, *ENDLESS),
        stdin=end,
        stdout=end,
        stderr=end,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "", "LINES": ""},
    )
    os.close(end)
    said, asked = b"", False
    try:
        with suppress(OSError):  # as Linux tells the end of a terminal's output
            while select.select([terminal], [], [], 60)[0] and (part := os.read(terminal, 2**16)):
                said += part
                if b"epoch 2/" in said and not asked:
                    process.send_signal(signal.SIGINT)
                    asked = True
        assert process.wait(timeout=60) == 130, said
    finally:
        process.kill()
        os.close(terminal)
    last = Path("models/baseline_cnn/version_0/checkpoints/last.ckpt")
    resume = f"src/mlops_project/train.py training.resume_from_checkpoint={last}"
    assert re.search(rf"^To go on .*: uv run {re.escape(resume)}\r\n", said.decode(), re.M)


def test_a_signal_while_results_are_written_says_how_to_go_on(disturb: Any) -> None:
    # Reading it waits for a writer, so that both know where the other one is.
    table = Path("reports/training_metrics.csv")
    table.parent.mkdir()
    os.mkfifo(table)

    def interrupt(process: subprocess.Popen[str]) -> None:
        with table.open("w"):
            process.send_signal(signal.SIGINT)

    ended, output = disturb("epoch 1/", interrupt, "training.max_epochs=1")
    assert ended == 130, output
    assert output.splitlines()[-1].endswith("version_0/checkpoints/last.ckpt")


def test_several_runs_given_again_after_an_interruption_repeat_none_that_is_finished(
    demo_folder: Path, tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    words = (f"data.data_dir={demo_folder}", *SMALL, "training.resume_from_checkpoint=auto")
    train_in(tmp_path, demo_folder, "training.resume_from_checkpoint=auto", "seed=1")
    again = run("train.py", "-m", *words, "seed=1,2")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "[1/2] done already: models/baseline_cnn/version_0/" in again.stdout
    assert "models/baseline_cnn/version_0, models/baseline_cnn/version_1" in again.stdout
    assert len(list((tmp_path / "models/baseline_cnn").iterdir())) == 2


def test_a_folder_that_vanishes_is_one_clear_message(disturb: Any) -> None:
    folder = Path("models/baseline_cnn/version_0")
    ended, output = disturb("epoch 2/", lambda process: folder.rename("moved"))
    assert ended == 1, output
    assert "Traceback" not in output
    assert "it has vanished" in output.splitlines()[-1]
    assert not folder.exists()


def test_the_end_of_several_runs_is_passed_on_to_the_one_that_is_running(disturb: Any) -> None:
    ended, output = disturb("epoch 2/", lambda process: process.terminate(), "-m", "seed=1,2")
    assert ended == 143, output
    assert "Traceback" not in output
    assert "is saved\nTo go on" in output
    assert output.splitlines()[-1] == "1 of 2 runs were not started"
    assert not Path("models/baseline_cnn/version_1").exists()


@pytest.mark.slow
def test_several_runs_end_where_the_next_one_would_have_other_settings(
    disturb: Any, own_configs: Path
) -> None:
    file = own_configs / "training/default.yaml"
    ended, output = disturb(
        "epoch 1/",
        lambda process: file.write_text(file.read_text() + "label_smoothing: 0.1\n"),
        *("-m", "seed=1,2", "training.max_epochs=2"),
    )
    assert ended == 2, output
    told = output.splitlines()[-2:]
    assert told[0] == "error: training.label_smoothing=0.0 (now 0.1)"
    assert told[1].startswith(
        "A file in configs/ was edited meanwhile, and 1 of 2 runs were not started."
    )
    assert Path("models/baseline_cnn/version_0/results.json").is_file()
    assert not Path("models/baseline_cnn/version_1").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_log_that_cannot_be_written_is_given_up_with_one_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    start_logging(Path("/dev/full"), first=True)
    log = logging.getLogger("mlops_project")
    log.info("first")
    log.info("second")
    output = capfd.readouterr()
    assert output.out.splitlines() == ["first", "second"]
    assert output.err == (
        "warning: /dev/full: goes on without this log (No space left on device)\n"
    )


def test_a_place_that_cannot_be_written_to_is_one_clear_message(
    demo_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").write_text("a file where a folder has to go")
    with pytest.raises(OSError, match="models") as caught:
        train_in(tmp_path, demo_folder)
    assert "a file is where a folder has to be" in str(file_failure(caught.value))
