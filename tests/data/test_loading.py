"""Batches without a cache, with one in the device's memory, and the clock of a loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from mlops_project.data import HAM10000DataModule
from mlops_project.data.loading import Loader, choose_workers, trial_batches
from mlops_project.data.sampling import EvaluationBatches
from mlops_project.errors import ProjectError

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _module(folder: Path, **settings: Any) -> HAM10000DataModule:
    module = HAM10000DataModule(folder, batch_size=4, image_size=32, **settings)
    module.setup("fit")
    return module


def _batches(module: HAM10000DataModule) -> list[torch.Tensor]:
    loaders = (module.train_dataloader(), module.val_dataloader())
    return [part for loader in loaders for batch in loader for part in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_without_a_cache_the_batches_are_the_same(
    make_folder: MakeFolder, workers: int, tmp_path: Path
) -> None:
    cached = _batches(_module(make_folder(), cache=str(tmp_path / "cache")))
    decoded = _batches(_module(tmp_path / "ham", cache="off", num_workers=workers))
    assert all(torch.equal(a, b) for a, b in zip(cached, decoded, strict=True))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_without_a_cache_a_broken_image_is_one_message(
    make_folder: MakeFolder, workers: int, tmp_path: Path
) -> None:
    module = _module(make_folder(), cache="off", num_workers=workers)
    row = module.rows_of("train")[0]
    Path(module.table["path"].iloc[row]).write_bytes(b"not an image")
    with pytest.raises(ProjectError) as caught:
        _batches(module)
    told = str(caught.value)
    assert told.startswith(f"{module.table['image_id'].iloc[row]}: the image cannot be read")
    assert "data.cache=auto" in told
    assert "Traceback" not in told


class Collector(pl.LightningModule):
    """Keeps the batches that reach the device."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[torch.Tensor, ...]] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.seen.append(batch)
        return self.weight.square()

    validation_step = training_step
    test_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
def test_images_in_the_devices_memory_give_the_same_batches(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    make_folder()
    seen = []
    for wanted in (False, True):
        # A part of the rows is used: a position in the memory is not a row of the table.
        module = _module(tmp_path / "ham", device_cache=wanted, subsample_percentage=0.6)
        collector = Collector()
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        trainer.fit(collector, datamodule=module)
        seen.append([part for batch in collector.seen for part in batch])
        assert (module._delivery.images is not None) == wanted
    assert len(seen[0]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
def test_a_trainer_begins_with_its_first_epoch_whatever_was_looked_at_before(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    make_folder()
    looked_at, untouched = (_module(tmp_path / "ham", num_workers=n) for n in (1, 0))
    for _ in range(3):
        list(looked_at.train_dataloader())
    loader = untouched.train_dataloader()
    expected = [part for _ in range(2) for batch in loader for part in batch]
    for module in (looked_at, untouched):
        collector = Collector()
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
        )
        trainer.fit(collector, datamodule=module)
        seen = [part for batch in collector.seen for part in batch]
        assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_images_in_the_devices_memory_are_those_of_the_present_stage(
    make_folder: MakeFolder,
) -> None:
    plain, kept = (
        HAM10000DataModule(folder, batch_size=4, image_size=32, device_cache=wanted)
        for folder, wanted in ((make_folder(), False), (Path("ham"), True))
    )
    seen = []
    for module in (plain, kept):
        collector = Collector()
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        trainer.validate(collector, datamodule=module, verbose=False)
        trainer.test(collector, datamodule=module, verbose=False)
        seen.append([part for batch in collector.seen for part in batch])
        # Whoever asks outside of a training gets images, wherever they lie.
        assert next(iter(module.test_dataloader()))[0].ndim == 4
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_workers_are_tried_only_where_batches_are_slow(make_folder: MakeFolder) -> None:
    assert _module(make_folder()).train_dataloader().num_workers == 0

    class Slow(torch.utils.data.Dataset):
        def __getitem__(self, request: Any) -> Any:
            np.linalg.svd(np.random.default_rng(0).normal(size=(150, 150)))
            return torch.zeros(4), torch.zeros(4), torch.zeros(4)

    tried: list[int] = []

    def make(workers: int) -> Loader:
        tried.append(workers)
        batches = EvaluationBatches(np.arange(1000), batch_size=4)
        return Loader(Slow(), batches, workers)  # type: ignore[arg-type]

    assert choose_workers(make, most=2) in tried
    assert tried == [0, 1, 2]


def test_the_loader_counts_the_time_that_one_waits_for_it(make_folder: MakeFolder) -> None:
    loader = _module(make_folder(), cache="off", num_workers=0).train_dataloader()
    assert loader.waited == 0
    list(loader)
    once = loader.waited
    assert once > 0
    list(loader)
    assert loader.waited > once


def test_a_batch_larger_than_the_data_is_not_tried_out_at_its_full_size() -> None:
    tried = list(trial_batches(np.arange(3), batch_size=1_000_000, most=2))
    assert {len(rows) for _, rows in tried} == {3}
