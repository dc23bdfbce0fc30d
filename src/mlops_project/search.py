"""Search for the settings that train the best classifier: no account, no network.

uv run src/mlops_project/search.py configs/sweeps.yaml --trials 30 data.data_dir=DIR
uv run src/mlops_project/search.py check configs/sweeps.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mlops_project.command_line import run_typer, typer_app
from mlops_project.searching.storage import GRACE_SECONDS

app = typer_app(
    "Search for the settings that train the best classifier, as a sweep file describes."
)
# So that --training.learning_rate=0.1 is a setting, as it is for train.py.
LENIENT = {"ignore_unknown_options": True}
File = Annotated[Path, typer.Argument(metavar="FILE", help="As for Weights & Biases' sweeps.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE …]", help="Settings of all trials, as for train.py."),
]


@app.command(context_settings=LENIENT)
def run(
    file: File,
    overrides: Settings = None,
    trials: Annotated[
        int | None,
        typer.Option(help="That count in the end (default: run_cap, all of a grid, 20).", min=1),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="postgresql://… for several machines (default: a file).", metavar="URL"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the search (default: the file's).", metavar="NAME")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(help="Train each trial on so many folds; their mean counts.", min=2),
    ] = None,
    grace: Annotated[
        int, typer.Option(help="Seconds after which a silent worker counts as dead.", min=2)
    ] = GRACE_SECONDS,
) -> None:
    """Runs trials. The same command goes on with them, and may run several times at once."""
    from mlops_project.searching.search import search

    search(file, overrides or [], trials, storage, name, folds, grace)


@app.command(context_settings=LENIENT)
def check(file: File, overrides: Settings = None) -> int:
    """Says what is wrong with a sweep file, or else what it searches."""
    from mlops_project.searching.search import check as look

    lines, sweep = look(file, overrides or [])
    print("\n".join(lines))
    return 0 if sweep else 2


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] not in ("run", "check", "-h", "--help"):
        sys.argv.insert(1, "run")
    run_typer(app)
