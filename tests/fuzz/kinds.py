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

from tests.fuzz import answers, archives, images, overrides, tables, weights
from tests.fuzz.guard import Outcome, attempt


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        inputs: its strategy; `weight`: its share among all kinds.
        build: writes an input's files into a folder.
        use: does with them what the project does; watched.
    """

    weight: int
    inputs: SearchStrategy[Any]
    use: Callable[[Any, Path], None]
    build: Callable[[Any, Path], None] = lambda value, folder: None


KINDS = {
    "images": Kind(40, images.inputs, images.use),
    "tables": Kind(25, tables.inputs, tables.use, tables.build),
    "archives": Kind(20, archives.inputs, archives.use, archives.build),
    "yaml": Kind(7, overrides.edits, overrides.use_edit, overrides.build_edit),
    "overrides": Kind(12, overrides.inputs, overrides.use),
    "checkpoints": Kind(12, weights.inputs, weights.use_settings, weights.build),
    "weights": Kind(12, weights.weight_files(), weights.use_weights, weights.build_weights),
    "answers": Kind(10, answers.inputs, answers.use, answers.build),
}


@dataclass
class Tally:
    """How many inputs became what; `failures` are an example each of those that must not be."""

    outcomes: dict[str, int] = field(default_factory=dict)
    outside: int = 0
    seen: set[bytes] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)

    def is_new(self, value: Any) -> bool:
        before = len(self.seen)
        self.seen.add(hashlib.sha256(repr(value).encode(errors="replace")).digest())
        return len(self.seen) > before

    def add(self, value: Any, outcome: Outcome) -> None:
        self.outcomes[outcome.kind] = self.outcomes.get(outcome.kind, 0) + 1
        self.outside += bool(outcome.outside)
        if outcome.kind in ("traceback", "limit") or outcome.outside:
            words = "\n".join([*outcome.outside, outcome.detail])
            place = f"{outcome.kind}: {outcome.detail.splitlines()[-4:-3]}"
            self.failures.setdefault(place, f"{words}\ninput: {repr(value)[:1500]}")

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
        kind.build(value, folder)
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
