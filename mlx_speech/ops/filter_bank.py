"""Filters along a waveform, rounded once.

A filter that hears next to nothing is a small sum of large numbers: with OpenBLAS's kernels of some CPUs, float32 left
an error of 4 % of its loudness, and the norm behind it makes every filter equally loud.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import numpy as np

from mlx_speech.ops.cpu import in_numpy, in_parallel, slices, suits_numpy

STEPS_PER_PART = 512  # whose samples stay in cache in float64


def filter_bank(x: mx.array, weight: mx.array, stride: int) -> mx.array:
    """Filters along one channel, without padding, a step every `stride` samples.

    x (batch, samples, 1), weight (filters, width, 1) → (batch, steps, filters)

    In NumPy for every float32 on the CPU, else MLX's convolution.
    """
    graph = partial(filter_bank_graph, stride=stride)
    if suits_numpy(x, weight):
        return in_numpy(partial(filter_bank_numpy, stride=stride), graph, x, weight)
    return graph(x, weight)


def filter_bank_graph(x: mx.array, weight: mx.array, stride: int) -> mx.array:
    """x (batch, samples, 1), weight (filters, width, 1) → (batch, steps, filters), as a graph of MLX"""
    return mx.conv1d(x, weight, stride=stride)


def filter_bank_numpy(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """x (batch, samples, 1), weight (filters, width, 1) → (batch, steps, filters)

    Added up in float64 and rounded once, so that no BLAS, no number of threads and no size of a batch makes a
    difference.
    """
    filters = weight[:, :, 0].T.astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(x[:, :, 0], weight.shape[1], axis=1)[:, ::stride]
    batch, steps, _ = windows.shape
    result = np.empty((batch, steps, weight.shape[0]), np.float32)

    def compute(part: tuple[int, slice]) -> None:
        result[part] = windows[part].astype(np.float64) @ filters

    parts = []
    for row in range(batch):
        for block in slices(steps, STEPS_PER_PART):
            parts.append((row, block))
    in_parallel(compute, parts)
    return result
