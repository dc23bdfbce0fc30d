"""Splits and subsamples: whole lesions, balanced, and the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_project.data.diagnoses import DIAGNOSES
from mlops_project.data.splits import (
    SAME_LESION,
    SPLITS,
    into_folds,
    split_by_lesion,
    split_hash,
    subsample,
)
from mlops_project.data.tables import read_rows

FRACTIONS = (0.001, 0.01, 0.1, 0.5, 1.0)
SEEDS = st.integers(0, 2**32)
# Of `_fixed_table` with seed 42, all of it and half of it: they must never change, since a resumed
# run would train on what was its test set.
PINNED_HASH = "2387f371bff674d1"
PINNED_HASH_OF_HALF = "e2b51fbe775ef8be"


def _table(lesions: list[tuple[str, int]]) -> pd.DataFrame:
    """A table with the given (diagnosis, number of images) of each lesion."""
    rows = [
        (f"HAM_{lesion:07d}", dx)
        for lesion, (dx, images) in enumerate(lesions)
        for _ in range(images)
    ]
    table = pd.DataFrame(rows, columns=["lesion_id", "dx"])
    table.insert(0, "image_id", [f"ISIC_{row:07d}" for row in range(len(table))])
    return table


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """One to seven diagnoses of one to some hundred lesions of one to seven images each."""
    lesions: list[tuple[str, int]] = []
    for dx in draw(st.lists(st.sampled_from(list(DIAGNOSES)), min_size=1, max_size=7, unique=True)):
        sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=8))
        lesions += [(dx, images) for images in sizes * draw(st.sampled_from((1, 1, 3, 20)))]
    return _table(lesions)


def _fixed_table() -> pd.DataFrame:
    return _table([(dx, 1 + n % 3) for dx in DIAGNOSES for n in range(10)])


@given(tables(), SEEDS, st.data())
@settings(deadline=None)
def test_a_lesion_is_never_in_two_splits(
    table: pd.DataFrame, seed: int, data: st.DataObject
) -> None:
    if data.draw(st.booleans(), label="images of a lesion differ in their diagnosis"):
        table["dx"] = np.random.default_rng(seed).permutation(table["dx"])
    split = split_by_lesion(table, seed)
    assert set(split) <= set(SPLITS)
    assert len(split) == len(table)
    assert (pd.Series(split).groupby(table["lesion_id"]).nunique() == 1).all()


@given(tables(), SEEDS, st.sampled_from(("HAM_{}", "häm_{}", "{}")))
@settings(deadline=None, max_examples=40)
def test_a_lesion_whose_id_is_spelled_in_several_ways_is_never_in_two_splits(
    tmp_path_factory: pytest.TempPathFactory, table: pd.DataFrame, seed: int, name: str
) -> None:
    """As where exports of several programs were merged into one table."""
    number = pd.Series(table["lesion_id"].factorize()[0])
    clean = number.map(lambda n: name.format(n + 1))
    ways: list[Callable[[str], str]] = [str.upper, str.lower]
    ways += [lambda n: unicodedata.normalize("NFD", n)]
    ways += [lambda n: f"{n}.0" if n.isdecimal() else n.title()]
    drawn = np.random.default_rng(seed).integers(0, len(ways), len(table))
    spelled = pd.Series([ways[way](n) for way, n in zip(drawn, clean, strict=True)])

    def read(lesions: pd.Series) -> pd.DataFrame:
        path = tmp_path_factory.mktemp("table") / "metadata.csv"
        table.assign(lesion_id=lesions).to_csv(path, index=False)
        return read_rows(path, "plain", path.parent)

    merged = read(spelled)
    split = split_by_lesion(merged, seed)
    for parts in (split, into_folds(merged, split, seed, 3, 0)):
        assert (pd.Series(parts).groupby(number).nunique() == 1).all()
    assert merged["lesion_id"].nunique() == number.nunique(), "other lesions stay apart"
    backwards = read(spelled[::-1].reset_index(drop=True))["lesion_id"].tolist()
    assert backwards[::-1] == merged["lesion_id"].tolist(), "whatever the order of the rows"
    assert read(clean)["lesion_id"].tolist() == clean.tolist(), "what was right stays as it is"


@given(tables(), SEEDS, st.sampled_from(FRACTIONS), st.booleans())
@settings(deadline=None, max_examples=40)
def test_split_and_subsample_do_not_depend_on_the_order_of_the_table(
    table: pd.DataFrame, seed: int, fraction: float, stratified: bool
) -> None:
    order = np.random.default_rng(seed).permutation(len(table))
    shuffled = table.iloc[order]
    split = split_by_lesion(table, seed)
    assert (split_by_lesion(shuffled, seed) == split[order]).all()
    kept = subsample(table, split, fraction, stratified, seed)
    assert (subsample(shuffled, split[order], fraction, stratified, seed) == kept[order]).all()


@given(tables(), SEEDS, st.sampled_from(((0.15, 0.15), (0.1, 0.2), (0.3, 0.3), (0.05, 0.4))))
@settings(deadline=None)
def test_every_diagnosis_has_its_share_in_every_split(
    table: pd.DataFrame, seed: int, fractions: tuple[float, float]
) -> None:
    split = split_by_lesion(table, seed, *fractions)
    targets = dict(zip(SPLITS, (1 - sum(fractions), *fractions), strict=True))
    for _, rows in table.groupby("dx"):
        images = rows.groupby("lesion_id").size()
        if len(images) >= len(SPLITS):
            assert set(split[rows.index]) == set(SPLITS)
        for name, target in targets.items():
            excess = (split[rows.index] == name).sum() - target * len(rows)
            # None gets a lesion too many, so that one can lack what the other two have too much.
            assert -2 * images.max() < excess < images.max()


@given(tables(), SEEDS)
@settings(deadline=None, max_examples=30)
def test_two_names_of_one_lesion_are_in_one_split(table: pd.DataFrame, seed: int) -> None:
    pair = next(iter(SAME_LESION.items()))
    images = pd.DataFrame({"image_id": pair, "lesion_id": pair, "dx": "nv"})
    table = pd.concat([table, images], ignore_index=True)
    split = split_by_lesion(table, seed)
    assert split[-2] == split[-1]
    folds = [into_folds(table, split, seed, 3, fold)[-2:] for fold in range(3)]
    assert all(one == other for one, other in folds)


def test_another_seed_gives_another_split_and_subsample() -> None:
    table = _fixed_table()
    splits = [split_by_lesion(table, seed) for seed in (42, 43)]
    assert (splits[0] != splits[1]).any()
    kept = [subsample(table, splits[0], 0.5, True, seed) for seed in (42, 43)]
    assert (kept[0] != kept[1]).any()


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_the_split_is_the_same_in_every_process(tmp_path: Path, hash_seed: str) -> None:
    program = (
        "import sys, numpy as np, pandas as pd\n"
        "from mlops_project.data.splits import split_by_lesion, split_hash, subsample\n"
        "table = pd.read_csv(sys.argv[1])\n"
        "split = split_by_lesion(table, 42)\n"
        "half = np.where(subsample(table, split, 0.5, True, 42), split, 'unused')\n"
        "print(split_hash(table, split), split_hash(table, half))\n"
    )
    _fixed_table().to_csv(tmp_path / "table.csv", index=False)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "table.csv")],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [PINNED_HASH, PINNED_HASH_OF_HALF]


def test_the_hash_names_what_is_where_in_any_order() -> None:
    table = _fixed_table()
    split = split_by_lesion(table, 42)
    assert split_hash(table, split) == PINNED_HASH
    assert split_hash(table[::-1], split[::-1]) == PINNED_HASH
    moved = split.copy()
    moved[0] = "val" if split[0] == "train" else "train"
    assert split_hash(table, moved) != PINNED_HASH


@given(tables(), SEEDS, st.booleans())
@settings(deadline=None, max_examples=25)
def test_a_subsample_keeps_whole_lesions_of_every_stratum(
    table: pd.DataFrame, seed: int, stratified: bool
) -> None:
    split = split_by_lesion(table, seed)
    strata = [split, table["dx"]] if stratified else [split]
    smaller = np.zeros(len(table), dtype=bool)
    for fraction in FRACTIONS:
        kept = pd.Series(subsample(table, split, fraction, stratified, seed))
        assert kept[smaller].all(), "a smaller subsample is part of a larger one"
        smaller = kept.to_numpy()
        assert (kept.groupby(table["lesion_id"]).nunique() == 1).all()
        for _, rows in table.groupby(strata):
            assert kept[rows.index].any()
            largest = rows.groupby("lesion_id").size().max()
            assert abs(kept[rows.index].sum() - fraction * len(rows)) < largest
    assert smaller.all(), "a fraction of 1 keeps everything"


@given(tables(), SEEDS, st.integers(2, 10), st.sampled_from((0.0, 0.15, 0.3)))
@settings(deadline=None, max_examples=40)
def test_each_lesion_outside_the_test_split_is_in_one_validation_fold(
    table: pd.DataFrame, seed: int, folds: int, test_fraction: float
) -> None:
    split = split_by_lesion(table, seed, test_fraction=test_fraction)
    dealt = [into_folds(table, split, seed, folds, fold) for fold in range(folds)]
    for one in dealt:
        assert ((one == "test") == (split == "test")).all()
        assert (pd.Series(one).groupby(table["lesion_id"]).nunique() == 1).all()
    times = np.sum([one == "val" for one in dealt], axis=0)
    assert (times == (split != "test")).all()
    # No fold has more of a diagnosis than another, but for one lesion.
    for dx in table["dx"].unique():
        own = (table["dx"] == dx).to_numpy()
        sizes = [(one[own] == "val").sum() for one in dealt]
        largest = table[own].groupby("lesion_id").size().max()
        assert max(sizes) - min(sizes) <= largest


@given(tables(), SEEDS)
@settings(deadline=None)
def test_without_a_share_there_is_no_test_split(table: pd.DataFrame, seed: int) -> None:
    assert set(split_by_lesion(table, seed, test_fraction=0)) <= {"train", "val"}
