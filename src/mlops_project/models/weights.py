"""Weights to start from: ImageNet's from the hub, or a file. Nothing in a file is executed."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import struct
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from mlops_project.errors import InputError, ProjectError
from mlops_project.printable import first_line, listed, printable

log = logging.getLogger("mlops_project")

HUB_SECONDS = 5.0  # what the hub may take to answer before model.pretrained=auto goes on without
_WRAPPINGS = ("state_dict", "model_state_dict", "model_ema", "state_dict_ema", "model", "network")
_PREFIXES = ("module.", "_orig_mod.", "network.", "model.", "backbone.")


def hub_has(repository: str, filename: str | None) -> str | None:
    """Why a network's weights cannot be had from the hub at once; None if they can.

    They can if they are in the cache, or the hub answers for them within 5 seconds.

    Args:
        repository: on the hub.
        filename: in it; None: model.safetensors.
    """
    import requests
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    name = filename or "model.safetensors"
    if isinstance(try_to_load_from_cache(repository, name), str):
        return None
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set and they are not in the cache"
    url = hf_hub_url(repository, name)
    try:
        # A third of the time for the connection, since a name may have several addresses.
        answer = requests.head(
            url, timeout=(HUB_SECONDS / 3, HUB_SECONDS / 2), allow_redirects=False
        )
    except requests.RequestException:
        return f"{constants.ENDPOINT} cannot be reached"
    return None if answer.status_code < 400 else f"{url} answers {answer.status_code}"


def load_file(network: nn.Module, path: str | os.PathLike[str]) -> str:
    """Loads weights from a file into a network, by name.

    The usual wrappings (state_dict, model …) and prefixes (module., network. …) are taken off. What
    timm adapts when it loads its own weights is adapted, such as a ViT's positions to the size of
    the images. A head for other classes keeps its random start.

    Args:
        network: whose weights to set.
        path: .safetensors, or a file of torch.save with tensors and plain containers.

    Returns:
        What was loaded, in words.

    Raises:
        InputError: no such file, not readable, or its names or shapes are another network's.
    """
    path = Path(path)
    own = network.state_dict()
    learned = {n for n, _ in network.named_parameters()}
    weights = _without_prefix(_unwrap(_read(path)), own)
    adapted = _adapted(weights, network)
    if len(_fitting(adapted, own) & learned) > len(_fitting(weights, own) & learned):
        weights = adapted
        log.info("%s: adapted to the network as timm does", path.name)
    fitting = _fitting(weights, own)
    other_shape = [n for n in weights if n in own and n not in fitting]
    # What has a row for each class is the head's.
    classes = (getattr(network, "num_classes", None),)
    backbone = {n for n in learned if own[n].shape[:1] != classes}
    if wrong := [n for n in other_shape if n in backbone]:
        theirs, ours = (list(w[wrong[0]].shape) for w in (weights, own))
        raise InputError(
            f"{path}: weights of another network, or for images of another size: {len(wrong)} of "
            f"{len(learned)} have another shape ({wrong[0]}: {theirs}, in the network {ours})\n"
            "Choose the model and data.image_size that the file was made for, or another file."
        )
    if len(learned & fitting) < max(1, len(learned) // 10):
        first = next(iter(weights), "nothing")
        raise InputError(
            f"{path}: weights of another network: {len(learned & fitting)} of {len(learned)} fit "
            f"(it holds '{printable(first)}', the network has {next(iter(own))!r})"
        )
    network.load_state_dict({n: weights[n] for n in fitting}, strict=False)
    lacking = [n for n in own if n not in weights and not n.endswith("num_batches_tracked")]
    for text, names in (
        ("other shape, start at random", other_shape),
        ("not in the file, start at random", lacking),
        ("in the file, but not in the network", [n for n in weights if n not in own]),
    ):
        if names:
            level = logging.INFO if backbone.isdisjoint(names) else logging.WARNING
            log.log(level, "%s: %s: %s", path.name, text, listed(names, 4))
    return f"{path.name} ({len(fitting)} of {len(own)} tensors)"


def _adapted(weights: dict[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """What timm makes of published weights before it loads them into this network."""
    adapt = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if adapt is None:
        return weights
    try:
        return dict(adapt(dict(weights), network))
    except Exception:  # of weights that are not this network's it makes what it likes
        return weights


def _fitting(weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> set[str]:
    return {n for n, w in weights.items() if n in own and own[n].shape == w.shape}


def _read(path: Path) -> object:
    if not path.is_file():
        raise InputError(f"{path}: no such file with weights")
    if path.suffix != ".safetensors":
        return read_tensors(path, "file of weights")
    from safetensors import SafetensorError
    from safetensors.torch import load_file as load_safetensors

    try:
        return load_safetensors(path)
    except SafetensorError as error:
        raise _unreadable(path, "file of weights", error) from error
    except OSError as error:
        raise ProjectError(f"{path}: cannot be read ({first_line(error)})") from error


def read_tensors(path: Path, what: str) -> object:
    """What `torch.save` wrote, on the CPU: tensors and plain containers, nothing executed.

    Args:
        path: an existing file; `what` it is called in messages.

    Raises:
        InputError: damaged, or with contents that are refused for safety.
        ProjectError: the disk cannot read it.
    """
    _refuse_bomb(path, what)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        # torch asks for bytes before the start of a file that has been cut short.
        if error.errno not in (None, errno.EINVAL):
            raise ProjectError(f"{path}: cannot be read ({first_line(error)})") from error
        raise _unreadable(path, what, error) from error
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        struct.error,
        AssertionError,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise _unreadable(path, what, error) from error


def _refuse_bomb(path: Path, what: str) -> None:
    """Nothing that torch.save writes is compressed, so what unpacks to more is a bomb."""
    # torch itself says what is wrong with a damaged archive.
    with (
        suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError),
        zipfile.ZipFile(path) as archive,
    ):
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise InputError(
                f"{path}: not a readable {what}: it would unpack to more than its size"
            )


def _unreadable(path: Path, what: str, error: Exception) -> InputError:
    return InputError(
        f"{path}: not a readable {what}: damaged, or with contents that are refused for safety "
        f"({first_line(error)})"
    )


def _unwrap(content: object) -> dict[str, torch.Tensor]:
    for _ in range(3):
        if isinstance(content, dict):
            inner = next((content[n] for n in _WRAPPINGS if isinstance(content.get(n), dict)), None)
            if inner is None:
                break
            content = inner
    if not isinstance(content, dict):
        return {}
    return {str(n): w for n, w in content.items() if isinstance(w, torch.Tensor)}


def _without_prefix(
    weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Takes prefixes off as long as more names match without."""

    def matches(names: dict[str, torch.Tensor]) -> int:
        return len(names.keys() & own.keys())

    for _ in range(3):
        shorter = (
            {n.removeprefix(prefix): w for n, w in weights.items()}
            for prefix in _PREFIXES
            if any(n.startswith(prefix) for n in weights)
        )
        best = max(shorter, key=matches, default=weights)
        if matches(best) < matches(weights) or best is weights:
            break
        weights = best
    return weights
