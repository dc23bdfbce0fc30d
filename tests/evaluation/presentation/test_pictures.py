"""Pictures: what they say is what was measured, and where there is too little there is none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mlops_project.evaluation.presentation import charts
from mlops_project.evaluation.presentation.drawing import Drawing, style
from mlops_project.evaluation.presentation.pictures import PICTURES, draw_pictures
from tests.evaluation.conftest import Example
from tests.evaluation.presentation.examples import make_facts, with_hostile_names, without_numbers

FROM_PREDICTIONS = ["confusion_matrix", "roc", "precision_recall", "reliability"]


def drawn(facts: dict[str, Any], predictions: pd.DataFrame) -> dict[str, Drawing]:
    """The pictures that there are, before they are written."""
    with style():
        found = {name: draw(facts, predictions) for name, draw in PICTURES.items()}
    return {name: drawing for name, drawing in found.items() if drawing is not None}


def test_every_picture_is_written_with_a_text_for_those_who_cannot_see_it(
    example: Example, tmp_path: Path
) -> None:
    facts, predictions = example
    pictures = draw_pictures(facts, predictions, tmp_path / "new")
    assert [p.path.name for p in pictures] == [f"{name}.png" for name in PICTURES]
    for picture in pictures:
        with Image.open(picture.path) as image:
            assert min(image.size) > 500
            assert np.asarray(image.convert("L")).std() > 5  # not a blank sheet
        assert len(picture.alternative_text) > 60
        assert re.search(r"\d", picture.alternative_text)
        assert "SYNTHETIC" not in picture.title


def test_the_numbers_of_the_pictures_are_those_of_the_metrics(example: Example) -> None:
    facts, predictions = example
    told = {name: d.alternative_text for name, d in drawn(facts, predictions).items()}
    for when in ("before", "after"):
        error = facts["calibration"][when]["ece"]["value"]
        assert (
            f"{when} calibration, the expected calibration error is {error:.3f}"
            in (told["reliability"])
        )
    for name, measure in (("roc", "auroc"), ("precision_recall", "average_precision")):
        low, high = facts["per_class_ci95"]["mel"][measure]
        value = facts["per_class"]["mel"][measure]
        assert f"mel {value:.2f} ({low:.2f} to {high:.2f})" in told[name]
        of_calibrated = facts["operating_points"]["malignant"]["ranking"][measure]
        value, (low, high) = of_calibrated["value"], of_calibrated["ci95"]
        assert f"malignant {value:.2f} ({low:.2f} to {high:.2f})" in told[name]
    right = ((predictions["y_true"] == "nv") & (predictions["y_pred"] == "nv")).sum()
    count = (predictions["y_true"] == "nv").sum()
    assert f"of {count} nv, {right} are right" in told["confusion_matrix"]
    sets = facts["prediction_sets"]["0.9"]
    expected = f"all {sets['mean_size']:.1f} classes, {sets['coverage']:.0%} hold the true one"
    assert expected in told["prediction_sets"]
    groups = facts["subgroups"]["groups"].values()
    values = [g["auroc"]["value"] for known in groups for g in known.values() if "auroc" in g]
    assert f"the lowest is {min(values):.2f}" in told["subgroups"]
    at = facts["abstention"]["at"][1]
    assert f"{at['error']:.0%} of the surest 80%" in told["abstention"]


def test_the_chosen_threshold_lies_on_the_roc_curve(example: Example) -> None:
    axes = drawn(*example)["roc"].figure.axes[0]
    curve = next(line for line in axes.lines if "malignant" in str(line.get_label()))
    point = next(line for line in axes.lines if line.get_marker() == "o")
    corners = np.array(curve.get_xydata())
    # Straight between two of the corners
    x, y = np.array(point.get_xydata())[0]
    assert np.interp(x, corners[:, 0], corners[:, 1]) == pytest.approx(y, abs=0.02)


def test_two_classes_have_one_curve_and_synthetic_images_are_called_so(tmp_path: Path) -> None:
    facts, predictions = make_facts(tmp_path, images=200, classes=2)
    facts["synthetic"] = True
    found = drawn(facts, predictions)
    for drawing in found.values():
        assert "SYNTHETIC DATA" in drawing.figure.get_suptitle()
    assert set(found) == set(PICTURES) - {"decision_curve_melanoma"}
    known = facts["operating_points"]["malignant"]["ranking"]["auroc"]
    low, high = known["ci95"] = [0.123, 0.987]  # not that of the plain probabilities
    shown = f"malignant {known['value']:.2f} ({low:.2f} to {high:.2f})"
    assert shown in drawn(facts, predictions)["roc"].alternative_text
    assert "benign" not in found["roc"].alternative_text


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("operating_points", "decision_curve_malignant"),
        ("operating_points", "decision_curve_melanoma"),
        ("prediction_sets", "prediction_sets"),
        ("subgroups", "subgroups"),
        ("abstention", "abstention"),
    ],
)
def test_what_is_missing_takes_its_picture_away(example: Example, missing: str, gone: str) -> None:
    facts, predictions = example
    nothing: list[Any] = [None, {}]
    for value in nothing:
        assert PICTURES[gone](facts | {missing: value}, predictions) is None
    del facts[missing]
    assert PICTURES[gone](facts, predictions) is None


def test_without_facts_there_is_what_the_predictions_tell(example: Example) -> None:
    assert list(drawn({}, example[1])) == FROM_PREDICTIONS


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_without_numbers_there_is_no_empty_picture(example: Example, value: float | None) -> None:
    facts, predictions = example
    facts = without_numbers(facts, value)
    for name in set(PICTURES) - set(FROM_PREDICTIONS):
        assert PICTURES[name](facts, predictions) is None
    assert "nan" not in drawn(facts, predictions[:60])["confusion_matrix"].alternative_text


def test_unlabelled_images_have_no_picture(example: Example, tmp_path: Path) -> None:
    facts, predictions = example
    for unlabelled in (predictions.drop(columns="y_true"), predictions.assign(y_true=None)):
        known = {k: facts[k] for k in ("model", "split", "n_images", "class_names")}
        assert draw_pictures(known, unlabelled, tmp_path) == []
    no_probabilities = predictions[["image_id", "y_true", "y_pred"]]
    assert draw_pictures({}, no_probabilities, tmp_path) == []
    assert draw_pictures({}, pd.DataFrame(), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_few_images_have_no_curves(tmp_path: Path) -> None:
    facts, predictions = make_facts(tmp_path, images=1)
    found = drawn(facts, predictions)
    assert not {"roc", "precision_recall", "reliability", "subgroups"} & set(found)
    assert "of 1 " in found["confusion_matrix"].alternative_text


def test_an_absent_class_has_no_shares_and_no_curve(example: Example) -> None:
    facts, predictions = example
    some = predictions[~predictions["y_true"].isin(["df", "vasc"])]
    some = pd.concat([some, predictions[predictions["y_true"] == "df"].head(2)])
    found = drawn(facts, some)
    assert "Left out, for too few images: df, vasc." in found["roc"].alternative_text
    cells = [t.get_text() for t in found["confusion_matrix"].figure.axes[0].texts]
    assert cells[-7:] == ["–"] * 7  # the row of vasc
    assert not any("nan" in text for text in cells)
    assert "vasc" not in found["prediction_sets"].alternative_text


def test_a_picture_of_an_earlier_evaluation_does_not_stay(example: Example, tmp_path: Path) -> None:
    for name in ("abstention.png", "mine.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    draw_pictures({}, example[1][:9], tmp_path)
    assert not (tmp_path / "abstention.png").exists()
    assert (tmp_path / "mine.png").exists()


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_they_are(example: Example, tmp_path: Path) -> None:
    facts, predictions = with_hostile_names(*example)
    pictures = draw_pictures(facts | {"synthetic": True}, predictions, tmp_path)
    # Of such classes none is known to be malignant.
    assert {p.path.stem for p in pictures} == {n for n in PICTURES if "decision" not in n}
    for picture in pictures:
        assert "SYNTHETIC DATA" in picture.title
        assert picture.alternative_text.isprintable()
        picture.alternative_text.encode()
    figure = PICTURES["confusion_matrix"](facts, predictions).figure  # type: ignore[union-attr]
    labels = figure.axes[0].get_xticklabels()
    assert labels[2].get_text() == "$\\frac{1}{"


def test_labels_of_classes_do_not_overlap(example: Example) -> None:
    facts, predictions = example
    known = dict(zip(facts["class_names"], "abcdefg", strict=True))
    names = [f"{letter} rather long class" for letter in known.values()]
    truth = predictions["y_true"].map({n: k for k, n in enumerate(known)}).to_numpy()
    with style():
        figure = charts.matrix(truth, truth, names, "title")
        figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
