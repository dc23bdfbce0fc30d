"""From the command line and `configs/` to a checked `Config`.

Hydra composes; the schema in `config.py` says which keys there are, their types and ranges. Every
mistake of a user ends as an `InputError` that names the key and what would be right.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
import typing
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mlops_project.config import Config
from mlops_project.errors import InputError
from mlops_project.models.variants import check_model_settings, default_image_size, family_of
from mlops_project.printable import printable

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GROUPS = ("model", "data", "training", "wandb", "experiment")
MAX_RUNS = 10_000  # of a multirun
MAX_FILE_BYTES = 2**20  # of a file of configs/
# What tells the repetitions of one experiment apart.
REPEATED = ("seed", "data.fold")
# A resumed run may be given other values of these, but what comes of it depends on them.
_SHAPING = {
    *("data.data_dir", "training.early_stopping_patience", "training.max_time"),
    *("training.on_nonfinite", "training.max_skipped_steps"),
}
_NONE = ("null", "none", "~", "")
_SWITCH = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
_FOLLOWED = {"model.learning_rate", "model.weight_decay"}


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


def load(arguments: Sequence[str]) -> Config:
    """Composes and checks the settings.

    Args:
        arguments: of the command line, such as "model=resnet" or "--data.batch_size=8".

    Raises:
        InputError: with the key, what is wrong with it, and what would be right.
    """
    overrides = [_checked_override(a) for a in normalise(arguments)]
    given = {name for name, _ in overrides}
    texts = [f"{n}={v}" for n, v in overrides if n != "experiment" or v.lower() not in _NONE]
    if "model" not in given:
        # A variant alone names its model, as in a sweep over model.variant.
        variant = next((v for n, v in reversed(overrides) if n == "model.variant"), None)
        family = family_of(str(variant).strip("'\"")) if variant is not None else None
        if family:
            texts.insert(0, f"model={family}")
    config = _typed(_compose(texts))
    return resolve(config)


def given(arguments: Sequence[str]) -> frozenset[str]:
    """The keys that a command line names itself, or through the file of an experiment.

    Args:
        arguments: as for `load`, which has accepted them.
    """
    named: set[str] = set()
    for name, value in map(_checked_override, normalise(arguments)):
        if name == "experiment" and value.lower() not in _NONE:
            plain = value.strip("'\" ")
            named |= _keys_in(CONFIGS / name / f"{plain}.yaml")
        elif name in ("model", "data"):
            named.add(f"{name}.name")
        elif name not in GROUPS:
            named.add(name)
    # The model's value is what the training's follows.
    named |= {n.replace("model.", "training.") for n in named & _FOLLOWED}
    return frozenset(named)


def _keys_in(path: Path) -> set[str]:
    from omegaconf import OmegaConf

    def leaves(node: Any, prefix: str) -> Iterable[str]:
        for name, value in node.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    content = OmegaConf.to_container(OmegaConf.load(path))
    return set(leaves(content, "")) & keys().keys()


def resolve(config: Config) -> Config:
    """Fills in what follows from other settings, and checks what must go together."""
    check_model_settings(config.model)
    if config.training.learning_rate is None:
        config.training.learning_rate = config.model.learning_rate
    if config.training.weight_decay is None:
        config.training.weight_decay = config.model.weight_decay
    if config.data.image_size is None:
        config.data.image_size = default_image_size(config.model)
    if config.data.val_fraction + config.data.test_fraction >= 0.9:
        raise InputError(
            "data.val_fraction + data.test_fraction leave less than a tenth for training"
        )
    start, size = config.data.start_size, config.data.image_size
    if start is not None and start > size:
        raise InputError(
            f"data.start_size={start}: it must be at most data.image_size={size}, to which it grows"
        )
    folds, fold = config.data.folds, config.data.fold
    if fold >= (folds or 1):
        missing = f"less than data.folds={folds}" if folds else "0 without data.folds, such as 5"
        raise InputError(f"data.fold={fold}: it must be {missing}; the first fold is 0")
    longest = config.training.max_time
    if longest is not None and not re.fullmatch(r"\d+(:\d\d){3}", longest):
        raise InputError(
            f"training.max_time={longest}: must be days:hours:minutes:seconds, such as 00:08:00:00"
        )
    schedule = config.training.unfreeze_schedule
    if config.training.progressive_unfreezing and sorted(schedule) != schedule:
        raise InputError(
            f"training.unfreeze_schedule={schedule}: the epochs must not fall, like [0,0,5,10]"
        )
    return config


def to_container(config: Config) -> dict[str, Any]:
    """Plain dicts, lists, numbers and texts, as checkpoints keep them."""
    return dataclasses.asdict(config)


def shaping(config: Config) -> dict[str, Any]:
    """The settings that what comes of a run depends on, by their dotted names."""
    container = to_container(config)
    found = {}
    for name, key in keys().items():
        if key.facts["resume"] != "free" or name in _SHAPING:
            value: Any = container
            for part in name.split("."):
                value = value[part]
            found[name] = value
    return found


def fingerprint(shaping: dict[str, Any]) -> str:
    """Eight hexadecimal digits that runs share whose `shaping` differs in `REPEATED` alone."""
    same = {name: value for name, value in shaping.items() if name not in REPEATED}
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:8]


def from_container(container: Any) -> Config:
    """The settings of a checkpoint: keys of another version are dropped, missing ones default.

    Raises:
        InputError: they are none, or have values that are not allowed.
    """
    merged = to_container(Config())

    def fill(target: dict[str, Any], source: Any) -> None:
        if not isinstance(source, dict):
            raise InputError("the checkpoint's settings are damaged: a group of them is none")
        for name in target.keys() & source.keys():
            if isinstance(target[name], dict):
                fill(target[name], source[name])
            else:
                target[name] = source[name]

    fill(merged, container)
    return _typed(merged)


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
    """As a quoted text of Hydra's, where a backslash means itself unless quotes follow it."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def _checked_override(override: str) -> tuple[str, str]:
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
        choices = sorted(p.stem for p in (CONFIGS / name).glob("*.yaml"))
        plain = value.strip("'\" ")
        if "," in plain:
            raise InputError(_several(name, value))
        if plain not in choices and not (name == "experiment" and plain in _NONE):
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
    if plain.lower() in _NONE and not plain.startswith("'"):
        if not plain:
            raise InputError(f"{key.name}=: the value is missing; {key.expected}")
        if key.optional:
            return "null"
        if "none" in key.facts["choices"]:
            return "none"
    if key.kind.startswith("list"):
        if not plain.startswith("["):
            return f"[{plain}]"
        return value
    if re.search(r"^[^\[{'\"(]*,", plain):
        raise InputError(_several(key.name, value))
    plain_text = plain[:1] not in "'\"[{" and "\\" not in plain and plain.lower() not in _NONE
    if "off" in key.facts["words"] and plain.lower() == "false":
        return plain  # the switch
    if key.kind == "str" and not key.facts["choices"] and plain_text:
        return _in_quotes(plain)  # 2024_01_02 and 1e3 are names here, not numbers
    return value


def _several(name: str, value: str) -> str:
    return (
        f"{name}={printable(value)}: several values need -m (one run for each), "
        "or quotes if it is one text"
    )


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


def _compose(overrides: list[str]) -> dict[str, Any]:
    """The composed settings as plain containers, not yet checked."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    files = [path for group in GROUPS for path in sorted((CONFIGS / group).glob("*.yaml"))]
    for path in [CONFIGS / "train.yaml", *files]:
        check_file(path)
    # The defaults alone: types are checked by `_typed`, whose messages name the range.
    ConfigStore.instance().store(name="schema", node=to_container(Config()))
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            composed = compose("train", overrides=overrides)
        found = typing.cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    except Exception as error:  # Hydra runs on the user's text alone, and raises nearly anything
        raise InputError(_reason(error)) from error
    chosen = [o.partition("=")[2].strip("'\" ") for o in overrides if o.startswith("experiment=")]
    if chosen and "experiment" in found:  # Hydra's place for a file that names no other
        file = CONFIGS / "experiment" / f"{chosen[-1]}.yaml"
        raise InputError(f"{file}: its first line has to be '# @package _global_'")
    return found


def check_file(path: Path) -> None:
    """Refuses a file of settings that is none, before Hydra reads it."""
    import yaml

    try:
        if path.stat().st_size > MAX_FILE_BYTES or not path.is_file():
            raise InputError(f"{path}: not a file of settings")
        text = path.read_text(encoding="utf-8")
        # An alias of aliases of aliases is a file of a kilobyte that fills the memory.
        aliases = "*" in text and any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text in UTF-8 ({error.reason})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: not readable as YAML: {_reason(error)}") from error
    if aliases:
        raise InputError(f"{path}: aliases (*name) are not supported: write the value out")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the settings are nested too deeply: look for a long row of brackets"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(" ".join(lines[:3]), 400) or type(error).__name__


def _typed(container: dict[str, Any]) -> Config:
    """Checks every value and builds the dataclasses."""

    def build(schema: Any, values: Any, prefix: str) -> Any:
        hints = typing.get_type_hints(schema)
        if not isinstance(values, dict):
            said = printable(shown(values))
            raise InputError(f"{prefix.rstrip('.')}={said}: must be settings, each KEY: VALUE")
        unknown = [str(name) for name in values if name not in hints]
        if unknown:
            name = prefix + min(unknown)
            raise InputError(f"{printable(name)}: unknown setting{suggestion(name)}")
        arguments = {}
        for field, hint in hints.items():
            if dataclasses.is_dataclass(hint):
                arguments[field] = build(hint, values.get(field) or {}, f"{prefix}{field}.")
            else:
                key = keys()[prefix + field]
                arguments[field] = convert(key, values.get(field, key.default))
        return schema(**arguments)

    return build(Config, container, "")


def convert(key: Key, value: Any) -> Any:
    """A value in the key's type.

    Raises:
        InputError: it has another type, or is out of range.
    """
    if isinstance(value, str) and value.lower() in _NONE and key.optional:
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
        near = difflib.get_close_matches(
            shown(value)[:100], [shown(c) for c in facts["choices"]], 1, 0.5
        )
        hint = f"; did you mean {near[0]}?" if near else ""
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


def expand(arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of each run of a multirun: `a=1,2 b=3` is two runs.

    Raises:
        InputError: not understood, or more than `MAX_RUNS` runs.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep

    texts, runs = normalise(arguments), 1.0
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
        batches = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    except InputError:
        raise
    except Exception as error:  # as in `_compose`
        raise InputError(_reason(error)) from error
    return [list(job) for batch in batches for job in batch]


def help_text() -> str:
    """Every setting with its meaning, range and default, and the files of `configs/`."""
    lines = [
        "Train a skin-lesion classifier.",
        "",
        "  uv run src/mlops_project/train.py data=demo",
        "  uv run src/mlops_project/train.py model=efficientnet model.variant=b2 seed=7",
        "  uv run src/mlops_project/train.py -m seed=1,2,3            one run for each value",
        "",
        "Settings are written KEY=VALUE or --KEY=VALUE.",
        "  -h, --help      this text",
        "  -m, --multirun  comma-separated values: one run for each combination",
        "  --cfg           print the resolved settings and stop",
        "",
        "Files of settings",
    ]
    for group in GROUPS:
        names = ", ".join(sorted(p.stem for p in (CONFIGS / group).glob("*.yaml")))
        lines.append(f"  {group}={names}")
    section = None
    for key in keys().values():
        head = key.name.rpartition(".")[0]
        if head != section:
            section = head
            lines += ["", head or "General"]
        default = "" if key.default is None else f" [{shown(key.default)}]"
        unit = key.facts["unit"]
        unit = f" ({unit})" if unit and unit not in key.expected else ""
        lines.append(f"  {key.name}{default}")
        lines.append(f"      {key.facts['meaning']}{unit}; {key.expected}")
        if key.facts["source"]:
            lines.append(f"      source: {key.facts['source']}")
    return "\n".join(lines)
