"""What makes two starts of a search the same search, so that their trials can be compared."""

from __future__ import annotations

import re

import yaml

from mlops_project import setting_keys, settings
from mlops_project.errors import InputError
from mlops_project.searching.parameter import Parameter
from mlops_project.searching.sweep import Sweep


def identity(sweep: Sweep, folds: int | None) -> dict[str, str]:
    """All that must stay the same for trials to be compared, in words."""
    facts = {"method": sweep.method, "metric": f"{sweep.metric} ({sweep.goal})"}
    facts |= {f"parameters.{p.name}": _exactly(p) for p in sweep.parameters}
    if sweep.halving:
        facts["early_terminate"] = str(sweep.halving)
    if folds:
        facts["--folds"] = str(folds)
    for name, value in settings.shaping(sweep.config).items():
        if name != "data.data_dir":  # the images may lie elsewhere on another worker's machine
            facts[name] = setting_keys.shown(value)
    return facts


def check_same(name: str, before: dict[str, str], now: dict[str, str]) -> None:
    """Raises InputError where trials could not be compared with those that there are."""
    # A setting that only one of them has is of another version of this project.
    optional = setting_keys.keys().keys() - (before.keys() & now.keys())
    names = [n for n in {**before, **now} if n not in optional]
    changed = [n for n in names if before.get(n) != now.get(n)]
    if changed:
        first, more = changed[0], len(changed) - 1
        raise InputError(
            f"{name}: this search was begun with {first}: {_told(before.get(first))}, now it is "
            f"{_told(now.get(first))}{f' (and {more} more)' if more else ''}\n"
            "--name NAME begins another search beside it."
        )


def _told(fact: str | None) -> str:
    """A fact of `identity` for a person: Optuna's distributions as ranges."""
    range_of = r"\w+Distribution\(high=(.+?), log=(\w+), low=(.+?), step=(.+?)\)"
    found = re.match(range_of, fact or "")
    if fact is None or found is None:
        return fact or "none"
    high, log, low, step = found.groups()
    steps = f", in steps of {step}" if step not in ("None", "1") else ""
    return f"{low} to {high}{steps}{', log' if log == 'True' else ''}{fact[found.end() :]}"


def _is_like_another(text: str) -> bool:
    """Whether YAML would read it as a number, a switch or nothing if it were not in quotes."""
    try:
        return not isinstance(yaml.safe_load(text), (str, list, dict))
    except (yaml.YAMLError, ValueError):
        return False


def _exactly(parameter: Parameter) -> str:
    if parameter.choices:
        # To Optuna 18 and "18" are two values, though a setting takes them for one.
        texts = [c for c in parameter.choices if isinstance(c, str) and _is_like_another(c)]
        return parameter.told + (f" ({', '.join(texts)} as text)" if texts else "")
    rounding = f", multiples of {parameter.quantum}" if parameter.quantum else ""
    return f"{parameter.distribution()}{rounding}"
