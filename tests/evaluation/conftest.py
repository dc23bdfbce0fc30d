"""Models trained on synthetic images, in one working folder; and an evaluation with everything."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlops_project import settings
from mlops_project.training.run import Result, train
from tests.evaluation.presentation.examples import make_facts

Example = tuple[dict[str, Any], pd.DataFrame]


def _train(folder: Path, *overrides: str) -> Result:
    small = ["data.image_size=32", "training.max_epochs=2", "training.progress_bar=none"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return train(settings.load([*small, *overrides]))


@pytest.fixture(scope="session")
def working_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="session")
def trained(working_folder: Path, demo_folder: Path) -> Result:
    """Two classes."""
    return _train(working_folder, f"data.data_dir={demo_folder}")


@pytest.fixture(scope="session")
def seven(working_folder: Path, demo_folder: Path) -> Path:
    """The checkpoint of a model of seven classes that takes them for equally frequent."""
    overrides = ["model.num_classes=7", "training.logit_adjustment=1"]
    result = _train(working_folder, f"data.data_dir={demo_folder}", *overrides)
    assert result.checkpoint is not None
    return result.checkpoint


@pytest.fixture(scope="session")
def other(working_folder: Path, demo_folder: Path) -> Path:
    """The checkpoint of a model of two classes with another split and another size."""
    overrides = ["seed=7", "data.image_size=40"]
    result = _train(working_folder, f"data.data_dir={demo_folder}", *overrides)
    assert result.checkpoint is not None
    return result.checkpoint


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """The checkpoint of a model of two classes with more validation images than the others."""
    folder = tmp_path_factory.mktemp("wide")
    overrides = ["data.val_fraction=0.3", "training.max_epochs=1"]
    result = _train(folder, f"data.data_dir={demo_folder}", *overrides)
    assert result.checkpoint is not None
    return folder / result.checkpoint


@pytest.fixture
def checkpoint(trained: Result, working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The best checkpoint of two classes, with the runs' working folder as the present one."""
    monkeypatch.chdir(working_folder)
    assert trained.checkpoint is not None
    return trained.checkpoint


@pytest.fixture(scope="session")
def example_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the pictures of explanations."""
    return tmp_path_factory.mktemp("example")


@pytest.fixture(scope="session")
def seven_classes(example_folder: Path) -> Example:
    return make_facts(example_folder, images=400, classes=7)


@pytest.fixture
def example(seven_classes: Example) -> Example:
    """Facts and predictions of a model of seven classes, to change at will."""
    facts, predictions = seven_classes
    return copy.deepcopy(facts), predictions.copy()
