"""Whether an evaluation runs at the rate of the network, and how long all that follows takes.

uv run python benchmarks/evaluation.py CHECKPOINT [DATA_DIR]

The peer is the network alone on batches that lie ready in memory, in the same layout and size.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measure import interleave, report, rows

from mlops_project.evaluation import report as evaluation
from mlops_project.evaluation.images import open_images
from mlops_project.evaluation.inference import predict
from mlops_project.evaluation.trained_model import load_model


def main() -> None:
    logging.disable(logging.WARNING)
    checkpoint = Path(sys.argv[1])
    data_dir = sys.argv[2] if len(sys.argv) > 2 else None
    model = load_model(checkpoint)
    images = open_images([model], data_dir, "test")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    last = model.config.training.channels_last is True
    layout = torch.channels_last if last else torch.contiguous_format
    batches = [
        batch.float().sub(128).div(64).to(device, memory_format=layout)
        for batch in torch.from_numpy(images.pixels(np.arange(len(images.rows)))).split(
            int(images.data[0].settings.batch_size)
        )
    ]

    @torch.inference_mode()
    def network_alone() -> int:
        network = model.network.to(device)
        answers = [network(batch).softmax(dim=1) for batch in batches]
        torch.cat(answers).cpu()
        return len(images.rows)

    def ours() -> int:
        predict([model], images)
        return len(images.rows)

    times = interleave({"network alone": network_alone, "predict": ours}, 7)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        facts = evaluation.evaluate(checkpoint, data_dir, output=Path(folder))
        seconds = time.perf_counter() - began
    forward = 2 * rows(times, {})[1]["median_us"] * len(images.rows) / 1e6
    report(
        "evaluation",
        rows(times, {"predict": "network alone"}),
        "uv run python benchmarks/evaluation.py CHECKPOINT [DATA_DIR]",
        images=facts["n_images"],
        classes=len(facts["class_names"]),
        whole_seconds=round(seconds, 1),
        without_predicting_seconds=round(seconds - forward, 1),
    )


if __name__ == "__main__":
    main()
