"""Several models as one, turned images, coarser labels, and images without any."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mlops_project.errors import InputError
from mlops_project.evaluate import app
from mlops_project.evaluation.comparison import COARSELY
from mlops_project.evaluation.images import Images, open_images
from mlops_project.evaluation.inference import embed, predict
from mlops_project.evaluation.membership import known_images, known_split, split_of_all
from mlops_project.evaluation.report import evaluate
from mlops_project.evaluation.trained_model import load_model, load_models
from tests.conftest import Call

BOTH = ["probability_benign", "probability_malignant"]


def images_of(
    demo_folder: Path, folder: Path, count: int = 24, without: Collection[str] = ()
) -> pd.DataFrame:
    """Copies some images to folder/images under new names, and returns their rows."""
    table = pd.read_csv(demo_folder / "HAM10000_metadata.csv")
    table = table[~table["image_id"].isin(list(without))]
    table = table.groupby("dx").head(4).head(count).reset_index(drop=True)
    (folder / "images").mkdir(parents=True)
    for image_id in table["image_id"]:
        source = next(demo_folder.rglob(f"{image_id}.jpg"))
        shutil.copy(source, folder / "images" / f"new_{source.name}")
    table["image_id"] = "new_" + table["image_id"]
    table["lesion_id"] = "new_" + table["lesion_id"]
    return table


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.csv", keep_default_na=False)


def test_an_ensemble_is_the_mean_of_its_models(
    checkpoint: Path, other: Path, tmp_path: Path, demo_folder: Path
) -> None:
    images_of(demo_folder, tmp_path / "new").to_csv(tmp_path / "new/metadata.csv", index=False)
    source = str(tmp_path / "new")
    for name, checkpoints in {"a": [checkpoint], "b": [other], "c": [checkpoint, other]}.items():
        facts = evaluate(checkpoints, source, output=tmp_path / name)
    assert "calibration" not in facts
    assert any("different validation splits" in gap for gap in facts["gaps"])
    assert facts["checkpoints"] == [str(checkpoint), str(other)]
    a, b, c = (read(tmp_path / name) for name in "abc")
    assert not np.allclose(a[BOTH], b[BOTH], atol=0.01)
    assert np.allclose(c[BOTH], (a[BOTH] + b[BOTH]) / 2, atol=1e-6)


def test_what_one_model_was_trained_on_is_no_test_of_the_ensemble(
    checkpoint: Path, other: Path, tmp_path: Path
) -> None:
    facts = evaluate([checkpoint, other], output=tmp_path)
    splits = [
        pd.read_csv(path.parents[1] / "split.csv").set_index("image_id")["split"]
        for path in (checkpoint, other)
    ]
    evaluated = read(tmp_path)["image_id"]
    assert (splits[0][evaluated] == "test").all()
    assert (splits[1][evaluated] == "test").all()
    assert 0 < facts["n_images"] < min((split == "test").sum() for split in splits)


def test_the_split_of_several_runs_is_that_of_the_one_that_saw_most() -> None:
    first = np.array(["train", "val", "test", "test", "unused"], dtype=object)
    second = np.array(["test", "train", "val", "test", "test"], dtype=object)
    together = split_of_all(np.stack([first, second]))
    assert together.tolist() == ["train", "train", "val", "test", "unused"]


@pytest.mark.parametrize(
    ("asked", "folds"),
    [
        ([[1, 0, 1], [0, 1, 0]], [1, 0, 1]),
        ([[1, 0, 1], [0, 1, 0], [1, 0, 1], [0, 1, 0]], [1, 0, 1]),  # two models a fold
        ([[1, 0, 1], [0, 0, 0], [0, 1, 0]], [1, 0, 1]),  # no image of the second's fold is here
        ([[1, 0, 1], [0, 1, 0], [1, 0, 1]], None),  # two for one fold, one for the other
        ([[1, 1, 0], [0, 1, 1]], None),  # folds that overlap
        ([[1, 1, 1], [1, 1, 1]], None),
    ],
)
def test_folds_are_where_as_many_models_answer_for_each_and_for_no_other(
    asked: list[list[int]], folds: list[int] | None
) -> None:
    images = Images(Path(), [], np.arange(3), np.array(asked, dtype=bool), ["a", "b"])
    found = images.folds
    assert (None if found is None else found.tolist()) == folds


def test_out_of_fold_each_image_is_told_by_the_models_that_were_chosen_by_it(
    checkpoint: Path, other: Path, tmp_path: Path
) -> None:
    facts = evaluate([checkpoint, other], split="out-of-fold", output=tmp_path)
    splits = [
        pd.read_csv(path.parents[1] / "split.csv").set_index("image_id")["split"]
        for path in (checkpoint, other)
    ]
    table = read(tmp_path).set_index("image_id")
    assert set(table.index) == set(splits[0].index[(splits[0] == "val") | (splits[1] == "val")])
    assert facts["n_images"] == len(table)
    alone = []
    for n, path in enumerate((checkpoint, other)):
        evaluate(path, split="all", output=tmp_path / str(n))
        alone.append(read(tmp_path / str(n)).set_index("image_id").loc[table.index, BOTH])
    asked = [(split[table.index] == "val").to_numpy() for split in splits]
    only = asked[0] & ~asked[1]
    assert only.any()
    assert np.allclose(table[BOTH][only], alone[0][only], atol=1e-6)
    both = asked[0] & asked[1]
    assert np.allclose(table[BOTH][both], (alone[0] + alone[1])[both] / 2, atol=1e-6)


def test_models_of_other_classes_and_the_same_one_twice_are_refused(
    checkpoint: Path, seven: Path
) -> None:
    with pytest.raises(InputError, match="need the same classes"):
        load_models([checkpoint, seven])
    with pytest.raises(InputError, match="named twice"):
        load_models([checkpoint, checkpoint])


def test_with_tta_it_does_not_matter_how_a_picture_is_turned(
    checkpoint: Path, tmp_path: Path, demo_folder: Path
) -> None:
    table = images_of(demo_folder, tmp_path / "plain", 8)
    table.to_csv(tmp_path / "plain/metadata.csv", index=False)
    shutil.copytree(tmp_path / "plain", tmp_path / "turned")
    for path in (tmp_path / "turned/images").iterdir():
        with Image.open(path) as picture:
            square = picture.crop((75, 0, 525, 450)).transpose(Image.Transpose.ROTATE_90)
        square.save(path.with_suffix(".png"))
        path.unlink()
    model = load_model(checkpoint)
    asked = {
        (name, tta): predict([model], open_images([model], str(tmp_path / name), "test"), tta=tta)
        for name in ("plain", "turned")
        for tta in (False, True)
    }
    differences = {
        tta: np.abs(asked["plain", tta].table[BOTH] - asked["turned", tta].table[BOTH]).max().max()
        for tta in (False, True)
    }
    assert differences[True] < 0.005 < differences[False]


def test_labels_of_two_classes_judge_a_model_of_seven(
    seven: Path, checkpoint: Path, tmp_path: Path, demo_folder: Path
) -> None:
    validation = known_images([load_model(seven)], "val")
    table = images_of(demo_folder, tmp_path / "fine", without=validation)
    shutil.copytree(tmp_path / "fine", tmp_path / "coarse")
    table.to_csv(tmp_path / "fine/metadata.csv", index=False)
    malignant = table["dx"].isin(["mel", "bcc", "akiec"])
    coarse = pd.DataFrame({"image": table["image_id"], "dx": np.where(malignant, "malignant", "")})
    coarse.loc[~malignant, "dx"] = "Benign"
    coarse.to_csv(tmp_path / "coarse/labels.csv", index=False)
    fine = evaluate(seven, str(tmp_path / "fine"), output=tmp_path / "a")
    facts = evaluate(seven, str(tmp_path / "coarse"), output=tmp_path / "b")
    assert facts["class_names"] == ["benign", "malignant"]
    seen, told = read(tmp_path / "a"), read(tmp_path / "b")
    of_malignant = seen[[f"probability_{name}" for name in ("akiec", "bcc", "mel")]].sum(axis=1)
    assert np.allclose(told["probability_malignant"], of_malignant, atol=1e-6)
    assert facts["per_class"]["malignant"]["n_images"] == malignant.sum()
    assert fine["class_names"] == ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    assert "calibration" in facts


def test_abstention_judges_the_answers_that_are_given(
    seven: Path, working_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the most probable classes after calibration, which are others here."""
    monkeypatch.chdir(working_folder)
    facts = evaluate(seven, output=tmp_path / "out")
    table = read(tmp_path / "out")
    calibrated = table[[f"calibrated_{name}" for name in facts["class_names"]]]
    assert (calibrated.idxmax(axis=1) != "calibrated_" + table["y_pred"]).any()
    wrong = (table["y_pred"] != table["y_true"]).mean()
    assert facts["abstention"]["at"][0]["error"] == pytest.approx(wrong)
    assert 1 - facts["metrics"]["accuracy"]["value"] == pytest.approx(wrong)


def test_a_threshold_is_compared_with_the_columns_that_are_told(
    seven: Path, working_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(working_folder)
    facts = evaluate(seven, output=tmp_path)
    table = read(tmp_path)
    classes = {"malignant": ["akiec", "bcc", "mel"], "melanoma": ["mel"]}
    for kind, of in (("calibrated", facts), ("with_patient_data", facts["with_patient_data"])):
        assert set(of["operating_points"]) == set(classes)
        for question, point in of["operating_points"].items():
            assert point["applies_to"] == [f"{kind}_{name}" for name in classes[question]]
            positive = table[point["applies_to"]].sum(axis=1) >= point["threshold"] - 1e-9
            truth = table["y_true"].isin(classes[question])
            for name, expected in (
                ("sensitivity", positive[truth].mean()),
                ("specificity", 1 - positive[~truth].mean()),
            ):
                assert point["evaluated"][name]["value"] == pytest.approx(expected)
        for name in ("report.html", "MODEL_CARD.md"):
            told = f"sum of {kind}_akiec, {kind}_bcc and {kind}_mel"
            assert told in (tmp_path / name).read_text()


def test_images_without_a_diagnosis_are_predicted(
    checkpoint: Path, tmp_path: Path, demo_folder: Path
) -> None:
    validation = known_images([load_model(checkpoint)], "val")
    images = images_of(demo_folder, tmp_path / "bare", without=validation)
    facts = evaluate(checkpoint, str(tmp_path / "bare"), output=tmp_path / "out")
    table = read(tmp_path / "out")
    assert len(table) == facts["n_images"] == len(images)
    assert (table["y_true"] == "").all()
    assert set(table["y_pred"]) <= {"benign", "malignant"}
    assert np.allclose(table[["calibrated_benign", "calibrated_malignant"]].sum(axis=1), 1)
    assert "metrics" not in facts
    assert "no image has a diagnosis (column dx): nothing is measured" in facts["gaps"]
    assert "metrics" not in json.loads((tmp_path / "out/metrics.json").read_text())


def test_thresholds_and_calibration_need_no_diagnoses(
    seven: Path,
    working_folder: Path,
    demo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(working_folder)
    validation = known_images([load_model(seven)], "val")
    table = images_of(demo_folder, tmp_path / "new", without=validation)
    facts = []
    for name, rows in (("labelled", table), ("unlabelled", table.drop(columns="dx"))):
        rows.to_csv(tmp_path / "new/metadata.csv", index=False)
        evaluate(seven, str(tmp_path / "new"), output=tmp_path / name)
        facts.append(json.loads((tmp_path / name / "metrics.json").read_text()))
    labelled, unlabelled = facts
    shown = capsys.readouterr().out.partition("unlabelled/")[0].partition("labelled/")[2]
    page, card = (
        (tmp_path / "unlabelled" / name).read_text() for name in ("report.html", "MODEL_CARD.md")
    )
    assert "metrics" not in unlabelled
    for one, other in ((labelled, unlabelled), [f["with_patient_data"] for f in facts]):
        judged = {"before", "after"}
        assert judged <= set(one["calibration"])
        fitted = {n: v for n, v in one["calibration"].items() if n not in judged}
        assert other["calibration"] == fitted
        for question, point in other["operating_points"].items():
            known = {"target_sensitivity", "threshold", "chosen_by", "validation", "applies_to"}
            assert set(point) == known
            assert point == {name: one["operating_points"][question][name] for name in known}
            for text in (shown, page, card):
                assert f"{point['threshold']:.3f}" in text
    doubts = [{gap for gap in f["gaps"] if "relied on" in gap} for f in facts]
    assert doubts[0] == doubts[1] != set()


def test_some_images_without_a_diagnosis_are_left_out_of_the_measures(
    checkpoint: Path, tmp_path: Path, demo_folder: Path
) -> None:
    table = images_of(demo_folder, tmp_path)
    table.loc[:4, "dx"] = ""
    table.to_csv(tmp_path / "metadata.csv", index=False)
    facts = evaluate(checkpoint, str(tmp_path), output=tmp_path / "out")
    assert facts["n_images"] == len(read(tmp_path / "out")) == 24
    assert sum(known["n_images"] for known in facts["per_class"].values()) == 19
    assert any(gap.startswith("5 images have no diagnosis") for gap in facts["gaps"])


def test_images_of_the_same_name_are_told_apart_by_their_folders(
    checkpoint: Path, tmp_path: Path, demo_folder: Path
) -> None:
    pictures = sorted(demo_folder.rglob("*.jpg"))[:3]
    for n, folder in enumerate(["monday", "tuesday"]):
        (tmp_path / "new" / folder).mkdir(parents=True)
        shutil.copy(pictures[n], tmp_path / "new" / folder / "1.jpg")
    shutil.copy(pictures[2], tmp_path / "new" / "2.jpg")
    evaluate(checkpoint, str(tmp_path / "new"), output=tmp_path / "out")
    assert read(tmp_path / "out")["image_id"].tolist() == ["2", "monday/1", "tuesday/1"]
    Image.open(pictures[2]).save(tmp_path / "new" / "2.png")
    evaluate(checkpoint, str(tmp_path / "new"), output=tmp_path / "out")
    expected = ["2.jpg", "2.png", "monday/1", "tuesday/1"]
    table = read(tmp_path / "out")
    assert table["image_id"].tolist() == expected
    seen = {"image_id": ["2", "1"], "lesion_id": ["a", "b"], "split": ["train", "val"]}
    assert known_split(table, seen).tolist() == ["train", "train", "val", "val"]


def test_a_folder_whose_tables_leave_a_doubt_is_refused(
    checkpoint: Path, tmp_path: Path, demo_folder: Path
) -> None:
    table = images_of(demo_folder, tmp_path, 8)
    table[["image_id", "dx"]].to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "notes.csv").write_text("image_id,comment\nnew_1,blurred\n")
    facts = evaluate(checkpoint, str(tmp_path), output=tmp_path / "out")
    assert sum(known["n_images"] for known in facts["per_class"].values()) == 8
    (tmp_path / "labels.csv").write_text("image_id,dx\nnew_1,mel,a cell too many\n")
    with pytest.raises(InputError, match="more cells than its header"):
        evaluate(checkpoint, str(tmp_path), output=tmp_path / "out")
    one_hot = pd.get_dummies(table["dx"].str.upper()).astype(float)
    one_hot.insert(0, "image", table["image_id"])
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "notes.csv").unlink()
    one_hot.to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(InputError, match="GroundTruth"):
        evaluate(checkpoint, str(tmp_path), output=tmp_path / "out")
    (tmp_path / "labels.csv").rename(tmp_path / "My_GroundTruth.csv")
    facts = evaluate(checkpoint, str(tmp_path), output=tmp_path / "out")
    assert sum(known["n_images"] for known in facts["per_class"].values()) == 8


def test_what_leaks_is_left_out_and_another_model_is_compared_on_the_rest(
    checkpoint: Path, other: Path, tmp_path: Path, call: Call, working_folder: Path
) -> None:
    """By the command, with all images of the folder and with every option."""
    out = str(tmp_path / "out")
    words = ["--checkpoint", str(checkpoint), "--split", "all", "--exclude-leaked", "--tta"]
    words += ["--compare", str(other), "--target-sensitivity", "0.8", "--output", out]
    assert "McNemar" in call(app, *words, cwd=working_folder)
    facts = json.loads((tmp_path / "out/metrics.json").read_text())
    splits = [
        pd.read_csv(working_folder / path.parents[1] / "split.csv").set_index("image_id")["split"]
        for path in (checkpoint, other)
    ]
    evaluated = read(tmp_path / "out")["image_id"]
    assert (splits[0][evaluated] != "train").all()
    assert facts["leaks"]["excluded"]
    compared = (splits[1][evaluated] != "train").sum()
    assert facts["comparison"]["n_images"] == compared < len(evaluated)
    assert facts["tta"]
    assert (tmp_path / "out/report.html").stat().st_size > 100_000


def test_what_the_first_was_chosen_by_too_does_not_favour_the_second(
    checkpoint: Path, seven: Path, other: Path, tmp_path: Path
) -> None:
    both = "evaluated images are of the validation splits of both models"
    alone = "evaluated images are of the other model's validation split"
    facts = evaluate(checkpoint, split="val", output=tmp_path, compare_with=seven)
    assert sum(gap.startswith(f"{facts['n_images']} {both}") for gap in facts["gaps"]) == 1
    assert not any(alone in gap for gap in facts["gaps"])
    splits = [pd.DataFrame(load_model(p).facts["split"]) for p in (checkpoint, other)]
    ours, theirs = (split.set_index("image_id")["split"] for split in splits)
    chosen = theirs == "val"
    facts = evaluate(checkpoint, split="all", output=tmp_path, compare_with=other)
    for text, of in ((both, ours == "val"), (alone, ours == "test")):
        count = (chosen & of.reindex(chosen.index)).sum()
        assert any(gap.startswith(f"{count} {text}") for gap in facts["gaps"]) == (count > 0)
        assert any(text in gap for gap in facts["gaps"]) == (count > 0)
    assert (chosen & (ours == "test").reindex(chosen.index)).any()


def test_a_comparison_by_coarser_classes_is_told_whichever_model_comes_first(
    checkpoint: Path, seven: Path, tmp_path: Path
) -> None:
    for first, second in ((seven, checkpoint), (checkpoint, seven)):
        facts = evaluate(first, output=tmp_path, compare_with=second)
        assert facts["gaps"].count(COARSELY) == 1
    assert COARSELY not in evaluate(seven, output=tmp_path, compare_with=seven)["gaps"]


def test_images_without_a_diagnosis_are_compared_with_a_word(
    checkpoint: Path, other: Path, tmp_path: Path, demo_folder: Path
) -> None:
    images_of(demo_folder, tmp_path / "bare", 4)
    facts = evaluate(
        checkpoint, str(tmp_path / "bare"), output=tmp_path / "out", compare_with=other
    )
    assert any(gap.startswith("no comparison") for gap in facts["gaps"])
    assert len(read(tmp_path / "out")) == 4


@pytest.mark.parametrize("sensitivity", [float("nan"), 0.0, 1.5])
def test_a_sensitivity_that_is_no_share_is_refused(checkpoint: Path, sensitivity: float) -> None:
    with pytest.raises(InputError, match="target-sensitivity"):
        evaluate(checkpoint, target_sensitivity=sensitivity)


def test_a_network_that_has_diverged_is_told(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    with torch.no_grad():
        next(model.network.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="has diverged"):
        predict([model], open_images([model], None, "test"))


def test_one_image_and_one_class_have_their_gaps_named(
    checkpoint: Path, tmp_path: Path, demo_folder: Path
) -> None:
    table = images_of(demo_folder, tmp_path, 24)
    table[table["dx"] == "nv"].head(1).to_csv(tmp_path / "metadata.csv", index=False)
    facts = evaluate(checkpoint, str(tmp_path), output=tmp_path / "out")
    assert facts["n_images"] == 1
    assert read(tmp_path / "out")["y_pred"].tolist() == ["benign"]  # all is right
    stored = json.loads((tmp_path / "out/metrics.json").read_text())
    assert stored["metrics"]["accuracy"]["value"] == 1
    assert stored["metrics"]["f1_score"]["value"] is None
    assert stored["per_class"]["malignant"]["f1_score"] is None
    gaps = "\n".join(facts["gaps"])
    assert "no F1 score: no image of malignant, and none taken for it" in gaps
    assert "none taken for it" in (tmp_path / "out/report.html").read_text()
    assert "no image of malignant" in gaps
    assert "no AUROC" in gaps
    assert "NaN" not in (tmp_path / "out/metrics.json").read_text()


def test_features_are_of_length_one_and_those_of_a_picture_given_directly(
    checkpoint: Path, other: Path
) -> None:
    models = load_models([checkpoint, other])
    images = open_images(models, None, "test")
    features = predict(models, images).features
    assert features is not None
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    same = load_model(checkpoint)
    alone = open_images([same], None, "test")
    pixels = alone.pixels(np.arange(len(alone.rows)))
    told = predict([same], alone).features
    assert told is not None
    assert np.allclose(embed([same], pixels), told, atol=1e-5)
