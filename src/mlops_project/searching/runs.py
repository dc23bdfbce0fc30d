"""A trial's training: a process of its own, which is followed while it runs.

It is the command that a user would type. What it says goes into a file, and its metrics are read
from the run's metrics.csv, which it replaces after each epoch.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlops_project.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, killed_by
from mlops_project.files import atomic_write
from mlops_project.printable import printable
from mlops_project.training import folders
from mlops_project.training.multirun import PROGRAM
from mlops_project.training.signals import PARENT

MARK = "trial.json"  # in a run's folder: which trial it was
# By these SLURM and torchrun make the processes that they start one training. Workers of a search
# may be such processes; their trials are not.
LAUNCHED = re.compile(
    r"SLURM_(NTASKS|NPROCS|PROCID|LOCALID|NODEID|TASKS_PER_NODE|NTASKS_PER_NODE)"
    r"|((LOCAL|GROUP|ROLE|NODE)_)?RANK|((LOCAL|GROUP|ROLE)_)?WORLD_SIZE|ROLE_NAME"
    r"|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+"
)
PATIENCE_SECONDS = 120  # for a run that is to end: the step in flight, and saving


class TrialRun:
    """One training of a trial.

    Args:
        overrides: the settings of the run.
        output: file for what it says; added to what is there.

    Attributes:
        folder: the run's, once it has told.
    """

    def __init__(self, overrides: Sequence[str], output: Path) -> None:
        self.folder: Path | None = None
        self._tail = b""
        self._last_lines: list[str] = []
        self._seen: tuple[int, int] | None = None
        self._deadline: float | None = None
        self._output = output.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *overrides],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={n: v for n, v in os.environ.items() if not LAUNCHED.fullmatch(n)}
            | {PARENT: str(os.getpid())},
            start_new_session=True,  # Ctrl-C in the terminal is for the search, which passes it on
        )
        assert self._process.stdout is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)

    def wait(self, seconds: float) -> int | None:
        """Follows it for at most so long; its exit code once it has ended, else None."""
        if self._selector.get_map():
            for key, _ in self._selector.select(seconds):
                self._read(key.fd)
        else:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        code = self._process.poll()
        if code is None:
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._signal_all(signal.SIGKILL)
            return None
        while self._selector.get_map() and self._selector.select(0):
            self._read(next(iter(self._selector.get_map())))
        self.close()
        return code

    def _read(self, descriptor: Any) -> None:
        data = os.read(descriptor, 2**16)
        if not data:
            self._selector.unregister(descriptor)
            return
        with suppress(OSError):  # a full disk is not the trial's end
            self._output.write(data)
            self._output.flush()
        *lines, self._tail = (self._tail + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            self._last_lines = [*self._last_lines[-20:], text]
            if self.folder is None and text.startswith(folders.TOLD):
                self.folder = Path(text.removeprefix(folders.TOLD))

    def rows(self) -> list[dict[str, str]]:
        """The epochs of metrics.csv, a row each, if it has changed since the last call."""
        if self.folder is None:
            return []
        path = self.folder / "metrics.csv"
        try:
            facts = path.stat()
            seen = (facts.st_mtime_ns, facts.st_ino)
            if seen == self._seen:
                return []
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except OSError:
            return []
        self._seen = seen
        return rows

    def end(self) -> None:
        """Asks it to save and to end."""
        if self._deadline is None:
            self._deadline = time.monotonic() + PATIENCE_SECONDS
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it at once, with all that it has started."""
        self._signal_all(signal.SIGKILL)
        self._process.wait()
        self.close()

    def close(self) -> None:
        """Ends what an ended run has left behind."""
        self._signal_all(signal.SIGKILL)
        self._selector.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._output.close()

    def _signal_all(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def failure(self, code: int) -> str:
        """What it failed of, in one line."""
        if code < 0:
            return killed_by(-code)
        lines = [line for line in (*self._last_lines, self._tail.decode(errors="replace")) if line]
        told = [line for line in lines if line.startswith("error: ")]
        text = (told or lines or [""])[-1].removeprefix("error: ")
        if code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            return "ended from outside"
        return printable(re.sub(r"\s+", " ", text), 300) or f"exit code {code}"


def metric_of(row: dict[str, Any], metric: str) -> float:
    """A metric of an epoch; NaN where it has none."""
    value = row.get(metric)
    return math.nan if value in (None, "") else float(value)


def results(folder: Path) -> dict[str, Any] | None:
    """The results of a run that is done; None: it is not."""
    try:
        content = json.loads((folder / folders.RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def mark(folder: Path, facts: dict[str, Any]) -> None:
    """Writes into a run's folder which trial it is."""
    with suppress(OSError), atomic_write(folder / MARK) as file:
        json.dump(facts, file, indent=2)
        file.write("\n")


def is_marked(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether a run is one of that trial, begun by another worker or before."""
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and all(found.get(n) == facts[n] for n in facts)
