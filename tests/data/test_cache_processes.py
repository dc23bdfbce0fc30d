"""The cache among real processes: killed, two at once, in a read-only folder, on a full disk."""

from __future__ import annotations

import ctypes
import logging
import logging.handlers
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlops_project.data.cache import ImageCache, open_cache
from mlops_project.errors import InputError, ProjectError

SIDE = 32
# A fork has torch already, which takes seconds to import.
processes = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    """Ends a test that would wait forever for another process."""

    def give_up(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)


def _open(table: pd.DataFrame, caches: Path) -> ImageCache:
    return open_cache(table, np.arange(len(table)), SIDE, caches, workers=1)


def _report(table: pd.DataFrame, caches: Path, reports: Any) -> None:
    """Opens the cache; reports each message that is logged, then what came of it."""
    log = logging.getLogger("mlops_project")
    log.setLevel(logging.INFO)
    log.addHandler(logging.handlers.QueueHandler(reports))
    try:
        cache = _open(table, caches)
    except ProjectError as error:
        reports.put(error)
    else:
        reports.put((cache.path, np.array(cache.images), cache.unreadable))


def _start(target: Callable[..., Any], *arguments: Any) -> Any:
    process = processes.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def _replace_by_pipe(path: str) -> bytes:
    """Makes an image come through a pipe, so that who reads it waits; returns its bytes."""
    data = Path(path).read_bytes()
    os.unlink(path)
    os.mkfifo(path)
    return data


def _folders(caches: Path) -> list[Path]:
    return [path for path in caches.iterdir() if path.is_dir()]


def test_a_build_that_was_killed_goes_on_where_it_stopped(
    table: pd.DataFrame, pixels: np.ndarray, caches: Path, spoil: Callable[[str], None]
) -> None:
    pipe = table["path"][8]
    data = _replace_by_pipe(pipe)
    build = _start(_open, table, caches)
    with open(pipe, "wb"):  # opens when the build reads its ninth image
        build.kill()
        build.join()
    assert build.exitcode == -signal.SIGKILL
    for path in table["path"][:8]:
        spoil(path)
    threading.Thread(target=Path(pipe).write_bytes, args=(data,), daemon=True).start()
    cache = _open(table, caches)
    assert cache.unreadable == {}
    assert (cache.images == pixels).all()
    assert _folders(caches) == [cache.path]


def test_two_processes_at_once_build_one_cache(
    table: pd.DataFrame, pixels: np.ndarray, caches: Path
) -> None:
    pipe = table["path"][8]
    data = _replace_by_pipe(pipe)  # a second reading of it would wait forever
    reports = processes.Queue()
    both = [_start(_report, table, caches, reports) for _ in range(2)]
    with open(pipe, "wb") as file:  # opens when one of them reads its ninth image
        assert "waiting" in reports.get().getMessage()
        file.write(data)
    for path, images, unreadable in (reports.get(), reports.get()):
        assert [path] == _folders(caches)
        assert (images == pixels).all()
        assert unreadable == {}
    for process in both:
        process.join()
        assert process.exitcode == 0


def _report_as_ordinary_user(table: pd.DataFrame, caches: Path, reports: Any) -> None:
    if os.geteuid() == 0:  # root writes into read-only folders, until it gives up its capabilities
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        ctypes.CDLL(None).capset(header, none)
    if os.access(caches, os.W_OK):
        reports.put(None)
    else:
        _report(table, caches, reports)


def _open_in_a_read_only_folder(table: pd.DataFrame, caches: Path) -> tuple[Any, Any]:
    """The warning, and what came of it."""
    caches.mkdir()
    caches.chmod(0o555)
    reports = processes.Queue()
    _start(_report_as_ordinary_user, table, caches, reports)
    warning = reports.get()
    if warning is None:
        pytest.skip("no folder is read-only for this user on this system")
    return warning, reports.get()


def test_a_read_only_folder_is_replaced_by_the_users_cache_folder(
    table: pd.DataFrame,
    pixels: np.ndarray,
    caches: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    warning, (path, images, _) = _open_in_a_read_only_folder(table, caches)
    other = tmp_path / "user" / "mlops_project"
    assert warning.getMessage() == f"{caches} is read-only: decoded images are kept in {other}"
    assert path.parent == other
    assert (images == pixels).all()
    assert list(caches.iterdir()) == []


def test_a_read_only_cache_serves_although_an_image_cannot_be_read(
    table: pd.DataFrame, caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    Path(table["path"][3]).write_bytes(b"")
    reports = processes.Queue()
    for start in (_report, _report_as_ordinary_user):  # the first one builds it
        _start(start, table, caches, reports)
        told = reports.get()
        while isinstance(told, logging.LogRecord):
            told = reports.get()
        if told is None:
            pytest.skip("no folder is read-only for this user on this system")
        path, _, unreadable = told
        assert path == _folders(caches)[0]
        assert list(unreadable) == [3]
        for place in (caches, path, *path.iterdir()):
            place.chmod(0o555 if place.is_dir() else 0o444)
    assert not (tmp_path / "user").exists()


def test_where_nothing_can_be_written_the_setting_is_named(
    table: pd.DataFrame, caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _, error = _open_in_a_read_only_folder(table, caches)
    assert isinstance(error, InputError)
    assert "data.cache=DIR names a folder" in str(error)


def _report_with_little_space(table: pd.DataFrame, caches: Path, reports: Any) -> None:
    # A file that may not grow fails as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIDE * SIDE, SIDE * SIDE))
    _report(table, caches, reports)


def test_a_full_disk_ends_with_advice_and_spoils_nothing(
    table: pd.DataFrame, pixels: np.ndarray, caches: Path
) -> None:
    reports = processes.Queue()
    _start(_report_with_little_space, table, caches, reports)
    error = reports.get()
    assert isinstance(error, ProjectError)
    assert "the disk is full" in str(error)
    assert "data.cache=FOLDER" in str(error)
    assert (_open(table, caches).images == pixels).all()
