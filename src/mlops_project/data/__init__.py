"""From a file to a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlops_project.data.datamodule import HAM10000DataModule

__all__ = ["HAM10000DataModule"]


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import; reading a table or a split does not need it.
    if name == "HAM10000DataModule":
        from mlops_project.data.datamodule import HAM10000DataModule

        return HAM10000DataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
