"""The metrics against scikit-learn, torchmetrics and, for the AUROC, its definition."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from torchmetrics.functional import classification

from mlops_project.metrics import NAMES, auroc, classification_metrics


def predictions(count: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with every class present, and probabilities that know something of them."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % classes)
    logits = generator.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    shares = np.exp(logits)
    return labels, shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("count", "classes"), [(8, 2), (100, 2), (7, 7), (300, 7)])
def test_equal_to_torchmetrics_with_all_classes_present(
    count: int, classes: int, seed: int
) -> None:
    labels, probabilities = predictions(count, classes, seed)
    found = classification_metrics(labels, probabilities)

    target, scores = torch.from_numpy(labels), torch.from_numpy(probabilities)
    predicted = scores.argmax(dim=1)
    micro = classification.multiclass_accuracy(predicted, target, classes, average="micro")
    macro = classification.multiclass_accuracy(predicted, target, classes, average="macro")
    if classes == 2:
        f1 = classification.binary_f1_score(predicted, target)
        area = classification.binary_auroc(scores[:, 1], target)
    else:
        f1 = classification.multiclass_f1_score(predicted, target, classes, average="macro")
        area = classification.multiclass_auroc(scores, target, classes, average="macro")
    expected = {
        "accuracy": micro.item(),
        "balanced_accuracy": macro.item(),
        "f1_score": f1.item(),
        "auroc": area.item(),
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert tuple(found) == NAMES


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("missing", [{0}, {6}, {1, 3}, {0, 1, 2, 3, 4}])
def test_classes_without_an_image_count_neither_for_nor_against(missing: set[int]) -> None:
    labels, probabilities = predictions(200, 7, seed=1)
    kept = ~np.isin(labels, list(missing))
    labels, probabilities = labels[kept], probabilities[kept]
    found = classification_metrics(labels, probabilities)

    predicted = probabilities.argmax(axis=1)
    present = np.unique(labels)
    areas = [sklearn.metrics.roc_auc_score(labels == k, probabilities[:, k]) for k in present]
    assert found["balanced_accuracy"] == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(labels, predicted)
    )
    assert found["auroc"] == pytest.approx(np.mean(areas))
    # A class that is predicted though absent has an F1 of 0, as every such prediction is wrong.
    named = np.union1d(labels, predicted)
    each = [sklearn.metrics.f1_score(labels == k, predicted == k) for k in named]
    assert found["f1_score"] == pytest.approx(np.mean(each))


@settings_of(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, 4), min_size=3, max_size=3)),
        min_size=1,
        max_size=25,
    )
)
def test_auroc_is_the_chance_that_a_positive_image_scores_above_a_negative_one(
    images: list[tuple[int, list[int]]],
) -> None:
    labels = np.array([label for label, _ in images])
    scores = np.array([score for _, score in images]) / 4  # few values, so many ties

    areas = []
    for k in range(3):
        positive, negative = scores[labels == k, k], scores[labels != k, k]
        if len(positive) and len(negative):
            difference = positive[:, None] - negative[None, :]
            areas.append(((difference > 0) + 0.5 * (difference == 0)).mean())
    expected = np.mean(areas) if areas else np.nan
    assert auroc(labels, scores) == pytest.approx(expected, nan_ok=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("only", [0, 1])
def test_one_class_alone_has_no_auroc_but_an_accuracy(only: int) -> None:
    found = classification_metrics(
        np.full(4, only), np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    )
    share = 0.75 if only == 0 else 0.25
    assert np.isnan(found["auroc"])
    assert found["accuracy"] == found["balanced_accuracy"] == share


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_probability_that_is_not_finite_makes_every_metric_nan(bad: float) -> None:
    labels, probabilities = predictions(10, 2, seed=0)
    probabilities[3, 1] = bad
    found = classification_metrics(labels, probabilities)
    assert tuple(found) == NAMES
    assert np.isnan(list(found.values())).all()


def test_no_image_makes_every_metric_nan() -> None:
    found = classification_metrics(np.zeros(0, np.int64), np.zeros((0, 7)))
    assert tuple(found) == NAMES
    assert np.isnan(list(found.values())).all()


def test_the_order_of_the_images_does_not_matter() -> None:
    labels, probabilities = predictions(50, 7, seed=3)
    order = np.random.default_rng(0).permutation(50)
    assert classification_metrics(labels[order], probabilities[order]) == pytest.approx(
        classification_metrics(labels, probabilities)
    )
