"""The settings by their names: what each accepts, in words and as a check."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any

from mlops_project.config import Config
from mlops_project.errors import InputError
from mlops_project.printable import did_you_mean, printable

GROUPS = ("model", "data", "training", "wandb", "experiment")  # folders of configs/
NONE = ("null", "none", "~", "")
Schema = typing.TypeVar("Schema")  # Config, or one of its groups
_SWITCH = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


@dataclasses.dataclass(frozen=True)
class Key:
    """One setting of the schema: its dotted name, type and what `config.key` noted of it."""

    name: str
    kind: str  # "int", "float", "bool", "str" or "list of int" …
    optional: bool
    default: Any
    facts: dict[str, Any]

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        facts = self.facts
        if facts["choices"]:
            return "one of " + ", ".join(shown(c) for c in facts["choices"])
        words = {
            "int": "a whole number",
            "float": "a number",
            "bool": "true or false",
            "str": "a text",
        }
        base = self.kind.removeprefix("list of ")
        text = words[base] if self.kind == base else f"a list of {words[base][2:]}s like [1,2]"
        if base == "str" and self.kind != base:
            text = "a list of texts like [a,b]"
        bounds = []
        for bound, name in (
            ("minimum", "at least"),
            ("above", "more than"),
            ("maximum", "at most"),
            ("below", "less than"),
        ):
            if facts[bound] is not None:
                bounds.append(f"{name} {facts[bound]:.10g}")
        text += f", {' and '.join(bounds)}" if bounds else ""
        text += f" {facts['unit']}" if bounds and facts["unit"] else ""
        for word in facts["words"]:
            text += f", or {word}"
        return text + (", or none" if self.optional else "")


@cache
def keys() -> dict[str, Key]:
    """Every setting by its dotted name, in the order of the schema."""
    return {key.name: key for key in _keys_of(Config, "")}


def _keys_of(schema: Any, prefix: str) -> Iterable[Key]:
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _keys_of(hint, f"{prefix}{field.name}.")
            continue
        default = (
            field.default_factory()
            if field.default_factory is not dataclasses.MISSING
            else field.default
        )
        parts = typing.get_args(hint) if _is_union(hint) else (hint,)
        real = [p for p in parts if p is not type(None)]
        numbers = [p for p in real if p is not str or len(real) == 1]
        kind = numbers[0]
        if typing.get_origin(kind) is list:
            name = f"list of {typing.get_args(kind)[0].__name__}"
        else:
            name = kind.__name__
        yield Key(prefix + field.name, name, type(None) in parts, default, dict(field.metadata))


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def convert(key: Key, value: Any) -> Any:
    """A value in the key's type.

    Raises:
        InputError: it has another type, or is out of range.
    """
    if isinstance(value, str) and value.lower() in NONE and key.optional:
        value = None
    if value is None and key.optional:
        return None
    facts = key.facts
    if True in facts["choices"] and shown(value) in _SWITCH:
        return _SWITCH[shown(value)]
    for choice in facts["choices"]:
        if shown(value) == shown(choice):
            return choice
    if "off" in facts["words"] and value is False:
        return "off"  # YAML reads the word as a switch; a text is a name, even "0" or "no"
    # A switch that is also a list of names: watch_model=false, profiler=null
    if "none" in facts["choices"] and (value is None or value is False):
        return "none"
    if facts["choices"]:
        hint = did_you_mean(shown(value), map(shown, facts["choices"]), cutoff=0.6)
        if len(facts["choices"]) == 1:
            hint = f": {facts['meaning']}"
        said = printable(shown(value))
        raise InputError(f"{key.name}={said}: must be {key.expected}{hint}")
    if isinstance(value, str) and value.lower() in facts["words"]:
        return value.lower()
    if key.kind.startswith("list of "):
        items = value if isinstance(value, list) else [value]
        return [_scalar(key, key.kind.removeprefix("list of "), item) for item in items]
    return _scalar(key, key.kind, value)


def _scalar(key: Key, kind: str, value: Any) -> Any:
    wrong = InputError(f"{key.name}={printable(shown(value))}: must be {key.expected}")
    if kind == "bool":
        if shown(value) in _SWITCH:
            return _SWITCH[shown(value)]
        raise wrong
    if kind == "str":
        if isinstance(value, (dict, list)) or value is None:
            raise wrong
        text = shown(value) if not isinstance(value, str) else value
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
            raise InputError(f"{key.name}={printable(text)}: it has a control character")
        return text
    if isinstance(value, (bool, dict, list)) or value is None:
        raise wrong
    try:
        number = float(value)
    except (ValueError, OverflowError, TypeError):
        raise wrong from None
    facts = key.facts
    if (
        not math.isfinite(number)
        or (facts["minimum"] is not None and number < facts["minimum"])
        or (facts["maximum"] is not None and number > facts["maximum"])
        or (facts["above"] is not None and number <= facts["above"])
        or (facts["below"] is not None and number >= facts["below"])
        or (kind == "int" and number != int(number))
    ):
        raise wrong
    return (
        int(value)
        if kind == "int" and not isinstance(value, str)
        else (int(number) if kind == "int" else number)
    )


def typed(schema: type[Schema], values: Any, prefix: str = "") -> Schema:
    """Settings of the schema, each of its type; those that are not given have their default.

    Args:
        schema: `Config`, or one of its groups.
        values: by their names, the settings of a group as a dict of their own.
        prefix: of the names, such as "data.".

    Raises:
        InputError: a name is unknown, or a value is not allowed.
    """
    hints = typing.get_type_hints(schema)
    if not isinstance(values, dict):
        said = printable(shown(values))
        raise InputError(f"{prefix.rstrip('.')}={said}: must be settings, each KEY: VALUE")
    unknown = [str(name) for name in values if name not in hints]
    if unknown:
        name = prefix + min(unknown)
        raise InputError(f"{printable(name)}: unknown setting{suggestion(name)}")
    arguments: dict[str, Any] = {}
    for field, hint in hints.items():
        if dataclasses.is_dataclass(hint):
            group = values.get(field) or {}
            arguments[field] = typed(typing.cast(type, hint), group, f"{prefix}{field}.")
        else:
            key = keys()[prefix + field]
            arguments[field] = convert(key, values.get(field, key.default))
    return schema(**arguments)


def shown(value: Any) -> str:
    """A value as a user writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.lower() in ("true", "false", "none"):
        return value.lower()
    if isinstance(value, list):
        return "[" + ",".join(map(shown, value)) + "]"
    try:
        return str(value)
    except (ValueError, RecursionError):  # Python writes no numbers of more than 4300 digits
        return f"({type(value).__name__})"


def suggestion(name: str) -> str:
    """The settings whose names are like it, as the end of a message; nothing where none is."""
    known, name = [*keys(), *GROUPS], name[:100]
    last = name.rsplit(".", 1)[-1]
    same = [k for k in known if k.rsplit(".", 1)[-1] == last]
    near = same or difflib.get_close_matches(name, known, 1, 0.6)
    if not near:
        leaves = {k.rsplit(".", 1)[-1]: k for k in known}
        near = [leaves[n] for n in difflib.get_close_matches(last, leaves, 1, 0.6)]
    return f"; did you mean {' or '.join(near[:2])}?" if near else ""
