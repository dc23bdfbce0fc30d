"""Dermoscopy-like pictures of synthetic lesions.

The diagnoses differ as the ABCD rule of dermoscopy has it (Stolz et al., Eur. J. Dermatol. 4,
1994): by asymmetry, border, colours within the lesion and structures. The average colour of a
lesion has one distribution for all of them, so that a model must look at the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 600, 450
# Pictures are drawn at this size and enlarged: finer detail is lost on a network anyway.
VIEW_WIDTH, VIEW_HEIGHT = 300, 225

# Colours within lesions, RGB on the scale from 0 to 255.
DARK, BLUE_GREY, RED = (62, 42, 36), (98, 108, 134), (176, 62, 60)
PALE, WHITE, BROWN = (222, 190, 172), (238, 226, 216), (140, 92, 62)
LAKE = (128, 28, 52)
# A lesion is painted on a square of SIDE pixels that reaches from -REACH to REACH radii.
SIDE, REACH = 208, 1.7
# How far the average colour of a lesion is moved back to what was drawn for it, 1 is wholly.
AVERAGED = 0.85
CONTRAST = (0.12, 0.7)


@dataclass(frozen=True)
class Look:
    """How lesions of a diagnosis look; pairs are ranges that a lesion's value is drawn from.

    Attributes:
        asymmetry: size of the bulges on one side, as a share of the radius.
        border: size of the notches in the outline, as a share of the radius.
        softness: width of the edge, as a share of the radius.
        patches: strength of the differently coloured patches, 0 to 1; `colours`: theirs.
        structure: name of the function of `STRUCTURES` that draws its details.
    """

    asymmetry: tuple[float, float]
    border: tuple[float, float]
    softness: tuple[float, float]
    patches: tuple[float, float]
    colours: tuple[tuple[int, int, int], ...]
    structure: str


LOOKS = {
    "nv": Look((0.0, 0.2), (0.0, 0.08), (0.05, 0.25), (0.0, 0.5), (BROWN, DARK, PALE), "network"),
    "bkl": Look((0.05, 0.25), (0.02, 0.1), (0.02, 0.1), (0.0, 0.5), (BROWN, PALE), "cysts"),
    "df": Look((0.0, 0.15), (0.0, 0.06), (0.15, 0.3), (0.0, 0.4), (BROWN,), "scar"),
    "vasc": Look((0.0, 0.2), (0.0, 0.06), (0.03, 0.15), (0.0, 0.4), (RED, BROWN), "lacunae"),
    "mel": Look(
        (0.1, 0.35),
        (0.04, 0.14),
        (0.03, 0.2),
        (0.35, 1.0),
        (DARK, BLUE_GREY, RED, WHITE),
        "streaks",
    ),
    "bcc": Look((0.08, 0.25), (0.02, 0.08), (0.08, 0.25), (0.2, 0.6), (BLUE_GREY, PALE), "vessels"),
    "akiec": Look((0.1, 0.25), (0.05, 0.14), (0.2, 0.4), (0.2, 0.6), (RED, WHITE), "scales"),
}


@dataclass(frozen=True)
class Lesion:
    """What all pictures of a lesion share.

    Attributes:
        look: of its diagnosis; `seed`: of its random details.
        radius: 1 is half the height of the picture; `stretch`: longer over shorter axis.
        waves: (waves around the outline, amplitude, phase), float [W, 3].
        softness: see `Look`; `patches`: see `Look`.
        contrast: of all that is drawn within the lesion; a faint one is hard to tell.
        skin, colour: average RGB around and in the lesion, float [3].
    """

    look: Look
    seed: list[int]
    radius: float
    stretch: float
    waves: np.ndarray
    softness: float
    patches: float
    contrast: np.float32
    skin: np.ndarray
    colour: np.ndarray


def draw_lesion(dx: str, seed: int, lesion_id: str) -> Lesion:
    """Draws a lesion of a diagnosis."""
    number = int(lesion_id.removeprefix("SYN_L"))
    rng, look = np.random.default_rng([seed, number, 1]), LOOKS[dx]
    bulge, notch = rng.uniform(*look.asymmetry), rng.uniform(*look.border)
    counts = np.array([1, 2, 3, 5, 7, 9, 11, 13])
    sizes = np.where(counts <= 3, bulge / np.sqrt(3), notch / np.sqrt(5))
    sizes, phases = sizes * rng.uniform(0.7, 1.3, 8), rng.uniform(0, 2 * np.pi, 8)
    tan = rng.uniform(0, 1)
    skin = (1 - tan) * np.array([234, 200, 184]) + tan * np.array([196, 150, 124])
    red = rng.uniform(0, 1)
    colour = (1 - red) * np.array([142, 98, 72]) + red * np.array([186, 112, 102])
    return Lesion(
        look=look,
        seed=[seed, number, 3],
        radius=rng.uniform(0.45, 0.8),
        stretch=rng.uniform(1.0, 1.35),
        waves=np.column_stack([counts, sizes, phases]),
        softness=rng.uniform(*look.softness),
        patches=rng.uniform(*look.patches),
        contrast=np.float32(rng.uniform(*CONTRAST)),
        skin=skin + rng.normal(0, 6, 3),
        colour=colour * rng.uniform(0.75, 1.1) + rng.normal(0, 6, 3),
    )


def render(lesion: Lesion, rng: np.random.Generator) -> np.ndarray:
    """A picture of a lesion; the view (place, angle, distance, light, hairs) comes from `rng`.

    Returns:
        RGB, uint8 [450, 600, 3].
    """
    size = (VIEW_WIDTH, VIEW_HEIGHT)
    skin = lesion.skin + 7 * _smooth(rng, 0.25)[..., None] + 5 * _smooth(rng, 0.03)[..., None]
    picture = _image(skin).resize(size, Image.Resampling.BICUBIC)
    colours, mask = paint(lesion)
    angle, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.15)
    x0, y0 = (np.array(size) + VIEW_HEIGHT * rng.uniform(-0.08, 0.08, 2)) / 2
    # From a pixel of the picture to one of the painting, whose half side is REACH radii.
    scale = SIDE / (VIEW_HEIGHT * lesion.radius * zoom * REACH)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    a, b, c, d = cos / lesion.stretch, sin / lesion.stretch, -sin, cos
    view = (a, b, SIDE / 2 - a * x0 - b * y0, c, d, SIDE / 2 - c * x0 - d * y0)
    moved = [
        _image(layer).transform(size, Image.Transform.AFFINE, view, Image.Resampling.BILINEAR)
        for layer in (colours, 255 * mask)
    ]
    picture.paste(moved[0], mask=moved[1])
    if rng.random() < 0.3:
        _draw_hairs(picture, rng)
    light = (rng.uniform(0.88, 1.1) * rng.uniform(0.96, 1.04, 3)).astype(np.float32)
    vignette = 1 - np.float32(rng.uniform(0, 0.25)) * _from_centre()
    lit = np.asarray(picture) * (light * vignette[..., None])
    lit += rng.integers(-4, 5, (VIEW_HEIGHT, VIEW_WIDTH, 1), dtype=np.int8)
    return np.asarray(_image(lit).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))


def paint(lesion: Lesion) -> tuple[np.ndarray, np.ndarray]:
    """A lesion on its own axes, its details the same in every picture of it.

    Returns:
        RGB, float32 [SIDE, SIDE, 3], 0 to 255, and its outline, float32 [SIDE, SIDE], 1 inside.
    """
    rng = np.random.default_rng(lesion.seed)
    _, _, distance, theta = _own_axes()
    angles = np.linspace(-np.pi, np.pi, 721)
    count, size, phase = lesion.waves.T[:, :, None]
    outline = np.interp(theta, angles, 1 + (size * np.cos(count * angles + phase)).sum(axis=0))
    depth = (distance / outline).astype(np.float32)  # 0 in the middle, 1 at the edge
    inside = 1 / (1 + np.exp(np.clip((depth - 1) / np.float32(lesion.softness / 4), -30, 30)))
    colours = np.broadcast_to(lesion.colour.astype(np.float32), (SIDE, SIDE, 3)).copy()
    for colour in lesion.look.colours:
        _blend(colours, lesion.patches * np.clip(2.5 * _smooth(rng, 0.17) - 0.2, 0, 1), colour)
    STRUCTURES[lesion.look.structure](colours, rng, depth)
    colours = lesion.colour.astype(np.float32) * (1 - lesion.contrast) + colours * lesion.contrast
    average = (colours * inside[..., None]).sum(axis=(0, 1)) / inside.sum()
    colours += AVERAGED * (lesion.colour.astype(np.float32) - average)
    return colours, inside


@cache
def _own_axes() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """u and v, the distance from the middle, in radii, and the angle; float32 [SIDE, SIDE]."""
    v, u = (2 * np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / (SIDE - 1) - 1) * REACH
    return u, v, np.hypot(u, v), np.arctan2(v, u)


@cache
def _from_centre() -> np.ndarray:
    """Squared distance from the centre, 1 in the corners; float32 [VIEW_HEIGHT, VIEW_WIDTH]."""
    y, x = np.mgrid[-1 : 1 : VIEW_HEIGHT * 1j, -1 : 1 : VIEW_WIDTH * 1j]
    return ((x**2 + y**2) / 2).astype(np.float32)


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _smooth(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Smooth noise, about -1 to 1, over distances of `scale` sides; float32 [SIDE, SIDE]."""
    side = max(4, round(1 / scale))
    grid = Image.fromarray(rng.normal(0, 0.7, (side, side)).astype(np.float32))
    return np.asarray(grid.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _dots(rng: np.random.Generator, count: int, radius: tuple[float, float]) -> np.ndarray:
    """Round dots of radii from a range within the outline; 1 in them; float32 [SIDE, SIDE]."""
    layer = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(layer)
    for _ in range(count):
        distance, angle = 0.9 * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        middle = np.array([np.cos(angle), np.sin(angle)]) * distance
        size = rng.uniform(*radius)
        corners = (np.concatenate([middle - size, middle + size]) / REACH + 1) * SIDE / 2
        draw.ellipse(tuple(corners), fill=255)
    return np.asarray(layer.filter(ImageFilter.BoxBlur(1))) / np.float32(255)


def _blend(colours: np.ndarray, share: np.ndarray, colour: tuple[int, int, int]) -> None:
    colours += share[..., None].astype(np.float32) * (np.array(colour, np.float32) - colours)


def _network(colours: np.ndarray, rng: np.random.Generator, depth: np.ndarray) -> None:
    """A fairly regular net of brown lines, darker towards the middle: a nevus."""
    u, v, _, _ = _own_axes()
    frequency, strength = np.pi / rng.uniform(0.15, 0.24), rng.uniform(0.1, 0.5)
    a = np.cos(frequency * (u + 0.1 * _smooth(rng, 0.15)))
    b = np.cos(frequency * (v + 0.1 * _smooth(rng, 0.15)))
    _blend(colours, strength * np.maximum(a * a, b * b) ** 4, DARK)
    _blend(colours, rng.uniform(0.1, 0.5) * np.clip(1 - depth, 0, 1), DARK)


def _cysts(colours: np.ndarray, rng: np.random.Generator, depth: np.ndarray) -> None:
    """Small white cysts and dark plugs on an even ground: a seborrheic keratosis."""
    _blend(colours, 0.8 * _dots(rng, int(rng.integers(12, 24)), (0.05, 0.09)), WHITE)
    _blend(colours, 0.7 * _dots(rng, int(rng.integers(5, 14)), (0.05, 0.08)), DARK)


def _scar(colours: np.ndarray, rng: np.random.Generator, depth: np.ndarray) -> None:
    """A white patch in the middle: a dermatofibroma."""
    size = rng.uniform(0.35, 0.55)
    _blend(colours, 0.8 * np.clip((size - depth + 0.1 * _smooth(rng, 0.1)) / 0.2, 0, 1), WHITE)


def _lacunae(colours: np.ndarray, rng: np.random.Generator, depth: np.ndarray) -> None:
    """Round, clearly bounded red lakes: an angioma."""
    _blend(colours, 0.8 * _dots(rng, int(rng.integers(8, 15)), (0.14, 0.26)), LAKE)


def _streaks(colours: np.ndarray, rng: np.random.Generator, depth: np.ndarray) -> None:
    """Dark streaks at a part of the edge, and irregular dark dots: a melanoma."""
    _, _, _, theta = _own_axes()
    rays = np.cos(theta * rng.integers(9, 14) + 2 * _smooth(rng, 0.12)) ** 2
    part = np.clip(np.cos(theta - rng.uniform(0, 2 * np.pi)) + 0.4, 0, 1)
    _blend(colours, 0.8 * rays * rays * part * np.clip((depth - 0.55) / 0.2, 0, 1), DARK)
    _blend(colours, 0.8 * _dots(rng, int(rng.integers(3, 8)), (0.06, 0.15)), DARK)


def _vessels(colours: np.ndarray, rng: np.random.Generator, depth: np.ndarray) -> None:
    """Winding red vessels and blue-grey nests: a basal cell carcinoma."""
    for _ in range(3):
        _blend(colours, 0.7 * np.clip(1 - np.abs(_smooth(rng, 0.17)) / 0.07, 0, 1), RED)
    _blend(colours, 0.8 * _dots(rng, int(rng.integers(2, 7)), (0.1, 0.24)), BLUE_GREY)


def _scales(colours: np.ndarray, rng: np.random.Generator, depth: np.ndarray) -> None:
    """White scales on red ground: an actinic keratosis."""
    _blend(colours, 0.5 * np.clip(2 * _smooth(rng, 0.05), 0, 1), RED)
    _blend(colours, 0.8 * np.clip(3 * _smooth(rng, 0.07) - 0.6, 0, 1), WHITE)


STRUCTURES = {
    "network": _network,
    "cysts": _cysts,
    "scar": _scar,
    "lacunae": _lacunae,
    "streaks": _streaks,
    "vessels": _vessels,
    "scales": _scales,
}


def _draw_hairs(picture: Image.Image, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(2, 8))):
        ends = rng.uniform(-0.2, 1.2, (2, 2)) * (VIEW_WIDTH, VIEW_HEIGHT)
        middle = ends.mean(axis=0) + rng.normal(0, 30, 2)
        t = np.linspace(0, 1, 25)[:, None]
        curve = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * middle + t**2 * ends[1]
        draw.line([tuple(point) for point in curve], fill=DARK, width=1)
