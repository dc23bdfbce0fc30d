"""Does a long run need more memory than a short one?

uv run python benchmarks/memory_over_epochs.py

Trains a small network for many epochs, and reads the memory that the process itself holds (the
resident set without shared pages, in MiB) after each. Growth is that of the mean of ten epochs,
since an allocator gives and takes a little all the time.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
from measure import report

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 200


def main() -> None:
    from mlops_project import settings
    from mlops_project.data.demo import generate
    from mlops_project.training import tracking
    from mlops_project.training.run import train

    os.chdir(tempfile.mkdtemp())
    generate(Path("demo"), images=120, seed=7)
    used: list[float] = []

    class Measured(tracking.History):
        def on_train_epoch_end(self, trainer, pl_module):
            super().on_train_epoch_end(trainer, pl_module)
            used.append(psutil.Process().memory_full_info().uss / 2**20)

    import mlops_project.training.run as run

    run.History = Measured  # type: ignore[misc]
    train(
        settings.load(
            [
                *("data.data_dir=demo", "data.image_size=32", "data.batch_size=16"),
                *("data.mixup=0.2", "training.ema_decay=0.9", "training.log_every_n_steps=1"),
                *(f"training.max_epochs={EPOCHS}", "training.early_stopping_patience=0"),
            ]
        )
    )
    early, late = np.mean(used[5:15]), np.mean(used[-10:])
    row = {
        "case": f"{EPOCHS} epochs",
        "mib_after_10": round(float(early), 1),
        "mib_at_the_end": round(float(late), 1),
        "ratio": round(float(late / early), 4),
    }
    command = f"uv run python benchmarks/memory_over_epochs.py {EPOCHS}"
    report("memory_over_epochs", [row], command)


if __name__ == "__main__":
    main()
