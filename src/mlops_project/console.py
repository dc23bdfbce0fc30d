"""What the project's log looks like on the console."""

from __future__ import annotations

import logging
import sys

log = logging.getLogger("mlops_project")


def stop_logging() -> None:
    """Closes all that the project's log goes to."""
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


def start_console() -> None:
    """Sends the project's log to the console, above a progress bar where there is one."""
    log.setLevel(logging.INFO)
    log.propagate = False
    console: logging.Handler = logging.StreamHandler(sys.stdout)
    if sys.stdout.isatty():
        from rich.logging import RichHandler

        console = RichHandler(show_time=False, show_path=False, show_level=False)
    console.setFormatter(_Formatter())
    log.addHandler(console)


class _Formatter(logging.Formatter):
    """The message alone, with its level where it is a warning or worse."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"
