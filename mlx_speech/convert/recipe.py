"""What a family makes of a source: configuration, tensors, and a table of their new names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mlx_speech.errors import ConfigError, brief
from mlx_speech.tensors import Tensor


class Drop(str):
    """In a table, why a tensor is knowingly left out."""


Table: TypeAlias = dict[str, str | Drop]


def same(*names: str, path: str = "") -> Table:
    """Entries of a table for tensors or modules that keep their names, all below `path`."""
    return {f"{path}{name}": f"{path}{name}" for name in names}


@dataclass
class Recipe:
    """What a family makes of a source.

    config : the arguments of its `ModelArgs`
    tensors : after folding
    table : new names. A key is a tensor's name, or its module's path (weight, bias, scales … follow); `{}` stands for
        a number. A tensor that no key covers is an error.
    original : who can run the source: "transformers", "openai-whisper", "torchaudio", "pyannote.audio", "silero-vad"
    mlx_layout : the weights have MLX's layout already
    companions : names, or patterns of names, of files beside the weights that go along unchanged (tokenizer …)
    documents : JSON files written anew
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    table: Table
    original: str
    mlx_layout: bool = False
    companions: tuple[str, ...] = ()
    documents: dict[str, Any] = field(default_factory=dict)


def require(config: dict[str, Any], what: str, **ported: Any) -> None:
    """Raises `ConfigError` where `config` says something else than the only values that were ported."""
    others = []
    for key, value in ported.items():
        if config.get(key, value) != value:
            others.append(f"{key}={brief(config[key])}")
    if others:
        raise ConfigError(f"{what} with {', '.join(others)}, which is not supported")
