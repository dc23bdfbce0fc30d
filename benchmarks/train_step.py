"""A training step: ours, with what `auto` chooses, against plain float32 with channels first.

uv run python benchmarks/train_step.py [baseline_cnn:64 baseline_cnn:224 resnet:224 …]

Also: a step in which only the head learns against one that trains everything; and float32 matrix
products of as many operations as a step has: about the least time that it could take on a CPU
without narrower numbers or transformed convolutions. Each case has a process of its own, since
ours sets up memory as `train.py` does; the processes take turns.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from measure import interleave, report, rows
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mlops_project import settings
from mlops_project.models.build import build_model, freeze, head
from mlops_project.training.allocator import keep_freed_memory
from mlops_project.training.optimizers import build_optimizer
from mlops_project.training.presets import choose_presets, device_type
from mlops_project.training.trainer import lightning_precision

BATCH, ROUNDS = 32, 7
PLAIN, OURS, COMPILED, HEAD = "plain", "ours", "ours, compiled", "ours, only the head learns"
PRODUCTS, SIDE = "matrix products of as many operations", 2048
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
    """Steps of one network, plain and in each of our forms, and the matrix products."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    against_plain = [OURS, COMPILED, HEAD]
    if name != "efficientnet":  # torch counts some of its grouped convolutions as if they were not
        against_plain.append(PRODUCTS)
    for case in (PLAIN, *against_plain):
        pipes[case], other = context.Pipe()
        processes.append(context.Process(target=serve, args=(other, name, size, case)))
        processes[-1].start()
    label = f"{name} {size} px"
    named = {case: f"{label}: {case} ({pipe.recv()})" for case, pipe in pipes.items()}

    def one(pipe: Connection) -> Callable[[], int]:
        def work() -> int:
            pipe.send(True)
            pipe.recv()
            return 1

        return work

    times = interleave({named[case]: one(pipe) for case, pipe in pipes.items()}, ROUNDS)
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    return rows(times, {named[case]: named[PLAIN] for case in against_plain})


def serve(pipe: Connection, name: str, size: int, case: str) -> None:
    """Takes a step of a case whenever asked; says first what it does."""
    logging.disable(logging.INFO)
    arguments = [f"model={name}", "model.pretrained=false", f"data.image_size={size}"]
    config = settings.load([*arguments, "training.compile=false"])
    options = config.training
    network = build_model(config.model, size).network.train()
    if case == PRODUCTS:
        multiply(pipe, operations(network, size), torch.device(device_type(options)))
        return
    choose_presets(config, network, images=7000)
    if case == PLAIN:
        options.precision, options.channels_last = "32", False
    elif device_type(options) == "cpu":
        keep_freed_memory()
    kind = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(
        lightning_precision(options)
    )
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    device = torch.device(device_type(options))
    network = network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    if case == HEAD:
        in_head = {id(p) for p in head(network).parameters()}
        freeze(network, [p for p in network.parameters() if id(p) not in in_head])
    run = torch.compile(network.forward) if case == COMPILED else network
    learning = [p for p in network.parameters() if p.requires_grad]
    groups: list[dict] = [{"params": learning, "lr": 1e-4, "weight_decay": 0.01}]
    plain = case == PLAIN
    optimizer = torch.optim.AdamW(groups) if plain else build_optimizer("adamw", groups)
    images = torch.randn(BATCH, 3, size, size).to(device=device, memory_format=layout)
    labels = torch.randint(0, 2, (BATCH,), device=device)
    pipe.send(f"{options.precision}, channels {'last' if options.channels_last else 'first'}")
    while pipe.recv():
        with torch.autocast(device.type, kind, enabled=kind is not None):
            loss = F.cross_entropy(run(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        pipe.send(None)


def operations(network: torch.nn.Module, size: int) -> int:
    """Floating-point operations of convolutions and matrix products in a step without optimizer."""
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(2, 3, size, size)).sum().backward()
    return counter.get_total_flops() * BATCH // 2


def multiply(pipe: Connection, wanted: int, device: torch.device) -> None:
    """Matrix products of that many operations whenever asked; says first what it does."""
    whole, rest = divmod(wanted, 2 * SIDE**3)
    matrix = torch.randn(SIDE, SIDE, device=device)
    part = matrix[: round(rest / (2 * SIDE**2))]
    pipe.send("32")
    while pipe.recv():
        for _ in range(whole):
            torch.mm(matrix, matrix)
        torch.mm(part, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize()
        pipe.send(None)


if __name__ == "__main__":
    main()
