"""What an evaluation shows in the terminal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from mlops_project.evaluation.presentation.reading import operating_points
from mlops_project.evaluation.presentation.wording import by_chance
from mlops_project.metrics import label


def show(facts: dict[str, Any], written: list[Path]) -> None:
    """Prints the metrics, and where the files are.

    Args:
        facts: what metrics.json holds.
        written: files, the first of them in the folder of the evaluation.
    """
    from rich.console import Console

    console = Console()
    note = ", SYNTHETIC DATA" if facts["synthetic"] else ""
    images, lesions = facts["n_images"], facts["n_lesions"]
    count = f"{images} image{'s' * (images != 1)}, {lesions} lesion{'s' * (lesions != 1)}"
    views = ", test-time augmentation" if facts["tta"] else ""
    title = f"{facts['model']}, {facts['split']}{views}{note}\n{count}"
    if "metrics" in facts:
        _show_metrics(console, facts, title)
    else:
        console.print(title, highlight=False, markup=False)
    _show_decisions(console, facts)
    lines = list(facts["gaps"])
    if "comparison" in facts:
        lines.insert(0, _told_comparison(facts["comparison"]))
    gap = facts.get("subgroups", {}).get("largest_gap")
    if gap is not None:
        text = "largest gap between groups: AUROC of malignant is {difference:.3f} ({told}) lower "
        text += "for {attribute} {worse} than for {better}. {chance}"
        told = {"told": _interval(gap["ci95"]), "chance": by_chance(gap)}
        lines.insert(0, text.format(**gap, **told))
    names = [path.name for path in written if path.parent == written[0].parent]
    names += ["explanations/"] if facts.get("explanations") else []
    lines.append(f"written to {written[0].parent}/: {', '.join(names)}")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _show_metrics(console: Any, facts: dict[str, Any], title: str) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, min_width=32)
    table.add_column("metric")
    for column in ("by image", "95 % interval", "by lesion", "95 % interval"):
        table.add_column(column, justify="right")
    for name, metric in facts["metrics"].items():
        lesion = facts["by_lesion"]["metrics"][name]
        cells = [(_shown(m["value"]), _interval(m["ci95"])) for m in (metric, lesion)]
        table.add_row(label(name), *(text for pair in cells for text in pair))
    console.print(table)
    columns = [c for c in next(iter(facts["per_class"].values())) if c != "n_lesions"]
    # As wide as the narrowest terminals
    table = Table(
        title="each class against the rest", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("class")
    for column in columns:
        head = "n" if column == "n_images" else label(column, short=True)
        table.add_column(head, justify="right")
    for name, values in facts["per_class"].items():
        table.add_row(name, *(_shown(values[c]) for c in columns))
    console.print(table)


def _told_comparison(facts: dict[str, Any]) -> str:
    known = {n: facts["difference"][n] for n in ("balanced_accuracy", "auroc")}
    told = ", ".join(f"{label(name)} {_difference(m)}" for name, m in known.items())
    p_value = facts["mcnemar"]["by_lesion"]["p_value"]
    return f"less {facts['checkpoint']}: {told}; McNemar's test of lesions p = {p_value:.2g}"


def _show_decisions(console: Any, facts: dict[str, Any]) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    if "calibration" not in facts:
        return
    where = "the other folds" if "folds" in facts["calibration"] else "validation"
    title = f"thresholds of calibrated probabilities, chosen on {where}"
    table = Table(
        title=title, min_width=len(title), box=SIMPLE, pad_edge=False, collapse_padding=True
    )
    ratios = ("sensitivity", "specificity", "ppv", "npv") if "metrics" in facts else ()
    for column in ("question", "threshold", *map(label, ratios)):
        table.add_column(column, justify="left" if column == "question" else "right")
    known, with_patients = facts["calibration"], facts.get("with_patient_data", {})
    for question, point in operating_points(facts).items():
        if "gap" in point:
            table.add_row(question, point["gap"])
            continue
        values = [point["evaluated"][name] for name in ratios]
        cells = [f"{_shown(v['value'])} ({_interval(v['ci95'])})" for v in values]
        table.add_row(question, _shown(point["threshold"]), *cells)
    console.print(table)
    lines = [f"calibration: temperature {known['temperature']:.2f} and an offset for each class"]
    if "after" in known:
        changes = [
            " -> ".join(f"{known[when][name]['value']:.3f}" for when in ("before", "after"))
            for name in ("ece", "balanced_accuracy")
        ]
        trained = ", with the network's own prior," if any(known["prior"].values()) else ""
        lines[0] += f", ECE {changes[0]}, balanced accuracy of its answers{trained} {changes[1]}"
    if "difference" in with_patients:
        more = with_patients["difference"]["balanced_accuracy"]
        lines.append(
            "where age, sex and site have a say (patient data): balanced accuracy of these answers "
            f"less that of the image alone {_difference(more)}"
        )
    for coverage, sets in facts.get("prediction_sets", {}).items():
        lines.append(
            f"prediction sets for {float(coverage):.0%}: {sets['coverage']:.3f} of them "
            f"({_interval(sets['coverage_ci95'])}) hold the true class, "
            f"{sets['mean_size']:.2f} classes on average"
        )
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _difference(known: dict[str, Any]) -> str:
    if math.isnan(known["value"]):
        return "–"
    return f"{known['value']:+.3f} ({_interval(known['ci95'])})"


def _interval(bounds: list[float]) -> str:
    return "–" if math.isnan(bounds[0]) else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _shown(value: float) -> str:
    if isinstance(value, (int, np.integer)):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.3f}"
