"""What the terminal shows of an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops_project.evaluation.presentation import terminal
from tests.evaluation.conftest import Example


def test_metrics_have_their_written_names(
    example: Example, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.show(example[0], [tmp_path / "metrics.json"])
    rows = [
        line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if "│" in line
    ]
    assert {"AUROC", "ECE", "F1 score", "Brier score", "balanced accuracy"} <= set(rows)
