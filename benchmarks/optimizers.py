"""A step of the optimizer alone: ours against PyTorch's default for the same weights.

uv run python benchmarks/optimizers.py [resnet18 efficientnet_b0 …]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import timm
import torch
from measure import interleave, report, rows
from torch.optim import AdamW

from mlops_project.training.optimizers import build_optimizer, parameter_groups

NETWORKS = ("resnet18", "efficientnet_b0", "tf_efficientnetv2_b0")
STEPS, ROUNDS = 10, 7


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work: dict[str, Callable[[], int]] = {}
    against = {}
    for name in sys.argv[1:] or NETWORKS:
        plain, ours = f"{name}: PyTorch's AdamW", f"{name}: ours"
        against[ours] = plain
        work[plain] = steps(AdamW(groups_of(name, device)))
        work[ours] = steps(build_optimizer("adamw", groups_of(name, device)))
    words = " ".join(sys.argv[1:])
    command = f"uv run python benchmarks/optimizers.py {words}".strip()
    report("optimizers", rows(interleave(work, ROUNDS), against), command, unit="a step")


def groups_of(name: str, device: torch.device) -> list[dict]:
    """A network's weights, as a run groups them, with a gradient each."""
    network = timm.create_model(name, num_classes=7).to(device)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    return parameter_groups([list(network.parameters())], learning_rate=1e-4, weight_decay=0.01)


def steps(optimizer: torch.optim.Optimizer) -> Callable[[], int]:
    def work() -> int:
        for _ in range(STEPS):
            optimizer.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return STEPS

    return work


if __name__ == "__main__":
    main()
