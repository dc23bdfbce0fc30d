"""Weights to start from: a local file in any usual wrapping, or a hub on this machine."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from mlops_project.config import ArchitectureConfig, ModelConfig
from mlops_project.errors import InputError, ProjectError
from mlops_project.models.baseline_cnn import BaselineCNN
from mlops_project.models.build import build_model
from mlops_project.models.weights import load_file

Weights = dict[str, torch.Tensor]


def network(seed: int, classes: int = 2) -> BaselineCNN:
    torch.manual_seed(seed)
    return BaselineCNN(classes, channels=(4, 8), classifier_hidden=6)


def copy_of(model: torch.nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(ours: Weights, theirs: Weights) -> set[str]:
    """Names whose tensors are equal bit for bit."""
    return {n for n, t in ours.items() if n in theirs and torch.equal(t, theirs[n])}


def refusal(path: Path) -> str:
    """The message for a file that must be refused, and must leave the network as it was."""
    model = network(seed=1)
    before = copy_of(model)
    with pytest.raises(InputError) as caught:
        load_file(model, path)
    assert same(model.state_dict(), before) == set(before)
    message = str(caught.value)
    assert str(path) in message
    assert 1 <= len(message.splitlines()) <= 3
    return message


@pytest.mark.parametrize("prefix", ["", "module.", "network.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("wrapping", ["", "state_dict", "model_state_dict", "model", "model_ema"])
def test_the_usual_wrappings_and_prefixes_are_taken_off(
    prefix: str, wrapping: str, tmp_path: Path
) -> None:
    source, target = network(seed=1), network(seed=2)
    weights: Any = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    torch.save({wrapping: weights, "epoch": 3} if wrapping else weights, tmp_path / "a.pth")

    said = load_file(target, tmp_path / "a.pth")

    assert same(target.state_dict(), source.state_dict()) == set(source.state_dict())
    assert "a.pth" in said


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.ckpt"])
def test_the_file_s_kind_does_not_matter(name: str, tmp_path: Path) -> None:
    source, target = network(seed=1), network(seed=2)
    (save_file if name.endswith("safetensors") else torch.save)(copy_of(source), tmp_path / name)

    load_file(target, tmp_path / name)

    assert same(target.state_dict(), source.state_dict()) == set(source.state_dict())


def test_a_head_for_other_classes_keeps_its_random_start_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = network(seed=1, classes=7), network(seed=2, classes=2)
    random_head = target.head.weight.clone()
    torch.save(source.state_dict(), tmp_path / "seven.pth")

    with caplog.at_level(logging.INFO, logger="mlops_project"):
        load_file(target, tmp_path / "seven.pth")

    heads = {"head.weight", "head.bias"}
    assert same(target.state_dict(), source.state_dict()) == set(source.state_dict()) - heads
    assert torch.equal(target.head.weight, random_head)
    assert "other shape, start at random: head.weight, head.bias" in caplog.text


def test_weights_that_lack_or_add_layers_load_as_far_as_they_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = network(seed=1), network(seed=2)
    weights = copy_of(source)
    del weights["hidden.0.weight"]
    torch.save({**weights, "extra.weight": torch.ones(3)}, tmp_path / "other.pth")

    with caplog.at_level(logging.INFO, logger="mlops_project"):
        load_file(target, tmp_path / "other.pth")

    assert same(target.state_dict(), source.state_dict()) == set(weights)
    assert "not in the file, start at random: hidden.0.weight" in caplog.text
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]
    assert "in the file, but not in the network: extra.weight" in caplog.text


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({f"layer{i}.weight": torch.ones(2, 2) for i in range(20)}, tmp_path / "other.pth")
    message = refusal(tmp_path / "other.pth")
    assert "another network" in message
    assert "layer0.weight" in message


def test_a_network_of_other_shapes_is_refused_however_much_fits(tmp_path: Path) -> None:
    wider = BaselineCNN(7, channels=(4, 8), classifier_hidden=12)
    torch.save(wider.state_dict(), tmp_path / "wider.pth")
    message = refusal(tmp_path / "wider.pth")
    assert "2 of 10 have another shape (hidden.0.weight: [12, 8], in the network [6, 8])" in message


def test_weights_for_images_of_another_size_are_resized_as_timm_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = timm.create_model("test_vit", num_classes=7, img_size=160)
    torch.save(source.state_dict(), tmp_path / "larger.pth")
    settings = ModelConfig("timm", 2, "test_vit", pretrained_path=str(tmp_path / "larger.pth"))

    with caplog.at_level(logging.INFO, logger="mlops_project"):
        ours = build_model(settings, 128).network.state_dict()

    theirs = timm.create_model(
        "test_vit",
        pretrained=True,
        num_classes=2,
        img_size=128,
        pretrained_cfg_overlay={"state_dict": source.state_dict(), "num_classes": 7},
    ).state_dict()
    heads = {"head.weight", "head.bias"}
    assert ours["pos_embed"].shape != source.state_dict()["pos_embed"].shape
    assert same(ours, theirs) - heads == set(theirs) - heads
    assert "other shape, start at random: head.weight, head.bias" in caplog.text
    assert all(record.levelno < logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("content", [{}, [], 3, {"state_dict": {}}, {"state_dict": [1]}])
def test_a_file_without_weights_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "empty.pth")
    refusal(tmp_path / "empty.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_damaged_file_is_refused_wherever_it_ends(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(copy_of(network(1)), path)
    whole = path.read_bytes()
    ends = {0, 1, 7, 100, *range(1000, len(whole), 397), len(whole) - 1}
    for content in (*(whole[:end] for end in ends), b"<title>Sign in</title>"):
        path.write_bytes(content)
        assert "damaged" in refusal(path)


def test_a_file_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save(copy_of(network(1)), path)
    with zipfile.ZipFile(path) as whole:
        members = {info.filename: whole.read(info) for info in whole.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in members.items():
            bomb.writestr(name, content + bytes(2**20) * ("/data/" in name))
    assert "unpack to more than its size" in refusal(path)


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "gone.pth")
    assert "no such file" in refusal(tmp_path)


class Exploit:
    """Unpickling this creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_a_file_that_would_execute_something_is_refused_unexecuted(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    content = {"state_dict": {**copy_of(network(1)), "head.bias": Exploit(marker)}}
    torch.save(content, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"state_dict": Exploit(marker)}))
    (tmp_path / "posing.safetensors").write_bytes((tmp_path / "plain.pth").read_bytes())

    for name in ("zip.pth", "plain.pth", "posing.safetensors"):
        assert "refused for safety" in refusal(tmp_path / name)
        assert not marker.exists()
    torch.load(tmp_path / "zip.pth", weights_only=False)
    assert marker.exists()  # so the file was as bad as it claims


@pytest.mark.parametrize("load_weights", [True, False])
def test_init_from_fills_a_network_unless_a_checkpoint_will(
    load_weights: bool, tmp_path: Path
) -> None:
    source = network(seed=1)
    weights = {f"network.{name}": tensor for name, tensor in copy_of(source).items()}
    torch.save({"state_dict": weights}, tmp_path / "a")
    settings = ModelConfig(
        init_from=str(tmp_path / "a"), architecture=ArchitectureConfig(2, [4, 8], 6)
    )

    torch.manual_seed(5)
    built = build_model(settings, 16, load_weights=load_weights)

    loaded = torch.equal(built.network.state_dict()["head.weight"], source.head.weight)
    assert loaded == load_weights
    assert built.weights.startswith("a (") == load_weights


# A hub that is away at first and then answers, as huggingface_hub's library asks it. The library
# reads HF_ENDPOINT and HF_HOME when it is imported, so a process of its own plays the user.

USER = """
import json, logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
import timm, torch
from safetensors.torch import save_file
from mlops_project.config import ModelConfig
from mlops_project.errors import ProjectError
from mlops_project.models.build import build_model

def build(pretrained, variant="18", name="resnet"):
    try:
        torch.manual_seed(3)
        return build_model(ModelConfig(name, 2, variant, pretrained=pretrained), 64)
    except ProjectError as error:
        return error

def tell(**facts):
    print("FACTS " + json.dumps(facts), flush=True)

published = timm.create_model("resnet18", num_classes=1000).state_dict()
save_file(published, sys.argv[1])
away, random = build("auto"), build(False)
start = random.network.state_dict()
insisted = build(True)
tell(
    auto=away.weights,
    auto_is_random=all(torch.equal(t, start[n]) for n, t in away.network.state_dict().items()),
    true=str(insisted),
    true_code=insisted.exit_code,
)
input()
there = build(True)
ours = there.network.state_dict()
again = build("auto").network.state_dict()
tell(
    true=there.weights,
    differ=[n for n, t in ours.items() if not torch.equal(t, published[n])],
    auto_differs=[n for n, t in again.items() if not torch.equal(t, ours[n])],
    unpublished=str(build(True, "34")),
    auto_unpublished=build("auto", "34").weights,
    renamed=str(build(True, "tf_efficientnet_b0_ns", "timm")),
)
"""


class Hub(SimpleHTTPRequestHandler):
    """The part of the Hugging Face hub's interface that serves one file of one repository."""

    def translate_path(self, path: str) -> str:
        wanted = re.fullmatch(r"/timm/resnet18\.a1_in1k/resolve/[^/]+/(model\.safetensors)", path)
        return str(Path(self.directory) / (wanted[1] if wanted else "absent"))

    def end_headers(self) -> None:
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", '"of-the-only-file"')
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_imagenet_weights_come_from_the_hub_or_the_user_is_told(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()

    def handler(*arguments: Any) -> Hub:
        return Hub(*arguments, directory=str(tmp_path / "served"))

    hub = ThreadingHTTPServer(("127.0.0.1", 0), handler, bind_and_activate=False)
    hub.server_bind()  # the port is ours, but nobody answers yet
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
    environment["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_port}"
    user = subprocess.Popen(
        [sys.executable, "-c", USER, str(tmp_path / "served" / "model.safetensors")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert user.stdin is not None
    assert user.stdout is not None
    said = []
    with user, hub:
        for line in user.stdout:
            said.append(line)
            if line.startswith("FACTS"):
                break
        hub.server_activate()
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        out, errors = user.communicate("\n", timeout=100)
        hub.shutdown()
    assert user.returncode == 0, errors
    away, there = (json.loads(s[6:]) for s in [*said, *out.splitlines()] if s.startswith("FACTS"))

    # Nobody answers: auto says loudly that it starts at random, true fails with what to do.
    assert "NO PRETRAINED WEIGHTS: resnet18 starts at random" in said[0]
    assert "could not be fetched" in away["auto"]
    assert away["auto_is_random"]
    assert away["true_code"] == ProjectError.exit_code
    assert "model.pretrained_path=FILE" in away["true"]
    assert len(away["true"].splitlines()) <= 3
    assert "Retrying" not in errors  # minutes of attempts help nobody who is not connected

    # The hub answers: exactly its weights, but for the head of 1000 classes.
    assert there["true"] == "ImageNet (timm/resnet18.a1_in1k)"
    assert there["differ"] == ["fc.weight", "fc.bias"]
    assert set(there["auto_differs"]) <= {"fc.weight", "fc.bias"}

    # The hub answers, but has no such weights.
    assert "model.pretrained=true: the ImageNet weights of resnet34" in there["unpublished"]
    assert "could not be fetched" in there["auto_unpublished"]

    # Nor has it any under a name that timm has replaced: it is asked for those of the present one.
    assert "timm/tf_efficientnet_b0.ns_jft_in1k/" in there["renamed"]
