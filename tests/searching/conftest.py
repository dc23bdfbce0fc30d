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


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a server of its own, which goes with the tests."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="mlops_pg_"))
    as_owner: dict[str, Any] = {"cwd": folder}
    if os.getuid() == 0:  # the server refuses to run as root
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL has no user of its own here")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        as_owner |= {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(binaries / program), "-D", str(data), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            **as_owner,
        )

    run("initdb", "-U", "searcher", "-A", "trust", "--no-sync")
    options = f"-k {folder} -p {port} -c listen_addresses=127.0.0.1 -c fsync=off"
    run("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", options)
    yield f"postgresql://searcher@127.0.0.1:{port}/postgres"
    run("pg_ctl", "stop", "-m", "immediate")
    shutil.rmtree(folder, ignore_errors=True)
