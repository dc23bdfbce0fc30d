"""Random numbers: functions of their coordinates, uniform, independent, the same everywhere."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mlops_project.data.randomness import hashes, integers, permutation, seed_for, uniform

ROWS = np.arange(20_000)
SEEDS = st.integers(0, 2**63 - 1)
SOME_ROWS = st.lists(st.integers(0, 10**6), min_size=1, max_size=50, unique=True)


@given(SEEDS, st.integers(0, 10**4), SOME_ROWS, st.randoms(use_true_random=False))
def test_a_number_depends_on_its_coordinates_alone(seed, epoch, rows, random) -> None:
    numbers = uniform(seed, epoch, np.array(rows), "crop", 3)
    positions = random.sample(range(len(rows)), random.randint(1, len(rows)))
    some = uniform(seed, epoch, np.array(rows)[positions], "crop", 3)
    assert (some == numbers[positions]).all()
    assert (uniform(seed, epoch, np.array(rows), "crop") == numbers[:, :1]).all()
    assert ((numbers >= 0) & (numbers < 1)).all()


def test_numbers_are_the_same_on_every_machine() -> None:
    assert hashes(42, 3, np.array([0, 10_014]), "crop", 2).tolist() == [
        [11110103258913130278, 9719817954606390283],
        [3089905354344487601, 8950463252403969077],
    ]
    assert permutation(42, 0, np.arange(8)).tolist() == [6, 7, 2, 4, 3, 5, 1, 0]
    # The first output of SplitMix64 for this seed, in its halves: seeds have 63 bits.
    assert seed_for(1234567) == 6457827717110365317 >> 1


def test_different_rows_never_share_a_number() -> None:
    numbers = hashes(42, 0, ROWS, "crop", 2)
    assert len(np.unique(numbers)) == numbers.size


def test_numbers_are_uniform() -> None:
    for seed, epoch, stream in ((42, 0, "crop"), (42, 1, "crop"), (0, 0, "flip"), (2**40, 7, "a")):
        for numbers in uniform(seed, epoch, ROWS, stream, 3).T:
            assert abs(numbers.mean() - 0.5) < 4 / np.sqrt(12 * len(ROWS))
            assert stats.kstest(numbers, "uniform").pvalue > 0.001
    bits = np.unpackbits(hashes(42, 0, ROWS, "crop").view(np.uint8), axis=1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 4 / np.sqrt(4 * len(ROWS))


def test_integers_take_every_value_equally_often() -> None:
    numbers = integers(42, 0, ROWS, "crop", 7, 2)
    counts = np.bincount(numbers.ravel(), minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > 0.001


def test_seeds_epochs_streams_columns_and_neighbours_are_independent() -> None:
    numbers = {
        "reference": uniform(42, 0, ROWS, "crop")[:, 0],
        "other seed": uniform(43, 0, ROWS, "crop")[:, 0],
        "other epoch": uniform(42, 1, ROWS, "crop")[:, 0],
        "seed and epoch exchanged": uniform(0, 42, ROWS, "crop")[:, 0],
        "other stream": uniform(42, 0, ROWS, "flip")[:, 0],
        "other column": uniform(42, 0, ROWS, "crop", 2)[:, 1],
        "next row": uniform(42, 0, ROWS + 1, "crop")[:, 0],
        "repetition": uniform(42, 0, ROWS + 10_015, "crop")[:, 0],
    }
    for (name, a), (other, b) in itertools.combinations(numbers.items(), 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / np.sqrt(len(ROWS)), (name, other)


@given(SEEDS, st.integers(0, 10**4), SOME_ROWS)
def test_a_permutation_holds_every_row_once_whatever_their_order(seed, epoch, rows) -> None:
    order = permutation(seed, epoch, np.array(rows))
    assert sorted(order) == sorted(rows)
    assert (permutation(seed, epoch, np.array(rows)[::-1]) == order).all()


def test_permutations_of_other_epochs_differ_and_favour_no_place() -> None:
    orders = np.array([permutation(42, epoch, np.arange(10)) for epoch in range(2000)])
    assert len(np.unique(orders, axis=0)) > 1990
    for place in orders.T:
        assert stats.chisquare(np.bincount(place, minlength=10)).pvalue > 0.001


@given(SEEDS, st.lists(st.integers(0, 10**6), min_size=1, max_size=3))
def test_a_derived_seed_is_a_seed_and_depends_on_every_part(seed, parts) -> None:
    derived = seed_for(seed, *parts)
    assert 0 <= derived < 2**63
    assert derived == seed_for(seed, *parts)
    for i in range(len(parts)):
        others = [part + (i == j) for j, part in enumerate(parts)]
        assert seed_for(seed, *others) != derived
    assert seed_for(seed + 1, *parts) != derived
