"""The settings of a run that goes on: which may change, and what they become."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mlops_project import setting_keys, settings
from mlops_project.config import Config
from mlops_project.errors import InputError
from mlops_project.printable import listed

log = logging.getLogger("mlops_project")

# What decides which batches an epoch has, in which order, and how many steps they make
BATCHES = {
    "seed",
    "data.batch_size",
    "data.sampler",
    "data.subsample_percentage",
    "data.stratified_sampling",
    "data.val_fraction",
    "data.folds",
    "data.fold",
    "data.test_fraction",
    "training.accumulate_grad_batches",
    "training.devices",
    "training.limit_train_batches",
}
# What decides how large a loss is, and so which of several epochs has the lowest one
LOSS = {
    "training.loss",
    "training.focal_gamma",
    "training.class_weights",
    "training.logit_adjustment",
    "training.label_smoothing",
}
# Where these are "auto", a run goes on with what it has.
KEPT = settings.FOUND | settings.FASTEST | {"model.pretrained"}


def differences(
    config: Config, given: frozenset[str] | None, container: dict[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Settings that a run must keep and that differ: (before, now) of each key.

    Args:
        config: of the command line.
        given: the keys to look at; None: all.
        container: settings of the run, as its checkpoint has them.
    """
    before, now = settings.from_container(container), config
    result = {}
    for name, key in setting_keys.keys().items():
        old, new = settings.value(before, name), settings.value(now, name)
        rule = key.facts["resume"]
        if (given is not None and name not in given) or rule == "free" or new == old:
            continue
        if new == "auto" and name in KEPT:
            continue
        if rule == "longer" and new > old:
            continue
        result[name] = (old, new)
    return result


def setting_of_another_run(config: Config, container: dict[str, Any]) -> str | None:
    """A setting by which `training.resume_from_checkpoint=auto` takes a run for another one.

    Args:
        config: of the command line.
        container: settings of the run, as its checkpoint has them.
    """
    before = settings.from_container(container)
    others = [
        n
        for n in settings.FREE_BUT_SHAPING
        if settings.value(before, n) != settings.value(config, n)
    ]
    return next(iter([*differences(config, None, container), *sorted(others)]), None)


def check_changes(
    changed: dict[str, tuple[Any, Any]],
    path: Path,
    *,
    allowed: bool,
    within_epoch: bool,
    monitor: str,
) -> None:
    """Refuses changed settings that a run cannot go on with, and warns of the others.

    Args:
        changed: of `differences`.
        path: of the checkpoint.
        allowed: whether `training.allow_changes` asks for them.
        within_epoch: whether the checkpoint was made between two steps of an epoch.
        monitor: the metric that its run chooses the best epoch by.

    Raises:
        InputError: names them, and what to do.
    """
    fixed = [name for name in changed if setting_keys.keys()[name].facts["resume"] == "fixed"]
    if fixed:
        raise InputError(
            f"{path}: its run had other settings: {_listed(changed, fixed)}; these cannot "
            "change within a run\nLeave them as they were, or start a new run (with its weights, "
            f"where the network is the same: model.init_from={path})."
        )
    another_loss = sorted(changed.keys() & LOSS) if monitor.endswith("_loss") else []
    if another_loss:
        raise InputError(
            f"{path}: its run chooses the best epoch by {monitor}, which has other values with "
            f"{_listed(changed, another_loss)}\nLeave it as it was, or start a new run with its "
            f"weights: model.init_from={path}."
        )
    if changed and not allowed:
        raise InputError(
            f"{path}: its run had other settings: {_listed(changed, changed)}\n"
            "Leave them as they were, or training.allow_changes=true to go on with the new ones."
        )
    within = sorted(changed.keys() & BATCHES)
    if within and within_epoch:
        raise InputError(
            f"{path}: made within an epoch, where {', '.join(within)} cannot change\n"
            "A checkpoint of the end of an epoch (epoch=….ckpt) can go on with it."
        )
    for name, (old, new) in changed.items():
        log.warning("%s=%s from here on (before: %s)", name, new, old)


def merged(config: Config, given: frozenset[str] | None, container: dict[str, Any]) -> Config:
    """The run's settings with what the command line names in their place; arguments as above."""
    result = settings.from_container(container)
    for name in list(setting_keys.keys()):
        value = settings.value(config, name)
        named = given is None or name in given
        if named and (value != "auto" or name not in KEPT):
            group, _, leaf = name.rpartition(".")
            setattr(settings.value(result, group) if group else result, leaf, value)
    return result


def _listed(changed: dict[str, tuple[Any, Any]], names: Collection[str]) -> str:
    told = [f"{name}={changed[name][0]} (now {changed[name][1]})" for name in names]
    return listed(told, 4)
