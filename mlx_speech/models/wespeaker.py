"""WeSpeaker's ResNet speaker embedding (Wang et al. 2023): one vector per voice, for any number of masks at once.

Sources: wenet-e2e/wespeaker `models/resnet.py`; pyannote.audio `models.embedding.wespeaker`, `models.blocks.pooling`.
Batch norms are folded into the convolutions at conversion.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_speech.features import speaker_fbank
from mlx_speech.models.base import BaseModelArgs, SpeakerEmbedding, above_zero, positive
from mlx_speech.models.layers import Conv2d

BOTTLENECK_EXPANSION = 4  # outputs of a bottleneck, for each channel inside it
EPSILON = 1e-8  # pyannote.audio's, against masks that are zero throughout


@dataclass
class ModelArgs(BaseModelArgs):
    num_blocks: list[int] = field(default_factory=lambda: [3, 4, 6, 3], metadata={"min": 1, "max": 512, "length": 6})
    bottleneck: bool = False
    base_channels: int = field(default=32, metadata={"min": 1, "max": 4096})
    num_mel_bins: int = field(default=80, metadata={"min": 8, "max": 4096})
    embedding_size: int = positive(256)
    sample_rate: int = positive(16000)
    frame_length: float = above_zero(25.0)  # ms
    frame_shift: float = above_zero(10.0)  # ms
    fbank_centering_span: float | None = above_zero(None)  # seconds; None: the mean of the whole chunk is subtracted


class Block(nn.Module):
    """Two 3×3 convolutions, or a bottleneck of 1×1, 3×3 and 1×1, beside a shortcut (wespeaker `BasicBlock` and
    `Bottleneck`)."""

    def __init__(self, inputs: int, planes: int, stride: int, bottleneck: bool):
        super().__init__()
        outputs = planes * BOTTLENECK_EXPANSION if bottleneck else planes
        if bottleneck:
            self.conv1 = Conv2d(inputs, planes, 1)
            self.conv2 = Conv2d(planes, planes, 3, stride=stride, padding=1)
            self.conv3 = Conv2d(planes, outputs, 1)
        else:
            self.conv1 = Conv2d(inputs, planes, 3, stride=stride, padding=1)
            self.conv2 = Conv2d(planes, planes, 3, padding=1)
        if stride != 1 or inputs != outputs:
            self.shortcut = Conv2d(inputs, outputs, 1, stride=stride)

    def __call__(self, x: mx.array) -> mx.array:
        """x (batch, mel, frames, inputs) → (batch, mel / stride, frames / stride, outputs), rounded up"""
        y = self.conv2(nn.relu(self.conv1(x)))
        if "conv3" in self:
            y = self.conv3(nn.relu(y))
        if "shortcut" in self:
            x = self.shortcut(x)
        return nn.relu(y + x)


class Model(SpeakerEmbedding):
    """A ResNet over a filterbank, pooled over time under masks (wespeaker `ResNet`, with `TSTP` pooling)."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        inputs = args.base_channels
        expansion = BOTTLENECK_EXPANSION if args.bottleneck else 1
        self.conv1 = Conv2d(1, inputs, 3, padding=1)
        for stage, count in enumerate(args.num_blocks):
            planes = args.base_channels * 2**stage
            blocks = []
            for index in range(count):
                halves = stage > 0 and index == 0  # every stage but the first begins by halving
                blocks.append(Block(inputs, planes, 2 if halves else 1, args.bottleneck))
                inputs = planes * expansion
            self[f"layer{stage + 1}"] = blocks
        features = inputs * (args.num_mel_bins // 8)
        self.seg_1 = nn.Linear(2 * features, args.embedding_size)

    def cast_predicate(self, path: str) -> bool:
        """All but the last layer: it and the pooling stay in float32."""
        return not path.startswith("seg_1")

    def trunk(self, fbank: mx.array) -> mx.array:
        """fbank (batch, frames, mel bins) → features (batch, frames after three halvings, mel bins / 8 · channels)"""
        x = mx.swapaxes(fbank, 1, 2)[..., None].astype(self.conv1.weight.dtype)  # (batch, mel, frames, 1)
        x = nn.relu(self.conv1(x))
        for stage in range(len(self.args.num_blocks)):
            for block in self[f"layer{stage + 1}"]:
                x = block(x)
        x = x.astype(mx.float32)
        return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)

    def pool(self, features: mx.array, masks: mx.array | None = None) -> mx.array:
        """Mean and standard deviation over time, through the last layer.

        features (batch, frames, size) → (batch, embedding); with masks (batch, speakers, mask_frames), which are
        weights of any resolution, → (batch, speakers, embedding). A mask that is zero throughout gives the bias.
        """
        if masks is None:
            mean = features.mean(axis=1)
            deviation = mx.sqrt(mx.var(features, axis=1, ddof=1))
        else:
            mean, deviation = _weighted_statistics(features, _at_resolution(masks, features.shape[1]))
        return self.seg_1(mx.concatenate([mean, deviation], axis=-1))

    def __call__(self, fbank: mx.array, masks: mx.array | None = None) -> mx.array:
        """fbank (batch, frames, mel bins), centred → (batch, embedding), not normalised.

        With masks (batch, speakers, mask_frames): (batch, speakers, embedding); the trunk runs once for all of them.
        """
        return self.pool(self.trunk(fbank), masks)

    def embed(self, waveforms: mx.array, masks: np.ndarray | None = None) -> mx.array:
        """The trunk runs once a waveform for all its speakers; who is never heard gets the last layer's bias."""
        args = self.args
        fbank = speaker_fbank(
            waveforms,
            args.fbank_centering_span,
            args.sample_rate,
            num_mel_bins=args.num_mel_bins,
            frame_length=args.frame_length,
            frame_shift=args.frame_shift,
        )
        if masks is None:
            return self(fbank)
        return self.pool(self.trunk(fbank)[: len(masks)], mx.array(masks))


def _at_resolution(masks: mx.array, frames: int) -> mx.array:
    """masks (batch, speakers, mask_frames) → (batch, speakers, frames) in float32, each the nearest (torch's
    `interpolate(mode="nearest")`, which multiplies in float32)."""
    mask_frames = masks.shape[2]
    step = np.float32(mask_frames / frames)
    places = np.floor(np.arange(frames, dtype=np.float32) * step)
    nearest = np.minimum(places, mask_frames - 1).astype(np.int32)
    return masks[:, :, mx.array(nearest)].astype(mx.float32)


def _weighted_statistics(features: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
    """Mean and unbiased standard deviation under weights (pyannote.audio `models.blocks.pooling.StatsPool`).

    features (batch, frames, size), weights (batch, speakers, frames) → each (batch, speakers, size)
    """
    total = weights.sum(axis=2, keepdims=True) + EPSILON
    mean = weights @ features / total
    # two passes, one speaker at a time: E[x²] − E[x]² loses the digits that parity asks for
    squares = []
    for speaker in range(weights.shape[1]):
        centred = features - mean[:, speaker, None]
        squares.append((weights[:, speaker, None] @ mx.square(centred))[:, 0])
    variance = mx.stack(squares, axis=1)
    correction = total - mx.square(weights).sum(axis=2, keepdims=True) / total + EPSILON
    return mean, mx.sqrt(variance / correction)
