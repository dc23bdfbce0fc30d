"""What is on its way to the device, and batches cut from images that are there already."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mlops_project.data.crops import cut_on_device

# data.device_cache=auto: the share of a GPU's memory that images may take; the network has the rest
SHARE = 0.25
CHUNK = 256  # images brought to the device at once


class DeviceImages:
    """Decoded images in the memory of a device.

    Args:
        images: uint8 [N, 3, C, C], all rows of the table.
        rows: those to bring, int64 [M]; no others can be asked for.
        device: where to.
    """

    def __init__(self, images: np.ndarray, rows: np.ndarray, device: torch.device) -> None:
        self.device = device
        shape = (len(rows), *images.shape[1:])
        self.images = torch.empty(shape, dtype=torch.uint8, device=device)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            self.images[part] = torch.from_numpy(images[rows[part]]).to(device)
        position = np.zeros(len(images), dtype=np.int64)
        position[rows] = np.arange(len(rows))
        self.position = torch.from_numpy(position).to(device)

    def cut(self, where: torch.Tensor, size: int) -> torch.Tensor:
        """Crops of side `size` at `crops.places` int64 [B, 6], which are on the device too."""
        return cut_on_device(self.images, self.position[where[:, 0]], where, size)


def has_room(images: np.ndarray, rows: np.ndarray, device: torch.device) -> bool:
    """Whether a device is a GPU, and has memory to spare for so many of the images."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    return len(rows) * images[0].nbytes <= min(SHARE * total, free / 2)


class Transfer:
    """Brings tensors to a device; to a GPU on a stream of its own.

    The copy of a batch out of pinned memory then runs while the network computes the one before.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        if self._stream is None:
            return [tensor.to(self.device) for tensor in tensors]
        now = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            copies = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
        now.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(now)
        return copies


class Delivery:
    """Brings batches to a device, out of images that are there where they fit.

    Args:
        wanted: `data.device_cache`: True, False or "auto".
        size: side of the crops, pixels.

    Attributes:
        images: those in the device's memory; None where batches travel.
    """

    def __init__(self, wanted: bool | str, size: int) -> None:
        self.wanted, self.size = wanted, size
        self.images: DeviceImages | None = None
        self._transfer: Transfer | None = None

    def prepare(self, images: np.ndarray, rows: np.ndarray, device: torch.device) -> bool:
        """Whether rows, int64 [M], of images uint8 [N, 3, C, C] are there; brings them if so."""
        if self.images is not None and self.images.device == device:
            return True
        if self.wanted is False or (self.wanted == "auto" and not has_room(images, rows, device)):
            return False
        self.images = DeviceImages(images, rows, device)
        return True

    def __call__(
        self, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A batch on the device, but for its rows, which are read on the CPU."""
        if self._transfer is None or self._transfer.device != device:
            self._transfer = Transfer(device)
        images, labels, rows = batch
        images, labels = self._transfer(images, labels)
        if images.ndim == 2:  # places
            assert self.images is not None
            images = self.images.cut(images, self.size)
        return images, labels, rows


def to_device(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
    """A small table on the device, without waiting for it; float64 becomes float32."""
    table = torch.from_numpy(numbers.astype(np.float32) if numbers.dtype == np.float64 else numbers)
    if device.type == "cuda":
        table = table.pin_memory()  # out of other memory, a copy may wait for the work before it
    return table.to(device, non_blocking=True)
