"""Checkpoints: what is written comes back, and nothing else is taken for one."""

from __future__ import annotations

import os
import pickle
import re
import resource
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st

from mlops_project.config import Config
from mlops_project.errors import InputError
from mlops_project.models.baseline_cnn import BaselineCNN
from mlops_project.settings import from_container, to_container
from mlops_project.training.checkpoints import (
    ENTRY,
    FORMAT,
    AtomicCheckpointIO,
    load_checkpoint,
    newest_good,
)


def checkpoint() -> dict[str, Any]:
    """As Lightning makes them, in small."""
    torch.manual_seed(0)
    network = BaselineCNN(2, channels=(8, 8))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "state_dict": network.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "callbacks": {"table": {"rows": [{"epoch": 0, "val_loss": float("inf")}], "on": True}},
        "half": torch.arange(4, dtype=torch.bfloat16),
        "none": None,
        ENTRY: {"format": FORMAT, "class_names": ["a", "b"], "config": to_container(Config())},
    }


WHOLE = checkpoint()


def save(content: Any, path: Path) -> Path:
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert 1 <= len(message.splitlines()) <= 3
    return message


def equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return type(ours) is type(theirs) and ours == theirs


# What is written


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = save(WHOLE, tmp_path / "checkpoints" / "epoch=000-val_loss=0.693.ckpt")

    assert equal(load_checkpoint(path), WHOLE)
    assert equal(AtomicCheckpointIO().load_checkpoint(path), WHOLE)
    assert from_container(load_checkpoint(path)[ENTRY]["config"]) == Config()
    assert list(path.parent.iterdir()) == [path]


def test_a_network_continues_from_its_checkpoint(tmp_path: Path) -> None:
    path = save(WHOLE, tmp_path / "last.ckpt")
    network = BaselineCNN(2, channels=(8, 8)).eval()
    network.load_state_dict(load_checkpoint(path)["state_dict"])
    twin = BaselineCNN(2, channels=(8, 8)).eval()
    twin.load_state_dict(WHOLE["state_dict"])
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(network(images), twin(images))


def test_a_newer_checkpoint_replaces_the_older_one_and_can_be_removed(tmp_path: Path) -> None:
    path = save(WHOLE, tmp_path / "last.ckpt")
    save({**WHOLE, "epoch": 4}, path)
    assert load_checkpoint(path)["epoch"] == 4

    AtomicCheckpointIO().remove_checkpoint(path)
    AtomicCheckpointIO().remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_told_as_such_and_leaves_the_older_checkpoint(
    tmp_path: Path,
) -> None:
    path = save(WHOLE, tmp_path / "last.ckpt")
    # A limit on the size of files is a full disk that does no harm to others.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save({**WHOLE, "big": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert equal(load_checkpoint(path), WHOLE)
    assert list(tmp_path.iterdir()) == [path]


# What is refused


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(WHOLE, tmp_path_factory.mktemp("whole") / "last.ckpt")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "last.ckpt"


@settings_of(deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_checkpoint_that_ends_too_early_is_refused(
    share: float, whole: Path, damaged: Path
) -> None:
    content = whole.read_bytes()
    damaged.write_bytes(content[: int(share * len(content))])
    assert "not a readable checkpoint" in refusal(damaged)


def test_a_damaged_checkpoint_of_pytorch_s_older_format_is_refused(damaged: Path) -> None:
    torch.save(WHOLE, damaged, _use_new_zipfile_serialization=False)
    content = damaged.read_bytes()
    key = re.findall(rb"\d{9,}", content)[-1]  # the last of the tensors' names
    for damage in (content[:-1], content[: len(content) // 2], content.replace(key, key[::-1], 1)):
        damaged.write_bytes(damage)
        assert "not a readable checkpoint" in refusal(damaged)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings_of(deadline=None)
@given(content=st.binary(max_size=80) | st.binary(max_size=80).map(lambda b: b"\x80\x02" + b))
def test_garbage_is_refused(content: bytes, damaged: Path) -> None:
    damaged.write_bytes(content)
    refusal(damaged)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x02\x8b\x01", b"<html>", bytes(9999)]
)
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(content)
    assert "not a readable checkpoint" in refusal(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    "content",
    [
        WHOLE["state_dict"],
        {"state_dict": WHOLE["state_dict"], "pytorch-lightning_version": "2.5"},
        {ENTRY: WHOLE[ENTRY]},
        {"state_dict": WHOLE["state_dict"], ENTRY: "1.0"},
        torch.ones(3),
        [1, 2],
        OrderedDict(),
    ],
    ids=["weights", "lightning", "no weights", "no entry", "tensor", "list", "empty"],
)
def test_a_file_of_pytorch_from_elsewhere_is_refused_with_where_it_may_go(
    content: object, tmp_path: Path
) -> None:
    path = tmp_path / "elsewhere.ckpt"
    torch.save(content, path)
    assert "model.pretrained_path" in refusal(path)


def test_a_newer_format_asks_for_an_update(tmp_path: Path) -> None:
    newer = {**WHOLE, ENTRY: {**WHOLE[ENTRY], "format": FORMAT + 1}}
    message = refusal(save(newer, tmp_path / "last.ckpt"))
    assert f"format {FORMAT + 1}" in message
    assert "update" in message


class Exploit:
    """Unpickling this creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_a_checkpoint_that_would_execute_something_is_refused_unexecuted(tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "last.ckpt"
    bad = {**WHOLE, "callbacks": Exploit(marker)}
    torch.save(bad, path)
    as_zip = path.read_bytes()
    torch.save(bad, path, _use_new_zipfile_serialization=False)
    as_stream = path.read_bytes()
    for content in (as_zip, as_stream, pickle.dumps(bad["callbacks"])):
        path.write_bytes(content)
        assert "refused for safety" in refusal(path)
        assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()  # so the file was as bad as it claims


def test_a_checkpoint_that_cannot_be_used_names_the_newest_good_one(tmp_path: Path) -> None:
    for age, name in enumerate(["c", "b", "a", "last"]):
        save(WHOLE, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (age, age))
    (tmp_path / "last.ckpt").write_bytes(b"")
    (tmp_path / "a.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:-1])

    for name in ("last.ckpt", "a.ckpt", "missing.ckpt"):
        assert refusal(tmp_path / name).endswith(f"beside it: {tmp_path / 'b.ckpt'}")
    assert "beside it" not in refusal(tmp_path / "elsewhere" / "e.ckpt")
    assert "a folder" in refusal(tmp_path)


@settings_of(deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_single_wrong_bit_is_found(at: float, bit: int, whole: Path, damaged: Path) -> None:
    content = bytearray(whole.read_bytes())
    content[int(at * len(content))] ^= 1 << bit
    damaged.write_bytes(content)
    assert "damaged" in refusal(damaged)


@pytest.mark.parametrize("byte", [1, 2])
def test_nor_is_one_missed_in_the_length_of_the_checksum(
    byte: int, whole: Path, damaged: Path
) -> None:
    content = bytearray(whole.read_bytes())
    place = content.rindex(b"mlops_project sha256 ") - byte  # the archive's end is just before it
    content[place] ^= 1
    damaged.write_bytes(content)
    assert "damaged" in refusal(damaged)


def test_what_the_last_checkpoint_was_is_kept_beside_the_run_s_files(tmp_path: Path) -> None:
    for epoch in range(3):
        save({**WHOLE, "epoch": epoch}, tmp_path / "checkpoints" / "last.ckpt")
    assert load_checkpoint(tmp_path / "previous.ckpt")["epoch"] == 1
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert newest_good(tmp_path) == tmp_path / "previous.ckpt"
    assert str(tmp_path / "previous.ckpt") in refusal(tmp_path / "checkpoints" / "last.ckpt")


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    assert "unpack to more" in refusal(path)


def test_a_checkpoint_of_the_first_format_has_no_checksum_and_is_read(tmp_path: Path) -> None:
    older = {**WHOLE, ENTRY: {**WHOLE[ENTRY], "format": 1}}
    torch.save(older, tmp_path / "older.ckpt")
    assert equal(load_checkpoint(tmp_path / "older.ckpt"), older)
    torch.save(WHOLE, tmp_path / "newer.ckpt")
    assert "checksum is missing" in refusal(tmp_path / "newer.ckpt")
