"""Small pictures, and folders of them, that the tests of the data room share."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mlops_project.data.archives import read_bytes
from mlops_project.data.decode import decode
from mlops_project.data.diagnoses import DIAGNOSES
from mlops_project.data.sources import read_source

IMAGES_OF_LESION = (1, 2, 1, 3)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """`picture(number, width, height)`: a smooth picture in RGB, another one for each number."""

    def make(number: int, width: int = 60, height: int = 44) -> Image.Image:
        rng = np.random.default_rng(number)
        corners = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture(scope="session")
def as_file(picture: Callable[..., Image.Image]) -> Callable[..., bytes]:
    """`as_file(image, format)`: the bytes of a file; a number stands for its picture."""

    def encode(image: Image.Image | int, format: str = "JPEG", **options: Any) -> bytes:
        buffer = io.BytesIO()
        image = picture(image) if isinstance(image, int) else image
        image.save(buffer, format, **({"quality": 95} if format == "JPEG" else {}), **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def make_folder(tmp_path: Path, as_file: Callable[..., bytes]) -> Callable[..., Path]:
    """`make_folder(name, lesions)`: images/ and metadata/ with so many lesions a diagnosis.

    The lesions of a diagnosis have 1, 2, 1, 3, 1, 2, … images.
    """

    def make(name: str = "ham", lesions: int = 4) -> Path:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        (folder / "metadata").mkdir()
        lines = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
        for dx in DIAGNOSES:
            for lesion in range(lesions):
                for _ in range(IMAGES_OF_LESION[lesion % len(IMAGES_OF_LESION)]):
                    image_id = f"ISIC_{len(lines) - 1:07d}"
                    (folder / "images" / f"{image_id}.jpg").write_bytes(as_file(len(lines)))
                    lines.append(f"{dx}_{lesion},{image_id},{dx},histo,45.0,female,back")
        (folder / "metadata" / "metadata.csv").write_text("\n".join(lines))
        return folder

    return make


@pytest.fixture
def table(make_folder: Callable[..., Path]) -> pd.DataFrame:
    """A source's table of twelve images, each a file."""
    return read_source(make_folder()).table.iloc[:12]


@pytest.fixture
def pixels(table: pd.DataFrame) -> np.ndarray:
    """The images of `table` decoded, uint8 [12, 3, 32, 32]."""
    return np.stack([decode(read_bytes(path), 32) for path in table["path"]])


@pytest.fixture
def spoil() -> Callable[[str], None]:
    """`spoil(path)` makes a file all zeros without a trace in its size and time."""

    def write_zeros(path: str) -> None:
        status = os.stat(path)
        Path(path).write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    return write_zeros


@pytest.fixture
def caches(tmp_path: Path) -> Path:
    """Where caches lie; not there yet."""
    return tmp_path / "caches"


@pytest.fixture
def logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """What the project logs, even where a command has sent its log elsewhere before."""
    monkeypatch.setattr(logging.getLogger("mlops_project"), "propagate", True)
    return caplog
