"""While only the head learns, features computed once stand for the images."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
import torch

from mlops_project import settings
from mlops_project.training import finetuning
from mlops_project.training.checkpoints import load_checkpoint
from mlops_project.training.run import Result, train

Train = Callable[..., Result]
FROZEN = (
    *("model=timm", "model.variant=test_efficientnet", "model.pretrained=false"),
    *("model.dropout_rate=0.3", "data.image_size=32", "data.batch_size=16"),
    *("training.freeze_backbone_epochs=2", "training.max_epochs=3"),
)


@pytest.fixture
def run_here(here: tuple[str, str]) -> Train:
    return lambda *options: train(settings.load([*here, *FROZEN, *options]))


def curve(result: Result) -> pd.DataFrame:
    assert result.folder is not None
    return pd.read_csv(result.folder / "metrics.csv")[["train_loss", "val_loss"]]


@pytest.mark.parametrize("model", [(), ("model=baseline_cnn", "model.variant=none")])
@pytest.mark.parametrize("augment", ["true", "false"])
def test_the_numbers_are_those_without_them(
    run_here: Train, augment: str, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*model, f"data.augment={augment}")
    with_features = curve(run_here(*options))
    monkeypatch.setattr(finetuning, "compute_features", lambda *_: None)
    without = curve(run_here(*options))
    assert with_features.to_numpy() == pytest.approx(without.to_numpy(), rel=2e-4)


def test_the_backbone_is_asked_once_for_each_image(
    run_here: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here("data.augment=false")
    assert capsys.readouterr().out.count("features of 101 images are computed once") == 1


def test_a_run_that_goes_on_while_frozen_is_the_same_to_the_bit(run_here: Train) -> None:
    options = ("data.augment=false", "training.checkpoint_every_n_steps=3")
    whole = run_here(*options, "training.save_top_k=9")
    assert whole.folder is not None
    expected = load_checkpoint(whole.folder / "checkpoints/last.ckpt")["state_dict"]
    first = next((whole.folder / "checkpoints").glob("epoch=000*"))
    run_here(*options, "training.save_top_k=9", f"training.resume_from_checkpoint={first}")
    after = load_checkpoint(whole.folder / "checkpoints/last.ckpt")["state_dict"]
    assert all(torch.equal(expected[name], after[name]) for name in expected)
