"""Sharpness-aware minimisation: steps that go by the steepest place near the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def sharpness_aware(network: nn.Module, closure: Any, rho: float) -> Callable[[], Any]:
    """Lets a step go by the gradients at the weights' worst neighbour, and not at the weights.

    The neighbour lies rho along the gradient g of all weights that learn: w + rho g / |g| (Foret et
    al., Sharpness-Aware Minimization, ICLR 2021). Statistics of batch normalisation are those of
    the first pass, at the weights themselves, as are the loss and the outputs of the step.

    Args:
        network: that learns.
        closure: Lightning's, of one step: forward and backward pass of a batch.
        rho: distance of the neighbour, in the Euclidean norm.

    Returns:
        What takes the closure's place, with twice its passes.
    """

    def twice() -> Any:
        loss = closure()
        outputs = closure._result
        weights = [weight for weight in network.parameters() if weight.grad is not None]
        buffers = list(network.buffers())
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        with torch.no_grad():
            kept = [value.clone() for value in (*weights, *buffers)]
            norm = nn.utils.get_total_norm(gradients)
            climbs = torch._foreach_mul(gradients, rho / (norm + 1e-12))
            torch._foreach_add_(weights, climbs)  # type: ignore[arg-type]
        closure()
        with torch.no_grad():  # copied back, for taking away what was added rounds
            torch._foreach_copy_([*weights, *buffers], kept)
        closure._result = outputs
        return loss

    return twice
