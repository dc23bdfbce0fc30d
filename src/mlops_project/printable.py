"""Text from outside, made fit for a message."""

from __future__ import annotations


def printable(text: str, limit: int = 80) -> str:
    """At most `limit` characters of it, and those that steer a terminal or break a line escaped.

    Names of files may hold any byte but two, and cells of a table any character.
    """
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)
