"""What is evaluated and was trained on too: the same image, lesion or picture under another id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from mlops_project.data import same_pictures
from mlops_project.data.identity import (
    absent_from,
    image_key,
    known_among,
    told_lesions,
)
from mlops_project.errors import InputError
from mlops_project.evaluation.images import Images, moved_to, open_images
from mlops_project.evaluation.trained_model import TrainedModel
from mlops_project.training.checkpoints import trained_on

NEAR = ("image_id", "training_image_id", "similarity")


@dataclass(frozen=True)
class Pictures:
    """What images look like.

    Attributes:
        image_id: object [N]; two folders may have one id for two pictures.
        thumbnails: uint8 [N, 3, S, S], of `same_pictures.thumbnails`.
        trained: which of the M models were trained on it, bool [M, N].
        lesion_id: that the table tells now, `told_lesions`, object [N].
    """

    image_id: np.ndarray
    thumbnails: np.ndarray
    trained: np.ndarray
    lesion_id: np.ndarray


def training_pictures(models: Sequence[TrainedModel], evaluated: Images) -> Pictures | None:
    """The training images of all the models whose folders are here; None: of none of them.

    Args:
        models: that were trained.
        evaluated: whose folder is the one of models that has been moved, if it is that.
    """

    def folder(model: TrainedModel) -> str:
        return model.config.data.data_dir

    parts: list[Pictures] = []
    for place, group in groupby(sorted(models, key=folder), folder):
        try:
            own = list(group)
            # What was trained on before the run may be of another split of it.
            before = any(model.facts.get("earlier", {}).get("image_id") for model in own)
            part = "all" if before else "train"
            images = open_images(own, moved_to(own, evaluated), part)
            learned = {i for model in own for i in trained_on(model.facts)["image_id"]}
            ids = images.table["image_id"]
            images = images.without(set(ids[~known_among(ids, learned)]))
        except InputError:
            continue  # `audit` sees what is missing
        ids = images.table["image_id"]
        trained = [
            known_among(ids, trained_on(model.facts)["image_id"]) & (folder(model) == place)
            for model in models
        ]
        small = same_pictures.thumbnails(images.data[0], images.rows)
        lesions = told_lesions(images.data[0].table).iloc[images.rows].to_numpy(dtype=object)
        parts.append(Pictures(ids.to_numpy(dtype=object), small, np.stack(trained), lesions))
    if not parts:
        return None
    return Pictures(
        np.concatenate([part.image_id for part in parts]),
        np.concatenate([part.thumbnails for part in parts]),
        np.concatenate([part.trained for part in parts], axis=1),
        np.concatenate([part.lesion_id for part in parts]),
    )


def shown_in_both(own: Images, evaluated: Images) -> tuple[np.ndarray, np.ndarray]:
    """Which of V and of N images are near-duplicates of one of the others, or of such a lesion.

    Returns:
        bool [V] and [N].
    """
    both = own, evaluated
    small = [same_pictures.thumbnails(images.data[0], images.rows) for images in both]
    positions = same_pictures.similar_pairs(*small)[:2]
    lesions = [images.table["lesion_id"] for images in both]
    one, other = (
        ids.isin(ids.iloc[found]).to_numpy() for ids, found in zip(lesions, positions, strict=True)
    )
    return one, other


def seen_by(model: TrainedModel) -> dict[str, list[str]]:
    """A model's split, with what its weights had learned from before its run as of training."""
    split, earlier = model.facts["split"], model.facts.get("earlier", {})
    before = {name: earlier.get(name, []) for name in ("image_id", "lesion_id")}
    before["split"] = ["train"] * len(before["image_id"])
    return {name: split[name] + more for name, more in before.items()}


def audit(
    seen: Sequence[dict[str, list[str]]],
    evaluated: pd.DataFrame,
    thumbnails: np.ndarray | None = None,
    training: Pictures | None = None,
    *,
    folder: pd.DataFrame | None = None,
    asked: np.ndarray | None = None,
    excluded: bool = False,
) -> dict[str, Any]:
    """Which evaluated images show what a model that is asked about them was trained on.

    An image leaks by its id, its lesion's id, or by being a near-duplicate of a training image; and
    so do all the other images of its lesion.

    Args:
        seen: `split` of each of M checkpoints: image_id, lesion_id and split, lists of one length.
        evaluated: image_id and lesion_id, one row an image.
        thumbnails: of the evaluated images, uint8 [N, 3, S, S]; None: not at hand.
        training: what the training images look like; None: not at hand.
        folder: like `evaluated`, of all images of their folder; None: these are all.
        asked: which model is asked about which image, bool [M, N]; None: each about all.
        excluded: whether what leaks is left out of the evaluation; for the words only.

    Returns:
        The entry `leaks` of metrics.json:
        status: "overlap"; else "unknown", where not all of the training images could be compared;
            else "clean".
        n_training_images: of all checkpoints together.
        n_not_compared: training images that near-duplicates were not looked for among.
        n_asked_of_some: evaluated images that not all models are asked about.
        n_shared_with_validation: evaluated images that do not leak, but by which a model that is
            asked was chosen, or that show such a lesion; see `count_validation`.
        shared_images: evaluated image ids that were trained on; shared_lesions: lesion ids.
        near_duplicates: of the other images, each with the training image most like it:
            image_id, training_image_id and similarity (of the edges, 1 is the same).
        leaked_images: ids of all that leak, in the table's order.
        excluded: as given; sentence: all this in words.
    """
    # Looked up in a hash table; numpy would compare every id with every other.
    image, lesion = pd.Index(evaluated["image_id"]), pd.Index(evaluated["lesion_id"])
    asked = np.ones((len(seen), len(image)), dtype=bool) if asked is None else asked
    parts = [pd.DataFrame(split) for split in seen]
    trained = [part[part["split"] == "train"] for part in parts]
    same_image = _same_image(evaluated["image_id"], trained, asked)
    folder = evaluated if folder is None else folder
    now = told_lesions(folder)
    told = _of_evaluated(now, folder, evaluated)
    same_lesion = _same_lesion(told, now, folder, parts, "train", asked)
    if training is not None:  # the table may have been corrected since
        again = [told.isin(training.lesion_id[own]) for own in training.trained]
        same_lesion |= (np.stack(again) & asked & told.notna()).any(axis=0)
    direct = same_image | same_lesion
    trained_ids = set(pd.concat(trained)["image_id"].map(image_key))
    missing, near = len(trained_ids), pd.DataFrame(columns=list(NEAR))
    if thumbnails is not None and training is not None:
        at_hand = zip(trained, training.trained, strict=True)
        absent = [
            absent_from(pd.Series(training.image_id[own], dtype=str), part["image_id"])
            for part, own in at_hand
        ]
        missing = len(set().union(*absent))
        rest = np.flatnonzero(~direct)
        i, j, similarity = same_pictures.similar_pairs(training.thumbnails, thumbnails[rest])
        names, rows = training.image_id[i], rest[j]
        counts = (training.trained[:, i] & asked[:, rows]).any(axis=0)
        values = image[rows], names, similarity.astype(float)
        near = pd.DataFrame(dict(zip(NEAR, values, strict=True)))[counts]
        near = near.sort_values("similarity", ascending=False).drop_duplicates("image_id")
    found = direct | image.isin(near["image_id"])
    leaks = lesion.isin(lesion[found])
    validated = chosen_by(seen, evaluated, folder, asked)
    facts = {
        "status": "overlap" if leaks.any() else "unknown" if missing else "clean",
        "n_training_images": len(trained_ids),
        "n_not_compared": missing,
        "n_shared_with_validation": int((validated & ~leaks).sum()),
        "n_asked_of_some": int((~asked.all(axis=0)).sum()),
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
    listed = ", ".join(f"{way}: {own.sum():,}" for way, own in ways.items() if own.any())
    text = _sentence(facts, len(image), listed)
    return facts | {"sentence": text + _of_validation(facts["n_shared_with_validation"])}


def count_validation(
    facts: dict[str, Any],
    seen: Sequence[dict[str, list[str]]],
    images: Images,
    like: np.ndarray,
) -> None:
    """Counts in `audit`'s facts also what shows the validation images under other ids.

    Args:
        facts: to change.
        seen: as for `audit`.
        images: that are evaluated.
        like: of them those that do, bool [N].
    """
    validated = chosen_by(seen, images.table, images.data[0].table, images.asked) | like
    leaks = images.table["image_id"].isin(facts["leaked_images"]).to_numpy()
    text = facts["sentence"].removesuffix(_of_validation(facts["n_shared_with_validation"]))
    count = int((validated & ~leaks).sum())
    facts |= {"n_shared_with_validation": count, "sentence": text + _of_validation(count)}


def chosen_by(
    seen: Sequence[dict[str, list[str]]],
    evaluated: pd.DataFrame,
    folder: pd.DataFrame,
    asked: np.ndarray,
) -> np.ndarray:
    """Which images, or their lesions, are by their ids in a validation split, bool [N].

    Arguments as for `audit`.
    """
    parts = [pd.DataFrame(split) for split in seen]
    validated = [part[part["split"] == "val"] for part in parts]
    found = _same_image(evaluated["image_id"], validated, asked)
    now = told_lesions(folder)
    told = _of_evaluated(now, folder, evaluated)
    return found | _same_lesion(told, now, folder, parts, "val", asked)


def _same_image(image_ids: pd.Series, parts: list[pd.DataFrame], asked: np.ndarray) -> np.ndarray:
    """Which images are by their ids in the part of a model that is asked about them, bool [N]."""
    found = [known_among(image_ids, part["image_id"]) for part in parts]
    return (np.stack(found) & asked).any(axis=0)


def _same_lesion(
    told: pd.Index,
    now: pd.Series,
    folder: pd.DataFrame,
    seen: list[pd.DataFrame],
    split: str,
    asked: np.ndarray,
) -> np.ndarray:
    """Which images show a lesion of this split of a model that is asked about them, bool [N].

    By what the run's table told of lesions, and by what this folder's tells of the run's images.

    Args:
        told, now: `told_lesions` of the evaluated images, and of all of their folder.
        folder, seen, asked: as for `audit`.
        split: "train" or "val".
    """
    found = []
    for run in seen:
        own = run["split"] == split
        again = known_among(folder["image_id"], run["image_id"][own])
        known = pd.concat([told_lesions(run)[own], now[again]])
        found.append(told.isin(known) & told.notna())
    return (np.stack(found) & asked).any(axis=0)


def _of_evaluated(now: pd.Series, folder: pd.DataFrame, evaluated: pd.DataFrame) -> pd.Index:
    """Of `told_lesions` of a folder those of the evaluated images."""
    return pd.Index(now.set_axis(folder["image_id"]).reindex(evaluated["image_id"]))


def _sentence(facts: dict[str, Any], images: int, ways: str) -> str:
    leaked, trained = len(facts["leaked_images"]), facts["n_training_images"]
    missing = facts["n_not_compared"]
    if leaked:
        shows, it = ("shows", "it") if leaked == 1 else ("show", "them")
        text = f"Overlap: {leaked:,} of {images:,} evaluated images {shows} what the model was "
        text += f"trained on ({ways}). "
        if facts["excluded"]:
            text += f"The evaluation leaves {it} out."
        else:
            text += f"The measures are too optimistic; --exclude-leaked leaves {it} out."
    elif missing:
        text = f"Unknown: the {images:,} evaluated and {trained:,} training images have no image "
        text += "and no lesion in common by their ids."
    elif facts["n_asked_of_some"]:
        text = f"Clean: none of the {images:,} evaluated images shows what a model that is asked "
        text += "about it was trained on, by image, lesion or near-duplicate."
    else:
        text = f"Clean: the {images:,} evaluated and {trained:,} training images have no image, no "
        text += "lesion and no near-duplicate in common."
    if missing:
        text += f" Near-duplicates under other ids were not looked for among {missing:,} training "
        text += "images that are not at hand."
    return text


def _of_validation(count: int) -> str:
    if not count:
        return ""
    text = f" {count:,} evaluated images show lesions of the validation split, by which the "
    return text + "checkpoint was chosen."
