"""What the tests of training share: images that are decoded already, and runs to be disturbed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Disturb = Callable[..., tuple[int, str]]
ENDLESS = ("training.max_epochs=1000", "training.early_stopping_patience=0")


@pytest.fixture(scope="session")
def images(demo_folder: Path) -> tuple[str, str]:
    """Settings that find the images, and those decoded before."""
    return f"data.data_dir={demo_folder}", f"data.cache={demo_folder.parent / 'cache'}"


@pytest.fixture
def here(
    images: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """Enters an empty working folder; settings that find the images."""
    monkeypatch.chdir(tmp_path)
    return images


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds pass on a training's clock: so many that a slow machine's own do not count."""
    real, passed = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + sum(passed))
    return passed.append


@pytest.fixture
def disturb(here: tuple[str, str], command: Callable[..., list[str]]) -> Disturb:
    """Starts an endless training, and does something to it once it has told of some epochs.

    `disturb("epoch 2/", act, *options)` calls `act(process)` at the first line that begins so, and
    returns the exit code and all of the output. The process leads a session of its own.
    """

    def run(line: str, act: Callable[[Any], object], *options: str) -> tuple[int, str]:
        process = subprocess.Popen(
            command("train.py", *here, "data.image_size=32", *ENDLESS, *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        output = ""
        for told in process.stdout:
            output += told
            if told.startswith(line):
                act(process)
                break
        output += process.stdout.read()
        return process.wait(timeout=60), output

    return run
