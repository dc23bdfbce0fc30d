"""Image files in folders and in zip archives, and their bytes."""

from __future__ import annotations

import lzma
import os
import re
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from mlops_project.data.identity import IMAGE_ENDINGS, image_key
from mlops_project.errors import InputError, ProjectError
from mlops_project.printable import first_line, printable

MAX_IMAGE_BYTES = 200 * 2**20
MAX_RATIO = 100  # unpacked to packed: photographs hardly shrink, a zip bomb does by 1000
HARMLESS_BYTES = 2**20  # of a member, at any ratio
# What a damaged archive makes `zipfile` raise: on opening it, or on reading a member.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    LookupError,
    RuntimeError,  # encrypted
    NotImplementedError,
    ValueError,
    OverflowError,
)

# Path and member of each image by its name; and of those that differ, the paths of two files
Files = tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]

_archives = threading.local()


def read_bytes(path: str, member: str = "") -> bytes:
    """The bytes of an image file, or of a member of the zip archive `path`.

    Raises:
        OSError: the file cannot be read.
        ValueError: the member is damaged or larger than 200 MiB.
    """
    if not member:
        with open(path, "rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
        if len(data) > MAX_IMAGE_BYTES:
            raise ValueError(f"larger than {MAX_IMAGE_BYTES // 2**20} MiB")
        return data
    try:
        archive = _opened(path)
        too_large = archive.getinfo(member).file_size > MAX_IMAGE_BYTES
        data = b"" if too_large else archive.read(member)
    except DAMAGED as error:
        raise ValueError(f"damaged archive member: {printable(str(error), 200)}") from error
    if too_large:
        raise ValueError(f"larger than {MAX_IMAGE_BYTES // 2**20} MiB")
    return data


def _opened(path: str) -> zipfile.ZipFile:
    """Opening an archive reads its whole directory, so each thread keeps its own open."""
    key = (path, os.getpid(), os.stat(path).st_mtime_ns)
    opened = _archives.__dict__.setdefault("opened", {})
    if key not in opened:
        opened[key] = zipfile.ZipFile(path)
    return opened[key]


def _size(path: str, member: str) -> int:
    """Bytes of an image file, or of an archive's member."""
    return _opened(path).getinfo(member).file_size if member else os.path.getsize(path)


def file_key(name: str) -> str:
    """The `image_key` of a file's name without its ending."""
    return image_key(os.path.splitext(name)[0].strip())  # as the cells of tables are


def image_files(places: list[Path]) -> Files:
    """The file of every image, by its `file_key`.

    Returns:
        (path, member) of each image, the first one found; and, of those with another file whose
        bytes are not as many, the paths of the first and of that one.
    """
    files: dict[str, tuple[str, str]] = {}
    doubles: dict[str, tuple[str, str]] = {}
    for name, path, member in find_images(places):
        image = file_key(name)
        first = files.setdefault(image, (path, member))
        # Kaggle's archive has each image twice, in folders that differ in case.
        if (
            first != (path, member)
            and image not in doubles
            and _size(*first) != _size(path, member)
        ):
            doubles[image] = (first[0], path)
    return files, doubles


def find_images(places: list[Path]) -> Iterator[tuple[str, str, str]]:
    """(name, path, member) of every image in these folders and archives."""
    for place in places:
        for name, path, member in _zipped(place) if is_zip(place) else _in_folder(place):
            if os.path.splitext(name)[1].lower() not in IMAGE_ENDINGS or name.startswith("."):
                continue
            if member or os.path.isfile(path):  # reading a pipe or a device may never end
                yield name, path, member


def _in_folder(place: Path) -> Iterator[tuple[str, str, str]]:
    root = os.path.realpath(place)
    walked = {root}
    for parent, folders, names in os.walk(place, followlinks=True):
        kept = []
        for folder in sorted(f for f in folders if not f.startswith((".", "__MACOSX"))):
            real = os.path.realpath(os.path.join(parent, folder))
            # A folder is read once, and no link leads to what holds the place itself.
            if real not in walked and not root.startswith(os.path.join(real, "")):
                walked.add(real)
                kept.append(folder)
        folders[:] = kept
        for name in sorted(names):
            yield name, os.path.join(parent, name), ""


def _zipped(place: Path) -> Iterator[tuple[str, str, str]]:
    try:
        with zipfile.ZipFile(place) as archive:
            for member in archive.namelist():
                if not member.startswith("__MACOSX"):
                    yield member_parts(member)[-1], str(place), member
    except (*DAMAGED, OSError) as error:
        raise InputError(f"{place}: not a readable zip archive: {first_line(error)}") from error


def is_junk(path: Path) -> bool:
    return path.name.startswith((".", "__MACOSX")) or path.parent.name.startswith("__MACOSX")


def is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def check_archive(path: Path) -> None:
    """Raises ProjectError for a zip archive (or its part file) that is unsafe to unpack."""
    name = path.name.removesuffix(".part")
    if not name.endswith(".zip"):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except DAMAGED as error:
        reason = printable(str(error), 200)
        raise ProjectError(f"{name}: refused: not a readable zip archive ({reason})") from error
    unsafe = [m.orig_filename for m in members if _is_unsafe(m)]
    if sum(m.file_size for m in members) > HARMLESS_BYTES + MAX_RATIO * path.stat().st_size:
        unsafe.append("(all members together)")
    if unsafe:
        raise ProjectError(
            f"{name}: refused: its member '{printable(unsafe[0])}' leads out of the folder, "
            f"is no plain file, or unpacks to more than {MAX_RATIO} times its size"
        )


def member_parts(member: str) -> list[str]:
    """Folders and name of a member; programs on Windows may have written them with a backslash."""
    return re.split(r"[/\\]", member)


def _is_unsafe(member: zipfile.ZipInfo) -> bool:
    parts = member_parts(member.orig_filename)
    outside = parts[0] == "" or parts[0][1:2] == ":" or ".." in parts
    special = stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
    bomb = member.file_size > HARMLESS_BYTES + MAX_RATIO * member.compress_size
    return outside or special or bomb
