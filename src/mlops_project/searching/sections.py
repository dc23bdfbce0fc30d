"""The sections of a sweep file, each read by a function that notes what is wrong with it.

https://docs.wandb.ai/guides/sweeps/sweep-config-keys says what they may hold.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlops_project import hydra_overrides
from mlops_project.config import MONITORABLE
from mlops_project.metrics import monitor_mode
from mlops_project.printable import did_you_mean, printable
from mlops_project.searching.parameter import Parameter

METHODS = ("random", "grid", "bayes")
Goal = Literal["minimize", "maximize"]
GOALS: dict[str, Goal] = {"min": "minimize", "max": "maximize"}
TOP = (
    *("method", "metric", "parameters", "command", "early_terminate", "name", "program"),
    *("run_cap", "project", "entity", "description", "apiVersion", "kind", "controller"),
    *("job", "image_uri"),
)
LONGEST = 100_000  # epochs
METRIC = ("name", "goal", "target", "impute", "impute_while_running")
HYPERBAND = ("type", "min_iter", "max_iter", "s", "eta", "strict")
# What an agent of Weights & Biases puts in its place; with these, train.py gets the parameters.
ARGS = (
    *("${args}", "${args_no_hyphens}", "${args_append_hydra}", "${args_override_hydra}"),
    "${args_no_boolean_flags}",
)
OTHER_ARGS = ("${args_json}", "${args_json_file}", "${args_dict}", "${args_no_equals}")


@dataclass(frozen=True)
class Halving:
    """Which trials end early: at each of some epochs, all but the best.

    Attributes:
        epochs: after which trials are compared, counted from 1.
        factor: one of so many goes on.
        strict: compare what a trial is worth at that epoch, not the best it has been.
    """

    epochs: tuple[int, ...]
    factor: int
    strict: bool = True

    def before(self, end: int) -> list[int]:
        """The epochs before that one."""
        return [epoch for epoch in self.epochs if epoch < end]


def powers(first: int, factor: int) -> tuple[int, ...]:
    """`first`, `factor` times as many, and so on, as far as any run may get."""
    found = []
    while first < LONGEST:
        found.append(first)
        first *= factor
    return tuple(found)


@dataclass
class Findings:
    """What was noticed in a file: a line for each mistake, and for each thing worth knowing."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def unknown(self, node: dict[Any, Any], known: Iterable[str], where: str = "") -> None:
        """Notes the keys of a section that are none."""
        for key in node:
            if key not in known:
                hint = did_you_mean(key, known) or f" (known: {', '.join(known)})"
                self.problems.append(f"{where}{printable(str(key))}: unknown key{hint}")

    def whole(self, value: Any, where: str, minimum: int) -> int | None:
        """A whole number, or None where there is none."""
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value % 1:
            self.problems.append(f"{where}: {printable(str(value))}: must be a whole number")
        elif value < minimum:
            self.problems.append(f"{where}: {value}: must be at least {minimum}")
        else:
            return int(value)
        return None


def plain_name(text: str) -> str:
    """A name that a folder may have; empty where nothing is left of it."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._")[:100]


def read_method(method: Any, found: Findings) -> str | None:
    """`method:`, or None where there is none to use."""
    known = f"; one of {', '.join(METHODS)}"
    if method in METHODS:
        return method
    if method is None:
        found.problems.append(f"method: is missing{known}")
    else:
        hint = did_you_mean(method, METHODS) or known
        found.problems.append(f"method: {printable(str(method))}: no such method{hint}")
    return None


def read_program(program: Any, found: Findings) -> None:
    """`program:`, which is train.py."""
    if program is None:
        found.notes.append("program: is missing, and `wandb sweep` needs it")
        return
    path, said = Path(str(program)), printable(str(program))
    if path.name != "train.py":
        found.problems.append(f"program: {said}: must be src/mlops_project/train.py")
    elif not path.exists() and not (hydra_overrides.CONFIGS.parent / path).exists():
        found.problems.append(f"program: {said}: no such file")


def read_command(command: Any, program: Any, found: Findings) -> list[str]:
    """The settings that `command:` gives to every trial, as on the command line."""
    if command is None:
        return []
    if not isinstance(command, list) or not command:
        found.problems.append("command: must be a list of words")
        return []
    # As Weights & Biases puts variables of the environment in their places.
    words = [
        re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", lambda m: os.environ.get(m[1], ""), str(word))
        for word in command
    ]
    start = next((i for i, w in enumerate(words) if w in ("${program}", str(program))), -1)
    overrides = []
    for word in words[start + 1 :]:
        if word in OTHER_ARGS:
            found.problems.append(
                f"command: train.py does not understand {word}, but ${{args_no_hyphens}}"
            )
        elif "=" in word and not word.startswith("${"):
            overrides.append(word)
        elif start >= 0 and not word.startswith("${"):
            found.problems.append(f"command: {printable(word)}: not a setting KEY=VALUE")
    if not {*ARGS, *OTHER_ARGS} & set(words):
        found.problems.append("command: no parameter gets to train.py without ${args_no_hyphens}")
    return hydra_overrides.normalise(overrides)


def check_command(
    command: Any, overrides: Iterable[str], parameters: Iterable[Parameter], found: Findings
) -> None:
    """What of `command:` does not go with the parameters."""
    names = {override.partition("=")[0].lstrip("+") for override in overrides}
    hidden = isinstance(command, list) and "${args_no_boolean_flags}" in command
    for parameter in parameters:
        if parameter.name in names:
            found.problems.append(f"command: {parameter.name} is one of the parameters, too")
        if hidden and any(isinstance(choice, bool) for choice in parameter.choices):
            found.problems.append(
                f"{parameter.name}: true and false do not get to train.py by "
                "${args_no_boolean_flags}; ${args_no_hyphens} hands them on"
            )


def read_metric(content: dict[Any, Any], found: Findings) -> str | None:
    """The name in `metric:`, or None where there is none that training logs."""
    metric = content.get("metric")
    if metric is None:
        wants = "method: bayes" if content.get("method") == "bayes" else "early_terminate:"
        if wants == "method: bayes" or "early_terminate" in content:
            found.problems.append(f"{wants} needs metric: with name: and goal:")
        return None
    if not isinstance(metric, dict):
        found.problems.append("metric: needs name: and goal:")
        return None
    found.unknown(metric, METRIC, "metric.")
    target = metric.get("target")
    if target is not None and (isinstance(target, bool) or not isinstance(target, (int, float))):
        found.problems.append(f"metric.target: {printable(str(target))}: must be a number")
    name = metric.get("name")
    said = printable(str(name))
    if name in MONITORABLE:
        return name
    if name is None:
        found.problems.append("metric.name: is missing")
    elif str(name).startswith("test_"):
        found.problems.append(
            f"metric.name: {said}: a search by the test images leaves none to test with; "
            f"{said.replace('test_', 'val_', 1)} is there for it"
        )
    else:
        hint = did_you_mean(name, MONITORABLE) or f"; one of {', '.join(MONITORABLE)}"
        found.problems.append(f"metric.name: {said}: training logs no such metric{hint}")
    return None


def read_goal(metric: str, node: Any, found: Findings) -> Goal:
    """The goal that a metric has, whatever the file says."""
    right = GOALS[monitor_mode(metric)]
    if not isinstance(node, dict):
        return right
    goal = node.get("goal")
    if goal is None and right == "maximize":
        found.problems.append(
            f"metric.goal: is missing, which means minimize; {metric} needs maximize"
        )
    elif goal is not None and goal not in GOALS.values():
        hint = did_you_mean(goal, GOALS.values(), cutoff=0.3) or "; minimize or maximize"
        found.problems.append(f"metric.goal: {printable(str(goal))}: no such goal{hint}")
    elif goal is not None and goal != right:
        found.problems.append(f"metric.goal: {goal} looks for the worst {metric}; {right}")
    return right


def read_halving(node: Any, found: Findings) -> Halving | None:
    """`early_terminate:`. Its "hyperband" has one bracket, which is successive halving."""
    if node is None:
        return None
    where = "early_terminate"
    if not isinstance(node, dict) or node.get("type") != "hyperband":
        found.problems.append(f"{where}: needs type: hyperband, and min_iter: EPOCH")
        return None
    before = len(found.problems)
    found.unknown(node, HYPERBAND, f"{where}.")
    # Optuna keeps one of a whole number.
    factor = found.whole(node.get("eta"), f"{where}.eta", 2) or 3
    first = found.whole(node.get("min_iter"), f"{where}.min_iter", 1)
    last = found.whole(node.get("max_iter"), f"{where}.max_iter", 1)
    steps = found.whole(node.get("s"), f"{where}.s", 1)
    strict = node.get("strict", True)
    if not isinstance(strict, bool):
        found.problems.append(f"{where}.strict: must be true or false")
    if len(found.problems) > before:
        return None
    if last is not None and steps is not None:
        fitting = [int(last / factor**n) for n in range(steps, 0, -1) if last / factor**n >= 1]
        if not fitting:
            found.problems.append(f"{where}: max_iter: {last} is less than eta: {factor}")
            return None
        return Halving(tuple(fitting), factor, strict)
    if first is None:
        found.problems.append(f"{where}: needs min_iter, or max_iter and s")
        return None
    return Halving(powers(first, factor), factor, strict)
