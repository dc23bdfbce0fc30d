"""Which split an image is in, from the point of view of a run or of several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mlops_project.data.identity import image_key, names_of, told_lesions
from mlops_project.data.splits import SPLITS, UNUSED, subsample
from mlops_project.errors import InputError
from mlops_project.evaluation.trained_model import TrainedModel

# From what a run has seen most of, to what it has not.
SEEN = {part: rank for rank, part in enumerate((*SPLITS, UNUSED))}
OUT_OF_FOLD = "out-of-fold"
# Of a cross-validation: as many images with a diagnosis as one fold has, from all folds, each told
# by the models that have it in their validation split.
ONE_FOLD = "one fold"


def known_split(table: pd.DataFrame, seen: dict[str, list[str]]) -> np.ndarray:
    """The split of each image from the point of view of a run.

    Args:
        table: of the images, columns image_id and lesion_id.
        seen: the run's image_id, lesion_id and split, lists of equal length.

    Returns:
        "train", "val", "test" or "unused" for each row, dtype object [N].
    """
    of_image = dict(zip(map(image_key, seen["image_id"]), seen["split"], strict=True))
    names = zip(*names_of(table["image_id"]), strict=True)
    own = [of_image.get(image) or of_image.get(name) for image, name in names]
    # As the run's table told lesions, and as this one tells those of the run's images.
    before, now = told_lesions(pd.DataFrame(seen)), told_lesions(table)
    of_lesion: dict[str, str] = {}
    for lesion, part in [*zip(before, seen["split"], strict=True), *zip(now, own, strict=True)]:
        if part and pd.notna(lesion) and SEEN[part] <= SEEN[of_lesion.get(lesion, UNUSED)]:
            of_lesion[lesion] = part
    found = [part or of_lesion.get(lesion, "test") for part, lesion in zip(own, now, strict=True)]
    return np.array(found, dtype=object)


def split_of_all(parts: np.ndarray) -> np.ndarray:
    """The split of each image for several runs at once.

    Args:
        parts: of each run, dtype object [M, N].

    Returns:
        dtype object [N]: "train" where it is so for one of them, else "val", else "unused"; "test"
        where it is so for all.
    """
    together = np.full(parts.shape[1], "test", dtype=object)
    for name in (UNUSED, "val", "train"):
        together[(parts == name).any(axis=0)] = name
    return together


def known_images(models: Sequence[TrainedModel], split: str) -> set[str]:
    """Ids of the images that the runs had in a split."""
    parts = {"all": SPLITS, OUT_OF_FOLD: ("val",), ONE_FOLD: ("val",)}.get(split, (split,))
    found: set[str] = set()
    for model in models:
        seen = model.facts["split"]
        pairs = zip(seen["image_id"], seen["split"], strict=True)
        found |= {image for image, part in pairs if part in parts}
    return found


def folds_of(asked: np.ndarray) -> np.ndarray | None:
    """Which fold each image is of, int64 [N], from 0; None if this is no cross-validation.

    In one, each model answers for one fold, or for none of these images, and every fold has as many
    models.

    Args:
        asked: which of the M models is asked about which image, bool [M, N].
    """
    told, folds = np.unique(asked, axis=1, return_inverse=True)
    told = told[told.any(axis=1)]
    alone = (told.sum(axis=1) == 1).all() and len(set(told.sum(axis=0))) == 1
    return folds.reshape(-1) if alone and told.shape[1] > 1 else None


def one_fold(table: pd.DataFrame, asked: np.ndarray) -> np.ndarray:
    """Which images are of `ONE_FOLD`, bool [N]: whole lesions of each diagnosis.

    What is fitted on one run's validation split needs no more, and to ask about all would take as
    many times as long as there are folds.

    Raises:
        InputError: the models are no cross-validation.
    """
    known = np.flatnonzero(asked.any(axis=0) & (table["dx"] != "").to_numpy())
    folds = folds_of(asked[:, known])
    if folds is None:
        raise InputError(
            "the models have different validation splits, and not equally many have each image "
            "there, as the folds of a cross-validation would"
        )
    share = 1 / len(np.unique(folds))
    stays = subsample(table.iloc[known], folds, share, stratified=True, seed=0)
    wanted = np.zeros(len(table), dtype=bool)
    wanted[known[stays]] = True
    return wanted
