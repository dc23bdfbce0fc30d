"""Which stages learn in which epoch: as a table, and in a training that really happens."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from mlops_project.config import TrainingConfig
from mlops_project.models.baseline_cnn import BaselineCNN
from mlops_project.models.build import stages
from mlops_project.training.finetuning import Unfreezing, free_stages, freezes

ALL = 6  # stages of the network in the table


@pytest.mark.parametrize(
    ("options", "free"),
    [
        ({}, [ALL] * 5),
        ({"freeze_backbone_epochs": 1}, [1, ALL, ALL, ALL, ALL]),
        ({"freeze_backbone_epochs": 3}, [1, 1, 1, ALL, ALL]),
        ({"unfreeze_schedule": [1, 2]}, [ALL] * 5),
        ({"progressive_unfreezing": True, "unfreeze_schedule": []}, [ALL] * 5),
        ({"progressive_unfreezing": True, "unfreeze_schedule": [2]}, [1, 1, ALL, ALL, ALL]),
        ({"progressive_unfreezing": True, "unfreeze_schedule": [1, 3]}, [1, 2, 2, ALL, ALL]),
        ({"progressive_unfreezing": True, "unfreeze_schedule": [1, 2, 4]}, [1, 2, 3, 3, ALL]),
        ({"progressive_unfreezing": True, "unfreeze_schedule": [9, 12]}, [1] * 5),
        ({"progressive_unfreezing": True, "unfreeze_schedule": [0, 0, 2]}, [3, 3, ALL, ALL, ALL]),
        # More entries than stages: all are free before the last entry.
        (
            {"progressive_unfreezing": True, "unfreeze_schedule": [1, 2, 3, 4, 5, 6, 7, 8]},
            [1, 2, 3, 4, 5, ALL, ALL, ALL, ALL, ALL],
        ),
        # freeze_backbone_epochs wins over a schedule that starts earlier.
        (
            {
                "progressive_unfreezing": True,
                "unfreeze_schedule": [1, 3],
                "freeze_backbone_epochs": 2,
            },
            [1, 1, 2, ALL, ALL],
        ),
    ],
)
def test_free_stages_of_each_epoch(options: dict, free: list[int]) -> None:
    settings = TrainingConfig(**options)
    assert [free_stages(epoch, ALL, settings) for epoch in range(len(free))] == free
    assert freezes(settings) == (
        settings.freeze_backbone_epochs > 0 or settings.progressive_unfreezing
    )


def test_a_network_of_two_stages_is_free_with_the_first_entry() -> None:
    settings = TrainingConfig(progressive_unfreezing=True, unfreeze_schedule=[1, 2, 3])
    assert [free_stages(epoch, 2, settings) for epoch in range(5)] == [1, 2, 2, 2, 2]


class Learner(pl.LightningModule):
    """Notes all weights and statistics before each epoch and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.network = BaselineCNN(2, channels=(4, 4), classifier_hidden=4)
        self.notes: list[dict[str, torch.Tensor]] = []
        self.features = None

    def note(self) -> None:
        self.notes.append({n: t.clone() for n, t in self.network.state_dict().items()})

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.network(images), labels)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.network(batch[0])

    def on_train_epoch_start(self) -> None:
        self.note()

    def on_train_end(self) -> None:
        self.note()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Momentum and weight decay would move a frozen weight, were it merely without gradient.
        return torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.1)


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
def test_in_training_a_stage_moves_exactly_in_the_epochs_that_free_it() -> None:
    torch.manual_seed(0)
    settings = TrainingConfig(progressive_unfreezing=True, unfreeze_schedule=[1, 2, 3])
    images = TensorDataset(torch.rand(8, 3, 16, 16), torch.arange(8) % 2)
    learner = Learner()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=4,
        callbacks=[Unfreezing(settings)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    loader = DataLoader(images, batch_size=4)
    trainer.fit(learner, loader, loader)

    names = {id(p): name for name, p in learner.network.named_parameters()}
    parts = [{names[id(p)] for p in stage} for stage in stages(learner.network)]
    for epoch, free in enumerate([1, 2, 3, len(parts)]):
        before, after = learner.notes[epoch], learner.notes[epoch + 1]
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        weights = set().union(*parts[:free])
        norms = {name.removesuffix(".weight") for name in weights}
        statistics = {
            name
            for name in before
            if name.endswith(("running_mean", "running_var", "num_batches_tracked"))
            and name.rpartition(".")[0] in norms
        }
        assert moved == weights | statistics
