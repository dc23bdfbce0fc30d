"""How every command ends: with a message and an exit code that say what happened."""

from __future__ import annotations

import logging
import os
import re
import select
import signal
import sys
from collections.abc import Callable
from logging.handlers import MemoryHandler
from typing import TYPE_CHECKING, NoReturn

from mlops_project.errors import (
    ENDING_SIGNALS,
    EXIT_FAILED,
    ProjectError,
    Signalled,
    file_failure,
    interrupted_by,
    is_out_of_memory,
    raise_for_signal,
    worker_failure,
)
from mlops_project.printable import printable
from mlops_project.threads import wait_briefly

if TYPE_CHECKING:
    import typer

wait_briefly()

log = logging.getLogger("mlops_project")

OUT_OF_MEMORY = "out of memory: other programs on this machine may have taken most of it"


def run_command(main: Callable[[], int | None], *, out_of_memory: str = OUT_OF_MEMORY) -> NoReturn:
    """Runs a command and ends the process with its exit code.

    0 done, 1 failed, 2 the user's input, 130 Ctrl-C, 143 SIGTERM. What a user or the machine can
    cause ends with a message; anything else is a bug and shows its traceback.

    Args:
        main: returns its exit code, None for 0.
        out_of_memory: what to tell where the machine's or the GPU's memory was too small.
    """
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under `nohup`
            signal.signal(number, raise_for_signal)
    sys.unraisablehook = _tell_unraisable
    try:
        code = main() or 0
        sys.stdout.flush()
    except ProjectError as error:
        code = _fail(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        code = _fail(*interrupted_by(getattr(error, "number", 0)))
    except BrokenPipeError:
        if not _reader_has_gone():
            _log_crash()
            raise
        code = 0
    except (RuntimeError, MemoryError) as error:
        message = out_of_memory if is_out_of_memory(error) else worker_failure(error)
        if message is None:
            _log_crash()
            raise
        code = _fail(message, EXIT_FAILED)
    except OSError as error:
        message = file_failure(error)
        if message is None:
            _log_crash()
            raise
        code = _fail(message, EXIT_FAILED)
    except Exception:
        _log_crash()
        raise
    finally:
        _end_workers()
    try:
        sys.stdout.flush()
    except OSError:
        # Python would try once more at exit, and end with a code of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _reader_has_gone() -> bool:
    """Whether nobody reads the pipe any more that this process writes to, as after `| head`."""
    pipes = select.poll()
    for number in (1, 2):
        pipes.register(number, 0)
    return any(event & select.POLLERR for _, event in pipes.poll(0))


def _tell_unraisable(told: sys.UnraisableHookArgs) -> None:
    """Python's own words about what a callback raised.

    But not of a signal, which `errors` remembers, nor at exit of a connection that has broken, as
    that of Weights & Biases does if its process was ended.
    """
    if not issubclass(told.exc_type, (Signalled, ConnectionError)):
        sys.__unraisablehook__(told)


def _end_workers() -> None:
    """Ends the processes that prepared batches, where an error has left them waiting for more.

    They ignore SIGTERM, by which Python would end them, and wait for them, at its own end.
    """
    if "multiprocessing" not in sys.modules:
        return
    import multiprocessing

    workers = multiprocessing.active_children()
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes this for a failure
    for worker in workers:
        worker.kill()


def typer_app(text: str | None = None) -> typer.Typer:
    """A command whose options typer reads, or several commands.

    Args:
        text: what several commands are for; a single one is told by its docstring.
    """
    from typer import Typer

    return Typer(
        help=text,
        no_args_is_help=text is not None,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",  # which fills the lines of a docstring's paragraphs
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run_typer(app: typer.Typer, *, out_of_memory: str = OUT_OF_MEMORY) -> NoReturn:
    """`run_command` for a command whose options typer reads."""
    from typer import Abort

    # Shells leave the ~ of `--option=~/folder` as it is.
    sys.argv[1:] = [re.sub(r"^(--[a-z-]+=)(~.*)$", _expanded, arg) for arg in sys.argv[1:]]

    def main() -> int | None:
        try:
            return app(standalone_mode=False)
        except Abort:
            raise KeyboardInterrupt from None
        except Exception as error:
            # typer brings a click of its own, whose exceptions have no public name.
            if not (hasattr(error, "show") and hasattr(error, "exit_code")):
                raise
            error.show()
            return error.exit_code

    run_command(main, out_of_memory=out_of_memory)


def _expanded(option: re.Match[str]) -> str:
    return option[1] + os.path.expanduser(option[2])


def _fail(message: str, code: int) -> int:
    # A message may quote names of files, which hold any byte but two.
    message = "\n".join(printable(line, 2000) for line in message.splitlines())
    if any(not isinstance(h, (MemoryHandler, logging.NullHandler)) for h in log.handlers):
        log.error(message)
    else:
        print(f"error: {message}", file=sys.stderr)
    return code


def _log_crash() -> None:
    """Puts the traceback into the log file; Python itself prints it."""
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            record = log.makeRecord(
                log.name, logging.CRITICAL, "", 0, "crashed", (), sys.exc_info()
            )
            handler.emit(record)
