"""How the cost grows: with the number of images, the batch size, workers and processes.

uv run python benchmarks/scaling.py

Synthetic images, linked again and again under other names; a small network, so that the data path
shows. Each run is a process of its own. Its own memory (anonymous and shared) is told apart from
the files that it maps, the libraries and the cache: the system takes the latter's pages back when
it needs them. Linux only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measure import report

from mlops_project.data.demo import generate

COUNTS = (1000, 2500, 5000, 10_000)
SMALL = (
    *("data.image_size=64", "training.max_epochs=3", "training.early_stopping_patience=0"),
    *("model.architecture.conv_blocks=1", "model.architecture.channels=[8]"),
    "training.save_top_k=0",
)
TRAIN = str(Path(__file__).parents[1] / "src/mlops_project/train.py")


def main() -> None:
    os.chdir(tempfile.mkdtemp())
    generate(Path("few"), images=200, seed=9)
    table: list[dict[str, Any]] = []
    for count in COUNTS:
        repeat(Path("few"), Path(f"images-{count}"), count)
        began = time.perf_counter()
        first = run(count, "data.image_size=64", "training.max_epochs=1")
        built = time.perf_counter() - began
        again = run(count)
        table.append(
            {
                "case": f"{count} images",
                "first_run_s": round(built, 1),
                "epoch_s": round(again["epoch_seconds"], 2),
                "images_per_s": round(again["images_per_second"]),
                "own_peak_mib": again["own_mib"],
                "first_own_peak_mib": first["own_mib"],
                "mapped_peak_mib": again["mapped_mib"],
                "cache_mib": round(count * 3 * 74**2 / 2**20),
            }
        )
    last = COUNTS[-1]
    for option in (
        *(f"data.batch_size={n}" for n in (8, 32, 128)),
        *(f"data.num_workers={n}" for n in (0, 1, 2)),
        *(f"training.devices={n}" for n in (1, 2)),
    ):
        known = run(last, option)
        table.append(
            {
                "case": f"{last} images, {option}",
                "epoch_s": round(known["epoch_seconds"], 2),
                "images_per_s": round(known["images_per_second"]),
                "own_peak_mib": known["own_mib"],
            }
        )
    seconds = [row["epoch_s"] for row in table[: len(COUNTS)]]
    memory = [row["own_peak_mib"] for row in table[: len(COUNTS)]]
    slope, start = np.polyfit(COUNTS, seconds, 1)
    growth, base = np.polyfit(COUNTS, memory, 1)
    fit = {
        "epoch_s": f"{start:.2f} + {slope * 1000:.3f} for each 1,000 images",
        "own_peak_mib": f"{base:.0f} + {growth * 1000:.2f} for each 1,000 images",
    }
    print(json.dumps(fit, indent=1))
    report("scaling", table, "uv run python benchmarks/scaling.py", fit=fit)


def repeat(source: Path, target: Path, count: int) -> None:
    """A folder with so many images: those of the source under ever new names and lesions."""
    metadata = next(source.glob("**/*metadata*.csv"))
    table = pd.read_csv(metadata)
    files = {path.stem: path for path in source.rglob("*.jpg")}
    (target / "images").mkdir(parents=True)
    (target / "metadata").mkdir()
    parts = []
    for number in range(count // len(table) + 1):
        part = table.copy()
        for image_id in table["image_id"]:
            os.link(files[image_id], target / "images" / f"{image_id}_{number}.jpg")
        part["image_id"] += f"_{number}"
        part["lesion_id"] += f"_{number}"
        parts.append(part)
    pd.concat(parts).iloc[:count].to_csv(target / "metadata" / "metadata.csv", index=False)


def run(count: int, *options: str) -> dict[Any, Any]:
    """Medians over the epochs of a run, and its peaks; of the first process, of several."""
    words = [sys.executable, TRAIN, f"data.data_dir=images-{count}", *SMALL, *options]
    own = mapped = 0
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(words, stdout=told, stderr=subprocess.STDOUT)
        while process.poll() is None:
            kib = resident(process.pid)
            own = max(own, kib.get("RssAnon", 0) + kib.get("RssShmem", 0))
            mapped = max(mapped, kib.get("RssFile", 0))
            time.sleep(0.02)
        if process.returncode:
            told.seek(0)
            sys.exit(told.read())
    newest = max(Path("models/baseline_cnn").iterdir(), key=lambda p: int(p.name.split("_")[1]))
    speed = pd.read_csv(newest / "speed.csv").iloc[-2:].median().to_dict()
    return {**speed, "own_mib": round(own / 1024), "mapped_mib": round(mapped / 1024)}


def resident(process: int) -> dict[str, int]:
    """What of a process is in the memory, by kind, KiB; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}


if __name__ == "__main__":
    main()
