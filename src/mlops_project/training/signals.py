"""Signals that ask for the end: the step in flight is finished first."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mlops_project.errors import (
    ENDING_SIGNALS,
    EXIT_INTERRUPTED,
    raise_for_signal,
    signal_arrived,
)

PARENT = "MLOPS_PROJECT_PARENT"  # environment: the process that this one is not to outlive


class Interruption:
    """What signals have asked for.

    Within training a signal is taken note of, and a second Ctrl-C ends the program at once, with
    all of its processes; elsewhere a signal raises where it arrives.

    Attributes:
        number: of the signal that asked for the end; 0: none has.
    """

    def __init__(self) -> None:
        self.number = 0

    def defer(self) -> None:
        """Takes note of signals from here on, and of one before that somebody has dropped."""
        self._install(self._note)
        self.number = self.number or signal_arrived()

    def raise_at_once(self) -> None:
        """Lets a signal raise `Signalled` where it arrives; one that was noted does so here."""
        self._install(raise_for_signal)
        if self.number:  # noted after the last look at it
            raise_for_signal(self.number, None)

    def _install(self, handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING_SIGNALS:
                # What a shell's `nohup` or `&` has told to ignore Ctrl-C goes on doing so.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            leave_at_once(EXIT_INTERRUPTED)
        if not self.number:
            self.number = number
            first = os.environ.get("LOCAL_RANK", "0") == "0"
            if number == signal.SIGINT and first and sys.stderr.isatty():
                # Straight to the terminal: a signal may arrive in the middle of another write.
                os.write(2, b"\nfinishing the step, then saving (Ctrl-C again: leave at once)\n")


@contextmanager
def handlers_put_back() -> Iterator[None]:
    """Leaves signals to whoever saw to them before, such as a notebook; Lightning ignores Ctrl-C.

    Else one that comes afterwards would be taken note of, and end the next training.
    """
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # else it was not Python that had set it
                    signal.signal(number, handler)


def leave_at_once(code: int) -> None:
    """Ends this program and every process that it has started, without any more ado."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.Error:
            continue
    os._exit(code)


def end_with_parent() -> None:
    """Sends SIGTERM to this process once the one named by `PARENT` is gone; nothing without it."""
    parent = os.environ.pop(PARENT, None)  # not for the processes that this one starts
    if parent is None:
        return

    def follow() -> None:
        while os.getppid() == int(parent):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
