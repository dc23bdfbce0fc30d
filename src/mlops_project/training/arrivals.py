"""Small results of a device, read without making the program wait for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch


class Arrivals:
    """Values on their way from the device, in order, each with a note of what it is."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Any, torch.Tensor, torch.cuda.Event | None]] = deque()

    def put(self, note: Any, value: torch.Tensor) -> None:
        """Sends a value on its way."""
        value, arrived = value.detach(), None
        if value.is_cuda:
            value = value.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._waiting.append((note, value, arrived))

    def take(self, *, wait: bool = False) -> Iterator[tuple[Any, torch.Tensor]]:
        """Yields the notes and values that have arrived, each once.

        Args:
            wait: whether to wait for those that have not.
        """
        while self._waiting:
            note, value, arrived = self._waiting[0]
            if arrived is not None:
                if wait:
                    arrived.synchronize()
                elif not arrived.query():
                    return
            self._waiting.popleft()
            yield note, value
