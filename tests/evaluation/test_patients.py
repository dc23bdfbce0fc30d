"""What age, sex and site add to an image: fitted elsewhere, and only where they are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mlops_project.data.diagnoses import DIAGNOSES
from mlops_project.evaluation import calibration, decisions, patients
from mlops_project.evaluation.report import evaluate
from tests.evaluation.presentation.examples import make_predictions

NAMES = list(DIAGNOSES)


def test_what_is_not_known_is_0_and_the_known_ones_have_a_mean_of_0() -> None:
    one = pd.DataFrame(
        {
            "age": [70.0, 30.0, np.nan, np.inf, -1.0, 999.0],
            "sex": ["male", "Female", "unknown", "", "", ""],
            "localization": ["back", "face", "", "", "back", "unknown"],
        }
    )
    other = pd.DataFrame({"age": [10.0], "sex": ["male"], "localization": ["anterior torso"]})
    first, second = patients.features(one, other)
    columns = ["age", "age squared", "sex: female", "sex: male"]
    columns += ["localization: back", "localization: face"]
    assert list(first.columns) == list(second.columns) == columns
    assert np.allclose(first.mean(), 0)
    assert first["age"].tolist() == [1, -1, 0, 0, 0, 0]
    assert first["sex: male"].tolist() == [0.5, -0.5, 0, 0, 0, 0]
    assert np.allclose(first["localization: face"], [-1 / 3, 2 / 3, 0, 0, -1 / 3, 0])
    # A site that nobody has where weights are fitted is as good as unknown.
    assert second.iloc[0].tolist() == [-2, 3, -0.5, 0.5, 0, 0]
    assert patients.known(one.iloc[:1])
    assert patients.known(pd.DataFrame({"age": [50.0], "sex": [""], "localization": [""]}))
    assert not patients.known(one.iloc[[2, 3, 5]])


def test_nothing_known_of_a_patient_leaves_about_the_answer_of_the_image() -> None:
    seen, asked = make_predictions(3000, 7, seed=1), make_predictions(300, 7, seed=2)
    asked = asked.assign(age=np.nan, sex="", localization="unknown")
    _, plain = decisions.decide(NAMES, seen, asked, 0.9, np.zeros(7))
    _, same = decisions.decide(NAMES, seen, asked, 0.9, np.zeros(7), with_patients=True)
    assert np.abs(plain - same).mean() < 0.01


@pytest.mark.parametrize("across", [False, True])
def test_a_patient_s_age_helps_where_it_tells_something(across: bool) -> None:
    seen, asked = make_predictions(2000, 7, seed=1), make_predictions(2000, 7, seed=2)
    auroc, fitted = {}, {}
    for with_patients in (False, True):
        if across:
            table = pd.concat([seen, asked], ignore_index=True)
            folds = pd.factorize(table["lesion_id"])[0] % 4
            facts, _ = decisions.decide_across(
                NAMES, table, folds, 0.9, np.zeros(7), with_patients=with_patients
            )
        else:
            facts, _ = decisions.decide(
                NAMES, seen, asked, 0.9, np.zeros(7), with_patients=with_patients
            )
        ranking = facts["operating_points"]["malignant"]["ranking"]
        auroc[with_patients] = ranking["auroc"]["value"]
        fitted[with_patients] = facts["calibration"]
    assert auroc[True] > auroc[False] + 0.01
    assert "weights" not in fitted[False]
    assert fitted[True]["after"]["ece"]["value"] < 0.04
    # Malignant ones are older here, by as much for all three diagnoses, and nothing else differs.
    weights = pd.DataFrame(fitted[True]["weights"]).loc[NAMES]
    malignant = weights.loc[["mel", "bcc", "akiec"], "age"]
    assert malignant.min() > weights.drop(malignant.index)["age"].max()


def test_an_image_s_answer_follows_from_the_weights_that_are_told() -> None:
    seen, asked = make_predictions(800, 7, seed=1), make_predictions(50, 7, seed=2)
    facts, answers = decisions.decide(NAMES, seen, asked, 0.9, np.zeros(7), with_patients=True)
    told = facts["calibration"]
    raw = asked[[f"probability_{name}" for name in NAMES]].to_numpy(dtype=float)
    weights = pd.DataFrame(told["weights"]).T
    known = patients.features(seen, asked)[1][list(weights.index)]
    offsets = pd.Series(told["offsets"]).to_numpy() + known.to_numpy() @ weights.to_numpy()
    expected = calibration.with_temperature(raw, told["temperature"], offsets)
    assert np.allclose(answers, expected)


def test_the_diagnoses_of_a_fold_have_no_say_in_its_own_answers() -> None:
    table = make_predictions(600, 7)
    folds = pd.factorize(table["lesion_id"])[0] % 3
    _, before = decisions.decide_across(NAMES, table, folds, 0.9, np.zeros(7), with_patients=True)
    own = folds == 1
    table.loc[own, "y_true"] = "nv"
    _, after = decisions.decide_across(NAMES, table, folds, 0.9, np.zeros(7), with_patients=True)
    assert np.allclose(before[own], after[own])
    assert not np.allclose(before[~own], after[~own])


def test_an_evaluation_tells_what_patient_data_add(checkpoint: Path, tmp_path: Path) -> None:
    evaluate(checkpoint, output=tmp_path)
    facts = json.loads((tmp_path / "metrics.json").read_text())
    table = pd.read_csv(tmp_path / "predictions.csv")
    columns = [f"with_patient_data_{name}" for name in facts["class_names"]]
    assert np.allclose(table[columns].sum(axis=1), 1)
    point = facts["with_patient_data"]["operating_points"]["malignant"]
    positive = table["with_patient_data_malignant"] >= point["threshold"] - 1e-9
    truth = table["y_true"] == "malignant"
    assert point["evaluated"]["sensitivity"]["value"] == pytest.approx(positive[truth].mean())
    more = facts["with_patient_data"]["difference"]
    scores = table[["with_patient_data_malignant", "calibrated_malignant"]]
    aurocs = [roc_auc_score(truth, scores[column]) for column in scores]
    assert more["malignant"]["value"] == pytest.approx(aurocs[0] - aurocs[1])
    assert "With patient data" in (tmp_path / "report.html").read_text()
    # What is stored for use elsewhere needs no patient.
    stored = json.loads(checkpoint.with_suffix(".calibration.json").read_text())
    assert stored["offsets"] == facts["calibration"]["offsets"]


def test_without_ages_sexes_and_sites_the_image_alone_answers(
    checkpoint: Path, demo_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "plain"
    shutil.copytree(demo_folder, copy)
    path = copy / "HAM10000_metadata.csv"
    table = pd.read_csv(path)
    table[["image_id", "lesion_id", "dx"]].to_csv(path, index=False)
    facts = evaluate(checkpoint, data_dir=str(copy), output=tmp_path / "out")
    assert "with_patient_data" not in facts
    assert facts["calibration"]["after"]
    columns = pd.read_csv(tmp_path / "out/predictions.csv").columns
    assert not any(column.startswith("with_patient_data") for column in columns)
