"""Decoding: Pillow's pixels, the right colours of odd files, and a reason for broken ones."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from mlops_project.data.decode import (
    UnreadableImage,
    _decode_plain_jpeg,
    _jpeg_header,
    decode,
    decoding_threads,
)

AsFile = Callable[..., bytes]
Picture = Callable[..., Image.Image]
SIDE = 32


def _square(image: Image.Image, side: int = SIDE) -> np.ndarray:
    """What decoding must give, by Pillow alone: int64 [3, side, side]."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.convert("RGB").crop((left, top, left + short, top + short))
    scaled = square.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(scaled).transpose(2, 0, 1).astype(np.int64)


def _difference(data: bytes, expected: np.ndarray, side: int = SIDE) -> int:
    """The largest difference of any pixel from the expected ones, grey levels."""
    pixels = decode(data, side)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, side, side)
    return int(np.abs(pixels - expected).max())


@pytest.mark.parametrize("size", [(600, 450), (450, 600), (61, 47), (32, 32), (20, 90), (1, 7)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_is_as_pillow_scales_it(
    size: tuple[int, int], options: dict[str, bool], picture: Picture, as_file: AsFile
) -> None:
    noise = np.random.default_rng(0).normal(0, 12, (size[1], size[0], 3))
    textured = np.clip(np.asarray(picture(1, *size)) + noise, 0, 255).astype(np.uint8)
    data = as_file(Image.fromarray(textured), **options)
    assert _difference(data, _square(Image.open(io.BytesIO(data)))) <= 2


def test_an_image_of_the_right_size_is_left_as_it_is(picture: Picture, as_file: AsFile) -> None:
    image = picture(3, SIDE, SIDE)
    assert _difference(as_file(image, "PNG"), _square(image)) == 0


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_the_formats_of_a_source_are_read(format: str, picture: Picture, as_file: AsFile) -> None:
    image = picture(2)
    limit = 16 if format in ("JPEG", "WEBP") else 2  # compressed with loss
    assert _difference(as_file(image, format), _square(image)) <= limit


def test_cmyk(picture: Picture, as_file: AsFile) -> None:
    image = picture(4)
    assert _difference(as_file(image.convert("CMYK"), "TIFF"), _square(image)) <= 4
    assert _difference(as_file(image.convert("CMYK")), _square(image)) <= 24


def test_a_jpeg_that_holds_rgb_is_not_taken_for_ycbcr(picture: Picture, as_file: AsFile) -> None:
    image = picture(4)
    data = as_file(image, keep_rgb=True, subsampling=0)
    assert b"Adobe" in data
    assert _difference(data, _square(image)) <= 16


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["L", "1"])
def test_greyscale(format: str, mode: str, picture: Picture, as_file: AsFile) -> None:
    image = picture(5, SIDE, SIDE).convert(mode)
    pixels = decode(as_file(image, format), SIDE)
    assert np.abs(pixels - _square(image)).max() <= (40 if mode == "1" else 16)
    assert (pixels == pixels[:1]).all()


def test_16_bits_a_pixel_use_the_whole_range(as_file: AsFile) -> None:
    grey = np.linspace(0, 255, SIDE * SIDE).round().astype(np.uint16).reshape(SIDE, SIDE)
    expected = np.stack([grey] * 3).astype(np.int64)
    for format in ("PNG", "TIFF"):
        assert _difference(as_file(Image.fromarray(grey * 257), format), expected) == 0
    dark = Image.fromarray(grey)  # 255 of 65 535 is black to the eye
    assert decode(as_file(dark, "PNG"), SIDE).max() == 1


def test_floating_point_is_on_the_scale_to_1_or_to_255(as_file: AsFile) -> None:
    grey = np.linspace(0, 255, SIDE * SIDE).round().astype(np.float32).reshape(SIDE, SIDE)
    expected = np.stack([grey] * 3).astype(np.int64)
    for values in (grey, grey / 255):
        assert _difference(as_file(Image.fromarray(values), "TIFF"), expected) == 0
    broken = grey.copy()
    broken[3, 4] = np.nan
    with pytest.raises(UnreadableImage, match="finite"):
        decode(as_file(Image.fromarray(broken), "TIFF"), SIDE)


def test_a_palette_keeps_its_colours(picture: Picture, as_file: AsFile) -> None:
    image = picture(6, SIDE, SIDE).quantize(16)
    for format in ("PNG", "GIF"):
        assert _difference(as_file(image, format), _square(image)) == 0


def test_what_is_transparent_becomes_black(picture: Picture, as_file: AsFile) -> None:
    image = picture(7, SIDE, SIDE)
    left = np.zeros((SIDE, SIDE), dtype=np.uint8)
    left[:, : SIDE // 2] = 255
    expected = _square(image) * (left > 0)
    transparent = image.copy()
    transparent.putalpha(Image.fromarray(left))
    assert _difference(as_file(transparent, "PNG"), expected) == 0
    palette = Image.fromarray(left // 255, "P")
    palette.putpalette([250, 250, 250, 200, 100, 50])
    colours = np.array([200, 100, 50])[:, None, None] * (left > 0)
    assert _difference(as_file(palette, "PNG", transparency=0), colours) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_a_camera_noted_is_applied(
    orientation: int, picture: Picture, as_file: AsFile
) -> None:
    upright = picture(8, 40, 60)
    stored = {  # what a viewer must undo; EXIF 2.32, tag 0x0112
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = upright.transpose(stored[orientation]) if orientation in stored else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert _difference(as_file(image, exif=exif), _square(upright)) <= 16
    assert _difference(as_file(image, "PNG", exif=exif), _square(upright)) <= 2


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_truncated_image_is_refused(format: str, as_file: AsFile) -> None:
    data = as_file(9, format)
    for length in (len(data) // 4, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(UnreadableImage, match=r"\w"):
            decode(data[:length], SIDE)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\0" * 5000, "not an image"),
        (b"<html>404 Not Found</html>", "not an image"),
        (b"\xff\xd8", r"\w"),
        (b"\xff\xd8\xff\xd9", r"\w"),
        (b"\xff\xd8\xff\xe0" + b"\xff" * 3000, r"\w"),
        (b"\x89PNG\r\n\x1a\n", r"\w"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason_in_a_line(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason) as refusal:
        decode(data, SIDE)
    assert "\n" not in str(refusal.value)


def test_only_plain_photographs_are_decoded_by_the_fast_way(as_file: AsFile) -> None:
    """Others are left to Pillow: damaged ones to be refused, a black rim for the same pixels."""

    def fast(data: bytes) -> np.ndarray | None:
        return _decode_plain_jpeg(data, _jpeg_header(data))

    whole = as_file(9)
    pixels = fast(whole)
    assert pixels is not None
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(whole))))
    picture = Image.fromarray(pixels)
    height = len(pixels)
    for image in (picture.crop((0, 0, 40, height + 40)), picture.crop((0, 0, 40, 1))):
        data = as_file(image)
        assert fast(data) is None
        assert _difference(data, _square(Image.open(io.BytesIO(data)))) <= 2
    assert fast(whole[: len(whole) // 2] + b"\xff\xd9") is None
    assert fast(whole[:-2]) is None


def test_any_damage_gives_pixels_or_a_reason(as_file: AsFile) -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for format in ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"):
        whole = np.frombuffer(as_file(10, format), dtype=np.uint8)
        for _ in range(40):
            data = whole.copy()
            data[rng.integers(0, len(data), 5)] = rng.integers(0, 256, 5)
            try:
                assert decode(data.tobytes(), SIDE).shape == (3, SIDE, SIDE)
            except UnreadableImage:
                refused += 1
    assert refused > 20


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(as_file: AsFile) -> None:
    jpeg, png = bytearray(as_file(11)), bytearray(as_file(11, "PNG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 20_000, 20_000)
    png[16:24] = struct.pack(">II", 20_000, 20_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    for data in (jpeg, png):
        with pytest.raises(UnreadableImage, match="pixels"):
            decode(bytes(data), SIDE)


def test_a_format_that_starts_other_programs_is_not_read(as_file: AsFile) -> None:
    with pytest.raises(UnreadableImage, match="not an image of a known format"):
        decode(as_file(12, "EPS"), SIDE)


def test_a_jpeg_of_endless_scans_is_refused(as_file: AsFile) -> None:
    whole = as_file(12, progressive=True)
    last = whole.rindex(b"\xff\xda")
    with pytest.raises(UnreadableImage, match="more than 100 scans"):
        decode(whole[:last] + whole[last:-2] * 101 + whole[-2:], SIDE)


def test_decoding_in_threads_leaves_the_filters_for_warnings_alone(as_file: AsFile) -> None:
    """But for its own: else a warning of anything else would be lost from then on, or shown."""
    files = [as_file(n, "PNG") for n in range(40)] + [as_file(n) for n in range(40)]
    switching = sys.getswitchinterval()
    decode(files[0], SIDE)
    before = list(warnings.filters)
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can
    try:
        with decoding_threads(8) as pool:
            list(pool.map(lambda data: decode(data, SIDE), files))
    finally:
        sys.setswitchinterval(switching)
    assert list(warnings.filters) == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be given away here")
def test_as_many_threads_decode_as_the_process_may_use_cores() -> None:
    """A job of a cluster has few of a machine's cores, and a thread may hold a large image."""
    program = (
        "import os, threading\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from mlops_project.data.decode import decoding_threads\n"
        "end, before = threading.Event(), threading.active_count()\n"
        "with decoding_threads() as pool:\n"
        "    waiting = [pool.submit(end.wait) for _ in range(8)]\n"
        "    print(threading.active_count() - before)\n"
        "    end.set()\n"
        "    [task.result() for task in waiting]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr
