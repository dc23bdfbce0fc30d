"""Whether the values of a sweep's parameters are values of the settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlops_project import settings
from mlops_project.errors import InputError
from mlops_project.searching.sections import Findings
from mlops_project.searching.space import Parameter, override


def check_values(parameters: Sequence[Parameter], found: Findings) -> None:
    """Looks at every listed value, and at the ends of every range."""
    for parameter in parameters:
        key = settings.keys().get(parameter.name)
        number = key is not None and key.kind in ("int", "float") and not parameter.choices
        if key and number and key.kind == "int" and not parameter.step:
            better = "q_log_uniform_values" if parameter.log else "int_uniform"
            found.problems.append(
                f"{parameter.name}: must be {key.expected}: distribution: {better}"
            )
            continue
        wrong = next(filter(None, (_wrong(parameter.name, v) for v in parameter.ends)), None)
        if wrong:
            found.problems.append(wrong)
        elif key and number and key.kind == "float" and parameter.step == 1 and not parameter.log:
            found.notes.append(
                f"{parameter.name}: {parameter.told} only; distribution: uniform has all between"
            )


def _wrong(name: str, value: Any) -> str | None:
    """What is wrong with a value, in one line."""
    key = settings.keys().get(name)
    try:
        if key is None or isinstance(value, str):
            settings.load([*settings.normalise([override(name, value)])])
        else:
            settings.convert(key, value)
    except InputError as error:
        # Whether a network's variant fits is to be seen beside its name.
        if name == "model.variant":
            return None
        return first_line(error)
    return None


def check_together(
    parameters: Sequence[Parameter], overrides: Sequence[str], found: Findings
) -> None:
    """Looks at each value that others must fit, beside the first ones of the others.

    Args:
        parameters: whose values are good by themselves.
        overrides: settings of all trials.
        found: is told of the first mistake of each.
    """
    first = {p.name: p.override(p.ends[0]) for p in parameters}
    dependent = [p for p in parameters if p.name in settings.GROUPS or "model." in p.name]
    for parameter in dependent or parameters[:1]:
        for value in parameter.ends:
            together = first | {parameter.name: parameter.override(value)}
            try:
                settings.load([*overrides, *settings.normalise(list(together.values()))])
            except InputError as error:
                found.problems.append(f"{parameter.override(value)}: {first_line(error)}")
                break


def first_line(error: InputError) -> str:
    """Of a message, what is wrong; the rest says what to do."""
    return str(error).splitlines()[0]
