"""The models: pure `nn.Module`s, one family a file, no files, no network, no torch.

Every family's file has `ModelArgs` (what `config.json` says) and `Model` (called with MLX arrays, batch first,
channels last). Its converter brings the original's weights in, its parity case proves both equal.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from mlx_speech import backend as backend  # before a model imports MLX

if TYPE_CHECKING:
    from mlx_speech.models.base import BaseModel, BaseModelArgs


@dataclass(frozen=True)
class Family:
    """A family of models, and the modules that it is made of, which are imported when they are needed.

    title : what it is, for messages and cards
    model : has `Model` and `ModelArgs`
    converter : has what `convert.families.Converter` says
    parity : has what `convert.parity.measures.ParityCase` says
    """

    title: str
    model: str
    converter: str
    parity: str


def _ours(title: str, name: str) -> Family:
    """A family of this package, whose files are all called `name`."""
    return Family(
        title,
        model=f"mlx_speech.models.{name}",
        converter=f"mlx_speech.convert.families.{name}",
        parity=f"mlx_speech.convert.parity.{name}",
    )


# model_type in config.json → the family. A new one is an entry here, and the three files that the entry names.
FAMILIES = {
    "whisper": _ours("Whisper speech recognition", "whisper"),
    "wav2vec2": _ours("wav2vec2 CTC speech recognition", "wav2vec2"),
    "silero_vad": _ours("Silero voice activity detection", "silero_vad"),
    "pyannet": _ours("pyannote speaker segmentation", "pyannet"),
    "wespeaker": _ours("WeSpeaker ResNet speaker embedding", "wespeaker"),
    "campplus": _ours("CAM++ speaker embedding", "campplus"),
    "plda": _ours("PLDA of speaker embeddings", "plda"),
}


class Architecture(Protocol):
    """What the file of a family's model has; a module is one."""

    @property
    def Model(self) -> Callable[[Any], BaseModel]:
        """The model, made of its arguments."""
        ...

    @property
    def ModelArgs(self) -> type[BaseModelArgs]:
        """The arguments."""
        ...


def module(family: str) -> Architecture:
    """The file of `family`, one of `FAMILIES`: its `Model` and `ModelArgs`."""
    return cast(Architecture, importlib.import_module(FAMILIES[family].model))
