"""The logarithm of a sum of exponentials, which makes logits log-probabilities.

MLX adds up a row one by one on the CPU: with 50 000 tokens, most of them improbable, that is off by 2e-4. NumPy sums in
pairs; where MLX has to do it, it sums in parts.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_speech.ops.cpu import in_numpy, suits_numpy

SMALLEST_FOR_NUMPY = 1 << 15  # numbers; of fewer, ending MLX's lazy evaluation costs more than NumPy saves
PART_SIZE = 256  # numbers that are added one after the other, before the sums of the parts are
LOWEST = np.float32(-1e30)  # below every logit, above -inf, from which nothing can be subtracted


def log_sum_exp(x: mx.array) -> mx.array:
    """The logarithm of the sum of exponentials of each row, (..., n) → (..., 1).

    In NumPy where that pays, else in MLX in parts.
    """
    if x.size >= SMALLEST_FOR_NUMPY and suits_numpy(x):
        return in_numpy(log_sum_exp_numpy, log_sum_exp_graph, x)
    return log_sum_exp_graph(x)


def log_sum_exp_graph(x: mx.array) -> mx.array:
    """(..., n) → (..., 1), as a graph of MLX."""
    sums = mx.logsumexp(in_parts(x), axis=-1)
    return mx.logsumexp(sums, axis=-1, keepdims=True)


def log_sum_exp_numpy(x: np.ndarray) -> np.ndarray:
    """(..., n) → (..., 1)"""
    highest = np.maximum(x.max(axis=-1, keepdims=True), LOWEST)
    sums = np.exp(x - highest).sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):  # a row of nothing but -inf sums up to 0
        return highest + np.log(sums)


def in_parts(x: mx.array) -> mx.array:
    """(..., n) → (..., parts, PART_SIZE), padded with -inf"""
    missing = -x.shape[-1] % PART_SIZE
    padding = [(0, 0)] * (x.ndim - 1) + [(0, missing)]
    padded = mx.pad(x, padding, constant_values=-mx.inf)
    return padded.reshape(*x.shape[:-1], -1, PART_SIZE)
