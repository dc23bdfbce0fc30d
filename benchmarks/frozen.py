"""A whole epoch, training and validation, in which only the head learns: ours against training all.

uv run python benchmarks/frozen.py [DATA_DIR [SHARE]]

The peer is the plain Lightning of end_to_end.py, which trains the same network as a whole at 224
px. Ours computes once what the frozen part makes of images that stay as they are: those of the
validation, and where nothing is augmented all of them. That comes before the first epoch, takes one
pass of the network over them, and counts in no ratio. All see the same images of DATA_DIR (or of
synthetic data), SHARE of them; our cache is built before.
"""

from __future__ import annotations

from end_to_end import (
    EPOCHS,
    be_quiet,
    count_images,
    in_a_process,
    in_turn,
    our_epochs,
    plain_epochs,
    prepare,
)
from measure import report, rows


def main() -> None:
    be_quiet()
    words, common = prepare()
    table = []
    for model in ("resnet", "efficientnet"):
        arguments = [*common, f"model={model}", "model.pretrained=false", "training.compile=false"]
        frozen = [*arguments, f"training.freeze_backbone_epochs={EPOCHS}"]
        images = in_a_process(count_images, arguments)  # builds the cache
        plain = f"{model}: plain Lightning, all of it learns"
        augmented = f"{model}: ours, only the head learns"
        kept = f"{augmented}, not augmented"
        cases = {
            plain: (plain_epochs, arguments),
            augmented: (our_epochs, frozen),
            kept: (our_epochs, [*frozen, "data.augment=false"]),
        }
        table += rows(in_turn(cases, images), {augmented: plain, kept: plain})
    command = f"uv run python benchmarks/frozen.py {words}".strip()
    report("frozen", table, command, unit="an image of an epoch")


if __name__ == "__main__":
    main()
