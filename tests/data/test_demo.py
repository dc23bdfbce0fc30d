"""The synthetic images: laid out as HAM10000, seeded, and hard enough to need a network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mlops_project.data.datamodule import HAM10000DataModule
from mlops_project.data.demo import PARTS, SHARES, draw_table, generate
from mlops_project.data.demo_lesions import draw_lesion, render
from mlops_project.data.sources import SYNTHETIC_MARKER, read_source
from mlops_project.data.splits import split_by_lesion
from mlops_project.errors import InputError


def test_a_folder_reads_as_kaggles_layout_with_images_of_the_real_size(demo_folder: Path) -> None:
    source = read_source(demo_folder)
    assert source.layout == "kaggle"
    assert source.synthetic
    assert not source.missing
    assert set(source.table["dx"]) == set(SHARES)
    for path in source.table["path"].sample(5, random_state=0):
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (600, 450), "RGB")


def test_the_table_has_the_shape_of_the_real_one() -> None:
    table = draw_table(1200, 42)
    images_of = table["lesion_id"].value_counts()
    assert 0.15 < (images_of > 1).mean() < 0.4
    assert 1 <= (table["age"] == "").sum() < 40
    shares = table["dx"].value_counts(normalize=True)
    for dx, count in SHARES.items():
        assert shares[dx] == pytest.approx(count / sum(SHARES.values()), abs=0.01)
    assert (table.groupby("lesion_id")["dx"].nunique() == 1).all()
    split = split_by_lesion(table, 42)
    assert (pd.crosstab(table["dx"], split) > 0).all(axis=None)


def test_the_seed_decides_every_pixel() -> None:
    def picture(seed: int, view: int) -> np.ndarray:
        return render(
            draw_lesion("mel", seed, "SYN_L00003"), np.random.default_rng([seed, view, 2])
        )

    assert np.array_equal(picture(1, 5), picture(1, 5))
    assert not np.array_equal(picture(1, 5), picture(1, 6))
    assert not np.array_equal(picture(1, 5), picture(2, 5))


def test_average_colours_do_not_give_the_diagnosis_away() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from mlops_project.metrics import auroc

    kinds = sorted(SHARES) * 40
    means = np.array(
        [
            render(draw_lesion(dx, 3, f"SYN_L{i:05d}"), np.random.default_rng([3, i, 2]))
            .reshape(-1, 3)
            .mean(axis=0)
            for i, dx in enumerate(kinds)
        ]
    )
    malignant = np.isin(kinds, ["akiec", "bcc", "mel"]).astype(int)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    predicted = cross_val_predict(model, means, malignant, cv=5, method="predict_proba")
    assert auroc(malignant, predicted) < 0.7


def test_generating_again_changes_nothing_and_another_recipe_replaces(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    assert generate(folder, images=100, seed=1)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert not generate(folder, images=100, seed=1)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert generate(folder, images=100, seed=2)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["demo"]


def test_whoever_needs_synthetic_images_takes_those_that_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    generate(folder, images=100, seed=7)
    (folder / "notes.txt").write_text("mine")
    module = HAM10000DataModule(folder, name="demo", image_size=16)
    module.read()
    assert len(module.table) < 150
    assert (folder / "notes.txt").is_file()


def test_a_linked_folder_and_the_present_one_are_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "demo").symlink_to("elsewhere")
    assert generate(tmp_path / "demo", images=100)
    assert (tmp_path / "demo").is_symlink()
    assert read_source(tmp_path / "elsewhere").synthetic
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert generate(".", images=100)
    assert not generate(".", images=100)
    marker = Path(SYNTHETIC_MARKER)
    marker.write_text(marker.read_text().replace('"format": 1', '"format": 0'))  # was interrupted
    assert generate(".", images=100, keep=True)
    assert len(read_source(Path.cwd()).table) == len(draw_table(100, 42))
    with pytest.raises(InputError, match="seed -1: must be at least 0"):
        generate(tmp_path / "new", seed=-1)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="other than synthetic"):
        generate(tmp_path / "demo", images=100)
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(InputError, match="at least 100"):
        generate(tmp_path / "few", images=10)


@pytest.mark.parametrize("name", ["models/last.ckpt", f"{PARTS[0]}/ISIC_0024306.jpg"])
def test_what_was_put_beside_synthetic_images_is_not_deleted_with_them(
    name: str, demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(demo_folder, tmp_path / "demo")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("hours of work")
    with pytest.raises(InputError, match="other than synthetic"):
        generate(folder, images=100, seed=1)
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="other than synthetic"):
        generate(".", images=100, seed=1)
    assert (folder / name).read_text() == "hours of work"
    assert len(read_source(folder).table) == len(read_source(demo_folder).table)


def test_what_a_file_browser_leaves_in_the_folder_is_nobodys_work(
    demo_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(demo_folder, tmp_path / "demo")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert generate(folder, images=100, seed=1)


def test_images_that_a_link_leads_to_are_not_deleted(demo_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo_folder, tmp_path / "demo")
    (folder / PARTS[0]).rename(tmp_path / "elsewhere")
    (folder / PARTS[0]).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="other than synthetic"):
        generate(folder, images=100, seed=1)
    assert any((tmp_path / "elsewhere").iterdir())


def test_processes_that_start_together_generate_once(tmp_path: Path) -> None:
    code = (
        "from mlops_project.data.demo import generate;"
        f"print(generate({str(tmp_path / 'demo')!r}, images=100))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=120)[0].strip() for process in started]
    assert sorted(answers) == ["False", "False", "True"]
    assert not read_source(tmp_path / "demo").missing
