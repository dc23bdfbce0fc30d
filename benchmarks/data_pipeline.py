"""From files to batches: us against PIL with torchvision's transforms, and timm's loader.

uv run python benchmarks/data_pipeline.py [FOLDER]

FOLDER has .jpg images of dermatoscopes at their original size (600 × 450); without it, synthetic
ones are made. All cases but the last two use one thread and count its CPU time.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm.data
import torch
from measure import Files, interleave, report, rows
from torch.utils.data import DataLoader
from torchvision import transforms

from mlops_project.data.augmentation import BatchAugmentation
from mlops_project.data.cache import open_cache
from mlops_project.data.crops import cut, places
from mlops_project.data.decode import decode
from mlops_project.data.demo import generate

SIZE, SIDE, BATCH = 224, 256, 32
CACHED = 2048  # images, 400 MB: many times what a processor's own cache holds
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PEER = "PIL + torchvision, augmented"
PEER_DECODE = "PIL + torchvision, decoded and resized"


def main() -> None:
    logging.disable(logging.INFO)
    folder = Path(tempfile.mkdtemp())
    if len(sys.argv) > 1:
        paths = sorted(Path(sys.argv[1]).glob("*.jpg"))
    else:
        generate(folder / "demo", images=64, seed=1)
        paths = sorted((folder / "demo").rglob("*.jpg"))
    paths = (paths * (BATCH // len(paths) + 1))[:BATCH]
    table = pd.DataFrame(
        {"image_id": [f"{i}" for i in range(BATCH)], "path": [str(p) for p in paths], "member": ""}
    )
    to_tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    resize = [transforms.Resize(SIDE), transforms.CenterCrop(SIDE)]
    augmented = transforms.Compose(
        [
            *resize,
            transforms.RandomCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.RandomRotation(15),
            transforms.ColorJitter(0.1, 0.1, 0.1),
            *to_tensor,
        ]
    )
    peers = Files(table, transform=augmented)
    decoded = Files(table, transform=transforms.Compose([*resize, transforms.PILToTensor()]))
    timms = timm.data.create_loader(
        Files(table),  # type: ignore[arg-type]
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        vflip=0.5,
        color_jitter=0.1,
        num_workers=0,
        use_prefetcher=False,
        persistent_workers=False,
    )
    many = pd.concat([table] * (CACHED // BATCH), ignore_index=True)
    cache = open_cache(many, np.arange(CACHED), SIDE, folder / "cache")
    order = np.random.default_rng(0)
    prepare = BatchAugmentation(mean=MEAN, std=STD, rotation_degrees=15, color_jitter=0.1)
    epochs = iter(range(10**6))

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        """Images and what their random choices are keyed by."""
        epoch, chosen = next(epochs), order.integers(CACHED, size=BATCH)
        flips: dict[str, Any] = {"horizontal_flip": 0.5, "vertical_flip": 0.5}
        where = places(chosen, SIDE - SIZE, draws=chosen, epoch=epoch, **flips)
        return cut(cache.images, where, SIZE), torch.from_numpy(chosen)

    def ours_uint8() -> int:
        for _ in range(20):
            batch()
        return 20 * BATCH

    def ours_float() -> int:
        for _ in range(3):
            prepare(*batch(), next(epochs), training=True)
        return 3 * BATCH

    def ours_decode() -> int:
        for path in paths:
            decode(path.read_bytes(), SIDE)
        return BATCH

    def through(dataset: Files) -> Callable[[], int]:
        return lambda: len([dataset[i] for i in range(BATCH)])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one_thread: dict[str, Callable[[], int]] = {
        PEER: through(peers),
        PEER_DECODE: through(decoded),
        "timm's loader": lambda: sum(len(images) for images, _ in timms),
        "ours: decoded and resized": ours_decode,
        "ours: cached, cropped and flipped, uint8": ours_uint8,
        "ours: cached, augmented, normalised, float32": ours_float,
    }
    times = interleave(one_thread, 7, cpu_time=True)
    torch.set_num_threads(threads)

    # All cores: the first epoch of the peers against building the cache, in images a second.
    cores = os.cpu_count() or 1
    large = pd.concat([table] * 16, ignore_index=True)
    loader = DataLoader(Files(large, transform=augmented), batch_size=BATCH, num_workers=cores)
    numbers = iter(range(10**6))

    def build() -> int:
        place = folder / f"built-{next(numbers)}"
        open_cache(large, np.arange(len(large)), SIDE, place)
        shutil.rmtree(place)
        return len(large)

    epoch_of_peers = f"PIL + torchvision, an epoch with {cores} workers"
    times |= interleave(
        {
            epoch_of_peers: lambda: sum(len(images) for images, _ in loader),
            f"ours: building the cache with {cores} threads": build,
        },
        5,
    )
    shutil.rmtree(folder)
    table_of = rows(
        times,
        {
            "ours: decoded and resized": PEER_DECODE,
            "ours: cached, cropped and flipped, uint8": PEER,
            "ours: cached, augmented, normalised, float32": PEER,
            f"ours: building the cache with {cores} threads": epoch_of_peers,
        },
    )
    source = "files of a folder" if len(sys.argv) > 1 else "synthetic"
    command = "uv run python benchmarks/data_pipeline.py" + " FOLDER" * (len(sys.argv) > 1)
    report("data_pipeline", table_of, command, images=source, unit="an image")


if __name__ == "__main__":
    main()
