"""The trainer's step without what it does not need, against Lightning's own."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch

from mlops_project import settings
from mlops_project.training import run as run_module
from mlops_project.training.run import Result, train

Options = tuple[str, ...]
SMALL = ("data.image_size=32", "data.batch_size=16", "training.max_epochs=2")


def test_what_is_replaced_is_there_in_this_lightning() -> None:
    loop = pl.Trainer(logger=False, enable_checkpointing=False).fit_loop.epoch_loop
    for name in ("_build_kwargs", "_broadcast_sigterm_tensor"):
        assert callable(getattr(loop, name))
    assert loop.automatic_optimization.output_result_cls is not None
    for name in ("_on_before_batch_transfer", "_apply_batch_transfer_handler"):
        assert callable(getattr(pl.LightningModule, name))


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("training.accumulate_grad_batches=2", "training.gradient_clip_val=0.5"),
        ("training.ema_decay=0.9", "training.on_nonfinite=skip"),
    ],
    ids=["plain", "accumulated", "averaged"],
)
def test_a_run_is_the_same_to_the_bit(
    options: Options, here: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = settings.load([*here, *SMALL, *options])
    lean = train(words)
    monkeypatch.setattr(run_module, "make_lean", lambda *_: None)
    lightnings = train(settings.load([*here, *SMALL, *options]))
    assert lean.best == lightnings.best
    ours, theirs = weights(lean), weights(lightnings)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def weights(result: Result) -> dict[str, torch.Tensor]:
    return torch.load(result.checkpoint, weights_only=True)["state_dict"]
