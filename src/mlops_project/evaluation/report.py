"""An evaluation from beginning to end: predict, measure, write, show."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlops_project.errors import InputError
from mlops_project.evaluation import calibration, evaluator, subgroups
from mlops_project.evaluation.decisions import decide, malignant_classes
from mlops_project.evaluation.pictures import draw_confusion_matrix


def evaluate(
    checkpoint: Path,
    data_dir: str | None = None,
    split: str = "test",
    output: Path | None = None,
    target_sensitivity: float = 0.9,
) -> dict[str, Any]:
    """Evaluates a checkpoint; writes metrics.json, predictions.csv and confusion_matrix.png.

    Args:
        checkpoint: of a run.
        data_dir: folder with images; None: the run's own.
        split: "val", "test" or "all".
        output: folder to write to; None: reports/evaluation/<model>-version_N.
        target_sensitivity: that thresholds reach on the validation split.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: checkpoint, folder or split cannot be used.
    """
    model = evaluator.load_model(checkpoint)
    data, rows = evaluator.open_images(model, data_dir, split)
    predictions = evaluator.predict(model, data, rows)
    facts = {
        "checkpoint": str(checkpoint),
        "model": model.config.model.name,
        "data_dir": str(data.settings.data_dir),
        "split": split,
        "synthetic": data.synthetic or model.facts["synthetic"],
        **evaluator.measure(model, predictions),
        "subgroups": _subgroups(model, data.table.iloc[rows], predictions),
        "gaps": [],
    }
    validation, gap = _validation(model, split)
    if validation is None:
        facts["gaps"].append(gap)
    else:
        names = model.class_names
        decided, calibrated = decide(names, validation, predictions, target_sensitivity)
        facts |= decided
        for k, name in enumerate(names):
            predictions[f"calibrated_{name}"] = calibrated[:, k]
        temperature = decided["calibration"]["temperature"]
        calibration.store_temperature(checkpoint, temperature, len(validation))
    folder = output or evaluator.default_output(checkpoint)
    evaluator.write(folder, facts, predictions)
    title = f"{model.config.model.name}, {facts['n_images']} images ({split})"
    title += "\nSYNTHETIC DATA" if facts["synthetic"] else ""
    draw_confusion_matrix(predictions, model.class_names, folder / "confusion_matrix.png", title)
    show(facts, folder)
    return facts


def _subgroups(
    model: evaluator.TrainedModel, table: pd.DataFrame, predictions: pd.DataFrame
) -> dict[str, Any]:
    malignant = [model.class_names[k] for k in malignant_classes(model.class_names)]
    scores = predictions[[f"probability_{name}" for name in malignant]].sum(axis=1).to_numpy()
    truth, positive = (predictions[c].isin(malignant).to_numpy() for c in ("y_true", "y_pred"))
    return subgroups.compare(table.reset_index(drop=True), truth, scores, positive)


def _validation(model: evaluator.TrainedModel, split: str) -> tuple[pd.DataFrame | None, str]:
    """Predictions of the run's own validation split, or why there are none."""
    missing = "no calibration, thresholds and prediction sets: "
    if split != "test":
        return None, f"{missing}they are fitted on images that are evaluated here"
    try:
        data, rows = evaluator.open_images(model, None, "val")
    except InputError as error:
        return None, missing + str(error).splitlines()[0]
    return evaluator.predict(model, data, rows), ""


def show(facts: dict[str, Any], folder: Path) -> None:
    """Prints the metrics, and where the files are."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console()
    note = ", SYNTHETIC DATA" if facts["synthetic"] else ""
    count = f"{facts['n_images']} images, {facts['n_lesions']} lesions"
    table = Table(title=f"{facts['model']}, {facts['split']}{note}\n{count}", min_width=32)
    table.add_column("metric")
    for column in ("by image", "95 % interval", "by lesion", "95 % interval"):
        table.add_column(column, justify="right")
    for name, metric in facts["metrics"].items():
        lesion = facts["by_lesion"]["metrics"][name]
        cells = [(_shown(m["value"]), _interval(m["ci95"])) for m in (metric, lesion)]
        table.add_row(name.replace("_", " "), *(text for pair in cells for text in pair))
    console.print(table)
    columns = list(next(iter(facts["per_class"].values())))
    table = Table(title="each class against the rest", box=SIMPLE)
    table.add_column("class")
    for column in columns:
        table.add_column(column.removeprefix("n_").replace("_", " "), justify="right")
    for name, values in facts["per_class"].items():
        table.add_row(name, *(_shown(values[c]) for c in columns))
    console.print(table)
    _show_decisions(console, facts)
    gap = facts["subgroups"]["largest_gap"]
    if gap is not None:
        text = "largest gap between groups: AUROC of malignant is {difference:.3f} lower for "
        text += "{attribute} {worse} than for {better}"
        console.print(text.format(**gap), soft_wrap=True, highlight=False, markup=False)
    for gap in facts["gaps"]:
        console.print(gap, soft_wrap=True, highlight=False, markup=False)
    text = f"written to {folder}/: metrics.json, predictions.csv, confusion_matrix.png"
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _show_decisions(console: Any, facts: dict[str, Any]) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    if "calibration" not in facts:
        return
    table = Table(title="thresholds chosen on the validation split", box=SIMPLE)
    for column in ("question", "threshold", "sensitivity", "specificity", "PPV", "NPV"):
        table.add_column(column, justify="left" if column == "question" else "right")
    for question, point in facts["operating_points"].items():
        if "gap" in point:
            table.add_row(question, point["gap"])
            continue
        values = [point["evaluated"][n] for n in ("sensitivity", "specificity", "ppv", "npv")]
        cells = [f"{_shown(v['value'])} ({_interval(v['ci95'])})" for v in values]
        table.add_row(question, _shown(point["threshold"]), *cells)
    console.print(table)
    known = facts["calibration"]
    before, after = (known[when]["ece"]["value"] for when in ("before", "after"))
    lines = [
        f"calibration: temperature {known['temperature']:.2f}, ECE {before:.3f} -> {after:.3f}"
    ]
    for coverage, sets in facts["prediction_sets"].items():
        lines.append(
            f"prediction sets for {float(coverage):.0%}: {sets['coverage']:.1%} of them hold the "
            f"true class, {sets['mean_size']:.2f} classes on average"
        )
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _interval(bounds: list[float]) -> str:
    return "–" if math.isnan(bounds[0]) else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _shown(value: float) -> str:
    if isinstance(value, (int, np.integer)):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.3f}"
