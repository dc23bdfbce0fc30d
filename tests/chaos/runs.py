"""Trainings that are made to fail at random moments, and what they have to come to all the same."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mlops_project.training.checkpoints import load_checkpoint
from mlops_project.training.speed import MEASURED

# A run that uses what has a state: averaged weights, stages that are freed, mixed images, a
# schedule with a warm-up, accumulated batches, a sampler that repeats images, workers, a plateau
# of patience, the best two checkpoints, and one every three steps.
EVERYTHING = (
    "model=timm",
    "model.variant=test_efficientnet",
    "model.pretrained=false",
    "model.dropout_rate=0.3",
    "model.num_classes=7",
    "data.image_size=32",
    "data.batch_size=8",
    "data.num_workers=2",
    "data.sampler=balanced",
    "data.mixup=0.4",
    "data.cutmix=1.0",
    "data.random_erasing=0.3",
    "data.randaugment=5",
    "training.max_epochs=5",
    "training.learning_rate=0.003",
    "training.lr_scheduler=cosine",
    "training.warmup_epochs=1",
    "training.accumulate_grad_batches=2",
    "training.gradient_clip_val=1.0",
    "training.label_smoothing=0.1",
    "training.class_weights=balanced",
    "training.ema_decay=0.9",
    "training.progressive_unfreezing=true",
    "training.unfreeze_schedule=[1,2,3]",
    "training.unfreeze_lr_factor=0.3",
    "training.on_nonfinite=skip",
    "training.save_top_k=2",
    "training.checkpoint_every_n_steps=3",
    "training.log_every_n_steps=1",
    "training.resume_from_checkpoint=auto",
)
START_SHARE = 0.25  # of an undisturbed run's time, before its first step
PATIENCE = 180  # seconds that any process may take
SMALL_DISK = 24 * 2**20  # bytes; a run needs about half of it

processes = multiprocessing.get_context("forkserver")
# Each training starts from a process that has imported all it needs, in a tenth of a second.
processes.set_forkserver_preload(["mlops_project.training.run", "wandb"])


def output_of(folder: Path) -> Path:
    """What the runs in a folder have printed: beside it, where a full disk cannot swallow it."""
    return folder.with_name(f"{folder.name}.txt")


def _train(folder: str, arguments: list[str]) -> None:
    """In a process of its own: the training command, with its output in `output_of(folder)`."""
    output = os.open(output_of(Path(folder)), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.chdir(folder)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["train.py", *arguments]
    # As in a program that was started from a shell, not like this one.
    multiprocessing.set_start_method("fork", force=True)
    from mlops_project.command_line import run_command
    from mlops_project.train import main

    run_command(main)


def start(folder: Path, arguments: list[str]) -> Any:
    """Starts the training command in a folder."""
    process = processes.Process(target=_train, args=(str(folder), arguments))
    process.start()
    return process


def finish(process: Any, folder: Path) -> int:
    """Waits for a training; its exit code."""
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"{folder}: still running after {PATIENCE} s")
    return process.exitcode


@dataclass
class Outcome:
    """What a run has come to.

    Attributes:
        steps: of its optimizer.
        weights: everything in its last checkpoint that training goes on from.
        files: contents of its tables, and the names of its checkpoints.
        scalars: (name, step, value) of all that TensorBoard shows, sorted.
    """

    steps: int
    weights: dict[str, Any]
    files: dict[str, Any]
    scalars: list[tuple[str, int, float]]

    def differences(self, other: Outcome) -> list[str]:
        """Names of what is not the same to the bit."""
        found = [n for n in self.weights if not _same(self.weights[n], other.weights.get(n))]
        found += [n for n in self.files if self.files[n] != other.files.get(n)]
        return found + (["tensorboard"] if self.scalars != other.scalars else [])


def outcome(folder: Path) -> Outcome:
    """Reads what the finished run in a working folder has come to."""
    run = next(folder.glob("models/*/*/results.json")).parent
    last = load_checkpoint(run / "checkpoints/last.ckpt")
    names = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")
    told = folder / f"logs/lightning_logs/{run.parent.name}_{run.name}/metrics.csv"
    return Outcome(
        last["global_step"],
        {name: last[name] for name in (*names, "lr_schedulers")},
        {
            "metrics.csv": (run / "metrics.csv").read_bytes(),
            "lightning_logs": told.read_bytes(),
            "checkpoints": sorted(p.name for p in (run / "checkpoints").iterdir()),
        },
        _scalars(run),
    )


def _scalars(run: Path) -> list[tuple[str, int, float]]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = []
    for path in sorted(run.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                # Speed goes by the clock.
                of_clock = value.tag in MEASURED or value.tag == "hp_metric"
                if not of_clock and not value.tag.startswith("_hparams_"):
                    found.append((value.tag, event.step, value.tensor.float_val[0]))
    return sorted(found)


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(_same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return ours == theirs


@dataclass
class Round:
    """One run that is made to fail several times, and is started again with the same command.

    Attributes:
        folder: its working folder, which is there.
        arguments: of the training command.
        seconds: that an undisturbed run takes; `steps`: of its optimizer.
        random: picks the moments and the damage.
        told: what has happened, for whoever reads of a failure.
    """

    folder: Path
    arguments: list[str]
    seconds: float
    steps: int
    random: random.Random
    hits: int = 0  # times that it was still running
    told: list[str] = field(default_factory=list)

    def disturb(self, kind: str) -> None:
        """Runs the command and makes it fail as `kind` says, at a random moment.

        Raises:
            AssertionError: it did not fail in the way it should.
        """
        before, read = self._steps(), len(self._output())
        process = start(self.folder, self.arguments)
        # Of the time it needs from here, some of which passes before its first step
        left = START_SHARE + (1 - START_SHARE) * (1 - before / self.steps)
        moment = self.random.uniform(0.05, 0.95) * left * self.seconds
        process.join(moment)
        self.told.append(f"{kind} after {moment:.1f} s")
        if process.exitcode is None:
            self.hits += 1
            getattr(self, f"_{kind}")(process)
        self.told.append(f"exit code {process.exitcode}, step {before} -> {self._steps()}")
        self._leaves_nothing_running()
        # A worker whose main process was killed from under it may say so; others have no excuse.
        if kind not in ("kill", "corrupt"):
            assert "Traceback" not in self._output()[read:], f"a traceback after {kind}"

    def complete(self) -> Outcome:
        """Runs the command to its end, if it has not come there."""
        read = len(self._output())
        if not list(self.folder.glob("models/*/*/results.json")):
            code = finish(start(self.folder, self.arguments), self.folder)
            assert code == 0, f"exit code {code} at the end"
        assert "Traceback" not in self._output()[read:], "a traceback at the end"
        return outcome(self.folder)

    def _output(self) -> str:
        path = output_of(self.folder)
        return path.read_text() if path.exists() else ""

    def _kill(self, process: Any) -> None:
        process.kill()
        process.join()

    def _terminate(self, process: Any) -> None:
        number = self.random.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
        os.kill(process.pid, number)
        code = finish(process, self.folder)
        self.told.append(number.name)
        wanted = 130 if number == signal.SIGINT else 143
        assert code in (wanted, 0), f"exit code {code} after {number.name}"

    def _corrupt(self, process: Any) -> None:
        self._kill(process)
        if list(self.folder.glob("models/*/*/results.json")):
            return  # nothing goes on from it any more
        for path in self.folder.glob("models/*/*/checkpoints/last.ckpt"):
            damage(path, self.random)

    def _fill(self, process: Any) -> None:
        """The disk is full from now on, until the run has ended."""
        checkpoints = list(self.folder.glob("models/*/*/checkpoints/*.ckpt"))
        damaged = {path for path in checkpoints if not _readable(path)}  # on purpose, before
        unfinished = set(self.folder.glob("models/**/.*.tmp"))  # by a kill, before
        if os.path.ismount(self.folder):
            ballast = self.folder / "ballast"
            free = shutil.disk_usage(self.folder).free
            # The run may write meanwhile, so that this, too, ends with a full disk.
            with contextlib.suppress(OSError):
                ballast.write_bytes(bytes(max(0, free - self.random.randrange(60_000))))
        else:
            limit = self.random.randrange(60_000)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        read = len(self._output())
        code = finish(process, self.folder)
        told = self._output()[read:]
        assert code == 0 or told.count("error: ") == 1, f"not one message: {told[-500:]}"
        (self.folder / "ballast").unlink(missing_ok=True)
        assert code in (1, 0), f"exit code {code} with a full disk"
        left = set(self.folder.glob("models/**/.*.tmp")) - unfinished
        assert not left, f"{left} are left behind"
        for path in set(self.folder.glob("models/*/*/checkpoints/*")) - unfinished:
            assert path.suffix == ".ckpt", f"{path} is left behind"
            assert path in damaged or _readable(path), f"{path} is damaged"

    def _steps(self) -> int:
        lasts = self.folder.glob("models/*/*/checkpoints/last.ckpt")
        found = []
        for path in lasts:
            try:
                found.append(load_checkpoint(path)["global_step"])
            except Exception:  # damaged on purpose
                continue
        return max(found, default=0)

    def _leaves_nothing_running(self) -> None:
        """No process in this folder is left, at the latest some seconds after the run's end."""
        deadline = time.monotonic() + 15
        while left := _processes_in(self.folder):
            assert time.monotonic() < deadline, f"processes {left} are left running"
            time.sleep(0.2)


def _readable(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except Exception:  # damaged files raise what they like
        return False
    return True


def _processes_in(folder: Path) -> list[int]:
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def damage(path: Path, choose: random.Random) -> None:
    """Damages a file as a failing disk or a broken transfer does."""
    content = bytearray(path.read_bytes())
    if not content:
        return  # it has been damaged before
    kind = choose.choice(["cut", "empty", "flip", "garbage", "zeros", "missing"])
    at = choose.randrange(len(content))
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(content[:at])
    elif kind == "garbage":
        path.write_bytes(choose.randbytes(len(content)))
    elif kind == "flip":
        content[at] ^= 1 << choose.randrange(8)
        path.write_bytes(content)
    else:
        content[at : at + 4096] = bytes(len(content[at : at + 4096]))
        path.write_bytes(content)


def mount_small_disk(folder: Path) -> bool:
    """Makes a folder a disk of its own that is quickly full; False where this is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
