"""Runs side by side: repetitions are one group, and what differs is named."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from mlops_project.compare import app as comparison
from mlops_project.errors import InputError
from mlops_project.evaluate import app as evaluation
from mlops_project.evaluation import calibration
from mlops_project.evaluation.finished_runs import (
    differing,
    ensembles,
    group,
    read_runs,
    read_whole,
    table,
)
from mlops_project.evaluation.images import open_images
from mlops_project.evaluation.membership import ONE_FOLD
from mlops_project.evaluation.presentation.runs_page import (
    OTHER_IMAGES,
    SEVERAL_SEEDS,
    next_command,
    show,
    show_new,
    write_comparison,
)
from mlops_project.evaluation.report import evaluate
from mlops_project.evaluation.trained_model import load_models
from tests.conftest import Call, Run


def printed_by(program: list[str], folder: Path) -> str:
    """What a program prints that is run in a folder and ends well."""
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folds(
    tmp_path_factory: pytest.TempPathFactory,
    demo_folder: Path,
    command: Callable[..., list[str]],
) -> tuple[Path, str]:
    """A working folder with both folds of a cross-validation, and what the command printed."""
    folder = tmp_path_factory.mktemp("folds")
    words = [f"data.data_dir={demo_folder}", "data.image_size=32", "training.max_epochs=1"]
    program = command("train.py", "-m", *words, "data.folds=2", "data.fold=0,1")
    return folder, printed_by(program, folder)


def test_several_runs_of_one_command_are_summed_up(folds: tuple[Path, str]) -> None:
    folder, printed = folds
    summary = pd.read_csv(folder / "reports/training_metrics.csv")
    auroc = summary["val_auroc"]
    assert f"{auroc.mean():.3f} ± {auroc.std():.3f}" in printed
    assert "--split out-of-fold" in printed
    assert summary["settings"].nunique() == 1  # by which repetitions are found together
    assert summary["fold"].tolist() == [0, 1]


def test_runs_that_have_ended_are_summed_up_where_the_next_one_is_refused(
    folds: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folds[0])
    shown = show_new()
    shown.__enter__().extend(sorted(Path("models/baseline_cnn").glob("version_*")))
    refused = InputError("a file was edited")
    assert not shown.__exit__(type(refused), refused, None)
    assert "--split out-of-fold" in capsys.readouterr().out


def test_each_lesion_is_in_one_validation_fold_and_is_evaluated_once(
    folds: tuple[Path, str], run: Run
) -> None:
    folder, printed = folds
    told = next(line for line in printed.splitlines() if "--split out-of-fold" in line)
    words = told.split("evaluate.py ")[1].split()
    done = run("evaluate.py", *words, "--output", "out", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    splits = [pd.read_csv(path) for path in sorted(folder.glob("models/*/*/split.csv"))]
    val = pd.concat(split[split["split"] == "val"] for split in splits)
    test = splits[0].loc[splits[0]["split"] == "test", "image_id"]
    assert not val["image_id"].duplicated().any()
    assert set(val["image_id"]) | set(test) == set(splits[0]["image_id"])
    facts = json.loads((folder / "out/metrics.json").read_text())
    assert facts["calibration"]["folds"] == 2
    told_of = pd.read_csv(folder / "out/predictions.csv")
    assert sorted(told_of["image_id"]) == sorted(val["image_id"])


def test_what_a_few_images_of_the_other_folds_give_is_told(
    folds: tuple[Path, str], demo_folder: Path, tmp_path: Path
) -> None:
    best = sorted(folds[0].glob("models/*/*/checkpoints/epoch*.ckpt"))
    table = pd.read_csv(demo_folder / "HAM10000_metadata.csv").set_index("image_id")
    parts: list[list[str]] = []
    for model in load_models(best):
        seen = pd.DataFrame(model.facts["split"]).set_index("split")["image_id"]
        parts.append(table.loc[seen["val"]].groupby("dx").head(2).index.tolist())
    chosen = [name for part in parts for name in part]
    (tmp_path / "few/images").mkdir(parents=True)
    for name in chosen:
        shutil.copy(next(demo_folder.rglob(f"{name}.jpg")), tmp_path / "few/images")
    table.loc[chosen].to_csv(tmp_path / "few/metadata.csv")
    facts = evaluate(best, str(tmp_path / "few"), split="out-of-fold", output=tmp_path / "out")
    fitted = sorted(one["images"] for one in facts["calibration"]["of_folds"])
    assert fitted == sorted(map(len, parts))
    fewest = fitted[0]
    assert fewest < 20
    told = f"the calibration and the thresholds of a fold are those of {fewest} images of the other"
    assert any(gap.startswith(told) for gap in facts["gaps"])


def test_on_new_images_a_cross_validation_is_calibrated_by_what_is_out_of_fold(
    folds: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folds[0])
    best = sorted(folds[0].glob("models/*/*/checkpoints/epoch*.ckpt"))
    facts = evaluate(best, output=tmp_path / "test")
    evaluate(best, split="out-of-fold", output=tmp_path / "across")
    across = pd.read_csv(tmp_path / "across/predictions.csv").set_index("image_id")
    known = across.loc[open_images(load_models(best), None, ONE_FOLD).table["image_id"]]
    assert 0.4 < len(known) / len(across) < 0.6
    assert set(known["y_true"]) == set(across["y_true"])
    stays = across["lesion_id"].isin(known["lesion_id"])
    assert stays.sum() == len(known)  # whole lesions
    found = facts["calibration"]
    assert found["validation_images"] == len(known)
    names, prior = facts["class_names"], np.array(list(found["prior"].values()))
    kind = [f"probability_{name}" for name in names]
    labels = known["y_true"].map({name: k for k, name in enumerate(names)}).to_numpy()
    temperature, offsets, _ = calibration.fit(labels, known[kind].to_numpy(dtype=float), prior)
    assert found["temperature"] == pytest.approx(temperature, rel=1e-3)
    assert list(found["offsets"].values()) == pytest.approx(offsets, abs=1e-3)
    told = pd.read_csv(tmp_path / "test/predictions.csv")
    expected = calibration.with_temperature(told[kind].to_numpy(), temperature, offsets)
    assert np.allclose(told[[f"calibrated_{name}" for name in names]], expected, atol=1e-3)
    assert {"operating_points", "prediction_sets"} <= set(facts)
    assert any(f"fitted on {len(known)} images of the folds" in gap for gap in facts["gaps"])


def test_validation_images_of_a_cross_validation_that_have_gone_are_counted(
    folds: tuple[Path, str], demo_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(demo_folder, tmp_path / "here")
    models = load_models(sorted(folds[0].glob("models/*/*/checkpoints/epoch*.ckpt")))
    for model in models:
        model.config.data.data_dir = str(tmp_path / "here")
        seen = pd.DataFrame(model.facts["split"]).set_index("split")["image_id"]
        next((tmp_path / "here").rglob(f"{seen['val'].iloc[0]}.jpg")).unlink()
    absent = open_images(models, None, ONE_FOLD).absent
    assert absent == "images are left out: 2 are not in the folder"


def test_a_page_and_a_table_show_runs_side_by_side(folds: tuple[Path, str], run: Run) -> None:
    folder, _ = folds
    done = run("compare.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    page = (folder / "reports/comparison/comparison.html").read_text()
    assert "models/baseline_cnn/version_1" in page
    assert "http" not in page.replace("http-equiv", "")
    rows = pd.read_csv(folder / "reports/comparison/runs.csv")
    summary = pd.read_csv(folder / "reports/training_metrics.csv")
    assert rows["runs"].tolist() == [2]
    assert rows["val_loss"].tolist() == pytest.approx([summary["val_loss"].mean()])
    assert rows["val_loss_sd"].tolist() == pytest.approx([summary["val_loss"].std()])


@pytest.fixture(scope="module")
def sizes(
    tmp_path_factory: pytest.TempPathFactory,
    folds: tuple[Path, str],
    command: Callable[..., list[str]],
) -> tuple[Path, str]:
    """The working folder of `folds`, where one more command has trained them at two sizes; and
    what it printed."""
    folder = tmp_path_factory.mktemp("sizes")
    shutil.copytree(folds[0], folder, dirs_exist_ok=True)
    words = folds[1].splitlines()[0].split()[1:-1]  # [1/2] SETTINGS data.fold=0
    program = command("train.py", "-m", *words, "data.image_size=40,48", "data.fold=0,1")
    return folder, printed_by(program, folder)


def test_one_command_trains_an_ensemble_and_names_what_evaluates_it(
    sizes: tuple[Path, str], tmp_path: Path, call: Call
) -> None:
    folder, printed = sizes
    told = printed.split("groups 1, 2 as one: ")[1].splitlines()[0]
    words = told.split("evaluate.py ")[1].split()
    call(evaluation, *words, "--output", str(tmp_path), cwd=folder)
    facts = json.loads((tmp_path / "metrics.json").read_text())
    assert facts["calibration"]["folds"] == 2
    assert facts["model"] == "ensemble of 4 (2 × baseline_cnn 40 px, 2 × baseline_cnn 48 px)"
    seen = pd.read_csv(tmp_path / "predictions.csv")["image_id"]
    splits = [pd.read_csv(path) for path in folder.glob("models/*/*/split.csv")]
    assert sorted(seen) == sorted(
        pd.concat(split.loc[split["split"] == "val", "image_id"] for split in splits).unique()
    )


def test_folds_that_were_not_trained_alike_are_told(
    sizes: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sizes[0])
    by_size: dict[int, list[Path]] = {}
    for path in sorted(sizes[0].glob("models/*/*/checkpoints/epoch*.ckpt")):
        config = yaml.safe_load((path.parents[1] / "config.yaml").read_text())
        by_size.setdefault(config["data"]["image_size"], []).append(path)
    assert {size: len(found) for size, found in by_size.items()} == {32: 2, 40: 2, 48: 2}
    told = "the models of the folds were trained with different settings: data.image_size"
    for split in ("out-of-fold", "test"):
        mixed = evaluate([by_size[40][0], by_size[48][1]], split=split, output=tmp_path)
        assert told in mixed["gaps"]
        assert "calibration" in mixed
        alike = evaluate(by_size[40] + by_size[48], split=split, output=tmp_path)
        assert not any("different settings" in gap for gap in alike["gaps"])


def test_several_models_a_fold_are_calibrated_if_there_are_equally_many(
    sizes: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sizes[0])
    all_of_them = sorted(sizes[0].glob("models/*/*/checkpoints/epoch*.ckpt"))[2:]
    assert len(all_of_them) == 4
    facts = evaluate(all_of_them, output=tmp_path)
    assert facts["calibration"]["validation_images"] > 20
    facts = evaluate(all_of_them[:3], output=tmp_path)
    assert "calibration" not in facts
    assert any("not equally many have each image there" in gap for gap in facts["gaps"])


def test_cross_validations_with_the_same_folds_are_named_together(
    sizes: tuple[Path, str], call: Call, tmp_path: Path
) -> None:
    printed = call(comparison, "--output", str(tmp_path), cwd=sizes[0])
    assert "groups 1, 2, 3 as one: " in printed
    assert "Groups 1, 2, 3 evaluated as one" in (tmp_path / "comparison.html").read_text()


@pytest.mark.parametrize("reason", ["other classes", "other lesions", "a fold less", "other seed"])
def test_cross_validations_that_cannot_answer_together_are_not(
    reason: str, sizes: tuple[Path, str], tmp_path: Path
) -> None:
    """Two of the three are left as they are."""
    shutil.copytree(sizes[0] / "models", tmp_path / "models")
    places = sorted((tmp_path / "models").glob("*/*"))
    runs = read_runs(places)
    assert len(read_runs([*places, places[0].parent / "." / places[0].name])) == len(runs)
    assert [len(e) for e in ensembles(group(runs))] == [3]
    first, second = runs[:2]
    if reason == "other classes":
        first.settings["model.num_classes"] = second.settings["model.num_classes"] = 7
    elif reason == "other lesions":
        table = pd.read_csv(first.folder / "split.csv")
        table.iloc[1:].to_csv(first.folder / "split.csv", index=False)
    elif reason == "a fold less":
        del runs[0]
    else:
        first.settings["seed"] = 7
    assert [[len(one.runs) for one in e] for e in ensembles(group(runs))] == [[2, 2]]
    (runs[-1].folder / "split.csv").unlink()
    assert ensembles(group(runs)) == []


def test_folds_that_found_rates_of_their_own_are_one_group(
    folds: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(folds[0] / "models", tmp_path / "models")
    places = sorted((tmp_path / "models").glob("*/*"))[:2]
    for number, place in enumerate(places, 1):
        container = yaml.safe_load((place / "config.yaml").read_text())
        container["training"]["learning_rate"] = number / 1000
        (place / "config.yaml").write_text(yaml.safe_dump(container))
    assert len(group(read_runs(places))) == 2
    for place in places:
        results = json.loads((place / "results.json").read_text())
        results["auto"] = "training.learning_rate"
        (place / "results.json").write_text(json.dumps(results))
    (one,) = group(read_runs(places))
    assert one.is_cross_validation()


def test_what_is_named_as_one_can_be_pasted_and_is_of_one_seed(
    folds: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folds[0] / "models", tmp_path / "my runs")
    for path in tmp_path.rglob("results.json"):
        results = json.loads(path.read_text())
        results["checkpoint"] = f"my runs/{results['checkpoint']}"
        path.write_text(json.dumps(results))
    runs = read_runs(sorted((tmp_path / "my runs").glob("*/*")))[:2]
    words = shlex.split(next_command(group(runs)))
    assert words[-4:-2] == [run.results["checkpoint"] for run in runs]
    for run in runs:  # two of three folds, and no test split
        run.settings.update({"data.folds": 3, "data.test_fraction": 0})
    assert next_command(group(runs)).endswith(" --split out-of-fold")
    show(group(runs))
    assert SEVERAL_SEEDS not in " ".join(capsys.readouterr().out.split())
    runs[0].settings["seed"] = 7
    assert next_command(group(runs)) == ""
    show(group(runs))
    assert SEVERAL_SEEDS in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("change", ["an image less", "others to test", "no split"])
def test_runs_of_a_group_that_had_other_images_are_told(
    change: str, folds: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where an image was lost between them, or came back, which moves others to other splits."""
    shutil.copytree(folds[0] / "models", tmp_path / "models")
    groups = group(read_runs(sorted((tmp_path / "models").glob("*/*"))[:2]))
    assert len(groups) == 1
    show(groups)
    assert OTHER_IMAGES not in " ".join(capsys.readouterr().out.split())
    path = groups[0].runs[0].folder / "split.csv"
    split = pd.read_csv(path)
    path.unlink()
    if change == "an image less":
        split.drop(split.index[split["split"] == "train"][0]).to_csv(path, index=False)
    elif change == "others to test":
        split.assign(split=split["split"].replace("test", "train")).to_csv(path, index=False)
    show(groups)
    told = change != "no split"
    assert (OTHER_IMAGES in " ".join(capsys.readouterr().out.split())) == told
    write_comparison(groups, tmp_path / "page")
    assert (OTHER_IMAGES in (tmp_path / "page/comparison.html").read_text()) == told


def test_settings_that_differ_make_groups_and_are_named(
    checkpoint: Path, seven: Path, other: Path
) -> None:
    runs = read_runs([path.parents[1] for path in (checkpoint, seven, other)])
    groups = group(runs)
    assert [len(one.runs) for one in groups] == [1, 1, 1]
    assert {"model.num_classes", "data.image_size"} <= set(differing(groups))
    assert "seed" not in differing(groups)
    rows = table(groups)
    assert [row["model.num_classes"] for row in rows] == [2, 7, 2]
    assert all(np.isnan(row["val_loss_sd"]) for row in rows)


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no finished run \(results.json is missing\)"):
        read_runs([tmp_path])
    (tmp_path / "a.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match=r"a.ckpt: no finished run"):
        read_runs([tmp_path / "a.ckpt"])


@pytest.mark.parametrize("damage", ["", "data: {crop_fraction: 0.01}", "data: [1"])
def test_a_run_whose_settings_cannot_be_read_is_named(
    damage: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "version_0"
    shutil.copytree(checkpoint.parents[1], folder)
    (folder / "config.yaml").write_text(damage)
    with pytest.raises(InputError, match=r"version_0: the run cannot be read"):
        read_runs([folder])


@pytest.mark.parametrize("damage", [{"auto": None}, {"val_auroc": "x"}, {"test_loss": [1]}])
def test_a_run_whose_results_are_damaged_is_named(
    damage: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "version_0"
    shutil.copytree(checkpoint.parents[1], folder)
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | damage))
    with pytest.raises(InputError, match=r"version_0: the run cannot be read"):
        read_runs([folder])


@pytest.mark.parametrize("damage", ["", "val_loss\n0.5\n", "epoch,val_loss\nfirst,0.5\n", None])
def test_of_all_runs_those_that_are_damaged_are_left_out_and_told(
    damage: str | None, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, folder = checkpoint.parents[1], tmp_path / "version_0"
    shutil.copytree(whole, folder)
    curves = folder / "metrics.csv"
    curves.unlink()
    if damage is not None:
        curves.write_text(damage)
    assert [one.folder for one in read_whole([folder, whole])] == [whole]
    assert f"left out: {folder}: " in caplog.text
