"""What `auto` stands for in precision, memory layout and compilation.

On a CPU it is what measured fastest (`benchmarks/train_step.py`), on a GPU what is known to be. The
choice depends on the network, the device and the length of the run, so that a repetition makes the
same.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from mlops_project.config import DEFAULT_IMAGE_SIZE, Config, TrainingConfig
from mlops_project.errors import InputError
from mlops_project.printable import first_line
from mlops_project.training.processes import placement
from mlops_project.training.progressive_resizing import side_in

log = logging.getLogger("mlops_project")

# Compiling a network takes minutes; it has to be made up for. In images of 224 × 224 pixels that a
# run trains on: on a CPU measured (docs/speed.md), on a GPU estimated.
WORTH_COMPILING = {"cpu": 50_000, "cuda": 2_000_000}
# Of a training that is to go on until something else ends it, these are enough to know.
COUNTED_EPOCHS = 10_000


def device_type(options: TrainingConfig) -> str:
    """ "cuda", "mps" or "cpu": where these settings train."""
    if options.accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return "cuda"
    if options.accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def choose_presets(config: Config, network: nn.Module, images: int) -> None:
    """Puts the fastest choice in the place of each `auto` of precision, channels_last and compile.

    Args:
        config: of the run; its training settings are changed.
        network: that is to be trained.
        images: in the training split.
    """
    options, device = config.training, device_type(config.training)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    depthwise = any(m.groups == m.in_channels > 1 for m in convolutions)
    chosen = []
    if options.precision == "auto":
        options.precision = "bf16" if _computes_bfloat16(device, depthwise) else "32"
        chosen.append(f"precision {options.precision}")
    if options.channels_last == "auto":
        options.channels_last = (
            bool(convolutions)
            and device != "mps"
            and options.strategy != "fsdp"  # see `combinations`
        )
        chosen.append(f"channels {'last' if options.channels_last else 'first'}")
    if options.compile == "auto":
        size = config.data.image_size or DEFAULT_IMAGE_SIZE
        # Smaller images of earlier epochs go through the network as it is.
        counted = range(min(options.max_epochs, COUNTED_EPOCHS))
        whole = sum(side_in(epoch, config) == size for epoch in counted)
        seen = images * whole * (size / 224) ** 2
        options.compile = (
            seen >= WORTH_COMPILING.get(device, float("inf"))
            # On a CPU the library's convolutions are as fast as they get; what is between those of
            # a depthwise network is not.
            and (device == "cuda" or depthwise)
            and _alone(options, device)  # with several processes it has not been tried
            and _compiles(device)
        )
        chosen.append("compiled" if options.compile else "not compiled")
    elif options.compile and _alone(options, device) and not _compiles(device):
        raise InputError(
            "training.compile=true: torch.compile does not work here (the log says why)\n"
            "On a CPU it needs a C++ compiler (such as g++) and Python's headers; "
            "training.compile=false does without (with training.allow_changes=true where a run "
            "goes on)."
        )
    if chosen:
        log.info("fastest here: %s", ", ".join(chosen))


def _alone(options: TrainingConfig, device: str) -> bool:
    """Whether one process trains, on one device."""
    one = device != "cuda" or torch.cuda.device_count() == 1
    devices = options.devices == 1 or (options.devices == "auto" and one)
    return devices and placement() in (None, (1, 1))


def _computes_bfloat16(device: str, depthwise: bool) -> bool:
    """Whether the device is faster with bfloat16 than with float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu" and not depthwise:  # there is no fast depthwise convolution of it
        known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    return False


def _compiles(device: str) -> bool:
    """Whether torch.compile works here: it needs a compiler, Python's headers, a recent GPU."""
    small = nn.Conv2d(3, 3, 3).to(device)
    try:
        torch.compile(small.forward)(torch.ones(1, 3, 8, 8, device=device)).sum().backward()
    except Exception as error:  # of the compiler, and of every tool that it calls
        log.info("torch.compile does not work here (%s)", first_line(error))
        return False
    return True
