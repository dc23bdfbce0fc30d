"""A file written atomically holds the old content or the new, whatever happens in between."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_project.files import atomic_write, link_or_copy


def run_while_writing(body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A process that runs `body` after half of a new `table.csv` has been written."""
    program = f"""
import os, resource, signal
from mlops_project.files import atomic_write
with atomic_write("table.csv") as file:
    file.write("new, first half")
    file.flush()
    {body}
"""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(("mode", "content"), [("w", "Größe,µm\n"), ("wb", bytes(range(256)))])
def test_new_content_takes_the_name_and_leaves_nothing_else(
    mode: str, content: str | bytes, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    for _ in range(2):
        with atomic_write(path, mode) as file:
            file.write(content)

    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_holds_the_old_content_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", ["old", None])
def test_after_an_exception_all_is_as_before(
    error: type[BaseException], old: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    if old:
        path.write_text(old)

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write("new, first half")
            raise error

    with pytest.raises(error):
        write_half()
    assert list(tmp_path.iterdir()) == ([path] if old else [])
    assert not old or path.read_text() == old


def test_without_room_for_the_new_content_all_is_as_before(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    # A limit on the size of files is a full disk that does no harm to others.
    done = run_while_writing(
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); file.write('x' * 100_000)",
        tmp_path,
    )

    assert "OSError" in done.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_killed_while_writing_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    done = run_while_writing("os.kill(os.getpid(), signal.SIGKILL)", tmp_path)

    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_file_may_be_read_by_whom_the_user_allows(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "table.csv") as file:
            file.write("new")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "table.csv").stat().st_mode & 0o777 == mode


def test_what_other_threads_write_is_no_more_open_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The mask is the process's: who changes it, if only to read it, does so for all threads."""
    changes: list[int] = []
    umask = os.umask

    def change(mask: int) -> int:
        changes.append(mask)
        return umask(mask)

    monkeypatch.setattr(os, "umask", change)
    with atomic_write(tmp_path / "table.csv") as file:
        file.write("new")
    assert changes == []


def test_a_second_name_takes_another_s_place_and_leaves_nothing_else(tmp_path: Path) -> None:
    old, new, name = tmp_path / "old", tmp_path / "new", tmp_path / "name"
    old.write_text("old")
    new.write_text("new")
    for source in (old, new, new):  # at last they are two names of one file already
        link_or_copy(source, name)
        assert name.read_text() == source.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["name", "new", "old"]


def test_where_there_are_no_links_a_second_name_is_a_copy_that_is_on_the_disk_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Or a loss of power could leave the name without the bytes."""
    source, name = tmp_path / "source", tmp_path / "name"
    source.write_text("new" * 1000)
    name.write_text("old")
    done: list[object] = []
    fsync, replace = os.fsync, os.replace

    def without_links(*names: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        done.append((os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))

    def rename(old: Path, new: Path) -> None:
        replace(old, new)
        done.append("renamed")

    monkeypatch.setattr(os, "link", without_links)
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    link_or_copy(source, name)

    assert done[:2] == [(name.stat().st_ino, 3000), "renamed"]
    assert name.read_text() == source.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["name", "source"]
