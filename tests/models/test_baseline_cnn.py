"""The baseline network: the images it takes, and what its options change."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mlops_project.models.baseline_cnn import BaselineCNN


@pytest.mark.parametrize("classes", [2, 7])
def test_every_image_size_from_16_to_65_gives_logits_of_each_class(classes: int) -> None:
    network = BaselineCNN(classes, channels=(4, 4, 4, 4), classifier_hidden=5).eval()
    with torch.no_grad():
        for size in range(16, 66):
            logits = network(torch.rand(2, 3, size, size))
            assert logits.shape == (2, classes)
            assert logits.isfinite().all()


@pytest.mark.parametrize("blocks", [1, 3, 5])
def test_each_block_halves_the_side_so_one_pixel_less_does_not_fit(blocks: int) -> None:
    network = BaselineCNN(2, channels=(4,) * blocks).eval()
    network(torch.rand(1, 3, 2**blocks, 2**blocks))
    with pytest.raises(RuntimeError, match="too small"):
        network(torch.rand(1, 3, 2**blocks - 1, 2**blocks - 1))


def test_it_is_the_layers_that_its_docstring_names() -> None:
    network = BaselineCNN(7, channels=(4, 6), classifier_hidden=5, dropout_rate=0.3).train()
    weights = network.state_dict()
    images = torch.rand(3, 3, 16, 16)

    torch.manual_seed(1)
    found = network(images)

    features = images
    for block in range(2):
        norm = f"blocks.{block}.1"
        features = F.conv2d(features, weights[f"blocks.{block}.0.weight"], padding=1)
        features = F.batch_norm(
            features, None, None, weights[f"{norm}.weight"], weights[f"{norm}.bias"], training=True
        )
        features = F.max_pool2d(F.relu(features), 2)
    hidden = F.relu(
        F.linear(features.mean((2, 3)), weights["hidden.0.weight"], weights["hidden.0.bias"])
    )
    torch.manual_seed(1)
    expected = F.linear(F.dropout(hidden, 0.3), weights["head.weight"], weights["head.bias"])
    torch.testing.assert_close(found, expected)


def test_recomputing_activations_changes_no_gradient() -> None:
    torch.manual_seed(0)
    network = BaselineCNN(2, channels=(4, 8), dropout_rate=0.5)
    images = torch.rand(4, 3, 16, 16)

    gradients = []
    for recompute in (False, True):
        network.set_grad_checkpointing(recompute)
        network.zero_grad()
        torch.manual_seed(1)
        network(images).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_recomputing_keeps_less_for_the_backward_pass() -> None:
    network = BaselineCNN(2, channels=(8, 8, 8))
    images = torch.rand(4, 3, 64, 64)

    kept = {}
    for recompute in (False, True):
        network.set_grad_checkpointing(recompute)
        sizes: list[int] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            network(images)
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False] / 2
