"""Error against coverage is what a plain count gives, ties and weights included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from mlops_project.evaluation.abstention import COVERAGES, judge, risk_coverage


def counted(
    weights: np.ndarray, wrong: np.ndarray, confidence: np.ndarray
) -> tuple[list[float], list[float], float]:
    """Coverage and error at each threshold and the mean error over the images, one by one."""
    coverages, errors, area = [], [], 0.0
    for threshold in sorted(set(confidence), reverse=True):
        kept = [i for i in range(len(wrong)) if confidence[i] >= threshold]
        weight = sum(weights[i] for i in kept)
        coverages.append(weight / sum(weights))
        errors.append(sum(weights[i] for i in kept if wrong[i]) / weight if weight else np.nan)
        for i in kept:
            if confidence[i] == threshold and weights[i]:
                area += weights[i] * errors[-1] / sum(weights)
    return coverages, errors, area


IMAGES = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.3, 0.5, 0.51, 0.9, 1.0]), st.integers(0, 3)),
    min_size=1,
    max_size=25,
).filter(lambda rows: any(weight for *_, weight in rows))


@settings(deadline=None)
@given(IMAGES)
def test_the_curve_is_that_of_a_count_one_by_one(rows: list[tuple[bool, float, int]]) -> None:
    wrong, confidence, weight = (np.array(column) for column in zip(*rows, strict=True))
    weights = np.stack([weight, np.ones(len(weight))]).astype(float)
    found = risk_coverage(weights, wrong, confidence)
    for row, own in enumerate(weights):
        coverages, errors, area = counted(own, wrong, confidence)
        assert found[0][row] == pytest.approx(coverages)
        assert found[1][row] == pytest.approx(errors, nan_ok=True)
        assert found[2][row] == pytest.approx(area)
    assert found[0][1, -1] == 1
    assert found[1][1, -1] == pytest.approx(wrong.mean())


@given(IMAGES)
def test_a_weight_of_two_is_the_image_twice(rows: list[tuple[bool, float, int]]) -> None:
    wrong, confidence, weight = (np.array(column) for column in zip(*rows, strict=True))
    _, _, area = risk_coverage(weight[None, :].astype(float), wrong, confidence)
    twice = [np.repeat(column, weight) for column in (wrong, confidence)]
    assert risk_coverage(np.ones((1, len(twice[0]))), *twice)[2] == pytest.approx(area)


@given(IMAGES)
def test_no_order_beats_the_one_that_leaves_out_the_mistakes_first(
    rows: list[tuple[bool, float, int]],
) -> None:
    wrong, confidence, _ = (np.array(column) for column in zip(*rows, strict=True))
    ones, ranks = np.ones((1, len(wrong))), np.arange(len(wrong)) / len(wrong)
    best, found, worst = (
        risk_coverage(ones, wrong, order)[2] for order in (ranks - wrong, confidence, ranks + wrong)
    )
    assert best <= found + 1e-12
    assert found <= worst + 1e-12


def predictions(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities that are calibrated, and lesions of one to several images."""
    random = np.random.default_rng(3)
    probabilities = random.dirichlet([0.6, 0.6, 0.6], n)
    labels = np.array([random.choice(3, p=p) for p in probabilities])
    return labels, probabilities, np.sort(random.integers(0, n, n)).astype(str)


def test_the_error_falls_where_a_calibrated_model_may_abstain() -> None:
    labels, probabilities, lesions = predictions(700)
    wrong = probabilities.argmax(axis=1) != labels
    facts = judge(wrong, probabilities.max(axis=1), lesions)
    assert len(facts["coverage"]) == len(facts["error"]) == 100
    assert facts["coverage"] == sorted(facts["coverage"])
    assert facts["coverage"][-1] == 1
    assert facts["error"][-1] == facts["at"][0]["error"] == pytest.approx(wrong.mean())
    order = np.argsort(-probabilities.max(axis=1))
    for point, coverage in zip(facts["at"], COVERAGES, strict=True):
        kept = order[: round(700 * coverage)]
        assert point["coverage"] == coverage
        assert point["kept"] == pytest.approx(len(kept) / 700)
        assert point["error"] == pytest.approx(wrong[kept].mean())
        low, high = point["ci95"]
        assert low < point["error"] < high
    errors = [point["error"] for point in facts["at"]]
    assert errors == sorted(errors, reverse=True)
    low, high = facts["area"]["ci95"]
    assert low < facts["area"]["value"] < high
    assert facts["area"]["value"] == pytest.approx(
        counted(np.ones(700), wrong, probabilities.max(axis=1))[2]
    )


def test_equally_sure_images_are_kept_or_left_together() -> None:
    wrong = np.array([0, 0, 0, 1, 1, 1, 0, 1], dtype=bool)
    tied = judge(wrong, np.full(8, 0.6), np.arange(8))
    assert (tied["coverage"], tied["error"]) == ([1.0], [0.5])
    assert tied["area"]["value"] == 0.5  # abstaining is of no use
    assert [(p["kept"], p["error"]) for p in tied["at"]] == [(1.0, 0.5)] * len(COVERAGES)
    two = judge(wrong, np.array([0.9] * 3 + [0.6] * 5), np.arange(8))
    assert (two["coverage"], two["error"]) == ([3 / 8, 1.0], [0.0, 0.5])
    assert two["area"]["value"] == pytest.approx(5 / 8 * 0.5)


def test_no_mistake_at_all_has_the_exact_interval_of_its_lesions() -> None:
    at = judge(np.zeros(50, bool), np.linspace(0.5, 1, 50), np.repeat(np.arange(25), 2))["at"]
    exact = binomtest(0, 25).proportion_ci(method="exact")
    assert at[0]["ci95"] == pytest.approx([exact.low, exact.high])


def test_a_single_image_and_a_single_lesion_have_a_curve() -> None:
    single = judge(np.array([True]), np.array([0.8]), np.array(["a"]))
    assert (single["coverage"], single["error"]) == ([1.0], [1.0])
    assert single["area"]["value"] == 1.0
    assert np.isnan(single["area"]["ci95"]).all()  # nothing else can be drawn
    labels, probabilities, _ = predictions(30)
    wrong = probabilities.argmax(axis=1) != labels
    facts = judge(wrong, probabilities.max(axis=1), np.zeros(30))
    assert np.isnan(facts["area"]["ci95"]).all()
