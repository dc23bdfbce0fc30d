"""The optimizer, its parameter groups, and the learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch.callbacks import Timer
from torch import nn
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import LRScheduler

from mlops_project.config import TrainingConfig
from mlops_project.errors import InputError
from mlops_project.printable import did_you_mean, first_line

# OneCycle's shape: Smith and Topin, Super-Convergence, 2018; the values: PyTorch's OneCycleLR.
ONECYCLE_WARMUP = 0.3
ONECYCLE_START = 1 / 25
ONECYCLE_END = 1e-4 / 25

# PyTorch's own; all other optimizers are timm's, whose import takes a second.
FUSED: dict[str, type[Adam]] = {"adam": Adam, "adamw": AdamW}


def check_optimizer(name: str) -> None:
    """Raises InputError, naming close matches, for an optimizer that timm does not know."""
    if name.lower() not in FUSED:
        from timm.optim import list_optimizers

        known = [str(name) for name in list_optimizers()]
        if name.lower() not in known:
            hint = did_you_mean(name.lower(), known, 3) or "; adamw is a good choice"
            raise InputError(
                f"training.optimizer={name}: no such optimizer{hint}\n"
                "Known: adamw, adam, sgd, rmsprop, lion and all of timm.optim.list_optimizers()."
            )
        if name.lower().startswith("kron") and find_spec("opt_einsum") is None:
            raise InputError(
                f"training.optimizer={name}: without the package opt_einsum its first step takes "
                "minutes and many GiB of memory (uv add opt_einsum)"
            )
    try:
        weight = nn.Parameter(torch.ones(2, 2))
        weight.grad = torch.ones(2, 2)
        build_optimizer(name, [{"params": [weight], "lr": 0.1}]).step()
    except Exception as error:  # what it lacks here: a package, a GPU, second derivatives
        raise InputError(
            f"training.optimizer={name}: cannot be used here ({first_line(error)})"
        ) from error


def parameter_groups(
    stages: Iterable[Iterable[nn.Parameter]],
    *,
    learning_rate: float,
    weight_decay: float,
    decays: Callable[[nn.Parameter], bool] = lambda parameter: parameter.ndim > 1,
    backbone_factor: float = 1.0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups with a learning rate for each stage, and no weight decay on norms and biases.

    Args:
        stages: the parameters, the head first, then the backbone from its last stage to the stem.
        learning_rate: of the head.
        weight_decay: of the parameters that have it.
        decays: whether one has it; weights with two or more dimensions.
        backbone_factor: learning rate of the backbone as a factor of the head's.
        layer_decay: learning rate of a stage as a factor of the one above it.

    Returns:
        Dicts for a torch optimizer; equal settings share a group, the head's is the first.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for depth, stage in enumerate(stages):
        factor = (backbone_factor if depth else 1.0) * layer_decay**depth
        for parameter in stage:
            decay = weight_decay if decays(parameter) else 0.0
            group = groups.setdefault(
                (factor, decay),
                {"params": [], "lr": learning_rate * factor, "weight_decay": decay},
            )
            group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(name: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of that name, with its defaults for all but rate and decay.

    Adam and AdamW are PyTorch's fused ones, one kernel for all weights, which on a CPU take a
    fraction of the time of its default (`benchmarks/optimizers.py`). The others are timm's;
    PyTorch's fused SGD fails where weights begin to learn later than others of their group.
    """
    rate = groups[0]["lr"]
    if name.lower() not in FUSED:
        from timm.optim import create_optimizer_v2

        return create_optimizer_v2(groups, opt=name.lower(), lr=rate, weight_decay=0.0)
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = devices <= {"cpu", "cuda"}
    optimizer = FUSED[name.lower()](groups, lr=rate, weight_decay=0.0, fused=fused or None)
    if fused:
        # A scaler of float16's gradients leaves their unscaling to such an optimizer; they could
        # not be clipped before, and Lightning refuses to.
        optimizer._step_supports_amp_scaling = False
    return optimizer


class Schedule(LRScheduler):
    """The learning rate of each optimizer step, a formula of the step's number.

    With t the number of steps done, W = `warmup_epochs` in steps and T all steps, the rate of
    each group is its own rate times f(t):

    - warm-up, t < W: f = (t + 1) / W;
    - with p = (t - W) / (T - W), from 0 to 1, and m = min_learning_rate / learning_rate:
      none: 1; cosine: m + (1 - m) (1 + cos πp) / 2; polynomial: m + (1 - m) (1 - p)^lr_power;
      step: max(m, lr_factor^⌊epoch / lr_step_epochs⌋), epoch = t / steps an epoch;
    - reduce_on_plateau: max(m, lr_factor^k), k counting the times that the monitored metric went
      more than lr_patience epochs without improving (by a relative 1e-4, as in PyTorch);
    - onecycle: a cosine rise from 1/25 to 1 over the warm-up, 30 % of the steps where
      `warmup_epochs` is 0, then a cosine fall to 4e-6 or, where it is larger, m; where the time
      is ahead of the steps, t follows it, so that a rise ends in time.

    Args:
        optimizer: its groups hold their full rates.
        settings: the schedule's name and numbers.
        learning_rate: the head's rate, which min_learning_rate is compared with.
        steps_per_epoch: optimizer steps an epoch.
        time_used: share of `max_time` that is used; where it is ahead of the steps, p follows it.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        settings: TrainingConfig,
        learning_rate: float,
        steps_per_epoch: int,
        time_used: Callable[[], float] | None = None,
    ) -> None:
        self.time_used = time_used
        self.name = settings.lr_scheduler
        self.steps_per_epoch = steps_per_epoch
        self.total = steps_per_epoch * settings.max_epochs
        self.warmup = round(settings.warmup_epochs * steps_per_epoch)
        if self.name == "onecycle" and self.warmup == 0:
            self.warmup = round(ONECYCLE_WARMUP * self.total)
        self.floor = min(1.0, settings.min_learning_rate / learning_rate)
        self.factor, self.power = settings.lr_factor, settings.lr_power
        self.step_epochs, self.patience = settings.lr_step_epochs, settings.lr_patience
        self.reductions, self.bad_epochs, self.best = 0, 0, math.inf
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rate of each group at the present step; called by `step`."""
        factor = self.multiplier(self.last_epoch)
        return [rate * factor for rate in self.base_lrs]

    def multiplier(self, t: int) -> float:
        """f(t) of the class's formula."""
        used = self.time_used() if self.time_used else 0.0
        if self.name == "onecycle":
            return self._one_cycle(max(t, used * self.total))
        if t < self.warmup:
            return (t + 1) / self.warmup
        p = (t - self.warmup) / max(1, self.total - self.warmup)
        p = min(1.0, max(p, used))
        m = self.floor
        if self.name == "cosine":
            return m + (1 - m) * (1 + math.cos(math.pi * p)) / 2
        if self.name == "polynomial":
            return m + (1 - m) * (1 - p) ** self.power
        if self.name == "step":
            return max(m, self.factor ** (t // self.steps_per_epoch // self.step_epochs))
        if self.name == "reduce_on_plateau":
            return max(m, self.factor**self.reductions)
        return 1.0

    def _one_cycle(self, t: float) -> float:
        if t < self.warmup:
            rise = min(1.0, (t + 1) / self.warmup)
            return ONECYCLE_START + (1 - ONECYCLE_START) * (1 - math.cos(math.pi * rise)) / 2
        p = min(1.0, (t - self.warmup) / max(1, self.total - self.warmup))
        end = max(self.floor, ONECYCLE_END)
        return end + (1 - end) * (1 + math.cos(math.pi * p)) / 2

    def observe(self, value: float, mode: str) -> None:
        """Takes note of the monitored metric at the end of an epoch (for reduce_on_plateau).

        Args:
            value: of the metric; `mode`: "min" where smaller is better, else "max".
        """
        if self.name != "reduce_on_plateau":
            return
        loss = value if mode == "min" else -value
        margin = 0.0 if math.isinf(self.best) else 1e-4 * abs(self.best)
        if loss < self.best - margin:
            self.best, self.bad_epochs = loss, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > self.patience:
            self.reductions, self.bad_epochs = self.reductions + 1, 0
            self.refresh()

    def state_dict(self) -> dict[str, Any]:
        """The values that change in a run: a resumed run may have been given more epochs."""
        names = ("last_epoch", "_step_count", "reductions", "bad_epochs", "best")
        return {name: getattr(self, name) for name in (*names, "steps_per_epoch")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from `state_dict`, with the rates of this run's settings.

        Where an epoch has another number of steps now, t goes on from as many of these as make
        the epochs done.
        """
        before = state_dict.get("steps_per_epoch", self.steps_per_epoch)  # earlier ones lack it
        now = self.steps_per_epoch
        self.__dict__.update(state_dict | {"steps_per_epoch": now})
        if before != now:
            self.last_epoch = round(self.last_epoch / before * now)
        self.refresh()

    def refresh(self) -> None:
        """Sets the rates of the present step anew, where what they depend on has changed."""
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def time_share(timer: Timer) -> Callable[[], float]:
    """The share of its duration that a timer has used, as a function to ask at any time."""

    def share() -> float:
        used, left = timer.time_elapsed(), timer.time_remaining()
        return 0.0 if left is None else used / max(used + left, 1e-9)

    return share
