"""Checkpoints and files of weights: damaged, lying, or made to execute something."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from safetensors.torch import save

from mlops_project.config import Config
from mlops_project.models.baseline_cnn import BaselineCNN
from mlops_project.models.weights import load_file
from mlops_project.settings import from_container, to_container
from mlops_project.training.checkpoints import ENTRY, AtomicCheckpointIO, load_checkpoint
from tests.fuzz.damage import Step, damage, some_steps

NETWORK = BaselineCNN(2, channels=(4, 8), classifier_hidden=6)


class Exploit:
    """Unpickling this creates a file where the process stands."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _checkpoint() -> dict[str, Any]:
    return {
        "epoch": 3,
        "state_dict": {f"network.{n}": t for n, t in NETWORK.state_dict().items()},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}],
        ENTRY: {"format": 1, "class_names": ["a", "b"], "config": to_container(Config())},
    }


# What takes the place of an entry, or of the whole.
WRONG: dict[str, Any] = {
    "none": None,
    "number": 3,
    "text": "x" * 3000,
    "list": [1, [2]],
    "nan": float("nan"),
    "huge number": 10**400,
    "tensor": torch.ones(2),
    "sparse": torch.eye(3).to_sparse(),
    "complex": torch.ones(2, dtype=torch.complex64),
    "meta": torch.empty(10**9, device="meta"),
    "large view": torch.zeros(1).expand(10**10),
    "empty": {},
    "keys": {1: torch.ones(1), None: 2, (1, 2): 3, "network.head.weight": torch.ones(2, 6)},
    "system": Exploit(os.system, "touch outside"),
    "touch": Exploit(Path.touch, Path("outside")),
    "eval": Exploit(eval, "open('outside', 'w')"),
    "loop": None,
}
WRONG["loop"] = [WRONG["empty"]]
OF_ENTRY = (f"{ENTRY}.format", f"{ENTRY}.config", f"{ENTRY}.config.data")
PLACES = ("", "state_dict", ENTRY, "epoch", *OF_ENTRY)
FORMS = (*["zip"] * 4, *["ours"] * 2, *["legacy"] * 2, "pickle")
REPACKED = ("bomb", "deflated", "doubled", "no data")
DTYPES = ("F32", "F64", "BF16", "I8", "F8_E4M3", "U64", "X", "", 3, None)


@cache
def file_of(form: str, place: str, wrong: str) -> bytes:
    """A checkpoint in the form "zip", "legacy", "pickle" or "ours", with something wrong inside."""
    content: Any = _checkpoint()
    if wrong:
        *path, last = place.split(".")
        target = content
        for name in path:
            target = target[name]
        if place:
            target[last] = WRONG[wrong]
        else:
            content = WRONG[wrong]
    file = io.BytesIO()
    if form == "ours":
        with tempfile.TemporaryDirectory() as folder:
            AtomicCheckpointIO().save_checkpoint(content, Path(folder) / "last.ckpt")
            return (Path(folder) / "last.ckpt").read_bytes()
    try:
        if form == "pickle":
            pickle.dump(content, file)
        else:
            torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    except (RuntimeError, NotImplementedError):
        torch.save(_checkpoint(), file)  # torch does not write it
    return file.getvalue()


@cache
def bomb(form: str) -> bytes:
    """A checkpoint whose members unpack to far more, occur twice or are missing."""
    whole, file = file_of("zip", "", ""), io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(whole)) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for info in old.infolist():
            content = old.read(info)
            if form == "bomb" and info.filename.endswith("data/0"):
                with new.open(info.filename, "w", force_zip64=True) as member:
                    for _ in range(26):
                        member.write(bytes(2**26))
                continue
            if form == "deflated":
                new.writestr(info.filename, content + bytes(2**26), zipfile.ZIP_DEFLATED)
            elif form != "no data" or "/data/" not in info.filename:
                new.writestr(info.filename, content, zipfile.ZIP_STORED)
                if form == "doubled":
                    new.writestr(info.filename, content[::-1], zipfile.ZIP_STORED)
    return file.getvalue()


class Input(NamedTuple):
    """A file's form, what is wrong with what it holds, and damage to its bytes."""

    form: str
    place: str
    wrong: str
    changes: list[Step]


inputs = st.builds(
    Input,
    st.sampled_from(FORMS + REPACKED),
    st.sampled_from(PLACES),
    st.sampled_from(("", "", *WRONG)),
    st.just([]) | some_steps,
)


def checkpoint_bytes(value: Input) -> bytes:
    if value.form in REPACKED:
        return damage(bomb(value.form), value.changes)
    return damage(file_of(value.form, value.place, value.wrong), value.changes)


def build(value: Input, folder: Path) -> None:
    (folder / "last.ckpt").write_bytes(checkpoint_bytes(value))


def use(value: Input, folder: Path) -> None:
    """Reads it as a checkpoint."""
    load_checkpoint(folder / "last.ckpt")


def header(draw: st.DrawFn) -> bytes:
    """A safetensors header that lies: https://huggingface.co/docs/safetensors, "Format"."""
    numbers = st.sampled_from((0, 1, -1, 4, 24, 96, 2**31, 2**63, 2**64, 10**30, 1.5, "x", None))
    shape = st.lists(numbers, max_size=3) | numbers
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(DTYPES),
            "shape": shape,
            "data_offsets": st.lists(numbers, max_size=3),
        }
    )
    names = st.sampled_from(("head.weight", "head.bias", "__metadata__", "", "\0", "x" * 300))
    entries = draw(st.dictionaries(names, entry | numbers, max_size=3))
    text = json.dumps(entries).encode()
    length = draw(st.sampled_from((len(text), len(text), len(text), 0, 8, 2**31, 2**63, 2**64 - 1)))
    return struct.pack("<Q", length) + text + bytes(draw(st.sampled_from((0, 4, 96, 1000))))


@st.composite
def weight_files(draw: st.DrawFn) -> tuple[str, bytes]:
    kind = draw(st.sampled_from(("safetensors", "header", "pth")))
    if kind == "pth":
        name = draw(st.sampled_from(("a.pth", "a.ckpt", "a.safetensors", "a.PTH", "a")))
        return name, checkpoint_bytes(draw(inputs))
    name = draw(st.sampled_from(("a.safetensors", "a.safetensors", "a.safetensors", "a.pth")))
    if kind == "header":
        return name, header(draw)
    return name, damage(save(dict(NETWORK.state_dict())), draw(some_steps))


def build_weights(value: tuple[str, bytes], folder: Path) -> None:
    (folder / value[0]).write_bytes(value[1])


def use_weights(value: tuple[str, bytes], folder: Path) -> None:
    """Loads it into a network."""
    load_file(BaselineCNN(2, channels=(4, 8), classifier_hidden=6), folder / value[0])


def use_settings(value: Input, folder: Path) -> None:
    """Reads it as a checkpoint, and the settings in it."""
    use(value, folder)
    from_container(load_checkpoint(folder / "last.ckpt")[ENTRY].get("config"))
