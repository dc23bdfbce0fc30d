"""What a sweep file means, and what is said of one that is wrong."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from mlops_project import hydra_overrides, settings
from mlops_project.errors import InputError
from mlops_project.searching.space import read_parameters
from mlops_project.searching.sweep import inspect, read
from mlops_project.searching.worker import extra_options
from tests.conftest import Run
from tests.searching.conftest import RATE, WriteSweep

TENTHS = [0.0, 0.1, 0.2, 0.3, 0.4]
ROOT = Path(__file__).resolve().parents[2]


def drawn(spec: dict[str, Any], count: int = 400) -> list[Any]:
    """What Optuna's random sampler makes of a parameter."""
    parameters, problems = read_parameters({"x": spec})
    assert problems == []
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    distribution = {"x": parameters[0].distribution()}
    return [study.ask(distribution).params["x"] for _ in range(count)]


@pytest.mark.parametrize(
    ("spec", "low", "high", "middle"),
    [
        ({"min": 0.1, "max": 0.5}, 0.1, 0.5, 0.3),
        ({"distribution": "uniform", "min": 1, "max": 5}, 1, 5, 3),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}, 1e-4, 1e-2, 1e-3),
        ({"distribution": "log_uniform", "min": -9, "max": -3}, math.e**-9, math.e**-3, math.e**-6),
        ({"distribution": "inv_log_uniform_values", "min": 1e-4, "max": 1e-2}, 1e-4, 1e-2, 1e-3),
        ({"distribution": "inv_log_uniform", "min": 3, "max": 9}, math.e**-9, math.e**-3, None),
        ({"distribution": "q_log_uniform_values", "min": 4, "max": 64}, 4, 64, 16),
        ({"distribution": "q_log_uniform", "min": 2, "max": 4}, 7, 55, None),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_range_is_sampled_as_its_distribution_says(
    spec: dict[str, Any], low: float, high: float, middle: float | None
) -> None:
    values = drawn(spec)
    assert low <= min(values) <= max(values) <= high
    assert sum(v < (middle or math.sqrt(low * high)) for v in values) == pytest.approx(200, abs=40)
    assert len(set(values)) > 20


def test_a_logarithmic_range_is_rounded_to_multiples() -> None:
    spec = {"distribution": "q_log_uniform_values", "q": 8, "min": 32, "max": 256}
    parameter = read_parameters({"x": spec})[0][0]
    assert parameter.told == "32 to 256, rounded to multiples of 8, log"
    values = [parameter.value(v) for v in drawn(spec)]
    assert all(isinstance(v, int) and v % 8 == 0 and 32 <= v <= 256 for v in values)
    assert sum(v < 90 for v in values) == pytest.approx(200, abs=40)  # the middle of the logarithms
    assert len(set(values)) > 20


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ({"values": [16, 32]}, [16, 32]),
        ({"min": 2, "max": 4}, [2, 3, 4]),
        ({"distribution": "int_uniform", "min": 2, "max": 4}, [2, 3, 4]),
        # Weights & Biases rounds to multiples of q, whatever min is.
        ({"distribution": "q_uniform", "min": 3, "max": 17, "q": 5}, [5, 10, 15]),
        (
            {"distribution": "q_uniform", "min": 0.0, "max": 0.4, "q": 0.1},
            [0.0, 0.1, 0.2, 0.3, 0.4],
        ),
        ({"values": [[5, 10], [3]]}, ["[3]", "[5,10]"]),
        ({"values": ["b0", None, True]}, ["b0", None, True]),
    ],
    ids=str,
)
def test_listed_values_and_steps_are_all_there_and_nothing_else(
    spec: dict[str, Any], values: list[Any]
) -> None:
    parameters, _ = read_parameters({"x": spec})
    assert sorted(map(repr, parameters[0].values())) == sorted(map(repr, values))
    assert parameters[0].count() == len(values)
    seen = {parameters[0].override(v) for v in drawn(spec)}
    assert seen == {parameters[0].override(v) for v in values}


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"distribution": "normal", "mu": 0.1, "sigma": 0.1}, "x: normal: Optuna samples nothing"),
        ({"distribution": "beta"}, "x: beta: Optuna samples nothing like it"),
        ({"values": [1, 2], "probabilities": [0.1, 0.9]}, "Optuna tries all values equally often"),
        ({"distribution": "q_log_uniform_values", "min": 33, "max": 34, "q": 8}, "leaves 32 alone"),
        ({"distribution": "q_log_uniform_values", "min": 0.1, "max": 0.4}, "q: 1 leaves 1 alone"),
        ({"distribution": ["uniform"], "min": 1, "max": 2}, "no such distribution"),
        ({"distribution": "log_uniform", "min": 0, "max": 0.1}, "1 to 1.10517"),
        ({"distribution": "log_uniform", "min": 0.00001, "max": 0.01}, "1.00001 to 1.01005"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "min: 0 must be more than 0"),
        ({"distribution": "log_unifrom", "min": 1, "max": 2}, "did you mean log_uniform?"),
        ({"min": 2, "max": 1}, "min: 2 is not less than max: 1"),
        ({"min": "1e-5", "max": 0.1}, "YAML reads 1e-5 as a text: write 1.0e-05"),
        ({"min": 1}, "needs values"),
        ({"values": []}, "at least one value"),
        ({"values": [1, 1]}, "1 is there twice"),
        ({"values": [1, 1.0, 2]}, "1 is there twice"),
        ({"values": [{"a": 1}]}, "not a value of a setting"),
        ({"values": [1], "min": 3}, "min is nothing that categorical has"),
        ([1, 2], "needs values"),
    ],
    ids=str,
)
def test_a_parameter_that_cannot_be_sampled_is_told(spec: Any, told: str) -> None:
    parameters, problems = read_parameters({"x": spec})
    assert parameters == []
    assert len(problems) == 1
    assert told in problems[0]
    assert problems[0].startswith("x: ")


def test_the_sweep_of_the_repository_is_read_as_it_is() -> None:
    sweep = read(ROOT / "configs/sweeps.yaml", [])
    assert (sweep.name, sweep.method) == ("sweeps", "random")
    assert (sweep.metric, sweep.goal) == ("val_f1_score", "maximize")
    told = {p.name: p.told for p in sweep.parameters}
    assert told == {
        "training.learning_rate": "1e-05 to 0.01, log",
        "data.batch_size": "16, 32, 64",
        "model.variant": "b0, b1, b2",
    }
    values = {"training.learning_rate": 3e-4, "data.batch_size": 16, "model.variant": "b1"}
    config = settings.load(sweep.settings_of(values))
    assert (config.model.name, config.model.variant) == ("efficientnet", "b1")
    assert (config.training.learning_rate, config.data.batch_size) == (3e-4, 16)
    assert config.training.monitor_metric == "val_f1_score"
    assert not config.wandb.enabled


def test_nested_parameters_constants_and_odd_values_reach_training(
    write_sweep: WriteSweep,
) -> None:
    path = write_sweep(
        parameters={
            "training": {
                "parameters": {
                    "learning_rate": RATE,
                    "unfreeze_schedule": {"values": [[2, 4], [3]]},
                    "gradient_clip_val": {"values": [None, 1.0]},
                }
            },
            "data.augment": {"values": [True, False]},
            "training.max_epochs": {"value": 3},
            "wandb.name": {"value": "a=b, (c)"},
        }
    )
    sweep = read(path, ["seed=3"])
    values = {p.name: next(p.values()) for p in sweep.parameters if p.choices}
    config = settings.load(sweep.settings_of(values | {"training.learning_rate": 0.01}))
    assert config.training.unfreeze_schedule == [2, 4]
    assert config.training.gradient_clip_val is None
    assert config.training.max_epochs == 3
    assert config.data.augment is True
    assert config.seed == 3
    assert config.wandb.name == "a=b, (c)"


def test_what_the_command_line_gives_is_not_searched(write_sweep: WriteSweep) -> None:
    path = write_sweep(
        parameters={"training.learning_rate": RATE, "data.batch_size": {"min": 1, "max": 9}}
    )
    sweep = read(path, ["data.batch_size=8", "training.monitor_metric=val_auroc"])
    assert [p.name for p in sweep.parameters] == ["training.learning_rate"]
    assert sweep.config.data.batch_size == 8
    assert sweep.config.training.monitor_metric == "val_auroc"
    assert sweep.metric == "val_loss"


def test_a_whole_number_may_be_rounded_to_multiples(write_sweep: WriteSweep) -> None:
    spec = {"distribution": "q_log_uniform_values", "q": 8, "min": 32, "max": 256}
    sweep = read(write_sweep(parameters={"data.batch_size": spec}), [])
    assert sweep.settings_of({"data.batch_size": 45.7})[-1] == "data.batch_size=48"


def test_weights_and_biases_is_left_out_unless_the_command_line_asks(
    write_sweep: WriteSweep,
) -> None:
    command = ["${program}", "wandb.enabled=true", "wandb.project=mine", "seed=5", "${args}"]
    path = write_sweep(command=command)
    rate = {"values": [0.1, 0.2]}
    constant = {"training.learning_rate": rate, "wandb.enabled": {"value": True}}
    constants = write_sweep("constant.yaml", parameters=constant, command=None)
    assert not read(constants, []).config.wandb.enabled
    quiet, asked = read(path, []).config, read(path, ["wandb.enabled=true"]).config
    assert (quiet.wandb.enabled, quiet.seed) == (False, 5)
    assert (asked.wandb.enabled, asked.wandb.project) == (True, "mine")


@pytest.mark.parametrize(
    ("node", "epochs"),
    [
        ({"min_iter": 2}, [2, 6, 18]),
        ({"min_iter": 1, "eta": 2}, [1, 2, 4, 8, 16]),
        ({"max_iter": 27, "s": 2}, [3, 9]),
        ({"max_iter": 20, "s": 2}, [2, 6]),
        ({"max_iter": 4, "s": 5, "eta": 2}, [1, 2]),
    ],
    ids=str,
)
def test_hyperband_compares_at_these_epochs(
    node: dict[str, Any], epochs: list[int], write_sweep: WriteSweep
) -> None:
    halving = read(write_sweep(early_terminate={"type": "hyperband"} | node), []).halving
    assert halving is not None
    assert halving.before(28) == epochs


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"method": "beyes"}, "method: beyes: no such method; did you mean bayes?"),
    ({"method": None}, "method: is missing"),
    ({"metrik": 3}, "metrik: unknown key; did you mean metric?"),
    ({"method": "bayes", "metric": None}, "method: bayes needs metric:"),
    ({"metric": {"name": "val_f1", "goal": "maximize"}}, "did you mean val_f1_score?"),
    ({"metric": {"name": "test_auroc", "goal": "maximize"}}, "val_auroc is there for it"),
    ({"metric": {"name": "val_auroc"}}, "metric.goal: is missing, which means minimize"),
    ({"metric": {"name": "val_auroc", "goal": "minimize"}}, "looks for the worst val_auroc"),
    ({"metric": {"name": "val_auroc", "goal": "max"}}, "did you mean maximize?"),
    ({"metric": {"name": "val_auroc", "goal": "maximize", "target": "1"}}, "must be a number"),
    ({"parameters": {}}, "parameters: needs settings to search"),
    ({"parameters": {"seed": {"value": 1}}}, "nothing to search"),
    (
        {"parameters": {"training.lerning_rate": RATE}},
        "training.lerning_rate: unknown setting; did you mean training.learning_rate?",
    ),
    (
        {"parameters": {"data.vertical_flip": {"min": 0.0, "max": 2.0}}},
        "data.vertical_flip=2.0: must be a number, at least 0 and at most 1",
    ),
    ({"parameters": {"data.batch_size": {"values": [8, "many"]}}}, "data.batch_size=many"),
    ({"parameters": {"data.batch_size": RATE}}, "distribution: q_log_uniform_values"),
    ({"parameters": {"data.batch_size": {"min": 8.0, "max": 64.0}}}, "distribution: int_uniform"),
    ({"parameters": {"model.variant": {"values": ["b0", "b9"]}}, "command": None}, "b9"),
    ({"parameters": {"model": {"values": ["resnet", "resnext"]}}, "command": None}, "resnext"),
    ({"method": "grid"}, "training.learning_rate: a grid needs values"),
    ({"early_terminate": {"type": "hyperband"}}, "needs min_iter, or max_iter and s"),
    ({"early_terminate": {"type": "median"}}, "needs type: hyperband"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 1.5}}, "eta: 1.5"),
    ({"early_terminate": {"type": "hyperband", "min_itr": 2}}, "did you mean min_iter?"),
    ({"command": ["${program}", "model=resnet"]}, "no parameter gets to train.py without"),
    ({"command": ["${program}", "${args_json}"]}, "train.py does not understand ${args_json}"),
    ({"command": ["${program}", "model=resnt", "${args}"]}, "did you mean model=resnet?"),
    ({"command": ["${program}", "fast", "${args}"]}, "command: fast: not a setting"),
    (
        {
            "command": ["${program}", "${args}", "data.batch_size=4"],
            "parameters": {"data.batch_size": {"values": [8, 16]}},
        },
        "command: data.batch_size is one of the parameters, too",
    ),
    (
        {
            "command": ["${program}", "${args_no_boolean_flags}"],
            "parameters": {"data.augment": {"values": [True, False]}},
        },
        "data.augment: true and false do not get to train.py",
    ),
    # Values between the ends of a range, and values that do not fit those of others.
    ({"parameters": {"model.num_classes": {"min": 2, "max": 7}}}, "model.num_classes=3"),
    (
        {
            "parameters": {
                "training.max_epochs": {"distribution": "q_uniform", "min": 1, "max": 5, "q": 0.5}
            }
        },
        "training.max_epochs=1.5",
    ),
    (
        {
            "parameters": {
                "seed": {"values": [1, 2]},
                "data.folds": {"value": 3},
                "data.fold": {"values": [0, 1, 2, 4]},
            }
        },
        "data.fold=4: data.fold=4: it must be less than data.folds=3",
    ),
    (
        {
            "parameters": {
                n: {"min": 0.1, "max": 0.49} for n in ("data.val_fraction", "data.test_fraction")
            }
        },
        "data.val_fraction=0.49, data.test_fraction=0.49: ",
    ),
    ({"parameters": {"training.optimizer": {"values": ["adamw", "nosuch"]}}}, "no such optimizer"),
    (
        {"parameters": {"training.max_time": {"values": ["soon", "00:01:00:00"]}}},
        "days:hours:minutes",
    ),
    (
        {
            "command": ["${program}", "model=timm", "${args}"],
            "parameters": {"model.variant": {"values": ["resnet18", "resnt34"]}},
        },
        "model.variant=resnt34: timm knows no such network; did you mean resnet34",
    ),
    ({"command": ["${program}", "model.init_from=gone.ckpt", "${args}"]}, "gone.ckpt: no such"),
    ({"command": 5}, "command: must be a list of words"),
    ({"program": "src/train.py"}, "program: src/train.py: no such file"),
    ({"run_cap": 0}, "run_cap: 0: must be at least 1"),
]


@pytest.mark.parametrize(("sections", "told"), WRONG, ids=[told for _, told in WRONG])
def test_what_would_go_wrong_is_told_in_one_line(
    sections: dict[str, Any], told: str, write_sweep: WriteSweep
) -> None:
    path = write_sweep(**sections)
    sweep, found = inspect(path, [])
    assert sweep is None
    assert len(found.problems) == 1
    assert told in found.problems[0]
    assert "\n" not in found.problems[0]


def test_a_sweep_that_would_go_wrong_is_refused(write_sweep: WriteSweep) -> None:
    sections, told = WRONG[0]
    with pytest.raises(InputError, match=re.escape(told)):
        read(write_sweep(**sections), [])


def test_a_constant_may_need_what_is_searched(write_sweep: WriteSweep) -> None:
    variants = {"values": ["resnet18", "convnext_atto"]}
    path = write_sweep(
        command=None, parameters={"model": {"value": "timm"}, "model.variant": variants}
    )
    sweep, found = inspect(path, [])
    assert found.problems == []
    assert sweep is not None
    told = sweep.settings_of({"model.variant": "convnext_atto"})
    assert {"model=timm", "model.variant=convnext_atto"} <= set(told)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"parameters": {"training.label_smoothing": {"min": 0, "max": 0.5}}}, None),
        ({"parameters": {"training.warmup_epochs": {"min": 0, "max": 3}}}, "0 to 3, in steps of 1"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 20}}, "no trial ends early"),
        ({"program": None}, "`wandb sweep` needs it"),
        (
            {
                "parameters": {
                    "data.rotation_degrees": {"distribution": "log_uniform", "min": 1, "max": 5}
                }
            },
            "2.71828 to 148.413, log: log_uniform takes exponents of e",
        ),
        ({"parameters": {"data": {"parameters": {"mixup": {"values": [0, 0.2]}}}}}, "nested"),
    ],
    ids=str,
)
def test_what_is_worth_knowing_is_told(
    sections: dict[str, Any], told: str | None, write_sweep: WriteSweep
) -> None:
    sweep, found = inspect(write_sweep(**sections), [])
    assert sweep is not None
    assert len(found.notes) == (told is not None)
    assert all(told in note for note in found.notes if told)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("method: [random"),
        lambda path: path.write_text("just words"),
        lambda path: path.write_bytes(b"\xff\xfe\x00"),
        lambda path: path.write_text("parameters: {a: &a {parameters: *a}}"),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.unlink(),
    ],
    ids=["yaml", "words", "bytes", "endless", "folder", "missing"],
)
def test_a_file_that_is_none_is_refused(
    spoil: Callable[[Path], Any], write_sweep: WriteSweep
) -> None:
    path = write_sweep()
    spoil(path)
    with pytest.raises(InputError, match=r"small\.yaml: "):
        inspect(path, [])


def test_a_file_may_say_what_it_repeats_by_a_name(write_sweep: WriteSweep) -> None:
    path = write_sweep(parameters={"data.batch_size": {"values": [8, 16]}}, command=None)
    path.write_text(
        path.read_text()
        + """
  data.horizontal_flip: &share {min: 0.0, max: 0.5}
  data.vertical_flip: *share
  data.transpose:
    <<: *share
    max: 1.0
"""
    )
    flips = {p.name: (p.low, p.high) for p in read(path, []).parameters if not p.choices}
    assert flips == {
        "data.horizontal_flip": (0, 0.5),
        "data.vertical_flip": (0, 0.5),
        "data.transpose": (0, 1),
    }


def test_check_ends_with_two_or_nothing(run: Run, write_sweep: WriteSweep, tmp_path: Path) -> None:
    write_sweep("good.yaml", method="grid", parameters={"data.batch_size": {"values": [8, 16]}})
    good = run("search.py", "check", "good.yaml", "model.num_classes=7")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.splitlines() == [
        "good.yaml: grid search, minimize val_loss",
        "  data.batch_size  8, 16",
        "  2 combinations",
        "all trials with model=baseline_cnn training.monitor_metric=val_loss",
    ]
    write_sweep("bad.yaml", method="bayes", metric=None, parameters={"seed": {"values": ["x", 1]}})
    bad = run("search.py", "check", "bad.yaml")
    assert bad.returncode == 2
    assert len(bad.stdout.splitlines()) == 2
    assert "Traceback" not in bad.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.yaml", "good.yaml"]


def test_nothing_is_searched_where_all_of_it_is_given(write_sweep: WriteSweep) -> None:
    path = write_sweep(parameters={"data.batch_size": {"values": [8, 16]}})
    with pytest.raises(InputError, match="nothing to search: each has one value, or is given"):
        read(path, ["data.batch_size=8"])


def test_weights_and_biases_are_told_of_a_search_where_its_command_line_says_so(
    write_sweep: WriteSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(hydra_overrides.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(hydra_overrides, "CONFIGS", tmp_path / "configs")
    (tmp_path / "configs/wandb/mine.yaml").write_text("enabled: true\n")
    command = ["uv", "run", "${program}", "wandb=mine", "${args_no_hyphens}"]
    path = write_sweep(command=command, program=None)
    for given, silent in (([], True), (["wandb=mine"], False), (["wandb.enabled=true"], False)):
        assert ("wandb.enabled=false" in extra_options(read(path, given))) is silent
