"""Every option of a training is seen to work: in the weights, the files, or the memory."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import wandb
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from timm.models import ResNet
from torch.nn.modules.module import register_module_forward_pre_hook

from mlops_project import settings
from mlops_project.errors import InputError, Interrupted, ProjectError
from mlops_project.models.baseline_cnn import BaselineCNN
from mlops_project.models.build import build_model, stages
from mlops_project.training.failures import memory_advice
from mlops_project.training.preparation import open_data
from mlops_project.training.progressive_resizing import side_in, sides_in
from mlops_project.training.run import Result, train
from mlops_project.training.tuning import FOUND_RATE, find_learning_rate, raw_losses, steepest

SMALL = ("data.image_size=32", "data.batch_size=16", "training.max_epochs=1", "data.augment=false")
Train = Callable[..., Result]
Options = tuple[str, ...]
# A transformer of a few thousand weights, without batch normalisation or dropout
TINY: Options = (
    "model=timm",
    "model.variant=test_vit",
    "data.image_size=160",
    "model.pretrained=false",
)
# A ResNet of half a million weights
SMALL_RESNET: Options = ("model=timm", "model.variant=test_resnet", "model.pretrained=false")


@pytest.fixture
def run_here(here: tuple[str, str]) -> Train:
    """Trains with some options, in a working folder of its own."""
    return lambda *options: train(settings.load([*here, *SMALL, *options]))


def weights(result: Result, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    assert result.folder is not None
    path = result.folder / "checkpoints" / name
    return torch.load(path, weights_only=True)["state_dict"]


def difference(a: Result, b: Result) -> float:
    left, right = weights(a), weights(b)
    return max(float((left[n].float() - right[n].float()).abs().max()) for n in left)


def test_accumulated_batches_give_the_weights_of_the_larger_batch(run_here: Train) -> None:
    options = (*TINY, "training.optimizer=sgd", "training.class_weights=balanced")
    whole = run_here(*options, "data.batch_size=16")
    parts = run_here(*options, "data.batch_size=4", "training.accumulate_grad_batches=4")
    single = run_here(*options, "data.batch_size=4")
    assert difference(whole, parts) < 1e-5
    assert difference(whole, single) > 1e-4


def test_the_logged_rate_follows_the_formula_with_accumulation(run_here: Train) -> None:
    result = run_here(
        "training.accumulate_grad_batches=2",
        "training.log_every_n_steps=1",
        "training.max_epochs=3",
        "training.learning_rate=0.01",
        "training.warmup_epochs=1",
    )
    assert result.folder is not None
    log = pd.read_csv("logs/lightning_logs/baseline_cnn_version_0/metrics.csv")
    rates = log.dropna(subset=["learning_rate"])["learning_rate"].to_numpy()
    steps = pd.read_csv(result.folder / "metrics.csv")["step"].iloc[0]
    total = 3 * steps
    expected = [
        0.01 * (t + 1) / steps
        if t < steps
        else 0.01 * (1 + np.cos(np.pi * (t - steps) / (total - steps))) / 2
        for t in range(total)
    ]
    assert len(rates) == total
    assert np.abs(rates - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("warmup", "told"),
    [
        ("0.9", None),
        ("1", "training.warmup_epochs=1, of training.max_epochs=1: the learning rate rises to the"),
        ("4", "the learning rate rises to the end, to a part of the full rate"),
    ],
)
def test_a_run_that_ends_in_its_warm_up_says_so(
    run_here: Train, capfd: pytest.CaptureFixture[str], warmup: str, told: str | None
) -> None:
    run_here(f"training.warmup_epochs={warmup}", "training.limit_train_batches=2")
    printed = " ".join(capfd.readouterr().err.split())
    assert (told in printed) if told else ("warmup_epochs" not in printed)


def test_clipping_bounds_a_step(run_here: Train) -> None:
    sgd: Options = (*TINY, "training.optimizer=sgd", "training.limit_train_batches=1")
    sgd = (*sgd, "training.lr_scheduler=none", "training.weight_decay=0")
    start = run_here(*sgd, "training.learning_rate=1e-30")
    by_norm = run_here(*sgd, "training.learning_rate=1", "training.gradient_clip_val=1e-3")
    by_value = run_here(
        *sgd,
        "training.learning_rate=1",
        "training.gradient_clip_val=1e-5",
        "training.gradient_clip_algorithm=value",
    )
    first, clipped = weights(start), weights(by_norm)
    norm = sum(float((first[n] - clipped[n]).square().sum()) for n in first) ** 0.5
    # timm's sgd has Nesterov momentum 0.9, whose first step is 1.9 times the gradient
    assert norm == pytest.approx(1.9e-3, rel=0.01)
    assert difference(start, by_value) == pytest.approx(1.9e-5, rel=0.02)


def test_the_averaged_weights_are_evaluated_and_saved(run_here: Train) -> None:
    plain = run_here("training.max_epochs=2")
    averaged = run_here("training.max_epochs=2", "training.ema_decay=0.99")
    checkpoint = torch.load(averaged.checkpoint, weights_only=True)
    current = checkpoint["current_model_state"]
    saved = {n: v for n, v in checkpoint["state_dict"].items() if v.is_floating_point()}
    assert any(not torch.equal(saved[n], current[n]) for n in saved)
    assert averaged.best["val_loss"] != plain.best["val_loss"]
    from mlops_project.evaluation.report import evaluate

    facts = evaluate(averaged.checkpoint)
    assert facts["metrics"]["auroc"]["value"] == pytest.approx(averaged.test["test_auroc"])


def test_lower_precision_changes_the_numbers_a_little(run_here: Train) -> None:
    full = run_here()
    for precision in ("16", "bf16"):
        lower = run_here(f"training.precision={precision}")
        assert lower.best["train_loss"] != full.best["train_loss"]
        assert lower.best["train_loss"] == pytest.approx(full.best["train_loss"], rel=0.1)


def test_half_precision_weights_and_other_backends_are_refused() -> None:
    for option in ("training.precision=16-true", "training.amp_backend=apex"):
        with pytest.raises(InputError, match="must be"):
            settings.load([option])


@pytest.mark.parametrize("name", ["baseline_cnn", "resnet", "efficientnet"])
def test_recomputed_activations_give_the_same_gradients_from_less_memory(name: str) -> None:
    from mlops_project.training.batch_norm import count_batches_once
    from mlops_project.training.module import recompute_activations

    config = settings.load([f"model={name}", "model.pretrained=false"])
    torch.manual_seed(0)
    network = build_model(config.model, 64).network.train()
    images = torch.randn(2, 3, 64, 64)

    def step() -> tuple[list[torch.Tensor], int]:
        kept: set[tuple[int, int]] = set()

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
            return tensor

        network.zero_grad()
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = network(images).square().sum()
        size = sum(nbytes for _, nbytes in kept)
        loss.backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None], size

    at_first = copy.deepcopy(network.state_dict())
    before, needed = step()
    statistics = copy.deepcopy(network.state_dict())
    network.load_state_dict(at_first)
    recompute_activations(network, config)
    count_batches_once(network)
    after, less = step()
    for key, value in network.state_dict().items():  # a batch seen twice counts once
        torch.testing.assert_close(value, statistics[key], rtol=1e-5, atol=1e-6)
    assert all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(before, after, strict=True)
    )
    assert less < 0.7 * needed


@pytest.mark.slow
def test_a_compiled_network_trains_and_keeps_its_names(run_here: Train) -> None:
    compiled = run_here("training.compile=true")
    plain = run_here()
    assert weights(compiled).keys() == weights(plain).keys()
    # Its dropout draws the same, and what else a program compiles is left as it was.
    assert compiled.best["train_loss"] == pytest.approx(plain.best["train_loss"], rel=1e-3)
    assert torch._inductor.config.fallback_random is False


@pytest.mark.parametrize("kind", ["simple", "advanced", "pytorch"])
def test_a_profile_is_a_file_in_the_runs_folder(run_here: Train, kind: str) -> None:
    result = run_here(f"training.profiler={kind}", "training.limit_train_batches=2")
    assert result.folder is not None
    found = [p for p in result.folder.iterdir() if "profile" in p.name]
    assert found
    assert all(p.stat().st_size > 0 for p in found)


def test_time_ends_a_training_and_the_schedule_with_it(
    run_here: Train, pass_time: Callable[[float], None]
) -> None:
    def watch(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, BaselineCNN) and module.training:
            pass_time(6 * 3600)

    handle = register_module_forward_pre_hook(watch)
    try:
        result = run_here(
            "training.max_time=01:00:00:00",
            "training.max_epochs=100000",
            "training.early_stopping_patience=0",
            "training.log_every_n_steps=1",
        )
    finally:
        handle.remove()
    assert result.folder is not None
    log = pd.read_csv("logs/lightning_logs/baseline_cnn_version_0/metrics.csv")
    rates = log["learning_rate"].dropna() / 1e-3
    used = np.arange(4) / 4  # of the time, before each step: of the epochs, nearly none
    assert rates.to_numpy() == pytest.approx((1 + np.cos(np.pi * used)) / 2, rel=0.01)
    epochs = pd.read_csv(result.folder / "metrics.csv")
    assert epochs["step"].tolist() == [4], "the epoch is cut short"
    assert epochs["val_loss"].notna().all()


def test_a_worker_that_dies_ends_the_run_with_advice(run_here: Train) -> None:
    killed: list[Any] = []

    def kill(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if not killed:
            killed.extend(multiprocessing.active_children())
            killed[0].kill()
            killed[0].join()

    handle = register_module_forward_pre_hook(kill)
    try:
        with pytest.raises(ProjectError, match=r"has failed \(DataLoader worker") as caught:
            run_here("data.cache=off", "data.num_workers=1", "training.max_epochs=30")
    finally:
        handle.remove()
    assert "A smaller data.num_workers" in str(caught.value)


def test_a_plateau_reduces_the_rate(run_here: Train) -> None:
    result = run_here(
        "training.lr_scheduler=reduce_on_plateau",
        "training.lr_patience=1",
        "training.lr_factor=0.5",
        "training.learning_rate=1e-30",
        "training.monitor_metric=val_accuracy",
        "training.max_epochs=6",
        "training.early_stopping_patience=0",
    )
    assert result.folder is not None
    rates = pd.read_csv(result.folder / "metrics.csv")["learning_rate"] / 1e-30
    # The first epoch is the best; after two without a better one the rate is halved, and again
    assert rates.tolist() == pytest.approx([1, 1, 1, 0.5, 0.5, 0.25])


def test_images_grow_from_epoch_to_epoch(run_here: Train) -> None:
    seen: list[tuple[bool, int]] = []

    def watch(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, ResNet):
            seen.append((module.training, inputs[0].shape[-1]))

    options = ("data.image_size=64", "data.start_size=32", "training.max_epochs=3")
    handle = register_module_forward_pre_hook(watch)
    try:
        run_here(*SMALL_RESNET, "data.batch_size=64", *options)
    finally:
        handle.remove()
    trained = [side for training, side in seen if training]
    assert sorted(set(trained)) == [32, 48, 64]
    assert trained == sorted(trained)
    assert [trained.count(side) for side in (32, 48, 64)] == [2, 2, 2]  # 81 images
    evaluated = [side for training, side in seen if not training]
    assert [evaluated.count(side) for side in (32, 48)] == [1, 1]  # whether it can take them
    assert set(evaluated) == {32, 48, 64}


def test_images_keep_their_size_within_an_epoch_that_goes_on(
    run_here: Train, pass_time: Callable[[float], None]
) -> None:
    seen: list[int] = []

    def watch(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, ResNet) and module.training:
            if len(seen) == 8:  # of five batches an epoch
                seen.append(0)
                raise RuntimeError("stopped within the second epoch")
            seen.append(inputs[0].shape[-1])
            pass_time(1.5 * 3600)

    options = ("data.image_size=64", "data.start_size=32", "training.max_time=01:00:00:00")
    handle = register_module_forward_pre_hook(watch)
    try:
        with pytest.raises(RuntimeError, match="within the second epoch"):
            run_here(
                *(*SMALL_RESNET, *options, "data.batch_size=16", "training.max_epochs=10"),
                "training.checkpoint_every_n_steps=1",
            )
        run_here(
            *(*SMALL_RESNET, *options, "data.batch_size=16", "training.max_epochs=10"),
            *("training.checkpoint_every_n_steps=1", "training.resume_from_checkpoint=auto"),
        )
    finally:
        handle.remove()
    assert seen[:8] == [32] * 5 + [48] * 3
    assert seen[9:12] == [48, 48, 64]


def test_images_are_full_grown_when_the_time_is_over() -> None:
    """Else the network would be evaluated at a size that it has never seen."""
    config = settings.load(["data.image_size=192", "data.start_size=96", "training.max_epochs=12"])
    assert [side_in(epoch, config) for epoch in (0, 6, 11)] == [96, 144, 192]
    # Half of the time for four epochs: there will be eight.
    assert side_in(4, config, 0.5) == 144
    assert side_in(7, config, 0.95) == 192
    assert side_in(4, config, 0.1) == side_in(4, config)  # the epochs end first
    assert side_in(0, config, 0.0) == side_in(0, config, 0.01) == 96


@pytest.mark.parametrize(("start", "sides"), [(41, [41, 64, 96]), (90, [90, 96, 96])])
def test_the_first_epoch_has_the_size_that_was_asked_for(start: int, sides: list[int]) -> None:
    options = [f"data.start_size={start}", "data.image_size=96", "training.max_epochs=3"]
    assert [side_in(epoch, settings.load(options)) for epoch in range(3)] == sides


def test_a_size_that_the_network_cannot_start_with_is_refused(run_here: Train) -> None:
    blocks = ("model.architecture.conv_blocks=5", "model.architecture.channels=[2,2,2,2,2]")
    with pytest.raises(InputError, match=r"cannot take 16 × 16 .*another data\.start_size"):
        run_here(*blocks, "data.start_size=16")
    with pytest.raises(InputError, match=r"start_size=64: it must be at most data\.image_size=32"):
        run_here("data.start_size=64")
    grown = ("data.start_size=96", "data.image_size=128")  # it takes both, but no 112
    with pytest.raises(InputError, match=r"cannot take 112 × 112 .*another data\.start_size"):
        run_here("model=timm", "model.variant=hrnet_w18_small", "model.pretrained=false", *grown)


@given(
    start=st.integers(16, 400),
    more=st.integers(0, 300),
    epochs=st.integers(1, 30),
    used=st.floats(0, 1),
)
def test_every_size_that_images_grow_through_is_known_before(
    start: int, more: int, epochs: int, used: float
) -> None:
    data = {"start_size": start, "image_size": start + more}
    config = settings.from_container({"data": data, "training": {"max_epochs": epochs}})
    known = sides_in(config)
    assert (known[0], known[-1]) == (start, start + more)
    assert {side_in(epoch, config, used) for epoch in range(epochs)} <= set(known)


def test_the_learning_rate_can_be_found(run_here: Train) -> None:
    result = run_here("training.learning_rate=auto", "data.batch_size=4")
    assert result.folder is not None
    rate = settings.from_container(
        torch.load(result.checkpoint, weights_only=True)["mlops_project"]["config"]
    ).training.learning_rate
    assert isinstance(rate, float)
    assert 1e-5 < rate < 0.1
    with Image.open(result.folder / "learning_rate.png") as picture:
        assert picture.width > 300
    assert not list(Path.cwd().rglob(".lr_find*"))
    told = json.loads((result.folder / "results.json").read_text())
    assert told["auto"] == "training.learning_rate"


@pytest.mark.parametrize("seed", range(5))
def test_the_rate_is_where_the_loss_falls_fastest_not_where_it_is_noisy(seed: int) -> None:
    rates = np.logspace(-6, 0, 101)[:-1]
    middle = -3.0  # of a fall over two decades; from 0.03 on it diverges, and falls back at times
    fall = 0.5 / (1 + np.exp(-3 * (np.log10(rates) - middle)))
    noise = np.random.default_rng(seed).normal(0, 0.05, 100)
    losses = 0.9 - fall + noise + np.where(rates > 0.03, 2.0, 0) - np.where(rates > 0.3, 1.5, 0)
    sums, averages = 0.0, []
    for step, loss in enumerate(losses, 1):  # as Lightning averages them
        sums = 0.98 * sums + 0.02 * loss
        averages.append(sums / (1 - 0.98 ** (step + 1)))
    raw = raw_losses(np.array(averages))
    np.testing.assert_allclose(raw, losses)
    found, _ = steepest(rates, raw)
    assert found is not None
    assert abs(np.log10(found) - middle) < 0.5


@pytest.mark.parametrize("losses", [[], [0.5], [np.nan] * 9, np.linspace(0.5, 0.9, 30).tolist()])
def test_a_loss_that_falls_nowhere_gives_no_rate(losses: list[float]) -> None:
    assert steepest(np.logspace(-6, 0, len(losses)), np.array(losses))[0] is None


def test_what_comes_before_a_loss_that_is_not_finite_tells_the_rate() -> None:
    losses = np.array([0.9, 0.9, 0.8, 0.5, 0.4, 0.4, np.nan, 0.1])
    rate, smoothed = steepest(np.logspace(-6, 0, 8), losses)
    assert rate is not None
    assert rate < 1e-1
    assert len(smoothed) == 6


def test_ctrl_c_while_the_rate_is_looked_for_ends_as_such(run_here: Train) -> None:
    asked = []

    def interrupt(module: torch.nn.Module, _: Any) -> None:
        asked.append(module)
        if module.training and len(asked) > 50:
            signal.raise_signal(signal.SIGINT)

    handle = register_module_forward_pre_hook(interrupt)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(Interrupted, match="interrupted") as caught:
            run_here("training.learning_rate=auto", "data.batch_size=4")
    finally:
        handle.remove()
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is handler  # Lightning leaves it ignored


def test_ctrl_c_between_two_trainings_of_a_program_does_not_end_the_second(run_here: Train) -> None:
    run_here()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert run_here().best["epoch"] == 0


def test_other_processes_take_the_rate_that_the_first_one_has_found(
    here: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings.load([*here, "training.learning_rate=auto"])
    built, data = build_model(config.model, 32), open_data(config)
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as in the second process
    with pytest.raises(InputError, match="name a number where torchrun or SLURM starts"):
        find_learning_rate(config, built, data, None)
    monkeypatch.setenv(FOUND_RATE, "0.000123")
    assert find_learning_rate(config, built, data, None) == 0.000123


def test_the_batch_size_can_be_left_open(run_here: Train) -> None:
    result = run_here("data.batch_size=auto")
    config = torch.load(result.checkpoint, weights_only=True)["mlops_project"]["config"]
    assert config["data"]["batch_size"] in (8, 16, 32, 64)  # of about 80 images


def test_without_a_test_split_the_validation_split_is_next(
    run_here: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_here("data.test_fraction=0")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"evaluate.py --checkpoint {result.checkpoint} --split val")


def test_the_preview_shows_every_class_twice(run_here: Train) -> None:
    result = run_here("data.preview=true", "data.augment=true", "data.rotation_degrees=90")
    assert result.folder is not None
    with Image.open(result.folder / "preview.png") as picture:
        assert picture.height > picture.width  # two classes, each before and after


# A notebook's own pictures, before and after a training that draws all of its
DRAWS_ITSELF = """
import sys
import matplotlib.pyplot as plt
from mlops_project import settings
from mlops_project.training.run import train

plt.plot([1, 2])
before = plt.get_backend(), plt.get_fignums()
folder = train(settings.load(sys.argv[1:])).folder
print(*sorted(path.name for path in folder.glob("*.png")))
print(before == (plt.get_backend(), plt.get_fignums()), plt.get_backend())
"""


def test_the_pictures_of_a_program_that_trains_stay_as_they_were(here: tuple[str, str]) -> None:
    options = (*SMALL, "training.learning_rate=auto", "data.preview=true")
    done = subprocess.run(
        [sys.executable, "-c", DRAWS_ITSELF, *here, *options],
        env=os.environ | {"MPLBACKEND": "svg"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pictures, kept = done.stdout.splitlines()[-2:]
    assert pictures.split() == ["curves.png", "learning_rate.png", "preview.png"]
    assert kept == "True svg"


def test_a_frozen_part_stays_bit_identical_until_its_epoch(run_here: Train) -> None:
    options: Options = (*SMALL_RESNET, "training.save_top_k=9", "training.limit_train_batches=2")
    schedule = ("training.freeze_backbone_epochs=1", "training.progressive_unfreezing=true")
    result = run_here(
        *options, *schedule, "training.unfreeze_schedule=[2,3]", "training.max_epochs=4"
    )
    assert result.folder is not None
    kept = sorted((result.folder / "checkpoints").glob("epoch=*.ckpt"))
    states = [torch.load(p, weights_only=True)["state_dict"] for p in kept]

    def moved(prefix: str, a: int, b: int) -> bool:
        names = [n for n in states[0] if n.startswith(f"network.{prefix}")]
        assert names
        return any(not torch.equal(states[a][n], states[b][n]) for n in names)

    assert moved("fc", 0, 1)
    # Epochs are counted from 0: at 2 the last stage is freed, at 3 all the rest
    assert not moved("layer4", 0, 1)
    assert not moved("bn1", 0, 1)
    assert moved("layer4", 1, 2)
    assert not moved("layer1", 1, 2)
    assert not moved("bn1", 1, 2)
    assert moved("layer1", 2, 3)
    assert moved("bn1", 2, 3)


def test_a_resume_before_at_and_after_unfreezing_changes_nothing(run_here: Train) -> None:
    options: Options = (*SMALL_RESNET, "training.lr_scheduler=none", "training.max_epochs=4")
    options = (*options, "training.limit_train_batches=2", "training.freeze_backbone_epochs=2")
    options = (*options, "training.save_top_k=9")
    whole = run_here(*options)
    assert whole.folder is not None
    expected, kept = weights(whole), whole.folder / "checkpoints"
    for path in sorted(kept.glob("epoch=*.ckpt"))[:3]:
        (kept / "last.ckpt").unlink()
        resumed = run_here(*options, f"training.resume_from_checkpoint={path}")
        assert resumed.folder == whole.folder
        found = weights(resumed)
        assert all(torch.equal(found[name], expected[name]) for name in expected), path


def test_a_batch_that_cannot_be_normalised_is_told(run_here: Train) -> None:
    resnet = ("model=resnet", "model.pretrained=false", "data.batch_size=1")
    for options in (resnet, (*resnet, "training.learning_rate=auto")):
        with pytest.raises(ProjectError, match=r"batch_size=1: a batch of a single image"):
            run_here(*options)


def test_the_seed_decides_every_bit(run_here: Train) -> None:
    augmented = ("data.augment=true", "data.color_jitter=0.3", "data.mixup=0.2")
    first = run_here(*augmented)
    assert difference(first, run_here(*augmented)) == 0
    assert difference(first, run_here(*augmented, "seed=43")) > 0


@pytest.fixture(scope="module")
def default_weights(
    demo_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """The weights after a short run with nothing set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("default"))
        return weights(train(settings.load([f"data.data_dir={demo_folder}", *SMALL, *BRIEF])))


BRIEF: Options = ("training.limit_train_batches=2", "data.augment=true")
BRIEF += tuple(f"data.{n}=0" for n in ("horizontal_flip", "vertical_flip", "rotation_degrees"))
BRIEF += ("data.color_jitter=0",)


@pytest.mark.parametrize(
    "option",
    [
        *("data.augment=false", "data.horizontal_flip=1", "data.vertical_flip=1"),
        *("data.rotation_degrees=90", "data.color_jitter=0.5", "data.random_erasing=1"),
        *("data.mixup=1", "data.cutmix=1", "data.randaugment=9", "data.hue=0.5"),
        "data.transpose=1",
        *("data.sampler=balanced", "training.logit_adjustment=1"),
        *("training.loss=focal", "training.class_weights=balanced", "training.label_smoothing=0.2"),
        *("training.optimizer=sgd", "training.optimizer=adam", "training.optimizer=rmsprop"),
        *("training.optimizer=lion", "training.weight_decay=5", "training.learning_rate=0.1"),
        *("training.lr_scheduler=onecycle", "training.warmup_epochs=0.9"),
        *("model.dropout_rate=0", "model.learning_rate=0.1", "data.subsample_percentage=0.3"),
        *("training.lr_scheduler=polynomial", "training.min_learning_rate=0.0009"),
        *("training.layer_decay=0.5", "training.freeze_backbone_epochs=1"),
    ],
)
def test_an_option_changes_what_is_learned(
    run_here: Train, default_weights: dict[str, torch.Tensor], option: str
) -> None:
    changed = weights(run_here(*BRIEF, option))
    assert any(not torch.equal(default_weights[n], changed[n]) for n in changed)


def test_limits_and_the_interval_of_logging_are_kept(run_here: Train) -> None:
    result = run_here(
        "training.limit_train_batches=4",
        "training.limit_val_batches=1",
        "training.log_every_n_steps=2",
        "training.save_last=false",
    )
    assert result.folder is not None
    table = pd.read_csv(result.folder / "metrics.csv")
    assert table["step"].tolist() == [4]
    log = pd.read_csv("logs/lightning_logs/baseline_cnn_version_0/metrics.csv")
    assert log["train_loss_step"].notna().sum() == 2
    assert not (result.folder / "checkpoints/last.ckpt").exists()


def test_the_progress_display_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

    from mlops_project.training.trainer import build_trainer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    folder = tmp_path / "models/baseline_cnn/version_0"
    for name, kind in (("rich", RichProgressBar), ("tqdm", TQDMProgressBar), ("none", type(None))):
        config = settings.load([f"training.progress_bar={name}", "training.precision=32"])
        assert isinstance(build_trainer(config, folder, [], []).progress_bar_callback, kind)


def test_a_device_that_is_not_here_is_refused_before_anything_is_written(run_here: Train) -> None:
    for option, words in (
        ("training.devices=none", "must be"),
        ("training.devices=0", "at least 1, or auto"),
        ("training.devices=²", "must be a whole number"),
        ("training.devices=[0,1]", "must be a whole number"),
        ("training.accelerator=mps", "no Apple GPU"),
        ("training.max_time=8h", "days:hours:minutes:seconds"),
    ):
        with pytest.raises(InputError, match=words):
            run_here(option)
    if not torch.cuda.is_available():
        for option in ("training.accelerator=gpu", "training.strategy=fsdp"):
            with pytest.raises(InputError, match="GPU"):
                run_here(option)
    assert list(Path.cwd().iterdir()) == []


def test_the_backbone_learns_at_its_own_rate(run_here: Train) -> None:
    options: Options = (*TINY, "training.lr_scheduler=none", "training.weight_decay=0")
    options = (*options, "training.limit_train_batches=1", "training.learning_rate=0.001")
    start = weights(run_here(*options, "training.learning_rate=1e-30"))
    slow = weights(run_here(*options, "training.unfreeze_lr_factor=0.1"))
    # Adam's first step is the learning rate itself
    step = {n: float((start[n] - slow[n]).abs().max()) for n in start}
    assert step["network.head.weight"] == pytest.approx(1e-3, rel=0.05)
    assert step["network.patch_embed.proj.weight"] == pytest.approx(1e-4, rel=0.05)


def test_a_run_can_start_from_the_weights_of_another(run_here: Train) -> None:
    first = run_here("training.max_epochs=2")
    second = run_here(f"model.init_from={first.checkpoint}", "training.learning_rate=1e-30")
    before, after = weights(first, first.checkpoint.name), weights(second)
    learned = [n for n in before if "running" not in n and "num_batches" not in n]
    assert all(torch.equal(before[n], after[n]) for n in learned)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("model.init_from=gone.ckpt",), "model.init_from=gone.ckpt: no such file"),
        (("model=resnet", "model.pretrained_path=gone.pth"), "gone.pth: no such file"),
        (("model=timm", "model.variant=resnt34"), "knows no such network; did you mean resnet34"),
    ],
)
def test_what_a_network_lacks_is_told_before_the_images_are_decoded(
    options: Options, words: str, run_here: Train
) -> None:
    with pytest.raises(InputError, match=words):
        run_here(*options, "data.cache=cache")
    assert list(Path.cwd().iterdir()) == []


def test_what_the_weights_of_another_run_have_learned_from_is_not_forgotten(
    run_here: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlops_project.evaluation.report import evaluate

    first = run_here("training.max_epochs=1")
    start = f"model.init_from={first.checkpoint}"
    run_here(start, "training.max_epochs=1")
    assert "have learned from" not in capfd.readouterr().err
    second = run_here(start, "training.max_epochs=1", "seed=7")
    told = re.search(
        r"have learned from what (\d+) val and (\d+) test images", capfd.readouterr().err
    )
    assert told is not None
    third = run_here(f"model.init_from={second.checkpoint}", "training.max_epochs=1", "seed=7")
    leaks = evaluate(third.checkpoint, output=Path("report"))["leaks"]
    assert leaks["status"] == "overlap"
    assert len(leaks["leaked_images"]) >= int(told[2]) > 0


def test_the_advice_for_too_little_memory_keeps_the_effective_batch() -> None:
    config = settings.load(["data.batch_size=24", "training.accumulate_grad_batches=2"])
    message = memory_advice(config)
    assert "data.batch_size=12" in message
    assert "training.accumulate_grad_batches=4" in message
    assert "model.variant=b0" in message
    single = memory_advice(settings.load(["data.batch_size=1"]))
    assert "Try one of\n" in single
    odd = memory_advice(settings.load(["data.batch_size=5"]))
    assert "data.batch_size=2 training.accumulate_grad_batches=3 (for about the same" in odd
    assert "training.enable_checkpointing=true" in single
    assert len(message.splitlines()) <= 3


def test_an_offline_run_of_weights_and_biases_holds_what_was_asked_for(
    run_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run_here(
        "wandb.enabled=true",
        "wandb.project=lesions",
        "wandb.name=a name",
        "wandb.entity=clinic",
        "wandb.tags=[production,efficientnet]",
        "wandb.log_model=true",
        "wandb.log_code=true",
        "wandb.watch_model=all",
        "training.log_every_n_steps=1",
    )
    records = list(read_records(next(Path("wandb").glob("offline-run-*/run-*.wandb"))))
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name) == ("lesions", "a name")
    assert run.entity == "clinic"
    assert list(run.tags) == ["production", "efficientnet"]
    keys = {
        "/".join(item.nested_key) or item.key
        for r in records
        if r.WhichOneof("record_type") == "history"
        for item in r.history.item
    }
    assert {"val_f1_score", "val_loss", "train_loss"} <= keys
    assert any(k.startswith("gradients/") for k in keys)
    assert any(k.startswith("parameters/") for k in keys)
    artifacts = {
        r.request.log_artifact.artifact.type
        for r in records
        if r.WhichOneof("record_type") == "request"
    } | {r.artifact.type for r in records if r.WhichOneof("record_type") == "artifact"}
    assert {"model", "code"} <= artifacts


@pytest.mark.parametrize(
    ("setting", "told"),
    [("wandb.project=skin/lesion", "project name"), (f"wandb.tags=[{'t' * 65}]", "tag")],
)
def test_what_weights_and_biases_refuses_is_told(setting: str, told: str, run_here: Train) -> None:
    with pytest.raises(InputError, match=rf"refuses the run: .*{told}.*\n.*wandb\.enabled"):
        run_here("wandb.enabled=true", setting)
    assert not list(Path("models").glob("*/version_*"))


def read_records(path: Path) -> Any:
    """The records of an offline run: blocks of 32 KiB of length-prefixed pieces, as in LevelDB."""
    from wandb.proto import wandb_internal_pb2

    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield wandb_internal_pb2.Record.FromString(whole)  # type: ignore[attr-defined]
            whole = b""


def test_without_a_server_one_line_says_that_the_run_is_offline(
    run_here: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    run_here("wandb.enabled=true", "training.limit_train_batches=1")
    lines = [line for line in capfd.readouterr().err.splitlines() if "offline" in line.lower()]
    assert len(lines) == 1
    assert re.match("warning: Weights & Biases: 127.0.0.1 cannot be reached", lines[0])
    assert "wandb sync" in lines[0]
    assert os.path.isdir("wandb")


def test_without_an_account_one_line_says_how_to_log_in(
    run_here: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "false")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        wandb.teardown()  # it reads the environment once
        run_here("wandb.enabled=true", "training.limit_train_batches=1")
    wandb.teardown()
    told = "".join(capfd.readouterr())
    assert "no account is known (`uv run wandb login`), so the run is kept offline" in told
    assert "deprecated" not in told


def test_what_was_switched_off_for_the_folder_stays_so(
    run_here: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("wandb").mkdir()
    Path("wandb/settings").write_text("[default]\nmode = disabled\n")  # by `wandb disabled`
    wandb.teardown()
    run_here("wandb.enabled=true", "training.limit_train_batches=1")
    wandb.teardown()
    assert "offline" not in "".join(capfd.readouterr())
    assert not list(Path("wandb").glob("*run-*"))


def test_more_stages_than_entries_are_all_freed_by_the_last_one() -> None:
    from mlops_project.training.finetuning import free_stages

    config = settings.load(
        ["model=resnet", "model.pretrained=false", "training.progressive_unfreezing=true"]
    )
    count = len(stages(build_model(config.model, 64).network))
    free = [free_stages(epoch, count, config.training) for epoch in (0, 4, 5, 10, 14, 15, 99)]
    assert free == [1, 1, 2, 3, 3, count, count]
