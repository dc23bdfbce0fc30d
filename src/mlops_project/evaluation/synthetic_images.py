"""Images that no model of skin lesions is meant for, to see whether it notices.

They stand for what goes wrong in practice: a broken camera, a covered lens, a patterned cloth, a
document, a snapshot, a damaged or badly converted file, a picture out of focus.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

GRID = 4  # patches along each side of a shuffled image
CANVAS = 192  # side that text and landscapes are drawn at, pixels


def synthetic_images(images: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Images such as no model of lesions is meant for, of each kind as many as there are images.

    Args:
        images: real ones, uint8 [N, 3, S, S], which some of the kinds are made of.
        seed: of the random choices.

    Returns:
        uint8 [N, 3, S, S] of each of `KINDS`.
    """
    made = {}
    for number, (kind, make) in enumerate(KINDS.items()):
        rng = np.random.default_rng([seed, number])
        one_by_one = [make(image.transpose(1, 2, 0), rng) for image in images]
        made[kind] = np.stack(one_by_one).transpose(0, 3, 1, 2).astype(np.uint8)
    return made


def _noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, image.shape)


def _plain_colour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.full(image.shape, rng.integers(0, 256, 3))


def _stripes(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stripes at any angle, or a checkerboard."""
    x, y = _coordinates(image.shape[0])
    angle, waves = rng.uniform(0, np.pi), rng.uniform(2, 12)
    along = np.sin(2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y)) > 0
    across = np.sin(2 * np.pi * waves * (np.cos(angle) * y - np.sin(angle) * x)) > 0
    second = along ^ across if rng.random() < 0.5 else along
    colours = rng.integers(0, 256, (2, 3))
    return colours[second.astype(int)]


def _text(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lines of letters on white paper, from nearer or farther."""
    paper, ink = rng.integers(220, 256, 3), rng.integers(0, 90, 3)
    page = Image.new("RGB", (CANVAS, CANVAS), tuple(paper.tolist()))
    letters = rng.choice(list("abcdefghijklmnoprstuvw AEIMST 0123456789 ,."), (CANVAS // 16, 40))
    text = "\n".join("".join(line) for line in letters)
    ImageDraw.Draw(page).text((8, 8), text, tuple(ink.tolist()), _font())
    part = rng.uniform(0.4, 1) * CANVAS
    return np.asarray(_resized(page, image, (0, 0, part, part)))


@cache
def _font() -> Any:
    return ImageFont.load_default(CANVAS / 20)


def _landscape(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A sky that pales towards hills, and meadows that darken towards the viewer."""
    x, y = _coordinates(CANVAS)
    waves, phases = rng.uniform(1, 4, 4), rng.uniform(0, 2 * np.pi, 4)
    hills = sum(np.sin(2 * np.pi * w * x + p) / w for w, p in zip(waves, phases, strict=True))
    horizon = rng.uniform(0.35, 0.65) + 0.06 * hills
    pale = np.clip(y / horizon, 0, 1)[..., None]
    sky = (1 - pale) * (rng.uniform(40, 110), 130, 220) + pale * (200, 220, 240)
    near = np.clip((y - horizon) / (1 - horizon), 0, 1)[..., None]
    ground = (1 - near) * (120, 160, rng.uniform(60, 100)) + near * (40, rng.uniform(70, 110), 25)
    scene = np.where((y < horizon)[..., None], sky, ground) + rng.normal(0, 10, (*x.shape, 1))
    return np.asarray(_resized(Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8)), image))


def _shuffled(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same patches in another order; what a grid leaves over at the edge stays."""
    side, shuffled = image.shape[0] // GRID, image.copy()
    corners = [(side * i, side * j) for i in range(GRID) for j in range(GRID)]
    for (i, j), (k, m) in zip(corners, rng.permutation(corners), strict=True):
        shuffled[i : i + side, j : j + side] = image[k : k + side, m : m + side]
    return shuffled


def _inverted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 255 - image


def _blurred(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """So far out of focus that no structure of a lesion is left."""
    blur = ImageFilter.GaussianBlur(image.shape[0] / 12)
    return np.asarray(Image.fromarray(image).filter(blur))


def _coordinates(side: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels, 0 to 1, float [side, side]."""
    y, x = np.mgrid[:side, :side] / side
    return x, y


def _resized(
    picture: Image.Image, image: np.ndarray, box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """A picture, or a part of it, as large as an image."""
    return picture.resize(image.shape[1::-1], Image.Resampling.BILINEAR, box)


KINDS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "noise": _noise,
    "plain colour": _plain_colour,
    "stripes": _stripes,
    "text": _text,
    "landscape": _landscape,
    "shuffled patches": _shuffled,
    "inverted colours": _inverted,
    "out of focus": _blurred,
}
