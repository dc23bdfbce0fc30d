"""The losses against PyTorch's, against their formulas, and against scikit-learn's weights."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from mlops_project.training.losses import (
    ClassificationLoss,
    balanced_class_weights,
    log_frequencies,
)

LAW = settings_of(deadline=None, max_examples=60)


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Logits [B, K], labels [B] and class weights [K]."""
    count, classes = draw(st.integers(1, 6)), draw(st.integers(2, 7))
    logits = draw(arrays.arrays(np.float32, (count, classes), elements=st.floats(-9, 9, width=32)))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    weights = draw(arrays.arrays(np.float64, classes, elements=st.floats(0.1, 10)))
    return torch.from_numpy(logits), torch.tensor(labels), weights


smoothings = st.floats(0, 0.9)


def shares_of(logits: torch.Tensor) -> torch.Tensor:
    """Some shares of the classes [B, K], each row with a sum of 1."""
    return (logits.flip(0) / 4).softmax(dim=1)


def formula(
    logits: torch.Tensor, shares: torch.Tensor, smoothing: float, gamma: float
) -> torch.Tensor:
    """Sum over the classes of -y (1 - p)^gamma log p, y the smoothed shares; float64."""
    p = logits.double().softmax(dim=1)
    y = shares * (1 - smoothing) + smoothing / logits.shape[1]
    return -(y * (1 - p) ** gamma * p.log()).sum(dim=1)


@LAW
@given(batches(), smoothings, st.booleans())
def test_cross_entropy_is_pytorch_s_with_weights_and_smoothing(
    batch: tuple[torch.Tensor, torch.Tensor, np.ndarray], smoothing: float, weighted: bool
) -> None:
    logits, labels, class_weights = batch
    loss = ClassificationLoss(
        class_weights=class_weights if weighted else None, label_smoothing=smoothing
    )
    losses, weights = loss(logits, labels)

    weight = torch.from_numpy(class_weights).float() if weighted else None
    each = F.cross_entropy(logits, labels, weight, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(losses, each, rtol=1e-4, atol=1e-5)
    mean = F.cross_entropy(logits, labels, weight, label_smoothing=smoothing)
    torch.testing.assert_close(losses.sum() / weights.sum(), mean, rtol=1e-4, atol=1e-5)


@LAW
@given(batches(), st.sampled_from(["cross_entropy", "focal"]), st.floats(0, 2))
def test_logit_adjustment_adds_the_log_of_how_frequent_a_class_is(
    batch: tuple[torch.Tensor, torch.Tensor, np.ndarray], name: str, tau: float
) -> None:
    logits, labels, _ = batch
    classes = logits.shape[1]
    offsets = tau * log_frequencies(labels.numpy(), classes, 1)
    counts = np.bincount(labels, minlength=classes)
    shown = np.maximum(counts, 1)
    assert np.allclose(offsets, tau * np.log(shown / shown.sum()))
    losses, _ = ClassificationLoss(name, logit_offsets=offsets)(logits, labels)
    moved = logits + torch.from_numpy(offsets).float()
    torch.testing.assert_close(losses, ClassificationLoss(name)(moved, labels)[0])


@LAW
@given(batches(), smoothings, st.sampled_from(["cross_entropy", "focal"]), st.floats(0.1, 2))
def test_smoothing_spreads_the_target_as_adjusted_logits_that_know_nothing_would(
    batch: tuple[torch.Tensor, torch.Tensor, np.ndarray], smoothing: float, name: str, tau: float
) -> None:
    logits, labels, class_weights = batch
    offsets = torch.from_numpy(tau * log_frequencies(labels.numpy(), logits.shape[1], 1)).float()
    adjusted = partial(
        ClassificationLoss, name, class_weights=class_weights, logit_offsets=offsets.numpy()
    )
    loss = adjusted(label_smoothing=smoothing)
    losses, weights = loss(logits, labels)

    one_hot = F.one_hot(labels, logits.shape[1])
    smooth = one_hot * (1 - smoothing) + smoothing * offsets.softmax(dim=0)
    expected, _ = adjusted()(logits, smooth)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(weights, torch.from_numpy(class_weights).float()[labels])
    torch.testing.assert_close(loss(logits, one_hot.float()), (losses, weights))


def test_smoothing_does_not_take_a_rare_class_s_distance_away() -> None:
    """The best logits of a frequent class's image stay far from those of the rare class."""
    offsets = log_frequencies(np.repeat([0, 1], [99, 1]), 2, 1)
    loss = ClassificationLoss(label_smoothing=0.1, logit_offsets=offsets)
    plain = ClassificationLoss(label_smoothing=0.1)

    def best(loss: ClassificationLoss) -> float:
        """The distance of the logits that has the smallest loss for an image of the first class."""
        distances = torch.linspace(-10, 10, 2001)
        logits = torch.stack([distances, torch.zeros_like(distances)], dim=1)
        losses, _ = loss(logits, torch.zeros(len(distances), dtype=torch.int64))
        return float(distances[losses.argmin()])

    assert best(plain) == pytest.approx(np.log(0.95 / 0.05), abs=0.02)
    assert best(loss) == pytest.approx(np.log((0.999 / 0.001) / 99), abs=0.02)
    assert best(loss) > 2


@LAW
@given(batches(), smoothings)
def test_soft_targets_give_pytorch_s_cross_entropy(
    batch: tuple[torch.Tensor, torch.Tensor, np.ndarray], smoothing: float
) -> None:
    logits, _, _ = batch
    shares = shares_of(logits)
    losses, weights = ClassificationLoss(label_smoothing=smoothing)(logits, shares)

    expected = F.cross_entropy(logits, shares, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(weights, torch.ones(len(logits)))


@LAW
@given(batches(), smoothings, st.sampled_from(["cross_entropy", "focal"]), st.booleans())
def test_soft_targets_with_all_in_one_class_equal_its_label(
    batch: tuple[torch.Tensor, torch.Tensor, np.ndarray],
    smoothing: float,
    name: str,
    weighted: bool,
) -> None:
    logits, labels, class_weights = batch
    loss = ClassificationLoss(
        name, class_weights=class_weights if weighted else None, label_smoothing=smoothing
    )
    one_hot = F.one_hot(labels, logits.shape[1]).float()
    torch.testing.assert_close(loss(logits, one_hot), loss(logits, labels))


@LAW
@given(batches(), st.booleans())
def test_a_mixed_image_weighs_the_mean_of_its_classes_weights(
    batch: tuple[torch.Tensor, torch.Tensor, np.ndarray], focal: bool
) -> None:
    logits, _, class_weights = batch
    shares = shares_of(logits)
    _, weights = ClassificationLoss(
        "focal" if focal else "cross_entropy", class_weights=class_weights
    )(logits, shares)
    expected = (shares.double().numpy() * class_weights).sum(axis=1)
    torch.testing.assert_close(weights.double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-6)


@LAW
@given(batches(), smoothings)
def test_focal_loss_with_gamma_0_is_cross_entropy(
    batch: tuple[torch.Tensor, torch.Tensor, np.ndarray], smoothing: float
) -> None:
    logits, labels, class_weights = batch
    focal = ClassificationLoss(
        "focal", class_weights=class_weights, label_smoothing=smoothing, focal_gamma=0
    )
    plain = ClassificationLoss(class_weights=class_weights, label_smoothing=smoothing)
    torch.testing.assert_close(focal(logits, labels), plain(logits, labels))


@LAW
@given(batches(), smoothings, st.floats(0.1, 5), st.booleans())
def test_focal_loss_follows_its_formula(
    batch: tuple[torch.Tensor, torch.Tensor, np.ndarray], smoothing: float, gamma: float, soft: bool
) -> None:
    logits, labels, _ = batch
    targets = shares_of(logits) if soft else labels
    losses, _ = ClassificationLoss("focal", label_smoothing=smoothing, focal_gamma=gamma)(
        logits, targets
    )
    shares = targets if soft else F.one_hot(labels, logits.shape[1])
    expected = formula(logits, shares, smoothing, gamma)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("margin", [0.0, 30.0, 1e4])
def test_certain_predictions_right_or_wrong_have_finite_gradients(
    name: str, gamma: float, smoothing: float, margin: float
) -> None:
    logits = torch.tensor([[margin, 0.0], [0.0, margin]], requires_grad=True)
    loss = ClassificationLoss(name, label_smoothing=smoothing, focal_gamma=gamma)
    losses, _ = loss(logits, torch.tensor([0, 0]))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_half_precision_logits_is_computed_in_full(dtype: torch.dtype) -> None:
    logits = torch.tensor([[6.0, -3.0, 1.0], [0.5, 0.25, 2.0]])
    labels, loss = torch.tensor([1, 2]), ClassificationLoss("focal", class_weights=np.ones(3))
    half, full = loss(logits.to(dtype), labels), loss(logits, labels)
    assert half[0].dtype == half[1].dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0, atol=0)


# Class weights


@LAW
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_balanced_weights_equal_scikit_learn_s(values: list[int]) -> None:
    labels = np.array(values)
    present = np.unique(labels)
    weights = balanced_class_weights(labels, 7)

    expected = np.zeros(7)
    expected[present] = compute_class_weight("balanced", classes=present, y=labels)
    np.testing.assert_allclose(weights, expected)


def test_balanced_weights_give_each_class_the_same_say() -> None:
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    weights = balanced_class_weights(labels, 3)
    np.testing.assert_allclose(np.bincount(labels) * weights, 100 / 3)
    assert weights[labels].mean() == pytest.approx(1)


@pytest.mark.parametrize("shares", [False, True])
def test_losses_and_weights_are_float32_where_a_step_is_not(shares: bool) -> None:
    logits, labels = torch.randn(6, 3).bfloat16(), torch.arange(6) % 3
    loss = ClassificationLoss(class_weights=np.array([0.3, 1.7, 2.9]))
    targets = shares_of(torch.randn(6, 3)) if shares else labels
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, weights = loss(logits, targets)
    assert losses.dtype == weights.dtype == torch.float32
