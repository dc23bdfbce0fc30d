"""Builds the network that the settings describe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mlops_project.combinations import check_model
from mlops_project.config import ModelConfig
from mlops_project.errors import InputError
from mlops_project.models.baseline_cnn import BaselineCNN
from mlops_project.models.weights import load_file
from mlops_project.printable import first_line
from mlops_project.variants import find_variant

# Mean and standard deviation of ImageNet's channels on the scale from 0 to 1, as torchvision and
# timm have them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Of a new head's weights: Dosovitskiy et al., ViT, 2021, and Liu et al., ConvNeXt, 2022, in timm.
HEAD_STD = 0.02


@dataclass
class BuiltModel:
    """A network and what must be known to feed it.

    Attributes:
        network: normalised float images [B, 3, S, S] to logits [B, K].
        weights: which weights it starts from, in words.
        mean, std: of the channels, on the scale from 0 to 1, that it expects.
    """

    network: nn.Module
    weights: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def build_model(settings: ModelConfig, image_size: int, *, load_weights: bool = True) -> BuiltModel:
    """Builds a network; its random start is drawn from torch's generator.

    Args:
        settings: which one, and its weights.
        image_size: side of the images, pixels.
        load_weights: False leaves all weights random, for a checkpoint to fill in.

    Raises:
        InputError: settings that do not go together, or a file of weights that cannot be used.
        ProjectError: model.pretrained=true, and the weights cannot be fetched.
    """
    check_model(settings)
    if settings.name == "baseline_cnn":
        built = _build_baseline(settings, image_size)
    else:
        from mlops_project.models import timm_models

        variant = find_variant(settings)
        dropout = settings.dropout_rate
        if dropout is None and variant is not None:
            dropout = variant.dropout
        from_file = settings.pretrained_path or settings.init_from
        network, weights = timm_models.create(
            variant.timm_name if variant else str(settings.variant),
            num_classes=settings.num_classes,
            image_size=image_size,
            dropout=dropout,
            drop_path=settings.drop_path_rate,
            pretrained=settings.pretrained if load_weights and not from_file else False,
        )
        expected = getattr(network, "pretrained_cfg", {})
        built = BuiltModel(
            network,
            weights,
            tuple(expected.get("mean") or IMAGENET_MEAN),
            tuple(expected.get("std") or IMAGENET_STD),
        )
        _start_small(built.network)
        if settings.name == "timm":
            try_size(built.network, settings, image_size)
    if load_weights:
        for path in (settings.pretrained_path, settings.init_from):
            if path:
                built.weights = load_file(built.network, path)
    return built


def try_size(
    network: nn.Module, settings: ModelConfig, image_size: int, key: str = "data.image_size"
) -> None:
    """Shows the network an image of this size.

    Raises:
        InputError: it cannot take it; `key` is what to change.
    """
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise InputError(
            f"{settings.variant or settings.name}: it cannot take {image_size} × {image_size} "
            f"images ({first_line(error)}); try another {key}"
        ) from error
    finally:
        network.train()


def _start_small(network: nn.Module) -> None:
    """Gives a new head small weights, so that the first predictions are even.

    timm's own start of some heads depends on the number of classes and is far too large for few.
    """
    last = head(network)
    for module in last if isinstance(last, (tuple, list)) else (last,):
        for part in module.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=HEAD_STD)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)


def _build_baseline(settings: ModelConfig, image_size: int) -> BuiltModel:
    channels = settings.architecture.channels
    if image_size < 2 ** len(channels):
        raise InputError(
            f"data.image_size={image_size}: too small for {len(channels)} blocks, each of which "
            f"halves it; at least {2 ** len(channels)}, or fewer model.architecture.conv_blocks"
        )
    network = BaselineCNN(
        settings.num_classes,
        channels,
        settings.architecture.classifier_hidden,
        0.5 if settings.dropout_rate is None else settings.dropout_rate,
    )
    return BuiltModel(network, "random")


def head(network: nn.Module) -> nn.Module:
    """The last, classifying layer."""
    if isinstance(network, BaselineCNN):
        return network.head
    return network.get_classifier()  # type: ignore[operator]  # every classifier of timm has it


def knows_head_dropout(network: nn.Module) -> bool:
    """Whether `head_dropout` tells it: some of timm's networks keep it in a layer of any name."""
    named = isinstance(network, BaselineCNN) or hasattr(network, "drop_rate")
    dropouts = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)
    return named or not any(isinstance(m, dropouts) and m.p for m in network.modules())


def head_dropout(network: nn.Module) -> float:
    """Probability of dropout right before the head."""
    if isinstance(network, BaselineCNN):
        return network.dropout.p
    return float(getattr(network, "drop_rate", 0.0))


def stages(network: nn.Module) -> list[list[nn.Parameter]]:
    """All parameters in stages: the head, then the backbone from its last stage down to the stem.

    timm's networks name their own stages (`group_matcher`); a block is one of baseline_cnn's.
    """
    named = dict(network.named_parameters())
    heads = head(network)
    modules = heads if isinstance(heads, (tuple, list)) else (heads,)
    in_head = {id(p) for module in modules for p in module.parameters()}
    top = [p for p in named.values() if id(p) in in_head]
    if isinstance(network, BaselineCNN):
        parts: list[nn.Module] = [network.hidden, *reversed(network.blocks)]
        backbone = [list(part.parameters()) for part in parts]
    else:
        from timm.models import group_parameters

        try:
            matcher = network.group_matcher(coarse=True)  # type: ignore[operator]
        except (AttributeError, AssertionError):  # it has not said where its stages end
            return [top, [p for p in named.values() if id(p) not in in_head]]
        order: dict[str, float] = group_parameters(network, matcher, reverse=True)
        depths = sorted(set(order.values()), reverse=True)
        backbone = [
            [p for n, p in named.items() if order[n] == depth and id(p) not in in_head]
            for depth in depths
        ]
    return [stage for stage in (top, *backbone) if stage]


def freeze(network: nn.Module, frozen: list[nn.Parameter]) -> None:
    """Fixes these parameters; frees all others.

    Modules all of whose parameters are fixed work as in evaluation: the statistics of norms stay as
    they are, and nothing is dropped at random.
    """
    fixed = {id(p) for p in frozen}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) not in fixed)
    for module in network.modules():  # a module comes before its parts
        own = {id(p) for p in module.parameters()}
        if own:
            module.train(network.training and not own <= fixed)


def count_parameters(network: nn.Module) -> int:
    """Number of learned weights."""
    return sum(p.numel() for p in network.parameters())
