"""When a run saves: after an epoch, every so many steps and minutes, and when it is to end."""

from __future__ import annotations

import logging
import math
import re
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, Timer, WeightAveraging

from mlops_project.config import TrainingConfig
from mlops_project.errors import Interrupted, ProjectError, interrupted_by
from mlops_project.files import link_or_copy
from mlops_project.metrics import monitor_mode
from mlops_project.training.checkpoints import LAST
from mlops_project.training.folders import run_folder_of
from mlops_project.training.logs import positions
from mlops_project.training.nonfinite import NonFinite, weights_are_finite
from mlops_project.training.processes import Agreement
from mlops_project.training.signals import Interruption
from mlops_project.training.tracking import History

log = logging.getLogger("mlops_project")


class Checkpoints(Checkpoint):
    """Keeps the best epochs and, in `last.ckpt`, where the run is.

    `last.ckpt` is written after each epoch (unless save_last=false), every
    `checkpoint_every_n_steps` steps, every `checkpoint_every_minutes` minutes and when a signal has
    asked for the end; always between two optimizer steps. A checkpoint that is no longer among the
    best goes only once a newer `last.ckpt` lies there that knows of it, so that a run can go on
    from what is on the disk at any moment.

    Lightning calls it after all other callbacks, whose state is complete then.

    Args:
        options: what is kept, and when.
        folder: the run's folder; None on processes other than the first.
        history: has the monitored metric's value, and what the loggers are still to be told.
        guard: is asked whether all losses so far are finite.
        interruption: what signals have asked for.
        resumed: the checkpoint that this process has found to go on from.

    Attributes:
        directory: of the checkpoints.
        best: value of the monitored metric for each of the best checkpoints' file names.
        seconds: that the run has taken up to its latest checkpoint, over all interruptions.
        processes: that train together.
        time_is_over: whether `max_time` has ended the run.
    """

    def __init__(
        self,
        options: TrainingConfig,
        folder: Path | None,
        history: History,
        guard: NonFinite,
        interruption: Interruption,
        resumed: str | None = None,
    ) -> None:
        self.options, self.folder, self.history = options, folder, history
        self.guard, self.interruption, self.resumed = guard, interruption, resumed
        self.directory = (folder or Path()) / "checkpoints"
        self.best: dict[str, float] = {}
        self.seconds = 0.0
        self.processes, self.time_is_over = 1, False
        self._logs: dict[str, Any] = {}
        self._started = self._saved = time.monotonic()
        self._saved_step = 0
        self._agreement = Agreement()
        self._warned = False

    @property
    def ranking(self) -> list[Path]:
        """The best checkpoints, the best one first, and `last.ckpt` where none is kept."""
        names = self._ranked(self.best) or [LAST]
        return [self.directory / name for name in names]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.processes = trainer.world_size
        folder: Any = trainer.strategy.broadcast(self.folder)
        self.directory = Path(folder) / "checkpoints"
        if trainer.strategy.broadcast(self.resumed) != self.resumed:
            raise ProjectError(
                "the processes have found different checkpoints to go on from\n"
                "Name one: training.resume_from_checkpoint=PATH"
            )
        split = trainer.datamodule.split_hash()  # type: ignore[attr-defined]
        if trainer.strategy.broadcast(split) != split:
            raise ProjectError(
                "the processes have found different images, or split them differently\n"
                "Every host needs the same images and the same settings."
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning has asked whether there is time left, but not for what: see `on_train_start`.
        trainer.should_stop = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs: Any = trainer.fit_loop.epoch_progress.current
        if epochs.ready == epochs.processed:  # an epoch that has begun gets its validation
            self._stop_in_time(trainer)
        self._agreement.start(trainer, self.options.process_timeout)
        # Each host may have other files beside a checkpoint that it was given.
        self.best = trainer.strategy.broadcast(self.best)
        self._saved_step = trainer.global_step
        # Only now: Lightning has just put its own handlers there.
        self.interruption.defer()
        early = trainer.early_stopping_callback
        if isinstance(early, EarlyStopping):
            # Its state has brought the old patience along. A run that had stopped stays so; more
            # patience lets it go on.
            early.patience = self.options.early_stopping_patience
            if early.wait_count >= early.patience:
                trainer.should_stop = True
            else:
                early.stopped_epoch, early.stopping_reason_message = 0, None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return  # gradients are on their way, and are not saved
        every_steps, every_minutes = (
            self.options.checkpoint_every_n_steps,
            self.options.checkpoint_every_minutes,
        )
        step = trainer.global_step
        due = every_steps is not None and step % every_steps == 0 and step != self._saved_step
        minutes = (time.monotonic() - self._saved) / 60
        late = every_minutes is not None and minutes >= every_minutes
        ending, late = self._agreement.highest(self.interruption.number, late)
        if ending or ((due or late) and self.options.save_last):
            self._save_last(trainer)
        self._end_if_asked(trainer, ending)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.state.fn != "fit":
            return
        ending, _late = self._agreement.highest(self.interruption.number, False)
        if ending:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):
                    # Puts the weights that learn back in their place.
                    callback.on_validation_epoch_end(trainer, pl_module)
            self._save_last(trainer)
            self._end_if_asked(trainer, ending)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_in_time(trainer)
        self._save_if_best(trainer)
        if self.options.save_last or self.options.save_top_k == 0:
            self._save_last(trainer)
        self._drop_others(trainer)
        ending, _late = self._agreement.highest(self.interruption.number, False)
        if ending and not self.options.save_last:
            self._save_last(trainer)
        self._end_if_asked(trainer, ending)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.interruption.raise_at_once()  # all is saved
        self._drop_others(trainer)

    def _stop_in_time(self, trainer: pl.Trainer) -> None:
        """Lets no epoch begin once the time is over, be it in a validation."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        timer = next((c for c in callbacks if isinstance(c, Timer)), None)
        left = timer.time_remaining() if timer is not None else None
        if left is not None and trainer.strategy.broadcast(left <= 0):
            trainer.should_stop = self.time_is_over = True

    def _save_if_best(self, trainer: pl.Trainer) -> None:
        options, metric = self.options, self.options.monitor_metric
        worst = math.inf if monitor_mode(metric) == "min" else -math.inf
        value = self.history.metrics.latest.get(metric, math.nan)
        name = f"epoch={trainer.current_epoch:03d}-{metric}={value:.3f}.ckpt"
        candidates = {**self.best, name: value}
        if math.isnan(value):
            # As bad as can be, but of several such epochs the latest is the best.
            candidates = {name: worst, **self.best}
            if not self._warned:
                self._warned = True
                log.warning(
                    "%s cannot be told in epoch %d (a class without images in the validation "
                    "split?): such an epoch counts as worse than any other",
                    metric,
                    trainer.current_epoch + 1,
                )
        kept = self._ranked(candidates)[: options.save_top_k]
        self.best = {n: v for n, v in candidates.items() if n in kept}
        if name in kept:
            self._save(trainer, name)
            if not self.options.save_last and self.folder is not None:
                # Left by an interruption, and now behind.
                trainer.strategy.remove_checkpoint(self.directory / LAST)

    def _ranked(self, values: dict[str, float]) -> list[str]:
        sign = 1 if monitor_mode(self.options.monitor_metric) == "min" else -1
        return sorted(values, key=lambda name: sign * values[name])

    def _drop_others(self, trainer: pl.Trainer) -> None:
        """Removes the epochs so far that are not among the best, whoever has left them there."""
        if self.folder is None:
            return
        for path in self.directory.glob("epoch=*.ckpt"):
            number = re.match(r"epoch=(\d+)", path.name)
            past = number is not None and int(number[1]) <= trainer.current_epoch
            if past and path.name not in self.best:
                trainer.strategy.remove_checkpoint(path)

    def _save_last(self, trainer: pl.Trainer) -> None:
        self._save(trainer, LAST)
        self._saved, self._saved_step = time.monotonic(), trainer.global_step

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        self.guard.check(wait=True)
        self.history.catch_up(trainer, wait=True)
        if not weights_are_finite(trainer.lightning_module.state_dict()):
            raise ProjectError(
                f"weights are not finite after step {trainer.global_step}: nothing of it is saved\n"
                "Try a tenth of the learning rate, or training.on_nonfinite=skip."
            )
        now = time.monotonic()
        self.seconds, self._started = self.seconds + now - self._started, now
        if self.folder is not None:
            self._logs = positions(trainer.loggers, self.folder)
        trainer.save_checkpoint(self.directory / name)

    def _end_if_asked(self, trainer: pl.Trainer, number: int) -> None:
        if number:
            name, epoch = signal.Signals(number).name, trainer.current_epoch + 1
            raise Interrupted(
                f"{name}: epoch {epoch}, step {trainer.global_step} is saved",
                interrupted_by(number)[1],
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": dict(self.best),
            "seconds": self.seconds,
            "processes": self.processes,
            "logs": dict(self._logs),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = run_folder_of(self.resumed) if self.resumed is not None else self.folder
        elsewhere = own is None or own.absolute() != self.directory.parent.absolute()
        beside = Path(str(self.resumed)).parent if elsewhere else self.directory
        best = state_dict["best"]
        # One that is gone has been pushed out by an epoch that this run is about to repeat.
        self.best = {name: value for name, value in best.items() if (beside / name).is_file()}
        self.seconds = state_dict["seconds"]
        if self.folder is None or not elsewhere:
            return
        for name in self.best:  # a new run from another one's checkpoint
            link_or_copy(beside / name, self.directory / name)
        if lost := sorted(best.keys() - self.best.keys()):
            log.warning(
                "%s: the best epochs before it do not lie beside it (%s): the best one is chosen "
                "from those that follow",
                self.resumed,
                ", ".join(lost),
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        loop: Any = trainer.fit_loop
        epochs = loop.epoch_progress.current
        trained = loop.epoch_loop._num_ready_batches_reached()
        if trained and epochs.processed < epochs.ready:
            validate_first(checkpoint["loops"]["fit_loop"])


def validate_first(loops: dict[str, Any]) -> None:
    """Makes a run that resumes after the last batch of an epoch begin with its validation.

    Lightning would take the epoch for done, without its validation and metrics. It goes to the
    validation where the loops' counters say that all batches are completed, and that the
    validation has started on its first batch.

    Args:
        loops: state of Lightning's fit loop, changed in place.
    """
    batches = loops["epoch_loop.batch_progress"]
    for counts in (batches["total"], batches["current"]):
        counts["completed"] = counts["processed"]
    validation = loops["epoch_loop.val_loop.batch_progress"]
    validation["total"].update(ready=1, started=1, processed=0, completed=0)
    validation["current"].update(ready=1, started=1, processed=0, completed=0)
    validation["is_last_batch"] = False
