"""The loss of each image; an epoch's is their (weighted) mean."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class ClassificationLoss(nn.Module):
    """Cross-entropy or focal loss, with logit adjustment, class weights and label smoothing.

    Focal loss is (1 - p)^gamma times the cross-entropy, p the probability of the target
    (Lin et al., Focal Loss for Dense Object Detection, ICCV 2017).

    Args:
        name: "cross_entropy" or "focal".
        class_weights: float [K], or None for equal weights.
        label_smoothing: share of the target spread over the classes: evenly or, with logit_offsets,
            as their softmax is. Spread evenly, it would ask the adjusted logits of rare classes for
            more than these classes' frequency, and the logits themselves would hardly differ.
        focal_gamma: gamma of the focal loss.
        logit_offsets: added to the logits of each image, float [K]; None: nothing is.
    """

    class_weights: torch.Tensor | None
    logit_offsets: torch.Tensor | None

    def __init__(
        self,
        name: str = "cross_entropy",
        *,
        class_weights: np.ndarray | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 2.0,
        logit_offsets: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.name, self.label_smoothing, self.focal_gamma = name, label_smoothing, focal_gamma
        weights = None if class_weights is None else torch.tensor(class_weights).float()
        self.register_buffer("class_weights", weights, persistent=False)
        offsets = None if logit_offsets is None else torch.tensor(logit_offsets).float()
        self.register_buffer("logit_offsets", offsets, persistent=False)

    def forward(
        self, logits: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses and weights of a batch.

        Args:
            logits: float [B, K].
            targets: class indices int64 [B], or class shares float [B, K] after mixing.

        Returns:
            Weighted loss of each image [B] and its weight [B], both float32. An epoch's loss is the
            sum of the first over the sum of the second; a step goes by the sum of the first over
            the number of its images.
        """
        logits, smooth, offsets = logits.float(), targets, self.logit_offsets
        if offsets is not None:
            logits = logits + offsets
        if self.label_smoothing:
            if offsets is None:
                offsets = logits.new_zeros(logits.shape[1])
            smooth = torch.lerp(_shares(targets, logits), offsets.softmax(0), self.label_smoothing)
        if self.name == "focal":
            losses = self._focal(logits, smooth)
        else:
            losses = F.cross_entropy(logits, smooth, self.class_weights, reduction="none")
        if self.class_weights is None:
            return losses, torch.ones_like(losses)
        if targets.ndim == 1:
            return losses, self.class_weights[targets]
        # Not as a product of matrices, which autocast would take in bfloat16.
        return losses, (targets * self.class_weights).sum(dim=1)

    def _focal(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        log_p = F.log_softmax(logits, dim=1)
        terms = -_shares(targets, log_p) * log_p
        if self.class_weights is not None:
            terms = terms * self.class_weights
        # At p = 1 the slope of (1 - p)^gamma is infinite where gamma < 1.
        rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(torch.float32).eps)
        return (terms * rest**self.focal_gamma).sum(dim=1)


def _shares(targets: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Class indices [B] or shares [B, K] as shares [B, K], of the type of `like` [B, K]."""
    if targets.ndim == 1:
        targets = F.one_hot(targets, like.shape[1])
    return targets.to(like)


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """N / (K n_k) for each of the K classes present, as scikit-learn's "balanced"; 0 for others.

    Args:
        labels: int64 [N].
        num_classes: K.

    Returns:
        float64 [K].
    """
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = np.zeros(num_classes)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


def log_frequencies(labels: np.ndarray, num_classes: int, power: float) -> np.ndarray:
    """Logarithm of how often each class is shown; a class without images counts as having one.

    Args:
        labels: int64 [N].
        num_classes: K.
        power: of `data.sampling.POWERS`.

    Returns:
        float64 [K].
    """
    shown = np.bincount(labels, minlength=num_classes).clip(min=1) ** power
    return np.log(shown / shown.sum())
