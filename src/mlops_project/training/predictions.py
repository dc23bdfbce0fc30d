"""The predictions of an epoch, collected batch by batch."""

from __future__ import annotations

import torch

START = 1024  # images that there is room for at first


class Predictions:
    """What is known of each image, in one table for each name.

    The tensors of the batches are copied, not kept: small ones that stay lie between the large ones
    that come and go, so that the memory in between fits nothing any more. At 64 px a process grew
    by 100 KB for each image that it validated.
    """

    def __init__(self) -> None:
        self._tables: dict[str, torch.Tensor] = {}
        self._count = 0

    def add(self, batch: dict[str, torch.Tensor]) -> None:
        """Takes in a batch, without waiting for its device.

        Args:
            batch: values of B images [B, …], the same names each time.
        """
        stop = self._count + len(next(iter(batch.values())))
        for name, values in batch.items():
            table = self._tables.get(name)
            # What a resumed run has brought along is on the CPU.
            if table is None or len(table) < stop or table.device != values.device:
                larger = values.new_empty((max(START, 2 * stop), *values.shape[1:]))
                if table is not None:
                    larger[: self._count] = table[: self._count]
                self._tables[name] = table = larger
            table[self._count : stop] = values
        self._count = stop

    def joined(self) -> dict[str, torch.Tensor]:
        """Values [N, …] of all images so far under each name; nothing where there were none."""
        return {name: table[: self._count].clone() for name, table in self._tables.items()}
