"""A folder is checked before any training: one look finds everything that is wrong with it."""

from __future__ import annotations

import io
import math
import shutil
import zipfile
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from mlops_project.data.check import Report, check_folder
from mlops_project.data.check_report import print_report
from mlops_project.data.diagnoses import MALIGNANT
from mlops_project.data.sources import read_source
from mlops_project.data.splits import SPLITS, split_by_lesion
from mlops_project.errors import InputError

Make = Callable[..., Path]
Picture = Callable[..., Image.Image]
AsFile = Callable[..., bytes]


def printed(report: Report) -> str:
    console = Console(record=True, width=100, file=io.StringIO())
    print_report(report, console)
    return console.export_text()


def image(folder: Path, number: int) -> Path:
    return folder / "images" / f"ISIC_{number:07d}.jpg"


def edit(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Changes the lines of the table, the header left out."""
    path = folder / "metadata" / "metadata.csv"
    header, *lines = path.read_text().split("\n")
    path.write_text("\n".join([header, *change(lines)]))


def remove(folder: Path) -> None:
    image(folder, 3).unlink()


def cut_off(folder: Path) -> None:
    data = image(folder, 4).read_bytes()
    image(folder, 4).write_bytes(data[: len(data) // 2])


def rename_diagnosis(folder: Path) -> None:
    edit(folder, lambda lines: [lines[0].replace(",akiec,", ",acne,"), *lines[1:]])


def contradict(folder: Path) -> None:
    edit(folder, lambda lines: [*lines, lines[5].replace("female", "male")])


def repeat_in_small_letters(folder: Path) -> None:
    edit(folder, lambda lines: [*lines, lines[5].replace("ISIC", "isic")])


def as_kaggle(folder: Path) -> None:
    (folder / "metadata" / "metadata.csv").rename(folder / "HAM10000_metadata.csv")
    (folder / "metadata").rmdir()
    files = sorted((folder / "images").iterdir())
    for part, chosen in ((1, files[::2]), (2, files[1::2])):
        place = folder / f"HAM10000_images_part_{part}"
        place.mkdir()
        for file in chosen:
            file.rename(place / file.name)
    (folder / "images").rmdir()


@pytest.mark.parametrize("layout", ["plain", "kaggle"])
def test_a_sound_folder(make_folder: Make, layout: str) -> None:
    folder = make_folder(lesions=8)
    if layout == "kaggle":
        as_kaggle(folder)
    report = check_folder(folder)
    assert not report.broken
    assert report.layout == layout
    assert report.same == ()
    assert report.several_diagnoses == {}
    assert (len(report.table), report.table["lesion_id"].nunique()) == (98, 56)
    text = printed(report)
    assert "Nothing is broken" in text
    assert "98 / 56" in text
    assert not any(word in text for word in ("broken ", "warning", "unused"))


def test_benign_and_malignant_are_counted_as_what_they_are(make_folder: Make) -> None:
    folder = make_folder()
    path = folder / "metadata" / "metadata.csv"
    table = pd.read_csv(path)
    table["dx"] = np.where(table["dx"].isin(list(MALIGNANT)), "malignant", "benign")
    table.to_csv(path, index=False)
    text = printed(check_folder(folder))
    assert "Nothing is broken" in text
    assert "unknown" not in text
    for name in ("benign", "malignant"):
        row = next(line for line in text.splitlines() if f" {name} " in line)
        assert f"{(table['dx'] == name).sum()} / " in row


def test_the_split_is_that_of_training(make_folder: Make) -> None:
    folder = make_folder(lesions=8)
    report = check_folder(folder)
    table = read_source(folder).table
    assert report.table["image_id"].tolist() == table["image_id"].tolist()
    assert report.table["split"].tolist() == split_by_lesion(table, 42, 0.15, 0.15).tolist()
    assert report.leak.fractions == pytest.approx((0.7, 0.15, 0.15))


def test_a_lesion_in_capitals_and_small_letters_is_one(make_folder: Make) -> None:
    folder = make_folder(lesions=8)
    edit(folder, lambda lines: [line.replace("nv_", "NV_") for line in lines[::2]] + lines[1::2])
    table = check_folder(folder).table
    parts = table["split"].groupby(table["lesion_id"].str.lower())
    assert (parts.nunique() == 1).all()
    assert table["split"].tolist() == split_by_lesion(read_source(folder).table, 42).tolist()


@pytest.mark.parametrize(
    ("damage", "attribute", "named"),
    [
        (remove, "missing", "ISIC_0000003"),
        (cut_off, "unreadable", "ISIC_0000004"),
        (rename_diagnosis, "unknown", "acne"),
        (contradict, "duplicates", "ISIC_0000005"),
        (repeat_in_small_letters, "duplicates", "ISIC_0000005"),
    ],
)
def test_each_damage_is_found_and_named(
    make_folder: Make, damage: Callable[[Path], None], attribute: str, named: str
) -> None:
    folder = make_folder()
    damage(folder)
    report = check_folder(folder)
    assert report.broken
    assert list(getattr(report, attribute)) == [named]
    assert named in printed(report)


def test_all_damages_are_found_at_once(make_folder: Make) -> None:
    folder = make_folder()
    for damage in (remove, cut_off, rename_diagnosis, contradict):
        damage(folder)
    image(folder, 6).write_bytes(b"")
    report = check_folder(folder)
    assert report.missing == ("ISIC_0000003",)
    assert sorted(report.unreadable) == ["ISIC_0000004", "ISIC_0000006"]
    assert "empty" in report.unreadable["ISIC_0000006"]
    assert report.unknown == {"acne": 1}
    assert report.duplicates == {"ISIC_0000005": 2}
    text = printed(report)
    for name in (*report.missing, *report.unreadable, *report.unknown, *report.duplicates):
        assert name in text
    assert text.index("Summary") > text.index("ISIC_0000006")
    assert text.rstrip().splitlines()[-1].startswith("Broken")
    # Each image of the table is counted once: in a split, or as unused.
    sizes = report.table["split"].value_counts()
    assert len(report.table) == 49
    assert sizes["unused"] == 3
    assert sizes[list(SPLITS)].sum() == 46


def test_what_does_no_harm_is_not_broken(make_folder: Make, as_file: AsFile) -> None:
    folder = make_folder()
    edit(folder, lambda lines: [*lines, lines[0], lines[1]])
    (folder / "images" / "extra.jpg").write_bytes(as_file(1000))
    # The second of a lesion's two images gets a diagnosis of its own.
    edit(folder, lambda lines: [line.replace("2,akiec", "2,bcc") for line in lines])
    report = check_folder(folder)
    assert not report.broken
    assert report.repeated_rows == 2
    assert report.without_row == 1
    assert report.several_diagnoses == {"akiec_1": ("akiec", "bcc")}


def test_one_picture_under_two_lesion_ids(
    make_folder: Make, picture: Picture, as_file: AsFile
) -> None:
    folder = make_folder()
    large = picture(2000, 240, 180)
    image(folder, 0).write_bytes(as_file(large))
    image(folder, 20).write_bytes(as_file(large, "PNG"))
    large.resize((120, 90)).save(image(folder, 40), quality=50)
    shutil.copy(image(folder, 10), image(folder, 30))
    report = check_folder(folder)
    assert not report.broken  # a danger that the user has to judge, but nothing stops training
    found = {same.rows: same for same in report.same}
    assert set(found) == {(0, 20, 40), (10, 30)}
    assert found[10, 30].identical
    assert not found[0, 20, 40].identical
    assert 0.94 < found[0, 20, 40].similarity < 1
    text = printed(report)
    assert "warning" in text
    for number in (0, 10, 20, 30, 40):
        assert f"ISIC_{number:07d}" in text


def test_turned_and_mirrored_copies_are_found(
    make_folder: Make, picture: Picture, as_file: AsFile
) -> None:
    folder = make_folder()
    for method in Image.Transpose:
        original = picture(3000 + method, 240, 180)
        image(folder, method).write_bytes(as_file(original))
        image(folder, 40 + method).write_bytes(as_file(original.transpose(method)))
    report = check_folder(folder)
    assert {same.rows for same in report.same} == {(m, 40 + m) for m in Image.Transpose}


def test_the_same_picture_within_a_lesion_is_no_danger(make_folder: Make) -> None:
    folder = make_folder()
    lesions = check_folder(folder).table["lesion_id"]
    first, second = next(p for p in combinations(range(9), 2) if lesions[p[0]] == lesions[p[1]])
    shutil.copy(image(folder, first), image(folder, second))
    assert check_folder(folder).same == ()


@pytest.mark.parametrize(("lesion", "leak"), [("one", 1.0), ("each", 0.0)])
def test_what_a_split_by_image_would_leak(make_folder: Make, lesion: str, leak: float) -> None:
    folder = make_folder()

    def regroup(lines: list[str]) -> list[str]:
        fields = [line.split(",") for line in lines]
        return [
            ",".join([dx if lesion == "one" else f"lesion_of_{image_id}", image_id, dx, *others])
            for _, image_id, dx, *others in fields
        ]

    edit(folder, regroup)
    report = check_folder(folder)
    assert report.leak.images == leak
    assert report.leak.melanomas == leak
    assert f" {100 * leak:.1f} % of" in printed(report)


def test_a_table_without_lesions_is_a_warning(make_folder: Make) -> None:
    folder = make_folder()
    path = folder / "metadata" / "metadata.csv"
    path.write_text("\n".join(line.split(",", 1)[1] for line in path.read_text().split("\n")))
    report = check_folder(folder)
    assert not report.broken
    assert "Images without a lesion id: 49" in printed(report)


def test_images_of_which_some_have_no_lesion_are_a_warning(make_folder: Make) -> None:
    folder = make_folder()
    edit(folder, lambda lines: ["," + lines[0].split(",", 1)[1], *lines[1:]])
    report = check_folder(folder)
    assert not report.broken
    assert "Images without a lesion id: 1 " in printed(report)


@pytest.mark.parametrize(("lesions", "left"), [(1, "val, test"), (2, "test"), (3, "")])
def test_too_few_lesions_for_three_splits_are_broken(
    lesions: int, left: str, make_folder: Make
) -> None:
    folder = make_folder()
    edit(folder, lambda lines: [f"l{n % lesions},i{n},nv,,,," for n, _ in enumerate(lines)])
    for n, path in enumerate(sorted((folder / "images").rglob("*.jpg"))):
        path.rename(path.with_stem(f"i{n}"))
    report = check_folder(folder)
    assert report.broken == bool(left)
    text = printed(report)
    assert (f"No image is left for: {left}" in text) == bool(left)
    assert "No image is malignant" in text


def test_a_missing_diagnosis_is_not_one_of_a_lesions_several(make_folder: Make) -> None:
    folder = make_folder()
    edit(
        folder,
        lambda lines: [
            f"one,{line.split(',')[1]},{dx},,,,"
            for line, dx in zip(lines, ["nv", "", *["nv"] * len(lines)], strict=False)
        ],
    )
    assert check_folder(folder).several_diagnoses == {}


def test_a_diagnosis_too_rare_for_every_split_is_a_warning(make_folder: Make) -> None:
    folder = make_folder()
    edit(folder, lambda lines: [line for line in lines if line[:6] not in ("vasc_1", "vasc_2")])
    image(folder, 46).unlink()
    text = printed(check_folder(folder))
    assert "No image of vasc in" in text


def test_benign_images_without_a_malignant_one_in_every_split_are_a_warning(
    make_folder: Make,
) -> None:
    folder = make_folder()
    table = next(folder.rglob("*etadata*.csv"))
    rows = pd.read_csv(table)
    rows["dx"] = np.where(rows["lesion_id"] == rows["lesion_id"].iloc[0], "malignant", "benign")
    rows.to_csv(table, index=False)
    assert "No image of malignant in" in printed(check_folder(folder))


def test_images_in_two_different_files_are_a_warning(make_folder: Make) -> None:
    folder = make_folder()
    (folder / "images" / "mask").mkdir()
    (folder / "images" / "mask" / "ISIC_0000001.png").write_bytes(b"a mask")
    text = printed(check_folder(folder))
    assert "Images in several, different files: 1" in text


def test_a_damaged_archive_does_not_hide_the_rest(make_folder: Make) -> None:
    folder = make_folder()
    as_kaggle(folder)
    sound, damaged = (folder / f"HAM10000_images_part_{part}" for part in (1, 2))
    with zipfile.ZipFile(sound.with_suffix(".zip"), "w") as archive:
        for file in sound.iterdir():
            archive.write(file, file.name)
    shutil.rmtree(sound)
    shutil.rmtree(damaged)
    damaged.with_suffix(".zip").write_bytes(b"PK\x03\x04 cut off")
    report = check_folder(folder)
    assert report.broken
    assert report.layout == "dataverse"
    assert len(report.missing) == 24
    assert (report.table["split"] != "unused").sum() == 25
    (message,) = report.unusable
    assert "HAM10000_images_part_2.zip" in message


def test_a_folder_of_something_else_is_broken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    report = check_folder(tmp_path)
    assert report.broken
    assert math.isnan(report.leak.images)
    assert "notes.txt" in printed(report)


def test_a_table_that_cannot_be_used_is_broken(make_folder: Make) -> None:
    folder = make_folder()
    (folder / "metadata" / "metadata.csv").write_text("image_id,diagnosis\nISIC_0000000,nv")
    report = check_folder(folder)
    assert report.broken
    assert "no column 'dx'" in report.unusable[0]
    assert report.without_row == 49


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        check_folder(tmp_path / "nowhere")
