"""Show runs side by side.

uv run src/mlops_project/compare.py
uv run src/mlops_project/compare.py models/resnet/version_0 models/efficientnet/version_3
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlops_project.command_line import run_typer, typer_app
from mlops_project.console import start_console

app = typer_app()


@app.command()
def compare(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of runs (default: all of models/).", metavar="RUN …"),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder to write to.", metavar="DIR")] = Path(
        "reports/comparison"
    ),
) -> None:
    """Shows finished runs side by side: settings that differ, metrics with their spread, curves.

    Runs whose settings differ in nothing but the seed or the fold are shown as one group.
    """
    from mlops_project.errors import InputError
    from mlops_project.evaluation.finished_runs import finished, group, read_runs, read_whole
    from mlops_project.evaluation.presentation.runs_page import show, write_comparison

    start_console()
    chosen = read_runs(folders) if folders else read_whole(finished())
    if not chosen:
        make = "uv run src/mlops_project/train.py makes one."
        raise InputError(f"models/: no finished run here\n{make}")
    groups = group(chosen)
    show(groups, write_comparison(groups, output))


if __name__ == "__main__":
    run_typer(app)
