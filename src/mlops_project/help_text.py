"""What `train.py --help` tells."""

from __future__ import annotations

from mlops_project.hydra_overrides import files_of
from mlops_project.setting_keys import GROUPS, keys, shown


def help_text() -> str:
    """Every setting with its meaning, range and default, and the files of `configs/`."""
    lines = [
        "Train a skin-lesion classifier.",
        "",
        "  uv run src/mlops_project/train.py data=demo",
        "  uv run src/mlops_project/train.py model=efficientnet model.variant=b2 seed=7",
        "  uv run src/mlops_project/train.py -m seed=1,2,3            one run for each value",
        "",
        "Settings are written KEY=VALUE or --KEY=VALUE.",
        "  -h, --help      this text",
        "  -m, --multirun  comma-separated values: one run for each combination",
        "  --cfg           print the resolved settings and stop",
        "",
        "Files of settings",
    ]
    for group in GROUPS:
        lines.append(f"  {group}={', '.join(path.stem for path in files_of(group))}")
    section = None
    for key in keys().values():
        head = key.name.rpartition(".")[0]
        if head != section:
            section = head
            lines += ["", head or "General"]
        default = "" if key.default is None else f" [{shown(key.default)}]"
        unit = key.facts["unit"]
        unit = f" ({unit})" if unit and unit not in key.expected else ""
        lines.append(f"  {key.name}{default}")
        lines.append(f"      {key.facts['meaning']}{unit}; {key.expected}")
        if key.facts["source"]:
            lines.append(f"      source: {key.facts['source']}")
    return "\n".join(lines)
