"""From a template and what an evaluation has found to a document.

Whatever a template prints is made harmless on its way: names of classes, images and folders come
from outside, and any value may be missing or not a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from mlops_project.evaluation.presentation.reading import number
from mlops_project.evaluation.presentation.wording import (
    MEANINGS,
    MISSING,
    NO_INTERVAL,
    NO_VALUE,
    summed,
)
from mlops_project.files import atomic_write
from mlops_project.metrics import label
from mlops_project.printable import listed, printable

TEMPLATES = Path(__file__).parent / "templates"
LISTED = 20  # entries of a list that are shown
LONGEST = 2000  # characters of a text that is shown


def write(path: Path, template: str, values: dict[str, Any]) -> Path:
    """Fills in a template, `<name>.html.jinja` or `<name>.md.jinja`, and writes the file.

    Args:
        path: to write to.
        template: name of a file in `templates/`.
        values: for its variables; where one is missing, "–" is shown.
    """
    finalize = _html if ".html" in template else _markdown
    text = _environment(finalize).get_template(template).render(values)
    with atomic_write(path, "wb") as file:
        # Half a surrogate pair, as in the name of a file that is not UTF-8, cannot be written.
        file.write(text.encode("utf-8", "backslashreplace"))
    return path


@cache
def _environment(finalize: Callable[[Any], Any]) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": _code,
        "known": _known,
        "label": _label,
        "listed": _listed,
        "quoted": _quoted,
        "summed": summed,
    }
    environment.globals |= {
        "LISTED": LISTED,
        "MEANINGS": MEANINGS,
        "MISSING": MISSING,
        "NO_INTERVAL": NO_INTERVAL,
        "NO_VALUE": NO_VALUE,
    }
    return environment


def _code(value: Any) -> Markup:
    """A text between Markdown's backticks, where only these, and in tables bars, mean something."""
    text = _shown(value)
    if text is None:
        return Markup("–")
    return Markup(f"`{text.replace('`', chr(39)).replace('|', '/')}`")


def _label(name: Any) -> str:
    """What a metric, a picture or a kind of images is called."""
    return "ROC" if name == "roc" else label(str(name))


def _quoted(value: Any) -> Markup:
    """A text as YAML and JSON quote it."""
    return Markup(json.dumps(_clean(str(value))))


def _listed(values: Any, most: int = LISTED) -> str:
    """The first of a list, and how many more there are."""
    return listed([_shown(value) or "–" for value in values or ()], most)


def _known(value: Any) -> float | None:
    """A finite number; None for anything else."""
    known = number(value)
    return None if np.isnan(known) else known


def _clean(text: str) -> str:
    """One line, with nothing that turns the direction of writing or cannot be seen."""
    return printable(re.sub(r"\s+", " ", text), LONGEST)


def _shown(value: Any) -> str | None:
    """A value as text; None where there is nothing to show."""
    if value is None or isinstance(value, jinja2.Undefined):
        return None
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(number(value)) else f"{value:g}"
    return _clean(str(value))


def _html(value: Any) -> Any:
    """Jinja escapes what is not Markup."""
    if isinstance(value, Markup):
        return value
    text = _shown(value)
    return "–" if text is None else text.replace(" %", "\N{NO-BREAK SPACE}%")


def _markdown(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    text = _shown(value)
    if text is None:
        return Markup("–")
    text = re.sub(r"([\\`*\[\]<>|~#])", r"\\\1", text.replace("&", "&amp;"))
    # Within a word an underscore has no meaning.
    return Markup(re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text))
