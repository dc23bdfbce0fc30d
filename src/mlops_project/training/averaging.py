"""The moving average of the weights, which is evaluated and saved in their place."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging

_Sides = tuple[list[torch.Tensor], list[torch.Tensor]]  # of the average, and what it is of
_NOTHING: _Sides = ([], [])


class MovingAverage(WeightAveraging):
    """An exponential moving average over the steps, with a smaller decay in the first ones.

    The decay is min(decay, (1 + n) / (10 + n)) after n updates, as TensorFlow's
    ExponentialMovingAverage has it, since the first weights are not worth remembering.

    Lightning's own, by PyTorch's AveragedModel, asks the device for n in each step, and waits for
    it; and it sorts all tensors by their types anew, which takes longer than averaging them.

    Args:
        decay: a step, below 1.
        device: where the weights are: by itself Lightning would bring them to the CPU in each step.
    """

    def __init__(self, decay: float, device: str) -> None:
        super().__init__(device=device)
        self.decay = decay
        self._floats = self._others = _NOTHING

    @property
    def state_key(self) -> str:
        return "WeightAveraging"  # as in checkpoints of earlier versions

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            average: Any = self._average_model
            average.n_averaged = average.n_averaged.cpu()
            average.update_parameters = self._update
            self._floats = self._others = _NOTHING

    @torch.no_grad()
    def _update(self, module: pl.LightningModule) -> None:
        average: Any = self._average_model
        if not self._floats[0]:  # not in `setup`, after which they still go to the device
            ours = chain(average.module.parameters(), average.module.buffers())
            pairs = list(zip(ours, chain(module.parameters(), module.buffers()), strict=True))
            self._floats = _sides(pair for pair in pairs if pair[0].is_floating_point())
            self._others = _sides(pair for pair in pairs if not pair[0].is_floating_point())
        n = int(average.n_averaged)
        if n:
            share = 1 - min(self.decay, (1 + n) / (10 + n))
            torch._foreach_lerp_(*self._floats, share)
        else:
            torch._foreach_copy_(*self._floats)
        if self._others[0]:  # a count of batches has no average
            torch._foreach_copy_(*self._others)
        average.n_averaged.add_(1)


def _sides(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> _Sides:
    both = list(pairs)
    return [old for old, _ in both], [new for _, new in both]
