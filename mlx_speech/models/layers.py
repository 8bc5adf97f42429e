"""Layers that several models share: an LSTM whose directions run in one scan, a norm that keeps its digits, and two
convolutions."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_speech.blas import on_cpu
from mlx_speech.features import sum_over_time
from mlx_speech.ops.kernels import conv3x3, filter_bank, in_numpy

Pair = tuple[mx.array, mx.array]
BLOCK = 256  # steps put into one graph before it is handed to the device


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

    def __call__(self, x: mx.array, lengths: mx.array | None = None) -> mx.array:
        """x (batch, steps, channels); of each row only the first `lengths` (batch,) steps count, where given."""
        x = x.astype(mx.float32)
        count = x.shape[1] if lengths is None else lengths[:, None, None]

        def mean(y: mx.array) -> mx.array:
            valid = lengths is None or (mx.arange(x.shape[1]) < lengths[:, None])[..., None]
            return sum_over_time(y if lengths is None else mx.where(valid, y, 0)) / count

        centred = x - mean(x)
        variance = mean(mx.square(centred))
        scale = mx.rsqrt(variance + self._eps) * self.weight
        return (centred * scale + self.bias).astype(self.weight.dtype)


class Conv2d(nn.Conv2d):
    """MLX's, but for the fast way of most convolutions of a ResNet: 3×3, of stride 1, padded by 1, undilated."""

    def __call__(self, x: mx.array) -> mx.array:
        """x (batch, height, width, inputs) → (batch, height, width, outputs)"""
        plain = self.stride == (1, 1) and self.padding == (1, 1) and self.dilation in (1, (1, 1)) and self.groups == 1
        if self.weight.shape[1:3] != (3, 3) or not plain:
            return super().__call__(x)
        if "bias" not in self:
            return conv3x3(x, self.weight, mx.zeros((self.weight.shape[0],), self.weight.dtype))
        return conv3x3(x, self.weight, self.bias)


class FilterBank(nn.Conv1d):
    """Filters along a waveform: MLX's convolution without bias and padding, but added up exactly on the CPU."""

    def __init__(self, filters: int, width: int, stride: int):
        super().__init__(1, filters, width, stride=stride, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """x (batch, samples, 1) → (batch, steps, filters), a step every `stride` samples"""
        return filter_bank(x, self.weight, self.stride)


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
        """x (batch, steps, input) → (batch, steps, directions·hidden); last h and c, (directions, batch, hidden)"""
        directions, hidden = self.Wh.shape[0], self.Wh.shape[2]
        if state is None:
            zeros = mx.zeros((directions, x.shape[0], hidden), dtype=x.dtype)
            state = (zeros, zeros)
        x = mx.stack([x, x[:, ::-1]]) if directions == 2 else x[None]
        gates = x @ mx.swapaxes(self.Wx, 1, 2)[:, None] + self.bias[:, None, None]
        outputs, state = scan(gates, self.Wh, state)
        if directions == 2:
            return mx.concatenate([outputs[0], outputs[1][:, ::-1]], axis=-1), state
        return outputs[0], state


def scan(gates: mx.array, weight: mx.array, state: Pair) -> tuple[mx.array, Pair]:
    """The recurrence: h, c = cell(gates[t] + h·weightᵀ, c) for every step t.

    gates : (directions, batch, steps, 4·hidden), the projected input with bias
    weight : (directions, 4·hidden, hidden)
    state : h and c, (directions, batch, hidden)
    Returns all h, (directions, batch, steps, hidden), and the last state.
    On the CPU it runs in NumPy: a step costs a third of MLX's graph overhead there (no transfer, the memory is shared).
    """
    dtype, arrays = gates.dtype, [gates, weight, *state]
    if gates.shape[2] == 0:
        return mx.zeros((*gates.shape[:3], weight.shape[2]), dtype=dtype), state
    if on_cpu():
        arrays = [array.astype(mx.float32) for array in arrays]
    found = in_numpy(scan_numpy, scan_graph, *arrays, least=0).astype(dtype)
    return found[:, :, :-1], (found[:, :, -2], found[:, :, -1])


def scan_graph(gates: mx.array, weight: mx.array, h: mx.array, c: mx.array) -> mx.array:
    """All h, then the last c, (directions, batch, steps + 1, hidden), as an MLX graph; it is handed to the device in
    blocks, so that that can start while the rest is built."""
    transposed, blocks = mx.swapaxes(weight, 1, 2), []
    for start in range(0, gates.shape[2], BLOCK):
        outputs = []
        for step in range(start, min(start + BLOCK, gates.shape[2])):
            i, f, g, o = mx.split(gates[:, :, step] + h @ transposed, 4, axis=-1)
            c = mx.sigmoid(f) * c + mx.sigmoid(i) * mx.tanh(g)
            h = mx.sigmoid(o) * mx.tanh(c)
            outputs.append(h)
        blocks.append(mx.stack(outputs, axis=2))  # one buffer a block: a GPU has a limited number of them
        with suppress(ValueError):  # inside mx.compile and mx.vmap nothing can be computed yet
            mx.async_eval(blocks[-1], h, c)
    return mx.concatenate([*blocks, c[:, :, None]], axis=2)


def scan_numpy(gates: np.ndarray, weight: np.ndarray, h: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The same in NumPy: few calls a step, each into memory that is there."""
    hidden = weight.shape[2]

    def arranged(x: np.ndarray) -> np.ndarray:
        # sigmoid(x) = (tanh(x/2) + 1)/2: one tanh over all four gates, of which i, f and o, now together, are halved
        i_f, g, o = np.split(np.ascontiguousarray(x), [2 * hidden, 3 * hidden], axis=-1)
        return np.concatenate([i_f * 0.5, o * 0.5, g], axis=-1, dtype=np.float32)

    added = arranged(gates.transpose(2, 0, 1, 3))  # time first, so that a step reads one contiguous block
    transposed = 0.5 * arranged(weight.transpose(0, 2, 1))  # h is kept doubled
    h, c = 2 * h, c.copy()
    outputs = np.empty((len(added) + 1, *h.shape), np.float32)
    z, part = np.empty_like(added[0]), np.empty_like(c)
    i, f, o, g = (z[..., k * hidden : (k + 1) * hidden] for k in range(4))
    rows: Any = zip(added, outputs, strict=False)
    for step, out in rows:
        np.matmul(h, transposed, out=z)
        z += step
        np.tanh(z, out=z)
        z[..., : 3 * hidden] += 1
        np.multiply(i, g, out=part)
        c *= f
        c += part
        c *= 0.5
        np.tanh(c, out=part)
        h = np.multiply(o, part, out=out)
    outputs[:-1] *= 0.5
    outputs[-1] = c
    return outputs.transpose(1, 2, 0, 3)
