"""`wandb sweep` and `wandb agent`, the real client against a server on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.guide.sweep_server import SWEEP, Server, serve

ROOT = Path(__file__).resolve().parents[2]


def start(server: Server, folder: Path, output: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Weights & Biases' program, at work in a folder; what it says goes to a file."""
    # Not served by the wandb of another test in this process
    environment = {n: v for n, v in os.environ.items() if n != "WANDB_SERVICE"} | {
        "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
        "WANDB_API_KEY": "a" * 40,
        "WANDB_SILENT": "false",
        "NO_PROXY": "127.0.0.1",
    }
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "wandb", *arguments],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def run(server: Server, folder: Path, *arguments: str) -> str:
    output = folder / "said.txt"
    code = start(server, folder, output, *arguments).wait(timeout=240)
    said = output.read_text()
    assert code == 0, said
    return said


def adapted(written: dict[str, Any], *settings: str) -> str:
    """A sweep as YAML, for a test's working folder, with more settings."""
    command = list(written["command"])
    place = command.index("run") + 1
    command[place:place] = ["--no-sync", "--project", str(ROOT)]
    program = str(ROOT / written["program"])
    return yaml.safe_dump(written | {"program": program, "command": [*command, *settings]})


@pytest.fixture
def server() -> Iterator[Server]:
    trial = {"training.learning_rate": 0.001, "data.batch_size": 16, "model.variant": "b1"}
    with serve({"run1": trial}) as running:
        yield running


def test_a_sweep_is_made_and_its_trial_reports_the_metric(
    server: Server, demo_folder: Path, tmp_path: Path
) -> None:
    said = run(server, tmp_path, "sweep", str(ROOT / "configs/sweeps.yaml"))
    assert f"wandb agent {SWEEP}" in said
    written = yaml.safe_load((ROOT / "configs/sweeps.yaml").read_text())
    assert yaml.safe_load(server.config) == written

    # The same sweep for a test's folder, data and patience
    server.config = adapted(
        written,
        *(f"data.data_dir={demo_folder}", "data.image_size=32", "model.pretrained=false"),
        *("training.max_epochs=1", "training.limit_train_batches=2"),
    )
    said = run(server, tmp_path, "agent", "--count", "1", SWEEP)
    made = tmp_path / "models/efficientnet/version_0/config.yaml"
    assert made.is_file(), said
    settings = yaml.safe_load(made.read_text())
    assert settings["model"]["variant"] == "b1", said
    assert settings["data"]["batch_size"] == 16
    assert settings["training"]["learning_rate"] == 0.001
    assert len(server.history["run1"]) == 1
    assert server.exit_codes == {"run1": 0}


@pytest.mark.slow
def test_twenty_trials_of_two_agents_one_of_which_is_killed(
    demo_folder: Path, tmp_path: Path
) -> None:
    """One fails, some are stopped by hyperband, an agent is killed: none is lost or repeated."""
    trials = {
        f"run{n}": {"seed": n, "training.learning_rate": 10.0 ** -(n % 5) / 10} for n in range(20)
    }
    trials["run3"]["model.dropout_rate"] = 1.5  # refused
    sweep = {
        "program": "src/mlops_project/train.py",
        "method": "random",
        "metric": {"name": "val_loss", "goal": "minimize"},
        "early_terminate": {"type": "hyperband", "min_iter": 2},
        "parameters": {"seed": {"min": 0, "max": 19}},
        "command": [
            "${env}",
            "uv",
            "run",
            "${program}",
            "wandb.enabled=true",
            "${args_no_hyphens}",
        ],
    }
    with serve(trials) as server:
        server.config = adapted(
            sweep,
            *(f"data.data_dir={demo_folder}", f"data.cache={tmp_path / 'cache'}"),
            *("data.image_size=32", "data.batch_size=16", "training.max_epochs=60"),
            "training.early_stopping_patience=0",
        )
        outputs = [tmp_path / f"agent{n}.txt" for n in range(3)]
        killed = start(server, tmp_path, outputs[0], "agent", SWEEP)
        with server.changed:
            assert server.changed.wait_for(lambda: server.agents == 1, timeout=100)
        other = start(server, tmp_path, outputs[1], "agent", SWEEP)
        with server.changed:  # until a trial that is not its first tells of itself
            own: list[str] = []

            def under_way() -> bool:
                own[:] = [run for run, agent in server.agent_of.items() if agent == "agent1"]
                return len(own) > 1 and own[-1] in server.history

            assert server.changed.wait_for(under_way, timeout=300), outputs[0].read_text()
            killed.kill()
            assert own[-1] not in server.exit_codes
        killed.wait()
        newer = start(server, tmp_path, outputs[2], "agent", SWEEP)
        codes = [agent.wait(timeout=1200) for agent in (other, newer)]
        assert codes == [0, 0], "\n".join(output.read_text() for output in outputs)

        # The trial of the killed agent goes on by itself.
        with server.changed:
            assert server.changed.wait_for(lambda: own[-1] in server.exit_codes, timeout=120)
        assert list(server.agent_of) == list(trials), "each was handed out, once"
        assert set(server.agent_of.values()) == {"agent1", "agent2", "agent3"}
        finished = {run for run, code in server.exit_codes.items() if code == 0}
        # Those that were stopped have saved themselves, and may go on as the same run; the client
        # may or may not get to say that they have ended.
        early = set(trials) - finished - {"run3"}
        assert len(early) >= 3
        assert early <= server.stopped & server.gone
        assert "run3" in server.gone - finished
        assert own[-1] in finished

    folders = list((tmp_path / "models/baseline_cnn").iterdir())
    seeds = [yaml.safe_load((f / "config.yaml").read_text())["seed"] for f in folders]
    assert sorted(seeds) == [n for n in range(20) if n != 3]
    done = [f for f in folders if (f / "results.json").exists()]
    assert len(done) == len(finished)
    assert all((f / "checkpoints/last.ckpt").is_file() for f in folders)
