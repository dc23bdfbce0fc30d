"""The commands of docs/training.md run as they are written there, and none of the guide's is lost.

Bash itself splits each block into commands; each one then trains for a few steps on small
synthetic images, with what is too large for a test overridden at its end. Commands that are the
same but for that are trained once.
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from mlops_project import setting_keys, settings
from mlops_project.training.changed_settings import BATCHES, LOSS
from mlops_project.training.run import train

ROOT = Path(__file__).resolve().parents[2]

# Every training command of the users' guide, as bash hands it over.
GUIDE = """
model=baseline_cnn
model=resnet
model=efficientnet
model=baseline_cnn data.subsample_percentage=0.01 training.max_epochs=2 data.batch_size=8
model=efficientnet model.variant=b3 training.max_epochs=50 training.learning_rate=0.0001 \\
    data.batch_size=16 data.image_size=300 wandb.enabled=true
model=efficientnet model.variant=b0 data.image_size=224
model=efficientnet model.variant=b1 data.image_size=240
model=efficientnet model.variant=b2 data.image_size=260
model=efficientnet model.variant=b3 data.image_size=300
model=efficientnet model.variant=b4 data.image_size=380
training.learning_rate=0.001 training.lr_scheduler=cosine training.weight_decay=0.01 \\
    training.optimizer=adamw
data.batch_size=32 training.accumulate_grad_batches=2 data.num_workers=4
training.early_stopping_patience=10 training.monitor_metric=val_loss training.save_top_k=3
data.augment=true data.horizontal_flip=0.5 data.vertical_flip=0.2 data.rotation_degrees=15 \\
    data.color_jitter=0.3
data.subsample_percentage=0.1 data.stratified_sampling=true
training.learning_rate=0.1 wandb.tags=[lr-search] wandb.name=lr_0.1
training.learning_rate=0.01 wandb.tags=[lr-search] wandb.name=lr_0.01
training.learning_rate=0.001 wandb.tags=[lr-search] wandb.name=lr_0.001
training.learning_rate=0.0001 wandb.tags=[lr-search] wandb.name=lr_0.0001
data.batch_size=16 wandb.tags=[batch-search] wandb.name=batch_16
data.batch_size=32 wandb.tags=[batch-search] wandb.name=batch_32
data.batch_size=64 wandb.tags=[batch-search] wandb.name=batch_64
model=baseline_cnn data.subsample_percentage=0.1 training.max_epochs=10
model=resnet data.subsample_percentage=0.5 training.max_epochs=25
model=efficientnet model.variant=b3 training.max_epochs=50 wandb.enabled=true
model=efficientnet model.pretrained=true training.learning_rate=0.0001 \\
    training.freeze_backbone_epochs=5 training.unfreeze_lr_factor=0.1
model=efficientnet model.variant=b2 training.progressive_unfreezing=true \\
    training.unfreeze_schedule=[5,10,15]
training.precision=16 training.amp_backend=native
training.accelerator=gpu training.devices=2 training.strategy=ddp
data.batch_size=16 training.accumulate_grad_batches=4 training.gradient_clip_val=1.0
training.progress_bar=rich training.log_every_n_steps=10
training.profiler=simple training.max_epochs=1 data.subsample_percentage=0.01
wandb.enabled=true wandb.project=skin-lesion-classification wandb.entity=your-username \\
    wandb.name=efficientnet-b3-full wandb.tags=[production,efficientnet]
wandb.enabled=true wandb.log_model=true wandb.log_code=true wandb.watch_model=gradients
data.batch_size=8
data.batch_size=8 training.accumulate_grad_batches=4
model=efficientnet model.variant=b0
data.num_workers=8
training.precision=16
data.batch_size=64
training.learning_rate=0.0001
training.lr_scheduler=reduce_on_plateau training.lr_patience=5
data.subsample_percentage=0.01 training.max_epochs=1
model=baseline_cnn data.subsample_percentage=0.001 training.max_epochs=1 data.batch_size=2 \\
    training.limit_train_batches=10 training.limit_val_batches=5
model=efficientnet model.variant=b2 data.batch_size=32 data.num_workers=8 \\
    training.precision=16 training.accelerator=gpu training.compile=true \\
    data.pin_memory=true data.persistent_workers=true
training.accumulate_grad_batches=4 training.gradient_clip_val=1.0 \\
    training.enable_checkpointing=true data.batch_size=16
model=efficientnet model.variant=b3 model.pretrained=true training.max_epochs=100 \\
    training.early_stopping_patience=15 training.learning_rate=0.0001 \\
    training.weight_decay=0.01 training.lr_scheduler=cosine data.augment=true \\
    data.image_size=300 wandb.enabled=true
training.resume_from_checkpoint=models/efficientnet/version_0/checkpoints/last.ckpt
"""
SMALLER = (
    "data.image_size=32",
    "data.batch_size=4",
    "data.num_workers=0",
    "data.persistent_workers=false",
    "data.subsample_percentage=1",
    "training.max_epochs=1",
    "training.limit_train_batches=2",
    "training.limit_val_batches=1",
    "training.accelerator=auto",
    "training.devices=1",
    "training.strategy=auto",
    "training.compile=false",
)


def commands(text: str) -> list[list[str]]:
    """The arguments of every `uv` in the bash blocks of a page."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.S):
        # A function in uv's place writes down what it is given.
        script = 'uv() { printf "%s\\1" "$@"; printf "\\0"; }\n' + block
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        found += [words.split("\1")[:-1] for words in done.stdout.split("\0") if words]
    return found


DOCUMENTED = [
    tuple(words[2:])
    for words in commands((ROOT / "docs/training.md").read_text())
    if words[:2] == ["run", "src/mlops_project/train.py"]
]


def test_no_command_of_the_guide_is_missing() -> None:
    wanted = [tuple(line.split()) for line in GUIDE.replace("\\\n", " ").strip().splitlines()]
    assert len(wanted) == 48
    assert [command for command in wanted if command not in DOCUMENTED] == []


@pytest.fixture(scope="module")
def trained() -> set[str]:
    """Settings, as JSON, that a documented command was trained with already."""
    return set()


@pytest.mark.parametrize("options", dict.fromkeys(DOCUMENTED), ids=" ".join)
def test_a_documented_command_runs(
    options: tuple[str, ...],
    trained: set[str],
    demo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = settings.load(options)  # as it is written
    assert before.training.max_epochs >= 1
    cache = f"data.cache={demo_folder.parent / 'cache'}"
    smaller = [f"data.data_dir={demo_folder}", cache, *SMALLER]
    if before.model.pretrained is True:
        smaller.append("model.pretrained=false")
    resumed = before.training.resume_from_checkpoint not in (None, "auto")
    if resumed:
        train(settings.load(["model=efficientnet", *smaller]))
        smaller = [*smaller, "model=efficientnet", "training.max_epochs=2"]
    config = settings.load([*options, *smaller])
    told = settings.to_container(config)
    if not config.wandb.enabled:
        del told["wandb"]  # a run's name and tags, which nobody reads then
    if json.dumps(told) in trained:
        return
    trained.add(json.dumps(told))
    result = train(config)
    assert result.folder is not None
    assert (result.folder / "metrics.csv").read_text().count("\n") == 1 + (2 if resumed else 1)
    assert result.checkpoint.is_file()
    assert result.test["test_loss"] > 0


def test_a_sweep_samples_settings_that_exist() -> None:
    sweep = yaml.safe_load((ROOT / "configs/sweeps.yaml").read_text())
    assert sweep["command"][1:4] == ["uv", "run", "${program}"]
    assert (ROOT / sweep["program"]).is_file()
    rate = sweep["parameters"]["training.learning_rate"]
    assert rate["distribution"] == "log_uniform_values"
    for variant in sweep["parameters"]["model.variant"]["values"]:
        for size in sweep["parameters"]["data.batch_size"]["values"]:
            arguments = [w for w in sweep["command"][4:] if "$" not in w]
            # Both ways in which an agent may write its arguments
            for prefix in ("", "--"):
                sampled = [
                    f"{prefix}training.learning_rate={rate['min']}",
                    f"{prefix}data.batch_size={size}",
                    f"{prefix}model.variant={variant}",
                ]
                config = settings.load([*arguments, *sampled])
                assert (config.model.name, config.model.variant) == ("efficientnet", variant)
                assert config.wandb.enabled


def test_the_table_of_what_may_change_is_that_of_the_schema() -> None:
    text = (ROOT / "docs/training.md").read_text()
    rows = text.partition("| settings | may change |\n|---|---|\n")[2].partition("\n\n")[0]
    told: list[set[str]] = []
    for row in rows.splitlines():
        group, found = "", set[str]()
        for name in re.findall(r"`(.+?)`", row.split("|")[1]):
            # A group is named once: `data.cache`, `device_cache`; `training.save_…`
            head, _, rest = name.partition(".")
            group, name = (head, rest) if head in setting_keys.GROUPS else (group, name)
            name = name if name == "seed" else f"{group}.{name}"
            matching = fnmatch.filter(setting_keys.keys(), name.replace("…", "*"))
            assert matching, f"{name}: no such setting"
            found.update(matching)
        told.append(found)
    kinds: dict[str, set[str]] = {}
    for name, key in setting_keys.keys().items():
        kinds.setdefault(key.facts["resume"], set()).add(name)
    of_resuming = {"training.resume_from_checkpoint", "training.allow_changes"}
    shaping = settings.FREE_BUT_SHAPING
    wanted = [kinds["free"] - shaping - of_resuming, shaping, kinds["longer"], kinds["fixed"]]
    assert told[:6] == [*wanted, LOSS, BATCHES]
