"""Which run goes on, from where, with which settings, and what its files hold afterwards."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
import wandb
from torch.nn.modules.module import register_module_forward_pre_hook

from mlops_project import hydra_overrides, settings
from mlops_project.errors import InputError, Interrupted
from mlops_project.models.baseline_cnn import BaselineCNN
from mlops_project.training.checkpoints import (
    CALIBRATION,
    AtomicCheckpointIO,
    load_checkpoint,
)
from mlops_project.training.folders import new_run_folder, release
from mlops_project.training.multirun import checked_jobs
from mlops_project.training.resume import find_resume, open_resume
from mlops_project.training.run import Result, train

Train = Callable[..., Result]
RUN = Path("models/baseline_cnn/version_0")
LAST = RUN / "checkpoints/last.ckpt"
BASE = (
    "data.image_size=32",
    "data.batch_size=16",
    "training.lr_scheduler=none",
    "training.log_every_n_steps=1",
    "training.save_top_k=2",
)


@pytest.fixture(scope="module")
def trained_once(
    images: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Result]]:
    """Trains in a folder of its own, the same only once; the folder, and the result."""

    @functools.cache
    def run(*words: str) -> tuple[Path, Result]:
        folder = tmp_path_factory.mktemp("trained")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            return folder, train(settings.load(words), settings.given(words))

    return run


@pytest.fixture
def train_here(here: tuple[str, str], trained_once: Callable[..., tuple[Path, Result]]) -> Train:
    """Trains with a command line's arguments; `plain`: with no others.

    `once`: what tests begin with is trained for the first of them, and copied for the others.
    """

    def run(*arguments: str, plain: bool = False, once: bool = False) -> Result:
        words = arguments if plain else (*here, *BASE, *arguments)
        if not once:
            return train(settings.load(words), settings.given(words))
        folder, result = trained_once(*words)
        shutil.copytree(folder, ".", dirs_exist_ok=True)
        return result

    return run


def epochs_of(folder: Path = RUN) -> list[int]:
    return pd.read_csv(folder / "metrics.csv")["epoch"].tolist()


def scalars(folder: Path) -> list[tuple[str, int]]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return sorted(
        (value.tag, event.step)
        for path in folder.glob("events.out.tfevents.*")
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag.startswith(("train_", "val_", "test_", "learning_rate"))
    )


def unfinish() -> None:
    """As if the run had been killed just before its end."""
    (RUN / "results.json").unlink()


def test_a_checkpoint_brings_its_settings_along(train_here: Train) -> None:
    train_here("training.max_epochs=1", "training.learning_rate=0.0005", "model.num_classes=7")
    result = train_here(
        f"training.resume_from_checkpoint={LAST}", "training.max_epochs=2", plain=True
    )
    assert result.folder == RUN
    assert epochs_of() == [0, 1]
    config = load_checkpoint(LAST)["mlops_project"]["config"]
    assert config["training"]["learning_rate"] == 0.0005
    assert config["model"]["num_classes"] == 7
    assert config["training"]["max_epochs"] == 2


def test_a_changed_setting_is_named_and_refused_unless_it_is_allowed(
    train_here: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here("training.max_epochs=1", once=True)
    before = LAST.read_bytes()
    resume = (f"training.resume_from_checkpoint={LAST}", "training.max_epochs=2")
    for changed in ("model.learning_rate=0.5", "data.mixup=0.2", "seed=43"):
        name = {"model.learning_rate=0.5": "learning_rate"}
        with pytest.raises(InputError, match=name.get(changed, changed.split("=")[0])) as caught:
            train_here(*resume, changed, plain=True)
        assert "allow_changes=true" in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 3
    assert LAST.read_bytes() == before
    assert epochs_of() == [0]
    free = ("training.early_stopping_patience=3", "data.num_workers=1", "wandb.project=other")
    train_here(*resume, *free, plain=True)
    assert epochs_of() == [0, 1]
    train_here(
        f"training.resume_from_checkpoint={LAST}",
        *("training.max_epochs=3", "model.learning_rate=0.0005", "training.allow_changes=true"),
        plain=True,
    )
    rates = pd.read_csv(RUN / "metrics.csv")["learning_rate"].tolist()
    assert rates == [0.001, 0.001, 0.0005]
    kept = (RUN / "results.json").read_bytes(), LAST.read_bytes()
    with pytest.raises(InputError, match=r"its 3 epochs are done.*training\.learning_rate"):
        train_here(resume[0], "model.learning_rate=0.1", "training.allow_changes=true", plain=True)
    assert ((RUN / "results.json").read_bytes(), LAST.read_bytes()) == kept


def test_what_a_file_of_the_training_s_settings_says_counts_where_a_run_goes_on(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here("training.max_epochs=1", once=True)
    shutil.copytree(hydra_overrides.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(hydra_overrides, "CONFIGS", tmp_path / "configs")
    file = tmp_path / "configs/training/long.yaml"
    words = ("training=long", f"training.resume_from_checkpoint={LAST}")
    file.write_text("max_epochs: 2\n")
    train_here(*words, plain=True)
    assert epochs_of() == [0, 1]
    file.write_text("max_epochs: 3\nmonitor_metric: val_auroc\n")
    with pytest.raises(InputError, match=r"monitor_metric=val_loss \(now val_auroc\)"):
        train_here(*words, plain=True)


def test_what_a_checkpoint_holds_for_one_network_and_optimizer_stays(train_here: Train) -> None:
    train_here("training.max_epochs=1", once=True)
    resume = (f"training.resume_from_checkpoint={LAST}", "training.max_epochs=20")
    for changed, told in (
        ("model=resnet", "model.name=baseline_cnn (now resnet)"),
        ("model.num_classes=7", "model.num_classes=2 (now 7)"),
        ("model.architecture.channels=[8,8,8,8]", "channels=[32, 64, 128, 256] (now [8, 8, 8, 8])"),
        ("training.optimizer=sgd", "training.optimizer=adamw (now sgd)"),
        ("training.weight_decay=0", "training.weight_decay=0.01 (now 0"),
        ("model.weight_decay=0.5", "training.weight_decay=0.01 (now 0.5)"),
        ("training.layer_decay=0.7", "training.layer_decay=1.0 (now 0.7)"),
        ("training.monitor_metric=val_auroc", "monitor_metric=val_loss (now val_auroc)"),
        ("experiment=gpu_best", "model.name=baseline_cnn (now timm)"),
    ):
        for allow in ("false", "true"):
            with pytest.raises(InputError) as caught:
                train_here(*resume, changed, f"training.allow_changes={allow}", plain=True)
            assert told in str(caught.value)
            assert f"model.init_from={LAST}" in str(caught.value)
            assert "allow_changes" not in str(caught.value)
    assert (RUN / "results.json").is_file(), "the finished run stays as it is"


def test_weights_that_fit_one_size_of_images_are_not_resumed_at_another(train_here: Train) -> None:
    small = ("model=timm", "model.variant=test_vit", "model.pretrained=false")
    result = train_here("training.max_epochs=1", *small, "data.image_size=160")
    assert result.folder is not None
    last = result.folder / "checkpoints/last.ckpt"
    words = (f"training.resume_from_checkpoint={last}", "training.max_epochs=2")
    with pytest.raises(InputError, match=r"do not fit the network of these settings \(pos_embed: "):
        train_here(*words, "data.image_size=128", "training.allow_changes=true", plain=True)
    assert (result.folder / "results.json").is_file()


def test_settings_that_only_repeat_the_run_s_own_are_no_change(train_here: Train) -> None:
    network = ("model=timm", "model.variant=test_efficientnet", "model.pretrained=false")
    result = train_here(
        *("training.max_epochs=1", *network, "data.image_size=256", "data.start_size=240"),
        *("data.folds=3", "data.fold=1"),
    )
    assert result.folder is not None
    words = (f"training.resume_from_checkpoint={result.folder}/checkpoints/last.ckpt",)
    # None of them goes with the defaults of the others.
    repeated = ("model.variant=test_efficientnet", "data.start_size=240", "data.fold=1")
    train_here(*words, *repeated, "training.max_epochs=2", plain=True)
    assert epochs_of(result.folder) == [0, 1]
    for wrong, told in (
        ("training.max_time=8h", "must be days:hours:minutes:seconds"),
        ("data.fold=3", "data.fold=3: it must be less than data.folds=3"),
        ("data.start_size=257", "data.start_size=257: it must be at most data.image_size=256"),
    ):
        with pytest.raises(InputError, match=told):
            train_here(*words, wrong, "training.allow_changes=true", plain=True)


def test_a_run_goes_on_from_within_its_model_s_folder(
    train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here("training.max_epochs=1", once=True)
    folder = RUN.absolute()
    for inside in (folder.parent, folder):
        monkeypatch.chdir(inside)
        path = os.path.relpath(folder / "checkpoints/last.ckpt")
        done = len(epochs_of(folder))
        train_here(
            f"training.resume_from_checkpoint={path}", f"training.max_epochs={done + 1}", plain=True
        )
    assert epochs_of(folder) == [0, 1, 2]
    assert len(scalars(folder)) == len(set(scalars(folder)))


def test_more_patience_lets_a_run_go_on_that_had_stopped(
    train_here: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("training.learning_rate=1e-30", "training.monitor_metric=val_accuracy")
    train_here(*options, "training.early_stopping_patience=1", "training.max_epochs=4")
    assert len(epochs_of()) < 4
    assert "stopped early" in capsys.readouterr().out
    resume = f"training.resume_from_checkpoint={LAST}"
    train_here(resume, "training.early_stopping_patience=50", plain=True)
    assert epochs_of() == [0, 1, 2, 3]
    assert "stopped early" not in capsys.readouterr().out


def test_a_run_is_not_made_shorter(train_here: Train) -> None:
    train_here("training.max_epochs=2", once=True)
    for allow in ("false", "true"):
        with pytest.raises(InputError, match="max_epochs"):
            train_here(
                f"training.resume_from_checkpoint={LAST}",
                *("training.max_epochs=1", f"training.allow_changes={allow}"),
                plain=True,
            )


def test_going_back_to_an_earlier_checkpoint_leaves_no_gap_and_no_double(
    train_here: Train, tmp_path: Path
) -> None:
    train_here("training.max_epochs=3")
    table = Path("logs/lightning_logs/baseline_cnn_version_0/metrics.csv")
    whole = [(RUN / "metrics.csv").read_bytes(), table.read_bytes(), scalars(RUN)]
    kept = sorted(p.name for p in LAST.parent.iterdir())
    first = next(p for p in sorted(LAST.parent.glob("epoch=*")))
    train_here(f"training.resume_from_checkpoint={first}", plain=True)
    assert [(RUN / "metrics.csv").read_bytes(), table.read_bytes(), scalars(RUN)] == whole
    assert sorted(p.name for p in LAST.parent.iterdir()) == kept
    steps = [step for tag, step in scalars(RUN) if tag == "train_loss_step"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(pd.read_csv("reports/training_metrics.csv")) == 1


def test_going_back_with_other_settings_leaves_the_run_as_it_is(
    train_here: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here("training.max_epochs=3")

    def contents() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in sorted(RUN.rglob("*")) if p.is_file()}

    before = contents()
    first = next(p for p in sorted(LAST.parent.glob("epoch=*")))
    result = train_here(
        f"training.resume_from_checkpoint={first}",
        *("training.learning_rate=0.01", "training.allow_changes=true"),
        plain=True,
    )
    assert contents() == before
    assert result.folder == RUN.with_name("version_1")
    assert len(pd.read_csv(result.folder / "metrics.csv")) == 3
    assert (result.folder / "checkpoints" / first.name).is_file()
    assert "has later epochs, which stay" in capfd.readouterr().err


def test_a_run_that_is_only_branched_off_is_free_for_others(train_here: Train) -> None:
    train_here("training.max_epochs=2", once=True)
    first = next(p for p in sorted(LAST.parent.glob("epoch=*")))
    words = (f"training.resume_from_checkpoint={first}", "training.max_epochs=3")
    asked = settings.load([*words]), settings.given([*words])
    try:
        assert find_resume(*asked)[1].folder is None  # type: ignore[union-attr]
        program = "import sys; from pathlib import Path; from mlops_project.training import folders"
        program += "; folders.hold(Path(sys.argv[1]))"
        other = subprocess.run([sys.executable, "-c", program, str(RUN)], capture_output=True)
        assert other.returncode == 0, other.stderr
    finally:
        release()


def test_each_of_several_runs_from_one_checkpoint_is_checked_before_the_first(
    train_here: Train,
) -> None:
    train_here("training.max_epochs=1", once=True)
    words = (f"training.resume_from_checkpoint={LAST}", "training.allow_changes=true")
    longer = (*words, "training.max_epochs=3", "training.max_time=none,01:00:00:00")
    assert len(checked_jobs(longer)) == 2
    for last, told in (("model.num_classes=2,7", "num_classes"), ("data.fold=0,7", "data.folds")):
        with pytest.raises(InputError, match=told):
            checked_jobs([*longer, last])


def test_a_loss_does_not_change_where_the_best_epoch_is_chosen_by_it(train_here: Train) -> None:
    train_here("training.max_epochs=1", once=True)
    change = (f"training.resume_from_checkpoint={LAST}", "training.label_smoothing=0.3")
    with pytest.raises(InputError, match=r"val_loss, which has other values.*\n.*init_from"):
        train_here(*change, "training.allow_changes=true", "training.max_epochs=2", plain=True)


def test_a_finished_run_only_repeats_its_test(train_here: Train) -> None:
    first = train_here("training.max_epochs=1", once=True)
    weights = load_checkpoint(LAST)["state_dict"]
    again = train_here(f"training.resume_from_checkpoint={LAST}", plain=True)
    assert again.test == first.test
    assert again.best == first.best
    after = load_checkpoint(LAST)["state_dict"]
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    results = json.loads((RUN / "results.json").read_text())
    assert results["test_loss"] == first.test["test_loss"]
    assert not (RUN / "previous.ckpt").exists()


def test_a_finished_run_stays_as_it_is_where_going_on_is_refused(train_here: Train) -> None:
    train_here("training.max_epochs=1", once=True)
    before = {path: path.read_bytes() for path in sorted(RUN.rglob("*")) if path.is_file()}
    with pytest.raises(InputError, match="refuses the run"):
        train_here(
            f"training.resume_from_checkpoint={LAST}",
            *("wandb.enabled=true", "wandb.project=skin/lesion"),
            plain=True,
        )
    after = {path: path.read_bytes() for path in sorted(RUN.rglob("*")) if path.is_file()}
    assert after == before


def test_auto_named_beside_a_checkpoint_replaces_a_number_but_not_what_was_found(
    train_here: Train,
) -> None:
    train_here("training.max_epochs=1", "data.num_workers=1", "data.device_cache=false")
    train_here(
        f"training.resume_from_checkpoint={LAST}",
        *("data.num_workers=auto", "data.device_cache=auto", "data.batch_size=auto"),
        *("training.max_epochs=2", "training.allow_changes=true"),
        plain=True,
    )
    data = load_checkpoint(LAST)["mlops_project"]["config"]["data"]
    assert [data[n] for n in ("num_workers", "device_cache", "batch_size")] == ["auto", "auto", 16]


def test_a_run_that_has_stopped_early_stays_so_unless_it_is_given_more_patience(
    train_here: Train,
) -> None:
    options = ("training.learning_rate=1e-30", "training.monitor_metric=val_accuracy")
    plateau = ("training.lr_scheduler=reduce_on_plateau", "training.lr_patience=1")
    longest = ("training.max_epochs=9", "training.early_stopping_patience=3")
    train_here(*options, *plateau, *longest)
    assert len(epochs_of()) == 4
    train_here(f"training.resume_from_checkpoint={LAST}", plain=True)
    assert len(epochs_of()) == 4
    train_here(
        f"training.resume_from_checkpoint={LAST}", "training.early_stopping_patience=5", plain=True
    )
    rates = pd.read_csv(RUN / "metrics.csv")["learning_rate"] / 1e-30
    # Whether the fourth epoch was the first or the second without progress is remembered, too.
    assert rates.tolist() == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01])


def test_auto_starts_anew_where_nothing_is_unfinished(
    train_here: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    auto = ("training.max_epochs=1", "training.resume_from_checkpoint=auto")
    train_here(*auto)
    assert "starting a new one" in capfd.readouterr().out
    result = train_here(*auto)
    assert result.folder == RUN.with_name("version_1"), "the first one is finished"


def test_auto_goes_on_with_the_newest_unfinished_run_that_has_these_settings(
    train_here: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here("training.max_epochs=1", once=True)
    unfinish()
    train_here("training.max_epochs=1", "data.mixup=0.2")  # version_1, other settings
    RUN.with_name("version_1").joinpath("results.json").unlink()
    train_here("training.max_epochs=1", "training.early_stopping_patience=3")  # version_2, too
    RUN.with_name("version_2").joinpath("results.json").unlink()
    new_run_folder("baseline_cnn")  # version_3, killed before its first checkpoint
    capfd.readouterr()
    auto = "training.resume_from_checkpoint=auto"
    result = train_here("training.max_epochs=2", auto)
    assert result.folder == RUN
    assert epochs_of() == [0, 1]
    assert f"going on from {LAST}" in capfd.readouterr().out
    left = [name for name in os.environ if name.startswith("MLOPS_PROJECT_")]
    assert not left, "the next training of this program would take them for its own"


def test_auto_says_by_which_setting_a_run_is_another_one(
    train_here: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    auto = ("training.max_epochs=1", "training.resume_from_checkpoint=auto")
    train_here("training.max_epochs=1", once=True)
    unfinish()
    for option in ("training.on_nonfinite=skip", "training.accelerator=cpu", "data.mixup=0.2"):
        capfd.readouterr()
        assert train_here(*auto, option).folder != RUN
        name = option.partition("=")[0]
        assert f"{RUN} has another {name}" in capfd.readouterr().out
        shutil.rmtree(RUN.with_name("version_1"))


def test_what_does_not_go_together_is_refused_where_a_run_goes_on(train_here: Train) -> None:
    train_here("training.max_epochs=1", "data.start_size=24", "data.image_size=32")
    with pytest.raises(InputError, match=r"data\.start_size=24: it must be at most"):
        train_here(
            f"training.resume_from_checkpoint={LAST}",
            *("data.image_size=16", "training.allow_changes=true", "training.max_epochs=2"),
            plain=True,
        )


def test_auto_leaves_a_run_alone_that_another_process_is_training(train_here: Train) -> None:
    train_here("training.max_epochs=1", once=True)
    unfinish()
    program = (
        "from pathlib import Path; from mlops_project.training.folders import hold;"
        f"hold(Path('{RUN}')); print('held', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="another process is training"):
        train_here(f"training.resume_from_checkpoint={LAST}", plain=True)
    result = train_here("training.max_epochs=1", "training.resume_from_checkpoint=auto")
    assert result.folder == RUN.with_name("version_1")
    other.communicate("go")
    again = train_here("training.max_epochs=1", "training.resume_from_checkpoint=auto")
    assert again.folder == RUN


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_auto_passes_over_a_damaged_checkpoint(
    damage: bytes | None, train_here: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here("training.max_epochs=2", "training.save_top_k=1", once=True)
    whole = (RUN / "metrics.csv").read_bytes()
    unfinish()
    content = bytearray(LAST.read_bytes())
    content[len(content) // 2] ^= 1
    LAST.write_bytes(content if damage is None else damage)
    result = train_here(
        *("training.max_epochs=2", "training.save_top_k=1"),
        "training.resume_from_checkpoint=auto",
    )
    assert result.folder == RUN
    assert "last.ckpt is damaged: going on from" in capfd.readouterr().err
    assert (RUN / "metrics.csv").read_bytes() == whole
    assert load_checkpoint(LAST)["epoch"] == 1


def test_a_refusal_does_not_hide_the_warning_of_a_damaged_checkpoint(
    train_here: Train, demo_folder: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    shutil.copytree(demo_folder, "mounted")
    options = (*BASE, "training.max_epochs=1", "data.data_dir=mounted")
    train_here(*options, plain=True)
    unfinish()
    LAST.write_bytes(b"garbage")
    shutil.rmtree("mounted")
    done = run("train.py", *options, "training.resume_from_checkpoint=auto")
    assert done.returncode == 2
    warning, error = done.stderr.splitlines()[:2]
    assert warning.startswith(f"warning: {LAST} is damaged: going on from {RUN}/checkpoints/ep")
    assert error.startswith("error: mounted: no such folder")


def test_other_images_are_refused(train_here: Train, demo_folder: Path, tmp_path: Path) -> None:
    train_here("training.max_epochs=1", once=True)
    other = tmp_path / "other"
    shutil.copytree(demo_folder, other)
    table = next(other.glob("HAM10000_metadata*"))
    table.write_text("\n".join(table.read_text().splitlines()[:-9]) + "\n")
    moved = tmp_path / "moved"
    shutil.copytree(demo_folder, moved)
    resume = (f"training.resume_from_checkpoint={LAST}", "training.max_epochs=2")
    with pytest.raises(InputError, match="have changed"):
        train_here(*resume, f"data.data_dir={other}", plain=True)
    train_here(*resume, f"data.data_dir={moved}", plain=True)  # the same ones, elsewhere
    assert epochs_of() == [0, 1]
    table = next(moved.glob("HAM10000_metadata*"))
    first, *rows = table.read_text().splitlines()
    # All of one diagnosis are called by another one: the split stays as it is.
    rows = [row.replace(",vasc,", ",kept,").replace(",df,", ",vasc,") for row in rows]
    table.write_text("\n".join([first, *[row.replace(",kept,", ",df,") for row in rows]]) + "\n")
    with pytest.raises(InputError, match=r"diagnoses of .* have changed"):
        train_here(resume[0], "training.max_epochs=3", f"data.data_dir={moved}", plain=True)


def test_changes_are_allowed_to_the_command_that_asks_for_it_and_to_none_after_it(
    train_here: Train, demo_folder: Path, tmp_path: Path
) -> None:
    train_here("training.max_epochs=1", once=True)
    shutil.copytree(demo_folder, tmp_path / "images")
    table = next((tmp_path / "images").glob("HAM10000_metadata*"))
    resume = (f"training.resume_from_checkpoint={LAST}", f"data.data_dir={tmp_path}/images")
    table.write_text("\n".join(table.read_text().splitlines()[:-9]) + "\n")
    train_here(*resume, "training.max_epochs=2", "training.allow_changes=true", plain=True)
    train_here(*resume, "training.max_epochs=3", plain=True)  # nothing has changed since
    table.write_text("\n".join(table.read_text().splitlines()[:-9]) + "\n")
    with pytest.raises(InputError, match=r"have changed since.*\n.*allow_changes=true"):
        train_here(*resume, "training.max_epochs=4", plain=True)
    assert epochs_of() == [0, 1, 2]


def test_a_run_without_its_cache_leaves_out_what_it_left_out_before(
    train_here: Train, demo_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(demo_folder, broken)
    for image in sorted(broken.rglob("*.jpg"))[:3]:
        image.write_bytes(b"no image")
    folder = f"data.data_dir={broken}"
    train_here("training.max_epochs=1", folder)
    before = load_checkpoint(LAST)["mlops_project"]["split"]
    assert before["split"].count("unused") == 3
    resume = f"training.resume_from_checkpoint={LAST}"
    without = ("data.cache=off", "data.num_workers=auto")
    train_here(resume, "training.max_epochs=2", folder, *without, plain=True)
    assert epochs_of() == [0, 1]
    assert load_checkpoint(LAST)["mlops_project"]["split"] == before
    table = next(broken.glob("HAM10000_metadata*"))
    table.write_text("\n".join(table.read_text().splitlines()[:-9]) + "\n")
    with pytest.raises(InputError, match="have changed"):
        train_here(resume, "training.max_epochs=3", folder, *without, plain=True)


def test_a_checkpoint_of_an_earlier_version_starts_a_new_run_at_best(train_here: Train) -> None:
    train_here("training.max_epochs=1", once=True)
    checkpoint = load_checkpoint(LAST)
    checkpoint["mlops_project"]["format"] = 1
    torch.save(checkpoint, LAST)
    with pytest.raises(InputError, match=f"model.init_from={LAST}"):
        train_here(f"training.resume_from_checkpoint={LAST}", plain=True)
    result = train_here(f"model.init_from={LAST}", "training.max_epochs=1")
    assert result.folder == RUN.with_name("version_1")


def test_weights_and_biases_goes_on_with_the_same_run(train_here: Train) -> None:
    for words, plain in (
        (("training.max_epochs=1", "wandb.enabled=true"), False),
        ((f"training.resume_from_checkpoint={LAST}", "training.max_epochs=2"), True),
    ):
        wandb.teardown()  # its own process knows nothing of the run before
        train_here(*words, plain=plain)
    wandb.teardown()
    runs = sorted(path.name for path in Path("wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 2
    assert len(set(runs)) == 1


@pytest.mark.slow
def test_a_run_goes_on_without_weights_and_biases_where_its_process_dies(
    here: tuple[str, str], tmp_path: Path
) -> None:
    script = str(hydra_overrides.CONFIGS.parent / "src/mlops_project/train.py")
    words = [*here, *BASE, "training.max_epochs=4", "wandb.enabled=true"]
    # A process of its own, not that of this one, which other tests may have started.
    environment = {n: v for n, v in os.environ.items() if n != "WANDB_SERVICE"}
    process = subprocess.Popen(
        [sys.executable, script, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment, "WANDB_MODE": "offline"},
    )
    assert process.stdout is not None
    told = []
    for line in process.stdout:
        told.append(line)
        if line.startswith("epoch 1/"):
            (own,) = [
                child
                for child in psutil.Process(process.pid).children(recursive=True)
                if "wandb-core" in child.name()
            ]
            own.kill()
    text = "".join(told)
    assert process.wait() == 0, text
    assert text.count("Weights & Biases has ended") == 1
    assert "Traceback" not in text
    assert (RUN / "results.json").is_file()


def test_a_run_that_was_done_can_be_tested_from_a_copied_checkpoint(
    train_here: Train, tmp_path: Path
) -> None:
    first = train_here("training.max_epochs=1", once=True)
    copy = tmp_path / "copy.ckpt"
    shutil.copy(LAST, copy)
    result = train_here(f"training.resume_from_checkpoint={copy}", plain=True)
    assert result.folder == RUN.with_name("version_1")
    assert result.test == first.test


def test_a_damaged_best_checkpoint_costs_only_itself(
    train_here: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    best = train_here("training.max_epochs=2", once=True).checkpoint
    best.write_bytes(best.read_bytes()[:1000])
    result = train_here(f"training.resume_from_checkpoint={LAST}", plain=True)
    assert "The next best one is tested instead" in capfd.readouterr().err
    assert result.checkpoint != best


def test_the_number_of_batches_cannot_change_within_an_epoch(
    train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlops_project.training.signals import Interruption

    with monkeypatch.context() as patch:
        # As if a signal had come in the first step
        patch.setattr(Interruption, "defer", lambda self: setattr(self, "number", 15))
        with pytest.raises(Interrupted, match="epoch 1, step 1 is saved") as caught:
            train_here("training.max_epochs=2")
    assert caught.value.exit_code == 143
    resume = f"training.resume_from_checkpoint={LAST}"
    with pytest.raises(InputError, match="made within an epoch"):
        train_here(resume, "data.batch_size=8", "training.allow_changes=true", plain=True)
    open_resume(str(LAST)).check_processes(1)
    with pytest.raises(InputError, match=r"processes \(1, now 2\) cannot change"):
        open_resume(str(LAST)).check_processes(2)


def test_the_last_validation_is_made_up_for_where_it_was_interrupted(
    train_here: Train, pass_time: Callable[[float], None], capfd: pytest.CaptureFixture[str]
) -> None:
    passes = []

    def watch(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, BaselineCNN):
            passes.append(module.training)
            if len(passes) == 3:
                pass_time(86400)  # with this step the time is over
            if not module.training:
                os.kill(os.getpid(), signal.SIGUSR1)

    handle = register_module_forward_pre_hook(watch)
    try:
        with pytest.raises(Interrupted, match="epoch 1, step 3 is saved"):
            train_here("training.max_time=01:00:00:00", "training.max_epochs=50")
    finally:
        handle.remove()
    assert passes == [True, True, True, False]
    train_here(f"training.resume_from_checkpoint={LAST}", plain=True)
    assert "stopped by training.max_time=01:00:00:00 after epoch 1 of 50" in capfd.readouterr().out
    assert pd.read_csv(RUN / "metrics.csv")["val_loss"].notna().tolist() == [True]
    assert epochs_of() == [0]
    # With no time left, no other epoch begins.
    train_here(f"training.resume_from_checkpoint={LAST}", plain=True)
    assert epochs_of() == [0]


def test_a_file_that_lacks_what_a_resume_needs_is_refused(train_here: Train) -> None:
    train_here("training.max_epochs=1", once=True)
    for name in ("callbacks", "loops", "HAM10000DataModule"):
        checkpoint = load_checkpoint(LAST)
        del checkpoint[name]
        AtomicCheckpointIO().save_checkpoint(checkpoint, "lacking.ckpt")
        with pytest.raises(InputError, match="lacks what a run needs"):
            train_here("training.resume_from_checkpoint=lacking.ckpt", plain=True)


def test_what_a_kill_has_left_among_the_best_goes(train_here: Train) -> None:
    train_here("training.max_epochs=2", once=True)
    left = LAST.with_name("epoch=001-val_loss=9.999.ckpt")
    shutil.copy(LAST, left)
    calibration = left.with_suffix(CALIBRATION)  # of an evaluation meanwhile
    calibration.write_text("{}")
    train_here(f"training.resume_from_checkpoint={LAST}", plain=True)
    assert not left.exists()
    assert not calibration.exists()


def test_auto_lengthens_a_run_only_where_none_of_that_length_is_unfinished(
    train_here: Train,
) -> None:
    train_here("training.max_epochs=2", once=True)
    unfinish()
    train_here("training.max_epochs=1")
    RUN.with_name("version_1").joinpath("results.json").unlink()
    auto = "training.resume_from_checkpoint=auto"
    assert train_here("training.max_epochs=2", auto).folder == RUN
    assert train_here("training.max_epochs=2", auto).folder == RUN.with_name("version_1")


def test_a_new_run_from_a_copied_checkpoint_keeps_the_best_that_lies_beside_it(
    train_here: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here("training.max_epochs=1", once=True)
    (best,) = RUN.glob("checkpoints/epoch=000*.ckpt")
    for name, names in (("alone", [LAST]), ("together", [LAST, best])):
        folder = tmp_path / name
        folder.mkdir()
        for path in names:
            shutil.copy(path, folder)
        result = train_here(
            f"training.resume_from_checkpoint={folder / 'last.ckpt'}",
            "training.max_epochs=2",
            plain=True,
        )
        assert result.folder is not None
        kept = (result.folder / "checkpoints" / best.name).is_file()
        warned = "the best epochs before it do not lie beside it" in capfd.readouterr().err
        assert (kept, warned) == (name == "together", name == "alone")


def test_a_run_of_another_working_folder_has_a_log_of_its_own_here(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here("training.max_epochs=1", once=True)
    theirs = LAST.absolute()
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    train_here("training.max_epochs=1")
    log = Path("logs/lightning_logs/baseline_cnn_version_0/metrics.csv")
    mine = log.read_bytes()
    train_here(f"training.resume_from_checkpoint={theirs}", "training.max_epochs=2", plain=True)
    assert log.read_bytes() == mine
    (other,) = log.parents[1].glob("baseline_cnn_version_0_*/metrics.csv")
    assert pd.read_csv(other)["epoch"].dropna().unique().tolist() == [1]


def test_a_run_of_this_working_folder_is_one_run_by_whatever_link_it_is_named(
    train_here: Train, tmp_path: Path
) -> None:
    train_here("training.max_epochs=1", once=True)
    link = tmp_path.with_name(f"link to {tmp_path.name}")
    link.symlink_to(tmp_path)
    # As a shell hands over "$PWD/models/…" in a working folder that it has entered by a link.
    resume = f"training.resume_from_checkpoint={link / LAST}"
    result = train_here(resume, "training.max_epochs=2", plain=True)
    assert result.folder == RUN
    assert epochs_of() == [0, 1]
    assert pd.read_csv("reports/training_metrics.csv")["run"].tolist() == [str(RUN)]
    (log,) = Path("logs/lightning_logs").iterdir()
    assert log.name == "baseline_cnn_version_0"


def test_what_an_interruption_has_left_goes_where_no_last_checkpoint_is_wanted(
    train_here: Train,
) -> None:
    train_here("training.max_epochs=1", once=True)
    train_here(
        f"training.resume_from_checkpoint={LAST}",
        "training.max_epochs=2",
        "training.save_last=false",
        "training.save_top_k=9",
        plain=True,
    )
    assert not LAST.exists()
    assert len(list(LAST.parent.glob("epoch=*.ckpt"))) == 2


def test_the_checkpoint_before_the_last_one_keeps_the_best(
    train_here: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    train_here("training.max_epochs=2", once=True)
    best = sorted(path.name for path in RUN.glob("checkpoints/epoch=*.ckpt"))
    previous = RUN / "previous.ckpt"
    LAST.rename(previous)
    unfinish()
    train_here(f"training.resume_from_checkpoint={previous}", plain=True)
    assert sorted(path.name for path in RUN.glob("checkpoints/epoch=*.ckpt")) == best
    assert "do not lie beside it" not in capfd.readouterr().err
