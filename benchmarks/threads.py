"""Training steps of a network of many small layers, by how long threads wait awake.

uv run python benchmarks/threads.py

Each case is a process alone on the machine, then two at once, as two trainings would be.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from measure import report

from mlops_project.threads import LOOKS, LOOKS_ALONE

CASES = ("0", str(LOOKS), "10000", str(LOOKS_ALONE))
ROUNDS = 1
STEPS = """
import time, timm, torch
from mlops_project.training.allocator import keep_freed_memory
keep_freed_memory()
last = torch.channels_last
network = timm.create_model("tf_efficientnetv2_b0", num_classes=7).to(memory_format=last).train()
optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
images = torch.randn(32, 3, 128, 128).to(memory_format=last)
done, began = 0, 0.0
while done < 3 or time.perf_counter() - began < 8:
    if done == 2:
        began = time.perf_counter()
    network(images).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    done += 1
print((done - 2) * 32 / (time.perf_counter() - began))
"""


def rates(looks: str, processes: int) -> list[float]:
    """Images/s of each of so many processes at once."""
    environment = os.environ | {"GOMP_SPINCOUNT": looks}
    environment.pop("OMP_WAIT_POLICY", None)
    words = [sys.executable, "-c", STEPS]
    started = [
        subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    return [float(process.communicate()[0]) for process in started]


def main() -> None:
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for looks in CASES:
            for processes in (1, 2):
                found.setdefault((looks, processes), []).extend(rates(looks, processes))
    table = [
        {
            "case": f"{looks} looks, {'alone' if processes == 1 else 'each of two at once'}",
            "images_per_s": round(statistics.median(values), 1),
            "from": round(min(values), 1),
            "to": round(max(values), 1),
        }
        for (looks, processes), values in found.items()
    ]
    report("threads", table, "uv run python benchmarks/threads.py", unit="a second")


if __name__ == "__main__":
    main()
