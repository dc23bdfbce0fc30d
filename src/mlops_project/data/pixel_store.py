"""The files of a cache: decoded images as they lie on the disk, and which of them are there.

They are `images.u8` (uint8 [N, 3, side, side], a sparse file) and `rows.u32` (a flag and a CRC-32
for each row, little-endian), besides a `meta.json` for people. A row is flagged after its pixels
are written, so whoever is killed leaves nothing that is flagged but not there.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlops_project.files import atomic_write
from mlops_project.threads import usable_cores

FORMAT = 1  # of the files and of the pixels `decode` makes: a change of either needs a new number
DONE = 1
RECORD_BYTES = 8


@dataclass(frozen=True)
class PixelStore:
    """The decoded images of a folder.

    Attributes:
        path: the folder, which need not exist yet.
        shape: (N, 3, side, side).
    """

    path: Path
    shape: tuple[int, ...]

    @property
    def pixels_file(self) -> Path:
        """The file of the pixels."""
        return self.path / "images.u8"

    @property
    def records_file(self) -> Path:
        """The file of the flags and checksums."""
        return self.path / "rows.u32"

    @property
    def is_whole(self) -> bool:
        """Whether the files are there, and as large as they should be."""
        return not self.path.is_symlink() and all(
            _is_plain(file) and file.stat().st_size == size for file, size in self._sizes().items()
        )

    @property
    def is_writable(self) -> bool:
        """Whether this user may write into the pixels."""
        return os.access(self.pixels_file, os.W_OK)

    def images(self) -> np.ndarray:
        """The pixels, uint8 [N, 3, side, side], read-only; black where none are written."""
        return np.memmap(self.pixels_file, dtype=np.uint8, mode="r", shape=self.shape)

    def prepare(self, first_image: str) -> None:
        """Makes the files, or makes them anew where they are not such files at all.

        Args:
            first_image: path of the first image, for people who wonder what the folder is.
        """
        if self.path.is_symlink() or not self.path.is_dir():
            _remove(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        if self.is_whole:
            return
        for path, size in self._sizes().items():
            _remove(path)
            with path.open("wb") as file:
                file.truncate(size)
        count, _, _, side = self.shape
        with atomic_write(self.path / "meta.json") as file:
            facts = {"format": FORMAT, "images": count, "side": side, "first_image": first_image}
            json.dump(facts, file, indent=2)

    def lacking(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows that are not there, and rows whose pixels differ from their checksum.

        Args:
            rows: int64 [M], sorted, each once.

        Returns:
            Two parts of the rows, int64.
        """
        records = np.fromfile(self.records_file, dtype="<u4").reshape(-1, 2)
        flagged = rows[records[rows, 0] == DONE]
        images = self.images()

        def damaged(chunk: np.ndarray) -> list[int]:
            return [int(row) for row in chunk if zlib.crc32(images[row]) != records[row, 1]]

        with ThreadPoolExecutor(usable_cores()) as pool:
            chunks = np.array_split(flagged, max(1, len(flagged) // 64))
            bad = [row for found in pool.map(damaged, chunks) for row in found]
        return np.setdiff1d(rows, flagged), np.array(bad, dtype=np.int64)

    @contextmanager
    def writing(self) -> Iterator[Callable[[int, np.ndarray], None]]:
        """Gives a function that writes a row's pixels, uint8 [3, side, side], from any thread.

        All that was written is on the disk at the end.
        """
        pixels_file = os.open(self.pixels_file, os.O_WRONLY)
        records_file = os.open(self.records_file, os.O_WRONLY)

        def write(row: int, pixels: np.ndarray) -> None:
            _write_all(pixels_file, pixels.tobytes(), row * pixels.nbytes)
            # After the pixels: what is flagged is there, even if the process is killed now.
            record = np.array([DONE, zlib.crc32(pixels.data)], dtype="<u4")
            _write_all(records_file, record.tobytes(), row * RECORD_BYTES)

        try:
            yield write
            os.fsync(pixels_file)
            os.fsync(records_file)
        finally:
            os.close(pixels_file)
            os.close(records_file)

    def _sizes(self) -> dict[Path, int]:
        """Expected size of each file, bytes."""
        return {
            self.pixels_file: int(np.prod(self.shape)),
            self.records_file: self.shape[0] * RECORD_BYTES,
        }


def _is_plain(path: Path) -> bool:
    """Whether it is a file of its own: through a link, something elsewhere would be written."""
    return path.is_file() and not path.is_symlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
