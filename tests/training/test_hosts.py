"""Processes that torchrun starts, on one host and on two that only a network connects."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

TRAIN = str(Path(__file__).resolve().parents[2] / "src/mlops_project/train.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
OPTIONS = (
    *("data.image_size=32", "training.accelerator=cpu", "training.max_epochs=2"),
    *("training.optimizer=sgd", "training.learning_rate=0.001", "data.num_workers=0"),
    *("model.dropout_rate=0", "training.process_timeout=60"),
)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@pytest.fixture
def two_hosts() -> Iterator[list[tuple[str, str]]]:
    """Two network namespaces and a cable between them: (name, address) of each."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and the command ip")
    names = [f"mlops{os.getpid()}{letter}" for letter in "ab"]
    cables = [f"m{os.getpid() % 1_000_000}{letter}" for letter in "ab"]
    hosts = [(names[0], "10.77.0.1"), (names[1], "10.77.0.2")]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            peer = ("peer", "name", cables[1], "netns", names[1])
            ip("link", "add", cables[0], "netns", names[0], "type", "veth", *peer)
            for (name, address), cable in zip(hosts, cables, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
                ip("-n", name, "link", "set", cable, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(
                f"network namespaces are not allowed here ({error.stderr.decode().strip()})"
            )
        yield hosts
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "models/baseline_cnn/version_0/checkpoints/last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "models/baseline_cnn/version_0/metrics.csv")


@pytest.mark.slow
def test_two_hosts_and_two_processes_of_one_train_the_same_as_one_process(
    two_hosts: list[tuple[str, str]],
    demo_folder: Path,
    tmp_path: Path,
    command: Callable[..., list[str]],
) -> None:
    data = f"data.data_dir={demo_folder}"
    folders = [tmp_path / name for name in ("one", "pair", "hosts")]
    for folder in folders:
        folder.mkdir()
    done = [
        subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=240)
        for folder, words in (
            (folders[0], command("train.py", data, *OPTIONS, "data.batch_size=16")),
            (
                folders[1],
                [*TORCHRUN, "2", "--standalone", TRAIN, data, *OPTIONS, "data.batch_size=8"],
            ),
        )
    ]
    for one in done:
        assert one.returncode == 0, one.stdout + one.stderr
    started = []
    for rank, (name, _) in enumerate(two_hosts):
        # Both hosts mount the same folder, as the nodes of a cluster do.
        cluster = ["--nnodes", "2", "--node-rank", str(rank)]
        cluster += ["--master-addr", two_hosts[0][1], "--master-port", "29511"]
        cable = f"m{os.getpid() % 1_000_000}{'ab'[rank]}"
        words = ["ip", "netns", "exec", name, *TORCHRUN, "1", *cluster, TRAIN, data, *OPTIONS]
        started.append(
            subprocess.Popen(
                [*words, "data.batch_size=8"],
                cwd=folders[2],
                env={**os.environ, "GLOO_SOCKET_IFNAME": cable, "TP_SOCKET_IFNAME": cable},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
    assert "best checkpoint" in outputs[0]
    assert "best checkpoint" not in outputs[1], "only the first process tells and writes"
    models = [path.name for path in (folders[2] / "models/baseline_cnn").iterdir()]
    assert models == ["version_0"]
    alone, pair, hosts = map(weights, folders)
    for name, value in pair.items():
        assert torch.equal(value, hosts[name]), name
        assert torch.allclose(value.float(), alone[name].float(), atol=1e-3), name
    for name in ("train_loss", "val_loss"):
        expected = pytest.approx(table(folders[0])[name].to_numpy(), rel=1e-3)
        assert table(folders[2])[name].to_numpy() == expected
    assert (table(folders[1])["step"] == table(folders[2])["step"]).all()
