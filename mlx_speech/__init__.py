"""Who said what, when: speech models ported to MLX, proven equal to their PyTorch originals, and joined to a pipeline.

`mlx_speech.Pipeline()` transcribes; `mlx_speech.load(path_or_repo)` gives a model ready to call, and
`mlx_speech.convert.convert(...)` writes a folder. Importing the package imports neither MLX nor torch nor a converter,
and changes nothing in the process; on Linux CPUs the first use loads OpenBLAS (`mlx_speech.configure`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mlx_speech import blas
from mlx_speech.blas import configure
from mlx_speech.errors import MLXSpeechError
from mlx_speech.version import __version__

if TYPE_CHECKING:
    from mlx_speech import archive as archive
    from mlx_speech import audio as audio
    from mlx_speech import convert as convert
    from mlx_speech import features as features
    from mlx_speech import models as models
    from mlx_speech import options as options
    from mlx_speech import whisperx as whisperx
    from mlx_speech import writers as writers
    from mlx_speech.audio import load_audio as load_audio
    from mlx_speech.loading import load as load
    from mlx_speech.pipeline import Pipeline as Pipeline
    from mlx_speech.stages.vad import detect_speech as detect_speech
    from mlx_speech.transcript import Diarization as Diarization
    from mlx_speech.transcript import Region as Region
    from mlx_speech.transcript import Segment as Segment
    from mlx_speech.transcript import Transcript as Transcript
    from mlx_speech.transcript import Turn as Turn
    from mlx_speech.transcript import Word as Word

# public name → the module that has it
_LAZY = {
    "load": "mlx_speech.loading",
    "load_audio": "mlx_speech.audio",
    "detect_speech": "mlx_speech.stages.vad",
    "Pipeline": "mlx_speech.pipeline",
    "Diarization": "mlx_speech.transcript",
    "Region": "mlx_speech.transcript",
    "Segment": "mlx_speech.transcript",
    "Transcript": "mlx_speech.transcript",
    "Turn": "mlx_speech.transcript",
    "Word": "mlx_speech.transcript",
}
_SUBMODULES = ("archive", "audio", "convert", "features", "models", "options", "whisperx", "writers")
_NEEDING_MLX = ("load", "detect_speech", "Pipeline", "convert", "features", "models", "whisperx")

blas.preload_if_asked()

__all__ = [*_LAZY, "MLXSpeechError", "__version__", "configure"]  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES])


if not TYPE_CHECKING:  # a type checker knows the names from above, and takes others for the mistakes that they are

    def __getattr__(name: str) -> Any:
        if name not in _LAZY and name not in _SUBMODULES:
            raise AttributeError(f"module 'mlx_speech' has no attribute {name!r}")
        if name in _NEEDING_MLX:  # `from mlx_speech import writers`, too, comes here and needs none
            blas.check_backend()
        if name in _SUBMODULES:
            return importlib.import_module(f"mlx_speech.{name}")
        return getattr(importlib.import_module(_LAZY[name]), name)
