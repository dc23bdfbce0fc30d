"""What is done to whole batches of images on any device."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mlops_project.data.augmentation_on_cpu import GREY


def shrink(images: torch.Tensor, side: int) -> torch.Tensor:
    """Smaller copies of images, antialiased; the images themselves where they are as small.

    Args:
        images: uint8 [B, 3, S, S].
        side: T, pixels.

    Returns:
        uint8 [B, 3, T, T], within one grey level the same on a CPU and a GPU.
    """
    if images.shape[-1] <= side:
        return images
    if images.device.type == "cpu":  # where bytes are scaled several times as fast
        return F.interpolate(images, side, mode="bilinear", antialias=True)
    smaller = F.interpolate(images.float(), side, mode="bilinear", antialias=True)
    return smaller.round_().clamp_(0, 255).to(torch.uint8)


def warp(x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Moves pixels, bilinear, mirroring the image beyond its edge.

    Args:
        x: float32 [B, C, S, S].
        matrices: float32 [B, 2, 3]; from (x, y, 1) in the result to (x, y) in the image, both on
            the scale from -1 (left, top edge) to 1.

    Returns:
        float32 [B, C, S, S].
    """
    size = x.shape[-1]
    centres = (2 * torch.arange(size, device=x.device, dtype=x.dtype) + 1) / size - 1
    # F.affine_grid would do, at ten times the time and, where TF32 is on, at 10 bits of precision.
    across = matrices[:, :, 0:1] * centres
    down = matrices[:, :, 1:2] * centres + matrices[:, :, 2:3]
    grid = (across[:, :, None, :] + down[:, :, :, None]).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def recolour(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast and saturation, in this order and in place.

    With b, c, s the factors, g the luma of a pixel and m its mean over the image, torchvision's
    three operations are one map, x -> bcs x + bc(1 - s) g + b(1 - c) m, except that values are
    clipped once at the end and not after each operation.

    Args:
        x: float32 [B, 3, H, W], 0 to 255.
        factors: float32 [B, 3].

    Returns:
        float32 [B, 3, H, W], 0 to 255.
    """
    b, c, s = factors.T[:, :, None, None]
    grey = x[:, 0] * GREY[0]
    grey.add_(x[:, 1], alpha=GREY[1]).add_(x[:, 2], alpha=GREY[2])
    # In two steps the order of the sum, and so the last bit, is the same for any size of batch.
    mean = grey.mean(dim=2, keepdim=True).mean(dim=1, keepdim=True)
    grey.mul_(b * c * (1 - s)).add_(b * (1 - c) * mean)
    return x.mul_((b * c * s)[:, None]).add_(grey[:, None]).clamp_(0, 255)


def turn_hues(x: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Turns the hue of each pixel, its value and saturation (of HSV) staying as they are.

    It is torchvision's adjust_hue, which has one shift for all images of a batch.

    Args:
        x: float32 [B, 3, H, W], 0 to 255.
        shifts: float32 [B], shares of the colour circle.

    Returns:
        float32 [B, 3, H, W], 0 to 255.
    """
    red, green, blue = x.unbind(1)
    value, largest = x.max(dim=1)
    chroma = value - x.amin(dim=1)
    # Sixths of the circle, counted from red. Where there is no chroma, any hue will do.
    between = torch.stack([green - blue, blue - red, red - green], dim=1)
    hue = between.gather(1, largest[:, None])[:, 0] / chroma.clamp_min(1e-6) + 2 * largest
    hue += 6 * shifts[:, None, None]
    # How far a channel lies below the value: https://en.wikipedia.org/wiki/HSL_and_HSV, HSV to RGB.
    places = (hue[:, None] + x.new_tensor([5, 3, 1])[:, None, None]) % 6
    depth = torch.minimum(places, 4 - places).clamp_(0, 1)
    return value[:, None] - chroma[:, None] * depth
