"""The order of images: each once an epoch, resumable anywhere, dealt out to any number of ranks."""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_project.data.sampling import EvaluationBatches, TrainingBatches

IMAGES = 1000
POWER = st.sampled_from([1.0, 0.5, 0.0])
COUNTS, BATCH_SIZES, WORLDS = st.integers(1, 60), st.integers(1, 9), st.integers(1, 4)


def _rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).permutation(IMAGES)[:count]


def _sampler(rows: np.ndarray, batch_size: int = 4, **options: Any) -> TrainingBatches:
    labels = rows % 3
    return TrainingBatches(rows, labels, images=IMAGES, batch_size=batch_size, seed=42, **options)


def _epoch(sampler: TrainingBatches, epoch: int = 0, done: int = 0) -> list[list[int]]:
    sampler.set_epoch(epoch)
    sampler.done = done
    requests = list(sampler)
    assert all(number == epoch for number, _ in requests)
    return [draws.tolist() for _, draws in requests]


def _flat(batches: list[list[int]]) -> list[int]:
    return [draw for batch in batches for draw in batch]


@given(COUNTS, BATCH_SIZES, st.integers(0, 5))
def test_an_epoch_shows_each_row_once(count: int, batch_size: int, epoch: int) -> None:
    rows = _rows(count)
    sampler = _sampler(rows, batch_size)
    batches = _epoch(sampler, epoch)
    assert len(sampler) == len(batches)
    seen = _flat(batches)
    # A last batch of a single image is left out: batch normalisation cannot learn from it.
    left_out = int(count > batch_size > 1 and count % batch_size == 1)
    assert len(seen) == len(set(seen)) == count - left_out
    assert set(seen) <= set(rows.tolist())
    assert all(len(batch) == batch_size for batch in batches[:-1])
    if count > 1 and batch_size > 1:
        assert all(len(batch) > 1 for batch in batches)


def test_epochs_and_seeds_differ_and_the_image_left_out_changes() -> None:
    rows = _rows(9)
    sampler = _sampler(rows)
    epochs = [_epoch(sampler, epoch) for epoch in range(20)]
    assert len({str(batches) for batches in epochs}) == 20
    left_out = {(set(rows.tolist()) - set(_flat(batches))).pop() for batches in epochs}
    assert len(left_out) > 3
    other = TrainingBatches(rows, rows % 3, images=IMAGES, batch_size=4, seed=43)
    assert _epoch(other) != epochs[0]


@given(COUNTS, BATCH_SIZES, WORLDS, POWER, st.data())
def test_a_resumed_epoch_goes_on_exactly(
    count: int, batch_size: int, world: int, power: float, data: st.DataObject
) -> None:
    options = {"world": world, "rank": world - 1, "power": power}
    whole = _epoch(_sampler(_rows(count), batch_size, **options), epoch=3)
    done = data.draw(st.integers(0, len(whole)), label="done")
    resumed = _sampler(_rows(count), batch_size, **options)
    assert _epoch(resumed, epoch=3, done=done) == whole[done:]
    resumed.set_epoch(3)
    assert resumed.done == done, "the same epoch is not begun anew"
    resumed.set_epoch(4)
    assert len(list(resumed)) == len(whole), "the next epoch is whole"


@given(COUNTS, BATCH_SIZES, POWER, st.data())
def test_a_pass_to_the_end_leads_to_the_next_epoch(
    count: int, batch_size: int, power: float, data: st.DataObject
) -> None:
    sampler = _sampler(_rows(count), batch_size, power=power)
    epochs = [_epoch(_sampler(_rows(count), batch_size, power=power), n) for n in range(6)]

    def passes() -> list[list[int]]:
        return [draws.tolist() for _, draws in sampler]

    assert [passes() for _ in range(3)] == epochs[:3]
    done = data.draw(st.integers(0, len(epochs[0])), label="done")
    sampler.start_at(3, done)
    assert passes() == epochs[3][done:]
    counted = [draws.tolist() for _, (_, draws) in zip(epochs[4], sampler, strict=False)]
    assert [counted, passes()] == epochs[4:], "by whoever counts the batches, too"
    sampler.set_epoch(1)
    assert [passes(), passes()] == epochs[1:3]
    next(iter(sampler))
    sampler.set_epoch(2)
    assert passes() == epochs[2], "who sets the epoch decides"


@given(COUNTS, BATCH_SIZES, st.integers(2, 4), POWER)
def test_ranks_deal_out_the_batches_of_one_process(
    count: int, batch_size: int, world: int, power: float
) -> None:
    rows = _rows(count)
    one = _epoch(_sampler(rows, batch_size * world, power=power))
    ranks = [
        _epoch(_sampler(rows, batch_size, power=power, rank=rank, world=world))
        for rank in range(world)
    ]
    order = _flat(one)
    for step, parts in enumerate(zip(*ranks, strict=True)):
        dealt = [draw for turn in zip_longest(*parts) for draw in turn if draw is not None]
        assert dealt == one[step], "the step is that of one process"
        order = order[len(dealt) :]
        if step > 0:
            assert len(parts[-1]) > 0, "every process takes part"
    assert len(order) < world, "left out is only what does not go round"


@given(st.integers(3, 90), BATCH_SIZES, WORLDS)
def test_the_balanced_sampler_shows_each_class_equally_often(
    count: int, batch_size: int, world: int
) -> None:
    rows = np.arange(count)
    # Skewed: the last image is the only one of class 2, a fifth of the rest are of class 1.
    labels = np.where(rows == count - 1, 2, (rows % 5 == 1).astype(int))
    sampler = TrainingBatches(
        rows, labels, images=IMAGES, batch_size=batch_size, seed=42, power=0.0
    )
    draws = np.array(_flat(_epoch(sampler)))
    left_out = count - len(draws)
    assert left_out <= 1
    assert len(set(draws.tolist())) == len(draws), "each showing has a draw of its own"
    shown = np.bincount(labels[draws % IMAGES], minlength=3)
    assert shown.max() - shown.min() <= 1 + left_out
    for label in range(3):
        times = np.bincount(draws % IMAGES, minlength=count)[labels == label]
        assert times.max() - times.min() <= 1 + left_out, "no image is favoured within its class"


@given(st.lists(st.integers(1, 400), min_size=2, max_size=7), st.sampled_from([0.5, 0.0, 0.8]))
def test_a_class_is_shown_in_proportion_to_a_power_of_its_images(
    counts: list[int], power: float
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(labels))
    sampler = TrainingBatches(rows, labels, images=len(rows), batch_size=1, seed=42, power=power)
    shown = np.bincount(labels[np.array(_flat(_epoch(sampler))) % len(rows)], minlength=len(counts))
    weights = np.array(counts) ** power
    assert shown.sum() == len(rows)
    assert np.abs(shown - len(rows) * weights / weights.sum()).max() < 1


def test_the_balanced_sampler_shows_other_images_of_a_common_class_in_each_epoch() -> None:
    rows = np.arange(100)
    labels = (rows >= 90).astype(int)
    sampler = TrainingBatches(rows, labels, images=IMAGES, batch_size=10, seed=42, power=0.0)
    common = [set(_flat(_epoch(sampler, epoch))) & set(range(90)) for epoch in range(10)]
    assert all(len(shown) == 50 for shown in common)
    assert set.union(*common) == set(range(90))


@given(st.integers(0, 60), BATCH_SIZES, WORLDS)
def test_evaluation_shows_every_row_once_and_in_order_before_it_shows_any_again(
    count: int, batch_size: int, world: int
) -> None:
    rows = _rows(count)
    ranks = [
        EvaluationBatches(rows, batch_size=batch_size, rank=rank, world=world)
        for rank in range(world)
    ]
    in_turn = zip(*[[draws.tolist() for _, draws in rank] for rank in ranks], strict=True)
    shown = [batch for batches in in_turn for batch in batches]
    alone = math.ceil(count / batch_size)
    assert _flat(shown[:alone]) == rows.tolist()
    assert all(len(batch) == batch_size for batch in shown[: alone - 1])


@given(st.integers(1, 60), BATCH_SIZES, WORLDS)
def test_processes_that_gather_show_as_many_batches_each_and_nothing_new(
    count: int, batch_size: int, world: int
) -> None:
    rows = _rows(count)
    ranks = [
        EvaluationBatches(rows, batch_size=batch_size, rank=rank, world=world)
        for rank in range(world)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    shown = [draws.tolist() for rank in ranks for _, draws in rank]
    assert {row for batch in shown for row in batch} == set(rows.tolist())
    starts = range(0, count, batch_size)
    alone = [rows[start : start + batch_size].tolist() for start in starts]
    assert all(batch in alone for batch in shown), "the batches are those of one process"


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
def test_the_order_depends_neither_on_the_rows_order_nor_on_what_was_drawn(power: float) -> None:
    rows = _rows(30)
    sampler = _sampler(rows, power=power)
    later = [_epoch(sampler, epoch) for epoch in range(4)][3]
    assert _epoch(_sampler(rows, power=power), 3) == later
    assert _epoch(_sampler(rows[::-1], power=power), 3) == later
