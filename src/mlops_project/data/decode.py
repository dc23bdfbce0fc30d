"""From the bytes of an image file to a square of pixels."""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from mlops_project.printable import first_line
from mlops_project.threads import usable_cores

# Larger than any dermatoscope's picture; what claims to be larger is a decompression bomb.
MAX_PIXELS = 89_478_485  # where Pillow starts to warn of one
MAX_SCANS = 100  # of a progressive JPEG; cameras write 10, and each may take as long as an image
# The formats of photographs. Pillow knows more, among them some that start other programs (EPS).
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")
PILLOW = re.compile(r"PIL\.")


class UnreadableImage(ValueError):
    """The bytes are not an image that can be used; the text is the reason, one line."""


def decode(data: bytes, side: int) -> np.ndarray:
    """Decodes an image, cuts out the central square and scales it.

    The result is that of Pillow's and torchvision's antialiased bilinear resize. Greyscale,
    palette, CMYK, 16-bit and transparent images are converted (transparent parts become black,
    like the rim of a dermatoscope); the orientation noted by a camera is applied.

    Args:
        data: a file in one of `FORMATS`, whatever its name says.
        side: of the result, pixels.

    Returns:
        RGB, uint8 [3, side, side].

    Raises:
        UnreadableImage: empty, truncated, damaged, too large or of an unknown format.
    """
    import torch
    from torch.nn.functional import interpolate

    if not data:
        raise UnreadableImage("the file is empty")
    _leave_out_warnings()
    pixels = None
    if data[:2] == b"\xff\xd8":
        header = _jpeg_header(data)
        # Where the first scan has all, no decoder looks for others; nor need we, which takes time.
        if not (header and header.one_scan) and data.count(b"\xff\xda") > MAX_SCANS:
            raise UnreadableImage(f"more than {MAX_SCANS} scans in a JPEG")
        pixels = _decode_plain_jpeg(data, header)
    if pixels is None:
        pixels = _decode_with_pillow(data)
    height, width = pixels.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = torch.from_numpy(
        np.ascontiguousarray(pixels[top : top + short, left : left + short])
    ).permute(2, 0, 1)
    if short != side:
        square = interpolate(
            square[None],  # its channels are last, for which the kernel for uint8 is fastest
            size=(side, side),
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )[0]
    return np.ascontiguousarray(square.numpy())


@contextmanager
def decoding_threads(workers: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads decode an image each; what has not begun at its end is dropped.

    Args:
        workers: threads; None: one for each core.
    """
    import torch

    # Torch's own threads on top would only get in the way.
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        workers or usable_cores(), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def _leave_out_warnings() -> None:
    """Ignores Pillow's warnings from here on: an image can be used, or it cannot.

    Not with `warnings.catch_warnings`: images are decoded in many threads, and where these overlap
    it leaves the filters of one of them behind, for all warnings of the program.
    """
    if PILLOW not in {entry[3] for entry in warnings.filters}:
        warnings.filterwarnings("ignore", module=PILLOW.pattern)


class _JpegHeader(NamedTuple):
    height: int
    width: int
    components: int
    one_scan: bool  # has all of the pixels, as in files that are not progressive
    oriented: bool  # turned by a camera, or with colours of Adobe's own


def _decode_plain_jpeg(data: bytes, header: _JpegHeader | None) -> np.ndarray | None:
    """RGB uint8 [H, W, 3] of a whole, upright JPEG with three components, else None."""
    import cv2

    if header is None or not data.rstrip(b"\0\r\n").endswith(b"\xff\xd9"):
        return None
    if header.components != 3 or header.oriented:
        return None
    if not 0 < header.height * header.width <= MAX_PIXELS:
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:
        return None  # Pillow finds words for it
    # What damage has cut off is filled up with one colour, also where Pillow refuses the image. An
    # image that ends in a black rim goes there as well, for the same pixels.
    if pixels is None or len(pixels) < 2 or np.array_equal(pixels[-1], pixels[-2]):
        return None
    return pixels


def _jpeg_header(data: bytes) -> _JpegHeader | None:
    """What the markers before the pixels say; None where they cannot be followed."""
    position, oriented, frame = 2, False, None
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if position + 10 > len(data) or data[position + 4] != 8 or frame:
                return None
            frame = marker, *struct.unpack_from(">HHB", data, position + 5)
        if marker in (0xE1, 0xEE):  # Exif, or Adobe's colour transform: left to Pillow
            segment = data[position + 4 : position + 2 + length]
            oriented |= segment.startswith(b"Exif") and _is_turned(data)
            oriented |= segment.startswith(b"Adobe") and len(segment) > 11 and segment[11] == 0
        if marker == 0xDA and frame and position + 5 <= len(data):
            kind, height, width, components = frame
            one_scan = kind in (0xC0, 0xC1) and data[position + 4] == components
            return _JpegHeader(height, width, components, one_scan, oriented)
        if marker == 0xDA or length < 2:
            return None
        position += 2 + length
    return None


def _is_turned(data: bytes) -> bool:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.getexif().get(0x0112, 1) != 1
    except Exception:  # a damaged note: Pillow's own path decides about the image
        return True


def _decode_with_pillow(data: bytes) -> np.ndarray:
    """RGB uint8 [H, W, 3]."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(
                    f"{image.width} × {image.height} pixels, more than {MAX_PIXELS:,}"
                )
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage("not an image of a known format") from error
    except MemoryError as error:
        raise UnreadableImage("too large for the memory") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on hostile bytes
        raise UnreadableImage(first_line(error)) from error


def _to_rgb(image) -> np.ndarray:
    from PIL import Image

    if min(image.size) < 1:
        raise UnreadableImage("it has no pixels")
    if image.mode.startswith(("I", "F")):
        return _grey_to_rgb(np.asarray(image), image.mode)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        black.alpha_composite(image.convert("RGBA"))
        image = black
    return np.array(image.convert("RGB"))


def _grey_to_rgb(values: np.ndarray, mode: str) -> np.ndarray:
    """16 bits a pixel use the whole range; floating point is on the scale to 1 or to 255."""
    if not np.isfinite(values).all():
        raise UnreadableImage("it has values that are not finite")
    scale = 1.0
    if mode == "F":
        scale = 255.0 if values.max() <= 1 else 1.0
    elif mode.startswith("I;16") or values.max() > 255:
        scale = 1 / 257
    grey = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, len(values), 256):  # as float64 it needs eight times the memory
        part = values[start : start + 256].astype(np.float64) * scale
        grey[start : start + 256] = part.round().clip(0, 255)
    return np.repeat(grey[:, :, None], 3, axis=2)
