"""Sharpness-aware minimisation, against its formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from torch import nn

from mlops_project import settings
from mlops_project.errors import InputError
from mlops_project.training.sharpness import sharpness_aware


def test_the_gradients_are_those_of_the_worst_neighbour() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    network[2].bias.requires_grad_(False)  # frozen
    images, labels = torch.randn(8, 3), torch.tensor([0, 1] * 4)

    def loss_of(net: nn.Module) -> torch.Tensor:
        return nn.functional.cross_entropy(net(images), labels)

    other = copy.deepcopy(network)
    first = loss_of(other)
    first.backward()
    statistics = [b.clone() for b in other.buffers()]
    learning = [p for p in other.parameters() if p.grad is not None]
    norm = torch.cat([p.grad.flatten() for p in learning if p.grad is not None]).norm()
    with torch.no_grad():
        for p in learning:
            assert p.grad is not None
            p.add_(0.3 * p.grad / norm)
    other.zero_grad()
    loss_of(other).backward()

    before = [p.clone() for p in network.parameters()]
    closure = Closure(
        lambda: ClosureResult(loss_of(network)),
        lambda loss: loss.backward(),
        lambda: network.zero_grad(),
    )
    told: Any = sharpness_aware(network, closure, 0.3)()

    assert torch.equal(told, first)
    assert torch.equal(closure.consume_result().asdict()["loss"], first)
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))
    assert all(torch.equal(b, s) for b, s in zip(network.buffers(), statistics, strict=True))
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None
        else:
            assert ours.grad is not None
            assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("option", ["training.accumulate_grad_batches=2", "training.strategy=fsdp"])
def test_what_it_does_not_go_with_is_refused(option: str) -> None:
    with pytest.raises(InputError, match=rf"training\.sam_rho=0\.1: does not go with {option}"):
        settings.load(["training.sam_rho=0.1", option])
