"""An evaluation that holds everything, made once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.evaluation.examples import make_facts

Example = tuple[dict[str, Any], pd.DataFrame]


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
