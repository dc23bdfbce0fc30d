"""The kinds of hostile input, and how many of each became what."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as settings_of
from hypothesis.strategies import SearchStrategy

from tests.fuzz import images
from tests.fuzz.guard import Outcome, attempt


@dataclass(frozen=True)
class Kind:
    """`use(input, folder)` does with an input what the project does; `weight` is a share."""

    inputs: SearchStrategy[Any]
    use: Callable[[Any, Path], None]
    weight: int


KINDS = {
    "images": Kind(images.inputs, images.use, 40),
}


@dataclass
class Tally:
    """How many inputs became what; `failures` are those that must not be, in words."""

    outcomes: dict[str, int] = field(default_factory=dict)
    outside: int = 0
    seen: set[bytes] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    def is_new(self, value: Any) -> bool:
        digest, before = hashlib.sha256(repr(value).encode(errors="replace")).digest(), len(self.seen)
        self.seen.add(digest)
        return len(self.seen) > before

    def add(self, value: Any, outcome: Outcome) -> None:
        self.outcomes[outcome.kind] = self.outcomes.get(outcome.kind, 0) + 1
        if os.environ.get("FUZZ_DEBUG"): print("::", outcome.kind, outcome.detail.replace("\n", "|")[:150])
        self.outside += bool(outcome.outside)
        if outcome.kind in ("traceback", "limit") or outcome.outside:
            words = "\n".join([*outcome.outside, outcome.detail])
            self.failures.append(f"{outcome.kind}: {words}\ninput: {repr(value)[:600]}")

    def numbers(self) -> list[int]:
        """Inputs, accepted, refused, tracebacks, writes outside, over limits."""
        counts = [self.outcomes.get(k, 0) for k in ("accepted", "refused", "traceback", "limit")]
        return [sum(counts), *counts[:3], self.outside, counts[3]]


def run(kind: Kind, count: int, seed: int) -> Tally:
    """Tries `count` different inputs; the same seed tries the same ones."""
    tally = Tally()
    parent = Path(os.path.realpath(tempfile.mkdtemp(prefix="fuzz-")))
    folder = parent / "target"

    def try_one(value: Any) -> None:
        if len(tally.seen) >= count or not tally.is_new(value):
            return
        folder.mkdir()
        tally.add(value, attempt(lambda f: kind.use(value, f), folder))
        shutil.rmtree(folder)

    try:
        # Within one search Hypothesis comes back to what it has tried; a new one starts elsewhere.
        for batch in range(2 + count // 10):
            if len(tally.seen) < count:
                searched = settings_of(
                    max_examples=min(count, 150),
                    database=None,
                    deadline=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )(given(kind.inputs)(try_one))
                hypothesis.seed(1000 * seed + batch)(searched)()
    finally:
        shutil.rmtree(parent, ignore_errors=True)
    return tally
