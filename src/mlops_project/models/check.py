"""What can be told of a network before it is built; timm is imported for its networks alone."""

from __future__ import annotations

from pathlib import Path

from mlops_project.config import ModelConfig
from mlops_project.errors import InputError


def check_network(settings: ModelConfig, *, files: bool = True) -> None:
    """Looks whether what the settings name is there.

    Args:
        settings: that go together.
        files: whether those of weights are needed; a run that goes on has its own.

    Raises:
        InputError: no such file, or timm knows no such network.
    """
    for name in ("pretrained_path", "init_from") if files else ():
        path = getattr(settings, name)
        if path and not Path(path).is_file():
            raise InputError(f"model.{name}={path}: no such file")
    if settings.name == "timm":
        from mlops_project.models.timm_models import present_name

        present_name(str(settings.variant))
