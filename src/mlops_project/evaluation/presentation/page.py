"""The page of an evaluation: one file that opens anywhere, with nothing to load."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from mlops_project.data.diagnoses import DIAGNOSES
from mlops_project.evaluation.presentation import rendering, wording
from mlops_project.evaluation.presentation.pictures import Picture
from mlops_project.evaluation.presentation.reading import (
    class_names,
    flat,
    get,
    operating_points,
    present,
)
from mlops_project.evaluation.presentation.summary import largest_gap, summary

PHOTOGRAPH_QUALITY = 85  # of 100, where nothing of a dermoscopic picture is seen to change
HOW_TO_READ = {  # by the name of the picture's file
    "confusion_matrix": "A row shows what the images of one class are taken for; the right answers "
    "lie on the diagonal.",
    "roc": "The further a curve bends to the upper left the better; the diagonal is guessing.",
    "precision_recall": "How many alarms are right (upwards) when so many cases are found "
    "(to the right).",
    "decision_curve_malignant": "For somebody who would treat from a given probability on: where "
    "the model's line is the highest, it does more good than treating all or nobody.",
    "decision_curve_melanoma": "As for malignant, for melanoma alone.",
    "reliability": "On the diagonal, 80 % of the images that the model is 80 % sure of are right; "
    "below it, the model is too sure.",
    "prediction_sets": "The fewer classes the better, as long as the true one is among them.",
    "subgroups": "Where intervals overlap widely, chance may be the difference between the groups.",
    "abstention": "Further left, more images are left to a person; fewer of the others should be "
    "wrong.",
}


def write_page(
    facts: dict[str, Any], pictures: Sequence[Picture], folder: Path, predictions: pd.DataFrame
) -> Path:
    """Writes report.html.

    Args:
        facts: what metrics.json holds; an entry may be missing, and a number NaN or None.
        pictures: to show; one that cannot be read is left out.
        folder: to write to; the pictures of explanations are named relative to it.
        predictions: what predictions.csv holds.

    Returns:
        The page.
    """
    names = class_names(facts, predictions)
    known = present(facts)
    values = page_frame() | {
        "facts": known,
        "points": operating_points(known),
        "names": names,
        "diagnoses": DIAGNOSES,
        "counts": _predicted(predictions, names),
        "warnings": wording.warnings(facts),
        "summary": summary(facts, predictions),
        "not_for": wording.NOT_FOR,
        "largest_gap": largest_gap(facts),
        "groups_without": _groups_without(facts),
        "pictures": _pictures(pictures),
        "explanations": _explanations(facts, folder),
        "settings": list(flat(facts.get("settings"))),
    }
    folder.mkdir(parents=True, exist_ok=True)
    return rendering.write(folder / "report.html", "report.html.jinja", values)


def page_frame() -> dict[str, Any]:
    """Script and styles of a page, and the policy that it may load and run nothing else."""
    files = (rendering.TEMPLATES / f"report.{kind}" for kind in ("js", "css"))
    script, styles = (file.read_text(encoding="utf-8") for file in files)
    return {
        # Whatever a name holds
        "policy": "default-src 'none'; img-src data:; "
        f"style-src '{_hash(styles)}'; script-src '{_hash(script)}'",
        "script": Markup(script),
        "styles": Markup(styles),
    }


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _predicted(predictions: pd.DataFrame, names: Sequence[str]) -> dict[str, int]:
    """How many images each class is the most probable one of."""
    if "y_pred" not in predictions:
        return {}
    counts = predictions["y_pred"].value_counts()
    return {name: int(counts.get(name, 0)) for name in names}


def _groups_without(facts: dict[str, Any]) -> int:
    """How many groups have too few lesions for a measure; there may be one for each image."""
    groups = get(facts, "subgroups", "groups") or {}
    return sum("gap" in own for of in groups.values() for own in of.values())


def _pictures(pictures: Sequence[Picture]) -> dict[str, dict[str, Any]]:
    """What the page needs of each readable picture, by the name of its file."""
    found = {}
    for picture in pictures:
        image = embedded(picture.path)
        if image:
            found[picture.path.stem] = image | {
                "title": picture.title,
                "alternative_text": picture.alternative_text,
                "how_to_read": HOW_TO_READ.get(picture.path.stem, ""),
            }
    return found


def _explanations(facts: dict[str, Any], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The explanations whose pictures can be read, by kind."""
    found: dict[str, list[dict[str, Any]]] = {"mistake": [], "success": []}
    for entry in facts.get("explanations") or ():
        image = embedded(folder / str(entry.get("picture") or ""), photograph=True)
        if image and entry.get("kind") in found:
            found[entry["kind"]].append(entry | image)
    return {kind: entries for kind, entries in found.items() if entries}


def embedded(path: Path, *, photograph: bool = False) -> dict[str, Any]:
    """A PNG as a data URL with its size, pixels; empty where it cannot be read.

    A photograph is embedded as a WebP, which takes a tenth of the room.
    """
    kind, data = "png", b""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            width, height = image.size
            if photograph:
                file = io.BytesIO()
                image.save(file, format="WEBP", quality=PHOTOGRAPH_QUALITY)
                kind, data = "webp", file.getvalue()
        data = data or path.read_bytes()
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return {}
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"source": Markup(source), "width": width, "height": height}
