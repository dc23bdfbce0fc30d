"""Intervals hold what they promise where images come in lesions, and only if lesions are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from mlops_project.evaluation import measures
from mlops_project.evaluation.bootstrap import interval, weightings, with_intervals


def test_a_lesion_is_drawn_with_all_its_images_and_the_same_seed_draws_the_same() -> None:
    lesions = np.array(["a", "b", "a", "c", "b", "a"])
    drawn = np.concatenate(list(weightings(lesions, 600, seed=3)))
    assert drawn.shape == (600, 6)
    assert (drawn[:, 0] == drawn[:, 2]).all()
    assert (drawn[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert np.array_equal(drawn, np.concatenate(list(weightings(lesions, 600, seed=3))))
    assert drawn[:, 3].mean() == pytest.approx(1, abs=0.1)


def coverage(by_lesion: bool, rounds: int = 400) -> float:
    """How often the interval of the sensitivity has the true one, 0.8, in it.

    A lesion has 1 to 9 images, which are all found with the lesion's own probability.
    """
    random = np.random.default_rng(11)
    hits = 0
    for number in range(rounds):
        sizes = random.integers(1, 10, 120)
        found = random.beta(0.8, 0.2, 120)  # mean 0.8, and nearly all or none of a lesion's images
        lesions = np.repeat(np.arange(120), sizes)
        positive = random.random(len(lesions)) < np.repeat(found, sizes)
        truth = np.ones(len(lesions), dtype=bool)
        units = lesions if by_lesion else np.arange(len(lesions))
        values = [
            measures.binary(weights, truth, positive)["sensitivity"]
            for weights in weightings(units, 500, seed=number)
        ]
        low, high = interval(np.concatenate(values))
        hits += low <= 0.8 <= high
    return hits / rounds


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    assert 0.92 <= coverage(by_lesion=True) <= 0.98
    assert coverage(by_lesion=False) < 0.8  # as if every image were a lesion of its own


def test_a_measure_that_mostly_does_not_exist_has_no_interval() -> None:
    values = np.array([np.nan, np.nan, np.nan, 0.5])
    assert all(np.isnan(interval(values)))
    assert interval(np.array([0.2] * 10)) == (0.2, 0.2)


def test_a_share_of_one_has_the_exact_interval_of_its_lesions() -> None:
    lesions = np.repeat(np.arange(25), 2)
    truth = np.ones(50, dtype=bool)
    found = with_intervals(
        lesions,
        lambda weights: measures.binary(weights, truth, truth),
        measures.seen_by(truth, truth),
    )
    exact = binomtest(25, 25).proportion_ci(method="exact")
    assert found["sensitivity"]["ci95"] == pytest.approx([exact.low, exact.high])
    assert np.isnan(found["specificity"]["ci95"]).all()  # there is no benign one


def test_a_calibration_error_lies_in_its_interval() -> None:
    random = np.random.default_rng(5)
    confidence = random.uniform(0.5, 1, 300)
    correct = random.random(300) < confidence
    found = with_intervals(
        np.arange(300),
        lambda weights: {"ece": measures.calibration_error(weights, confidence, correct)},
        biased=measures.BIASED,
    )["ece"]
    low, high = found["ci95"]
    assert 0 <= low <= found["value"] <= high


def test_a_difference_of_calibration_errors_lies_about_the_middle_of_its_interval() -> None:
    """Resampling adds more to the error of the model that is calibrated."""
    random = np.random.default_rng(6)
    off = []
    for _ in range(10):
        confidence = random.uniform(0.5, 1, 300)
        correct = random.random(300) < confidence
        too_sure = confidence ** (1 / 4)

        def difference(
            weights: np.ndarray,
            c: np.ndarray = confidence,
            d: np.ndarray = too_sure,
            right: np.ndarray = correct,
        ) -> dict[str, np.ndarray]:
            one, other = (measures.calibration_error(weights, p, right) for p in (c, d))
            return {"ece": one - other}

        found = with_intervals(np.arange(300), difference, biased=measures.BIASED, least=-1)["ece"]
        low, high = found["ci95"]
        assert -1 <= low <= found["value"] <= high < 0
        off.append((low + high) / 2 - found["value"])
    assert abs(np.mean(off)) < 0.01  # 0.025 if it were not moved back


def test_a_measure_that_no_resample_changes_has_no_interval() -> None:
    labels = np.repeat([0, 1], 6)
    scores = labels + np.linspace(0, 0.5, 12)
    found = with_intervals(
        np.arange(12), lambda weights: {"auroc": measures.ranking(weights, labels == 1, scores)[0]}
    )
    assert found["auroc"]["value"] == 1
    assert np.isnan(found["auroc"]["ci95"]).all()


def test_a_single_lesion_has_no_interval() -> None:
    found = with_intervals(np.array(["a", "a"]), lambda weights: {"mean": weights @ [0.2, 0.4]})
    assert np.isnan(found["mean"]["ci95"]).all()
