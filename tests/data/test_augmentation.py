"""Augmentation: each option alone does what it says, as often as it says, and to nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mlops_project.data.augmentation import BatchAugmentation, _matrices
from mlops_project.data.crops import cut, places
from mlops_project.data.decode import decode
from mlops_project.data.image_operations import recolour, shrink, warp

DRAWS = 4000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def augmentation(**options: Any) -> BatchAugmentation:
    return BatchAugmentation(mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3, **options)


def frequency(hits: np.ndarray, probability: float) -> None:
    """A share of many draws lies within four standard deviations of its probability."""
    deviation = (probability * (1 - probability) / len(hits)) ** 0.5
    assert abs(hits.mean() - probability) <= 4 * deviation


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("axis", ["horizontal_flip", "vertical_flip", "transpose"])
def test_flips_happen_as_often_as_set_and_change_nothing_else(
    axis: str, probability: float
) -> None:
    image = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(1, 3, 8, 8)
    draws = np.arange(DRAWS)
    chance: dict[str, Any] = {axis: probability}
    batch = cut(image, places(np.zeros(DRAWS, int), 0, draws=draws, **chance), 8).numpy()
    flipped = {
        "horizontal_flip": image[..., ::-1],
        "vertical_flip": image[..., ::-1, :],
        "transpose": image.swapaxes(2, 3),
    }
    hits = (batch == flipped[axis]).all(axis=(1, 2, 3))
    assert (hits | (batch == image).all(axis=(1, 2, 3))).all()
    frequency(hits, probability)


def test_flips_and_a_transpose_show_all_eight_ways_equally_often() -> None:
    image = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(1, 3, 8, 8)
    half: dict[str, Any] = dict.fromkeys(("horizontal_flip", "vertical_flip", "transpose"), 0.5)
    batch = cut(image, places(np.zeros(DRAWS, int), 0, draws=np.arange(DRAWS), **half), 8).numpy()
    turned = [np.rot90(image[0], turns, (1, 2)) for turns in range(4)]
    for view in turned + [view[..., ::-1] for view in turned]:
        frequency((batch == view).all(axis=(1, 2, 3)), 1 / 8)


def test_crops_reach_every_place_equally_often() -> None:
    image = np.zeros((1, 3, 10, 10), dtype=np.uint8)
    image[0, 0] = np.arange(100).reshape(10, 10)
    batch = cut(image, places(np.zeros(DRAWS, int), 2, draws=np.arange(DRAWS)), 8).numpy()
    corners, counts = np.unique(batch[:, 0, 0, 0], return_counts=True)
    assert corners.tolist() == [10 * y + x for y in range(3) for x in range(3)]
    assert counts.min() > DRAWS / 9 * 0.8
    centre = cut(image, places(np.zeros(2, int), 2), 8).numpy()
    assert (centre[:, 0, 0, 0] == 11).all()


def test_without_options_and_in_evaluation_images_are_only_normalised() -> None:
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    expected = v2.functional.normalize(images.float() / 255, list(MEAN), list(STD))
    draws = torch.arange(4)
    plain = BatchAugmentation(mean=MEAN, std=STD)
    everything = BatchAugmentation(
        mean=MEAN, std=STD, rotation_degrees=90, color_jitter=0.5, random_erasing=1.0, randaugment=9
    )
    for result in (
        plain(images, draws, 3, training=True),
        everything(images, draws, 3, training=False),
    ):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_the_angle_is_uniform_in_the_range_and_turns_the_image() -> None:
    """The angle is read from where the turned image puts a bright spot right of the centre."""
    size = 33
    images = torch.zeros(600, 3, size, size, dtype=torch.uint8)
    images[:, :, 14:19, 26:31] = 255
    turned = augmentation(rotation_degrees=30)(images, torch.arange(600), 0, training=True)[:, 0]
    weight = turned / turned.sum(dim=(1, 2), keepdim=True)
    positions = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    x = (weight * positions).sum(dim=(1, 2))
    y = (weight * positions[:, None]).sum(dim=(1, 2))
    angles = torch.rad2deg(torch.atan2(-y, x)).numpy()
    assert np.abs(angles).max() <= 31  # a spot of few pixels tells its angle to about a degree
    assert np.abs(angles).max() > 28
    assert abs(angles.mean()) < 4 * 30 / 3**0.5 / 600**0.5
    assert np.std(angles) == pytest.approx(30 / 3**0.5, rel=0.1)


def test_the_zoom_is_as_likely_in_as_out_and_scales_the_image() -> None:
    """Read from the side of a bright square in the centre."""
    images = torch.zeros(600, 3, 64, 64, dtype=torch.uint8)
    images[:, :, 22:42, 22:42] = 255
    zoomed = augmentation(zoom=0.5)(images, torch.arange(600), 0, training=True)
    area = (zoomed[:, 0] - zoomed.min()).sum(dim=(1, 2)) / (zoomed.max() - zoomed.min())
    scales = area.sqrt().numpy() / 20
    assert scales.min() == pytest.approx(1 / 1.5, abs=0.03)
    assert scales.max() == pytest.approx(1.5, abs=0.03)
    assert abs(np.log(scales).mean()) < 4 * np.log(1.5) / 3**0.5 / 600**0.5


def test_a_turned_image_is_the_one_of_torchvision() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 31, 31)
    turn = _matrices(np.radians([20.0]), np.ones(1), np.zeros((1, 2)), np.zeros((1, 2)))
    ours = warp(image, torch.tensor(turn, dtype=torch.float32).view(1, 2, 3))
    theirs = F.rotate(image, 20.0, interpolation=F.InterpolationMode.BILINEAR)
    inside = slice(8, 23)  # beyond the edge, ours mirrors and theirs is black
    torch.testing.assert_close(
        ours[..., inside, inside], theirs[..., inside, inside], atol=2e-3, rtol=0
    )


def test_colour_factors_are_uniform_in_their_range_and_torchvisions() -> None:
    numbers = augmentation(color_jitter=0.3)._draw(np.arange(DRAWS), 0, 32)[:, 6:9]
    assert numbers.min() >= 0.7
    assert numbers.max() <= 1.3
    assert np.allclose(numbers.mean(axis=0), 1, atol=0.02)
    assert np.allclose(numbers.std(axis=0), 0.3 / 3**0.5, rtol=0.05)
    torch.manual_seed(0)
    image = torch.rand(1, 3, 12, 12) * 100 + 60  # far from where either of them clips
    factors = torch.tensor([[1.1, 0.9, 1.2]])
    ours = recolour(image.clone(), factors) / 255
    theirs = F.adjust_brightness(image / 255, 1.1)
    theirs = F.adjust_saturation(F.adjust_contrast(theirs, 0.9), 1.2)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_hues_turn_as_torchvision_turns_them() -> None:
    shifts = augmentation(hue=0.2)._draw(np.arange(DRAWS), 0, 32)[:, 9]
    assert abs(shifts).max() <= 0.2
    assert abs(shifts.mean()) < 0.01
    assert shifts.std() == pytest.approx(0.2 / 3**0.5, rel=0.05)
    assert not augmentation(rotation_degrees=9)._draw(np.arange(9), 0, 32)[:, 9].any()

    torch.manual_seed(0)
    images = (torch.rand(6, 3, 16, 16) * 255).to(torch.uint8)
    images[0] = images[0, :1]  # grey: without a hue
    images[1, :, :8], images[1, 2, 8:] = 0, 255
    turned = augmentation(hue=0.5)(images, torch.arange(6), 0, training=True)
    shares = augmentation(hue=0.5)._draw(np.arange(6), 0, 16)[:, 9]
    for image, ours, share in zip(images, turned, shares, strict=True):
        theirs = F.adjust_hue(image / 255, float(share)) * 255
        torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


def test_an_erased_rectangle_is_as_frequent_and_as_large_as_published() -> None:
    images = torch.full((DRAWS, 3, 32, 32), 255, dtype=torch.uint8)
    result = augmentation(random_erasing=0.25)(images, torch.arange(DRAWS), 0, training=True)
    erased = (result[:, 0] == 0).float().mean(dim=(1, 2)).numpy()
    frequency(erased > 0, 0.25)
    areas = erased[erased > 0]
    assert areas.max() < 0.36
    assert areas.min() > 0.005
    assert areas.mean() == pytest.approx((0.02 + 0.33) / 2, rel=0.1)


def test_randaugment_grows_with_its_magnitude() -> None:
    torch.manual_seed(0)
    images = (torch.rand(64, 3, 24, 24) * 255).to(torch.uint8)

    def change(magnitude: int) -> float:
        result = augmentation(randaugment=magnitude)(images, torch.arange(64), 0, training=True)
        return float((result - images.float()).abs().mean())

    assert change(0) == 0
    assert 0 < change(3) < change(20)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_images_and_labels_have_the_same_shares(kind: str) -> None:
    """Images of class k have the value k everywhere, so that their share can be read off."""
    labels = torch.arange(7).repeat(40)
    images = labels.float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()
    draws = torch.arange(len(labels))
    mixed, shares = augmentation(num_classes=7, **{kind: 0.8}).mix(images, labels, draws, 0)
    assert torch.allclose(shares.sum(dim=1), torch.ones(len(labels)), atol=1e-5)
    expected = shares @ torch.arange(7.0)
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), expected, atol=1e-4, rtol=0)
    own = shares[torch.arange(len(labels)), labels]
    assert ((own > 0.05) & (own < 0.95)).float().mean() > 0.3
    if kind == "cutmix":
        assert set(mixed.unique().tolist()) <= set(range(7))  # pasted, not blended
    same, untouched = augmentation(num_classes=7).mix(images, labels, draws, 0)
    assert same is images
    assert untouched is labels


def test_choices_depend_on_seed_epoch_and_image_alone() -> None:
    torch.manual_seed(0)
    images = (torch.rand(8, 3, 16, 16) * 255).to(torch.uint8)
    draws = torch.arange(100, 108)
    options = {"rotation_degrees": 20.0, "color_jitter": 0.3, "hue": 0.1, "random_erasing": 0.5}
    whole = augmentation(**options)(images, draws, 2, training=True)
    parts = [
        augmentation(**options)(images[i : i + 1], draws[i : i + 1], 2, training=True)
        for i in range(8)
    ]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, augmentation(**options)(images, draws, 3, training=True))
    assert not torch.equal(whole, augmentation(seed=1, **options)(images, draws, 2, training=True))


def test_on_photographs_the_result_is_torchvisions(demo_folder: Path) -> None:
    """Of whole images, in grey levels out of 255.

    Rotation: both interpolate bilinearly, and differ where float32 rounds a place otherwise.
    Colour: torchvision clips after each of its three operations, ours once at the end, which shows
    only where bright skin or the dark rim leaves the range in between (mean 0.005, at most 7 levels
    over 31 photographs of HAM10000; the synthetic ones here are brighter).
    """
    paths = sorted(demo_folder.rglob("*.jpg"))[:12]
    images = torch.from_numpy(np.stack([decode(path.read_bytes(), 128) for path in paths])).float()
    angles = np.linspace(-15, 15, len(paths))
    one, nothing = np.ones(len(paths)), np.zeros((len(paths), 2))
    turns = torch.from_numpy(_matrices(np.radians(angles), one, nothing, nothing))
    turns = turns.float().view(-1, 2, 3)
    factors = torch.rand(len(paths), 3, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.9
    turned, coloured = warp(images, turns), recolour(images.clone(), factors)
    inside = slice(24, 104)  # beyond the edge, ours mirrors and torchvision's is black
    for i, image in enumerate(images):
        theirs = F.rotate(image, angles[i], interpolation=F.InterpolationMode.BILINEAR)
        torch.testing.assert_close(
            turned[i, :, inside, inside], theirs[:, inside, inside], atol=0.1, rtol=0
        )
        b, c, s = factors[i].tolist()
        theirs = F.adjust_contrast(F.adjust_brightness(image / 255, b), c)
        difference = (coloured[i] - F.adjust_saturation(theirs, s) * 255).abs()
        assert difference.median() < 0.5
        assert difference.quantile(0.99) < 8


def test_smaller_images_are_antialiased_and_the_same_on_all_devices(demo_folder: Path) -> None:
    paths = sorted(demo_folder.rglob("*.jpg"))[:6]
    images = torch.from_numpy(np.stack([decode(path.read_bytes(), 160) for path in paths]))
    smaller = shrink(images, 96)
    assert (smaller.dtype, smaller.shape) == (torch.uint8, (6, 3, 96, 96))
    # What another device computes, which has no such scaling of bytes.
    theirs = interpolate(images.float(), 96, mode="bilinear", antialias=True).round()
    assert (smaller.float() - theirs).abs().max() <= 1
    whole = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    pillow = whole.resize((96, 96), Image.Resampling.BILINEAR)
    difference = smaller[0].permute(1, 2, 0).numpy().astype(int) - np.asarray(pillow).astype(int)
    assert np.abs(difference).max() <= 1
    assert shrink(images, 160) is images


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_cpu_gives_what_other_devices_give(channels_last: bool, demo_folder: Path) -> None:
    """Of photographs, to a fiftieth of a grey level; the number of threads does not matter."""
    paths = sorted(demo_folder.rglob("*.jpg"))[:6]
    images = torch.from_numpy(np.stack([decode(path.read_bytes(), 160) for path in paths]))
    draws = torch.arange(len(paths))
    options: dict[str, Any] = {
        "rotation_degrees": 180,
        "zoom": 0.3,
        "color_jitter": 0.5,
        "hue": 0.3,
        "randaugment": 30,
    }
    ours = augmentation(**options, channels_last=channels_last)
    theirs = augmentation(**options, channels_last=channels_last)
    theirs._on_cpu = theirs._on_device  # type: ignore[method-assign]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    threads = torch.get_num_threads()
    try:
        for epoch in range(3):
            expected = theirs(images, draws, epoch, training=True)
            torch.set_num_threads(1)
            result = ours(images, draws, epoch, training=True)
            torch.set_num_threads(3)
            assert torch.equal(result, ours(images, draws, epoch, training=True))
            assert result.is_contiguous(memory_format=layout)
            torch.testing.assert_close(result, expected, atol=0.02, rtol=0)
    finally:
        torch.set_num_threads(threads)
