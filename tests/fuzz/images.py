"""Image files: every format and mode, turned, damaged, or far larger than they look."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import cv2  # noqa: F401  (libraries write and start what they like while being imported)
import numpy as np
from hypothesis import strategies as st
from PIL import Image

from mlops_project.data.decode import decode
from tests.fuzz.damage import damage, some_steps, with_png_checksums

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "WEBP": ("L", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I"),
    "TGA": ("L", "RGB", "RGBA"),
    "ICO": ("RGBA",),
    "PCX": ("L", "RGB"),
    "SGI": ("L", "RGB"),
    "IM": ("L", "F", "YCbCr"),
    "DDS": ("RGB", "RGBA"),
    "EPS": ("L", "RGB", "CMYK"),
    "JPEG2000": ("L", "RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
    "MPO": ("RGB",),
    "ICNS": ("RGBA",),
}
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "JPEG": ({}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}, {"quality": 1}),
    "TIFF": ({}, *({"compression": c} for c in ("tiff_lzw", "tiff_adobe_deflate", "packbits"))),
    "PNG": ({}, {"compress_level": 0}, {"optimize": True}),
    "GIF": ({}, {"save_all": True}, {"transparency": 0}),
    "WEBP": ({}, {"lossless": True}, {"save_all": True}),
}
SIZES = ((1, 1), (7, 5), (48, 32), (3, 90))
common = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP")
exifs = st.none() | st.integers(0, 65535) | st.binary(max_size=40)


@cache
def encoded(format: str, mode: str, size: tuple[int, int], choice: int, exif: Any) -> bytes:
    """A valid file; `exif` is an orientation or the bytes of a broken note."""
    rng = np.random.default_rng(choice)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    if mode.startswith("I"):
        image = Image.fromarray(rng.integers(0, 65536, (size[1], size[0]), dtype=np.uint16))
        image = image.convert("I") if mode == "I" else image
    elif mode == "LAB":
        image = Image.merge("LAB", image.split())
    else:
        image = image.convert("L").convert(mode) if mode in ("F", "LA") else image.convert(mode)
    options = dict(OPTIONS.get(format, ({},))[choice % len(OPTIONS.get(format, ({},)))])
    if options.pop("save_all", False):
        options |= {"save_all": True, "append_images": [image.rotate(90)] * 3}
    if mode != "RGB":
        options.pop("keep_rgb", None)
    if format in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF") and isinstance(exif, int):
        note = Image.Exif()
        note[0x0112] = exif % 8 + 1 if format == "TIFF" else exif  # it refuses the others
        options["exif"] = note
    elif format in ("PNG", "JPEG", "WEBP") and isinstance(exif, bytes):
        options["exif"] = b"Exif\0\0" + exif
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@st.composite
def damaged_images(draw: st.DrawFn) -> bytes:
    format = draw(st.sampled_from(common * 12 + tuple(MODES)))
    mode = draw(st.sampled_from(MODES[format]))
    choice, size = draw(st.integers(0, 4)), draw(st.sampled_from(SIZES))
    exif = draw(exifs)
    data = damage(encoded(format, mode, size, choice, exif), draw(some_steps))
    if format == "PNG" and draw(st.booleans()):
        data = with_png_checksums(data)
    if draw(st.integers(0, 19)) == 0:  # the head of one format, the body of another
        other = draw(st.sampled_from(common))
        data = encoded(other, "L" if other != "WEBP" else "RGB", (7, 5), 0, None)[:40] + data[40:]
    return data


def chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def png_bomb(width: int, height: int, depth: int, colour: int, rows: int, text: int) -> bytes:
    """A PNG of zeros: a thousandth of its pixels' size, with `text` MiB of compressed text."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    packer = zlib.compressobj(9)
    line = bytes(1 + (min(width, 40_000) * channels * depth + 7) // 8)
    pixels = b"".join(packer.compress(line) for _ in range(rows)) + packer.flush()
    texts = zlib.compress(bytes(text * 2**20), 9) if text else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
        + (chunk(b"PLTE", bytes(6)) if colour == 3 else b"")
        + (chunk(b"zTXt", b"a\0\0" + texts) + chunk(b"iCCP", b"a\0\0" + texts) if text else b"")
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


@st.composite
def large_images(draw: st.DrawFn) -> bytes:
    """Headers that promise more than there is or than fits, and files that unpack to far more."""
    side = st.sampled_from((0, 1, 4000, 9400, 9500, 13_377, 20_000, 65_500, 2**31 - 1, 2**32 - 1))
    width, height = draw(side), draw(side)
    kind = draw(st.sampled_from(("png", "png", "jpeg", "bmp", "gif", "tiff", "webp", "scans")))
    if kind == "png":
        depth, colour = draw(st.sampled_from(((1, 0), (8, 0), (16, 0), (8, 2), (8, 3), (8, 6))))
        rows = draw(st.sampled_from((0, 1, min(height, 9500))))
        return png_bomb(width, height, depth, colour, rows, draw(st.sampled_from((0, 0, 64))))
    if kind == "scans":  # the last scan of a progressive picture, again and again
        jpeg = encoded("JPEG", "RGB", (48, 32), 1, None)
        scan = jpeg.rindex(b"\xff\xda")
        data = jpeg[:scan] + jpeg[scan:-2] * draw(st.sampled_from((1, 50, 5000))) + b"\xff\xd9"
        frame = data.index(b"\xff\xc2") + 5
        sides = struct.pack(">HH", min(height, 65_500), min(width, 65_500))
        return data[:frame] + sides + data[frame + 4 :]
    return bytes(with_sides(kind, width, height))


def with_sides(kind: str, width: int, height: int) -> bytearray:
    """A small picture whose header promises another size."""
    data = bytearray(encoded(kind.upper(), "RGB", (48, 32), 0, None))
    if kind == "jpeg":
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", height % 65_536, width % 65_536)
    elif kind == "bmp":
        data[18:26] = struct.pack("<II", width, height)
    elif kind == "gif":
        data[6:10] = struct.pack("<HH", width % 65_536, height % 65_536)
    elif kind == "webp":
        data[26:30] = struct.pack("<HH", width % 16_384, height % 16_384)
    else:
        for tag, value in ((256, width), (257, height), (278, height)):
            entry = data.find(struct.pack("<HHI", tag, 3, 1))
            entry = entry if entry >= 0 else data.find(struct.pack("<HHI", tag, 4, 1))
            if entry >= 0:
                data[entry : entry + 12] = struct.pack("<HHII", tag, 4, 1, value)
    return data


inputs = st.tuples(
    st.integers(0, 39).flatmap(lambda n: large_images() if n == 0 else damaged_images()),
    st.sampled_from((1, 16, 33)),
)


def use(value: tuple[bytes, int], folder: Path) -> None:
    """Decodes it, as the cache and the check of a folder do."""
    data, side = value
    pixels = decode(data, side)
    assert pixels.shape == (3, side, side)
    assert pixels.dtype == np.uint8
