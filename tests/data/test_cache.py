"""The cache: the decoder's pixels, decoded once, repaired where damaged, renamed where changed."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from mlops_project.data.cache import ImageCache, open_cache
from mlops_project.data.decode import decode
from mlops_project.errors import InputError

SIDE = 32


def _open(table: pd.DataFrame, folder: Path, rows: Any = None, **options: Any) -> ImageCache:
    rows = np.arange(len(table)) if rows is None else np.array(rows)
    return open_cache(table, rows, SIDE, folder, **options)


def test_the_pixels_are_the_decoders(table: pd.DataFrame, pixels: np.ndarray, caches: Path) -> None:
    cache = _open(table, caches)
    assert cache.images.dtype == np.uint8
    assert (cache.images == pixels).all()
    assert cache.unreadable == {}
    assert not cache.images.flags.writeable


def test_what_is_there_is_not_decoded_again(
    table: pd.DataFrame, pixels: np.ndarray, caches: Path, spoil: Callable[[str], None]
) -> None:
    first = _open(table, caches, rows=[7, 2, 3])
    assert (first.images[[2, 3, 7]] == pixels[[2, 3, 7]]).all()
    for row in (2, 3, 7):
        spoil(table["path"][row])
    whole = _open(table, caches)
    assert whole.path == first.path
    assert whole.unreadable == {}
    assert (whole.images == pixels).all()
    for path in table["path"]:
        spoil(path)
    again = _open(table, caches)
    assert again.unreadable == {}
    assert (again.images == pixels).all()


def test_a_whole_cache_is_opened_without_waiting_or_writing(
    table: pd.DataFrame, pixels: np.ndarray, caches: Path
) -> None:
    """As that of another user, or of a host that is building another one beside it."""
    path = _open(table, caches).path
    lock = path.with_suffix(".lock")
    assert lock.stat().st_mode & 0o777 == 0o666  # another user may wait for it
    before = {p: p.stat().st_mtime_ns for p in (caches, *caches.rglob("*"))}
    with FileLock(lock):
        assert (_open(table, caches).images == pixels).all()
    assert {p: p.stat().st_mtime_ns for p in (caches, *caches.rglob("*"))} == before


def test_damaged_pixels_are_decoded_again(
    table: pd.DataFrame, pixels: np.ndarray, caches: Path, logged: pytest.LogCaptureFixture
) -> None:
    path = _open(table, caches).path / "images.u8"
    for row in (3, 11):
        with path.open("r+b") as file:
            file.seek(row * 3 * SIDE * SIDE + 100)
            flipped = file.read(1)[0] ^ 1
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([flipped]))
    assert (_open(table, caches).images == pixels).all()
    assert "2 decoded images were damaged on the disk" in logged.text


@pytest.mark.parametrize("name", ["images.u8", "rows.u32"])
@pytest.mark.parametrize("size", [None, 0, 100])
def test_files_that_lack_or_were_cut_off_are_made_anew(
    name: str, size: int | None, table: pd.DataFrame, pixels: np.ndarray, caches: Path
) -> None:
    path = _open(table, caches).path / name
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size)
    assert (_open(table, caches).images == pixels).all()


@pytest.mark.parametrize("change", ["content", "time", "side", "rows"])
def test_another_source_has_another_cache(
    change: str, table: pd.DataFrame, caches: Path, as_file: Callable[..., bytes]
) -> None:
    before = _open(table, caches)
    side = SIDE
    path = Path(table["path"][5])
    if change == "content":
        path.write_bytes(as_file(99))
    elif change == "time":
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000))
    elif change == "side":
        side = 16
    else:
        table = table.iloc[1:].reset_index(drop=True)
    after = open_cache(table, np.arange(len(table)), side, caches)
    assert after.path != before.path
    for row in (0, 5):
        data = Path(table["path"][row]).read_bytes()
        assert (after.images[row] == decode(data, side)).all()


def test_archives_are_read_as_they_are(
    table: pd.DataFrame, pixels: np.ndarray, caches: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in table["path"]:
            file.write(path, f"part/{Path(path).name}")
    members = [f"part/{Path(path).name}" for path in table["path"]]
    zipped = table.assign(path=str(archive), member=members)
    cache = _open(zipped, caches)
    assert (cache.images == pixels).all()
    os.utime(archive, ns=(0, 0))
    assert _open(zipped, caches).path == cache.path, "its checksums count, not its time"
    sizes = [os.path.getsize(path) for path in table["path"]]
    small, large = np.argmin(sizes), np.argmax(sizes)
    other = Path(table["path"][small]).read_bytes().ljust(sizes[large], b"\0")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("part/other.jpg", other)
    zipped.loc[large, "member"] = "part/other.jpg"
    changed = _open(zipped, caches)
    assert changed.path != cache.path, "another image of the same size"
    assert (changed.images[large] == pixels[small]).all()


def test_unreadable_images_are_reported_with_their_reasons(
    table: pd.DataFrame, pixels: np.ndarray, caches: Path
) -> None:
    Path(table["path"][2]).write_bytes(b"")
    Path(table["path"][4]).write_text("<html>404 Not Found</html>")
    os.unlink(table["path"][7])  # since the folder was read
    os.truncate(table["path"][9], 400)
    for _ in range(2):  # those that were refused once are no better the second time
        cache = _open(table, caches)
        assert sorted(cache.unreadable) == [2, 4, 7, 9]
        assert "empty" in cache.unreadable[2]
        assert "not an image" in cache.unreadable[4]
        assert "No such file" in cache.unreadable[7]
        assert cache.unreadable[9]
        good = [row for row in range(len(table)) if row not in cache.unreadable]
        assert (cache.images[good] == pixels[good]).all()
    assert _open(table, caches, rows=[0, 1]).unreadable == {}


def test_images_of_which_none_can_be_read_are_refused(table: pd.DataFrame, caches: Path) -> None:
    for path in table["path"]:
        Path(path).write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 12 images can be read.*0000000: .*empty"):
        _open(table, caches)


def test_another_process_maps_the_cache_instead_of_receiving_its_pixels(
    table: pd.DataFrame, caches: Path
) -> None:
    cache = _open(table, caches)
    sent = pickle.dumps(cache)
    assert len(sent) < cache.images.nbytes / 10
    received = pickle.loads(sent)
    assert (received.images == cache.images).all()
    assert received.path == cache.path


@pytest.mark.parametrize("name", ["images.u8", "rows.u32", ""])
@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_what_is_no_cache_makes_way_for_one_and_nothing_elsewhere_is_touched(
    name: str, kind: str, table: pd.DataFrame, pixels: np.ndarray, caches: Path, tmp_path: Path
) -> None:
    path = _open(table, caches).path / name
    size = path.stat().st_size
    elsewhere = tmp_path / "elsewhere"
    if name:
        elsewhere.write_bytes(b"v" * size)
        path.unlink()
    else:
        elsewhere.mkdir()
        path.rename(tmp_path / "away")
    if kind == "folder":
        path.mkdir()
        (path / "a file").write_text("of somebody")
    elif kind == "link":
        path.symlink_to(elsewhere)
    else:
        path.write_bytes(b"v" * size)
    assert (_open(table, caches).images == pixels).all()
    assert elsewhere.read_bytes() == b"v" * size if name else not list(elsewhere.iterdir())
