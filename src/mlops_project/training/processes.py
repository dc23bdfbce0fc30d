"""Several processes that train together: they agree on when to save, and none outlives the others.

Lightning starts them (or torchrun, or SLURM) and torch.distributed connects them. Here is what both
leave open: that a process which dies or hangs ends the job soon, and with its own error. What a
process has to say it leaves in a folder that the first one has made; the first one tells the user.
"""

from __future__ import annotations

import datetime
import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import psutil
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

from mlops_project.errors import EXIT_FAILED, InputError, ProjectError, killed_by
from mlops_project.training.signals import leave_at_once

REPORTS = "MLOPS_PROJECT_REPORTS"  # environment: folder for last words
FIRST = "MLOPS_PROJECT_FIRST"  # environment: id of the process that starts the others
START_SECONDS = 600  # for all to arrive: the slowest may still have to read its modules
GRACE_SECONDS = 8.0  # what the first process has to notice by itself that another has gone


def is_first() -> bool:
    """Whether this is the only process of the run, or the one that writes its files."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def placement() -> tuple[int, int] | None:
    """(processes on each host, hosts) where torchrun or SLURM has started this process, else None.

    Raises:
        InputError: SLURM has not as many tasks on each host.
    """
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, int(os.environ["WORLD_SIZE"]) // here
    if SLURMEnvironment.detect() and "SLURM_PROCID" in os.environ:
        tasks, hosts = (int(os.environ.get(f"SLURM_{n}", "1")) for n in ("NTASKS", "NNODES"))
        if tasks % hosts:
            raise InputError(
                f"SLURM has started {tasks} tasks on {hosts} hosts; each needs as many\n"
                "(sbatch --ntasks-per-node=…, one for each GPU)"
            )
        return tasks // hosts, hosts
    return None


def gather(values: torch.Tensor) -> torch.Tensor:
    """The values of all processes, one after the other along the first dimension."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torchmetrics.utilities.distributed import gather_all_tensors

        return torch.cat(gather_all_tensors(values))
    return values


class Agreement:
    """Brings the processes to the same decision, without waiting for a GPU."""

    def __init__(self) -> None:
        self._group: Any = None

    def start(self, trainer: pl.Trainer, timeout: int) -> None:
        """Connects the processes, if there are several.

        Args:
            timeout: how long one of them may be late, in everything they do together, seconds.
        """
        if trainer.world_size > 1:
            patience = datetime.timedelta(seconds=timeout)
            self._group = torch.distributed.new_group(backend="gloo", timeout=patience)
            if torch.distributed.get_backend() == "gloo":
                _set_timeout(patience)  # NCCL's ends the process, and says nothing

    def highest(self, number: int, flag: bool) -> tuple[int, bool]:
        """The largest number of all processes, and the flag of the first one."""
        if self._group is None:
            return number, flag
        values = torch.tensor([number, flag and torch.distributed.get_rank() == 0])
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return int(values[0]), bool(values[1])


class _Launcher(_SubprocessScriptLauncher):
    """Starts the processes and watches them; Lightning's own watch kills all without a word."""

    def launch(
        self, function: Callable, *args: Any, trainer: pl.Trainer | None = None, **kwargs: Any
    ) -> Any:
        if not self.cluster_environment.creates_processes_externally and not self.procs:
            tell(REPORTS, tempfile.mkdtemp(prefix="mlops_project_"))
            tell(FIRST, str(os.getpid()))
            self.cluster_environment.validate_settings(
                num_devices=self.num_processes, num_nodes=self.num_nodes
            )
            _ending.clear()
            self._call_children_scripts()
            _started.extend(self.procs)
            threading.Thread(target=_watch, daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


def _set_timeout(patience: datetime.timedelta) -> None:
    """Sets how long processes wait for each other; a private function in older versions."""
    if hasattr(torch.distributed, "set_timeout"):
        torch.distributed.set_timeout(patience)
    else:
        torch.distributed.distributed_c10d._set_pg_timeout(patience)


class WatchedDDP(DDPStrategy):
    """DistributedDataParallel in processes that are watched."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)


class WatchedFSDP(FSDPStrategy):
    """Fully sharded data parallel in processes that are watched."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)


_started: list[subprocess.Popen] = []  # by this process, which is the first one
_told: set[str] = set()  # variables of the environment that are for them
_ending = threading.Event()  # the first process is on its way out, and needs no watch


def tell(name: str, value: str) -> None:
    """Tells the processes that this one will start, by a variable of their environment."""
    os.environ[name] = value
    _told.add(name)


def is_started_by_another() -> bool:
    """Whether the first process has started this one."""
    return REPORTS in os.environ and int(os.environ.get("LOCAL_RANK", "0")) > 0


def join_the_watch() -> None:
    """Lets a process that another one has started end with it, and tell where it hangs."""
    if not is_started_by_another():
        return
    stack = (_folder() / f"stack_{os.environ['LOCAL_RANK']}").open("w")
    faulthandler.register(signal.SIGUSR2, file=stack, all_threads=False)
    first = int(os.environ[FIRST])  # it may be gone by now

    def follow() -> None:
        while os.getppid() == first:
            time.sleep(1)
        leave_at_once(EXIT_FAILED)

    threading.Thread(target=follow, daemon=True).start()


def leave_word(error: BaseException) -> None:
    """Hands an error to the process that has started this one, and ends."""
    if isinstance(error, ProjectError):
        text, code = str(error), error.exit_code
    else:
        text, code = "".join(traceback.format_exception(error)), EXIT_FAILED
    (_folder() / f"error_{os.environ['LOCAL_RANK']}").write_text(text, encoding="utf-8")
    parent = psutil.Process(os.getppid())
    if _is_timeout(text) and parent.status() == psutil.STATUS_STOPPED:
        parent.kill()  # a stopped process would be waited for forever
    sys.stdout.flush()
    sys.stderr.flush()
    leave_at_once(code)


def failure_of_another(error: BaseException) -> str | None:
    """What the other processes have died of, where that explains the first one's own error.

    Waits some seconds for them; then those that hang are asked where, and are ended.
    """
    if not _started:
        return None
    _ending.set()
    deadline = time.monotonic() + GRACE_SECONDS
    timed_out = _is_timeout(str(error))
    while not timed_out and time.monotonic() < deadline and all(p.poll() is None for p in _started):
        time.sleep(0.1)
    for rank, process in enumerate(_started, start=1):
        if process.poll() not in (None, 0):
            return f"process {rank} has ended: {_last_words(rank, process)}"
    if timed_out:
        for rank, process in enumerate(_started, start=1):
            if process.poll() is None:
                return f"process {rank} does not answer; {_where(rank, process)}"
    return None


def stop_watching() -> None:
    """Ends the first process's watch over the others, where it is on its way out by itself."""
    _ending.set()


def end_others() -> None:
    """Ends the processes that the first one has started, and waits for them."""
    stop_watching()
    for process in _started:
        try:
            process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if REPORTS in _told:
        shutil.rmtree(_folder(), ignore_errors=True)
    _started.clear()
    while _told:
        os.environ.pop(_told.pop(), None)


def _is_timeout(text: str) -> bool:
    """Whether an error of torch.distributed says that another process is late; it has no class."""
    return "timed out" in text.lower()


def _watch() -> None:
    """A thread of the first process: ends the job where its main thread cannot."""
    while not _ending.wait(0.5):
        failed = [(r, p) for r, p in enumerate(_started, 1) if p.poll() not in (None, 0)]
        if not failed or _ending.wait(GRACE_SECONDS):
            continue
        rank, process = failed[0]
        frames = traceback.format_stack(sys._current_frames()[threading.main_thread().ident or 0])
        print(
            f"error: process {rank} has ended: {_last_words(rank, process)}\n"
            f"process 0 was at:\n{''.join(frames[-3:])}",
            file=sys.stderr,
            flush=True,
        )
        leave_at_once(EXIT_FAILED)


def _folder() -> Path:
    return Path(os.environ[REPORTS])


def _last_words(rank: int, process: subprocess.Popen) -> str:
    path = _folder() / f"error_{rank}"
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    if process.returncode < 0:
        return killed_by(-process.returncode)
    return f"exit code {process.returncode}"


def _where(rank: int, process: subprocess.Popen) -> str:
    """The place where a process hangs, which is ended then."""
    path = _folder() / f"stack_{rank}"
    stopped = psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
    process.send_signal(signal.SIGUSR2)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and not stopped and not path.stat().st_size:
        time.sleep(0.1)
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    process.kill()
    if stopped:
        return "it was stopped (SIGSTOP)"
    lines = text.strip().splitlines()[1:4]
    return "it was at\n" + "\n".join(lines) if lines else "it does not say where it was"
