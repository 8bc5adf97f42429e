"""CAM++ speaker embedding (Wang et al. 2023): one vector per voice, out of the frames in which it speaks.

Sources: modelscope/3D-Speaker `speakerlab/models/campplus/DTDNN.py` and `layers.py`. Batch norms that follow a
convolution are folded into it at conversion; those before one are left as a scale and a shift (`Affine`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_speech.features import kaldi_fbank
from mlx_speech.models.base import BaseModelArgs, SpeakerEmbedding, above_zero, positive
from mlx_speech.models.layers import Conv2d
from mlx_speech.ops import dense_block
from mlx_speech.ops.rectified import rectified_linear

LEAST_FRAMES = 3  # of the filterbank, without which there is no deviation over time


@dataclass
class ModelArgs(BaseModelArgs):
    head_blocks: list[int] = field(default_factory=lambda: [2, 2], metadata={"min": 1, "max": 512, "length": 2})
    head_channels: int = positive(32)
    init_channels: int = positive(128)
    growth_rate: int = positive(32)
    bottleneck_channels: int = positive(128)
    context_channels: int = positive(64)
    num_layers: list[int] = field(default_factory=lambda: [12, 24, 16], metadata={"min": 1, "max": 512, "length": 3})
    kernel_size: int = field(default=3, metadata={"min": 1, "max": 31})
    dilations: list[int] = field(default_factory=lambda: [1, 2, 2], metadata={"min": 1, "max": 512, "length": 3})
    num_mel_bins: int = field(default=80, metadata={"min": 8, "max": 4096})
    embedding_size: int = positive(192)
    sample_rate: int = positive(16000)
    frame_length: float = above_zero(25.0)  # ms
    frame_shift: float = above_zero(10.0)  # ms

    def conflicts(self) -> list[str]:
        problems = []
        for name, count in (("head_blocks", 2), ("num_layers", 3), ("dilations", 3)):
            found = len(getattr(self, name))
            if found != count:
                problems.append(f"{name} has {found} entries, not {count}")
        if self.kernel_size % 2 == 0:
            problems.append(f"kernel_size is {self.kernel_size}: it has to be odd")
        return problems


class Affine(nn.Module):
    """An evaluated batch norm: a scale and a shift for each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = mx.ones((channels,))
        self.bias = mx.zeros((channels,))

    def __call__(self, x: mx.array) -> mx.array:
        """x (…, channels) → the same shape"""
        return x * self.weight + self.bias


class HeadBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which may halve the frequencies (3D-Speaker `BasicResBlock`)."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv1 = Conv2d(channels, channels, 3, stride=(stride, 1), padding=1)
        self.conv2 = Conv2d(channels, channels, 3, padding=1)
        if stride != 1:
            self.shortcut = Conv2d(channels, channels, 1, stride=(stride, 1))

    def __call__(self, x: mx.array) -> mx.array:
        """x (batch, frequencies, frames, channels) → (batch, frequencies / stride, frames, channels), rounded up"""
        y = self.conv2(nn.relu(self.conv1(x)))
        if "shortcut" in self:
            x = self.shortcut(x)
        return nn.relu(y + x)


class Head(nn.Module):
    """Convolutions over time and frequency, which is halved three times (3D-Speaker `FCM`)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        channels = args.head_channels
        self.conv1 = Conv2d(1, channels, 3, padding=1)
        self.layer1 = [HeadBlock(channels, 2 if index == 0 else 1) for index in range(args.head_blocks[0])]
        self.layer2 = [HeadBlock(channels, 2 if index == 0 else 1) for index in range(args.head_blocks[1])]
        self.conv2 = Conv2d(channels, channels, 3, stride=(2, 1), padding=1)

    def __call__(self, fbank: mx.array) -> mx.array:
        """fbank (batch, frames, mel bins) → (batch, frames, mel bins / 8 · channels)"""
        x = mx.swapaxes(fbank, 1, 2)[..., None].astype(self.conv1.weight.dtype)  # (batch, mel, frames, 1)
        x = nn.relu(self.conv1(x))
        for block in (*self.layer1, *self.layer2):
            x = block(x)
        x = nn.relu(self.conv2(x))
        return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


class ContextMask(nn.Module):
    """The weights of a convolution whose outputs are weighed by what is around: the mean of all frames, and of the
    frame's segment (3D-Speaker `CAMLayer`). `Block` computes with them."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        inputs = args.bottleneck_channels
        self.linear_local = nn.Conv1d(inputs, args.growth_rate, args.kernel_size, bias=False)
        self.linear1 = nn.Linear(inputs, args.context_channels)
        self.linear2 = nn.Linear(args.context_channels, args.growth_rate)


class DenseLayer(nn.Module):
    """The weights of what a layer adds to the channels that it reads (3D-Speaker `CAMDenseTDNNLayer`)."""

    def __init__(self, inputs: int, args: ModelArgs):
        super().__init__()
        self.nonlinear1 = Affine(inputs)
        self.linear1 = nn.Linear(inputs, args.bottleneck_channels)
        self.cam_layer = ContextMask(args)

    @property
    def weights(self) -> dense_block.DenseLayer:
        """As the block's operation takes them."""
        mask = self.cam_layer
        return dense_block.DenseLayer(
            scale=self.nonlinear1.weight,
            shift=self.nonlinear1.bias,
            weight=self.linear1.weight,
            bias=self.linear1.bias,
            taps=mask.linear_local.weight,
            context_weight=mask.linear1.weight,
            context_bias=mask.linear1.bias,
            mask_weight=mask.linear2.weight,
            mask_bias=mask.linear2.bias,
        )


class Block(nn.Module):
    """Layers of which each reads what all before it have made (3D-Speaker `CAMDenseTDNNBlock`)."""

    def __init__(self, inputs: int, count: int, args: ModelArgs, dilation: int):
        super().__init__()
        self._count = count
        self._dilation = dilation
        for number in range(1, count + 1):
            self[f"tdnnd{number}"] = DenseLayer(inputs, args)
            inputs += args.growth_rate

    def __call__(self, x: mx.array, lengths: mx.array) -> mx.array:
        """x (batch, frames, inputs), lengths (batch,) → (batch, frames, inputs + layers · growth rate)"""
        layers = [self[f"tdnnd{number}"].weights for number in range(1, self._count + 1)]
        return dense_block.dense_block(x, lengths, layers, self._dilation)


class Transit(nn.Module):
    """Half the channels, after a block (3D-Speaker `TransitLayer`)."""

    def __init__(self, inputs: int):
        super().__init__()
        self.nonlinear = Affine(inputs)
        self.linear = nn.Linear(inputs, inputs // 2, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """x (batch, frames, inputs) → (batch, frames, inputs / 2)"""
        weight = self.linear.weight
        no_bias = mx.zeros((weight.shape[0],), weight.dtype)
        return rectified_linear(x, self.nonlinear.weight, self.nonlinear.bias, weight, no_bias)


class TDNN(nn.Module):
    """The densely connected layers over time, their mean and deviation, and the embedding."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        channels = args.init_channels
        features = args.head_channels * -(-args.num_mel_bins // 8)
        self.tdnn = nn.Conv1d(features, channels, 5, stride=2, padding=2)
        for number, (count, dilation) in enumerate(zip(args.num_layers, args.dilations, strict=True), start=1):
            self[f"block{number}"] = Block(channels, count, args, dilation)
            channels += count * args.growth_rate
            self[f"transit{number}"] = Transit(channels)
            channels //= 2
        self._blocks = len(args.num_layers)
        self.out_nonlinear = Affine(channels)
        self.dense = nn.Linear(2 * channels, args.embedding_size)

    def __call__(self, features: mx.array, lengths: mx.array) -> mx.array:
        """features (batch, frames, size), zero behind the `lengths` (batch,) → (batch, embedding)"""
        x = nn.relu(self.tdnn(features))
        lengths = (lengths + 1) // 2
        valid = (mx.arange(x.shape[1]) < lengths[:, None])[..., None]
        for number in range(1, self._blocks + 1):
            x = self[f"block{number}"](x, lengths)
            x = self[f"transit{number}"](x)
        x = nn.relu(self.out_nonlinear(x)).astype(mx.float32)
        count = lengths[:, None]
        mean = mx.where(valid, x, 0).sum(axis=1) / count
        squares = mx.where(valid, mx.square(x - mean[:, None]), 0)
        deviation = mx.sqrt(squares.sum(axis=1) / (count - 1))
        return self.dense(mx.concatenate([mean, deviation], axis=-1))


class Model(SpeakerEmbedding):
    """Convolutions over the filterbank, then a densely connected TDNN over the frames of one voice (`CAMPPlus`)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.head = Head(args)
        self.xvector = TDNN(args)

    def cast_predicate(self, path: str) -> bool:
        """All but the last layer: it and the pooling stay in float32."""
        return not path.startswith("xvector.dense")

    def __call__(self, fbank: mx.array) -> mx.array:
        """fbank (batch, frames, mel bins), centred, at least `LEAST_FRAMES` → (batch, embedding), not normalised"""
        lengths = np.full(len(fbank), fbank.shape[1])
        return self.xvector(self.head(fbank), mx.array(lengths))

    def fbank(self, waveforms: mx.array) -> mx.array:
        """What the model hears (3D-Speaker `FBank`): waveforms (batch, samples) in -1..1 → (batch, frames, mel bins),
        centred by its mean over time."""
        args = self.args
        fbank = kaldi_fbank(
            waveforms,
            args.num_mel_bins,
            args.frame_length,
            args.frame_shift,
            args.sample_rate,
            window_type="povey",
            scale=1.0,
        )
        return fbank - fbank.mean(axis=1, keepdims=True)

    def embed(self, waveforms: mx.array, masks: np.ndarray | None = None) -> mx.array:
        """The head runs once a waveform; the layers over time run once a speaker, on the speaker's frames alone, one
        behind the other. Who has fewer than `LEAST_FRAMES` gets NaN."""
        fbank = self.fbank(waveforms)
        if masks is None:
            return self(fbank)
        count, speakers, _ = masks.shape
        features = self.head(fbank)
        chosen = at_resolution(masks, features.shape[1])
        frames = [np.flatnonzero(mask) for mask in chosen.reshape(count * speakers, -1)]
        rows = np.repeat(np.arange(count), speakers)
        voices = [voice for voice in range(len(frames)) if len(frames[voice]) >= LEAST_FRAMES]
        result = mx.full((len(frames), self.args.embedding_size), mx.nan)
        for group in _of_like_length(voices, [len(places) for places in frames]):
            size = max(len(frames[voice]) for voice in group)
            places = np.full((len(group), size), -1)
            for place, voice in zip(places, group, strict=True):
                place[: len(frames[voice])] = frames[voice]
            valid = mx.array(places) >= 0
            own = features[mx.array(rows[group])[:, None], mx.array(np.maximum(places, 0))]
            result[mx.array(group)] = self.xvector(mx.where(valid[..., None], own, 0), valid.sum(axis=1))
        return result.reshape(count, speakers, -1)


def at_resolution(masks: np.ndarray, frames: int) -> np.ndarray:
    """masks (…, mask_frames) → (…, frames), each the one at the same part of the time"""
    mask_frames = masks.shape[-1]
    nearest = np.arange(frames) * mask_frames // frames
    return masks[..., nearest]


def _of_like_length(voices: list[int], lengths: list[int]) -> list[list[int]]:
    """Groups of voices that run at once: those that have as many segments begun."""
    groups: dict[int, list[int]] = {}
    for voice in voices:
        groups.setdefault(-(-lengths[voice] // dense_block.SEGMENT_FRAMES), []).append(voice)
    return list(groups.values())
