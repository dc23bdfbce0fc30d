"""What a benchmark leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from measure import report


def test_a_result_is_replaced_only_by_one_of_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speed.json"
    for command, value in (("speed.py", 1), ("speed.py few", 2), ("speed.py", 3)):
        report("speed", [{"case": "ours", "seconds": value}], command, folder=tmp_path)
        kept = json.loads(file.read_text())
        assert kept["command"] == "speed.py"
        assert kept["results"][0]["seconds"] == (1 if value == 2 else value)
        printed = capsys.readouterr().out
        assert f"seconds {value}" in printed
        assert (f"{file} is of speed.py" in printed) == (value == 2)
