"""The parameters of a sweep file: what each may be, as Optuna samples it.

Weights & Biases' distributions (https://docs.wandb.ai/guides/sweeps/sweep-config-keys) of which
Optuna has the very same are read; the others are refused by name.
"""

from __future__ import annotations

import math
from typing import Any

from mlops_project.printable import did_you_mean, printable
from mlops_project.searching.parameter import Parameter, rounded
from mlops_project.setting_keys import shown

# The keys beside `distribution` that each one needs, and those that it may have.
DISTRIBUTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "constant": (("value",), ()),
    "categorical": (("values",), ()),
    "int_uniform": (("min", "max"), ()),
    "uniform": (("min", "max"), ()),
    "q_uniform": (("min", "max"), ("q",)),
    "log_uniform": (("min", "max"), ()),
    "log_uniform_values": (("min", "max"), ()),
    "inv_log_uniform": (("min", "max"), ()),
    "inv_log_uniform_values": (("min", "max"), ()),
    "q_log_uniform": (("min", "max"), ("q",)),
    "q_log_uniform_values": (("min", "max"), ("q",)),
}
_UNBOUNDED = (
    "Optuna samples nothing like it; uniform, or log_uniform_values, between the values that make "
    "sense"
)
# Those that are refused, and why.
UNSUPPORTED = {
    "categorical_w_probabilities": "Optuna tries all values equally often, as categorical does",
    **dict.fromkeys(
        ("normal", "log_normal", "q_normal", "q_log_normal", "beta", "q_beta"), _UNBOUNDED
    ),
}


def read_parameters(node: Any, prefix: str = "") -> tuple[list[Parameter], list[str]]:
    """Reads `parameters:` of a sweep file.

    Args:
        node: what stands there.
        prefix: of the names, for nested ones: "training.".

    Returns:
        The parameters, and a line for each mistake.
    """
    if not isinstance(node, dict) or not node:
        where = prefix.rstrip(".") or "parameters"
        return [], [f"{where}: needs settings to search, each NAME: {{values: […]}}"]
    found: list[Parameter] = []
    problems: list[str] = []
    for key, spec in node.items():
        name = f"{prefix}{key}"
        if isinstance(spec, dict) and set(spec) == {"parameters"}:
            inner, wrong = read_parameters(spec["parameters"], f"{name}.")
            found += inner
            problems += wrong
            continue
        try:
            found.append(_parameter(name, spec))
        except ValueError as error:
            problems.append(f"{printable(name)}: {error}")
    return found, problems


def _parameter(name: str, spec: Any) -> Parameter:
    """One parameter; ValueError says what is wrong with it."""
    if not isinstance(spec, dict):
        raise ValueError("needs values: […], value: X, or min: and max:")
    kind = _kind(spec)
    if kind in UNSUPPORTED:
        raise ValueError(f"{kind}: {UNSUPPORTED[kind]}")
    needed, allowed = DISTRIBUTIONS[kind]
    missing = [key for key in needed if key not in spec]
    if missing:
        raise ValueError(f"{kind} needs {' and '.join(missing)}")
    unknown = [str(key) for key in spec if key not in ("distribution", *needed, *allowed)]
    if unknown:
        known = ", ".join((*needed, *allowed))
        raise ValueError(f"{printable(min(unknown))} is nothing that {kind} has ({known})")
    if kind == "constant":
        return Parameter(name, (_plain(spec["value"]),))
    if kind == "categorical":
        return Parameter(name, _choices(spec["values"]))
    return _range(name, kind, spec)


def _kind(spec: dict[Any, Any]) -> str:
    """The distribution, by name or by the keys that are there."""
    kind = spec.get("distribution")
    if kind is not None:
        if isinstance(kind, str) and (kind in DISTRIBUTIONS or kind in UNSUPPORTED):
            return kind
        hint = did_you_mean(kind, DISTRIBUTIONS) or f" ({', '.join(DISTRIBUTIONS)})"
        raise ValueError(f"distribution: {printable(str(kind))}: no such distribution{hint}")
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if "min" in spec and "max" in spec:
        return "int_uniform" if _is_int(spec["min"]) and _is_int(spec["max"]) else "uniform"
    raise ValueError("needs values: […], value: X, or min: and max:")


def _plain(value: Any) -> Any:
    """A value that a setting may have."""
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, (dict, list)) for item in items):
        raise ValueError(f"{printable(str(value))}: not a value of a setting")
    return value


def _choices(values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise ValueError("values: needs a list of at least one value, like [16, 32]")
    choices = tuple(map(_plain, values))
    seen = [shown(c) for c in choices]
    twice = next((text for text in seen if seen.count(text) > 1), None)
    # To Python, and to Optuna, 1 and 1.0 are one number.
    numbers = [c for c in choices if isinstance(c, (int, float)) and not isinstance(c, bool)]
    equal = next((shown(c) for c in numbers if numbers.count(c) > 1), None)
    twice = twice if twice is not None else equal
    if twice is not None:
        raise ValueError(f"values: {printable(twice)} is there twice")
    return choices


def _range(name: str, kind: str, spec: dict[Any, Any]) -> Parameter:
    low, high = _number(spec, "min"), _number(spec, "max")
    if low >= high:
        raise ValueError(f"min: {low} is not less than max: {high}")
    if kind == "int_uniform":
        if low != int(low) or high != int(high):
            raise ValueError("int_uniform needs whole numbers; uniform takes any")
        return Parameter(name, low=int(low), high=int(high), step=1)
    if kind == "uniform":
        return Parameter(name, low=float(low), high=float(high))
    if kind == "q_uniform":
        return _stepped(name, low, high, _step(spec))
    low, high, remark = _logarithmic(kind, low, high)
    if not kind.startswith("q_"):
        # The logarithm of 1/x is uniform exactly where that of x is.
        return Parameter(name, low=low, high=high, log=True, remark=remark)
    step = _step(spec)
    if step == 1:
        low, high = max(1, round(low)), round(high)
        if low >= high:
            raise ValueError(f"{kind}: q: 1 leaves {low} alone")
        return Parameter(name, low=low, high=high, step=1, log=True, remark=remark)
    if round(low / step) == round(high / step):
        raise ValueError(f"{kind}: q: {step:g} leaves {round(low / step) * step:g} alone")
    quantum = int(step) if step == int(step) else step
    return Parameter(name, low=low, high=high, log=True, quantum=quantum, remark=remark)


def _logarithmic(kind: str, low: float, high: float) -> tuple[float, float, str]:
    """The smallest and largest value of a logarithmic range, and a remark or nothing."""
    if kind.endswith("_values"):
        if low <= 0:
            raise ValueError(f"{kind}: min: {low} must be more than 0")
        return float(low), float(high), ""
    if 0 < low < 1 or (low == 0 and high < 1):
        raise ValueError(
            f"{kind} takes exponents of e: {low:g} to {high:g} would try "
            f"{math.exp(low):.6g} to {math.exp(high):.6g}; "
            f"{kind}_values takes the values themselves"
        )
    if high > 700 or low < -700:
        raise ValueError(f"{kind} takes exponents of e; {kind}_values takes the values")
    remark = f"{kind} takes exponents of e; {kind}_values takes the values themselves"
    low, high = math.exp(low), math.exp(high)
    if kind == "inv_log_uniform":
        low, high = 1 / high, 1 / low
    return low, high, remark if low >= 1 else ""


def _stepped(name: str, low: float, high: float, step: float) -> Parameter:
    """The multiples of `step` that numbers from `low` to `high` are rounded to."""
    first, last = round(low / step), round(high / step)
    if first == last:
        raise ValueError(f"q_uniform: q: {step:g} leaves {first * step:g} alone")
    if step == int(step):
        step = int(step)
    return Parameter(name, low=rounded(first * step), high=rounded(last * step), step=step)


def _step(spec: dict[Any, Any]) -> float:
    step = _number(spec, "q") if "q" in spec else 1
    if step <= 0:
        raise ValueError(f"q: {step} must be more than 0")
    return step


def _number(spec: dict[Any, Any], key: str) -> float:
    value = spec[key]
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"{key}: {printable(value)} is not a number") from None
        # YAML 1.1 takes 1e-5 for a text, and so does Weights & Biases.
        raise ValueError(f"{key}: YAML reads {printable(value)} as a text: write {_dotted(number)}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{key}: {printable(shown(value))} is not a number")
    return value


def _dotted(number: float) -> str:
    """A number as YAML 1.1 reads one."""
    text = f"{number:g}"
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
