"""How long a command takes to answer, against what Python needs to import Hydra.

uv run python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from measure import interleave, report, rows

TRAIN = str(Path(__file__).parents[1] / "src/mlops_project/train.py")
BASE = 'python -c "import hydra"'


def main() -> None:
    folder = tempfile.mkdtemp()

    def run(*words: str) -> Callable[[], int]:
        def work() -> int:
            subprocess.run([sys.executable, *words], cwd=folder, capture_output=True)
            return 1

        return work

    cases = {
        BASE: run("-c", "import hydra"),
        "train.py --help": run(TRAIN, "--help"),
        "train.py, unknown setting": run(TRAIN, "training.lerning_rate=0.1"),
        "train.py, wrong value": run(TRAIN, "training.max_epochs=many"),
        "train.py, no such folder": run(TRAIN, "data.data_dir=nowhere"),
    }
    table = rows(interleave(cases, 9), {case: BASE for case in cases if case != BASE})
    report("startup", table, "uv run python benchmarks/startup.py", unit="a start")


if __name__ == "__main__":
    main()
