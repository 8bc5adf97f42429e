"""Every channel of every row to zero mean and unit variance over time, then scaled and shifted: torch's
InstanceNorm1d(affine=True), and its GroupNorm with one channel a group."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import numpy as np

from mlx_speech.features import sum_over_time
from mlx_speech.ops.cpu import in_numpy, in_parallel, slices, suits_numpy

NUMBERS_PER_BLOCK = 1 << 15  # in float64 they stay in cache


def time_norm(x: mx.array, weight: mx.array, bias: mx.array, eps: float) -> mx.array:
    """x (batch, steps, channels), weight and bias (channels,) → (batch, steps, channels), in the dtype of the weight

    In NumPy for every float32 on the CPU, else as a graph of MLX.
    """
    graph = partial(time_norm_graph, eps=eps)
    if suits_numpy(x, weight, bias):
        return in_numpy(partial(time_norm_numpy, eps=eps), graph, x, weight, bias)
    return graph(x, weight, bias)


def time_norm_graph(
    x: mx.array, weight: mx.array, bias: mx.array, eps: float, lengths: mx.array | None = None
) -> mx.array:
    """x (batch, steps, channels), weight and bias (channels,) → (batch, steps, channels), as a graph of MLX

    lengths : (batch,) steps of each row that count; all, where None
    """
    x = x.astype(mx.float32)
    count = x.shape[1]
    valid = None
    if lengths is not None:
        count = lengths[:, None, None]
        valid = (mx.arange(x.shape[1]) < lengths[:, None])[..., None]

    def mean(y: mx.array) -> mx.array:
        """y (batch, steps, channels) → (batch, 1, channels)"""
        if valid is not None:
            y = mx.where(valid, y, 0)
        return sum_over_time(y) / count

    centred = x - mean(x)
    variance = mean(mx.square(centred))
    scale = mx.rsqrt(variance + eps) * weight
    return (centred * scale + bias).astype(weight.dtype)


def time_norm_numpy(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """x (batch, steps, channels), weight and bias (channels,) → (batch, steps, channels)

    Sums and sums of squares in float64, in which squares of float32 are exact.
    """
    batch, steps, channels = x.shape
    result = np.empty_like(x)
    blocks = slices(steps, max(1, NUMBERS_PER_BLOCK // channels))

    def compute(row: int) -> None:
        total = np.zeros(channels)
        squares = np.zeros(channels)
        for block in blocks:
            piece = x[row, block].astype(np.float64)
            total += piece.sum(axis=0)
            squares += np.einsum("sc,sc->c", piece, piece)
        mean = total / steps
        variance = squares / steps - mean * mean
        scale = (weight / np.sqrt(np.maximum(variance, 0) + eps)).astype(np.float32)
        centre = mean.astype(np.float32)
        for block in blocks:
            piece = result[row, block]
            np.subtract(x[row, block], centre, out=piece)
            piece *= scale
            piece += bias

    in_parallel(compute, range(batch))
    return result
