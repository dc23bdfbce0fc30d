"""A picture of what the network is shown: training images before and after augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mlops_project.data.augmentation import BatchAugmentation
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.files import save_figure

COLUMNS = 4


def draw_preview(data: HAM10000DataModule, augmentation: BatchAugmentation, path: Path) -> None:
    """Draws four training images of each class, and each of them augmented, as a PNG picture."""
    from matplotlib.figure import Figure

    rows = data.rows_of("train")
    shown = [rows[data.labels[rows] == k][:COLUMNS] for k in range(len(data.class_names))]
    shown = [chosen for chosen in shown if len(chosen)]
    size = 1.7 * COLUMNS, 3.5 * len(shown)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(2 * len(shown), COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    plain, random = data.dataset(augment=False), data.dataset(augment=data.settings.augment)
    for i, chosen in enumerate(shown):
        before = plain.batch(0, chosen)[0].permute(0, 2, 3, 1).numpy()
        cropped, labels, draws = random.batch(0, chosen)
        after = augmentation(cropped, draws, 0, training=True)
        after, _ = augmentation.mix(after, labels, draws, 0)
        grey = (after - augmentation.offset) / augmentation.scale
        after_pixels = grey.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        name = data.class_names[data.labels[chosen[0]]]
        for offset, pictures in enumerate((before, after_pixels)):
            text = f"{name}, {('as it is', 'augmented')[offset]}"
            axes[2 * i + offset, 0].set_title(text, loc="left", fontsize=9)
            for j, picture in enumerate(np.asarray(pictures)):
                axes[2 * i + offset, j].imshow(picture)
    save_figure(figure, path)
