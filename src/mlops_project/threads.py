"""How many threads there may be, and how those of a computation wait for each other.

Awake they start at once, which a network of many small layers gains a quarter from, but they take
the processor's time from others: two trainings at once then come to a third of their speed.
PyTorch's threads are GNU OpenMP's, which reads from the environment, when torch is imported, how
often to look before going to sleep. `benchmarks/threads.py` on two cores, in images/s alone and of
each of two at once: never 47 and 30, 1,000 times 51 and 28, 10,000 times 54 and 16, 30,000 times 59
and 9.
"""

from __future__ import annotations

import os

LOOKS, LOOKS_ALONE = 1_000, 30_000
BUSY = 0.3  # cores that others use, from which on this process is not alone
SECONDS, TIMES = 0.1, 5  # over which that is measured, and how often before it is believed


def usable_cores() -> int:
    """Number of CPU cores this process may use, by its affinity and the quota of its container."""
    # A third of a second, which scikit-learn would take later. joblib.cpu_count itself is 1 where
    # there is no shared memory for its own processes.
    from joblib.externals import loky

    return loky.cpu_count()


def wait_briefly() -> None:
    """Lets threads go to sleep soon, unless the user has said how they are to wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(LOOKS))


def wait_longer_if_alone() -> None:
    """Lets threads stay awake where nobody else computes; for the start of a long computation."""
    if os.environ.get("GOMP_SPINCOUNT") != str(LOOKS) or "OMP_WAIT_POLICY" in os.environ:
        return
    # What others compute for a moment, or as `nice` ones that make way, must not slow down hours.
    if any(_used_by_others() < BUSY for _ in range(TIMES)):
        os.environ["GOMP_SPINCOUNT"] = str(LOOKS_ALONE)


def _used_by_others() -> float:
    """How many cores others use, those left out that make way."""
    import psutil

    used = psutil.cpu_times_percent(SECONDS)
    return (used.user + used.system) / 100 * (os.cpu_count() or 1)
