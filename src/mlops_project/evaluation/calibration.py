"""Probabilities that mean what they say, and sets of classes that hold the true one."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np

from mlops_project.files import atomic_write
from mlops_project.training.checkpoints import CALIBRATION

log = logging.getLogger("mlops_project")

TEMPERATURES = (0.05, 20.0)  # that are looked at
SMALLEST = 1e-12  # probability, so that its logarithm exists


def fit_temperature(
    labels: np.ndarray, probabilities: np.ndarray, offsets: np.ndarray | None = None
) -> float:
    """The temperature with the least log loss (Guo et al., ICML 2017).

    Args:
        labels: int64 [N], of validation images.
        probabilities: float [N, K], of a softmax.
        offsets: as for `with_temperature`.

    Returns:
        1 where there is nothing to fit, as with a single image.
    """
    from scipy.optimize import minimize_scalar

    if len(labels) < 2:
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = with_temperature(probabilities, math.exp(log_temperature), offsets)
        return float(-np.log(np.clip(scaled[np.arange(len(labels)), labels], SMALLEST, 1)).mean())

    low, high = map(math.log, TEMPERATURES)
    return math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x)


def at_the_end(temperature: float) -> bool:
    """Whether it lies at either end of `TEMPERATURES`, where the loss still falls."""
    return not 1.01 * TEMPERATURES[0] < temperature < 0.99 * TEMPERATURES[1]


def with_temperature(
    probabilities: np.ndarray, temperature: float, offsets: np.ndarray | None = None
) -> np.ndarray:
    """The softmax [N, K] of the same logits divided by a temperature; the order stays.

    Args:
        probabilities: float [N, K], of a softmax.
        temperature: more than 0.
        offsets: added to the divided logits, float [K], as of `TrainedModel.log_prior`; with them
            the order changes.
    """
    logits = np.log(np.clip(probabilities, SMALLEST, 1)) / temperature
    if offsets is not None:
        logits += offsets
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def store_temperature(
    checkpoint: Path, temperature: float, offsets: dict[str, float], epoch: int, images: int
) -> None:
    """Writes it beside the checkpoint, as <name>.calibration.json, where that can be written.

    Args:
        checkpoint: whose logits are to be divided.
        temperature: fitted on its validation split.
        offsets: of each class, added to the divided logits.
        epoch: of the checkpoint, which tells whether a last.ckpt has moved on since.
        images: on how many it was fitted.
    """
    path = checkpoint.with_suffix(CALIBRATION)
    facts = {
        "temperature": temperature,
        "offsets": offsets,
        "epoch": epoch,
        "validation_images": images,
    }
    try:
        with atomic_write(path) as file:
            json.dump(facts, file, indent=2)
            file.write("\n")
    except OSError as error:
        log.warning("%s: the temperature is not stored (%s)", path, error.strerror)


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


def prediction_sets(probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Which classes are in the set of each image, bool [N, K]."""
    return probabilities >= thresholds
