"""Losses that are not finite: the run stops and says where, or skips the step and counts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mlops_project import settings
from mlops_project.errors import ProjectError
from mlops_project.training.checkpoints import load_checkpoint
from mlops_project.training.module import LesionClassifier
from mlops_project.training.run import Result, train

RUN = Path("models/baseline_cnn/version_0")
SMALL = (
    *("data.image_size=32", "data.batch_size=16", "training.max_epochs=2"),
    *("training.lr_scheduler=none", "training.checkpoint_every_n_steps=1"),
)

# Two processes train in float16 with a scaler, as on GPUs; the loss of the second one's third step
# and of the first one's fourth is infinite.
TWO_WITH_A_SCALER = """
import os
from lightning.pytorch.plugins import MixedPrecision
from mlops_project.training import run
from mlops_project.training.module import LesionClassifier

build, step = run.build_trainer, LesionClassifier.training_step

def with_a_scaler(*arguments):
    trainer = build(*arguments)
    trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu")
    return trainer

def overflowing_step(self, batch, batch_idx):
    outputs = step(self, batch, batch_idx)
    if {2: "1", 3: "0"}.get(batch_idx) == os.environ.get("LOCAL_RANK", "0"):
        outputs["loss"] = outputs["loss"] * float("inf")
    return outputs

run.build_trainer, LesionClassifier.training_step = with_a_scaler, overflowing_step

if __name__ == "__main__":
    from mlops_project.command_line import run_command
    from mlops_project.train import main

    run_command(main)
"""


@pytest.fixture
def train_here(here: tuple[str, str]) -> Any:
    return lambda *options: train(settings.load([*here, *SMALL, *options]))


@pytest.fixture
def overflow(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Makes the input of these steps so large that the network's numbers overflow."""

    def at(steps: set[int]) -> None:
        prepare = LesionClassifier.on_after_batch_transfer

        def overflowing(self: Any, batch: Any, dataloader_idx: int) -> Any:
            images, *rest = prepare(self, batch, dataloader_idx)
            hit = self.trainer.training and self.trainer.global_step in steps
            return images * 1e38 * 1e38 if hit else images, *rest

        monkeypatch.setattr(LesionClassifier, "on_after_batch_transfer", overflowing)

    return at


def test_a_diverging_run_stops_and_names_all_that_helps(train_here: Any, tmp_path: Path) -> None:
    with pytest.raises(ProjectError) as caught:
        train_here("training.optimizer=sgd", "training.learning_rate=1e18")
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert "not finite" in message
    assert "learning rate 1e+18" in message
    assert "SYN_" in message
    assert "training.gradient_clip_val" in message
    for path in (RUN / "checkpoints").glob("*.ckpt"):
        state = load_checkpoint(path)["state_dict"]
        assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())
        assert str(path) in message


@pytest.mark.parametrize(
    "often", ["training.checkpoint_every_n_steps=1", "training.checkpoint_every_minutes=1e-6"]
)
def test_the_run_stops_at_the_step_with_its_images_and_goes_on_from_the_one_before(
    often: str, train_here: Any, overflow: Callable[[set[int]], None]
) -> None:
    overflow({3})
    with pytest.raises(ProjectError, match="the loss of step 4 is not finite") as caught:
        train_here("training.checkpoint_every_n_steps=none", often)
    last = RUN / "checkpoints/last.ckpt"
    assert f"Last good checkpoint: {last}" in str(caught.value)
    assert load_checkpoint(last)["global_step"] == 3
    split = pd.read_csv(RUN / "split.csv").set_index("image_id")["split"]
    named = [word.strip(",.") for word in str(caught.value).split() if word.startswith("SYN_")]
    assert len(named) == 8
    assert {split[name] for name in named} == {"train"}


@pytest.mark.parametrize("clipping", [(), ("gradient_clip_val=9", "gradient_clip_algorithm=value")])
def test_a_skipped_step_changes_nothing_and_is_counted(
    clipping: tuple[str, ...],
    train_here: Any,
    overflow: Callable[[set[int]], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    overflow({4})
    words = ["training.max_epochs=1", *(f"training.{word}" for word in clipping)]
    result: Result = train_here("training.on_nonfinite=skip", *words)
    assert "gradients of step 5 are not finite: skipped (1 of at most 10)" in capfd.readouterr().err
    last = load_checkpoint(RUN / "checkpoints/last.ckpt")
    assert last["callbacks"]["NonFinite"] == {"skipped": 1}
    before = load_checkpoint(RUN / "checkpoints/last.ckpt")["state_dict"]
    assert all(v.isfinite().all() for v in before.values() if v.is_floating_point())
    assert result.best["train_loss"] > 0
    # The last of the epoch's five steps was skipped: the one before it is all that is saved.
    shorter: Result = train_here("training.limit_train_batches=4", *words)
    assert shorter.folder is not None
    four = load_checkpoint(shorter.folder / "checkpoints/last.ckpt")["state_dict"]
    for name, value in four.items():
        if "num_batches_tracked" not in name:
            assert torch.equal(value, before[name]), name


def test_the_images_of_the_bad_batch_are_named_where_batches_are_accumulated(
    train_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = LesionClassifier.on_after_batch_transfer
    rows: list[torch.Tensor] = []

    def overflowing(self: Any, batch: Any, dataloader_idx: int) -> Any:
        images, *rest = prepare(self, batch, dataloader_idx)
        if self.trainer.training:
            rows.append(batch[2])
        first = self.trainer.training and len(rows) % 2 == 1  # of the two of a step
        return images * 1e38 * 1e38 if first else images, *rest

    monkeypatch.setattr(LesionClassifier, "on_after_batch_transfer", overflowing)
    with pytest.raises(ProjectError, match="after 1 skipped steps") as caught:
        train_here(
            *("training.on_nonfinite=skip", "training.max_skipped_steps=1"),
            *("training.accumulate_grad_batches=2", "data.batch_size=2"),
        )
    names = sorted(pd.read_csv(RUN / "split.csv")["image_id"])
    expected = {names[int(row) % len(names)] for row in rows[2]}
    named = {word.strip(",.") for word in str(caught.value).split() if word.startswith("SYN_")}
    assert named == expected


def test_skipping_has_an_end(train_here: Any, overflow: Callable[[set[int]], None]) -> None:
    overflow(set(range(1, 100)))
    with pytest.raises(ProjectError, match="after 2 skipped steps"):
        train_here("training.on_nonfinite=skip", "training.max_skipped_steps=2")


def test_processes_with_a_scaler_count_the_steps_that_any_of_them_skips(
    here: tuple[str, str], tmp_path: Path
) -> None:
    program = tmp_path / "two.py"
    program.write_text(TWO_WITH_A_SCALER)
    options = (
        *("training.on_nonfinite=skip", "training.accelerator=cpu", "training.devices=2"),
        *("training.max_epochs=1", "data.batch_size=8", "training.compile=false"),
    )
    done = subprocess.run(
        [sys.executable, str(program), *here, *SMALL, *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for told in ("step 3 are not finite: skipped (1 of", "step 4 are not finite: skipped (2 of"):
        assert told in done.stderr
    last = load_checkpoint(RUN / "checkpoints/last.ckpt")
    assert last["callbacks"]["NonFinite"] == {"skipped": 2}


def test_weights_that_are_not_finite_are_not_saved(
    train_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overflow in the backward pass alone: the loss of its step is still finite."""
    backward = LesionClassifier.on_after_backward

    def overflowing(self: Any) -> None:
        backward(self)
        if self.trainer.global_step == 3:
            next(p for p in self.parameters() if p.grad is not None).grad.fill_(torch.inf)

    monkeypatch.setattr(LesionClassifier, "on_after_backward", overflowing)
    with pytest.raises(ProjectError, match="not finite after step 4"):
        train_here()
    assert load_checkpoint(RUN / "checkpoints/last.ckpt")["global_step"] == 3
