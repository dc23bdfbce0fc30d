"""A few hostile inputs of every kind, and proof that the watch over them sees what it must."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mlops_project.errors import InputError
from tests.fuzz import tables
from tests.fuzz.guard import Outcome, attempt
from tests.fuzz.kinds import KINDS, run

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's accounts"
)

COUNTS = {"images": 60, "archives": 50, "yaml": 30}  # the slower ones


@pytest.mark.parametrize("name", KINDS)
def test_hostile_inputs_are_used_or_refused_with_a_message(name: str) -> None:
    count = COUNTS.get(name, 90)
    tally = run(KINDS[name], count, seed=7)
    inputs, accepted, refused, *bad = tally.numbers()
    assert bad == [0, 0, 0], "\n\n".join(tally.failures.values())
    assert inputs == accepted + refused == count
    assert accepted > 0, "nothing gets past the first check"
    assert refused > 0, "nothing is hostile"


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("layout", ["plain", "challenge"])
def test_every_oddity_of_a_folder(layout: str, checked: bool, folder: Path) -> None:
    for oddity in tables.ODDITIES:
        value = tables.good_table(layout, [oddity], checked)
        folder.mkdir(exist_ok=True)
        tables.build(value, folder)
        outcome = attempt(lambda f, v=value: tables.use(v, f), folder)  # type: ignore[misc]
        assert outcome.kind in ("accepted", "refused"), f"{oddity}: {outcome.detail}"
        assert not outcome.outside
        shutil.rmtree(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An input's own folder, alone in its parent."""
    (tmp_path / "parent" / "target").mkdir(parents=True)
    return tmp_path / "parent" / "target"


def through_a_link(folder: Path) -> None:
    (folder / "link").symlink_to(folder.parents[1])
    (folder / "link" / "outside").write_text("x")


OUTSIDE: dict[str, Callable[[Path], object]] = {
    "write": lambda f: (f.parents[1] / "outside").write_text("x"),
    "append": lambda f: (f.parents[1] / "kept").open("a"),
    "relative": lambda f: open("../../outside", "w"),  # noqa: SIM115
    "low": lambda f: os.open(f.parents[1] / "outside", os.O_CREAT | os.O_WRONLY),
    "link": through_a_link,
    "rename in": lambda f: (f.parents[1] / "kept").rename(f / "kept"),
    "rename out": lambda f: (f / "mine").rename(f.parents[1] / "outside"),
    "remove": lambda f: (f.parents[1] / "kept").unlink(),
    "folder": lambda f: (f.parents[1] / "outside").mkdir(),
    "process": lambda f: subprocess.run(["touch", str(f.parents[1] / "outside")], check=True),
    "system": lambda f: os.system(f"touch {f.parents[1] / 'outside'}"),
    "network": lambda f: socket.create_connection(("192.0.2.1", 80), timeout=0.1),
    "swallowed": lambda f: _swallowing(lambda: (f.parents[1] / "outside").write_text("x")),
    "a C library": lambda f: torch.save({}, f.parent / "outside"),
}


def _swallowing(action: Callable[[], object]) -> None:
    try:
        action()
    except BaseException:
        return


@pytest.mark.parametrize("how", OUTSIDE)
def test_what_leads_outside_is_seen_and_prevented(how: str, folder: Path) -> None:
    (folder.parents[1] / "kept").write_text("kept")
    (folder / "mine").write_text("mine")
    outcome = attempt(OUTSIDE[how], folder)
    assert len(outcome.outside) == 1
    assert not (folder.parents[1] / "outside").exists()
    assert (folder.parents[1] / "kept").read_text() == "kept"


def test_what_stays_inside_is_no_offence(folder: Path) -> None:
    def act(inside: Path) -> None:
        (inside / "new").mkdir()
        (inside / "new" / "file").write_text("x")
        os.replace(inside / "new" / "file", inside / "file")
        (inside / "link").symlink_to("/etc/passwd")
        (inside / "link").read_bytes()
        (inside / "link").unlink()

    assert attempt(act, folder) == Outcome("accepted", "", [])


def _raise(error: BaseException) -> Callable[[Path], None]:
    def action(folder: Path) -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        (_raise(InputError("a.csv: not a table")), "refused"),
        (_raise(InputError("")), "traceback"),
        (_raise(InputError("line\n" * 20)), "traceback"),
        (_raise(InputError("x" * 100_000)), "traceback"),
        (_raise(ValueError("a bug")), "traceback"),
        (_raise(RecursionError()), "traceback"),
        (_raise(SystemExit(1)), "traceback"),
        (lambda folder: bytes(10**12) and None, "traceback"),
        (lambda folder: np.ones(2**28).sum() and None, "limit"),
    ],
)
def test_the_kind_of_an_outcome(action: Callable[[Path], None], kind: str, folder: Path) -> None:
    assert attempt(action, folder).kind == kind
