"""On a GPU: the same augmentation as on a CPU, steps that do not wait for it, an evaluation."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from mlops_project import settings
from mlops_project.data.augmentation import BatchAugmentation
from mlops_project.evaluation.report import evaluate
from mlops_project.training.module import LesionClassifier
from mlops_project.training.run import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
QUIET = ("training.progress_bar=none", "training.max_epochs=1", "data.image_size=64")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rotation_degrees": 180, "zoom": 0.25},
        {"color_jitter": 0.2, "hue": 0.2},
        {"randaugment": 9},
        {"random_erasing": 1.0},
        {"color_jitter": 0.1, "mixup": 0.2, "cutmix": 1.0, "num_classes": 7},
        {"rotation_degrees": 180, "color_jitter": 0.2, "hue": 0.1, "compiled": True},
    ],
    ids=["plain", "warp", "colour", "randaugment", "erasing", "mixing", "compiled"],
)
def test_a_batch_is_the_same_as_on_a_cpu(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(64, 3, 28, 28, generator=generator) * 255
    images = torch.nn.functional.interpolate(coarse, 192, mode="bilinear").round().to(torch.uint8)
    rows, labels = torch.arange(64), torch.arange(64) % 7
    augmentation = BatchAugmentation(mean=MEAN, std=STD, seed=3, channels_last=True, **options)
    results = []
    for device in ("cpu", "cuda"):
        augmentation.to(device)
        batch = augmentation(images.to(device), rows, 2, training=True, usual=True)
        batch, targets = augmentation.mix(batch, labels.to(device), rows, 2)
        results.append((batch.cpu(), targets.cpu()))
    (ours, target), (theirs, other) = results
    assert float((ours - theirs).abs().max()) * 0.226 * 255 < 0.05  # grey levels
    torch.testing.assert_close(target, other)


@pytest.mark.parametrize("device_cache", ["true", "false"])
def test_no_step_waits_for_the_device(
    device_cache: str, demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begin = LesionClassifier.on_train_batch_start

    def watched(self: LesionClassifier, batch: Any, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode("warn" if 3 <= batch_idx < 8 else "default")
        begin(self, batch, batch_idx)

    monkeypatch.setattr(LesionClassifier, "on_train_batch_start", watched)
    arguments = (f"data.data_dir={demo_folder}", f"data.device_cache={device_cache}", *QUIET)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(settings.load(["data=demo", "data.batch_size=8", *arguments]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not [str(w.message) for w in caught if "called a synchronizing" in str(w.message)]


def test_a_model_is_evaluated_with_the_maps_of_what_it_looks_at(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = train(settings.load(["data=demo", f"data.data_dir={demo_folder}", *QUIET]))
    evaluate(result.checkpoint, tta=True, output=tmp_path / "report")
    assert list((tmp_path / "report" / "explanations").glob("*.png"))
