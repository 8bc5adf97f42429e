"""The models: pure `nn.Module`s, one family a file, no files, no network, no torch.

Every family's file has `ModelArgs` (what `config.json` says) and `Model` (called with MLX arrays, batch first,
channels last). `mlx_speech/convert/<family>.py` brings its original weights in.
"""

from __future__ import annotations

import importlib
from types import ModuleType

# model_type in config.json → what it is, for messages. A new family is a line here, a file in models/, one in convert/.
FAMILIES = {
    "whisper": "Whisper speech recognition",
    "wav2vec2": "wav2vec2 CTC speech recognition",
    "silero_vad": "Silero voice activity detection",
    "pyannet": "pyannote speaker segmentation",
    "wespeaker": "WeSpeaker ResNet speaker embedding",
    "plda": "PLDA of speaker embeddings",
}


def module(family: str) -> ModuleType:
    """The file of `family`: its `Model` and `ModelArgs`."""
    return importlib.import_module(f"mlx_speech.models.{family}")
