"""The moving average of the weights, which is evaluated and saved in their place."""

from __future__ import annotations

from itertools import chain
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging


class MovingAverage(WeightAveraging):
    """An exponential moving average over the steps, with a smaller decay in the first ones.

    The decay is min(decay, (1 + n) / (10 + n)) after n updates, as TensorFlow's
    ExponentialMovingAverage has it, since the first weights are not worth remembering.

    Lightning's own asks the device four times a step for n, and waits for it each time; and it
    sorts all tensors by their types anew, which takes longer than averaging them.

    Args:
        decay: a step, below 1.
        device: where the weights are: by itself Lightning would bring them to the CPU in each step.
    """

    def __init__(self, decay: float, device: str) -> None:
        super().__init__(device=device)
        self.decay = decay
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            average: Any = self._average_model
            average.n_averaged = average.n_averaged.cpu()
            average.update_parameters = self._update
            self._pairs = []

    @torch.no_grad()
    def _update(self, module: pl.LightningModule) -> None:
        average: Any = self._average_model
        if not self._pairs:  # not in `setup`, after which they still go to the device
            ours = chain(average.module.parameters(), average.module.buffers())
            self._pairs = list(zip(ours, chain(module.parameters(), module.buffers()), strict=True))
        n = int(average.n_averaged)
        floats = [pair for pair in self._pairs if pair[0].is_floating_point()]
        others = [pair for pair in self._pairs if not pair[0].is_floating_point()]
        if n:
            _each(torch._foreach_lerp_, floats, 1 - min(self.decay, (1 + n) / (10 + n)))
        else:
            _each(torch._foreach_copy_, floats)
        _each(torch._foreach_copy_, others)  # a count of batches has no average
        average.n_averaged.add_(1)


def _each(change: Any, pairs: list[tuple[torch.Tensor, torch.Tensor]], *options: float) -> None:
    if pairs:
        old, new = zip(*pairs, strict=True)
        change(list(old), list(new), *options)
