"""A table for images that no table names."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from mlops_project.data.archives import file_key, find_images, member_parts


def table_of_images(folder: Path, places: list[Path], named: Collection[str] = ()) -> pd.DataFrame:
    """A row for each image of these places in a folder; its name is the image's and the lesion's.

    Images of the same name are told apart by their folders, or else by their endings. Those whose
    `file_key` is among the named ones are left out.

    Returns:
        `sources.COLUMNS`, nothing known, sorted by image_id.
    """
    rows = []
    for name, path, member in dict.fromkeys(find_images(places)):  # a place may lie in another
        if file_key(name) in named:
            continue
        inside = str(Path("/".join((path, *member_parts(member)))).relative_to(folder))
        # A name that is no text can neither be hashed nor written into a table.
        image_id = os.fsencode(inside).decode("utf-8", "backslashreplace")
        rows.append({"image_id": image_id, "path": path, "member": member})
    table = pd.DataFrame(rows, columns=["image_id", "path", "member"])
    whole = table["image_id"]
    names, stems = whole.map(lambda n: Path(n).stem), whole.map(lambda n: os.path.splitext(n)[0])
    ids = names.mask(names.duplicated(keep=False), stems)
    table["image_id"] = ids.mask(stems.duplicated(keep=False), whole)
    table = table.drop_duplicates("image_id").sort_values("image_id").reset_index(drop=True)
    table["lesion_id"], table["dx"], table["age"] = table["image_id"], "", float("nan")
    for column in ("dx_type", "sex", "localization", "dataset"):
        table[column] = "unknown"
    return table
