"""Progressive resizing: the training images of early epochs are smaller, which saves time."""

from __future__ import annotations

from mlops_project.config import DEFAULT_IMAGE_SIZE, Config


def side_in(epoch: int, config: Config, time_used: float = 0.0) -> int:
    """Side of the training images in an epoch, pixels.

    It rises evenly from data.start_size in the first epoch to data.image_size in the last one, in
    steps of 16, which most networks divide by. The last one is that of training.max_epochs, or the
    one that training.max_time will end in, if the epochs go on taking as long as so far.

    Args:
        epoch: counted from 0.
        config: of the run.
        time_used: share of training.max_time that the epochs before have taken.
    """
    sides = sides_in(config)
    start, end = sides[0], sides[-1]
    last = float(config.training.max_epochs - 1)
    if epoch and time_used:
        last = min(last, epoch / time_used - 1)
    if epoch >= last:
        return end
    if epoch == 0:
        return start
    return min(end, max(start, round((start + (end - start) * epoch / last) / 16) * 16))


def sides_in(config: Config) -> list[int]:
    """All sides that training images may have in a run, pixels, in rising order."""
    end = config.data.image_size or DEFAULT_IMAGE_SIZE
    start = config.data.start_size or end
    return sorted({start, *range(-(-start // 16) * 16, end, 16), end})
