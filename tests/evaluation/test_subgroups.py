"""Groups are those of the table, each with its own measures, and a small one without."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mlops_project.evaluation.presentation.wording import by_chance
from mlops_project.evaluation.subgroups import FEWEST, attributes, compare


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    random = np.random.default_rng(4)
    n = 400
    return pd.DataFrame(
        {
            "image_id": [f"image_{i}" for i in range(n)],
            "lesion_id": random.integers(0, 300, n).astype(str),
            "age": random.choice([np.nan, 5, 29, 30, 44, 75, 90, -9, 999], n),
            "sex": random.choice(["male", "Male ", "female", "Unknown", ""], n),
            "localization": random.choice(["back", "face"], n, p=[0.99, 0.01]),
            "dataset": random.choice(["vidir_modern", ""], n),
            "dx_type": "histo",
        }
    )


def test_every_image_is_in_one_group_of_each_attribute(table: pd.DataFrame) -> None:
    found = attributes(table)
    assert all(len(values) == len(table) for values in found.values())
    bands = dict(zip(table["age"].fillna(-1), found["age"], strict=True))
    assert bands == {
        **{-1: "unknown", 5: "0 to 29", 29: "0 to 29", 30: "30 to 44", 44: "30 to 44"},
        **{75: "75 and older", 90: "75 and older", -9: "unknown", 999: "unknown"},
    }
    assert set(found["sex"]) == {"male", "female", "unknown"}
    assert set(found["dataset"]) == {"vidir_modern", "unknown"}
    lesion = table["lesion_id"].iloc[0]
    several = (table["lesion_id"] == lesion).sum() > 1
    assert found["images_of_the_lesion"][0] == ("several" if several else "one")
    unknown = attributes(table.assign(lesion_id=table["image_id"]))
    assert set(unknown["images_of_the_lesion"]) == {"unknown"}


def test_a_group_s_measures_are_its_own_and_the_worst_one_is_named(table: pd.DataFrame) -> None:
    random = np.random.default_rng(5)
    truth = random.random(len(table)) < 0.4
    men = table["sex"].str.strip().str.lower().eq("male").to_numpy()
    signal = np.where(men, 0.0, 2.0)  # it sees nothing in men
    scores = 1 / (1 + np.exp(-(truth * signal + random.normal(size=len(table)))))
    facts = compare(table, truth, scores, scores >= 0.5)
    found = facts["groups"]["sex"]["male"]
    assert found["n_images"] == men.sum()
    assert found["auroc"]["value"] == pytest.approx(roc_auc_score(truth[men], scores[men]))
    low, high = found["auroc"]["ci95"]
    assert low < found["auroc"]["value"] < high
    assert found["sensitivity"]["value"] == pytest.approx((scores[men & truth] >= 0.5).mean())
    gap = facts["largest_gap"]
    assert (gap["attribute"], gap["worse"]) == ("sex", "male")
    assert 0 < gap["ci95"][0] < gap["difference"] < gap["ci95"][1]
    measured = [
        [name for name, own in known.items() if "auroc" in own and name != "unknown"]
        for known in facts["groups"].values()
    ]
    assert gap["n_pairs"] == sum(len(list(combinations(names, 2))) for names in measured) > 3
    assert gap["p_value"] < 0.001
    few = facts["groups"]["localization"]["face"]
    assert few["n_lesions"] < FEWEST
    assert few["gap"] == "too few lesions"
    assert "auroc" not in few
    assert "skin tone" in facts["skin_tone"]


def test_where_no_group_differs_the_largest_gap_is_called_chance() -> None:
    """In simulated evaluations; the interval of the pair by itself is not what tells."""
    excluding_0 = significant = 0
    for seed in range(16):
        random = np.random.default_rng(seed)
        n = 400
        truth = random.random(n) < 0.4
        scores = random.normal(size=n) + 1.5 * truth
        made = pd.DataFrame(
            {
                "image_id": [f"image_{i}" for i in range(n)],
                "lesion_id": np.arange(n).astype(str),
                "age": random.integers(5, 90, n),
                "sex": random.choice(["male", "female"], n),
                "localization": random.choice(["back", "face", "trunk", "foot", "chest"], n),
                "dataset": random.choice(["one", "two", "three"], n),
                "dx_type": random.choice(["histo", "consensus"], n),
            }
        )
        gap = compare(made, truth, scores, scores > 0.75)["largest_gap"]
        assert gap["n_pairs"] == 10 + 1 + 10 + 3 + 1
        excluding_0 += gap["ci95"][0] > 0
        significant += gap["p_value"] < 0.05
        if gap["p_value"] >= 0.05:
            assert "This may be chance" in by_chance(gap)
    assert excluding_0 >= 5
    assert significant <= 2


def test_many_images_of_few_lesions_are_few(table: pd.DataFrame) -> None:
    of_ten = table.assign(lesion_id=[str(i % 10) for i in range(len(table))])
    truth = np.array([i % 10 < 5 for i in range(len(table))])
    groups = compare(of_ten, truth, np.linspace(0, 1, len(table)), truth)["groups"]
    assert {facts["gap"] for known in groups.values() for facts in known.values()} == {
        "too few lesions"
    }


def test_without_two_groups_there_is_no_gap(table: pd.DataFrame) -> None:
    few = table.iloc[:10]
    facts = compare(few, np.ones(10, bool), np.ones(10), np.ones(10, bool))
    assert facts["largest_gap"] is None
    truth = np.arange(len(table)) % 2 == 0
    facts = compare(table, truth, truth.astype(float), truth)
    assert len([g for g in facts["groups"]["sex"].values() if "auroc" in g]) > 1
    assert facts["largest_gap"] is None  # all are told perfectly
