"""Layers that several models share: an LSTM in one or two directions, a norm that keeps its digits and one that uses
all cores, and three convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_speech.ops.conv3x3 import conv3x3
from mlx_speech.ops.filter_bank import Layout, loudness
from mlx_speech.ops.layer_norm import layer_norm
from mlx_speech.ops.lstm import Pair, lstm
from mlx_speech.ops.pooled_conv import pooled_conv
from mlx_speech.ops.time_norm import time_norm, time_norm_graph


class TimeNorm(nn.Module):
    """Every channel of every row to zero mean and unit variance over time, then scaled and shifted.

    That is torch's InstanceNorm1d(affine=True), and its GroupNorm with one channel a group. MLX's own norms add up
    tens of thousands of samples one by one on the CPU and lose two digits that later layers amplify: on a meeting,
    the probabilities of pyannote's segmentation were off by 1e-2.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight = mx.ones((channels,))
        self.bias = mx.zeros((channels,))
        self._eps = eps

    @property
    def eps(self) -> float:
        """What is added to the variance."""
        return self._eps

    def __call__(self, x: mx.array, lengths: mx.array | None = None) -> mx.array:
        """x (batch, steps, channels) → (batch, steps, channels), in the dtype of the weight

        lengths : (batch,) steps of each row that count; all, where None
        """
        if lengths is None:
            return time_norm(x, self.weight, self.bias, self._eps)
        return time_norm_graph(x, self.weight, self.bias, self._eps, lengths)


class LayerNorm(nn.LayerNorm):
    """As `nn.LayerNorm` with weight and bias; on a CPU all cores compute it."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__(width, eps=eps)

    def __call__(self, x: mx.array) -> mx.array:
        """x (…, width) → the same shape"""
        return layer_norm(x, self.weight, self.bias, self.eps)


class Conv2d(nn.Conv2d):
    """MLX's, but for the fast way of most convolutions of a ResNet: 3×3, of stride 1, padded by 1, undilated."""

    def __call__(self, x: mx.array) -> mx.array:
        """x (batch, height, width, inputs) → (batch, height, width, outputs), at stride 1"""
        if not self._is_3x3():
            return super().__call__(x)
        outputs = self.weight.shape[0]
        bias = self.bias if "bias" in self else mx.zeros((outputs,), self.weight.dtype)
        return conv3x3(x, self.weight, bias, row_stride=self.stride[0])

    def _is_3x3(self) -> bool:
        return (
            self.weight.shape[1:3] == (3, 3)
            and self.stride[1] == 1
            and self.padding == (1, 1)
            and self.dilation in (1, (1, 1))
            and self.groups == 1
        )


class FilterBank(nn.Conv1d):
    """Filters along normalised windows of a waveform, without bias and padding, and their loudness: exact on the CPU.

    pool : steps of which the loudest is given
    """

    def __init__(self, filters: int, width: int, stride: int, pool: int):
        super().__init__(1, filters, width, stride=stride, bias=False)
        self._pool = pool

    def __call__(self, samples: mx.array, starts: Sequence[int], size: int, norm: TimeNorm) -> mx.array:
        """samples (samples,) → (windows, steps // pool, filters), a step every `stride` samples

        starts : the first sample of each window; size : samples of a window; norm : what makes windows equally loud
        """
        layout = Layout(tuple(starts), size, self.stride, self._pool)
        return loudness(samples, norm.weight, norm.bias, norm.eps, self.weight, layout)


class PooledConv(nn.Conv1d):
    """A convolution along time, without padding and with stride 1; of every `pool` steps the largest."""

    def __init__(self, inputs: int, outputs: int, width: int, pool: int):
        super().__init__(inputs, outputs, width)
        self._pool = pool

    def __call__(self, x: mx.array) -> mx.array:
        """x (batch, steps, inputs) → (batch, (steps - width + 1) // pool, outputs)"""
        return pooled_conv(x, self.weight, self.bias, self._pool)


class LSTM(nn.Module):
    """One layer of an LSTM in one or two directions (Hochreiter & Schmidhuber 1997; gates i, f, g, o as in torch).

    Parameters: `Wx` (directions, 4·hidden, input), `Wh` (directions, 4·hidden, hidden), `bias` (directions, 4·hidden),
    the sum of torch's two biases. The second direction runs from the end to the start.
    """

    def __init__(self, input_size: int, hidden_size: int, directions: int = 1):
        super().__init__()
        self.Wx = mx.zeros((directions, 4 * hidden_size, input_size))
        self.Wh = mx.zeros((directions, 4 * hidden_size, hidden_size))
        self.bias = mx.zeros((directions, 4 * hidden_size))

    def __call__(self, x: mx.array, state: Pair | None = None) -> tuple[mx.array, Pair]:
        """x (batch, steps, input) → all h, (batch, steps, directions·hidden), and the last h and c

        state : h and c before the first step, each (directions, batch, hidden); zeros, where None. The returned one is
            of the same shape.
        """
        directions, _, hidden = self.Wh.shape
        if state is None:
            zeros = mx.zeros((directions, x.shape[0], hidden), dtype=x.dtype)
            state = (zeros, zeros)
        return lstm(x, self.Wx, self.Wh, self.bias, state)
