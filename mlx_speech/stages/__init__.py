"""The steps from a recording to a transcript, one module each. They do not import each other."""

from __future__ import annotations

import importlib
from typing import Any

from mlx_speech import backend as backend  # before a stage imports MLX

FORMER_NAMES = {"attention": "mlx_speech.stages.whisper.word_times"}  # scripts import them from here


def __getattr__(name: str) -> Any:
    if name not in FORMER_NAMES:
        raise AttributeError(f"module 'mlx_speech.stages' has no attribute {name!r}")
    return importlib.import_module(FORMER_NAMES[name])
