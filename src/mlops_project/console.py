"""What the project's log looks like on the console."""

from __future__ import annotations

import logging
import sys
from logging.handlers import MemoryHandler
from pathlib import Path

log = logging.getLogger("mlops_project")


def stop_logging() -> None:
    """Closes all that the project's log goes to."""
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


def start_console() -> None:
    """Sends the project's log to the console, above a progress bar where there is one.

    Warnings and errors go to standard error, but where both are a terminal: there one handler
    keeps clear of the bar.
    """
    log.setLevel(logging.INFO)
    log.propagate = False
    console = _Terminal(sys.stdout) if sys.stdout.isatty() else _Console(sys.stdout)
    handlers = [console]
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        console.addFilter(lambda record: record.levelno < logging.WARNING)
        handlers.append(_Console(sys.stderr))
        handlers[1].setLevel(logging.WARNING)
    for handler in handlers:
        handler.setFormatter(_Formatter())
        log.addHandler(handler)


def start_logging(path: Path | None, *, first: bool) -> None:
    """Sends the project's log to the console and, with the times, to a file.

    Args:
        path: the log file; None where there is none yet, which keeps the messages until there is,
            and on processes other than the first, which stay silent.
        first: whether this is the first process.
    """
    kept = _kept()
    stop_logging()
    # Lightning's remarks on devices and its tips are not about this run.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.captureWarnings(True)
    warnings_log = logging.getLogger("py.warnings")
    warnings_log.propagate = False
    warnings_log.handlers.clear()
    if path is None:
        keeping = MemoryHandler(1000, flushLevel=sys.maxsize)
        log.addHandler(keeping if first else logging.NullHandler())
        warnings_log.addHandler(logging.NullHandler())
        return
    file = LogFile(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    start_console()
    log.addHandler(file)  # the last one: should it leave, the others have been told already
    warnings_log.addHandler(file)
    for record in kept:
        log.handle(record)


def show_kept_warnings() -> None:
    """Shows the warnings that still wait for a log file, where a refusal leaves them without."""
    warnings = [record for record in _kept() if record.levelno >= logging.WARNING]
    if warnings:
        stop_logging()
        start_console()
        for record in warnings:
            log.handle(record)
        stop_logging()


def _kept() -> list[logging.LogRecord]:
    return [r for h in log.handlers if isinstance(h, MemoryHandler) for r in h.buffer]


class _Console(logging.StreamHandler):
    """Goes on in silence where nobody reads it any more, or its file is on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Terminal(_Console):
    """Keeps clear of a progress bar, whose console it shares.

    What is longer than a line is left to the terminal to wrap, so that a command can be copied.
    """

    def emit(self, record: logging.LogRecord) -> None:
        from rich import get_console
        from rich.text import Text

        try:
            get_console().print(Text(self.format(record)), soft_wrap=True)
        except Exception:
            self.handleError(record)


class LogFile(logging.FileHandler):
    """A log file that gives up, with one line on the console, where it cannot be written."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        for logger in (log, logging.getLogger("py.warnings")):
            logger.removeHandler(self)
        log.warning("%s: goes on without this log (%s)", self.baseFilename, error.strerror)


class _Formatter(logging.Formatter):
    """The message alone, with its level where it is a warning or worse."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"
