"""The model: a convolution over the waveform, and a layer that tells tones from each other."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_speech.models.base import BaseModel, BaseModelArgs, positive


@dataclass
class ModelArgs(BaseModelArgs):
    """Sizes; all can be read off the tensors."""

    channels: int = positive()
    kernel: int = positive()
    num_tones: int = positive()


class Model(BaseModel):
    """Tones of every frame."""

    quantizable = True

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.front = nn.Conv1d(1, args.channels, args.kernel, stride=args.kernel)
        self.head = nn.Linear(args.channels, args.num_tones)

    def quant_predicate(self, path: str, module: nn.Module) -> bool:
        return path == "head"

    def __call__(self, waveform: mx.array) -> mx.array:
        """Scores of tones, (batch, frames, tones). waveform : (batch, samples)"""
        return self.head(nn.relu(self.front(waveform[..., None])))
