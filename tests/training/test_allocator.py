"""Freed memory is kept: what a step needs again is not asked of the system again."""

from __future__ import annotations

import subprocess
import sys

import pytest

STEPS = """
import resource
import numpy as np
from mlops_project.training.allocator import keep_freed_memory
if {kept}:
    keep_freed_memory()
def step():
    values = [np.ones(2**23) for _ in range(3)]  # 64 MiB each
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="is about glibc")
def test_a_second_step_needs_no_new_pages() -> None:
    new_pages = {}
    for kept in (False, True):
        words = [sys.executable, "-c", STEPS.format(kept=kept)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        new_pages[kept] = int(done.stdout)
    assert new_pages[True] < new_pages[False] / 10
