"""Folders, tables and archives that cannot be used, wholly or in part, and what is said of them."""

from __future__ import annotations

import os
import unicodedata
import zipfile
from pathlib import Path

import pytest

from mlops_project.data.archives import find_images, read_bytes
from mlops_project.data.sources import read_source
from mlops_project.errors import InputError

TABLE = """image_id,lesion_id,dx
ISIC_1,HAM_1,mel
ISIC_2,HAM_1,mel
ISIC_3,HAM_2,nv
"""
IMAGES = ("ISIC_1", "ISIC_2", "ISIC_3")


def _plain(folder: Path, table: str | bytes = TABLE, images: tuple[str, ...] = IMAGES) -> Path:
    for inner in ("images", "metadata"):
        (folder / inner).mkdir(parents=True)
    content = table.encode() if isinstance(table, str) else table
    (folder / "metadata" / "metadata.csv").write_bytes(content)
    _files(folder / "images", images)
    return folder


def _files(folder: Path, images: tuple[str, ...] = IMAGES) -> None:
    folder.mkdir(exist_ok=True)
    for name in images:
        (folder / f"{name}.jpg").write_text(name)


def _challenge(folder: Path, truth: str) -> Path:
    (folder / "ISIC2018_Task3_Training_Input").mkdir(parents=True)
    (folder / "ISIC2018_Task3_Training_Input" / "ISIC_1.jpg").write_text("ISIC_1")
    (folder / "ISIC2018_Task3_Training_GroundTruth.csv").write_text(truth)
    return folder


def _refusal(folder: Path) -> str:
    with pytest.raises(InputError) as refusal:
        read_source(folder)
    return str(refusal.value)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    message = _refusal(tmp_path / "ham10000")
    assert f"{tmp_path / 'ham10000'}: no such folder" in message
    assert "dataset.py download" in message


def test_a_folder_of_no_layout_is_told_what_it_holds_and_what_is_accepted(tmp_path: Path) -> None:
    for name in ("Thumbs.db", "notes.docx", ".hidden"):
        (tmp_path / name).write_text("x")
    (tmp_path / "photos").mkdir()
    message = _refusal(tmp_path)
    assert "It holds: Thumbs.db, notes.docx, photos/\n" in message
    for layout in ("Kaggle", "Dataverse", "ISIC 2018", "plain"):
        assert layout in message
    for number in range(20):
        (tmp_path / f"file_{number:02}.bin").touch()
    assert "and 15 more" in _refusal(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "It holds: nothing" in _refusal(tmp_path / "empty")


def test_a_table_without_images_or_images_without_a_table(tmp_path: Path) -> None:
    _plain(tmp_path / "a")
    (tmp_path / "a" / "metadata" / "metadata.csv").unlink()
    assert "It holds: images/, metadata/" in _refusal(tmp_path / "a")
    (tmp_path / "b" / "metadata").mkdir(parents=True)
    (tmp_path / "b" / "metadata" / "metadata.csv").write_text(TABLE)
    assert "It holds: metadata/" in _refusal(tmp_path / "b")


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("", "the table is empty"),
        ("image_id,lesion_id,dx\n", "the table has no rows"),
        ("image_id,lesion_id,dx\n,HAM_1,mel\n", "1 rows have no image_id"),
        ("image_id,lesion_id,diagnosis\nISIC_1,HAM_1,mel\n", "no column 'dx'; its columns are"),
        ("name,lesion,kind\nISIC_1,HAM_1,mel\n", "no column 'image_id', 'dx'"),
        ("image_id,dx,DX\nISIC_1,mel,nv\n", "columns that occur twice: dx"),
        ("image_id,dx\nISIC_1,mel,nv\n", "more cells than its header"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not a text table"),
        ('image_id,lesion_id,dx\nISIC_1,HAM_1,"mel\n', "not a readable table"),
    ],
)
def test_a_table_that_cannot_be_used(table: str | bytes, reason: str, tmp_path: Path) -> None:
    message = _refusal(_plain(tmp_path / "ham", table))
    assert reason in message
    assert str(tmp_path / "ham" / "metadata" / "metadata.csv") in message


@pytest.mark.parametrize("row", ["ISIC_3,HAM_2,bkl", "ISIC_3.jpg,HAM_9,nv"])
def test_an_image_in_two_different_rows(row: str, tmp_path: Path) -> None:
    message = _refusal(_plain(tmp_path / "ham", f"{TABLE}{row}\n"))
    assert "1 image ids occur in several, different rows: ISIC_3" in message


@pytest.mark.parametrize(
    ("truth", "reason"),
    [
        ("image,MEL,NV\n", "the table has no rows"),
        ("image\nISIC_1\n", "no column for any diagnosis"),
        ("name,MEL,NV\nISIC_1,1,0\n", "no column 'image'"),
        ("image,MEL,NV\nISIC_1,1.0,1.0\n", "1 rows do not mark exactly one diagnosis"),
        ("image,MEL,NV\nISIC_1,0.0,0.0\n", "(the first: 'ISIC_1')"),
        ("image,MEL,NV\nISIC_1,yes,no\n", "1 rows do not mark exactly one diagnosis"),
    ],
)
def test_a_ground_truth_that_cannot_be_used(truth: str, reason: str, tmp_path: Path) -> None:
    message = _refusal(_challenge(tmp_path / "isic", truth))
    assert reason in message
    assert str(tmp_path / "isic" / "ISIC2018_Task3_Training_GroundTruth.csv") in message


def test_a_row_without_an_image_is_left_out_and_named(tmp_path: Path) -> None:
    source = read_source(_plain(tmp_path / "ham", images=("ISIC_3", "ISIC_1", "ISIC_77")))
    assert source.table["image_id"].tolist() == ["ISIC_1", "ISIC_3"]
    assert source.table["lesion_id"].tolist() == ["HAM_1", "HAM_2"]
    assert source.missing == ("ISIC_2",)


def test_images_that_are_all_missing(tmp_path: Path) -> None:
    message = _refusal(_plain(tmp_path / "ham", images=("IMG_1", "IMG_2")))
    assert "none of the 3 images in the table exists (2 images found" in message
    assert "'ISIC_1'" in message


def test_what_is_no_file_is_missing(tmp_path: Path) -> None:
    folder = _plain(tmp_path / "ham", images=("ISIC_3",))
    os.mkfifo(folder / "images" / "ISIC_1.jpg")  # reading it would wait forever
    (folder / "images" / "ISIC_2.jpg").symlink_to("gone.jpg")
    assert read_source(folder).missing == ("ISIC_1", "ISIC_2")


def test_folders_are_found_through_links_once_and_links_in_a_circle_end(tmp_path: Path) -> None:
    folder = _plain(tmp_path / "ham", images=())
    (tmp_path / "elsewhere" / "deeper").mkdir(parents=True)
    for name, place in zip(IMAGES, ("elsewhere", "elsewhere/deeper", "ham/images"), strict=True):
        (tmp_path / place / f"{name}.jpg").write_text(name)
    far = "../../elsewhere"
    for name, target in (("a", f"{far}/deeper"), ("b", far), ("c", far), ("d", ".."), ("e", "/")):
        (folder / "images" / name).symlink_to(target)
    (tmp_path / "elsewhere" / "deeper" / "up").symlink_to("..")
    (folder / "images" / ".hidden").mkdir()
    (folder / "images" / "ISIC_3.jpg").rename(folder / "images" / ".hidden" / "ISIC_3.jpg")
    (folder / "images" / "f").symlink_to(".hidden")
    found = [name for name, _, _ in find_images([folder])]
    assert sorted(found) == [f"{name}.jpg" for name in IMAGES]
    assert read_source(folder).table["image_id"].tolist() == list(IMAGES)


def test_names_from_outside_cannot_steer_a_terminal_or_fill_it(tmp_path: Path) -> None:
    (tmp_path / "\x1b[2J\n\udcff").touch()
    assert "It holds: \\x1b[2J\\n\\udcff\n" in _refusal(tmp_path)
    table = f"image_id,dx\n{'x' * 9999},mel\n{'x' * 9999},nv\n"
    assert len(_refusal(_plain(tmp_path / "ham", table))) < 300


def test_a_row_that_occurs_twice_counts_once(tmp_path: Path) -> None:
    source = read_source(_plain(tmp_path / "ham", TABLE + "ISIC_3,HAM_2,nv\n"))
    assert source.table["image_id"].tolist() == list(IMAGES)


def test_columns_that_are_unknown_get_defaults(tmp_path: Path) -> None:
    table = "Image_ID , DX,age\nISIC_1, NV ,about 40\nISIC_2,mel,55\nISIC_3,nv,\n"
    read = read_source(_plain(tmp_path / "ham", table)).table
    assert read["dx"].tolist() == ["nv", "mel", "nv"]
    assert read["lesion_id"].tolist() == list(IMAGES), "each image is taken for its own lesion"
    assert set(read["sex"]) == set(read["localization"]) == {"unknown"}
    assert read["age"].isna().tolist() == [True, False, True]


def test_a_cell_that_says_it_is_empty_is_empty(tmp_path: Path) -> None:
    table = (
        "image_id,lesion_id,dx,sex\nISIC_1,NA,nv,NaN\nISIC_2,nan,mel,male\nISIC_3,HAM_1,nv,NULL\n"
    )
    read = read_source(_plain(tmp_path / "ham", table)).table
    assert read["lesion_id"].tolist() == ["ISIC_1", "ISIC_2", "HAM_1"], "no lesion is called NA"
    assert read["sex"].tolist() == ["unknown", "male", "unknown"]


def test_several_tables_of_images_are_not_chosen_from(tmp_path: Path) -> None:
    folder = _plain(tmp_path / "ham")
    other = folder / "metadata" / "more.csv"
    other.write_text(TABLE.replace("ISIC_1,", "isic_1.jpg,"))  # the same images once more
    (folder / "metadata" / "a note.csv").write_text("author,year\nX,2018\n")
    assert read_source(folder).table["image_id"].tolist() == list(IMAGES)
    other.write_text("image_id,lesion_id,dx\nISIC_9,HAM_9,nv\n")
    message = _refusal(folder)
    assert "several tables name images: metadata/metadata.csv, metadata/more.csv" in message
    other.write_text("image_id,dx\nISIC_1,nv\n")  # corrected since
    message = _refusal(folder)
    assert "metadata/metadata.csv, metadata/more.csv tell different things, of 'isic_1'" in message


def test_a_table_that_tells_lesions_is_not_passed_over_for_one_that_does_not(
    tmp_path: Path,
) -> None:
    _files(tmp_path / "images")
    (tmp_path / "labels.csv").write_text("image_id,dx\nISIC_1,mel\nISIC_2,mel\nISIC_3,nv\n")
    (tmp_path / "lesions.csv").write_text(TABLE)
    assert "labels.csv, lesions.csv tell different things" in _refusal(tmp_path)
    with pytest.raises(InputError, match="tell different things"):  # nor are these no diagnoses
        read_source(tmp_path, unlabelled=True)
    (tmp_path / "labels.csv").write_text("image_id,dx\n")
    assert read_source(tmp_path).table["lesion_id"].nunique() == 2


def test_a_table_without_an_ending_is_no_folder(tmp_path: Path) -> None:
    _files(tmp_path / "pictures")
    (tmp_path / "metadata").write_text(TABLE)
    assert "no layout of HAM10000 found" in _refusal(tmp_path)


def test_a_copy_of_kaggles_table_that_tells_another_diagnosis_is_refused(tmp_path: Path) -> None:
    _files(tmp_path / "HAM10000_images_part_1")
    (tmp_path / "HAM10000_metadata.csv").write_text(TABLE)
    copy = tmp_path / "HAM10000_metadata - Copy.csv"
    copy.write_text(TABLE)
    assert read_source(tmp_path).table["image_id"].tolist() == list(IMAGES)
    copy.write_text(TABLE.replace(",nv", ",mel").replace(",bkl", ",nv"))
    assert "tell different things" in _refusal(tmp_path)


def test_pictures_come_before_masks_of_the_same_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _files(tmp_path / "images")
    (tmp_path / "labels.csv").write_text(TABLE)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / f"{IMAGES[0]}.png").write_bytes(b"the mask, of other bytes")
    paths = read_source(tmp_path).table["path"]
    assert all(Path(path).parent == tmp_path / "images" for path in paths)
    (told,) = [record.getMessage() for record in caplog.records]
    assert (
        f"1 images of the table lie there in several, different files (images/{IMAGES[0]}" in told
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("image_id,diagnosis\nISIC_1,nv\n", "labels.csv: no column 'dx'; its columns are"),
        ("image_id,dx,dx\nISIC_1,nv,mel\n", "columns that occur twice: dx"),
    ],
)
def test_why_a_table_beside_the_images_is_none_is_said(
    text: str, told: str, tmp_path: Path
) -> None:
    _files(tmp_path / "images")
    (tmp_path / "labels.csv").write_text(text)
    assert told in _refusal(tmp_path)


def test_tables_beside_the_images_that_name_others_are_not_chosen_from(tmp_path: Path) -> None:
    _files(tmp_path / "images")
    (tmp_path / "train.csv").write_text("image_id,dx\nISIC_1,nv\n")
    (tmp_path / "val.csv").write_text("image_id,dx\nISIC_2,nv\n")
    assert "several tables name images: train.csv, val.csv" in _refusal(tmp_path)


def test_what_spreadsheets_write_is_understood(tmp_path: Path) -> None:
    _files(tmp_path / "images")
    rows = "sep=;\nimage_id;lesion_id;dx;age\nISIC_1;#N/A;nv;55,5\nISIC_2;-;nv;60\n"
    (tmp_path / "labels.csv").write_text(rows)
    table = read_source(tmp_path).table
    assert table["lesion_id"].tolist() == ["ISIC_1", "ISIC_2"]
    assert table["age"].tolist() == [55.5, 60.0]


def test_accents_may_be_written_in_two_ways(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / f"{unicodedata.normalize('NFD', 'Hüfte')}.jpg").write_bytes(b"x")
    composed = unicodedata.normalize("NFC", "Hüfte")
    (tmp_path / "labels.csv").write_text(f"image_id,dx\n{composed},nv\n", encoding="utf-8")
    assert read_source(tmp_path).missing == ()


@pytest.mark.parametrize("cut", [0, 100])
def test_a_damaged_archive_says_so(cut: int, tmp_path: Path) -> None:
    (tmp_path / "HAM10000_metadata").write_text(TABLE)
    archive = tmp_path / "HAM10000_images_part_1.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in IMAGES:
            file.writestr(f"{name}.jpg", name)
    archive.write_bytes(archive.read_bytes()[:cut])
    assert f"{archive}: not a readable zip archive" in _refusal(tmp_path)


def test_a_damaged_member_of_an_archive_spoils_no_other(tmp_path: Path) -> None:
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in IMAGES:
            file.writestr(f"{name}.jpg", f"the pixels of {name}")
    archive.write_bytes(archive.read_bytes().replace(b"of ISIC_2", b"of ISIC_X"))
    with pytest.raises(ValueError, match="damaged archive member"):
        read_bytes(str(archive), "ISIC_2.jpg")
    with pytest.raises(ValueError, match="damaged archive member"):
        read_bytes(str(archive), "ISIC_9.jpg")
    assert read_bytes(str(archive), "ISIC_3.jpg") == b"the pixels of ISIC_3"


def test_lesions_and_patients_of_isic_2019_are_those_of_its_metadata(tmp_path: Path) -> None:
    truth = "image,MEL,NV\nISIC_1,1.0,0.0\nISIC_2,1.0,0.0\n"
    _files(tmp_path / "ISIC_2019_Training_Input", IMAGES[:2])
    (tmp_path / "ISIC_2019_Training_GroundTruth.csv").write_text(truth)
    (tmp_path / "ISIC_2019_Training_Metadata.csv").write_text(
        "image,age_approx,anatom_site_general,lesion_id,sex\n"
        "isic_1,55.0,anterior torso,BCN_1,female\nISIC_2,,,BCN_1,female\n"
    )
    table = read_source(tmp_path).table
    assert table["lesion_id"].tolist() == ["BCN_1", "BCN_1"]
    assert table["sex"].tolist() == ["female", "female"]
    assert table["localization"].tolist() == ["anterior torso", "unknown"]
    assert table["age"].tolist() == pytest.approx([55, float("nan")], nan_ok=True)


def test_lesions_of_several_ground_truths_are_spelled_alike(tmp_path: Path) -> None:
    _challenge(tmp_path, "image,MEL,NV\nISIC_1,1.0,0.0\n")
    _files(tmp_path / "ISIC2018_Task3_Validation_Input", IMAGES[1:2])
    truth = tmp_path / "ISIC2018_Task3_Validation_GroundTruth.csv"
    truth.write_text("image,MEL,NV\nISIC_2,1.0,0.0\n")
    groups = tmp_path / "ISIC2018_Task3_LesionGroupings.csv"
    groups.write_text("image,lesion_id\nISIC_1,ham_1\nISIC_2,HAM_1\n")
    assert read_source(tmp_path).table["lesion_id"].tolist() == ["HAM_1", "HAM_1"]


def test_the_predictions_of_an_evaluation_are_no_table_of_images(tmp_path: Path) -> None:
    _files(tmp_path)
    (tmp_path / "predictions.csv").write_text("image_id,lesion_id,y_true,y_pred\nISIC_1,L,,nv\n")
    source = read_source(tmp_path, unlabelled=True)
    assert (source.layout, source.table["image_id"].tolist()) == ("images", list(IMAGES))


@pytest.mark.parametrize("table", ["notes.csv", "metadata.csv"])
def test_a_table_without_diagnoses_does_not_choose_among_the_images(
    table: str, tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    _files(tmp_path / "images")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        file.writestr("deeper\\ISIC_4.jpg", "packed")
    (tmp_path / "images" / "monday").mkdir()
    (tmp_path / "images" / "monday" / "ISIC_3.jpg").write_text("another picture")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "ISIC_1_segmentation.png").write_text("black and white")
    (tmp_path / table).write_text("filename,sex,comment\nisic_2.JPG,male,blurred\nISIC_8.jpg,,\n")
    source = read_source(tmp_path, unlabelled=True)
    read = source.table.set_index("image_id")
    ids = ["ISIC_1", "ISIC_4", "images/ISIC_3", "images/monday/ISIC_3", "isic_2"]
    assert read.index.tolist() == ids
    assert read["sex"].to_dict() == dict.fromkeys(ids, "unknown") | {"isic_2": "male"}
    assert Path(read["path"]["images/monday/ISIC_3"]).parent.name == "monday"
    assert source.missing == ("ISIC_8",)
    assert "4 images that no table names are taken as well" in logged.text


def test_of_several_tables_without_diagnoses_nothing_is_taken_but_the_images(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    """As in the folder of SIIM-ISIC 2020."""
    _files(tmp_path / "jpeg")
    (tmp_path / "train.csv").write_text("image_name,sex,target\nISIC_1,male,0\nISIC_2,male,0\n")
    (tmp_path / "test.csv").write_text("image_name,sex\nISIC_3,female\n")
    source = read_source(tmp_path, unlabelled=True)
    assert source.table["image_id"].tolist() == list(IMAGES)
    assert set(source.table["sex"]) == {"unknown"}
    assert "no column dx in any of test.csv, train.csv" in logged.text
    assert "no column 'dx'" in _refusal(tmp_path)
