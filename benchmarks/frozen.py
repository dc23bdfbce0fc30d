"""A whole epoch, training and validation, in which only the head learns: ours against training all.

uv run python benchmarks/frozen.py [DATA_DIR [SHARE]]

The peer is the plain Lightning of end_to_end.py, which trains the same network as a whole. Ours
augments as by default, or does not, and then computes the features of the images once. All see the
same images of DATA_DIR (or of synthetic data), SHARE of them; our cache is built before.
"""

from __future__ import annotations

import numpy as np
from end_to_end import (
    EPOCHS,
    ROUNDS,
    be_quiet,
    count_images,
    in_a_process,
    our_epochs,
    plain_epochs,
    words_and_settings,
)
from measure import report, rows


def main() -> None:
    be_quiet()
    words, common = words_and_settings()
    table = []
    for model in ("resnet", "efficientnet"):
        arguments = [*common, f"model={model}", "model.pretrained=false", "training.compile=false"]
        frozen = [*arguments, f"training.freeze_backbone_epochs={EPOCHS}"]
        images = in_a_process(count_images, arguments)  # builds the cache
        plain, augmented, kept = (
            f"{model}: {what}"
            for what in (
                "plain Lightning, all of it learns",
                "ours, only the head learns",
                "ours, only the head learns, not augmented",
            )
        )
        cases = {
            plain: (plain_epochs, arguments),
            augmented: (our_epochs, frozen),
            kept: (our_epochs, [*frozen, "data.augment=false"]),
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(ROUNDS):
            for name, (epochs, given) in cases.items():
                seconds = in_a_process(epochs, given)
                times[name].append(float(np.median(seconds)) / images * 1e6)
        table += rows(times, {augmented: plain, kept: plain})
    command = f"uv run python benchmarks/frozen.py {words}".strip()
    report("frozen", table, command, unit="an image of an epoch")


if __name__ == "__main__":
    main()
