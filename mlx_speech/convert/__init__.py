"""Converters: original weights → a folder of MLX safetensors. Nothing of the original's framework is needed or run.

`mlx_speech.convert.convert(...)` is the command `mlx_speech convert`. Importing the package imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_speech.convert.run import Origin, Report, convert, locate, resolve

__all__ = ["Origin", "Report", "convert", "locate", "resolve"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mlx_speech.convert' has no attribute {name!r}")
    return getattr(importlib.import_module("mlx_speech.convert.run"), name)
