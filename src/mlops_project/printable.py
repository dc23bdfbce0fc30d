"""Text from outside, made fit for a message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mlops_project.errors import ProjectError


def printable(text: str, limit: int = 80) -> str:
    """At most `limit` characters of it, and those that steer a terminal or break a line escaped.

    Names of files may hold any byte but two, and cells of a table any character.
    """
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


def first_line(error: BaseException, limit: int = 150) -> str:
    """What an error says is wrong, in one line; its name where it says nothing.

    Of an error of the system the reason alone: messages begin with the file that it is about. Of
    one of ours the first line as it is; the rest says what to do.
    """
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = (said.strip().splitlines() or [type(error).__name__])[0]
    return line if isinstance(error, ProjectError) else printable(line, limit)


def did_you_mean(word: Any, known: Iterable[str], count: int = 1, cutoff: float = 0.5) -> str:
    """The end of a message about an unknown word; nothing where none is like it.

    Args:
        word: that was given.
        known: that could have been.
        count: how many are named at most.
        cutoff: how like it they have to be, from 0 to 1 (`difflib.get_close_matches`).
    """
    import difflib

    near = difflib.get_close_matches(str(word)[:100], list(known), count, cutoff)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
