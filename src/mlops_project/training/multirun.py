"""Several runs from one command, each in a process of its own."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mlops_project import settings

PROGRAM = Path(__file__).resolve().parents[1] / "train.py"


def run_each(arguments: Sequence[str]) -> int:
    """Runs every combination of the comma-separated values, one after the other.

    A run that fails does not stop the others.

    Args:
        arguments: overrides as on the command line, without -m.

    Returns:
        0, or the exit code of the first run that failed.
    """
    jobs = settings.expand(arguments)
    for job in jobs:
        settings.load(job)  # a mistake in the last one should not be found after hours
    first_failure = 0
    for number, job in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {' '.join(job)}", flush=True)
        code = subprocess.run([sys.executable, str(PROGRAM), *job], check=False).returncode
        if code in (130, -2):
            return 130
        first_failure = first_failure or code
    logging.shutdown()
    return first_failure
