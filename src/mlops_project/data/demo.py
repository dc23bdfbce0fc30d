"""Synthetic images in HAM10000's own layout, for trying everything without data.

Frequencies, lesions with several pictures and missing ages follow HAM10000; `demo_lesions` draws
the pictures. They have no clinical meaning.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image

from mlops_project.data.archives import is_junk
from mlops_project.data.demo_lesions import draw_lesion, render
from mlops_project.data.sources import SYNTHETIC_MARKER
from mlops_project.errors import InputError
from mlops_project.printable import printable
from mlops_project.progress import track
from mlops_project.threads import usable_cores

log = logging.getLogger("mlops_project")

FORMAT = 1  # of the pictures: another number generates them anew
IMAGES = 1200
PARTS = ("HAM10000_images_part_1", "HAM10000_images_part_2")
TABLE = "HAM10000_metadata.csv"
MADE = (*PARTS, TABLE, SYNTHETIC_MARKER)  # the marker last: where it lies, all is there
# Shares of HAM10000's images (Tschandl et al., Sci. Data 5:180161, 2018, table 1).
SHARES = {"akiec": 327, "bcc": 514, "bkl": 1099, "df": 115, "mel": 1113, "nv": 6705, "vasc": 142}
# Shares of its lesions with 1, 2, 3, 4 pictures; the few with more are left out.
PICTURES = (0.738, 0.188, 0.062, 0.012)
MISSING_AGES = 57 / 10015
SITES = ("back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "unknown")


def generate(
    folder: str | os.PathLike[str],
    *,
    images: int = IMAGES,
    seed: int = 42,
    keep: bool = False,
) -> bool:
    """Generates synthetic images and their table, unless they are there already.

    A new folder appears when it is complete; processes that ask for the same folder at once wait
    for the first. Nothing is deleted but synthetic images.

    Args:
        folder: to make; laid out as Kaggle's copy of HAM10000.
        images: how many, about; at least 100, so that every diagnosis has its three lesions.
        seed: another seed gives other images.
        keep: take synthetic images that are there, however many, and of whichever seed.

    Returns:
        True if they were generated now.

    Raises:
        InputError: the folder holds something else, there are too few images, or no such seed.
    """
    folder = Path(os.path.realpath(folder))  # a link stays, and "." has a name
    if seed < 0:
        raise InputError(f"seed {seed}: must be at least 0")
    if images < 100:
        raise InputError(
            f"{images} synthetic images: at least 100, so that each class has three lesions"
        )
    recipe = {"format": FORMAT, "images": images, "seed": seed}

    def fits(made: dict[str, int] | None) -> bool:
        return made == recipe or (keep and made is not None and made["format"] == FORMAT)

    if fits(_made_of(folder)):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        present = _made_of(folder)
        if fits(present):
            return False
        if other := _something_else(folder, present is not None):
            raise InputError(
                f"{folder}: holds something other than synthetic images ({printable(other)}), and "
                "is left as it is\n"
                "Name another folder (data.data_dir=FOLDER), or leave out data=demo to train on it."
            )
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _write(partial, recipe)
            partial.chmod(0o755)
            if folder.exists():
                _refill(folder, partial)
            else:
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return True


def _something_else(folder: Path, marked: bool) -> str | None:
    """The name of something in a folder that was not made here; without the marker nothing was."""
    if folder.is_file():
        return folder.name
    patterns = (*MADE, *(f"{part}/SYN_*.jpg" for part in PARTS)) if marked else ()
    made = {path for pattern in patterns for path in folder.glob(pattern) if not path.is_symlink()}
    others = (p for p in folder.rglob("*") if p not in made and not is_junk(p))
    return next((str(path.relative_to(folder)) for path in others), None)


def _refill(folder: Path, new: Path) -> None:
    """Puts what is in `new` in the place of the like; until that is done, the marker says so."""
    marker = folder / SYNTHETIC_MARKER
    marker.write_text(json.dumps({"format": 0, "images": 0, "seed": 0}))
    for part in PARTS:
        if (folder / part).exists():
            shutil.rmtree(folder / part)
    (folder / TABLE).unlink(missing_ok=True)
    for name in MADE:
        shutil.move(new / name, folder / name)


def _made_of(folder: Path) -> dict[str, int] | None:
    """What a folder was generated from; None if it was not, or not wholly."""
    try:
        facts = json.loads((folder / SYNTHETIC_MARKER).read_text())
        return {name: int(facts[name]) for name in ("format", "images", "seed")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(folder: Path, recipe: dict[str, int]) -> None:
    table = draw_table(recipe["images"], recipe["seed"])
    for part in PARTS:
        (folder / part).mkdir()
    half = len(table) // 2

    def write(row: int) -> None:
        entry = table.iloc[row]
        rng = np.random.default_rng([recipe["seed"], row, 2])
        lesion = draw_lesion(entry["dx"], recipe["seed"], entry["lesion_id"])
        path = folder / PARTS[row >= half] / f"{entry['image_id']}.jpg"
        Image.fromarray(render(lesion, rng)).save(path, quality=90)

    log.info("generating %d synthetic images (no clinical meaning)", len(table))
    with ThreadPoolExecutor(usable_cores()) as pool:
        written = pool.map(write, range(len(table)))
        for _ in track(written, "generating synthetic images", len(table)):
            pass
    table.to_csv(folder / TABLE, index=False)
    note = "Synthetic images made by a program: no patients, no clinical meaning."
    (folder / SYNTHETIC_MARKER).write_text(json.dumps({"note": note, **recipe}, indent=2) + "\n")


def draw_table(images: int, seed: int) -> pd.DataFrame:
    """The metadata of about `images` images, columns as in HAM10000's own table."""
    rng = np.random.default_rng([seed, 0])
    total = sum(SHARES.values())
    rows: list[dict[str, object]] = []
    lesions = 0
    for dx, share in SHARES.items():
        # Three lesions are the fewest that can be in all three splits.
        wanted, made, first = max(1, round(images * share / total)), 0, lesions
        while made < wanted or lesions < first + 3:
            count = min(1 + int(rng.choice(4, p=PICTURES)), max(1, wanted - made))
            age = float(np.clip(5 * round(rng.normal(52, 17) / 5), 0, 85))
            facts = {
                "dx": dx,
                "dx_type": str(rng.choice(["histo", "follow_up", "consensus"])),
                "age": "" if rng.random() < MISSING_AGES else age,
                "sex": str(rng.choice(["male", "female", "unknown"], p=[0.54, 0.455, 0.005])),
                "localization": str(rng.choice(SITES)),
                "dataset": "synthetic",
            }
            rows += [{"lesion_id": f"SYN_L{lesions:05d}", **facts} for _ in range(count)]
            made, lesions = made + count, lesions + 1
    # Ids in random order, so that they tell nothing of the diagnosis.
    order = rng.permutation(len(rows))
    table = pd.DataFrame([rows[i] for i in order])
    table.insert(1, "image_id", [f"SYN_{i:06d}" for i in range(len(rows))])
    names = {old: f"SYN_L{new:05d}" for new, old in enumerate(table["lesion_id"].unique())}
    table["lesion_id"] = table["lesion_id"].map(names)
    return table
