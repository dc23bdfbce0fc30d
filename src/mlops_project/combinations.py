"""Which settings go together; each alone is what its key accepts already."""

from __future__ import annotations

import logging
import re

from mlops_project.config import DataConfig, ModelConfig, TrainingConfig
from mlops_project.errors import InputError
from mlops_project.variants import find_variant

log = logging.getLogger("mlops_project")

MAX_DAYS = 3650  # of training.max_time


def check_model(model: ModelConfig) -> None:
    """Raises InputError for settings that the chosen model does not have."""
    name = model.name
    find_variant(model)
    if name == "timm" and not model.variant:
        raise InputError("model=timm needs model.variant=NAME, such as convnext_atto")
    if name == "baseline_cnn":
        for key, value in (
            ("variant", model.variant),
            ("pretrained_path", model.pretrained_path),
            ("drop_path_rate", model.drop_path_rate),
        ):
            if value is not None:
                raise InputError(
                    f"model.{key}={value}: baseline_cnn has none; "
                    "choose model=resnet, model=efficientnet or model=timm"
                )
        if model.pretrained is True:
            raise InputError(
                "model.pretrained=true: there are no pretrained weights for baseline_cnn; "
                "choose model=resnet, model=efficientnet or model=timm"
            )
        blocks, channels = model.architecture.conv_blocks, model.architecture.channels
        if blocks != len(channels):
            raise InputError(
                f"model.architecture.conv_blocks={blocks} needs as many channels, "
                f"but model.architecture.channels has {len(channels)}: {channels}"
            )


def check_data(data: DataConfig) -> None:
    """Raises InputError where the settings of the data contradict each other."""
    if data.val_fraction + data.test_fraction >= 0.9:
        raise InputError(
            "data.val_fraction + data.test_fraction leave less than a tenth for training"
        )
    start, size = data.start_size, data.image_size
    if start is not None and size is not None and start > size:
        raise InputError(
            f"data.start_size={start}: it must be at most data.image_size={size}, to which it grows"
        )
    folds, fold = data.folds, data.fold
    if fold >= (folds or 1):
        missing = f"less than data.folds={folds}" if folds else "0 without data.folds, such as 5"
        raise InputError(f"data.fold={fold}: it must be {missing}; the first fold is 0")


def check_training(training: TrainingConfig) -> None:
    """Raises InputError where those of the training cannot be followed."""
    longest = training.max_time
    if longest is not None and not re.fullmatch(r"\d+(:\d\d){3}", longest):
        raise InputError(
            f"training.max_time={longest}: must be days:hours:minutes:seconds, such as 00:08:00:00"
        )
    if longest is not None:
        days, *parts = map(int, longest.split(":"))
        if days > MAX_DAYS or not any((days, *parts)):
            raise InputError(
                f"training.max_time={longest}: must be more than no time, and at most "
                f"{MAX_DAYS} days"
            )
    schedule = training.unfreeze_schedule
    if training.progressive_unfreezing and not schedule:
        raise InputError(
            "training.unfreeze_schedule=[]: training.progressive_unfreezing needs the epochs that "
            "free the next stages, like [5,10,15]"
        )
    if training.progressive_unfreezing and sorted(schedule) != schedule:
        raise InputError(
            f"training.unfreeze_schedule={schedule}: the epochs must not fall, like [0,0,5,10]"
        )
    if training.strategy == "fsdp":
        _check_sharding(training)


def _check_sharding(training: TrainingConfig) -> None:
    """Refuses what looks at all weights or gradients, of which a process has only its share.

    And channels last: of such weights PyTorch 2.15 keeps the shares in the order of memory, but
    gives a run that goes on the optimizer's averages in the order of channels first.
    """
    clips = training.gradient_clip_val and training.gradient_clip_algorithm == "norm"
    for name, given in (
        ("gradient_clip_algorithm=norm", clips),
        ("ema_decay", training.ema_decay),
        ("on_nonfinite=skip", training.on_nonfinite == "skip"),
        ("channels_last=true", training.channels_last is True),
    ):
        if given:
            raise InputError(
                f"training.{name}: does not go with training.strategy=fsdp, where each process has "
                "a part of the weights only; it does with training.strategy=ddp"
            )


def warn_of_a_short_training(training: TrainingConfig) -> None:
    """Warns where it ends in its warm-up, as a recipe tried out for an epoch does."""
    warmup, epochs = training.warmup_epochs, training.max_epochs
    if warmup >= epochs:
        log.warning(
            "training.warmup_epochs=%g, of training.max_epochs=%d: the learning rate rises to the "
            "end%s; a shorter warm-up leaves epochs at the full rate",
            warmup,
            epochs,
            "" if warmup == epochs else ", to a part of the full rate only",
        )
