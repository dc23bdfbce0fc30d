"""The model card: what stands in it is what was found, and any of it may be missing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from mlops_project.evaluation.presentation import wording
from mlops_project.evaluation.presentation.model_card import write_model_card
from tests.evaluation.conftest import Example
from tests.evaluation.presentation.examples import with_hostile_names, without_numbers

HEADINGS = [
    *("Model details", "Intended use", "Limits", "Data", "Evaluation", "Licence and citation"),
]


def checked(path: Path) -> tuple[Any, str]:
    """The head as YAML, and the rest, after all that holds of any card."""
    before, head, text = re.split(r"^---$", path.read_text("utf-8"), maxsplit=2, flags=re.M)
    assert before == ""
    assert re.findall(r"^## (.*)$", text, flags=re.M) == HEADINGS
    assert not re.search(r"\b(nan|NaN|None|inf|Undefined)\b", text)
    assert not re.search(r"(?<!\\)<", re.sub("`.*?`", "", text))  # no HTML
    assert "not a medical device" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    return OmegaConf.to_container(OmegaConf.create(head), resolve=False), text


def test_the_card_says_what_was_found(example: Example, tmp_path: Path) -> None:
    facts, predictions = example
    path = write_model_card(facts, tmp_path, predictions)
    assert path == tmp_path / "MODEL_CARD.md"
    head, text = checked(path)
    assert head["license"] == "cc-by-nc-4.0"
    (entry,) = head["model-index"]
    assert entry["name"] == "efficientnet b0"
    found = {m["type"]: m["value"] for m in entry["results"][0]["metrics"]}
    assert found["accuracy"] == pytest.approx(facts["metrics"]["accuracy"]["value"], abs=1e-6)
    assert found["roc_auc"] == pytest.approx(facts["metrics"]["auroc"]["value"], abs=1e-6)
    for row in ("| image size | 224 |", "| epochs, at most | 30 |", "| seed | 42 |"):
        assert row in text
    metric = facts["metrics"]["accuracy"]
    low, high = metric["ci95"]
    assert f"| accuracy | {metric['value']:.3f} ({low:.3f} to {high:.3f}) |" in text
    assert facts["split_hash"] in text
    assert facts["leaks"]["sentence"] in text
    assert facts["subgroups"]["largest_gap"]["worse"] in text
    assert "Austria and Australia" in text
    assert "CC BY-NC 4.0" in text
    assert "Sci. Data 5:180161 (2018)" in text


def test_synthetic_images_have_no_licence(example: Example, tmp_path: Path) -> None:
    facts, predictions = example
    head, text = checked(write_model_card(facts | {"synthetic": True}, tmp_path, predictions))
    assert "license" not in head
    assert "SYNTHETIC DATA" in text
    assert "Austria" not in text


def test_of_other_images_nothing_is_told_that_holds_for_ham10000(
    example: Example, tmp_path: Path
) -> None:
    facts, predictions = example
    head, text = checked(write_model_card(facts | {"ham10000": False}, tmp_path, predictions))
    assert "license" not in head
    assert head["tags"] == ["dermatology", "dermoscopy", "skin-lesions"]
    for words in ("Austria", "CC BY-NC", "Tschandl"):
        assert words not in text
    assert "licences of the images it was trained on" in text


@pytest.mark.parametrize(("folder", "told"), [("ham10000", "HAM10000"), ("ham10000_test", None)])
def test_only_the_folder_of_ham10000_is_called_so(
    folder: str, told: str | None, example: Example, tmp_path: Path
) -> None:
    facts, predictions = example
    own = facts | {"synthetic": False, "data_dir": f"/data/{folder}"}
    head, _ = checked(write_model_card(own, tmp_path, predictions))
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == (told or folder)


@pytest.mark.parametrize("split", ["all", "test", "val"])
def test_images_that_chose_the_epoch_are_warned_of_in_any_split(
    split: str, example: Example
) -> None:
    facts = example[0]
    facts["split"] = split
    for count in (0, 3):
        facts["leaks"] |= {"status": "clean", "n_shared_with_validation": count}
        told = any("chose the best epoch" in text for text in wording.warnings(facts))
        assert told == (count > 0 or split == "val")


def test_whatever_is_missing_the_card_is_whole(example: Example, tmp_path: Path) -> None:
    facts, predictions = example
    checked(write_model_card({}, tmp_path, pd.DataFrame()))
    for key in facts:
        checked(
            write_model_card({k: v for k, v in facts.items() if k != key}, tmp_path, predictions)
        )
    for value in (None, float("nan"), float("inf")):
        head, _ = checked(write_model_card(without_numbers(facts, value), tmp_path, predictions))
        assert "model-index" not in head


def test_names_do_no_harm(example: Example, tmp_path: Path) -> None:
    facts, predictions = with_hostile_names(*example)
    head, text = checked(write_model_card(facts, tmp_path, predictions))
    assert head["model-index"][0]["name"].startswith('"><img')
    assert "\\<script\\>" in text
    assert "\u202e" not in text
