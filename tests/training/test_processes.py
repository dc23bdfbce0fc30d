"""Two processes that train together: they give what one gives, and none outlives the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

from mlops_project import settings
from mlops_project.training.run import train

SMALL: tuple[str, ...] = (
    "data.image_size=32",
    "training.accelerator=cpu",
    "training.process_timeout=5",
)
TWO = ("training.devices=2", "data.batch_size=8")
# A program that trains, but for a fault in the second process at its third step
FAULTY = """
import os, time
from mlops_project.training.module import LesionClassifier

step = LesionClassifier.training_step

def faulty_step(self, batch, batch_idx):
    if self.trainer.global_step == 2 and os.environ.get("LOCAL_RANK", "0") == "{rank}":
        {fault}
    return step(self, batch, batch_idx)

LesionClassifier.training_step = faulty_step

if __name__ == "__main__":
    from mlops_project.command_line import run_command
    from mlops_project.train import main

    run_command(main)
"""

# A program that lets FSDP run on a CPU, where Lightning and this project have no use for it
SHARDED = """
import torch
from torch.distributed.fsdp import FullyShardedDataParallel

from mlops_project.training import trainer

build = FullyShardedDataParallel.__init__

def on_a_cpu(self, *args, **options):
    build(self, *args, **options | {"device_id": torch.device("cpu")})

FullyShardedDataParallel.__init__ = on_a_cpu
trainer._strategy = lambda options: trainer.WatchedFSDP()

if __name__ == "__main__":
    from mlops_project.command_line import run_command
    from mlops_project.train import main

    run_command(main)
"""


def assert_same_weights(folders: list[Path], tolerance: float) -> None:
    weights = [
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in folders
    ]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=tolerance), name


def run_faulty(folder: Path, data: Path, fault: str, rank: int = 1) -> tuple[int, str, float]:
    """Runs the program; its exit code, output, and the seconds that it took after the fault."""
    program = folder / "faulty.py"
    fault = f"open('at', 'w').close(); {fault}"
    program.write_text(FAULTY.format(rank=rank, fault=fault))
    process = subprocess.Popen(
        [sys.executable, str(program), f"data.data_dir={data}", *SMALL, *TWO],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    output, _ = process.communicate(timeout=200)
    seconds = time.time() - (folder / "at").stat().st_mtime
    assert left_running(process.pid) == []
    return process.returncode, output, seconds


def left_running(session: int) -> list[int]:
    """Processes of a session that are still there some seconds after its first one has ended."""

    def belongs(process: psutil.Process) -> bool:
        try:
            return os.getsid(process.pid) == session
        except ProcessLookupError:
            return False

    _, left = psutil.wait_procs(filter(belongs, psutil.process_iter()), timeout=15)
    return [p.pid for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("raise KeyError('a bug of the second process')", "a bug of the second process"),
        pytest.param("time.sleep(1000)", "faulty_step", marks=pytest.mark.slow),
        pytest.param(
            *("os.kill(os.getpid(), 9)", "process 1 has ended: killed by SIGKILL"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("os.kill(os.getpid(), 19)", "process 1 does not answer; it was stopped"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["raises", "hangs", "killed", "stopped"],
)
def test_a_process_that_fails_ends_the_job_with_its_own_error(
    fault: str, told: str, demo_folder: Path, tmp_path: Path
) -> None:
    code, output, seconds = run_faulty(tmp_path, demo_folder, fault)
    assert code == 1, output
    assert told in output
    assert "error: process 1" in output
    assert seconds < 60
    log = next((tmp_path / "logs").glob("*.log")).read_text()
    assert told in log, "whoever reads the log finds it as well"


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("time.sleep(1000)", id="hangs", marks=pytest.mark.slow),
        pytest.param("os.kill(os.getpid(), 9)", id="killed"),
    ],
)
def test_no_process_outlives_the_first_one(fault: str, demo_folder: Path, tmp_path: Path) -> None:
    code, output, seconds = run_faulty(tmp_path, demo_folder, fault, rank=0)
    assert code in (1, -9), output
    assert seconds < 60


def test_two_processes_train_as_one_does_with_the_batches_of_both(
    here: tuple[str, str], tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    # Sizes that do not divide: 81 images in batches of 12, and of 6 for each of two processes
    options: tuple[str, ...] = (*here, *SMALL, "training.max_epochs=1")
    options += ("model.dropout_rate=0", "training.optimizer=sgd", "training.learning_rate=0.001")
    train(settings.load([*options, "data.batch_size=12"]))
    two = run("train.py", *options, "training.devices=2", "data.batch_size=6")
    assert two.returncode == 0, two.stdout + two.stderr
    folders = [tmp_path / f"models/baseline_cnn/version_{n}" for n in (0, 1)]
    tables = [pd.read_csv(folder / "metrics.csv").iloc[0] for folder in folders]
    assert tables[0]["step"] == tables[1]["step"]
    for name in ("train_loss", "val_loss"):
        assert tables[1][name] == pytest.approx(tables[0][name], rel=1e-4), name
    assert_same_weights(folders, 1e-3)
    assert len(list((tmp_path / "logs").glob("*.log"))) == 2, "the second process keeps silent"


@pytest.mark.slow
def test_processes_that_share_the_weights_train_as_those_that_have_all_of_them(
    here: tuple[str, str], tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Also where they go on. With SGD: what PyTorch saves of Adam's averages is right on a GPU."""
    options = (*here, *SMALL, *TWO, "training.max_epochs=1", "training.channels_last=false")
    options += ("training.optimizer=sgd", "training.weight_decay=0.5")
    program = tmp_path / "sharded.py"
    program.write_text(SHARDED)
    folders = [tmp_path / f"models/baseline_cnn/version_{n}" for n in (0, 1)]

    def sharded(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(program), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    programs: list[Callable[..., Any]] = [partial(run, "train.py"), sharded]
    for folder, start in zip(folders, programs, strict=True):
        last = f"training.resume_from_checkpoint={folder / 'checkpoints/last.ckpt'}"
        for words in (options, (last, "training.max_epochs=2")):
            done = start(*words)
            assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    for name in ("train_loss", "val_loss", "test_loss"):
        assert results[1][name] == pytest.approx(results[0][name], rel=1e-4), name
    assert_same_weights(folders, 1e-4)


@pytest.mark.parametrize(
    "batch_size",
    [
        pytest.param(8, id="3 batches"),
        pytest.param(21, id="1 batch", marks=pytest.mark.slow),
    ],
)
def test_two_processes_measure_exactly_what_one_measures(
    batch_size: int,
    here: tuple[str, str],
    tmp_path: Path,
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """A finished run that is resumed repeats its test: 21 images in batches that do not divide."""
    options = (*here, *SMALL, "training.max_epochs=1")
    train(settings.load([*options, f"data.batch_size={batch_size}"]))
    folder = tmp_path / "models/baseline_cnn/version_0"
    one = json.loads((folder / "results.json").read_text())
    resume = f"training.resume_from_checkpoint={folder / 'checkpoints/last.ckpt'}"
    again = run("train.py", resume, "training.devices=2", "training.allow_changes=true")
    assert again.returncode == 0, again.stdout + again.stderr
    two = json.loads((folder / "results.json").read_text())
    for name in ("loss", "accuracy", "balanced_accuracy", "f1_score", "auroc"):
        assert two[f"test_{name}"] == pytest.approx(one[f"test_{name}"], abs=1e-9), name


def test_ctrl_c_in_a_terminal_ends_both_processes_in_good_order(disturb: Any) -> None:
    leaders = []

    def press(process: Any) -> None:
        leaders.append(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # all processes of a terminal get it

    ended, output = disturb("epoch 2/", press, *SMALL, *TWO)
    assert ended == 130, output
    assert "Traceback" not in output
    assert output.count("To go on") == 1
    assert left_running(leaders[0]) == []
    last = Path("models/baseline_cnn/version_0/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] >= 10


def test_a_process_whose_first_one_is_gone_before_it_looks_ends(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    program = (
        "import threading; from mlops_project.training.processes import join_the_watch;"
        "join_the_watch(); threading.Event().wait()"
    )
    told = {"REPORTS": str(tmp_path), "FIRST": str(gone.pid)}
    environment = os.environ | {f"MLOPS_PROJECT_{name}": value for name, value in told.items()}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment | {"LOCAL_RANK": "1"}, timeout=120
    )
    assert done.returncode == 1
