"""In which order images are seen: a function of (seed, epoch) alone.

Whoever knows the epoch and how many batches are done knows what comes next, so a resumed run needs
no state of a loader, and any number of workers or processes sees the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from mlops_project.data import randomness

# data.sampler: how often a class is shown, as its number of images to a power
POWERS = {"shuffle": 1.0, "square_root": 0.5, "balanced": 0.0}
Request = tuple[int, np.ndarray]  # (epoch, draws int64 [B]): what a dataset is asked for


class TrainingBatches(Sampler):
    """The batches of each training epoch.

    A draw is a row number; where a rare class's image is shown again within an epoch, its
    draw is row + repetition x `images`, so that each showing is augmented differently.

    Args:
        rows: rows of the table to train on, int64 [N].
        labels: their labels, int64 [N].
        images: rows in the whole table.
        batch_size: images a batch and process.
        seed: of the order.
        power: each class is shown in proportion to its number of images to this power, the images
            of rare ones repeatedly; 1: every image once.
        rank, world: this process and how many there are. Each batch of the one-process order with
            batch_size x world images is dealt out to the processes in turn; in the last one, some
            may get an image more than others.
    """

    def __init__(
        self,
        rows: np.ndarray,
        labels: np.ndarray,
        *,
        images: int,
        batch_size: int,
        seed: int,
        power: float = 1.0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.rows, self.labels, self.images = np.asarray(rows, dtype=np.int64), labels, images
        self.batch_size, self.seed, self.power = batch_size, seed, power
        self.rank, self.world = rank, world
        self.epoch = 0
        self.done = 0  # batches of this epoch that a resumed run has behind it
        self._passed = False  # to the end of this epoch

    def start_at(self, epoch: int, done: int) -> None:
        """Goes on after `done` batches of an epoch."""
        self.epoch, self.done, self._passed = epoch, done, False

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch; else a pass to the end leads to the next one."""
        if epoch != self.epoch:
            self.done = 0
        self.epoch, self._passed = epoch, False

    def __len__(self) -> int:
        return len(self._bounds())

    def __iter__(self) -> Iterator[Request]:
        if self._passed:
            self.epoch, self.done = self.epoch + 1, 0
        epoch, order, bounds = self.epoch, self._order(), self._bounds()[self.done :]
        self._passed = not bounds
        for start, stop in bounds:
            # With the last batch already: who counts the batches does not ask for one more.
            self._passed = (start, stop) == bounds[-1]
            yield epoch, order[start:stop][self.rank :: self.world]

    def images_per_step(self, batches: int, limit: int | None = None) -> list[int]:
        """Images of each optimizer step of an epoch, of all processes together.

        Args:
            batches: that make one step.
            limit: batches an epoch, at most.
        """
        sizes = [stop - start for start, stop in self._bounds()[:limit]]
        return [sum(sizes[i : i + batches]) for i in range(0, len(sizes), batches)]

    def _bounds(self) -> list[tuple[int, int]]:
        total, step = len(self.rows), self.batch_size * self.world
        bounds = [(start, min(start + step, total)) for start in range(0, total, step)]
        if len(bounds) > 1:
            start, stop = bounds[-1]
            # Every process takes part in every step. Batch normalisation cannot learn from one
            # image, be it of one process or of several; each epoch leaves out others.
            if stop - start < self.world or (self.batch_size > 1 and stop - start == 1):
                bounds.pop()
        return bounds

    def _order(self) -> np.ndarray:
        if self.power == 1:
            return randomness.permutation(self.seed, self.epoch, self.rows)
        draws = []
        classes, counts = np.unique(self.labels, return_counts=True)
        quotas = len(self.rows) * counts**self.power / (counts**self.power).sum()
        shares = np.floor(quotas + 1e-9).astype(np.int64)
        # What is left goes to the largest remainders.
        order = np.argsort(shares - quotas, kind="stable")
        shares[order[: len(self.rows) - shares.sum()]] += 1
        for label, share in zip(classes, shares, strict=True):
            members = randomness.permutation(
                self.seed, self.epoch, self.rows[self.labels == label], "class"
            )
            repetition, position = np.divmod(np.arange(share), len(members))
            draws.append(members[position] + repetition * self.images)
        return randomness.permutation(self.seed, self.epoch, np.concatenate(draws))


class EvaluationBatches(Sampler):
    """Every row in order; each process takes every `world`-th batch.

    All processes get as many, since all must take part in a gathering; those that would have one
    less show the first batch again, and who gathers has to drop it.

    Args:
        rows: int64 [N].
        batch_size: images a batch.
        rank, world: this process and how many there are.
    """

    def __init__(
        self,
        rows: np.ndarray,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        starts = list(range(rank * batch_size, len(rows), world * batch_size))
        starts += [0] * (math.ceil(len(rows) / (world * batch_size)) - len(starts))
        self.batches = [np.asarray(rows[s : s + batch_size], dtype=np.int64) for s in starts]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Request]:
        for batch in self.batches:
            yield 0, batch
