"""Networks from settings: sizes, stages, freezing, and refusals of what does not exist."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from mlops_project.config import ArchitectureConfig, ModelConfig
from mlops_project.errors import InputError
from mlops_project.models.build import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_model,
    count_parameters,
    freeze,
    head,
    head_dropout,
    knows_head_dropout,
    stages,
)
from mlops_project.models.timm_models import present_name
from mlops_project.variants import VARIANTS, Variant

NETWORKS: dict[str, dict[str, Any]] = {
    "baseline_cnn": {"name": "baseline_cnn"},
    "resnet18": {"name": "resnet", "variant": "18"},
    "efficientnet_b0": {"name": "efficientnet", "variant": "b0"},
    "convnext_atto": {"name": "timm", "variant": "convnext_atto"},
    "vit_tiny_patch16_224": {"name": "timm", "variant": "vit_tiny_patch16_224"},
    # These two name no stages of their own.
    "poolformer_s12": {"name": "timm", "variant": "poolformer_s12"},
    "rdnet_tiny": {"name": "timm", "variant": "rdnet_tiny"},
}
# A parameter of the last stage of the backbone, and one of its first, the stem.
ENDS = {
    "baseline_cnn": ("hidden.0.weight", "blocks.0.0.weight"),
    "resnet18": ("layer4.1.conv2.weight", "conv1.weight"),
    "efficientnet_b0": ("blocks.6.0.conv_pw.weight", "conv_stem.weight"),
    "convnext_atto": ("head.norm.weight", "stem.0.weight"),
    "vit_tiny_patch16_224": ("blocks.11.mlp.fc2.weight", "patch_embed.proj.weight"),
}


def network_of(name: str, size: int = 32, **options: Any) -> nn.Module:
    settings = ModelConfig(**{**NETWORKS[name], "pretrained": False, **options})
    return build_model(settings, size).network


def refusal(size: int = 64, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        build_model(ModelConfig(**{"pretrained": False, **options}), size)
    message = str(caught.value)
    assert 1 <= len(message.splitlines()) <= 3
    return message


# Sizes


@pytest.mark.parametrize(
    ("family", "short", "variant"),
    [(f, s, v) for f, table in VARIANTS.items() for s, v in table.items()],
    ids=lambda part: part if isinstance(part, str) else part.timm_name,
)
def test_a_variant_has_as_many_parameters_as_its_table_says(
    family: str, short: str, variant: Variant
) -> None:
    with torch.device("meta"):  # shapes without memory
        network = build_model(
            ModelConfig(family, 1000, short, pretrained=False), variant.image_size
        ).network
    assert count_parameters(network) == variant.parameters


def test_the_efficientnets_have_the_published_millions_of_parameters() -> None:
    table = VARIANTS["efficientnet"]
    millions = {short: round(variant.parameters / 1e6, 1) for short, variant in table.items()}
    assert millions == {"b0": 5.3, "b1": 7.8, "b2": 9.1, "b3": 12.2, "b4": 19.3}


@pytest.mark.parametrize("name", list(NETWORKS)[:-1])
def test_every_network_gives_logits_of_each_class_at_another_image_size(name: str) -> None:
    network = network_of(name, size=64, num_classes=7).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 3, 64, 64)).shape == (2, 7)
    assert [len(p) for p in head(network).parameters()] == [7, 7]


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("efficientnet_b0", None, 0.2),
        ("efficientnet_b0", 0.45, 0.45),
        ("resnet18", None, 0.0),
        ("resnet18", 0.45, 0.45),
    ],
)
def test_dropout_is_the_published_one_unless_it_is_set(
    name: str, asked: float | None, expected: float
) -> None:
    assert network_of(name, dropout_rate=asked).drop_rate == expected
    assert network_of("baseline_cnn", dropout_rate=asked).dropout.p == (asked or 0.5)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_stochastic_depth_rises_to_its_rate_in_the_last_block(name: str) -> None:
    rates = drop_rates(network_of(name, drop_path_rate=0.3))
    assert rates == sorted(rates)
    assert 0.25 < rates[-1] <= 0.3
    assert not drop_rates(network_of(name))


def drop_rates(network: nn.Module) -> list[float]:
    return [m.drop_prob for m in network.modules() if isinstance(m, DropPath)]


@pytest.mark.parametrize(
    "options", [{"name": "baseline_cnn"}, {"name": "timm", "variant": "vgg11"}]
)
def test_what_has_no_residual_blocks_has_no_stochastic_depth(options: dict[str, Any]) -> None:
    assert "drop_path_rate" in refusal(**options, pretrained=False, drop_path_rate=0.3)


@pytest.mark.parametrize("name", ["baseline_cnn", "resnet18"])
def test_the_seed_decides_the_random_start(name: str) -> None:
    starts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        starts.append(next(network_of(name).parameters()))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize(
    ("options", "mean", "std"),
    [
        (NETWORKS["baseline_cnn"], IMAGENET_MEAN, IMAGENET_STD),
        (NETWORKS["resnet18"], IMAGENET_MEAN, IMAGENET_STD),
        ({"name": "timm", "variant": "mobilevit_xxs"}, (0, 0, 0), (1, 1, 1)),
    ],
)
def test_each_network_says_which_normalisation_it_expects(
    options: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    built = build_model(ModelConfig(**options, pretrained=False), 64)
    assert (built.mean, built.std, built.weights) == (mean, std, "random")


# Refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "resnet", "variant": "19"}, ["resnet has no such variant", "18, 34, 50, 101"]),
        ({"name": "efficientnet", "variant": "b7"}, ["did you mean b", "b0, b1, b2, b3, b4"]),
        ({"name": "efficientnet"}, ["b0, b1, b2, b3, b4"]),
        ({"name": "timm"}, ["model.variant=NAME"]),
        ({"name": "timm", "variant": "convnext_ato"}, ["did you mean", "convnext_atto"]),
        ({"name": "timm", "variant": "resnet18.a1_in1"}, ["no such weights", "resnet18.a1_in1k"]),
        ({"name": "timm", "variant": "../weights"}, ["timm knows no such network"]),
        ({"name": "baseline_cnn", "variant": "b0"}, ["model.variant=b0", "model=efficientnet"]),
        ({"name": "baseline_cnn", "pretrained": True}, ["no pretrained weights"]),
        ({"name": "baseline_cnn", "pretrained_path": "a.pth"}, ["model.pretrained_path=a.pth"]),
        (
            {"architecture": ArchitectureConfig(conv_blocks=3, channels=[8, 16])},
            ["conv_blocks=3", "channels has 2: [8, 16]"],
        ),
    ],
)
def test_what_no_model_has_is_refused_with_what_there_is(
    options: dict[str, Any], words: list[str]
) -> None:
    message = refusal(**options)
    for word in words:
        assert word in message


def test_images_too_small_for_the_blocks_are_refused_with_the_smallest_size() -> None:
    architecture = ArchitectureConfig(conv_blocks=6, channels=[4] * 6)
    message = refusal(size=63, architecture=architecture)
    assert "data.image_size=63" in message
    assert "at least 64" in message
    build_model(ModelConfig(architecture=architecture), 64)


def test_weights_that_timm_has_by_an_address_alone_are_none_of_the_hub() -> None:
    message = refusal(name="timm", variant="gcvit_xxtiny", pretrained=True)
    assert "timm has no ImageNet weights for gcvit_xxtiny on the hub" in message


def test_a_name_that_timm_has_replaced_means_the_network_and_weights_of_the_present_one() -> None:
    for old, new in timm.models.get_deprecated_models().items():
        if new and timm.models.is_model_pretrained(new):  # it names two that it has not
            assert present_name(old) == new
    assert present_name("tf_efficientnet_b3_ns") == "tf_efficientnet_b3.ns_jft_in1k"
    assert present_name("tf_efficientnet_b3_ns.in1k") == "tf_efficientnet_b3.in1k"
    assert present_name("resnet18.a1_in1k") == "resnet18.a1_in1k"


@pytest.mark.parametrize(("variant", "size"), [("twins_pcpvt_small", 50), ("crossvit_9_240", 224)])
def test_images_that_a_network_cannot_take_are_refused(variant: str, size: int) -> None:
    message = refusal(size=size, name="timm", variant=variant)
    assert variant in message
    assert f"{size} × {size}" in message


def test_a_network_that_only_encodes_is_refused_as_a_classifier() -> None:
    with torch.device("meta"):
        message = refusal(name="timm", variant="mobilenetv5_300m_enc")
    assert "model.variant=mobilenetv5_300m_enc: timm cannot build it as a classifier" in message


# Stages


@pytest.mark.parametrize("name", NETWORKS)
def test_stages_hold_every_parameter_once_and_the_head_first(name: str) -> None:
    with torch.device("meta"):
        network = network_of(name)
    parts = stages(network)

    held = [id(p) for stage in parts for p in stage]
    assert sorted(held) == sorted(id(p) for p in network.parameters())
    assert {id(p) for p in parts[0]} == {id(p) for p in head(network).parameters()}
    assert len(parts) > 1
    assert all(parts)


@pytest.mark.parametrize(("name", "ends"), ENDS.items())
def test_stages_go_from_the_last_of_the_backbone_down_to_the_stem(
    name: str, ends: tuple[str, str]
) -> None:
    with torch.device("meta"):
        network = network_of(name)
    named = dict(network.named_parameters())
    parts = [{id(p) for p in stage} for stage in stages(network)]

    last, stem = (id(named[end]) for end in ends)
    assert last in parts[1]
    assert stem in parts[-1]
    assert len(parts) >= 5


# Freezing


@pytest.mark.parametrize("name", ["baseline_cnn", "resnet18", "efficientnet_b0"])
def test_a_frozen_backbone_keeps_its_norms_statistics_bit_for_bit(name: str) -> None:
    network = network_of(name).train()
    parts = stages(network)
    before = {n: b.clone() for n, b in network.named_buffers()}

    freeze(network, [p for stage in parts[1:] for p in stage])
    network(torch.rand(4, 3, 32, 32)).sum().backward()

    for buffer_name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[buffer_name]), buffer_name
    assert all(p.grad is not None for p in parts[0])
    assert all(p.grad is None for stage in parts[1:] for p in stage)


@pytest.mark.parametrize("name", ["baseline_cnn", "resnet18", "efficientnet_b0"])
def test_freeing_a_stage_lets_its_weights_and_statistics_move_and_no_others(name: str) -> None:
    network = network_of(name).train()
    parts = stages(network)
    freeze(network, [p for stage in parts[1:] for p in stage])
    freeze(network, [p for stage in parts[3:] for p in stage])
    before = {n: b.clone() for n, b in network.named_buffers()}

    network(torch.rand(4, 3, 32, 32)).sum().backward()

    free = {id(p) for stage in parts[:3] for p in stage}
    norms = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for norm_name, norm in norms:
        moved = not torch.equal(norm.running_mean, before[f"{norm_name}.running_mean"])  # type: ignore[arg-type]
        assert moved == (id(norm.weight) in free), norm_name
    assert {id(p) for p in network.parameters() if p.grad is not None} == free


def test_freezing_leaves_a_network_that_evaluates_in_evaluation() -> None:
    network = network_of("resnet18").eval()
    freeze(network, [])
    assert not any(module.training for module in network.modules())


def test_a_run_of_the_small_network_does_not_wait_for_timm_to_be_imported() -> None:
    program = (
        "import json, sys\n"
        "import mlops_project.training.run\n"
        "from mlops_project.config import ModelConfig\n"
        "from mlops_project.models.build import build_model\n"
        "for settings in sys.argv[1:]:\n"
        "    build_model(ModelConfig(**json.loads(settings), pretrained=False), 64)\n"
        "    print('timm' in sys.modules)\n"
    )
    networks = [json.dumps(NETWORKS[name]) for name in ("baseline_cnn", "resnet18")]
    command = [sys.executable, "-c", program, *networks]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["False", "True"]


@pytest.mark.parametrize(
    ("variant", "known"), [("resnet18", True), ("test_vit", False), ("test_efficientnet", True)]
)
def test_dropout_before_the_head_is_known_or_said_not_to_be(variant: str, known: bool) -> None:
    options = ModelConfig(name="timm", variant=variant, pretrained=False, dropout_rate=0.4)
    network = build_model(options, 160).network
    assert knows_head_dropout(network) == known
    assert head_dropout(network) == (0.4 if known else 0.0)
