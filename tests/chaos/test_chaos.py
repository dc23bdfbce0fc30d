"""A short version of the chaos command; the long one makes the table of docs/reliability.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", ["mixed", pytest.param("kill", marks=pytest.mark.slow)])
def test_a_disturbed_run_ends_as_one_left_alone(kind: str) -> None:
    words = ["-m", "tests.chaos", "--kind", kind, "--rounds", "1", "--jobs", "1"]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 identical to the bit" in done.stdout
