"""Temperature, sets and thresholds do what is promised, on images they were not fitted on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from mlops_project.config import Config
from mlops_project.data.diagnoses import BINARY, DIAGNOSES, malignant_classes
from mlops_project.evaluation import calibration, decisions, measures, operating_points
from mlops_project.evaluation.entries import doubted
from mlops_project.evaluation.trained_model import TrainedModel
from mlops_project.training.checkpoints import AtomicCheckpointIO
from tests.evaluation.presentation.examples import make_predictions


def sample(seed: int, n: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from known probabilities, and these made too sure by a factor."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, 5)) * 2
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (true.cumsum(axis=1) > random.random((n, 1))).argmax(axis=1)
    return labels, calibration.with_temperature(true, 1 / sharpness)


def ece(labels: np.ndarray, probabilities: np.ndarray) -> float:
    correct = probabilities.argmax(axis=1) == labels
    ones = np.ones((1, len(labels)))
    return float(measures.calibration_error(ones, probabilities.max(axis=1), correct)[0])


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.5])
def test_the_fitted_temperature_is_the_one_that_was_put_in(sharpness: float) -> None:
    labels, probabilities = sample(0, 4000, sharpness)
    temperature, offsets, _ = calibration.fit(labels, probabilities, np.zeros(5))
    assert temperature == pytest.approx(sharpness, rel=0.1)
    assert np.abs(offsets).max() < 0.25
    held_out, raw = sample(1, 4000, sharpness)
    scaled = calibration.with_temperature(raw, temperature, offsets)
    assert ece(held_out, scaled) < 0.03
    if sharpness != 1:
        assert ece(held_out, scaled) < ece(held_out, raw) / 2


@given(seed=st.integers(0, 1000), temperature=st.floats(0.1, 10))
def test_a_temperature_never_changes_the_order_of_the_classes(
    seed: int, temperature: float
) -> None:
    _, probabilities = sample(seed, 20)
    scaled = calibration.with_temperature(probabilities, temperature)
    assert np.allclose(scaled.sum(axis=1), 1)
    assert (scaled.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    order = np.argsort(probabilities, axis=1)
    assert (np.diff(np.take_along_axis(scaled, order, axis=1), axis=1) >= 0).all()


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(1, 5000), min_size=7, max_size=7),
    how=st.sampled_from([{"logit_adjustment": 1.0}, {"class_weights": "balanced"}, "sampler"]),
    seed=st.integers(0, 99),
)
def test_a_model_of_equally_frequent_classes_is_brought_back_to_their_frequencies(
    counts: list[int], how: Any, seed: int
) -> None:
    """By Bayes' rule: how likely an image is under each class, times the class's frequency."""
    config = Config()
    config.model.num_classes = 7
    if how == "sampler":
        config.data.sampler = "balanced"
    else:
        config.training = replace(config.training, **how)
    names = list(DIAGNOSES)
    facts = {"class_names": names, "training_images": dict(zip(names, counts, strict=True))}
    model = TrainedModel(Path("a.ckpt"), torch.nn.Identity(), config, facts, epoch=1)
    likelihood = np.random.default_rng(seed).random((5, 7)) + 0.01
    equal = likelihood / likelihood.sum(axis=1, keepdims=True)
    true = likelihood * counts / (likelihood * counts).sum(axis=1, keepdims=True)
    back = calibration.with_temperature(equal, 1.0, model.log_prior(names))
    assert np.allclose(back, true)
    # Summed, only where the likelihoods within a group do not differ is it exact.
    malignant = malignant_classes(names)
    likelihood[:, malignant] = likelihood[:, malignant[:1]]
    benign = [k for k in range(7) if k not in malignant]
    likelihood[:, benign] = likelihood[:, benign[:1]]
    equal = likelihood / likelihood.sum(axis=1, keepdims=True)
    true = likelihood * counts / (likelihood * counts).sum(axis=1, keepdims=True)
    two, expected = (
        np.stack([part[:, group].sum(axis=1) for group in (benign, malignant)], axis=1)
        for part in (equal, true)
    )
    assert np.allclose(calibration.with_temperature(two, 1.0, model.log_prior(BINARY)), expected)


def test_a_model_of_the_training_images_frequencies_is_left_alone() -> None:
    names = list(DIAGNOSES)
    facts = {"class_names": names, "training_images": dict.fromkeys(names, 5)}
    model = TrainedModel(Path("a.ckpt"), torch.nn.Identity(), Config(), facts, epoch=1)
    assert not model.log_prior(names).any()


def test_a_fold_s_decisions_are_fitted_on_the_other_folds() -> None:
    names = list(DIAGNOSES)
    table = make_predictions(600, 7)
    folds = pd.factorize(table["lesion_id"])[0] % 3
    prior = np.linspace(-1, 1, 7)
    facts, calibrated = decisions.decide_across(names, table, folds, 0.85, prior)
    temperatures, hits, found = [], 0.0, 0
    for fold in range(3):
        others, own = table[folds != fold], table[folds == fold].reset_index(drop=True)
        one, expected = decisions.decide(names, others, own, 0.85, prior)
        assert np.allclose(calibrated[folds == fold], expected)
        temperatures.append(one["calibration"]["temperature"])
        count = int((own["y_true"] == "mel").sum())
        hits += one["operating_points"]["melanoma"]["evaluated"]["sensitivity"]["value"] * count
        found += count
    assert facts["calibration"]["temperature"] == pytest.approx(np.mean(temperatures))
    assert facts["calibration"]["folds"] == 3
    assert facts["calibration"]["of_folds"] == [
        {"images": int((folds != fold).sum()), "temperature": pytest.approx(temperatures[fold])}
        for fold in range(3)
    ]
    assert doubted(facts["calibration"]) == ""
    # The prior brings probabilities to the training's frequencies; answers are those without it.
    truth = pd.Index(names).get_indexer(pd.Index(table["y_true"]))
    for when, answers in (
        ("before", table[[f"probability_{n}" for n in names]].to_numpy().argmax(axis=1)),
        ("after", (np.log(calibrated) - prior).argmax(axis=1)),
    ):
        known = facts["calibration"][when]
        expected = balanced_accuracy_score(truth, answers)
        assert known["balanced_accuracy"]["value"] == pytest.approx(expected)
        assert known["accuracy"]["value"] == pytest.approx((truth == answers).mean())
    point = facts["operating_points"]["melanoma"]
    assert point["evaluated"]["sensitivity"]["value"] == pytest.approx(hits / found)
    melanomas = [int((table["y_true"][folds != fold] == "mel").sum()) for fold in range(3)]
    assert point["chosen_by"] == min(melanomas)
    assert "prediction_sets" not in facts


def test_a_threshold_that_few_images_have_chosen_is_told() -> None:
    table = make_predictions(200, 2)
    malignant = np.flatnonzero(table["y_true"] == "malignant")
    for count in (4, 5):
        validation = table.drop(index=malignant[count:].tolist()).reset_index(drop=True)
        for asked in (table, table.assign(y_true="")):
            facts, _ = decisions.decide(list(BINARY), validation, asked, 0.9, np.zeros(2))
            assert facts["operating_points"]["malignant"]["chosen_by"] == count
            told = str(operating_points.undecided(facts))
            assert ("the threshold for malignant was chosen by 4 images" in told) == (count == 4)


def test_a_fold_s_temperature_that_was_not_found_is_told() -> None:
    table = make_predictions(120, 2)
    folds = np.arange(120) % 2
    sure = np.where(table["y_true"] == "malignant", 0.6, 0.4)  # in one of the folds, all is right
    malignant = np.where(folds == 0, sure, table["probability_malignant"])
    table = table.assign(probability_malignant=malignant, probability_benign=1 - malignant)
    facts, _ = decisions.decide_across(list(BINARY), table, folds, 0.9, np.zeros(2))
    found = facts["calibration"]
    temperatures = [one["temperature"] for one in found["of_folds"]]
    assert [calibration.at_the_end(t) for t in temperatures] == [False, True]
    assert not calibration.at_the_end(found["temperature"])  # their mean does not tell
    assert "the temperature of a fold, 0.05, is as far as was looked" in doubted(found)


@given(seed=st.integers(0, 1000), prior=st.booleans())
@settings(deadline=None, max_examples=20)
def test_a_model_that_leans_to_some_classes_is_set_upright(seed: int, prior: bool) -> None:
    labels, probabilities = sample(seed, 8000)
    new, others = labels[4000:], probabilities[4000:]
    # More than classes that the model was trained to take for equally frequent would explain.
    known = np.array([0.0, 1.0, -1.0, 0.5, 0.0]) * prior
    lean = known + np.array([0.8, -0.8, 0.4, 0.0, -0.4])
    leaning = calibration.with_temperature(probabilities, 1.0, -lean)
    temperature, offsets, _ = calibration.fit(labels[:4000], leaning[:4000], known)
    assert temperature == pytest.approx(1, abs=0.15)
    shifts = offsets - lean
    assert np.abs(shifts - shifts.mean()).max() < 0.3
    upright = calibration.with_temperature(leaning[4000:], temperature, offsets)
    assert ece(new, upright) < ece(new, leaning[4000:])
    ones = np.ones((1, 4000))
    found, best = (measures.calibration(ones, new, p)["log_loss"][0] for p in (upright, others))
    assert found < best + 0.01


@pytest.mark.parametrize("count", [0, 1])
def test_a_class_with_hardly_an_image_does_not_run_away(count: int) -> None:
    labels, probabilities = sample(0, 500)
    few = np.flatnonzero(labels == 2)[count:]
    kept = np.delete(np.arange(500), few)
    prior = np.zeros(5)
    prior[2] = np.log(1 / (labels == 2).sum())  # as if one image in so many were expected
    _, offsets, _ = calibration.fit(labels[kept], probabilities[kept], prior)
    assert abs(offsets[2] - prior[2]) < 0.6


def test_one_image_fits_nothing_and_a_certain_one_breaks_nothing() -> None:
    one = np.array([1]), np.array([[0.5, 0.5]])
    temperature, offsets, _ = calibration.fit(*one, np.array([0.1, -0.1]))
    assert temperature == 1
    assert offsets.tolist() == [0.1, -0.1]
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    temperature, offsets, _ = calibration.fit(np.array([1, 0]), certain, np.zeros(2))
    assert np.isfinite([temperature, *offsets]).all()


def test_a_calibration_is_stored_beside_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "epoch=001-val_loss=0.5.ckpt"
    found: dict[str, Any] = {"temperature": 1.5, "offsets": {"nv": 0.5}, "prior": {"nv": 0.25}}
    calibration.store(checkpoint, found, epoch=2, images=200)
    path = tmp_path / "epoch=001-val_loss=0.5.calibration.json"
    known = json.loads(path.read_text())
    assert known == found | {"epoch": 2, "validation_images": 200}
    # It goes with its checkpoint.
    AtomicCheckpointIO().remove_checkpoint(checkpoint)
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_does_not_fail_where_a_calibration_cannot_be_stored(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    calibration.store(gone / "last.ckpt", {"temperature": 1.5}, epoch=2, images=200)
    assert not gone.exists()


@pytest.mark.parametrize("coverage", [0.9, 0.95])
def test_sets_hold_the_true_class_as_often_as_promised_in_each_class(coverage: float) -> None:
    held = np.zeros((100, 5))
    for seed in range(100):
        labels, probabilities = sample(seed, 600, 2.0)
        thresholds, enough = calibration.set_thresholds(labels, probabilities, coverage)
        assert enough.all()
        new, asked = sample(1000 + seed, 600, 2.0)
        sets = asked >= thresholds
        held[seed] = [sets[new == k, k].mean() for k in range(5)]
    assert (held.mean(axis=0) > coverage - 0.01).all()
    assert (held.mean(axis=0) < coverage + 0.03).all()


def test_a_class_with_too_few_images_is_in_every_set() -> None:
    labels, probabilities = np.array([0, 0, 1]), np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    thresholds, enough = calibration.set_thresholds(labels, probabilities, 0.9)
    assert not enough.any()
    assert (probabilities >= thresholds).all()


@given(
    seed=st.integers(0, 1000), target=st.sampled_from([0.5, 0.8, 0.9, 1.0]), n=st.integers(2, 50)
)
def test_a_threshold_reaches_its_sensitivity_and_no_larger_one_does(
    seed: int, target: float, n: int
) -> None:
    random = np.random.default_rng(seed)
    scores, truth = np.round(random.random(n), 1), random.random(n) < 0.4
    threshold = operating_points.choose_threshold(truth, scores, target)
    if not truth.any():
        assert np.isnan(threshold)
        return
    assert (scores[truth] >= threshold).mean() >= target - 1e-9
    larger = [s for s in set(scores) if s > threshold]
    assert all((scores[truth] >= s).mean() < target for s in larger)


def test_net_benefit_is_that_of_its_definition() -> None:
    truth = np.array([True, True, False, False, False])
    scores = np.array([0.9, 0.3, 0.6, 0.2, 0.1])
    found = operating_points.net_benefit(truth, scores, np.array([0.05, 0.5]))
    assert found[0] == pytest.approx(2 / 5 - 3 / 5 * 0.05 / 0.95)  # everybody
    assert found[1] == pytest.approx(1 / 5 - 1 / 5)
