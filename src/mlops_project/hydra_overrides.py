"""What a user types as settings, checked by its names and written as Hydra reads it."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_project.errors import InputError
from mlops_project.printable import printable
from mlops_project.setting_keys import GROUPS, NONE, Key, keys, suggestion

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MAX_RUNS = 10_000  # of a multirun
# Of Hydra's grammar
_FUNCTIONS = re.compile(
    r"\s*(choice|range|interval|glob|shuffle|sort|tag|str|int|float|bool|json_str|extend_list)\s*\("
)


def files_of(group: str) -> list[Path]:
    """The files of settings in a folder of `configs/`, by their names."""
    return sorted((CONFIGS / group).glob("*.yaml"))


def normalise(arguments: Sequence[str]) -> list[str]:
    """Overrides as Hydra writes them: no blanks, no leading hyphens, values quoted where needed."""
    result = []
    for argument in arguments:
        if not argument.strip():
            continue
        text = argument.strip()
        if text.startswith("--") and "=" in text:
            text = text[2:]
        result.append(_quoted(text))
    return result


def _quoted(override: str) -> str:
    """Quotes the value when Hydra's grammar would refuse it, as it does a raw `=` in a path."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    name, equals, value = override.partition("=")
    if not equals:
        return override
    try:
        OverridesParser.create().parse_override(override)
    except (HydraException, ValueError, RecursionError):
        if value.startswith("[") and value.endswith("]"):
            items = [item.strip().strip("'\"") for item in value[1:-1].split(",")]
            return f"{name}=[{','.join(map(_in_quotes, items))}]"
        return f"{name}={_in_quotes(value)}"
    return override


def _in_quotes(text: str) -> str:
    """A quoted text of Hydra's, where a backslash means itself unless quotes follow it."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def checked(override: str) -> tuple[str, str]:
    """(key, value) of an override whose key exists."""
    if "=" not in override:
        near = suggestion(override.lstrip("-+~"))
        raise InputError(
            f"{printable(override)}: not understood; settings are written KEY=VALUE{near}"
        )
    name, _, value = override.partition("=")
    name = name.strip().lstrip("+")
    if name.startswith("~"):
        raise InputError(
            f"{printable(override)}: a setting cannot be removed; "
            f"{printable(name[1:])}=VALUE changes it"
        )
    if name in GROUPS:
        choices = [path.stem for path in files_of(name)]
        plain = value.strip("'\" ")
        if "," in plain:
            raise InputError(_several(name, value))
        if plain not in choices and not (name == "experiment" and plain.lower() in NONE):
            close = difflib.get_close_matches(plain[:100], choices, 1, 0.4)
            hint = f"; did you mean {name}={close[0]}?" if close else ""
            raise InputError(
                f"{name}={printable(plain)}: no such file in configs/{name}/{hint}\n"
                f"Known: {', '.join(choices)}"
            )
        return name, value
    if name not in keys():
        raise InputError(
            f"{printable(name or override)}: unknown setting{suggestion(name)}\n"
            "(--help lists all of them)"
        )
    return name, _checked_value(keys()[name], value)


def _checked_value(key: Key, value: str) -> str:
    """The value as YAML; texts that only look like something else are quoted."""
    plain = value.strip()
    if plain.lower() in NONE and not plain.startswith("'"):
        if not plain:
            raise InputError(f"{key.name}=: the value is missing; {key.expected}")
        if key.optional:
            return "null"
        if "none" in key.facts["choices"]:
            return "none"
    if key.kind.startswith("list"):
        inner = plain[1:-1] if plain.startswith("[") and plain.endswith("]") else plain
        if key.kind == "list of str" and not re.search(r"[\[\]{}]", inner):
            return f"[{_as_texts(inner)}]"
        return value if plain.startswith("[") else f"[{plain}]"
    if re.search(r"^[^\[{'\"(]*,", plain):
        raise InputError(_several(key.name, value))
    plain_text = plain[:1] not in "'\"[{" and "\\" not in plain and plain.lower() not in NONE
    if "off" in key.facts["words"] and plain.lower() == "false":
        return plain  # the switch
    if key.kind == "str" and not key.facts["choices"] and plain_text:
        return _in_quotes(plain)  # 2024_01_02 and 1e3 are names here, not numbers
    return value


def _split(value: str) -> list[str]:
    """The parts between commas, but for those in quotes and brackets, without blanks around."""
    quoted = r"""'(?:\\.|[^'\\])*'\s*(?=,|$)|"(?:\\.|[^"\\])*"\s*(?=,|$)"""
    plain = r"(?:\\.|\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|[^,\\])*"
    parts = re.findall(rf"(?:^|,)\s*({quoted}|{plain})", value)
    return [part.strip() for part in parts if part.strip()]


def _as_texts(items: str) -> str:
    """The items of a list of texts, quoted where they are plain."""
    found = _split(items)
    kept = [i[:1] in ("'", '"') or "\\" in i or i.lower() in NONE for i in found]
    return ",".join(i if k else _in_quotes(i) for i, k in zip(found, kept, strict=True))


def _with_texts(argument: str) -> str:
    """An override of a multirun, where each of several texts is quoted, so that it stays one."""
    name, equals, value = argument.partition("=")
    key = keys().get(name.strip().lstrip("-+"))
    if not equals or key is None or key.facts["choices"]:
        return argument
    if "${" in value or _FUNCTIONS.match(value):
        return argument
    if key.kind == "list of str":
        if "[" not in value:
            return f"{name}={_as_texts(value)}"
        return f"{name}=" + re.sub(r"(?<=\[)[^\[\]]*(?=\])", lambda m: _as_texts(m[0]), value)
    if key.kind != "str" or value.strip()[:1] in ("[", "{"):
        return argument
    return f"{name}={','.join(_checked_value(key, item) for item in _split(value))}"


def _several(name: str, value: str) -> str:
    return (
        f"{name}={printable(value)}: several values need -m (one run for each), "
        "or quotes if it is one text"
    )


def _each(override: Override) -> list[str]:
    """What an override of a multirun stands for, as one of each run."""
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep

    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not isinstance(override.value(), (ChoiceSweep, RangeSweep)):
        raise InputError(
            f"{key}: interval(…) and glob(…) name no values to run with; choice(…) and range(…) do"
        )
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def expand(arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of each run of a multirun: `a=1,2 b=3` is two runs.

    Raises:
        InputError: not understood, or more than `MAX_RUNS` runs.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep

    texts, runs = normalise([_with_texts(argument) for argument in arguments]), 1.0
    for text in texts:
        if "=" not in text:
            checked(text)  # says so more plainly than Hydra
    try:
        overrides = OverridesParser.create().parse_overrides(texts)
        for value in (override.value() for override in overrides):
            if isinstance(value, ChoiceSweep):
                runs *= len(value.list)
            elif isinstance(value, RangeSweep):
                start, stop = float(value.start or 0), float(value.stop or 0)
                runs *= max(0.0, (stop - start) / float(value.step))
        if runs > MAX_RUNS:
            raise InputError(f"{runs:,.0f} runs are more than {MAX_RUNS:,}: give fewer values")
        choices: dict[str, list[str]] = {}  # of a key that is given twice, the later ones
        for override in overrides:
            choices[override.get_key_element()] = _each(override)
    except InputError:
        raise
    except Exception as error:  # Hydra runs on the user's text alone, and raises nearly anything
        raise InputError(reason(error)) from error
    jobs = [list(job) for job in itertools.product(*choices.values())]
    if not jobs:
        raise InputError("no run: a range(…) or choice(…) of the settings holds no value")
    return jobs


def reason(error: Exception) -> str:
    """What an error of Hydra's or YAML's says, in a line."""
    if isinstance(error, RecursionError):
        return "the settings are nested too deeply: look for a long row of brackets"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(" ".join(lines[:3]), 400) or type(error).__name__
