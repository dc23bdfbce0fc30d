"""The models and their variants, in one table; light, so that settings can be checked at once."""

from __future__ import annotations

from dataclasses import dataclass

from mlops_project.config import DEFAULT_IMAGE_SIZE, ModelConfig
from mlops_project.errors import InputError
from mlops_project.printable import did_you_mean


@dataclass(frozen=True)
class Variant:
    """A published network.

    Attributes:
        timm_name: its name in timm.
        image_size: side of the images it was designed for, pixels.
        parameters: with the head of the 1000 ImageNet classes.
        dropout: before the head, as published.
    """

    timm_name: str
    image_size: int
    parameters: int
    dropout: float


# EfficientNet: Tan and Le, ICML 2019, table 2 and its code (sizes and dropout of B0 to B4).
# ResNet: He et al., CVPR 2016; it has no dropout.
VARIANTS: dict[str, dict[str, Variant]] = {
    "resnet": {
        "18": Variant("resnet18", 224, 11_689_512, 0.0),
        "34": Variant("resnet34", 224, 21_797_672, 0.0),
        "50": Variant("resnet50", 224, 25_557_032, 0.0),
        "101": Variant("resnet101", 224, 44_549_160, 0.0),
    },
    "efficientnet": {
        "b0": Variant("efficientnet_b0", 224, 5_288_548, 0.2),
        "b1": Variant("efficientnet_b1", 240, 7_794_184, 0.2),
        "b2": Variant("efficientnet_b2", 260, 9_109_994, 0.3),
        "b3": Variant("efficientnet_b3", 300, 12_233_232, 0.3),
        "b4": Variant("efficientnet_b4", 380, 19_341_616, 0.4),
    },
}


def family_of(variant: str) -> str | None:
    """The model that has this variant: b0 is an EfficientNet's, 18 a ResNet's."""
    return next((name for name, table in VARIANTS.items() if _short(variant) in table), None)


def find_variant(settings: ModelConfig) -> Variant | None:
    """The variant of a resnet or efficientnet; None for the other models.

    Raises:
        InputError: the model has no such variant.
    """
    table = VARIANTS.get(settings.name)
    if table is None:
        return None
    variant = _short(str(settings.variant))
    if variant not in table:
        hint = did_you_mean(variant, table, cutoff=0.3)
        raise InputError(
            f"model.variant={settings.variant}: {settings.name} has no such variant{hint}\n"
            f"Known: {', '.join(table)}"
        )
    return table[variant]


def default_image_size(settings: ModelConfig) -> int:
    """Side of the images where the user has not chosen one, pixels."""
    variant = find_variant(settings)
    return variant.image_size if variant else DEFAULT_IMAGE_SIZE


def _short(variant: str) -> str:
    """b0 for efficientnet_b0 or efficientnet-b0, 18 for resnet18."""
    text = variant.lower().replace("-", "_").removeprefix("efficientnet").removeprefix("resnet")
    return text.lstrip("_")
