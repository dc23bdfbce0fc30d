"""The seven diagnoses of HAM10000, and the classes a model tells apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mlops_project.errors import InputError
from mlops_project.printable import printable

# Tschandl, Rosendahl, Kittler, The HAM10000 dataset, Sci. Data 5:180161 (2018); alphabetical.
DIAGNOSES = {
    "akiec": "actinic keratosis or intraepithelial carcinoma",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis-like lesion",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic nevus",
    "vasc": "vascular lesion",
}
MALIGNANT = frozenset({"akiec", "bcc", "mel"})
BINARY = ("benign", "malignant")


def class_names(num_classes: int) -> tuple[str, ...]:
    """("benign", "malignant") for 2 classes, the diagnoses in alphabetical order for 7."""
    return BINARY if num_classes == 2 else tuple(DIAGNOSES)


def malignant_classes(names: Sequence[str]) -> list[int]:
    """Which of the classes, diagnoses or benign and malignant, are malignant."""
    return [k for k, name in enumerate(names) if name == BINARY[1] or name in MALIGNANT]


def questions(names: Sequence[str]) -> dict[str, list[int]]:
    """Which classes count as a yes to "malignant" and, where the classes tell, "melanoma"."""
    melanoma = {"melanoma": [names.index("mel")]} if "mel" in names else {}
    return {"malignant": malignant_classes(names), **melanoma}


def unknown_diagnoses(dx: Iterable[str], num_classes: int = 2) -> dict[str, int]:
    """How often each text occurs that is no diagnosis; benign and malignant tell two classes."""
    counts: dict[str, int] = {}
    for name in dx:
        if name not in DIAGNOSES and not (num_classes == 2 and name in BINARY):
            counts[name] = counts.get(name, 0) + 1
    return counts


def labels(dx: Iterable[str], num_classes: int) -> np.ndarray:
    """Class index of each diagnosis, int64 [N].

    Raises:
        InputError: a diagnosis is none of the seven.
    """
    names = list(dx)
    unknown = unknown_diagnoses(names, num_classes)
    if unknown:
        listed = ", ".join(
            f"'{printable(name or '(empty)', 30)}' ({n})" for name, n in list(unknown.items())[:5]
        )
        known = [*DIAGNOSES, *(BINARY if num_classes == 2 else ())]
        raise InputError(
            f"{sum(unknown.values())} images have an unknown diagnosis: {listed}\n"
            f"Known: {', '.join(known)}. Correct or remove these rows of the table."
        )
    if num_classes == 2:
        return np.array([name in MALIGNANT or name == BINARY[1] for name in names], dtype=np.int64)
    index = {name: i for i, name in enumerate(DIAGNOSES)}
    return np.array([index[name] for name in names], dtype=np.int64)
