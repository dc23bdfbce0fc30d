"""One hostile input at a time: what became of it, and what it touched outside its folder.

An audit hook sees every file that Python opens for writing, every rename, removal, process and
connection; what leads outside is noted and prevented. It cannot see what a C library writes on its
own, so the folder's neighbours are compared as well.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops_project.data.decode import UnreadableImage
from mlops_project.errors import ProjectError

SECONDS = 20.0  # of an input: a fifo that nobody writes to, or a pattern that backtracks
PEAK_BYTES = 1536 * 2**20  # what the process may grow by for an input
ADDRESS_BYTES = 6 * 2**30  # beyond it an allocation fails, so that a bomb spares the machine
MESSAGE_LINES, MESSAGE_CHARACTERS = 8, 2000  # a list of the accepted layouts is the longest

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# The arguments of an audit event that are paths it changes, and where its dir_fd arguments are.
CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "os.setxattr": ((0, None),),
    "shutil.rmtree": ((0, None),),
}
PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")


class TooSlow(BaseException):
    """The input took longer than `SECONDS`; not an Exception, so that nothing takes it for one."""


class Forbidden(BaseException):
    """What the input was about to do outside its folder."""


@dataclass
class Watch:
    """What is allowed now; `seen` is what was done, or about to be done, in spite of it."""

    folder: Path | None = None
    seen: list[str] = field(default_factory=list)


_watch = Watch()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watch.folder is None:
        return
    offence = _offence(event, arguments, _watch.folder)
    if offence:
        _watch.seen.append(offence)
        raise Forbidden(offence)


def _offence(event: str, arguments: tuple[Any, ...], folder: Path) -> str | None:
    if event == "open":
        path, mode, flags = arguments
        if set(mode or "") & set("wax+") or (flags or 0) & WRITING:
            return None if _inside(path, None, folder) else f"{event} {path!r} {mode}"
    elif event in CHANGES:
        for index, place in CHANGES[event]:
            handle = arguments[place] if place is not None and place < len(arguments) else None
            # Removing or renaming a link leaves alone what it leads to.
            follows = event in ("os.truncate", "os.chmod", "os.chown", "os.utime", "os.setxattr")
            if not _inside(arguments[index], handle, folder, follows):
                return f"{event} {arguments[index]!r}"
    elif event in PROCESSES:
        return f"{event} {arguments[0] if arguments else ''!r}"
    elif event == "socket.connect":
        host = arguments[1][0] if isinstance(arguments[1], tuple) else arguments[1]
        if host not in ("127.0.0.1", "::1"):
            return f"{event} {host!r}"
    return None


def _inside(path: Any, handle: int | None, folder: Path, follows: bool = True) -> bool:
    if isinstance(path, int):
        return True  # a file that is open already
    text = os.fsdecode(path)
    if handle is not None and handle >= 0:
        text = os.path.join(os.readlink(f"/proc/self/fd/{handle}"), text)
    if text == os.devnull or os.path.abspath(text) == str(folder):
        return True
    real = os.path.realpath(os.path.dirname(os.path.abspath(text)))
    real = os.path.realpath(text) if follows else real
    return os.path.commonpath([real, folder]) == str(folder)


sys.addaudithook(_hook)


@dataclass
class Outcome:
    """What became of one input: "accepted", "refused", "traceback" or "limit"."""

    kind: str
    detail: str
    outside: list[str]


def attempt(action: Callable[[Path], object], folder: Path) -> Outcome:
    """Runs `action(folder)`, which may change nothing but the folder.

    Args:
        action: uses one input as the project does; it raises what the project raises.
        folder: an existing folder, the only thing in its own parent folder.
    """
    folder = Path(os.path.realpath(folder))
    kind, detail = "accepted", ""
    before, started = _peak(reset=True), time.perf_counter()
    try:
        with contextlib.chdir(folder), _limits(), _watched(folder):
            action(folder)
    except (ProjectError, UnreadableImage) as error:
        kind, detail = "refused", str(error)
        if not _is_message(detail):
            kind, detail = "traceback", f"no message of a few lines: {detail[:500]!r}"
    except TooSlow:
        kind, detail = "limit", "".join(traceback.format_exc()[-1500:])
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        kind, detail = "traceback", traceback.format_exc()[-2500:]
    grown, seconds = _peak() - before, time.perf_counter() - started
    if grown > PEAK_BYTES:
        kind, detail = "limit", f"{grown / 2**20:.0f} MiB of memory in {seconds:.1f} s; {detail}"
    outside, _watch.seen = _watch.seen, []
    outside += [f"appeared: {p}" for p in folder.parent.iterdir() if p != folder]
    return Outcome(kind, detail, outside)


def _is_message(text: str) -> bool:
    lines = text.splitlines()
    return 1 <= len(lines) <= MESSAGE_LINES and len(text) <= MESSAGE_CHARACTERS


@contextlib.contextmanager
def _watched(folder: Path) -> Iterator[None]:
    _watch.folder = folder
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        _watch.folder = None
        sys.dont_write_bytecode = written


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Ends an input that takes too long, and fails its allocations beyond `ADDRESS_BYTES`."""

    def stop(*_: object) -> None:
        raise TooSlow

    assert threading.current_thread() is threading.main_thread()
    old = signal.signal(signal.SIGALRM, stop)
    # The last resort, for a C function that never returns.
    faulthandler.dump_traceback_later(6 * SECONDS, exit=True, file=sys.__stderr__ or 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ADDRESS_BYTES, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, old)


def _status(name: str) -> int:
    """A size of this process from Linux's accounts, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def _peak(reset: bool = False) -> int:
    """The most memory this process has used since the last reset, bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmHWM")
