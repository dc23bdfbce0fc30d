"""On a GPU: EfficientNet-B0, 224 px, bfloat16, compiled; ours against its own step, and timm's.

uv run python benchmarks/gpu.py [DATA_DIR [ROUNDS]]

Ours is a run of `train.py`, whose speed.csv has its rate and the share of what the network and its
gradients alone reach. timm's training script is not in its package, so the loop here puts together
what that script does: `timm.data.create_loader` with its prefetcher and a worker on each core,
channels last, autocast, cuDNN's own measurements, AdamW; not compiled, as is its default. Without
DATA_DIR, synthetic images.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from measure import report, rows, timms_loader
from torch.nn import functional as F

from mlops_project import settings
from mlops_project.data.demo import generate
from mlops_project.training.preparation import open_data

BATCH, EPOCHS = 256, 6
TRAIN = str(Path(__file__).parents[1] / "src/mlops_project/train.py")
OURS, TIMM = "ours", "timm's loader and loop"


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("no GPU here")
    logging.disable(logging.INFO)
    folder = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else None
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    os.chdir(tempfile.mkdtemp())
    if folder is None:
        folder = Path("demo").absolute()
        generate(folder, images=8000, seed=5)
    arguments = [
        *("model=efficientnet", "model.pretrained=false", f"data.data_dir={folder}"),
        *(f"data.batch_size={BATCH}", f"training.max_epochs={EPOCHS}", "training.save_top_k=0"),
        *("training.compile=true", "training.early_stopping_patience=0"),
        "training.progress_bar=none",
    ]
    data = open_data(settings.load(arguments))
    data.setup("fit")
    times: dict[str, list[float]] = {OURS: [], TIMM: []}
    shares = []
    for _ in range(rounds):
        subprocess.run([sys.executable, TRAIN, *arguments], check=True)
        newest = max(Path("models/efficientnet").iterdir(), key=lambda p: p.stat().st_mtime)
        speed = pd.read_csv(newest / "speed.csv").iloc[1:].median()
        shares.append(round(float(speed["model_rate_share"]), 3))
        times[OURS].append(1e6 / speed["images_per_second"])
        times[TIMM].append(1e6 / timms_rate(data))
    table = rows(times, {OURS: TIMM})
    table[0]["share_of_the_step_alone"] = shares
    words = " ".join(["DATA_DIR", str(rounds)] if len(sys.argv) > 1 else [])
    report(
        "gpu",
        table,
        f"uv run python benchmarks/gpu.py {words}".strip(),
        unit="an image of training",
    )


def timms_rate(data: Any) -> float:
    """Images a second of the last epochs."""
    loader = timms_loader(data, "train", 224, BATCH, os.cpu_count() or 1, "cuda")
    network = timm.create_model("efficientnet_b0", num_classes=2).cuda()
    network = network.to(memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = True
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    rates = []
    for _ in range(EPOCHS):
        torch.cuda.synchronize()
        began, images = time.perf_counter(), 0
        for batch, labels in loader:
            batch = batch.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cuda", torch.bfloat16):
                loss = F.cross_entropy(network(batch), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            images += len(labels)
        torch.cuda.synchronize()
        rates.append(images / (time.perf_counter() - began))
    return float(np.median(rates[1:]))


if __name__ == "__main__":
    main()
