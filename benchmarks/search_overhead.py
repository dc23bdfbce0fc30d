"""What a trial of a search takes longer than the same run by hand.

uv run python benchmarks/search_overhead.py [ROUNDS]

Both take turns. A trial's time is that from its begin to the begin of the next one: all that the
search does for it is in there.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import yaml
from measure import report

from mlops_project.data.demo import generate
from mlops_project.searching.search import search

TRAIN = str(Path(__file__).parents[1] / "src/mlops_project/train.py")
STUDY = "sqlite:///reports/search/sweep/study.db"
SETTINGS = [
    *("data.data_dir=demo", "data.image_size=16", "data.num_workers=0"),
    *("model.architecture.conv_blocks=1", "model.architecture.channels=[2]"),
    *("training.max_epochs=5", "training.compile=false", "training.precision=32"),
    *("training.channels_last=false", "training.save_top_k=1", "wandb.enabled=false"),
]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    os.chdir(tempfile.mkdtemp())
    generate(Path("demo"), images=200, seed=3)
    sweep = {
        "method": "random",
        "metric": {"name": "val_loss", "goal": "minimize"},
        "parameters": {
            "training.learning_rate": {
                "distribution": "log_uniform_values",
                "min": 0.001,
                "max": 0.002,
            }
        },
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))
    by_hand()  # decodes the images, reads modules
    search(Path("sweep.yaml"), SETTINGS, trials=1)

    hand, trials, between, cpu = [], [], [], []
    for number in range(rounds):
        hand.append(by_hand())
        done, began = 1 + 2 * number, time.process_time()
        search(Path("sweep.yaml"), SETTINGS, trials=done + 2)
        worked = time.process_time() - began
        began = time.process_time()
        search(Path("sweep.yaml"), SETTINGS, trials=done + 2)  # nothing to do but the pictures
        cpu.append((worked - (time.process_time() - began)) / 2)
        study = optuna.load_study(storage=STUDY, study_name="sweep")
        first, second = study.trials[done : done + 2]
        assert first.datetime_start is not None
        assert first.datetime_complete is not None
        assert second.datetime_start is not None
        trials.append((second.datetime_start - first.datetime_start).total_seconds())
        between.append((second.datetime_start - first.datetime_complete).total_seconds())
    added = [t - h for t, h in zip(trials, hand, strict=True)]
    table = [
        {"case": case, "median_s": round(statistics.median(values), 2)}
        | {"min_s": round(min(values), 2), "max_s": round(max(values), 2)}
        for case, values in (
            ("a run by hand", hand),
            ("a trial", trials),
            ("added, of each pair", added),
            ("from a trial's end to the next one's begin", between),
            ("processor time of the search itself, a trial", cpu),
        )
    ]
    command = f"uv run python benchmarks/search_overhead.py {rounds}"
    report("search_overhead", table, command, load_average=round(os.getloadavg()[0], 1))


def by_hand() -> float:
    """Seconds of a run of train.py."""
    began = time.perf_counter()
    words = [sys.executable, TRAIN, *SETTINGS, "training.learning_rate=0.0015"]
    words.append("training.monitor_metric=val_loss")
    subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
