"""Augmentation, in two halves.

`crop_and_flip` works on uint8 images while they are sliced from the cache. `BatchAugmentation`
does the rest on the whole batch, on the device: one warp for everything geometric, one matrix for
everything about colour, then mixing of images. All random numbers come from `randomness`, drawn on
the CPU, so they are the same on every device and for any number of workers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mlops_project.data import randomness

# ITU-R BT.601 luma, as torchvision's rgb_to_grayscale has it.
GREY = (0.2989, 0.587, 0.114)
# RandAugment's largest magnitudes, as torchvision's RandAugment has them. Operations that replace
# colours (posterize, solarize, equalize …) are left out: in dermoscopy colour is diagnostic.
RANDAUGMENT_BINS = 30
RANDAUGMENT_ROTATION = 30.0  # degrees
RANDAUGMENT_SHEAR = 0.3
RANDAUGMENT_SHIFT = 150.0 / 331.0  # of the image's side
RANDAUGMENT_COLOR = 0.9
# Random erasing's ranges: Zhong et al., Random Erasing Data Augmentation, AAAI 2020.
ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)


def crop_and_flip(
    images: np.ndarray,
    rows: np.ndarray,
    size: int,
    *,
    draws: np.ndarray | None = None,
    seed: int = 0,
    epoch: int = 0,
    horizontal_flip: float = 0.0,
    vertical_flip: float = 0.0,
) -> torch.Tensor:
    """Slices rows out of the cache.

    Args:
        images: uint8 [N, 3, C, C], C >= size.
        rows: which of them, int64 [B].
        size: side S of the crops, pixels.
        draws: what the random choices are keyed by, int64 [B]; None: centre crops, no flips.
        seed, epoch: of the random choices.
        horizontal_flip, vertical_flip: probabilities.

    Returns:
        uint8 [B, 3, S, S].
    """
    margin = images.shape[-1] - size
    batch = torch.empty((len(rows), 3, size, size), dtype=torch.uint8)
    out = batch.numpy()
    if draws is None:
        start = margin // 2
        for i, row in enumerate(rows):
            out[i] = images[row, :, start : start + size, start : start + size]
        return batch
    u = randomness.uniform(seed, epoch, draws, "crop and flip", 4)
    tops, lefts = (u[:, :2] * (margin + 1)).astype(np.int64).T
    for i, row in enumerate(rows):
        crop = images[row, :, tops[i] : tops[i] + size, lefts[i] : lefts[i] + size]
        out[i] = crop[:, ::-1] if u[i, 3] < vertical_flip else crop
        if u[i, 2] < horizontal_flip:
            batch[i] = batch[i].flip(-1)
    return batch


class BatchAugmentation(nn.Module):
    """Turns uint8 batches into normalised float batches, augmented in training.

    Args:
        mean, std: of the channels, on the scale from 0 to 1.
        seed: of the random choices.
        rotation_degrees: angles are uniform in plus or minus this; beyond the edge the image is
            mirrored, since black corners would look like the rim of a dermatoscope.
        color_jitter: brightness, contrast and saturation factors are uniform in 1 plus or minus
            this, in torchvision's sense of these words and in this order.
        random_erasing: probability of a rectangle set to the mean colour.
        randaugment: magnitude, 0 to 30, of two operations an image out of: identity, shear and
            shift along either axis, rotation, brightness, contrast, saturation.
        mixup, cutmix: alpha of the Beta distribution of the blend; with both, each image takes
            one of them by a coin.
        num_classes: K, for the class shares of mixed images.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int = 42,
        rotation_degrees: float = 0.0,
        color_jitter: float = 0.0,
        random_erasing: float = 0.0,
        randaugment: int = 0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        num_classes: int = 2,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1), persistent=False)
        self.seed = seed
        self.rotation_degrees, self.color_jitter = rotation_degrees, color_jitter
        self.random_erasing, self.randaugment = random_erasing, randaugment
        self.mixup, self.cutmix, self.num_classes = mixup, cutmix, num_classes

    @torch.no_grad()
    def forward(
        self, images: torch.Tensor, draws: torch.Tensor, epoch: int, *, training: bool
    ) -> torch.Tensor:
        """Normalises, and in training augments, a batch.

        Args:
            images: uint8 [B, 3, S, S].
            draws: what the random choices are keyed by, int64 [B].
            epoch: of the random choices.
            training: False normalises only.

        Returns:
            float32 [B, 3, S, S].
        """
        x = images.float().div_(255)
        if not training:
            return self._normalise(x)
        keys = draws.cpu().numpy()
        matrices, factors = self._draw(keys, epoch)
        if matrices is not None:
            x = _warp(x, torch.from_numpy(matrices).to(x))
        if factors is not None:
            x = _recolour(x, torch.from_numpy(factors).to(x))
        x = self._normalise(x)
        if self.random_erasing > 0:
            x = x.masked_fill_(self._erased(keys, epoch, x), 0.0)
        return x

    @torch.no_grad()
    def mix(
        self, images: torch.Tensor, labels: torch.Tensor, draws: torch.Tensor, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Blends each image with another of the batch by mixup or cutmix.

        Args:
            images: float32 [B, 3, S, S].
            labels: int64 [B].
            draws, epoch: what the random choices are keyed by.

        Returns:
            Images, and class shares float32 [B, K]; what was given, where both are off.
        """
        if self.mixup == 0 and self.cutmix == 0 or len(images) < 2:
            return images, labels
        keys = draws.cpu().numpy()
        u = randomness.uniform(self.seed, epoch, keys, "mix", 5)
        order = np.argsort(u[:, 0], kind="stable")
        partner = np.empty_like(order)
        partner[order] = np.roll(order, -1)
        use_mixup = u[:, 1] < 0.5 if self.mixup and self.cutmix else np.full(len(u), self.mixup > 0)
        share = np.where(
            use_mixup, _beta(self.mixup, u[:, 2]), _beta(self.cutmix, u[:, 2])
        )  # of the image itself
        size = images.shape[-1]
        side = np.sqrt(1 - share)
        inside = _rectangles(u[:, 3], u[:, 4], side, side, size, images.device)
        weight = torch.from_numpy(share).to(images).view(-1, 1, 1, 1).expand(-1, 1, size, size)
        pasted = torch.from_numpy(~use_mixup).to(images.device).view(-1, 1, 1, 1)
        weight = torch.where(pasted, (~inside).to(images.dtype), weight)
        other = torch.from_numpy(partner).to(images.device)
        mixed = weight * images + (1 - weight) * images[other]
        kept = weight.mean(dim=(1, 2, 3)).view(-1, 1)  # a rectangle cut by the edge is smaller
        shares = F.one_hot(labels, self.num_classes).to(images)
        return mixed, kept * shares + (1 - kept) * shares[other]

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        return x.sub_(self.mean.view(3, 1, 1)).div_(self.std.view(3, 1, 1))

    def _draw(self, keys: np.ndarray, epoch: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Affine matrices float32 [B, 2, 2+1] and colour factors float32 [B, 3], None where unused."""
        u = 2 * randomness.uniform(self.seed, epoch, keys, "warp and colour", 4) - 1
        angle = np.radians(self.rotation_degrees) * u[:, 0]
        factors = 1 + self.color_jitter * u[:, 1:]
        shear, shift = np.zeros((len(u), 2)), np.zeros((len(u), 2))
        if self.randaugment:
            strength = self.randaugment / RANDAUGMENT_BINS
            v = randomness.uniform(self.seed, epoch, keys, "randaugment", 4)
            for chosen, sign in ((v[:, 0], v[:, 1]), (v[:, 2], v[:, 3])):
                operation = (chosen * 9).astype(np.int64)  # 0 is the identity
                amount = np.where(sign < 0.5, -strength, strength)
                for axis in (0, 1):
                    shear[:, axis] += (operation == 1 + axis) * amount * RANDAUGMENT_SHEAR
                    shift[:, axis] += (operation == 3 + axis) * amount * 2 * RANDAUGMENT_SHIFT
                angle += (operation == 5) * amount * math.radians(RANDAUGMENT_ROTATION)
                for i in range(3):
                    factors[:, i] *= 1 + (operation == 6 + i) * amount * RANDAUGMENT_COLOR
        matrices = None
        if self.rotation_degrees or self.randaugment:
            cos, sin, one = np.cos(angle), np.sin(angle), np.ones(len(u))
            rotation = np.stack([cos, -sin, sin, cos], axis=1).reshape(-1, 2, 2)
            shearing = np.stack([one, shear[:, 0], shear[:, 1], one], axis=1).reshape(-1, 2, 2)
            matrices = np.concatenate([rotation @ shearing, shift[:, :, None]], axis=2)
            matrices = matrices.astype(np.float32)
        recolours = bool(self.color_jitter or self.randaugment)
        return matrices, factors.astype(np.float32) if recolours else None

    def _erased(self, keys: np.ndarray, epoch: int, x: torch.Tensor) -> torch.Tensor:
        u = randomness.uniform(self.seed, epoch, keys, "erasing", 5)
        area = ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * u[:, 1]
        low, high = np.log(ERASED_RATIO)
        ratio = np.exp(low + (high - low) * u[:, 2])
        height, width = np.minimum(np.sqrt(area * ratio), 1), np.minimum(np.sqrt(area / ratio), 1)
        centre_y = height / 2 + (1 - height) * u[:, 3]
        centre_x = width / 2 + (1 - width) * u[:, 4]
        inside = _rectangles(centre_y, centre_x, height, width, x.shape[-1], x.device)
        chosen = torch.from_numpy(u[:, 0] < self.random_erasing).to(x.device)
        return inside & chosen.view(-1, 1, 1, 1)


def _beta(alpha: float, u: np.ndarray) -> np.ndarray:
    """Quantiles u of Beta(alpha, alpha)."""
    from scipy.special import betaincinv

    return betaincinv(alpha, alpha, u) if alpha > 0 else np.ones_like(u)


def _rectangles(
    centre_y: np.ndarray,
    centre_x: np.ndarray,
    height: np.ndarray,
    width: np.ndarray,
    size: int,
    device: torch.device,
) -> torch.Tensor:
    """True inside each rectangle, given as shares of the side; bool [B, 1, size, size]."""
    middle = (torch.arange(size, device=device) + 0.5) / size
    numbers = np.stack([centre_y, centre_x, height / 2, width / 2]).astype(np.float32)
    y, x, half_height, half_width = torch.from_numpy(numbers).to(device)[:, :, None]
    rows = (middle - y).abs() < half_height
    columns = (middle - x).abs() < half_width
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)


def _warp(x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Bilinear affine warp; `matrices` [B, 2, 3] map output to input, in [-1, 1] coordinates."""
    grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _recolour(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast, saturation in this order; `x` [B, 3, H, W] in [0, 1], factors [B, 3].

    With b, c, s the factors, g the luma weights and m the mean luma of the image, the three
    operations are one affine map of the colour: x -> c b (s I + (1 - s) 1 gᵀ) x + (1 - c) b m.
    Values are clipped once at the end, where torchvision clips after each operation.
    """
    batch, _, height, width = x.shape
    b, c, s = factors.T.view(3, batch, 1, 1)
    grey = torch.tensor(GREY, dtype=x.dtype, device=x.device)
    luma = (x.mean(dim=(2, 3)) @ grey).view(batch, 1, 1)
    eye = torch.eye(3, dtype=x.dtype, device=x.device)
    matrix = c * b * (s * eye + (1 - s) * grey.expand(3, 3))
    offset = ((1 - c) * b * luma).expand(batch, 3, 1)
    flat = torch.baddbmm(offset, matrix, x.reshape(batch, 3, height * width))
    return flat.clamp_(0, 1).view(batch, 3, height, width)
