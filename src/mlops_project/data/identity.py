"""When two images are the same by their ids, and two lesions, however tables write these."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import numpy as np
import pandas as pd

# Of files; an image's id has none
IMAGE_ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def image_key(name: str) -> str:
    """A name as all systems write it: in lower case, a letter and its accent as one (NFC)."""
    return unicodedata.normalize("NFC", name).lower()


def without_ending(image_ids: pd.Series) -> pd.Series:
    """Names of images without the ending of their files, where they have one."""
    endings = "|".join(ending[1:] for ending in IMAGE_ENDINGS)
    return image_ids.str.replace(rf"\.({endings})$", "", case=False, regex=True)


def names_of(image_ids: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Two keys for each image: of its whole id, and of the id without folder and ending.

    Where there is no table, folders and endings tell images of the same name apart.
    """
    bare = without_ending(image_ids).map(lambda name: name.rsplit("/", 1)[-1])
    return image_ids.map(image_key), bare.map(image_key)


def known_among(image_ids: pd.Series, known: Iterable[str]) -> np.ndarray:
    """Which images are among those that are known by their ids, bool [N]."""
    keys = set(map(image_key, known))
    whole, bare = names_of(image_ids)
    return whole.isin(keys).to_numpy() | bare.isin(keys).to_numpy()


def absent_from(image_ids: pd.Series, known: Iterable[str]) -> set[str]:
    """The keys of known images that none of these images is."""
    return set(map(image_key, known)).difference(*names_of(image_ids))


def lesion_key(lesion_id: str) -> str:
    """Equal for all the ways in which tables write a lesion's id."""
    return re.sub(r"^(\d+)\.0+$", r"\1", image_key(lesion_id))


def spelled_alike(lesion_ids: pd.Series) -> pd.Series:
    """Lesion ids; of those that name one lesion in several ways, the first by alphabet for all.

    Exports that were merged may have written one id in capitals, in small letters and, where it is
    a whole number, as a decimal one: taken for several lesions, they would be in several splits.
    Which row comes first makes no difference, and ids without a double stay as they are.
    """
    first = {lesion_key(name): name for name in sorted(set(lesion_ids), reverse=True)}
    return lesion_ids.map(lambda name: first[lesion_key(name)])


def told_lesions(table: pd.DataFrame) -> pd.Series:
    """The `lesion_key` of each image's lesion; missing where that is the image's own id alone.

    Such an id stands in for one that is not known, and may be another lesion's in another table.
    """
    lesions = table["lesion_id"].astype(object)
    alone = table.groupby("lesion_id")["image_id"].transform("nunique") == 1
    return lesions.map(lesion_key).mask((lesions == table["image_id"]) & alone, None)
