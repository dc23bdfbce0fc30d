"""Whether the values of a sweep's parameters are values of the settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mlops_project import hydra_overrides, setting_keys, settings
from mlops_project.errors import InputError
from mlops_project.models.check import check_network
from mlops_project.printable import first_line
from mlops_project.searching.parameter import Parameter, override
from mlops_project.searching.sections import Findings

MOST_VALUES = 1000  # of a range, that are looked at one by one


def check_values(parameters: Sequence[Parameter], found: Findings) -> None:
    """Looks at every listed value, and at the ends of every range.

    Where values between the ends of a range may be none of the setting's, it looks at each.
    """
    for parameter in parameters:
        key = setting_keys.keys().get(parameter.name)
        number = key is not None and key.kind in ("int", "float") and not parameter.choices
        whole = parameter.step or isinstance(parameter.quantum, int)
        if key and number and key.kind == "int" and not whole:
            better = "q_log_uniform_values" if parameter.log else "int_uniform"
            found.problems.append(
                f"{parameter.name}: must be {key.expected}: distribution: {better}"
            )
            continue
        values: Iterable[Any] = parameter.ends
        gaps = key and (key.facts["choices"] or (key.kind == "int" and parameter.step != 1))
        if gaps and 0 < parameter.count() <= MOST_VALUES:
            values = parameter.values()
        wrong = next(filter(None, (_wrong(parameter.name, v) for v in values)), None)
        if wrong:
            found.problems.append(wrong)
        elif key and number and key.kind == "float" and parameter.step == 1 and not parameter.log:
            found.notes.append(
                f"{parameter.name}: {parameter.told} only; distribution: uniform has all between"
            )


def _wrong(name: str, value: Any) -> str | None:
    """What is wrong with a value, in one line."""
    key = setting_keys.keys().get(name)
    try:
        if key is None or isinstance(value, str):
            settings.load([*hydra_overrides.normalise([override(name, value)])])
        else:
            setting_keys.convert(key, value)
        if name == "training.optimizer":
            from mlops_project.training.optimizers import check_optimizer

            check_optimizer(str(value))
    except InputError as error:
        # Whether a network's variant fits is to be seen beside its name.
        if name == "model.variant" or (name == "model" and "model.variant" in str(error)):
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

    def wrong(chosen: dict[str, str]) -> str | None:
        try:
            together = hydra_overrides.normalise(list((first | chosen).values()))
            check_network(settings.load([*overrides, *together]).model)
        except InputError as error:
            return first_line(error)
        return None

    before = len(found.problems)
    for parameter in parameters:
        dependent = parameter.name in setting_keys.GROUPS or "model." in parameter.name
        between = 1 if dependent else max(1, len(parameter.ends) - 1)
        for value in parameter.ends[::between]:
            reason = wrong({parameter.name: parameter.override(value)})
            if reason:
                found.problems.append(f"{parameter.override(value)}: {reason}")
                break
    last = {p.name: p.override(p.ends[-1]) for p in parameters}
    reason = wrong(last) if len(found.problems) == before else None
    if reason:
        found.problems.append(f"{', '.join(last.values())}: {reason}")
