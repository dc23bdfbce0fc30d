"""A training step: ours, with what `auto` chooses, against plain float32 with channels first.

uv run python benchmarks/train_step.py [baseline_cnn:64 baseline_cnn:224 resnet:224 …]

Also: a step in which only the head learns against one that trains everything.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable

import torch
from measure import interleave, report, rows
from torch.nn import functional as F

from mlops_project import settings
from mlops_project.models.build import build_model, freeze, head
from mlops_project.training.presets import choose_presets, device_type
from mlops_project.training.trainer import lightning_precision

BATCH = 32
CASES = ("baseline_cnn:64", "baseline_cnn:224", "resnet:224", "efficientnet:224")


def main() -> None:
    logging.disable(logging.INFO)
    table = []
    for case in sys.argv[1:] or CASES:
        name, size = case.split(":")
        table += steps(name, int(size))
    words = " ".join(sys.argv[1:])
    report("train_step", table, f"uv run python benchmarks/train_step.py {words}".strip())


def steps(name: str, size: int) -> list[dict]:
    """Steps of one network: plain, ours, ours compiled, and ours with a frozen backbone."""
    arguments = [f"model={name}", "model.pretrained=false", f"data.image_size={size}"]
    config = settings.load([*arguments, "training.compile=false"])
    plain = build_model(config.model, size).network
    choose_presets(config, plain, images=7000)
    kind = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(
        lightning_precision(config.training)
    )
    layout = torch.channels_last if config.training.channels_last else torch.contiguous_format
    device = torch.device(device_type(config.training))
    images = torch.randn(BATCH, 3, size, size, device=device)
    labels = torch.randint(0, 2, (BATCH,), device=device)

    def step(
        network: torch.nn.Module, run: Callable, batch: torch.Tensor, kind: torch.dtype | None
    ) -> Callable[[], int]:
        learned = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, 1e-4)

        def work() -> int:
            with torch.autocast(device.type, kind, enabled=kind is not None):
                loss = F.cross_entropy(run(batch).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return 1

        return work

    def network(memory_format: torch.memory_format) -> torch.nn.Module:
        return copy.deepcopy(plain).to(device).train().to(memory_format=memory_format)

    ours, compiled, frozen = network(layout), network(layout), network(layout)
    in_head = {id(p) for p in head(frozen).parameters()}
    freeze(frozen, [p for p in frozen.parameters() if id(p) not in in_head])
    same = images.to(memory_format=layout)
    first = network(torch.contiguous_format)
    label = f"{name} {size} px"
    order = "last" if layout == torch.channels_last else "first"
    chosen = f"{config.training.precision}, channels {order}"
    cases = {
        f"{label}: plain float32": step(first, first, images, None),
        f"{label}: ours ({chosen})": step(ours, ours, same, kind),
        f"{label}: ours, compiled": step(compiled, torch.compile(compiled.forward), same, kind),
        f"{label}: ours, only the head learns": step(frozen, frozen, same, kind),
    }
    base = f"{label}: plain float32"
    return rows(interleave(cases, 7), {case: base for case in cases if case != base})


if __name__ == "__main__":
    main()
