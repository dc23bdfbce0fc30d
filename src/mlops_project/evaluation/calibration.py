"""Probabilities that mean what they say, and sets of classes that hold the true one."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from mlops_project.files import atomic_write
from mlops_project.training.checkpoints import CALIBRATION

log = logging.getLogger("mlops_project")

TEMPERATURES = (0.05, 20.0)  # that are looked at
SMALLEST = 1e-12  # probability, so that its logarithm exists
# Deviation, in logits, of the normal distribution that the penalty takes offsets less the prior to
# come from: that a class is taken for e times as frequent as it is would be unusual. The same
# is taken for the weight of each feature, per unit of it (20 years of age; 1 for a sex or a site).
SPREAD = 0.5


def fit(
    labels: np.ndarray,
    probabilities: np.ndarray,
    prior: np.ndarray,
    features: np.ndarray | None = None,
) -> tuple[float, np.ndarray, np.ndarray]:
    """A temperature and an offset for each class, as `with_temperature` takes them.

    It is bias-corrected temperature scaling (Alexandari et al., Maximum Likelihood with
    Bias-Corrected Calibration is Hard-To-Beat at Label Shift Adaptation, ICML 2020): the least log
    loss, here with a penalty for offsets far from the prior, since some classes have few images.
    What else is known of the images can have a say as well: multinomial logistic regression on the
    logits and on that, with the same penalty.

    Args:
        labels: int64 [N], of validation images.
        probabilities: float [N, K], of a softmax.
        prior: of `TrainedModel.log_prior`, float [K].
        features: what else is known, around 0, float [N, F].

    Returns:
        Temperature; offsets float [K], which hold the prior; and weights float [F, K], so that an
        image's own offsets are `offsets + features @ weights`. 1, the prior and 0 where there is
        nothing to fit, as with a single image.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    known = np.ones((len(labels), 1))  # the first weight is the offset
    if features is not None:
        known = np.column_stack([known, features])
    shape = known.shape[1], len(prior)
    if len(labels) < 2:
        return 1.0, prior, np.zeros((shape[0] - 1, shape[1]))
    logits = np.log(np.clip(probabilities, SMALLEST, 1))
    truth = np.eye(len(prior))[labels]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """The sum over images with the penalty, and its gradient."""
        inverse_temperature = math.exp(-parameters[0])
        weights = parameters[1:].reshape(shape)
        log_p = log_softmax(logits * inverse_temperature + prior + known @ weights, axis=1)
        residual = np.exp(log_p) - truth
        slope = known.T @ residual + weights / SPREAD**2
        total = -(truth * log_p).sum() + (weights**2).sum() / (2 * SPREAD**2)
        return total, np.array([-inverse_temperature * (residual * logits).sum(), *slope.flat])

    bounds = [tuple(map(math.log, TEMPERATURES)), *[(None, None)] * math.prod(shape)]
    start = np.zeros(len(bounds))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    weights = found[1:].reshape(shape)
    return math.exp(found[0]), prior + weights[0], weights[1:]


def at_the_end(temperature: float) -> bool:
    """Whether it lies at either end of `TEMPERATURES`, where the loss still falls."""
    return not 1.01 * TEMPERATURES[0] < temperature < 0.99 * TEMPERATURES[1]


def with_temperature(
    probabilities: np.ndarray, temperature: float, offsets: np.ndarray | None = None
) -> np.ndarray:
    """The softmax [N, K] of the same logits divided by a temperature.

    Args:
        probabilities: float [N, K], of a softmax.
        temperature: more than 0; by itself it leaves the order of the classes as it is.
        offsets: added to the divided logits, float [K], or [N, K] for each image.
    """
    from scipy.special import softmax

    logits = np.log(np.clip(probabilities, SMALLEST, 1)) / temperature
    if offsets is not None:
        logits += offsets
    return softmax(logits, axis=1)


def store(checkpoint: Path, found: dict[str, Any], epoch: int, images: int) -> None:
    """Writes a calibration as <name>.calibration.json beside the checkpoint, where it can.

    Args:
        checkpoint: of the model.
        found: temperature that its logits are to be divided by, offsets of each class that are then
            added, and prior: the part of the offsets that its answers are without.
        epoch: of the checkpoint, which tells whether a last.ckpt has moved on since.
        images: of the validation split, on how many it was fitted.
    """
    path = checkpoint.with_suffix(CALIBRATION)
    try:
        with atomic_write(path) as file:
            json.dump({**found, "epoch": epoch, "validation_images": images}, file, indent=2)
            file.write("\n")
    except OSError as error:
        log.warning("%s: the calibration is not stored (%s)", path, error.strerror)


def set_thresholds(
    labels: np.ndarray, probabilities: np.ndarray, coverage: float
) -> tuple[np.ndarray, np.ndarray]:
    """How probable a class must be to be in a prediction set: split conformal, for each class.

    Of new images of each class, at least `coverage` have their class in the set, if they come like
    those of the validation (Vovk, Conditional validity of inductive conformal predictors, 2013).

    Args:
        labels: int64 [N], of validation images.
        probabilities: float [N, K].
        coverage: 0 to 1.

    Returns:
        Thresholds, float [K]; and for which classes there were images enough, bool [K]: where there
        were not, the threshold is 0, so that the class is in each set.
    """
    classes = probabilities.shape[1]
    thresholds, enough = np.zeros(classes), np.zeros(classes, dtype=bool)
    for k in range(classes):
        own = np.sort(probabilities[labels == k, k])
        left_out = math.floor((len(own) + 1) * (1 - coverage) + 1e-9)
        if left_out >= 1:
            thresholds[k], enough[k] = own[left_out - 1], True
    return thresholds, enough
