"""Grad-CAM: the images are the telling ones, and the heat lies where the network looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from mlops_project import settings
from mlops_project.evaluation.explanations import activation_maps, choose, explain
from mlops_project.evaluation.trained_model import TrainedModel
from mlops_project.models.baseline_cnn import BaselineCNN

NAMES = ["benign", "malignant"]
SQUARE = 12  # side of the coloured squares, pixels; images have 48
RED, GREEN = 0, 1  # the channel of the square, and its class


def table(rows: list[tuple[str, str, str, float]]) -> pd.DataFrame:
    """Predictions of two classes: image_id, lesion_id, y_true, probability of malignant."""
    made = pd.DataFrame(rows, columns=["image_id", "lesion_id", "y_true", "probability_malignant"])
    made["probability_benign"] = 1 - made["probability_malignant"]
    made["y_pred"] = np.where(made["probability_malignant"] > 0.5, "malignant", "benign")
    return made


def squares(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Noise with a red or green square: uint8 images [n, 3, 48, 48], labels, corners [n, 2]."""
    random = np.random.default_rng(seed)
    images = random.integers(90, 160, (n, 3, 48, 48), dtype=np.uint8)
    labels = random.integers(0, 2, n)
    corners = random.integers(0, 48 - SQUARE + 1, (n, 2))
    for image, label, (top, left) in zip(images, labels, corners, strict=True):
        image[label, top : top + SQUARE, left : left + SQUARE] = 255
    return torch.from_numpy(images), torch.from_numpy(labels), corners


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images / 255 - 0.5) / 0.25


def trained_model(network: nn.Module, name: str = "model=baseline_cnn") -> TrainedModel:
    facts = {"preprocessing": {"mean": [0.5] * 3, "std": [0.25] * 3}, "class_names": NAMES}
    return TrainedModel(Path("last.ckpt"), network, settings.load([name]), facts, 1)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Has learned to tell red squares from green ones, wherever they are."""
    torch.manual_seed(0)
    network = BaselineCNN(2, channels=(8, 16), classifier_hidden=16, dropout_rate=0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    images, labels, _ = squares(256, seed=1)
    for part in torch.arange(256).split(32) * 6:
        loss = nn.functional.cross_entropy(network(normalised(images[part])), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def test_the_worst_mistakes_and_the_typical_successes_are_chosen() -> None:
    predictions = table(
        [
            ("a", "1", "benign", 0.6),
            ("b", "2", "benign", 0.9),
            ("c", "3", "benign", 0.8),
            *[(f"m{i}", f"m{i}", "malignant", 0.55 + 0.1 * i) for i in range(5)],
            ("d", "d", "malignant", 0.3),
        ]
    )
    chosen = choose(predictions, NAMES)
    assert chosen[["y_true", "kind", "image_id"]].to_numpy().tolist() == [
        ["benign", "mistake", "b"],
        ["benign", "mistake", "c"],
        ["malignant", "mistake", "d"],
        ["malignant", "success", "m2"],  # the median, not the most certain one
        ["malignant", "success", "m1"],  # as near to it as m3
    ]
    assert chosen["probability"].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.75, 0.65])
    assert predictions["image_id"].to_numpy()[chosen["row"]].tolist() == list(chosen["image_id"])


def test_a_lesion_is_shown_once_and_ties_do_not_depend_on_the_order() -> None:
    rows = [(f"i{i}", str(i % 3), "benign", 0.9) for i in range(9)]
    chosen = [choose(table(r), NAMES)["image_id"].tolist() for r in (rows, rows[::-1])]
    assert chosen == [["i0", "i1"]] * 2


@settings_of(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.uuids().map(str),
            st.sampled_from("abcde"),
            st.sampled_from(NAMES),
            st.floats(0, 1, width=32),
        ),
        unique_by=lambda row: row[0],
    ),
    st.integers(1, 3),
)
def test_the_chosen_are_what_they_are_called(
    rows: list[tuple[str, str, str, float]], each: int
) -> None:
    predictions = table(rows)
    chosen = choose(predictions, NAMES, each)
    for (true, kind), part in chosen.groupby(["y_true", "kind"]):
        right = part["y_pred"] == true
        assert right.all() if kind == "success" else not right.any()
        assert part["lesion_id"].is_unique
        own = predictions[predictions["y_true"] == true]
        others = own[(own["y_pred"] == true) == (kind == "success")]
        assert len(part) == min(each, others["lesion_id"].nunique())
        if kind == "mistake":
            wrong = others[[f"probability_{n}" for n in NAMES]].max(axis=1)
            assert part["probability"].max() == pytest.approx(wrong.max())


def test_the_heat_lies_where_the_network_looks(network: nn.Module) -> None:
    images, labels, corners = squares(60, seed=2)
    assert (network(normalised(images)).argmax(dim=1) == labels).float().mean() > 0.95

    def found(network: nn.Module) -> np.ndarray:
        maps = activation_maps(network, normalised(images), labels)
        assert maps is not None
        assert maps.shape == (60, 1, 12, 12)
        flat = maps.flatten(1).argmax(dim=1).numpy()
        places = (np.column_stack(np.divmod(flat, 12)) + 0.5) * 4  # centres, pixels
        inside = (places >= corners - 4) & (places <= corners + SQUARE + 4)
        return np.asarray(inside.all(axis=1))

    assert found(network).mean() > 0.9
    # Weights that have learned nothing may be drawn to a square, and often are not.
    torch.manual_seed(3)
    strangers = [BaselineCNN(2, channels=(8, 16), classifier_hidden=16).eval() for _ in range(8)]
    assert np.mean([found(stranger) for stranger in strangers]) < 0.8


def test_the_class_decides_what_the_map_shows(network: nn.Module) -> None:
    """An image with both squares: each class's evidence is its own square."""
    images = torch.full((1, 3, 48, 48), 125, dtype=torch.uint8)
    images[0, RED, 4:16, 4:16] = 255
    images[0, GREEN, 32:44, 32:44] = 255
    both = normalised(images).expand(2, -1, -1, -1)
    maps = activation_maps(network, both, torch.tensor([RED, GREEN]))
    assert maps is not None
    red, green = maps[:, 0].numpy()
    assert red[:6, :6].max() > 2 * red[6:, 6:].max()
    assert green[6:, 6:].max() > 2 * green[:6, :6].max()


def test_of_pooled_features_and_one_layer_it_is_the_class_activation_map() -> None:
    """Selvaraju et al., section 3: there Grad-CAM is Zhou et al.'s CAM, but for 1/hw."""
    network: Any = timm.create_model("resnet18", num_classes=3).eval()
    images, targets = torch.randn(20, 3, 64, 64), torch.arange(20) % 3
    with torch.no_grad():
        features = network.forward_features(images)
    expected = torch.einsum("bchw,bc->bhw", features, network.fc.weight[targets]).relu() / 4
    maps = activation_maps(network, images, targets)
    assert maps is not None
    assert torch.allclose(maps[:, 0], expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 2),
        ("efficientnet_b0", 2),
        ("tf_efficientnetv2_b0", 2),
        ("convnext_atto", 2),
        ("mambaout_femto", 2),  # has its channels last
        ("vit_tiny_patch16_224", 4),
    ],
)
def test_a_network_is_the_same_afterwards(name: str, side: int) -> None:
    sizes: Any = {"img_size": 64} if name.startswith("vit") else {}
    network = timm.create_model(name, num_classes=3, **sizes).eval()
    first = next(network.parameters()).requires_grad_(False)
    before = {n: v.clone() for n, v in network.state_dict().items()}
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        logits = network(images)
    maps = activation_maps(network, images, torch.arange(3))
    assert maps is not None
    assert maps.shape == (3, 1, side, side)
    assert (maps >= 0).all()
    assert not maps.requires_grad
    after = network.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert [p.requires_grad for p in network.parameters()].count(False) == 1
    assert not first.requires_grad
    assert all(p.grad is None for p in network.parameters())
    assert not any(module.training for module in network.modules())
    with torch.no_grad():
        assert torch.equal(network(images), logits)


def test_a_transformers_map_has_the_order_of_its_patches() -> None:
    """Only one patch is let through to the last block's attention: the heat is there or nowhere."""
    torch.manual_seed(0)
    network: Any = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=64).eval()
    kept = 1 + 4 * 1 + 2  # after the class token, row 1, column 2 of 4 × 4

    def only_one(_: nn.Module, __: object, tokens: torch.Tensor) -> torch.Tensor:
        return tokens * (torch.arange(17) == kept)[:, None]

    network.blocks[-1].norm1.register_forward_hook(only_one)
    images = torch.randn(1, 3, 64, 64).expand(3, -1, -1, -1)
    maps = activation_maps(network, images, torch.arange(3))
    assert maps is not None
    where = maps.sum(dim=0)[0].nonzero().tolist()
    assert where == [[1, 2]]


def test_the_pictures_and_their_facts(network: nn.Module, tmp_path: Path) -> None:
    images, labels, corners = squares(12, seed=5)
    with torch.no_grad():
        probabilities = network(normalised(images)).softmax(dim=1)[:, 1].numpy()
    predictions = table(
        [
            (f"../<b>{'ü' * 300}\n{i // 2}", str(i), NAMES[int(label)], float(p))
            for i, (label, p) in enumerate(zip(labels, probabilities, strict=True))
        ]
    )
    chosen = choose(predictions, NAMES)
    old = tmp_path / "explanations"
    old.mkdir()
    for name in ("07_mistake_ISIC_1.png", "own.png"):
        Image.new("RGB", (9, 9)).save(old / name)
    found, gap = explain(trained_model(network), chosen, images[chosen["row"].tolist()], tmp_path)
    assert gap is None
    assert len(found) == len(chosen) > 3
    written = {path.name for path in old.iterdir()}
    assert written == {"own.png", *(Path(facts["picture"]).name for facts in found)}
    for facts, row in zip(found, chosen.to_dict("records"), strict=True):
        assert facts["image_id"] == row["image_id"]
        assert (facts["kind"], facts["y_pred"]) == (row["kind"], row["y_pred"])
        assert type(facts["probability"]) is float
        with Image.open(tmp_path / facts["picture"]) as picture:
            plain, heated = (np.asarray(picture.crop((x, 8, x + 224, 232))) for x in (8, 240))
        # The square is where the picture has changed most.
        change = np.abs(plain.astype(float) - heated).sum(axis=2)
        top, left = corners[row["row"]] * 224 // 48
        side = SQUARE * 224 // 48
        inside = change[top : top + side, left : left + side].mean()
        assert inside > 2 * change.mean()


def test_without_positive_evidence_there_is_no_heat(network: nn.Module, tmp_path: Path) -> None:
    """To the contrary network, all that it sees speaks against either class."""
    contrary: Any = BaselineCNN(2, channels=(8, 16), classifier_hidden=16).eval()
    nn.init.constant_(contrary.hidden[0].weight, 0.5)
    nn.init.constant_(contrary.head.weight, -0.5)
    images, labels, _ = squares(1, seed=6)
    chosen = choose(table([("a", "1", "benign", float(labels[0]))]), NAMES)

    def drawn(network: nn.Module, n_models: int = 1) -> np.ndarray:
        found, _ = explain(trained_model(network), chosen, images, tmp_path, n_models)
        with Image.open(tmp_path / found[0]["picture"]) as picture:
            return np.asarray(picture)

    usual, silent, of_three = drawn(network), drawn(contrary), drawn(contrary, 3)
    assert np.array_equal(silent[8:232, 8:232], silent[8:232, 240:464])
    assert not np.array_equal(usual[8:232, 8:232], usual[8:232, 240:464])
    assert usual.shape == silent.shape
    assert not np.array_equal(usual[240:], silent[240:])  # the caption says so
    assert of_three.shape[0] > silent.shape[0]  # and here which model it is
    with torch.no_grad():
        contrary.head.bias.fill_(torch.nan)
        contrary.head.weight.fill_(torch.nan)
    assert np.array_equal(drawn(contrary), silent)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ("resnet18", "1 × 1 for images of 32 pixels"),
        ("gmlp_ti16_224", "no feature map"),
        ("coat_lite_tiny", "no feature map"),
    ],
)
def test_a_network_without_a_map_gives_a_reason(network: str, reason: str, tmp_path: Path) -> None:
    sizes: Any = {} if network == "resnet18" else {"img_size": 32}
    built = timm.create_model(network, num_classes=2, **sizes).eval()
    chosen = choose(table([("a", "1", "benign", 0.1)]), NAMES)
    images, _, _ = squares(1, seed=7)
    (tmp_path / "explanations").mkdir()
    stale = tmp_path / "explanations/01_success_a.png"
    Image.new("RGB", (9, 9)).save(stale)
    found, gap = explain(trained_model(built), chosen, images[..., :32, :32], tmp_path)
    assert found == []
    assert gap is not None
    assert reason in gap
    assert not stale.exists()


def test_nothing_chosen_is_nothing_drawn(network: nn.Module, tmp_path: Path) -> None:
    chosen = choose(table([]), NAMES)
    images = torch.empty((0, 3, 48, 48), dtype=torch.uint8)
    assert explain(trained_model(network), chosen, images, tmp_path) == ([], None)
    assert list(tmp_path.iterdir()) == []
