"""What the benchmarks share: peers' images, cases in turn, their table, a file with the machine."""

from __future__ import annotations

import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset

from mlops_project.data.archives import read_bytes

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "torchvision", "timm", "lightning", "pillow", "numpy")


class Files(Dataset):
    """Images as most scripts read them: `transform(Image.open(path))`.

    Args:
        table: of a source, with `path` and, of a file in a zip, `member`.
        labels: int [N]; None: all are 0.
        transform: of the PIL image; timm's loader puts its own there.
    """

    def __init__(
        self, table: pd.DataFrame, labels: np.ndarray | None = None, transform: Any = None
    ) -> None:
        self.paths, self.members = table["path"].tolist(), table["member"].tolist()
        self.labels = np.zeros(len(table), dtype=int) if labels is None else labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        data = read_bytes(self.paths[index], self.members[index])
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return self.transform(image) if self.transform else image, int(self.labels[index])


def timms_loader(data: Any, split: str, size: int, batch: int, workers: int, device: str) -> Any:
    """timm's loader of a split, augmented for training, normalised on the device.

    Args:
        data: a data module that is set up.
        split: "train", whose images are cropped, flipped and jittered, or another.
        size: of the images, pixels.
        batch: images at a time.
        workers: processes that decode.
        device: "cuda" or "cpu".
    """
    import timm.data

    chosen = data.rows_of(split)
    training = split == "train"
    augmentation: dict[str, Any] = {"vflip": 0.5, "color_jitter": 0.1} if training else {}
    return timm.data.create_loader(
        Files(data.table.iloc[chosen], data.labels[chosen]),  # type: ignore[arg-type]
        input_size=(3, size, size),
        batch_size=batch,
        is_training=training,
        **augmentation,
        num_workers=workers,
        device=torch.device(device),
    )


def interleave(
    cases: dict[str, Callable[[], int]], rounds: int, *, cpu_time: bool = False
) -> dict[str, list[float]]:
    """Microseconds an item of each case, once a round; the cases take turns.

    Args:
        cases: each does some work, and returns how many items (images, steps) it was.
        rounds: how often; one more, before, is not counted.
        cpu_time: of the process, rather than what the clock shows.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, work in cases.items():
            began = clock()
            items = work()
            if number:
                times[name].append((clock() - began) / items * 1e6)
    return times


def rows(times: dict[str, list[float]], peers: dict[str, str]) -> list[dict[str, Any]]:
    """Median, spread and ratio of each case.

    Args:
        times: of `interleave`.
        peers: whom a case is compared with; its ratio is the median of the rounds' ratios.
    """
    result = []
    for name, values in times.items():
        row: dict[str, Any] = {"case": name, "median_us": round(statistics.median(values), 2)}
        row["min_us"], row["max_us"] = round(min(values), 2), round(max(values), 2)
        if name in peers:
            ratios = [p / v for p, v in zip(times[peers[name]], values, strict=True)]
            row["against"] = peers[name]
            row["ratio"] = round(statistics.median(ratios), 2)
            row["ratio_min"], row["ratio_max"] = round(min(ratios), 2), round(max(ratios), 2)
        result.append(row)
    return result


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def report(
    name: str, table: list[dict[str, Any]], command: str, *, folder: Path = RESULTS, **facts: Any
) -> None:
    """Prints the table and writes <folder>/<name>.json, unless that is of another command.

    Args:
        name: of the file.
        table: rows with the same keys, as far as they have them.
        command: that reproduces it, with its arguments; `facts`: what else there is to know.
        folder: for the file.
    """
    from rich.console import Console
    from rich.table import Table

    shown = Table("case", "median, µs", "from", "to", "ratio", "from", "to")
    timed = [row for row in table if "median_us" in row]
    for row in timed:
        names = ("median_us", "min_us", "max_us", "ratio", "ratio_min", "ratio_max")
        shown.add_row(row["case"], *(f"{row[n]:,}" if n in row else "" for n in names))
    if timed:
        Console(width=120).print(shown)
    else:
        for row in table:
            print(*(f"{name} {value}" for name, value in row.items()), sep=", ")
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.json"
    if file.exists() and (kept := json.loads(file.read_text())["command"]) != command:
        print(f"not written: {file} is of {kept}; remove it to keep this one")
        return
    content = {"command": command, "machine": machine(), **facts, "results": table}
    file.write_text(json.dumps(content, indent=1) + "\n")
