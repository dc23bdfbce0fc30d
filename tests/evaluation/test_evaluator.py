"""An evaluation: its numbers can be recomputed, and no image the model was trained on counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score, roc_auc_score

from mlops_project.data.demo import generate
from mlops_project.errors import InputError
from mlops_project.evaluation.images import open_images
from mlops_project.evaluation.membership import known_split
from mlops_project.evaluation.report import evaluate
from mlops_project.evaluation.trained_model import load_model
from mlops_project.training.run import Result


def test_the_metrics_are_those_of_the_predictions(trained: Result, checkpoint: Path) -> None:
    facts = evaluate(checkpoint)
    assert not any("lesion id" in gap for gap in facts["gaps"])
    folder = Path("reports/evaluation/baseline_cnn-version_0")
    assert json.loads((folder / "metrics.json").read_text())["n_images"] == facts["n_images"]
    with Image.open(folder / "confusion_matrix.png") as picture:
        assert min(picture.size) > 300
    table = pd.read_csv(folder / "predictions.csv")
    assert list(table.columns) == [
        *("image_id", "lesion_id", "y_true", "y_pred"),
        *("probability_benign", "probability_malignant", "age", "sex", "localization"),
        *("calibrated_benign", "calibrated_malignant"),
        *("with_patient_data_benign", "with_patient_data_malignant", "distance", "flagged"),
    ]
    assert len(table) == facts["n_images"]
    assert table["lesion_id"].nunique() == facts["n_lesions"]
    probabilities = table[["probability_benign", "probability_malignant"]].to_numpy()
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    truth, predicted = table["y_true"] == "malignant", table["y_pred"] == "malignant"
    expected = {
        "accuracy": (truth == predicted).mean(),
        "balanced_accuracy": balanced_accuracy_score(truth, predicted),
        "f1_score": f1_score(truth, predicted),
        "auroc": roc_auc_score(truth, probabilities[:, 1]),
    }
    values = {n: m["value"] for n, m in facts["metrics"].items()}
    assert {n: values[n] for n in expected} == pytest.approx(expected)
    for metric in facts["metrics"].values():
        low, high = metric["ci95"]
        assert low <= metric["value"] <= high or np.isnan(low)
    malignant = facts["per_class"]["malignant"]
    assert malignant["sensitivity"] == pytest.approx(recall_score(truth, predicted))
    assert malignant["specificity"] == pytest.approx(recall_score(~truth, ~predicted))
    # What training itself reported for the same weights
    for name, value in expected.items():
        assert trained.test[f"test_{name}"] == pytest.approx(value, abs=1e-6)


def test_what_is_fitted_on_the_validation_split_is_judged_on_the_test_split(
    checkpoint: Path, tmp_path: Path
) -> None:
    evaluate(checkpoint, split="val", output=tmp_path / "val")
    seen = pd.read_csv(tmp_path / "val/predictions.csv")
    facts = evaluate(checkpoint, output=tmp_path / "test", target_sensitivity=0.8)
    table = pd.read_csv(tmp_path / "test/predictions.csv")
    temperature = facts["calibration"]["temperature"]
    stored = json.loads(checkpoint.with_suffix(".calibration.json").read_text())
    assert stored["temperature"] == temperature
    assert stored["validation_images"] == len(seen)
    assert stored["offsets"] == facts["calibration"]["offsets"]
    odds = (table["probability_malignant"] / table["probability_benign"]) ** (1 / temperature)
    odds *= np.exp(stored["offsets"]["malignant"] - stored["offsets"]["benign"])
    assert np.allclose(table["calibrated_malignant"], odds / (1 + odds), atol=1e-5)
    point = facts["operating_points"]["malignant"]
    assert point["validation"]["sensitivity"] >= 0.8
    positive = table["calibrated_malignant"] >= point["threshold"] - 1e-9
    truth = table["y_true"] == "malignant"
    assert point["evaluated"]["sensitivity"]["value"] == pytest.approx(positive[truth].mean())
    assert point["evaluated"]["specificity"]["value"] == pytest.approx(1 - positive[~truth].mean())
    assert facts["prediction_sets"]["0.9"]["coverage"] >= 0.7
    assert not any("validation" in gap or "fitted" in gap for gap in facts["gaps"])
    assert "calibration" not in json.loads((tmp_path / "val/metrics.json").read_text())


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_split_is_the_runs_own(checkpoint: Path, split: str, tmp_path: Path) -> None:
    evaluate(checkpoint, split=split, output=tmp_path)
    table = pd.read_csv(tmp_path / "predictions.csv")
    written = pd.read_csv("models/baseline_cnn/version_0/split.csv")
    assert set(table["image_id"]) == set(written.loc[written["split"] == split, "image_id"])


def test_another_folder_is_a_test_but_for_the_lesions_the_run_has_seen(
    checkpoint: Path, demo_folder: Path, tmp_path: Path
) -> None:
    """A copy with other image names: each image is new, and some of the lesions were trained on."""
    split = pd.read_csv("models/baseline_cnn/version_0/split.csv")
    table = pd.read_csv(demo_folder / "HAM10000_metadata.csv")
    copy = tmp_path / "new"
    (copy / "images").mkdir(parents=True)
    (copy / "metadata").mkdir()
    for path in demo_folder.rglob("*.jpg"):
        shutil.copy(path, copy / "images" / f"new_{path.name}")
    table["image_id"] = "new_" + table["image_id"]
    table.loc[0, "lesion_id"] = "never seen"
    table.to_csv(copy / "metadata" / "metadata.csv", index=False)
    facts = evaluate(checkpoint, data_dir=str(copy), output=tmp_path / "out")
    evaluated = set(pd.read_csv(tmp_path / "out/predictions.csv")["lesion_id"])
    assert evaluated == {"never seen", *split.loc[split["split"] == "test", "lesion_id"]} & set(
        table["lesion_id"]
    )
    everything = evaluate(checkpoint, str(copy), "all", tmp_path / "all")
    assert everything["n_images"] == len(table) > facts["n_images"]
    assert "calibration" not in everything  # the lesions that it is fitted on are among these
    generate(tmp_path / "others", images=100, seed=8)
    table = pd.read_csv(tmp_path / "others/HAM10000_metadata.csv")
    table["lesion_id"], table["image_id"] = "new_" + table["lesion_id"], "new_" + table["image_id"]
    table.to_csv(tmp_path / "others/HAM10000_metadata.csv", index=False)
    for path in (tmp_path / "others").rglob("*.jpg"):
        path.rename(path.with_name(f"new_{path.name}"))
    assert "calibration" in evaluate(checkpoint, str(tmp_path / "others"), "all", tmp_path / "c")


def test_images_that_have_gone_are_counted(
    checkpoint: Path, demo_folder: Path, tmp_path: Path
) -> None:
    model = load_model(checkpoint)
    split = pd.DataFrame(model.facts["split"]).groupby("split")["image_id"].apply(list)
    shutil.copytree(demo_folder, tmp_path / "here")
    for name in (*split["test"][:2], split["train"][0]):
        next((tmp_path / "here").rglob(f"{name}.jpg")).unlink()
    next((tmp_path / "here").rglob(f"{split['test'][2]}.jpg")).write_bytes(b"no picture")
    model.config.data.data_dir = str(tmp_path / "here")
    absent = "images are left out: 2 are not in the folder and 1 cannot be read"
    assert open_images([model], None, "test").absent == absent
    assert open_images([model], None, "val").absent == ""
    assert open_images([model], str(tmp_path / "here"), "test").absent == absent
    everything = open_images([model], None, "all").absent
    assert everything == absent.replace("2 are", "3 are")


def test_a_file_and_an_empty_name_are_no_folder(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("image_id,dx\n")
    with pytest.raises(InputError, match="this is a file"):
        evaluate(checkpoint, str(tmp_path / "table.csv"))
    with pytest.raises(InputError, match="the name is empty"):
        evaluate(checkpoint, "")


def test_the_challenges_layout_is_all_test(
    checkpoint: Path, demo_folder: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(demo_folder / "HAM10000_metadata.csv").sample(30, random_state=1)
    inputs = tmp_path / "ISIC2018_Task3_Test_Input"
    inputs.mkdir()
    truth = pd.DataFrame({"image": "ISIC_" + table["image_id"]})
    for name in ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"):
        truth[name] = (table["dx"] == name.lower()).astype(float)
    (tmp_path / "ISIC2018_Task3_Test_GroundTruth").mkdir()
    truth.to_csv(
        tmp_path / "ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv",
        index=False,
    )
    for image_id in table["image_id"]:
        source = next(demo_folder.rglob(f"{image_id}.jpg"))
        shutil.copy(source, inputs / f"ISIC_{source.name}")
    facts = evaluate(checkpoint, str(tmp_path), output=tmp_path / "out")
    assert facts["n_images"] == facts["n_lesions"] == 30
    gap = "of 30 of the 30 images no lesion id is known: each counts as a lesion of its own"
    assert any(gap in known for known in facts["gaps"])
    assert gap.capitalize() in (tmp_path / "out/MODEL_CARD.md").read_text()
    malignant = table["dx"].isin(["mel", "bcc", "akiec"]).sum()
    assert facts["per_class"]["malignant"]["n_images"] == malignant


def test_a_run_whose_images_have_moved_asks_for_their_folder(
    checkpoint: Path, demo_folder: Path, tmp_path: Path
) -> None:
    moved = demo_folder.with_name("moved")
    demo_folder.rename(moved)
    try:
        with pytest.raises(InputError, match="--data-dir"):
            evaluate(checkpoint, output=tmp_path)
        facts = evaluate(checkpoint, str(moved), output=tmp_path)
        assert facts["n_images"] > 10
        assert facts["leaks"]["status"] == "clean"
        assert "calibration" in facts
    finally:
        moved.rename(demo_folder)


IDS = st.integers(0, 12).map(str)
LESIONS = IDS.map("L{}".format)


@given(
    st.lists(st.tuples(IDS, LESIONS, st.sampled_from(["train", "val", "test", "unused"]))),
    st.data(),
)
def test_no_image_or_lesion_of_the_training_split_is_ever_evaluated(
    seen: list[tuple[str, str, str]], data: st.DataObject
) -> None:
    """As in a real run, an image shows one lesion, and a lesion is in one split or unused."""
    of_lesion: dict[str, str] = {}
    rows: dict[str, tuple[str, str]] = {}
    for image, lesion, split in seen:
        if split != "unused":
            split = of_lesion.setdefault(lesion, split)
        rows.setdefault(image, (lesion, split))
    known = {
        "image_id": list(rows),
        "lesion_id": [lesion for lesion, _ in rows.values()],
        "split": [split for _, split in rows.values()],
    }
    new = data.draw(st.lists(st.tuples(IDS, LESIONS), min_size=1))
    table = pd.DataFrame(new, columns=["image_id", "lesion_id"])
    parts = known_split(table, known)
    # What the run's table told of lesions, and what this one tells of the run's images.
    told = [*rows.values(), *((lesion, rows[image][1]) for image, lesion in new if image in rows)]
    trained = {lesion for lesion, part in told if part == "train"}
    for image, lesion, part in zip(table["image_id"], table["lesion_id"], parts, strict=True):
        if image in rows:
            assert part == rows[image][1]
        elif lesion in trained:
            assert part == "train"
        elif lesion not in dict(told):
            assert part == "test"
