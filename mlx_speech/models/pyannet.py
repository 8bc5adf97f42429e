"""PyanNet: who is speaking in every frame of a chunk (Bredin & Laurent 2021; powerset: Plaquet & Bredin 2023).

Source: pyannote.audio `models.segmentation.PyanNet` and `models.blocks.sincnet`; the SincNet filters (Ravanelli &
Bengio 2018) are computed at conversion and stored as a plain kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn

from mlx_speech.errors import OptionError, brief
from mlx_speech.models.base import BaseModel, BaseModelArgs, above_zero, layers, positive
from mlx_speech.models.layers import LSTM, FilterBank, PooledConv, TimeNorm

SLOPE = 0.01  # of every LeakyReLU
SINCNET_FEATURES = 60
POOL = 3  # steps, behind every convolution


@dataclass
class ModelArgs(BaseModelArgs):
    num_classes: int = positive()
    sincnet_stride: int = positive(10)
    lstm_hidden_size: int = positive(128)
    lstm_num_layers: int = layers(4)
    lstm_bidirectional: bool = True
    linear_hidden_size: int = positive(128)
    linear_num_layers: int = layers(2)
    powerset_max_classes: int | None = positive(None)  # None: multilabel, one sigmoid per class
    num_speakers: int = positive(3)
    duration: float = above_zero(10.0)  # of a chunk, in seconds
    warm_up: list[float] | None = None  # seconds left and right of a chunk that are not to be trusted
    sample_rate: int = positive(16000)

    def conflicts(self) -> list[str]:
        """What is wrong with `warm_up`, where it is given."""
        if self.warm_up is None or (len(self.warm_up) == 2 and min(self.warm_up) >= 0):
            return []
        return [f"warm_up is {brief(self.warm_up)}, not two lengths"]


class SincNet(nn.Module):
    """Learnt band-pass filters and two convolutions over a waveform (pyannote.audio `models.blocks.sincnet`)."""

    def __init__(self, stride: int):
        super().__init__()
        self.wav_norm = TimeNorm(1)
        self.conv0 = FilterBank(80, 251, stride, POOL)
        self.conv1 = PooledConv(80, SINCNET_FEATURES, 5, POOL)
        self.conv2 = PooledConv(SINCNET_FEATURES, SINCNET_FEATURES, 5, POOL)
        self.norm0 = TimeNorm(80)
        self.norm1 = TimeNorm(SINCNET_FEATURES)
        self.norm2 = TimeNorm(SINCNET_FEATURES)

    def __call__(self, samples: mx.array, starts: Sequence[int], size: int) -> mx.array:
        """samples (samples,) → features (windows, frames, 60), a frame every 270 samples at stride 10

        starts : the first sample of each window; size : samples of a window
        """
        x = nn.leaky_relu(self.norm0(self.conv0(samples, starts, size, self.wav_norm)), SLOPE)
        x = nn.leaky_relu(self.norm1(self.conv1(x)), SLOPE)
        return nn.leaky_relu(self.norm2(self.conv2(x)), SLOPE)


class Model(BaseModel):
    """SincNet, LSTMs, linear layers and a classifier (pyannote.audio `models.segmentation.PyanNet`)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        directions = 2 if args.lstm_bidirectional else 1
        width = args.lstm_hidden_size * directions
        self.sincnet = SincNet(args.sincnet_stride)
        self.lstm = []
        inputs = SINCNET_FEATURES
        for _ in range(args.lstm_num_layers):
            self.lstm.append(LSTM(inputs, args.lstm_hidden_size, directions))
            inputs = width
        widths = [width] + [args.linear_hidden_size] * args.linear_num_layers
        self.linear = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)]
        self.classifier = nn.Linear(widths[-1], args.num_classes)

    def __call__(self, waveform: mx.array) -> mx.array:
        """waveform (batch, samples) → (batch, frames, classes)

        Log-probabilities over the powerset classes, or, of a multilabel model, one probability per speaker. 160 000
        samples give 589 frames, 80 000 give 293. Chunks do not influence each other. Raises `OptionError` where there
        are too few samples for a frame.
        """
        batch, size = waveform.shape
        return self.overlapping(waveform.reshape(-1), [row * size for row in range(batch)], size)

    def overlapping(self, samples: mx.array, starts: Sequence[int], size: int) -> mx.array:
        """The same of windows of a recording: what they have in common is filtered once, on a CPU.

        samples : (samples,), in which all windows lie; starts : the first sample of each; size : samples of a window

        Returns (windows, frames, classes). Raises as a call does.
        """
        if self.num_frames(size) < 1:
            raise OptionError(f"{size} samples are too few for a frame of PyanNet: at least 991 at stride 10")
        x = self.sincnet(samples, starts, size)
        for layer in self.lstm:
            x, _ = layer(x)
        for layer in self.linear:
            x = nn.leaky_relu(layer(x), SLOPE)
        x = self.classifier(x).astype(mx.float32)
        if self.args.powerset_max_classes is None:
            return mx.sigmoid(x)
        return x - mx.logsumexp(x, axis=-1, keepdims=True)

    def num_frames(self, samples: int) -> int:
        """How many frames a chunk of `samples` gives (0 where it is too short for one)."""
        pool = (3, 3)
        conv = (5, 1)
        for kernel, stride in [(251, self.args.sincnet_stride), pool, conv, pool, conv, pool]:
            if samples < kernel:
                return 0
            samples = (samples - kernel) // stride + 1
        return samples
