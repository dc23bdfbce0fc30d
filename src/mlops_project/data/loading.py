"""From decoded images to batches, in this process or in others."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from mlops_project.data.archives import read_bytes
from mlops_project.data.cache import ImageCache
from mlops_project.data.crops import cut, places
from mlops_project.data.decode import decode
from mlops_project.data.sampling import EvaluationBatches, Request
from mlops_project.errors import ENDING_SIGNALS, ProjectError, worker_failure
from mlops_project.printable import first_line
from mlops_project.threads import usable_cores

log = logging.getLogger("mlops_project")

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
# What a process of its own has to save an image to be worth asking: handing a batch over from it
# costs about as much.
WORTH_A_WORKER = 200e-6  # seconds an image
TRIAL_SECONDS = 1.0  # of each number of workers
TRIAL_BATCHES = 32  # at most, besides those that the workers have ready at first


class Undecoded:
    """Images that are decoded whenever they are shown, where no cache is wanted.

    Args:
        table: a source's table.
        side: of the decoded squares, pixels.
    """

    unreadable: ClassVar[dict[int, str]] = {}  # not known before they are shown

    def __init__(self, table: pd.DataFrame, side: int) -> None:
        self.names = table["image_id"].to_numpy()
        self.paths, self.members = table["path"].to_numpy(), table["member"].to_numpy()
        self.side = side
        self._pool: ThreadPoolExecutor | None = None

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Decodes rows, int64 [B], to uint8 [B, 3, side, side].

        Raises:
            ProjectError: one of them cannot be read.
        """
        if get_worker_info() is not None:  # one of several processes, with one thread each
            return np.stack([self._decode(row) for row in rows])
        if self._pool is None:
            self._pool = ThreadPoolExecutor(usable_cores())
        return np.stack(list(self._pool.map(self._decode, rows)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}

    def _decode(self, row: int) -> np.ndarray:
        try:
            return decode(read_bytes(self.paths[row], self.members[row]), self.side)
        except (OSError, ValueError) as error:
            raise ProjectError(
                f"{self.names[row]}: the image cannot be read ({first_line(error)})\n"
                "With data.cache=auto such images are found before the training and left out."
            ) from error


class DecodedImages(Dataset):
    """Batches cut from decoded images: ask it with (epoch, draws) to get a `Batch`.

    Args:
        source: of the pixels.
        labels: int64 [N], for each row of the table.
        size: side of the crops, pixels.
        augment: settings and seed of random crops and flips; None: centre crops.
        places_only: leave the cutting to a device that has the images, and give only `places`.
    """

    def __init__(
        self,
        source: ImageCache | Undecoded,
        labels: np.ndarray,
        size: int,
        augment: dict[str, Any] | None = None,
        *,
        places_only: bool = False,
    ) -> None:
        self.source, self.labels, self.size, self.augment = source, labels, size, augment
        self.places_only = places_only

    def __getitem__(self, request: Request) -> Batch | ProjectError:
        try:
            return self.batch(*request)
        except ProjectError as error:
            return error  # raised by the loader: through a worker it would be a traceback

    def batch(self, epoch: int, draws: np.ndarray) -> Batch:
        """The images of these draws, int64 [B], as an epoch shows them.

        Raises:
            ProjectError: there is no cache, and one of them cannot be read.
        """
        rows = draws % len(self.labels)
        margin = self.source.side - self.size
        if self.augment is None:
            where = places(rows, margin)
        else:
            where = places(rows, margin, draws=draws, epoch=epoch, **self.augment)
        if self.places_only:
            images = torch.from_numpy(where)
        elif isinstance(self.source, ImageCache):
            images = cut(self.source.images, where, self.size)
        else:
            decoded = self.source.take(rows)
            where[:, 0] = np.arange(len(rows))
            images = cut(decoded, where, self.size)
        return images, torch.from_numpy(self.labels[rows]), torch.from_numpy(draws)


class Loader(DataLoader):
    """Batches of a dataset, with a clock.

    Attributes:
        waited: how long whoever iterates has waited for batches so far, seconds.
    """

    def __init__(
        self, dataset: DecodedImages, batches: Sampler, workers: int, **options: Any
    ) -> None:
        super().__init__(
            dataset,
            sampler=batches,
            batch_size=None,  # the sampler asks for whole batches
            num_workers=workers,
            worker_init_fn=_leave_signals_to_the_main_process,
            **options,
        )
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        began = time.perf_counter()
        for batch in super().__iter__():
            self.waited += time.perf_counter() - began
            if isinstance(batch, ProjectError):
                raise batch
            yield batch
            began = time.perf_counter()


def trial_batches(rows: np.ndarray, batch_size: int, most: int) -> EvaluationBatches:
    """Batches to try out up to `most` workers, of the rows again and again where they are few."""
    batch_size = min(batch_size, len(rows))
    rows = np.resize(rows, batch_size * (TRIAL_BATCHES + 2 * most + 1))
    return EvaluationBatches(rows, batch_size=batch_size)


def choose_workers(make: Callable[[int], Loader], most: int) -> int:
    """The fewest processes that prepare batches about as fast as any number does, by trial.

    Args:
        make: a loader of trial batches with so many workers.
        most: workers to try.

    Returns:
        0 where this process is fast enough by itself, as it is with a cache.
    """
    tried = {0: _seconds_an_image(make(0))}
    count = 1
    while tried[0] > WORTH_A_WORKER and count <= most:
        try:
            tried[count] = _seconds_an_image(make(count))
        except RuntimeError as error:
            failure = worker_failure(error)
            if failure is None:
                raise
            log.warning("data.num_workers=%d: %s", count, failure.splitlines()[0])
            break
        count = min(2 * count, most) if count < most else most + 1
    chosen = min(n for n, seconds in tried.items() if seconds <= 1.1 * min(tried.values()))
    if len(tried) > 1:
        rates = ", ".join(f"{n}: {1 / seconds:.0f} images/s" for n, seconds in tried.items())
        log.info("data.num_workers=auto: %d (%s)", chosen, rates)
    return chosen


def _seconds_an_image(loader: Loader) -> float:
    batches = iter(loader)
    # Past the start of the workers and cold files, and past what they had ready by then.
    for _ in islice(batches, 1 + 2 * loader.num_workers):
        pass
    images, began = 0, time.perf_counter()
    for batch in batches:
        images += len(batch[1])
        if time.perf_counter() - began > TRIAL_SECONDS:
            break
    return (time.perf_counter() - began) / images if images else math.inf


def _leave_signals_to_the_main_process(worker: int) -> None:
    # Ctrl-C reaches every process of a terminal; the step in flight still needs its batch.
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
