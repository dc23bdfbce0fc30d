"""How well timm's training script does on the same fold, the same weights, so many epochs.

uv run python benchmarks/against_timm.py DATA_DIR WEIGHTS EPOCHS [PREDICTIONS]

The script itself is not in timm's package, so its parts are put together here as it does by default
for fine-tuning: random resized crops, flips, colour jitter, label smoothing 0.1, AdamW 5e-4, cosine
after one epoch of warm-up, the epoch with the best accuracy. 192 px, fold 0 of 5. PREDICTIONS is
the predictions.csv of an evaluation of the same fold, which is then compared with it on the same
resamples of lesions.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import timm
import timm.data
import torch
from measure import Files, report
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from mlops_project import settings
from mlops_project.evaluation.comparison import compare
from mlops_project.evaluation.evaluator import measure
from mlops_project.training.run import open_data

SIDE, BATCH = 192, 32
NETWORK = "tf_efficientnetv2_b0"


def main() -> None:
    folder, weights, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
    logging.disable(logging.INFO)
    fold = ["data.test_fraction=0", "data.folds=5", "data.fold=0", "model.num_classes=7"]
    data = open_data(settings.load([f"data.data_dir={folder}", *fold]))
    data.setup("fit")
    began = time.perf_counter()
    probabilities = train(data, weights, epochs)
    minutes = (time.perf_counter() - began) / 60
    rows, names = data.rows_of("val"), list(data.class_names)
    images = data.table.iloc[rows][["image_id", "lesion_id"]].reset_index(drop=True)
    images["y_true"] = np.array(names, dtype=object)[data.labels[rows]]
    frequencies = np.bincount(data.labels[data.rows_of("train")], minlength=7)
    corrected = probabilities / frequencies
    results = []
    for case, answers in (
        ("as it is", probabilities),
        ("divided by the classes' frequencies", corrected / corrected.sum(axis=1, keepdims=True)),
    ):
        table = images.copy()
        table[[f"probability_{name}" for name in names]] = answers
        found = measure(names, table)
        row: dict[str, Any] = {"case": case, "epochs": epochs, "minutes": round(minutes, 1)}
        row |= {name: found["metrics"][name] for name in ("balanced_accuracy", "auroc", "ece")}
        if len(sys.argv) > 4:
            difference = compare(names, pd.read_csv(sys.argv[4]), table, "timm")["difference"]
            row["ours_less_timms"] = difference["balanced_accuracy"]
        results.append(row)
    words = " ".join(["DATA_DIR", "WEIGHTS", str(epochs), "PREDICTIONS"][: len(sys.argv) - 1])
    report("against_timm", results, f"uv run python benchmarks/against_timm.py {words}")


def train(data: Any, weights: str, epochs: int) -> np.ndarray:
    """Probabilities of the validation images, float32 [N, 7], of the epoch of best accuracy."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaders = {}
    for split in ("train", "val"):
        rows = data.rows_of(split)
        loaders[split] = timm.data.create_loader(
            Files(data.table.iloc[rows], data.labels[rows]),
            input_size=(3, SIDE, SIDE),
            batch_size=BATCH,
            is_training=split == "train",
            num_workers=os.cpu_count() or 1,
            use_prefetcher=device.type == "cuda",
            device=device,
        )
    network = timm.create_model(NETWORK, num_classes=7)
    state = torch.load(weights, weights_only=True)
    known = {k: v for k, v in state.items() if not k.startswith("classifier")}
    network.load_state_dict(known, strict=False)
    network = network.to(device, memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(network, "adamw", lr=5e-4, weight_decay=0.01)
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=epochs, warmup_epochs=1, warmup_lr=1e-6
    )
    loss = LabelSmoothingCrossEntropy(0.1)
    best, kept = -1.0, np.empty(0)
    for epoch in range(epochs):
        network.train()
        scheduler.step(epoch)
        for images, labels in loaders["train"]:
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                error = loss(network(_on(images, device)), labels.to(device))
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        network.eval()
        with torch.inference_mode():
            parts = [network(_on(x, device)).softmax(dim=1).cpu() for x, _ in loaders["val"]]
        probabilities = torch.cat(parts).numpy()
        labels = data.labels[data.rows_of("val")]
        accuracy = float((probabilities.argmax(axis=1) == labels).mean())
        recalls = [(probabilities.argmax(axis=1) == k)[labels == k].mean() for k in range(7)]
        print(f"epoch {epoch + 1}: accuracy {accuracy:.4f}, balanced {np.mean(recalls):.4f}")
        if accuracy > best:
            best, kept = accuracy, probabilities
    return kept


def _on(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    return images.to(device, memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
