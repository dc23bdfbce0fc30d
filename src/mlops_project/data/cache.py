"""Every image decoded once: a memory-mapped array of uint8 pixels on the disk.

A cache is a folder whose name is a hash of everything that shaped its pixels; its files are those
of a `PixelStore`. A build that was killed goes on where it stopped; on opening, the rows in use are
compared with their checksums, and those that differ decoded again.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from mlops_project.data.archives import read_bytes
from mlops_project.data.decode import decode, decoding_threads
from mlops_project.data.pixel_store import FORMAT, PixelStore
from mlops_project.errors import InputError, ProjectError
from mlops_project.printable import first_line
from mlops_project.progress import track

log = logging.getLogger("mlops_project")

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class ImageCache:
    """Decoded images.

    Attributes:
        images: uint8 [N, 3, side, side], read-only; rows that were not asked for may be empty.
        unreadable: reason for each row asked for whose image cannot be used.
        path: the cache's folder.
    """

    images: np.ndarray
    unreadable: dict[int, str]
    path: Path

    @property
    def side(self) -> int:
        """Side of the images, pixels."""
        return self.images.shape[-1]

    def __getstate__(self) -> dict[str, Any]:
        # A process that receives it maps the file anew, instead of receiving the pixels.
        return {**self.__dict__, "images": self.images.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.images = PixelStore(self.path, state["images"]).images()


def open_cache(
    table: pd.DataFrame,
    rows: np.ndarray,
    side: int,
    folder: Path,
    *,
    workers: int | None = None,
) -> ImageCache:
    """Opens the cache of these images, and decodes what it lacks.

    Processes that open the same cache at once wait for the one that builds it.

    Args:
        table: a source's table.
        rows: which of its rows are needed, int64.
        side: of the decoded squares, pixels.
        folder: where caches lie; the user's cache folder takes its place where it is read-only.
        workers: threads that decode (None: one for each core).

    Raises:
        InputError: none of the images can be read.
        ProjectError: the disk is full.
    """
    name = _fingerprint(table, side)[:16]
    shape = (len(table), 3, side, side)
    rows = np.unique(np.asarray(rows, dtype=np.int64))
    store = PixelStore(Path(folder) / name, shape)
    if store.is_whole:
        # Another user's, or one on a disk of many hosts, may need no waiting and no writing.
        absent, damaged = store.lacking(rows)
        if not len(absent) and not len(damaged):
            return ImageCache(store.images(), {}, store.path)
        if not len(damaged) and not store.is_writable:
            unreadable = _why_unreadable(table, absent, side)
            if unreadable is not None and len(unreadable) < len(rows):
                return ImageCache(store.images(), unreadable, store.path)
    store = PixelStore(_writable(Path(folder), name) / name, shape)
    try:
        with _locked(store.path.with_suffix(".lock")):
            store.prepare(str(table["path"].iloc[0]))
            absent, damaged = store.lacking(rows)
            if len(damaged):
                text = "%d decoded images were damaged on the disk: decoding them again"
                log.warning(text, len(damaged))
            unreadable = _build(store, table, np.concatenate([absent, damaged]), workers)
    except OSError as error:
        if error.errno in FULL:
            raise _no_space(store.path, len(rows) * side * side * 3) from error
        raise
    if len(unreadable) == len(rows) > 0:
        row, reason = next(iter(unreadable.items()))
        raise InputError(
            f"none of the {len(rows)} images can be read; the first, "
            f"{table['image_id'].iloc[row]}: {reason}"
        )
    return ImageCache(store.images(), unreadable, store.path)


def _writable(folder: Path, name: str) -> Path:
    """The folder, or the user's own where it or the cache of this name cannot be written to."""
    why = "is read-only"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # by another host's process of the same number
    except OSError as error:
        if error.errno in FULL:
            raise _no_space(folder, 0) from error
        if isinstance(error, FileExistsError | NotADirectoryError | FileNotFoundError):
            raise InputError(
                f"{folder}: no folder for decoded images can be made there ({error.strerror})\n"
                "data.cache=DIR names another one."
            ) from error
        if error.errno not in READ_ONLY:
            raise
    else:
        own = folder / name
        files = [own, *own.glob("*")] if own.is_dir() else []
        if all(os.access(path, os.W_OK) for path in files):
            return folder
        why = f"holds another user's {name}"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    other = Path(base) / "mlops_project"
    log.warning("%s %s: decoded images are kept in %s", folder, why, other)
    try:
        other.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} {why}, and {other} cannot be made ({error.strerror})\n"
            "data.cache=DIR names a folder for the decoded images; data.cache=off does without."
        ) from error
    return other


def _fingerprint(table: pd.DataFrame, side: int) -> str:
    """A hash of the decoder, the size and each file's name, size and time (in a zip: CRC-32)."""
    directories: dict[str, dict[str, tuple[int, int]]] = {}
    digest = hashlib.sha256(f"{FORMAT}:{side}".encode())
    for image_id, path, member in zip(
        table["image_id"], table["path"], table["member"], strict=True
    ):
        if member:
            if path not in directories:
                with zipfile.ZipFile(path) as archive:
                    directories[path] = {
                        i.filename: (i.file_size, i.CRC) for i in archive.infolist()
                    }
            facts = directories[path][member]
        else:
            try:
                status = os.stat(path)
                facts = (status.st_size, status.st_mtime_ns)
            except OSError:  # gone since the folder was read: decoding it gives the reason
                facts = (-1, -1)
        digest.update(f"{image_id}\0{facts}\n".encode())
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path, mode=0o666)  # whoever may write into the folder may wait for it
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        log.info("another process is decoding these images: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _decoded(table: pd.DataFrame, row: int, side: int) -> np.ndarray | str:
    """An image, uint8 [3, side, side], or why it cannot be read."""
    try:
        path, member = str(table["path"].iat[row]), str(table["member"].iat[row])
        return decode(read_bytes(path, member), side)
    except (OSError, ValueError) as error:
        return first_line(error)


def _why_unreadable(table: pd.DataFrame, rows: np.ndarray, side: int) -> dict[int, str] | None:
    """The reasons of rows none of which can be read; None as soon as one can be."""
    reasons = {}
    for row in rows.tolist():
        why = _decoded(table, row, side)
        if not isinstance(why, str):
            return None
        reasons[row] = why
    return reasons


def _build(
    store: PixelStore, table: pd.DataFrame, rows: np.ndarray, workers: int | None
) -> dict[int, str]:
    """Decodes rows into the store; the reasons of those that cannot be."""
    if len(rows) == 0:
        return {}
    side = store.shape[-1]
    needed = len(rows) * 3 * side * side
    if shutil.disk_usage(store.path).free < needed * 1.02:
        raise _no_space(store.path, needed)
    unreadable: dict[int, str] = {}
    if len(rows) > 500 and not sys.stderr.isatty():
        log.info("decoding %d images", len(rows))
    with store.writing() as write:

        def fill(row: int) -> tuple[int, str | None]:
            pixels = _decoded(table, row, side)
            if isinstance(pixels, str):
                return row, pixels
            write(row, pixels)
            return row, None

        with decoding_threads(workers) as pool:
            filled = pool.map(fill, rows.tolist())
            for row, reason in track(filled, "decoding images", len(rows)):
                if reason is not None:
                    unreadable[row] = reason
    return unreadable


def _no_space(path: Path, needed: int) -> ProjectError:
    existing = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    return ProjectError(
        f"{path}: the disk is full: decoded images need {needed / 2**20:.0f} MiB, "
        f"{free / 2**20:.0f} MiB are free\n"
        "Make room, or train with a folder on another disk: data.cache=FOLDER"
    )
