"""Tasks as SLURM starts them: its environment is made up, the processes and signals are real."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

OPTIONS = (
    *("data.image_size=32", "training.accelerator=cpu", "data.batch_size=8"),
    *("training.max_epochs=8", "training.early_stopping_patience=0"),
    "training.resume_from_checkpoint=auto",
)


def start_tasks(
    words: list[str], folder: Path, nodes: int, job: int = 7
) -> list[subprocess.Popen[str]]:
    """Two tasks of a job, on one node or on two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        slurm = {
            "SLURM_JOB_ID": job,
            "SLURM_JOB_NAME": "train",
            "SLURM_NTASKS": 2,
            "SLURM_NNODES": nodes,
            "SLURM_NTASKS_PER_NODE": 2 // nodes,
            "SLURM_PROCID": rank,
            "SLURM_LOCALID": rank if nodes == 1 else 0,
            "SLURM_NODEID": 0 if nodes == 1 else rank,
            "SLURM_NODELIST": "127.0.0.1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = {**os.environ, **{name: str(value) for name, value in slurm.items()}}
        started.append(
            subprocess.Popen(
                words,
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


@pytest.mark.slow
def test_a_job_is_warned_requeued_and_goes_on_where_it_was(
    demo_folder: Path, tmp_path: Path, command: Callable[..., list[str]]
) -> None:
    words = command("train.py", f"data.data_dir={demo_folder}", *OPTIONS)
    tasks = start_tasks(words, tmp_path, nodes=2)
    first, second = tasks
    assert first.stdout is not None
    said = ""
    for line in first.stdout:
        said += line
        if line.startswith("epoch 2/"):
            for task in tasks:  # --signal=USR1@120
                task.send_signal(signal.SIGUSR1)
            break
    said += first.stdout.read()
    other, _ = second.communicate(timeout=120)
    assert [task.wait(timeout=120) for task in tasks] == [143, 143], said + other
    assert "To go on" in said
    last = tmp_path / "models/baseline_cnn/version_0/checkpoints/last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    assert step > 0

    tasks = start_tasks(words, tmp_path, nodes=2)
    outputs = [task.communicate(timeout=240)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], "\n".join(outputs)
    assert f"going on from {Path(*last.parts[-5:])}" in outputs[0]
    assert torch.load(last, weights_only=True)["global_step"] > step
    assert [path.name for path in (tmp_path / "models/baseline_cnn").iterdir()] == ["version_0"]
