"""What a user may type after a command, and what a user may write into configs/."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

from mlops_project import hydra_overrides, setting_keys, settings
from mlops_project.help_text import help_text
from tests.fuzz.damage import Step, damage, some_steps

CONFIGS = hydra_overrides.CONFIGS
settings.load([])  # Hydra imports its plugins, and writes what it likes while doing so

VALUES = (
    *("", "0", "-1", "1e400", "nan", "inf", "-inf", "1_000", "0x10", "٣", "1e-400", "9" * 5000),
    *("true", "null", "none", "~", "auto", "[]", "{}", "[1,2", "{a:1}", "[[[[", "a,b", "'", '"'),
    *("${oc.env:HOME}", "${training.learning_rate}", "${nothing:here}", "${", "${oc.env:NOPE}"),
    *("${data.batch_size}", "${oc.decode:'[1]'}", "${oc.create:{a:1}}", "${.x}", "${hydra:job}"),
    *("a=b", "a b", "a\nb", "a\\", "\\'", "x" * 5000, "[" * 300, "{a:" * 200, "${" * 100, "(" * 99),
    *("range(1,99999999)", "choice(1,2)", "glob(*)", "sort(3,2)", "shuffle(1)", "int(x)", "\0"),
    *(
        "é\u202e",
        "!!python/object/apply:os.system ['id']",
        "../../etc/passwd",
        "\x1b[2J",
        "*",
        "&a",
    ),
)
ODD = (
    *("-h=1", "--config-dir=/tmp", "--config-path=x", "-cn=x", "hydra.run.dir=/tmp/x", "+a=b"),
    *("++training.max_epochs=3", "~model", "~training.max_epochs", "model@foo=resnet", "a"),
    *("hydra/launcher=basic", "hydra.searchpath=[file:///etc]", "experiment=../../x", "=", "=1"),
    *("model=../data/demo", "model=/etc/passwd", "model={a:1}", "model=[resnet,timm]", "--", "-"),
    *(
        "model@_global_=resnet",
        "data=demo",
        "model=efficientnet",
        "training@data=default",
        "x" * 9999,
    ),
    *("hydra.output_subdir=/tmp/x", "hydra.job.chdir=true", "defaults=[x]", "_target_=os.system"),
)
keys = st.sampled_from(tuple(setting_keys.keys())) | st.sampled_from(setting_keys.GROUPS)
values = st.sampled_from(VALUES) | st.text(max_size=15) | st.integers().map(str)
values |= st.floats().map(str) | st.lists(st.sampled_from(VALUES), max_size=3).map(",".join)
signs = st.sampled_from(("", "", "", "--", "+", "++", "~"))
overrides = st.builds("{}{}={}".format, signs, keys, values)
overrides |= st.sampled_from(ODD) | st.text(max_size=25)
inputs = st.tuples(st.booleans(), st.lists(overrides, min_size=1, max_size=3))


def use(value: tuple[bool, list[str]], folder: Path) -> None:
    """Settings of one run, or of each run of a multirun."""
    multirun, arguments = value
    if not multirun:
        settings.load(arguments)
        return
    jobs = hydra_overrides.expand(arguments)
    for job in jobs[:2]:
        settings.load(job)


LAUGHS = "".join(
    f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" if n else "l0: &l0 [x, x]\n"
    for n in range(12)
)
LINES = (
    "\tmax_epochs: 3",
    "max_epochs: 3\nmax_epochs: 4",
    "max_epochs: [1, 2",
    "max_epochs: *nothing",
    "a: &a [*a]",
    "<<: *a",
    "<<: [1]",
    "b: &b {<<: *b}",
    LAUGHS,
    "channels: !!python/object/apply:os.system ['touch outside']",
    "name: !!python/name:os.system",
    "name: !!binary aGVsbG8=",
    "name: !!set {a, b}",
    "? [a, b]\n: 1",
    "1: 2",
    "null: 2",
    "true: x",
    "a.b: 1",
    "learning_rate: ${training.learning_rate}",
    "learning_rate: ${oc.env:HOME}",
    "learning_rate: ${data.${data.${data.name}}}",
    "max_epochs: ${max_epochs}",
    "max_epochs: ${training.max_epochs}",
    "name: ${nobody:knows}",
    "_target_: os.system",
    "defaults:\n  - ../../etc/passwd",
    "defaults:\n  - default\n  - self",
    "defaults: 3",
    "hydra:\n  run:\n    dir: /tmp/x",
    "hydra:\n  searchpath: [file:///etc]",
    "---\na: 1\n---\nb: 2",
    "# @package _global_",
    "# @package ../..",
    "[" * 3000,
    "{" * 500 + "}" * 500,
    "- a\n- b",
    "text",
    "3",
    "!!str",
    "%YAML 9.9\n---",
    "name: 2024-01-01",
    "name: 1e400",
    "seed: .inf",
    "seed: .nan",
    "seed: 0o7777777777777777777777777",
    "x" * 100_000 + ": 1",
    "\ufeffname: x",
    "name: \x07",
)
FILES = tuple(
    str(path.relative_to(CONFIGS))
    for path in sorted(CONFIGS.rglob("*.yaml"))
    if path.name != "sweeps.yaml"
)


class Edit(NamedTuple):
    """A file of configs/ with lines before, after or instead of its own, then damaged."""

    file: str
    lines: list[str]
    where: str
    encoding: str
    changes: list[Step]
    argument: str


key_lines = st.builds(
    "{}: {}".format, keys.map(lambda k: k.rsplit(".", 1)[-1]), st.sampled_from(VALUES)
)
edits = st.builds(
    Edit,
    st.sampled_from(FILES),
    st.lists(st.sampled_from(LINES) | key_lines | st.text(max_size=20), max_size=2),
    st.sampled_from(("before", "after", "after", "instead")),
    st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-8", "utf-16", "latin-1")),
    st.just([]) | some_steps,
    st.sampled_from(("model=resnet", "data=demo", "experiment=debug", "model=timm", "data.seed=1")),
)


def build_edit(value: Edit, folder: Path) -> None:
    shutil.copytree(CONFIGS, folder / "configs")
    path = folder / "configs" / value.file
    own, added = path.read_text(), "\n".join(value.lines)
    text = {"before": f"{added}\n{own}", "after": f"{own}\n{added}\n", "instead": added}[
        value.where
    ]
    path.write_bytes(damage(text.encode(value.encoding, errors="replace"), value.changes))


def use_edit(value: Edit, folder: Path) -> None:
    """Settings from an edited copy of configs/, with a setting that reads the edited file."""
    group, _, file = value.file.rpartition("/")
    hydra_overrides.CONFIGS = folder / "configs"
    try:
        arguments = [f"{group}={Path(file).stem}"] if group else []
        settings.load([*arguments, *([value.argument] if value.argument[:4] != group[:4] else [])])
        help_text()
    finally:
        hydra_overrides.CONFIGS = CONFIGS
