"""Checkpoints: written whole or not at all, checked when read, and read without executing anything.

A checkpoint is Lightning's, with one more entry, `mlops_project`, that holds what is needed to use
the model elsewhere: classes, preprocessing, settings, and which images it was trained on. It is a
zip archive, as `torch.save` writes it, whose comment is a checksum of all that comes before.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pandas as pd
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from mlops_project.config import Config
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.data.identity import known_among, told_lesions
from mlops_project.data.splits import split_hash
from mlops_project.errors import InputError, ProjectError
from mlops_project.files import atomic_write, link_or_copy
from mlops_project.models.build import BuiltModel
from mlops_project.models.weights import read_tensors
from mlops_project.printable import first_line
from mlops_project.settings import to_container
from mlops_project.training.folders import PREVIOUS

log = logging.getLogger("mlops_project")

ENTRY = "mlops_project"
FORMAT = 2  # 1: no checksum, and not all that an exact resume needs
LAST = "last.ckpt"
CALIBRATION = ".calibration.json"  # ending of the file beside a checkpoint with how to calibrate it
_MARK = b"mlops_project sha256 "
_COMMENT = len(_MARK) + 64  # bytes
_COMMENT_LENGTH = struct.pack("<H", _COMMENT)  # as a zip archive has it before its comment


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint with its checksum under a temporary name, syncs and renames it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        # Only this one: where the run's own folder has vanished, half a run shall not reappear.
        path.parent.mkdir(exist_ok=True)
        try:
            with atomic_write(path, "wb") as file:
                hashing = _Hashing(file)
                torch.save(checkpoint, cast(IO[bytes], hashing))
                _append_checksum(file, hashing.digest())
                if path.name == LAST and path.parent.name == "checkpoints" and path.exists():
                    # A damaged last.ckpt costs a few minutes then, and not the run.
                    link_or_copy(path, path.parents[1] / PREVIOUS)
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
        # What an evaluation left beside it
        Path(path).with_suffix(CALIBRATION).unlink(missing_ok=True)


class _Hashing:
    """A file that is written from its start to its end, and the SHA-256 of what was written.

    The zip archive's last two bytes, the length of its comment, count as the zeros they first are.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self._sha256 = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self._sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def digest(self) -> str:
        return self._sha256.hexdigest()


def _append_checksum(file: IO[bytes], digest: str) -> None:
    file.seek(-2, os.SEEK_END)
    file.write(_COMMENT_LENGTH + _MARK + digest.encode())


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint of this project onto the CPU.

    Raises:
        InputError: there is none, it is damaged, made by something else or by a newer version; the
            newest good one beside it is named. Nothing in it is executed: only tensors and plain
            containers are read.
        ProjectError: the disk cannot read it.
    """
    path = Path(path)
    try:
        return _load(path)
    except InputError as error:
        near = newest_good(path.parent, but=path)
        hint = f"\nThe newest good checkpoint beside it: {near}" if near else ""
        raise InputError(f"{error}{hint}") from error


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        what = "a folder; its checkpoints are named …/checkpoints/NAME.ckpt"
        raise InputError(f"{path}: {what if path.is_dir() else 'no such checkpoint'}")
    checked = _has_checksum(path)
    checkpoint = read_tensors(path, "checkpoint")
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(ENTRY), dict):
        checkpoint = {}
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise InputError(
            f"{path}: a file of PyTorch, but not a checkpoint of this project; "
            "weights from elsewhere go into model.pretrained_path"
        )
    version = checkpoint[ENTRY].get("format")
    if not isinstance(version, int):
        raise InputError(f"{path}: not a readable checkpoint: it does not say its format")
    if version > FORMAT:
        raise InputError(
            f"{path}: written by a newer version (format {version}, this one reads {FORMAT}); "
            "update the project"
        )
    if version > 1 and not checked:
        raise InputError(f"{path}: not a readable checkpoint: damaged, its checksum is missing")
    return checkpoint


def _has_checksum(path: Path) -> bool:
    """Whether the file has a checksum.

    Raises:
        InputError: it has, and it is not the right one.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _COMMENT))
            mark, digest = file.read(len(_MARK)), file.read()
            if mark != _MARK or size < _COMMENT + 2:
                return False
            file.seek(0)
            sha256, left = hashlib.sha256(), size - _COMMENT - 2
            while left and (block := file.read(min(2**20, left))):
                sha256.update(block)
                left -= len(block)
            length = file.read(2)  # of the comment; hashed as zeros, since it is written last
    except OSError as error:
        raise ProjectError(f"{path}: cannot be read ({first_line(error)})") from error
    sha256.update(bytes(2))
    if sha256.hexdigest().encode() != digest or length != _COMMENT_LENGTH:
        raise InputError(
            f"{path}: not a readable checkpoint: damaged, its contents do not match its checksum"
        )
    return True


def good_checkpoints(folder: Path, but: Path | None = None) -> Iterator[tuple[Path, dict]]:
    """The readable checkpoints of a run and what they hold: last.ckpt, then the furthest first.

    Args:
        folder: with checkpoints; of a run, or its `checkpoints/`.
        but: not this one.
    """
    run = folder.parent if folder.name == "checkpoints" else folder
    found = {*folder.glob("*.ckpt"), *(run / "checkpoints").glob("*.ckpt"), run / PREVIOUS} - {but}
    for last in sorted(path for path in found if path.name == LAST):
        with suppress(ProjectError):
            yield last, _load(last)
    others = []
    for path in found:
        with suppress(ProjectError):
            if path.name != LAST and path.is_file():
                step = int(_load(path).get("global_step", 0))
                others.append((step, path.stat().st_mtime_ns, path))
    for _, _, path in sorted(others, reverse=True):
        yield path, _load(path)


def newest_good(folder: Path, but: Path | None = None) -> Path | None:
    """The first of them; arguments as for `good_checkpoints`."""
    return next((path for path, _ in good_checkpoints(folder, but)), None)


def trained_on(facts: dict[str, Any]) -> dict[str, list[str]]:
    """image_id and lesion_id of all images that a model's weights have learned from.

    Args:
        facts: a checkpoint's entry of `metadata`.
    """
    split, before = facts["split"], facts.get("earlier", {})
    own = [n for n, part in enumerate(split["split"]) if part == "train"]
    return {
        name: [split[name][n] for n in own] + before.get(name, [])
        for name in ("image_id", "lesion_id")
    }


def learned_before(
    config: Config, data: HAM10000DataModule, resumed: dict[str, Any] | None
) -> dict[str, list[str]]:
    """image_id and lesion_id of what the weights that a run starts from have learned from.

    Warns where the run is going to be judged by such images.

    Args:
        config, data: of the run.
        resumed: `metadata` of the checkpoint that it goes on from; None: a new run.
    """
    if resumed is not None:
        found = dict(resumed.get("earlier", {}))
        if data.split_hash() != resumed["split_hash"]:
            found = trained_on(resumed)
    else:
        found = {"image_id": [], "lesion_id": []}
        for path in (config.model.pretrained_path, config.model.init_from):
            if path is None or Path(path).suffix == ".safetensors":
                continue
            with suppress(ProjectError, KeyError):  # of another program, or an earlier version
                for name, ids in trained_on(_load(Path(path))[ENTRY]).items():
                    found[name] += ids
    known = known_among(data.table["image_id"], found.get("image_id", []))
    before = pd.DataFrame({name: found.get(name, []) for name in ("image_id", "lesion_id")})
    known |= told_lesions(data.table).isin(told_lesions(before).dropna()).to_numpy()
    judged = {part: int(known[data.rows_of(part)].sum()) for part in ("val", "test")}
    if any(judged.values()):
        log.warning(
            "the weights that this run starts from have learned from what %s images show, whose "
            "measures are too optimistic then; the images, seed, folds and fractions that these "
            "weights were trained with keep them apart",
            " and ".join(f"{count} {part}" for part, count in judged.items() if count),
        )
    return found


def metadata(
    config: Config,
    built: BuiltModel,
    data: HAM10000DataModule,
    earlier: dict[str, list[str]] | None = None,
) -> dict[str, Any]:
    """What a checkpoint says about itself, in plain containers.

    The split travels along, so that an evaluation anywhere else knows which images and lesions
    the model has seen.

    Args:
        config, built, data: of the run.
        earlier: `trained_on` of what the run starts from: images that count as trained on as well.
    """
    table = data.table
    counts = np.bincount(data.labels[data.rows_of("train")], minlength=len(data.class_names))
    return {
        "format": FORMAT,
        "class_names": list(data.class_names),
        "training_images": dict(zip(data.class_names, counts.tolist(), strict=True)),
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
        "diagnoses_hash": split_hash(table, table["dx"].to_numpy()),
        "split": {
            "image_id": table["image_id"].tolist(),
            "lesion_id": table["lesion_id"].tolist(),
            "split": data.split.tolist(),
        },
        "earlier": dict(earlier or {}),
    }
