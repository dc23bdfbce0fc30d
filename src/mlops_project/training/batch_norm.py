"""Batch normalisation where a plain one goes wrong: several processes, and activations recomputed.

Over the batches of all processes it is as one process with all of them has it.
"""

from __future__ import annotations

import types
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import nn


class SyncedBatchNorm(LayerSync):
    """Makes the batch normalisation of a network use the statistics of all processes' batches.

    On a GPU this is PyTorch's SyncBatchNorm, which has no kernel for CPUs; there, each layer sums
    over the processes itself.

    Args:
        timeout: how long a process may be late, seconds.
    """

    def __init__(self, timeout: int) -> None:
        self.timeout = timedelta(seconds=timeout)

    def apply(self, model: nn.Module) -> nn.Module:
        if "nccl" in torch.distributed.get_backend():
            from timm.layers import convert_sync_batchnorm

            return convert_sync_batchnorm(model)
        group = torch.distributed.new_group(backend="gloo", timeout=self.timeout)
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.sync_group = group  # type: ignore[assignment]
                layer.forward = types.MethodType(_forward, layer)  # type: ignore[method-assign]
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for layer in model.modules():
            if "sync_group" in vars(layer):
                del layer.sync_group, layer.forward
        return model


def count_batches_once(network: nn.Module) -> None:
    """Leaves the running statistics alone where a backward pass computes activations again."""
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats:
            layer.register_forward_pre_hook(_hold_statistics)
            # PyTorch leaves a pass early, by an exception, once it has what it needs.
            layer.register_forward_hook(_release_statistics, always_call=True)


def _hold_statistics(layer: Any, _inputs: Any) -> None:
    if torch.compiler.is_compiling():
        return  # a compiled pass counts once by itself
    if layer.training and torch._C._current_graph_task_id() != -1:  # within a backward pass
        layer.held_momentum, layer.momentum = layer.momentum, 0.0


def _release_statistics(layer: Any, _inputs: Any, _result: Any) -> None:
    if not torch.compiler.is_compiling() and "held_momentum" in vars(layer):
        layer.momentum = vars(layer).pop("held_momentum")
        layer.num_batches_tracked.sub_(1)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; so is that of its gradients."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor, group: Any) -> torch.Tensor:
        context.group = group
        total = values.clone()
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradient.clone()
        torch.distributed.all_reduce(total, group=context.group)
        return total, None


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Batch normalisation of x [B, C, …], whose other part the other processes have."""
    if not layer.training:
        return type(layer).forward(layer, x)
    dims = [0, *range(2, x.ndim)]
    shape = [1, -1] + [1] * (x.ndim - 2)
    values = x.float()
    local = torch.tensor([x.numel() / x.shape[1]])
    torch.distributed.all_reduce(local, group=layer.sync_group)
    count = float(local)
    double = torch.float64  # sums over many pixels lose digits in float32
    total: Any = _Sum.apply(values.sum(dims, dtype=double), layer.sync_group)
    mean = (total / count).float()
    centred = values - mean.view(shape)
    squares: Any = _Sum.apply(centred.square().sum(dims, dtype=double), layer.sync_group)
    variance = (squares / count).float()
    if layer.track_running_stats:
        with torch.no_grad():
            layer.num_batches_tracked.add_(1)
            momentum = layer.momentum
            if momentum is None:
                momentum = 1.0 / float(layer.num_batches_tracked)
            unbiased = variance * count / max(1.0, count - 1)
            layer.running_mean.lerp_(mean, momentum)
            layer.running_var.lerp_(unbiased, momentum)
    result = centred * torch.rsqrt(variance + layer.eps).view(shape)
    if layer.affine:
        result = result * layer.weight.view(shape) + layer.bias.view(shape)
    result = result.to(x.dtype)
    # timm's layers have dropout and activation within.
    for name in ("drop", "act"):
        if (inner := getattr(layer, name, None)) is not None:
            result = inner(result)
    return result
