"""What all pictures of an evaluation share: colours, sizes and titles.

A picture is as wide as a column of a printed page, so that its text can still be read where a phone
shrinks it to the width of its screen.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from mlops_project.evaluation.presentation.reading import number
from mlops_project.files import save_figure
from mlops_project.printable import printable

# Okabe and Ito, Color Universal Design (2008): told apart with any common colour blindness. Grey
# stands for their yellow, which is too pale for a line on white.
BLACK, GREY = "#000000", "#999999"
ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
VERMILLION, PURPLE = "#D55E00", "#CC79A7"
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, GREY)
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))  # for those who see no colours at all

WIDTH = 4.2  # inches
DOTS = 200  # per inch
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is there everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "text.parse_math": False,  # a $ in a name is a $
}


@dataclass(frozen=True)
class Drawing:
    """A figure that is not yet a file.

    Attributes:
        figure: of matplotlib.
        title: a few words.
        alternative_text: what it shows, with its main numbers.
    """

    figure: Figure
    title: str
    alternative_text: str


@contextmanager
def style() -> Iterator[None]:
    """The look of the pictures, for drawing and for saving."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        yield


def new_figure(height: float, title: str) -> Figure:
    """An empty figure; without pyplot, which keeps every figure it has made.

    Args:
        height: inches.
        title: above it.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title, fontsize=10)
    return figure


def full_title(facts: dict[str, Any], title: str) -> str:
    """The title, and below it what was evaluated, and whether that was real."""
    images = number(facts.get("n_images"))
    count = "" if images != images else f"{images:,.0f} image{'s' * (images != 1)}"
    what = ", ".join(text for text in (short(facts.get("model") or "", 40), count) if text)
    split = f" ({short(facts['split'])})" if facts.get("split") else ""
    lines = [title, what + split, "SYNTHETIC DATA" if facts.get("synthetic") else ""]
    return "\n".join(line for line in lines if line)


def short(name: Any, limit: int = 22) -> str:
    """A name from outside, fit for a picture."""
    return printable(str(name), limit)


def save(figure: Figure, path: Path) -> None:
    """Writes it as a PNG."""
    save_figure(figure, path, DOTS)
