"""Whatever shows what a model was trained on is found, under whatever name it comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from mlops_project.data import same_pictures
from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.evaluation.images import open_images
from mlops_project.evaluation.leaks import Pictures, audit, training_pictures
from mlops_project.evaluation.trained_model import TrainedModel
from mlops_project.settings import load

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


IDS = st.integers(0, 12).map(str)
SPLIT = st.dictionaries(
    IDS, st.tuples(IDS, st.sampled_from(["train", "val", "test", "unused"])), max_size=12
).map(split_of)
TABLE = st.dictionaries(IDS, IDS, min_size=1).map(lambda images: table_of(*images.items()))


@settings(deadline=None)
@given(seen=st.lists(SPLIT, min_size=1, max_size=3), evaluated=TABLE)
def test_what_is_left_shows_no_lesion_that_any_model_was_trained_on(
    seen: list[Known], evaluated: pd.DataFrame
) -> None:
    facts = audit(seen, evaluated)
    known = pd.concat([pd.DataFrame(split) for split in seen])
    trained = known[known["split"] == "train"]
    assert facts["n_training_images"] == len(set(trained["image_id"]))
    out = evaluated["image_id"].isin(facts["leaked_images"])
    left, leaked = evaluated[~out], evaluated[out]
    assert not set(left["image_id"]) & set(trained["image_id"])
    assert not set(left["lesion_id"]) & set(trained["lesion_id"])
    assert not set(left["lesion_id"]) & set(leaked["lesion_id"])
    # And nothing is left out for no reason.
    reasons = leaked["image_id"].isin(trained["image_id"])
    reasons |= leaked["lesion_id"].isin(trained["lesion_id"])
    assert set(leaked["lesion_id"]) == set(leaked.loc[reasons, "lesion_id"])
    assert (facts["status"] == "overlap") == bool(len(leaked))
    if not len(leaked):
        assert facts["status"] == ("unknown" if len(trained) else "clean")


def test_each_way_of_leaking_is_counted_once() -> None:
    seen = split_of({"a": ("A", "train"), "b": ("A", "train"), "v": ("V", "val")})
    evaluated = table_of(("a", "A"), ("new", "A"), ("b", "B"), ("sibling", "B"), ("w", "V"))
    facts = audit([seen], evaluated)
    assert facts["shared_images"] == ["a", "b"]
    assert facts["shared_lesions"] == ["A"]
    assert facts["leaked_images"] == ["a", "new", "b", "sibling"]
    assert facts["n_shared_with_validation"] == 1
    sentence = facts["sentence"]
    assert sentence.startswith("Overlap: 4 of 5 evaluated images show")
    for part in ("the same image: 2", "same lesion: 1", "lesion so found: 1", "--exclude-leaked"):
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
    training = Pictures(np.array(["rough", "fine"], dtype=object), small[:2])
    seen = split_of({"rough": ("A", "train"), "fine": ("B", "train")})
    facts = audit([seen], table_of(("x", "X")), small[2:], training)
    (pair,) = facts["near_duplicates"]
    assert (pair["image_id"], pair["training_image_id"]) == ("x", "fine")
    assert len(same_pictures.similar_pairs(small[:2], small[2:])[0]) == 2


@pytest.fixture
def make(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`make(seed, side)`: a model that knows its split, as after a training on the demo images."""
    monkeypatch.chdir(tmp_path)

    def model(seed: int = 42, side: int = 32) -> TrainedModel:
        options = [f"data.data_dir={demo_folder}", f"data.image_size={side}", f"seed={seed}"]
        config = load(options)
        data = HAM10000DataModule(demo_folder, seed=seed, image_size=side)
        data.read()
        split = {
            "image_id": data.table["image_id"].tolist(),
            "lesion_id": data.table["lesion_id"].tolist(),
            "split": data.split.tolist(),
        }
        names = list(data.class_names)
        facts = {"preprocessing": {"image_size": side}, "split": split, "class_names": names}
        return TrainedModel(tmp_path / "last.ckpt", nn.Identity(), config, facts, 1)

    return model


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
    model = make(side=side)
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

    images = open_images([model], str(folder), "test")
    data, rows = images.data[0], images.rows
    thumbnails = same_pictures.thumbnails(data, rows)
    facts = audit(
        [model.facts["split"]], data.table.iloc[rows], thumbnails, training_pictures([model])
    )
    assert facts["status"] == "overlap"
    found = {pair["image_id"]: pair["training_image_id"] for pair in facts["near_duplicates"]}
    expected = dict(zip(table["image_id"][trained], copies["image_id"][trained], strict=True))
    assert found == expected
    assert all(0.94 < pair["similarity"] <= 1.001 for pair in facts["near_duplicates"])
    sibling = table["image_id"][~trained].iloc[0]
    assert set(facts["leaked_images"]) == {*expected, sibling}
    assert facts["shared_images"] == facts["shared_lesions"] == []
    assert "the same picture under another id: 14" in facts["sentence"]


def test_the_runs_own_test_split_is_clean_and_its_training_split_is_not(make: Make) -> None:
    model = make()
    seen, training = [model.facts["split"]], training_pictures([model])
    images = open_images([model], None, "test")
    data, rows = images.data[0], images.rows
    table = data.table.iloc[rows]
    facts = audit(seen, table, same_pictures.thumbnails(data, rows), training)
    assert (facts["status"], facts["leaked_images"]) == ("clean", [])
    assert facts["sentence"].startswith(f"Clean: the {len(rows)} evaluated")
    images = open_images([model], None, "all")
    data, rows = images.data[0], images.rows
    facts = audit(seen, data.table.iloc[rows], same_pictures.thumbnails(data, rows), training)
    own = data.split[rows]
    assert facts["leaked_images"] == data.table["image_id"].iloc[rows[own == "train"]].tolist()
    assert facts["near_duplicates"] == []  # images of a shared lesion count as that alone
    assert facts["n_shared_with_validation"] == (own == "val").sum()


def test_an_ensemble_was_trained_on_what_any_of_it_was_trained_on(make: Make) -> None:
    models = [make(seed=1), make(seed=2, side=40)]
    splits = [pd.DataFrame(m.facts["split"]) for m in models]
    trained = set().union(*(s.loc[s["split"] == "train", "image_id"] for s in splits))
    training = training_pictures(models)
    assert training is not None
    assert sorted(training.image_id) == sorted(trained)
    images = open_images([models[0]], None, "test")
    data, rows = images.data[0], images.rows
    table = data.table.iloc[rows]
    thumbnails = same_pictures.thumbnails(data, rows)
    facts = audit([m.facts["split"] for m in models], table, thumbnails, training)
    assert facts["n_training_images"] == len(trained)
    assert set(facts["leaked_images"]) == set(table["image_id"]) & trained != set()
    left = table[~table["image_id"].isin(facts["leaked_images"])]
    pictures = thumbnails[~table["image_id"].isin(facts["leaked_images"]).to_numpy()]
    again = audit([m.facts["split"] for m in models], left, pictures, training)
    assert again["status"] == "clean"


def test_without_the_training_images_near_duplicates_are_unknown(
    make: Make, tmp_path: Path
) -> None:
    model = make()
    images = open_images([model], None, "test")
    data, rows = images.data[0], images.rows
    table, thumbnails = data.table.iloc[rows], same_pictures.thumbnails(data, rows)
    training = training_pictures([model])
    assert training is not None
    fewer = replace(training, image_id=training.image_id[3:], thumbnails=training.thumbnails[3:])
    facts = audit([model.facts["split"]], table, thumbnails, fewer)
    assert facts["status"] == "unknown"
    assert "among 3 training images that are not at hand" in facts["sentence"]
    model.config.data.data_dir = str(tmp_path / "moved away")
    assert training_pictures([model]) is None
    facts = audit([model.facts["split"]], table, thumbnails)
    assert (facts["status"], facts["leaked_images"]) == ("unknown", [])
    assert f"among {facts['n_training_images']} training images" in facts["sentence"]
