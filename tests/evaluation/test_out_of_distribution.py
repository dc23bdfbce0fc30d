"""Scores see only other lesions, the threshold keeps its promise, and what fails is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from mlops_project.evaluation.out_of_distribution import (
    COUNT,
    FALSE_ALARMS,
    WORST,
    distances,
    fit_threshold,
    judge,
)
from mlops_project.evaluation.synthetic_images import KINDS, synthetic_images

SIDE = 32


def unit(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.maximum(lengths, 1e-12)).astype(np.float32)


def sample(seed: int, n: int, lesions: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return unit(random.normal(size=(n, 5))), random.integers(0, lesions, n).astype(str)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 20),
    m=st.integers(1, 20),
    k=st.integers(1, 6),
    lesions=st.integers(1, 6),
)
def test_a_score_is_the_distance_to_the_kth_image_of_another_lesion_in_any_order(
    seed: int, n: int, m: int, k: int, lesions: int
) -> None:
    features, own = sample(seed, n, lesions)
    known, theirs = sample(seed + 1, m, lesions)
    found = distances(features, own, known, theirs, k)
    for i in range(n):
        others = sorted(1 - features[i] @ known[j] for j in range(m) if theirs[j] != own[i])
        expected = others[k - 1] if len(others) >= k else np.inf
        assert found[i] == pytest.approx(expected, abs=1e-5)
    order = np.random.default_rng(seed).permutation(m)
    again = distances(features, own, known[order], theirs[order], k)
    assert again == pytest.approx(found, abs=1e-5)


def test_copies_of_an_image_do_not_make_it_known() -> None:
    """Ten pictures of one odd lesion are odd, though each is near the nine others."""
    known, theirs = unit(np.tile([1.0, 0, 0], (60, 1))), np.arange(60).astype(str)
    odd, of_odd = unit(np.tile([0, 1.0, 0], (10, 1))), np.full(10, "odd")
    every, lesions = np.concatenate([known, odd]), np.concatenate([theirs, of_odd])
    scores = distances(every, lesions, every, lesions)
    assert scores[-10:] == pytest.approx(1)
    assert scores[:-10] == pytest.approx(0)
    strangers = np.arange(100, 110).astype(str)
    assert distances(odd, strangers, every, lesions) == pytest.approx(0)


@given(
    st.lists(st.one_of(st.integers(0, 5), st.floats(0, 2)), min_size=1, max_size=200),
    st.sampled_from([0.01, 0.05, 0.2]),
)
def test_no_more_of_the_validation_images_are_flagged_than_stated(
    scores: list[float], rate: float
) -> None:
    values = np.array(scores, dtype=float)
    threshold = fit_threshold(values, rate)
    assert (values > threshold).mean() <= rate
    assert np.isfinite(threshold) == (len(values) >= round(1 / rate) - 1)


def test_new_images_raise_as_many_false_alarms_as_stated() -> None:
    """Over many validation splits, as a law: at most 5 %, and at least 1 / (n + 1) less."""
    random = np.random.default_rng(5)
    for n in (19, 50):
        thresholds = [fit_threshold(random.random(n)) for _ in range(4000)]
        rate = 1 - np.mean(thresholds)  # of uniform scores
        assert FALSE_ALARMS - 1 / (n + 1) - 0.003 < rate < FALSE_ALARMS + 0.003


def lesion_images(n: int, seed: int) -> np.ndarray:
    """Dark spots on skin, uint8 [n, 3, SIDE, SIDE]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    radius = random.uniform(0.2, 0.35, (n, 1, 1, 1))
    inside = 1 / (1 + np.exp(40 * (np.hypot(x, y) - radius)))
    skin = random.normal([220, 170, 150], 8, (n, 3))[:, :, None, None]
    spot = random.normal([120, 70, 50], 12, (n, 3))[:, :, None, None]
    images = skin + inside * (spot - skin) + random.normal(0, 6, (n, 3, SIDE, SIDE))
    return np.clip(images, 0, 255).astype(np.uint8)


def features_of(images: np.ndarray) -> np.ndarray:
    """Colours on a coarse grid, and how rough they are."""
    values = images / 255 - 0.5
    coarse = values.reshape(len(values), 3, 8, SIDE // 8, 8, SIDE // 8).mean(axis=(3, 5))
    rough = np.abs(np.diff(values, axis=3)).mean(axis=(1, 2, 3))
    return unit(np.column_stack([coarse.reshape(len(values), 192), 60 * rough]))


def table(n: int, name: str) -> pd.DataFrame:
    numbers = np.arange(n)
    lesions = [f"{name}_{i // 2}" for i in numbers]
    return pd.DataFrame({"image_id": [f"{name}{i}" for i in numbers], "lesion_id": lesions})


VALIDATION = (table(200, "val"), features_of(lesion_images(200, 1)))


def test_what_it_tells_can_be_recomputed() -> None:
    images = lesion_images(90, 2)
    images[7] = 255 - images[7]
    evaluated = (table(90, "new"), features_of(images))
    asked: list[np.ndarray] = []

    def images_of(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        return images[rows]

    facts = judge(VALIDATION, evaluated, images_of, features_of)
    known, theirs = VALIDATION[1], VALIDATION[0]["lesion_id"].to_numpy(dtype=str)
    scores = distances(evaluated[1], evaluated[0]["lesion_id"].to_numpy(dtype=str), known, theirs)
    (rows,) = asked
    assert len(set(rows)) == COUNT
    made = synthetic_images(images[rows])
    assert list(facts["auroc"]) == list(made) == list(KINDS)
    nobody = np.full(COUNT, "")
    for kind, pictures in made.items():
        unlike = distances(features_of(pictures), nobody, known, theirs)
        expected = roc_auc_score(np.arange(90 + COUNT) >= 90, np.concatenate([scores, unlike]))
        metric = facts["auroc"][kind]
        assert metric["value"] == pytest.approx(expected)
        assert metric["ci95"][0] <= expected <= metric["ci95"][1]
    flagged = (scores > facts["threshold"]).mean()
    assert 0 < flagged < 0.3
    assert facts["flagged"]["value"] == pytest.approx(flagged)
    assert facts["flagged"]["ci95"][0] <= flagged <= facts["flagged"]["ci95"][1]
    assert 0 < facts["false_alarm_rate"] <= FALSE_ALARMS
    assert facts["worst_images"][0] == "new7"
    assert len(facts["worst_images"]) == WORST
    for kind in ("noise", "text", "landscape", "inverted colours"):
        assert facts["auroc"][kind]["value"] > 0.9
    assert facts == judge(VALIDATION, evaluated, images_of, features_of)


def test_where_nothing_is_flagged_the_share_has_the_exact_interval_of_the_lesions() -> None:
    seen, features = VALIDATION[0]["lesion_id"].to_numpy(dtype=str), VALIDATION[1]
    usual = np.argsort(distances(features, seen, features, seen))[:40]
    known = (table(40, "new"), features[usual])
    facts = judge(VALIDATION, known, lambda rows: lesion_images(40, 1)[rows], features_of)
    lesions = known[0]["lesion_id"].nunique()
    exact = binomtest(0, lesions).proportion_ci(method="exact")
    assert facts["flagged"]["value"] == 0
    assert facts["flagged"]["ci95"] == pytest.approx([exact.low, exact.high])


def test_a_model_that_sees_no_difference_says_so() -> None:
    """Whatever it is shown, its features are those of images that are evaluated."""
    corners, random = np.eye(6, dtype=np.float32), np.random.default_rng(9)
    validation = (table(200, "val"), corners[random.integers(0, 5, 200)])
    odd = random.random(40) < 0.3  # at the corner where no validation image is
    evaluated = (table(40, "new"), corners[np.where(odd, 5, random.integers(0, 5, 40))])
    images, asked = lesion_images(40, 3), []

    def images_of(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        return images[rows]

    facts = judge(validation, evaluated, images_of, lambda _: evaluated[1][asked[0]])
    assert facts["threshold"] == 0
    assert facts["flagged"]["value"] == pytest.approx(odd.mean())
    both = np.concatenate([odd, odd[asked[0]]])  # the scores are 0 and 1
    expected = roc_auc_score(np.arange(len(both)) >= 40, both)
    assert [m["value"] for m in facts["auroc"].values()] == pytest.approx([expected] * len(KINDS))
    assert all(kind in facts["caution"] for kind in KINDS)
    assert len(facts["caution"].splitlines()) == 1


def test_the_caution_names_what_is_missed_and_nothing_else() -> None:
    """A model of the average colour alone: blurred or shuffled, a picture stays the same to it."""

    def colours_of(pictures: np.ndarray) -> np.ndarray:
        return unit(pictures.mean(axis=(2, 3)) - 128)

    images = lesion_images(40, 3)
    validation = (VALIDATION[0], colours_of(lesion_images(200, 1)))
    evaluated = (table(40, "new"), colours_of(images))
    facts = judge(validation, evaluated, lambda rows: images[rows], colours_of)
    missed = [kind for kind in KINDS if kind in facts["caution"]]
    assert missed == [kind for kind in KINDS if facts["auroc"][kind]["value"] < 0.8]
    assert {"shuffled patches", "out of focus"} <= set(missed)
    assert not {"noise", "inverted colours"} & set(missed)


def broken(n: int) -> np.ndarray:
    features = features_of(lesion_images(n, 5))
    features[3] = np.nan
    return features


@pytest.mark.parametrize(
    ("validation", "count", "reason"),
    [
        ((table(0, "val"), np.zeros((0, 193), np.float32)), 30, "0 validation images"),
        ((table(4, "val"), VALIDATION[1][:4]), 30, "4 validation images of 2 lesions are too few"),
        ((table(18, "val"), VALIDATION[1][:18]), 30, "18 validation images of 9 lesions"),
        ((table(60, "val").assign(lesion_id="one"), VALIDATION[1][:60]), 30, "of 1 lesions"),
        ((table(40, "val"), broken(40)), 30, "not all numbers"),
        (VALIDATION, 0, "no images to score"),
    ],
)
def test_where_there_is_no_score_the_reason_is_said(
    validation: Any, count: int, reason: str
) -> None:
    images = lesion_images(count, 6)
    evaluated = (table(count, "new"), features_of(images))
    facts = judge(validation, evaluated, lambda rows: images[rows], features_of)
    assert list(facts) == ["gap"]
    assert reason in facts["gap"]


def test_a_single_evaluated_image_is_scored() -> None:
    images = lesion_images(1, 7)
    evaluated = (table(1, "new"), features_of(images))
    facts = judge(VALIDATION, evaluated, lambda rows: images[rows], features_of)
    assert facts["worst_images"] == ["new0"]
    assert facts["flagged"]["value"] in (0, 1)
    assert all(metric["value"] in (0, 0.5, 1) for metric in facts["auroc"].values())


def test_a_model_that_breaks_on_an_image_finds_it_unlike() -> None:
    """Its features of synthetic images are not numbers, which is as unlike as can be."""
    images = lesion_images(40, 8)
    evaluated = (table(40, "new"), features_of(images))
    facts = judge(
        VALIDATION,
        evaluated,
        lambda rows: images[rows],
        lambda pictures: np.full((len(pictures), 193), np.nan, np.float32),
    )
    assert {metric["value"] for metric in facts["auroc"].values()} == {1.0}


@pytest.mark.parametrize("side", [16, 37])
def test_synthetic_images_are_of_their_kind_and_the_same_each_time(side: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 3, side, side), dtype=np.uint8)
    before = images.copy()
    made, again, other = (synthetic_images(images, seed) for seed in (0, 0, 1))
    assert np.array_equal(images, before)
    for kind, pictures in made.items():
        assert (pictures.shape, pictures.dtype) == (images.shape, np.uint8)
        assert np.array_equal(pictures, again[kind])
        assert len({picture.tobytes() for picture in pictures}) == len(images)
        if kind not in ("inverted colours", "out of focus"):  # nothing in them is random
            assert not np.array_equal(pictures, other[kind])
    assert np.array_equal(made["inverted colours"], 255 - images)
    assert (made["plain colour"].reshape(6, 3, -1).std(axis=2) == 0).all()
    pixels = [np.sort(a.reshape(6, 3, -1)) for a in (made["shuffled patches"], images)]
    assert np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(made["shuffled patches"], images)
    assert all(len(np.unique(p.reshape(3, -1), axis=1).T) <= 2 for p in made["stripes"])
    detail = [np.abs(np.diff(a.astype(int))).mean() for a in (made["out of focus"], images)]
    assert detail[0] < detail[1] / 4
    assert made["text"].mean() > 150
