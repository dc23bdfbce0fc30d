"""Where the split is made: whole lesions, stratified by diagnosis, the same on every machine.

The order in which lesions are dealt out comes from a cryptographic hash of (seed, lesion_id), so
it depends neither on the order of the table nor on the version of any library. A lesion goes where
its diagnosis is short of images, so that one that is missing may move others of its diagnosis.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from mlops_project.config import DataConfig

SPLITS = ("train", "val", "test")
# HAM10000 has one picture under two lesion ids: ISIC_0025226 and ISIC_0030074 are the same but for
# how they were saved, and their patient's age and sex, site and source are the same, too.
# `dataset.py check` finds them, and no other pair (see `same_pictures`).
SAME_LESION = {"HAM_0004919": "HAM_0000140"}
UNUSED = "unused"  # rows that subsampling leaves out, or whose image cannot be read


def _order_key(seed: int, purpose: str, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{purpose}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _lesions(table: pd.DataFrame, seed: int, purpose: str) -> pd.DataFrame:
    """One row a lesion (index lesion_id): its diagnosis, number of images and hashed order."""
    # A lesion with two diagnoses counts as its most frequent one, or the first by alphabet.
    counts = table.groupby(["lesion_id", "dx"]).size().reset_index(name="images")
    counts = counts.sort_values(["images", "dx"], ascending=[False, True])
    lesions = counts.drop_duplicates("lesion_id").set_index("lesion_id")[["dx"]]
    lesions["images"] = table.groupby("lesion_id").size()
    lesions["order"] = [_order_key(seed, purpose, str(name)) for name in lesions.index]
    return lesions.sort_values("order")


def make_split(table: pd.DataFrame, settings: DataConfig, seed: int) -> np.ndarray:
    """The split that a training uses: by lesion, into folds and subsampled as the settings say.

    Args:
        table: columns lesion_id and dx, one row an image.
        settings: its fractions, folds and sampling.
        seed: another seed gives another split.

    Returns:
        "train", "val", "test" or "unused" for each row of the table, [N].
    """
    split = split_by_lesion(table, seed, settings.val_fraction, settings.test_fraction)
    if settings.folds:
        split = into_folds(table, split, seed, settings.folds, settings.fold)
    fraction, stratified = settings.subsample_percentage, settings.stratified_sampling
    return np.where(subsample(table, split, fraction, stratified, seed), split, UNUSED)


def split_by_lesion(
    table: pd.DataFrame,
    seed: int,
    val_fraction: float = DataConfig.val_fraction,
    test_fraction: float = DataConfig.test_fraction,
) -> np.ndarray:
    """Assigns every image to a split, all images of a lesion to the same one.

    A split exceeds its share of a diagnosis by less than the images of one lesion, and so falls
    short by less than those of two; a diagnosis with three lesions or more is in all of them.

    Args:
        table: columns lesion_id and dx, one row an image.
        seed: another seed gives another split.
        val_fraction, test_fraction: share of each diagnosis's images; the rest is for training.
            A test_fraction of 0 makes no test split.

    Returns:
        "train", "val" or "test" for each row of the table, dtype object [N].
    """
    shares = {"train": 1 - val_fraction - test_fraction, "val": val_fraction}
    if test_fraction:
        shares["test"] = test_fraction
    dealt = _deal(_lesions(table, seed, "split"), shares, seed, first="train")
    return table["lesion_id"].map(dealt).to_numpy(dtype=object)


def into_folds(
    table: pd.DataFrame, split: np.ndarray, seed: int, folds: int, fold: int
) -> np.ndarray:
    """One split of a cross-validation: every lesion outside the test split is in one fold.

    Args:
        table: columns lesion_id and dx, one row an image.
        split: of `split_by_lesion`, whose test split stays as it is.
        seed: another seed gives other folds.
        folds: how many; each has about as many images of a diagnosis.
        fold: which one is for validation, from 0; the others are for training.

    Returns:
        "train", "val" or "test" for each row of the table, dtype object [N].
    """
    lesions = _lesions(table[split != "test"], seed, "split")
    shares = {str(number): 1 / folds for number in range(folds)}
    dealt = table["lesion_id"].map(_deal(lesions, shares, seed)).to_numpy(dtype=object)
    return np.where(split == "test", "test", np.where(dealt == str(fold), "val", "train"))


def _deal(
    lesions: pd.DataFrame, shares: dict[str, float], seed: int, first: str | None = None
) -> dict[str, str]:
    """Which part each lesion goes to.

    Within a diagnosis each lesion, those with the most images first, goes to the part that has the
    smallest share of its target so far; one of `SAME_LESION` goes where the other one is.

    Args:
        lesions: of `_lesions`.
        shares: of the images, by the name of the part.
        seed: of the order of parts that have equally much; `first`: comes before all of them, where
            there are too few lesions.
    """
    assigned: dict[str, str] = {}
    for dx, group in lesions.groupby("dx", sort=True):
        ties = {n: -1 if n == first else _order_key(seed, f"tie:{dx}", n) for n in shares}
        dealt = dict.fromkeys(shares, 0)
        for lesion_id, images in group.sort_values(["images", "order"], ascending=[False, True])[
            "images"
        ].items():
            chosen = min(shares, key=lambda name: (dealt[name] / shares[name], ties[name]))
            dealt[chosen] += int(images)
            assigned[str(lesion_id)] = chosen
    for second, lesion_id in SAME_LESION.items():
        if {second, lesion_id} <= assigned.keys():
            assigned[second] = assigned[lesion_id]
    return assigned


def subsample(
    table: pd.DataFrame, split: np.ndarray, fraction: float, stratified: bool, seed: int
) -> np.ndarray:
    """Chooses whole lesions of each split, about `fraction` of its images.

    A smaller fraction chooses a subset of a larger one's lesions.

    Args:
        table: columns lesion_id and dx, one row an image.
        split: split of each row [N].
        fraction: in (0, 1].
        stratified: choose within each diagnosis, at least one lesion of each; otherwise among all
            lesions of the split, at least one.
        seed: another seed chooses other lesions.

    Returns:
        True for each row that stays, bool [N].
    """
    if fraction >= 1:
        return np.ones(len(table), dtype=bool)
    lesions = _lesions(table, seed, "subsample")
    lesions["split"] = pd.Series(split, index=table["lesion_id"]).groupby(level=0).first()
    kept: set[str] = set()
    for _, group in lesions.groupby(["split", "dx"] if stratified else ["split"]):
        images = group["images"].to_numpy()
        # A lesion stays when at least half of it lies below the target.
        stays = np.cumsum(images) - images / 2 <= fraction * images.sum()
        stays[0] = True
        kept.update(group.index[stays])
    return table["lesion_id"].isin(kept).to_numpy()


def split_hash(table: pd.DataFrame, split: np.ndarray) -> str:
    """16 hexadecimal digits, equal for equal (image_id, split) pairs in any order.

    As well of what else is told of each image instead of its split, dtype object [N].
    """
    lines = sorted(f"{image},{part}" for image, part in zip(table["image_id"], split, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
