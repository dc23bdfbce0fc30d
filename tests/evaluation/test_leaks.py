"""Whatever shows what a model was trained on is found, under whatever name it comes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from mlops_project.data import same_pictures
from mlops_project.evaluation.images import Images, moved_to, open_images
from mlops_project.evaluation.leaks import Pictures, audit, training_pictures
from mlops_project.evaluation.membership import OUT_OF_FOLD, known_split
from mlops_project.evaluation.report import evaluate
from mlops_project.evaluation.trained_model import TrainedModel, load_model
from mlops_project.settings import load
from mlops_project.training.preparation import open_data
from mlops_project.training.run import train

Known = dict[str, list[str]]
Make = Callable[..., TrainedModel]


def split_of(images: dict[str, tuple[str, str]]) -> Known:
    """The split of a run, from lesion and split of each image."""
    return {
        "image_id": list(images),
        "lesion_id": [lesion for lesion, _ in images.values()],
        "split": [part for _, part in images.values()],
    }


def table_of(*images: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(images, columns=["image_id", "lesion_id"])


NO_LESIONS = np.array([None, None], dtype=object)
IDS = st.integers(0, 12).map(str)
LESIONS = IDS.map("L{}".format)
SPLIT = st.dictionaries(
    IDS, st.tuples(LESIONS, st.sampled_from(["train", "val", "test", "unused"])), max_size=12
).map(split_of)
TABLE = st.dictionaries(IDS, LESIONS, min_size=1).map(lambda images: table_of(*images.items()))


@settings(deadline=None)
@given(seen=st.lists(SPLIT, min_size=1, max_size=3), evaluated=TABLE, data=st.data())
def test_what_is_left_shows_no_lesion_that_a_model_was_trained_on(
    seen: list[Known], evaluated: pd.DataFrame, data: st.DataObject
) -> None:
    """Asked of all models, and of only some about each image, as out of fold."""
    n, now = len(evaluated), dict(evaluated.to_numpy())  # what the folder tells of lesions
    rows = st.lists(st.booleans(), min_size=n, max_size=n)
    asked = np.array(data.draw(st.lists(rows, min_size=len(seen), max_size=len(seen))))
    for shown in (np.ones_like(asked), asked):
        facts = audit(seen, evaluated, asked=shown)
        reasons = set()  # lesions of images that a model was trained on and is asked about
        for image, lesion, column in zip(*evaluated.to_numpy().T, shown.T, strict=True):
            for split, is_asked in zip(seen, column, strict=True):
                for known, shows, part in zip(*split.values(), strict=True):
                    same = known == image or lesion in (shows, now.get(known))
                    if is_asked and part == "train" and same:
                        reasons.add(lesion)
        out = evaluated["image_id"].isin(facts["leaked_images"])
        assert set(evaluated.loc[out, "lesion_id"]) == reasons
        assert not reasons & set(evaluated.loc[~out, "lesion_id"])
        trained = pd.concat([pd.DataFrame(split) for split in seen]).query("split == 'train'")
        assert facts["n_training_images"] == len(set(trained["image_id"]))
        nothing = "unknown" if len(trained) else "clean"
        assert facts["status"] == ("overlap" if reasons else nothing)


def test_each_way_of_leaking_is_counted_once() -> None:
    seen = split_of({"a": ("A", "train"), "b": ("A", "train"), "v": ("V", "val")})
    evaluated = table_of(("a", "A"), ("new", "A"), ("b", "B"), ("sibling", "B"), ("w", "V"))
    facts = audit([seen], evaluated)
    assert facts["shared_images"] == ["a", "b"]
    assert facts["shared_lesions"] == ["A", "B"]
    assert facts["leaked_images"] == ["a", "new", "b", "sibling"]
    assert facts["n_shared_with_validation"] == 1
    sentence = facts["sentence"]
    assert sentence.startswith("Overlap: 4 of 5 evaluated images show")
    for part in ("the same image: 2", "same lesion: 2", "--exclude-leaked"):
        assert part in sentence
    without = audit([seen], evaluated, excluded=True)
    assert without["excluded"]
    assert "leaves them out" in without["sentence"]


def test_of_several_like_it_the_most_similar_training_image_is_named() -> None:
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (3, 32, 32))
    noise = random.integers(-20, 21, (3, 32, 32))
    versions = [picture + noise, picture + noise // 4, picture]
    small = np.array(versions).clip(0, 255).astype(np.uint8)
    trained = np.ones((1, 2), dtype=bool)
    training = Pictures(
        np.array(["rough", "fine"], dtype=object), small[:2], trained, NO_LESIONS[:2]
    )
    seen = split_of({"rough": ("A", "train"), "fine": ("B", "train")})
    facts = audit([seen], table_of(("x", "X")), small[2:], training)
    (pair,) = facts["near_duplicates"]
    assert (pair["image_id"], pair["training_image_id"]) == ("x", "fine")
    assert len(same_pictures.similar_pairs(small[:2], small[2:])[0]) == 2


def test_a_near_duplicate_counts_only_for_a_model_that_was_trained_on_it() -> None:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    seen = [split_of({"a": ("A", "train")}), split_of({"b": ("B", "train")})]
    training = Pictures(
        np.array(["a", "b"], dtype=object), small, np.eye(2, dtype=bool), NO_LESIONS[:2]
    )
    table = table_of(("a anew", "X"), ("b anew", "Y"))
    for asked, leaked in (([[1, 0], [0, 1]], ["a anew", "b anew"]), ([[0, 1], [1, 0]], [])):
        facts = audit(seen, table, small, training, asked=np.array(asked, dtype=bool))
        assert facts["leaked_images"] == leaked


def test_two_pictures_with_one_id_in_two_folders_are_two() -> None:
    small = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    seen = [split_of({"1": ("A", "train")}), split_of({"1": ("B", "train")})]
    ids = np.array(["1", "1"], dtype=object)
    both = Pictures(ids, small, np.eye(2, dtype=bool), NO_LESIONS[:2])
    for n in range(2):
        facts = audit(seen, table_of(("new", "X")), small[n : n + 1], both)
        assert facts["leaked_images"] == ["new"]
    one = Pictures(ids[:1], small[:1], np.array([[True], [False]]), NO_LESIONS[:1])
    assert audit(seen, table_of(("new", "X")), small[1:], one)["status"] == "unknown"


@pytest.fixture
def make(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`make(…)`: a model that knows its split, as after a training on the demo images."""
    monkeypatch.chdir(tmp_path)

    def model(*overrides: str) -> TrainedModel:
        config = load([f"data.data_dir={demo_folder}", "data.image_size=32", *overrides])
        data = open_data(config)
        data.read()
        split = {
            "image_id": data.table["image_id"].tolist(),
            "lesion_id": data.table["lesion_id"].tolist(),
            "split": data.split.tolist(),
        }
        facts = {
            "preprocessing": {"image_size": data.image_size},
            "split": split,
            "class_names": list(data.class_names),
            "split_hash": data.split_hash(),
        }
        return TrainedModel(tmp_path / "last.ckpt", nn.Identity(), config, facts, 1)

    return model


def audited(
    models: list[TrainedModel], images: Images, *, excluded: bool = False
) -> dict[str, Any]:
    """With all that is at hand."""
    return audit(
        [model.facts["split"] for model in models],
        images.table,
        same_pictures.thumbnails(images.data[0], images.rows),
        training_pictures(models, images),
        asked=images.asked,
        excluded=excluded,
    )


def saved_anew(image: Image.Image, way: int, path: Path) -> None:
    """Turned or mirrored, every second one at half the size, as a JPEG of quality 50."""
    image = image.transpose(list(Image.Transpose)[way % len(Image.Transpose)])
    if way % 2:
        image = image.resize((image.width // 2, image.height // 2))
    image.save(path, quality=50)


@pytest.mark.parametrize("side", [16, 32, 100])
def test_a_training_image_saved_anew_under_other_ids_is_found(
    make: Make, demo_folder: Path, tmp_path: Path, side: int
) -> None:
    model = make(f"data.image_size={side}")
    known = pd.DataFrame(model.facts["split"])
    copies = known[known["split"] != "val"].groupby("split").head(14).reset_index(drop=True)
    folder = tmp_path / "other"
    (folder / "images").mkdir(parents=True)
    for n, name in enumerate(copies["image_id"]):
        with Image.open(next(demo_folder.rglob(f"{name}.jpg"))) as image:
            saved_anew(image, n, folder / "images" / f"copy_{n:02d}.jpg")
    table = pd.DataFrame({"image_id": [f"copy_{n:02d}" for n in range(len(copies))]})
    # Images without near-duplicates, and one that shares its lesion with a near-duplicate.
    table["lesion_id"] = table["image_id"]
    table["dx"] = "nv"
    trained = (copies["split"] == "train").to_numpy()
    table.loc[np.flatnonzero(~trained)[0], "lesion_id"] = table["lesion_id"][trained].iloc[0]
    table.to_csv(folder / "metadata.csv", index=False)

    facts = audited([model], open_images([model], str(folder), "test"))
    assert facts["status"] == "overlap"
    found = {pair["image_id"]: pair["training_image_id"] for pair in facts["near_duplicates"]}
    expected = dict(zip(table["image_id"][trained], copies["image_id"][trained], strict=True))
    assert found == expected
    assert all(0.94 < pair["similarity"] <= 1.001 for pair in facts["near_duplicates"])
    sibling = table["image_id"][~trained].iloc[0]
    assert set(facts["leaked_images"]) == {*expected, sibling}
    assert facts["shared_images"] == facts["shared_lesions"] == []
    assert "the same picture under another id: 14" in facts["sentence"]


@pytest.mark.parametrize("copied", [4, 12])
def test_nothing_is_judged_on_copies_of_what_it_was_fitted_on(
    copied: int, wide: Path, demo_folder: Path, tmp_path: Path
) -> None:
    """Lesions of the validation split, saved anew under other ids among other images."""
    known = pd.DataFrame(load_model(wide).facts["split"])
    validation = known[known["split"] == "val"]
    lesions = validation["lesion_id"].unique()[:copied]
    shown = validation[validation["lesion_id"].isin(lesions)]
    firsts = shown.drop_duplicates("lesion_id")  # of the others, the lesion alone tells
    chosen = pd.concat([firsts, known[known["split"] == "test"]]).reset_index(drop=True)
    folder = tmp_path / "other"
    (folder / "images").mkdir(parents=True)
    for n, name in enumerate(chosen["image_id"]):
        with Image.open(next(demo_folder.rglob(f"{name}.jpg"))) as image:
            saved_anew(image, n, folder / "images" / f"copy_{n:02d}.jpg")
    table = pd.read_csv(demo_folder / "HAM10000_metadata.csv").set_index("image_id")
    table = table.loc[chosen["image_id"]].reset_index()
    table["image_id"] = [f"copy_{n:02d}" for n in range(len(table))]
    table["lesion_id"] = "new_" + table["lesion_id"]
    table.to_csv(folder / "metadata.csv", index=False)

    facts = evaluate(wide, str(folder), output=tmp_path / "out")
    assert facts["leaks"]["status"] == "clean"  # nothing of the training
    assert facts["leaks"]["n_shared_with_validation"] == copied
    assert f"{copied} evaluated images show lesions of the valid" in facts["leaks"]["sentence"]
    (told,) = [gap for gap in facts["gaps"] if "are evaluated under other ids" in gap]
    assert f"{len(shown)} validation images, or their lesions," in told
    stay = len(validation) - len(shown)
    if copied == 4:
        assert facts["calibration"]["validation_images"] == stay >= 20
    else:
        assert stay < 20
        assert "calibration" not in facts
        assert "calibrated_benign" not in pd.read_csv(tmp_path / "out/predictions.csv")


def test_the_runs_own_test_split_is_clean_and_its_training_split_is_not(make: Make) -> None:
    model = make()
    images = open_images([model], None, "test")
    facts = audited([model], images)
    assert (facts["status"], facts["leaked_images"]) == ("clean", [])
    assert facts["sentence"].startswith(f"Clean: the {len(images.rows)} evaluated")
    everything = open_images([model], None, "all")
    facts = audited([model], everything, excluded=True)
    known = pd.DataFrame(model.facts["split"])
    assert facts["leaked_images"] == known.loc[known["split"] == "train", "image_id"].tolist()
    assert facts["near_duplicates"] == []  # images of a shared lesion count as that alone
    assert facts["n_shared_with_validation"] == (known["split"] == "val").sum()
    left = everything.without(set(facts["leaked_images"]))
    assert audited([model], left)["status"] == "clean"


def test_what_a_run_has_left_out_is_not_decoded_to_compare_with(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["data.image_size=32", "data.subsample_percentage=0.5", "training.max_epochs=1"]
    result = train(load([f"data.data_dir={demo_folder}", *small]))
    assert result.folder is not None
    split = pd.read_csv(result.folder / "split.csv")["split"]
    shutil.rmtree("data/cache")
    evaluate([result.checkpoint])
    (rows,) = Path("data/cache").glob("*/rows.u32")
    decoded = np.fromfile(rows, dtype="<u4").reshape(-1, 2)[:, 0]
    assert 0 < decoded.sum() == (split != "unused").sum() < len(split)


def test_an_ensemble_was_trained_on_what_any_of_it_was_trained_on(make: Make) -> None:
    models = [make("seed=1"), make("seed=2", "data.image_size=40")]
    splits = [pd.DataFrame(m.facts["split"]) for m in models]
    trained = set().union(*(s.loc[s["split"] == "train", "image_id"] for s in splits))
    training = training_pictures(models, open_images(models, None, "test"))
    assert training is not None
    assert sorted(training.image_id) == sorted(trained)
    for split, status in (("test", "clean"), ("all", "overlap")):
        images = open_images(models, None, split)
        facts = audited(models, images)
        assert facts["n_training_images"] == len(trained)
        assert facts["status"] == status
        assert set(facts["leaked_images"]) == set(images.table["image_id"]) & trained


def test_out_of_fold_only_the_models_that_are_asked_count(make: Make) -> None:
    models = [make("data.folds=3", f"data.fold={fold}") for fold in range(3)]
    images = open_images(models, None, OUT_OF_FOLD)
    facts = audited(models, images)
    assert (facts["status"], facts["leaked_images"]) == ("clean", [])
    assert facts["n_training_images"] == facts["n_shared_with_validation"] == len(images.rows)
    assert "by which the checkpoint was chosen" in facts["sentence"]


def test_without_the_training_images_near_duplicates_are_unknown(
    make: Make, tmp_path: Path
) -> None:
    model = make()
    images = open_images([model], None, "test")
    thumbnails = same_pictures.thumbnails(images.data[0], images.rows)
    training = training_pictures([model], images)
    assert training is not None
    fewer = Pictures(
        training.image_id[3:],
        training.thumbnails[3:],
        training.trained[:, 3:],
        training.lesion_id[3:],
    )
    facts = audit([model.facts["split"]], images.table, thumbnails, fewer)
    assert facts["status"] == "unknown"
    assert "among 3 training images that are not at hand" in facts["sentence"]
    model.config.data.data_dir = str(tmp_path / "moved away")
    assert audited([model], images)["status"] == "clean"  # to the folder that is evaluated
    for name, value in (("image_id", "gone"), ("lesion_id", "gone"), ("split", "test")):
        model.facts["split"][name].append(value)  # so this is another folder
    facts = audited([model], images)
    assert (facts["status"], facts["leaked_images"]) == ("unknown", [])
    assert f"among {facts['n_training_images']} training images" in facts["sentence"]


def test_the_lesions_that_the_table_tells_now_count_too() -> None:
    small = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    seen, ids = [split_of({"a": ("A", "train")})], np.array(["a"], dtype=object)
    table = table_of(("b", "NEW"))
    for now, leaked in (("a", []), ("new", ["b"])):
        lesions = np.array([now], dtype=object)
        training = Pictures(ids, small[:1], np.ones((1, 1), dtype=bool), lesions)
        assert audit(seen, table, small[1:], training)["leaked_images"] == leaked


def test_the_name_of_an_image_without_a_lesion_is_no_lesion_of_another_table() -> None:
    seen = split_of({"img1": ("7", "train"), "img2": ("8", "val"), "img3": ("9", "train")})
    table = table_of(("7", "7"), ("8", "8"), ("new", "9"))
    assert known_split(table, seen).tolist() == ["test", "test", "train"]
    assert audit([seen], table)["leaked_images"] == ["new"]
    assert audit([seen], table)["n_shared_with_validation"] == 0
    several = table_of(("7", "7"), ("7b", "7"))  # a lesion called by its first image
    assert known_split(several, seen).tolist() == ["train", "train"]


def test_a_lesion_is_known_again_however_another_table_writes_its_id() -> None:
    seen = split_of({"img1": ("HAM_1", "train"), "img2": ("12", "val"), "img3": ("9", "train")})
    table = table_of(("new1", "ham_1"), ("new2", "12.0"), ("new3", "HAM_10"))
    assert known_split(table, seen).tolist() == ["train", "val", "test"]
    facts = audit([seen], table)
    assert (facts["leaked_images"], facts["n_shared_with_validation"]) == (["new1"], 1)


def test_an_image_is_known_again_however_the_table_writes_its_id_now(
    make: Make, tmp_path: Path
) -> None:
    model = make()
    known = model.facts["split"]
    known["image_id"] = [name.swapcase() for name in known["image_id"]]
    images = open_images([model], None, "test")
    assert images.absent == ""
    facts = audited([model], images)
    assert (facts["status"], facts["n_not_compared"]) == ("clean", 0)
    model.config.data.data_dir = str(tmp_path / "moved away")
    assert moved_to([model], images) == str(images.folder)


def test_lesions_that_only_the_evaluated_folder_tells_leak_too() -> None:
    """The run's table had no lesions, or called them otherwise."""
    folder = table_of(("i1", "L1"), ("i2", "L1"), ("new", "L1"), ("other", "L2"))
    for before in (("i1", "i2"), ("old1", "old2")):
        seen = split_of({"i1": (before[0], "train"), "i2": (before[1], "test")})
        assert known_split(folder, seen).tolist() == ["train", "test", "train", "test"]
        evaluated = folder.iloc[1:].reset_index(drop=True)
        facts = audit([seen], evaluated, folder=folder)
        assert facts["leaked_images"] == ["i2", "new"]
        assert audit([seen], evaluated.iloc[2:], folder=folder)["leaked_images"] == []


def test_the_name_of_a_trained_image_without_a_lesion_is_no_lesion_either() -> None:
    seen = split_of(
        {"1": ("1", "train"), "2": ("2", "val"), "3": ("4", "train"), "4": ("4", "val")}
    )
    table = table_of(("b1", "1"), ("b2", "2"), ("b3", "1"), ("b4", "4"))
    assert known_split(table, seen).tolist() == ["test", "test", "test", "train"]
    facts = audit([seen], table)
    assert (facts["leaked_images"], facts["n_shared_with_validation"]) == (["b4"], 0)


def test_a_lesion_called_by_its_first_image_is_one_where_that_image_is_not_evaluated() -> None:
    seen = split_of({"a1": ("7", "train")})
    folder = table_of(("7", "7"), ("7b", "7"))
    assert audit([seen], folder.iloc[:1], folder=folder)["leaked_images"] == ["7"]
