"""The layouts HAM10000 comes in, and what is said of folders that are none of them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from mlops_project.data.archives import read_bytes
from mlops_project.data.sources import COLUMNS, Source, read_source
from mlops_project.errors import InputError

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
ROWS = [
    "HAM_0000003,ISIC_0000004,nv,follow_up,35.0,male,back,vidir_modern",
    "HAM_0000001,ISIC_0000001,mel,histo,80.0,female,scalp,vidir_modern",
    "HAM_0000001,ISIC_0000002,mel,histo,80.0,female,scalp,vidir_modern",
    "HAM_0000002,ISIC_0000003,bkl,consensus,,unknown,ear,rosendahl",
]
IMAGES = ["ISIC_0000001", "ISIC_0000002", "ISIC_0000003", "ISIC_0000004"]
TABLE = "\n".join([HEADER, *ROWS]) + "\n"
TRUTH = """image,MEL,NV,BCC,AKIEC,BKL,DF,VASC
ISIC_0000001,1.0,0.0,0.0,0.0,0.0,0.0,0.0
ISIC_0000002,1.0,0.0,0.0,0.0,0.0,0.0,0.0
ISIC_0000003,0.0,0.0,0.0,0.0,1.0,0.0,0.0
ISIC_0000004,0.0,1.0,0.0,0.0,0.0,0.0,0.0
"""
GROUPINGS = """image,lesion_id,diagnosis_confirm_type
ISIC_0000001,HAM_0000001,histopathology
ISIC_0000002,HAM_0000001,histopathology
ISIC_0000003,HAM_0000002,consensus
ISIC_0000004,HAM_0000003,follow_up
"""
APPLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "  # how an AppleDouble file begins


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _images(folder: Path, names: list[str], ending: str = ".jpg") -> None:
    """Files that hold their own name: a source looks at names, never at pixels."""
    for name in names:
        _write(folder / f"{name}{ending}", name)


def _zip(path: Path, members: dict[str, str | bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _zip_images(path: Path, names: list[str], inside: str = "") -> None:
    _zip(path, {f"{inside}{name}.jpg": name for name in names})


def _kaggle(folder: Path) -> None:
    _write(folder / "HAM10000_metadata.csv", TABLE)
    _images(folder / "HAM10000_images_part_1", IMAGES[:2])
    _images(folder / "HAM10000_images_part_2", IMAGES[2:])


def _kaggle_in_lower_case_and_nested(folder: Path) -> None:
    _write(folder / "HAM10000_metadata.csv", TABLE)
    _write(folder / "hmnist_28_28_L.csv", "pixel0000,label\n1,2\n")
    _images(folder / "ham10000_images_part_1" / "ham10000_images_part_1", IMAGES[:2])
    _images(folder / "ham10000_images_part_2" / "ham10000_images_part_2", IMAGES[2:])


def _kaggle_without_parts(folder: Path) -> None:
    _write(folder / "HAM10000_metadata.csv", TABLE)
    _images(folder, IMAGES)


def _dataverse(folder: Path) -> None:
    _write(folder / "HAM10000_metadata", TABLE)
    _zip_images(folder / "HAM10000_images_part_1.zip", IMAGES[:2])
    _zip_images(folder / "HAM10000_images_part_2.zip", IMAGES[2:], inside="part_2/")
    _zip(folder / "HAM10000_segmentations_lesion_tschandl.zip", {"ISIC_0000001.png": "a mask"})


def _dataverse_packed_on_windows(folder: Path) -> None:
    """As PowerShell 5.1 does it."""
    _write(folder / "HAM10000_metadata.csv", TABLE)
    _zip_images(folder / "HAM10000_images_part_1.zip", IMAGES, inside="images\\")


def _dataverse_with_tab(folder: Path) -> None:
    _dataverse(folder)
    (folder / "HAM10000_metadata").unlink()
    quoted = TABLE.replace(",", "\t").replace("vidir_modern", '"vidir_modern"')
    _write(folder / "HAM10000_metadata.tab", quoted)


def _dataverse_with_csv_and_tab(folder: Path) -> None:
    _dataverse(folder)
    (folder / "HAM10000_metadata").rename(folder / "HAM10000_metadata.csv")
    less = [line.rpartition(",")[0].replace(",", "\t") for line in TABLE.splitlines()]
    _write(folder / "HAM10000_metadata.tab", "\n".join(less))


def _dataverse_unpacked(folder: Path) -> None:
    _write(folder / "HAM10000_metadata.tab", TABLE.replace(",", "\t"))
    _images(folder / "HAM10000_images_part_1", IMAGES[:2])
    _images(folder / "HAM10000_images_part_2", IMAGES[2:])
    _images(folder / "HAM10000_segmentations_lesion_tschandl", ["ISIC_0000001_segmentation"])


def _plain(folder: Path) -> None:
    _write(folder / "metadata" / "HAM10000_metadata.csv", TABLE)
    _images(folder / "images", IMAGES)


def _plain_with_a_note(folder: Path) -> None:
    _plain(folder)
    _write(folder / "metadata" / "ATTRIBUTION.txt", "Tschandl, Rosendahl and Kittler, 2018")


def _plain_without_folder_for_the_table(folder: Path) -> None:
    _write(folder / "metadata.csv", TABLE)
    _images(folder / "images" / "deeper", IMAGES)


def _plain_with_endings(folder: Path) -> None:
    _write(folder / "metadata" / "metadata.csv", TABLE.replace(",mel", ".jpg,mel"))
    _images(folder / "images", IMAGES[:2], ".JPG")
    _images(folder / "images", IMAGES[2:3], ".png")
    _images(folder / "images", IMAGES[3:], ".gif")


def _plain_from_a_spreadsheet(folder: Path) -> None:
    table = TABLE.replace(",", ";").replace("\n", "\r\n")
    _write(folder / "metadata" / "metadata.csv", b"\xef\xbb\xbf" + table.encode())
    _images(folder / "images", IMAGES)


def _plain_by_the_archives_names(folder: Path) -> None:
    _images(folder, IMAGES)
    header = "lesion_id,isic_id,dx,dx_type,age_approx,sex,anatom_site_general,dataset"
    _write(folder / "metadata.csv", TABLE.replace(HEADER, header))


def _plain_in_utf_16(folder: Path) -> None:
    _write(folder / "metadata" / "metadata.txt", TABLE.replace(",", "\t").encode("utf-16"))
    _images(folder / "images", IMAGES)


@pytest.mark.parametrize(
    ("layout", "lay_out"),
    [
        ("kaggle", _kaggle),
        ("kaggle", _kaggle_in_lower_case_and_nested),
        ("kaggle", _kaggle_without_parts),
        ("dataverse", _dataverse),
        ("dataverse", _dataverse_packed_on_windows),
        ("dataverse", _dataverse_with_tab),
        ("dataverse", _dataverse_with_csv_and_tab),
        ("kaggle", _dataverse_unpacked),
        ("plain", _plain),
        ("plain", _plain_with_a_note),
        ("plain", _plain_without_folder_for_the_table),
        ("plain", _plain_with_endings),
        ("plain", _plain_from_a_spreadsheet),
        ("plain", _plain_in_utf_16),
        ("plain", _plain_by_the_archives_names),
    ],
)
def test_every_layout_gives_the_same_table(layout: str, lay_out, tmp_path: Path) -> None:
    lay_out(tmp_path)
    source = read_source(tmp_path)
    assert source.layout == layout
    assert source.missing == ()
    assert tuple(source.table.columns) == COLUMNS
    _assert_images_are_their_own(source)
    known = source.table.drop(columns=["path", "member", "age"])
    expected = sorted((row.split(",") for row in ROWS), key=lambda row: row[1])
    order = ["lesion_id", "image_id", "dx", "dx_type", "sex", "localization", "dataset"]
    assert known[order].values.tolist() == [row[:4] + row[5:] for row in expected]
    assert source.table["age"].dtype == np.float64
    np.testing.assert_array_equal(source.table["age"], [80.0, 80.0, np.nan, 35.0])


def _assert_images_are_their_own(source: Source) -> None:
    table = source.table
    assert table["image_id"].is_monotonic_increasing
    contents = [
        read_bytes(path, member).decode()
        for path, member in zip(table["path"], table["member"], strict=True)
    ]
    assert contents == table["image_id"].tolist()


def _challenge(folder: Path, part: str = "Training") -> None:
    name = f"ISIC2018_Task3_{part}"
    _write(folder / f"{name}_GroundTruth" / f"{name}_GroundTruth.csv", TRUTH)
    _images(folder / f"{name}_Input", IMAGES)


def _challenge_with_lesions(folder: Path) -> None:
    _challenge(folder)
    _write(folder / "ISIC2018_Task3_Training_LesionGroupings.csv", GROUPINGS)


def _challenge_in_zips(folder: Path) -> None:
    name = "ISIC2018_Task3_Training"
    truth = f"{name}_GroundTruth/{name}_GroundTruth.csv"
    _zip(folder / f"{name}_GroundTruth.zip", {"LICENSE.txt": "CC BY-NC", truth: TRUTH})
    _zip_images(folder / f"{name}_Input.zip", IMAGES, inside=f"{name}_Input/")
    _write(folder / f"{name}_LesionGroupings.csv", GROUPINGS)


def test_images_of_a_challenge_may_lack_a_diagnosis_where_none_is_needed(tmp_path: Path) -> None:
    _challenge(tmp_path)
    truth = tmp_path / "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv"
    truth.write_text(TRUTH.replace("04,0.0,1.0", "04,0.0,0.0"))
    with pytest.raises(InputError, match="1 rows do not mark exactly one diagnosis"):
        read_source(tmp_path)
    assert read_source(tmp_path, unlabelled=True).table["dx"].tolist() == ["mel", "mel", "bkl", ""]


@pytest.mark.parametrize(
    ("lay_out", "lesions_known"),
    [(_challenge, False), (_challenge_with_lesions, True), (_challenge_in_zips, True)],
)
def test_the_challenge_of_2018(lay_out, lesions_known: bool, tmp_path: Path) -> None:
    lay_out(tmp_path)
    source = read_source(tmp_path)
    assert source.layout == "challenge"
    table = source.table
    _assert_images_are_their_own(source)
    assert table["dx"].tolist() == ["mel", "mel", "bkl", "nv"]
    assert table["dataset"].unique().tolist() == ["ISIC2018_Task3_Training"]
    assert table["age"].isna().all()
    if lesions_known:
        lesions = ["HAM_0000001", "HAM_0000001", "HAM_0000002", "HAM_0000003"]
        assert table["lesion_id"].tolist() == lesions
        assert table["dx_type"].tolist()[2:] == ["consensus", "follow_up"]
    else:
        assert table["lesion_id"].tolist() == table["image_id"].tolist()


@pytest.mark.parametrize("name", ["GroundTruth.csv", "groundtruth.csv"])
def test_a_ground_truth_of_no_challenge_has_no_name_of_one(name: str, tmp_path: Path) -> None:
    """As in a copy on Kaggle, with the masks of the lesions."""
    _write(tmp_path / name, TRUTH)
    _images(tmp_path / "images", IMAGES)
    _images(tmp_path / "masks", [f"{name}_segmentation" for name in IMAGES], ".png")
    source = read_source(tmp_path)
    assert source.layout == "challenge"
    assert source.table["dx"].tolist() == ["mel", "mel", "bkl", "nv"]
    assert source.table["dataset"].unique().tolist() == ["unknown"]
    _assert_images_are_their_own(source)


@pytest.mark.parametrize("table", ["metadata/HAM10000_metadata.csv", "metadata.csv", "labels.csv"])
def test_a_table_that_tells_lesions_goes_before_a_ground_truth_without_a_name(
    table: str, tmp_path: Path
) -> None:
    _write(tmp_path / "GroundTruth.csv", TRUTH)
    _write(tmp_path / table, TABLE)
    _images(tmp_path / "images", IMAGES)
    source = read_source(tmp_path)
    assert source.layout == "plain"
    assert source.table["lesion_id"].nunique() < len(IMAGES)
    assert source.table["age"].notna().any()


TEST_TABLE = f"{HEADER}\nHAM_0000009,ISIC_0000009,nv,histo,50.0,male,back,vidir_modern\n"
TEST_TRUTH = TRUTH.splitlines()[0] + "\nISIC_0000009,0.0,1.0,0.0,0.0,0.0,0.0,0.0\n"


def _test_set_of_dataverse(folder: Path) -> None:
    _write(folder / "ISIC2018_Task3_Test_GroundTruth.csv", TEST_TABLE)
    _zip_images(folder / "ISIC2018_Task3_Test_Images.zip", ["ISIC_0000009"])


def _test_set_of_the_challenge(folder: Path) -> None:
    truth = folder / "ISIC2018_Task3_Test_GroundTruth" / "ISIC2018_Task3_Test_GroundTruth.csv"
    _write(truth, TEST_TRUTH)
    _images(folder / "ISIC2018_Task3_Test_Input", ["ISIC_0000009"])


@pytest.mark.parametrize(
    "lay_out", [_kaggle, _kaggle_without_parts, _dataverse, _plain, _challenge]
)
@pytest.mark.parametrize("test_set", [_test_set_of_dataverse, _test_set_of_the_challenge])
def test_the_test_set_beside_the_training_images_is_left_alone(
    lay_out, test_set, tmp_path: Path
) -> None:
    lay_out(tmp_path)
    test_set(tmp_path)
    assert read_source(tmp_path).table["image_id"].tolist() == IMAGES


@pytest.mark.parametrize("test_set", [_test_set_of_dataverse, _test_set_of_the_challenge])
def test_the_test_set_alone_can_be_read(test_set, tmp_path: Path) -> None:
    test_set(tmp_path)
    table = read_source(tmp_path).table
    assert table[["image_id", "dx"]].values.tolist() == [["ISIC_0000009", "nv"]]


@pytest.mark.parametrize("lay_out", [_kaggle, _dataverse, _plain, _challenge_with_lesions])
def test_what_macos_leaves_behind_is_ignored(lay_out, tmp_path: Path) -> None:
    lay_out(tmp_path)
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file() and path.suffix != ".zip":
            _write(path.with_name(f"._{path.name}"), APPLE)
            _write(tmp_path / "__MACOSX" / path.relative_to(tmp_path), APPLE)
        elif path.is_file():
            with zipfile.ZipFile(path) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
            _zip(path, {**{f"__MACOSX/{name}": APPLE for name in members}, **members})
    _write(tmp_path / ".DS_Store", APPLE)
    source = read_source(tmp_path)
    assert source.table["image_id"].tolist() == IMAGES
    _assert_images_are_their_own(source)


def test_rows_without_an_image_id_are_refused_and_empty_ones_are_not(tmp_path: Path) -> None:
    _images(tmp_path / "images", IMAGES)
    table = _write(tmp_path / "metadata.csv", TABLE + ",,,,,,,\n")
    assert len(read_source(tmp_path).table) == 4
    _write(table, TABLE.replace("ISIC_0000004", ""))
    with pytest.raises(InputError, match="1 rows have no image_id"):
        read_source(tmp_path)


def test_images_may_be_named_by_their_path(tmp_path: Path) -> None:
    _images(tmp_path / "imgs", IMAGES)
    named = TABLE.replace("ISIC_0000001", "imgs/ISIC_0000001.jpg").replace(
        "ISIC_0000002", "imgs\\ISIC_0000002.jpg"
    )
    table = _write(tmp_path / "table.csv", named)
    assert read_source(tmp_path).table["image_id"].tolist() == IMAGES
    _write(table, TABLE.replace("ISIC_0000001", "a/1").replace("ISIC_0000002", "b/1.jpg"))
    with pytest.raises(InputError, match="several images in different folders are called 1"):
        read_source(tmp_path)


def test_a_blank_around_the_name_of_a_file_is_none_of_its_name(tmp_path: Path) -> None:
    _images(tmp_path / "images", [f" {IMAGES[0]} ", *IMAGES[1:]])
    _write(tmp_path / "metadata.csv", TABLE)
    assert read_source(tmp_path).missing == ()


def test_a_ground_truth_may_have_lesions_and_weights_too(tmp_path: Path) -> None:
    _images(tmp_path / "ISIC_Input", IMAGES)
    lines = TRUTH.splitlines()
    more = [",lesion_id,score_weight", *(f",HAM_{n},0.5" for n in (1, 1, 2, 3))]
    text = "\n".join(line + other for line, other in zip(lines, more, strict=True))
    _write(tmp_path / "ISIC_GroundTruth.csv", text)
    table = read_source(tmp_path).table
    assert table["lesion_id"].tolist() == ["HAM_1", "HAM_1", "HAM_2", "HAM_3"]
    assert table["dx"].tolist() == ["mel", "mel", "bkl", "nv"]
    _write(tmp_path / "ISIC_LesionGroupings.csv", GROUPINGS)
    with pytest.raises(InputError, match="another lesion of 'isic_0000001' than was told"):
        read_source(tmp_path)


def test_lists_that_tell_different_lesions_of_an_image_are_refused(tmp_path: Path) -> None:
    _images(tmp_path / "ISIC_Input", IMAGES)
    _write(tmp_path / "ISIC_GroundTruth.csv", TRUTH)
    _write(tmp_path / "ISIC_LesionGroupings.csv", GROUPINGS)
    other = _write(tmp_path / "old_LesionGroupings.csv", GROUPINGS.lower())
    assert read_source(tmp_path).table["lesion_id"].nunique() == 3
    _write(other, GROUPINGS.replace("2,HAM_0000001", "2,HAM_0000009"))
    with pytest.raises(InputError, match="another lesion of 'isic_0000002' than was told"):
        read_source(tmp_path)
