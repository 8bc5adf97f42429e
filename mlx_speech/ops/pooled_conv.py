"""A convolution along time, and the largest of every few steps."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import numpy as np

from mlx_speech.ops.cpu import in_numpy, in_parallel, parts_of, suits_numpy

STEPS_PER_PART = 512  # of the result's; they stay in cache with a buffer of their size


def pooled_conv(x: mx.array, weight: mx.array, bias: mx.array, pool: int) -> mx.array:
    """A convolution without padding and with stride 1; of every `pool` steps the largest, channel by channel.

    x (batch, steps, inputs), weight (outputs, width, inputs), bias (outputs,)
    → (batch, (steps - width + 1) // pool, outputs)

    In NumPy for every float32 on the CPU, else MLX's.
    """
    graph = partial(pooled_conv_graph, pool=pool)
    if suits_numpy(x, weight, bias):
        return in_numpy(partial(pooled_conv_numpy, pool=pool), graph, x, weight, bias)
    return graph(x, weight, bias)


def pooled_conv_graph(x: mx.array, weight: mx.array, bias: mx.array, pool: int) -> mx.array:
    """x (batch, steps, inputs), weight (outputs, width, inputs), bias (outputs,)
    → (batch, (steps - width + 1) // pool, outputs), as a graph of MLX"""
    y = mx.conv1d(x, weight)
    batch, steps, outputs = y.shape
    whole = steps // pool * pool
    return y[:, :whole].reshape(batch, -1, pool, outputs).max(axis=2) + bias


def pooled_conv_numpy(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, pool: int) -> np.ndarray:
    """x (batch, steps, inputs), weight (outputs, width, inputs), bias (outputs,)
    → (batch, (steps - width + 1) // pool, outputs)

    The sum of one product for each tap. The bias, which is the same for all steps, comes behind the pooling.
    """
    outputs, width, _ = weight.shape
    taps = weight.transpose(1, 2, 0).copy()  # (width, inputs, outputs)
    batch = x.shape[0]
    steps = (x.shape[1] - width + 1) // pool
    result = np.empty((batch, steps, outputs), np.float32)

    def compute(part: tuple[int, slice]) -> None:
        row, block = part
        start = block.start * pool
        stop = min(block.stop, steps) * pool
        y = x[row, start:stop] @ taps[0]
        buffer = np.empty_like(y)
        for tap in range(1, width):
            y += np.matmul(x[row, start + tap : stop + tap], taps[tap], out=buffer)
        np.add(y.reshape(-1, pool, outputs).max(axis=1), bias, out=result[part])

    in_parallel(compute, parts_of(batch, steps, max(1, STEPS_PER_PART // pool)))
    return result
