"""Parameter groups, optimizers by name, and the learning rate of every step."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from lightning.pytorch.plugins.precision import MixedPrecision
from timm.optim import list_optimizers
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from mlops_project.config import TrainingConfig
from mlops_project.errors import InputError
from mlops_project.models.baseline_cnn import BaselineCNN
from mlops_project.models.build import stages
from mlops_project.training.optimizers import (
    Schedule,
    build_optimizer,
    check_optimizer,
    parameter_groups,
)

RATE = 0.1
NAMES = ("none", "cosine", "polynomial", "step", "onecycle", "reduce_on_plateau")


def schedule(
    name: str, steps_per_epoch: int = 5, rates: tuple[float, ...] = (RATE,), **options: Any
) -> Schedule:
    """A schedule over groups of one parameter each."""
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates]
    optimizer = torch.optim.SGD(groups)
    return Schedule(
        optimizer, TrainingConfig(lr_scheduler=name, **options), rates[0], steps_per_epoch
    )


def rates_of(scheduler: Any, steps: int) -> list[float]:
    """The first group's learning rate at each of so many optimizer steps."""
    rates = []
    for _ in range(steps):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


# Groups


def test_norms_and_biases_have_no_weight_decay_and_all_else_has() -> None:
    network = BaselineCNN(2, channels=(4, 4))
    groups = parameter_groups(stages(network), learning_rate=RATE, weight_decay=0.3)

    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    weights = {id(layer.weight) for layer in layers}
    assert decay == {id(p): 0.3 if id(p) in weights else 0.0 for p in network.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(decay)
    assert len(groups) == 2


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({}, [1, 1, 1, 1]),
        ({"backbone_factor": 0.1}, [1, 0.1, 0.1, 0.1]),
        ({"layer_decay": 0.5}, [1, 0.5, 0.25, 0.125]),
        ({"backbone_factor": 0.1, "layer_decay": 0.5}, [1, 0.05, 0.025, 0.0125]),
    ],
)
def test_each_stage_has_its_share_of_the_head_s_rate(
    options: dict[str, Any], factors: list[float]
) -> None:
    parts = [[nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]] * 4
    parts = [[nn.Parameter(p.detach().clone()) for p in part] for part in parts]
    groups = parameter_groups(parts, learning_rate=RATE, weight_decay=0.3, **options)

    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    for part, factor in zip(parts, factors, strict=True):
        assert [rate[id(p)] for p in part] == pytest.approx([RATE * factor] * 2)
    assert groups[0]["lr"] == RATE


# Optimizers


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "lion", "AdamW", "lamb"])
def test_an_optimizer_keeps_its_groups_rates_and_decays_and_learns(name: str) -> None:
    check_optimizer(name)
    torch.manual_seed(0)
    network = BaselineCNN(2, channels=(4,), dropout_rate=0)
    groups = parameter_groups(
        stages(network), learning_rate=0.003, weight_decay=0.01, backbone_factor=0.5
    )
    wanted = [(group["lr"], group["weight_decay"]) for group in groups]
    optimizer = build_optimizer(name, groups)

    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == wanted
    images, labels = torch.rand(8, 3, 8, 8), torch.arange(8) % 2
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_its_steps_are_those_of_pytorch_s_plain_one(name: str) -> None:
    networks = []
    for plain in (False, True):
        torch.manual_seed(0)
        network = BaselineCNN(2, channels=(4,), dropout_rate=0)
        groups = parameter_groups(stages(network), learning_rate=0.01, weight_decay=0.1)
        optimizer: torch.optim.Optimizer
        if plain:
            kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name]
            optimizer = kind(groups, foreach=False, fused=False)
        else:
            optimizer = build_optimizer(name, groups)
            assert all(group["fused"] for group in optimizer.param_groups)
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(network(torch.rand(8, 3, 8, 8)), torch.arange(8) % 2).backward()
            optimizer.step()
        networks.append(network)
    torch.testing.assert_close(networks[0].state_dict(), networks[1].state_dict())


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "lion"])
def test_weights_may_begin_to_learn_later_than_others_of_their_group(name: str) -> None:
    first, later = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = build_optimizer(name, [{"params": [first, later], "lr": RATE}])
    for learning in ([first], [first, later]):
        optimizer.zero_grad()
        torch.stack([weight.square().sum() for weight in learning]).sum().backward()
        optimizer.step()
    assert not torch.equal(first, later)
    assert later.max() < 1


def test_gradients_of_a_scaled_loss_are_unscaled_and_then_clipped() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer("adamw", [{"params": [weight], "lr": RATE}])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    scaler.scale(weight.sum()).backward()
    assert optimizer.param_groups[0]["fused"]  # which Lightning would not clip by itself
    scaler.unscale_(optimizer)
    precision.clip_gradients(optimizer, 1.0)
    scaler.step(optimizer)

    assert weight.grad is not None
    assert weight.grad.norm().item() == pytest.approx(1.0)
    assert not torch.equal(weight, torch.ones(2, 2))


@pytest.mark.parametrize(("typed", "meant"), [("adamm", "adam"), ("SDG", "sgd"), ("lionn", "lion")])
def test_an_unknown_optimizer_is_refused_with_close_names(typed: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"training.optimizer={typed}.*did you mean.*{meant}") as e:
        check_optimizer(typed)
    assert len(str(e.value).splitlines()) <= 3


def accepted(name: str) -> bool:
    try:
        check_optimizer(name)
    except InputError:
        return False
    return True


def test_every_optimizer_that_is_accepted_can_be_built_here() -> None:
    # Some of timm's need a GPU or a package that may not be here.
    for name in map(str, list_optimizers()):
        if accepted(name):
            build_optimizer(name, [{"params": [nn.Parameter(torch.ones(2, 2))], "lr": RATE}])


# The schedule


def formula(options: TrainingConfig, steps_per_epoch: int, t: int) -> float:
    """f(t) as `Schedule`'s docstring gives it."""
    name, total = options.lr_scheduler, steps_per_epoch * options.max_epochs
    warmup = round(options.warmup_epochs * steps_per_epoch)
    if name == "onecycle" and not warmup:
        warmup = round(0.3 * total)
    half_cosine: Callable[[float], float] = lambda p: (1 + math.cos(math.pi * p)) / 2  # noqa: E731
    if t < warmup:
        rise = (t + 1) / warmup
        return 1 / 25 + (1 - 1 / 25) * (1 - half_cosine(rise)) if name == "onecycle" else rise
    p = (t - warmup) / (total - warmup)
    m = options.min_learning_rate / RATE
    return {
        "none": 1.0,
        "cosine": m + (1 - m) * half_cosine(p),
        "polynomial": m + (1 - m) * (1 - p) ** options.lr_power,
        "step": max(m, options.lr_factor ** (t // steps_per_epoch // options.lr_step_epochs)),
        "onecycle": max(m, 4e-6) + (1 - max(m, 4e-6)) * half_cosine(p),
        "reduce_on_plateau": 1.0,
    }[name]


@settings_of(deadline=None)
@given(
    name=st.sampled_from(NAMES),
    steps_per_epoch=st.integers(1, 7),
    max_epochs=st.integers(2, 12),
    warmup_share=st.floats(0, 0.9),
    min_learning_rate=st.sampled_from([0.0, 0.01, 0.05]),
    lr_step_epochs=st.integers(1, 4),
    lr_power=st.floats(0.3, 3),
)
def test_the_rate_of_every_step_follows_the_formula(
    name: str, steps_per_epoch: int, max_epochs: int, warmup_share: float, **options: Any
) -> None:
    options |= {"max_epochs": max_epochs, "warmup_epochs": warmup_share * max_epochs}
    scheduler = schedule(name, steps_per_epoch, (RATE, RATE / 4), **options)
    settings = TrainingConfig(lr_scheduler=name, **options)
    for t in range(steps_per_epoch * max_epochs):
        expected = formula(settings, steps_per_epoch, t)
        found = [group["lr"] for group in scheduler.optimizer.param_groups]
        assert found == pytest.approx([RATE * expected, RATE / 4 * expected], abs=1e-6)
        assert scheduler.get_last_lr() == found
        scheduler.optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("options", "torch_s"),
    [
        (
            {"lr_scheduler": "cosine", "min_learning_rate": 0.01},
            lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=40, eta_min=0.01),
        ),
        (
            {"lr_scheduler": "polynomial", "lr_power": 0.9},
            lambda o: lr_scheduler.PolynomialLR(o, total_iters=40, power=0.9),
        ),
        (
            {"lr_scheduler": "step", "lr_step_epochs": 3, "lr_factor": 0.2},
            lambda o: lr_scheduler.StepLR(o, step_size=15, gamma=0.2),
        ),
        (
            {"lr_scheduler": "none", "warmup_epochs": 2},
            lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=9),
        ),
    ],
)
def test_equal_to_pytorch_s_schedulers_where_the_definitions_agree(
    options: dict[str, Any], torch_s: Callable[[torch.optim.Optimizer], Any]
) -> None:
    ours = schedule(options.pop("lr_scheduler"), max_epochs=8, **options)
    theirs = torch_s(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=RATE))
    assert rates_of(ours, 40) == pytest.approx(rates_of(theirs, 40), abs=1e-6)


def test_onecycle_is_pytorch_s_whose_rise_starts_one_step_earlier() -> None:
    # PyTorch's warm-up starts at 1/25 itself, ours one step above, as every warm-up here: its
    # cycle of 41 steps with a peak at step 12 is ours of 40 with the peak at step 11.
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=RATE)
    theirs = rates_of(
        lr_scheduler.OneCycleLR(
            optimizer, RATE, total_steps=41, pct_start=13 / 41, cycle_momentum=False
        ),
        40,
    )
    ours = rates_of(schedule("onecycle", max_epochs=8), 40)
    assert ours == pytest.approx(theirs[1:13] + theirs[12:40], abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_goes_on_with_another_number_of_steps_an_epoch(name: str) -> None:
    options: dict[str, Any] = {"max_epochs": 8, "warmup_epochs": 1, "lr_step_epochs": 3}
    short, long = schedule(name, 5, **options), schedule(name, 20, **options)
    rates_of(short, 4 * 5)
    whole = rates_of(long, 8 * 20)

    resumed = schedule(name, 20, **options)
    resumed.load_state_dict(short.state_dict())
    assert rates_of(resumed, 4 * 20) == pytest.approx(whole[4 * 20 :])


def test_onecycle_rises_and_falls_within_the_time() -> None:
    cycle = schedule("onecycle", max_epochs=100)
    rates = []
    for step, used in enumerate(np.linspace(0, 1, 20).tolist()):
        cycle.time_used = lambda used=used: used
        rates.append(cycle.multiplier(step))
    assert max(rates) == pytest.approx(1, abs=0.05)
    assert rates.index(max(rates)) in (5, 6)  # 30 % of the time
    assert rates[-1] < 1e-4


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("first", [0.5, math.nan])
def test_reduce_on_plateau_is_pytorch_s(
    mode: Literal["min", "max"], patience: int, first: float
) -> None:
    torch.manual_seed(patience)
    values = [first, *(0.5 + 0.1 * torch.randn(60)).tolist()]
    ours = schedule(
        "reduce_on_plateau", 1, max_epochs=99, lr_patience=patience, lr_factor=0.5,
        min_learning_rate=0.001,
    )  # fmt: skip
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=RATE)
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, factor=0.5, patience=patience, min_lr=0.001
    )
    for value in values:
        ours.optimizer.step()
        ours.step()
        ours.observe(value, mode)
        theirs.step(value)
        assert ours.optimizer.param_groups[0]["lr"] == pytest.approx(
            optimizer.param_groups[0]["lr"]
        )
    assert optimizer.param_groups[0]["lr"] < RATE


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_saved_in_the_middle_continues_exactly(name: str) -> None:
    def run(scheduler: Schedule, epochs: range) -> list[float]:
        rates = []
        for epoch in epochs:
            rates += rates_of(scheduler, 5)
            scheduler.observe([0.5, 0.4, 0.6, 0.6, 0.6, 0.6, 0.3, 0.6][epoch], "min")
        return rates

    options: dict[str, Any] = {"max_epochs": 8, "warmup_epochs": 1.5, "lr_patience": 1}
    whole = run(schedule(name, **options), range(8))

    first, second = schedule(name, **options), schedule(name, **options)
    rates = run(first, range(5))
    file = io.BytesIO()
    torch.save([first.optimizer.state_dict(), first.state_dict()], file)
    file.seek(0)
    optimizer_state, state = torch.load(file, weights_only=True)
    second.optimizer.load_state_dict(optimizer_state)
    second.load_state_dict(state)
    assert rates + run(second, range(5, 8)) == whole


def test_a_continued_run_takes_the_rate_and_epochs_of_its_own_settings() -> None:
    first = schedule("cosine", max_epochs=4)
    rates_of(first, 10)
    longer = schedule("cosine", rates=(RATE / 2,), max_epochs=8)
    longer.optimizer.load_state_dict(first.optimizer.state_dict())
    longer.load_state_dict(first.state_dict())

    uninterrupted = rates_of(schedule("cosine", rates=(RATE / 2,), max_epochs=8), 40)
    assert rates_of(longer, 30) == pytest.approx(uninterrupted[10:], abs=1e-9)


@pytest.mark.skipif(find_spec("opt_einsum") is not None, reason="the package is there")
def test_an_optimizer_that_would_take_minutes_for_lack_of_a_package_says_which() -> None:
    with pytest.raises(InputError, match="uv add opt_einsum"):
        check_optimizer("kron")
