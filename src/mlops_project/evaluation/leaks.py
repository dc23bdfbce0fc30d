"""What is evaluated and was trained on too: the same image, lesion or picture under another id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mlops_project.data import same_pictures
from mlops_project.errors import InputError
from mlops_project.evaluation.images import open_images
from mlops_project.evaluation.trained_model import TrainedModel


@dataclass(frozen=True)
class Pictures:
    """What images look like.

    Attributes:
        image_id: object [N].
        thumbnails: uint8 [N, 3, S, S], of `same_pictures.thumbnails`.
    """

    image_id: np.ndarray
    thumbnails: np.ndarray


def training_pictures(models: Iterable[TrainedModel]) -> Pictures | None:
    """The training images of all the models whose folders are here; None: of none of them."""
    names: list[np.ndarray] = []
    parts: list[np.ndarray] = []
    for model in models:
        try:
            images = open_images([model], None, "train")
        except InputError:
            continue  # `audit` sees which of them are missing
        data, rows = images.data[0], images.rows
        ids = data.table["image_id"].to_numpy()
        # What another model was trained on too need not be looked at again.
        new = rows[~np.isin(ids[rows], np.concatenate(names))] if names else rows
        names.append(ids[new])
        parts.append(same_pictures.thumbnails(data, new))
    return Pictures(np.concatenate(names), np.concatenate(parts)) if names else None


def audit(
    seen: Iterable[dict[str, list[str]]],
    evaluated: pd.DataFrame,
    thumbnails: np.ndarray | None = None,
    training: Pictures | None = None,
    *,
    excluded: bool = False,
) -> dict[str, Any]:
    """Which evaluated images show what any of the checkpoints was trained on.

    An image leaks by its id, its lesion's id, or by being a near-duplicate of a training image; and
    so do all the other images of its lesion.

    Args:
        seen: `split` of each checkpoint: image_id, lesion_id and split, lists of equal length.
        evaluated: image_id and lesion_id, one row an image.
        thumbnails: of the evaluated images, uint8 [N, 3, S, S]; None: not at hand.
        training: what the training images look like; None: not at hand.
        excluded: whether what leaks is left out of the evaluation; for the words only.

    Returns:
        The entry `leaks` of metrics.json:
        status: "overlap"; else "unknown", where not all of the training images could be compared;
            else "clean".
        n_training_images: of all checkpoints together.
        n_shared_with_validation: evaluated images that do not leak, but that the checkpoint was
            chosen by, or that show such a lesion.
        shared_images: evaluated image ids that were trained on; shared_lesions: lesion ids.
        near_duplicates: of the other images, each with the training image most like it:
            image_id, training_image_id and similarity (of the edges, 1 is the same).
        leaked_images: ids of all that leak, in the table's order.
        excluded: as given; sentence: all this in words.
    """
    known = pd.concat([pd.DataFrame(split) for split in seen])
    trained, chosen_by = (known[known["split"] == split] for split in ("train", "val"))
    image, lesion = evaluated["image_id"], evaluated["lesion_id"]
    same_image = image.isin(trained["image_id"]).to_numpy()
    same_lesion = lesion.isin(trained["lesion_id"]).to_numpy()
    n_training = trained["image_id"].nunique()
    near = pd.DataFrame(columns=["image_id", "training_image_id", "similarity"])
    missing = n_training
    if thumbnails is not None and training is not None:
        own = np.isin(training.image_id, trained["image_id"])
        missing -= int(own.sum())
        rest = np.flatnonzero(~same_image & ~same_lesion)
        i, j, similarity = same_pictures.similar_pairs(training.thumbnails[own], thumbnails[rest])
        near = pd.DataFrame(
            {
                "image_id": image.to_numpy()[rest[j]],
                "training_image_id": training.image_id[own][i],
                "similarity": similarity.astype(float),
            }
        )
        near = near.sort_values("similarity", ascending=False).drop_duplicates("image_id")
    direct = same_image | same_lesion
    found = direct | image.isin(near["image_id"]).to_numpy()
    leaks = lesion.isin(lesion[found]).to_numpy()
    validated = image.isin(chosen_by["image_id"]) | lesion.isin(chosen_by["lesion_id"])
    facts = {
        "status": "overlap" if leaks.any() else "unknown" if missing else "clean",
        "n_training_images": n_training,
        "n_shared_with_validation": int((validated.to_numpy() & ~leaks).sum()),
        "shared_images": image[same_image].tolist(),
        "shared_lesions": sorted(set(lesion[same_lesion])),
        "near_duplicates": near.to_dict("records"),
        "leaked_images": image[leaks].tolist(),
        "excluded": excluded,
    }
    ways = {
        "the same image": same_image,
        "another image of the same lesion": same_lesion & ~same_image,
        "the same picture under another id": found & ~direct,
        "another image of a lesion so found": leaks & ~found,
    }
    counts = {way: int(images.sum()) for way, images in ways.items() if images.any()}
    return facts | {"sentence": _sentence(facts, len(evaluated), counts, missing)}


def _sentence(facts: dict[str, Any], images: int, ways: dict[str, int], missing: int) -> str:
    leaked, trained = len(facts["leaked_images"]), facts["n_training_images"]
    if leaked:
        shows, it = ("shows", "it") if leaked == 1 else ("show", "them")
        listed = ", ".join(f"{way}: {count:,}" for way, count in ways.items())
        text = f"Overlap: {leaked:,} of {images:,} evaluated images {shows} what the model was "
        text += f"trained on ({listed}). "
        if facts["excluded"]:
            text += f"The evaluation leaves {it} out."
        else:
            text += f"The measures are too optimistic; --exclude-leaked leaves {it} out."
    elif missing:
        text = f"Unknown: the {images:,} evaluated and {trained:,} training images have no image "
        text += "and no lesion in common by their ids."
    else:
        text = f"Clean: the {images:,} evaluated and {trained:,} training images have no image, no "
        text += "lesion and no near-duplicate in common."
    if missing:
        text += f" Near-duplicates under other ids were not looked for among {missing:,} training "
        text += "images that are not at hand."
    if count := facts["n_shared_with_validation"]:
        text += f" {count:,} evaluated images show lesions of the validation split, by which the "
        text += "checkpoint was chosen."
    return text
