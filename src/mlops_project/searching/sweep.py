"""A sweep file of Weights & Biases, read for a search without them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlops_project import hydra_overrides, settings
from mlops_project.config import Config
from mlops_project.errors import InputError
from mlops_project.models.check import check_network
from mlops_project.printable import first_line, printable
from mlops_project.searching import sections
from mlops_project.searching.parameter import Parameter, override
from mlops_project.searching.sections import Findings, Goal, Halving
from mlops_project.searching.space import read_parameters
from mlops_project.searching.values import check_together, check_values


@dataclass(frozen=True)
class Sweep:
    """What is searched, and how.

    Attributes:
        path: of the file.
        name: of the search, and of its folder.
        method: "random", "grid" or "bayes".
        metric: of the validation or training images, as training logs it.
        goal: "minimize" or "maximize".
        target: value of the metric that ends the search; None: none.
        parameters: that are searched.
        overrides: what the file gives to all trials, as on the command line.
        given: what the user's command line gives to all trials.
        halving: which trials end early; None: none.
        run_cap: how many trials, where the file says so.
        config: the settings of a trial, but for the parameters.
    """

    path: Path
    name: str
    method: str
    metric: str
    goal: Goal
    target: float | None
    parameters: tuple[Parameter, ...]
    overrides: tuple[str, ...]
    given: tuple[str, ...]
    halving: Halving | None
    run_cap: int | None
    config: Config

    @property
    def size(self) -> int:
        """How many combinations there are; 0: no end of them."""
        return math.prod(p.count() for p in self.parameters)

    def values_of(self, drawn: dict[str, Any]) -> dict[str, Any]:
        """The parameters' values in a trial.

        Args:
            drawn: as Optuna has them; of a trial that nobody has begun, not all.
        """
        return {p.name: p.value(drawn[p.name]) for p in self.parameters if p.name in drawn}

    def settings_of(self, values: dict[str, Any]) -> list[str]:
        """A trial's settings, as on the command line.

        Args:
            values: of the parameters, as Optuna has them.
        """
        chosen = [override(name, value) for name, value in self.values_of(values).items()]
        return [*self.overrides, *self.given, *hydra_overrides.normalise(chosen)]

    def composed_again(self) -> Sweep:
        """The same with what `configs/` says now; InputError where that is wrong."""
        config = _of_all_trials([*self.overrides, *self.given], self.parameters)
        return replace(self, config=config)

    def named(self, name: str | None) -> Sweep:
        """The same under another name, if one is given; InputError where it is none."""
        if name is None:
            return self
        plain = sections.plain_name(name)
        if not plain:
            raise InputError(f"--name {printable(name)}: needs a letter or digit")
        return replace(self, name=plain)


def read(path: Path, arguments: Sequence[str]) -> Sweep:
    """Reads a sweep file.

    Args:
        path: of the file.
        arguments: settings of all trials, as on the command line; one of them that is also a
            parameter of the file is not searched.

    Raises:
        InputError: something is wrong with it, and what.
    """
    sweep, found = inspect(path, arguments)
    if sweep is None:
        told, more = found.problems[:2], len(found.problems) - 2
        if more > 0:
            told.append(f"and {more} more: uv run src/mlops_project/search.py check {path}")
        raise InputError(f"{path}: " + "\n".join(told))
    return sweep


def inspect(path: Path, arguments: Sequence[str]) -> tuple[Sweep | None, Findings]:
    """Reads a sweep file, and looks for what is wrong with it.

    Returns:
        The sweep, None where something is wrong; and what was noticed.

    Raises:
        InputError: it is no YAML file.
    """
    content, found = _load(path), Findings()
    found.unknown(content, sections.TOP)
    method = sections.read_method(content.get("method"), found)
    sections.read_program(content.get("program"), found)
    parameters, wrong = read_parameters(content.get("parameters"))
    found.problems += wrong
    if any("parameters" in node for node in _dicts(content.get("parameters"))):
        found.notes.append(
            "nested parameters: an agent of Weights & Biases hands them to train.py in one "
            "piece, which it refuses; names with dots are understood by both"
        )
    commanded = sections.read_command(content.get("command"), content.get("program"), found)

    given = hydra_overrides.normalise(arguments)
    names = {a.partition("=")[0].lstrip("+") for a in given}
    found.notes += [f"{p.name}: given, and not searched" for p in parameters if p.name in names]
    parameters = [p for p in parameters if p.name not in names]
    found.notes += [f"{p.name}: {p.told}: {p.remark}" for p in parameters if p.remark]
    check_values(parameters, found)
    searched = [p for p in parameters if len(p.choices) != 1]
    if not searched and not found.problems:
        found.problems.append("parameters: nothing to search: each has one value, or is given")
    if method == "grid":
        found.problems += [
            f"{p.name}: a grid needs values: […], not {p.told}" for p in searched if not p.count()
        ]

    sections.check_command(content.get("command"), commanded, parameters, found)

    constants = [p.override(p.ends[0]) for p in parameters if len(p.choices) == 1]
    overrides = [*commanded, *hydra_overrides.normalise(constants)]
    if "wandb.enabled" not in names:  # a search needs no account, whatever the file says
        overrides = [o for o in overrides if not o.lstrip("+").startswith("wandb.enabled=")]
    metric = sections.read_metric(content, found)
    if metric and not any("training.monitor_metric=" in o for o in (*overrides, *given)):
        # The run's best epoch is that of the metric, unless something else is asked for.
        overrides.append(override("training.monitor_metric", metric))
    halving = sections.read_halving(content.get("early_terminate"), found)
    run_cap = found.whole(content.get("run_cap"), "run_cap", 1)
    try:
        config = _of_all_trials([*overrides, *given], searched)
        if not found.problems:
            check_network(config.model)
    except InputError as error:
        if first_line(error) not in found.problems:
            found.problems.append(first_line(error))
        return None, found
    if metric is None and content.get("metric") is None:
        metric = config.training.monitor_metric
    if metric is None:
        return None, found
    goal = sections.read_goal(metric, content.get("metric"), found)
    if config.training.resume_from_checkpoint:
        found.problems.append(
            "training.resume_from_checkpoint: each trial is a run of its own, and goes on by itself"
        )
    if halving and not halving.before(config.training.max_epochs):
        found.notes.append(
            f"early_terminate: no trial ends early: the first one could after epoch "
            f"{halving.epochs[0]}, and training.max_epochs={config.training.max_epochs}"
        )
    if not found.problems:
        check_together(searched, [*overrides, *given], found)
    if found.problems or method is None:
        return None, found
    metric_node = content.get("metric") or {}
    name = sections.plain_name(str(content.get("name") or path.stem)) or "search"
    sweep = Sweep(
        path=path,
        name=name,
        method=method,
        metric=metric,
        goal=goal,
        target=metric_node.get("target"),
        parameters=tuple(searched),
        overrides=tuple(overrides),
        given=tuple(given),
        halving=halving,
        run_cap=run_cap,
        config=config,
    )
    return sweep, found


def _of_all_trials(overrides: Sequence[str], searched: Sequence[Parameter]) -> Config:
    """The settings that all trials share, those of the first one where they need a searched value.

    Raises:
        InputError: the first trial's are wrong, too.
    """
    try:
        return settings.load(overrides)
    except InputError:
        first = hydra_overrides.normalise([p.override(p.ends[0]) for p in searched])
        if not first:
            raise
        return settings.load([*overrides, *first])


def _load(path: Path) -> dict[Any, Any]:
    import yaml

    if not path.exists():
        raise InputError(f"{path}: no such file; configs/sweeps.yaml is an example")
    text = settings.checked_text(path)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not readable as YAML: {printable(reason, 300)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a sweep file: it has no method: and parameters:")
    return content


def _dicts(node: Any) -> list[dict[Any, Any]]:
    return [v for v in node.values() if isinstance(v, dict)] if isinstance(node, dict) else []
