"""Pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mlops_project.files import atomic_write


def draw_confusion_matrix(
    predictions: pd.DataFrame, class_names: Sequence[str], path: Path, title: str
) -> None:
    """Draws counts, coloured by the share of each true class, as a PNG picture.

    Args:
        predictions: columns y_true and y_pred (names).
        class_names: order of rows and columns.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(
        predictions["y_true"], predictions["y_pred"], labels=list(class_names)
    )
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = 3.2 + 0.75 * len(class_names)
    figure, axes = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        colour = "white" if shares[i, j] > 0.55 else "black"
        text = f"{count}\n{shares[i, j]:.0%}"
        axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=9)
    ticks = range(len(class_names))
    axes.set_xticks(ticks, class_names, rotation=45 if len(class_names) > 2 else 0)
    axes.set_yticks(ticks, class_names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
