"""What a run tells of its speed, and that telling changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from mlops_project import settings
from mlops_project.config import DataConfig
from mlops_project.models.build import build_model
from mlops_project.training.module import build_module
from mlops_project.training.preparation import open_data
from mlops_project.training.run import Result, train
from mlops_project.training.speed import hint, model_rate

Train = Callable[..., Result]
SMALL = ("data.image_size=32", "data.batch_size=16", "training.max_epochs=3")


@pytest.fixture
def run_here(here: tuple[str, str]) -> Train:
    return lambda *options: train(settings.load([*here, *SMALL, *options]))


def test_each_epoch_tells_its_speed_and_the_end_sums_it_up(
    run_here: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_here()
    assert result.folder is not None
    table = pd.read_csv(result.folder / "speed.csv")
    assert table["epoch"].tolist() == [0, 1, 2]
    assert (table["images_per_second"] > 0).all()
    assert table["data_wait_fraction"].between(0, 1).all()
    assert (table["peak_memory_mib"] > 100).all()
    known = json.loads((result.folder / "results.json").read_text())
    assert known["images_per_second"] == pytest.approx(
        table["images_per_second"].median(), rel=0.01
    )
    shown = capsys.readouterr().out
    assert "images/s" in shown
    assert "waiting for data" in shown
    # What goes by the clock has no place in the table that is the same for each repetition.
    assert not set(table.columns[1:]) & set(pd.read_csv(result.folder / "metrics.csv").columns)


def test_a_run_that_goes_on_has_a_row_for_each_epoch(run_here: Train) -> None:
    first = run_here("training.checkpoint_every_n_steps=2", "training.max_epochs=2")
    last = first.checkpoint.with_name("last.ckpt")
    again = run_here(
        f"training.resume_from_checkpoint={last}", "training.checkpoint_every_n_steps=2"
    )
    assert again.folder is not None
    assert pd.read_csv(again.folder / "speed.csv")["epoch"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("speed", "data", "words"),
    [
        ({"data_wait_fraction": 0.02}, DataConfig(), None),
        ({"data_wait_fraction": 0.5, "model_rate_share": 0.97}, DataConfig(), None),
        ({"data_wait_fraction": 0.5}, DataConfig(cache="off"), "data.cache=auto"),
        ({"data_wait_fraction": 0.5}, DataConfig(num_workers=4), "data.num_workers=auto"),
        ({"data_wait_fraction": 0.5}, DataConfig(), "a faster disk"),
    ],
)
def test_waiting_for_data_comes_with_a_hint_that_can_be_followed(
    speed: dict[str, float], data: DataConfig, words: str | None
) -> None:
    told = hint(speed, data, on_gpu=False)
    assert told is None if words is None else words in str(told)
    if "model_rate_share" not in speed:  # of several GPUs, nobody knows how busy they are
        assert hint(speed, data, on_gpu=True) is None


def test_timing_the_network_alone_leaves_it_as_it_was(here: tuple[str, str]) -> None:
    config = settings.load([*here, *SMALL, "training.precision=32"])
    data = open_data(config)
    data.setup("fit")
    module = build_module(config, build_model(config.model, 32), data)
    module.step_images = [16]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    gradient = torch.ones(())
    images, labels, rows = next(iter(data.train_dataloader()))
    parameter = next(module.parameters())
    parameter.grad = torch.ones_like(parameter)

    trainer: Any = SimpleNamespace(
        world_size=1,
        precision_plugin=SimpleNamespace(
            forward_context=lambda: torch.autocast("cpu", enabled=False)
        ),
    )
    module._trainer = trainer
    assert (model_rate(trainer, module, (images.float(), labels, labels, rows)) or 0) > 0
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(parameter.grad, gradient.expand_as(parameter))
