"""How well the parts of timm's training script do: same fold, same weights, so many epochs.

uv run python benchmarks/against_timm.py DATA_DIR WEIGHTS EPOCHS [PREDICTIONS]

The script itself is not in timm's package. Its parts are put together here with its default
augmentation (random resized crops, flips, colour jitter), label smoothing 0.1 and cosine schedule;
AdamW at 5e-4, one epoch of warm-up, batches of 32 and 192 px are chosen. Fold 0 of 5. Its epoch is
that of the best accuracy, as the script has it, and in a second case that of the best balanced
accuracy. PREDICTIONS is the predictions.csv of an evaluation of the same fold, which is then
compared with it on the same resamples of lesions; timm's own are kept in a folder that is named at
the end.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import timm.data
import torch
from measure import Files, report
from sklearn.metrics import balanced_accuracy_score
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from mlops_project import settings
from mlops_project.evaluation.comparison import compare
from mlops_project.evaluation.evaluator import measure
from mlops_project.models.weights import load_file
from mlops_project.training.preparation import open_data

SIDE, BATCH = 192, 32
NETWORK = "tf_efficientnetv2_b0"


def main() -> None:
    folder, weights, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
    logging.disable(logging.INFO)
    torch.manual_seed(42)
    fold = ["data.test_fraction=0", "data.folds=5", "data.fold=0", "model.num_classes=7"]
    data = open_data(settings.load([f"data.data_dir={folder}", *fold]))
    data.read()
    began = time.perf_counter()
    answers = train(data, weights, epochs)
    minutes = (time.perf_counter() - began) / 60
    rows, names = data.rows_of("val"), list(data.class_names)
    images = data.table.iloc[rows][["image_id", "lesion_id"]].reset_index(drop=True)
    images["y_true"] = np.array(names, dtype=object)[data.labels[rows]]
    frequencies = np.bincount(data.labels[data.rows_of("train")], minlength=7)
    kept = Path(tempfile.mkdtemp())
    results = []
    for case, probabilities in answers.items():
        corrected = probabilities / frequencies
        corrected /= corrected.sum(axis=1, keepdims=True)
        for how, shares in (("", probabilities), (", divided by the frequencies", corrected)):
            table = images.copy()
            table[[f"probability_{name}" for name in names]] = shares
            found = measure(names, table)
            row: dict[str, Any] = {"case": case + how, "epochs": epochs}
            row["minutes"] = round(minutes, 1)
            row |= {n: found["metrics"][n] for n in ("balanced_accuracy", "auroc", "ece")}
            if len(sys.argv) > 4:
                difference = compare(names, pd.read_csv(sys.argv[4]), table, "timm")["difference"]
                row["ours_less_timms"] = difference["balanced_accuracy"]
            results.append(row)
            table.to_csv(kept / f"{case}{how}.csv".replace(" ", "_"), index=False)
    print(f"timm's predictions: {kept}")
    words = " ".join(["DATA_DIR", "WEIGHTS", str(epochs), "PREDICTIONS"][: len(sys.argv) - 1])
    report("against_timm", results, f"uv run python benchmarks/against_timm.py {words}")


def train(data: Any, weights: str, epochs: int) -> dict[str, np.ndarray]:
    """Probabilities of the validation images, float32 [N, 7], of the best epoch by two measures."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaders = {}
    for split in ("train", "val"):
        rows = data.rows_of(split)
        loaders[split] = timm.data.create_loader(
            Files(data.table.iloc[rows], data.labels[rows]),  # type: ignore[arg-type]
            input_size=(3, SIDE, SIDE),
            batch_size=BATCH,
            is_training=split == "train",
            num_workers=os.cpu_count() or 1,
            use_prefetcher=device.type == "cuda",
            device=device,
        )
    network = timm.create_model(NETWORK, num_classes=7)
    load_file(network, weights)
    network = network.to(device).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(network, "adamw", lr=5e-4, weight_decay=0.01)
    steps = len(loaders["train"])
    scheduler, _ = create_scheduler_v2(
        optimizer,
        "cosine",
        num_epochs=epochs,
        warmup_epochs=1,
        warmup_lr=1e-6,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    loss = LabelSmoothingCrossEntropy(0.1)
    best: dict[str, tuple[float, np.ndarray]] = {}
    for epoch in range(epochs):
        network.train()
        for step, (images, labels) in enumerate(loaders["train"]):
            scheduler.step_update(epoch * steps + step)
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                error = loss(network(_on(images, device)), labels.to(device))
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        network.eval()
        with torch.inference_mode():
            parts = [network(_on(x, device)).softmax(dim=1).cpu() for x, _ in loaders["val"]]
        probabilities = torch.cat(parts).numpy()
        truth, answers = data.labels[data.rows_of("val")], probabilities.argmax(axis=1)
        reached = {
            "the epoch of best accuracy": float((answers == truth).mean()),
            "the epoch of best balanced accuracy": float(balanced_accuracy_score(truth, answers)),
        }
        print(f"epoch {epoch + 1}:", *(f"{value:.4f}" for value in reached.values()), flush=True)
        for name, value in reached.items():
            if name not in best or value > best[name][0]:
                best[name] = value, probabilities
    return {name: kept for name, (_, kept) in best.items()}


def _on(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    return images.to(device, memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
