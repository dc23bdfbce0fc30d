"""What the tests of training share: small images that are there, and decoded already."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def here(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Enters an empty working folder; settings that find the images, and those decoded before."""
    monkeypatch.chdir(tmp_path)
    return f"data.data_dir={demo_folder}", f"data.cache={demo_folder.parent / 'cache'}"
