"""From the command line and configs/ to a checked Config, or to a message that helps."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st

from mlops_project import hydra_overrides, settings
from mlops_project.config import Config, DataConfig
from mlops_project.errors import InputError
from mlops_project.hydra_overrides import CONFIGS, expand
from mlops_project.setting_keys import GROUPS, Key, convert, keys
from mlops_project.training.multirun import checked_jobs

NOTHING = ("null", "none")
FILES = sorted(CONFIGS.glob("*/*.yaml"))


def value(*arguments: str) -> Any:
    """What the setting of the first argument becomes."""
    name = arguments[0].removeprefix("--").partition("=")[0]
    return attrgetter(name)(settings.load(arguments))


def refusal(*arguments: str) -> str:
    """The message for settings that must be refused."""
    with pytest.raises(InputError) as caught:
        settings.load(arguments)
    message = str(caught.value)
    assert 1 <= len(message.splitlines()) <= 3
    return message


def holds(container: dict[str, Any], part: dict[str, Any]) -> bool:
    return all(
        holds(container[name], inner) if isinstance(inner, dict) else container[name] == inner
        for name, inner in part.items()
    )


# The files of configs/


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}={file.stem}")
def test_every_file_of_configs_composes_and_its_values_arrive(file: Path) -> None:
    group = file.parent.name
    variant = ["model.variant=convnext_atto"] if file.stem == "timm" else []
    container = settings.to_container(settings.load([f"{group}={file.stem}", *variant]))

    assert group in GROUPS
    given = yaml.safe_load(file.read_text())
    given.pop("defaults", None)  # an experiment's choice of other files
    assert holds(container if group == "experiment" else container[group], given)


@pytest.mark.parametrize("file", [CONFIGS / "train.yaml", *FILES], ids=lambda f: f.stem)
def test_the_command_that_opens_a_file_of_configs_is_valid(file: Path) -> None:
    lines = re.findall(r"^# uv run src/mlops_project/train\.py *(.*)$", file.read_text(), re.M)
    assert lines
    for line in lines:
        words = [word for word in shlex.split(line) if "=" in word]
        for job in expand(words) if " -m " in f" {line}" else [words]:
            settings.load(job)


def test_what_an_experiment_builds_on_is_given_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, built_on = (settings.given([f"experiment={name}"]) for name in ("cpu_best", "ensemble"))
    assert {"model.name", "model.variant", "data.sampler"} < base
    assert base | {"data.folds"} <= built_on
    assert "wandb.name" not in built_on
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(hydra_overrides, "CONFIGS", tmp_path / "configs")
    recipe = tmp_path / "configs" / "experiment" / "mine.yaml"
    (tmp_path / "configs/experiment/base").mkdir()
    shutil.copy(CONFIGS / "experiment/cpu_best.yaml", tmp_path / "configs/experiment/base/one.yaml")
    named = ("cpu_best", "/experiment/cpu_best", "cpu_best.yaml", "cpu_best@_here_", "base/one")
    for entry in named:
        recipe.write_text(f"# @package _global_\ndefaults:\n  - {entry}\n  - _self_\n")
        assert settings.load(["experiment=mine"]).model.name == "timm"
        assert settings.given(["experiment=mine"]) == base


def test_what_a_file_of_the_training_or_of_wandb_sets_is_given_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(hydra_overrides, "CONFIGS", tmp_path / "configs")
    for file, text in (
        ("training/long.yaml", "defaults: [default, _self_]\nlr_scheduler: cosine\n"),
        ("wandb/mine.yaml", "tags: [mine]\n"),
        (
            "experiment/mine.yaml",
            "# @package _global_\ndefaults: [{override /training: long}]\nseed: 7\n",
        ),
    ):
        (tmp_path / "configs" / file).write_text(text)
    long = {"training.max_epochs", "training.lr_scheduler"}
    for words, named in (
        (["training='long'", "wandb=mine", "data.mixup=1"], long | {"wandb.tags", "data.mixup"}),
        (["experiment=mine"], long | {"seed"}),
        (["model=resnet", "data=demo"], {"model.name", "data.name"}),
        (["training=default", "wandb=default"], set()),  # which are chosen anyway
    ):
        settings.load(words)
        assert settings.given(words) == named


# The schema


@pytest.mark.parametrize("key", keys().values(), ids=lambda key: key.name)
def test_every_key_has_a_meaning_and_its_default_passes_its_own_check(key: Key) -> None:
    assert key.facts["meaning"].strip()
    assert convert(key, key.default) == key.default


def values_of(key: Key) -> st.SearchStrategy[Any]:
    """Any value that the key's type and range allow."""
    facts = key.facts
    low = facts["above"] if facts["minimum"] is None else facts["minimum"]
    high = facts["below"] if facts["maximum"] is None else facts["maximum"]
    inside = [bound for bound in (facts["above"], facts["below"]) if bound is not None]
    kind = key.kind.removeprefix("list of ")
    values: st.SearchStrategy[Any] = {
        "bool": lambda: st.booleans(),
        "int": lambda: st.integers(low, 10**9 if high is None else high),
        "float": lambda: st.floats(low, high, allow_nan=False, allow_infinity=False),
        "str": lambda: st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1),
    }[kind]()
    values = values.filter(lambda v: v not in (*inside, "~") and str(v).lower() not in NOTHING)
    if facts["choices"]:
        values = st.sampled_from(facts["choices"])
    if kind != key.kind:
        values = st.lists(values, max_size=4)
    if facts["words"]:
        values |= st.sampled_from(facts["words"])
    return values | st.none() if key.optional else values


@settings_of(deadline=None)
@given(st.fixed_dictionaries({name: values_of(key) for name, key in keys().items()}))
def test_settings_survive_the_way_into_a_checkpoint_and_back(values: dict[str, Any]) -> None:
    config = Config()
    for name, given_value in values.items():
        section, _, leaf = name.rpartition(".")
        setattr(attrgetter(section)(config) if section else config, leaf, given_value)

    assert settings.from_container(settings.to_container(config)) == config


def test_a_folder_whose_name_looks_like_a_switch_is_still_a_folder() -> None:
    for name in ("0", "no", "false"):
        config = Config(data=DataConfig(cache=name))
        assert settings.from_container(settings.to_container(config)).data.cache == name
    container = settings.to_container(Config())
    container["data"]["cache"] = False  # what YAML makes of the word off
    assert settings.from_container(container).data.cache == "off"


def test_settings_of_another_version_lose_unknown_keys_and_gain_defaults() -> None:
    old = {"seed": 7, "retired": 1, "model": {"name": "resnet", "gone": {"deeper": 2}}, "attic": {}}

    config = settings.from_container(old)

    expected = Config(seed=7)
    expected.model.name = "resnet"
    assert config == expected


# Refusals


@pytest.mark.parametrize(
    ("argument", "suggestion"),
    [
        ("training.lerning_rate=0.1", "training.learning_rate"),
        ("trainning.max_epochs=3", "training.max_epochs"),
        ("max_epochs=3", "training.max_epochs"),
        ("learning_rate=0.1", "model.learning_rate or training.learning_rate"),
        ("model.archtecture.channels=[1]", "model.architecture.channels"),
        ("--batch_size=8", "data.batch_size"),
        ("model=resnett", "model=resnet"),
        ("model.variant=b5 model=efficientnet", "b"),
        ("training.lr_scheduler=cosin", "cosine"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_right_one(argument: str, suggestion: str) -> None:
    assert f"did you mean {suggestion}" in refusal(*argument.split())


@pytest.mark.parametrize(
    ("key", "values", "right"),
    [
        ("training.max_epochs", ["x", "0", "1.5", "true", "null", "[1]", ""], "a whole number"),
        ("training.learning_rate", ["0", "-1", "nan", "inf", "fast"], "more than 0, or auto"),
        ("data.val_fraction", ["0", "0.5"], "more than 0 and less than 0.5"),
        ("data.image_size", ["8", "2000"], "at least 16 and at most 1024 pixels"),
        ("data.augment", ["perhaps", "2"], "true or false"),
        ("data.data_dir", ["null"], "a text"),
        ("wandb.name", ["[a]", "{a: 1}"], "a text"),
        ("training.unfreeze_schedule", ["[a]", "[-1]", "1.5"], "a list of whole numbers"),
        ("model.num_classes", ["3", "two"], "one of 2, 7"),
        ("model.pretrained", ["perhaps"], "one of auto, true, false"),
        ("training.precision", ["64"], "one of auto, 16, 16-mixed, bf16, bf16-mixed, 32, 32-true"),
        ("wandb.watch_model", ["true"], "one of none, gradients, parameters, all"),
        ("seed", ["-1", "4294967296"], "at most 4294967295"),
    ],
)
def test_a_wrong_value_is_answered_with_what_is_right(
    key: str, values: list[str], right: str
) -> None:
    for typed in values:
        message = refusal(f"{key}={typed}")
        assert key in message
        assert right in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], "KEY=VALUE"),
        (["training.max_epochs"], "training.max_epochs"),
        (["training.max_epochs=1,2"], "-m"),
        (["model=resnet,efficientnet"], "-m"),
        (["+training.new_key=3"], "unknown setting"),
        (["~training.max_epochs=3"], "training.max_epochs"),
        (["hydra.run.dir=elsewhere"], "unknown setting"),
        (["model=timm"], "model.variant=NAME"),
        (["model=resnet", "model.variant=b0"], "18, 34, 50, 101"),
        (["model.pretrained=true"], "baseline_cnn"),
        (["model.architecture.conv_blocks=3"], "model.architecture.channels has 4"),
        (["data.val_fraction=0.45", "data.test_fraction=0.45"], "training"),
        (["training.progressive_unfreezing=1", "training.unfreeze_schedule=5,4"], "must not fall"),
        (["training.progressive_unfreezing=1", "training.unfreeze_schedule=[]"], "like [5,10,15]"),
        (
            ["training.strategy=fsdp", "training.gradient_clip_val=1"],
            "gradient_clip_algorithm=norm",
        ),
        (["training.strategy=fsdp", "training.ema_decay=0.9"], "ema_decay: does not go with"),
        (["training.strategy=fsdp", "training.on_nonfinite=skip"], "on_nonfinite=skip: does not"),
        (["training.strategy=fsdp", "training.channels_last=true"], "channels_last=true: does not"),
        (["training.max_time=00:00:00:00"], "training.max_time=00:00:00:00: must be more than"),
        (["training.max_time=9999999999:00:00:00"], "at most 3650 days"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: list[str], words: str) -> None:
    assert words in refusal(*arguments)


TYPED = r"""
a/epoch=024-val_loss=0.342.ckpt
exp#1
my run (1)
~/a b.ckpt
C:\runs\last.ckpt
C:\my runs (1)\last.ckpt
C:\runs (1)\
say "hi"
=b
{a}
Größe 3 µm
2024_01_02
1e3
0.10
"""


@pytest.mark.parametrize("text", TYPED.split("\n")[1:-1])
def test_a_text_arrives_as_it_is_typed(text: str) -> None:
    assert value(f"training.resume_from_checkpoint={text}") == os.path.expanduser(text)


@settings_of(max_examples=30, deadline=None)
@given(st.text("ab1 #()=~/.-_@:;%!?+'\"é", min_size=1, max_size=12))
def test_any_text_that_starts_with_a_letter_arrives_as_it_is_typed(end: str) -> None:
    text = "a" + end.rstrip()
    assert value(f"wandb.name={text}") == text


def test_blank_arguments_and_leading_hyphens_change_nothing() -> None:
    assert settings.load(["", " ", "--seed=3", "\t"]) == settings.load(["seed=3"])


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("wandb.tags=[a,b]", ["a", "b"]),
        ('wandb.tags=["x"]', ["x"]),
        ("wandb.tags=['x y','z']", ["x y", "z"]),
        ("wandb.tags=[exp#1,lr=3]", ["exp#1", "lr=3"]),
        ("training.unfreeze_schedule=[3,6]", [3, 6]),
        ("training.unfreeze_schedule=3,6", [3, 6]),
        ("training.devices=2", 2),
        ("wandb.name='a, b'", "a, b"),
        ('wandb.name="a, b"', "a, b"),
        ("training.precision=16", "16"),
        ("data.augment=False", False),
        ("training.compile=on", True),
        ("training.compile=0", False),
        ("data.cache=off", "off"),
        ("data.cache=False", "off"),
        ("data.cache=0", "0"),  # a folder, as is any other name
        ("data.cache=no", "no"),
        ("wandb.watch_model=false", "none"),
        ("wandb.watch_model=gradients", "gradients"),
        ("training.profiler=null", "none"),
        *((f"training.gradient_clip_val={nothing}", None) for nothing in (*NOTHING, "None")),
    ],
)
def test_a_value_takes_the_type_of_its_key(argument: str, expected: Any) -> None:
    found = value(argument)
    assert found == expected
    assert type(found) is type(expected)


def test_no_experiment_is_the_default() -> None:
    default = settings.load([])
    assert settings.load(["experiment=none"]) == default
    for words in (["experiment=null"], ["experiment=None"], ["experiment=fast", "experiment=null"]):
        assert settings.load(words) == default
        assert settings.given(words) == frozenset()
    assert settings.given(["experiment='none'"]) == frozenset()


def test_the_training_s_learning_rate_wins_over_the_model_s() -> None:
    rates = ["model.learning_rate=0.02", "model.weight_decay=0.3"]
    followed = settings.load(rates).training
    assert (followed.learning_rate, followed.weight_decay) == (0.02, 0.3)
    chosen = settings.load([*rates, "training.learning_rate=0.5", "training.weight_decay=0"])
    assert (chosen.training.learning_rate, chosen.training.weight_decay) == (0.5, 0)


@pytest.mark.parametrize(
    ("arguments", "name", "size"),
    [
        ("", "baseline_cnn", 224),
        ("data=demo", "baseline_cnn", 64),
        ("model=resnet", "resnet", 224),
        ("model.variant=50", "resnet", 224),
        ("model.variant='34'", "resnet", 224),
        ("model.variant=b2", "efficientnet", 260),
        ("model.variant=efficientnet-b4", "efficientnet", 380),
        ("model.variant=b3 data.image_size=64", "efficientnet", 64),
    ],
)
def test_a_variant_names_its_model_and_image_size(arguments: str, name: str, size: int) -> None:
    config = settings.load(arguments.split())
    assert (config.model.name, config.data.image_size) == (name, size)


@pytest.mark.parametrize(
    ("arguments", "key", "values"),
    [
        ([], "seed", [42]),
        (["", "--seed=1,2"], "seed", [1, 2]),
        (["seed=range(1,4)"], "seed", [1, 2, 3]),
        (["seed=choice(3,1)", "model=resnet,efficientnet"], "seed", [3, 3, 1, 1]),
        (["seed=sort(3,1,2,reverse=true)"], "seed", [3, 2, 1]),
        (["data.crop_fraction=range(0.5,1,0.25)"], "data.crop_fraction", [0.5, 0.75]),
        (["seed=1,2", "training.max_epochs=3,4"], "training.max_epochs", [3, 4, 3, 4]),
        (["seed=5,6", "training.max_epochs=3,4", "seed=1"], "seed", [1, 1]),
        (["model.variant=18,b2"], "model.name", ["resnet", "efficientnet"]),
        (["training.unfreeze_schedule=[1,2]"], "training.unfreeze_schedule", [[1, 2]]),
        (["wandb.name='a,b'"], "wandb.name", ["a,b"]),
        (["data.data_dir=a b,c d"], "data.data_dir", ["a b", "c d"]),
        (["data.data_dir=ä(1),/ö"], "data.data_dir", ["ä(1)", "/ö"]),
        (["wandb.name=1.10,1e3,2024_01_02"], "wandb.name", ["1.10", "1e3", "2024_01_02"]),
        (["data.data_dir=2024_01_02", "seed=1,2"], "data.data_dir", ["2024_01_02"] * 2),
        (["wandb.name=it's,'a,b',none"], "wandb.name", ["it's", "a,b", None]),
        (["data.cache=off,auto,c"], "data.cache", ["off", "auto", "c"]),
        (["wandb.name=f(a,b),c{d,e}"], "wandb.name", ["f(a,b)", "c{d,e}"]),
        (["wandb.name=choice (a,b)"], "wandb.name", ["a", "b"]),
        (["wandb.tags=1.10,2"], "wandb.tags", [["1.10"], ["2"]]),
        (["wandb.tags=[1e3,'a,b'],[x]"], "wandb.tags", [["1e3", "a,b"], ["x"]]),
    ],
)
def test_a_multirun_is_every_combination(arguments: list[str], key: str, values: list[Any]) -> None:
    assert [attrgetter(key)(settings.load(job)) for job in expand(arguments)] == values


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        # of aliases of aliases, they fill the memory
        (b"a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "an alias"),
        ("é: 1\n".encode("latin-1"), "not text in UTF-8"),
        (b"[" * 5000, "nested too deeply"),
        (b"max_epochs: !!python/object/apply:os.getpid []\n", "could not determine a constructor"),
        (b"1: 2\n", "training.1: unknown setting"),
    ],
)
def test_a_file_of_settings_that_is_none_is_refused(
    lines: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(hydra_overrides, "CONFIGS", tmp_path / "configs")
    (tmp_path / "configs" / "training" / "default.yaml").write_bytes(lines)
    with pytest.raises(InputError, match=reason) as caught:
        settings.load([])
    assert len(str(caught.value).splitlines()) <= 3


def test_a_recipe_that_does_not_say_that_it_is_for_all_settings_is_told_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(hydra_overrides, "CONFIGS", tmp_path / "configs")
    recipe = tmp_path / "configs" / "experiment" / "mine.yaml"
    recipe.write_text("training:\n  max_epochs: 3\n")
    with pytest.raises(InputError, match=r"mine\.yaml: its first line has to be '# @package _gl"):
        settings.load(["experiment=mine"])
    assert settings.load(["experiment=fast"]).training.max_epochs == 3
    recipe.write_text("# @package _global_\n" + recipe.read_text().replace("3", "4"))
    assert settings.load(["experiment=mine"]).training.max_epochs == 4


def test_a_multirun_without_end_is_refused() -> None:
    with pytest.raises(InputError, match="runs are more than 10,000"):
        expand(["seed=range(0,99999999)", "model=resnet,timm"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["data=demo", "training.monitor_metric=val_loss,val_f1"],
            "training.monitor_metric=val_f1",
        ),
        (["training.optimizer=adamw,admw", "data=demo"], "training.optimizer=admw"),
        (["data.data_dir=.,gone"], "gone: no such folder"),
        (
            ["data=demo", "model.init_from=none,gone.ckpt"],
            "model.init_from=gone.ckpt: no such file",
        ),
        (
            ["data=demo", "model=timm", "model.variant=convnext_atto,convnext_atoo"],
            "model.variant=convnext_atoo: timm knows no such network; did you mean convnext_atto",
        ),
    ],
)
def test_a_mistake_in_any_of_several_runs_is_found_before_the_first_one(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        checked_jobs(arguments)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damaged", [None, 3, [1], {"model": 3}, {"seed": "x"}])
def test_damaged_settings_of_a_checkpoint_are_refused(damaged: Any) -> None:
    with pytest.raises(InputError):
        settings.from_container(damaged)


@pytest.mark.parametrize(
    ("argument", "group", "value"),
    [
        ("data.data_dir=~/ham/", "data", "ham"),
        ("data.cache=~/cache", "data", "cache"),
        ("model.pretrained_path=~/w.pth", "model", "w.pth"),
        ("training.resume_from_checkpoint=~/last.ckpt", "training", "last.ckpt"),
    ],
)
def test_the_home_folder_is_found_where_the_shell_leaves_its_sign(
    argument: str, group: str, value: str
) -> None:
    leaf = argument.partition("=")[0].rpartition(".")[2]
    assert getattr(getattr(settings.load(["model=resnet", argument]), group), leaf) == str(
        Path.home() / value
    )


def test_a_run_of_a_sweep_tells_weights_and_biases_unless_it_is_not_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not settings.load([]).wandb.enabled
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc123")
    assert settings.load([]).wandb.enabled
    assert not settings.load(["wandb.enabled=false"]).wandb.enabled


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["seed=range(3,1)"], "no run: a range"),
        (["seed=1,2", "foo"], "foo: not understood"),
        (["seed=interval(1,3)"], r"seed: interval.* name no values"),
        (["model=glob(r*)"], r"model: .*glob.* name no values"),
    ],
)
def test_several_runs_that_are_none_are_refused(words: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        expand(words)
