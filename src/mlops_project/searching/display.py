"""What a search shows: a live table in a terminal, a line for each trial elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console, JustifyMethod
from rich.live import Live
from rich.table import Table

from mlops_project.printable import printable
from mlops_project.searching.sweep import Sweep
from mlops_project.searching.trials import (
    best_trial,
    count,
    duration,
    failed_combinations,
    has_failed,
    state,
    time_left,
)
from mlops_project.setting_keys import shown

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SHOWN = 12  # trials in the table


class Display:
    """Shows how far a search is; a context, within which the table is there.

    Args:
        sweep: what is searched.
        total: trials that are to count in the end.
        console: to show it on.
    """

    def __init__(self, sweep: Sweep, total: int, console: Console) -> None:
        self.sweep, self.total, self.console = sweep, total, console
        self._live = Live(console=console, transient=True) if console.is_terminal else None
        self._epochs: dict[int, tuple[int, float]] = {}  # of own trials: how many, the best so far
        self._waits = False

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
            self.console.show_cursor(True)  # a second Ctrl-C leaves without putting it back
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, trials: Sequence[FrozenTrial]) -> None:
        """A trial begins."""
        self._waits = False
        self._show(trials)

    def epoch(self, number: int, values: Sequence[float], trials: Sequence[FrozenTrial]) -> None:
        """A trial of this worker has finished an epoch; `values` has the metric of each so far."""
        known = [v for v in values if not math.isnan(v)]
        best = min if self.sweep.goal == "minimize" else max
        self._epochs[number] = (len(values), best(known, default=math.nan))
        self._show(trials)

    def ended(self, number: int, trials: Sequence[FrozenTrial]) -> None:
        """A trial of this worker has ended."""
        trial = next(t for t in trials if t.number == number)
        self._show(trials)
        if self._live is None or has_failed(trial):
            self.console.print(self._line(trial, trials), soft_wrap=True, markup=False)

    def lost(self, number: int) -> None:
        """Another worker has taken a trial over."""
        self.console.print(
            f"trial {number}: another worker has taken it over, since this one was not heard of",
            soft_wrap=True,
        )

    def waiting(self, trials: Sequence[FrozenTrial]) -> None:
        """The last trials run elsewhere."""
        self._show(trials)
        if not self._waits and self._live is None:
            running = ", ".join(str(t.number) for t in trials if t.state.name == "RUNNING")
            self.console.print(f"waiting for the trials of other workers: {running}")
        self._waits = True

    def _left(self, trials: Sequence[FrozenTrial]) -> int:
        # A grid has no other combination in the place of a failed one.
        failed = failed_combinations(trials) if self.sweep.method == "grid" else 0
        return self.total - count(trials).done - failed

    def _line(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> str:
        """A finished trial, in one line."""
        counts = count(trials)
        parts = [f"[{counts.done}/{self.total}] trial {trial.number}", state(trial)]
        if trial.value is not None:
            parts.append(f"{self.sweep.metric} {trial.value:.4f}")
        if trial is best_trial(trials, self.sweep.goal):
            parts.append("the best so far")
        seconds = duration(trial)
        parts.append(f"{seconds:.0f} s")
        if has_failed(trial):
            parts.append(printable(trial.user_attrs["error"], 160))
        values = self.sweep.values_of(trial.params)
        parts += [f"{name}={_short(value)}" for name, value in values.items()]
        left = time_left(trials, self._left(trials))
        return ", ".join(parts) + (f"; {left}" if left else "")

    def _show(self, trials: Sequence[FrozenTrial]) -> None:
        if self._live is not None:
            self._live.update(self._table(trials), refresh=True)

    def _table(self, trials: Sequence[FrozenTrial]) -> Table:
        counts = count(trials)
        left = time_left(trials, self._left(trials))
        title = f"{self.sweep.name}: {counts.done} of {self.total} trials"
        title += f", {counts.failed} failed" if counts.failed else ""
        title += f", {left}" if left else ""
        table = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)
        names = [parameter.name.rpartition(".")[2] for parameter in self.sweep.parameters]
        for name in ("trial", "state", self.sweep.metric, "epochs", *names):
            # Where there is no room, what is too long goes on in the next line with all digits.
            justify: JustifyMethod = "left" if name == "state" else "right"
            table.add_column(name.replace("_", " "), justify=justify, overflow="fold")
        best = best_trial(trials, self.sweep.goal)
        begun = [t for t in trials if t.state.name != "WAITING"]
        kept = [t for t in begun[-SHOWN:] if t is not best]
        kept += [t for t in begun if t is best]
        for trial in sorted(kept, key=lambda t: t.number):
            steps = len(trial.intermediate_values)
            epochs, value = self._epochs.get(trial.number, (steps, math.nan))
            if trial.value is not None:
                value = trial.value
            values = self.sweep.values_of(trial.params)
            table.add_row(
                str(trial.number),
                "best" if trial is best else state(trial),
                "" if math.isnan(value) else f"{value:.4f}",
                str(epochs or ""),
                *(_short(values.get(p.name, "")) for p in self.sweep.parameters),
                style="bold" if trial is best else None,
            )
        return table


def _short(value: Any) -> str:
    if isinstance(value, float) and not isinstance(value, bool):
        return f"{value:.4g}"
    return printable(shown(value), 24)
