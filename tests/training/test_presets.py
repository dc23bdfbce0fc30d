"""What `auto` chooses, and that it changes a run's numbers by rounding alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from mlops_project import settings
from mlops_project.config import Config
from mlops_project.models.build import build_model
from mlops_project.training import presets
from mlops_project.training.checkpoints import load_checkpoint
from mlops_project.training.run import Result, train

Train = Callable[..., Result]


@pytest.fixture
def run_here(here: tuple[str, str]) -> Train:
    small = ("data.image_size=32", "data.batch_size=16", "training.max_epochs=3")
    return lambda *options: train(settings.load([*here, *small, *options]))


def chosen(*arguments: str, images: int = 7000) -> Config:
    config = settings.load(["training.accelerator=cpu", "model.pretrained=false", *arguments])
    network = build_model(config.model, config.data.image_size or 224).network
    presets.choose_presets(config, network, images)
    return config


@pytest.mark.parametrize(
    ("model", "bf16", "compile"),
    [("baseline_cnn", "bf16", False), ("resnet", "bf16", False), ("efficientnet", "32", True)],
)
@pytest.mark.parametrize("known", ["avx512_bf16", "amx_bf16", None])
def test_precision_follows_the_processor_and_the_network(
    model: str, bf16: str, compile: bool, known: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {known: True}, raising=False)
    monkeypatch.setattr(presets, "_compiles", lambda device: True)
    training = chosen(f"model={model}", "training.max_epochs=20").training
    assert training.precision == (bf16 if known else "32")
    assert training.channels_last is True
    assert training.compile is compile


def test_what_is_given_is_kept_and_a_short_run_is_not_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(presets, "_compiles", lambda device: True)
    assert chosen("model=efficientnet", images=100).training.compile is False
    assert chosen("model=efficientnet", "training.max_epochs=20").training.compile is True
    growing = chosen("model=efficientnet", "training.max_epochs=20", "data.start_size=128")
    assert growing.training.compile is False  # which only whole images would gain from
    given = ("training.precision=bf16", "training.channels_last=false", "training.compile=true")
    training = chosen(*given).training
    assert (training.precision, training.channels_last, training.compile) == ("bf16", False, True)


@pytest.mark.parametrize("model", ["baseline_cnn", "timm"])
def test_the_memory_layout_changes_the_numbers_by_rounding(run_here: Train, model: str) -> None:
    variant = ("model.variant=test_efficientnet",) if model == "timm" else ()
    tables = []
    for layout in ("true", "false"):
        options = (f"training.channels_last={layout}", "training.precision=32", *variant)
        result = run_here(f"model={model}", "model.pretrained=false", *options)
        assert result.folder is not None
        tables.append(pd.read_csv(result.folder / "metrics.csv")["train_loss"])
    assert tables[0].tolist() == pytest.approx(tables[1].tolist(), rel=5e-3)


def test_what_was_chosen_is_in_the_runs_settings_and_holds_when_it_goes_on(
    run_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def used(path: Path) -> list[object]:
        options = load_checkpoint(path)["mlops_project"]["config"]["training"]
        return [options[name] for name in ("precision", "channels_last", "compile")]

    processor, short = {"avx512_bf16": True}, ("training.accelerator=cpu", "data.batch_size=64")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    result = run_here(*short, "training.max_epochs=1")
    last = result.checkpoint.with_name("last.ckpt")
    assert used(last) == ["bf16", True, False]
    processor.clear()  # it goes on with one on which float32 would be chosen
    resume = f"training.resume_from_checkpoint={last}"
    again = run_here(*short, "training.max_epochs=2", resume)
    assert again.folder == result.folder
    assert used(last) == ["bf16", True, False]
