"""A convolution along time in groups of channels, with a long kernel.

In NumPy it is one product a group of what the kernel covers. Several steps share a row of it, so that what they cover
in common is copied once; their weights then stand beside each other, shifted by a step each (a Toeplitz matrix).
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import numpy as np
from numpy.lib.stride_tricks import as_strided

from mlx_speech.ops.cpu import in_numpy, in_parallel, suits_numpy

MOST_STEPS_PER_ROW = 16


def grouped_conv(x: mx.array, weight: mx.array, bias: mx.array, *, groups: int, padding: int) -> mx.array:
    """A convolution of stride 1 with zeros before and behind, whose groups of channels see their own inputs only.

    x (batch, steps, inputs), weight (outputs, kernel, inputs // groups), bias (outputs,)
    → (batch, steps + 2·padding - kernel + 1, outputs)

    In NumPy for every float32 on the CPU, else MLX's.
    """
    how = {"groups": groups, "padding": padding}
    if suits_numpy(x, weight, bias):
        return in_numpy(partial(grouped_conv_numpy, **how), partial(grouped_conv_graph, **how), x, weight, bias)
    return grouped_conv_graph(x, weight, bias, **how)


def grouped_conv_graph(x: mx.array, weight: mx.array, bias: mx.array, *, groups: int, padding: int) -> mx.array:
    """The same as a graph of MLX."""
    return mx.conv1d(x, weight, padding=padding, groups=groups) + bias


def grouped_conv_numpy(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, groups: int, padding: int) -> np.ndarray:
    """The same in NumPy."""
    batch, steps, inputs = x.shape
    outputs, kernel, _ = weight.shape
    count = steps + 2 * padding - kernel + 1
    inputs //= groups
    outputs //= groups
    # as many as there is least to copy: batch·count / together rows, and together · outputs columns
    together = min(max(round((batch * count / outputs) ** 0.5), 1), MOST_STEPS_PER_ROW)
    rows = -(-count // together)
    covered = together + kernel - 1  # steps
    result = np.empty((batch, count, groups * outputs), np.float32)

    def compute(group: int) -> None:
        ins = slice(group * inputs, (group + 1) * inputs)
        outs = slice(group * outputs, (group + 1) * outputs)
        shifted = np.zeros((together, outputs, covered, inputs), np.float32)
        for step in range(together):
            shifted[step, :, step : step + kernel] = weight[outs]
        shifted = shifted.reshape(together * outputs, -1)
        padded = np.zeros((max((rows - 1) * together + covered, padding + steps), inputs), np.float32)
        overlapping = as_strided(
            padded, (rows, covered * inputs), (together * padded.strides[0], padded.strides[1]), writeable=False
        )
        for row in range(batch):
            padded[padding : padding + steps] = x[row, :, ins]
            y = np.ascontiguousarray(overlapping) @ shifted.T
            np.add(y.reshape(-1, outputs)[:count], bias[outs], out=result[row, :, outs])

    in_parallel(compute, range(groups))
    return result
