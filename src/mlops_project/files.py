"""Writing a file so that its name never holds half of it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO]:
    """Opens a temporary file beside `path`; on success it is synced and takes the name at once.

    On any error, a full disk included, the temporary file is removed and what `path` held before
    stays as it was.

    Args:
        path: the file to write; its folder exists.
        mode: "w" (UTF-8 text) or "wb".
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # The system applies the user's mask. To widen tempfile's 0600 would take reading the mask, that
    # is, setting it: what another thread makes at that moment is open to everybody.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_figure(figure: Figure, path: Path, dots: int = 110) -> None:
    """Writes a picture of matplotlib's as a PNG.

    Args:
        figure: made without pyplot, which belongs to the program that calls: it keeps every figure,
            and may show them in windows.
        path: the file to write; its folder exists.
        dots: per inch.
    """
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=dots)


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name, which takes the place of what had it at once.

    Where the file system has no links it is a copy, as safe as what `atomic_write` writes.
    """
    temporary = target.with_name(f".{target.name}.link.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        with source.open("rb") as old, atomic_write(target, "wb") as new:
            shutil.copyfileobj(old, new)
        return
    try:
        os.replace(temporary, target)
    finally:
        # Also after success: between two names of one file POSIX's rename does nothing.
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a loss of power, where the file system can promise it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    with suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Removes the temporary files that a killed process has left of `atomic_write`.

    Only where no other process can be writing into the folder.
    """
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
