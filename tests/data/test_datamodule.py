"""The data module: from a folder to batches, the same ones for any number of workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mlops_project.data import HAM10000DataModule
from mlops_project.data.datamodule import Batch
from mlops_project.data.decode import decode
from mlops_project.data.diagnoses import DIAGNOSES, MALIGNANT
from mlops_project.errors import InputError

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache lies in the working folder."""
    monkeypatch.chdir(tmp_path)


def _module(folder: Path, stage: str = "fit", **settings: Any) -> HAM10000DataModule:
    module = HAM10000DataModule(folder, **{"batch_size": 4, "image_size": 32, **settings})
    module.setup(stage)
    return module


def _epoch(module: HAM10000DataModule, epoch: int = 0) -> list[Batch]:
    loader = module.train_dataloader()
    module.training_batches().set_epoch(epoch)
    return list(loader)


def _equal(first: list[Batch], second: list[Batch]) -> bool:
    return all(
        torch.equal(a, b)
        for batches in zip(first, second, strict=True)
        for a, b in zip(*batches, strict=True)
    )


def test_a_folder_and_a_batch_size_are_enough(make_folder: MakeFolder, tmp_path: Path) -> None:
    module = HAM10000DataModule(make_folder(), batch_size=4)
    module.setup("fit")
    images, labels, rows = next(iter(module.train_dataloader()))
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (4, 3, 224, 224))
    assert (labels.dtype, tuple(labels.shape)) == (torch.int64, (4,))
    assert (rows.dtype, tuple(rows.shape)) == (torch.int64, (4,))
    assert module.class_names == ("benign", "malignant")
    assert len(list((tmp_path / "data" / "cache").glob("*/images.u8"))) == 1
    inside = {path.name for path in (tmp_path / "ham").iterdir()}
    assert inside == {"images", "metadata"}, "nothing is written into the source"


def test_every_image_is_in_one_split_and_seen_once(make_folder: MakeFolder) -> None:
    module = _module(make_folder())
    loaders = {
        "train": module.train_dataloader(),
        "val": module.val_dataloader(),
        "test": module.test_dataloader(),
    }
    seen: Counter[int] = Counter()
    for split, loader in loaders.items():
        rows = torch.cat([rows for _, _, rows in loader]).tolist()
        assert sorted(rows) == module.rows_of(split).tolist()
        assert set(module.table["dx"].iloc[rows]) == set(DIAGNOSES)
        seen.update(rows)
    assert seen == Counter(range(len(module.table)))
    lesions = module.table["lesion_id"]
    assert (pd.Series(module.split).groupby(lesions).nunique() == 1).all()


@pytest.mark.parametrize("num_classes", [2, 7])
def test_labels_are_those_of_the_table(num_classes: int, make_folder: MakeFolder) -> None:
    module = _module(make_folder(), num_classes=num_classes)
    assert len(module.class_names) == num_classes
    for _, labels, rows in [*module.train_dataloader(), *module.val_dataloader()]:
        for label, dx in zip(labels.tolist(), module.table["dx"].iloc[rows], strict=True):
            expected = dx if num_classes == 7 else ("malignant" if dx in MALIGNANT else "benign")
            assert module.class_names[label] == expected


def test_batches_are_the_same_for_any_number_of_workers(make_folder: MakeFolder) -> None:
    folder = make_folder()
    modules = [_module(folder, num_workers=workers) for workers in (0, 1, 2)]
    for epoch in (0, 1):
        alone, *others = [_epoch(module, epoch) for module in modules]
        assert all(_equal(batches, alone) for batches in others)
    evaluated = [list(module.val_dataloader()) for module in modules]
    assert all(_equal(batches, evaluated[0]) for batches in evaluated)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_pass_of_ones_own_loop_is_another_epoch(workers: int, make_folder: MakeFolder) -> None:
    folder = make_folder()
    module, other = (_module(folder, num_workers=workers) for _ in range(2))
    epochs = [_epoch(_module(folder), epoch) for epoch in range(4)]
    loader = module.train_dataloader()
    assert all(_equal(list(loader), epoch) for epoch in epochs)
    assert all(_equal(list(other.train_dataloader()), epoch) for epoch in epochs)


def test_training_differs_by_epoch_and_seed_and_evaluation_does_not(
    make_folder: MakeFolder,
) -> None:
    folder = make_folder()
    module = _module(folder)
    pictures = []
    for epoch in (0, 1):
        batches = _epoch(module, epoch)
        rows = torch.cat([rows for _, _, rows in batches]).tolist()
        images = torch.cat([images for images, _, _ in batches])
        pictures.append((rows, images[np.argsort(rows)]))
    assert pictures[0][0] != pictures[1][0], "another order"
    assert sorted(pictures[0][0]) == sorted(pictures[1][0])
    assert not torch.equal(pictures[0][1], pictures[1][1]), "other crops and flips"
    assert _equal(_epoch(module, 0), _epoch(module, 0))
    other = _module(folder, seed=43)
    assert other.split_hash() != module.split_hash()
    assert _equal(list(module.val_dataloader()), list(module.val_dataloader()))
    assert torch.equal(
        torch.cat([rows for _, _, rows in module.val_dataloader()]),
        torch.from_numpy(module.rows_of("val")),
    )


def test_evaluation_sees_the_centre_of_the_image(make_folder: MakeFolder) -> None:
    module = _module(make_folder(), crop_fraction=0.5)
    for images, _, rows in module.val_dataloader():
        for image, path in zip(images, module.table["path"].iloc[rows.numpy()], strict=True):
            whole = decode(Path(path).read_bytes(), 64)
            assert (image.numpy() == whole[:, 16:48, 16:48]).all()


def test_without_augmentation_training_sees_the_centre_too(make_folder: MakeFolder) -> None:
    module = _module(make_folder(), augment=False)
    images, _, rows = _epoch(module)[0]
    expected = next(iter(module.evaluation_loader(rows.numpy())))
    assert torch.equal(images, expected[0])


def test_an_unreadable_image_is_left_out_and_counted(
    make_folder: MakeFolder, logged: pytest.LogCaptureFixture
) -> None:
    folder = make_folder()
    intact = _module(folder)
    victims = [int(intact.rows_of(split)[3]) for split in ("train", "val")]
    for row in victims:
        Path(intact.table["path"].iloc[row]).write_bytes(b"")
    module = _module(folder)
    assert "2 images cannot be read and are left out: ISIC_" in logged.text
    assert "the file is empty" in logged.text
    assert module.split[victims].tolist() == ["unused", "unused"]
    others = np.setdiff1d(np.arange(len(module.table)), victims)
    assert (module.split[others] == intact.split[others]).all()
    for loader in (module.train_dataloader(), module.val_dataloader()):
        for _, _, rows in loader:
            assert not set(victims) & set(rows.tolist())


def test_an_image_that_lacks_is_left_out_and_counted(
    make_folder: MakeFolder, logged: pytest.LogCaptureFixture
) -> None:
    folder = make_folder()
    (folder / "images" / "ISIC_0000005.jpg").unlink()
    module = _module(folder)
    assert "1 images of the table do not exist and are left out: ISIC_0000005" in logged.text
    assert "ISIC_0000005" not in set(module.table["image_id"])


def test_a_subsample_is_a_part_of_the_same_split(make_folder: MakeFolder) -> None:
    folder = make_folder(lesions=12)
    whole = _module(folder)
    previous = np.zeros(len(whole.table), dtype=bool)
    for fraction in (0.001, 0.5):
        module = _module(folder, subsample_percentage=fraction)
        used = module.split != "unused"
        assert (module.split[used] == whole.split[used]).all()
        assert used[previous].all()
        for split in ("train", "val", "test"):
            assert set(module.table["dx"][module.split == split]) == set(DIAGNOSES)
        previous = used
    assert 0.3 < previous.mean() < 0.7


def test_a_stage_decodes_what_it_needs(make_folder: MakeFolder) -> None:
    folder = make_folder()
    whole = _module(folder)
    for path in whole.table["path"].iloc[whole.rows_of("train")]:
        Path(path).write_bytes(b"")
    module = _module(folder, stage="test")
    assert _equal(list(module.test_dataloader()), list(whole.test_dataloader()))
    with pytest.raises(InputError, match="no image is left for the train split"):
        module.setup("fit")


def test_stages_can_follow_each_other(make_folder: MakeFolder) -> None:
    whole = _module(make_folder())
    module = _module(Path("ham"), stage="validate")
    module.setup("fit")
    module.setup("test")
    assert _equal(_epoch(module), _epoch(whole))
    assert _equal(list(module.test_dataloader()), list(whole.test_dataloader()))


def test_the_balanced_sampler_evens_out_the_classes(make_folder: MakeFolder) -> None:
    module = _module(make_folder(), sampler="balanced")
    batches = _epoch(module)
    labels = torch.cat([labels for _, labels, _ in batches])
    counts = torch.bincount(labels)
    assert abs(int(counts[0] - counts[1])) <= 1
    for images, _, draws in batches:
        assert images.shape[1:] == (3, 32, 32)
        assert len(set(draws.tolist())) == len(draws)


@pytest.mark.parametrize(
    ("lesions", "settings", "refusal"),
    [
        (1, {}, r"no image is left for the val split; it needs at least three lesions"),
        (2, {}, r"no image is left for the (val|test) split; it needs at least three lesions"),
        (1, {"test_fraction": 0}, r"no image is left for the val split; it needs at least two"),
    ],
)
def test_too_few_lesions_for_all_splits_are_refused_before_anything_is_decoded(
    lesions: int, settings: dict[str, Any], refusal: str, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(lesions=lesions)
    table = folder / "metadata" / "metadata.csv"
    rows = [line for line in table.read_text().splitlines() if ",nv," in line or "image_id" in line]
    table.write_text("\n".join(rows))
    with pytest.raises(InputError, match=refusal):
        _module(folder, **settings)
    assert not (tmp_path / "data").exists()


def test_a_fold_without_a_lesion_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder(lesions=2)
    with pytest.raises(InputError, match=r"the val split; data\.folds=50: it needs a lesion for"):
        _ = [_module(folder, folds=50, fold=n, test_fraction=0) for n in range(50)]


def test_a_diagnosis_that_is_unknown_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder()
    table = folder / "metadata" / "metadata.csv"
    table.write_text(table.read_text().replace(",vasc,", ",wart,"))
    with pytest.raises(InputError, match="'wart'"):
        _module(folder)


def test_memory_pinning_and_lasting_workers_reach_the_loader(demo_folder: Path) -> None:
    options = {"num_workers": 1, "pin_memory": True, "persistent_workers": True}
    data = HAM10000DataModule(
        demo_folder, cache=str(demo_folder.parent / "cache"), image_size=32, **options
    )
    data.setup("fit")
    loader = data.train_dataloader()
    assert (loader.num_workers, loader.pin_memory, loader.persistent_workers) == (1, True, True)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"batchsize": 4}, r"data\.batchsize: unknown setting; did you mean data\.batch_size\?"),
        ({"batch_size": 0}, r"data\.batch_size=0: must be a whole number, at least 1"),
        ({"subsample_percentage": 10}, r"data\.subsample_percentage=10: .* at most 1"),
        ({"crop_fraction": 2}, r"data\.crop_fraction=2: .* at most 1"),
        ({"sampler": "balance"}, r"data\.sampler=balance: .*; did you mean balanced\?"),
        ({"cache": None}, r"data\.cache=none: must be a text"),
        ({"folds": 3, "fold": 9}, r"data\.fold=9: it must be less than data\.folds=3"),
        ({"val_fraction": 0.45, "test_fraction": 0.45}, "less than a tenth for training"),
        ({"num_classes": 3}, r"model\.num_classes=3: must be one of 2, 7"),
        ({"seed": -1}, "seed=-1: must be a whole number, at least 0"),
    ],
)
def test_a_setting_is_refused_as_on_the_command_line(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        HAM10000DataModule("ham", **settings)


def test_settings_may_be_written_in_pythons_own_types(make_folder: MakeFolder) -> None:
    options: dict[str, Any] = {"cache": False, "batch_size": np.int64(4), "num_workers": 0}
    module = HAM10000DataModule(make_folder(), image_size=32, **options)
    module.setup("fit")
    assert next(iter(module.train_dataloader()))[0].shape == (4, 3, 32, 32)
    assert not Path("data").exists()
    assert len(_epoch(_module(Path("ham"), cache=Path("elsewhere")))) > 0
    assert len(list(Path("elsewhere").glob("*/images.u8"))) == 1


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_batches_that_nothing_was_decoded_for_are_refused(
    split: str, make_folder: MakeFolder
) -> None:
    module = HAM10000DataModule(make_folder(), batch_size=4, image_size=32)
    ask = getattr(module, f"{split}_dataloader")
    with pytest.raises(InputError, match=r"call setup\(\"fit\"\) first"):
        ask()
    module.setup({"test": "validate"}.get(split, "test"))  # another stage
    with pytest.raises(InputError, match=r"call setup\(\"fit\"\) first"):
        ask()
    module.setup("fit")
    assert all(images.any() for images, _, _ in ask())


def test_one_stage_after_another_leaves_the_batches_of_both(make_folder: MakeFolder) -> None:
    module = HAM10000DataModule(make_folder(), batch_size=4, image_size=32)
    for stage in ("validate", "test"):
        module.setup(stage)
    for loader in (module.val_dataloader(), module.test_dataloader()):
        assert all(images.any() for images, _, _ in loader)


def test_a_batch_size_is_found_by_a_training_only(make_folder: MakeFolder) -> None:
    module = _module(make_folder(), batch_size="auto")
    with pytest.raises(InputError, match=r"data\.batch_size=auto: only a training finds it"):
        module.train_dataloader()
    module.settings.batch_size = 4
    assert len(next(iter(module.train_dataloader()))[0]) == 4


def test_what_makes_a_training_worthless_is_told(
    make_folder: MakeFolder, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_folder()
    _module(folder)
    assert not caplog.records
    table = next(folder.rglob("*etadata*.csv"))
    rows = pd.read_csv(table)
    rows.loc[:9, "lesion_id"] = ""
    rows["dx"] = "nv"
    rows.to_csv(table, index=False)
    _module(folder)
    assert f"10 of {len(rows)} images have no lesion id" in caplog.text
    assert "all training images are of one class, benign" in caplog.text


def test_folders_may_be_given_by_the_users_own(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder()
    monkeypatch.setenv("HOME", str(tmp_path))
    module = _module(Path("~") / folder.relative_to(tmp_path), cache="~/decoded")
    assert len(module.table)
    assert (tmp_path / "decoded").is_dir()
    with pytest.raises(InputError, match="no folder for decoded images can be made there"):
        _module(folder, cache=str(next(folder.rglob("*.jpg"))))
