"""The commands as real processes: what they print, the code they end with, and what they leave."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mlops_project import hydra_overrides, setting_keys, settings
from tests.conftest import COMMANDS

Run = Callable[..., subprocess.CompletedProcess[str]]
Command = Callable[..., list[str]]
FULL = Path("/dev/full")  # a device on which every write fails for lack of room
needs_full_device = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The message of a process that ended with this code, as every refusal must look."""
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ")
    assert 1 <= len(done.stderr.splitlines()) <= 3
    assert "Traceback" not in done.stderr
    return done.stderr


def run_body(body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A process whose command has this body."""
    program = "import logging, os, signal\n"
    program += "from mlops_project.command_line import run_command\n"
    program += "from mlops_project.errors import InputError, ProjectError\n"
    program += "def main():\n" + textwrap.indent(body, "    ") + "\nrun_command(main)\n"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_setting_and_every_file_of_configs(flag: str, run: Run) -> None:
    done = run("train.py", "model=nonsense", flag)

    assert (done.returncode, done.stderr) == (0, "")
    shown = re.findall(r"^  ([a-z_.]+)(?: \[.*\])?$", done.stdout, re.M)
    assert shown == list(setting_keys.keys())
    for file in hydra_overrides.CONFIGS.glob("*/*.yaml"):
        assert re.search(rf"^  {file.parent.name}=.*\b{file.stem}\b", done.stdout, re.M)


@pytest.mark.parametrize(
    "words",
    [
        ("compare.py",),
        ("evaluate.py",),
        ("dataset.py",),
        ("dataset.py", "check"),
        ("search.py",),
        ("search.py", "check"),
        ("search.py", "sweep.yaml"),
    ],
)
def test_every_command_has_the_short_form_of_help_too(words: tuple[str, ...], run: Run) -> None:
    short, long = (run(*words, flag) for flag in ("-h", "--help"))

    assert (short.returncode, short.stderr) == (0, "")
    assert f"Usage: {words[0]}" in short.stdout
    assert short.stdout == long.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["training.max_epochs=many"], "a whole number, at least 1"),
        (["training.lerning_rate=0.1"], "did you mean training.learning_rate?"),
        (["model=resnett"], "did you mean model=resnet?"),
        (["--cfg", "model.variant=b9", "model=efficientnet"], "b0, b1, b2, b3, b4"),
        (["-m", "seed=1,2", "training.max_epochs=3,0"], "training.max_epochs=0"),
    ],
)
def test_a_mistake_in_the_settings_ends_at_once_and_leaves_nothing(
    arguments: list[str], words: str, run: Run, tmp_path: Path
) -> None:
    done = run("train.py", *arguments)

    assert words in refused(done, 2)
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_windows_is_told_where_the_program_runs(tmp_path: Path) -> None:
    script = f"""
import runpy, signal, sys
sys.platform = "win32"
del signal.SIGUSR1, signal.SIGCHLD
sys.modules["fcntl"] = sys.modules["resource"] = None
sys.argv = ["train.py", "data=demo"]
runpy.run_path({str(COMMANDS / "train.py")!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert "on Windows, run it within WSL" in refused(done, 1)


def test_without_data_the_message_names_the_two_ways_to_get_some(run: Run, tmp_path: Path) -> None:
    message = refused(run("train.py"), 2)

    assert "data/ham10000" in message
    assert "dataset.py download" in message
    assert "data=demo" in message
    assert list(tmp_path.iterdir()) == []


def test_a_home_folder_that_nobody_has_is_a_folder_that_is_missing(run: Run) -> None:
    message = refused(run("train.py", "data.data_dir=~nobody_is_called_so/ham10000"), 2)
    assert message.startswith("error: ~nobody_is_called_so/ham10000: no such folder")


@pytest.mark.parametrize("words", [["compare.py", "nowhere"], ["dataset.py", "check", "nowhere"]])
def test_what_a_command_refuses_is_told_where_errors_belong(words: list[str], run: Run) -> None:
    done = run(*words)
    assert "nowhere" in refused(done, 2)
    assert done.stdout == ""


@pytest.mark.parametrize("form", [["--cfg"], ["--cfg", "job"]])
def test_cfg_prints_the_resolved_settings_as_yaml(
    form: list[str], run: Run, tmp_path: Path
) -> None:
    arguments = ["model.variant=b3", "wandb.name=my run (1)"]
    done = run("train.py", *form, *arguments)

    assert (done.returncode, done.stderr) == (0, "")
    printed = yaml.safe_load(done.stdout)
    assert printed == settings.to_container(settings.load(arguments))
    assert (printed["model"]["name"], printed["data"]["image_size"]) == ("efficientnet", 300)
    assert list(tmp_path.iterdir()) == []


def test_cfg_may_follow_the_settings(run: Run) -> None:
    done = run("train.py", "seed=7", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["seed"] == 7


def test_a_comment_behind_a_backslash_is_told(run: Run) -> None:
    """The shell makes a blank argument of it, and ends the command there."""
    done = run("train.py", "seed=7", " ", "--cfg")
    assert done.returncode == 0
    assert "one argument is blank" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert yaml.safe_load(done.stdout)["seed"] == 7


# --help is longer than what Python holds back until the end, --cfg is shorter.
HELD_BACK = {name: v for name, v in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize("flag", ["--help", "--cfg"])
def test_a_reader_that_leaves_early_is_no_error(flag: str, command: Command) -> None:
    with subprocess.Popen(
        command("train.py", flag),
        env=HELD_BACK,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert complaint == b""


@needs_full_device
@pytest.mark.parametrize("flag", ["--help", "--cfg"])
def test_output_onto_a_full_disk_says_so(flag: str, command: Command) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            command("train.py", flag),
            env=HELD_BACK,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert "the disk is full" in refused(done, 1)


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("raise ProjectError('the network is gone')", 1, "the network is gone"),
        ("raise InputError('no such table')", 2, "no such table"),
        ("os.kill(os.getpid(), signal.SIGINT); signal.pause()", 130, "interrupted"),
        ("os.kill(os.getpid(), signal.SIGTERM); signal.pause()", 143, "ended by SIGTERM"),
        (
            "try:\n    os.kill(os.getpid(), signal.SIGUSR1); signal.pause()\n"
            "except Exception as error:\n    raise InputError('not readable') from error",
            143,
            "ended by SIGUSR1",
        ),
        ("bytearray(2**62)", 1, "out of memory: other programs"),
        ("import torch; torch.empty(2**60)", 1, "out of memory: other programs"),
        pytest.param(
            "open('/dev/full', 'wb', 0).write(b'x')", 1, "the disk is full", marks=needs_full_device
        ),
    ],
)
def test_a_failure_that_can_be_expected_ends_with_one_message_and_its_code(
    body: str, code: int, words: str, tmp_path: Path
) -> None:
    assert words in refused(run_body(body, tmp_path), code)


@pytest.mark.parametrize(("body", "code"), [("return None", 0), ("return 0", 0), ("return 5", 5)])
def test_the_code_that_a_command_returns_is_its_exit_code(
    body: str, code: int, tmp_path: Path
) -> None:
    done = run_body(body, tmp_path)
    assert (done.returncode, done.stderr) == (code, "")


WITH_LOG_FILE = "logging.getLogger('mlops_project').addHandler(logging.FileHandler('run.log'))\n"


def test_the_log_file_keeps_the_message_of_a_failure(tmp_path: Path) -> None:
    done = run_body(WITH_LOG_FILE + "raise ProjectError('the network is gone')", tmp_path)

    assert done.returncode == 1
    assert "the network is gone" in (tmp_path / "run.log").read_text()


@pytest.mark.parametrize("bug", ["{}['lost key']", "open('lost key')"])
def test_a_bug_shows_its_traceback_on_the_console_and_in_the_log_file(
    bug: str, tmp_path: Path
) -> None:
    done = run_body(WITH_LOG_FILE + bug, tmp_path)

    assert done.returncode == 1
    for text in (done.stderr, (tmp_path / "run.log").read_text()):
        assert "Traceback" in text
        assert "lost key" in text


def test_a_signal_whose_exception_python_drops_is_remembered_without_a_word(
    tmp_path: Path,
) -> None:
    body = (
        "class Dropped:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "Dropped()\n"
        "from mlops_project.training.signals import Interruption\n"
        "interruption = Interruption()\n"
        "interruption.defer()\n"
        "return interruption.number\n"
    )
    done = run_body(body, tmp_path)
    assert (done.returncode, done.stderr) == (signal.SIGTERM, "")


def test_any_other_exception_that_python_drops_is_told(tmp_path: Path) -> None:
    body = "class Dropped:\n    def __del__(self):\n        raise ValueError('lost')\nDropped()\n"

    done = run_body(body, tmp_path)
    assert done.returncode == 0
    assert "ValueError: lost" in done.stderr


def test_the_home_folder_is_found_where_the_shell_leaves_its_sign(run: Run) -> None:
    message = refused(run("evaluate.py", "--checkpoint=~/gone.ckpt"), 2)
    assert f"{Path.home() / 'gone.ckpt'}: no such checkpoint" in message


@pytest.mark.parametrize("read", [True, False])
def test_only_a_pipe_that_nobody_reads_any_more_is_no_failure(read: bool) -> None:
    script = """
        import sys
        from mlops_project.command_line import run_command

        def main():
            sys.stdin.read()
            raise BrokenPipeError  # of whatever connection

        run_command(main)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    if not read:
        process.stdout.close()
    process.stdin.close()
    told = process.stderr.read()
    assert process.wait() == (1 if read else 0)
    assert ("BrokenPipeError" in told) == read
