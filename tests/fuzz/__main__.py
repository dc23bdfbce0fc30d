"""Hostile inputs of every kind, many of them: uv run python -m tests.fuzz [--count 12000]

Ends with 1 if any of them got a traceback, wrote outside its folder, or took more than its share
of time or memory.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings

os.environ.update(OMP_NUM_THREADS="1", NO_PROXY="127.0.0.1")


def main() -> int:
    from rich.console import Console
    from rich.table import Table

    from tests.fuzz.kinds import KINDS, run

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=12_000, help="inputs, of all kinds together")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--kind", choices=list(KINDS), help="only this kind")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    kinds = {n: k for n, k in KINDS.items() if arguments.kind in (None, n)}
    weights = sum(kind.weight for kind in kinds.values())
    columns = ("inputs", "accepted", "refused", "tracebacks", "outside", "over limits")
    table = Table("kind", title=f"Hostile inputs, seed {arguments.seed}")
    for column in (*columns, "seconds"):
        table.add_column(column, justify="right")
    totals, failures, begin = [0] * len(columns), [], time.monotonic()
    for name, kind in kinds.items():
        started = time.monotonic()
        tally = run(kind, -(-arguments.count * kind.weight // weights), arguments.seed)
        numbers = tally.numbers()
        totals = [a + b for a, b in zip(totals, numbers, strict=True)]
        table.add_row(name, *map(str, numbers), f"{time.monotonic() - started:.0f}")
        print(f"{name}: {dict(zip(columns, numbers, strict=True))}", file=sys.stderr, flush=True)
        failures += [f"{name}: {text}" for text in tally.failures.values()]
    table.add_section()
    table.add_row("all", *map(str, totals), f"{time.monotonic() - begin:.0f}")
    for text in failures[:20]:
        print(text, end="\n\n")
    Console(width=110).print(table)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
