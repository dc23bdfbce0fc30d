"""Zip archives of images or of a table, with members that lead out, lie or unpack without end."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

from tests.fuzz.damage import Step, damage, some_steps
from tests.fuzz.images import encoded
from tests.fuzz.tables import use_folder

NAMES = ("ISIC_0000001.jpg", "ISIC_0000002.jpg", "images/ISIC_0000003.jpg")
HOSTILE = (
    "../../ISIC_0000001.jpg",
    "/tmp/outside/ISIC_0000002.jpg",
    "C:\\ISIC_0000001.jpg",
    "a\\..\\..\\ISIC_0000002.jpg",
    "ISIC_0000001.jpg/",
    "ISIC_0000001.jpg/../x.jpg",
    "__MACOSX/._ISIC_0000001.jpg",
    "\x1b[2J\n.jpg",
    "ISIC_0000001.jpg\0.txt",
    "é\U0001f4a9.jpg",
    "x" * 60_000 + ".jpg",
    "truth.csv",
    "",
)
TABLE = "image,MEL,NV\nISIC_0000001,1.0,0.0\nISIC_0000002,0.0,1.0\nISIC_0000003,0.0,1.0\n"


class Member(NamedTuple):
    """`how` says what it holds, `method` how it is packed, `kind` what its mode claims it to be."""

    name: str
    how: str
    method: int
    kind: int


class Input(NamedTuple):
    """An archive, the place it takes in a folder, and lies in its directory's entries."""

    members: list[Member]
    place: str
    lies: list[tuple[int, int, int]]  # (offset in the entry, bytes, value)
    prefix: int
    changes: list[Step]
    checked: bool


members = st.builds(
    Member,
    st.sampled_from(NAMES * 4 + HOSTILE) | st.text(max_size=20),
    st.sampled_from(("image", "image", "image", "table", "link", "zeros", "archive", "nothing")),
    st.sampled_from(
        (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    ),
    st.sampled_from((stat.S_IFREG, stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, 0)),
)
# Where an entry of the central directory (APPNOTE 4.3.12) says the version, the flags (1: it is
# encrypted), the method, the checksum, both sizes, the lengths of its names, and the offset.
FIELDS = ((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4))
VALUES = (0, 1, 9, 99, 0x800, 0x2001, 2**16 - 1, 2**20, 200 * 2**20, 2**31, 2**32 - 1)
lies = st.tuples(st.sampled_from(FIELDS), st.sampled_from(VALUES)).map(lambda t: (*t[0], t[1]))
inputs = st.builds(
    Input,
    st.lists(members, max_size=5),
    st.sampled_from(("images", "truth", "input")),
    st.lists(lies, max_size=2),
    st.sampled_from((0, 0, 0, 100, 5000)),
    st.just([]) | some_steps,
    st.integers(0, 4).map(lambda n: n == 0),
)


def content(how: str, number: int) -> bytes:
    if how == "image":
        return encoded("JPEG", "RGB", (48, 32), number % 3, None)
    if how == "archive":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as inner:
            inner.writestr("ISIC_0000001.jpg", bytes(2**20))
        return file.getvalue()
    others = {"table": TABLE.encode(), "link": b"../../../etc/passwd", "zeros": bytes(2**21)}
    return others.get(how, b"")


def archive_bytes(value: Input) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, member in enumerate(value.members):
            info = zipfile.ZipInfo("placeholder")
            info.filename = member.name.encode(errors="replace").decode()[:65_000]
            info.external_attr = (member.kind | 0o644) << 16
            try:
                archive.writestr(info, content(member.how, number), member.method)
            except (ValueError, struct.error):
                continue  # no library writes this name
    data = bytearray(file.getvalue())
    for offset, width, lie in value.lies:
        entry = data.find(b"PK\1\2")
        while entry >= 0:
            lying = (lie % 256**width).to_bytes(width, "little")
            data[entry + offset : entry + offset + width] = lying
            if offset == 20:  # the members themselves lie as well, and both overlap
                data[18:22] = lying.ljust(4, b"\0")
            entry = data.find(b"PK\1\2", entry + 4)
    return damage(bytes(value.prefix) + bytes(data), value.changes)


def build(value: Input, folder: Path) -> None:
    data = archive_bytes(value)
    if value.place == "images":
        rows = [f"{Path(name).stem},{number},mel" for number, name in enumerate(NAMES)]
        (folder / "HAM10000_metadata.csv").write_text("\n".join(["image_id,lesion_id,dx", *rows]))
        (folder / "HAM10000_images_part_1.zip").write_bytes(data)
        return
    inner = folder / "ISIC2018_Task3_Training_Input"
    if value.place == "truth":
        inner.mkdir()
        (inner / "ISIC_0000001.jpg").write_bytes(content("image", 0))
        (folder / "ISIC2018_Task3_Training_GroundTruth.zip").write_bytes(data)
    else:
        inner.with_suffix(".zip").write_bytes(data)
        (folder / "ISIC2018_Task3_Training_GroundTruth.csv").write_text(TABLE)


def use(value: Input, folder: Path) -> None:
    """Prepares a training with it, or checks it."""
    use_folder(folder, value.checked)
