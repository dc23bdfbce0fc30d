"""The commands themselves, on the nastiest of folders: a message and an exit code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import tables


def _folder(path: Path) -> Path:
    """Pipes, endless devices and names in no encoding among the images of a good table."""
    (path / "ham").mkdir()
    oddities = ["image is a device", "names in no encoding above", "a fifo beside"]
    tables.build(tables.good_table("plain", oddities), path / "ham")
    (path / "ham" / "images" / f"{tables.NAMES[1]}.png").unlink()
    os.mkfifo(path / "ham" / "images" / f"{tables.NAMES[1]}.png")
    return path / "ham"


@pytest.mark.parametrize(
    ("program", "arguments", "said"),
    [
        ("dataset.py", lambda path: ["check", str(_folder(path))], "Missing images: 3"),
        ("train.py", lambda path: [f"data.data_dir={_folder(path)}/images"], "no layout"),
    ],
)
def test_a_command_ends_with_a_message(
    program: str, arguments: Callable[[Path], list[str]], said: str, tmp_path: Path, run: Callable
) -> None:
    done = run(program, *arguments(tmp_path), timeout=120)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert said in done.stdout + done.stderr
