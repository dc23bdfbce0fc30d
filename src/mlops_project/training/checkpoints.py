"""Checkpoints: written whole or not at all, read without executing anything.

A checkpoint is Lightning's, with one more entry, `mlops_project`, that holds what is needed to use
the model elsewhere: classes, preprocessing, settings, and which images it was trained on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from mlops_project.config import Config
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.errors import InputError
from mlops_project.files import atomic_write
from mlops_project.models.build import BuiltModel
from mlops_project.models.weights import read_tensors
from mlops_project.settings import to_container

ENTRY = "mlops_project"
FORMAT = 1


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint under a temporary name, syncs and renames it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_write(path, "wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:
            # Closing its archive, torch complains once more and hides that the disk is full.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return load_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint of this project onto the CPU.

    Raises:
        InputError: there is none, it is damaged, made by something else or by a newer version.
            Nothing in it is executed: only tensors and plain containers are read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint{_near(path)}")
    try:
        checkpoint = read_tensors(path, "checkpoint")
    except InputError as error:
        raise InputError(f"{error}{_near(path)}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(ENTRY), dict):
        checkpoint = {}
    if "state_dict" not in checkpoint:
        raise InputError(
            f"{path}: a file of PyTorch, but not a checkpoint of this project; "
            "weights from elsewhere go into model.pretrained_path"
        )
    entry = checkpoint[ENTRY]
    if entry.get("format", 0) > FORMAT:
        raise InputError(
            f"{path}: written by a newer version (format {entry['format']}, this one reads "
            f"{FORMAT}); update the project"
        )
    return checkpoint


def _near(path: Path) -> str:
    others = sorted(
        (p for p in path.parent.glob("*.ckpt") if p != path),
        key=lambda p: p.stat().st_mtime,
        reverse=True,
    )
    if not others:
        return ""
    return "\nCheckpoints beside it, the newest first: " + ", ".join(p.name for p in others[:3])


def metadata(config: Config, built: BuiltModel, data: HAM10000DataModule) -> dict[str, Any]:
    """What a checkpoint says about itself, in plain containers.

    The split travels along, so that an evaluation anywhere else knows which images and lesions
    the model has seen.
    """
    table = data.table
    return {
        "format": FORMAT,
        "class_names": list(data.class_names),
        "preprocessing": {
            "image_size": data.image_size,
            "crop_fraction": config.data.crop_fraction,
            "mean": list(built.mean),
            "std": list(built.std),
        },
        "config": to_container(config),
        "weights": built.weights,
        "synthetic": data.synthetic,
        "split_hash": data.split_hash(),
        "split": {
            "image_id": table["image_id"].tolist(),
            "lesion_id": table["lesion_id"].tolist(),
            "split": data.split.tolist(),
        },
    }
