"""Every measure is that of scikit-learn or torchmetrics, weighted and in degenerate cases too."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from mlops_project.evaluation import measures
from mlops_project.evaluation.bootstrap import with_intervals
from mlops_project.metrics import classification_metrics


def sample(seed: int, n: int, classes: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    logits = random.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
    if ties:
        logits = np.round(logits)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities


def overall(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    ones = np.ones((1, len(labels)))
    classes = range(probabilities.shape[1])
    each = [measures.against_rest(ones, labels, probabilities, k) for k in classes]
    values = measures.overall(ones, labels, probabilities, each)
    return {name: float(value[0]) for name, value in values.items()}


def plain_error(confidence: np.ndarray, truth: np.ndarray) -> float:
    """The calibration error, bin by bin as it is written down."""
    error = 0.0
    bins = np.minimum((confidence * measures.BINS).astype(int), measures.BINS - 1)
    for number in range(measures.BINS):
        own = bins == number
        if own.any():
            error += own.mean() * abs(confidence[own].mean() - truth[own].mean())
    return error


def same(ours: float, theirs: float) -> None:
    assert ours == pytest.approx(theirs, abs=1e-6, nan_ok=True)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 60),
    classes=st.sampled_from([2, 7]),
    ties=st.booleans(),
)
def test_plain_measures_are_those_of_the_libraries(
    seed: int, n: int, classes: int, ties: bool
) -> None:
    labels, probabilities = sample(seed, n, classes, ties)
    ours = overall(labels, probabilities)
    for name, value in classification_metrics(labels, probabilities).items():
        if name == "f1_score" and classes == 2 and not (labels.any() or ours["accuracy"] < 1):
            value = np.nan  # no malignant image and no alarm; a run goes on with 0
        same(ours[name], value)
    truth = np.eye(classes)[labels]
    same(ours["brier"], float(((probabilities - truth) ** 2).sum(axis=1).mean()))
    same(ours["log_loss"], sk.log_loss(labels, probabilities, labels=range(classes)))
    # torchmetrics has float32 and bins closed on the other side, which matters at their edges.
    correct = probabilities.argmax(axis=1) == labels
    same(ours["ece"], plain_error(probabilities.max(axis=1), correct))
    by_class = [plain_error(probabilities[:, k], labels == k) for k in range(classes)]
    same(ours["class_wise_ece"], float(np.mean(by_class)))
    confidence = probabilities.max(axis=1) * measures.BINS
    if np.abs(confidence - np.round(confidence)).min() > 1e-4:
        theirs = multiclass_calibration_error(
            torch.tensor(probabilities), torch.tensor(labels), classes, n_bins=measures.BINS
        )
        assert ours["ece"] == pytest.approx(float(theirs), abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), k=st.integers(0, 2), ties=st.booleans())
def test_weighted_measures_of_a_class_are_scikit_learns(
    seed: int, n: int, k: int, ties: bool
) -> None:
    labels, probabilities = sample(seed, n, 3, ties)
    random = np.random.default_rng(seed)
    weights = random.integers(0, 3, (2, n)).astype(float)
    weights[:, 0] = 1
    values = measures.against_rest(weights, labels, probabilities, k)
    truth, positive = labels == k, probabilities.argmax(axis=1) == k
    for row, weight in enumerate(weights):
        options = {"sample_weight": weight, "zero_division": np.nan}
        same(values["sensitivity"][row], sk.recall_score(truth, positive, **options))
        same(values["specificity"][row], sk.recall_score(~truth, ~positive, **options))
        same(values["ppv"][row], sk.precision_score(truth, positive, **options))
        same(values["npv"][row], sk.precision_score(~truth, ~positive, **options))
        seen = weight > 0
        if 0 < truth[seen].sum() < seen.sum():
            options = {"sample_weight": weight}
            scores = probabilities[:, k]
            same(values["auroc"][row], sk.roc_auc_score(truth, scores, **options))
            same(
                values["average_precision"][row],
                sk.average_precision_score(truth, scores, **options),
            )
        else:
            assert np.isnan(values["auroc"][row])


def test_perfect_constant_and_single_predictions() -> None:
    labels = np.array([0, 1, 2, 2])
    perfect = overall(labels, np.eye(3)[labels])
    for name in ("accuracy", "balanced_accuracy", "f1_score", "auroc", "average_precision"):
        assert perfect[name] == 1
    for name in ("brier", "log_loss", "ece", "class_wise_ece"):
        assert perfect[name] == pytest.approx(0, abs=1e-12)
    never = overall(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    same(never["log_loss"], sk.log_loss([0, 1], [[0.0, 1.0], [0.0, 1.0]]))
    constant = overall(labels, np.full((4, 3), 1 / 3))
    assert constant["auroc"] == 0.5
    single = overall(labels[:1], np.array([[0.7, 0.2, 0.1]]))
    assert single["balanced_accuracy"] == 1
    assert np.isnan(single["auroc"])


@pytest.mark.parametrize("classes", [2, 7])
def test_a_false_answer_s_class_stays_in_macro_f1_where_its_image_is_not_drawn(
    classes: int,
) -> None:
    labels = np.zeros(40, dtype=int)
    probabilities = np.eye(classes)[[1] + [0] * 39]  # of a class that no image has
    ones = np.ones((1, 40))
    without = np.r_[0.0, np.ones(39)][None]

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        each = [measures.against_rest(weights, labels, probabilities, k) for k in range(classes)]
        return {"macro_f1": measures.overall(weights, labels, probabilities, each)["macro_f1"]}

    plain = sk.f1_score(labels, probabilities.argmax(axis=1), average="macro", zero_division=0)
    same(measure(ones)["macro_f1"][0], plain)
    assert measure(without)["macro_f1"][0] == 0.5  # 1 and 0
    low, high = with_intervals(np.arange(40), measure)["macro_f1"]["ci95"]
    assert 0.4 < low < plain < high <= 0.5


def test_a_mean_over_classes_has_the_interval_of_resamples_that_hold_all_of_them() -> None:
    labels = np.array([0] * 30 + [1])  # one lesion of the second class
    probabilities = np.tile([0.9, 0.1], (31, 1))
    lesions = np.arange(31)

    def measure(weights: np.ndarray) -> dict[str, np.ndarray]:
        return measures.by_answer(weights, labels, probabilities.argmax(axis=1), 2)

    wrong = np.eye(2)[[1] * 10 + [0] * 20 + [1]]
    each = [measures.against_rest(np.ones((1, 31)), labels, wrong, k) for k in range(2)]
    assert measures.overall(np.ones((1, 31)), labels, wrong, each)["macro_f1"][0] > 0
    without = np.r_[np.ones(30), 0.0][None]
    each = [measures.against_rest(without, labels, wrong, k) for k in range(2)]
    assert np.isnan(measures.overall(without, labels, wrong, each)["macro_f1"][0])
    found = with_intervals(lesions, measure)["balanced_accuracy"]
    assert found["value"] == 0.5
    assert np.isnan(found["ci95"]).all()  # a constant answer has no other value
    probabilities[:10] = [0.1, 0.9]
    low, high = with_intervals(lesions, measure)["balanced_accuracy"]["ci95"]
    assert 0.2 < low < 1 / 3 < high < 0.5
