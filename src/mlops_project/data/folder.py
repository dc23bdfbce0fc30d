"""Whether there is a folder of images: asked before anything is imported that takes seconds."""

from __future__ import annotations

from pathlib import Path

from mlops_project.config import Config
from mlops_project.errors import InputError


def require_images(config: Config) -> None:
    """Raises InputError if a run's folder of images is missing.

    Synthetic images are made where there are none, and a resumed run has its folder noted.
    """
    if config.data.name != "demo" and not config.training.resume_from_checkpoint:
        require_folder(Path(config.data.data_dir))


def require_folder(folder: Path) -> None:
    """Raises InputError, with the two commands that help, if there is no such folder."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: this is a file; name the folder with the images and the table")
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder. Two commands that help:\n"
            "  uv run src/mlops_project/dataset.py download    fetch the real HAM10000\n"
            "  uv run src/mlops_project/train.py data=demo     train on synthetic images"
        )
