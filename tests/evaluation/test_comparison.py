"""A difference between two models is that of its definition, and none where there is none."""

from __future__ import annotations

from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, roc_auc_score

from mlops_project.data.diagnoses import DIAGNOSES, MALIGNANT
from mlops_project.errors import InputError
from mlops_project.evaluation import bootstrap, measures
from mlops_project.evaluation.comparison import compare
from mlops_project.evaluation.predictions_table import as_binary

TWO, SEVEN = ["benign", "malignant"], list(DIAGNOSES)


def predictions(
    names: list[str], seed: int, n: int = 90, skill: float = 1.0, images: int = 0
) -> pd.DataFrame:
    """A table as a model gives it; the same images, lesions and truth for the same `images`."""
    random = np.random.default_rng([images, n])
    lesions = random.integers(0, max(1, n // 2), n)
    diagnosis = random.integers(0, 7, n)[lesions]
    truth = np.array(SEVEN, dtype=object)[diagnosis]
    if names == TWO:
        truth = np.where(np.isin(truth, list(MALIGNANT)), "malignant", "benign")
    random = np.random.default_rng([seed, n])
    labels = np.array([names.index(name) for name in truth])
    logits = random.normal(size=(n, len(names))) + skill * np.eye(len(names))[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    table = pd.DataFrame(
        {
            "image_id": [f"i{k:03d}" for k in range(n)],
            "lesion_id": lesions.astype(str),
            "y_true": truth,
            "y_pred": np.array(names, dtype=object)[probabilities.argmax(axis=1)],
        }
    )
    table[[f"probability_{n}" for n in names]] = probabilities.astype(np.float32)
    return table.sample(frac=1, random_state=seed)


def test_the_differences_are_those_of_two_plain_measures() -> None:
    first, second = predictions(TWO, 1, skill=2), predictions(TWO, 2)
    found = compare(TWO, first, second, "other.ckpt")
    assert (found["checkpoint"], found["class_names"]) == ("other.ckpt", TWO)
    assert found["n_images"] == 90
    (gap,) = found["gaps"]
    assert "on 90 images with fewer than 20 lesions of benign (" in gap
    assert found["n_lesions"] == first["lesion_id"].nunique()

    def plain(table: pd.DataFrame) -> dict[str, float]:
        truth = table["y_true"] == "malignant"
        positive = table["y_pred"] == "malignant"
        score = table["probability_malignant"].to_numpy(dtype=float)
        return {
            "accuracy": (truth == positive).mean(),
            "balanced_accuracy": balanced_accuracy_score(truth, positive),
            "f1_score": f1_score(truth, positive),
            "auroc": roc_auc_score(truth, score),
            "log_loss": log_loss(truth, score),
        }

    one, other = plain(first), plain(second)
    values = {name: metric["value"] for name, metric in found["difference"].items()}
    assert {n: values[n] for n in one} == pytest.approx(
        {n: one[n] - other[n] for n in one}, abs=1e-6
    )
    assert {"macro_f1", "average_precision", "brier", "ece", "class_wise_ece"} < set(values)


def test_the_interval_draws_the_same_lesions_for_both() -> None:
    """Against a loop that repeats the images of the drawn lesions one by one."""
    first, second = predictions(SEVEN, 1, 40, skill=2), predictions(SEVEN, 2, 40, skill=2)
    found = compare(SEVEN, first, second, "other.ckpt")["difference"]["accuracy"]
    ordered = [table.sort_values("image_id") for table in (first, second)]
    right = [(table["y_true"] == table["y_pred"]).tolist() for table in ordered]
    lesions = ordered[0]["lesion_id"].to_numpy()
    differences = []
    for weights in np.concatenate(list(bootstrap.weightings(lesions))):
        counts = [0, 0]
        for image, times in enumerate(weights):
            for _ in range(int(times)):
                for model in (0, 1):
                    counts[model] += right[model][image]
        differences.append((counts[0] - counts[1]) / weights.sum())
    assert found["ci95"] == pytest.approx(list(np.quantile(differences, [0.025, 0.975])))


def exact_p(only_first: int, only_second: int) -> float:
    """Probability of a split at least as uneven, of fair coins."""
    n = only_first + only_second
    tail = sum(comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    return min(1.0, 2 * tail)


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 1000), skill=st.floats(0, 3), names=st.sampled_from([TWO, SEVEN]))
def test_mcnemar_counts_who_alone_is_right_by_image_and_by_lesion(
    seed: int, skill: float, names: list[str]
) -> None:
    first, second = predictions(names, seed, 40, skill), predictions(names, seed + 1, 40)
    found = compare(names, first, second, "other.ckpt")["mcnemar"]
    by_image: dict[str, dict[str, bool]] = {"first": {}, "second": {}}
    by_lesion: dict[str, dict[str, bool]] = {"first": {}, "second": {}}
    for model, table in (("first", first), ("second", second)):
        for row in table.to_dict("records"):
            by_image[model][row["image_id"]] = row["y_true"] == row["y_pred"]
        for lesion, images in table.sort_values("image_id").groupby("lesion_id"):
            means = [images[f"probability_{n}"].astype(float).mean() for n in names]
            truth = images["y_true"].iloc[0]
            by_lesion[model][str(lesion)] = names[int(np.argmax(means))] == truth
    for right, values in ((by_image, found), (by_lesion, found["by_lesion"])):
        alone = [
            sum(right[a][key] and not right[b][key] for key in right[a])
            for a, b in (("first", "second"), ("second", "first"))
        ]
        assert [values["only_first_right"], values["only_second_right"]] == alone
        assert values["p_value"] == pytest.approx(exact_p(*alone))


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 1000), n=st.integers(1, 40), names=st.sampled_from([TWO, SEVEN]))
def test_a_model_equals_itself_and_the_order_only_turns_the_sign(
    seed: int, n: int, names: list[str]
) -> None:
    first, second = predictions(names, seed, n, 2), predictions(names, seed + 1, n)
    itself = compare(names, first, first.sample(frac=1, random_state=3), "same.ckpt")
    for metric in itself["difference"].values():
        assert metric["value"] == 0 or np.isnan(metric["value"])
        assert np.isnan(metric["ci95"]).all()  # no resample differs
    assert itself["difference"]["accuracy"]["value"] == 0
    assert itself["mcnemar"]["p_value"] == itself["mcnemar"]["by_lesion"]["p_value"] == 1

    one, other = (compare(names, *t, "a.ckpt") for t in ((first, second), (second, first)))
    for name, metric in one["difference"].items():
        turned = other["difference"][name]
        assert metric["value"] == pytest.approx(-turned["value"], nan_ok=True)
        low, high = turned["ci95"]
        assert metric["ci95"] == pytest.approx([-high, -low], nan_ok=True)
    for ours, theirs in (
        (one["mcnemar"], other["mcnemar"]),
        (one["mcnemar"]["by_lesion"], other["mcnemar"]["by_lesion"]),
    ):
        assert ours["only_first_right"] == theirs["only_second_right"]
        assert ours["p_value"] == theirs["p_value"]


def test_seven_classes_are_compared_with_two_as_benign_and_malignant() -> None:
    seven, two = predictions(SEVEN, 1, skill=2), predictions(TWO, 2)
    binary = as_binary(seven)
    expected = seven[[f"probability_{n}" for n in sorted(MALIGNANT)]].sum(axis=1)
    assert binary["probability_malignant"].to_numpy() == pytest.approx(expected.to_numpy())
    assert binary["probability_benign"].to_numpy() == pytest.approx(1 - expected.to_numpy())
    assert (binary["y_true"] == "malignant").tolist() == seven["y_true"].isin(MALIGNANT).tolist()
    assert (binary["y_pred"] == "malignant").tolist() == (expected > 0.5).tolist()
    assert as_binary(two)["y_pred"].tolist() == two["y_pred"].tolist()
    assert "y_true" not in as_binary(seven.drop(columns="y_true"))

    found = compare(SEVEN, seven, two, "other.ckpt")
    assert found["class_names"] == TWO
    assert "benign against malignant" in found["gaps"][0]
    assert found["difference"] == compare(TWO, binary, two, "other.ckpt")["difference"]
    turned = compare(TWO, two, seven, "other.ckpt")
    value = turned["difference"]["auroc"]["value"]
    assert value == pytest.approx(-found["difference"]["auroc"]["value"])


def test_only_images_of_both_count_and_none_that_the_second_was_trained_on() -> None:
    first, second = predictions(TWO, 1), predictions(TWO, 2)
    fewer = second[second["image_id"] >= "i010"]
    seen = ["i050", "i051", "not evaluated"]
    found = compare(TWO, first, fewer, "other.ckpt", trained_on=seen)
    assert found["n_images"] == 78
    trained, one_sided, few = found["gaps"]
    assert trained.startswith("2 images are left out")
    assert one_sided.startswith("10 images are left out")
    assert "on 78 images with fewer than 20 lesions" in few
    chosen = (first["image_id"] >= "i010") & ~first["image_id"].isin(seen)
    again = compare(TWO, first[chosen], second, "other.ckpt")
    assert again["difference"] == found["difference"]


def test_the_interval_of_calibration_errors_is_moved_back_by_what_resampling_adds() -> None:
    first, second = (
        t.sort_values("image_id") for t in (predictions(SEVEN, 1), predictions(SEVEN, 2, skill=4))
    )

    def errors(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = []
        for t in (first, second):
            p = t.filter(regex="^probability_").to_numpy(dtype=float)
            right = (t["y_pred"] == t["y_true"]).to_numpy()
            found.append(measures.calibration_error(weights, p.max(axis=1), right))
        return {"ece": found[0] - found[1]}

    lesions = first["lesion_id"].to_numpy()
    told = compare(SEVEN, first, second, "other.ckpt")["difference"]["ece"]
    moved = bootstrap.with_intervals(lesions, errors, biased=["ece"], least=-1)["ece"]
    assert told["value"] == pytest.approx(moved["value"])
    assert told["ci95"] == pytest.approx(moved["ci95"])
    assert told["ci95"] != pytest.approx(bootstrap.with_intervals(lesions, errors)["ece"]["ci95"])


def test_nothing_to_compare_on_is_refused() -> None:
    first, second = predictions(TWO, 1), predictions(TWO, 2)
    with pytest.raises(InputError, match=r"other\.ckpt: there is no image"):
        compare(TWO, first, second, "other.ckpt", trained_on=list(first["image_id"]))
    elsewhere = second.assign(image_id="x" + second["image_id"])
    with pytest.raises(InputError, match="there is no image"):
        compare(TWO, first, elsewhere, "other.ckpt")
    turned = second["y_true"].map({"benign": "malignant", "malignant": "benign"})
    with pytest.raises(InputError, match="90 images have another diagnosis"):
        compare(TWO, first, second.assign(y_true=turned), "other.ckpt")
