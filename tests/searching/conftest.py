"""What the tests of the search share: sweep files, and a PostgreSQL server of their own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

RATE = {"distribution": "log_uniform_values", "min": 0.0001, "max": 0.1}
SWEEP = {
    "program": "src/mlops_project/train.py",
    "method": "random",
    "metric": {"name": "val_loss", "goal": "minimize"},
    "parameters": {"training.learning_rate": RATE},
    "command": [
        *("${env}", "uv", "run", "${program}", "model=baseline_cnn", "wandb.enabled=true"),
        "${args_no_hyphens}",
    ],
}
# A training that takes as little time as one can
TINY = (
    "data.image_size=16",
    "data.num_workers=0",
    "model.architecture.conv_blocks=1",
    "model.architecture.channels=[2]",
    "training.limit_train_batches=2",
    "training.compile=false",
    "training.precision=32",
    "training.channels_last=false",
)
POSTGRES = [Path(p) for p in ("/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/17/bin")]

WriteSweep = Callable[..., Path]


@pytest.fixture
def write_sweep(tmp_path: Path) -> WriteSweep:
    """Writes a small sweep file with some of its sections replaced; None leaves one out."""

    def write(name: str = "small.yaml", **sections: Any) -> Path:
        content = {k: v for k, v in (SWEEP | sections).items() if v is not None}
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


def _binaries() -> Path | None:
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else []
    return next((p for p in (*places, *POSTGRES) if (p / "initdb").is_file()), None)


class Server:
    """A PostgreSQL server of the tests' own, which runs as the user that it needs."""

    def __init__(self, binaries: Path, folder: Path, owner: dict[str, Any]) -> None:
        self.binaries, self.folder, self.owner = binaries, folder, owner
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"postgresql://searcher@127.0.0.1:{self.port}/postgres"
        self._run("initdb", "-U", "searcher", "-A", "trust", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        words = [str(self.binaries / program), "-D", str(self.folder / "data"), *arguments]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **self.owner)

    def start(self) -> None:
        options = f"-k {self.folder} -p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-m", "immediate")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server that goes with the tests."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed")
    owner: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="mlops_pg_"))
    if os.getuid() == 0:  # it refuses to run as root
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL has no user of its own here")
        os.chown(folder, user.pw_uid, user.pw_gid)
        owner = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    made = Server(binaries, folder, owner)
    made.start()
    yield made
    made.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres(server: Server) -> str:
    """Its address."""
    return server.address
