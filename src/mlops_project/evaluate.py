"""Evaluate a trained model.

uv run src/mlops_project/evaluate.py --checkpoint models/resnet/version_0/checkpoints/last.ckpt
uv run src/mlops_project/evaluate.py --checkpoint CKPT --data-dir DIR --split all
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mlops_project.command_line import run_typer, typer_app
from mlops_project.console import start_console
from mlops_project.threads import wait_longer_if_alone

OUT_OF_MEMORY = (
    "out of memory: other programs may have taken most of it; with CUDA_VISIBLE_DEVICES= before "
    "the command no GPU is used, nor its memory"
)

app = typer_app()


class Split(StrEnum):
    """Which images."""

    val = "val"
    test = "test"
    all = "all"
    out_of_fold = "out-of-fold"


@app.command()
def evaluate(
    checkpoint: Annotated[
        list[Path], typer.Option(help="Trained model: a file of checkpoints/.", metavar="CKPT")
    ],
    more: Annotated[
        list[Path] | None,
        typer.Argument(help="More trained models, to be averaged with it.", metavar="CKPT …"),
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(
            help="Folder with images, table or not (default: the run's own).", metavar="DIR"
        ),
    ] = None,
    split: Annotated[
        Split, typer.Option(help="Which images; those the run has never seen count as test.")
    ] = Split.test,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average over quarter turns and mirror images.")
    ] = False,
    target_sensitivity: Annotated[
        float,
        typer.Option(help="Of thresholds, on validation.", min=0.01, max=1.0, metavar="SHARE"),
    ] = 0.9,
    compare: Annotated[
        Path | None,
        typer.Option(
            help="Another trained model: what differs on the same images.", metavar="CKPT"
        ),
    ] = None,
    exclude_leaked: Annotated[
        bool,
        typer.Option("--exclude-leaked", help="Leave out what shows any of the training images."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="To write to (default: reports/evaluation/MODEL-version_N).", metavar="DIR"
        ),
    ] = None,
) -> None:
    """Evaluates a trained model: a report, its numbers, pictures and predictions.

    The split is the run's own, so that no image it was trained on is counted. Each metric comes
    with a 95 % interval; thresholds, calibration and prediction sets are fitted on the run's
    validation images. Images without a diagnosis are predicted.
    """
    wait_longer_if_alone()
    from mlops_project.evaluation.report import evaluate as run
    from mlops_project.training.allocator import keep_freed_memory

    keep_freed_memory()
    start_console()
    checkpoints = [*checkpoint, *(more or [])]
    run(
        checkpoints,
        data_dir,
        split.value,
        output,
        target_sensitivity,
        tta=tta,
        exclude_leaked=exclude_leaked,
        compare_with=compare,
    )


if __name__ == "__main__":
    run_typer(app, out_of_memory=OUT_OF_MEMORY)
