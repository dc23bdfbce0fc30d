"""From the command line and `configs/` to a checked `Config`.

Hydra composes; the schema in `config.py` says which keys there are, their types and ranges. Every
mistake of a user ends as an `InputError` that names the key and what would be right.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import typing
from collections.abc import Collection, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from mlops_project import hydra_overrides
from mlops_project.combinations import check_data, check_model, check_training
from mlops_project.config import Config
from mlops_project.errors import InputError
from mlops_project.setting_keys import GROUPS, NONE, keys, typed
from mlops_project.variants import default_image_size, family_of

MAX_FILE_BYTES = 2**20  # of a file of settings
# What tells the repetitions of one experiment apart.
REPEATED = ("seed", "data.fold")
# A resumed run may be given other values of these, but what comes of it depends on them.
FREE_BUT_SHAPING = {
    *("data.data_dir", "training.early_stopping_patience", "training.max_time"),
    *("training.on_nonfinite", "training.max_skipped_steps"),
}
# Where these are "auto", a run keeps to its end what it has found at its start: by trials, which
# differ among repetitions of it, or as the fastest that changes the numbers by rounding alone.
FOUND = {"data.batch_size", "training.learning_rate"}
FASTEST = {"training.precision", "training.channels_last", "training.compile"}
_NAMED = {"model", "data"}  # groups whose files are called by a setting of theirs
_FOLLOWED = {"model.learning_rate", "model.weight_decay"}


def load(arguments: Sequence[str]) -> Config:
    """Composes and checks the settings.

    Beside the path of a checkpoint, what must go together is left to `find_resume`, which knows the
    run's own settings.

    Args:
        arguments: of the command line, such as "model=resnet" or "--data.batch_size=8".

    Raises:
        InputError: with the key, what is wrong with it, and what would be right.
    """
    overrides = [hydra_overrides.checked(a) for a in hydra_overrides.normalise(arguments)]
    given = {name for name, _ in overrides}
    texts = [f"{n}={v}" for n, v in overrides if n != "experiment"]
    if experiment := _experiment(overrides):
        texts.insert(0, f"experiment={experiment}")
    if "model" not in given:
        # A variant alone names its model, as in a sweep over model.variant.
        variant = next((v for n, v in reversed(overrides) if n == "model.variant"), None)
        family = family_of(str(variant).strip("'\"")) if variant is not None else None
        if family:
            texts.insert(0, f"model={family}")
    config = typed(Config, _compose(texts))
    if "wandb.enabled" not in given and os.environ.get("WANDB_SWEEP_ID"):
        config.wandb.enabled = True  # its agent asks for what the server is to be told
    if config.training.resume_from_checkpoint in (None, "", "auto"):
        return resolve(config)
    _fill_in(config)
    return config


def given(arguments: Sequence[str]) -> frozenset[str]:
    """The keys that a command line names itself, or through a file of `configs/`.

    Of a model's or the data's file that is its name: the rest describes them, and is no wish.

    Args:
        arguments: as for `load`, which has accepted them.
    """
    named: set[str] = set()
    overrides = [hydra_overrides.checked(a) for a in hydra_overrides.normalise(arguments)]
    if experiment := _experiment(overrides):
        named |= _keys_of("experiment", experiment)
    for name, value in overrides:
        if name not in GROUPS:
            named.add(name)
        elif name != "experiment":
            named |= _keys_of(name, value.strip("'\" "))
    # The model's value is what the training's follows.
    named |= {n.replace("model.", "training.") for n in named & _FOLLOWED}
    return frozenset(named)


def _experiment(overrides: Sequence[tuple[str, str]]) -> str | None:
    """The last one counts, as of any other key: `experiment=none` takes an earlier one back."""
    found = next((value for name, value in reversed(overrides) if name == "experiment"), "none")
    plain = found.strip("'\" ")
    return None if plain.lower() in NONE else plain


def _keys_of(group: str, name: str) -> set[str]:
    """The keys that the choice of a group's file names."""
    if group in _NAMED:
        return {f"{group}.name"}
    if group != "experiment" and name == "default":  # which is chosen anyway
        return set()
    return _keys_in(hydra_overrides.CONFIGS / group / f"{name}.yaml")


def _keys_in(path: Path) -> set[str]:
    """The keys that a file of `configs/` sets itself, or by the files that it builds on.

    None where there is no such file, as of `_self_`.
    """
    from omegaconf import OmegaConf

    def leaves(node: Any, prefix: str) -> Iterable[str]:
        for name, value in node.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    if not path.is_file():
        return set()
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    group = path.relative_to(hydra_overrides.CONFIGS).parts[0]
    found = set(leaves(content, "" if group == "experiment" else f"{group}."))
    for entry in content.get("defaults", []):
        if isinstance(entry, dict):  # "override /model: timm"
            for chosen, name in entry.items():
                found |= _keys_of(str(chosen).split()[-1].strip("/"), name)
            continue
        name = str(entry).partition("@")[0].removesuffix(".yaml")
        place = hydra_overrides.CONFIGS if name.startswith("/") else path.parent
        found |= _keys_in(place / f"{name.lstrip('/')}.yaml")
    return found & keys().keys()


def resolve(config: Config) -> Config:
    """Fills in what follows from other settings, and checks what must go together."""
    check_model(config.model)
    _fill_in(config)
    check_data(config.data)
    check_training(config.training)
    return config


def _fill_in(config: Config) -> None:
    _expand_paths(config)
    if config.training.learning_rate is None:
        config.training.learning_rate = config.model.learning_rate
    if config.training.weight_decay is None:
        config.training.weight_decay = config.model.weight_decay
    if config.data.image_size is None:
        config.data.image_size = default_image_size(config.model)


def _expand_paths(config: Config) -> None:
    """Shells leave the ~ of `key=~/folder` as it is."""
    data, model, training = config.data, config.model, config.training
    # A name that ends in a slash is the same folder's.
    data.data_dir = str(Path(os.path.expanduser(data.data_dir))) if data.data_dir else ""
    data.cache = os.path.expanduser(data.cache)
    for group, name in (
        (model, "pretrained_path"),
        (model, "init_from"),
        (training, "resume_from_checkpoint"),
    ):
        if getattr(group, name):
            setattr(group, name, os.path.expanduser(getattr(group, name)))


def to_container(config: Config) -> dict[str, Any]:
    """Plain dicts, lists, numbers and texts, as checkpoints keep them."""
    return dataclasses.asdict(config)


def value(config: Config, name: str) -> Any:
    """The value of a setting by its dotted name."""
    return attrgetter(name)(config)


def shaping(config: Config, auto: Collection[str] = ()) -> dict[str, Any]:
    """The settings that what comes of a run depends on, by their dotted names.

    Args:
        config: of the run.
        auto: which of them were found for "auto", and are that here: repetitions of a run may find
            another learning rate each.
    """
    found = {}
    for name, key in keys().items():
        if key.facts["resume"] != "free" or name in FREE_BUT_SHAPING:
            found[name] = "auto" if name in auto else value(config, name)
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
    return typed(Config, merged)


def _compose(overrides: list[str]) -> dict[str, Any]:
    """The composed settings as plain containers, not yet checked."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    files = [path for group in GROUPS for path in hydra_overrides.files_of(group)]
    for path in [hydra_overrides.CONFIGS / "train.yaml", *files]:
        checked_text(path)
    # The defaults alone: types are checked by `typed`, whose messages name the range.
    ConfigStore.instance().store(name="schema", node=to_container(Config()))
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(hydra_overrides.CONFIGS), version_base="1.3"):
            composed = compose("train", overrides=overrides)
        found = typing.cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    except Exception as error:  # Hydra runs on the user's text alone, and raises nearly anything
        raise InputError(hydra_overrides.reason(error)) from error
    chosen = [o.partition("=")[2].strip("'\" ") for o in overrides if o.startswith("experiment=")]
    if chosen and "experiment" in found:  # Hydra's place for a file that names no other
        file = hydra_overrides.CONFIGS / "experiment" / f"{chosen[-1]}.yaml"
        raise InputError(f"{file}: its first line has to be '# @package _global_'")
    return found


def checked_text(path: Path) -> str:
    """What a file of settings holds.

    Raises:
        InputError: it cannot be read, is no YAML, or has aliases within aliases.
    """
    import yaml

    try:
        if path.stat().st_size > MAX_FILE_BYTES or not path.is_file():
            raise InputError(f"{path}: not a file of settings")
        text = path.read_text(encoding="utf-8")
        # Aliases of aliases of aliases, in a file of a kilobyte, fill the memory.
        nested = "*" in text and _nests_aliases(yaml.parse(text))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text in UTF-8 ({error.reason})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(
            f"{path}: not readable as YAML: {hydra_overrides.reason(error)}"
        ) from error
    if nested:
        raise InputError(f"{path}: an alias (*name) in what has a name itself: write the value out")
    return text


def _nests_aliases(events: Iterable[Any]) -> bool:
    """Whether an alias lies within a list or mapping that has, or lies in what has, an anchor."""
    import yaml

    named = [False]
    for event in events:
        if isinstance(event, yaml.AliasEvent) and named[-1]:
            return True
        if isinstance(event, yaml.CollectionStartEvent):
            named.append(named[-1] or event.anchor is not None)
        elif isinstance(event, yaml.CollectionEndEvent):
            named.pop()
    return False
