"""What ends a training, told as what it is, with what to do about it and how to go on."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mlops_project.config import Config
from mlops_project.errors import (
    Interrupted,
    ProjectError,
    file_failure,
    interrupted_by,
    is_out_of_memory,
    signal_arrived,
    worker_failure,
)
from mlops_project.training import checkpoints, processes
from mlops_project.training.saving import Checkpoints


@contextmanager
def retelling(keeper: Checkpoints, config: Config) -> Iterator[None]:
    """Gives the errors that end a training a message for the user, with how to go on.

    Raises:
        Interrupted: a signal has ended it.
        ProjectError: the memory, another process, a file or a disk has; any other error stays as
            it is.
    """
    hook = threading.excepthook
    # TensorBoard's thread has a full disk or a vanished folder as well; this one tells of it.
    threading.excepthook = lambda told: None if _is_of_files(told) else hook(told)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        # Lightning turns a signal into an exit code of its own.
        told, code = interrupted_by(signal_arrived())
        raise Interrupted(told + go_on(keeper), code) from None
    except Interrupted as error:
        raise Interrupted(f"{error}{go_on(keeper)}", error.exit_code) from None
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            further = go_on(keeper, " training.allow_changes=true SETTING")
            raise ProjectError(memory_advice(config) + further) from error
        other = processes.failure_of_another(error) or worker_failure(error)
        if other is None:
            raise
        raise ProjectError(other + go_on(keeper)) from error
    except OSError as error:
        message = file_failure(error)
        if isinstance(error, FileNotFoundError):
            place = error.filename or keeper.folder
            message = f"{place}: it has vanished: was its folder moved or deleted meanwhile?"
        if message is None and isinstance(error, ConnectionError) and config.wandb.enabled:
            message = f"Weights & Biases has ended ({error})"  # which watches the gradients
        if message is None:
            raise
        raise ProjectError(message + go_on(keeper)) from error
    finally:
        threading.excepthook = hook


@contextmanager
def retelling_single_images(config: Config) -> Iterator[None]:
    """Tells of a batch of one image that has features of a single pixel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ProjectError(
            f"data.batch_size={config.data.batch_size}: a batch of a single image cannot be "
            f"normalised by this network at data.image_size={config.data.image_size}\n"
            "Try a data.batch_size that leaves no single image over; some networks take one if the "
            "images are larger."
        ) from error


def _is_of_files(told: threading.ExceptHookArgs) -> bool:
    return issubclass(told.exc_type, OSError)


def go_on(keeper: Checkpoints, further: str = "") -> str:
    """How to continue a run, as a line to add to a message; nothing without a checkpoint.

    Args:
        keeper: of the run's checkpoints.
        further: what the command needs besides.
    """
    path = keeper.directory / checkpoints.LAST
    if not path.is_file() or not processes.is_first():  # the first one tells of the others
        return ""
    return (
        "\nTo go on from the latest checkpoint: uv run src/mlops_project/train.py "
        f"training.resume_from_checkpoint={path}{further}"
    )


def memory_advice(config: Config) -> str:
    """What to try when the memory is too small, with values that keep the effective batch size."""
    size, parts = int(config.data.batch_size), config.training.accumulate_grad_batches
    half = size // 2
    smaller = "one of"
    if half:
        times = math.ceil(size / half)
        about = "" if half * times == size else "about "
        smaller = (
            f"data.batch_size={half} training.accumulate_grad_batches={parts * times} "
            f"(for {about}the same steps, from the start or an epoch=….ckpt),"
        )
    return (
        f"out of memory at data.batch_size={size}, data.image_size={config.data.image_size}; the "
        f"epochs done are kept. Try {smaller}\n"
        "training.enable_checkpointing=true, a smaller data.image_size or a smaller network "
        "(model=efficientnet model.variant=b0)"
    )
