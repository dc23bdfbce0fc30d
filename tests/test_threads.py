"""How threads are told to wait, by what the user says and by who else computes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mlops_project.threads import LOOKS

WORK = "while True: pass"
ASK = """
import os
from mlops_project.threads import wait_briefly, wait_longer_if_alone
wait_briefly()
wait_longer_if_alone()
print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
"""


@contextmanager
def working(words: list[str]) -> Iterator[None]:
    """With a program for each core that computes without end."""
    others = [subprocess.Popen(words) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def told(**said: str) -> str:
    """The two variables of a program that starts with what the user has said."""
    unset = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    words = [sys.executable, "-c", ASK]
    return subprocess.run(words, env=unset | said, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("policy", ["ACTIVE", "PASSIVE"])
def test_what_the_user_says_stays(policy: str) -> None:
    assert told(OMP_WAIT_POLICY=policy) == f"{policy} None"
    assert told(GOMP_SPINCOUNT="77") == "None 77"


def test_no_more_cores_are_used_than_the_machine_s_owner_allows() -> None:
    """By the environment here; joblib looks at a container's quota just so."""
    ask = "from mlops_project.threads import usable_cores; print(usable_cores())"
    limited = os.environ | {"LOKY_MAX_CPU_COUNT": "1"}
    done = subprocess.run([sys.executable, "-c", ask], env=limited, capture_output=True, text=True)
    assert done.stdout == "1\n"


def test_beside_others_that_compute_threads_soon_fall_asleep() -> None:
    with working([sys.executable, "-c", WORK]):
        assert told() == f"None {LOOKS}"
