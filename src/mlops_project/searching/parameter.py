"""One setting that is searched over, as Optuna samples it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlops_project.printable import printable
from mlops_project.setting_keys import shown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Parameter:
    """One setting that is searched over, or has one value in all trials.

    Attributes:
        name: of the setting, or of a group of them such as "model".
        choices: the values, where they are listed; one: a constant.
        low, high: the smallest and largest value, otherwise.
        step: between the values; None: any number.
        log: whether the logarithm is what is uniform.
        quantum: what is drawn between low and high is rounded to multiples of it.
        remark: what is worth knowing about it, or nothing.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    quantum: float | None = None
    remark: str = ""

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to check: all that are listed, or the smallest and the largest."""
        return self.choices or (self.value(self.low), self.value(self.high))

    @property
    def told(self) -> str:
        """What it may be, in words."""
        if self.choices:
            return ", ".join(printable(shown(c), 40) for c in self.choices)
        text = f"{self.low:.6g} to {self.high:.6g}"
        text += f", in steps of {self.step:g}" if self.step else ""
        text += f", rounded to multiples of {self.quantum:g}" if self.quantum else ""
        return text + (", log" if self.log else "")

    def distribution(self) -> BaseDistribution:
        """Optuna's distribution of it."""
        from optuna import distributions as optuna

        if self.choices:
            return optuna.CategoricalDistribution([choice_of(c) for c in self.choices])
        if isinstance(self.low, int) and isinstance(self.high, int) and self.step:
            return optuna.IntDistribution(self.low, self.high, self.log, int(self.step))
        return optuna.FloatDistribution(self.low, self.high, self.log, self.step)

    def override(self, value: Any) -> str:
        """The setting with a value of Optuna's, as on the command line."""
        return override(self.name, self.value(value))

    def value(self, drawn: Any) -> Any:
        """The setting's value for one of Optuna's."""
        if self.quantum:
            return rounded(round(drawn / self.quantum) * self.quantum)
        return rounded(drawn) if self.step else drawn

    def values(self) -> Iterator[Any]:
        """All values, as Optuna keeps them; only where they can be counted."""
        if self.choices:
            yield from map(choice_of, self.choices)
        elif self.step:
            for number in range(self.count()):
                yield rounded(self.low + number * self.step)

    def count(self) -> int:
        """How many values there are; 0: any number in a range."""
        if self.choices:
            return len(self.choices)
        return round((self.high - self.low) / self.step) + 1 if self.step else 0


def choice_of(value: Any) -> Any:
    """A listed value as Optuna keeps it, which has no lists: as the text of an override."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else shown(value)


def rounded(number: float) -> float:
    """A number without what adding steps of 0.1 leaves in the last digits."""
    return float(f"{number:.12g}") if isinstance(number, float) else number


def override(name: str, value: Any) -> str:
    """A setting with a value as on the command line."""
    return f"{name}={shown(value)}"
