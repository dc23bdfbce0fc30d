"""What Lightning and our callbacks add to each step of a bare loop.

uv run python benchmarks/overhead.py

The network costs nearly nothing; both loops have the same batches, augmentation and optimizer.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import pandas as pd
from measure import interleave, report, rows
from torch.nn import functional as F

from mlops_project import settings
from mlops_project.data.demo import generate
from mlops_project.models.build import build_model
from mlops_project.training.module import build_module
from mlops_project.training.optimizers import build_optimizer, parameter_groups
from mlops_project.training.preparation import open_data
from mlops_project.training.run import train


def main() -> None:
    logging.disable(logging.INFO)
    os.chdir(tempfile.mkdtemp())
    generate(Path("demo"), images=400, seed=3)
    small = ["model.architecture.conv_blocks=1", "model.architecture.channels=[2]"]
    arguments = [
        *("data.data_dir=demo", "data.image_size=16", "data.batch_size=4", *small),
        *("training.max_epochs=6", "training.save_top_k=0", "training.compile=false"),
        *("training.precision=32", "training.channels_last=false", "training.progress_bar=none"),
    ]
    config = settings.load(arguments)
    data = open_data(config)
    data.setup("fit")
    module = build_module(config, build_model(config.model, 16), data)
    weights = list(module.network.parameters())
    groups = parameter_groups([weights], learning_rate=1e-3, weight_decay=0.01)
    optimizer = build_optimizer(config.training.optimizer, groups)

    def bare() -> int:
        loader = data.train_dataloader()
        for images, labels, draws in loader:
            batch = module.augmentation(images, draws, 0, training=True)
            loss = F.cross_entropy(module.network(batch), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return len(loader)

    def ours() -> int:
        result = train(settings.load(arguments))
        assert result.folder is not None
        speeds.append(pd.read_csv(result.folder / "speed.csv")["images_per_second"])
        return 1

    speeds: list[pd.Series] = []
    times = interleave({"bare": bare, "ours": ours}, 5)
    images = len(data.rows_of("train")) / len(data.train_dataloader())
    per_step = [float(images / s.iloc[1:].median() * 1e6) for s in speeds[1:]]
    table = rows({"bare loop": times["bare"], "Lightning and our callbacks": per_step}, {})
    table[1]["added_us"] = round(table[1]["median_us"] - table[0]["median_us"], 1)
    report("overhead", table, "uv run python benchmarks/overhead.py", unit="a step")


if __name__ == "__main__":
    main()
