"""The errors a user meets, and the exit code each one ends the program with.

A message has one to three lines: what is wrong, then what to do next. Anything else that
escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

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


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU's or the machine's memory was too small; PyTorch has no one class for both."""
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


class Terminated(ProjectError):
    """SIGTERM ended the program in good order."""

    exit_code = EXIT_TERMINATED
