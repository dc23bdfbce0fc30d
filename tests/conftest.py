"""What every test needs: quiet libraries, no network, and small folders of real image files."""

from __future__ import annotations

import os

# Read when the libraries are imported. Two test processes share the cores; Weights & Biases and
# the hub of weights are addresses where nobody answers.
os.environ.update(
    OMP_NUM_THREADS="1",
    MPLBACKEND="Agg",
    COLUMNS="100",
    WANDB_BASE_URL="http://127.0.0.1:9",
    WANDB_ERROR_REPORTING="false",
    WANDB_SILENT="true",
    HF_ENDPOINT="http://127.0.0.1:9",
)
os.environ.pop("WANDB_API_KEY", None)

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Where no bytecode is written, each of the hundreds of processes compiles the libraries anew, which
# takes it longer than all the rest.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    os.environ["PYTHONPYCACHEPREFIX"] = str(ROOT / ".pytest_cache" / "bytecode")

# Started in a shell's background, the tests and their processes would ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A file is tested by one process. Those that take longest come first, so that no process is left
# with one of them while the other has nothing more to do.
COSTLY_FIRST = (
    "training/test_options.py",
    "training/test_processes.py",
    "evaluation/test_finished_runs.py",
    "guide/test_guide.py",
    "training/test_run.py",
    "training/test_resume.py",
    "searching/test_search.py",
    "searching/test_study.py",
    "test_settings.py",
    "chaos/test_chaos.py",
    "evaluation/test_inference.py",
    "guide/test_sweep.py",
    "test_command_line.py",
    "fuzz/test_fuzz.py",
    "fuzz/test_commands.py",
)

COMMANDS = ROOT / "src" / "mlops_project"
Run = Callable[..., subprocess.CompletedProcess[str]]
Call = Callable[..., str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {ROOT / "tests" / name: number for number, name in enumerate(COSTLY_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def own_places(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Libraries write into a folder of the tests."""
    for name in (
        "WANDB_DATA_DIR",
        "WANDB_CACHE_DIR",
        "WANDB_CONFIG_DIR",
        "HF_HOME",
        "MPLCONFIGDIR",
    ):
        os.environ[name] = str(tmp_path_factory.mktemp(name.lower()))


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 140 synthetic images of 600 × 450 pixels, in the layout of HAM10000."""
    from mlops_project.data.demo import generate

    folder = tmp_path_factory.mktemp("images") / "demo"
    generate(folder, images=120, seed=7)
    return folder


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    """The command line of one of the project's programs, for `subprocess`."""
    return lambda program, *arguments: [sys.executable, str(COMMANDS / program), *arguments]


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `configs/` that processes of this test read, and that it may change."""
    for name in ("configs", "src"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / "project" / name, ignore=ignored)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "project/src"))
    return tmp_path / "project/configs"


@pytest.fixture
def run(tmp_path: Path, command: Callable[..., list[str]]) -> Run:
    """Runs a command of the project as a user does: `run("train.py", "data=demo")`."""

    def start(program: str, *arguments: str, cwd: Path = tmp_path, timeout: float = 300):
        return subprocess.run(
            command(program, *arguments),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return start


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """Calls a command in this process; what it prints: `call(app, "--split", "all", cwd=folder)`.

    For tests of what a command does, not of how it ends: its libraries are imported already.
    """
    from typer.testing import CliRunner

    from mlops_project.console import stop_logging

    def invoke(app: Any, *arguments: str, cwd: Path = tmp_path) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(cwd)
            done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        stop_logging()
        assert done.exit_code == 0, done.output
        return done.stdout

    return invoke
