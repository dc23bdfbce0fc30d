"""Weights & Biases: online where there is an account and a network, else offline with one line."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger
from torch import nn

from mlops_project.config import Config
from mlops_project.errors import InputError, ProjectError
from mlops_project.printable import printable

log = logging.getLogger("mlops_project")

PROBE_SECONDS = 3.0  # wandb.init itself waits 90 s for a server that is not there
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
PACKAGE = Path(__file__).resolve().parents[1]


class _Logger(WandbLogger):
    """Does not end a training because Weights & Biases' own process has ended."""

    ended = False

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self._try(super().log_metrics, metrics, step)

    def log_hyperparams(self, params: Any) -> None:
        self._try(super().log_hyperparams, params)

    def _try(self, log_all: Callable[..., None], *told: Any) -> None:
        if self.ended:
            return
        try:
            log_all(*told)
        except OSError as error:
            self.ended = True
            _warn_of_the_end(error)


def _warn_of_the_end(error: Exception) -> None:
    log.warning(
        "Weights & Biases has ended (%s): the run goes on without it",
        printable(str(error), 100) or type(error).__name__,
    )


def build_logger(config: Config, folder: Path, run_id: str | None = None) -> WandbLogger:
    """A logger whose run has the settings' project, entity, name and tags.

    Args:
        config: settings of the run.
        folder: the run's, which names it where `wandb.name` does not.
        run_id: of the run to go on with; None: a new one.
    """
    import wandb

    reason = None if os.environ.get("WANDB_MODE") else _why_offline()
    if reason:
        log.warning(
            "Weights & Biases: %s, so the run is kept offline; `uv run wandb sync` sends it", reason
        )
    options = config.wandb
    return _Logger(
        project=options.project,
        entity=options.entity,
        name=options.name or f"{folder.parent.name}-{folder.name}",
        tags=options.tags or None,
        id=run_id,
        resume="allow" if run_id else None,
        # `offline=` would set an environment variable, too late and for all later runs.
        mode="offline" if reason else None,
        settings=wandb.Settings(console="off"),
    )


def _why_offline() -> str | None:
    """Why no server can be reached; None if one can."""
    import wandb
    from wandb.errors import AuthenticationError, UsageError

    try:
        told = wandb.setup().settings
        address = urlsplit(told.base_url)
    except (UsageError, ValueError):
        return None  # `watch` tells what is wrong with the environment's settings
    if told.mode in ("offline", "disabled"):  # by `wandb offline` or `wandb disabled`
        return None
    # Behind a proxy only that one knows.
    if not any(os.environ.get(n) for n in PROXIES):
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname or "", port), PROBE_SECONDS).close()
        except OSError:
            return f"{address.hostname} cannot be reached"
    try:
        known = wandb.login(prompt=False, verify=False)
    except (AuthenticationError, UsageError, ValueError):
        return None  # as above
    return None if known else "no account is known (`uv run wandb login`)"


def watch(logger: WandbLogger, config: Config, network: nn.Module) -> None:
    """Starts the run, and what `wandb.log_code` and `wandb.watch_model` ask for.

    Raises:
        InputError: a name that Weights & Biases does not allow.
        ProjectError: its server refuses the run.
    """
    from wandb.errors import Error, UsageError

    try:
        run: Any = logger.experiment
    except (Error, ValueError) as error:  # its settings check themselves with pydantic
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = " ".join(lines[1:3] if isinstance(error, ValueError) and lines[1:] else lines[:1])
        kind = InputError if isinstance(error, (UsageError, ValueError)) else ProjectError
        raise kind(
            f"Weights & Biases refuses the run: {printable(reason, 200)}\n"
            "Correct the wandb settings or log in again (`uv run wandb login`); WANDB_MODE=offline "
            "or wandb.enabled=false train without its server."
        ) from error
    if config.wandb.log_code:
        run.log_code(str(PACKAGE), name="source")
    if config.wandb.watch_model != "none":
        steps = config.training.log_every_n_steps
        logger.watch(network, log=config.wandb.watch_model, log_freq=steps, log_graph=False)


def abandon() -> None:
    """Ends a run that did not come to its end; what it has logged is kept."""
    import wandb

    # It has ended already; or it waits for its server, and somebody does not wait for that.
    with suppress(OSError, KeyboardInterrupt):
        if wandb.run is not None:
            wandb.finish(exit_code=1)


def finish(logger: WandbLogger, config: Config, checkpoint: Path, test: dict[str, float]) -> None:
    """Adds the test metrics and, with `wandb.log_model`, the checkpoint; ends the run."""
    import wandb

    if isinstance(logger, _Logger) and logger.ended:
        return
    run: Any = logger.experiment
    try:
        run.summary.update(test)
        if config.wandb.log_model:
            artifact = wandb.Artifact(f"model-{run.id}", type="model")
            artifact.add_file(str(checkpoint))
            run.log_artifact(artifact)
        run.finish()
    except OSError as error:
        _warn_of_the_end(error)
