"""Augmentation of whole batches, on the device.

What `crops` has cut and flipped goes through one warp for everything geometric, one map for
brightness, contrast and saturation, a turn of hues where asked for, then mixing of images. All
random numbers come from `randomness`, drawn on the CPU, so they are the same on every device and
for any number of workers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mlops_project.data import augmentation_on_cpu, randomness
from mlops_project.data.device import to_device
from mlops_project.data.image_operations import recolour, turn_hues, warp

# Random erasing's ranges: Zhong et al., Random Erasing Data Augmentation, AAAI 2020.
ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)
# RandAugment's operations at its largest magnitude, as torchvision's RandAugment has them, but for
# those that replace or destroy colours or detail (posterize, solarize, equalize, autocontrast,
# sharpness): in dermoscopy these are diagnostic.
RANDAUGMENT_LARGEST = 30
RANDAUGMENT_AMOUNTS = np.array(
    [
        *[0.0],  # the identity
        *[math.radians(30)],  # rotation
        *[0.3, 0.3],  # shear along x, y
        *[150 / 331, 150 / 331],  # shift along x, y, as a share of the side
        *[0.9, 0.9, 0.9],  # change of the brightness, contrast, saturation factor
    ]
)


class BatchAugmentation(nn.Module):
    """Turns uint8 batches into normalised float batches, augmented in training.

    Args:
        mean, std: of the channels, on the scale from 0 to 1.
        seed: of the random choices.
        rotation_degrees: angles are uniform in plus or minus this; beyond the edge the image is
            mirrored, since black corners would look like the rim of a dermatoscope.
        zoom: the scale is log-uniform from 1 / (1 + this) to 1 + this.
        color_jitter: brightness, contrast and saturation factors are uniform in 1 plus or minus
            this, in torchvision's sense of these words and in this order.
        hue: hues turn by a share of the colour circle, uniform in plus or minus this.
        random_erasing: probability of a rectangle set to the mean colour.
        randaugment: magnitude, 0 to 30, of two operations an image out of: identity, rotation,
            shear and shift along either axis, brightness, contrast, saturation.
        mixup, cutmix: alpha of the Beta distribution of the blend; with both, each image takes
            one of them by a coin.
        num_classes: K, for the class shares of mixed images.
        channels_last: memory format of what `forward` gives.
        compiled: whether `forward` may compile what a GPU does with a batch, which then passes over
            the images' memory fewer times.
    """

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(
        self,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int = 42,
        rotation_degrees: float = 0.0,
        zoom: float = 0.0,
        color_jitter: float = 0.0,
        hue: float = 0.0,
        random_erasing: float = 0.0,
        randaugment: int = 0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        num_classes: int = 2,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        offset = -torch.tensor(mean, dtype=torch.float64) * 255 * scale
        self.register_buffer("scale", scale.float().view(3, 1, 1), persistent=False)
        self.register_buffer("offset", offset.float().view(3, 1, 1), persistent=False)
        self.seed = seed
        self.rotation_degrees, self.zoom = rotation_degrees, zoom
        self.color_jitter, self.hue = color_jitter, hue
        self.random_erasing, self.randaugment = random_erasing, randaugment
        self.mixup, self.cutmix, self.num_classes = mixup, cutmix, num_classes
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._compiled = torch.compile(self._on_device, dynamic=False) if compiled else None

    @torch.no_grad()
    def forward(
        self,
        images: torch.Tensor,
        draws: torch.Tensor,
        epoch: int,
        *,
        training: bool,
        usual: bool = False,
    ) -> torch.Tensor:
        """Normalises, and in training augments, a batch.

        Args:
            images: uint8 [B, 3, S, S].
            draws: what the random choices are keyed by, int64 [B]; on the CPU, or else reading
                them makes the program wait for the device.
            epoch: of the random choices.
            training: False normalises only.
            usual: whether B and S are those of most batches: each other shape would be compiled by
                itself, which takes seconds.

        Returns:
            float32 [B, 3, S, S].
        """
        size = images.shape[-1]
        moves = training and bool(self.rotation_degrees or self.zoom or self.randaugment)
        recolours = training and bool(self.color_jitter or self.randaugment)
        turns = training and bool(self.hue)
        erases = training and bool(self.random_erasing)
        matrices = factors = shifts = boxes = torch.empty(0)
        if moves or recolours or turns or erases:
            numbers = to_device(self._draw(draws.cpu().numpy(), epoch, size), images.device)
            matrices, factors, shifts, boxes = numbers.split((6, 3, 1, 4), dim=1)
        work = self._on_cpu if images.device.type == "cpu" else self._on_device
        if usual and self._compiled is not None and images.device.type == "cuda":
            work = self._compiled
        result = work(
            images,
            matrices.reshape(-1, 2, 3) if moves else None,
            factors if recolours else None,
            shifts[:, 0] if turns else None,
        )
        if erases:
            result.masked_fill_(_inside(boxes, size), 0.0)
        return result

    def _on_device(
        self,
        images: torch.Tensor,
        matrices: torch.Tensor | None,
        factors: torch.Tensor | None,
        shifts: torch.Tensor | None,
    ) -> torch.Tensor:
        x = images.float()
        if matrices is not None:
            x = warp(x, matrices)
        if factors is not None:
            x = recolour(x, factors)
        if shifts is not None:
            x = turn_hues(x, shifts)
        return x.mul_(self.scale).add_(self.offset).contiguous(memory_format=self.memory_format)

    def _on_cpu(
        self,
        images: torch.Tensor,
        matrices: torch.Tensor | None,
        factors: torch.Tensor | None,
        shifts: torch.Tensor | None,
    ) -> torch.Tensor:
        result = torch.empty(images.shape, memory_format=self.memory_format)
        augmentation_on_cpu.augment(
            images,
            result,
            normalisation=torch.stack([self.scale, self.offset], dim=1).view(3, 2).numpy(),
            matrices=None if matrices is None else matrices.numpy(),
            factors=None if factors is None else factors.numpy(),
            shifts=None if shifts is None else shifts.numpy(),
        )
        return result

    @torch.no_grad()
    def mix(
        self, images: torch.Tensor, labels: torch.Tensor, draws: torch.Tensor, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Blends each image with another of the batch by mixup or cutmix.

        Args:
            images: float32 [B, 3, S, S].
            labels: int64 [B].
            draws, epoch: as for `forward`.

        Returns:
            Images, and class shares float32 [B, K]; what was given, where both are off.
        """
        if not (self.mixup or self.cutmix):
            return images, labels
        size = images.shape[-1]
        u = randomness.uniform(self.seed, epoch, draws.cpu().numpy(), "mix", 5)
        order = np.argsort(u[:, 0], kind="stable")
        partner = np.empty_like(order)
        partner[order] = np.roll(order, -1)
        blends = u[:, 1] < (self.mixup > 0) / (1 + (self.cutmix > 0))
        share = np.where(blends, _beta(self.mixup, u[:, 2]), 1.0)  # of the image itself
        side = np.where(blends, 0.0, np.sqrt(1 - _beta(self.cutmix, u[:, 2]))) * size
        boxes = _boxes(u[:, 3:5] * size, np.stack([side, side], axis=1), size)
        pasted = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / size**2
        kept = share * (1 - pasted)
        numbers = np.column_stack([share, kept, boxes])
        table = to_device(numbers, images.device)
        other = to_device(partner, images.device)
        weight = table[:, 0].view(-1, 1, 1, 1) * ~_inside(table[:, 2:], size)
        shares = F.one_hot(labels, self.num_classes).to(table)
        mixed = torch.lerp(images[other], images, weight)
        return mixed, torch.lerp(shares[other], shares, table[:, 1:2])

    def _draw(self, keys: np.ndarray, epoch: int, size: int) -> np.ndarray:
        """Warp (6), colour factors (3), turn of the hue (1), erased box (4) of each, [B, 14]."""
        u = randomness.uniform(self.seed, epoch, keys, "augmentation", 13)
        u_angle, u_color, u_operations, u_erasing = np.split(u, (1, 4, 8), axis=1)
        angle = np.radians(self.rotation_degrees) * (2 * u_angle[:, 0] - 1)
        factors = 1 + self.color_jitter * (2 * u_color - 1)
        scale, hue = np.ones(len(u)), np.zeros(len(u))
        if self.hue:  # a draw of its own, as the next one: the others are the same without it
            hue = self.hue * (2 * randomness.uniform(self.seed, epoch, keys, "hue", 1)[:, 0] - 1)
        if self.zoom:
            u_zoom = randomness.uniform(self.seed, epoch, keys, "zoom", 1)[:, 0]
            scale = (1 + self.zoom) ** (2 * u_zoom - 1)
        shear, shift = np.zeros((2, len(u), 2))
        if self.randaugment:
            strength = self.randaugment / RANDAUGMENT_LARGEST
            for u_operation, u_sign in (u_operations[:, :2].T, u_operations[:, 2:].T):
                operation = (u_operation * len(RANDAUGMENT_AMOUNTS)).astype(np.int64)
                amounts = np.zeros((len(u), len(RANDAUGMENT_AMOUNTS)))
                amounts[np.arange(len(u)), operation] = np.where(u_sign < 0.5, -strength, strength)
                amounts *= RANDAUGMENT_AMOUNTS
                angle += amounts[:, 1]
                shear += amounts[:, 2:4]
                shift += amounts[:, 4:6]
                factors *= 1 + amounts[:, 6:]
        return np.column_stack(
            [_matrices(angle, scale, shear, shift), factors, hue, self._erased(u_erasing, size)]
        )

    def _erased(self, u: np.ndarray, size: int) -> np.ndarray:
        """Erased boxes [B, 4], empty where an image is left whole."""
        if not self.random_erasing:
            return np.zeros((len(u), 4))
        area = ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * u[:, 1]
        low, high = np.log(ERASED_RATIO)
        ratio = np.exp(low + (high - low) * u[:, 2])
        sides = np.sqrt(area[:, None] * np.stack([ratio, 1 / ratio], axis=1))
        # A very long rectangle that does not fit is cut short, where torchvision draws another.
        sides = np.minimum(sides, 1) * (u[:, 0] < self.random_erasing)[:, None]
        return _boxes((sides / 2 + (1 - sides) * u[:, 3:5]) * size, sides * size, size)


def _matrices(
    angle: np.ndarray, scale: np.ndarray, shear: np.ndarray, shift: np.ndarray
) -> np.ndarray:
    """Rotation and scale [B] after shear and shift [B, 2], for `warp`; angle in radians; [B, 6].

    As torchvision has it, a positive angle turns the image counter-clockwise.
    """
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    xx, xy, yx, yy = cos, -sin, sin, cos
    return np.column_stack(
        [
            *(xx + xy * shear[:, 1], xx * shear[:, 0] + xy, 2 * shift[:, 0]),
            *(yx + yy * shear[:, 1], yx * shear[:, 0] + yy, 2 * shift[:, 1]),
        ]
    )


def _boxes(centres: np.ndarray, sides: np.ndarray, size: int) -> np.ndarray:
    """Boxes (top, left, bottom, right) in whole pixels, [B, 4], cut at the edge of the image."""
    corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    return np.clip(np.rint(corners), 0, size)


def _inside(boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Which pixels lie in the boxes [B, 4]; bool [B, 1, size, size]."""
    pixels = torch.arange(size, device=boxes.device)
    top, left, bottom, right = boxes.T[:, :, None]
    rows = (pixels >= top) & (pixels < bottom)
    columns = (pixels >= left) & (pixels < right)
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)


def _beta(alpha: float, u: np.ndarray) -> np.ndarray:
    """Quantiles u of Beta(alpha, alpha)."""
    from scipy.special import betaincinv

    return betaincinv(alpha, alpha, u) if alpha else np.ones_like(u)
