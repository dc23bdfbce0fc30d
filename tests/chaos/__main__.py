"""Makes runs fail at random moments, resumes them, and compares them with one left alone.

uv run python -m tests.chaos                                   the table of docs/reliability.md
uv run python -m tests.chaos --kind corrupt --rounds 3 --seed 7
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MPLBACKEND="Agg", COLUMNS="100")

import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from tests.chaos import runs

# (what a row does to each run, in turn; how many runs where all are made)
ROWS = {
    "kill": (("kill", "kill", "kill"), 50),
    "terminate": (("terminate", "terminate", "terminate"), 20),
    "fill": (("fill", "fill"), 20),
    "corrupt": (("corrupt", "corrupt"), 20),
    "mixed": (("kill", "corrupt", "terminate", "fill"), 10),
}


def main(
    kind: Annotated[list[str], typer.Option(help="kill, terminate, fill, corrupt, mixed")] = [],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Runs of each kind (0: as in the docs).")] = 0,
    seed: Annotated[int, typer.Option(help="Of the moments and the damage.")] = 0,
    jobs: Annotated[int, typer.Option(help="Runs at a time.")] = 2,
) -> None:
    """Makes runs fail at random moments, resumes them, and compares them with one left alone."""
    place = Path(tempfile.mkdtemp(prefix="chaos-"))
    from mlops_project.data.demo import generate

    generate(place / "demo", images=120, seed=7)
    arguments = [
        f"data.data_dir={place / 'demo'}",
        f"data.cache={place / 'cache'}",
        *runs.EVERYTHING,
    ]
    alone = place / "alone"
    alone.mkdir()
    for more in (["training.max_epochs=1"], []):  # the first one decodes the images
        shutil.rmtree(alone)
        alone.mkdir()
        began = time.monotonic()
        code = runs.finish(runs.start(alone, [*arguments, *more]), alone)
        seconds = time.monotonic() - began
        if code:
            sys.exit(f"the undisturbed run failed:\n{runs.output_of(alone).read_text()}")
    expected = runs.outcome(alone)
    print(f"undisturbed: {seconds:.1f} s, {len(expected.scalars)} logged values", flush=True)

    hits: list[int] = []

    def make(name: str, number: int) -> str | None:
        folder = place / f"{name}-{number}"
        folder.mkdir()
        mounted = "fill" in ROWS[name][0] and runs.mount_small_disk(folder)
        choose = random.Random(f"{seed}-{name}-{number}")
        one = runs.Round(folder, arguments, seconds, expected.steps, choose)
        try:
            for disturbance in ROWS[name][0]:
                one.disturb(disturbance)
            different = one.complete().differences(expected)
            if not different:
                return None
            return f"{folder}: {', '.join(different)} differ; {'; '.join(one.told)}"
        except Exception as error:
            return f"{folder}: {type(error).__name__}: {error}; {'; '.join(one.told)}"
        finally:
            hits.append(one.hits)
            if mounted:
                subprocess.run(["umount", "-l", str(folder)], check=False)

    failed = 0
    for name in kind or list(ROWS):
        count = rounds or ROWS[name][1]
        began = time.monotonic()
        hits.clear()
        with ThreadPoolExecutor(jobs) as pool:
            results = list(pool.map(lambda number: make(name, number), range(count)))  # noqa: B023
        wrong = [text for text in results if text]
        print(
            f"{name:10} {count - len(wrong)} of {count} identical to the bit "
            f"({sum(hits)} times disturbed, {time.monotonic() - began:.0f} s)",
            flush=True,
        )
        for text in wrong:
            print(f"  {text}", flush=True)
        failed += len(wrong)
    if failed:
        sys.exit(1)
    shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
