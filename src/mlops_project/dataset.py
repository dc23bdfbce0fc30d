"""Fetch, check or make images.

uv run src/mlops_project/dataset.py download
uv run src/mlops_project/dataset.py check data/ham10000
uv run src/mlops_project/dataset.py demo data/demo
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlops_project.command_line import run_typer, typer_app
from mlops_project.console import start_console

app = typer_app("Fetch, check or make images.")
Folder = Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of the images.")]


@app.command()
def download(
    folder: Folder = Path("data/ham10000"),
    test: Annotated[
        bool,
        typer.Option("--test", help="Also the ISIC 2018 Task 3 test images, to DIR_test."),
    ] = False,
) -> None:
    """Fetches HAM10000 (about 3 GB) from Harvard Dataverse; run again, it goes on."""
    from mlops_project.data.download import download as run

    start_console()
    run(folder, test=test)


@app.command()
def check(folder: Folder = Path("data/ham10000")) -> int:
    """Looks for missing, unreadable and doubled images, and for leaks between splits."""
    from rich.console import Console

    from mlops_project.data.check import check_folder
    from mlops_project.data.check_report import print_report

    start_console()
    report = check_folder(folder)
    print_report(report, Console())
    return int(report.broken)


@app.command()
def demo(
    folder: Folder = Path("data/demo"),
    images: Annotated[int, typer.Option(help="How many, about.")] = 1200,
    seed: Annotated[int, typer.Option(help="Another seed makes other images.")] = 42,
) -> None:
    """Makes synthetic images laid out as HAM10000, without clinical meaning."""
    from mlops_project.data.demo import generate

    start_console()
    made = generate(folder, images=images, seed=seed)
    print(f"{folder}: {'synthetic images made' if made else 'these synthetic images are there'}")


if __name__ == "__main__":
    run_typer(app)
