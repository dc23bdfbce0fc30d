"""Every image decoded once: a memory-mapped array of uint8 pixels on the disk.

A cache is a folder whose name is a hash of everything that shaped its pixels, with `images.u8`
(uint8 [N, 3, side, side], a sparse file) and `rows.u32` (a flag and a CRC-32 for each row). A row
is flagged after its pixels are written, so a build that was killed goes on where it stopped; on
opening, the rows in use are compared with their checksums, and those that differ decoded again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from mlops_project.data.archives import read_bytes
from mlops_project.data.decode import decode, decoding_threads
from mlops_project.errors import InputError, ProjectError
from mlops_project.files import atomic_write
from mlops_project.printable import first_line
from mlops_project.progress import track
from mlops_project.threads import usable_cores

log = logging.getLogger("mlops_project")

FORMAT = 1  # of the files and of the pixels `decode` makes: a change of either needs a new number
DONE = 1
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
        """Of the images, pixels."""
        return self.images.shape[-1]

    def __getstate__(self) -> dict[str, Any]:
        # A process that receives it maps the file anew, instead of receiving the pixels.
        return {**self.__dict__, "images": self.images.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.images = _map(self.path, state["images"])


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
    path = Path(folder) / name
    if _is_whole(path, shape):
        # Another user's, or one on a disk of many hosts, may need no waiting and no writing.
        absent, damaged = _lacking(path, shape, rows)
        if not len(absent) and not len(damaged):
            return ImageCache(_map(path, shape), {}, path)
        if not len(damaged) and not os.access(path / "images.u8", os.W_OK):
            unreadable = _why_unreadable(table, absent, side)
            if unreadable is not None and len(unreadable) < len(rows):
                return ImageCache(_map(path, shape), unreadable, path)
    path = _writable(Path(folder), name) / name
    try:
        with _locked(path.with_suffix(".lock")):
            _prepare(path, shape, table, side)
            absent, damaged = _lacking(path, shape, rows)
            if len(damaged):
                text = "%d decoded images were damaged on the disk: decoding them again"
                log.warning(text, len(damaged))
            lacking = np.concatenate([absent, damaged])
            unreadable = _build(path, shape, table, lacking, workers)
    except OSError as error:
        if error.errno in FULL:
            raise _no_space(path, len(rows) * side * side * 3) from error
        raise
    if len(unreadable) == len(rows) > 0:
        row, reason = next(iter(unreadable.items()))
        raise InputError(
            f"none of the {len(rows)} images can be read; the first, "
            f"{table['image_id'].iloc[row]}: {reason}"
        )
    return ImageCache(_map(path, shape), unreadable, path)


def _map(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    return np.memmap(path / "images.u8", dtype=np.uint8, mode="r", shape=shape)


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
            except OSError:  # a link that leads nowhere: decoding it gives the reason
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


def _prepare(path: Path, shape: tuple[int, ...], table: pd.DataFrame, side: int) -> None:
    """Makes the cache's files, or makes them anew where they are not such files at all."""
    if path.is_symlink() or not path.is_dir():
        _remove(path)
    path.mkdir(parents=True, exist_ok=True)
    if _is_whole(path, shape):
        return
    for name, size in _sizes(shape).items():
        _remove(path / name)
        with (path / name).open("wb") as file:
            file.truncate(size)
    with atomic_write(path / "meta.json") as file:
        first = table["path"].iloc[0]
        facts = {"format": FORMAT, "images": shape[0], "side": side, "first_image": str(first)}
        json.dump(facts, file, indent=2)


def _sizes(shape: tuple[int, ...]) -> dict[str, int]:
    """Of the cache's files, bytes."""
    return {"images.u8": int(np.prod(shape)), "rows.u32": shape[0] * 8}


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether the cache's files are there, and as large as they should be."""
    return not path.is_symlink() and all(
        _is_plain(path / name) and (path / name).stat().st_size == size
        for name, size in _sizes(shape).items()
    )


def _is_plain(path: Path) -> bool:
    """Whether it is a file of its own: through a link, something elsewhere would be written."""
    return path.is_file() and not path.is_symlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _lacking(path: Path, shape: tuple[int, ...], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of the rows that are not there, and those that are not as they were written."""
    records = np.fromfile(path / "rows.u32", dtype="<u4").reshape(-1, 2)
    flagged = rows[records[rows, 0] == DONE]
    images = _map(path, shape)

    def damaged(chunk: np.ndarray) -> list[int]:
        return [int(row) for row in chunk if zlib.crc32(images[row]) != records[row, 1]]

    with ThreadPoolExecutor(usable_cores()) as pool:
        chunks = np.array_split(flagged, max(1, len(flagged) // 64))
        bad = [row for found in pool.map(damaged, chunks) for row in found]
    return np.setdiff1d(rows, flagged), np.array(bad, dtype=np.int64)


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
    path: Path,
    shape: tuple[int, ...],
    table: pd.DataFrame,
    rows: np.ndarray,
    workers: int | None,
) -> dict[int, str]:
    """Decodes rows into the cache; the reasons of those that cannot be."""
    if len(rows) == 0:
        return {}
    side = shape[-1]
    needed = len(rows) * 3 * side * side
    if shutil.disk_usage(path).free < needed * 1.02:
        raise _no_space(path, needed)
    pixels_file = os.open(path / "images.u8", os.O_WRONLY)
    records_file = os.open(path / "rows.u32", os.O_WRONLY)

    def store(row: int) -> tuple[int, str | None]:
        pixels = _decoded(table, row, side)
        if isinstance(pixels, str):
            return row, pixels
        _write_all(pixels_file, pixels.tobytes(), row * pixels.nbytes)
        # Written after the pixels: what is flagged is there, even if the process is killed now.
        record = np.array([DONE, zlib.crc32(pixels.data)], dtype="<u4")
        _write_all(records_file, record.tobytes(), row * 8)
        return row, None

    unreadable: dict[int, str] = {}
    if len(rows) > 500 and not sys.stderr.isatty():
        log.info("decoding %d images", len(rows))
    try:
        with decoding_threads(workers) as pool:
            stored = pool.map(store, rows.tolist())
            for row, reason in track(stored, "decoding images", len(rows)):
                if reason is not None:
                    unreadable[row] = reason
        os.fsync(pixels_file)
        os.fsync(records_file)
    finally:
        os.close(pixels_file)
        os.close(records_file)
    return unreadable


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _no_space(path: Path, needed: int) -> ProjectError:
    existing = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    return ProjectError(
        f"{path}: the disk is full: decoded images need {needed / 2**20:.0f} MiB, "
        f"{free / 2**20:.0f} MiB are free\n"
        "Make room, or train with a folder on another disk: data.cache=FOLDER"
    )
