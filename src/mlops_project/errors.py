"""The errors a user meets, and the exit code each one ends the program with.

A message has one to three lines: what is wrong, then what to do next. Anything else that
escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import signal
from types import FrameType
from typing import NoReturn

EXIT_FAILED = 1
EXIT_USER_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_TERMINATED = 143  # 128 + SIGTERM


class ProjectError(Exception):
    """An expected failure with a message written for the user (a full disk, a missing network)."""

    exit_code = EXIT_FAILED


class InputError(ProjectError):
    """What the user handed over cannot be used: a setting, a folder, a table, a checkpoint."""

    exit_code = EXIT_USER_INPUT


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's or the machine's memory was too small; PyTorch has no one class for both."""
    if isinstance(error, RuntimeError):
        said = str(error)
        return any(words in said for words in _TOO_LITTLE_MEMORY)
    return isinstance(error, MemoryError)


def worker_failure(error: BaseException) -> str | None:
    """What to tell where a process that prepares batches has died, or had no room to pass one on.

    None where the error is another one. PyTorch raises it wherever the program happens to be.
    """
    reason = str(error).strip().partition("\n")[0]
    # What a worker itself has raised comes as "Caught … in DataLoader worker".
    if not reason.startswith(("DataLoader worker", "unable to write to file")):
        return None
    return (
        f"a process that prepares batches has failed ({reason.rstrip('. ')[:160]})\n"
        "A smaller data.num_workers, or 0, needs less memory; in a container it also takes room in "
        "/dev/shm (docker run --shm-size=8g)."
    )


# Of CUDA and Linux, of allocators on other systems and of C++, of cuDNN and cuBLAS
_TOO_LITTLE_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "ALLOC_FAILED",
)


# What asks a program to end. SLURM sends SIGUSR1 some time before it does, where it is told to
# (--signal=USR1@120).
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(ProjectError):
    """A signal asked for the end, and the work is in good order.

    Args:
        message: what happened, and how to go on.
        exit_code: 130 after Ctrl-C, else 143.
    """

    def __init__(self, message: str, exit_code: int = EXIT_TERMINATED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Signalled(KeyboardInterrupt):
    """A signal, raised where it arrives; no Exception, so that nobody takes it for a failure.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


_arrived: list[int] = []


def raise_for_signal(number: int, frame: FrameType | None) -> NoReturn:
    """A signal's handler: raises `Signalled`."""
    _arrived.append(number)
    raise Signalled(number)


def signal_arrived() -> int:
    """The first signal for which `raise_for_signal` has raised; 0: none.

    Python and some libraries drop what is raised within their own callbacks.
    """
    return _arrived[0] if _arrived else 0


def forget_signals() -> None:
    """Clears the record of received signals, once they have ended what they were sent to."""
    _arrived.clear()


def interrupted_by(number: int) -> tuple[str, int]:
    """What to tell of a signal (0: none that is known), and the exit code after it."""
    if number in (0, signal.SIGINT):
        return "interrupted", EXIT_INTERRUPTED
    return f"ended by {signal.Signals(number).name}", EXIT_TERMINATED


def killed_by(number: int) -> str:
    """What to tell of a process that a signal has ended."""
    name = signal.Signals(number).name
    return f"killed by {name}" + (" (was the memory used up?)" if name == "SIGKILL" else "")


_FILE_ADVICE = {
    errno.ENOMEM: "the machine has too little memory: end other programs, or use fewer workers",
    errno.EFBIG: "the disk allows no larger files: choose another one",
    errno.ENOSPC: "the disk is full: make room, then go on",
    errno.EDQUOT: "your quota is used up: make room, then go on",
    errno.EROFS: "this folder is read-only: run the command in a folder that can be written to",
    errno.EACCES: "no permission: run the command in a folder that you may write to",
    errno.EPERM: "no permission: run the command in a folder that you may write to",
    errno.ENOTDIR: "a file is where a folder has to be: move it away",
    errno.EEXIST: "a file is where a folder has to be: move it away",
    errno.ESTALE: "it has vanished from the network drive: mount it again",
    errno.EIO: "the disk cannot be read or written: it may be broken",
    errno.ENAMETOOLONG: "this name is too long: choose a shorter one",
    errno.ELOOP: "links that lead in a circle: name another path",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n) or use fewer workers",
}


def file_failure(error: OSError) -> str | None:
    """One line on what is wrong with a file or disk, and what to do; None where it may be a bug."""
    advice = _FILE_ADVICE.get(error.errno or 0)
    if advice is None:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{advice} ({error.strerror})"
