"""The weights' moving average, against PyTorch's own class with the documented decay."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mlops_project.training.averaging import MovingAverage


class Small(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def decayed(old: torch.Tensor, new: torch.Tensor, updates: Any) -> torch.Tensor:
    if not old.is_floating_point():
        return new
    n = int(updates)
    return torch.lerp(old, new, 1 - min(0.9, (1 + n) / (10 + n)))


def started(module: Small) -> Any:
    callback: Any = MovingAverage(0.9, "cpu")
    callback.setup(None, module, "fit")
    return callback


def test_it_is_that_of_pytorch_also_after_a_resume() -> None:
    module = Small()
    callback, reference = started(module), AveragedModel(module, avg_fn=decayed, use_buffers=True)
    for step in range(12):
        module.network(torch.randn(5, 3))  # counts the batch
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        if step == 6:
            kept = callback._average_model.state_dict()
            callback = started(module)
            callback._average_model.load_state_dict(kept)
        callback._average_model.update_parameters(module)
        reference.update_parameters(module)
        ours, theirs = callback._average_model.state_dict(), reference.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert int(ours["module.network.1.num_batches_tracked"]) == 12


def test_checkpoints_of_lightnings_own_are_gone_on_with() -> None:
    callback: Any = MovingAverage(0.9, "cpu")
    assert callback.state_key == WeightAveraging(device="cpu").state_key


def test_the_first_weights_are_forgotten_soon() -> None:
    module = Small()
    callback = started(module)
    for value in (0.0, 1.0):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(value)
        callback._average_model.update_parameters(module)
    averaged = next(callback._average_model.module.parameters())
    assert averaged[0, 0].item() == pytest.approx(1 - 2 / 11)
