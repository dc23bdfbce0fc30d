"""Networks that timm builds, with ImageNet weights where they can be had."""

from __future__ import annotations

import logging
import os
from typing import Any

from torch import nn

from mlops_project.errors import InputError, ProjectError
from mlops_project.models.weights import HUB_SECONDS, hub_has
from mlops_project.printable import did_you_mean, first_line

log = logging.getLogger("mlops_project")

# Read when huggingface_hub is imported; its own defaults wait for minutes in all.
os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(int(HUB_SECONDS)))
os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "10")


def present_name(name: str) -> str:
    """What timm calls a network today: it has renamed many, and has no weights for the old names.

    Args:
        name: such as "resnet18", "resnet18.a1_in1k" with the weights', or "tf_efficientnet_b3_ns".

    Raises:
        InputError: timm knows no such network, or no such weights for it.
    """
    import timm

    network, _, weights = name.partition(".")
    if present := timm.models.get_deprecated_models().get(network):
        network, _, renamed = present.partition(".")
        weights = weights or renamed
    if not timm.is_model(network):
        hint = did_you_mean(name, timm.list_models(), 3)
        raise InputError(f"model.variant={name}: timm knows no such network{hint}")
    present = f"{network}.{weights}" if weights else network
    try:
        timm.get_pretrained_cfg(present)
    except RuntimeError as error:  # of the weights' name, after the dot
        hint = did_you_mean(present, timm.list_pretrained(f"{network}.*"), 3)
        raise InputError(f"model.variant={name}: timm knows no such weights{hint}") from error
    return present


def create(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    dropout: float | None,
    drop_path: float | None,
    pretrained: bool | str,
) -> tuple[nn.Module, str]:
    """Builds a network by its name in timm.

    Args:
        name: such as "resnet18".
        num_classes: K.
        image_size: side of the images, pixels, for networks that need to know it.
        dropout: before the head; None leaves the network's own.
        drop_path: stochastic depth, about that of the last block; None leaves the network's own.
        pretrained: True insists on ImageNet weights, "auto" takes them if the hub answers within
            5 seconds, False starts at random.

    Returns:
        The network, and which weights it starts from.

    Raises:
        InputError: timm knows no such network, or has no weights for it on the hub.
        ProjectError: the weights cannot be fetched.
    """
    import timm

    present = present_name(name)
    if present != name:
        log.info("timm calls %s %s now", name, present)
        name = present
    config = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"num_classes": num_classes}
    if dropout is not None:
        options["drop_rate"] = dropout
    if drop_path is not None:
        options["drop_path_rate"] = drop_path

    def build(weights: bool) -> nn.Module:
        try:
            try:
                network = timm.create_model(
                    name, pretrained=weights, img_size=image_size, **options
                )
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
                network = timm.create_model(name, pretrained=weights, **options)
            if not hasattr(network, "get_classifier"):
                raise TypeError("it is an encoder without a head")
        except (AssertionError, TypeError) as error:
            if "drop_path_rate" in str(error):
                raise InputError(
                    f"model.drop_path_rate={drop_path}: {name} has no stochastic depth"
                ) from error
            raise InputError(
                f"model.variant={name}: timm cannot build it as a classifier of {image_size} × "
                f"{image_size} images ({first_line(error)})"
            ) from error
        return network

    if pretrained is False:
        return build(False), "random"
    if config is None or not config.hf_hub_id:
        if pretrained is True:
            raise InputError(
                f"model.pretrained=true: timm has no ImageNet weights for {name} on the hub; "
                "model.pretrained_path=FILE takes a local file"
            )
        log.warning("timm has no ImageNet weights for %s on the hub: it starts at random", name)
        return build(False), "random"
    # Asked first: the hub's own client tries again and again for a minute.
    reason = hub_has(config.hf_hub_id, config.hf_hub_filename)
    if reason is None:
        try:
            return build(True), f"ImageNet ({config.hf_hub_id})"
        except InputError:
            raise
        except Exception as error:  # the hub's client and the disk raise what they like
            reason = first_line(error, 200)
    if pretrained == "auto":
        return _at_random(build, name, reason)
    raise ProjectError(
        f"model.pretrained=true: the ImageNet weights of {name} cannot be fetched ({reason})\n"
        "Connect to the network, name a local file with model.pretrained_path=FILE, "
        "or start at random with model.pretrained=false."
    )


def _at_random(build: Any, name: str, reason: str) -> tuple[nn.Module, str]:
    log.warning(
        "NO PRETRAINED WEIGHTS: %s starts at random, which costs accuracy (%s). "
        "model.pretrained_path=FILE takes a local file, model.pretrained=false accepts this.",
        name,
        reason,
    )
    return build(False), "random (ImageNet weights could not be fetched)"
