"""Several runs from one command, each in a process of its own."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mlops_project import hydra_overrides, settings
from mlops_project.errors import EXIT_INTERRUPTED, EXIT_TERMINATED

PROGRAM = Path(__file__).resolve().parents[1] / "train.py"


def _run(words: list[str]) -> int:
    """Runs a command, and passes on the signals that ask for its end; its exit code."""
    process = subprocess.Popen(words)
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt as error:
            number = getattr(error, "number", signal.SIGINT)
            # A terminal has sent Ctrl-C to both; a second one would end the run at once.
            if number != signal.SIGINT or not sys.stdin.isatty():
                process.send_signal(number)
        else:
            return 128 - code if code < 0 else code


def run_each(arguments: Sequence[str]) -> int:
    """Runs every combination of the comma-separated values, one after the other.

    A run that fails does not stop the others.

    Args:
        arguments: overrides as on the command line, without -m.

    Returns:
        0, or the exit code of the first run that failed.
    """
    jobs = hydra_overrides.expand(arguments)
    for job in jobs:
        settings.load(job)  # a mistake in the last one should not be found after hours
    first_failure = 0
    for number, job in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {' '.join(job)}", flush=True)
        code = _run([sys.executable, str(PROGRAM), *job])
        if code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            print(f"{len(jobs) - number} of {len(jobs)} runs were not started", flush=True)
            return code
        first_failure = first_failure or code
    logging.shutdown()
    return first_failure
